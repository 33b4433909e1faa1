"""The record of a training run: history.jsonl, and the same numbers and the grids for TensorBoard."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event

from utils.checkpoints import os_errors
from utils.console import Say
from utils.files import write_whole
from utils.runs import history_lines, read_history
from utils.start import tf


def history_line(
    split: str, step: int, steps_per_epoch: int, terms: Any, weight: Any | None, name: str = "elbo"
) -> dict[str, Any]:
    """A line of history.jsonl after `step` steps; `terms` (3,) are objective, reconstruction loss and KL, in nats.

    `weight` is the KL weight, or None for the plain autoencoder, which has neither KL nor ELBO. `name`, from
    report.sum_name, is the name of the sum.
    """
    objective, reconstruction, kl = (float(term) for term in terms)
    line = {"step": step, "epoch": round(step / steps_per_epoch, 4), "split": split, "objective": objective}
    line |= {"reconstruction": reconstruction} | dict.fromkeys(("kl", "kl_weight", "elbo"))
    if weight is not None:
        line |= {"kl": kl, "kl_weight": float(weight), name: -(reconstruction + kl)}
    return line


@contextlib.contextmanager
def event_writer(folder: Path, split: str, suffix: str = ".v2") -> Iterator[tf.summary.SummaryWriter]:
    """Open a TensorBoard writer for a run's training or test numbers; close it after the block. Raises OSError.

    TensorBoard shows the same tag of both splits in one chart. The name of the file ends in `suffix`.
    """
    place = folder / "tensorboard" / split
    with os_errors(place):
        events = tf.summary.create_file_writer(str(place), filename_suffix=suffix)
    try:
        yield events
    finally:
        with os_errors(place):
            events.close()


def write_line(folder: Path, events: dict[str, tf.summary.SummaryWriter], line: dict[str, Any]) -> None:
    """Add a line to history.jsonl, and its numbers to the TensorBoard writer `events[split]`. Raises OSError."""
    with open(folder / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
    with os_errors(folder / "tensorboard"), events[line["split"]].as_default(step=line["step"]):
        for name, value in line.items():
            if (isinstance(value, float) and name != "epoch") or (name == "active_units" and value is not None):
                tf.summary.scalar(name, value)


def write_images(
    folder: Path, events: dict[str, tf.summary.SummaryWriter], step: int, grids: dict[str, np.ndarray]
) -> None:
    """Show grids, uint8 (height, width, C) by name, with the test numbers in TensorBoard. Raises OSError."""
    with os_errors(folder / "tensorboard"), events["test"].as_default(step=step):
        for name, sheet in grids.items():
            tf.summary.image(name, sheet[np.newaxis])


def write_likelihood(folder: Path, step: int, judged: dict[str, Any]) -> None:
    """Show a report's log-likelihood or log-density, if it has one, in TensorBoard. Raises OSError.

    It gets its own event file, which replaces the file of an earlier evaluation at this step.
    """
    found = {"log_likelihood": judged["test_nll"] and -judged["test_nll"], "log_density": judged["test_log_density"]}
    for name, value in found.items():
        if value is not None:
            suffix = f".{name}-{step}"
            for old in event_files(folder / "tensorboard" / "test"):
                if old.name.endswith(suffix):
                    old.unlink()
            with event_writer(folder, "test", suffix) as events, events.as_default(step=step):
                tf.summary.scalar(name, value)


# --- cutting back to a checkpoint -------------------------------------------------------------------------------------
def cut_back(folder: Path, step: int, say: Say, logged: int = 0) -> None:
    """Delete everything after `step` from the history and the event files, because the resumed run writes it again.

    `say` gets a line about damaged parts, which are lost. `logged` is the step of the last training line before the
    checkpoint, or 0 if there was none.
    """
    lines, count = read_history(folder), len(history_lines(folder))
    if lost := count - len(lines):
        say(f"note       {lost:,} of {count:,} lines of history.jsonl are damaged or duplicate and are deleted")
    kept = [line for line in lines if line["step"] <= step] if step else []
    if logged and logged not in {line["step"] for line in kept}:
        say(f"note       history.jsonl has lost its line of step {logged:,}, and maybe others")
    write_whole(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
    for split in ("", "train", "test"):  # "": the place in older versions
        for path in event_files(folder / "tensorboard" / split):
            if step:
                cut_events(path, step, say)
            else:
                path.unlink()


def event_files(place: Path) -> list[Path]:
    """TensorBoard's files in a folder, by the exact form of their names: time, machine, process, number, suffix."""
    form = re.compile(r"events\.out\.tfevents\.\d+\..+\.\d+\.\d+\.(v2|log_(likelihood|density)-\d+)")
    found = place.iterdir() if place.is_dir() else ()
    return [path for path in found if form.fullmatch(path.name) and path.is_file() and not path.is_symlink()]


def cut_events(path: Path, step: int, say: Say) -> None:
    """Keep the records of a TensorBoard event file up to `step`. A last record that a crash cut short is dropped.

    Records after a damaged one cannot be read; then `say` gets a line.
    """
    beside, count = path.with_name(f".{path.name}"), 0
    try:
        with os_errors(path), tf.io.TFRecordWriter(str(beside)) as writer:
            try:
                for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                    count += 1
                    if Event.FromString(record).step <= step:
                        writer.write(record)
            except tf.errors.DataLossError as error:
                if "truncated" not in error.message:
                    say(f"note       {path} is damaged: TensorBoard has lost what follows its record {count:,}")
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    os.replace(beside, path)
