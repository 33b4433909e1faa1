"""Evaluate a trained VAE: its loss terms on test images, their log-likelihood, and the files with these results.

Functions of main.py (loss_terms, reconstruction_loss, decode) are passed as arguments.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils import best, curves, explore, likelihood, pictures, report, runs, size, verdict
from utils.batches import brightness
from utils.bounds import ReconstructionLoss
from utils.chance import IMPORTANCE_NOISE, TEST_NOISE, random_key, standard_normal
from utils.console import Say, waiting_bar
from utils.dataset import Dataset, in_equal_batches
from utils.files import write_json
from utils.settings import Settings
from utils.start import tf, xla_pays

Evaluate = Callable[[np.ndarray], list[np.ndarray]]  # what compile_evaluation returns


def compile_evaluation(vae: Any, s: Settings, loss_terms: Callable) -> Evaluate:
    """Make a function: uint8 images (N, H, W, C) -> NumPy reconstruction loss (N,), KL (N, L), z_mean (N, L).

    Its noise is the same every time. So two epochs differ only in what was learned.
    """

    @tf.function(jit_compile=xla_pays(vae.encoder, vae.decoder))
    def evaluate_batch(images, start):
        x = brightness(images)
        noise = standard_normal((x.shape[0], s.latent_dim + s.noise_dim), random_key(s.seed, TEST_NOISE, start))
        return (*loss_terms(vae, x, noise, s), vae.encoder(x)[0][:, : s.latent_dim])

    return partial(in_equal_batches, evaluate_batch, size=size.at_once(vae), doing="testing")


# --- log-likelihood ---------------------------------------------------------------------------------------------------
def compile_weighing(
    vae: Any, s: Settings, reconstruction_loss: ReconstructionLoss, apart: int, sizes: Sequence[int] = ()
) -> Callable[..., Iterator[tuple[int, likelihood.Sums]]]:
    """Make weigh(images, start, z_mean, z_log_std, samples), which weighs `samples` draws of each image.

    The uint8 images (B, H, W, C) have the posteriors N(z_mean, exp(z_log_std)^2), (B, L + NOISE_DIM). `start` is the
    number of the first image. Draw k has the key start * `apart` + k. So no two batches share a draw if `apart` is at
    least `samples`. `weigh` works on a few draws at a time. After each few it yields their number and the sums of all
    draws so far, with a row for the bound of each number of draws in `sizes`. In between, a bar can move, and Ctrl-C
    works.
    """
    compiled = xla_pays(vae.encoder, vae.decoder)
    at_once = 8_000 if compiled else 1_000  # draws a call, over all images: a tenth of a second; convolutions: two

    @tf.function(jit_compile=compiled)
    def weigh_draws(images, start, z_mean, z_log_std, first, stop, sums):
        def draw_noise(k):
            draw = tf.cast(start, tf.int64) * apart + tf.cast(k, tf.int64)
            return standard_normal(z_mean.shape, random_key(s.seed, IMPORTANCE_NOISE, draw))

        def log_p_x_given_z(x, z):
            return -reconstruction_loss(vae, x, z, s)

        pieces = brightness(images), z_mean, z_log_std, log_p_x_given_z, vae.prior.log_density, draw_noise
        return likelihood.add_draws(sums, first, stop, sizes, *pieces)

    def weigh(images, start, z_mean, z_log_std, samples):
        sums, few = likelihood.no_draws(len(images), sizes), max(1, at_once // len(images))
        batch = [tf.constant(part) for part in (images, start, z_mean, z_log_std)]
        for first in range(0, samples, few):
            stop = min(first + few, samples)
            sums = weigh_draws(*batch, tf.constant(first), tf.constant(stop), sums)
            sums.log_sum.numpy()  # wait for the result, so that a bar can move and Ctrl-C works
            yield stop - first, sums

    return weigh


def has_log_likelihood(s: Settings) -> bool:
    """Whether the log-likelihood, or log-density, of a run is estimated."""
    return bool(s.nll_samples) and report.kind(s) != "none"


def estimate_log_likelihood(
    vae: Any, s: Settings, images: np.ndarray, reconstruction_loss: ReconstructionLoss
) -> list[np.ndarray]:
    """Estimate log p(x) of uint8 images (N, H, W, C): nats (N,) and their sampling variances (N,)."""
    weigh = compile_weighing(vae, s, reconstruction_loss, apart=s.nll_samples)

    @tf.function(jit_compile=xla_pays(vae.encoder, vae.decoder))
    def encode(images):
        return vae.encoder(brightness(images))

    at_once = size.at_once(vae)

    def estimate(images, start):
        for draws, sums in weigh(images, start, *encode(images), s.nll_samples):  # noqa: B007 (the last sums are used)
            bar.update(draws)
        return likelihood.estimate(sums, s.nll_samples)

    with waiting_bar("likelihood", -(-len(images) // at_once) * s.nll_samples) as bar:
        return in_equal_batches(estimate, images, at_once)


# --- a finished run ---------------------------------------------------------------------------------------------------
def judge(
    vae: Any,
    s: Settings,
    dataset: Dataset,
    folder: Path,
    evaluate: Evaluate,
    estimates: list[np.ndarray] | None,
    decode: Callable,
    say: Say,
) -> dict[str, Any]:
    """Write the trained model's report and pictures into its folder; return the report.

    `estimates` are estimate_log_likelihood's of the test images, or None.
    """
    reconstruction, kl, z_mean = evaluate(dataset.test_images)
    history = runs.read_history(folder)
    pixels = math.prod(dataset.test_images.shape[1:])
    judged = report.make_report(s, reconstruction, kl, z_mean, estimates, pixels)
    judged["best"] = best.kept(folder, history)
    judged |= verdict.judge(s, judged, history)
    judged["skipped_images"] = report.skipped_images(dataset)
    write_json(folder / "report.json", judged)
    curves.save_curves(folder / "curves.png", history, s, judged)
    pictures.write_film(folder, pictures.names_of(s)[0], say)
    if s.latent_dim == 2 and not s.noise_dim and s.prior == "standard" and not s.autoencoder:
        (last,) = [line for line in history if line["split"] == "test"][-1:]
        pictures.write_manifold(folder, s, partial(decode, vae), z_mean, dataset.test_labels, dataset.label_names, last)
    # The projector of TensorBoard only looks in folders with event files.
    called = dataset.test_labels, dataset.label_names
    pictures.write_projector(folder / "tensorboard" / "test", z_mean, *called, dataset.test_images)
    explore.leave_page(say, folder, vae, s, dataset, (reconstruction, kl), judged)
    return judged
