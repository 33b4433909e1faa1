"""The record of the images that a run has had. It ensures that no training image is ever a test image.

data.npz has the `train_ids` and `test_ids` of the whole data set. For image files, it also has names, labels and
numbers. `tested` are the ids of the test images after LABELS and HELD_OUT. `seen` are the ids of all images that the
weights were ever trained on, also in START_FROM. The last 32 bytes are the SHA-256 of the bytes before.
"""

import base64
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils import folders, old_split, runs
from utils.console import Say
from utils.dataset import DataError, Dataset, Known
from utils.files import write_whole
from utils.images import shown
from utils.settings import Settings

FILE = "data.npz"
Record = Mapping[str, np.ndarray]
WAY_OUT = "put them back as they were, or start a new run"


# --- the file ---------------------------------------------------------------------------------------------------------
def record(whole: Dataset, chosen: Dataset, other: Record | None) -> dict[str, np.ndarray]:
    """Make the record from the whole data set, the images chosen from it, and the record of the run to start from."""
    if whole.train_ids is None:
        return {}
    found = {"train_ids": whole.train_ids, "test_ids": whole.test_ids, "tested": chosen.test_ids}
    found["seen"] = np.union1d(other["seen"], chosen.train_ids) if other else np.unique(chosen.train_ids)
    if whole.train_names is not None:
        found |= {"train_names": whole.train_names, "test_names": whole.test_names}
        found |= {"train_labels": whole.train_labels, "test_labels": whole.test_labels}
        found |= {"train_numbers": whole.train_images.numbers, "test_numbers": whole.test_images.numbers}
        found["label_names"] = np.array(whole.label_names, str)
        found["image_shape"] = np.array(whole.train_images.shape[1:])
        found["white"] = np.array(whole.details.get("white", 65_535))
    return found


def not_to_test(other: Record) -> np.ndarray:
    """The ids of a run's training images, without copies of its own test images."""
    return np.setdiff1d(other["seen"], other["tested"])


def places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The first position of each id (N,) among the `known` ones; -1 if it is not there."""
    found, first = np.unique(known, return_index=True)
    at = np.minimum(np.searchsorted(found, ids), len(found) - 1)
    return np.where(found[at] == ids, first[at], -1)


def save(folder: Path, found: Record) -> None:
    """Write the record of a run that has none yet, completely or not at all. Raises OSError."""
    if found and not (folder / FILE).exists():
        np.savez_compressed(content := io.BytesIO(), **found)
        write_whole(folder / FILE, content.getvalue() + hashlib.sha256(content.getvalue()).digest())


def load(folder: Path | None) -> Record | None:
    """Read the record of a run; None if the run is older than records. Raises runs.RunError if the record is lost."""
    if folder is None:
        return None
    try:
        content = (folder / FILE).read_bytes()
    except FileNotFoundError:
        if runs.read_history(folder) and not is_old(folder):
            raise runs.RunError(f"{folder / FILE} is missing: it is unknown which images the run has had") from None
        return None
    except OSError as error:
        raise runs.RunError(f"{folder / FILE} can't be read: {error.strerror}") from None
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise runs.RunError(f"{folder / FILE} is damaged: its checksum does not match; start a new run")
    with np.load(io.BytesIO(content[:-32]), allow_pickle=False) as file:
        return dict(file)


def is_old(folder: Path) -> bool:
    """Whether a run is older than these records."""
    return "data" not in runs.read_params(folder)


def for_others(folder: Path | None) -> dict[str, Any]:
    """What the params.json of other workers has about the images of the chief's run.

    It has "data" unless that run is old, and "record" if that run already has a record.
    """
    if folder is not None and is_old(folder):
        return {}
    if folder is None or not (folder / FILE).is_file():
        return {"data": {}}
    return {"data": {}, "record": base64.b64encode((folder / FILE).read_bytes()).decode()}


def from_chief(folder: Path, told: dict[str, Any]) -> None:
    """Write the record that for_others returned, if there is one, into a worker's own folder."""
    if "record" in told:
        write_whole(folder / FILE, base64.b64decode(told["record"]))


# --- the same data again ----------------------------------------------------------------------------------------------
def of_folder(s: Settings, saved: Record, say: Say) -> Known:
    """Find the images of a run in DATA_DIR. New images are left out, and `say` gets a line about them.

    Raises DataError if an image is missing or changed.
    """
    parts = ("train", "test")
    found, root = folders.look(s.data_dir), shown(s.data_dir)
    names, ids = (np.concatenate([saved[f"{part}_{what}"] for part in parts]) for what in ("names", "ids"))
    missing = names[~np.isin(names, found.names)]
    if len(missing):
        first = shown(bytes(missing[0]))
        raise DataError(f"{root}: {len(missing):,} of the run's {len(names):,} are missing, e.g. {first}; {WAY_OUT}")
    order = np.argsort(found.names)
    now = found.ids[order[np.searchsorted(found.names, names, sorter=order)]]
    changed = names[now != ids]
    if len(changed):
        first = shown(bytes(changed[0]))
        raise DataError(f"{root}: {len(changed):,} of the run's {len(names):,} are changed, e.g. {first}; {WAY_OUT}")
    new = found.names[~np.isin(found.names, names)]
    if len(new):
        first = shown(bytes(new[0]))
        say(f"note       {len(new):,} images are new since the run began, e.g. {first}; they are left out")
    names_of = tuple(map(str, saved["label_names"]))
    arrays = (saved[f"{part}_{what}"] for what in ("names", "labels", "numbers") for part in parts)
    return Known(*arrays, names_of, tuple(map(int, saved["image_shape"])), int(saved["white"]))


def of_old_folder(s: Settings, folder: Path) -> Known:
    """The images of an old run, which was saved without its split. The split is drawn by the method of that time.

    Raises DataError if the number of images has changed.
    """
    known = old_split.old_folder(s.data_dir, s.image_size)
    train, test = (
        sum(not s.labels or label in s.labels for label in labels) for labels in (known.train_labels, known.test_labels)
    )
    train, test = (train - s.held_out, s.held_out) if s.held_out else (train, test)
    then = [round(line["step"] / line["epoch"]) for line in runs.read_history(folder) if line["epoch"] > 0][:1]
    steps = train // s.batch_size
    if then and then != [steps]:
        raise DataError(f"{folder}: saved without its split, and an epoch was {then[0]:,} steps, but is {steps:,} now")
    for path in (folder / "tensorboard" / "labels.tsv", folder / "tensorboard" / "test" / "labels.tsv"):
        if path.is_file() and (count := len(path.read_bytes().splitlines())) > test:
            raise DataError(f"{folder}: saved without its split, and {count:,} images were tested on, but {test:,} now")
    return known


def check(saved: Record, whole: Dataset) -> None:
    """Raise DataError unless a data set has the images that a run has had, in the same order."""
    for part, now in (("train", whole.train_ids), ("test", whole.test_ids)):
        before = saved[f"{part}_ids"]
        if not np.array_equal(before, now):
            gone, new = len(np.setdiff1d(before, now)), len(np.setdiff1d(now, before))
            what = f"{gone:,} of {len(before):,} are missing or changed, and {new:,} are new" if gone or new else ""
            what = what or "they are in another order, or some have more or fewer copies"
            raise DataError(f"{whole.title}: these are not the {part} images that the run has had: {what}; {WAY_OUT}")
