"""Priors p(z) over the latents of a VAE: N(0, I), and three that are learned together with the networks.

Each is a `Prior`: a log-density, a way to draw from it, and its own weights. The KL of a posterior to a learned prior
has no closed form: KL(q(z|x) || p(z)) is the mean of log q(z|x) - log p(z) over draws z from q(z|x).
Shapes: N points, L latents, C components. Densities are in nats.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from utils.chance import PRIOR_WEIGHTS, initializers, standard_normal
from utils.likelihood import LOG_2_PI, log_standard_normal
from utils.settings import Settings
from utils.start import keras, tf

LOG_SCALE_BOUND = 2.0  # of one coupling layer: it stretches by at most exp(2), so a few layers can't overflow


class Prior(NamedTuple):
    """log_density(z): (..., L) -> (...) nats; sample(count, key): (count, L); weights: its own to learn.

    Both can be compiled by XLA, and the log-density has gradients with respect to z and to the weights. The key is an
    integer tensor (2,). The same key gives the same draws, if both run in the same way (eager, graph or XLA).
    """

    log_density: Callable[[tf.Tensor], tf.Tensor]
    sample: Callable[[int, tf.Tensor], tf.Tensor]
    weights: list[keras.Variable]


def build_prior(s: Settings, encoder: keras.Model, image_shape: tuple[int, ...]) -> Prior:
    """The prior that PRIOR names, untrained; `encoder` maps images (B, *image_shape) to z_mean and z_log_std (B, L).

    Its weights depend on SEED alone. Raises ValueError for "realnvp" with a single latent, which cannot be halved.
    """

    def posterior(x):
        return [part[:, : s.latent_dim] for part in encoder(x)]

    prior = {
        "standard": lambda: standard(s.latent_dim),
        "vampprior": lambda: vampprior(posterior, image_shape, s.prior_components, s.seed),
        "mixture": lambda: mixture(s.latent_dim, s.prior_components, s.seed),
        "realnvp": lambda: realnvp(s.latent_dim, s.prior_layers, s.prior_units, s.seed),
    }[s.prior]()
    return with_noise_latents(prior, s.latent_dim, s.noise_dim) if s.noise_dim else prior


def with_noise_latents(prior: Prior, latent_dim: int, noise_dim: int) -> Prior:
    """A prior over `latent_dim` latents, followed by `noise_dim` more, which are always N(0, 1)."""

    def sample(count, key):
        noise = standard_normal((count, noise_dim), key + tf.constant([0, 2**40], tf.int64))
        return tf.concat([prior.sample(count, key), noise], axis=1)

    return Prior(
        lambda z: prior.log_density(z[..., :latent_dim]) + log_standard_normal(z[..., latent_dim:]),
        sample,
        prior.weights,
    )


def kl_of_draws(prior: Prior, z: tf.Tensor, z_mean: tf.Tensor, z_log_std: tf.Tensor) -> tf.Tensor:
    """log q(z|x) - log p(z), (..., B) nats, at draws z (..., B, L). For any prior, the expectation is the KL."""
    log_posterior = -(tf.square((z - z_mean) * tf.exp(-z_log_std)) + LOG_2_PI) / 2 - z_log_std
    return tf.reduce_sum(log_posterior, axis=-1) - prior.log_density(z)


def over_points(log_density: Callable[[tf.Tensor], tf.Tensor], z: tf.Tensor) -> tf.Tensor:
    """Apply a log-density of points (N, L) to z (..., L): (...) nats."""
    return tf.reshape(log_density(tf.reshape(z, (-1, z.shape[-1]))), tf.shape(z)[:-1])


# --- the standard normal ----------------------------------------------------------------------------------------------
def standard(latent_dim: int) -> Prior:
    """N(0, I), which has nothing to learn."""
    return Prior(log_standard_normal, lambda count, key: standard_normal((count, latent_dim), key), [])


# --- mixtures of Gaussians --------------------------------------------------------------------------------------------
def mixture(latent_dim: int, components: int, seed: int) -> Prior:
    """A mixture of Gaussians with independent latents, whose means, standard deviations and shares are learned.

    At the start the shares are equal, the standard deviations are 1, and the means are drawn from N(0, I).
    """
    shape = (components, latent_dim)
    means = keras.Variable(drawn_normal(seed), shape, name="prior_means")  # (C, L)
    log_stds = keras.Variable("zeros", shape, name="prior_log_stds")  # (C, L)
    logits = keras.Variable("zeros", (components,), name="prior_logits")  # of the shares, (C,)

    def gaussians():
        return means.value, log_stds.value, tf.nn.log_softmax(logits.value)

    return mixture_of(gaussians, [means, log_stds, logits])


def vampprior(encoder: keras.Model, image_shape: tuple[int, ...], components: int, seed: int) -> Prior:
    """The encoder's posteriors at learned pseudo-inputs, mixed in equal shares (Tomczak & Welling 2018, eq. 9).

    The pseudo-inputs are images (C, *image_shape). A sigmoid keeps their brightness in [0, 1]. They start as noise,
    about as dark as a digit. The gradient goes to them and to the encoder, whose weights are not listed as the prior's.
    """
    shape = (components, *image_shape)
    pixels = keras.Variable(drawn_normal(seed, -2), shape, name="prior_pseudo_inputs")  # before the sigmoid

    def gaussians():
        z_mean, z_log_std = encoder(tf.sigmoid(pixels.value))
        return z_mean, z_log_std, tf.fill((components,), -np.float32(np.log(components)))

    return mixture_of(gaussians, [pixels])


def drawn_normal(seed: int, mean: float = 0) -> Callable[..., np.ndarray]:
    """An initialiser: a shape -> draws from N(mean, 1). It draws when called, because utils/size.py needs no values."""
    return lambda shape, dtype: np.random.default_rng((seed, PRIOR_WEIGHTS)).standard_normal(shape, np.float32) + mean


def mixture_of(gaussians: Callable[[], tuple[tf.Tensor, tf.Tensor, tf.Tensor]], weights: list[keras.Variable]) -> Prior:
    """A mixture; `gaussians` computes its means and log_stds (C, L) and log-shares (C,) from the weights."""
    return Prior(
        lambda z: over_points(lambda points: log_mixture(points, *gaussians()), z),
        lambda count, key: sample_mixture(*gaussians(), count, key),
        weights,
    )


def log_mixture(z: tf.Tensor, means: tf.Tensor, log_stds: tf.Tensor, log_shares: tf.Tensor) -> tf.Tensor:
    """log sum_c share_c N(z; mean_c, std_c^2) of points z (N, L), for means and log_stds (C, L): (N,) nats.

    (z - mean)^2 / std^2 is expanded, so that a matrix product does the work and no tensor (N, C, L) is held. The terms
    are as large as (|z| / std)^2 and nearly cancel, so they are in float64. In float32 the error could be whole nats.
    """
    z, means, log_stds = (tf.cast(part, tf.float64) for part in (z, means, log_stds))
    precision = tf.exp(-2 * log_stds)  # (C, L)
    constant = tf.reduce_sum(tf.square(means) * precision + 2 * log_stds + LOG_2_PI, axis=1)  # (C,)
    powers, factors = tf.concat([tf.square(z), z], 1), tf.concat([precision, -2 * means * precision], 1)  # (., 2L)
    exponents = product_of_rows(powers, factors) + constant  # (N, C)
    return tf.reduce_logsumexp(log_shares - tf.cast(exponents / 2, tf.float32), axis=1)


@tf.custom_gradient
def product_of_rows(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """a (N, M) times b (C, M) transposed, in float64. Its gradient uses products in float32 and is twice as fast.

    XLA on a CPU takes four times as long for products in float64. In the gradient of log_mixture with respect to
    log_stds, the part of a point is about 1, and float32 gives it an error of about 1e-7 (|z| / std)^2.
    """

    def gradient(upstream):  # (N, C)
        a32, b32, upstream = (tf.cast(part, tf.float32) for part in (a, b, upstream))
        products = tf.matmul(upstream, b32), tf.matmul(upstream, a32, transpose_a=True)
        return tuple(tf.cast(product, tf.float64) for product in products)

    return tf.matmul(a, b, transpose_b=True), gradient


def sample_mixture(
    means: tf.Tensor, log_stds: tf.Tensor, log_shares: tf.Tensor, count: int, key: tf.Tensor
) -> tf.Tensor:
    """Draws (count, L) from the mixture of log_mixture."""
    component_key, noise_key = tf.unstack(tf.random.split(key, 2, alg="philox"))
    uniform = tf.random.stateless_uniform((count, 1), component_key, alg="philox")
    below = tf.cumsum(tf.exp(log_shares))[:-1] <= uniform  # (count, C - 1); <= so that a share of 0 is never drawn
    drawn = tf.reduce_sum(tf.cast(below, tf.int32), axis=1)  # (count,), each 0 to C - 1
    noise = standard_normal((count, means.shape[1]), noise_key)
    return tf.gather(means, drawn) + tf.exp(tf.gather(log_stds, drawn)) * noise


# --- a flow -----------------------------------------------------------------------------------------------------------
def realnvp(latent_dim: int, layers: int, units: int, seed: int) -> Prior:
    """A flow of affine coupling layers between z and noise from N(0, I) (Dinh et al. 2017, eq. 3, 4, 6 and 7).

    Its coupling networks have two hidden layers of `units`. It starts as N(0, I). Raises ValueError for one latent.
    """
    if latent_dim < 2:
        raise ValueError(f"latent_dim: {latent_dim} is not allowed with a RealNVP prior; an integer of at least 2 is")
    couplings = [build_coupling(latent_dim, units, (seed, PRIOR_WEIGHTS), number) for number in range(layers)]

    def log_density(z):
        noise, log_det = to_noise(couplings, z)
        return log_standard_normal(noise) + log_det

    return Prior(
        lambda z: over_points(log_density, z),
        lambda count, key: from_noise(couplings, standard_normal((count, latent_dim), key)),
        [weight for coupling in couplings for weight in coupling.trainable_variables],
    )


def build_coupling(latent_dim: int, units: int, key: tuple[int, ...], number: int) -> keras.Model:
    """The network of coupling layer `number`: the kept half of the latents -> shift and log-scale of the other half.

    The first layer of a pair keeps the larger half. The last dense layer starts at zero, so shift and log-scale do too.
    """
    glorot = initializers((*key, number), 2)
    changed = (latent_dim + number % 2) // 2
    name = f"prior_{number}"
    layers = [
        keras.Input((latent_dim - changed,), name="kept"),
        keras.layers.Dense(units, "relu", kernel_initializer=glorot[0], name=f"{name}_hidden_0"),
        keras.layers.Dense(units, "relu", kernel_initializer=glorot[1], name=f"{name}_hidden_1"),
        keras.layers.Dense(2 * changed, kernel_initializer="zeros", name=f"{name}_shift_and_scale"),
    ]
    return keras.Sequential(layers, name=name)


def shift_and_log_scale(coupling: keras.Model, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The shift and log-scale of the changed half, computed from the kept half: two tensors (N, changed half)."""
    shift, log_scale = tf.split(coupling(kept), 2, axis=1)
    return shift, LOG_SCALE_BOUND * tf.tanh(log_scale / LOG_SCALE_BOUND)


