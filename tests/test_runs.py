"""utils/runs.py: names, history, event files and checkpoints, each broken on purpose."""

import errno
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.shared import contents, scalars, written
from utils import runs
from utils.settings import from_params
from utils.start import tf


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


SHAPE = (28, 28, 1)


# --- the folder -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"latent_dim": 20}, "mnist-ce-z20"),
        ({"dataset": "fashion_mnist", "latent_dim": 2}, "fashion_mnist-ce-z2"),
        ({"loss": "ad", "decoder_scale": "learned", "latent_dim": 2}, "mnist-ad-learned-z2"),
        ({"loss": "mse", "autoencoder": True, "latent_dim": 2}, "mnist-mse-ae-z2"),
        ({"labels": (1, 7), "noise_dim": 8, "latent_dim": 2}, "mnist-1_7-ce-z2-noise8"),
        (
            {
                "dataset": "tfds:cifar10",
                "architecture": "conv",
                "loss": "logistic",
                "decoder_scale": "learned",
                "latent_dim": 64,
            },
            "tfds_cifar10-logistic-conv-z64",
        ),
        ({"run_name": "cycles"}, "cycles"),
    ],
)
def test_a_run_is_named_after_what_tells_it_apart_or_as_the_user_says(changes, name, tmp_path):
    settings = from_params(output_dir=str(tmp_path / "new" / "folders"), **changes)
    assert runs.create(settings, "CPU", SHAPE) == tmp_path / "new" / "folders" / name


def test_a_derived_name_that_is_taken_gets_a_number(tmp_path):
    settings = from_params(latent_dim=2, output_dir=str(tmp_path))
    names = [runs.create(settings, "CPU", SHAPE).name for _ in range(3)]
    assert names == ["mnist-ce-z2", "mnist-ce-z2-2", "mnist-ce-z2-3"]


def test_a_name_given_and_taken_is_refused_and_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    before = contents(tmp_path)
    with pytest.raises(runs.RunError, match=r"^run_name: 'mine' is taken .* --resume mine$"):
        runs.create(from_params(run_name="mine", output_dir=str(tmp_path)), "CPU", SHAPE)
    assert contents(tmp_path) == before


def test_a_folder_that_could_not_be_filled_does_not_take_the_name(tmp_path, monkeypatch):
    settings = from_params(run_name="mine", output_dir=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", full_disk)
        with pytest.raises(OSError, match="No space"):
            runs.create(settings, "CPU", SHAPE)
    assert runs.create(settings, "CPU", SHAPE) == tmp_path / "mine"


def test_the_folder_of_runs_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = runs.create(from_params(run_name="here", output_dir="~/runs"), "CPU", SHAPE)
    assert folder == runs.find("here", "~/runs") == tmp_path / "runs" / "here"


def test_a_run_is_found_by_its_name_or_its_folder(tmp_path):
    folder = runs.create(from_params(run_name="mine", output_dir=str(tmp_path / "a")), "CPU", SHAPE)
    assert runs.find("mine", str(tmp_path / "a")) == folder
    assert runs.find(str(folder), "elsewhere") == folder
    with pytest.raises(runs.RunError, match=r"^--resume your: no such run in .*; there is mine$"):
        runs.find("your", str(tmp_path / "a"))
    with pytest.raises(runs.RunError, match=r"there is none$"):
        runs.find("mine", str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "can't be read: "),
        ('{"settings": {', "can't be read: "),
        ("[]", "is not what a run wrote"),
        ('{"settings": {}}', "is not what a run wrote"),
        ('{"settings": [], "schedule_epochs": 3}', "is not what a run wrote"),
        ('{"schedule_epochs": 3}', "is not what a run wrote"),
    ],
)
def test_params_json_that_no_run_wrote_is_told(text, told, tmp_path):
    if text is not None:
        (tmp_path / "params.json").write_text(text)
    with pytest.raises(runs.RunError, match=rf"params\.json {told}"):
        runs.read_params(tmp_path)


def test_the_commit_is_told_with_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/none"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runs.git_commit() is None
    git("init")
    (tmp_path / "main.py").write_text("1")
    git("add", "main.py")
    git("commit", "-m", "one")
    git("tag", "v1")  # the commit's own name is what counts
    commit = git("rev-parse", "HEAD").strip()
    assert runs.git_commit() == commit
    (tmp_path / "main.py").write_text("2")
    assert runs.git_commit() == f"{commit}+changes"
    monkeypatch.setenv("PATH", "")
    assert runs.git_commit() is None


