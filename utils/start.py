"""Start TensorFlow and Keras quietly, with our flags. All other modules import `tf` and `keras` from here."""

import os
from collections.abc import Iterator
from typing import Any

from utils.quiet import quiet_start, uncollected

# XLA on a CPU then does not copy nearly all weights in every step: 6 percent of its time. A user's own flags win.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_copy_insertion_use_region_analysis=true")
os.environ["KERAS_BACKEND"] = "tensorflow"  # even if a user's keras.json names another
with quiet_start(), uncollected():
    import keras
    import tensorflow as tf

    HAS_GPU = bool(tf.config.list_physical_devices("GPU"))  # the first call; it prints an error if there is no GPU

keras.config.set_floatx("float32")

CONVOLUTION_LAYERS = tuple(kind for name, kind in vars(keras.layers).items() if "Conv" in name)


def xla_pays(*networks: keras.Model) -> bool:
    """Whether to compile these networks with XLA.

    On a GPU it always pays. On a CPU it pays only without convolutions, which XLA makes 50 times slower there. If
    several devices train together it is not used, because XLA on a CPU cannot compile what they exchange.
    """
    if tf.distribute.has_strategy():
        return False
    return HAS_GPU or not any(isinstance(layer, CONVOLUTION_LAYERS) for net in networks for layer in layers_of(net))


def layers_of(layer: Any) -> Iterator[keras.Layer]:
    """A layer and all layers within it, however deep: in a model, a wrapper or a user's own layer."""
    yield from layer._flatten_layers()  # Keras 3 has no public name for it
