"""How large a VAE is, found out before it is built, and whether it fits into this machine's memory."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils import mnist, runs
from utils.console import Say
from utils.settings import Settings, SettingsError
from utils.start import keras

BYTES = 16  # of memory for each parameter: its value, its gradient and Adam's two moments, all float32
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, by version


def check_fits(build: Callable[..., Any], s: Settings, image_shape: tuple[int, ...], say: Say) -> None:
    """Say how large the VAE is that build(s, image_shape) will make. Raises SettingsError if memory can't hold it."""
    count = count_parameters(build, s, image_shape)
    if count is None:
        say("building   a network whose size is not known before it is built")
        return
    needed, there = count * BYTES, memory()
    if needed <= there:
        say(f"building   {millions(count)} M parameters, {in_bytes(needed)} with gradients and Adam's moments")
        return
    name = what_to_lower(build, s, image_shape)
    raise SettingsError(
        f"{name}: {getattr(s, name)!r} is not allowed; {millions(count)} M parameters need {in_bytes(needed)} or more, "
        f"with gradients and Adam's moments, but this machine has {in_bytes(there)}; lower it"
    )


def count_parameters(build: Callable[..., Any], s: Settings, image_shape: tuple[int, ...]) -> int | None:
    """How many parameters build(s, image_shape) makes; None if it fails, as it may for variables made from arrays.

    In a stateless scope of Keras, variables have a shape but no value yet. The thread has the scope, and whatever else
    Keras remembers of it, for itself.
    """

    def count():
        with keras.StatelessScope(initialize_variables=False):
            return sum(math.prod(weight.shape) for weight in build(s, image_shape).weights)

    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(count).result()
        except Exception:  # the build itself will raise it where it can be understood
            return None


def what_to_lower(build: Callable[..., Any], s: Settings, image_shape: tuple[int, ...]) -> str:
    """The setting that, halved, leaves the fewest parameters."""
    height, width, channels = image_shape
    counts = {}
    if s.dataset not in mnist.TITLES:  # whose size is what it is
        counts["image_size"] = count_parameters(build, s, (height // 2, width // 2, channels))
    for name in runs.weights_depend_on(s):
        value = getattr(s, name)
        if isinstance(value, int | tuple):
            halved = tuple(-(-part // 2) for part in value) if isinstance(value, tuple) else -(-value // 2)
            counts[name] = count_parameters(build, s.model_copy(update={name: halved}), image_shape)
    return min((name for name in counts if counts[name] is not None), key=counts.get)


def memory() -> float:
    """The bytes of memory that this process may have at most; infinity where that is not known."""
    found = [math.inf]
    if hasattr(os, "sysconf"):  # not on Windows
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    texts = [Path(limit).read_text().strip() for limit in LIMITS if os.access(limit, os.R_OK)]
    return min(found + [int(text) for text in texts if text.isdecimal()])  # and not "max"


def millions(count: int) -> str:
    """A number in millions, as in 1.4."""
    return f"{count / 1e6:,.1f}"


def in_bytes(count: float) -> str:
    """A number of bytes in megabytes or gigabytes."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
