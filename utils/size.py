"""The size of a VAE before it is built, whether it fits into memory, and how many images to process at a time."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils import mnist, runs
from utils.console import Say
from utils.dataset import evaluated_at_once
from utils.priors import Prior
from utils.settings import Settings, SettingsError
from utils.start import keras, layers_of

BYTES = 16  # of memory for each parameter: its value, its gradient and Adam's two moments, all float32
FORWARD = 2**26  # float32 numbers, 268 MB, that a layer's input and output may have outside a training step
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container: cgroup v2, v1


def check_fits(build: Callable[..., Any], s: Settings, image_shape: tuple[int, ...], say: Say) -> None:
    """Print the size of the VAE that build(s, image_shape) will make. Raises SettingsError if memory can't hold it."""
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
        f"with gradients and Adam's moments, but there are {in_bytes(there)} of memory; lower it"
    )


def count_parameters(build: Callable[..., Any], s: Settings, image_shape: tuple[int, ...]) -> int | None:
    """How many parameters build(s, image_shape) makes; None if it fails, as it may for variables made from arrays.

    In a stateless scope of Keras, variables have a shape but no value yet. A thread of its own keeps the scope, and
    other state that Keras stores per thread, away from the rest of the program.
    """

    def count():
        with keras.StatelessScope(initialize_variables=False):
            return sum(math.prod(weight.shape) for weight in build(s, image_shape).weights)

    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(count).result()
        except Exception:  # the real build will raise it again, with a clear traceback
            return None


def at_once(vae: Any) -> int:
    """How many images to encode, decode or weigh at a time: evaluated_at_once, or fewer if a layer is wide.

    It depends only on the networks, so that all runs with the same networks are tested alike.
    """
    return min(evaluated_at_once(vae.decoder.output_shape), most_at_once(vae.encoder, vae.decoder, prior=vae.prior))


def most_at_once(*networks: keras.Model, prior: Prior | None = None) -> int:
    """How many images fit into FORWARD; at least 1, because memory for a training step is enough for one image.

    Without gradients the widest layer determines the memory, because that of the other layers is freed.
    """
    known = [network for network in networks if isinstance(network, keras.Model)]  # others have no known shapes
    wide = [sum(sizes) for network in known for sizes in numbers_of(network)]
    wide += [6 * weight.shape[0] for weight in (prior.weights if prior else ()) if weight.shape]  # in log_mixture
    return max(1, FORWARD // max(wide, default=1))


def numbers_of(network: keras.Model) -> Iterator[tuple[int, int]]:
    """How many numbers per image each layer or operation of a network takes, and how many it returns.

    Layers inside a user's own layer have no known shapes and are left out.
    """
    for part in dict.fromkeys([*layers_of(network), *getattr(network, "operations", ())]):
        if not isinstance(part, keras.Model):
            with contextlib.suppress(AttributeError, TypeError, ValueError):  # unknown shape, or used twice
                ends = (keras.tree.flatten(end) for end in (part.input, part.output))
                yield tuple(sum(math.prod(tensor.shape[1:]) for tensor in end) for end in ends)


def what_to_lower(build: Callable[..., Any], s: Settings, image_shape: tuple[int, ...]) -> str:
    """The setting that, halved, leaves the fewest parameters."""
    height, width, channels = image_shape
    counts = {}
    if s.dataset not in mnist.TITLES:  # MNIST's size is fixed
        counts["image_size"] = count_parameters(build, s, (height // 2, width // 2, channels))
    for name in runs.weights_depend_on(s):
        value = getattr(s, name)
        if isinstance(value, int | tuple):
            halved = tuple(-(-part // 2) for part in value) if isinstance(value, tuple) else -(-value // 2)
            counts[name] = count_parameters(build, s.model_copy(update={name: halved}), image_shape)
    return min((name for name in counts if counts[name] is not None), key=counts.get)


def memory() -> float:
    """The most bytes of memory that the machine, its container and `ulimit` allow; infinity if not known."""
    found = [math.inf]
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
        found += [limit for limit in limits if limit != resource.RLIM_INFINITY]
    texts = [Path(limit).read_text(encoding="utf-8").strip() for limit in LIMITS if os.access(limit, os.R_OK)]
    return min(found + [int(text) for text in texts if text.isdecimal()])  # and not "max"


def millions(count: int) -> str:
    """A number in millions, as in 1.4."""
    return f"{count / 1e6:,.1f}"


def in_bytes(count: float) -> str:
    """A number of bytes in megabytes or gigabytes."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
