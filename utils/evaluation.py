"""What a trained VAE is worth: its terms on test images, their log-likelihood, and the files that say so.

Functions of main.py (loss_terms, reconstruction_loss, decode) are handed over as arguments.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils import pictures, report, runs, verdict
from utils.batches import brightness
from utils.bounds import ReconstructionLoss
from utils.chance import IMPORTANCE_NOISE, TEST_NOISE, random_key, standard_normal
from utils.dataset import Dataset, in_equal_batches
from utils.files import write_json
from utils.likelihood import log_likelihood
from utils.settings import Settings
from utils.start import tf, xla_pays

Evaluate = Callable[[np.ndarray], list[np.ndarray]]  # what compile_evaluation returns


def compile_evaluation(vae: Any, s: Settings, loss_terms: Callable) -> Evaluate:
    """A function: uint8 images (N, H, W, C) -> reconstruction loss (N,), KL (N, L), z_mean (N, L), as NumPy arrays.

    Its noise is the same every time, so that two epochs differ only by what was learned.
    """

    @tf.function(jit_compile=xla_pays(vae.encoder, vae.decoder))
    def evaluate_batch(images, start):
        x = brightness(images)
        noise = standard_normal((x.shape[0], s.latent_dim + s.noise_dim), random_key(s.seed, TEST_NOISE, start))
        return (*loss_terms(vae, x, noise, s), vae.encoder(x)[0][:, : s.latent_dim])

    return partial(in_equal_batches, evaluate_batch)


def log_p_x_given_z(vae: Any, s: Settings, reconstruction_loss: ReconstructionLoss) -> Callable:
    """A function: images x (B, H, W, C), latents z (B, L) -> log p(x|z) (B,) in nats, as likelihood.py wants it."""
    return lambda x, z: -reconstruction_loss(vae, x, z, s)


def estimate_log_likelihood(
    vae: Any, s: Settings, images: np.ndarray, reconstruction_loss: ReconstructionLoss
) -> list[np.ndarray]:
    """Estimate log p(x) of uint8 images (N, H, W, C): nats (N,) and their sampling variances (N,)."""

    @tf.function(jit_compile=xla_pays(vae.encoder, vae.decoder))
    def estimate(images, start):
        x = brightness(images)
        z_mean, z_log_std = vae.encoder(x)

        def noise_of_draw(k):
            draw = tf.cast(start, tf.int64) * s.nll_samples + tf.cast(k, tf.int64)  # no two batches share one
            return standard_normal(z_mean.shape, random_key(s.seed, IMPORTANCE_NOISE, draw))

        densities = log_p_x_given_z(vae, s, reconstruction_loss), vae.prior.log_density
        return log_likelihood(x, z_mean, z_log_std, *densities, noise_of_draw, s.nll_samples)

    return in_equal_batches(estimate, images)


def judge(
    vae: Any,
    s: Settings,
    dataset: Dataset,
    folder: Path,
    evaluate: Evaluate,
    reconstruction_loss: ReconstructionLoss,
    decode: Callable,
) -> dict[str, Any]:
    """Write the trained model's report and pictures into its folder; return the report."""
    reconstruction, kl, z_mean = evaluate(dataset.test_images)
    estimates = None
    if s.nll_samples and report.kind(s) != "none":
        estimates = estimate_log_likelihood(vae, s, dataset.test_images, reconstruction_loss)
    history = runs.read_history(folder)
    pixels = math.prod(dataset.test_images.shape[1:])
    judged = report.make_report(s, reconstruction, kl, z_mean, estimates, pixels)
    judged |= verdict.judge(s, judged, history)
    judged["skipped_images"] = report.skipped_images(dataset)
    write_json(folder / "report.json", judged)
    pictures.save_curves(folder / "curves.png", history, s, judged)
    pictures.write_film(folder, pictures.names_of(s)[0])
    if s.latent_dim == 2 and not s.noise_dim and s.prior == "standard" and not s.autoencoder:
        (last,) = [line for line in history if line["split"] == "test"][-1:]
        pictures.write_manifold(folder, s, partial(decode, vae), z_mean, dataset.test_labels, last)
    # Where TensorBoard has event files, because its projector looks nowhere else.
    pictures.write_projector(folder / "tensorboard" / "test", z_mean, dataset.test_labels, dataset.test_images)
    return judged
