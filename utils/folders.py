"""A folder of images as a data set: which files are images, their labels, and which of them are test images.

Only names, labels and ids are kept in memory. Images are read when they are needed (LazyImages).
"""

import os
import re
from collections.abc import Sequence
from itertools import chain, islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import images
from utils.console import Say, shown
from utils.dataset import SPLIT_KEY, DataError, Dataset, Known, draw_split
from utils.settings import Settings

PARTS = {  # the part of the split that a folder's name, in lower case, stands for
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
NOT_SEEN = (b".", b"__macosx", b"thumbs.db", b"desktop.ini")  # starts of the names of hidden and system files


class Found(NamedTuple):
    """The contents of a folder, before any image is decoded: names, labels, ids and parts of N images."""

    root: Path
    names: np.ndarray  # bytes (N,), relative to `root`
    labels: np.ndarray  # int32 (N,)
    label_names: tuple[str, ...]
    ids: np.ndarray  # uint64 (N,)
    train: np.ndarray  # positions among the N
    test: np.ndarray
    split: str  # how the split was found
    left_out: list[str]


def folder(s: Settings, say: Say, known: Known | None = None) -> Dataset:
    """Every image below the folder DATA_DIR, with the names of sub-folders as labels.

    Folders called train, val and test, or similar, are the split. The test images are those in test, or else in val.
    Without such folders, a tenth of all images is drawn by a fixed key. This key also shuffles the training images. So
    the last ones, which HELD_OUT takes, have all labels. `known` are the images that a run has had; then only these are
    used, even if the folder has others by now. Raises DataError.
    """
    found = look(s.data_dir)
    details = {"split": found.split, "left_out": found.left_out}
    if known is None:
        seen = images.survey(found.root, found.names)
        how = images.prepared(seen, s.image_size, s.image_crop, s.image_fit)
        details |= images.describe(seen, how, len(found.names)) if seen.count else {}
    else:
        how = images.Prepared(known.image_shape, s.image_crop, s.image_fit, known.white)
        found, details["split"] = only_known(found, known), "the images that the run has had since it began"
    details["white"] = how.white
    lazy = images.lazy_files(found.root, found.names, how, s.skip_bad_images)
    train, test = found.train, found.test
    return Dataset(
        shown(found.root.resolve().name), lazy.rows(train), found.labels[train], lazy.rows(test), found.labels[test],
        source=shown(found.root), label_names=found.label_names, train_ids=found.ids[train], test_ids=found.ids[test],
        train_names=found.names[train], test_names=found.names[test], details=details,
    )  # fmt: skip


def only_known(found: Found, known: Known) -> Found:
    """Only the images that a run has had, in its order. utils/known.py has checked that they all exist."""
    by_number = np.argsort(np.concatenate((known.train_numbers, known.test_numbers)))
    names = np.concatenate((known.train_names, known.test_names))[by_number]
    labels = np.concatenate((known.train_labels, known.test_labels))[by_number]
    order = np.argsort(found.names)
    ids = found.ids[order[np.searchsorted(found.names, names, sorter=order)]]
    parts = {"train": known.train_numbers, "test": known.test_numbers}
    return found._replace(names=names, labels=labels, label_names=known.label_names, ids=ids, **parts)


def folder_labels(data_dir: str) -> tuple[str, np.ndarray, np.ndarray, tuple[str, ...]]:
    """The title of a folder of images, the labels of its training images and of its test images, and the label names.

    Raises DataError.
    """
    found = look(data_dir)
    labels = found.labels[found.train], found.labels[found.test]
    return shown(found.root.resolve().name), *labels, found.label_names


def look(data_dir: str) -> Found:
    """Look at the contents of the folder `data_dir`. Raises DataError."""
    root = Path(os.path.expanduser(data_dir))
    if not root.is_dir():
        raise DataError(f"{shown(root)}: no such folder; set DATA_DIR to the folder of images")
    changed, strange = find_files(root)
    files = sorted(changed)
    paths = tuple(os.path.join(os.fsencode(root), name) for name in files)
    kinds, ids = images.look_at_files(paths, tuple(changed[name] for name in files))
    left_out = strange + [(kind, name) for kind, name in zip(kinds, files, strict=True) if kind]
    is_image = np.array([not kind for kind in kinds], bool)
    names, ids = np.array(files)[is_image], ids[is_image]
    if not len(names):
        others = f"; there is {'; '.join(images.counted(left_out))}" if left_out else ""
        raise DataError(f"{shown(root)}: no images{others}; set DATA_DIR to their folder")
    parts, labels, split = by_folders([bytes(name).split(b"/")[:-1] for name in names])
    used = np.isin(parts, ("train", "test"))
    left_out += [(part, bytes(name)) for part, name in zip(parts[~used], names[~used], strict=True)]
    names, ids, parts = names[used], ids[used], parts[used]
    label_names, labels = np.unique(labels[used], return_inverse=True)
    order = np.lexsort((labels, parts == "test"))  # fix the order, because image numbers are keys of random draws
    names, ids, parts, labels = names[order], ids[order], parts[order], labels[order].astype(np.int32)
    if split:
        train, test = (np.flatnonzero(parts == part) for part in ("train", "test"))
        train = np.random.default_rng(SPLIT_KEY).permutation(train)
        copies = int(np.isin(ids[test], ids[train]).sum())
        split += f"; {copies:,} of the test images are copies of training images" if copies else ""
    else:
        try:
            train, test = draw_split(labels, ids)
        except DataError as error:
            raise DataError(f"{shown(root)}: {error}") from None
        split = f"no folders train and test, so {len(test):,} of {len(names):,} are test images, drawn by a fixed key"
    names_of = tuple(shown(bytes(name)) if name else "(no folder)" for name in label_names)
    return Found(root, names, labels, names_of, ids, train, test, split, images.counted(left_out))


def first_image(data_dir: str) -> Path | None:
    """An image in a folder or one level below it, found by its extension; None if there is none."""
    root = Path(os.path.expanduser(data_dir))
    near = islice(chain(root.glob("*"), root.glob("*/*")), 10_000)
    return next((path for path in near if os.fsencode(path.suffix.lower()) in images.suffixes()), None)


def find_files(root: Path) -> tuple[dict[bytes, int], list[tuple[str, bytes]]]:
    """Find all files below a folder: their names relative to it, with the time of the last change in nanoseconds.

    Also returns what is not a file, as (why, name). Links are followed, but no folder is searched twice, so a link to a
    folder above causes no endless loop. A folder is searched at its real place before any link to it. Hidden and system
    files are ignored. Raises DataError for a folder that cannot be listed.
    """
    files, strange, seen, to_search = {}, [], set(), [(os.fsencode(root), b"")]

    def search(folder: bytes, within: bytes) -> None:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            strange.append(("a link to a folder that was looked at already", within))
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = os.path.join(within, entry.name)
            if entry.name.lower().startswith(NOT_SEEN):
                continue
            if entry.is_dir() and entry.is_symlink():
                to_search.append((entry.path, name))  # links come last
            elif entry.is_dir():
                search(entry.path, name)
            elif entry.is_file():
                files[name] = entry.stat().st_mtime_ns
            else:
                strange.append(("a broken link" if entry.is_symlink() else "not a file", name))

    try:
        for folder, within in to_search:  # `search` appends to this list
            search(folder, within)
    except OSError as error:
        raise DataError(f"{shown(error.filename)}: {images.why_bad(error)}") from None
    return files, strange


def by_folders(folders: Sequence[list[bytes]]) -> tuple[np.ndarray, np.ndarray, str]:
    """Find the part and the label of N images from the folders that each is in, outer ones first.

    Returns parts (N,): "train", "test", or why an image is neither; labels, bytes (N,); and how the split was found. If
    no split was found, this is "" and all parts are "train". A folder around all others is not a label. Neither is the
    name of a part.
    """
    depth = wrappers(folders)
    for at, role_of in product((depth, depth + 1), (role, loose_role)):  # animals/train/cat or animals/cat/train
        names = [path[at] if len(path) > at else b"" for path in folders]
        roles = np.array([role_of(name) for name in names])
        is_likely = (at, role_of) == (depth, role) or 2 * np.count_nonzero(roles) > len(roles)
        if {"train"} < {*roles} - {""} and is_likely:
            break
    else:
        return np.full(len(folders), "train"), np.array([label(path, depth) for path in folders]), ""
    tested = "test" if "test" in roles else "val"
    parts = roles.astype("U60")
    parts[roles == tested] = "test"
    parts[(roles == "val") & (tested == "test")] = "validation image, as there are test images"
    parts[roles == ""] = "image beside the folders of the split"
    rest = [path[depth:at] + path[at + 1 + is_double(path[at:]) :] for path in folders]  # training_set/training_set/cat
    level = wrappers([path for path, part in zip(rest, roles, strict=True) if part])
    called = {
        part: sorted({shown(name) for name, other in zip(names, roles, strict=True) if other == part}) for part in PARTS
    }
    split = f"the folders {', '.join(called['train'])} and {', '.join(called[tested])}"
    return parts, np.array([label(path, level) for path in rest]), split


def role(name: bytes) -> str:
    """The part of the split that a folder's whole name stands for: "train", "test" or "val"; or ""."""
    return PARTS.get(name.decode(errors="replace").lower(), "")


def loose_role(name: bytes) -> str:
    """The part that a folder's first or last word stands for, as in training_set, TestImages and seg_train; or ""."""
    words = re.findall(r"[^\W\d_]+", name.decode(errors="replace").lower())
    found = (PARTS.get(re.sub("(set|images?|data)$", "", word), "") for word in words[:1] + words[-1:])
    return next(filter(None, found), "")


def is_double(folders: list[bytes]) -> bool:
    """Whether the first two folders stand for the same part, as in training_set/training_set."""
    return len(folders) > 1 and loose_role(folders[0]) == loose_role(folders[1]) != ""


def wrappers(folders: Sequence[list[bytes]]) -> int:
    """The number of nested folders around all others, as in zips. A few images, such as a cover, may be beside them."""
    depth = 0
    while len({path[depth] for path in folders if len(path) > depth}) == 1:
        if 2 * sum(len(path) > depth + 1 for path in folders) <= len(folders):
            break  # most images lie in this folder, so it is their label
        depth += 1
    return depth


def label(folders: list[bytes], level: int) -> bytes:
    """The folder at this level that an image is in; b"" if there is none."""
    return folders[level] if len(folders) > level else b""
