"""utils/console.py: exit codes, signals, any console, names from outside, the bar, memory that runs out."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.shared import REPOSITORY, users_environment
from utils import console
from utils.console import run, waiting_bar
from utils.start import tf

COLUMNS = 79


@pytest.fixture
def clock(monkeypatch):
    """A clock for tqdm, in seconds: it moves only when something is added."""
    now = [1_000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def screen(written):
    """The lines that a terminal shows after this output."""
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


ROOM = "Out of memory allocating 8589934592 bytes."  # XLA's message on a GPU and on a CPU


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**9, 10**9), np.dtype(float)),
        tf.errors.ResourceExhaustedError(None, None, "failed to allocate memory"),
        tf.errors.InternalError(None, None, f"RESOURCE_EXHAUSTED: {ROOM}"),
        tf.errors.UnknownError(None, None, ROOM),
        tf.errors.AbortedError(None, None, "Status: 1, message: could not create a primitive, in file mkl_conv.cc"),
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


# --- signals and exit codes -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", console.STOPPING)
def test_a_signal_ends_with_its_code_and_a_line_and_handlers_are_put_back(number, capsys):
    before = [signal.getsignal(each) for each in console.STOPPING]
    code = console.run("program", lambda: os.kill(os.getpid(), number), "go on")
    assert (code, capsys.readouterr()) == (128 + number, ("\nstopped    go on\n", ""))
    assert [signal.getsignal(each) for each in console.STOPPING] == before


def test_a_second_signal_at_once_is_the_same_wish_and_a_later_one_is_another(capsys, monkeypatch):
    ends = []

    def work():
        for _ in range(2):
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except console.Stopped:
                ends.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)

    assert console.run("program", work) == 0
    assert len(ends) == 1
    monkeypatch.setattr(console, "REPEATED", 0.0)
    assert console.run("program", work) == 130
    assert len(ends) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_nohup_keeps_a_program_from_a_closed_terminal_and_a_background_job_stops_at_sigint(number, code):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert console.run("program", lambda: os.kill(os.getpid(), number)) == code
    finally:
        signal.signal(number, before)


def test_what_went_wrong_is_one_line_whatever_is_in_a_name(capsys):
    def fail(error):
        raise error

    name = "a\nb\x1b[31m\udce9 \u00e9"
    assert console.run("program", lambda: fail(console.Problem(f"{name}: bad"))) == 1
    assert capsys.readouterr().err == "program: error: a\\nb\\x1b[31m\\udce9 \u00e9: bad\n"
    assert console.run("program", lambda: fail(FileNotFoundError(2, "No such file", name))) == 1
    assert capsys.readouterr().err == "program: error: 'a\\nb\\x1b[31m\\udce9 \u00e9': No such file\n"


# --- what is printed --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "expected"),
    [("caf\u00e9 [1] 'x'",) * 2, ("a\nb", r"'a\nb'"), ("\x1b]0;x\x07", r"'\x1b]0;x\x07'"), ("\u202e", r"'\u202e'")],
)  # fmt: skip
def test_a_name_is_shown_as_it_is_or_quoted(name, expected):
    assert console.shown(name) == console.shown(os.fsencode(name)) == expected


def test_a_name_that_is_no_text_is_shown_with_its_bytes():
    assert console.shown("\udce9.png") == r"'\udce9.png'"
    assert console.shown(b"\xe9.png") == r"\xe9.png"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_any_console_shows_any_text(encoding):
    code = r"from utils import console; console.begin(); print('\u72ac \udce9 x\n\x1b[31m')"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, check=True
    )
    dog = "\u72ac" if encoding == "utf-8" else r"\u72ac"
    assert (done.stdout.decode(encoding), done.stderr) == (f"{dog} \\udce9 x\n\\x1b[31m\n", b"")


def test_work_goes_on_when_nobody_reads(tmp_path):
    code = f"""if True:
        import sys, pathlib
        from utils import console
        def work():
            for number in range(100_000):
                print(number)
                print(number, file=sys.stderr)
            pathlib.Path({str(tmp_path / "done")!r}).touch()
        sys.exit(console.run("program", work))"""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, **pipe)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert (tmp_path / "done").exists()


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_no_noise():
    code = "from utils import console; console.begin(); import utils.pictures; import utils.start"
    hidden = ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "KERAS_HOME")
    environment = {name: value for name, value in users_environment().items() if name not in hidden}
    for home in ({"HOME": "/proc/nowhere"}, {}):
        command = [sys.executable, "-c", code]
        both = {name: value for name, value in environment.items() if name != "HOME"} | home
        done = subprocess.run(command, cwd=REPOSITORY, env=both, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_handlers_of_signals_have_a_stack_of_their_own():
    """Otherwise they may overwrite what a compiled matrix product keeps on the stack, and the process crashes."""
    code = """
import ctypes
from utils import console

def is_apart():
    class Stack(ctypes.Structure):
        _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.flags != 2  # SS_DISABLE: there is none

assert not is_apart()
with console.handled(lambda number, frame: None):
    assert is_apart()
"""
    own = {name: value for name, value in users_environment().items() if name != "PYTHONFAULTHANDLER"}
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=own, check=True)
