"""The test log-likelihood, by importance sampling."""

from collections.abc import Callable

import tensorflow as tf

LOG_2_PI = 1.8378770664093453


def log_standard_normal(z: tf.Tensor) -> tf.Tensor:
    """log N(z; 0, I): (B, L) -> (B,) nats."""
    return -tf.reduce_sum(tf.square(z) + LOG_2_PI, axis=-1) / 2


def log_likelihood(
    x: tf.Tensor,
    z_mean: tf.Tensor,
    z_log_std: tf.Tensor,
    log_p_x_given_z: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    log_prior: Callable[[tf.Tensor], tf.Tensor],
    draw_noise: Callable[[tf.Tensor], tf.Tensor],
    samples: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Estimate log p(x) of every image by `samples` draws of z from q(z|x) (Burda et al. 2015, eq. 8).

    log p(x) ~ log 1/K sum_k w_k with w_k = p(x|z_k) p(z_k) / q(z_k|x) and z_k ~ q(z|x) = N(z_mean, exp(z_log_std)^2).
    In expectation a lower bound: the ELBO for K = 1, and nearer to log p(x) the larger K is.

    x is (B, ...), z_mean and z_log_std are (B, L); log_p_x_given_z(x, z) and log_prior(z) = log p(z) return (B,) nats;
    draw_noise(k) returns draws (B, L) from N(0, I), other ones for every k. One draw for the whole batch is worked on
    at a time, so that memory does not grow with K.

    Returns the estimates (B,) in nats and their sampling variances (B,) in nats squared, by the delta method: the
    variance of log(mean w) is about var(w) / (K mean(w)^2). One sample alone has no variance: NaN.
    """
    log_sum_w = tf.fill(tf.shape(z_mean)[:1], -float("inf"))
    log_sum_w_squared = log_sum_w
    for k in tf.range(samples):
        noise = draw_noise(k)
        z = z_mean + tf.exp(z_log_std) * noise
        log_q = log_standard_normal(noise) - tf.reduce_sum(z_log_std, axis=-1)  # log q(z|x): a change of variables
        log_w = log_p_x_given_z(x, z) + log_prior(z) - log_q
        log_sum_w = log_add(log_sum_w, log_w)
        log_sum_w_squared = log_add(log_sum_w_squared, 2 * log_w)
    count = tf.cast(samples, tf.float32)
    relative_second_moment = tf.exp(log_sum_w_squared - 2 * log_sum_w) * count  # mean(w^2) / mean(w)^2
    return log_sum_w - tf.math.log(count), tf.maximum(relative_second_moment - 1, 0) / (count - 1)


def log_add(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """log(exp(a) + exp(b)) without overflow; a may be -infinity."""
    larger = tf.maximum(a, b)
    return larger + tf.math.log1p(tf.exp(tf.minimum(a, b) - larger))
