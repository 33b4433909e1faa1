"""The test log-likelihood, by importance sampling, and the bounds that fewer samples give."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from utils.start import tf

LOG_2_PI = 1.8378770664093453


def log_standard_normal(z: tf.Tensor) -> tf.Tensor:
    """log N(z; 0, I): (..., L) -> (...) nats."""
    return -tf.reduce_sum(tf.square(z) + LOG_2_PI, axis=-1) / 2


class Sums(NamedTuple):
    """What is kept of the draws' importance weights w of B images: as much after a million draws as after one.

    For the bounds, the draws fall into disjoint groups, of another size in each of G rows. A group's sum is the w's
    of the group that is not full yet; a row's total is the sum of log(sum of w) over its full groups. All in float64:
    in float32 a draw that adds less than a rounding error is lost, and thousands of them make the estimate too low.
    """

    log_sum: tf.Tensor  # log of the sum of w, (B,)
    log_sum_of_squares: tf.Tensor  # log of the sum of w^2, (B,)
    log_sum_of_group: tf.Tensor  # (G, B)
    total: tf.Tensor  # (G, B)


def no_draws(batch: int | tf.Tensor, sizes: Sequence[int] = ()) -> Sums:
    """The sums of `batch` images before the first draw, with a row for the bound of each number of draws in `sizes`."""
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
    """Add the draws first, first + 1, ..., stop - 1 of z from q(z|x) to the sums of those before.

    x is (B, ...), z_mean and z_log_std are (B, L); log_p_x_given_z(x, z) and log_prior(z) = log p(z) return (B,) nats;
    draw_noise(k) returns draws (B, L) from N(0, I), other ones for every k. One draw for the whole batch is worked on
    at a time, so that memory does not grow with their number.
    """
    sizes = tf.reshape(tf.constant(sizes, tf.int32), (-1, 1))  # (G, 1)
    k = tf.convert_to_tensor(first)
    while k < stop:  # over tf.range(first, stop), XLA would compile the loop once more for each new number of draws
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
    (Burda et al. 2015, eq. 8). In expectation a lower bound: the ELBO for K = 1, and nearer to log p(x) the larger K
    is.

    The variance, in nats squared, is by the delta method: that of log(mean w) is about var(w) / (K mean(w)^2). A single
    draw has none: NaN.
    """
    count = tf.cast(samples, tf.float64)
    relative_second_moment = tf.exp(sums.log_sum_of_squares - 2 * sums.log_sum) * count  # mean(w^2) / mean(w)^2
    return sums.log_sum - tf.math.log(count), tf.maximum(relative_second_moment - 1, 0) / (count - 1)


def bounds(sums: Sums, samples: int, sizes: Sequence[int]) -> tf.Tensor:
    """The bounds on log p(x) that `sizes` draws give, float64 (G, B) nats, from the sums of `samples` draws.

    For K draws: the mean of log 1/K sum_k w_k over the full groups of K draws, of which there has to be one. That is
    L_K of Burda et al. 2015 (eq. 8), without bias. L_1 is the ELBO, and no L_K lies below the one before (their
    theorem 1; of a finite number of draws the means may).
    """
    sizes = tf.reshape(tf.constant(sizes, tf.float64), (-1, 1))
    return sums.total / (samples // sizes) - tf.math.log(sizes)


def log_add(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """log(exp(a) + exp(b)) without overflow; a may be -infinity."""
    larger = tf.maximum(a, b)
    return larger + tf.math.log1p(tf.exp(tf.minimum(a, b) - larger))
