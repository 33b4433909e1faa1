"""Image files on disk as data sets: CelebA as published, a folder of any images, and TensorFlow Datasets.

Nothing but names and labels is kept in memory; images are read when they are asked for (LazyImages).
"""

import contextlib
import hashlib
import io
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from utils import dataset
from utils.console import Say
from utils.dataset import SHOWN_OF_A_LABEL, BadImage, DataError, Dataset, LazyImages

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # and not, say, EPS, for which Pillow starts Ghostscript
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L")
SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff")
BAR = {"ncols": 79, "ascii": " #", "disable": None, "leave": False}

CELEBA_CROP = 148  # of 178 x 218 pixels; with a bilinear resize to 64 what VAEs on CelebA are mostly trained on
CELEBA_MD5 = {
    "img_align_celeba.zip": "00d2c5bc6d35e252742224ab0c1e8fcb",
    "list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
    "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
}
PARTS = (b"0", b"1", b"2")  # in list_eval_partition.txt
TRAIN, TEST = 0, 2  # 1 is validation
QUOTA = "a download over quota leaves one; fetch it again"

SPLIT_KEY = (20131220,)  # of the images held back as test images, and of the order of the others; any number would do
MOST_TESTED = 10_000
TFDS_MODULES = ("tensorflow_datasets", "array_record")


# --- one image --------------------------------------------------------------------------------------------------------
def read_image(path: str | bytes | Path, size: int, crop: int, channels: int) -> np.ndarray:
    """The middle of an image file, `crop` pixels a side, resized: uint8 (size, size, channels), grey if channels is 1.

    Crop 0, or one that is larger than the image, is the largest square. What kind of file it is, its content tells and
    not its name. Raises BadImage.
    """
    with bad_images(shown(path)), open(path, "rb") as file:
        return decode(file, size, crop, channels)


@contextlib.contextmanager
def bad_images(name: str) -> Iterator[None]:
    """Within the block any error is raised as BadImage, because decoders fail in every way there is."""
    try:
        yield
    except Exception as error:
        raise BadImage(f"{name}: {why_bad(error)}") from None


