"""utils/evaluation.py: a trained VAE's terms against NumPy, its log-likelihood against integrals."""

import math

import numpy as np
import pytest
from scipy.special import expit, logsumexp
from scipy.stats import bernoulli, norm

import main
from tests.shared import set_xla
from tests.tiny import SHAPE, TINY, NumpyVAE, drawn, random_images, random_vae
from utils import chance, evaluation
from utils.evaluation import compile_evaluation, estimate_log_likelihood
from utils.settings import from_params
from utils.start import tf


@pytest.mark.parametrize("autoencoder", [False, True])
def test_the_evaluation_is_numpys_image_by_image_and_the_same_every_time(monkeypatch, autoencoder):
    set_xla(monkeypatch)
    chosen = from_params(**TINY | {"autoencoder": autoencoder})
    vae, images = random_vae(chosen), random_images(2_000)  # two batches
    evaluate = compile_evaluation(vae, chosen, main.loss_terms)
    reconstruction, kl, z_mean = evaluate(images)

    plain, x = NumpyVAE(chosen, [weight.numpy() for weight in vae.weights]), images.reshape(2_000, -1) / 255
    keys = [chance.random_key(chosen.seed, chance.TEST_NOISE, start) for start in (0, 1_000)]
    noise = np.concatenate([drawn(chance.standard_normal, (1_000, 2), key) for key in keys])
    expected_reconstruction, expected_kl = plain.terms(x, noise)
    np.testing.assert_allclose(reconstruction, expected_reconstruction, rtol=1e-4)
    np.testing.assert_allclose(kl, expected_kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(z_mean, plain.encode(x)[0], atol=1e-5)
    np.testing.assert_array_equal(reconstruction, evaluate(images)[0])


@pytest.mark.parametrize("overrides", [{"loss": "ce"}, {"loss": "mse", "decoder_scale": "learned"}])
def test_the_log_likelihood_of_a_vae_is_the_integral_over_its_latents(overrides):
    chosen = from_params(**TINY | overrides | {"nll_samples": 2_000})
    vae, images = random_vae(chosen), np.where(random_images(30) > 127, 255, 0).astype(np.uint8)
    vae.encoder.get_layer("posterior").bias.assign([0, 0, 0.6, 0.5])  # wide, so that no image is missed
    plain, x = NumpyVAE(chosen, [weight.numpy() for weight in vae.weights]), images.reshape(30, -1) / 255
    axis = np.arange(-7, 7.05, 0.1)
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    log_p_x_z = norm.logpdf(z).sum(axis=1) - [plain.loss(image, plain.decode(z)) for image in x]  # (30, grid)
    exact = logsumexp(log_p_x_z, axis=1) + 2 * math.log(0.1)

    estimate, variance = estimate_log_likelihood(vae, chosen, images, main.reconstruction_loss)
    scores = (estimate - exact) / np.sqrt(variance)
    assert variance.max() < 0.1
    assert abs(scores).max() < 5
    assert 0.5 < np.sqrt((scores**2).mean()) < 1.6  # of 30 standard normal numbers


def noisy_vae(**overrides):
    """A VAE with one latent and two noise latents, decoded by a linear map."""
    chosen = from_params(**TINY | {"latent_dim": 1, "noise_dim": 2, "decoder_layers": ()} | overrides)
    return chosen, random_vae(chosen)


def test_noise_latents_reach_the_decoder_as_they_are_and_cost_no_kl():
    chosen, vae = noisy_vae()
    x, noise = random_images(5) / np.float32(255), np.random.default_rng(1).standard_normal((5, 3), np.float32)
    z_mean, z_log_std = (part[:, :1] for part in vae.encoder(x))  # the noise latents follow
    z = np.concatenate([z_mean + np.exp(z_log_std) * noise[:, :1], noise[:, 1:]], axis=1)
    weights, bias = (weight.numpy() for weight in vae.decoder.trainable_variables)
    pixels = bernoulli.logpmf(0, expit(z @ weights + bias)), bernoulli.logpmf(1, expit(z @ weights + bias))
    flat = x.reshape(5, -1)
    reconstruction, kl = main.loss_terms(vae, x, noise, chosen)
    np.testing.assert_allclose(reconstruction, -(pixels[0] * (1 - flat) + pixels[1] * flat).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(kl, main.kl_to_standard_normal(z_mean, z_log_std))
    evaluated = compile_evaluation(vae, chosen, main.loss_terms)(random_images(5))
    assert [part.shape for part in evaluated] == [(5,), (5, 1), (5, 1)]  # what is reported leaves out the noise
    np.testing.assert_allclose(evaluated[2], z_mean, atol=1e-5)
    np.testing.assert_allclose(
        main.reconstruct(vae, random_images(5)).reshape(5, -1), expit(z_mean * weights[:1] + bias), rtol=1e-5
    )


def test_the_log_likelihood_with_noise_latents_is_the_integral_over_all_of_them():
    chosen, vae = noisy_vae(nll_samples=4_000)
    images = np.where(random_images(10) > 127, 255, 0).astype(np.uint8)
    vae.encoder.get_layer("posterior").bias.assign([0, 0.5])  # wide, so that no image is missed
    weights, bias = (weight.numpy() for weight in vae.decoder.trainable_variables)
    axis = np.arange(-5, 5.1, 0.25)
    z = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    white = expit(z @ weights + bias)
    x = images.reshape(10, 1, -1) / 255
    log_p_x_z = norm.logpdf(z).sum(axis=1) + bernoulli.logpmf(x, white).sum(axis=2)  # (10, grid)
    exact = logsumexp(log_p_x_z, axis=1) + 3 * math.log(0.25)
    estimate, variance = estimate_log_likelihood(vae, chosen, images, main.reconstruction_loss)
    assert variance.max() < 0.1
    assert abs((estimate - exact) / np.sqrt(variance)).max() < 5


def test_no_two_batches_of_the_likelihood_share_a_draw(monkeypatch):
    chosen = from_params(**TINY | {"nll_samples": 1_001})  # a thousand images are a batch
    vae = main.build_vae(chosen, SHAPE)

    def first_and_last_noise(sums, first, stop, sizes, x, z_mean, z_log_std, log_p_x_given_z, log_prior, draw_noise):
        earliest, last = (tf.cast(draw_noise(k)[:, 0], tf.float64) for k in (first, stop - 1))
        return sums._replace(log_sum=tf.where(first == 0, earliest, sums.log_sum), log_sum_of_squares=last)

    monkeypatch.setattr(evaluation.likelihood, "add_draws", first_and_last_noise)
    monkeypatch.setattr(evaluation.likelihood, "estimate", lambda sums, samples: sums[:2])
    noise = np.stack(estimate_log_likelihood(vae, chosen, random_images(3_000), main.reconstruction_loss))
    assert len(np.unique(noise)) == 2 * 3_000


@pytest.mark.parametrize(("compiled", "few"), [(False, 1), (True, 8)])
def test_the_likelihood_is_made_a_few_draws_at_a_time_and_stays_what_it_is(monkeypatch, compiled, few):
    """A call for a thousand images has so few draws that the bar moves every second or two, even for a slow network."""
    set_xla(monkeypatch, compiled)
    chosen = from_params(**TINY | {"nll_samples": 20})
    vae, images = random_vae(chosen), random_images(1_000)
    posteriors = vae.encoder(images / np.float32(255))
    weigh = evaluation.compile_weighing(vae, chosen, main.reconstruction_loss, apart=20)
    counts, sums = zip(*weigh(images, np.int32(0), *posteriors, 20), strict=True)
    assert counts == (few,) * (20 // few) + ((20 % few,) if 20 % few else ())

    def draw_noise(k):
        return chance.standard_normal((1_000, 2), chance.random_key(chosen.seed, chance.IMPORTANCE_NOISE, k))

    plain = NumpyVAE(chosen, [weight.numpy() for weight in vae.weights])
    x, log_w = images.reshape(1_000, -1) / 255, []
    for k in range(20):
        noise = drawn(draw_noise, tf.constant(k, tf.int64), compiled=compiled)
        z = posteriors[0] + np.exp(posteriors[1]) * noise
        log_q = norm.logpdf(noise).sum(axis=1) - np.sum(posteriors[1], axis=1)
        log_w.append(norm.logpdf(z).sum(axis=1) - plain.loss(x, plain.decode(np.float64(z))) - log_q)
    expected = logsumexp(log_w, axis=0) - math.log(20)
    np.testing.assert_allclose(evaluation.likelihood.estimate(sums[-1], 20)[0], expected, rtol=1e-5)
    found, _ = estimate_log_likelihood(vae, chosen, images, main.reconstruction_loss)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
