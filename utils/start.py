"""TensorFlow and Keras, started quietly and with our flags. Whatever computes takes `tf` and `keras` from here."""

import os
from collections.abc import Iterator
from typing import Any

from utils.quiet import quiet_start, uncollected

# Saves XLA on a CPU a copy of nearly all weights in every step, 6 percent of its time. A user's own flags win.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_copy_insertion_use_region_analysis=true")
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever a user's keras.json names
with quiet_start(), uncollected():
    import keras
    import tensorflow as tf

    HAS_GPU = bool(tf.config.list_physical_devices("GPU"))  # the first call, which writes an error where there is none

keras.config.set_floatx("float32")

CONVOLUTION_LAYERS = tuple(kind for name, kind in vars(keras.layers).items() if "Conv" in name)


def xla_pays(*networks: keras.Model) -> bool:
    """Whether to compile these networks with XLA: on a GPU always, on a CPU only if none has a convolution (50 times
    slower there).

    Not where several devices train together: what they exchange cannot be compiled on a CPU.
    """
    if tf.distribute.has_strategy():
        return False
    return HAS_GPU or not any(isinstance(layer, CONVOLUTION_LAYERS) for net in networks for layer in layers_of(net))


def layers_of(layer: Any) -> Iterator[keras.Layer]:
    """A layer and all layers within it, however deep: of a model in a model, of a wrapper, of a layer of one's own."""
    yield from layer._flatten_layers()  # Keras 3 has no public name for it
