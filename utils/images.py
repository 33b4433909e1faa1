"""Image files: their type, their pixels in the size for training, and what the images of a folder have in common."""

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from utils.console import shown
from utils.dataset import READERS, BadImage, DataError, LazyImages, hashed

NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}  # Pillow starts other programs for these, or cannot read them
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L")
BAR = {"ncols": 79, "ascii": " #", "disable": None, "leave": False}
ENDS = 65_536  # bytes at the start and at the end of a file that determine its id
SURVEYED = 2_000  # images that are opened to find out what a folder has
DEEP = ("I", "I;16", "I;16B", "I;16L")  # modes of grey pixels with more than 8 bits
WHITES = (255, 1_023, 4_095, 16_383)  # white for programs, cameras and scanners that write 8 to 14 bits as 16
KINDS = {  # files that users take for images but Pillow does not read, and how they start
    "a HEIC picture, to be converted to JPEG or PNG": (
        b"heic",
        b"heix",
        b"heif",
        b"mif1",
        b"msf1",
    ),
    "a movie": (b"mp41", b"mp42", b"isom", b"qt  ", b"M4V "),
    "a Git LFS pointer; git lfs pull fetches the picture": (b"version https://git-lfs",),
    "a zip archive; unpack it": (b"PK\x03\x04",),
    "a PDF": (b"%PDF",),
    "an EPS picture, to be converted to PNG": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "NumPy's data; DATASET = arrays reads it": (b"\x93NUMPY",),
}


class Prepared(NamedTuple):
    """How images are prepared for training."""

    shape: tuple[int, int, int]  # (H, W, C), grey if C is 1
    crop: int = 0  # IMAGE_CROP
    fit: str = "crop"  # IMAGE_FIT
    white: int = 65_535  # the value of a white 16-bit pixel


# --- one image --------------------------------------------------------------------------------------------------------
def read_image(path: str | bytes | Path, how: Prepared) -> np.ndarray:
    """Read an image file in the shape for training, uint8 (H, W, C).

    The type of a file is detected from its content, not its extension. Raises BadImage.
    """
    with bad_images(shown(path)), open(path, "rb") as file:
        return decode(file, how)


@contextlib.contextmanager
def bad_images(name: str) -> Iterator[None]:
    """Within the block, turn any error into BadImage, because decoders raise many kinds of errors."""
    try:
        yield
    except Exception as error:
        raise BadImage(f"{name}: {why_bad(error)}") from None


def decode(file: BinaryIO, how: Prepared) -> np.ndarray:
    """read_image for an open file; raises any error of Pillow."""
    image = open_image(file)
    (height, width, channels), mode = how.shape, "L" if how.shape[2] == 1 else "RGB"
    # Published results use these pixels: full decoding, then torchvision's CenterCrop and Resize. Resize is bilinear
    # and, for Pillow's images, averages pixels when it shrinks. Image.draft at half the size would be a fifth faster.
    ImageOps.exif_transpose(image, in_place=True)
    if how.fit == "crop" or how.crop:
        side = min(how.crop or min(image.size), *image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    image = as_8_bit(image, mode, how.white)
    if how.fit == "pad":
        image = ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, color=0)
    elif how.fit == "keep":
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    else:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels)


@cache
def formats() -> tuple[str, ...]:
    """The formats that are read: all that Pillow reads without other programs."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - NOT_READ))


@cache
def suffixes() -> frozenset[bytes]:
    """The file extensions of these formats, in lower case."""
    Image.init()
    return frozenset(ending.encode() for ending, kind in Image.EXTENSION.items() if kind in formats())


def open_image(file: BinaryIO) -> Image.Image:
    """Image.open for the formats that are read. For any other file, the error says what it is instead."""
    try:
        return Image.open(file, formats=formats())
    except UnidentifiedImageError:
        file.seek(0)
        raise DataError(kind_of(file.read(512))) from None


def kind_of(start: bytes) -> str:
    """Describe a file with this start that is not a readable image."""
    if not start:
        return "an empty file"
    if is_html(start):
        return "an HTML page"
    brands = start[8:12] if start[4:8] == b"ftyp" else start
    return next((kind for kind, starts in KINDS.items() if brands.startswith(starts)), "not an image")


def as_8_bit(image: Image.Image, mode: str, white: int = 65_535) -> Image.Image:
    """Convert an image of any mode to "L" or "RGB", 8 bits a channel; transparent parts become white."""
    if image.mode in DEEP:
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65_535:
            raise DataError("pixels of 32 bits, whose value for white is unknown")
        pixels = pixels >> 8 if white == 65_535 else np.minimum(np.rint(pixels * (255 / white)), 255)
        image = Image.fromarray(pixels.astype(np.uint8))
    if image.mode == "F":
        raise DataError("pixels of 32 bits, whose value for white is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def why_bad(error: Exception) -> str:
    """The reason why an image could not be read, in a few words."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:120]


