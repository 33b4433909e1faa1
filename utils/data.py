"""The data set that the settings name, ready for training."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from utils import arrays, celeba, folders, known, mnist, runs, tfds
from utils.console import Problem, Say, shown
from utils.dataset import TEST_BINARIZATION_KEY, DataError, Dataset, binarized, label_name, rows_of
from utils.files import why_no_folder
from utils.settings import Settings, SettingsError, with_kl_steps

OF_EACH_IMAGE = ("images", "labels", "attributes", "ids", "names")  # a Dataset has these for each part


def prepare(s: Settings, say: Say, folder: Path | None = None) -> Dataset:
    """Prepare the data set that the settings name; a run in `folder` gets the same images as before.

    The test images are binarised here, only once. The `details` also get "labels": for the name of each label, the
    numbers of training and test images. Raises SettingsError, DataError and runs.RunError.
    """
    saved = known.load(folder)
    whole = read(s, say, folder, saved)
    is_new = folder is None or not (saved or known.is_old(folder))  # on other workers, a new run has a folder too
    other = started_from(s, is_new, say) if s.start_from and not saved else None
    if other and is_new:
        whole = with_sides_of(other, whole, say)
    check_whole(s, whole)
    dataset = chosen(s, whole, say)
    if other and (count := int(np.isin(dataset.test_ids, known.not_to_test(other)).sum())):
        which = f"whose weights were trained on {count:,} of the {len(dataset.test_ids):,} images to test on"
        if is_new:
            raise SettingsError(f"start_from: {s.start_from!r} is not allowed, {which}; choose its HELD_OUT and LABELS")
        say(f"note       the run began with the weights of {s.start_from}, {which}")
    if s.binarize == "dynamic":
        dataset = dataset._replace(test_images=binarized(dataset.test_images, TEST_BINARIZATION_KEY))
    details = {**dataset.details, "labels": counts_by_name(dataset)}
    return dataset._replace(details=details, record=saved or known.record(whole, dataset, other))


def chosen(s: Settings, whole: Dataset, say: Say) -> Dataset:
    """The images that remain after LABELS and HELD_OUT."""
    dataset = whole
    if s.labels:
        dataset = with_labels(dataset, chosen_labels(s.labels, dataset.label_names, say))
    if s.held_out:  # the last training images take the place of the test images
        there = len(np.unique(dataset.train_labels))
        held_out = moved(dataset, slice(-s.held_out, None), "train", "test")
        dataset = dataset._replace(**moved(dataset, slice(-s.held_out), "train", "train"), **held_out)
        if (found := len(np.unique(dataset.test_labels))) < there:
            say(f"note       the {s.held_out:,} images held out, the last ones, have {found:,} of {there:,} labels")
    return dataset


def started_from(s: Settings, is_new: bool, say: Say) -> known.Record | None:
    """The record of the images of the run START_FROM.

    If that run is older than such records, the record is derived from its settings and its data. If that is impossible,
    `say` gets a note. For a new run, raises runs.RunError, and DataError if those data have changed and this run trains
    on them.
    """
    settings = s
    try:
        other = runs.find(s.start_from, s.output_dir, "--start-from")
        settings = runs.saved_settings(other, quiet)
        return known.load(other) or prepare(settings, quiet, other).record
    except Problem as error:
        places = {os.path.realpath(os.path.expanduser(each.data_dir)) for each in (s, settings)}
        is_same = settings.dataset == s.dataset and len(places) == 1
        if is_new and (is_same or isinstance(error, runs.RunError)):
            raise
        say(f"note       it is unknown which images {s.start_from} was trained on; some may be test images: {error}")
        return None


def quiet(note: str) -> None:
    """Ignore a note."""


def with_sides_of(other: known.Record, whole: Dataset, say: Say) -> Dataset:
    """Put the images that another run has had on the same side and in the same order as there, after the new images.

    So HELD_OUT takes the same images. If the split was given, not drawn, each image keeps its given side.
    """
    ids = np.concatenate((whole.train_ids, whole.test_ids))
    is_test = was_test = np.arange(len(ids)) >= len(whole.train_ids)
    trained, tested = known.not_to_test(other), other["test_ids"]
    if "drawn by" in whole.details.get("split", ""):
        is_test = np.isin(ids, np.setdiff1d(tested, trained)) | (
            was_test & ~np.isin(ids, [*trained, *other["train_ids"]])
        )
    place = known.places(np.concatenate((other["train_ids"], tested)), ids)
    if (place < 0).all() or (np.array_equal(is_test, was_test) and (place >= 0).all()) or not is_test.any():
        return whole
    new = f"{(place < 0).sum():,} are new"
    say(f"note       {(place >= 0).sum():,} images stay on the side they had in the run to start from; {new}")
    order, fields = np.argsort(place, kind="stable"), {}
    for what in OF_EACH_IMAGE:
        both = joined(getattr(whole, f"train_{what}"), getattr(whole, f"test_{what}"))
        for part, side in (("train", ~is_test), ("test", is_test)):
            fields[f"{part}_{what}"] = None if both is None else rows_of(both, order[side[order]])
    return whole._replace(**fields)


def joined(first: Any, second: Any) -> Any:
    """Join two arrays, or two views of the same LazyImages; None for None."""
    if first is None or isinstance(first, np.ndarray):
        return None if first is None else np.concatenate((first, second))
    return replace(first, numbers=np.concatenate((first.numbers, second.numbers)))


def check(
    s: Settings, title: str, train_labels: np.ndarray, test_labels: np.ndarray, label_names: Sequence[str] = ()
) -> None:
    """Check LABELS, HELD_OUT, BATCH_SIZE and KL_CYCLES by the labels (N,) of a data set.

    Raises SettingsError and DataError.
    """
    known = np.unique(np.concatenate((train_labels, test_labels)))
    for typed, number in zip(s.labels, chosen_labels(s.labels, label_names), strict=True):
        if number not in known:
            raise SettingsError(f"labels: {typed} is not allowed; {title} has {listed(known, label_names)}")
    if s.labels:
        title = title_with(title, s.labels)
        numbers = chosen_labels(s.labels, label_names)
        train_labels, test_labels = (part[np.isin(part, numbers)] for part in (train_labels, test_labels))
    if s.held_out >= max(1, len(train_labels)):
        most = max(0, len(train_labels) - 1)
        raise SettingsError(f"held_out: {s.held_out:,} is not allowed; at most {most:,} training images are")
    if s.held_out:
        train_labels, test_labels = train_labels[: -s.held_out], train_labels[-s.held_out :]
    for part, what in ((train_labels, "train on; choose others with LABELS"), (test_labels, "test on; use HELD_OUT")):
        if not len(part):
            raise DataError(f"{title}: no image to {what}")
    if s.batch_size > (count := len(train_labels)):
        raise SettingsError(f"batch_size: {s.batch_size:,} is not allowed; at most {count:,}, all training images, is")
    with_kl_steps(s, s.epochs * (count // s.batch_size))


def chosen_labels(typed: Sequence[int | str], names: Sequence[str], say: Say = lambda note: None) -> list[int]:
    """The numbers of labels that are given by name or by number; -1 for an unknown name. Names take precedence.

    `say` gets a note if a typed number is the name of a label with another number.
    """
    numbers = []
    for label in typed:
        by_number = int(label) if str(label).isdecimal() else -1
        numbers.append(names.index(str(label)) if str(label) in names else by_number)
        if by_number not in (-1, numbers[-1]):
            say(f"note       labels: {label} is the label of this name, which is number {numbers[-1]}")
    return numbers


def listed(labels: np.ndarray, names: Sequence[str]) -> str:
    """List the names of labels (N,), at most ten. For consecutive numbers, list the first and the last."""
    if not names and len(labels) == labels[-1] - labels[0] + 1:
        return f"{labels[0]} to {labels[-1]}"
    more = f" and {len(labels) - 10:,} more" if len(labels) > 10 else ""
    return ", ".join(label_name(label, names) for label in labels[:10]) + more


def counts_by_name(dataset: Dataset) -> dict[str, list[int]]:
    """For the name of each label, the numbers of training and test images with it."""
    counts = {}
    for place, labels in enumerate((dataset.train_labels, dataset.test_labels)):
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            counts.setdefault(int(label), [0, 0])[place] = int(count)
    return {label_name(label, dataset.label_names): counts[label] for label in sorted(counts)}


def check_whole(s: Settings, dataset: Dataset) -> None:
    """Call `check`, and check that the network can take the image size. Raises SettingsError and DataError."""
    height, width, _ = dataset.train_images.shape[1:]
    if s.dataset == "arrays" and s.architecture in ("conv", "resnet") and (height % 4 or width % 4):
        rule = "which it halves; sides that are multiples of 4, or architecture 'mlp', are"
        raise SettingsError(
            f"architecture: {s.architecture!r} is not allowed with images of {width} x {height} pixels, {rule}"
        )
    check(s, dataset.title, dataset.train_labels, dataset.test_labels, dataset.label_names)


def check_early(s: Settings, folder: Path | None = None) -> None:
    """Refuse what `prepare` would refuse for the run in `folder`, if any, as far as that can be found quickly.

    Nothing is fetched or written. Raises SettingsError, DataError and runs.RunError.
    """
    check_place(s)
    known.load(folder)  # raises if the record is damaged
    if s.dataset in mnist.TITLES:
        mnist.refuse_others(s.dataset, s.data_dir)
        labels = mnist.labels(s.dataset, s.data_dir)
        if not labels:  # not fetched yet: the numbers of labels are known, but not which images come last
            labels = (np.repeat(np.arange(10), counts) for counts in mnist.COUNTS[s.dataset])
            s = s.model_copy(update={"held_out": 0})
        check(s, mnist.TITLES[s.dataset], *labels, mnist.LABEL_NAMES[s.dataset])
    elif s.dataset == "celeba":
        check(s, "CelebA", *celeba.celeba_labels(s.data_dir))
    elif s.dataset == "folder" and folder is None and not s.start_from:
        check(s, *folders.folder_labels(s.data_dir))
    elif s.dataset == "folder" or (s.dataset == "arrays" and arrays.is_read_fast(s.data_dir)):
        prepare(s, quiet, folder)


def check_place(s: Settings) -> None:
    """Raise SettingsError if DATA_DIR is no folder and cannot become one. For arrays it may be a file."""
    if s.dataset != "arrays" and (why := why_no_folder(Path(os.path.expanduser(s.data_dir)))):
        raise SettingsError(f"data_dir: {s.data_dir!r} is not allowed; {why}")


def read(s: Settings, say: Say, folder: Path | None = None, saved: known.Record | None = None) -> Dataset:
    """Read the whole data set that DATASET names. A run in `folder`, with the record `saved`, gets it as before.

    Raises SettingsError and DataError.
    """
    check_place(s)
    as_before = folder is not None and not saved and known.is_old(folder)
    if s.dataset == "folder":
        the_same = known.of_folder(s, saved, say) if saved else None
        return folders.folder(s, say, known.of_old_folder(s, folder) if as_before else the_same)
    if s.dataset in mnist.TITLES:
        if own := folders.first_image(s.data_dir):
            way = "DATASET = 'folder' trains on such images"
            say(f"note       DATASET = {s.dataset!r}, so {shown(own)} is not read; {way}")
        whole = mnist.load(s.dataset, s.data_dir, say)
    elif s.dataset == "arrays":
        whole = arrays.load(s.data_dir, say)
    elif s.dataset == "celeba":
        whole = celeba.celeba(s, say)
    else:
        whole = tfds.tfds(s, say, as_before)
    if saved:
        known.check(saved, whole)
    return whole


def moved(dataset: Dataset, index: slice | np.ndarray, source: str, target: str) -> dict[str, Any]:
    """Some images of `source` ("train" or "test") and all that belongs to them, under the field names of `target`."""
    fields = {what: getattr(dataset, f"{source}_{what}") for what in OF_EACH_IMAGE}
    return {f"{target}_{what}": None if all_ is None else rows_of(all_, index) for what, all_ in fields.items()}


def with_labels(dataset: Dataset, labels: Sequence[int]) -> Dataset:
    """Keep only the images that have one of these labels, in the same order."""
    train, test = np.isin(dataset.train_labels, labels), np.isin(dataset.test_labels, labels)
    kept = moved(dataset, train, "train", "train") | moved(dataset, test, "test", "test")
    names = [label_name(label, dataset.label_names) for label in sorted(set(labels))]
    return dataset._replace(title=title_with(dataset.title, names), **kept)


def title_with(title: str, labels: Sequence[int | str]) -> str:
    """The title of a data set of which only images with these labels are used."""
    return f"{title} ({', '.join(map(str, labels))} only)"
