"""utils/console.py: the bar of what takes long, and the line that says that memory ran out."""

import re
import sys

import numpy as np
import pytest

from utils.console import run, waiting_bar
from utils.start import tf

COLUMNS = 79


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which stand still for tqdm but for what is added to them."""
    now = [1_000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def screen(written):
    """The lines of a terminal that was sent this."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|[\r\n]|[^\r\n\x1b]+", written):
        if part == "\x1b[A":
            row -= 1
        elif part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def test_it_comes_after_two_seconds_has_the_time_left_and_leaves_nothing(clock, capsys):
    with waiting_bar("testing", 8) as bar:
        for _ in range(3):
            clock[0] += 0.6
            bar.update()
        assert capsys.readouterr().err == ""
        clock[0] += 0.6
        bar.update()
        shown = capsys.readouterr().err
        assert screen(shown) == ["testing    |" + "#" * 27 + " " * 28 + "| 00:02 left"]
        assert len(shown.strip("\r")) == COLUMNS
        assert shown.isascii()
        clock[0] += 30
        bar.update(3)
        shown += capsys.readouterr().err
    assert screen(shown + capsys.readouterr().err) == [""]


def test_what_was_done_before_does_not_count_for_the_time_left(clock, capsys):
    with waiting_bar("weighing", 1_000, 900) as bar:
        clock[0] += 5
        bar.update(50)
        assert "00:05 left" in capsys.readouterr().err


@pytest.mark.parametrize("doing", ["", "testing"])
def test_what_has_no_name_or_is_soon_done_shows_nothing(doing, clock, capsys):
    with waiting_bar(doing, 2) as bar:
        clock[0] += 1 if doing else 9
        bar.update(2)
    assert capsys.readouterr().err == ""


def test_two_bars_do_not_garble_each_other(clock, capsys):
    from utils.report import progress_bar, show_progress

    written = ""

    def shows(*lines):
        nonlocal written
        written += capsys.readouterr().err
        found = [re.split(r" *\|", line)[0] for line in screen(written)]
        assert [name for name in found if name] == list(lines)

    with progress_bar(100, 0) as training:
        clock[0] += 1
        show_progress(training, 50, 1, 2, None)
        shows("epoch  1/2")
        with waiting_bar("testing", 2) as bar:
            clock[0] += 3
            bar.update()
            shows("epoch  1/2", "testing")
        shows("epoch  1/2")
        clock[0] += 1
        show_progress(training, 100, 2, 2, None)
    sys.stderr.write("later")
    shows("epoch  2/2", "later")


ROOM = "Out of memory allocating 8589934592 bytes."  # as XLA says it, on a GPU and on a CPU


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**9, 10**9), np.dtype(float)),
        tf.errors.ResourceExhaustedError(None, None, "failed to allocate memory"),
        tf.errors.InternalError(None, None, f"RESOURCE_EXHAUSTED: {ROOM}"),
        tf.errors.UnknownError(None, None, ROOM),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_one_line(error, capsys):
    def work():
        raise error

    assert run("evaluate", work) == 1
    told = capsys.readouterr().err
    assert told.startswith("evaluate: error: out of memory; lower BATCH_SIZE")
    assert told.count("\n") == 1


def test_an_error_of_another_kind_stays_what_it_is():
    def work():
        raise tf.errors.InternalError(None, None, "a fault of the code")

    with pytest.raises(tf.errors.InternalError):
        run("evaluate", work)
