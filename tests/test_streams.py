"""utils/streams.py: images that are read on demand are those of an array, in order, whatever fails on the way."""

import gc
import json
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import main
from experiments import draw_faces
from utils import data, runs
from utils.data import DataError, binarize
from utils.settings import from_params
from utils.streams import BadImage, LazyImages, binarized, chunk_steps, one_ahead, stream

SHAPE = (4, 5, 3)
ARRAY = np.random.default_rng(1).integers(256, size=(40, *SHAPE), dtype=np.uint8)


def lazy(numbers=range(40), bad=(), skip=False, seen=None):
    """LazyImages over ARRAY, of which the `bad` numbers cannot be read; those that were asked for are put in `seen`."""

    def read(number):
        time.sleep(0.02 if number % 10 == 3 else 0)  # so that threads overtake each other
        if seen is not None:
            seen.append(number)
        if number in bad:
            raise BadImage(f"{number}.jpg: not an image")
        return ARRAY[number]

    return LazyImages(read, np.array(numbers, int), SHAPE, skip)


def streamed(images, rows, prepare=None, first=0, chunk=2):
    return [chunk.numpy() for chunk in stream(images, rows, prepare, first, chunk)]


@pytest.mark.parametrize("index", [
    slice(3, 9), slice(-4, None), slice(30, 99), slice(7, 7), np.array([5, 0, 5, -1]), np.arange(40) % 3 == 0,
    np.array([[1, 2], [3, 4]]), 7,
])  # fmt: skip
def test_lazy_images_are_indexed_like_the_array(index):
    images = lazy()
    assert (len(images), images.shape) == (40, ARRAY.shape)
    np.testing.assert_array_equal(images[index], ARRAY[index], strict=True)


def test_a_view_reads_nothing_until_it_is_asked():
    seen = []
    view = lazy(seen=seen).rows(np.array([30, 2, 17, 5])).rows(slice(1, None))
    assert (view.shape, seen) == ((3, *SHAPE), [])
    np.testing.assert_array_equal(view[0:2], ARRAY[[2, 17]])
    assert sorted(seen) == [2, 17]


def test_the_next_image_of_the_list_takes_the_place_of_a_bad_one():
    images = lazy(numbers=[9, 3, 8, 2, 7], bad=(8, 2, 9), skip=True)
    expected = ARRAY[[3, 3, 7, 7, 7]]
    np.testing.assert_array_equal(images[:], expected)
    for position in range(5):  # alone as in company
        np.testing.assert_array_equal(images[position : position + 1], expected[position : position + 1])
    around = images.rows(np.array([1, 4, 3]))
    np.testing.assert_array_equal(around[:], ARRAY[[3, 7, 3]])  # after the last comes the first
    assert images.skipped == {f"{number}.jpg: not an image" for number in (2, 8, 9)}
    assert around.skipped is images.skipped


def test_bad_images_are_told_unless_they_are_skipped():
    with pytest.raises(BadImage, match=r"^8\.jpg: not an image$"):
        lazy(bad=(8, 21))[0:30]
    with pytest.raises(DataError, match=r"^none of 3 images can be read; the last one: 5\.jpg: not an image$"):
        lazy(numbers=[4, 5, 6], bad=(4, 5, 6), skip=True)[2:]


def test_test_images_are_drawn_by_a_key_and_their_number():
    drawn = binarized(lazy(), (3, 1)).rows(np.array([6, 2]))
    np.testing.assert_array_equal(drawn[:], [binarize(ARRAY[6], (3, 1, 6)), binarize(ARRAY[2], (3, 1, 2))])


@pytest.mark.parametrize(("shape", "batch_size", "steps"), [
    ((9, 64, 64, 3), 128, 21), ((64, 64, 3), 128, 21), ((9, 128, 128, 3), 64, 10), ((1_024, 1_024, 3), 100, 1),
])  # fmt: skip
def test_a_chunk_takes_32_megabytes(shape, batch_size, steps):
    assert chunk_steps(shape, batch_size) == steps
    assert steps == 1 or steps * batch_size * np.prod(shape[-3:]) <= 2**25


@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_batches_come_in_order_and_a_resumed_stream_reads_no_image_before_them(first):
    rows = np.random.default_rng(2).permutation(40)[:35].reshape(5, 7)
    seen = []
    chunks = streamed(lazy(seen=seen), rows, first=first)
    assert [len(chunk) for chunk in chunks] == {0: [2, 2, 1], 1: [2, 2], 4: [1], 5: []}[first]
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 7, *SHAPE), np.uint8), *chunks]), ARRAY[rows[first:]])
    assert sorted(seen) == sorted(rows[first:].ravel())


def test_bad_images_are_replaced_alike_in_a_resumed_stream():
    rows = np.random.default_rng(2).permutation(40).reshape(10, 4)
    images = lazy(bad=(3, 4, 39), skip=True)
    expected = np.arange(40)
    expected[[3, 4, 39]] = 5, 5, 0
    np.testing.assert_array_equal(np.concatenate(streamed(images, rows)), ARRAY[expected[rows]])
    np.testing.assert_array_equal(np.concatenate(streamed(images, rows, first=3)), ARRAY[expected[rows[3:]]])
    assert len(images.skipped) == 3


