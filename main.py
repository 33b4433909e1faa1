"""A variational autoencoder, top to bottom: encoder, sampler, decoder, losses, KL, step, loop, main.

    python main.py                          train with the constants of params.py
    python main.py --latent-dim 2           the same with one constant changed for this run
    python main.py --resume mnist-ce-z20    go on with a run that was interrupted

References: Kingma & Welling 2013 (arXiv 1312.6114), Doersch 2016 (arXiv 1606.05908).
Shapes: B images a batch, (H, W, C) an image, L latents. Losses and KL are in nats.
"""

import contextlib
import json
import math
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.files import write_json
from utils.quiet import quiet_start, uncollected
from utils.settings import Command, Settings, SettingsError, load_saved, read_command_line, resumed, same_settings

if __name__ == "__main__":
    COMMAND = read_command_line()  # before the seconds that TensorFlow takes, so that a typo is told at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() begins, Ctrl-C just ends it, without a traceback

# Spares XLA on a CPU a copy of nearly all weights in every step, 6 percent of its time. A user's own flags win.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_copy_insertion_use_region_analysis=true")
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever a user's keras.json names; its floatx is set below
with quiet_start(), uncollected():
    import keras
    import tensorflow as tf

from utils import console, data, pictures, plots, report, runs, workers
from utils.batches import brightness, of_run, parts_of_batch, steps_at_once
from utils.dataset import BadImage, DataError, Dataset, LazyImages, in_equal_batches
from utils.likelihood import LOG_2_PI, log_likelihood, log_standard_normal
from utils.networks import FLOAT32, MIXED, Convolutions, initializer
from utils.priors import Prior, build_prior, standard_normal

keras.config.set_floatx("float32")

# What a random draw is for. Each is keyed by the seed, its purpose and where it is due (layer; step; epoch and batch),
# so a resumed run draws what an unbroken one draws.
ENCODER_WEIGHTS, DECODER_WEIGHTS, SHUFFLE, PIXELS, NOISE, TEST_NOISE, GRID_LATENTS, IMPORTANCE_NOISE = range(8)
CONVOLUTIONS = 1_000  # in place of a dense layer's number


def random_key(seed: tf.Tensor | int, purpose: int, step: tf.Tensor | int) -> tf.Tensor:
    """The key (2,) of one stateless draw, different for each seed, purpose and step."""
    return tf.stack([tf.cast(seed, tf.int64) * 16 + purpose, tf.cast(step, tf.int64)])


def dense(units: int, key: tuple[int, ...], activation: str | None, name: str, precision: str = FLOAT32) -> keras.Layer:
    """A dense layer whose initial weights follow from `key` alone."""
    return keras.layers.Dense(units, activation, kernel_initializer=initializer(key), name=name, dtype=precision)


# --- encoder ----------------------------------------------------------------------------------------------------------
def build_encoder(
    image_shape: tuple[int, ...], layers: tuple[int, ...], activation: str, latent_dim: int, seed: int,
    precision: str = FLOAT32, convolutions: Convolutions | None = None,
) -> keras.Model:  # fmt: skip
    """x (B, H, W, C) -> z_mean, z_log_std, each (B, L): for every image a normal distribution q(z|x) over the latents.

    It predicts the log of the standard deviation, since any real number is allowed there and exp() is never negative.
    """
    x = maps = keras.Input(image_shape, name="x")
    if convolutions:
        maps = convolutions.down(x, (seed, ENCODER_WEIGHTS, CONVOLUTIONS))
    hidden = keras.layers.Flatten(dtype=precision)(maps)
    for number, units in enumerate(layers):
        hidden = dense(units, (seed, ENCODER_WEIGHTS, number), activation, f"encoder_{number}", precision)(hidden)
    posterior = dense(2 * latent_dim, (seed, ENCODER_WEIGHTS, len(layers)), None, "posterior")(hidden)  # (B, 2L)
    z_mean, z_log_std = keras.ops.split(posterior, 2, axis=1)
    return keras.Model(x, [z_mean, z_log_std], name="encoder")


