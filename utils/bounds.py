"""Several draws of z for each image: noise, loss terms and the importance-weighted bounds, IWAE and DReG.

Shapes: K draws, B images a batch, (H, W, C) an image, L latents.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from utils import size
from utils.batches import brightness
from utils.chance import TEST_NOISE, random_key, standard_normal
from utils.dataset import in_equal_batches
from utils.priors import kl_of_draws
from utils.settings import Settings
from utils.start import tf, xla_pays

ReconstructionLoss = Callable[[Any, tf.Tensor, tf.Tensor, Settings], tf.Tensor]  # main.reconstruction_loss


def draw_noise(s: Settings, images: int, key: tf.Tensor) -> tf.Tensor:
    """Noise for so many images, (B, L); with BOUND_SAMPLES = K > 1, or another BOUND than the ELBO, (K, B, L)."""
    draws = () if s.bound == "elbo" and s.bound_samples == 1 else (s.bound_samples,)
    return standard_normal((*draws, images, s.latent_dim + s.noise_dim), key)


def one_image_a_draw(x: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Images (B, H, W, C) and their draws (K, B, L) as pairs: (K B, H, W, C) and (K B, L). Draws (B, L) are pairs."""
    if len(z.shape) == 2:
        return x, z
    x = tf.broadcast_to(x, (*z.shape[:-2], *x.shape))
    return tf.reshape(x, (-1, *x.shape[2:])), tf.reshape(z, (-1, z.shape[-1]))


def mean_over_draws(values: tf.Tensor) -> tf.Tensor:
    """The mean (B,) over draws (K, B), if there are several."""
    return tf.reduce_mean(values, axis=0) if len(values.shape) == 2 else values


def importance_bound(
    vae: Any, x: tf.Tensor, noise: tf.Tensor, weight: tf.Tensor, s: Settings, reconstruction_loss: ReconstructionLoss
) -> tf.Tensor:
    """The importance-weighted bound (B,) on log p(x) of images (B, H, W, C), by K draws, from noise (K, B, L).

    log 1/K sum_k w_k with w = p(x|z) (p(z) / q(z|x))^weight. It is the ELBO for K = 1. At weight 1 it comes the closer
    to log p(x) the larger K is (Burda et al. 2015, eq. 8). Everything is a logarithm, so that nothing overflows.

    BOUND = dreg changes the gradient only, to the doubly reparameterised one (Tucker et al. 2018, arXiv 1810.04152,
    eq. 8), in which noise does not drown the encoder's signal as K grows. IWAE's gradient with respect to the encoder
    has two parts, one through z and one through the density q(z|x). The second is mostly noise, and its expectation
    follows from the first. With s_k = w_k / sum w, and g_k the gradient of log w_k with respect to z_k alone, the first
    is sum s_k g_k, and the second is in expectation -weight * sum s_k (1 - s_k) g_k. Their sum is
    sum s_k (1 - weight + weight * s_k) g_k, at weight 1 the paper's s_k^2. Whatever else log w depends on keeps its
    plain gradient, and so do the encoder's weights within a VampPrior.
    """
    z_mean, z_log_std = vae.encoder(x)
    z = z_mean + tf.exp(z_log_std) * noise

    def log_weights(z, z_mean, z_log_std):
        kl = kl_of_draws(vae.prior, z, z_mean, z_log_std)
        return -reconstruction_loss(vae, x, z, s) - weight * kl  # (K, B)

    log_w = log_weights(z, z_mean, z_log_std)
    if s.bound == "dreg":
        share = tf.nn.softmax(log_w, axis=0)
        z = scale_gradient(z, (1 - weight + weight * share)[..., tf.newaxis])
        log_w = log_weights(z, tf.stop_gradient(z_mean), tf.stop_gradient(z_log_std))  # compiled, no second decoding
    return tf.reduce_logsumexp(log_w, axis=0) - math.log(noise.shape[0])


@tf.custom_gradient
def scale_gradient(values: tf.Tensor, factor: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The values as they are. A gradient that comes back through them is multiplied by the factor."""
    return tf.identity(values), lambda upstream: (upstream * factor, None)


def compile_bound(vae: Any, s: Settings, reconstruction_loss: ReconstructionLoss) -> Callable[..., np.ndarray]:
    """A function: uint8 test images (N, H, W, C), KL weight -> their importance_bound (N,) by BOUND_SAMPLES draws."""
    draws = min(s.bound_chunk, size.most_at_once(vae.encoder, vae.decoder, prior=vae.prior))
    at_once = max(1, min(1_000, draws // s.bound_samples))

    @tf.function(jit_compile=xla_pays(vae.encoder, vae.decoder))
    def bound(images, start, weight):
        noise = draw_noise(s, images.shape[0], random_key(s.seed, TEST_NOISE, start))
        return (importance_bound(vae, brightness(images), noise, weight, s, reconstruction_loss),)

    return lambda images, weight: in_equal_batches(partial(bound, weight=weight), images, at_once, "testing")[0]


# --- a batch in parts -------------------------------------------------------------------------------------------------
def in_parts(differentiate: Callable, parts: int, weights: Sequence[Any]) -> Callable:
    """differentiate(images, draw, weight) -> gradients, terms; done for so many equal parts of a batch, as their means.

    `draw` numbers the draws of noise; each part has a draw of its own. Parts bound the memory (BOUND_CHUNK).
    """
    if parts == 1:
        return differentiate

    def differentiate_in_parts(images, draw, weight):
        images, first = tf.reshape(images, (parts, -1, *images.shape[1:])), tf.cast(draw, tf.int64) * parts
        gradients, terms = [tf.zeros(variable.shape) for variable in weights], tf.zeros(3)
        for part in tf.range(parts):
            more, more_terms = differentiate(images[part], first + tf.cast(part, tf.int64), weight)
            gradients = [old + new / parts for old, new in zip(gradients, more, strict=True)]
            terms += more_terms / parts
        return gradients, terms

    return differentiate_in_parts
