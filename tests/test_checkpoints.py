"""utils/checkpoints.py: checkpoints and event files, each broken on purpose."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.shared import contents, full_disk
from utils import checkpoints, runs
from utils.settings import from_params
from utils.start import tf


def state(value=0.0):
    """Something to save: a checkpoint of one array, and the array."""
    weights = tf.Variable(tf.fill([50, 20], value))
    return tf.train.Checkpoint(weights=weights), weights


def saved(folder, *steps):
    """Save checkpoints in which every weight is the step."""
    checkpoint, weights = state()
    for step in steps:
        weights.assign(tf.fill([50, 20], float(step)))
        checkpoints.save(checkpoint, folder, step)


def test_the_newest_three_checkpoints_are_kept_and_nothing_else(tmp_path):
    saved(tmp_path, 5, 80, 9, 10, 100)
    assert runs.saved_steps(tmp_path) == [10, 80, 100]  # by number, not by name
    names = {f"step-{step}.{part}" for step in (10, 80, 100) for part in ("index", "data-00000-of-00001")}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == names


def test_a_checkpoint_that_is_deleted_in_part_does_not_count(tmp_path, monkeypatch):
    saved(tmp_path, 5, 80)
    deleted, real = [], Path.unlink

    def fail_later(path):
        if deleted:
            raise OSError
        deleted.append(path)
        real(path)

    monkeypatch.setattr(Path, "unlink", fail_later)
    with pytest.raises(OSError):  # noqa: PT011 (that of the disk)
        checkpoints.keep_newest(tmp_path)
    assert runs.saved_steps(tmp_path) == [80]


def test_of_a_finished_run_the_newest_checkpoint_is_kept_and_it_goes_on_from_there(tmp_path):
    saved(tmp_path, 5, 80, 9)
    checkpoints.keep_newest(tmp_path)
    assert runs.saved_steps(tmp_path) == [80]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    checkpoint, weights = state()
    checkpoints.restore(checkpoint, tmp_path, pytest.fail)
    assert (weights.numpy() == 80).all()
    saved(tmp_path, 90)
    assert runs.saved_steps(tmp_path) == [80, 90]


def test_what_is_saved_is_restored_bit_for_bit(tmp_path):
    checkpoint, weights = state()
    weights.assign(tf.random.stateless_normal([50, 20], [1, 2]))
    expected = weights.numpy()
    checkpoints.save(checkpoint, tmp_path, 7)
    again, weights = state(1.0)
    said = []
    checkpoints.restore(again, tmp_path, said.append)
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

    monkeypatch.setattr(checkpoints.os, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, 4)
    assert runs.saved_steps(tmp_path) == [1, 2, 3]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    checkpoint, weights = state()
    checkpoints.restore(checkpoint, tmp_path, pytest.fail)
    assert weights.numpy()[0, 0] == 3


def test_an_error_of_tensorflow_while_saving_is_an_os_error_in_one_line(tmp_path, monkeypatch):
    checkpoint, _ = state()

    def write(prefix):
        Path(prefix).with_suffix(".data").write_bytes(b"half")
        raise tf.errors.ResourceExhaustedError(None, None, f"{prefix}; No space left on device\nand more\n")

    monkeypatch.setattr(checkpoint, "write", write)
    with pytest.raises(OSError, match=r"No space left on device'?: '.*checkpoints'$") as raised:
        checkpoints.save(checkpoint, tmp_path, 1)
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
    checkpoints.restore(checkpoint, tmp_path, said.append)
    assert (weights.numpy() == 2_000).all()
    assert len(said) == 1
    assert ("step 3,000 is incomplete" if damage is Path.unlink else "step 3,000 is damaged") in said[0]
    assert "\n" not in said[0]


def test_when_all_checkpoints_are_damaged_it_is_told_and_nothing_is_changed(tmp_path):
    saved(tmp_path, 1, 2, 3)
    for step, (damage, part) in zip((1, 2, 3), DAMAGES[:3], strict=True):
        spoil(tmp_path, step, damage, part)
    before, said = contents(tmp_path), []
    with pytest.raises(runs.RunError, match="none of its checkpoints can be read; the last one is damaged"):
        checkpoints.restore(state()[0], tmp_path, said.append)
    assert [line.split(" is damaged")[0].split()[-1] for line in said] == ["3", "2", "1"]
    assert ["trying the one before" in line for line in said] == [True, True, False]
    assert contents(tmp_path) == before


def test_a_folder_without_checkpoints_has_nothing_to_restore_and_leavings_are_swept(tmp_path):
    checkpoint, weights = state()
    checkpoints.restore(checkpoint, tmp_path, pytest.fail)
    assert (weights.numpy() == state()[1].numpy()).all()
    saved(tmp_path, 1)
    place = tmp_path / "checkpoints"
    shutil.copytree(place, place / ".saving-ab12cd_9")
    (tmp_path / "elsewhere" / ".git").mkdir(parents=True)
    (place / ".saving-abcdefgh").symlink_to(tmp_path / "elsewhere")
    (place / ".git").mkdir()
    for name in (".DS_Store", "step-1 (copy).index", "step-01.index", "step-x.index", "step-1.data-00000-of-00001.old"):
        (place / name).write_text("a stranger's")
    checkpoints.restore(state()[0], tmp_path, pytest.fail)
    saved(tmp_path, 2, 3, 4)
    assert runs.saved_steps(tmp_path) == [2, 3, 4]
    there = {path.name for path in place.iterdir() if not path.name.startswith(("step-2.", "step-3.", "step-4."))}
    assert there == {
        ".DS_Store", ".git", ".saving-abcdefgh", "step-1 (copy).index", "step-01.index", "step-x.index",
        "step-1.data-00000-of-00001.old",
    }  # fmt: skip
    assert (tmp_path / "elsewhere" / ".git").is_dir()


@pytest.mark.parametrize("name", ["VAE [2026]", "a*b?", "back\\slash", 'it\'s "quoted"', "😀 bl ank", "画像"])
def test_a_run_may_be_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    saved(folder, 1)
    checkpoint, weights = state()
    checkpoints.restore(checkpoint, folder, pytest.fail)
    assert weights.numpy()[0, 0] == 1


def test_an_edit_of_params_json_costs_a_run_that_is_under_way_no_checkpoint(tmp_path):
    folder = runs.create(from_params(output_dir=str(tmp_path)), "CPU", (28, 28, 1))
    before = (folder / "params.json").read_text()
    edited = before.replace('"epochs": ', '"epochs": 1')
    assert edited != before
    (folder / "params.json").write_text(edited)
    saved(folder, 5)
    assert (folder / "params.json").read_text() == edited
    with pytest.raises(runs.RunError, match="was edited"):
        runs.read_params(folder)
    (folder / "params.json").write_text(before)
    checkpoint, weights = state()
    checkpoints.restore(checkpoint, folder, pytest.fail)
    assert (weights.numpy() == 5).all()


def test_a_checkpoint_of_another_run_and_one_of_another_model_are_told_apart(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        runs.write_params(folder, {"id": str(number), "settings": {}, "schedule_epochs": 1})
        saved(folder, 5)
    other = tf.train.Checkpoint(weights=tf.Variable(tf.zeros([3])))
    assert checkpoints.read(other, folders[0], "step-5").startswith("is of another model (")
    assert checkpoints.read(tf.train.Checkpoint(more=tf.Variable(1.0)), folders[0], "step-5").startswith(
        "is of another m"
    )
    assert checkpoints.read(state()[0], folders[0], "step-5") == ""
    for path in (folders[1] / "checkpoints").iterdir():
        shutil.copy(path, folders[0] / "checkpoints")
    assert checkpoints.read(state()[0], folders[0], "step-5") == "is of another run"
    saved(folders[0], 5)
    checkpoint, weights = state()
    weights.assign(tf.fill([50, 20], 7.0))
    checkpoint.write(str(folders[0] / "checkpoints" / "step-5"))  # without the id of its run
    checkpoint.write(str(folders[0] / "checkpoints" / "step-6"))
    assert "is damaged or of another run" in checkpoints.read(state()[0], folders[0], "step-5")
    assert "its run is unknown" in checkpoints.read(state()[0], folders[0], "step-6")
