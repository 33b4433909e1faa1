"""The Keras script that whole runs are compared with: it does the work of main.py's default run."""

import numpy as np
import pytest

import main
from experiments import benchmark, keras_vae, whole_run
from utils import bounds, chance
from utils.settings import from_params
from utils.start import tf


@pytest.fixture
def black_and_white():
    """A batch of uint8 images (128, 784), 0 or 255, which drawing again does not change."""
    return 255 * np.random.default_rng(0).integers(2, size=(128, 784), dtype=np.uint8)


def test_its_steps_are_those_of_main(black_and_white, monkeypatch):
    """Three steps from the same weights under the same noise, where the KL's weight is 3/4 and the cosine has begun."""
    settings, horizon, first = from_params(**whole_run.SETTINGS), 7_000, 1_500
    ours = main.build_vae(settings, (28, 28, 1))
    optimizer = main.build_optimizer(ours, settings, horizon)
    keras = keras_vae.compiled_vae(horizon)
    keras.encoder.set_weights(ours.encoder.get_weights())
    keras.decoder.set_weights(ours.decoder.get_weights())
    before = ours.encoder.get_weights()[0]
    keras.optimizer.build(keras.trainable_weights)
    for each in (optimizer, keras.optimizer):
        each.iterations.assign(first)

    batches = tf.constant(black_and_white.reshape(1, 128, 28, 28, 1))
    steps = [tf.constant(number) for number in (0, first, first + 3)]
    train_steps = main.compile_train_steps(ours, optimizer, settings).python_function  # not compiled: that takes longer
    sums, _, _ = train_steps(batches, *steps, tf.zeros(3))
    for step in range(first, first + 3):
        noise = bounds.draw_noise(settings, 128, chance.random_key(0, chance.NOISE, step))
        monkeypatch.setattr(tf.random, "normal", lambda shape, noise=noise: noise)
        answer = keras.train_step(tf.constant(black_and_white))

    assert float(answer["loss"]) == pytest.approx(float(sums[0]) / 3, rel=1e-5)  # the mean of the three
    for network, other in ((keras.encoder, ours.encoder), (keras.decoder, ours.decoder)):
        for weight, expected in zip(network.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(weight, expected, atol=2e-5)
    assert np.abs(ours.encoder.get_weights()[0] - before).max() > 1e-3


def test_its_test_loss_is_minus_the_elbo(black_and_white, monkeypatch):
    """Against the formula in NumPy, over two batches of different sizes."""
    keras = keras_vae.compiled_vae(1)
    noise = np.random.default_rng(1).standard_normal((128, 20), np.float32)
    for part in (slice(0, 100), slice(100, 128)):
        monkeypatch.setattr(tf.random, "normal", lambda shape, part=part: noise[part])
        answer = keras.test_step(tf.constant(black_and_white[part]))
    weights = keras.encoder.get_weights(), keras.decoder.get_weights()
    elbo = benchmark.mean_elbo(*weights, black_and_white, noise, "silu")
    assert float(answer["loss"]) == pytest.approx(-elbo, rel=1e-5)


def test_it_draws_black_and_white_anew_in_each_step(monkeypatch):
    seen, keras = [], keras_vae.compiled_vae(1)
    terms = keras.terms
    monkeypatch.setattr(keras, "terms", lambda x: seen.append(x.numpy()) or terms(x))
    images = np.tile(np.array([0, 64, 255, 191], np.uint8), (128, 196))
    for _ in range(2):
        keras.train_step(tf.constant(images))
    for x in seen:
        assert np.isin(x, (0, 1)).all()
        np.testing.assert_allclose(x.reshape(-1, 4).mean(axis=0), [0, 64 / 255, 1, 191 / 255], atol=0.02)
    assert np.any(seen[0] != seen[1])
