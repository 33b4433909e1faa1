"""utils/batches.py: batches come in the order of their epoch, whatever fails; a resumed run gets the same."""

import contextlib
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
from tests.shared import ARRAY, lazy
from tests.tiny import TINY, random_images
from utils import batches, runs
from utils.batches import chunk_steps, draw_epoch, of_run, one_ahead, parts_of_batch, places_of_worker, stream
from utils.chance import SHUFFLE
from utils.dataset import BadImage, DataError, LazyImages, epoch_order
from utils.settings import from_params
from utils.workers import ALONE, Workers


# --- a stream ---------------------------------------------------------------------------------------------------------
def streamed(images, rows, prepare=None, first=0, chunk=2):
    return [chunk.numpy() for chunk in stream(images, rows, prepare, first, chunk)]


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
    np.testing.assert_array_equal(
        np.concatenate([np.empty((0, 7, *ARRAY.shape[1:]), np.uint8), *chunks]), ARRAY[rows[first:]]
    )
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
    assert caught.value.__suppress_context__  # TensorFlow's own message is hidden
    assert "Traceback" not in capfd.readouterr().err


def test_what_preparing_raises_comes_out_as_it_is():
    def prepare(batch, step):
        raise ZeroDivisionError(f"step {step}")

    with pytest.raises(ZeroDivisionError, match=r"^step 2$"):
        streamed(lazy(), np.arange(40).reshape(10, 4), prepare, first=2)


def test_a_stream_that_is_left_early_reads_little_more_and_keeps_nothing():
    seen = []
    images = LazyImages(lambda number: seen.append(number) or ARRAY[number % 40], np.arange(10**6), ARRAY.shape[1:])
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
        assert number == 3 or made[number + 1].wait(10)  # made before anyone asks for it
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


