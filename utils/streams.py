"""Images that are read when they are asked for, and the tf.data pipeline that trains on them in bounded memory."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import tensorflow as tf

from utils.data import DataError, binarize

CHUNK_BYTES = 32 * 2**20  # of images that go to the device at once: enough to make up for the trip
READERS = 2 + (os.cpu_count() or 1)  # threads that read and decode; two more than cores, as some wait for the disk


class BadImage(DataError):
    """One image cannot be read; the message names it and says why."""


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Stands for a uint8 array (N, H, W, C) of which nothing is in memory: len, shape and [...] are those of the array.

    `read` gets one of `numbers` (N,) and returns that image, uint8 (H, W, C), or raises BadImage. With `skip`, the next
    image of `numbers` that can be read, the first after the last, then stands in its place: which one that is follows
    from the numbers alone, so batches are the same whenever they are read. What was wrong with each bad image met so
    far is in `skipped`, which all views share.
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
        images = np.empty((*positions.shape, *self.image_shape), np.uint8)
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(self.read_at, positions.flat)
            for place, image in zip(images.reshape(-1, *self.image_shape), found, strict=True):
                place[:] = image
        return images

    def rows(self, index: slice | np.ndarray) -> "LazyImages":
        """These images only, still unread; the index is one into an array."""
        return replace(self, numbers=self.numbers[index])

    def read_at(self, position: int) -> np.ndarray:
        """The image, uint8 (H, W, C), that stands at a position. Raises BadImage or, where none can be, DataError."""
        if not self.skip:
            return self.read(int(self.numbers[position]))
        for number in chain(self.numbers[position:], self.numbers[:position]):
            try:
                return self.read(int(number))
            except BadImage as error:
                self.skipped.add(last := str(error))
        raise DataError(f"none of {len(self):,} images can be read; the last one: {last}")


def binarized(images: LazyImages, key: Sequence[int]) -> LazyImages:
    """The same images, drawn black or white by data.binarize: each by a key of its own, (*key, its number)."""
    return replace(images, read=lambda number: binarize(images.read(number), (*key, number)))


def chunk_steps(shape: Sequence[int], batch_size: int) -> int:
    """How many steps' batches of images (..., H, W, C) make up about 32 MB, at least 1."""
    return max(1, CHUNK_BYTES // (batch_size * math.prod(shape[-3:])))


def stream(
    images: LazyImages,
    rows: np.ndarray,
    prepare: Callable[[np.ndarray, int], np.ndarray] | None,
    first: int,
    chunk: int,
) -> Iterator[tf.Tensor]:
    """The batches of the steps first, first + 1, ..., in this order: uint8 (at most `chunk` steps, B, H, W, C) each.

    `rows` (steps, B) are the positions of each step's images; none before step `first` is read. prepare(batch, step)
    is given each batch, uint8 (B, H, W, C), and returns what takes its place. A few chunks at most are in memory.
    Whatever reading or preparing raises is raised here, as it is, in place of the chunk it was for.
    """
    (steps, batch_size), shape = rows.shape, images.image_shape
    # TensorFlow never lets go of a function that it was given, so what the functions below need is emptied at the end.
    tasks = {"read": lambda place: images.read_at(rows.flat[place]), "prepare": prepare}
    failures = {}  # by place in the order: what was raised, of which TensorFlow would pass on the text only

    def run(task, place, *arguments):
        try:
            return tasks[task](*arguments)
        except Exception as error:
            failures[place] = error
            raise RuntimeError("see failures") from None

    def read(place):
        def task(place):
            return run("read", int(place), int(place))

        return tf.ensure_shape(tf.numpy_function(task, [place], tf.uint8), shape)

    def prepared(batch, step):
        def task(batch, step):
            return run("prepare", int(step) * batch_size, batch, int(step))

        return tf.ensure_shape(tf.numpy_function(task, [batch, step], tf.uint8), (batch_size, *shape))

    batches = tf.data.Dataset.range(first * batch_size, rows.size).map(read, READERS, deterministic=True)
    batches = batches.batch(batch_size)
    if prepare:
        numbered = tf.data.Dataset.zip((batches, tf.data.Dataset.range(first, steps)))
        batches = numbered.map(prepared, 2, deterministic=True)
    try:
        yield from batches.batch(chunk).prefetch(1)
    except tf.errors.OpError:
        if not failures:
            raise
        raise failures[min(failures)] from None  # the first in order is what ended the stream
    finally:
        tasks.clear()
        failures.clear()


def one_ahead(items: Iterator) -> Iterator:
    """The same items, each made in a thread of its own while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