def decode(file: BinaryIO, size: int, crop: int, channels: int) -> np.ndarray:
    """read_image of an open file; raises whatever Pillow raises."""
    image = open_image(file)
    # The pixels that published figures are of: a whole decoding, though Image.draft at half the size is a fifth faster,
    # then torchvision's CenterCrop and Resize, which is bilinear and, of Pillow's images, averages what it shrinks.
    ImageOps.exif_transpose(image, in_place=True)
    side = min(image.size) if crop == 0 else min(crop, *image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = as_8_bit(image.crop((left, top, left + side, top + side)), "L" if channels == 1 else "RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, channels)


def open_image(file: BinaryIO) -> Image.Image:
    """Image.open for the formats that are read, which says of any other file what it is instead."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(512)
        kind = "an HTML page" if is_html(start) else "not an image" if start else "an empty file"
        raise DataError(kind) from None


def as_8_bit(image: Image.Image, mode: str) -> Image.Image:
    """An image of any mode as "L" or "RGB", 8 bits a channel; what is transparent turns white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError("pixels of 32 bits, of which nothing says what is white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def why_bad(error: Exception) -> str:
    """Say in a few words why an image could not be read."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:120]


def is_html(start: bytes) -> bool:
    """Whether a file that starts like this is a web page, such as a server sends in place of what was asked for."""
    return start.lstrip().lower().startswith((b"<!doctype", b"<html"))


def shown(path: str | bytes | Path) -> str:
    """A path as text that can be printed, whatever bytes are in it."""
    return os.fsencode(path).decode(errors="replace")


def lazy_files(folder: Path, names: np.ndarray, size: int, crop: int, channels: int, skip: bool) -> LazyImages:
    """The image files of a folder by their names, bytes (N,): 200,000 names take a few megabytes so."""
    within = os.fsencode(folder)

    def read(number: int) -> np.ndarray:
        return read_image(os.path.join(within, names[number]), size, crop, channels)

    return LazyImages(read, np.arange(len(names)), (size, size, channels), skip)


# --- CelebA -----------------------------------------------------------------------------------------------------------
def celeba(data_dir: str, size: int, crop: int, skip: bool, say: Say) -> Dataset:
    """CelebA (Liu et al. 2015), aligned and cropped, from DATA_DIR/celeba or DATA_DIR: RGB, its 40 attributes as bool.

    The official splits: 0 trains, 2 tests, and 1, validation, is left alone. All labels are 0. The folder holds
    list_eval_partition.txt, list_attr_celeba.txt, and img_align_celeba/ or img_align_celeba.zip, which is unpacked
    once. Raises DataError.
    """
    folder, partition_list, attribute_list = celeba_places(data_dir)
    names, parts, attributes, values = read_lists(partition_list, attribute_list)
    others = [path.name for path in (partition_list, attribute_list) if not is_published(path)]
    for name in others:  # a set made in CelebA's layout is welcome
        say(f"note       {name} is not CelebA's own (MD5)")
    train, test = np.flatnonzero(parts == TRAIN), np.flatnonzero(parts == TEST)
    check_parts(partition_list, len(train), len(test))
    pictures = celeba_images(folder)
    check_present(pictures, names[np.sort(np.concatenate((train, test)))], partition_list)
    images = lazy_files(pictures, names, size, crop or CELEBA_CROP, 3, skip)
    labels = [np.zeros(len(part), np.uint8) for part in (train, test)]
    verified = "" if others else "lists verified by MD5"
    about = str(folder), verified, attributes, values[train], values[test]
    return Dataset("CelebA", images.rows(train), labels[0], images.rows(test), labels[1], *about)


def celeba_places(data_dir: str) -> tuple[Path, Path, Path]:
    """The folder of CelebA, and its lists of parts and of attributes in it, there or not."""
    folder = Path(os.path.expanduser(data_dir))
    folder = folder / "celeba" if (folder / "celeba").is_dir() else folder
    return folder, folder / "list_eval_partition.txt", folder / "list_attr_celeba.txt"


def check_parts(partition: Path, train: int, test: int) -> None:
    """Raise DataError if CelebA has too few images to train on or to test on."""
    if not train or test < SHOWN_OF_A_LABEL:
        few = f"{train:,} images to train on (0) and {test:,} to test on (2)"
        raise DataError(f"{partition}: {few}; at least 1 and {SHOWN_OF_A_LABEL} are needed")


def celeba_labels(data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels of CelebA's images to train on and to test on, all 0; the lists are not checked line by line yet.

    Raises DataError.
    """
    _, partition, attributes = celeba_places(data_dir)
    check_lists(partition, attributes)
    counts = Counter(partition.read_bytes().split()[1::2])
    if not counts or counts.keys() - set(PARTS):
        read_table(partition, 0, 1, PARTS)  # which raises
    train, test = (counts[PARTS[part]] for part in (TRAIN, TEST))
    check_parts(partition, train, test)
    return np.zeros(train, np.uint8), np.zeros(test, np.uint8)


def celeba_images(folder: Path) -> Path:
    """The folder of the images, unpacked from the zip beside it if need be. Raises DataError."""
    pictures, archive = folder / "img_align_celeba", folder / "img_align_celeba.zip"
    if not pictures.is_dir():
        if not archive.is_file():
            missing = "neither img_align_celeba nor img_align_celeba.zip is there"
            raise DataError(f"{folder}: {missing}; set DATA_DIR to the folder that holds CelebA")
        if not is_published(archive):
            with open(archive, "rb") as file:
                page = is_html(file.read(512))
            size = f"incomplete ({archive.stat().st_size:,} bytes)"
            other = f"not the published file (MD5), but {size} or another; fetch it again"
            raise DataError(f"{archive}: {f'an HTML page and no zip; {QUOTA}' if page else other}")
        unpack(archive, pictures)
    nested = pictures / "img_align_celeba"  # as some repackaged zips have it
    return nested if nested.is_dir() else pictures


def is_published(path: Path) -> bool:
    """Whether one of CelebA's files is the published one."""
    digest, size = hashlib.md5(usedforsecurity=False), path.stat().st_size
    with open(path, "rb") as file, tqdm.wrapattr(file, "read", total=size, desc="checking", **BAR) as watched:
        while block := watched.read(2**20):
            digest.update(block)
    return digest.hexdigest() == CELEBA_MD5[path.name]


def unpack(archive: Path, target: Path) -> None:
    """Unpack the JPEGs of a zip into the folder `target`, which appears whole or not at all. Raises DataError."""
    try:
        with zipfile.ZipFile(archive) as members, TemporaryDirectory(prefix=".", dir=target.parent) as beside:
            whole = Path(beside, target.name)
            whole.mkdir()
            for member in tqdm(members.infolist(), desc="unpacking", unit=" images", **BAR):
                name = member.filename.replace("\\", "/").rpartition("/")[2]  # no folder, so none above this one
                if name.lower().endswith(".jpg") and not name.startswith("."):
                    with members.open(member) as packed, open(whole / name, "xb") as file:
                        shutil.copyfileobj(packed, file)
            if not target.is_dir():  # another run may have been faster
                os.rename(whole, target)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: cannot be unpacked, {why_bad(error)}") from None


def read_lists(partition: Path, path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    """CelebA's lists of parts and (`path`) of attributes: names of N images, bytes, their parts (N,), A attributes, and
    whether each image has them, bool (N, A).

    Raises DataError for a list that is missing, a web page, wrong in a line, or of other images than the other one.
    """
    check_lists(partition, path)
    names, parts = read_table(partition, 0, 1, PARTS)

    with open(path, "rb") as file:
        count, attributes = file.readline().strip(), file.readline().split()
    if not count.isdigit():
        raise DataError(f"{path}, line 1: {count.decode(errors='replace')[:60]!r} is not the number of images")
    listed, values = read_table(path, 2, len(attributes), (b"-1", b"1"))
    if len(listed) != int(count):
        raise DataError(f"{path}, line 1: {int(count):,} images are announced, but {len(listed):,} are listed")
    if len(listed) != len(names):
        raise DataError(f"{path}: {len(listed):,} images, but {partition.name} has {len(names):,}")
    if len(different := np.flatnonzero(listed != names)):
        here, there = (shown(bytes(each[different[0]])) for each in (listed, names))
        raise DataError(f"{path}, line {different[0] + 3}: {here}, where {partition.name} has {there}")
    return names, parts[:, 0], tuple(name.decode(errors="replace") for name in attributes), values.astype(bool)


def check_lists(*paths: Path) -> None:
    """Raise DataError for a list that is missing or a web page."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                start = file.read(512)
        except OSError as error:
            raise DataError(f"{path}: {why_bad(error)}; set DATA_DIR to the folder that holds CelebA") from None
        if is_html(start):
            raise DataError(f"{path}: an HTML page and no list; {QUOTA}")


def read_table(path: Path, header: int, columns: int, allowed: tuple[bytes, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The lines of a list below its `header` lines, each a name and `columns` values.

    Returns the names, bytes (N,), and for each value which of the allowed ones it is, uint8 (N, columns). Raises
    DataError, which names the first line that is wrong.
    """
    names, rows, codes = [], [], {value: code for code, value in enumerate(allowed)}
    with open(path, "rb") as file:
        for line, text in enumerate(islice(file, header, None), header + 1):
            name, *values = text.split() or [b""]
            if len(values) != columns or not codes.keys() >= set(values):
                expected = f"a name and {columns} of {', '.join(value.decode() for value in allowed)}"
                wrong = text.decode(errors="replace").strip()[:60]
                raise DataError(f"{path}, line {line}: {wrong!r} is not {expected}")
            names.append(name)
            rows.append(bytes(map(codes.get, values)))
    if not names:
        raise DataError(f"{path}: it lists no images")
    return np.array(names), np.frombuffer(b"".join(rows), np.uint8).reshape(-1, columns)


def check_present(folder: Path, names: np.ndarray, listed_in: Path) -> None:
    """Raise DataError unless the folder has files of all these names."""
    missing = names[~np.isin(names, np.array(os.listdir(os.fsencode(folder)), bytes))]
    if len(missing):
        which = f"{len(missing):,} of the images that {listed_in.name} lists are missing"
        raise DataError(f"{folder}: {which}; the first is {shown(bytes(missing[0]))}")


# --- a folder of images -----------------------------------------------------------------------------------------------
def folder(data_dir: str, size: int, crop: int, skip: bool, say: Say) -> Dataset:
    """Every image file below a folder, grey if the first one is, else RGB; its first-level sub-folders are the labels.

    Labels are numbered in the order of their names; images that lie in no sub-folder have one of their own, the first.
    Two sub-folders `train` and `test` are the split, and the labels are below them. Else a tenth of each label, drawn
    by a fixed key and at most 10,000 together, are the test images. The training images are in an order drawn by that
    key, so that the last ones, which HELD_OUT takes, are of all labels. Hidden files and folders are left out, and
    links to folders are not followed. Raises DataError.
    """
    root, names, labels, train, test = list_folder(data_dir)
    channels = 1 if is_grey(root, names, skip) else 3
    images = lazy_files(root, names, size, crop, channels, skip)
    title = root.resolve().name
    return Dataset(title, images.rows(train), labels[train], images.rows(test), labels[test], source=str(root))


def list_folder(data_dir: str) -> tuple[Path, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What `folder` finds without opening an image: the folder, the names from there on of N images, bytes (N,), their
    labels (N,), and the positions among these of the images to train on and to test on. Raises DataError.
    """
    root = Path(os.path.expanduser(data_dir))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set DATA_DIR to the folder of images")
    tops = [root / "train", root / "test"]
    is_split = all(map(Path.is_dir, tops))
    tops = tops if is_split else [root]
    groups = [find_images(root, top) for top in tops]
    for top, found in zip(tops, groups, strict=True):
        if not found:
            raise DataError(f"{top}: no images ({', '.join(map(shown, SUFFIXES))}); set DATA_DIR to their folder")
    known, labels = np.unique([label for label, _ in chain(*groups)], return_inverse=True)
    names, labels = np.array([name for _, name in chain(*groups)]), labels.astype(np.int32)
    if is_split:
        train = np.random.default_rng(SPLIT_KEY).permutation(len(groups[0]))
        test = np.arange(len(groups[0]), len(names))
        check_counts(labels[test], SHOWN_OF_A_LABEL, lambda label: root / "test" / shown(known[label]))
    else:
        check_counts(labels, SHOWN_OF_A_LABEL + 1, lambda label: root / shown(known[label]))
        train, test = draw_split(labels)
    return root, names, labels, train, test


def folder_labels(data_dir: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The title of a folder of images, and the labels of those to train on and to test on. Raises DataError."""
    root, _, labels, train, test = list_folder(data_dir)
    return root.resolve().name, labels[train], labels[test]


def find_images(root: Path, top: Path) -> list[tuple[bytes, bytes]]:
    """The image files below a folder `top`: the sub-folder that each is somewhere in, b"" if in none, and its name from
    `root` on. They are sorted by both.
    """

    def refuse(error: OSError):  # os.walk would pass over a folder that it cannot list
        raise DataError(f"{shown(error.filename)}: {why_bad(error)}") from None

    start, top = os.fsencode(root), os.fsencode(top)
    found = []
    for folder, folders, files in os.walk(top, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        label = b"" if folder == top else os.path.relpath(folder, top).split(os.sep.encode())[0]
        within = b"" if folder == start else os.path.join(os.path.relpath(folder, start), b"")
        images = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(b".")]
        found += [(label, within + name) for name in images]
    return sorted(found)


def check_counts(labels: np.ndarray, least: int, place: Callable[[int], object]) -> None:
    """Raise DataError for the first label that has fewer images than `least`; place(label) is what it is called."""
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if count < least:
            shown_ones = f"{SHOWN_OF_A_LABEL} of each label are test images that are shown"
            raise DataError(f"{place(label)}: too few images, {count}; at least {least} are needed, as {shown_ones}")


def draw_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of training and test images, drawn by SPLIT_KEY: of each label a tenth is tested on, or 3 if more.

    Less than a tenth where that would be more than 10,000 images. Training positions are shuffled, test ones sorted.
    """
    rng = np.random.default_rng(SPLIT_KEY)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by label, shuffled within each
    share = min(0.1, MOST_TESTED / len(labels))
    _, counts = np.unique(labels, return_counts=True)
    tested = np.maximum(SHOWN_OF_A_LABEL, (counts * share).astype(int))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, ... within each label
    is_test = rank < np.repeat(tested, counts)
    return rng.permutation(order[~is_test]), np.sort(order[is_test])


def is_grey(root: Path, names: np.ndarray, skip: bool) -> bool:
    """Whether the first image is grey; with `skip`, the first that can be opened. Raises BadImage and DataError."""

    def read(number: int) -> bool:
        path = os.path.join(os.fsencode(root), names[number])
        with bad_images(shown(path)), open(path, "rb") as file:
            return open_image(file).mode in GREY_MODES

    return LazyImages(read, np.arange(len(names)), (), skip).read_at(0)  # which passes bad ones over


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------
def tfds(name: str, data_dir: str, size: int, crop: int, skip: bool, say: Say) -> Dataset:
    """A set of TensorFlow Datasets, as in "cifar10", downloaded into `data_dir` unless it is there.

    Tested on is its split `test`, else `validation`, else a tenth of `train`. An image's id follows from the set, the
    split and its number there. Raises DataError.
    """
    title, skipped = f"tfds:{name}", set()
    sources, features = open_tfds(name, title, os.path.expanduser(data_dir))
    if "train" not in sources:
        raise DataError(f"{title}: it has no split called train, but {', '.join(sources)}")
    if "image" not in features or len(features["image"].shape) != 3 or features["image"].np_dtype != np.uint8:
        raise DataError(f"{title}: it has no feature called image that is an image of 8 bits; choose another set")
    channels = 1 if features["image"].shape[-1] == 1 else 3

    def lazy_split(split: str) -> LazyImages:
        def read(number: int) -> np.ndarray:
            with bad_images(f"{title}, image {number} of {split}"):
                return decode(io.BytesIO(sources[split][number]["image"]), size, crop, channels)

        return LazyImages(read, np.arange(len(sources[split])), (size, size, channels), skip, skipped)

    names = getattr(features["label"], "names", None) if "label" in features else None
    about = {"source": data_dir, "label_names": tuple(map(str, names or ()))}
    details = {"pixels": "grey" if channels == 1 else "colour"}
    images, labels = lazy_split("train"), read_labels(sources["train"], features)
    ids = numbered_ids(f"{title} train", len(labels))
    for split in ("test", "validation"):
        if split in sources:
            tested, details["split"] = read_labels(sources[split], features), f"its splits train and {split}"
            about |= {"train_ids": ids, "test_ids": numbered_ids(f"{title} {split}", len(tested)), "details": details}
            return Dataset(title, images, labels, lazy_split(split), tested, **about)
    train, test = dataset.draw_split(labels, ids)
    about |= {"train_ids": ids[train], "test_ids": ids[test]}
    about["details"] = details | {"split": "a tenth of its split train, drawn by a fixed key"}
    return Dataset(title, images.rows(train), labels[train], images.rows(test), labels[test], **about)


def numbered_ids(name: str, count: int) -> np.ndarray:
    """The ids of images that are known by their number in a split of this name, uint64 (N,)."""
    texts = (f"{name} {number}".encode() for number in range(count))
    return np.array([int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) for text in texts], np.uint64)


def open_tfds(name: str, title: str, folder: str) -> tuple[dict[str, Sequence], Mapping]:
    """The splits of a set, whose images are not decoded, by their names, and its features. Raises DataError."""
    try:
        import tensorflow_datasets as library  # here, as it is optional

        builder = library.builder(name, data_dir=folder, file_format="array_record")  # other formats know no order
        builder.download_and_prepare()
        features = builder.info.features
        decoders = {"image": library.decode.SkipDecoding()} if "image" in features else None
        return {split: builder.as_data_source(split, decoders=decoders) for split in builder.info.splits}, features
    except ImportError as error:
        missing = (error.name or "tensorflow_datasets").partition(".")[0]
        packages = "tensorflow-datasets array-record" if missing in TFDS_MODULES else missing
        raise DataError(f"{title} needs {missing}: pip install {packages}") from None
    except Exception as error:  # of its own, of the network, of the disk
        said = str(error).partition('builder_kwargs "')[2].partition('}": ')[2]  # what follows its list of arguments
        why = why_bad(DataError(said) if said else error)
        if why.startswith("File format is already set"):
            why = f"{folder} has it in a format without random access; set DATA_DIR to another folder"
        raise DataError(f"{title}: {why}") from None


def read_labels(source: Sequence, features: Mapping) -> np.ndarray:
    """The labels of a split, int32 (N,), all 0 where it has none: a pass over it, 60 microseconds an image."""
    if "label" not in features or features["label"].shape or not np.issubdtype(features["label"].np_dtype, np.integer):
        return np.zeros(len(source), np.int32)
    numbers = tqdm(range(len(source)), desc="labels", unit=" images", **BAR)
    return np.fromiter((source[number]["label"] for number in numbers), np.int32, len(source))
