"""utils/data.py: labels are chosen and images held out as the settings say. test_folders.py does this for folders."""

import numpy as np
import pytest

from utils import data
from utils.dataset import DataError, Dataset, ids_of
from utils.settings import SettingsError, from_params


def test_images_with_some_labels_keep_their_order_and_their_labels():
    labels = np.array([7, 1, 8, 1, 7, 2], np.uint8)
    images = labels[:, np.newaxis, np.newaxis, np.newaxis] * np.uint8(10) + np.arange(6, dtype=np.uint8)[:, *[None] * 3]
    some = data.with_labels(Dataset("Toy", images, labels, images[::-1], labels[::-1], "memory"), (7, 1))
    assert some.train_labels.tolist() == [7, 1, 1, 7]
    assert some.train_images.ravel().tolist() == [70, 11, 13, 74]
    assert some.test_labels.tolist() == [7, 1, 1, 7]
    assert some.test_images.ravel().tolist() == [74, 13, 11, 70]
    assert some.title == "Toy (1, 7 only)"


def test_held_out_images_are_the_last_of_those_with_the_labels_and_no_test_image_is_seen(monkeypatch):
    labels = np.tile(np.array([1, 7, 8], np.uint8), 40)
    images = np.arange(1, 121, dtype=np.uint8)[:, *[None] * 3]  # each has its own shade
    whole = Dataset("Toy", images, labels, 200 + images[:40], labels[:40], "memory")
    monkeypatch.setattr(data.mnist, "load", lambda name, data_dir, say: whole)
    chosen = {"binarize": "none", "labels": (1, 7), "held_out": 10, "batch_size": 5}
    dataset = data.prepare(from_params(**chosen), print)
    kept = images[labels != 8].ravel()
    assert dataset.train_images.ravel().tolist() == kept[:-10].tolist()
    assert dataset.test_images.ravel().tolist() == kept[-10:].tolist()
    assert dataset.train_labels.tolist() == [1, 7] * 35
    assert dataset.test_labels.tolist() == [1, 7] * 5
    with pytest.raises(SettingsError, match=r"^held_out: 80 is not allowed; at most 79 training images are$"):
        data.prepare(from_params(**chosen | {"held_out": 80}), print)


def toy(train_labels, test_labels, names=()):
    """A data set of black images of one pixel."""
    parts = [np.array(labels, np.uint8) for labels in (train_labels, test_labels)]
    images = [np.zeros((len(labels), 1, 1, 1), np.uint8) for labels in parts]
    return Dataset("Toy", images[0], parts[0], images[1], parts[1], "memory", label_names=names)


def prepared(monkeypatch, dataset, said, **chosen):
    monkeypatch.setattr(data.mnist, "load", lambda name, data_dir, say: dataset)
    return data.prepare(from_params(**{"binarize": "none", "batch_size": 1} | chosen), said.append)


def test_pictures_where_mnist_is_to_be_are_named(monkeypatch, tmp_path):
    whole, said = toy([0, 1], [1]), []
    (tmp_path / "cats").mkdir()
    (tmp_path / "notes.txt").touch()
    prepared(monkeypatch, whole, said, data_dir=str(tmp_path))
    assert said == []
    (tmp_path / "cats" / "1.JPG").touch()
    prepared(monkeypatch, whole, said, data_dir=str(tmp_path))
    told = f"DATASET = 'mnist', so {tmp_path}/cats/1.JPG is not read; DATASET = 'folder' trains on such images"
    assert said == [f"note       {told}"]


def test_labels_are_chosen_by_name_or_number_and_counted_by_name(monkeypatch):
    whole, said = toy([0, 1, 1, 2, 2, 2], [2, 1], ("ant", "bee", "2")), []
    assert prepared(monkeypatch, whole, said).details["labels"] == {"ant": [1, 0], "bee": [2, 1], "2": [3, 1]}
    some = prepared(monkeypatch, whole, said, labels=("bee", 0))
    assert some.details["labels"] == {"ant": [1, 0], "bee": [2, 1]}
    assert (some.title, some.train_labels.tolist(), some.test_labels.tolist()) == (
        "Toy (ant, bee only)",
        [0, 1, 1],
        [1],
    )
    assert said == []
    numbered = toy([0, 1], [0, 1], ("1", "3"))  # the user sees names, so names come before numbers
    assert prepared(monkeypatch, numbered, said, labels=(1,)).train_labels.tolist() == [0]
    assert said == ["note       labels: 1 is the label of this name, which is number 0"]


@pytest.mark.parametrize(
    ("names", "typed", "told"),
    [
        (("ant", "bee"), ("bees",), "labels: bees is not allowed; Toy has ant, bee"),
        (("ant", "bee"), (2,), "labels: 2 is not allowed; Toy has ant, bee"),
        ((), ("cat",), "labels: cat is not allowed; Toy has 0 to 1"),
    ],
)
def test_an_unknown_label_is_refused_with_what_there_is(monkeypatch, names, typed, told):
    with pytest.raises(SettingsError, match=f"^{told}$"):
        prepared(monkeypatch, toy([0, 1], [0, 1], names), [], labels=typed)


def test_at_most_ten_labels_are_listed():
    assert (
        data.listed(np.arange(12), [f"n{k}" for k in range(12)])
        == f"{', '.join(f'n{k}' for k in range(10))} and 2 more"
    )
    assert data.listed(np.array([1, 7]), ()) == "1, 7"


def test_one_image_to_train_on_and_one_to_test_on_are_enough_and_none_is_refused(monkeypatch):
    assert prepared(monkeypatch, toy([0], [1]), []).details["labels"] == {"0": [1, 0], "1": [0, 1]}
    with pytest.raises(DataError, match=r"^Toy \(0 only\): no image to test on; use HELD_OUT$"):
        prepared(monkeypatch, toy([0, 1], [1]), [], labels=(0,))
    with pytest.raises(DataError, match=r"^Toy \(1 only\): no image to train on; choose others with LABELS$"):
        prepared(monkeypatch, toy([0], [1]), [], labels=(1,))


def test_a_note_says_that_the_images_held_out_lack_labels(monkeypatch):
    said = []
    prepared(monkeypatch, toy([0, 0, 1, 1], [0, 1]), said, held_out=2)
    assert said == ["note       the 2 images held out, the last ones, have 1 of 2 labels"]


def test_images_have_the_same_id_only_if_they_are_copies():
    images = np.random.default_rng(0).integers(256, size=(50, 3, 4, 1), dtype=np.uint8)
    images[7], images[9, 0, 0] = images[3], images[8, 0, 0]
    ids = ids_of(images)
    assert (ids.dtype, len(np.unique(ids))) == (np.uint64, 49)
    assert ids[7] == ids[3]
    assert (ids_of(images[::-1]) == ids[::-1]).all()
    assert ids_of(images[:0]).shape == (0,)
