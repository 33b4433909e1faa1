"""What several test files need: processes of a user's own, what a folder holds, and a picture's pixels."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]


def users_environment():
    """The environment of this process without what importing main has set: a user's shell has none of it."""
    own = ("TF_", "XLA_", "KERAS_", "TQDM_")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def free_addresses(count):
    """Addresses on this machine at which nobody listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def contents(folder):
    """Every file below the folder, hidden ones too, and what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def opened(path):
    """A picture's pixels, (H, W) or (H, W, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture)