# --- an epoch ---------------------------------------------------------------------------------------------------------
def test_an_epoch_has_an_order_of_its_own_and_drops_the_last_partial_batch():
    grey = np.random.default_rng(0).integers(1, 255, (203, 8, 8, 1), dtype=np.uint8)
    chosen, other_seed = (from_params(binarize="none", seed=seed, batch_size=20) for seed in (0, 1))
    asked = [(chosen, 1), (chosen, 1), (chosen, 2), (other_seed, 1)]
    batches, same, *others = [draw_epoch(grey, s, epoch).numpy() for s, epoch in asked]
    assert (batches.shape, batches.dtype) == ((10, 20, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(batches, same)
    images = {image.tobytes() for image in batches.reshape(200, 64)}
    assert len(images & {image.tobytes() for image in grey}) == 200
    for other in others:
        assert (other == batches).mean() < 0.1


def test_a_binarised_epoch_draws_every_image_anew_from_its_grey_values():
    grey = np.random.default_rng(0).integers(1, 255, (200, 8, 8, 1), dtype=np.uint8)
    chosen, other_seed = (from_params(binarize="dynamic", seed=seed, batch_size=20) for seed in (0, 1))
    drawn = draw_epoch(grey, chosen, 1).numpy().reshape(200, -1)
    plain = draw_epoch(grey, chosen.model_copy(update={"binarize": "none"}), 1).numpy().reshape(200, -1)
    assert set(np.unique(drawn)) == {0, 255}
    assert np.corrcoef(drawn.ravel(), plain.ravel())[0, 1] > 0.5  # between different images: about 0

    alike = np.full_like(grey, 128)  # so that two images are the same only if their draws are
    asked = [(chosen, 1), (chosen, 1), (chosen, 2), (other_seed, 1)]
    first, same, *others = [draw_epoch(alike, s, epoch).numpy().reshape(200, -1) for s, epoch in asked]
    np.testing.assert_array_equal(first, same)
    assert len(np.unique(np.concatenate([first, *others]), axis=0)) == 3 * 200


# --- a batch ----------------------------------------------------------------------------------------------------------
def test_no_part_holds_more_draws_than_the_chunk_as_long_as_an_images_fit_in():
    for batch, samples, chunk, parts in ((128, 1, 10, 1), (128, 50, 5_000, 2), (100, 50, 5_000, 1), (7, 50, 60, 7)):
        chosen = from_params(**TINY | {"batch_size": batch, "bound_samples": samples, "bound_chunk": chunk})
        assert parts_of_batch(chosen) == parts


# --- a run ------------------------------------------------------------------------------------------------------------
def test_a_run_gets_its_epochs_in_order_and_the_next_is_drawn_while_one_is_in_use(monkeypatch):
    drawn = [threading.Event() for _ in range(4)]

    def draw(images, chosen, epoch, real=draw_epoch):
        drawn[epoch].set()
        return real(images, chosen, epoch)

    monkeypatch.setattr(batches, "draw_epoch", draw)
    chosen, images = from_params(**TINY | {"epochs": 3}), random_images(7)  # three steps an epoch
    with contextlib.closing(of_run(images, chosen, step=4)) as pieces:  # step 4 is in the second epoch
        first, end, epoch = next(pieces)
        assert drawn[3].wait(10)
        assert (first, end) == (3, 6)
        np.testing.assert_array_equal(epoch, draw_epoch(images, chosen, 2))
        first, end, epoch = next(pieces)
        assert (first, end) == (6, 9)
        np.testing.assert_array_equal(epoch, draw_epoch(images, chosen, 3))
        assert not drawn[1].is_set()
        assert list(pieces) == []


@pytest.mark.parametrize(("step", "ends"), [
    (0, [(0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10)]), (6, [(6, 8), (8, 10)]), (9, [(9, 10)]), (10, []),
])  # fmt: skip
def test_a_run_on_a_stream_gets_pieces_of_one_shape_whose_end_is_not_trained_on(step, ends, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK_BYTES", 2 * 8 * ARRAY[0].size)
    chosen = from_params(**TINY | {"batch_size": 8, "epochs": 2})  # five steps an epoch
    orders = np.concatenate([epoch_order(40, (chosen.seed, SHUFFLE, epoch)).reshape(5, 8) for epoch in (1, 2)])
    pieces = [(first, end, piece.numpy()) for first, end, piece in of_run(lazy(), chosen, step)]
    assert [(first, end) for first, end, _ in pieces] == ends
    for first, end, piece in pieces:
        assert piece.shape == (2, 8, *ARRAY.shape[1:])
        np.testing.assert_array_equal(piece[: end - first], ARRAY[orders[first:end]])


@pytest.mark.parametrize("images", [ARRAY, lazy()], ids=["in memory", "a stream"])
@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_workers_get_their_shares_of_the_batches_that_one_alone_gets(images, binarize):
    chosen = from_params(**TINY | {"batch_size": 8, "binarize": binarize, "bound_samples": 2, "bound_chunk": 8})
    crews = [Workers(None, ("a:1", "b:1"), index) for index in (0, 1)]
    places = [places_of_worker(chosen, crew) for crew in crews]
    assert [list(of_worker) for of_worker in places] == [[0, 1, 4, 5], [2, 3, 6, 7]]  # shares of two parts of the batch
    assert list(places_of_worker(chosen, ALONE)) == list(range(8))
    alone = [piece.numpy() for _, _, piece in of_run(images, chosen, 0)]
    for crew, of_worker in zip(crews, places, strict=True):
        for piece, (_, _, share) in zip(alone, of_run(images, chosen, 0, crew), strict=True):
            np.testing.assert_array_equal(share, piece[:, of_worker])


def test_brightness_is_from_0_to_1():
    x = batches.brightness(np.array([[0, 51, 255]], np.uint8)).numpy()
    np.testing.assert_array_equal(x, np.float32([[0, 0.2, 1]]), strict=True)


SMALL = {
    "dataset": "celeba", "image_size": 16, "binarize": "dynamic", "architecture": "resnet", "channels": (3,),
    "encoder_layers": (6,), "decoder_layers": (6,), "latent_dim": 2, "noise_dim": 0, "batch_size": 16, "epochs": 2,
    "log_every": 3, "checkpoint_every": 100, "images_every": 100, "nll_samples": 2, "kl_steps": 10, "run_name": "r",
}  # fmt: skip


def trained(folder, **changes):
    """What a run on the images below a folder prints, and the lines of its history without timings."""
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
    monkeypatch.setattr(batches, "CHUNK_BYTES", 0)  # so that there are many pieces
    order = epoch_order(80, (from_params().seed, SHUFFLE, 1))
    bad = faces / "img_align_celeba" / f"{order[3 * 16 + 5] + 1:06}.jpg"  # an image of the fourth step
    whole = bad.read_bytes()
    never = trained(faces, output_dir=str(tmp_path / "never"))[1]
    bad.write_bytes(whole[: len(whole) // 2])
    always, expected = trained(faces, output_dir=str(tmp_path / "always"), skip_bad_images=True)
    assert expected != never
    (counted,) = (line for line in always if line.startswith("skipped"))
    assert counted.startswith(f"skipped    1 image that could not be read, replaced by the next: {bad}: ")
    report = json.loads((tmp_path / "always" / "r" / "report.json").read_text())
    assert [text.partition(": ")[0] for text in report["skipped_images"]] == [str(bad)]

    go_on = f"python {runs.REPOSITORY}/main.py --resume {tmp_path}/later/r --skip-bad-images"
    with pytest.raises(DataError, match=rf"^{bad}: .*truncated.*; to use the next image instead: {go_on}$"):
        trained(faces, output_dir=str(tmp_path / "later"))
    assert runs.saved_steps(tmp_path / "later" / "r") == [3]
    said, lines = trained(faces, output_dir=str(tmp_path / "later"), skip_bad_images=True)
    assert lines == expected
    assert counted in said
