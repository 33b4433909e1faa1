"""Which images a run has had: they are saved with it, so that nothing it was trained on is ever tested on.

data.npz holds of the whole data set the `train_ids` and `test_ids`, and of files their names, labels and numbers; of
the images that LABELS and HELD_OUT leave, `tested`, and `seen`, all that the weights were ever trained on, also by
START_FROM. The last 32 bytes are the SHA-256 of the others.
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
    """What is saved: of the whole data set, of the images chosen of it, and of the `other` run to start from."""
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
    """The ids that a run has been trained on, without copies of what it was tested on itself."""
    return np.setdiff1d(other["seen"], other["tested"])


def places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where each of the ids (N,) stands among the `known` ones, the first time; -1 if it does not."""
    found, first = np.unique(known, return_index=True)
    at = np.minimum(np.searchsorted(found, ids), len(found) - 1)
    return np.where(found[at] == ids, first[at], -1)


def save(folder: Path, found: Record) -> None:
    """Write the record of a run that has none yet, whole or not at all. Raises OSError."""
    if found and not (folder / FILE).exists():
        np.savez_compressed(content := io.BytesIO(), **found)
        write_whole(folder / FILE, content.getvalue() + hashlib.sha256(content.getvalue()).digest())


def load(folder: Path | None) -> Record | None:
    """The record of a run; None of one that was made before there were any. Raises runs.RunError if it is lost."""
    if folder is None:
        return None
    try:
        content = (folder / FILE).read_bytes()
    except FileNotFoundError:
        if runs.read_history(folder) and not is_old(folder):
            raise runs.RunError(f"{folder / FILE} is missing: which images the run has had is not known") from None
        return None
    except OSError as error:
        raise runs.RunError(f"{folder / FILE} can't be read: {error.strerror}") from None
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise runs.RunError(f"{folder / FILE} is damaged: its checksum is of other bytes; start a new run")
    with np.load(io.BytesIO(content[:-32]), allow_pickle=False) as file:
        return dict(file)


def is_old(folder: Path) -> bool:
    """Whether a run was made before the images of a run were saved with it."""
    return "data" not in runs.read_params(folder)


def for_others(folder: Path | None) -> dict[str, Any]:
    """What params.json of other workers has of the images of the chief's run: "data", unless that is an old run, and
    "record", unless that is a new one.
    """
    if folder is not None and is_old(folder):
        return {}
    if folder is None or not (folder / FILE).is_file():
        return {"data": {}}
    return {"data": {}, "record": base64.b64encode((folder / FILE).read_bytes()).decode()}


def from_chief(folder: Path, told: dict[str, Any]) -> None:
    """Write into a worker's own folder the record that for_others returned, if there is one."""
    if "record" in told:
        write_whole(folder / FILE, base64.b64decode(told["record"]))


# --- the same data again ----------------------------------------------------------------------------------------------
def of_folder(s: Settings, saved: Record, say: Say) -> Known:
    """The images of a run, in DATA_DIR as it is now; new ones are left out, and `say` is given a line.

    Raises DataError if one is missing or changed.
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
    """The images of a run that was saved without its split, drawn as it was then, if their number is still the same.

    Raises DataError if it is not.
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
            what = what or "they are in another order, or as often in another number"
            raise DataError(f"{whole.title}: these are not the {part} images that the run has had: {what}; {WAY_OUT}")