def test_batches_are_prepared_with_their_own_step():
    rows = np.arange(40).reshape(10, 4)

    def prepare(batch, step):
        time.sleep(0.02 if step == 6 else 0)  # so that the next one overtakes it
        return batch ^ np.uint8(step)

    expected = ARRAY[rows] ^ np.arange(10, dtype=np.uint8)[:, *[None] * 4]
    np.testing.assert_array_equal(np.concatenate(streamed(lazy(), rows, prepare, first=6)), expected[6:])


def test_what_reading_raises_comes_out_as_it_is_after_the_batches_before_it(capfd):
    images, received = lazy(bad=(17, 18, 30)), []
    with pytest.raises(BadImage, match=r"^17\.jpg: not an image$") as caught:
        received.extend(stream(images, np.arange(40).reshape(10, 4), None, 0, 1))
    assert len(received) == 4
    assert caught.value.__suppress_context__  # TensorFlow's own words stay away
    assert "Traceback" not in capfd.readouterr().err


def test_what_preparing_raises_comes_out_as_it_is():
    def prepare(batch, step):
        raise ZeroDivisionError(f"step {step}")

    with pytest.raises(ZeroDivisionError, match=r"^step 2$"):
        streamed(lazy(), np.arange(40).reshape(10, 4), prepare, first=2)


def test_a_stream_that_is_left_early_reads_little_more_and_keeps_nothing():
    seen = []
    images = LazyImages(lambda number: seen.append(number) or ARRAY[number % 40], np.arange(10**6), SHAPE)
    left = stream(images, np.arange(10**6).reshape(1_000, 1_000), None, 0, 1)
    next(left)
    left.close()
    time.sleep(0.1)
    assert len(seen) < 10_000  # a few chunks of the thousand
    alive = weakref.ref(images)
    del images, left
    gc.collect()
    assert alive() is None


# --- what is made ahead -----------------------------------------------------------------------------------------------
def test_items_come_in_order_each_made_while_the_one_before_is_in_use():
    made = [threading.Event() for _ in range(4)]

    def items():
        for number in range(4):
            made[number].set()
            yield number

    received = []
    for number in one_ahead(items()):
        received.append(number)
        assert number == 3 or made[number + 1].wait(10)  # before anybody asked for it
    assert received == [0, 1, 2, 3]


def test_what_making_an_item_raises_comes_out_behind_the_items_before_it_and_leaving_early_ends_the_thread():
    def items():
        yield 1
        raise ZeroDivisionError("the second")

    ahead, before = one_ahead(items()), set(threading.enumerate())
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError, match=r"^the second$"):
        next(ahead)
    left = one_ahead(iter(range(10)))
    assert next(left) == 0
    left.close()
    assert set(threading.enumerate()) <= before


# --- runs that train on a stream --------------------------------------------------------------------------------------
SMALL = {
    "dataset": "celeba", "image_size": 16, "binarize": "dynamic", "architecture": "resnet", "channels": (3,),
    "encoder_layers": (6,), "decoder_layers": (6,), "latent_dim": 2, "noise_dim": 0, "batch_size": 16, "epochs": 2,
    "log_every": 3, "checkpoint_every": 100, "images_every": 100, "nll_samples": 2, "kl_steps": 10, "run_name": "r",
}  # fmt: skip


def trained(folder, **changes):
    """What a run on the images below a folder says, and the lines of its history but for timings."""
    said, place = [], Path(changes["output_dir"], "r")
    settings = from_params(**SMALL | {"data_dir": str(folder)} | changes)
    try:
        main.train(settings, place if place.exists() else None, said.append)
    finally:
        lines = [line | {"images_per_second": 0, "waiting": 0} for line in runs.read_history(place)]
    return said, lines


@pytest.mark.slow
def test_a_bad_image_ends_a_run_which_goes_on_with_the_next_one_as_if_it_had_always_been_skipped(tmp_path, monkeypatch):
    faces = tmp_path / "faces"
    draw_faces.draw(faces, 100)
    monkeypatch.setattr(main, "steps_at_once", lambda images, settings: 1)  # so that the pieces are many
    order = data.epoch_order(80, (from_params().seed, main.SHUFFLE, 1))
    bad = faces / "img_align_celeba" / f"{order[3 * 16 + 5] + 1:06}.jpg"  # of the fourth step
    whole = bad.read_bytes()
    never = trained(faces, output_dir=str(tmp_path / "never"))[1]
    bad.write_bytes(whole[: len(whole) // 2])
    always, expected = trained(faces, output_dir=str(tmp_path / "always"), skip_bad_images=True)
    assert expected != never
    (counted,) = (line for line in always if line.startswith("skipped"))
    assert counted.startswith(f"skipped    1 image that could not be read, with the next ones in their place: {bad}: ")
    report = json.loads((tmp_path / "always" / "r" / "report.json").read_text())
    assert [text.partition(": ")[0] for text in report["skipped_images"]] == [str(bad)]

    go_on = f"python main.py --resume {tmp_path}/later/r --skip-bad-images"
    with pytest.raises(data.DataError, match=rf"^{bad}: .*truncated.*; with the next image in its place: {go_on}$"):
        trained(faces, output_dir=str(tmp_path / "later"))
    assert runs.saved_steps(tmp_path / "later" / "r") == [3]
    said, lines = trained(faces, output_dir=str(tmp_path / "later"), skip_bad_images=True)
    assert lines == expected
    assert counted in said