def to_noise(couplings: list[keras.Model], z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Points z (N, L) -> their noise (N, L), N(0, I) if z is a draw from the prior, and log |det d noise / d z| (N,).

    Layers come in pairs: the second layer changes the half that the first one kept. The first pair separates latents
    with even and odd index. It leaves the even ones in front, so the next pair separates by the next binary digit of
    the index, and so on. In this way every latent interacts with all others, and slices are all it costs.
    """
    latents, log_det = z.shape[1], 0.0
    for number, coupling in enumerate(couplings):
        kept, changed = (z[:, ::2], z[:, 1::2]) if number % 2 == 0 else (z[:, : latents // 2], z[:, latents // 2 :])
        shift, log_scale = shift_and_log_scale(coupling, kept)
        z = tf.concat([changed * tf.exp(log_scale) + shift, kept], axis=1)
        log_det += tf.reduce_sum(log_scale, axis=1)
    return z, log_det


def from_noise(couplings: list[keras.Model], noise: tf.Tensor) -> tf.Tensor:
    """The inverse of to_noise: noise (N, L) -> z (N, L)."""
    z, latents = noise, noise.shape[1]
    interleaved = np.argsort(np.r_[0:latents:2, 1:latents:2])
    for number, coupling in reversed(list(enumerate(couplings))):
        size = (latents + number % 2) // 2
        changed, kept = z[:, :size], z[:, size:]
        shift, log_scale = shift_and_log_scale(coupling, kept)
        z = tf.concat([kept, (changed - shift) * tf.exp(-log_scale)], axis=1)
        z = tf.gather(z, interleaved, axis=1) if number % 2 == 0 else z
    return z
