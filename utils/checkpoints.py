"""A run's checkpoints: they are written completely or not at all, and damage is detected."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils import runs
from utils.console import Say
from utils.files import write_json
from utils.settings import Settings
from utils.start import tf

KEPT_CHECKPOINTS = 3  # number kept while a run trains


def checkpoint(vae: Any, **others: Any) -> tf.train.Checkpoint:
    """The checkpoint of a run: the parts that its VAE (main.VAE) has, and anything else with a state, by name."""
    parts = vae._asdict() | {"prior": vae.prior.weights or None} | others
    return tf.train.Checkpoint(**{name: part for name, part in parts.items() if part is not None})


def save(checkpoint: tf.train.Checkpoint, folder: Path, step: int) -> None:
    """Write the checkpoint of `step` and delete all but the newest. Raises OSError (a full disk, no permission)."""
    write(checkpoint, folder, f"step-{step}")
    runs.note_saved(folder)
    keep_newest(folder, KEPT_CHECKPOINTS)


def save_best(vae: Any, folder: Path, step: int) -> None:
    """Write the weights of the best test so far. Raises OSError.

    The previous best weights are kept until there is a checkpoint of a later step, because a run may be resumed from an
    earlier one.
    """
    write(checkpoint(vae), folder, f"best-{step}")


def write(checkpoint: tf.train.Checkpoint, folder: Path, name: str) -> None:
    """Write a checkpoint as `name`. Raises OSError.

    It is written to a temporary folder and then moved into place, the index last. A checkpoint without an index does
    not count. A JSON file beside it records its run.
    """
    place = folder / "checkpoints"
    place.mkdir(exist_ok=True)
    with os_errors(place), tempfile.TemporaryDirectory(dir=place, prefix=".saving-") as beside:
        with plain_path(Path(beside)) as plain:
            checkpoint.write(f"{plain}/{name}")
        if run := runs.id_of(folder):
            index = zlib.crc32(Path(beside, f"{name}.index").read_bytes())
            write_json(Path(beside, f"{name}.json"), {"run": run, "index_crc32": index})
        for path in sorted(files_of(Path(beside), name), key=lambda path: path.suffix == ".index"):
            os.replace(path, place / path.name)


def files_of(place: Path, name: str) -> list[Path]:
    """The files of the checkpoint `name` in a folder, by their exact names. Other files are not ours."""
    form = re.compile(rf"{name}\.(index|json|data-\d{{5}}-of-\d{{5}})")
    return [path for path in place.iterdir() if form.fullmatch(path.name)]


@contextlib.contextmanager
def plain_path(place: Path) -> Iterator[str]:
    """A path for TensorFlow. It reads [ ] * ? and \\ as a pattern, so such a path is replaced by a link elsewhere."""
    if not set("[]*?\\") & set(str(place.absolute())):
        yield str(place)
        return
    with tempfile.TemporaryDirectory(prefix="vae-") as elsewhere:
        os.symlink(place.absolute(), link := os.path.join(elsewhere, "place"))
        yield link


def keep_newest(folder: Path, count: int = 1) -> None:
    """Delete all checkpoints of a run but the newest `count`; for a finished run one is enough. Raises OSError.

    The newest best checkpoint stays. So does one that was the best when a remaining checkpoint was saved.
    """
    steps, best = runs.saved_steps(folder), runs.saved_steps(folder, "best")
    for old in steps[:-count]:
        drop(folder, f"step-{old}")
    for old, better in itertools.pairwise(best):
        if not any(old <= step < better for step in steps[-count:]):
            drop(folder, f"best-{old}")


def drop_best_after(folder: Path, step: int) -> None:
    """Delete the best checkpoints after `step`, because a run resumed there will write them again. Raises OSError."""
    for later in runs.saved_steps(folder, "best"):
        if later > step:
            drop(folder, f"best-{later}")


def drop(folder: Path, name: str) -> None:
    """Delete a checkpoint, its index first, because without it a checkpoint does not count. Raises OSError."""
    for path in sorted(files_of(folder / "checkpoints", name), key=lambda path: path.suffix != ".index"):
        path.unlink()


def drop_unfinished(folder: Path) -> None:
    """Delete the temporary folders of a `write` that was killed, and nothing else."""
    place = folder / "checkpoints"
    for stale in place.iterdir() if place.is_dir() else ():
        if re.fullmatch(r"\.saving-\w{8}", stale.name) and stale.is_dir() and not stale.is_symlink():
            shutil.rmtree(stale)


def restore(checkpoint: tf.train.Checkpoint, folder: Path, say: Say) -> None:
    """Load the newest checkpoint that can be read, and report those that cannot. Do nothing if there is none yet.

    Damage shows in the checksums that TensorFlow keeps of every tensor. Raises runs.RunError if none can be read.
    """
    drop_unfinished(folder)
    steps = runs.saved_steps(folder)
    for step in reversed(steps):
        wrong = read(checkpoint, folder, f"step-{step}")
        if not wrong:
            return
        say(f"checkpoint   step {step:,} {wrong}{'; trying the one before' if step > steps[0] else ''}")
    if steps:
        raise runs.RunError(f"{folder}: none of its checkpoints can be read; the last one {wrong}; start a new run")


def read(checkpoint: tf.train.Checkpoint, folder: Path, name: str, all_of_it: bool = True) -> str:
    """Load a checkpoint of a run, or only a part of it without `all_of_it`. Return what is wrong, or ""."""
    place = folder / "checkpoints"
    if wrong := of_another_run(folder, name):
        return wrong
    try:
        with plain_path(place) as plain:
            status = checkpoint.read(f"{plain}/{name}")
            (status if all_of_it else status.expect_partial()).assert_existing_objects_matched()
        return ""
    except (AssertionError, ValueError) as error:
        return f"is of another model ({one_line(str(error))})"
    except (tf.errors.OpError, IndexError) as error:
        if "not found in checkpoint" in str(error):
            return f"is of another model ({one_line(str(error))})"
        wrong = "incomplete: not all of its files are there" if "No such file" in str(error) else "damaged"
        return f"is {wrong} ({one_line(str(error))})"


def of_another_run(folder: Path, name: str) -> str:
    """Why a checkpoint is not of this run, in words; "" if it is, or if the run is too old to have an id."""
    run = runs.id_of(folder)
    if run is None:
        return ""
    try:
        said = json.loads((folder / "checkpoints" / f"{name}.json").read_bytes())
        index = zlib.crc32((folder / "checkpoints" / f"{name}.index").read_bytes())
        same = said["run"] == run
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"is damaged: its run is unknown ({one_line(str(error))})"
    if not same:
        return "is of another run"
    return "" if said.get("index_crc32") == index else "is damaged or of another run: its index is not the one saved"


def load_weights(vae: Any, folder: Path, kind: str = "step") -> None:
    """Load the newest weights of a run, or the best ones if `kind` is "best", into a VAE of the same shape.

    Raises runs.RunError if there are none.
    """
    name = f"{kind}-{runs.newest_step(folder, kind)}"
    if wrong := read(checkpoint(vae), folder, name, all_of_it=False):  # the optimizer's part is not needed
        raise runs.RunError(f"{folder / 'checkpoints' / name} {wrong}")


def start_from(settings: Settings, vae: Any, say: Say) -> None:
    """Give an untrained VAE the newest weights of the run START_FROM.

    `say` gets a note if that run was saved with constants other than those in params.py.
    Raises SettingsError if that run's networks differ, and runs.RunError.
    """
    load_weights(vae, runs.to_start_from(settings, say))


# --- errors -----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def os_errors(place: Path) -> Iterator[None]:
    """Turn the errors of TensorFlow's writers (a full disk, no permission) into OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, one_line(error.message), str(place)) from None


def one_line(message: str) -> str:
    """The first line of an error, or the last 60 characters of that line if it is longer."""
    line = next(iter(message.strip().splitlines()), "no reason given")
    return line if len(line) <= 60 else f"...{line[-60:]}"
