"""Read a data set from array files: .npz, .npy, .csv and IDX (plain or .gz), with or without labels and test images.

The role of an array follows from its name (x_train, test-labels, t10k-images-idx3-ubyte, ...), then from its shape. The
data set's `details` list what was guessed, converted or left out. Nothing is ever unpickled. TensorFlow is not needed.
"""

import csv
import gzip
import io
import math
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.console import Say
from utils.dataset import SPLIT_KEY, DataError, Dataset, draw_split, ids_of

READ = ".npz, .npy, .csv or IDX, plain or .gz"
PARTS = {  # words in names, and the part that they stand for
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "t10k", "te"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}
KINDS = {
    **dict.fromkeys(("x", "image", "images", "img", "imgs", "data", "pixels", "pictures"), "images"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets", "class", "classes", "lbl", "digit"), "labels"),
    **dict.fromkeys(("names",), "names"),
}
FORMAT_WORDS = {"idx", "idx1", "idx2", "idx3", "idx4", "ubyte", "set", "arr"}
LONGEST_FIRST = sorted((*PARTS, *KINDS, *FORMAT_WORDS), key=len, reverse=True)
COMPOUND = re.compile(rf"({'|'.join(LONGEST_FIRST)})({'|'.join(LONGEST_FIRST)})")  # as in xtrain and trainset
ROW_NUMBERS = ("", "id", "index", "unnamed: 0", "imageid", "image_id")  # names of CSV columns that number the rows
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
DEPTH = 2  # levels of sub-folders that are searched
LONG_ROW = 16  # a first row 0, 1, 2, ... with more columns than this is a header, not an image
SMALLEST_SIDE = 2  # of an image, in pixels
AT_A_TIME = 4_096  # images converted at once
FAST_BYTES = 2**25  # total file size that is read fast; a CSV of this size takes two seconds
LARGEST_LABEL = 10**6  # integer labels up to this one are kept as they are
SLACK = 1e-3  # floats may exceed their range by this much, as they do after a resize


class Found(NamedTuple):
    """One array, with its source as shown to the user, its part of the split and its kind."""

    where: str
    part: str  # "train", "test", "val"; "" if no name gives it
    kind: str  # "images", "labels", "names"; "" if its name does not say it
    array: np.ndarray


def load(data_dir: str, say: Say) -> Dataset:
    """Load the data set from the file `data_dir`, or from the files of that folder.

    If there are no test images, a tenth of the images is drawn for testing. A fixed key shuffles the training images.
    So the last ones, which HELD_OUT takes, have all labels. Raises DataError.
    """
    path = Path(os.path.expanduser(data_dir))
    files, left_out = files_of(path)
    found = [array for file in files for array in arrays_of(file, path)]
    parts, labels, names, more = chosen(found, path)
    left_out += more
    details = {"split": " and ".join(found.where for found in parts.values())}
    places = " and ".join(found.where for found in labels.values())
    images, about = as_uint8(parts, any("emnist" in words(file.name) for file in files))
    labels, names, more = as_labels(labels, names)
    left_out += more
    details["split"] += f"; labels from {places}" * bool(labels)
    numbers = [labels.get(part, np.zeros(len(images[part]), np.int32)) for part in images]
    if len(parts) == 1:
        ids = ids_of(images["train"])
        try:
            train, test = draw_split(numbers[0], ids)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        details["split"] = f"a tenth, drawn by a fixed key, of {details['split']}"
        x, y, keys = ([each[index] for index in (train, test)] for each in (images["train"], numbers[0], ids))
    else:
        order = np.random.default_rng(SPLIT_KEY).permutation(len(numbers[0]))
        x, y = ([each[0][order], np.array(each[1])] for each in ([*images.values()], numbers))
        keys = [ids_of(part) for part in x]
        if copies := int(np.isin(keys[1], keys[0]).sum()):
            say(f"note       {copies:,} of {len(keys[1]):,} test images are copies of training images")
    x = [np.ascontiguousarray(part) for part in x]
    details |= about | ({"left_out": left_out} if left_out else {})
    title = path.resolve().name.split(".")[0] if path.is_file() else path.resolve().name
    return Dataset(
        title, x[0], y[0], x[1], y[1], str(path), label_names=names, train_ids=keys[0], test_ids=keys[1],
        details=details,
    )  # fmt: skip


def is_read_fast(data_dir: str) -> bool:
    """Whether reading takes a second or two at most, so that the files can be checked early. Raises DataError."""
    return sum(file.stat().st_size for file in files_of(Path(os.path.expanduser(data_dir)))[0]) < FAST_BYTES


# --- files and names --------------------------------------------------------------------------------------------------
def words(name: str) -> list[str]:
    """The words of a name in lower case: ["x", "train"] of x_train, xTrain and Xtrain."""
    parts = re.findall(r"t10k|[a-z]+\d*|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    pairs = (COMPOUND.fullmatch(part) for part in parts)
    return [word for part, pair in zip(parts, pairs, strict=True) for word in (pair.groups() if pair else (part,))]


def meaning(name: str, known: dict[str, str]) -> str:
    """The meaning of a name's `known` words; if there are several, the one listed last in `known`; "" if none."""
    found = {known[word] for word in words(name) if word in known}
    return next((value for value in reversed(known.values()) if value in found), "")


def plain_name(path: Path) -> str:
    """The file name without .gz."""
    return path.name.removesuffix(".gz")


def set_of(path: Path, root: Path) -> tuple[str, ...]:
    """The words of a file name that give neither part nor kind. Files that share them belong to one data set."""
    name = str(path.relative_to(root)).removesuffix("".join(path.suffixes))
    return tuple(word for word in words(name) if word not in PARTS | KINDS and word not in FORMAT_WORDS)


def files_of(path: Path) -> tuple[list[Path], list[str]]:
    """The files that make up one data set, and what was left out, in words.

    If `path` is a file, the files of the same set and type in its folder are added. Raises DataError if there are no
    files, or files of several sets.
    """
    if path.is_file():
        if not (kind := type_of(path)):
            raise DataError(f"{path}: not a file of arrays, by its content; one is needed ({READ})")
        alike = (
            file for file in sorted(path.parent.iterdir()) if set_of(file, path.parent) == set_of(path, path.parent)
        )
        others = {plain_name(file): file for file in alike if is_shown(file) and type_of(file) == kind}
        return [*(others | {plain_name(path): path}).values()], []
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; set DATA_DIR to a file ({READ}) or the folder of such files")
    sets, left_out = defaultdict(dict), {"not a file of arrays": [], "no images in it": []}
    for file in filter(is_shown, below(path)):
        if type_of(file):
            sets[set_of(file, path)].setdefault(plain_name(file), file)  # x takes precedence over x.gz
        else:
            left_out["not a file of arrays"].append(file.name)
    for key, files in [*sets.items()]:
        if not any(map(may_have_images, files.values())):
            left_out["no images in it"] += sets.pop(key)
    if not sets:
        there = ", ".join([name for names in left_out.values() for name in names][:5]) or "nothing"
        raise DataError(f"{path}: no file of image arrays ({READ}); there is {there}; see DATA_DIR and DATASET")
    if len(sets) > 1:
        names = [str(file.relative_to(path)) for files in sets.values() for file in files.values()]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise DataError(f"{path}: several data sets, {', '.join(names[:5])}{more}; set DATA_DIR to one of these files")
    words_for_it = [f"{len(names):,} x {reason} (e.g. {names[0]})" for reason, names in left_out.items() if names]
    return [*next(iter(sets.values())).values()], words_for_it


def is_shown(path: Path) -> bool:
    """Whether the path is a file that is not hidden."""
    return path.is_file() and not path.name.startswith(".")


def below(root: Path) -> Iterable[Path]:
    """The contents of a folder and of its sub-folders, down to DEPTH levels."""
    for depth in range(DEPTH + 1):
        yield from sorted(root.glob("*/" * depth + "*"))


def opened(path: Path) -> Any:
    """Open a file to read bytes, and unpack it if its content is gzip."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")


def type_of(path: Path) -> str:
    """The type of a file: "npz", "npy" or "idx" by its content, else "csv" by its name; "" for any other."""
    try:
        with opened(path) as file:
            start = file.read(4)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: {why(error)}") from None
    if start[:2] == b"PK" and plain_name(path).lower().endswith(".npz"):
        return "npz"
    if start == b"\x93NUM":
        return "npy"
    if len(start) == 4 and start[:2] == b"\0\0" and start[2] in IDX_TYPES and 0 < start[3] < 6:
        return "idx"
    return "csv" if plain_name(path).lower().endswith((".csv", ".tsv")) else ""


def why(error: Exception) -> str:
    """What went wrong, in one short line."""
    if any(word in str(error) for word in ("allow_pickle", "pickled", "Python objects")):
        return "Python objects, which are not read because they can run any code; save numbers or texts of one length"
    if isinstance(error, UnicodeDecodeError):
        return "not a text in UTF-8; save it as one"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:120]


def arrays_of(path: Path, root: Path) -> list[Found]:
    """Read the arrays of a file. Raises DataError."""
    name = path.name if root.is_file() else str(path.relative_to(root))
    about = meaning(name.split(".")[0], PARTS), meaning(name.split(".")[0], KINDS)
    try:
        with opened(path) as file:
            match type_of(path):
                case "npz":
                    with np.load(file, allow_pickle=False) as npz:
                        return [member(npz, key, name, *about) for key in npz.files]
                case "npy":
                    plain = isinstance(file, io.BufferedReader)
                    where = (path, "r") if plain else (io.BytesIO(file.read()), None)
                    return [Found(name, *about, np.load(*where, allow_pickle=False))]
                case "idx":
                    return [Found(name, *about, idx_array(file.read()))]
                case _:
                    labels, column, images = csv_arrays(file.read())
                    both = [Found(name, about[0], "images", images)]
                    return (
                        both
                        if labels is None
                        else [*both, Found(f"{name}: column {column}", about[0], "labels", labels)]
                    )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # NumPy and zipfile raise many kinds of errors
        raise DataError(f"{path}: {why(error)}") from None


def member(npz: Any, key: str, file: str, part: str, kind: str) -> Found:
    """One array of an npz. Its own name takes precedence over the file's.

    An array that needs unpickling is replaced by the reason why it is not read, which `chosen` reports.
    """
    try:
        array = npz[key]
    except ValueError as error:
        array = np.array(why(error), object)
    kind = meaning(key, KINDS) or (kind if len(npz.files) == 1 else "")
    return Found(f"{file}: {key}", meaning(key, PARTS) or part, kind, array)


def idx_array(data: bytes) -> np.ndarray:
    """Decode an IDX file: two zeros, type, rank, big-endian sizes, then the elements. Raises DataError."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES or len(data) < (start := 4 + 4 * data[3]):
        raise DataError("not an IDX file, or not a whole one")
    shape, kind = struct.unpack_from(f">{data[3]}I", data, offset=4), np.dtype(IDX_TYPES[data[2]])
    if len(data) - start != (size := math.prod(shape) * kind.itemsize):
        raise DataError(f"{len(data) - start:,} bytes of elements, but its first bytes announce {size:,}")
    return np.frombuffer(data, kind, offset=start).reshape(shape)


# --- CSV --------------------------------------------------------------------------------------------------------------
class Columns(NamedTuple):
    """The layout of a CSV: which columns hold labels and pixels, and how many `header` lines precede the rows."""

    delimiter: str | None  # None: any white space
    header: int
    width: int
    label: int | None
    pixels: list[int]


def csv_columns(start: str) -> Columns:
    """Find the layout of a CSV from its first two lines. Raises DataError if its columns make no image."""
    lines = [line for line in start.splitlines()[:2] if line.strip()]
    if not lines:
        raise DataError("an empty file")
    delimiter = next((mark for mark in ",;\t" if mark in lines[0]), None)
    first, second = (fields(line, delimiter) for line in (lines[0], lines[-1]))
    texts = [column for column, field in enumerate(first) if not is_number(field)]
    by_name = [column for column in texts if words(first[column]) and meaning(first[column], KINDS) == "labels"]
    numbers_below = any(is_number(second[column]) for column in texts if column < len(second))
    counted = [field.rpartition(".")[2] for field in first]  # from 0, 1, 2, or 0, 0.1, 0.2 if pandas made names unique
    is_count = any(counted == [*map(str, range(start, start + len(first)))] for start in (0, 1))
    header = int(len(texts) > 1 or bool(by_name) or numbers_below or (is_count and len(first) > LONG_ROW))
    drop = [column for column in texts if first[column].lower() in ROW_NUMBERS] if header else []
    rest = [column for column in range(len(first)) if column not in drop]
    label = by_name[0] if header and by_name else texts[0] if not header and texts else None
    if label is None and not side_of(len(rest)) and side_of(len(rest) - 1):
        label = rest[0]
    pixels = [column for column in rest if column != label]
    if not side_of(len(pixels)):
        raise DataError(f"{len(pixels):,} columns of pixels make no square image, grey or of three colours")
    return Columns(delimiter, header, len(first), label, pixels)


def fields(line: str, delimiter: str | None) -> list[str]:
    """Split a line into its fields."""
    return (
        line.split()
        if delimiter is None
        else [field.strip() for field in next(csv.reader([line], delimiter=delimiter))]
    )


def may_have_images(path: Path) -> bool:
    """Whether a file may hold images; of a CSV only the start is read."""
    if type_of(path) != "csv":
        return True
    with opened(path) as file:
        start = file.read(2**20).decode("utf-8-sig", "replace")
    try:
        return bool(csv_columns(start))
    except DataError:
        return False


def csv_arrays(data: bytes) -> tuple[np.ndarray | None, int, np.ndarray]:
    """Read a CSV with a row for each image: labels (N,) or None, their column (from 1), and images (N, D).

    Raises DataError.
    """
    text = data.decode("utf-8-sig")
    columns = csv_columns(text)
    how = {"delimiter": columns.delimiter, "skiprows": columns.header, "quotechar": '"', "comments": None}
    for number, line in enumerate(text.splitlines(), 1):  # np.loadtxt would ignore extra columns silently
        marks = line.count(columns.delimiter or ",")
        if number > columns.header and line and columns.delimiter and '"' not in line and marks + 1 != columns.width:
            raise DataError(f"line {number} has {marks + 1:,} columns, where {columns.width:,} are needed")
    images = np.loadtxt(io.StringIO(text), np.float32, usecols=columns.pixels, ndmin=2, **how)
    if columns.label is None:
        return None, 0, images
    labels = np.loadtxt(io.StringIO(text), str, usecols=columns.label, ndmin=1, **how)
    numbers = all(map(is_number, labels))
    return labels.astype(float) if numbers else labels, columns.label + 1, images


def is_number(text: str) -> bool:
    """Whether a field of a CSV is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- the role of each array -------------------------------------------------------------------------------------------
def chosen(found: list[Found], path: Path) -> tuple[dict[str, Found], dict[str, Found], np.ndarray | None, list[str]]:
    """The images by part ("train", maybe "test"), the labels by part, the names of labels, and what was left out.

    Raises DataError if it is not clear which arrays are the images.
    """
    left_out = [f"{each.where}: {each.array}" for each in found if each.array.dtype == object]
    usable = [each for each in found if each.array.dtype != object]
    names = next((each.array for each in usable if each.kind == "names"), None)
    images, labels = defaultdict(list), defaultdict(list)
    for each in (each for each in usable if each.kind != "names"):
        is_list = each.array.ndim < 2 or math.prod(each.array.shape[1:]) == 1
        kind = each.kind or ("labels" if is_list else "images")
        if kind == "labels" and not each.kind and ": arr_" not in each.where:  # a list with an unknown name
            left_out.append(f"{each.where}: of unknown use")
        else:
            (labels if kind == "labels" else images)[each.part or "train"].append(each)
    parts = {}
    for part, candidates in images.items():
        named = [each for each in candidates if each.kind] or candidates
        most = max(each.array.ndim for each in named)  # if images are there both flat and in 2D, take 2D
        named = [each for each in named if each.array.ndim == most]
        if len(named) > 1:
            which = ", ".join(each.where for each in named)
            way_out = "set DATA_DIR to one file, or name them x_train, x_test"
            raise DataError(f"{path}: several arrays may be the images, {which}; {way_out}")
        parts[part] = named[0]
        left_out += [f"{each.where}: of unknown use" for each in candidates if each is not named[0]]
    if "train" not in parts and parts:  # there are only test images, so use them to train
        part = "test" if "test" in parts else "val"
        parts["train"], labels["train"] = parts.pop(part), labels.pop(part, [])
    if not parts:
        there = "; ".join(left_out) or ", ".join(f"{each.where} {each.array.shape}" for each in found) or "nothing"
        raise DataError(f"{path}: no array of images; there is {there}")
    if "test" in parts and "val" in parts:
        left_out.append(f"{parts.pop('val').where}: validation images, because there are test images")
        labels.pop("val", None)
    if "val" in parts:
        parts["test"], labels["test"] = parts.pop("val"), labels.pop("val", [])
    if "test" in parts and labels.get("train") and not labels.get("test"):
        left_out.append(f"{parts.pop('test').where}: images without labels, while the others have some")
    taken = {part: labels[part][0] for part in ("train", "test") if part in parts and labels.get(part)}
    left_out += [
        f"{each.where}: of unknown use" for part in labels for each in labels[part] if each is not taken.get(part)
    ]
    for part, each in taken.items():
        if len(each.array) != len(parts[part].array):
            counts = f"{len(each.array):,} labels of {len(parts[part].array):,} images"
            raise DataError(f"{each.where} has {counts} in {parts[part].where}; one each is needed")
    return {part: parts[part] for part in ("train", "test") if part in parts}, taken, names, left_out


# --- images -----------------------------------------------------------------------------------------------------------
def side_of(columns: int) -> int:
    """The side of the square image, grey or of three colours, that has this many numbers; 0 if there is none."""
    for channels in (1, 3):
        side = math.isqrt(columns // channels)
        if side >= SMALLEST_SIDE and side * side * channels == columns:
            return side
    return 0


def as_uint8(parts: dict[str, Found], swapped: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The images of each part, uint8 (N, H, W, 1 or 3), and in words what their pixels, sizes and range were.

    All parts are converted in the same way. With `swapped`, rows and columns are swapped back, because EMNIST's files
    have them swapped. Raises DataError.
    """
    shaped, guess = {}, ""
    for part, found in parts.items():
        try:
            shaped[part], guess = as_images(found.array)
        except DataError as error:
            raise DataError(f"{found.where}: {error}") from None
    shapes = {part: images.shape[1:] for part, images in shaped.items()}
    if len(set(shapes.values())) > 1:
        both = " and ".join(f"{parts[part].where} {shape}" for part, shape in shapes.items())
        raise DataError(f"images of different shapes: {both}; all must have the same")
    low, high, used = range_of(parts, shaped)
    images = {part: scaled(each, low, high) for part, each in shaped.items()}
    height, width, channels = next(iter(shapes.values()))
    pixels = "grey" if channels == 1 else "colour"
    if channels == 4:
        images = {part: on_white(each) for part, each in images.items()}
        pixels += "; what is transparent turns white"
    if swapped:
        images, height, width = {part: each.transpose(0, 2, 1, 3) for part, each in images.items()}, width, height
        pixels += "; rows and columns are swapped, because EMNIST's files have them swapped"
    fit = "used as they are, without IMAGE_SIZE and IMAGE_CROP"
    return images, {"pixels": pixels, "sizes": f"{width} x {height}{guess}", "fit": fit, "range": used}


def as_images(array: np.ndarray) -> tuple[np.ndarray, str]:
    """Convert an array of any layout to (N, H, W, 1, 3 or 4); report in words what was guessed. Raises DataError."""
    shape = array.shape
    if array.dtype.kind not in "buif":
        raise DataError(f"elements of type {array.dtype}; numbers are needed")
    if not array.size:
        raise DataError(f"no images, its shape is {shape}")
    if array.ndim == 3 and 1 in shape[1:]:
        array = array.reshape(len(array), -1)
    if array.ndim == 2 and (side := side_of(columns := array.shape[1])):
        guess = f", guessed from rows of {columns:,}"
        if columns == side * side:
            return array.reshape(-1, side, side, 1), guess
        planes = array.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
        mixed = array.reshape(-1, side, side, 3)
        # Neighbouring pixels of a picture are similar. In the wrong order, the pixels side by side are no neighbours.
        rough = [np.abs(np.diff(each[:100].astype(np.float32), axis=2)).mean() for each in (planes, mixed)]
        if rough[0] <= rough[1]:
            return planes, f"{guess}: a plane for each colour"
        return mixed, f"{guess}: the colours of a pixel together"
    if array.ndim == 3 and min(shape[1:]) >= SMALLEST_SIDE:
        return array[..., np.newaxis], ""
    if array.ndim == 4 and shape[3] in (1, 3, 4) and min(shape[1:3]) >= SMALLEST_SIDE:
        return array, ""
    if array.ndim == 4 and shape[1] in (1, 3, 4) and min(shape[2:]) >= SMALLEST_SIDE:
        return array.transpose(0, 2, 3, 1), ", guessed: channels come first"
    raise DataError(
        f"the shape {shape} is not allowed; (N, H, W), (N, H, W, 1, 3 or 4), (N, 1, 3 or 4, H, W) or (N, H x W) is"
    )


def range_of(parts: dict[str, Found], shaped: dict[str, np.ndarray]) -> tuple[float, float, str]:
    """The values that become black and white, and the range of values in words. Raises DataError."""
    ends = []
    for part, images in shaped.items():
        for start in range(0, len(images), AT_A_TIME):
            batch = images[start : start + AT_A_TIME]
            if batch.dtype.kind == "f" and not (finite := np.isfinite(batch)).all():
                first = start + int(np.flatnonzero(~finite.all(axis=(1, 2, 3)))[0])
                raise DataError(f"{parts[part].where}: image {first} has a pixel that is no finite number")
            ends += [float(batch.min()), float(batch.max())]
    low, high = min(ends), max(ends)
    values, kind = f"{low:g} to {high:g}", next(iter(shaped.values())).dtype
    if low >= -SLACK and high <= 1 + SLACK:
        return 0, 1, f"{values}, so 0 to 1 are scaled to 0 to 255"
    if low >= -1 - SLACK and high <= 1 + SLACK:
        return -1, 1, f"{values}, so -1 to 1 are scaled to 0 to 255"
    if low >= -SLACK and (kind == np.uint8 or 127 < high <= 255 + SLACK):
        return 0, 255, f"{values} of 0 to 255"
    if low >= -SLACK and high < 2**16:
        return min(low, 0) if high < 256 else low, high, f"{values} ({kind}), scaled to 0 to 255"
    allowed = "0 to 1, -1 to 1, 0 to 255 and 0 to 65,535"
    raise DataError(f"{next(iter(parts.values())).where}: pixels from {values} are not allowed; {allowed} are")


def scaled(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """The images as uint8, with `low` as 0 and `high` as 255. Images that already are so are not copied."""
    if images.dtype == np.uint8 and (low, high) == (0, 255):
        return images
    out = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), AT_A_TIME):
        batch = images[start : start + AT_A_TIME].astype(np.float32)
        out[start : start + AT_A_TIME] = np.rint(((batch - low) * (255 / (high - low or 1))).clip(0, 255))
    return out


def on_white(images: np.ndarray) -> np.ndarray:
    """Put images (N, H, W, 4) of red, green, blue and opacity on white: (N, H, W, 3)."""
    colour, opacity = images[..., :3].astype(np.float32), images[..., 3:].astype(np.float32) / 255
    return np.rint(colour * opacity + 255 * (1 - opacity)).astype(np.uint8)


# --- labels -----------------------------------------------------------------------------------------------------------
def as_labels(
    found: dict[str, Found], names: np.ndarray | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[str]]:
    """The labels of each part as int32 (N,), their names if there are any, and what was left out."""
    columns = {part: one_column(each.array) for part, each in found.items()}
    if bad := [each.where for part, each in found.items() if columns[part] is None]:
        return {}, (), [f"{where}: not one label an image, as a whole number or a text" for where in bad]
    if not columns:
        return {}, (), []
    known, numbers = np.unique(np.concatenate([*columns.values()]), return_inverse=True)
    if known.dtype.kind in "iu" and known[0] >= 0 and known[-1] <= LARGEST_LABEL:
        texts = () if names is None or len(names) <= known[-1] else tuple(map(str, names))
        return {part: column.astype(np.int32) for part, column in columns.items()}, texts, []
    ends = np.cumsum([len(column) for column in columns.values()])[:-1]
    of_parts = np.split(numbers.astype(np.int32), ends)
    return dict(zip(columns, of_parts, strict=True)), tuple(map(str, known)), []


def one_column(labels: np.ndarray) -> np.ndarray | None:
    """Labels (N,), (N, 1) or one-hot (N, K) as integers or texts (N,); None if they are anything else."""
    if labels.ndim > 1 and math.prod(labels.shape[1:]) == 1:
        labels = labels.reshape(-1)
    if labels.ndim == 2 and labels.dtype.kind in "buif":
        one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()
        labels = labels.argmax(axis=1) if one_hot else labels
    if labels.ndim != 1 or labels.dtype.kind not in "buifSU":
        return None
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "U":
        return np.char.strip(labels)
    whole = np.isfinite(labels).all() and (labels == np.rint(labels)).all() and np.abs(labels).max(initial=0) < 2**53
    return labels.astype(np.int64) if whole else None