# --- sampler ----------------------------------------------------------------------------------------------------------
def sample_latent(z_mean: tf.Tensor, z_log_std: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Turn noise from N(0, I) into z ~ q(z|x), all (B, L): the reparameterisation (Kingma & Welling 2013, section 2.4).

    All chance is in `noise`, which needs no gradient; so the gradient passes through z to z_mean and z_log_std.
    """
    return z_mean + tf.exp(z_log_std) * noise


# --- decoder ----------------------------------------------------------------------------------------------------------
def build_decoder(
    image_shape: tuple[int, ...], layers: tuple[int, ...], activation: str, latent_dim: int, seed: int,
    precision: str = FLOAT32, convolutions: Convolutions | None = None,
) -> keras.Model:  # fmt: skip
    """z (B, L) -> logits (B, H, W, C), whose sigmoid is each pixel's brightness, or its probability of being white."""
    z = hidden = keras.Input((latent_dim,), name="z")
    for number, units in enumerate(layers):
        hidden = dense(units, (seed, DECODER_WEIGHTS, number), activation, f"decoder_{number}", precision)(hidden)
    key = (seed, DECODER_WEIGHTS, len(layers))
    if convolutions:
        smallest = (*convolutions.sizes(*image_shape[:2])[-1], convolutions.channels[-1])
        hidden = dense(math.prod(smallest), key, activation, "maps", precision)(hidden)
        maps = keras.layers.Reshape(smallest, dtype=precision)(hidden)
        logits = convolutions.up(maps, image_shape, (seed, DECODER_WEIGHTS, CONVOLUTIONS))
    else:
        pixels = dense(math.prod(image_shape), key, None, "pixels")(hidden)
        logits = keras.layers.Reshape(image_shape, name="logits")(pixels)
    return keras.Model(z, logits, name="decoder")


class VAE(NamedTuple):
    """The networks, the prior and, with DECODER_SCALE = learned, the log of the pixel noise's width (else None)."""

    encoder: keras.Model
    decoder: keras.Model
    log_scale: keras.Variable | None
    prior: Prior

    @property
    def weights(self) -> list[keras.Variable]:
        """All that is trained."""
        scale = [] if self.log_scale is None else [self.log_scale]
        return self.encoder.trainable_variables + self.decoder.trainable_variables + scale + self.prior.weights

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds of it, by name; None for what it has not got."""
        return self._asdict() | {"prior": self.prior.weights or None}


def with_noise_latents(vae: VAE, part: tf.Tensor) -> tf.Tensor:
    """z_mean or z_log_std (B, L) of all latents (B, L + NOISE_DIM): 0 for pure noise, whose posterior is the prior."""
    return tf.pad(part, [[0, 0], [0, vae.decoder.input_shape[1] - part.shape[1]]])


def build_vae(settings: Settings, image_shape: tuple[int, ...]) -> VAE:
    """An untrained VAE; its weights follow from settings.seed."""
    s = settings
    precision = MIXED if s.mixed_precision else FLOAT32
    blocks = {"conv": 0, "resnet": s.residual_blocks}
    convolutions = None
    if s.architecture != "mlp":
        convolutions = Convolutions(s.channels, blocks[s.architecture], s.activation, precision)
    bodies = s.seed, precision, convolutions
    encoder = build_encoder(image_shape, s.encoder_layers, s.activation, s.latent_dim, *bodies)
    decoder = build_decoder(image_shape, s.decoder_layers, s.activation, s.latent_dim + s.noise_dim, *bodies)
    log_scale = None
    if s.decoder_scale == "learned":
        log_scale = keras.Variable(INITIAL_LOG_SCALES[s.loss], name="log_scale")
    return VAE(encoder, decoder, log_scale, build_prior(s, encoder, image_shape))


# --- losses: of flattened images (B, D), one number per image, (B,), in nats, summed over pixels ----------------------
def cross_entropy(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log p(x|z) for pixels that are Bernoulli with probability sigmoid(logits) (Kingma & Welling 2013, appendix C.1).

    Computed from the logits, as the logarithm of a sigmoid that has been rounded to 0 would be infinite.
    """
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits), axis=1)


