"""What a training step is fed: batches of uint8 images on the device, in the order of the epoch.

Images in memory are drawn an epoch at a time. LazyImages are streamed, so that few of them are in memory at once. Each
of several workers gets its share of every batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from utils.chance import PIXELS, SHUFFLE
from utils.dataset import READERS, Images, LazyImages, binarize, epoch_order
from utils.settings import Settings
from utils.start import tf
from utils.workers import ALONE, Workers

CHUNK_BYTES = 32 * 2**20  # of images that go to the device at once: enough to make up for the trip


def brightness(images: tf.Tensor | np.ndarray) -> tf.Tensor:
    """uint8 images as float32 in [0, 1]; floats are brightness already."""
    x = tf.cast(images, tf.float32)
    return x if tf.as_dtype(images.dtype).is_floating else x / 255


# --- a run ------------------------------------------------------------------------------------------------------------
def of_run(images: Images, s: Settings, step: int, crew: Workers = ALONE) -> Iterator[tuple[int, int, tf.Tensor]]:
    """The batches of a run from `step` on, as (first, end, batches): uint8 batches (n, B, H, W, C), the step that the
    first of them is for, and the step to stop before. Batches beyond that are there to fill up.

    The next epoch of images in memory is drawn while one is trained on; a stream reads ahead by itself.
    """
    steps = len(images) // s.batch_size

    def pieces():
        for epoch in range(step // steps, s.epochs):
            start = epoch * steps
            for done, batches in epoch_batches(images, s, epoch + 1, max(step - start, 0), crew):
                yield start + done, start + min(done + len(batches), steps), batches

    return one_ahead(pieces()) if isinstance(images, np.ndarray) else pieces()


def one_ahead(items: Iterator) -> Iterator:
    """The same items, each made in a thread of its own while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


# --- an epoch ---------------------------------------------------------------------------------------------------------
def epoch_batches(images: Images, s: Settings, epoch: int, done: int, crew: Workers) -> Iterator[tuple[int, tf.Tensor]]:
    """What an epoch trains on after `done` steps of it: uint8 batches (n, B, H, W, C) and the number of the first one.

    Of images in memory this is the whole epoch at once. A stream comes in pieces, and the next ones are read while one
    is trained on. One of several workers gets its share of each batch, (n, B / workers, H, W, C).

    All pieces of a stream have one shape, so that what trains on them is compiled once: the last piece is filled up
    with black images.
    """
    places = places_of_worker(s, crew)
    if isinstance(images, np.ndarray):
        batches = draw_epoch(images, s, epoch)
        yield 0, batches if crew.count == 1 else tf.gather(batches, places, axis=1)
        return

    def black_and_white(batch: np.ndarray, step: int) -> np.ndarray:
        keys = ((s.seed, PIXELS, epoch, step, place) for place in places)
        return np.stack([binarize(image, key) for image, key in zip(batch, keys, strict=True)])

    rows, prepare = epoch_rows(len(images), s, epoch)[:, places], black_and_white if s.binarize == "dynamic" else None
    chunk = steps_at_once(images, s)
    for batches in stream(images, rows, prepare, first=done, chunk=chunk):
        missing = chunk - len(batches)
        yield done, tf.pad(batches, [[0, missing], *[[0, 0]] * 4]) if missing else batches
        done += len(batches)


def epoch_rows(count: int, s: Settings, epoch: int) -> np.ndarray:
    """Which of `count` images each step of an epoch trains on, (steps, B). The last partial batch is dropped."""
    steps = count // s.batch_size
    return epoch_order(count, (s.seed, SHUFFLE, epoch))[: steps * s.batch_size].reshape(steps, s.batch_size)


