"""The test log-likelihood by importance sampling, and the lower bounds from fewer samples."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from utils.start import tf

LOG_2_PI = 1.8378770664093453


def log_standard_normal(z: tf.Tensor) -> tf.Tensor:
    """log N(z; 0, I): (..., L) -> (...) nats."""
    return -tf.reduce_sum(tf.square(z) + LOG_2_PI, axis=-1) / 2


class Sums(NamedTuple):
    """Running sums of the importance weights w of B images. Their size does not depend on the number of draws.

    For the bounds, the draws are divided into disjoint groups; each of G rows has its own group size. log_sum_of_group
    is for the group that is not full yet. A row's total is the sum of log(sum of w) over its full groups. All is
    float64. In float32, a draw that adds less than a rounding error is lost, and thousands of lost draws make the
    estimate too low.
    """

    log_sum: tf.Tensor  # log of the sum of w, (B,)
    log_sum_of_squares: tf.Tensor  # log of the sum of w^2, (B,)
    log_sum_of_group: tf.Tensor  # log of the sum of w in the current group, (G, B)
    total: tf.Tensor  # (G, B)


def no_draws(batch: int | tf.Tensor, sizes: Sequence[int] = ()) -> Sums:
    """The sums for `batch` images before the first draw, with a row for each number of draws in `sizes`."""
    rows = [len(sizes), batch]
    nothing = tf.constant(-float("inf"), tf.float64)
    empty = tf.fill([batch], nothing)
    return Sums(empty, empty, tf.fill(rows, nothing), tf.zeros(rows, tf.float64))


def add_draws(
    sums: Sums,
    first: int | tf.Tensor,
    stop: int | tf.Tensor,
    sizes: Sequence[int],
    x: tf.Tensor,
    z_mean: tf.Tensor,
    z_log_std: tf.Tensor,
    log_p_x_given_z: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    log_prior: Callable[[tf.Tensor], tf.Tensor],
    draw_noise: Callable[[tf.Tensor], tf.Tensor],
) -> Sums:
    """Add the draws first, first + 1, ..., stop - 1 of z from q(z|x) to the sums of the earlier draws.

    x is (B, ...), z_mean and z_log_std are (B, L). log_p_x_given_z(x, z) and log_prior(z) = log p(z) return (B,) nats.
    draw_noise(k) returns draws (B, L) from N(0, I), different for every k. The loop handles one draw for the whole
    batch at a time, so memory does not grow with the number of draws.
    """
    sizes = tf.reshape(tf.constant(sizes, tf.int32), (-1, 1))  # (G, 1)
    k = tf.convert_to_tensor(first)
    while k < stop:  # with tf.range(first, stop), XLA would compile the loop again for each new number of draws
        noise = draw_noise(k)
        z = z_mean + tf.exp(z_log_std) * noise
        log_q = log_standard_normal(noise) - tf.reduce_sum(z_log_std, axis=-1)  # log q(z|x): a change of variables
        log_w = tf.cast(log_p_x_given_z(x, z) + log_prior(z) - log_q, tf.float64)  # (B,)
        group, full = log_add(sums.log_sum_of_group, log_w), (k + 1) % sizes == 0
        sums = Sums(
            log_add(sums.log_sum, log_w),
            log_add(sums.log_sum_of_squares, 2 * log_w),
            tf.where(full, tf.cast(-float("inf"), tf.float64), group),
            sums.total + tf.where(full, group, tf.zeros_like(group)),
        )
        k += 1
    return sums


def estimate(sums: Sums, samples: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The estimates of log p(x) and their sampling variances, float64 (B,), from the sums of K = `samples` draws.

    log p(x) ~ log 1/K sum_k w_k with w_k = p(x|z_k) p(z_k) / q(z_k|x) and z_k ~ q(z|x) = N(z_mean, exp(z_log_std)^2)
    (Burda et al. 2015, eq. 8). In expectation this is a lower bound. For K = 1 it is the ELBO; it gets closer to
    log p(x) as K grows.

    The variance, in nats squared, is from the delta method: the variance of log(mean w) is about
    var(w) / (K mean(w)^2). For a single draw it is NaN.
    """
    count = tf.cast(samples, tf.float64)
    relative_second_moment = tf.exp(sums.log_sum_of_squares - 2 * sums.log_sum) * count  # mean(w^2) / mean(w)^2
    return sums.log_sum - tf.math.log(count), tf.maximum(relative_second_moment - 1, 0) / (count - 1)


def bounds(sums: Sums, samples: int, sizes: Sequence[int]) -> tf.Tensor:
    """The bounds on log p(x) from each number of draws in `sizes`, float64 (G, B) nats, from sums of `samples` draws.

    The bound for K draws is the mean of log 1/K sum_k w_k over the full groups of K draws. There must be at least one
    full group. This is an unbiased estimate of L_K of Burda et al. 2015 (eq. 8). L_1 is the ELBO, and L_K never
    decreases as K grows (their theorem 1). The means over a finite number of draws may decrease.
    """
    sizes = tf.reshape(tf.constant(sizes, tf.float64), (-1, 1))
    return sums.total / (samples // sizes) - tf.math.log(sizes)


def log_add(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """log(exp(a) + exp(b)) without overflow; a may be -infinity."""
    larger = tf.maximum(a, b)
    return larger + tf.math.log1p(tf.exp(tf.minimum(a, b) - larger))
