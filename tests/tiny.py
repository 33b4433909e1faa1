"""A VAE small enough for differences and integrals, the same one written again in NumPy, and images for both."""

import math
from functools import cache

import numpy as np
from scipy.stats import laplace, norm

import main
from utils.settings import BEFORE
from utils.start import tf

SHAPE = (4, 2, 2)
TINY = BEFORE | {  # all that these tests rely on: params.py is the user's to edit
    "binarize": "none", "encoder_layers": (3,), "decoder_layers": (3,), "activation": "tanh", "latent_dim": 2,
    "autoencoder": False, "loss": "ce", "reconstruction_reduction": "sum", "decoder_scale": "fixed",
    "kl_schedule": "linear", "kl_weight_start": 0.25, "kl_weight_end": 1.5, "kl_steps": 4, "kl_cycles": 2,
    "free_bits": 0.0, "batch_size": 2, "epochs": 2, "learning_rate": 0.02, "lr_schedule": "cosine", "seed": 3,
    "log_every": 2, "checkpoint_every": 100, "images_every": 1, "nll_samples": 8, "noise_dim": 0, "held_out": 0,
    "prior": "standard", "bound": "elbo", "bound_samples": 1, "bound_chunk": 5_000, "gradient_clip": 0.0,
}  # fmt: skip


def float32(values):
    return tf.constant(values, tf.float32)


@cache
def graph(function, compiled):
    return tf.function(function, jit_compile=compiled)


def drawn(function, *arguments, compiled=False):
    """What a function draws; under XLA it draws other numbers."""
    return graph(function, compiled)(*arguments).numpy()


def random_images(count, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (count, *SHAPE), dtype=np.uint8)


def random_vae(chosen, seed=0):
    """A VAE in which no weight is zero."""
    vae, rng = main.build_vae(chosen, SHAPE), np.random.default_rng(seed)
    for weight in vae.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return vae


class NumpyVAE:
    """A VAE with the weights of another one; its images are (B, D)."""

    def __init__(self, chosen, weights):
        self.settings, self.log_scale = chosen, weights[-1] if chosen.decoder_scale == "learned" else None
        pairs = list(zip(weights[::2], weights[1::2], strict=False))  # (kernel, bias)
        split = len(chosen.encoder_layers) + 1
        self.encoder_layers, self.decoder_layers = pairs[:split], pairs[split : split + len(chosen.decoder_layers) + 1]

    def hidden(self, values, layers):
        activation = {"tanh": np.tanh, "elu": lambda a: np.where(a > 0, a, np.expm1(a))}[self.settings.activation]
        for kernel, bias in layers:
            values = activation(values @ kernel + bias)
        return values

    def encode(self, x):
        *body, (kernel, bias) = self.encoder_layers
        return np.split(self.hidden(x, body) @ kernel + bias, 2, axis=1)

    def decode(self, z):
        *body, (kernel, bias) = self.decoder_layers
        return self.hidden(z, body) @ kernel + bias

    def loss(self, x, logits):
        p, scale = 1 / (1 + np.exp(-logits)), None if self.log_scale is None else np.exp(self.log_scale)
        pixels = {
            "ce": lambda: -x * np.log(p) - (1 - x) * np.log(1 - p),
            "mse": lambda: (x - p) ** 2 if scale is None else -norm.logpdf(x, p, scale),
            "ad": lambda: abs(x - p) if scale is None else -laplace.logpdf(x, p, scale),
        }[self.settings.loss]()
        return pixels.sum(axis=-1)

    def terms(self, x, noise):
        """Reconstruction loss (B,) and KL (B, L)."""
        mean, log_std = self.encode(x)
        if self.settings.autoencoder:
            return self.loss(x, self.decode(mean)), np.zeros_like(mean)
        kl = 0.5 * (mean**2 + np.exp(log_std) ** 2) - 0.5 - log_std
        return self.loss(x, self.decode(mean + np.exp(log_std) * noise)), kl


def plain_kl_weight(name, step, start, end, steps, cycles):
    t = min(step / steps, 1)

    def logistic(t):
        return 1 / (1 + math.exp(6 - 12 * t))

    rise = {
        "constant": 1,
        "linear": t,
        "sigmoid": (logistic(t) - logistic(0)) / (logistic(1) - logistic(0)),
        "cosine": 0.5 - 0.5 * math.cos(math.pi * t),
        "cyclical": 1 if t == 1 else min(2 * (t * cycles - math.floor(t * cycles)), 1),
    }[name]
    return start + rise * (end - start)
