"""utils/known.py: a run gets the images that it began with, or a line says what has changed."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.drawn import draw
from utils import data, known, runs, tfds
from utils.dataset import DataError
from utils.settings import SettingsError, from_params

SMALL = {"image_size": 8, "batch_size": 4, "binarize": "none", "labels": (), "held_out": 0, "start_from": ""}

OLD_TEST = ["cat/00.png", "cat/03.png", "cat/17.png", "cat/36.png"]  # the fixture's test images, as drawn then
LINE = {"split": "train", "epoch": 1.0, "objective": 0.0, "reconstruction": 0.0}


def begin(s):
    """A new run, with nothing but its data."""
    dataset = data.prepare(s, print)
    save = partial(known.save, found=dataset.record)
    folder = runs.create(s, "CPU", dataset.train_images.shape[1:], dataset.details, save)
    (folder / "history.jsonl").write_text(json.dumps(LINE | {"step": 4}) + "\n")
    return folder, dataset


@pytest.fixture
def pictures(tmp_path):
    """Settings for a folder of 40 images."""
    for number in range(40):
        draw(tmp_path / "images" / "cat" / f"{number:02}.png", number)
    places = {"data_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "runs")}
    return from_params(**SMALL, dataset="folder", **places, run_name="one")


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_pictures_that_are_new_are_left_out_with_a_line(pictures, tmp_path, binarize):
    pictures = pictures.model_copy(update={"binarize": binarize})
    folder, before = begin(pictures)
    for number in range(40):
        draw(tmp_path / "images" / ("ant", "cat")[number % 2] / f"{number:02}.jpg", number)
    said = []
    after = data.prepare(pictures, said.append, folder)
    assert said == ["note       40 images are new since the run began, e.g. ant/00.jpg; they are left out"]
    for name in ("train_images", "test_images", "train_labels", "test_ids"):
        np.testing.assert_array_equal(getattr(after, name)[:], getattr(before, name)[:])
    np.testing.assert_array_equal(after.train_images.numbers, before.train_images.numbers)  # the keys of random draws
    assert after.label_names == ("cat",)


@pytest.mark.parametrize("what", ["missing", "changed"])
def test_pictures_that_are_missing_or_changed_are_refused(pictures, tmp_path, what):
    folder, _ = begin(pictures)
    for number in (7, 3):
        (tmp_path / "images" / "cat" / f"{number:02}.png").unlink()
        if what == "changed":
            draw(tmp_path / "images" / "cat" / f"{number:02}.png", 50)
    told = f"^{tmp_path}/images: 2 of the run's 40 are {what}, e.g. cat/0[37].png; put them back as they were, or"
    for ask in (lambda: data.prepare(pictures, print, folder), lambda: data.check_early(pictures, folder)):
        with pytest.raises(DataError, match=told):
            ask()


def test_what_the_weights_were_trained_on_is_not_tested_on_though_the_folder_has_grown(pictures, tmp_path):
    _, first = begin(pictures)
    for number in range(40):
        draw(tmp_path / "images" / "dog" / f"{number:02}.png", number, "RGB", (30, 24))
    again = pictures.model_copy(update={"run_name": "two", "start_from": "one"})
    _, second = begin(again)
    assert not np.isin(second.test_ids, first.train_ids).any()
    assert len(second.train_images) + len(second.test_images) == 80
    scratch = tmp_path / "scratch"  # of another worker; the chief reports that the run is new
    scratch.mkdir()
    runs.write_params(scratch, {"settings": {}, "schedule_epochs": 1} | known.for_others(None))
    elsewhere = data.prepare(again.model_copy(update={"run_name": "alike"}), print, scratch)
    for name in ("train_ids", "test_ids", "train_labels", "test_labels"):
        np.testing.assert_array_equal(getattr(elsewhere, name), getattr(second, name))
    third = data.prepare(pictures.model_copy(update={"run_name": "three", "start_from": "two"}), print)
    assert not np.isin(third.test_ids, np.concatenate((first.train_ids, second.train_ids))).any()


@pytest.mark.parametrize("more", [2, 60])
@pytest.mark.parametrize("held_out", [0, 5])
def test_images_stay_on_their_side_in_a_run_that_starts_from_another(pictures, tmp_path, held_out, more):
    _, first = begin(s := pictures.model_copy(update={"held_out": held_out}))
    for number in range(more):
        draw(tmp_path / "images" / "dog" / f"{number:02}.png", number, "RGB", (30, 24))
    again = s.model_copy(update={"run_name": "two", "start_from": "one"})
    data.check_early(again)
    second = data.prepare(again, print)
    assert np.isin(first.test_ids, second.test_ids).all()
    assert not np.isin(second.test_ids, first.train_ids).any()
    if held_out:
        np.testing.assert_array_equal(second.test_images[:], first.test_images[:])
    else:
        assert len(second.test_ids) - len(first.test_ids) <= 0.2 * more
        assert len(second.train_ids) + len(second.test_ids) == 40 + more
    with pytest.raises(SettingsError, match=r"^start_from: 'one' is not .*weights were trained on 3 of the"):
        data.check_early(again.model_copy(update={"held_out": held_out + 3}))


def make_old(folder):
    """Turn a run into one from before runs saved their split."""
    (folder / "data.npz").unlink()
    about = runs.read_params(folder)
    del about["data"]
    runs.write_params(folder, about)


def test_old_runs_of_which_one_began_with_the_other_have_seen_the_images_of_both(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    np.savez(
        tmp_path / "mine.npz",
        x_train=images[:50],
        y_train=np.arange(50) // 25,
        x_test=images[50:],
        y_test=np.arange(10) // 5,
    )
    places = {"data_dir": str(tmp_path / "mine.npz"), "output_dir": str(tmp_path)}
    s = from_params(**SMALL, dataset="arrays", **places, run_name="one")
    make_old(begin(s)[0])
    make_old(begin(s.model_copy(update={"run_name": "two", "start_from": "one", "labels": (1,)}))[0])
    third = s.model_copy(update={"run_name": "three", "start_from": "two", "held_out": 30})
    with pytest.raises(SettingsError, match=r"^start_from: 'two' .* trained on 30 of the 30 images"):
        data.prepare(third, print)
    runs.find("one", s.output_dir).joinpath("params.json").unlink()
    said = []
    data.prepare(runs.saved_settings(tmp_path / "two", print), said.append, tmp_path / "two")  # the run stays usable
    assert said[0].startswith("note       it is unknown which images one was trained on; some may be test images: ")


@pytest.mark.parametrize("is_old", [False, True])
def test_images_held_out_that_were_trained_on_before_are_refused(tmp_path, is_old):
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=images[:50], x_test=images[50:])
    places = {"data_dir": str(tmp_path / "mine.npz"), "output_dir": str(tmp_path)}
    s = from_params(**SMALL | {"held_out": 5}, dataset="arrays", **places, run_name="one")
    folder, _ = begin(s)
    if is_old:
        (folder / "data.npz").unlink()
        about = runs.read_params(folder)
        del about["data"]
        runs.write_params(folder, about)
    later = s.model_copy(update={"run_name": "two", "start_from": "one"})
    data.prepare(later, print)
    data.prepare(later.model_copy(update={"held_out": 0}), print)
    with pytest.raises(SettingsError, match=r"^start_from: 'one' is not .*weights were trained on 2 of the 7"):
        data.prepare(later.model_copy(update={"held_out": 7}), print)


def test_arrays_that_are_others_are_refused(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(60, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "mine.npy", images)
    s = from_params(**SMALL, dataset="arrays", data_dir=str(tmp_path / "mine.npy"), output_dir=str(tmp_path))
    folder, before = begin(s)
    np.testing.assert_array_equal(data.prepare(s, print, folder).test_images, before.test_images)
    images[before.train_images.shape[0] // 2] = 0
    np.save(tmp_path / "mine.npy", images)
    with pytest.raises(DataError, match=r"^mine.*: these are not the (train|test) images that the run has had: "):
        data.prepare(s, print, folder)


def test_a_record_that_is_damaged_or_lost_is_refused(pictures):
    folder, _ = begin(pictures)
    content = bytearray((folder / "data.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "data.npz").write_bytes(content)
    with pytest.raises(runs.RunError, match=r"data\.npz is damaged"):
        data.prepare(pictures, print, folder)
    (folder / "data.npz").unlink()
    with pytest.raises(runs.RunError, match=r"data\.npz is missing"):
        data.prepare(pictures, print, folder)


@pytest.mark.parametrize("count", [40, 50])
def test_a_run_from_before_has_its_old_split_if_the_counts_match(pictures, tmp_path, count):
    folder = runs.create(pictures, "CPU", (8, 8, 3))
    about = runs.read_params(folder)
    about.pop("data")
    runs.write_params(folder, about)
    (folder / "history.jsonl").write_text(json.dumps(LINE | {"step": 9}) + "\n")  # 36 images, 4 a step
    for number in range(40, count):
        draw(tmp_path / "images" / "cat" / f"{number:02}.png", number)
    Image.new("L", (9, 9)).save(tmp_path / "images" / "of today.ppm")  # a format that was not read then
    if count == 50:
        with pytest.raises(DataError, match=r"saved without its split, and an epoch was 9 steps, but is 11 now$"):
            data.prepare(pictures, print, folder)
        with pytest.raises(DataError, match=r"saved without its split, and an epoch was 9 steps, but is 11 now$"):
            data.prepare(pictures.model_copy(update={"run_name": "two", "start_from": "one"}), print)
        (tmp_path / "images").rename(tmp_path / "others")
        others = {"run_name": "two", "start_from": "one", "data_dir": str(tmp_path / "others")}
        said = []
        data.prepare(pictures.model_copy(update=others), said.append)
        assert said[0].startswith("note       it is unknown which images one was trained on; some may be test images: ")
        return
    dataset = data.prepare(pictures, print, folder)
    assert [name.decode() for name in dataset.test_names] == OLD_TEST
    assert dataset.test_images.numbers.tolist() == [int(name[4:6]) for name in OLD_TEST]
    known.save(folder, dataset.record)
    assert known.load(folder)["tested"].tolist() == dataset.test_ids.tolist()


def test_a_run_from_before_has_the_old_split_of_tensorflow_datasets(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(tfds, "tfds", lambda s, say, as_before: asked.append(as_before))
    s = from_params(**SMALL, dataset="tfds:toys", data_dir=str(tmp_path), output_dir=str(tmp_path), run_name="one")
    folder = runs.create(s, "CPU", (8, 8, 3))
    data.read(s, print, folder)
    about = runs.read_params(folder)
    del about["data"]
    runs.write_params(folder, about)
    data.read(s, print, folder)
    data.read(s, print)
    assert asked == [False, True, False]