def squared_error(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Squared error: up to a constant, -log p(x|z) for Gaussian pixels with variance 1/2."""
    return tf.reduce_sum(tf.square(x - tf.sigmoid(logits)), axis=1)


def absolute_difference(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Absolute difference: up to a constant, -log p(x|z) for Laplace pixels with scale 1."""
    return tf.reduce_sum(tf.abs(x - tf.sigmoid(logits)), axis=1)


def gaussian_nll(x: tf.Tensor, logits: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """-log p(x|z) for Gaussian pixels of standard deviation exp(log_scale): the sigma-VAE (Rybkin et al. 2021)."""
    return squared_error(x, logits) * tf.exp(-2 * log_scale) / 2 + x.shape[1] * (log_scale + math.log(2 * math.pi) / 2)


def laplace_nll(x: tf.Tensor, logits: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """-log p(x|z) for Laplace pixels of scale exp(log_scale), the twin of gaussian_nll."""
    return absolute_difference(x, logits) * tf.exp(-log_scale) + x.shape[1] * (log_scale + math.log(2))


def discretised_logistic_nll(x: tf.Tensor, logits: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
    """-log P(x|z) for pixels of 8 bits: the mass that a logistic distribution of scale exp(log_scale) about
    sigmoid(logits) has between a brightness and its neighbours, 1/255 wide; the outermost, 0 and 1, have the rest of it
    (Salimans et al. 2017, eq. 2).

    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), whose logarithm no rounding can make infinite.
    """
    scale = tf.exp(log_scale)
    above, below = ((x - tf.sigmoid(logits) + half) / scale for half in (1 / 510, -1 / 510))
    log_below_upper, log_above_lower = -tf.nn.softplus(-above), -tf.nn.softplus(below)  # logs of what is < and > an end
    between = log_below_upper + log_above_lower + tf.math.log(-tf.math.expm1(-1 / (255 * scale)))
    log_mass = tf.where(x <= 0, log_below_upper, tf.where(x >= 1, log_above_lower, between))
    return -tf.reduce_sum(log_mass, axis=1)


FIXED_SCALE_LOSSES = {"ce": cross_entropy, "mse": squared_error, "ad": absolute_difference}
LEARNED_SCALE_LOSSES = {"mse": gaussian_nll, "ad": laplace_nll, "logistic": discretised_logistic_nll}
INITIAL_LOG_SCALES = {"mse": 0.0, "ad": 0.0, "logistic": -3.0}  # an error of 0.05 in brightness; it moves slowly


def reconstruction_loss(x: tf.Tensor, logits: tf.Tensor, loss: str, log_scale: tf.Tensor | None) -> tf.Tensor:
    """The loss (B,) of images (B, H, W, C) that LOSS names; `log_scale` is None if DECODER_SCALE is fixed."""
    pixels = math.prod(x.shape[1:])  # in one row, over which XLA loops faster: 6 percent of a training step
    x, logits = tf.reshape(x, (-1, pixels)), tf.reshape(logits, (-1, pixels))
    if log_scale is None:
        return FIXED_SCALE_LOSSES[loss](x, logits)
    return LEARNED_SCALE_LOSSES[loss](x, logits, log_scale)


# --- KL ---------------------------------------------------------------------------------------------------------------
def kl_to_standard_normal(z_mean: tf.Tensor, z_log_std: tf.Tensor) -> tf.Tensor:
    """KL(q(z|x) || N(0, I)) of each latent, (B, L) nats (Kingma & Welling 2013, appendix B)."""
    return (tf.exp(2 * z_log_std) + tf.square(z_mean) - 1) / 2 - z_log_std


def kl_of_draws(vae: VAE, z: tf.Tensor, z_mean: tf.Tensor, z_log_std: tf.Tensor) -> tf.Tensor:
    """log q(z|x) - log p(z), (..., B) nats, at draws z (..., B, L + NOISE_DIM): in expectation the KL, for any prior.

    The noise latents are left out: their posterior is their prior.
    """
    z = z[..., : z_mean.shape[1]]
    log_posterior = -(tf.square((z - z_mean) * tf.exp(-z_log_std)) + LOG_2_PI) / 2 - z_log_std
    return tf.reduce_sum(log_posterior, axis=-1) - vae.prior.log_density(z)


def charged_kl(kl: tf.Tensor, free_bits: float) -> tf.Tensor:
    """The KL that the objective charges: kl (B, L) -> (), the batch mean of each latent but at least `free_bits` nats.

    Below that, telling less saves a latent nothing, so nothing pushes it to zero (Kingma et al. 2016, eq. 15).
    """
    return tf.reduce_sum(tf.maximum(tf.reduce_mean(kl, axis=0), free_bits))


def kl_weight(step: tf.Tensor | int, schedule: str, start: float, end: float, steps: int, cycles: int) -> tf.Tensor:
    """The weight of the KL in training step `step` (0, 1, ...): from `start` to `end` in `steps` steps, then `end`.

    cyclical repeats `cycles` ramps, each rising in its first half and holding in its second (Fu et al. 2019).
    """
    step = tf.minimum(tf.cast(step, tf.int64), steps)
    progress = tf.cast(step / steps, tf.float32)
    sigmoid_at_ends = [1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))]
    rise = {
        "constant": tf.ones_like(progress),
        "linear": progress,
        "sigmoid": (tf.sigmoid(12 * progress - 6) - sigmoid_at_ends[0]) / (sigmoid_at_ends[1] - sigmoid_at_ends[0]),
        "cosine": (1 - tf.cos(math.pi * progress)) / 2,
        "cyclical": tf.minimum(2 * tf.cast(step * cycles % steps / steps, tf.float32), 1),
    }[schedule]
    if schedule != "constant":
        rise = tf.where(step == 0, 0.0, rise)  # exact at both ends, whatever rounding does in between
    rise = tf.where(step == steps, 1.0, rise)
    return (1 - rise) * start + rise * end  # start + rise * (end - start) would miss `end` in float32


def scheduled_weight(settings: Settings, step: tf.Tensor | int) -> tf.Tensor:
    """kl_weight with the schedule of the settings; 0 for the plain autoencoder, which has no KL to weigh."""
    s = settings
    if s.autoencoder:
        return tf.constant(0.0)
    return kl_weight(step, s.kl_schedule, s.kl_weight_start, s.kl_weight_end, s.kl_steps, s.kl_cycles)


# --- objective --------------------------------------------------------------------------------------------------------
def posterior_draws(vae: VAE, x: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Latents z ~ q(z|x) of images (B, H, W, C), shaped as the noise (..., B, L + NOISE_DIM), and z_mean, z_log_std."""
    z_mean, z_log_std = vae.encoder(x)
    z = sample_latent(with_noise_latents(vae, z_mean), with_noise_latents(vae, z_log_std), noise)
    return z, z_mean, z_log_std


def decoded_loss(vae: VAE, x: tf.Tensor, z: tf.Tensor, loss: str) -> tf.Tensor:
    """The reconstruction loss (..., B) of images (B, H, W, C) when decoded from z (..., B, L + NOISE_DIM)."""
    draws = z.shape[:-2]
    logits = vae.decoder(tf.reshape(z, (-1, z.shape[-1])))  # of all draws at once
    x = tf.reshape(tf.broadcast_to(x, (*draws, *x.shape)), logits.shape)
    return tf.reshape(reconstruction_loss(x, logits, loss, vae.log_scale), z.shape[:-1])


def loss_terms(vae: VAE, x: tf.Tensor, noise: tf.Tensor | None, loss: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Reconstruction loss (B,) and KL (B, L) of images (B, H, W, C) under noise (B, L + NOISE_DIM); they sum to -ELBO.

    Of noise (K, B, L + NOISE_DIM) they are means over K draws. With a trained prior there is no closed form, and the KL
    is the mean over the draws of that of all latents together, (B, 1). Without noise it is the plain autoencoder: it
    decodes z_mean, and its KL is zero.
    """
    if noise is None:
        z_mean, _ = vae.encoder(x)
        return decoded_loss(vae, x, z_mean, loss), tf.zeros_like(z_mean)
    z, z_mean, z_log_std = posterior_draws(vae, x, noise)
    reconstruction = decoded_loss(vae, x, z, loss)
    if not vae.prior.weights:  # N(0, I)
        return mean_of_draws(reconstruction), kl_to_standard_normal(z_mean, z_log_std)
    return mean_of_draws(reconstruction), mean_of_draws(kl_of_draws(vae, z, z_mean, z_log_std))[:, tf.newaxis]


def mean_of_draws(values: tf.Tensor) -> tf.Tensor:
    """The mean over draws (K, B), if there are several: (B,)."""
    return tf.reduce_mean(values, axis=0) if len(values.shape) == 2 else values


def objective(reconstruction: tf.Tensor, kl: tf.Tensor, weight: tf.Tensor, free_bits: float, divisor: int) -> tf.Tensor:
    """What is minimised, (): the batch means of reconstruction (B,) / divisor + weight * KL (B, L) per latent.

    The divisor is 1 or, the common mistake, the number of pixels: then the KL, still a sum, outweighs the rest.
    """
    return tf.reduce_mean(reconstruction) / divisor + weight * charged_kl(kl, free_bits)


def importance_bound(vae: VAE, x: tf.Tensor, noise: tf.Tensor, loss: str, weight: tf.Tensor, doubly: bool) -> tf.Tensor:
    """The importance-weighted bound (B,) of images (B, H, W, C) by K draws, of noise (K, B, L + NOISE_DIM).

    log 1/K sum_k w_k with w = p(x|z) (p(z) / q(z|x))^weight: the ELBO for K = 1, and at weight 1 nearer to log p(x) the
    larger K is (Burda et al. 2015, eq. 8). All in logarithms, so that it is stable whatever the weights are.

    `doubly` changes nothing but the gradient, to the doubly reparameterised one (Tucker et al. 2018, arXiv 1810.04152,
    eq. 8), whose noise doesn't drown the encoder's signal as K grows. IWAE's gradient with respect to the encoder has
    two parts, through z and through the density q(z|x), and the second, whose expectation can be had from the first, is
    mostly noise. With s_k = w_k / sum w, and g_k the gradient of log w_k with respect to z_k alone, IWAE's through z is
    sum s_k g_k, and the second part is in expectation -weight * sum s_k (1 - s_k) g_k: what remains is
    sum s_k (1 - weight + weight * s_k) g_k, at weight 1 the paper's s_k^2. What else log w depends on keeps its plain
    gradient, also the encoder's weights where they are in a VampPrior.
    """
    z, z_mean, z_log_std = posterior_draws(vae, x, noise)

    def log_weights(z, z_mean, z_log_std):
        return -decoded_loss(vae, x, z, loss) - weight * kl_of_draws(vae, z, z_mean, z_log_std)  # (K, B)

    log_w = log_weights(z, z_mean, z_log_std)
    if doubly:
        share = tf.nn.softmax(log_w, axis=0)
        z = scale_gradient(z, (1 - weight + weight * share)[..., tf.newaxis])
        log_w = log_weights(z, tf.stop_gradient(z_mean), tf.stop_gradient(z_log_std))  # compiled, no second decoding
    return tf.reduce_logsumexp(log_w, axis=0) - math.log(noise.shape[0])


@tf.custom_gradient
def scale_gradient(values: tf.Tensor, factor: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The values as they are; a gradient that comes back through them is multiplied by the factor."""
    return tf.identity(values), lambda upstream: (upstream * factor, None)


def loss_divisor(reduction: str, image_shape: tuple[int, ...]) -> int:
    """What RECONSTRUCTION_REDUCTION divides the loss by: "sum" leaves it whole, "mean" is per pixel."""
    return math.prod(image_shape) if reduction == "mean" else 1


def minimised_on_batch(
    vae: VAE, x: tf.Tensor, noise: tf.Tensor | None, weight: tf.Tensor, settings: Settings
) -> tuple[tf.Tensor, tf.Tensor]:
    """The objective () of images (B, H, W, C) under noise, as in loss_terms, and their mean_terms (3,)."""
    s = settings
    reconstruction, kl = loss_terms(vae, x, noise, s.loss)
    if s.bound == "elbo":
        divisor = loss_divisor(s.reconstruction_reduction, x.shape[1:])
        minimised = objective(reconstruction, kl, weight, s.free_bits, divisor)
    else:
        minimised = -tf.reduce_mean(importance_bound(vae, x, noise, s.loss, weight, s.bound == "dreg"))
    return minimised, mean_terms(minimised, reconstruction, kl)


def mean_terms(minimised: tf.Tensor, reconstruction: tf.Tensor, kl: tf.Tensor) -> tf.Tensor:
    """What the history reports, (3,): the objective, and the batch means of reconstruction (B,) and of KL (B, L)."""
    return tf.stack([minimised, tf.reduce_mean(reconstruction), tf.reduce_mean(tf.reduce_sum(kl, axis=1))])


# --- step -------------------------------------------------------------------------------------------------------------
@cache
def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU."""
    with quiet_start():  # which writes of an error where there is none
        return bool(tf.config.list_physical_devices("GPU"))


def xla_pays(vae: VAE) -> bool:
    """Whether to compile with XLA: on a GPU always, on a CPU for dense layers only (convolutions: 50 times slower).

    Not where several devices train together, since what they tell each other does not compile on a CPU.
    """
    if tf.distribute.has_strategy():
        return False
    return has_gpu() or not any("conv" in layer.name for net in (vae.encoder, vae.decoder) for layer in net.layers)


def draw_noise(settings: Settings, images: int, key: tf.Tensor) -> tf.Tensor | None:
    """The noise of a number of images, (B, L + NOISE_DIM) or of K = BOUND_SAMPLES draws (K, B, L + NOISE_DIM)."""
    s = settings
    if s.autoencoder:
        return None
    draws = () if s.bound == "elbo" and s.bound_samples == 1 else (s.bound_samples,)
    return standard_normal((*draws, images, s.latent_dim + s.noise_dim), key)


def compile_train_steps(
    vae: VAE, optimizer: keras.Optimizer, settings: Settings, crew: workers.Workers = workers.ALONE
) -> Callable:
    """One compiled function that trains for many steps: with Python between the steps it would take twice as long.

    train_steps(batches, step, stop, seed, sums, first) takes uint8 batches (n, B, H, W, C) from step `first` on, the
    step to begin with, the one to stop before and the seed of the noise, and adds to `sums` (3,) the mean_terms of each
    step. It returns the sums, the terms of the last step, and the step it has come to: earlier than `stop` if these
    terms are not finite.

    Of several replicas each differentiates for its share of the images, under its share of the same noise that one
    alone would draw; all then take the mean of their gradients.
    """
    s = settings
    weights = vae.weights
    parts = parts_of_batch(s, crew.replicas)

    def differentiate(images, draw, seed, weight):
        x = brightness(images)  # (B, H, W, C)
        noise = draw_noise(s, len(images) * crew.replicas, random_key(seed, NOISE, draw))
        noise = workers.own_share(noise, crew.replicas, axis=-2)
        with tf.GradientTape() as tape:
            minimised, terms = minimised_on_batch(vae, x, noise, weight, s)
        return tape.gradient(minimised, [variable.value for variable in weights]), terms

    def differentiate_in_parts(batch, step, seed, weight):
        batch, first = tf.reshape(batch, (parts, -1, *batch.shape[1:])), tf.cast(step, tf.int64) * parts
        gradients, terms = [tf.zeros(variable.shape) for variable in weights], tf.zeros(3)
        for part in tf.range(parts):
            images = workers.own_share(batch[part], crew.devices)
            more, more_terms = differentiate(images, first + tf.cast(part, tf.int64), seed, weight)
            gradients = [old + new / parts for old, new in zip(gradients, more, strict=True)]
            terms += more_terms / parts
        return gradients, terms

    def train_step(batch, step, seed, weight):
        if parts == 1:
            gradients, terms = differentiate(workers.own_share(batch, crew.devices), step, seed, weight)
        else:
            gradients, terms = differentiate_in_parts(batch, step, seed, weight)
        *gradients, terms = workers.mean_over_replicas([*gradients, terms])
        optimizer.apply(gradients, weights)
        return terms

    compiled = xla_pays(vae)

    @tf.function(jit_compile=compiled)
    def train_steps(batches, step, stop, seed, sums, first=0):
        terms = tf.zeros(3)
        while step < stop and tf.reduce_all(tf.math.is_finite(terms)):
            # XLA would compile a slice once more for each new value of `first` (TensorFlow issue 76070); without XLA a
            # GPU cannot gather uint8.
            place, weight = (step - first) % len(batches), scheduled_weight(s, step)
            batch = tf.gather(batches, place) if compiled else batches[place]
            terms = workers.on_replicas(crew, train_step, batch, step, seed, weight)
            sums += terms
            step += 1
        return sums, terms, step

    return train_steps


# --- evaluation -------------------------------------------------------------------------------------------------------
def compile_evaluation(vae: VAE, settings: Settings) -> Callable:
    """A function: uint8 images (N, H, W, C) -> reconstruction loss (N,), KL (N, L), z_mean (N, L), as NumPy arrays.

    Its noise is the same every time, so that two epochs differ by what was learned only.
    """
    s = settings

    @tf.function(jit_compile=xla_pays(vae))
    def evaluate_batch(images, start):
        x = brightness(images)
        shape = (x.shape[0], s.latent_dim + s.noise_dim)
        noise = None if s.autoencoder else standard_normal(shape, random_key(s.seed, TEST_NOISE, start))
        reconstruction, kl = loss_terms(vae, x, noise, s.loss)
        return reconstruction, kl, vae.encoder(x)[0]

    return partial(in_equal_batches, evaluate_batch)


def compile_test(vae: VAE, settings: Settings, evaluate: Callable) -> Callable:
    """A function: uint8 images (N, H, W, C), KL weight -> mean_terms (3,) with the objective that is trained on.

    `evaluate` is from compile_evaluation.
    """
    s = settings
    at_once = max(1, min(1_000, s.bound_chunk // s.bound_samples))

    @tf.function(jit_compile=xla_pays(vae))
    def bound(images, start, weight):
        x = brightness(images)
        noise = draw_noise(s, x.shape[0], random_key(s.seed, TEST_NOISE, start))
        return (importance_bound(vae, x, noise, s.loss, weight, doubly=False),)

    def test(images, weight):
        reconstruction, kl, _ = evaluate(images)
        if s.bound == "elbo":
            divisor = loss_divisor(s.reconstruction_reduction, images.shape[1:])
            minimised = objective(reconstruction, kl, weight, s.free_bits, divisor)
        else:
            minimised = -in_equal_batches(partial(bound, weight=weight), images, at_once)[0].mean()
        return mean_terms(minimised, reconstruction, kl)

    return test


def log_densities(vae: VAE, settings: Settings) -> tuple[Callable, Callable]:
    """Two functions: log p(x|z) of images (B, H, W, C) and latents (B, L + NOISE_DIM), and log p(z); (B,) nats each."""
    latents = settings.latent_dim

    def log_p_x_given_z(x, z):
        return -reconstruction_loss(x, vae.decoder(z), settings.loss, vae.log_scale)

    def log_prior(z):
        return vae.prior.log_density(z[:, :latents]) + log_standard_normal(z[:, latents:])

    return log_p_x_given_z, log_prior


def estimate_log_likelihood(vae: VAE, settings: Settings, images: np.ndarray) -> list[np.ndarray]:
    """Estimate log p(x) of uint8 images (N, H, W, C): nats (N,) and their sampling variances (N,)."""
    s = settings

    @tf.function(jit_compile=xla_pays(vae))
    def estimate(images, start):
        x = brightness(images)
        z_mean, z_log_std = (with_noise_latents(vae, part) for part in vae.encoder(x))

        def noise_of_draw(k):
            draw = tf.cast(start, tf.int64) * s.nll_samples + tf.cast(k, tf.int64)  # no two batches share one
            return standard_normal(z_mean.shape, random_key(s.seed, IMPORTANCE_NOISE, draw))

        return log_likelihood(x, z_mean, z_log_std, *log_densities(vae, s), noise_of_draw, s.nll_samples)

    return in_equal_batches(estimate, images)


# --- loop -------------------------------------------------------------------------------------------------------------
def build_optimizer(vae: VAE, settings: Settings, horizon: int) -> keras.Optimizer:
    """Adam, its learning rate constant or on a cosine that falls to a hundredth within `horizon` steps."""
    rate = settings.learning_rate
    if settings.lr_schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, horizon, alpha=0.01)
    optimizer = workers.Adam(rate, global_clipnorm=settings.gradient_clip or None)
    optimizer.build(vae.weights)
    return optimizer


def fit(
    vae: VAE,
    settings: Settings,
    dataset: Dataset,
    evaluate: Callable,
    folder: Path,
    say: Callable[[str], None],
    watch: Callable[[VAE, int], None] | None = None,
    watch_at: Collection[int] = (),
    crew: workers.Workers = workers.ALONE,
) -> None:
    """Train to the last epoch, from the newest checkpoint in `folder` or from the start.

    `evaluate`, from compile_evaluation, is what the test of each epoch rests on. `watch` is called with the VAE after
    each number of steps in `watch_at`, which changes nothing in what is learned. A line of the history has the images
    per second by the clock since the line before: testing, pictures and checkpoints count. (The training steps are
    compiled before the first.)
    Of several workers only the chief tests, draws and saves; the others get their state from it.
    Raises runs.Diverged, console.Stopped (Ctrl-C or SIGTERM; a checkpoint has been written) and OSError (a full disk).
    """
    s = settings
    seed, steps_per_epoch = tf.constant(s.seed), len(dataset.train_images) // s.batch_size
    last_step = s.epochs * steps_per_epoch
    is_stream = isinstance(dataset.train_images, LazyImages)
    horizon = runs.read_params(folder)["schedule_epochs"]
    optimizer = build_optimizer(vae, s, horizon * steps_per_epoch)
    sums, start = tf.Variable(tf.zeros(3)), tf.Variable(0)  # of the history's next line
    checkpoint = runs.checkpoint(**vae.parts, optimizer=optimizer, sums=sums, start=start)
    runs.restore(checkpoint, folder, say)
    workers.broadcast(crew, [*vae.weights, *optimizer.variables, sums, start])
    step = int(optimizer.iterations.numpy())
    runs.cut_back(folder, step)
    runs.note_changes(folder, s)
    if s.epochs > horizon and s.lr_schedule == "cosine":
        say(f"note       the learning rate's cosine ends with epoch {horizon}, as saved; later it stays a hundredth")

    train_steps = compile_train_steps(vae, optimizer, s, crew)
    test = compile_test(vae, s, evaluate)
    with (
        runs.event_writer(folder) as events,
        runs.deferred_signals() as signals,
        report.progress_bar(last_step, step, shown=crew.is_chief) as bar,
        contextlib.closing(of_run(dataset.train_images, s, step, crew)) as pieces,
    ):
        if step == 0 and crew.is_chief:
            runs.write_images(folder, events, step, write_grids(vae, s, dataset, folder, epoch=0))
            if step in watch_at:
                watch(vae, step)
        if step < last_step:  # compile, by a call for no steps, so that the first speed shown is that of training
            steps = steps_at_once(dataset.train_images, s)
            shape = steps, s.batch_size // crew.count, *dataset.train_images.shape[1:]
            train_steps(tf.zeros(shape, tf.uint8), *map(tf.constant, (0, 0)), seed, sums.value(), tf.constant(0))
        end = last_line = step
        clock, waited = time.perf_counter(), 0.0  # when the last line was told, and seconds without data since
        for epoch in range(step // steps_per_epoch + 1, s.epochs + 1):
            epoch_end = epoch * steps_per_epoch
            while step < epoch_end:
                # 1. Train up to the next line of the history, the next checkpoint, a watched step or the epoch's end.
                if step == end:
                    asked = time.perf_counter()
                    with runs.saved_if_unreadable(checkpoint, folder, step):
                        first, end, batches = next(pieces)
                    waited += time.perf_counter() - asked
                line_due, save_due = ((step // every + 1) * every for every in (s.log_every, s.checkpoint_every))
                stop = min(line_due, save_due, end, *(due for due in watch_at if due > step))
                numbers = (tf.constant(number) for number in (step, stop))
                total, terms, reached = train_steps(batches, *numbers, seed, sums.value(), tf.constant(first))
                step = int(reached)  # here, once for many steps, the host waits
                sums.assign(total)
                runs.check_terms(terms, step, folder)
                weight = None if s.autoencoder else scheduled_weight(s, step - 1)  # of the last of these steps

                # 2. Tell how it goes.
                line = None
                if step in (line_due, last_step):
                    line = runs.history_line("train", step, steps_per_epoch, sums / (step - int(start.numpy())), weight)
                    now = time.perf_counter()
                    line["images_per_second"] = round((step - last_line) * s.batch_size / (now - clock))
                    if is_stream:
                        line["waiting"] = round(waited / (now - clock), 3)
                    runs.write_line(folder, events, line)
                    sums.assign(tf.zeros(3))
                    start.assign(step)
                    last_line, clock, waited = step, now, 0.0
                report.show_progress(bar, step, epoch, s.epochs, line)
                if step == epoch_end and crew.is_chief:
                    terms = test(dataset.test_images, scheduled_weight(s, step - 1))
                    runs.check_terms(terms, step, folder)
                    runs.write_line(folder, events, runs.history_line("test", step, steps_per_epoch, terms, weight))
                    if epoch % s.images_every == 0 or step == last_step:
                        runs.write_images(folder, events, step, write_grids(vae, s, dataset, folder, epoch))

                if step in watch_at:
                    watch(vae, step)

                # 3. Keep what a resumed run goes on from; last, so that all that belongs to this step is on the disk.
                stopped = workers.agree(crew, bool(signals))
                if stopped or step in (save_due, last_step):
                    runs.check_weights(vae.weights, step, folder)
                    if crew.is_chief:
                        runs.save(checkpoint, folder, step)
                if stopped:
                    workers.agree(crew, True)  # nobody leaves before the chief has saved
                    raise console.Stopped(signals[0] if signals else signal.SIGTERM)


def sample_prior(vae: VAE, count: int, key: tf.Tensor) -> tf.Tensor:
    """Latents (count, L + NOISE_DIM) from the prior: draws that, decoded, are the model's own images."""
    z = vae.prior.sample(count, key)
    key_of_noise = key + tf.constant([0, 2**40], tf.int64)
    noise = standard_normal((count, vae.decoder.input_shape[1] - z.shape[1]), key_of_noise)  # the noise latents
    return tf.concat([z, noise], axis=1)


def decode(vae: VAE, z: np.ndarray) -> np.ndarray:
    """Latents (N, L) -> brightness (N, H, W, C) in [0, 1]."""
    return tf.sigmoid(vae.decoder(tf.constant(z, tf.float32))).numpy()


def reconstruct(vae: VAE, images: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W, C) -> the brightness that their posterior means are decoded to, the same shape."""
    return decode(vae, with_noise_latents(vae, vae.encoder(brightness(tf.constant(images)))[0]))


def write_grids(vae: VAE, settings: Settings, dataset: Dataset, folder: Path, epoch: int) -> dict[str, np.ndarray]:
    """Write an epoch's grids, of the same draws and test images in all; return them by name, uint8 (H', W', C)."""
    grids = {"reconstructions": pictures.write_reconstructions(folder, epoch, partial(reconstruct, vae), dataset)}
    if not settings.autoencoder:  # which has no prior to sample from
        latents = sample_prior(vae, 100, random_key(settings.seed, GRID_LATENTS, 0))
        grids["samples"] = pictures.write_samples(folder, epoch, partial(decode, vae), latents)
    return grids


# --- main -------------------------------------------------------------------------------------------------------------
def judge(
    vae: VAE, settings: Settings, dataset: Dataset, evaluate: Callable, folder: Path
) -> dict[str, Any]:  # fmt: skip
    """Write the trained model's report and pictures into its folder; return the report.

    `evaluate` is from compile_evaluation.
    """
    s = settings
    reconstruction, kl, z_mean = evaluate(dataset.test_images)
    estimates = None
    if s.nll_samples and report.kind(s) != "none":
        estimates = estimate_log_likelihood(vae, s, dataset.test_images)
    history = runs.read_history(folder)
    pixels = math.prod(dataset.test_images.shape[1:])
    judged = report.make_report(s, reconstruction, kl, z_mean, estimates, history, pixels)
    judged["skipped_images"] = report.skipped_images(dataset)
    write_json(folder / "report.json", judged)
    plots.save_curves(folder / "curves.png", history, title=folder.name)
    pictures.write_film(folder, "reconstructions" if s.autoencoder else "samples")
    if s.latent_dim == 2 and not s.noise_dim and s.prior == "standard" and not s.autoencoder:
        pictures.write_manifold(folder, partial(decode, vae))
    pictures.write_projector(folder / "tensorboard", z_mean, dataset.test_labels, dataset.test_images)
    return judged


def train(
    settings: Settings,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
    watch: Callable[[VAE, int], None] | None = None,
    watch_at: Collection[int] = (),
    crew: workers.Workers = workers.ALONE,
) -> tuple[VAE, Path]:
    """Train a VAE and judge it; return it and its folder, a new one or that of the interrupted run it goes on with.

    `say` is given the lines for the console; `watch` and `watch_at` are fit's, `crew` is who trains it together. Raises
    SettingsError, DataError, runs.RunError, runs.Diverged, workers.WorkerLost and OSError and, when interrupted,
    console.Stopped or KeyboardInterrupt.
    """
    s = settings
    device = "GPU" if has_gpu() else "CPU"  # asked first of all, where its chatter is caught
    dataset = data.prepare(s, say)
    with workers.losses_told(crew):
        workers.check_same(crew, "training images", len(dataset.train_images))
    vae = build_vae(s, dataset.train_images.shape[1:])
    if s.start_from and crew.is_chief and not (folder and runs.saved_steps(folder)):
        runs.start_from(s, vae.parts)
    device = f"{crew.replicas} x {device}" if crew.replicas > 1 else device
    device += " with XLA" if xla_pays(vae) else " without XLA"
    folder = folder or runs.create(s, device, dataset.train_images.shape[1:])

    parameters = sum(math.prod(weight.shape) for weight in vae.weights)
    say(report.header(s, dataset, parameters, device, folder))
    steps, channels = s.epochs * (len(dataset.train_images) // s.batch_size), dataset.train_images.shape[-1]
    for doubt in report.doubts(s, steps, channels):
        say(f"note       {doubt}")
    evaluate = compile_evaluation(vae, s)  # once, for the tests of all epochs and for the report
    go_on = f"python main.py --resume {shlex.quote(str(folder))}"
    with runs.locked(folder):
        try:
            with workers.losses_told(crew):
                fit(vae, s, dataset, evaluate, folder, say, watch, watch_at, crew)
                if crew.is_chief:
                    say(f"testing    {len(dataset.test_images):,} images that it has not been trained on")
                    say(report.table(judge(vae, s, dataset, evaluate, folder)))
                    if skipped := report.skipped(dataset):
                        say(skipped)
                workers.agree(crew, True)  # one that ended early would be taken for lost
        except (console.Stopped, KeyboardInterrupt, workers.WorkerLost):
            say(f"\nstopped    go on{', on all workers,' * (crew.count > 1)} with: {go_on}")
            raise
        except BadImage as error:
            raise DataError(f"{error}; with the next image in its place: {go_on} --skip-bad-images") from None
    say(report.look_at(folder))
    return vae, folder


def together(command: Command, crew: workers.Workers, scratch: Path) -> tuple[Settings, Path | None]:
    """The settings to train with, and the folder of the run to go on with, if any; for all workers as the chief has it.

    The chief alone has the run; another worker gets a folder in `scratch`, where nothing of worth is written. Raises
    SettingsError and runs.RunError.
    """
    settings, folder, failed = command.settings, None, None
    try:
        if command.resume is not None and crew.is_chief:
            folder = runs.find(command.resume, settings.output_dir)
            settings = resumed(load_saved(runs.read_params(folder)["settings"]), command.given)
        workers.check_batch_size(settings.batch_size, settings.free_bits, crew.replicas)
    except (SettingsError, runs.RunError) as error:
        failed = error
    horizon = runs.read_params(folder)["schedule_epochs"] if folder else settings.epochs
    about = {"settings": settings.model_dump(mode="json"), "schedule_epochs": horizon, "failed": failed and str(failed)}
    told = json.loads(workers.broadcast_text(crew, json.dumps(about)))
    if failed:
        raise failed
    if crew.is_chief:
        return settings, folder
    if told["failed"]:
        raise runs.RunError(f"the chief says: {told['failed']}")
    settings = same_settings(settings, load_saved(told["settings"]), command.resume is not None)
    write_json(scratch / "params.json", told)
    return settings, scratch


def main(command: Command) -> int:
    """Train as the command line says; return the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, runs.raise_stopped)
    try:
        has_gpu()  # asked first of all, where its chatter is caught
        crew = workers.start(workers.read_tf_config(os.environ))
        with workers.losses_told(crew), crew.scope(), tempfile.TemporaryDirectory() as scratch:
            settings, folder = together(command, crew, Path(scratch))
            say = print
            if not crew.is_chief:
                print(f"worker     {crew.index} of {crew.count - 1}; the chief, {crew.addresses[0]}, tells how it goes")
                say = lambda line: None  # noqa: E731
            train(settings, folder, say, crew=crew)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except console.Stopped as stopped:
        return 128 + stopped.args[0]
    except (SettingsError, runs.RunError, DataError, runs.Diverged, workers.WorkerLost) as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError | runs.RunError) else 1
    except OSError as error:
        print(f"main.py: error: {error.filename or 'the run'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(COMMAND))
