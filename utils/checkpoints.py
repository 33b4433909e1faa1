"""A run's checkpoints: written whole or not at all, and found out where they are damaged."""

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils import runs
from utils.console import Say
from utils.settings import Settings
from utils.start import tf

KEPT_CHECKPOINTS = 3  # while a run trains


def checkpoint(vae: Any, **others: Any) -> tf.train.Checkpoint:
    """What a run is saved as: the parts of the VAE (main.VAE) that it has, and whatever else has a state, by name."""
    parts = vae._asdict() | {"prior": vae.prior.weights or None} | others
    return tf.train.Checkpoint(**{name: part for name, part in parts.items() if part is not None})


def save(checkpoint: tf.train.Checkpoint, folder: Path, step: int) -> None:
    """Write the checkpoint of `step` and drop all but the newest. Raises OSError (a full disk, no permission)."""
    write(checkpoint, folder, f"step-{step}")
    keep_newest(folder, KEPT_CHECKPOINTS)


def save_best(vae: Any, folder: Path, step: int) -> None:
    """Write the weights of the best test so far. Raises OSError.

    Those of the best test before are kept until a checkpoint of a later step is there: a run may go on from before.
    """
    write(checkpoint(vae), folder, f"best-{step}")


def write(checkpoint: tf.train.Checkpoint, folder: Path, name: str) -> None:
    """Write a checkpoint as `name`. Raises OSError.

    It is written in a folder of its own and moved into place, the index last: without it a checkpoint does not count.
    """
    place = folder / "checkpoints"
    place.mkdir(exist_ok=True)
    with os_errors(place), tempfile.TemporaryDirectory(dir=place, prefix=".") as beside:
        checkpoint.write(f"{beside}/{name}")
        for path in sorted(Path(beside).glob(f"{name}.*"), key=lambda path: path.suffix == ".index"):
            os.replace(path, place / path.name)


def keep_newest(folder: Path, count: int = 1) -> None:
    """Drop all checkpoints of a run but the newest: of a finished run one is enough. Raises OSError.

    The best ones stay that were the best when a checkpoint was saved that stays, and the newest.
    """
    steps, best = runs.saved_steps(folder), runs.saved_steps(folder, "best")
    for old in steps[:-count]:
        drop(folder, f"step-{old}")
    for old, better in itertools.pairwise(best):
        if not any(old <= step < better for step in steps[-count:]):
            drop(folder, f"best-{old}")


def drop_best_after(folder: Path, step: int) -> None:
    """Drop the best checkpoints of after `step`, from which a run goes on: it will write them again. Raises OSError."""
    for later in runs.saved_steps(folder, "best"):
        if later > step:
            drop(folder, f"best-{later}")


def drop(folder: Path, name: str) -> None:
    """Delete a checkpoint, its index first: without it a checkpoint does not count. Raises OSError."""
    files = (folder / "checkpoints").glob(f"{name}.*")
    for path in sorted(files, key=lambda path: path.suffix != ".index"):
        path.unlink()


def restore(checkpoint: tf.train.Checkpoint, folder: Path, say: Say) -> None:
    """Load the newest checkpoint that is whole, saying which were not; nothing if the run has none yet.

    Damage is found by the checksums that TensorFlow keeps of every tensor. Raises runs.RunError if none is whole.
    """
    for stale in (folder / "checkpoints").glob(".*"):  # a write that was killed
        shutil.rmtree(stale)
    steps = runs.saved_steps(folder)
    for step in reversed(steps):
        try:
            checkpoint.read(str(folder / "checkpoints" / f"step-{step}")).assert_existing_objects_matched()
            return
        except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
            then = "; trying the one before" if step > steps[0] else ""
            say(f"checkpoint   step {step:,} is damaged or of another main.py ({one_line(str(error))}){then}")
    if steps:
        raise runs.RunError(f"{folder}: all its checkpoints are damaged or of another main.py; start a new run")


def load_weights(vae: Any, folder: Path, kind: str = "step") -> None:
    """Load the newest weights of a run, or with the kind "best" the best, into a VAE of the same shape.

    Raises runs.RunError if there are none.
    """
    newest = folder / "checkpoints" / f"{kind}-{runs.newest_step(folder, kind)}"
    try:
        status = checkpoint(vae).read(str(newest))
        status.expect_partial().assert_existing_objects_matched()  # the optimizer's part is not wanted
    except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
        raise runs.RunError(f"{folder} has no weights for these networks ({one_line(str(error))})") from None


def start_from(settings: Settings, vae: Any, say: Say) -> None:
    """Give an untrained VAE the newest weights of the run START_FROM.

    `say` is given notes where that run was saved with other constants than params.py has.
    Raises SettingsError if that run's networks are others, and runs.RunError.
    """
    load_weights(vae, runs.to_start_from(settings, say))


# --- errors -----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def os_errors(place: Path) -> Iterator[None]:
    """Raise what TensorFlow's writers raise (a full disk, no permission) as OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, one_line(error.message), str(place)) from None


def one_line(message: str) -> str:
    """An error's first line, or its last 60 characters if it is long."""
    line = next(iter(message.strip().splitlines()), "no reason given")
    return line if len(line) <= 60 else f"...{line[-60:]}"
