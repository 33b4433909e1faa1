"""The images of the Analysis: its data set, samples of its VAEs, and the digit classifier that judges them."""

from typing import Any

import numpy as np

import main
from experiments import classifier
from experiments.study import BASE, Study, settings_of
from utils import data, mnist
from utils.chance import GRID_LATENTS, random_key
from utils.dataset import Dataset
from utils.settings import from_params


def dataset_of(study: Study, binarize: str = "dynamic") -> Dataset:
    """MNIST for the Analysis: test images black and white by a fixed draw or, with "none", all images grey."""
    return data.prepare(settings_of(study, binarize=binarize), lambda line: None)


def digit_classifier(study: Study) -> Any:
    """The classifier of experiments/classifier.py that judges samples, trained on the grey images in ten seconds."""
    dataset = mnist.load(BASE["dataset"], from_params().data_dir)
    images = 5_000 if study.quick else len(dataset.train_images)
    return classifier.train_classifier(dataset.train_images[:images], dataset.train_labels[:images], study.seed)


def prior_samples(vae: Any, count: int, seed: int) -> np.ndarray:
    """Images (count, H, W, C) decoded from draws from the prior, brightness in [0, 1]; the same draws for a seed."""
    if vae.prior.weights:
        latents = main.sample_prior(vae, count, random_key(seed, GRID_LATENTS, 0))
    else:  # N(0, I), which has no weights: NumPy draws
        latents = np.random.default_rng(seed).standard_normal((count, vae.decoder.input_shape[1])).astype(np.float32)
    return main.decode(vae, latents)


def judge_samples(judge: Any, samples: np.ndarray) -> dict[str, float]:
    """Judge samples (N, H, W, C) by the digit classifier: the share it is sure of, and how many digits it sees.

    `digits` is the exponential of the entropy of its verdicts: 10 if all digits are equally frequent, 1 if all samples
    look like the same digit.
    """
    verdicts = classifier.probabilities(judge, samples)
    return {"sure": classifier.sure_share(verdicts), "digits": classifier.effective_classes(verdicts)}
