"""The old way to split a folder of images, only for runs that were made before runs saved their split.

The code here must not change. Otherwise such a run would be tested on images that it was trained on.
"""

import os
from itertools import chain
from pathlib import Path

import numpy as np

from utils.console import shown
from utils.dataset import MOST_TESTED, SPLIT_KEY, DataError, Known, LazyImages
from utils.images import GREY_MODES, bad_images, open_image, why_bad

SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff")
SHOWN_OF_A_LABEL = 3


def old_folder(data_dir: str, size: int) -> Known:
    """The images of such an old run, if the folder has not changed since. Raises DataError."""
    root, names, labels, label_names, train, test = list_folder(data_dir)
    channels = 1 if is_grey(root, names) else 3
    parts = names[train], names[test], labels[train], labels[test], train, test
    return Known(*parts, label_names, (size, size, channels), white=65_535)


def list_folder(data_dir: str) -> tuple[Path, np.ndarray, np.ndarray, tuple[str, ...], np.ndarray, np.ndarray]:
    """The folder, the names (N,) and labels (N,) of its images, the label names, training positions and test positions.

    Raises DataError.
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
            raise DataError(f"{top}: no images; set DATA_DIR to their folder")
    known, labels = np.unique([label for label, _ in chain(*groups)], return_inverse=True)
    names, labels = np.array([name for _, name in chain(*groups)]), labels.astype(np.int32)
    if is_split:
        train = np.random.default_rng(SPLIT_KEY).permutation(len(groups[0]))
        test = np.arange(len(groups[0]), len(names))
    else:
        train, test = draw_split(labels)
    return root, names, labels, tuple(shown(bytes(label)) or "(no folder)" for label in known), train, test


def find_images(root: Path, top: Path) -> list[tuple[bytes, bytes]]:
    """The image files below a folder `top`, each as (label, path from `root`), sorted.

    The label is the sub-folder of `top` that contains the image, at any depth; b"" if there is none.
    """

    def refuse(error: OSError):  # os.walk would silently skip a folder that it cannot list
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


def draw_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of training and test images, drawn by SPLIT_KEY: a tenth of each label is tested on, at least 3.

    The share is below a tenth where a tenth would be more than 10,000 images. Training positions are shuffled, test
    positions are sorted.
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


def is_grey(root: Path, names: np.ndarray) -> bool:
    """Whether the first image that can be opened is grey. Raises DataError."""

    def read(number: int) -> bool:
        path = os.path.join(os.fsencode(root), names[number])
        with bad_images(shown(path)), open(path, "rb") as file:
            return open_image(file).mode in GREY_MODES

    return LazyImages(read, np.arange(len(names)), (), True).read_at(0)  # read_at skips bad images
