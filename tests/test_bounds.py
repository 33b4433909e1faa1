"""utils/bounds.py, with every prior: against NumPy, and on a model of one latent, whose likelihood is known."""

import math

import numpy as np
import pytest
from scipy.special import expit, logsumexp
from scipy.stats import bernoulli, norm

import main
from tests.shared import set_xla
from tests.tiny import SHAPE, TINY, NumpyVAE, float32, random_images, random_vae
from utils import bounds, chance
from utils.batches import brightness
from utils.evaluation import compile_evaluation, estimate_log_likelihood
from utils.priors import kl_of_draws
from utils.settings import SettingsError, from_params
from utils.start import tf

ONE_LATENT = TINY | {"latent_dim": 1, "encoder_layers": (), "decoder_layers": (), "prior_components": 3}


def binary_images(count, seed=0):
    return np.where(random_images(count, seed) > 127, 255, 0).astype(np.uint8)


def vae_of(**overrides):
    """A VAE of one latent in which no weight is zero, its settings, and an image that is 0 or 1."""
    chosen = from_params(**ONE_LATENT | overrides)
    vae = random_vae(chosen, seed=5)
    vae.encoder.get_layer("posterior").bias.assign([0.2, 0.8])  # wide, so that no draw has too large a weight
    return vae, chosen, binary_images(1).astype(np.float32) / 255


def log_joint(vae, x, z):
    """log p(x, z), in NumPy, of an image (1, ...) at latents z (N, 1): (N,)."""
    kernel, bias = (weight.numpy() for weight in vae.decoder.trainable_variables)
    log_prior = vae.prior.log_density(float32(z)).numpy() if vae.prior.weights else norm.logpdf(z).sum(axis=1)
    return bernoulli.logpmf(x.reshape(1, -1), expit(z @ kernel + bias)).sum(axis=1) + log_prior


def exact_log_likelihood(vae, x):
    """log p(x) by the trapezoidal rule."""
    z = np.linspace(-12, 12, 4_001)[:, np.newaxis]
    return logsumexp(log_joint(vae, x, z)) + math.log(24 / 4_000)


