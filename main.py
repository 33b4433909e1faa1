"""A variational autoencoder, top to bottom: encoder, sampler, decoder, losses, KL, objective, step, loop, main.

    python main.py                          train with the constants of params.py
    python main.py --latent-dim 2           the same with one constant changed for this run
    python main.py --resume mnist-ce-z20    continue a run that was interrupted

References: Kingma & Welling 2013 (arXiv 1312.6114), Doersch 2016 (arXiv 1606.05908).
Shapes: B images per batch, (H, W, C) an image, D = H W C its pixels, L latents (of z with NOISE_DIM: L + NOISE_DIM).
Losses and KL are in nats. Whatever is not part of the lesson is one call into a module of utils/.
"""

import math
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from utils import console
from utils.door import refuse_early
from utils.settings import Command, Settings, SettingsError, read_command_line

if __name__ == "__main__":
    console.begin()  # until main() begins, Ctrl-C ends it without a traceback
    COMMAND = read_command_line()  # before TensorFlow loads, which takes seconds, so that a typo is reported at once
    refuse_early(COMMAND)  # likewise report a missing run to continue, or a batch larger than the data set

import numpy as np

from utils import bounds, data, densities, evaluation, networks, pictures, size, workers
from utils.batches import batch_at, brightness, parts_of_batch
from utils.chance import DECODER_WEIGHTS, ENCODER_WEIGHTS, GRID_LATENTS, NOISE, initializer, random_key
from utils.dataset import Dataset, in_batches
from utils.priors import Prior, build_prior, kl_of_draws
from utils.recorder import Recorder, recording, together
from utils.start import keras, tf, xla_pays


# --- encoder ----------------------------------------------------------------------------------------------------------
def hidden_layer(units: int, key: tuple[int, ...], name: str, s: Settings) -> keras.Layer:
    """A dense layer. Its initial weights depend on `key` alone, so that a seed always gives the same network."""
    weights, precision = initializer(key), networks.hidden_precision(s)
    return keras.layers.Dense(units, s.activation, kernel_initializer=weights, dtype=precision, name=name)


# What comes before the dense layers, by ARCHITECTURE: x (B, H, W, C) and the settings -> features (B, ...).
ENCODERS = {"mlp": lambda x, s: x, "conv": networks.convolutions, "resnet": networks.convolutions}


def build_encoder(image_shape: tuple[int, ...], s: Settings) -> keras.Model:
    """x (B, H, W, C) -> z_mean, z_log_std, each (B, L): for every image a normal distribution q(z|x) over the latents.

    A standard deviation is positive, but a layer returns any real number. exp() or softplus would make it positive. The
    network predicts the log and exp() is applied, because the KL needs the logarithm anyway.
    """
    x = keras.Input(image_shape, name="x")
    features = ENCODERS[s.architecture](x, s)
    hidden = keras.layers.Flatten(dtype=networks.hidden_precision(s))(features)
    for number, units in enumerate(s.encoder_layers):
        hidden = hidden_layer(units, (s.seed, ENCODER_WEIGHTS, number), f"encoder_{number}", s)(hidden)
    weights = initializer((s.seed, ENCODER_WEIGHTS, len(s.encoder_layers)))
    posterior = keras.layers.Dense(2 * s.latent_dim, kernel_initializer=weights, name="posterior")(hidden)  # (B, 2L)
    z_mean, z_log_std = keras.ops.split(posterior, 2, axis=1)
    return keras.Model(x, networks.with_noise_latents(z_mean, z_log_std, s), name="encoder")