def is_html(start: bytes) -> bool:
    """Whether a file with this start is a web page, such as a server may send instead of the requested file."""
    return start.lstrip().lower().startswith((b"<!doctype", b"<html"))


def lazy_files(folder: Path, names: np.ndarray, how: Prepared, skip: bool) -> LazyImages:
    """LazyImages of the files in a folder with these names, bytes (N,); 200,000 names take only a few megabytes."""
    within = os.fsencode(folder)

    def read(number: int) -> np.ndarray:
        return read_image(os.path.join(within, names[number]), how)

    return LazyImages(read, np.arange(len(names)), how.shape, skip)


# --- many images ------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=1)  # because a folder is looked at before TensorFlow loads, and again when the run begins
def look_at_files(paths: tuple[bytes, ...], changed: tuple[int, ...]) -> tuple[list[str], np.ndarray]:
    """For each file, why it is not an image ("" if it is one), and its id, uint64 (N,).

    The id is a hash of the file's size, start and end. `changed` are the times of the last change, in nanoseconds. A
    file with the extension of an image counts as an image whatever it contains, so that a broken one is not overlooked.
    """

    def look(path: bytes) -> tuple[str, np.uint64]:
        try:
            size = os.stat(path).st_size
            with open(path, "rb") as file:
                ends = file.read(ENDS)
                if size > ENDS:
                    file.seek(max(ENDS, size - ENDS))
                    ends += file.read(ENDS)
        except OSError as error:
            return why_bad(error), np.uint64(0)
        kind = "" if os.path.splitext(path)[1].lower() in suffixes() or opens(path) else kind_of(ends[:512])
        return kind, hashed([ends + str(size).encode()])[0]

    with ThreadPoolExecutor(READERS) as pool:
        bar = {**BAR, "desc": "looking", "unit": " files", "delay": 2, "total": len(paths)}
        found = list(tqdm(pool.map(look, paths, chunksize=64), **bar))
    return [kind for kind, _ in found], np.array([known for _, known in found], np.uint64)