def test_two_cannot_train_in_one_folder_and_the_second_may_afterwards(tmp_path):
    with runs.locked(tmp_path), pytest.raises(runs.RunError, match="another process"), runs.locked(tmp_path):
        pass
    with runs.locked(tmp_path):
        pass


def test_longer_means_longer_and_the_rest_is_as_it_was(tmp_path):
    folder = runs.create(from_params(epochs=5, output_dir=str(tmp_path)), "CPU", SHAPE)
    before = json.loads((folder / "params.json").read_text())
    runs.note_changes(folder, from_params(epochs=9, data_dir="moved", skip_bad_images=True, learning_rate=0.5))
    after = json.loads((folder / "params.json").read_text())
    assert (after["settings"].pop("epochs"), before["settings"].pop("epochs")) == (9, 5)
    assert after["settings"].pop("data_dir") == "moved" != before["settings"].pop("data_dir")
    assert (after["settings"].pop("skip_bad_images"), before["settings"].pop("skip_bad_images")) == (True, False)
    assert after == before
    assert after["image_shape"] == list(SHAPE)
    assert after["schedule_epochs"] == 5


# --- history and event files ------------------------------------------------------------------------------------------
def only_event_file(folder):
    [path] = (folder / "tensorboard").iterdir()
    return path


def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path):
    written(tmp_path, [10, 20])
    written(tmp_path, [20], split="test")
    text = (tmp_path / "history.jsonl").read_text()
    for length in range(len(text) - 25, len(text) - 2):  # in the midst of the last line
        (tmp_path / "history.jsonl").write_text(text[:length])
        assert [line["step"] for line in runs.read_history(tmp_path)] == [10, 20]
    (tmp_path / "history.jsonl").write_text(text)
    assert [(line["step"], line["split"]) for line in runs.read_history(tmp_path)][1:] == [(20, "train"), (20, "test")]
    assert runs.read_history(tmp_path / "nowhere") == []


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path):
    written(tmp_path, [10, 20, 30, 40])
    before, lines = scalars(tmp_path), runs.read_history(tmp_path)
    with open(tmp_path / "history.jsonl", "a") as history:
        history.write('{"step": 25, "ep')  # the crash came here
    runs.cut_back(tmp_path, 20)
    assert runs.read_history(tmp_path) == lines[:2]
    assert scalars(tmp_path) == {key: value for key, value in before.items() if key[1] <= 20}
    assert len(contents(tmp_path)) == 2  # nothing is left of the cutting
    written(tmp_path, [30, 40])
    assert runs.read_history(tmp_path) == lines
    assert scalars(tmp_path) == before


def test_a_run_without_a_checkpoint_starts_with_nothing(tmp_path):
    written(tmp_path, [10, 20])
    (tmp_path / "tensorboard" / "labels.tsv").write_text("7\n")
    runs.cut_back(tmp_path, 0)
    assert contents(tmp_path) == {"history.jsonl": b"", "tensorboard/labels.tsv": b"7\n"}


@pytest.mark.parametrize("lost", [1, 30, 60])
def test_an_event_file_that_ends_within_a_record_keeps_the_records_before(lost, tmp_path):
    written(tmp_path, [10, 20, 30])
    whole, path = scalars(tmp_path), only_event_file(tmp_path)
    last = list(whole)[-1]
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - lost)
    runs.cut_events(path, 1_000)
    assert scalars(tmp_path) == {key: value for key, value in whole.items() if key != last}
    assert only_event_file(tmp_path) == path
    assert next(EventFileLoader(str(path)).Load()).file_version == "brain.Event:2"  # still an event file


def test_an_event_file_that_is_empty_stays_so(tmp_path):
    (tmp_path / "events").touch()
    runs.cut_events(tmp_path / "events", 1_000)
    assert contents(tmp_path) == {"events": b""}


