"""The data set that the settings name, ready for training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils import folders, mnist
from utils.console import Say
from utils.dataset import SHOWN_OF_A_LABEL, TEST_BINARIZATION_KEY, DataError, Dataset, binarized, rows_of
from utils.files import why_no_folder
from utils.settings import Settings, SettingsError, with_kl_steps

OF_EACH_IMAGE = ("images", "labels", "attributes", "ids", "names")  # what a Dataset has of the images of each part


def prepare(s: Settings, say: Say) -> Dataset:
    """The images that the settings name. The test images are binarised here, once and for all.

    Raises SettingsError and DataError.
    """
    dataset = read(s, say)
    check(s, dataset.title, dataset.train_labels, dataset.test_labels)
    if s.labels:
        dataset = with_labels(dataset, s.labels)
    if s.held_out:  # the last training images take the place of the test images
        held_out = moved(dataset, slice(-s.held_out, None), "train", "test")
        dataset = dataset._replace(**moved(dataset, slice(-s.held_out), "train", "train"), **held_out)
    if s.binarize == "dynamic":
        dataset = dataset._replace(test_images=binarized(dataset.test_images, TEST_BINARIZATION_KEY))
    return dataset


def check(s: Settings, title: str, train_labels: np.ndarray, test_labels: np.ndarray) -> None:
    """Check LABELS, HELD_OUT, BATCH_SIZE and KL_CYCLES by the labels (N,) of a data set.

    Raises SettingsError and DataError.
    """
    known = np.unique(train_labels)
    if unknown := [label for label in s.labels if label not in known]:
        raise SettingsError(f"labels: {unknown[0]} is not allowed; {title} has {known[0]} to {known[-1]}")
    if s.labels:
        title = title_with(title, s.labels)
        train_labels, test_labels = (part[np.isin(part, s.labels)] for part in (train_labels, test_labels))
    if s.held_out >= len(train_labels):
        count = len(train_labels) - 1
        raise SettingsError(f"held_out: {s.held_out:,} is not allowed; at most {count:,} training images are")
    if s.held_out:
        train_labels, test_labels = train_labels[: -s.held_out], train_labels[-s.held_out :]
    if few := too_few_to_show(test_labels):
        if s.held_out:
            raise SettingsError(f"held_out: {s.held_out:,} is not allowed; it holds out only {few}")
        raise DataError(f"{title}: the test images are only {few}; choose others with LABELS, or use HELD_OUT")
    if s.batch_size > (count := len(train_labels)):
        raise SettingsError(f"batch_size: {s.batch_size:,} is not allowed; at most {count:,}, all training images, is")
    with_kl_steps(s, s.epochs * (count // s.batch_size))


def check_early(s: Settings) -> None:
    """What `prepare` would refuse, as far as that is seen at once: no image is read, nothing is fetched or written.

    Raises SettingsError and DataError.
    """
    check_place(s)
    if s.dataset in mnist.TITLES:
        labels = mnist.labels(s.dataset, s.data_dir)
        if not labels:  # to be fetched: how many there are is known, but not which are the last ones
            labels = (np.repeat(np.arange(10), counts) for counts in mnist.COUNTS[s.dataset])
            s = s.model_copy(update={"held_out": 0})
        check(s, mnist.TITLES[s.dataset], *labels)
    elif s.dataset == "celeba":
        check(s, "CelebA", *folders.celeba_labels(s.data_dir))
    elif s.dataset == "folder":
        check(s, *folders.folder_labels(s.data_dir))


def check_place(s: Settings) -> None:
    """Raise SettingsError if DATA_DIR is no folder and cannot become one."""
    if why := why_no_folder(Path(os.path.expanduser(s.data_dir))):
        raise SettingsError(f"data_dir: {s.data_dir!r} is not allowed; {why}")


def read(s: Settings, say: Say) -> Dataset:
    """The whole data set that DATASET names. Raises SettingsError and DataError."""
    check_place(s)
    if s.dataset in mnist.TITLES:
        return mnist.load(s.dataset, s.data_dir, say)
    how = s.data_dir, s.image_size, s.image_crop, s.skip_bad_images, say
    if s.dataset.startswith("tfds:"):
        return folders.tfds(s.dataset.removeprefix("tfds:"), *how)
    return {"celeba": folders.celeba, "folder": folders.folder}[s.dataset](*how)


def moved(dataset: Dataset, index: slice | np.ndarray, source: str, target: str) -> dict[str, Any]:
    """Some images of `source`, "train" or "test", and what goes with them, by the names of the fields of `target`."""
    fields = {what: getattr(dataset, f"{source}_{what}") for what in OF_EACH_IMAGE}
    return {f"{target}_{what}": None if all_ is None else rows_of(all_, index) for what, all_ in fields.items()}


def with_labels(dataset: Dataset, labels: Sequence[int]) -> Dataset:
    """The images that have one of these labels, in their old order."""
    train, test = np.isin(dataset.train_labels, labels), np.isin(dataset.test_labels, labels)
    kept = moved(dataset, train, "train", "train") | moved(dataset, test, "test", "test")
    return dataset._replace(title=title_with(dataset.title, labels), **kept)


def title_with(title: str, labels: Sequence[int]) -> str:
    """What a data set is called of which only images with these labels are taken."""
    return f"{title} ({', '.join(map(str, sorted(set(labels))))} only)"


def too_few_to_show(labels: np.ndarray) -> str:
    """Words for the label that has fewer test images (N,) than are shown of each; "" if none has."""
    known, counts = np.unique(labels, return_counts=True)
    if not len(known):
        return f"0, and {SHOWN_OF_A_LABEL} of each label are shown"
    fewest = counts.argmin()
    if counts[fewest] >= SHOWN_OF_A_LABEL:
        return ""
    return f"{counts[fewest]} of label {known[fewest]}, and {SHOWN_OF_A_LABEL} are shown"
