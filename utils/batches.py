"""The input of training steps: batches of uint8 images on the device, in the order of the epoch.

Images in memory are batched an epoch at a time. LazyImages are streamed, so few of them are in memory at once. If there
are several workers, each gets its share of every batch.
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

CHUNK_BYTES = 32 * 2**20  # of images copied to the device at once; large enough that the overhead of a copy is small


def brightness(images: tf.Tensor | np.ndarray) -> tf.Tensor:
    """uint8 images as float32 in [0, 1]; floats are brightness already and are returned as float32."""
    x = tf.cast(images, tf.float32)
    return x if tf.as_dtype(images.dtype).is_floating else x / 255


# --- a run ------------------------------------------------------------------------------------------------------------
def of_run(images: Images, s: Settings, step: int, crew: Workers = ALONE) -> Iterator[tuple[int, int, tf.Tensor]]:
    """Yield the batches of a run from `step` on, as (first, end, batches).

    The batches are uint8 (n, B, H, W, C). The first one is for step `first`; stop before step `end`, because batches
    after that are only padding. For images in memory, the next epoch is prepared during training on the current one. A
    stream reads ahead by itself.
    """
    steps = len(images) // s.batch_size

    def pieces():
        for epoch in range(step // steps, s.epochs):
            start = epoch * steps
            for done, batches in epoch_batches(images, s, epoch + 1, max(step - start, 0), crew):
                yield start + done, start + min(done + len(batches), steps), batches

    return one_ahead(pieces()) if isinstance(images, np.ndarray) else pieces()


def one_ahead(items: Iterator) -> Iterator:
    """Yield the same items. A thread makes the next item while the current one is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


# --- an epoch ---------------------------------------------------------------------------------------------------------
def epoch_batches(images: Images, s: Settings, epoch: int, done: int, crew: Workers) -> Iterator[tuple[int, tf.Tensor]]:
    """Yield the batches of an epoch after `done` of its steps: the number of the first, and uint8 (n, B, H, W, C).

    Images in memory come as the whole epoch at once. A stream comes in pieces; the next ones are read during training
    on the current one. One of several workers gets its share of each batch, (n, B / workers, H, W, C).

    All pieces of a stream have the same shape, so the training loop is compiled only once. For this, the last piece is
    padded with black images.
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
    """The positions, among `count` images, of each step's batch: (steps, B). A partial last batch is dropped."""
    steps = count // s.batch_size
    return epoch_order(count, (s.seed, SHUFFLE, epoch))[: steps * s.batch_size].reshape(steps, s.batch_size)


def draw_epoch(images: np.ndarray, s: Settings, epoch: int) -> tf.Tensor:
    """All batches of an epoch, uint8 (steps, B, H, W, C), on the device.

    If BINARIZE is dynamic, each epoch draws the pixels of its images again.
    """
    rows = epoch_rows(len(images), s, epoch)
    batches = np.empty((*rows.shape, *images.shape[1:]), np.uint8)
    for number, chosen in enumerate(rows):
        batch = images[chosen]  # batch by batch is twice as fast, because a batch fits the processor's cache
        batches[number] = binarize(batch, (s.seed, PIXELS, epoch, number)) if s.binarize == "dynamic" else batch
    return tf.constant(batches)


def steps_at_once(images: Images, s: Settings) -> int:
    """The number of batches in one piece: a whole epoch for images in memory, about 32 MB for a stream."""
    steps = len(images) // s.batch_size
    return steps if isinstance(images, np.ndarray) else min(steps, chunk_steps(images.shape, s.batch_size))


def chunk_steps(shape: Sequence[int], batch_size: int) -> int:
    """The number of batches of images (..., H, W, C) in about 32 MB, at least 1."""
    return max(1, CHUNK_BYTES // (batch_size * math.prod(shape[-3:])))


# --- a batch ----------------------------------------------------------------------------------------------------------
def batch_at(batches: tf.Tensor, place: tf.Tensor, compiled: bool) -> tf.Tensor:
    """The batch (B, H, W, C) at position `place` of (n, B, H, W, C), for a function that XLA compiles or not.

    XLA would compile a slice again for each new offset in a loop (TensorFlow issue 76070). Without XLA, a GPU cannot
    gather uint8.
    """
    return tf.gather(batches, place) if compiled else batches[place]


def parts_of_batch(s: Settings, replicas: int = 1) -> int:
    """The smallest number of equal parts of a batch that have at most BOUND_CHUNK draws each.

    If that is impossible, each part has one image of each replica. Each replica has an equal share of each part.
    """
    images = s.batch_size // replicas  # per replica
    if s.bound_samples == 1:
        return 1

    def is_small(parts: int) -> bool:
        return parts == images or s.batch_size // parts * s.bound_samples <= s.bound_chunk

    return next(parts for parts in range(1, images + 1) if images % parts == 0 and is_small(parts))


def places_of_worker(s: Settings, crew: Workers) -> np.ndarray:
    """The positions in a batch that this process trains on, (B / workers,): the same share of each part."""
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
    """Yield the batches of steps first, first + 1, ... in chunks: uint8 (at most `chunk` steps, B, H, W, C) each.

    `rows` (steps, B) are the positions of each step's images; no image before step `first` is read. prepare(batch,
    step) takes each batch, uint8 (B, H, W, C), and returns its replacement. A few chunks at most are in memory. An
    error of reading or preparing is raised here unchanged, in place of its chunk.
    """
    batch_size, shape = rows.shape[1], images.image_shape
    # TensorFlow keeps a reference to `run` for ever, so the dictionaries that `run` uses are cleared at the end.
    tasks = {
        "read": lambda place: images.read_at(rows.flat[place]),
        "prepare": lambda place, batch: prepare(batch, place // batch_size),
    }
    failures = {}  # the exceptions by their place in the order, because TensorFlow passes on only their texts

    def run(task, place, *batch):
        try:
            return tasks[task](int(place), *batch)
        except Exception as error:
            failures[int(place)] = error
            raise RuntimeError("see failures") from None

    def call(task, shape, *arguments):
        return tf.ensure_shape(tf.numpy_function(partial(run, task), arguments, tf.uint8), shape)

    places = partial(tf.data.Dataset.range, first * batch_size, rows.size)  # of every image, or of each batch's first
    batches = places().map(partial(call, "read", shape), READERS, deterministic=True).batch(batch_size)
    if prepare:
        numbered = tf.data.Dataset.zip((places(batch_size), batches))
        batches = numbered.map(partial(call, "prepare", (batch_size, *shape)), 2, deterministic=True)
    try:
        yield from batches.batch(chunk).prefetch(1)
    except tf.errors.OpError:
        if not failures:
            raise
        raise failures[min(failures)] from None  # the first in order ended the stream
    finally:
        tasks.clear()
        failures.clear()
