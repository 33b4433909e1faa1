"""utils/tfds.py: sets of TensorFlow Datasets, which a stand-in replaces here, or one line that says what is wrong."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from tests.drawn import numbers_of, shade
from utils import tfds
from utils.dataset import BadImage, DataError
from utils.settings import from_params

SIZE = 8


def say(line):
    raise AssertionError(f"nothing to say, but: {line}")


def stand_in(monkeypatch, features, splits, failure=None):
    """A tensorflow_datasets with one set, whose splits are lists of examples."""

    def builder(name, data_dir, file_format):
        assert (name, file_format) == ("toys", "array_record")
        return types.SimpleNamespace(
            download_and_prepare=download, info=types.SimpleNamespace(splits=splits, features=features),
            as_data_source=lambda split, decoders: splits[split],
        )  # fmt: skip

    def download():
        if failure:
            raise failure

    library = types.ModuleType("tensorflow_datasets")
    library.builder, library.decode = builder, types.SimpleNamespace(SkipDecoding=object)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", library)


def feature(shape, dtype):
    return types.SimpleNamespace(shape=shape, np_dtype=dtype)


def examples(first, count):
    def png(number):
        Image.new("L", (9, 9), shade(number)).save(file := io.BytesIO(), "PNG")
        return file.getvalue()

    return [{"image": png(number), "label": number % 2} for number in range(first, first + count)]


FEATURES = {"image": feature((None, None, 1), np.uint8), "label": feature((), np.int64)}


def load_tfds(skip=False):
    return tfds.tfds(from_params(dataset="tfds:toys", data_dir="anywhere", image_size=SIZE, skip_bad_images=skip), say)


@pytest.mark.parametrize("tested", ["test", "validation"])
def test_tensorflow_datasets_are_read_by_their_splits(monkeypatch, tested):
    splits = {"train": examples(0, 10), "validation": examples(30, 5), tested: examples(20, 6)}
    stand_in(monkeypatch, FEATURES, splits)
    dataset = load_tfds()
    assert (dataset.title, dataset.source) == ("tfds:toys", "anywhere")
    assert dataset.train_images.shape == (10, SIZE, SIZE, 1)
    assert numbers_of(dataset.train_images) == list(range(10))
    assert numbers_of(dataset.test_images) == list(range(20, 26))
    assert dataset.train_labels.tolist() == [0, 1] * 5
    assert dataset.test_labels.tolist() == [0, 1] * 3


def test_a_tenth_of_train_is_tested_on_where_there_is_no_other_split(monkeypatch):
    stand_in(monkeypatch, FEATURES, {"train": examples(0, 50)})
    dataset = load_tfds()
    assert sorted(numbers_of(dataset.train_images) + numbers_of(dataset.test_images)) == list(range(50))
    assert sorted(np.bincount(dataset.test_labels)) == [2, 3]
    assert dataset.details["split"] == "a tenth of its split train, drawn by a fixed key"
    before = tfds.tfds(from_params(dataset="tfds:toys", image_size=SIZE), say, as_before=True)
    assert np.bincount(before.test_labels).tolist() == [3, 3]  # at least three of each label, as in older runs
    stand_in(monkeypatch, {"image": FEATURES["image"]}, {"train": examples(0, 50)})
    assert np.bincount(load_tfds().test_labels).tolist() == [5]
    stand_in(monkeypatch, FEATURES, {"train": examples(0, 2)})
    assert (len(load_tfds().train_images), len(load_tfds().test_images)) == (1, 1)


def test_tensorflow_datasets_have_names_of_labels_and_ids_by_split_and_number(monkeypatch):
    label = types.SimpleNamespace(shape=(), np_dtype=np.int64, names=["ant", "bee"])
    stand_in(monkeypatch, FEATURES | {"label": label}, {"train": examples(0, 10), "test": examples(0, 10)})
    dataset, again = load_tfds(), load_tfds()
    assert dataset.label_names == ("ant", "bee")
    assert len({*dataset.train_ids, *dataset.test_ids}) == 20
    assert dataset.train_ids.tolist() == again.train_ids.tolist()
    assert dataset.details == {"pixels": "grey", "split": "its splits train and test"}


def test_bad_images_of_tensorflow_datasets_are_told_or_replaced(monkeypatch):
    splits = {"train": examples(0, 10), "test": examples(20, 6)}
    splits["train"][4]["image"] = b""
    stand_in(monkeypatch, FEATURES, splits)
    with pytest.raises(BadImage, match=r"^tfds:toys, image 4 of train: an empty file$"):
        load_tfds().train_images[:]
    dataset = load_tfds(skip=True)
    assert numbers_of(dataset.train_images) == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9]
    assert dataset.test_images.skipped == {"tfds:toys, image 4 of train: an empty file"}


FAILED = "Failed to construct dataset \"toys\", builder_kwargs \"{'version': '9'}\": Version 9 not found.\nOthers"


@pytest.mark.parametrize(("features", "failure", "told"), [
    ({"text": None}, None, ": it has no feature called image that is an image of 8 bits; choose another set"),
    ({"image": feature((9, 9, 1), np.uint16)}, None,
     ": it has no feature called image that is an image of 8 bits; choose another set"),
    (FEATURES, ValueError("Dataset toys not found.\nAvailable: a thousand"), ": Dataset toys not found."),
    (FEATURES, AssertionError(FAILED), ": Version 9 not found."),
    (FEATURES, ConnectionError(), ": ConnectionError"),
    (FEATURES, ModuleNotFoundError("No module", name="array_record"),
     " needs array_record: pip install tensorflow-datasets array-record"),
    (FEATURES, ModuleNotFoundError("No module", name="etils.epath"), " needs etils: pip install etils"),
    (FEATURES, ValueError("File format is already set to TFRECORD"),
     ": anywhere has it in a format without random access; set DATA_DIR to another folder"),
])  # fmt: skip
def test_sets_that_cannot_be_had_are_told_in_one_line(monkeypatch, features, failure, told):
    stand_in(monkeypatch, features, {"train": examples(0, 5), "test": examples(0, 5)}, failure)
    with pytest.raises(DataError) as caught:
        load_tfds()
    assert str(caught.value) == f"tfds:toys{told}"


def test_a_missing_library_is_told_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    told = "^tfds:toys needs tensorflow_datasets: pip install tensorflow-datasets array-record$"
    with pytest.raises(DataError, match=told):
        load_tfds()