def draw_epoch(images: np.ndarray, s: Settings, epoch: int) -> tf.Tensor:
    """All batches of an epoch, uint8 (steps, B, H, W, C), on the device. If BINARIZE is dynamic, each epoch draws the
    pixels of its images again.
    """
    rows = epoch_rows(len(images), s, epoch)
    batches = np.empty((*rows.shape, *images.shape[1:]), np.uint8)
    for number, chosen in enumerate(rows):
        batch = images[chosen]  # one at a time, because a batch stays in the processor's cache: twice as fast
        batches[number] = binarize(batch, (s.seed, PIXELS, epoch, number)) if s.binarize == "dynamic" else batch
    return tf.constant(batches)


def steps_at_once(images: Images, s: Settings) -> int:
    """How many steps' batches are trained on in one piece: an epoch's of images in memory, 32 MB of a stream."""
    steps = len(images) // s.batch_size
    return steps if isinstance(images, np.ndarray) else min(steps, chunk_steps(images.shape, s.batch_size))


def chunk_steps(shape: Sequence[int], batch_size: int) -> int:
    """How many steps' batches of images (..., H, W, C) make up about 32 MB, at least 1."""
    return max(1, CHUNK_BYTES // (batch_size * math.prod(shape[-3:])))


# --- a batch ----------------------------------------------------------------------------------------------------------
def batch_at(batches: tf.Tensor, place: tf.Tensor, compiled: bool) -> tf.Tensor:
    """The batch (B, H, W, C) at a place of (n, B, H, W, C), in a function that is `compiled` by XLA or not.

    XLA would compile a slice once more for each new offset in a loop (TensorFlow issue 76070). Without XLA a GPU cannot
    gather uint8.
    """
    return tf.gather(batches, place) if compiled else batches[place]


def parts_of_batch(s: Settings, replicas: int = 1) -> int:
    """The fewest equal parts of a batch that have at most BOUND_CHUNK draws each, or one image of each replica.

    Each of several replicas has an equal share of each part.
    """
    images = s.batch_size // replicas  # of a replica
    if s.bound_samples == 1:
        return 1

    def is_small(parts: int) -> bool:
        return parts == images or s.batch_size // parts * s.bound_samples <= s.bound_chunk

    return next(parts for parts in range(1, images + 1) if images % parts == 0 and is_small(parts))


def places_of_worker(s: Settings, crew: Workers) -> np.ndarray:
    """Which images of a batch this process trains on, (B / workers,): the same share of each part of the batch."""
    parts = parts_of_batch(s, crew.replicas)
    return np.arange(s.batch_size).reshape(parts, crew.count, -1)[:, crew.index].ravel()


# --- a stream ---------------------------------------------------------------------------------------------------------
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
    batch_size, shape = rows.shape[1], images.image_shape
    # TensorFlow never lets go of a function that it was given, so what `run` needs is emptied at the end.
    tasks = {
        "read": lambda place: images.read_at(rows.flat[place]),
        "prepare": lambda place, batch: prepare(batch, place // batch_size),
    }
    failures = {}  # by place in the order: what was raised, of which TensorFlow would pass on the text only

    def run(task, place, *batch):
        try:
            return tasks[task](int(place), *batch)
        except Exception as error:
            failures[int(place)] = error
            raise RuntimeError("see failures") from None

    def call(task, shape, *arguments):
        return tf.ensure_shape(tf.numpy_function(partial(run, task), arguments, tf.uint8), shape)

    places = partial(tf.data.Dataset.range, first * batch_size, rows.size)  # of images, one by one or of each batch
    batches = places().map(partial(call, "read", shape), READERS, deterministic=True).batch(batch_size)
    if prepare:
        numbered = tf.data.Dataset.zip((places(batch_size), batches))
        batches = numbered.map(partial(call, "prepare", (batch_size, *shape)), 2, deterministic=True)
    try:
        yield from batches.batch(chunk).prefetch(1)
    except tf.errors.OpError:
        if not failures:
            raise
        raise failures[min(failures)] from None  # the first in order is what ended the stream
    finally:
        tasks.clear()
        failures.clear()
