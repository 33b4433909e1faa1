"""The data set that the settings name, ready for training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils import folders, mnist
from utils.console import Say
from utils.dataset import SHOWN_OF_A_LABEL, TEST_BINARIZATION_KEY, DataError, Dataset, binarized, rows_of
from utils.settings import Settings, SettingsError


def prepare(s: Settings, say: Say) -> Dataset:
    """The images that the settings name. The test images are binarised here, once and for all.

    Raises SettingsError and DataError.
    """
    dataset = read(s, say)
    known = np.unique(dataset.train_labels)
    if unknown := [label for label in s.labels if label not in known]:
        raise SettingsError(f"labels: {unknown[0]} is not allowed; {dataset.title} has {known[0]} to {known[-1]}")
    if s.labels:
        dataset = with_labels(dataset, s.labels)
    if s.held_out >= (count := len(dataset.train_images)):
        raise SettingsError(f"held_out: {s.held_out:,} is not allowed; at most {count - 1:,} training images are")
    if s.held_out:  # the last training images take the place of the test images
        held_out = moved(dataset, slice(-s.held_out, None), "train", "test")
        dataset = dataset._replace(**moved(dataset, slice(-s.held_out), "train", "train"), **held_out)
    if few := too_few_to_show(dataset.test_labels):
        if s.held_out:
            raise SettingsError(f"held_out: {s.held_out:,} is not allowed; it holds out only {few}")
        raise DataError(f"{dataset.title}: the test images are only {few}; choose others with LABELS, or use HELD_OUT")
    if s.batch_size > (count := len(dataset.train_images)):
        raise SettingsError(f"batch_size: {s.batch_size:,} is not allowed; at most {count:,}, all training images, is")
    if s.binarize == "dynamic":
        dataset = dataset._replace(test_images=binarized(dataset.test_images, TEST_BINARIZATION_KEY))
    return dataset


def read(s: Settings, say: Say) -> Dataset:
    """The whole data set that DATASET names. Raises DataError."""
    if s.dataset in mnist.TITLES:
        return mnist.load(s.dataset, s.data_dir, say)
    how = s.data_dir, s.image_size, s.image_crop, s.skip_bad_images, say
    if s.dataset.startswith("tfds:"):
        return folders.tfds(s.dataset.removeprefix("tfds:"), *how)
    return {"celeba": folders.celeba, "folder": folders.folder}[s.dataset](*how)


def moved(dataset: Dataset, index: slice | np.ndarray, source: str, target: str) -> dict[str, Any]:
    """Some images of `source`, "train" or "test", and what goes with them, by the names of the fields of `target`."""
    fields = {what: getattr(dataset, f"{source}_{what}") for what in ("images", "labels", "attributes")}
    return {f"{target}_{what}": None if all_ is None else rows_of(all_, index) for what, all_ in fields.items()}


def with_labels(dataset: Dataset, labels: Sequence[int]) -> Dataset:
    """The images that have one of these labels, in their old order."""
    train, test = np.isin(dataset.train_labels, labels), np.isin(dataset.test_labels, labels)
    title = f"{dataset.title} ({', '.join(map(str, sorted(set(labels))))} only)"
    kept = moved(dataset, train, "train", "train") | moved(dataset, test, "test", "test")
    return dataset._replace(title=title, **kept)


def too_few_to_show(labels: np.ndarray) -> str:
    """Words for the label that has fewer test images (N,) than are shown of each; "" if none has."""
    known, counts = np.unique(labels, return_counts=True)
    if not len(known):
        return f"0, and {SHOWN_OF_A_LABEL} of each label are shown"
    fewest = counts.argmin()
    if counts[fewest] >= SHOWN_OF_A_LABEL:
        return ""
    return f"{counts[fewest]} of label {known[fewest]}, and {SHOWN_OF_A_LABEL} are shown"