def test_an_event_file_that_cannot_be_cut_for_want_of_room_stays_whole(tmp_path):
    written(tmp_path, [10, 20, 30])
    before = contents(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="File too large"):
            runs.cut_events(only_event_file(tmp_path), 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert contents(tmp_path) == before


# --- checkpoints ------------------------------------------------------------------------------------------------------
def state(value=0.0):
    """Something to save: a checkpoint of one array, and the array."""
    weights = tf.Variable(tf.fill([50, 20], value))
    return tf.train.Checkpoint(weights=weights), weights


def saved(folder, *steps):
    """Checkpoints in which every weight is the step."""
    checkpoint, weights = state()
    for step in steps:
        weights.assign(tf.fill([50, 20], float(step)))
        runs.save(checkpoint, folder, step)


def test_the_newest_three_checkpoints_are_kept_and_nothing_else(tmp_path):
    saved(tmp_path, 5, 80, 9, 10, 100)
    assert runs.saved_steps(tmp_path) == [10, 80, 100]  # by number, not by name
    names = {f"step-{step}.{part}" for step in (10, 80, 100) for part in ("index", "data-00000-of-00001")}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == names


def test_what_is_saved_is_restored_bit_for_bit(tmp_path):
    checkpoint, weights = state()
    weights.assign(tf.random.stateless_normal([50, 20], [1, 2]))
    expected = weights.numpy()
    runs.save(checkpoint, tmp_path, 7)
    again, weights = state(1.0)
    said = []
    runs.restore(again, tmp_path, said.append)
    np.testing.assert_array_equal(weights.numpy(), expected)
    assert said == []


@pytest.mark.parametrize("parts_moved", [0, 1])
def test_a_save_that_breaks_on_the_way_does_not_count(parts_moved, tmp_path, monkeypatch):
    saved(tmp_path, 1, 2, 3)
    real, moved = os.replace, []

    def replace(*paths):
        if len(moved) == parts_moved:
            full_disk()
        moved.append(paths)
        real(*paths)

    monkeypatch.setattr(runs.os, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, 4)
    assert runs.saved_steps(tmp_path) == [1, 2, 3]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    checkpoint, weights = state()
    runs.restore(checkpoint, tmp_path, pytest.fail)
    assert weights.numpy()[0, 0] == 3


def test_an_error_of_tensorflow_while_saving_is_an_os_error_in_one_line(tmp_path, monkeypatch):
    checkpoint, _ = state()

    def write(prefix):
        Path(prefix).with_suffix(".data").write_bytes(b"half")
        raise tf.errors.ResourceExhaustedError(None, None, f"{prefix}; No space left on device\nand more\n")

    monkeypatch.setattr(checkpoint, "write", write)
    with pytest.raises(OSError, match=r"No space left on device'?: '.*checkpoints'$") as raised:
        runs.save(checkpoint, tmp_path, 1)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def cut_in_half(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


DAMAGES = [(cut_in_half, "data"), (cut_in_half, "index"), (flip_a_bit, "data"), (flip_a_bit, "index"), (empty, "data"),
           (empty, "index"), (Path.unlink, "data")]  # fmt: skip


def spoil(folder, step, damage, part):
    [path] = (folder / "checkpoints").glob(f"step-{step}.{part}*")
    damage(path)


@pytest.mark.parametrize(("damage", "part"), DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so_in_a_line(damage, part, tmp_path):
    saved(tmp_path, 1_000, 2_000, 3_000)
    spoil(tmp_path, 3_000, damage, part)
    checkpoint, weights = state()
    said = []
    runs.restore(checkpoint, tmp_path, said.append)
    assert (weights.numpy() == 2_000).all()
    assert len(said) == 1
    assert "step 3,000 is damaged" in said[0]
    assert "\n" not in said[0]


def test_when_all_checkpoints_are_damaged_it_is_told_and_nothing_is_changed(tmp_path):
    saved(tmp_path, 1, 2, 3)
    for step, (damage, part) in zip((1, 2, 3), DAMAGES[:3], strict=True):
        spoil(tmp_path, step, damage, part)
    before, said = contents(tmp_path), []
    with pytest.raises(runs.RunError, match="all its checkpoints are damaged"):
        runs.restore(state()[0], tmp_path, said.append)
    assert [line.split(" is damaged")[0].split()[-1] for line in said] == ["3", "2", "1"]
    assert ["trying the one before" in line for line in said] == [True, True, False]
    assert contents(tmp_path) == before


def test_a_folder_without_checkpoints_has_nothing_to_restore_and_leavings_are_swept(tmp_path):
    checkpoint, weights = state()
    runs.restore(checkpoint, tmp_path, pytest.fail)
    assert (weights.numpy() == state()[1].numpy()).all()
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "checkpoints" / ".killed")
    runs.restore(state()[0], tmp_path, pytest.fail)
    assert not (tmp_path / "checkpoints" / ".killed").exists()
