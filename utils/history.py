"""What a run writes down while it trains: history.jsonl, and for TensorBoard the same numbers and the grids."""

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

    `weight` is the KL's; None is the plain autoencoder, which has neither KL nor ELBO. `name` is report.sum_name's.
    """
    objective, reconstruction, kl = (float(term) for term in terms)
    line = {"step": step, "epoch": round(step / steps_per_epoch, 4), "split": split, "objective": objective}
    line |= {"reconstruction": reconstruction} | dict.fromkeys(("kl", "kl_weight", "elbo"))
    if weight is not None:
        line |= {"kl": kl, "kl_weight": float(weight), name: -(reconstruction + kl)}
    return line


@contextlib.contextmanager
def event_writer(folder: Path, split: str, suffix: str = ".v2") -> Iterator[tf.summary.SummaryWriter]:
    """TensorBoard's writer for a run's training or test numbers; it is closed at the end of the block. Raises OSError.

    The same tag of both splits shares a chart. The name of the writer's file ends in `suffix`.
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
    """Add a line to history.jsonl, and its numbers to TensorBoard, for which `events` is by split. Raises OSError."""
    with open(folder / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
    with os_errors(folder / "tensorboard"), events[line["split"]].as_default(step=line["step"]):
        for name, value in line.items():
            if (isinstance(value, float) and name != "epoch") or (name == "active_units" and value is not None):
                tf.summary.scalar(name, value)


def write_images(
    folder: Path, events: dict[str, tf.summary.SummaryWriter], step: int, grids: dict[str, np.ndarray]
) -> None:
    """Show grids, uint8 (height, width, C) by name, beside the tests in TensorBoard. Raises OSError."""
    with os_errors(folder / "tensorboard"), events["test"].as_default(step=step):
        for name, sheet in grids.items():
            tf.summary.image(name, sheet[np.newaxis])


def write_likelihood(folder: Path, step: int, judged: dict[str, Any]) -> None:
    """Show a report's log-likelihood or log-density, if it has one, in TensorBoard. Raises OSError.

    It has an event file of its own, in place of the one that an earlier judgement of this step left.
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


# --- what came after a checkpoint -------------------------------------------------------------------------------------
def cut_back(folder: Path, step: int, say: Say, logged: int = 0) -> None:
    """Drop from the history and the event files what came after `step`: the resumed run will write it again.

    `say` is given a line for what is damaged there, and so is lost. `logged` is the step of the last training line
    that was written before the checkpoint; 0 if there was none.
    """
    lines, count = read_history(folder), len(history_lines(folder))
    if lost := count - len(lines):
        say(f"note       {lost:,} of {count:,} lines of history.jsonl are damaged or double, and so are dropped")
    kept = [line for line in lines if line["step"] <= step] if step else []
    if logged and logged not in {line["step"] for line in kept}:
        say(f"note       history.jsonl has lost its line of step {logged:,}, and maybe others")
    write_whole(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
    for split in ("", "train", "test"):  # "": where older code wrote them
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
    """Keep the records of a TensorBoard event file up to `step`; a last one that a crash cut short goes too.

    What is behind a damaged one cannot be read; `say` is given a line.
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
