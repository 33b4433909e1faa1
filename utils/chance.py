"""Random numbers. Each draw has a key: the seed, its purpose, and its position (layer, step, or epoch and batch).

So a seed determines a run, and a resumed run makes the same draws as an uninterrupted one.
"""

import numpy as np

from utils.start import keras, tf

# The purpose of a draw; random_key has room for 16.
ENCODER_WEIGHTS, DECODER_WEIGHTS, SHUFFLE, PIXELS, NOISE, TEST_NOISE, GRID_LATENTS, IMPORTANCE_NOISE = range(8)
PRIOR_WEIGHTS = 1_000  # only in keys for NumPy


def random_key(seed: tf.Tensor | int, purpose: int, step: tf.Tensor | int) -> tf.Tensor:
    """The key (2,) of one TensorFlow draw, different for each seed, purpose (0 to 15) and step."""
    return tf.stack([tf.cast(seed, tf.int64) * 16 + purpose, tf.cast(step, tf.int64)])


def standard_normal(shape: tuple[int, ...], key: tf.Tensor) -> tf.Tensor:
    """Draws from N(0, I). Philox is named because the default algorithm is 50 times slower under XLA on a CPU."""
    return tf.random.stateless_normal(shape, key, alg="philox")


def initializers(key: tuple[int, ...], count: int) -> list[keras.initializers.Initializer]:
    """Glorot's uniform initial weights for `count` layers, which depend on `key` alone."""
    return [keras.initializers.GlorotUniform(int(seed)) for seed in np.random.SeedSequence(key).generate_state(count)]


def initializer(key: tuple[int, ...]) -> keras.initializers.Initializer:
    """Glorot's uniform initial weights for one layer."""
    return initializers(key, 1)[0]
