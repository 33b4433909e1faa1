"""utils/history.py: lines that add up, and the same numbers in TensorBoard."""

import json
import math
import resource

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.shared import contents, scalars, written
from utils import history, runs
from utils.start import tf


def test_a_line_of_the_history_adds_up():
    line = history.history_line("train", 150, 468, tf.constant([90.5, 80.25, 20.5]), tf.constant(0.5))
    assert line == {
        "step": 150, "epoch": 0.3205, "split": "train", "objective": 90.5, "reconstruction": 80.25, "kl": 20.5,
        "kl_weight": 0.5, "elbo": -100.75,
    }  # fmt: skip


def test_a_line_of_the_autoencoder_has_neither_kl_nor_elbo():
    line = history.history_line("test", 468, 468, tf.constant([80.25, 80.25, 0]), None)
    assert (line["kl"], line["kl_weight"], line["elbo"], line["reconstruction"]) == (None, None, None, 80.25)


def test_a_sum_that_is_no_elbo_has_another_name():
    line = history.history_line("test", 468, 468, tf.constant([90.5, 80.25, 20.5]), 0.5, "-(loss + KL)")
    assert (line["elbo"], line["-(loss + KL)"]) == (None, -100.75)


def test_tensorboard_gets_the_numbers_of_the_history_and_no_others(tmp_path):
    written(tmp_path, [10, 20])
    written(tmp_path, [20], split="test")
    expected = {
        (f"{line['split']}/{name}", line["step"]): np.float32(line[name]).item()
        for line in runs.read_history(tmp_path)
        for name in ("objective", "reconstruction", "kl", "kl_weight", "elbo")
    }
    assert len(expected) == 15
    assert scalars(tmp_path) == expected


def test_the_active_units_of_the_history_are_in_tensorboard(tmp_path):
    with history.event_writer(tmp_path, "test") as events:
        for step, units in ((10, 7), (20, None)):  # an autoencoder has none
            history.write_line(tmp_path, {"test": events}, {"step": step, "split": "test", "active_units": units})
    assert scalars(tmp_path) == {("test/active_units", 10): 7}


@pytest.mark.parametrize(
    ("judged", "name", "value"),
    [
        ({"test_nll": 92.5, "test_log_density": None}, "log_likelihood", -92.5),
        ({"test_nll": None, "test_log_density": 0.0}, "log_density", 0.0),
        ({"test_nll": None, "test_log_density": None}, None, None),
    ],
)
def test_the_likelihood_of_each_judged_step_is_in_tensorboard_once(judged, name, value, tmp_path):
    for step in (10, 20, 20):
        history.cut_back(tmp_path, step, pytest.fail)
        history.write_likelihood(tmp_path, step, judged)
    assert scalars(tmp_path) == ({(f"test/{name}", step): value for step in (10, 20)} if name else {})


# --- what came after a checkpoint -------------------------------------------------------------------------------------
def only_event_file(folder):
    [path] = (folder / "tensorboard").rglob("*tfevents*")
    return path


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path):
    written(tmp_path, [10, 20, 30, 40])
    before, lines = scalars(tmp_path), runs.read_history(tmp_path)
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"step": 25, "ep')  # the crash came here
    history.cut_back(tmp_path, 20, pytest.fail)
    assert runs.read_history(tmp_path) == lines[:2]
    assert scalars(tmp_path) == {key: value for key, value in before.items() if key[1] <= 20}
    assert len(contents(tmp_path)) == 2  # no temporary file is left
    written(tmp_path, [30, 40])
    assert runs.read_history(tmp_path) == lines
    assert scalars(tmp_path) == before


def test_event_files_are_cut_whether_splits_have_a_folder_each_or_as_in_older_runs_share_one(tmp_path):
    written(tmp_path, [10, 20, 30])
    older = only_event_file(tmp_path)
    older.rename(tmp_path / "tensorboard" / older.name)
    for split in ("train", "test"):
        written(tmp_path, [10, 20, 30], split)
    before = scalars(tmp_path)
    assert {tag for tag, _ in before} > {"kl", "train/kl", "test/kl"}
    history.cut_back(tmp_path, 20, lambda line: None)  # because the lines are there twice
    assert scalars(tmp_path) == {key: value for key, value in before.items() if key[1] <= 20}


