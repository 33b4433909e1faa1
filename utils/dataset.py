"""Data sets of images, in memory or read when needed, and the steps before training: binarise, split, batch."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from utils.console import Problem, waiting_bar

READERS = 2 + (os.cpu_count() or 1)  # threads that read and decode; two more than cores, because some wait for the disk
SPLIT_KEY = (20131220,)  # key of the order of training images; any number would do
MOST_TESTED = 10_000  # the most images that a drawn test set has
TEST_BINARIZATION_KEY = (20131220,)  # any number would do, but neither it nor binarize() may change


class DataError(Problem):
    """The data are missing or cannot be used."""


class BadImage(DataError):
    """One image cannot be read. The message names it and gives the reason."""


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Stands for a uint8 array (N, H, W, C) that is not in memory: len, shape and [...] work as with the array.

    `read` gets one of `numbers` (N,) and returns that image, uint8 (H, W, C), or raises BadImage. With `skip`, a bad
    image is replaced by the next readable one in `numbers` (after the last comes the first). The replacement follows
    from the numbers alone, so batches are the same whenever they are read. `skipped` holds the messages about the bad
    images found so far; all views share it.
    """

    read: Callable[[int], np.ndarray]
    numbers: np.ndarray
    image_shape: tuple[int, int, int]
    skip: bool = False
    skipped: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return len(self), *self.image_shape

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        positions = np.arange(len(self))[index]
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(self.read_at, positions.flat)
            images = np.fromiter(found, (np.uint8, self.image_shape), positions.size)
        return images.reshape(*positions.shape, *self.image_shape)

    def rows(self, index: slice | np.ndarray) -> "LazyImages":
        """Select images without reading them; the index works as with an array."""
        return replace(self, numbers=self.numbers[index])

    def read_at(self, position: int) -> np.ndarray:
        """Read the image, uint8 (H, W, C), at a position. Raises BadImage, or with `skip` DataError if all are bad."""
        if not self.skip:
            return self.read(int(self.numbers[position]))
        for number in chain(self.numbers[position:], self.numbers[:position]):
            try:
                return self.read(int(number))
            except BadImage as error:
                self.skipped.add(last := str(error))
        raise DataError(f"none of {len(self):,} images can be read; the last one: {last}")


Images = np.ndarray | LazyImages  # uint8 (N, H, W, C), 0 to 255


class Dataset(NamedTuple):
    """Images to train on and to test on, their labels, integers (N,), and the title of the data set.

    `source` says where the images came from. `verified` says how they were proved to be the published ones, or is "" if
    they were not. CelebA also has `attributes`, A names, and whether each image has them: bool (N, A).

    The name of label k is label_names[k], or the number k if there are no names. The `ids`, uint64 (N,), follow from
    the content of an image, so copies have the same id. The `names`, bytes (N,), are file names. `details` describe the
    data further, as JSON: how the split was found, and what was converted, left out or cut off. The `record` is what a
    run saves about its images (utils/known.py).
    """

    title: str
    train_images: Images
    train_labels: np.ndarray
    test_images: Images
    test_labels: np.ndarray
    source: str
    verified: str = ""
    attributes: tuple[str, ...] = ()
    train_attributes: np.ndarray | None = None
    test_attributes: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    train_ids: np.ndarray | None = None
    test_ids: np.ndarray | None = None
    train_names: np.ndarray | None = None
    test_names: np.ndarray | None = None
    details: Mapping[str, Any] = MappingProxyType({})
    record: Mapping[str, np.ndarray] = MappingProxyType({})


class Known(NamedTuple):
    """The images of a folder that a run has had, in its order, and how they are prepared.

    The numbers, together 0 to N - 1, are the `numbers` of LazyImages. They are keys of random draws.
    """

    train_names: np.ndarray  # bytes (N,), relative to the folder
    test_names: np.ndarray
    train_labels: np.ndarray
    test_labels: np.ndarray
    train_numbers: np.ndarray
    test_numbers: np.ndarray
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    white: int  # images.Prepared.white


def rows_of(images: Images, index: slice | np.ndarray) -> Images:
    """Select some of the images; lazy ones stay unread."""
    return images[index] if isinstance(images, np.ndarray) else images.rows(index)


def label_name(label: int, names: Sequence[str]) -> str:
    """The name of a label, or its number if there are no names."""
    return names[label] if names else str(label)


def ids_of(images: np.ndarray) -> np.ndarray:
    """A hash of each image (N, H, W, C), uint64 (N,). Copies have the same hash."""
    return hashed(np.ascontiguousarray(images))


def hashed(items: Iterable[Any]) -> np.ndarray:
    """A hash of each of N items, bytes or arrays, uint64 (N,)."""
    hashes = (hashlib.blake2b(item, digest_size=8).digest() for item in items)
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