def quadrature(points, draws):
    """Noise (draws, N, 1) and weights (N,) whose weighted sum is the expectation over that many draws from N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    grid = np.stack(np.meshgrid(*[nodes] * draws, indexing="ij")).reshape(draws, -1, 1)
    products = np.stack(np.meshgrid(*[weights / weights.sum()] * draws, indexing="ij")).reshape(draws, -1).prod(axis=0)
    return float32(grid), float32(products)


def importance_bound(vae, x, noise, weight=1.0, bound="iwae"):
    """bounds.importance_bound of images (B, H, W, C), with the cross-entropy."""
    chosen = from_params(**TINY | {"bound": bound})
    return bounds.importance_bound(vae, x, noise, float32(weight), chosen, main.reconstruction_loss)


def bound_of(vae, x, noise, weight=1.0, bound="iwae"):
    """The importance bound of one image under each of the noises (K, N, L): (N,)."""
    return importance_bound(vae, tf.repeat(x, noise.shape[1], 0), noise, weight, bound)


# --- the value --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("samples", [1, 2, 7])
@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("bound", ["iwae", "dreg"])
def test_the_importance_bound_is_numpys(samples, weight, bound):
    chosen = from_params(**TINY | {"noise_dim": 1})
    vae, x = random_vae(chosen), random_images(4) / np.float32(255)
    noise = np.random.default_rng(1).normal(size=(samples, 4, 3))
    plain, flat = NumpyVAE(chosen, [weight.numpy() for weight in vae.weights]), x.reshape(4, -1)
    mean, log_std = plain.encode(flat)
    z = mean + np.exp(log_std) * noise[..., :2]
    reconstruction = plain.loss(flat, plain.decode(np.concatenate([z, noise[..., 2:]], axis=-1)))
    kl = (norm.logpdf(z, mean, np.exp(log_std)) - norm.logpdf(z)).sum(axis=-1)
    expected = logsumexp(-reconstruction - weight * kl, axis=0) - math.log(samples)
    found = importance_bound(vae, float32(x), float32(noise), weight, bound)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if samples == 1 and weight == 1:  # the ELBO, with the KL of the draw
        np.testing.assert_allclose(found, -(reconstruction + kl)[0], rtol=1e-5, atol=1e-5)


def test_the_bound_of_images_that_no_float_could_give_a_probability_is_finite():
    vae, _, x = vae_of()
    vae.decoder.trainable_variables[1].assign(tf.fill([16], 3e4))  # each black pixel costs 30,000 nats
    black = int((x == 0).sum())
    found = bound_of(vae, x, quadrature(5, 2)[0])
    np.testing.assert_allclose(found / black, -3e4, rtol=1e-3)


@pytest.mark.parametrize("prior", ["standard", "mixture", "vampprior"])
def test_the_expected_bound_grows_from_the_elbo_towards_the_likelihood(prior):
    vae, chosen, x = vae_of(prior=prior)
    exact = exact_log_likelihood(vae, x)
    noise, weights = quadrature(40, 1)
    reconstruction, kl = main.loss_terms(vae, tf.repeat(x, 40, 0), noise[0], chosen)
    kl = tf.reduce_sum(kl, axis=1)
    elbo = -tf.tensordot(weights, reconstruction + kl, 1)
    means = [tf.tensordot(weights, bound_of(vae, x, noise), 1)]
    noise, weights = quadrature(40, 2)
    means.append(tf.tensordot(weights, bound_of(vae, x, noise), 1))
    noise, weights = quadrature(24, 3)
    means.append(tf.tensordot(weights, bound_of(vae, x, noise), 1))
    many = bound_of(vae, x, float32(np.random.default_rng(0).normal(size=(20_000, 5, 1))))
    np.testing.assert_allclose(means[0], elbo, rtol=1e-5)
    assert elbo < means[1] - 1e-3 < means[2] - 2e-3 < exact - 3e-3
    np.testing.assert_allclose(many, exact, atol=0.05)


def test_the_kl_of_draws_is_in_expectation_the_closed_form_and_its_mean_over_draws_is_reported():
    vae, _, x = vae_of(noise_dim=2)
    noise, weights = quadrature(20, 1)
    noise = tf.pad(noise, [[0, 0], [0, 0], [0, 2]])  # the KL leaves out the noise latents
    z_mean, z_log_std = vae.encoder(tf.repeat(x, 20, 0))
    z = main.sample_latent(z_mean, z_log_std, noise)
    kl = tf.tensordot(weights, kl_of_draws(vae.prior, z, z_mean, z_log_std)[0], 1)
    np.testing.assert_allclose(kl, main.kl_to_standard_normal(z_mean, z_log_std)[0, 0], rtol=1e-4)
    trained, chosen, x = vae_of(prior="mixture")
    noise = float32(np.random.default_rng(0).normal(size=(3, 2, 1)))
    found = main.loss_terms(trained, tf.repeat(x, 2, 0), noise, chosen)
    each = [main.loss_terms(trained, tf.repeat(x, 2, 0), one, chosen) for one in noise]
    for part, parts in zip(found, zip(*each, strict=True), strict=True):
        np.testing.assert_allclose(part, np.mean(parts, axis=0), rtol=1e-5)
    assert found[1].shape == (2, 1)


# --- the gradient -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", ["standard", "mixture", "vampprior"])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_doubly_reparameterised_gradient_is_in_expectation_that_of_the_bound(prior, weight):
    vae, _, x = vae_of(prior=prior)
    noise, expectation = quadrature(40, 2)
    gradients = []
    for bound in ("iwae", "dreg"):
        with tf.GradientTape() as tape:
            mean = tf.tensordot(expectation, bound_of(vae, x, noise, weight, bound), 1)
        gradients.append(tape.gradient(mean, [variable.value for variable in vae.weights]))
    for plain, other, variable in zip(*gradients, vae.weights, strict=True):
        assert np.abs(plain).max() > 1e-3, variable.path
        np.testing.assert_allclose(other, plain, rtol=2e-3, atol=2e-4, err_msg=variable.path)


def test_the_plain_gradient_is_that_of_the_expected_bound_by_differences():
    vae, _, x = vae_of(prior="vampprior")
    noise, expectation = quadrature(40, 2)
    bias = vae.encoder.trainable_variables[1]

    def expected_bound(change):
        before = bias.numpy()
        bias.assign(before + change)
        value = tf.tensordot(tf.cast(expectation, tf.float64), tf.cast(bound_of(vae, x, noise), tf.float64), 1).numpy()
        bias.assign(before)
        return value

    with tf.GradientTape() as tape:
        mean = tf.tensordot(expectation, bound_of(vae, x, noise), 1)
    found = tape.gradient(mean, bias.value)
    by_differences = [(expected_bound(nudge) - expected_bound(-nudge)) / 0.02 for nudge in 0.01 * np.eye(2)]
    np.testing.assert_allclose(found, by_differences, rtol=5e-3)


def test_the_encoders_gradient_is_less_noisy_doubly_reparameterised():
    vae, _, x = vae_of()
    noise = float32(np.random.default_rng(0).normal(size=(64, 200, 1)))
    spreads = []
    for bound in ("iwae", "dreg"):
        bias = tf.Variable(tf.repeat(vae.encoder(x)[0], 200, 0))  # one mean per image, so one gradient per image
        networks = main.VAE(lambda x, bias=bias: [bias, tf.repeat(vae.encoder(x[:1])[1], 200, 0)], *vae[1:])
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(bound_of(networks, x, noise, bound=bound))
        spreads.append(tape.gradient(total, bias).numpy().std())
    assert spreads[1] < 0.5 * spreads[0]


# --- training ---------------------------------------------------------------------------------------------------------
def trained(monkeypatch, steps=3, **overrides):
    """The weights after some steps in which all noise is the same, and the sums of the terms."""
    set_xla(monkeypatch)
    monkeypatch.setattr(
        bounds,
        "standard_normal",
        lambda shape, key: tf.reshape(tf.linspace(-1.0, 1.0, shape[0]), (-1, 1, 1)) * tf.ones(shape),
    )
    chosen = from_params(**TINY | {"batch_size": 6, "kl_schedule": "constant", "prior_components": 2} | overrides)
    vae = random_vae(chosen)
    optimizer = main.build_optimizer(vae, chosen, horizon=10)
    batches = float32(random_images(6 * steps)).numpy().astype(np.uint8).reshape(steps, 6, *SHAPE)
    train_steps = main.compile_train_steps(vae, optimizer, chosen)
    ends = tf.constant(0), tf.constant(0), tf.constant(steps)
    sums, _, _ = train_steps(tf.constant(batches), *ends, tf.zeros(3))
    return [weight.numpy() for weight in vae.weights], sums.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [{"bound": "iwae"}, {"bound": "dreg", "prior": "vampprior"}, {"bound": "elbo", "prior": "mixture"}]
)
def test_a_batch_in_parts_is_trained_on_as_a_whole_one(overrides, monkeypatch):
    whole, whole_sums = trained(monkeypatch, bound_samples=4, bound_chunk=24, **overrides)
    for chunk in (12, 4):
        parts, sums = trained(monkeypatch, bound_samples=4, bound_chunk=chunk, **overrides)
        np.testing.assert_allclose(sums, whole_sums, rtol=1e-5, atol=1e-4)
        for one, other in zip(parts, whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_parts_and_steps_draw_noise_of_their_own(monkeypatch):
    keys = []
    set_xla(monkeypatch)
    monkeypatch.setattr(
        bounds, "standard_normal", lambda shape, key: keys.append(key) or tf.ones(shape) * tf.cast(key[1], tf.float32)
    )
    monkeypatch.setattr(tf, "function", lambda **_: lambda function: tf.autograph.to_graph(function))
    trained_with = {"bound": "iwae", "bound_samples": 2, "bound_chunk": 4, "batch_size": 6}
    chosen = from_params(**TINY | trained_with)
    vae = random_vae(chosen)
    train_steps = main.compile_train_steps(vae, main.build_optimizer(vae, chosen, horizon=10), chosen)
    steps = tf.constant(0), tf.constant(0), tf.constant(2)
    train_steps(tf.constant(random_images(12).reshape(2, 6, *SHAPE)), *steps, tf.zeros(3))
    assert sorted({int(key[1]) for key in keys}) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("bound", ["elbo", "iwae", "dreg"])
def test_the_test_objective_is_that_of_training_at_the_given_weight(bound, monkeypatch):
    set_xla(monkeypatch)
    chosen = from_params(
        **TINY | {"bound": bound, "bound_samples": 3, "bound_chunk": 6, "prior": "mixture", "prior_components": 2}
    )
    vae, images = random_vae(chosen), random_images(5)
    test = main.compile_test(vae, chosen, compile_evaluation(vae, chosen, main.loss_terms))
    found = test(images, float32(0.5))[0].numpy()
    assert found[1] > 0
    if bound == "elbo":
        noise = bounds.draw_noise(chosen, 5, chance.random_key(chosen.seed, chance.TEST_NOISE, 0))[0]
        z_mean, z_log_std = vae.encoder(brightness(images))
        z = main.sample_latent(z_mean, z_log_std, noise)
        logits = vae.decoder(z).numpy().reshape(5, -1)
        p, x = expit(logits), images.reshape(5, -1) / 255
        cost = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=1)
        kl = norm.logpdf(z, z_mean, np.exp(z_log_std)).sum(axis=1) - vae.prior.log_density(z).numpy()
        np.testing.assert_allclose(found, [cost.mean() + 0.5 * kl.mean(), cost.mean(), kl.mean()], rtol=1e-5)
        return
    noise = [  # batches of two images, six draws; the last batch, of one image, is padded
        bounds.draw_noise(chosen, 2, chance.random_key(chosen.seed, chance.TEST_NOISE, start)) for start in (0, 2, 4)
    ]
    expected = importance_bound(vae, brightness(images), tf.concat(noise, axis=1)[:, :5], 0.5)
    assert found[0] == pytest.approx(-np.mean(expected), rel=1e-5)


# --- priors elsewhere -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", ["mixture", "vampprior"])
def test_the_log_likelihood_with_a_trained_prior_is_the_integral(prior):
    vae, chosen, x = vae_of(prior=prior, nll_samples=4_000)
    estimate, variance = estimate_log_likelihood(vae, chosen, np.uint8(255 * x), main.reconstruction_loss)
    assert variance[0] < 0.01
    assert abs(estimate[0] - exact_log_likelihood(vae, x)) < 5 * np.sqrt(variance[0])


def test_draws_from_a_trained_prior_are_its_own_and_noise_latents_are_standard_normal():
    vae, _, _ = vae_of(prior="mixture", prior_components=1, noise_dim=2)
    for weight in vae.prior.weights:
        if "mean" in weight.path:
            weight.assign(tf.fill(weight.shape, 7.0))
    z = main.sample_prior(vae, 4_000, chance.random_key(0, chance.GRID_LATENTS, 0)).numpy()
    assert z.shape == (4_000, 3)
    np.testing.assert_allclose(z.mean(axis=0), [7, 0, 0], atol=0.1)
    np.testing.assert_allclose(z[:, 1:].std(axis=0), 1, atol=0.05)
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.06


@pytest.mark.parametrize("prior", ["standard", "vampprior", "mixture", "realnvp"])
def test_noise_latents_are_drawn_apart_from_those_of_the_prior(prior):
    chosen = from_params(**TINY | {"prior": prior, "noise_dim": 2})
    z = main.sample_prior(random_vae(chosen), 4_000, chance.random_key(0, chance.GRID_LATENTS, 0)).numpy()
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    assert np.abs(z[:, :2].T @ z[:, 2:] / 4_000).max() < 0.08


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"autoencoder": True, "prior": "mixture"}, "prior"),
        ({"autoencoder": True, "bound": "iwae"}, "bound"),
        ({"autoencoder": True, "bound_samples": 2}, "bound_samples"),
        ({"prior": "realnvp", "latent_dim": 1}, "latent_dim"),
        ({"free_bits": 0.1, "prior": "mixture"}, "free_bits"),
        ({"free_bits": 0.1, "bound": "iwae"}, "free_bits"),
        ({"free_bits": 0.1, "bound_samples": 2}, "free_bits"),
        ({"reconstruction_reduction": "mean", "bound": "dreg"}, "reconstruction_reduction"),
        ({"bound_samples": 11, "bound_chunk": 10}, "bound_samples"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(overrides, told):
    with pytest.raises(SettingsError, match=told):
        from_params(**TINY | overrides)