def test_a_run_without_a_checkpoint_starts_with_nothing(tmp_path):
    written(tmp_path, [10, 20])
    (tmp_path / "tensorboard" / "labels.tsv").write_text("7\n")
    history.cut_back(tmp_path, 0, pytest.fail)
    assert contents(tmp_path) == {"history.jsonl": b"", "tensorboard/labels.tsv": b"7\n"}


@pytest.mark.parametrize("lost", [1, 30, 60])
def test_an_event_file_that_ends_within_a_record_keeps_the_records_before(lost, tmp_path):
    written(tmp_path, [10, 20, 30])
    whole, path = scalars(tmp_path), only_event_file(tmp_path)
    last = list(whole)[-1]
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - lost)
    history.cut_events(path, 1_000, pytest.fail)
    assert scalars(tmp_path) == {key: value for key, value in whole.items() if key != last}
    assert only_event_file(tmp_path) == path
    assert next(EventFileLoader(str(path)).Load()).file_version == "brain.Event:2"  # still an event file


def test_an_event_file_that_is_empty_stays_so(tmp_path):
    (tmp_path / "events").touch()
    history.cut_events(tmp_path / "events", 1_000, pytest.fail)
    assert contents(tmp_path) == {"events": b""}


def test_an_event_file_that_cannot_be_cut_for_want_of_room_stays_whole(tmp_path):
    written(tmp_path, [10, 20, 30])
    before = contents(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="File too large"):
            history.cut_events(only_event_file(tmp_path), 20, pytest.fail)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert contents(tmp_path) == before


def test_damage_in_the_middle_is_said_and_what_is_whole_is_kept(tmp_path):
    line = {"split": "train", "epoch": 1.0, "objective": 1.0, "reconstruction": 1.0}
    line |= {"kl": None, "kl_weight": None, "elbo": None, "images_per_second": 5}
    good = [json.dumps(line | {"step": step}).encode() for step in (10, 20, 30)]
    wrong = [{"step": "20"}, {"kl": True}, {"epoch": None}, {"objective": math.nan}, {"images_per_second": "5"}]
    bad = [b"\xff\xfe", b"null", b"5", b"{}", b"[" * 9_999]
    bad += [json.dumps(line | {"step": 15} | part).encode() for part in wrong]
    (tmp_path / "history.jsonl").write_bytes(b"\n".join([*good[:0:-1], *bad, good[1], good[0], b'{"step": 40, "sp']))
    said = []
    history.cut_back(tmp_path, 20, said.append)
    assert said == ["note       11 of 14 lines of history.jsonl are damaged or duplicate and are deleted"]
    assert (tmp_path / "history.jsonl").read_bytes() == b"".join(text + b"\n" for text in good[:2])
    history.cut_back(tmp_path, 25, said.append, logged=20)
    history.cut_back(tmp_path, 15, said.append, logged=15)
    assert said[1:] == ["note       history.jsonl has lost its line of step 15, and maybe others"]

    written(tmp_path, [10, 20, 30])
    path, said = only_event_file(tmp_path), []
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    history.cut_events(path, 30, said.append)
    assert len(said) == 1
    assert "is damaged: TensorBoard has lost what follows its record" in said[0]


def test_only_event_files_of_a_run_are_cut_or_deleted(tmp_path):
    written(tmp_path, [10])
    (place,) = {path.parent for path in tmp_path.rglob("events.*")}
    for name in ("events.out.tfevents.notes", "events.out.tfevents.1.vm.2.0.v2 (copy)", "my.log_likelihood-7"):
        (place / name).write_text("theirs")
    (place / "events.out.tfevents.1.vm.2.0.v2").symlink_to(place / "events.out.tfevents.notes")
    before = contents(tmp_path)
    history.cut_back(tmp_path, 10, pytest.fail)
    history.write_likelihood(tmp_path, 7, {"test_nll": None, "test_log_density": None})
    assert contents(tmp_path).keys() == before.keys()
    for step in (0, 7):
        history.cut_back(tmp_path, step, lambda line: None)
        history.write_likelihood(tmp_path, 7, {"test_nll": 3.0, "test_log_density": None})
    left = [path for path in place.iterdir() if path.read_text(errors="replace") == "theirs"]
    assert len(left) == 4
