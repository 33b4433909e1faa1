"""TensorFlow Datasets as data sets, whose images are read one by one when needed."""

import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from utils import old_split
from utils.console import Say
from utils.dataset import DataError, Dataset, LazyImages, draw_split, hashed
from utils.images import BAR, Prepared, bad_images, decode, why_bad
from utils.settings import Settings

TFDS_MODULES = ("tensorflow_datasets", "array_record")


def tfds(s: Settings, say: Say, as_before: bool = False) -> Dataset:
    """A set of TensorFlow Datasets, as in DATASET "tfds:cifar10", downloaded into DATA_DIR unless it is there.

    The test images are its split `test`, else `validation`, else a tenth of `train`, drawn as for a folder of images;
    with `as_before`, drawn as before runs saved their split. Raises DataError.
    """
    title, skipped = s.dataset, set()
    sources, features = open_tfds(title.removeprefix("tfds:"), title, os.path.expanduser(s.data_dir))
    if "train" not in sources:
        raise DataError(f"{title}: it has no split called train, but {', '.join(sources)}")
    if "image" not in features or len(features["image"].shape) != 3 or features["image"].np_dtype != np.uint8:
        raise DataError(f"{title}: it has no feature called image that is an image of 8 bits; choose another set")
    channels = 1 if features["image"].shape[-1] == 1 else 3
    how = Prepared((s.image_size, s.image_size, channels), s.image_crop, s.image_fit)

    def lazy_split(split: str) -> LazyImages:
        def read(number: int) -> np.ndarray:
            with bad_images(f"{title}, image {number} of {split}"):
                return decode(io.BytesIO(sources[split][number]["image"]), how)

        return LazyImages(read, np.arange(len(sources[split])), how.shape, s.skip_bad_images, skipped)

    def ids(split: str) -> np.ndarray:  # a prepared set does not change, so name and number identify an image
        return hashed(f"{title} {split} {number}".encode() for number in range(len(sources[split])))

    images, labels, known = lazy_split("train"), read_labels(sources["train"], features), ids("train")
    about = {"label_names": tuple(map(str, getattr(features.get("label"), "names", None) or ()))}
    details = {"pixels": "grey" if channels == 1 else "colour"}
    for split in ("test", "validation"):
        if split in sources:
            tested = read_labels(sources[split], features)
            about |= {
                "train_ids": known,
                "test_ids": ids(split),
                "details": details | {"split": f"its splits train and {split}"},
            }
            return Dataset(title, images, labels, lazy_split(split), tested, source=s.data_dir, **about)
    train, test = old_split.draw_split(labels) if as_before else draw_split(labels, known)
    about |= {"train_ids": known[train], "test_ids": known[test]}
    about["details"] = details | {"split": "a tenth of its split train, drawn by a fixed key"}
    parts = images.rows(train), labels[train], images.rows(test), labels[test]
    return Dataset(title, *parts, source=s.data_dir, **about)


def open_tfds(name: str, title: str, folder: str) -> tuple[dict[str, Sequence], Mapping]:
    """The splits of a set by name, with images not yet decoded, and its features. Raises DataError."""
    try:
        import tensorflow_datasets as library  # imported here, because it is optional

        builder = library.builder(name, data_dir=folder, file_format="array_record")  # others have no random access
        builder.download_and_prepare()
        features = builder.info.features
        decoders = {"image": library.decode.SkipDecoding()} if "image" in features else None
        return {split: builder.as_data_source(split, decoders=decoders) for split in builder.info.splits}, features
    except ImportError as error:
        missing = (error.name or "tensorflow_datasets").partition(".")[0]
        packages = "tensorflow-datasets array-record" if missing in TFDS_MODULES else missing
        raise DataError(f"{title} needs {missing}: pip install {packages}") from None
    except Exception as error:  # the library's own, of the network, or of the disk
        said = str(error).partition('builder_kwargs "')[2].partition('}": ')[2]  # the text after its list of arguments
        why = why_bad(DataError(said) if said else error)
        if why.startswith("File format is already set"):
            why = f"{folder} has it in a format without random access; set DATA_DIR to another folder"
        raise DataError(f"{title}: {why}") from None


def read_labels(source: Sequence, features: Mapping) -> np.ndarray:
    """The labels of a split, int32 (N,), all 0 if it has none. This reads the whole split: 60 microseconds an image."""
    if "label" not in features or features["label"].shape or not np.issubdtype(features["label"].np_dtype, np.integer):
        return np.zeros(len(source), np.int32)
    numbers = tqdm(range(len(source)), desc="labels", unit=" images", **BAR)
    return np.fromiter((source[number]["label"] for number in numbers), np.int32, len(source))