# --- black and white --------------------------------------------------------------------------------------------------
def binarize(images: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """Draw every pixel black or white: uint8 images to uint8 images of 0 or 255, of the same shape.

    A pixel is 255 with probability pixel / 255 (a Bernoulli draw). The draw depends on `key` alone. The key of the test
    images is TEST_BINARIZATION_KEY, never a run's seed, so every run is tested on the same images and can be compared.
    """
    rng = np.random.default_rng(key)
    # A draw is 0 to 254, each equally likely, so it is below the pixel with probability pixel / 255. Whole bytes are
    # faster to draw than integers(255); a byte of 255 is drawn again.
    draws = rng.integers(256, size=images.size, dtype=np.uint8)
    while (redrawn := np.flatnonzero(draws == 255)).size:
        draws[redrawn] = rng.integers(256, size=redrawn.size, dtype=np.uint8)
    return (draws.reshape(images.shape) < images).view(np.uint8) * np.uint8(255)


def binarized(images: Images, key: Sequence[int]) -> Images:
    """The images, binarised. Lazy images are drawn when they are read, each with the key (*key, its number)."""
    if isinstance(images, np.ndarray):
        return binarize(images, key)
    return replace(images, read=lambda number: binarize(images.read(number), (*key, number)))


# --- the split --------------------------------------------------------------------------------------------------------
def draw_split(labels: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw a tenth of the images as test images, from their labels and ids (N,).

    Returns the positions of the training images, shuffled, and of the test images, sorted. The test images are about a
    tenth of each label; in all at least one image and at most MOST_TESTED. Copies (equal ids) stay together. The choice
    depends on the ids and labels, not on the order. Raises DataError if all images are copies of one.
    """
    _, first, group = np.unique(ids, return_index=True, return_inverse=True)  # groups of copies, in the order of ids
    by_label = np.argsort(labels[first], kind="stable")  # within a label, in the order of ids, which is random
    count = len(by_label)
    if count < 2:
        raise DataError(f"images: {len(labels):,}, but no two differ; one to train on and one to test on are needed")
    tested = min(max(1, round(count / 10)), MOST_TESTED)
    is_test = np.zeros(count, bool)
    is_test[by_label[(np.arange(tested) * 2 + 1) * count // (2 * tested)]] = True  # evenly along all labels
    is_test = is_test[group]
    return np.random.default_rng(SPLIT_KEY).permutation(np.flatnonzero(~is_test)), np.flatnonzero(is_test)


# --- orders and batches -----------------------------------------------------------------------------------------------
def epoch_order(count: int, key: Sequence[int]) -> np.ndarray:
    """The order of `count` images in an epoch, int32 (count,). It depends on `key` alone."""
    return np.random.default_rng(key).permutation(count).astype(np.int32)


def in_batches(compute: Callable, images: Images, size: int | None = None, doing: str = "") -> list[np.ndarray]:
    """Call compute(batch, start) for `size` images at a time; join each of its outputs (size, ...) over all images.

    Any other array with rows may be given instead of images. The default `size` is evaluated_at_once. If this takes
    long, a bar labelled `doing` is shown, or none for "".
    """
    size, joined = size or evaluated_at_once(images.shape), []
    with waiting_bar(doing, len(images)) as bar:
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            outputs = [np.asarray(output) for output in compute(batch, np.int32(start))]
            # Write each part to its place immediately. To join all parts at the end would take twice the memory.
            joined = joined or [np.empty((len(images), *output.shape[1:]), output.dtype) for output in outputs]
            for whole, output in zip(joined, outputs, strict=True):
                whole[start : start + len(batch)] = output
            bar.update(len(batch))
    return joined


def in_equal_batches(compute: Callable, images: Images, size: int | None = None, doing: str = "") -> list[np.ndarray]:
    """in_batches for a compiled `compute`: the last batch is as large as the others, so it is compiled only once.

    The last batch is padded with copies of its last image, and their outputs are dropped. But with several draws for
    each image, the noise of the last batch depends on its padded size.
    """
    size = min(size or evaluated_at_once(images.shape), len(images))

    def compute_full(batch, start):
        return [output[: len(batch)] for output in compute(filled_up(batch, size), start)]

    return in_batches(compute_full, images, size, doing)


def filled_up(batch: np.ndarray, size: int) -> np.ndarray:
    """Pad a batch (B, ...) to (size, ...) with copies of its last element."""
    return batch[np.minimum(np.arange(size), len(batch) - 1)]


def evaluated_at_once(shape: tuple[int, ...]) -> int:
    """The number of rows of this shape to work on at a time: 1,000, or fewer for images larger than MNIST's.

    Images (N, H, W, C) at a time have at most as many numbers as 1,000 images of MNIST, but there is at least one.
    """
    return max(1, min(1_000, 784_000 // math.prod(shape[1:]))) if len(shape) == 4 else 1_000
