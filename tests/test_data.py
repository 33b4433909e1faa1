"""utils/data.py: labels are chosen and images held out as the settings say. test_folders.py has those of folders."""

import numpy as np
import pytest

from utils import data
from utils.dataset import Dataset
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
    images = np.arange(1, 121, dtype=np.uint8)[:, *[None] * 3]  # each another shade
    whole = Dataset("Toy", images, labels, 200 + images[:40], labels[:40], "memory")
    monkeypatch.setattr(data.mnist, "load", lambda name, data_dir, say: whole)
    chosen = {"binarize": "none", "labels": (1, 7), "held_out": 10, "batch_size": 5}
    dataset = data.prepare(from_params(**chosen), print)
    kept = images[labels != 8].ravel()
    assert dataset.train_images.ravel().tolist() == kept[:-10].tolist()
    assert dataset.test_images.ravel().tolist() == kept[-10:].tolist()
    assert dataset.train_labels.tolist() == [1, 7] * 35
    assert dataset.test_labels.tolist() == [1, 7] * 5
    for count, told in ((5, "it holds out only 2 of label 1, and 3 are shown"), (80, "at most 79 training images are")):
        with pytest.raises(SettingsError, match=f"^held_out: {count} is not allowed; {told}$"):
            data.prepare(from_params(**chosen | {"held_out": count}), print)
