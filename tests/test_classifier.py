"""experiments/classifier.py on pictures that are easy to tell apart, and its scores against closed forms."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from experiments import classifier
from experiments.classifier import (
    SURE,
    build_classifier,
    effective_classes,
    features,
    frechet_distance,
    probabilities,
    sure_share,
    train_classifier,
)
from utils.batches import brightness


def bars(count, seed):
    """Noisy images (N, 8, 8, 1) with a white bar in one of four places, and that place (N,)."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 100, (count, 8, 8, 1), np.uint8), rng.integers(4, size=count).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += np.uint8(155)
    return images, labels


@pytest.fixture(scope="module")
def trained():
    return train_classifier(*bars(2_000, seed=0), seed=7, epochs=6)


# --- training ---------------------------------------------------------------------------------------------------------
def test_what_is_easy_to_tell_apart_is_learned(trained):
    images, labels = bars(1_203, seed=1)  # two batches
    predicted = probabilities(trained, brightness(images))
    assert predicted.shape == (1_203, 4)
    np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-5)
    assert (predicted.argmax(axis=1) == labels).mean() > 0.99
    assert sure_share(predicted) > 0.9
    assert effective_classes(predicted) == pytest.approx(4, abs=0.05)


def test_it_gives_logits(trained):
    x = brightness(bars(5, seed=2)[0])
    logits = trained.predict(x, verbose=0)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(trained, x), expected, rtol=1e-4, atol=1e-7)
    assert not np.allclose(logits.sum(axis=1), 1)


def test_a_classifier_follows_from_its_seed_and_leaves_the_global_one_alone(trained):
    def global_draws():
        return np.random.random(), float(keras.random.uniform(()))  # noqa: NPY002

    keras.utils.set_random_seed(1)
    expected = global_draws()
    keras.utils.set_random_seed(1)
    again = train_classifier(*bars(2_000, seed=0), seed=7, epochs=6)
    assert global_draws() == expected
    for a, b in zip(trained.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_seed_gives_other_weights_in_every_layer():
    kernels = [build_classifier((8, 8, 1), 4, seed).get_weights()[::2] for seed in (3, 4)]
    assert len(kernels[0]) == 4
    assert not any(np.array_equal(a, b) for a, b in zip(*kernels, strict=True))


def test_every_epoch_of_every_seed_sees_every_image_once_in_an_order_of_its_own(monkeypatch):
    seen = []

    def fit(self, x, y, batch_size, shuffle, verbose, callbacks):
        seen.append((x, y))
        assert shuffle is False

    monkeypatch.setattr(keras.Sequential, "fit", fit)
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1) * np.ones((1, 8, 8, 1), np.uint8)
    train_classifier(images, np.arange(50) % 10, seed=0, epochs=3)
    train_classifier(images, np.arange(50) % 10, seed=1, epochs=1)
    orders = [np.round(x[:, 0, 0, 0] * 255).astype(int) for x, _ in seen]
    assert len(orders) == 4
    for order, (_, labels) in zip(orders, seen, strict=True):
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
        np.testing.assert_array_equal(labels, order % 10)
    assert len({tuple(order) for order in orders}) == 4


def test_convolutions_are_not_compiled_with_xla(trained):
    assert trained.jit_compile is False


# --- scores -----------------------------------------------------------------------------------------------------------
def test_sure_is_above_the_threshold_only():
    tops = np.array([SURE, np.nextafter(SURE, 1), 0.96, 0.5, 1.0])
    assert sure_share(np.stack([1 - tops, tops], axis=1)) == pytest.approx(3 / 5)
    assert classifier.SURE == 0.95


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10), st.integers(1, 20), st.floats(0.11, 1))
def test_as_many_classes_as_are_equally_frequent_however_sure(present, each, top):
    rows = np.full((10, 10), (1 - top) / 9) + (top - (1 - top) / 9) * np.eye(10)
    assert effective_classes(np.repeat(rows[10 - present :], each, axis=0)) == pytest.approx(present)


def test_unequal_classes_count_by_the_entropy_of_their_shares():
    rows = np.eye(3)[[0, 0, 0, 2]]
    assert effective_classes(rows) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


# --- the distance of two sets of images -------------------------------------------------------------------------------
def cloud(mean, covariance, count, seed=0):
    """Points (count, F) with exactly this mean and covariance."""
    points = np.random.default_rng(seed).normal(size=(count, len(mean)))
    points -= points.mean(axis=0)
    whiten = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(points, rowvar=False))))
    return points @ whiten.T @ np.linalg.cholesky(covariance).T + mean


def random_covariance(rng, size):
    factors = rng.normal(size=(size, size))
    return factors @ factors.T + 0.1 * np.eye(size)


few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@few
@given(seeds, st.integers(1, 6))
def test_the_distance_of_gaussians_with_independent_features_has_a_closed_form(seed, size):
    rng = np.random.default_rng(seed)
    means, stds = rng.normal(0, 2, (2, size)), rng.uniform(0.1, 3, (2, size))
    a, b = (cloud(mean, np.diag(std**2), count) for mean, std, count in zip(means, stds, (20, 35), strict=True))
    assert frechet_distance(a, b) == pytest.approx(((means[0] - means[1]) ** 2 + (stds[0] - stds[1]) ** 2).sum())


@few
@given(seeds, st.integers(2, 6))
def test_the_distance_of_correlated_gaussians_is_the_formula_and_no_turn_or_order_changes_it(seed, size):
    rng = np.random.default_rng(seed)
    means, covariances = rng.normal(0, 2, (2, size)), [random_covariance(rng, size) for _ in range(2)]
    a, b = (cloud(mean, covariance, 30) for mean, covariance in zip(means, covariances, strict=True))
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)
    rotation = np.linalg.qr(rng.normal(size=(size, size)))[0]
    assert frechet_distance(a @ rotation + 5, b @ rotation + 5) == pytest.approx(expected)
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-9


def test_the_distance_takes_features_that_are_always_zero_and_fewer_points_than_features():
    points = np.random.default_rng(0).normal(size=(5, 3))
    flat = np.pad(points, ((0, 0), (0, 20)))  # float32, as features are
    assert frechet_distance(flat, np.pad(3 * points, ((0, 0), (0, 20)))) == pytest.approx(
        4 * (np.square(points.mean(axis=0)) + points.var(axis=0, ddof=1)).sum()
    )
    assert 0 <= frechet_distance(np.float32(flat), np.float32(flat)) < 1e-9
    assert frechet_distance(flat, flat + 2) == pytest.approx(23 * 4)


def test_features_are_what_the_last_layer_reads(trained):
    x = brightness(bars(1_203, seed=3)[0])
    found = features(trained, x)
    assert found.shape == (1_203, 64)
    kernel, bias = trained.get_layer("logits").get_weights()
    logits = found @ kernel + bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities(trained, x), expected, rtol=1e-4, atol=1e-7)


def test_noise_moves_images_away_from_clean_ones(trained):
    rng = np.random.default_rng(0)
    real, other = (features(trained, brightness(bars(1_000, seed)[0])) for seed in (4, 5))
    x = brightness(bars(1_000, seed=6)[0]).numpy()
    distances = [frechet_distance(real, other)]
    for noise in (0.3, 0.9):
        drawn = np.clip(x + rng.normal(0, noise, x.shape), 0, 1).astype(np.float32)
        distances.append(frechet_distance(real, features(trained, drawn)))
    assert (np.diff(distances) > distances[0]).all()
