"""utils/start.py: what is compiled by XLA."""

import numpy as np
import pytest

from utils import start
from utils.start import keras, tf, xla_pays

SHAPE = (8, 8, 1)


def network(*layers):
    return keras.Sequential([keras.Input(SHAPE), *layers])


class Own(keras.layers.Layer):
    """A user's layer that contains another one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)


DENSE = network(keras.layers.Dense(3, name="conv_by_name_only"), Own(keras.layers.Dense(2)))
CONVOLUTIONAL = {
    "convolution": lambda: network(keras.layers.Conv2D(1, 2, name="a")),
    "transposed": lambda: network(keras.layers.Conv2DTranspose(1, 2, name="a")),
    "depthwise": lambda: network(keras.layers.DepthwiseConv2D(2, name="a")),
    "in a model in a model": lambda: network(network(network(keras.layers.Conv2D(1, 2, name="a")))),
    "in a layer of one's own": lambda: network(Own(keras.layers.Conv2D(1, 2, name="a"))),
    "in a wrapper": lambda: keras.Sequential(
        [keras.Input((3, *SHAPE)), keras.layers.TimeDistributed(keras.layers.Conv2D(1, 2, name="a"))]
    ),
}


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_xla_pays_for_dense_networks_and_on_a_gpu_for_convolutions_too_at_any_depth(kind, gpu, monkeypatch):
    monkeypatch.setattr(start, "HAS_GPU", gpu)
    convolutional = CONVOLUTIONAL[kind]()
    assert xla_pays(DENSE, DENSE)
    assert xla_pays(convolutional, DENSE) == xla_pays(DENSE, convolutional) == gpu


def test_float32_and_tensorflow_are_set():
    assert keras.backend.backend() == "tensorflow"
    assert keras.config.floatx() == "float32"
    assert np.float32(tf.constant(1.5)) == 1.5