# --- sampler ----------------------------------------------------------------------------------------------------------
def sample_latent(z_mean: tf.Tensor, z_log_std: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Turn noise from N(0, I) into z ~ q(z|x), all (B, L): the reparameterisation (Kingma & Welling 2013, section 2.4).

    All randomness is in `noise`, which needs no gradient. So gradients pass through z to z_mean and z_log_std.
    """
    return z_mean + tf.exp(z_log_std) * noise


# --- decoder ----------------------------------------------------------------------------------------------------------
def dense_pixels(hidden: Any, image_shape: tuple[int, ...], s: Settings) -> Any:
    """The last hidden layer (B, units) -> logits (B, H, W, C), by one more dense layer."""
    weights = initializer((s.seed, DECODER_WEIGHTS, len(s.decoder_layers)))
    pixels = keras.layers.Dense(math.prod(image_shape), kernel_initializer=weights, name="pixels")(hidden)
    return keras.layers.Reshape(image_shape, name="logits")(pixels)


# What comes after the dense layers, by ARCHITECTURE, with the parameters of dense_pixels, which is used for all others.
DECODERS = {"conv": networks.transposed_convolutions, "resnet": networks.transposed_convolutions}


def build_decoder(image_shape: tuple[int, ...], s: Settings) -> keras.Model:
    """z (B, L) -> logits (B, H, W, C), whose sigmoid is each pixel's brightness, or its probability of being white."""
    z = hidden = keras.Input((s.latent_dim + s.noise_dim,), name="z")
    for number, units in enumerate(s.decoder_layers):
        hidden = hidden_layer(units, (s.seed, DECODER_WEIGHTS, number), f"decoder_{number}", s)(hidden)
    to_logits = DECODERS.get(s.architecture, dense_pixels)
    return keras.Model(z, to_logits(hidden, image_shape, s), name="decoder")


class VAE(NamedTuple):
    """The networks, the prior p(z), and with DECODER_SCALE = learned the log of the pixel noise's width (else None)."""

    encoder: keras.Model
    decoder: keras.Model
    log_scale: keras.Variable | None
    prior: Prior

    @property
    def weights(self) -> list[keras.Variable]:
        """Everything that is trained."""
        scale = [] if self.log_scale is None else [self.log_scale]
        return self.encoder.trainable_variables + self.decoder.trainable_variables + scale + self.prior.weights


def check_has_function(name: str, value: str, functions: Collection[str]) -> None:
    """Raise SettingsError unless a value that params.py allows is a key of its dictionary in main.py."""
    if value not in functions:
        there = ", ".join(map(repr, functions))
        raise SettingsError(f"{name}: {value!r} is allowed by params.py, but main.py has functions for {there} only")


def build_vae(s: Settings, image_shape: tuple[int, ...]) -> VAE:
    """An untrained VAE; its weights depend on the settings alone. Raises SettingsError."""
    check_has_function("loss", s.loss, LOSSES | densities.LOSSES)
    check_has_function("architecture", s.architecture, ENCODERS)
    encoder, decoder = build_encoder(image_shape, s), build_decoder(image_shape, s)
    return VAE(encoder, decoder, densities.initial_log_scale(s), build_prior(s, encoder, image_shape))


# --- losses: of images (B, D), one number per image, (B,), in nats, summed over pixels --------------------------------
def cross_entropy(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log p(x|z) for pixels that are Bernoulli with probability sigmoid(logits) (Kingma & Welling 2013, appendix C.1).

    Computed from the logits, because the logarithm of a sigmoid that has been rounded to 0 would be infinite.
    """
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits), axis=1)


def squared_error(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Squared error: up to a constant, -log p(x|z) for Gaussian pixels with variance 1/2."""
    return tf.reduce_sum(tf.square(x - tf.sigmoid(logits)), axis=1)


def absolute_difference(x: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Absolute difference: up to a constant, -log p(x|z) for Laplace pixels with scale 1."""
    return tf.reduce_sum(tf.abs(x - tf.sigmoid(logits)), axis=1)


LOSSES = {"ce": cross_entropy, "mse": squared_error, "ad": absolute_difference}  # by LOSS


def reconstruction_loss(vae: VAE, x: tf.Tensor, z: tf.Tensor, s: Settings) -> tf.Tensor:
    """The loss that LOSS names: (B,) for images x (B, H, W, C) decoded from z (B, L), and (K, B) for z (K, B, L)."""
    images, latents = bounds.one_image_a_draw(x, z)
    flat = (-1, math.prod(x.shape[1:]))  # (B, D), because XLA loops faster over two axes
    images, logits = tf.reshape(images, flat), tf.reshape(vae.decoder(latents), flat)
    if vae.log_scale is None:
        loss = LOSSES[s.loss](images, logits)
    else:  # with a learned width: utils/densities.py
        loss = densities.LOSSES[s.loss](images, logits, vae.log_scale)
    return tf.reshape(loss, z.shape[:-1])


# --- KL ---------------------------------------------------------------------------------------------------------------
def kl_to_standard_normal(z_mean: tf.Tensor, z_log_std: tf.Tensor) -> tf.Tensor:
    """KL(q(z|x) || N(0, I)) of each latent, (B, L) nats (Kingma & Welling 2013, appendix B)."""
    return (tf.exp(2 * z_log_std) + tf.square(z_mean) - 1) / 2 - z_log_std


def charged_kl(kl: tf.Tensor, free_bits: float) -> tf.Tensor:
    """The KL that the objective charges, (): the batch mean of each latent's KL (B, L), at least `free_bits`, summed.

    Below `free_bits` a smaller KL saves nothing, so nothing pushes it to zero (Kingma et al. 2016, eq. 15).
    """
    return tf.reduce_sum(tf.maximum(tf.reduce_mean(kl, axis=0), free_bits))


def kl_weight(step: tf.Tensor | int, s: Settings) -> tf.Tensor:
    """The weight of the KL in training step 0, 1, ...: from KL_WEIGHT_START to KL_WEIGHT_END in KL_STEPS steps.

    cyclical repeats KL_CYCLES ramps, each rising in its first half and holding in its second (Fu et al. 2019).
    """
    if s.autoencoder:
        return tf.constant(0.0)
    if s.kl_steps == 0:
        raise ValueError("KL_STEPS = 0 depends on the length of a run: with_kl_steps makes it a number")
    step = tf.minimum(tf.cast(step, tf.int64), s.kl_steps)
    progress = tf.cast(step / s.kl_steps, tf.float32)
    low, high = 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))  # where the sigmoid begins and ends
    rise = {
        "constant": tf.ones_like(progress),
        "linear": progress,
        "sigmoid": (tf.sigmoid(12 * progress - 6) - low) / (high - low),
        "cosine": (1 - tf.cos(math.pi * progress)) / 2,
        "cyclical": tf.minimum(2 * tf.cast(step * s.kl_cycles % s.kl_steps / s.kl_steps, tf.float32), 1),
    }[s.kl_schedule]
    if s.kl_schedule != "constant":
        rise = tf.where(step == 0, 0.0, rise)  # exact at both ends, whatever rounding does in between
    rise = tf.where(step == s.kl_steps, 1.0, rise)
    return (1 - rise) * s.kl_weight_start + rise * s.kl_weight_end  # start + rise * (end - start) would miss the end


# --- objective --------------------------------------------------------------------------------------------------------
def loss_terms(vae: VAE, x: tf.Tensor, noise: tf.Tensor, s: Settings) -> tuple[tf.Tensor, tf.Tensor]:
    """Reconstruction loss (B,) and KL (B, L) of images (B, H, W, C) under noise (B, L). Their sum is minus the ELBO.

    The KL to a learned prior has no closed form. There it is log q(z|x) - log p(z) of the draw itself, (B, 1).
    With noise (K, B, L), K draws for each image, the terms are means over the draws.
    """
    z_mean, z_log_std = vae.encoder(x)
    if s.autoencoder:  # the plain autoencoder: no noise, and no KL
        return reconstruction_loss(vae, x, z_mean, s), tf.zeros_like(z_mean)
    z = sample_latent(z_mean, z_log_std, noise)
    reconstruction = bounds.mean_over_draws(reconstruction_loss(vae, x, z, s))
    if vae.prior.weights:
        return reconstruction, bounds.mean_over_draws(kl_of_draws(vae.prior, z, z_mean, z_log_std))[:, tf.newaxis]
    kl = kl_to_standard_normal(z_mean, z_log_std)
    return reconstruction, kl[:, : s.latent_dim]  # without the noise latents, whose KL is 0


def objective(reconstruction: tf.Tensor, kl: tf.Tensor, weight: tf.Tensor, s: Settings, pixels: int) -> tf.Tensor:
    """What is minimised, (): the batch mean of reconstruction (B,) + weight * KL (B, L), in nats per image.

    RECONSTRUCTION_REDUCTION = mean, a common mistake, divides the first term by the pixels. Then the KL outweighs it.
    """
    divisor = pixels if s.reconstruction_reduction == "mean" else 1
    return tf.reduce_mean(reconstruction) / divisor + weight * charged_kl(kl, s.free_bits)


def mean_terms(minimised: tf.Tensor, reconstruction: tf.Tensor, kl: tf.Tensor) -> tf.Tensor:
    """What the history reports, (3,): the objective, and the batch means of reconstruction (B,) and of KL (B, L)."""
    return tf.stack([minimised, tf.reduce_mean(reconstruction), tf.reduce_mean(tf.reduce_sum(kl, axis=1))])


def on_batch(vae: VAE, x: tf.Tensor, noise: tf.Tensor, weight: tf.Tensor, s: Settings) -> tuple[tf.Tensor, tf.Tensor]:
    """The objective () of images (B, H, W, C) under noise, as in loss_terms, and their mean_terms (3,)."""
    reconstruction, kl = loss_terms(vae, x, noise, s)
    if s.bound == "elbo":
        minimised = objective(reconstruction, kl, weight, s, math.prod(x.shape[1:]))
    else:  # IWAE and DReG: utils/bounds.py
        minimised = -tf.reduce_mean(bounds.importance_bound(vae, x, noise, weight, s, reconstruction_loss))
    return minimised, mean_terms(minimised, reconstruction, kl)


# --- step -------------------------------------------------------------------------------------------------------------
def build_optimizer(vae: VAE, s: Settings, horizon: int) -> keras.Optimizer:
    """Adam, its learning rate constant or on a cosine that falls to a hundredth within `horizon` steps."""
    rate = s.learning_rate
    if s.lr_schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, horizon, alpha=0.01)
    optimizer = workers.Adam(rate, global_clipnorm=s.gradient_clip or None)
    optimizer.build(vae.weights)
    return optimizer


def compile_train_steps(
    vae: VAE, optimizer: keras.Optimizer, s: Settings, crew: workers.Workers = workers.ALONE
) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """One compiled function that makes many training steps. With Python between the steps it would take twice as long.

    train_steps(batches, first, step, stop, sums) takes uint8 batches (n, B, H, W, C), whose first is for step `first`.
    It trains from `step` until before `stop` and adds the mean_terms of each step to sums (3,). It returns the sums,
    the terms of the last step, and the next step, which is below `stop` if these terms are not finite. The steps are
    integer tensors, because each new Python number would compile the function again.

    `crew` is the devices that train together (utils/workers.py). Each computes the gradient for its share of the
    images. Most runs have one device and do not split a batch. Then `own_shares`, `in_parts`, `mean_over_replicas` and
    `on_replicas` do nothing.
    """
    weights, parts = vae.weights, parts_of_batch(s, crew.replicas)
    compiled = xla_pays(vae.encoder, vae.decoder)

    def differentiate(images, number, weight):  # `number` keys the noise: the step or, with a batch in parts, the part
        noise = bounds.draw_noise(s, s.batch_size // parts, random_key(s.seed, NOISE, number))
        images, noise = workers.own_shares(crew, images, noise)
        with tf.GradientTape() as tape:
            minimised, terms = on_batch(vae, brightness(images), noise, weight, s)
        tensors = [variable.value for variable in weights]  # the TensorFlow variables, which the tape watches
        return tape.gradient(minimised, tensors), terms

    differentiate = bounds.in_parts(differentiate, parts, weights)  # where a whole batch would take too much memory

    def train_step(images, step, weight):
        gradients, terms = differentiate(images, step, weight)
        *gradients, terms = workers.mean_over_replicas([*gradients, terms])
        optimizer.apply(gradients, weights)
        return terms

    @tf.function(jit_compile=compiled)
    def train_steps(batches, first, step, stop, sums):
        terms = tf.zeros(3)
        # On tensors, tf.function turns this into a loop of the compiled code.
        while step < stop and tf.reduce_all(tf.math.is_finite(terms)):
            images = batch_at(batches, (step - first) % len(batches), compiled)
            terms = workers.on_replicas(crew, train_step, images, step, kl_weight(step, s))
            sums += terms
            step += 1
        return sums, terms, step

    return train_steps


# --- evaluation -------------------------------------------------------------------------------------------------------
def compile_test(vae: VAE, s: Settings, evaluate: Callable) -> Callable:
    """A function: uint8 test images (N, H, W, C), KL weight -> their mean_terms (3,), z_mean (N, L).

    The objective is the one of the training. `evaluate` is from evaluation.compile_evaluation.
    """
    bound = bounds.compile_bound(vae, s, reconstruction_loss)

    def test(images, weight):
        reconstruction, kl, z_mean = evaluate(images)
        if s.bound == "elbo":
            minimised = objective(reconstruction, kl, weight, s, math.prod(images.shape[1:]))
        else:
            minimised = -bound(images, weight).mean()
        return mean_terms(minimised, reconstruction, kl), z_mean

    return test


def sample_prior(vae: VAE, count: int, key: tf.Tensor) -> tf.Tensor:
    """Latents (count, L) from the prior. Decoded, they are the model's own images."""
    return vae.prior.sample(count, key)


def decode(vae: VAE, z: np.ndarray) -> np.ndarray:
    """Latents (N, L) -> brightness (N, H, W, C) in [0, 1]."""

    def decode_batch(z, start):
        return [tf.sigmoid(vae.decoder(z))]

    (images,) = in_batches(decode_batch, np.asarray(z, np.float32), size.at_once(vae), "drawing")
    return images


def reconstruct(vae: VAE, images: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W, C) -> the brightness decoded from their posterior means, the same shape."""

    def encode_batch(images, start):
        return [vae.encoder(brightness(images))[0]]

    (z_mean,) = in_batches(encode_batch, images, size.at_once(vae), "encoding")
    return decode(vae, z_mean)


def draw_grid(vae: VAE, s: Settings, dataset: Dataset, name: str) -> np.ndarray:
    """The grid "samples" or "reconstructions", uint8 (H', W', C). Every epoch shows the same latents or test images."""
    if name == "reconstructions":
        return pictures.reconstructions(partial(reconstruct, vae), dataset)
    latents = sample_prior(vae, 100, random_key(s.seed, GRID_LATENTS, 0))
    return pictures.samples(partial(decode, vae), latents)


# --- loop -------------------------------------------------------------------------------------------------------------
def fit(vae: VAE, s: Settings, dataset: Dataset, evaluate: Callable, run: Recorder) -> None:
    """Train to the last epoch, from the newest checkpoint or from the start.

    `run` (utils/recorder.py) records the run: history, pictures, checkpoints, signals, agreement of several workers.
    Raises Stopped (Ctrl-C or SIGTERM; a checkpoint has been saved), RunError (no checkpoint is intact), Diverged,
    BadImage, WorkerLost and OSError (a full disk).
    """
    optimizer = build_optimizer(vae, s, run.horizon)
    train_steps, test = compile_train_steps(vae, optimizer, s, run.crew), compile_test(vae, s, evaluate)

    def test_and_draw():
        if run.test_is_due:
            weight = kl_weight(run.step - 1, s)  # in the last step
            run.write_test_line(*test(dataset.test_images, weight), weight)
        run.write_pictures(partial(draw_grid, vae, s, dataset))

    with run.training(optimizer):  # from the newest checkpoint, if there is one
        if run.step == 0 or run.test_is_due:  # the untrained network, or an epoch whose end could not be reported
            test_and_draw()
        run.compile(train_steps)  # and start the clock
        for first, end, batches in run.batches():  # a whole epoch at once, or pieces of a stream
            while run.step < end:
                # 1. Train up to the next line of the history, the next checkpoint, or the end of these batches.
                stop = run.next_stop(end)
                steps = tf.constant(first), tf.constant(run.step), tf.constant(stop)
                sums, terms, step = train_steps(batches, *steps, run.sums)
                run.advance(sums, terms, step)

                # 2. Report how it goes.
                run.write_train_line(partial(kl_weight, s=s))
                test_and_draw()

                # 3. Save a checkpoint if it is due. It comes last, when the rest of this step is already on the disk.
                run.save()


# --- main -------------------------------------------------------------------------------------------------------------
def train(
    s: Settings,
    folder: Path | None = None,
    say: Callable[[str], None] = print,
    watch: Callable[[VAE, int], None] | None = None,
    watch_at: Collection[int] = (),
    crew: workers.Workers = workers.ALONE,
) -> tuple[VAE, Path]:
    """Train a VAE and judge it; return it and its folder, which is new or that of the interrupted run it continues.

    `say` gets the lines for the console. `watch` is called with the VAE after each number of steps in `watch_at`; it
    does not change what is learned. `crew` is the devices that train together. Raises console.Problem with the line
    for the user, OSError and, when interrupted, console.Stopped or KeyboardInterrupt.
    """
    with workers.all_or_none(crew):
        dataset = data.prepare(s, say, folder)
    workers.check_same(crew, dataset)
    size.check_fits(build_vae, s, dataset.train_images.shape[1:], say)
    vae = build_vae(s, dataset.train_images.shape[1:])
    evaluate = evaluation.compile_evaluation(vae, s, loss_terms)
    with recording(vae, s, dataset, folder, say, watch, watch_at, crew) as run:
        fit(vae, run.s, dataset, evaluate, run)
        run.judge(evaluate, reconstruction_loss, decode)
    return vae, run.folder


def main(command: Command) -> int:
    """Train as the command line says; return the exit code."""

    def work():
        with together(command) as (settings, folder, say, crew):  # alone, or as one of several machines
            train(settings, folder, say, crew=crew)

    return console.run("main.py", work)


if __name__ == "__main__":
    sys.exit(main(COMMAND))
