"""Helpers of several test files: environment, XLA, addresses, folders, pictures, images and histories."""

import errno
import os
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from tests.reference_runs import DEFAULT
from utils import history
from utils.dataset import BadImage, LazyImages

REPOSITORY = Path(__file__).resolve().parents[1]
ARRAY = np.random.default_rng(1).integers(256, size=(40, 4, 5, 3), dtype=np.uint8)
PLACES = {"data_dir", "output_dir", "run_name", "start_from"}
OURS = {name.replace("-", "_") for name in DEFAULT} | PLACES  # constants; any other in params.py is the user's own


def users_environment():
    """This process's environment without the variables that importing main sets: a user's shell has none of them."""
    own = ("TF_", "XLA_", "KERAS_", "TQDM_")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def set_xla(patch, compiled=False):
    """Make every module compile by XLA or not, whatever the networks are."""
    rooms = [name for name in sys.modules if name == "main" or name.startswith(("utils.", "experiments."))]
    for name in rooms:
        if "xla_pays" in vars(sys.modules[name]):
            patch.setattr(sys.modules[name], "xla_pays", lambda *networks: compiled)


def free_addresses(count):
    """Addresses on this machine that no process listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def contents(folder):
    """The content of every file below the folder, including hidden ones, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def opened(path):
    """A picture's pixels, (H, W) or (H, W, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def lazy(numbers=range(40), bad=(), skip=False, seen=None):
    """LazyImages over ARRAY: the `bad` numbers cannot be read; the numbers that were asked for are put in `seen`."""

    def read(number):
        time.sleep(0.02 if number % 10 == 3 else 0)  # so that threads overtake each other
        if seen is not None:
            seen.append(number)
        if number in bad:
            raise BadImage(f"{number}.jpg: not an image")
        return ARRAY[number]

    return LazyImages(read, np.array(numbers, int), ARRAY.shape[1:], skip)


def written(folder, steps, split="train"):
    """A history and one event file with a line for each step."""
    with history.event_writer(folder, split) as events:
        for step in steps:
            line = history.history_line(split, step, 10, np.float32([step + 0.1, 2, 3]), 0.5)
            history.write_line(folder, {split: events}, line)


def scalars(folder):
    """What TensorBoard's own reader finds: {(train or test / tag, step): a value, or (3,) texts for a picture}. It also
    checks that nothing is there twice."""
    found, place = {}, folder / "tensorboard"
    for path in sorted(place.rglob("*tfevents*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                key = str(path.parent.relative_to(place) / value.tag), event.step
                assert key not in found
                content = make_ndarray(value.tensor)
                found[key] = content if content.ndim else content.item()
    return found
