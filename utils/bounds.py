"""Several draws of z for each image: noise, loss terms and the importance-weighted bounds, IWAE and DReG.

Shapes: K draws, B images in a batch, (H, W, C) for an image, L latents.
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
    """Noise for B = `images` images: (B, L), or (K, B, L) if BOUND_SAMPLES = K > 1 or BOUND is not the ELBO."""
    draws = () if s.bound == "elbo" and s.bound_samples == 1 else (s.bound_samples,)
    return standard_normal((*draws, images, s.latent_dim + s.noise_dim), key)


def one_image_a_draw(x: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Pair images (B, H, W, C) with draws (K, B, L): (K B, H, W, C), (K B, L). With draws (B, L) nothing changes."""
    if len(z.shape) == 2:
        return x, z
    x = tf.broadcast_to(x, (*z.shape[:-2], *x.shape))
    return tf.reshape(x, (-1, *x.shape[2:])), tf.reshape(z, (-1, z.shape[-1]))


def mean_over_draws(values: tf.Tensor) -> tf.Tensor:
    """The mean (B,) over the draws of (K, B); values (B,) are returned as they are."""
    return tf.reduce_mean(values, axis=0) if len(values.shape) == 2 else values


def importance_bound(
    vae: Any, x: tf.Tensor, noise: tf.Tensor, weight: tf.Tensor, s: Settings, reconstruction_loss: ReconstructionLoss
) -> tf.Tensor:
    """The importance-weighted bound (B,) on log p(x) of images (B, H, W, C), by K draws, from noise (K, B, L).

    The bound is log 1/K sum_k w_k with w = p(x|z) (p(z) / q(z|x))^weight. For K = 1 it is the ELBO. At weight 1 it gets
    closer to log p(x) as K grows (Burda et al. 2015, eq. 8). Everything is computed in logarithms, so nothing
    overflows.

    BOUND = dreg changes only the gradient, to the doubly reparameterised one (Tucker et al. 2018, arXiv 1810.04152,
    eq. 8). In it, noise does not drown the encoder's signal as K grows. IWAE's gradient with respect to the encoder has
    two parts: one through z, and one through the density q(z|x). The second part is mostly noise, and its expectation
    follows from the first. Let s_k = w_k / sum w, and let g_k be the gradient of log w_k with respect to z_k alone. The
    first part is sum s_k g_k. The expectation of the second is -weight * sum s_k (1 - s_k) g_k. Their sum is
    sum s_k (1 - weight + weight * s_k) g_k; at weight 1 the factor of g_k is the paper's s_k^2. The gradient with
    respect to everything else in log w stays plain. That includes the encoder's weights within a VampPrior.
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
        # Once compiled, this does not decode a second time.
        log_w = log_weights(z, tf.stop_gradient(z_mean), tf.stop_gradient(z_log_std))
    return tf.reduce_logsumexp(log_w, axis=0) - math.log(noise.shape[0])


@tf.custom_gradient
def scale_gradient(values: tf.Tensor, factor: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Return the values unchanged, and multiply the gradient that comes back through them by the factor."""
    return tf.identity(values), lambda upstream: (upstream * factor, None)


def compile_bound(vae: Any, s: Settings, reconstruction_loss: ReconstructionLoss) -> Callable[..., np.ndarray]:
    """Make a function (uint8 test images (N, H, W, C), KL weight) -> importance_bound (N,) by BOUND_SAMPLES draws."""
    draws = min(s.bound_chunk, size.most_at_once(vae.encoder, vae.decoder, prior=vae.prior))
    at_once = max(1, min(1_000, draws // s.bound_samples))

    @tf.function(jit_compile=xla_pays(vae.encoder, vae.decoder))
    def bound(images, start, weight):
        noise = draw_noise(s, images.shape[0], random_key(s.seed, TEST_NOISE, start))
        return (importance_bound(vae, brightness(images), noise, weight, s, reconstruction_loss),)

    return lambda images, weight: in_equal_batches(partial(bound, weight=weight), images, at_once, "testing")[0]


# --- a batch in parts -------------------------------------------------------------------------------------------------
def in_parts(differentiate: Callable, parts: int, weights: Sequence[Any]) -> Callable:
    """Make differentiate(images, draw, weight) -> gradients, terms work on `parts` equal parts of a batch in turn.

    The results are the means over the parts. `draw` is the number of the draw of noise; each part has its own draw.
    Parts limit the memory that is needed (BOUND_CHUNK).
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