def opens(path: bytes) -> bool:
    """Whether Pillow recognises a file as an image, judged by its start."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats()):
            return True
    except Exception:  # decoders raise many kinds of errors for bytes that are not an image
        return False


class Survey(NamedTuple):
    """Properties of the images that were looked at."""

    grey: int  # how many of `count` are grey
    count: int
    sizes: np.ndarray  # width and height (count, 2), after rotation by EXIF
    names: list[bytes]  # (count,)
    deepest: int  # the largest value of a grey 16-bit pixel; 0 without such images
    brightest: int  # the same for 16-bit colours, but Pillow only gives their upper 8 bits


def survey(folder: Path, names: np.ndarray) -> Survey:
    """Look at all images (N,), or at 2,000 of them if there are more. Images that cannot be opened are left out.

    If one of these has 16-bit grey pixels, look at all images, because pixels above the largest value found would
    become white.
    """
    some = names[np.unique(np.linspace(0, len(names) - 1, min(len(names), SURVEYED)).astype(int))]

    def look(name: bytes) -> tuple[bytes, bool, tuple[int, int], int, int] | None:
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(os.path.join(os.fsencode(folder), name)) as image:
                size = image.size[::-1] if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else image.size
                is_deep = image.mode in DEEP
                raw = "" if is_deep else str([tile[3] for tile in image.tile])  # e.g. RGB;16B, or 65535 of a PPM file
                deepest = int(np.asarray(image).max()) if is_deep else 0
                brightest = int(np.asarray(image.convert("RGB")).max()) if ";16" in raw or "65535" in raw else 0
                return name, is_deep or image.mode in GREY_MODES, size, deepest, brightest
        except Exception:  # reported later, when the image is read
            return None

    with ThreadPoolExecutor(READERS) as pool:
        seen = [each for each in pool.map(look, some) if each]
        if len(some) < len(names) and any(deepest for *_, deepest, _ in seen):
            bar = {**BAR, "desc": "looking", "unit": " images", "delay": 2, "total": len(names)}
            seen = [each for each in tqdm(pool.map(look, names), **bar) if each]
    names, grey, sizes, deepest, brightest = zip(*seen, strict=True) if seen else ((),) * 5
    largest = max(deepest, default=0), max(brightest, default=0)
    return Survey(sum(grey), len(seen), np.array(sizes).reshape(-1, 2), list(names), *largest)


def prepared(found: Survey, size: int, crop: int, fit: str) -> Prepared:
    """How to prepare images: in colour unless all are grey; with IMAGE_FIT = keep, in their median aspect ratio."""
    width = height = size
    if fit == "keep" and found.count:
        aspect = float(np.median(found.sizes[:, 0] / found.sizes[:, 1]))
        other = max(4, round(size * min(aspect, 1 / aspect) / 4) * 4)
        width, height = (size, other) if aspect >= 1 else (other, size)
    white = next((white for white in WHITES if found.deepest <= white), 65_535) if found.deepest else 65_535
    return Prepared((height, width, 1 if found.grey == found.count else 3), crop, fit, white)


def describe(found: Survey, how: Prepared, total: int) -> dict[str, str]:
    """Describe in words what was found and how it is prepared."""
    height, width, channels = how.shape
    looked = f" (of {found.count:,} that were looked at)" if found.count < total else ""
    other = found.grey if channels == 3 else 0
    words = {"pixels": "colour" if channels == 3 else "grey"}
    if other:
        words["pixels"] += f"; {other:,} of {found.count:,} are grey and are converted"
    elif looked:
        words["pixels"] += looked
    smallest, largest = (found.sizes[pick(found.sizes.prod(axis=1))] for pick in (np.argmin, np.argmax))
    one = f"{smallest[0]} x {smallest[1]}"
    words["sizes"] = one if (found.sizes == smallest).all() else f"{one} to {largest[0]} x {largest[1]}"
    kept = np.minimum(1, kept_of(found.sizes, how))
    worst = int(kept.argmin())
    names = {"crop": "the middle square", "pad": "the whole picture on black", "keep": "the middle of the same shape"}
    cut = f"{how.crop} x {how.crop} pixels of the middle" if how.crop else names[how.fit]
    lost = 100 * (1 - kept[worst])
    if lost >= 0.5:
        cut += f", which cuts off {100 * (1 - np.median(kept)):.0f} percent of a picture"
        cut += f", {lost:.0f} of {shown(found.names[worst])}" if (kept < kept.max()).any() else ""
        cut += "" if how.fit != "crop" or how.crop else "; IMAGE_FIT pad or keep lose less"
    words["fit"] = f"{cut}; resized to {width} x {height}"
    if found.deepest:
        words["range"] = f"16-bit pixels; {how.white:,} is white (the largest found is {found.deepest:,})"
    elif 0 < found.brightest < 64:
        words["range"] = f"dark: 16-bit colours, the largest {found.brightest} of 255; write them with 8 bits a colour"
    return words


def kept_of(sizes: np.ndarray, how: Prepared) -> np.ndarray:
    """The fraction of each image, of width and height (N, 2), that remains after preparation."""
    across, up = sizes[:, 0].astype(float), sizes[:, 1].astype(float)
    if how.crop or how.fit == "crop":
        return np.minimum(how.crop or np.inf, np.minimum(across, up)) ** 2 / (across * up)
    if how.fit == "pad":
        return np.ones(len(sizes))
    aspect = how.shape[1] / how.shape[0]
    return np.minimum(across, up * aspect) * np.minimum(up, across / aspect) / (across * up)


def counted(left_out: Sequence[tuple[str, bytes]]) -> list[str]:
    """Count why files were left out, given (why, name), as texts like "3 x not an image (e.g. notes.txt)"."""
    counts, first = Counter(why for why, _ in left_out), dict(reversed(left_out))
    return [f"{count:,} x {why} (e.g. {shown(first[why])})" for why, count in counts.most_common()]
