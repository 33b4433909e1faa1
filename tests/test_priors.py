"""utils/priors.py against quadrature, SciPy and closed forms; small, and with weights moved away from their start."""

from functools import cache
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logsumexp
from scipy.stats import chisquare, norm

from tests.tiny import float32
from utils import priors
from utils.start import tf

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)
NAMES = ["standard", "vampprior", "mixture", "realnvp"]
IMAGE_SHAPE = (2, 3, 1)
SHAPES = {  # of the weights with 4 latents, 3 components or layers, and 8 units
    "standard": [],
    "vampprior": [(3, *IMAGE_SHAPE)],
    "mixture": [(3, 4), (3, 4), (3,)],
    "realnvp": 3 * [(2, 8), (8,), (8, 8), (8,), (8, 4), (4,)],
}
STEP, EDGE, CELL = 0.05, 12.0, 0.5  # of the quadrature, whose points are the centres of squares, and of the histogram
KEY = tf.constant([3, 2**40], tf.int64)


def build_encoder(latent_dim, seed):
    """A linear encoder, x (B, 2, 3, 1) -> z_mean, z_log_std, so that NumPy can do the same in a line."""
    x = keras.Input(IMAGE_SHAPE)
    posterior = keras.layers.Dense(2 * latent_dim)(keras.layers.Flatten()(x))
    encoder = keras.Model(x, keras.ops.split(posterior, 2, axis=1))
    rng = np.random.default_rng(seed)
    kernel = np.hstack([rng.normal(0, 2, (6, latent_dim)), rng.normal(0, 0.3, (6, latent_dim))])
    encoder.set_weights([kernel, np.repeat([0.0, -0.5], latent_dim)])
    return encoder


def move(weights, seed, size):
    rng = np.random.default_rng(seed)
    for weight in weights:
        weight.assign(weight + rng.normal(0, size, weight.shape))


def untrained(name, latent_dim, seed=0):
    """A prior as it starts, and its encoder."""
    encoder = build_encoder(latent_dim, seed)
    asked = dict(prior=name, latent_dim=latent_dim, seed=seed, noise_dim=0)
    asked |= dict(prior_components=3, prior_layers=3, prior_units=8)
    return priors.build_prior(SimpleNamespace(**asked), encoder, IMAGE_SHAPE), encoder


@cache
def moved(name, latent_dim):
    """The same with weights moved as if it had learned something."""
    prior, encoder = untrained(name, latent_dim)
    move(prior.weights, seed=1, size=0.4)
    return prior, encoder


@cache
def untrained_flow(latent_dim, layers):
    couplings = [priors.build_coupling(latent_dim, 8, (0,), number) for number in range(layers)]
    return couplings, [coupling.get_weights() for coupling in couplings]


def flow(latent_dim, layers, seed, size):
    """The coupling networks of a flow, their weights moved by draws from N(0, size^2)."""
    couplings, initial = untrained_flow(latent_dim, layers)
    rng = np.random.default_rng(seed)
    for coupling, weights in zip(couplings, initial, strict=True):
        coupling.set_weights([weight + rng.normal(0, size, weight.shape) for weight in weights])
    return couplings


def compiled(function):
    return tf.function(function, jit_compile=True)


@cache
def masses(name, latent_dim):
    """The probability of each small square of the quadrature, by the midpoint rule: (480, ...)."""
    axis = np.arange(-EDGE, EDGE, STEP) + STEP / 2
    z = np.stack(np.meshgrid(*[axis] * latent_dim, indexing="ij"), -1)
    prior, _ = moved(name, latent_dim)
    return np.exp(np.float64(prior.log_density(float32(z)))) * STEP**latent_dim


# --- densities and draws ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "latent_dim"), [*((name, 2) for name in NAMES), ("mixture", 1), ("vampprior", 1)])
def test_the_density_integrates_to_one(name, latent_dim):
    assert masses(name, latent_dim).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("name", "latent_dim"), [*((name, 2) for name in NAMES), ("mixture", 1)])
def test_draws_follow_the_density(name, latent_dim):
    count, cells = 20_000, round(2 * EDGE / CELL)
    prior, _ = moved(name, latent_dim)
    z = compiled(lambda key: prior.sample(count, key))(KEY).numpy()
    seen, _ = np.histogramdd(z, [np.linspace(-EDGE, EDGE, cells + 1)] * latent_dim)
    squares = masses(name, latent_dim).reshape([cells, round(CELL / STEP)] * latent_dim)
    expected = count * squares.sum(tuple(range(1, 2 * latent_dim, 2)))
    likely = expected > 10
    seen, expected = ([*part[likely], count - part[likely].sum()] for part in (seen, expected))
    assert len(seen) > 10 * latent_dim
    assert chisquare(seen, expected).pvalue > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_key_has_its_own_draws_and_each_draw_is_another(name):
    prior, _ = moved(name, 3)
    draws = prior.sample(20, KEY)
    assert draws.shape == (20, 3)
    assert draws.dtype == tf.float32
    np.testing.assert_array_equal(draws, prior.sample(20, KEY))
    others = (prior.sample(20, KEY + tf.constant(more, tf.int64)) for more in ([0, 1], [1, 0]))
    everything = np.vstack([draws, *others])
    assert len(np.unique(everything)) == everything.size


