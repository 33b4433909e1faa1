"""Losses with DECODER_SCALE = learned: -log p(x|z) of pixels whose noise has a learned width, exp(log_scale).

Each takes images x (B, D) with brightness in [0, 1] and logits (B, D), and returns nats, (B,).
"""

import math

from utils.settings import Settings
from utils.start import keras, tf


def gaussian(x: tf.Tensor, logits: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """Gaussian pixels with the standard deviation exp(log_scale): the sigma-VAE (Rybkin et al. 2021)."""
    squared_error = tf.reduce_sum(tf.square(x - tf.sigmoid(logits)), axis=1)
    return squared_error * tf.exp(-2 * log_scale) / 2 + x.shape[1] * (log_scale + math.log(2 * math.pi) / 2)


def laplace(x: tf.Tensor, logits: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """Laplace pixels with the scale exp(log_scale)."""
    absolute_difference = tf.reduce_sum(tf.abs(x - tf.sigmoid(logits)), axis=1)
    return absolute_difference * tf.exp(-log_scale) + x.shape[1] * (log_scale + math.log(2))


def discretised_logistic(x: tf.Tensor, logits: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """8-bit pixels with the discretised logistic distribution (Salimans et al. 2017, eq. 2).

    The logistic distribution has scale exp(log_scale) and mean sigmoid(logits). The probability of a brightness is the
    mass within 1/510 of it, half the distance to its neighbours. 0 and 1 also get the mass beyond them.

    The mass is computed as sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)). The logarithm of this
    product stays finite despite rounding.
    """
    scale = tf.exp(log_scale)
    above, below = ((x - tf.sigmoid(logits) + half) / scale for half in (1 / 510, -1 / 510))
    # The logs of the mass below the upper end, and of the mass above the lower end.
    log_below_upper, log_above_lower = -tf.nn.softplus(-above), -tf.nn.softplus(below)
    between = log_below_upper + log_above_lower + tf.math.log(-tf.math.expm1(-1 / (255 * scale)))
    log_mass = tf.where(x <= 0, log_below_upper, tf.where(x >= 1, log_above_lower, between))
    return -tf.reduce_sum(log_mass, axis=1)


LOSSES = {"mse": gaussian, "ad": laplace, "logistic": discretised_logistic}  # by LOSS
INITIAL_LOG_SCALES = {"logistic": -3.0}  # a scale of 0.05 in brightness, because this one learns slowly; others: 0


def initial_log_scale(s: Settings) -> keras.Variable | None:
    """The log of the noise width, trained like a weight; None if the width is fixed."""
    if s.decoder_scale == "fixed":
        return None
    initial = keras.initializers.Constant(INITIAL_LOG_SCALES.get(s.loss, 0.0))
    return keras.Variable(initial, (), name="log_scale")