@pytest.mark.parametrize("name", NAMES)
def test_xla_gives_the_density_and_gradients_of_eager_for_any_leading_axes(name):
    prior, encoder = moved(name, 3)
    weights = prior.weights + (encoder.trainable_variables if name == "vampprior" else [])

    def density_and_gradients(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            log_density = prior.log_density(z)
        return log_density, tape.gradient(log_density, [z, *(weight.value for weight in weights)])

    z = float32(np.random.default_rng(0).normal(size=(2, 4, 5, 3)))
    log_density, gradients = density_and_gradients(z)
    assert log_density.shape == z.shape[:-1]
    assert log_density.dtype == tf.float32
    np.testing.assert_allclose(log_density[1, 2], prior.log_density(z[1, 2]), rtol=1e-5)
    np.testing.assert_allclose(log_density[1, 2, 3], prior.log_density(z[1, 2, 3]), rtol=1e-5)
    assert all(np.any(gradient) for gradient in gradients)  # every weight has a gradient
    in_xla = compiled(density_and_gradients)(z)
    for one, other in zip(tf.nest.flatten(in_xla), [log_density, *gradients], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


# --- weights ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_the_initial_weights_follow_from_the_seed_alone_and_have_names_of_their_own(name):
    (prior, _), (again, _), (other, _) = untrained(name, 4, seed=5), untrained(name, 4, seed=5), untrained(name, 4, 6)
    assert [tuple(weight.shape) for weight in prior.weights] == SHAPES[name]
    paths = [weight.path for weight in prior.weights]
    assert all(path.startswith("prior_") for path in paths)
    assert len(set(paths)) == len(paths)
    drawn = np.concatenate([np.ravel(weight) for weight in prior.weights if np.any(weight)] or [[]])
    assert len(np.unique(drawn)) == len(drawn)  # no two parts start the same
    differ = []
    for one, same, another in zip(prior.weights, again.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, same)
        differ.append(np.any(one.numpy() != another.numpy()))
    assert any(differ) == (name != "standard")


def test_pseudo_inputs_start_as_different_images_about_as_dark_as_digits():
    prior = priors.vampprior(build_encoder(2, 0), IMAGE_SHAPE, 50, seed=0)
    images = expit(prior.weights[0].numpy())
    assert images.shape == (50, *IMAGE_SHAPE)
    assert len(np.unique(images)) == images.size
    assert 0.1 < images.mean() < 0.2  # MNIST's mean is 0.13


def test_gaussians_start_apart_with_equal_shares_and_standard_deviation_one():
    means, log_stds, logits = (weight.numpy() for weight in priors.mixture(4, 50, seed=0).weights)
    assert means.shape == log_stds.shape == (50, 4)
    assert means.std() == pytest.approx(1, abs=0.15)
    assert not np.any(log_stds)
    assert np.ptp(logits) == 0


# --- mixtures of Gaussians --------------------------------------------------------------------------------------------
def scipy_log_mixture(z, means, stds, shares):
    """log p(z) (N,) and the components' responsibilities (N, C), in float64."""
    joint = np.log(shares) + norm.logpdf(z[:, np.newaxis], means, stds).sum(-1)
    log_density = logsumexp(joint, axis=1)
    return log_density, np.exp(joint - log_density[:, np.newaxis])


@few
@given(seeds, st.integers(1, 4), st.integers(1, 40), st.floats(0.05, 2), st.floats(0, 5))
def test_a_mixture_and_its_gradients_are_those_of_scipy_and_closed_forms(seed, components, latents, std, distance):
    rng = np.random.default_rng(seed)
    prior = priors.mixture(latents, components, seed)
    means, log_stds, logits = prior.weights
    means.assign(rng.choice([-distance, distance], means.shape) + rng.normal(0, std, means.shape))
    log_stds.assign(rng.uniform(-0.5, 0.5, log_stds.shape) + np.log(std))
    move([logits], seed, 1)
    m, s, shares = np.float64(means), np.exp(np.float64(log_stds)), np.exp(logits - logsumexp(logits))
    drawn = rng.integers(components, size=6)
    z = (m[drawn] + s[drawn] * rng.normal(size=(6, latents))).astype(np.float32)
    expected, responsibility = scipy_log_mixture(np.float64(z), m, s, shares)
    with tf.GradientTape() as tape:
        tape.watch(point := float32(z))
        log_density = prior.log_density(point)
    np.testing.assert_allclose(log_density, expected, rtol=1e-6, atol=1e-4)

    deviation, r = (z[:, np.newaxis] - m) / s, responsibility[..., np.newaxis]  # (N, C, L), (N, C, 1)
    gradients = [
        -(r * deviation / s).sum(1),
        (r * deviation / s).sum(0),
        (r * (deviation**2 - 1)).sum(0),
        (responsibility - shares).sum(0),
    ]
    given_by_tape = tape.gradient(log_density, [point, *(weight.value for weight in prior.weights)])
    lost = 2e-6 * (np.abs(z).max() / s.min()) ** 2  # of float32's 1e-7 for each of 6 points
    for one, other, scale in zip(given_by_tape, gradients, [s.min(), s.min(), 1, 1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=(1e-3 + lost) / scale)


@few
@given(seeds, st.integers(1, 5), st.integers(1, 6))
def test_a_vampprior_mixes_the_posteriors_at_its_pseudo_inputs(seed, components, latents):
    encoder = build_encoder(latents, seed)
    prior = priors.vampprior(encoder, IMAGE_SHAPE, components, seed)
    kernel, bias = (np.float64(weight) for weight in encoder.weights)
    z_mean, z_log_std = np.split(expit(np.float64(prior.weights[0])).reshape(components, -1) @ kernel + bias, 2, axis=1)
    z = np.random.default_rng(seed).normal(0, 2, (7, latents)).astype(np.float32)
    expected, _ = scipy_log_mixture(np.float64(z), z_mean, np.exp(z_log_std), 1 / components)
    np.testing.assert_allclose(prior.log_density(float32(z)), expected, rtol=1e-5, atol=1e-5)


def test_a_far_point_has_a_finite_log_density():
    far = priors.mixture(40, 3, seed=0).log_density(float32(np.full((1, 40), 1e4)))
    np.testing.assert_allclose(far, [-40 * 1e8 / 2], rtol=1e-3)


def test_which_component_is_drawn_does_not_depend_on_the_noise():
    means, log_shares = float32([[0.0], [100.0], [200.0]]), tf.math.log([0.0, 0.4, 0.6])
    draws = priors.sample_mixture(means, tf.zeros((3, 1)), log_shares, 20_000, KEY).numpy()
    first, second = draws[draws < 150], draws[draws >= 150]
    assert len(first) / 20_000 == pytest.approx(0.4, abs=0.015)  # four standard errors, as below
    for drawn, mean in ((first, 100), (second, 200)):
        assert drawn.mean() == pytest.approx(mean, abs=0.05)
        assert drawn.std() == pytest.approx(1, abs=0.035)


# --- the flow ---------------------------------------------------------------------------------------------------------
@few
@given(seeds, st.integers(2, 6), st.integers(1, 5))
def test_the_flow_inverts_and_its_log_determinant_is_that_of_the_jacobian(seed, latents, layers):
    couplings = flow(latents, layers, seed, size=0.2)
    z = float32(np.random.default_rng(seed).normal(0, 2, (3, latents)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        noise, log_det = priors.to_noise(couplings, z)
    np.testing.assert_allclose(priors.from_noise(couplings, noise), z, rtol=1e-3, atol=1e-4)
    jacobian = tape.batch_jacobian(noise, z, experimental_use_pfor=False).numpy().astype(np.float64)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-3, atol=1e-4)
    assert np.abs(log_det).min() > 0


def test_the_flow_starts_as_the_standard_normal():
    z = np.random.default_rng(0).normal(0, 2, (10, 5)).astype(np.float32)
    prior = priors.realnvp(5, 4, 8, seed=0)
    np.testing.assert_allclose(prior.log_density(float32(z)), norm.logpdf(z).sum(1), rtol=1e-6)


def test_every_pair_of_layers_parts_the_latents_by_another_digit_of_their_index():
    index = np.arange(8.0)
    for digit in range(3):  # an untrained flow only reorders
        order = np.int64(priors.to_noise(flow(8, 2 * digit, seed=0, size=0), float32(index[np.newaxis]))[0][0])
        assert {i >> digit & 1 for i in order[::2]} == {0}


def test_the_scale_of_a_coupling_is_bounded_whatever_its_weights():
    (coupling,) = flow(6, 1, seed=0, size=100)
    _, log_scale = priors.shift_and_log_scale(coupling, float32(np.random.default_rng(0).normal(size=(50, 3))))
    assert np.abs(log_scale).max() == pytest.approx(priors.LOG_SCALE_BOUND)


def test_a_flow_of_a_single_latent_is_refused_by_name():
    with pytest.raises(ValueError, match="latent_dim: 1 is not allowed with a RealNVP prior; an integer of"):
        priors.realnvp(1, 2, 8, seed=0)
