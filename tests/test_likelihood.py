"""utils/likelihood.py against NumPy, SciPy and a linear Gaussian model, whose likelihood is known exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import laplace, multivariate_normal, norm

from tests.tiny import float32
from utils.likelihood import add_draws, bounds, estimate, log_add, log_standard_normal, no_draws
from utils.start import tf

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
numbers = st.floats(-1e4, 1e4, width=32)


def log_likelihood(x, z_mean, z_log_std, log_p_x_given_z, log_prior, draw_noise, samples):
    """The estimates from so many draws, and their variances."""
    pieces = x, z_mean, z_log_std, log_p_x_given_z, log_prior, draw_noise
    return estimate(add_draws(no_draws(len(z_mean)), 0, samples, (), *pieces), samples)


# --- against NumPy and SciPy, draw by draw ----------------------------------------------------------------------------
@few
@given(seeds, st.integers(1, 4), st.integers(1, 5))
def test_the_log_density_of_a_standard_normal_is_scipys(seed, batch, latents):
    z = np.random.default_rng(seed).normal(0, 3, (batch, latents)).astype(np.float32)
    np.testing.assert_allclose(log_standard_normal(z), norm.logpdf(z).sum(axis=1), rtol=1e-5)


@few
@given(numbers | st.just(-np.inf), numbers)
def test_log_add_is_numpys_and_takes_minus_infinity_and_what_exp_cannot(a, b):
    np.testing.assert_allclose(log_add(float32(a), float32(b)), np.logaddexp(a, b), rtol=1e-6, atol=1e-6)


@few
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.sampled_from([0.0, -3e3, 3e3]))
def test_the_estimate_and_its_variance_are_what_numpy_makes_of_the_same_draws(seed, batch, latents, samples, offset):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(samples, batch, latents)).astype(np.float32)
    x, z_mean, z_log_std = rng.normal(0, 0.7, (3, batch, latents)).astype(np.float32)
    estimate, variance = log_likelihood(
        float32(x),
        float32(z_mean),
        float32(z_log_std),
        lambda x, z: tf.reduce_sum(tf.sin(x + 2 * z), axis=1) + offset,  # exp(offset) is 0 or infinite in float32
        lambda z: -tf.reduce_sum(tf.abs(z), axis=1) - latents * np.log(2),  # a Laplace prior
        lambda k: tf.gather(float32(noise), k),
        samples,
    )
    z_std = np.exp(np.float64(z_log_std))
    z = z_mean + z_std * noise
    log_w = np.sin(x + 2 * z).sum(-1) + laplace.logpdf(z).sum(-1) - norm.logpdf(z, z_mean, z_std).sum(-1)  # (K, B)
    w = np.exp(log_w)
    np.testing.assert_allclose(estimate, logsumexp(log_w, axis=0) - np.log(samples) + offset, rtol=1e-5, atol=1e-4)
    expected = w.var(axis=0, ddof=1) / samples / w.mean(axis=0) ** 2
    tolerance = 1e-2 if offset else 1e-4  # float32 rounds 2 * 3,000 to 0.0005
    np.testing.assert_allclose(variance, expected, rtol=tolerance, atol=tolerance / 10)


def test_one_sample_has_no_variance_and_every_sample_draws_its_own_noise():
    asked = []

    def draw_noise(k):
        asked.append(int(k))
        return tf.zeros((3, 2))

    for samples in (1, 4):
        _, variance = log_likelihood(
            *tf.zeros((3, 3, 2)), lambda x, z: tf.zeros(3), log_standard_normal, draw_noise, samples
        )
        assert (np.isnan(variance) == (samples == 1)).all()
    assert asked == [0, 0, 1, 2, 3]


def sums_of(log_w, sizes, cut):
    """The sums of draws with these log w (K, B), the first `cut` of them added before the rest."""
    nothing = tf.zeros((log_w.shape[1], 0))  # images and latents that no density depends on

    def add(sums, first, stop):
        drawn = []

        def draw_noise(k):
            drawn.append(k)
            return nothing

        pieces = lambda x, z: tf.gather(float32(log_w), drawn[-1]), log_standard_normal, draw_noise
        return add_draws(sums, first, stop, sizes, nothing, nothing, nothing, *pieces)

    return add(add(no_draws(log_w.shape[1], sizes), 0, cut), cut, len(log_w))


@few
@given(seeds, st.integers(1, 12), st.sampled_from([0.0, -3e3, 3e3]), st.data())
def test_the_bound_of_k_draws_is_the_mean_over_all_full_groups_of_k(seed, samples, offset, data):
    sizes = [*data.draw(st.lists(st.integers(1, samples), max_size=3)), samples]
    log_w = np.random.default_rng(seed).normal(offset, 3, (samples, 2)).astype(np.float32)
    sums = sums_of(log_w, sizes, cut=data.draw(st.integers(0, samples)))
    expected = []
    for size in sizes:
        groups = np.float64(log_w[: samples // size * size]).reshape(-1, size, 2)
        expected.append((logsumexp(groups, axis=1) - np.log(size)).mean(axis=0))
    np.testing.assert_allclose(bounds(sums, samples, sizes), expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(estimate(sums, samples)[0], expected[-1], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("level", [-90.0, 1_500.0])
def test_no_draw_of_thousands_is_lost_to_rounding(level):
    """In float32 the estimate was 0.018 nats too low at 1,500 nats, typical of a log-density, and 0.0003 at -90."""
    log_w = np.random.default_rng(0).normal(level, 2, (5_000, 3)).astype(np.float32)
    sums = tf.function(lambda: sums_of(log_w, [5_000], cut=2_000))()
    expected = logsumexp(np.float64(log_w), axis=0) - np.log(5_000)
    np.testing.assert_allclose(estimate(sums, 5_000)[0], expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(bounds(sums, 5_000, [5_000])[0], expected, rtol=0, atol=1e-9)


def test_the_bound_of_one_draw_keeps_its_digits_over_thousands_of_draws():
    """In float32 the sum of 2,000 times -3,000 is exact to half a nat, and the mean to 0.0002 at best."""
    log_w = np.random.default_rng(0).normal(-3e3, 1, (2_000, 1)).astype(np.float32)
    sums = tf.function(lambda: sums_of(log_w, [1], cut=900))()
    assert float(bounds(sums, 2_000, [1])[0, 0]) == pytest.approx(np.float64(log_w).mean(), abs=1e-8)


# --- a linear Gaussian model: z ~ N(0, I), x = W z + b + sigma * noise, so x ~ N(b, W W^T + sigma^2 I) ----------------
class LinearGaussian:
    """One image x of such a model, W with orthogonal columns, so that the posterior's latents are independent."""

    def __init__(self, seed, pixels, latents, sigma):
        rng = np.random.default_rng(seed)
        lengths = rng.uniform(0.5, 2, latents)
        self.w = np.linalg.qr(rng.normal(size=(pixels, latents)))[0] * lengths  # (D, L)
        self.b, self.sigma = rng.normal(size=pixels), sigma
        self.x = self.w @ rng.normal(size=latents) + self.b + sigma * rng.normal(size=pixels)
        self.log_p_x = multivariate_normal.logpdf(self.x, self.b, self.w @ self.w.T + sigma**2 * np.eye(pixels))
        self.variance = 1 / (1 + lengths**2 / sigma**2)  # of the posterior, (L,)
        self.mean = self.variance * (self.w.T @ (self.x - self.b)) / sigma**2

    def pieces(self, mean, std, samples, repeats, seed):
        """The inputs of `repeats` independent estimates with the proposal N(mean, std^2)."""
        rng = np.random.default_rng(seed)
        noise = float32(rng.normal(size=(samples, repeats, len(mean))))

        def log_p_x_given_z(x, z):
            error = (x - float32(self.b) - tf.matmul(z, float32(self.w), transpose_b=True)) / self.sigma
            return -tf.reduce_sum(tf.square(error), axis=1) / 2 - len(self.b) * np.log(self.sigma * np.sqrt(2 * np.pi))

        x, z_mean, z_log_std = (float32(np.tile(row, (repeats, 1))) for row in (self.x, mean, np.log(std)))
        return x, z_mean, z_log_std, log_p_x_given_z, log_standard_normal, lambda k: tf.gather(noise, k)

    def estimate(self, mean, std, samples, repeats, seed):
        """`repeats` independent estimates of log p(x) and their sampling variances, for the proposal N(mean, std^2)."""
        estimates = log_likelihood(*self.pieces(mean, std, samples, repeats, seed), samples)
        return [np.float64(part) for part in estimates]


@few
@given(seeds, st.integers(1, 4), st.integers(0, 3), st.floats(0.3, 2), st.integers(1, 4))
def test_with_the_exact_posterior_as_proposal_a_single_draw_gives_the_exact_likelihood(seed, latents, more, sigma, k):
    model = LinearGaussian(seed, latents + more, latents, sigma)
    estimate, variance = model.estimate(model.mean, np.sqrt(model.variance), samples=k, repeats=5, seed=seed)
    np.testing.assert_allclose(estimate, model.log_p_x, rtol=2e-5, atol=5e-4)
    if k > 1:
        assert variance.max() < 1e-5


@pytest.fixture(scope="module")
def model():
    return LinearGaussian(seed=1, pixels=4, latents=2, sigma=0.8)


@pytest.fixture(scope="module")
def proposal(model):
    """A wrong posterior, like an encoder's: mean and standard deviation."""
    return model.mean + np.array([0.2, -0.15]), np.sqrt(model.variance) * [1.3, 1.1]


def relative_second_moment(model, mean, std):
    """E[w^2] / E[w]^2 with w = p(x, z) / q(z), z ~ q: the integral of p(z|x)^2 / q(z), Gaussian in each latent."""
    spread = 2 * std**2 - model.variance
    assert (spread > 0).all()
    return np.prod(std**2 / np.sqrt(model.variance * spread) * np.exp((model.mean - mean) ** 2 / spread))


def test_with_a_wrong_proposal_the_estimate_is_within_its_standard_error_and_that_error_is_right(model, proposal):
    samples, repeats = 64, 4000
    estimates, variances = model.estimate(*proposal, samples, repeats, seed=2)
    exact = (relative_second_moment(model, *proposal) - 1) / samples  # variance by the delta method
    assert exact > 1e-3  # otherwise there is nothing to see
    assert estimates.var() == pytest.approx(exact, rel=0.15)
    assert variances.mean() == pytest.approx(exact, rel=0.1)
    assert abs(estimates[0] - model.log_p_x) < 5 * np.sqrt(variances[0])
    bias = -exact / 2  # of the logarithm of a mean, to first order
    assert estimates.mean() == pytest.approx(model.log_p_x + bias, abs=5 * np.sqrt(exact / repeats))


def test_the_bound_is_the_elbo_for_one_draw_and_grows_with_their_number(model, proposal):
    mean, std = proposal
    ratio = std**2 / model.variance
    kl = ((ratio + (mean - model.mean) ** 2 / model.variance - 1 - np.log(ratio)) / 2).sum()  # KL(q || p(z|x))
    samples, repeats, sizes = 48, 5_000, (1, 2, 5, 16, 48)
    pieces = model.pieces(mean, std, samples, repeats, seed=3)
    values = bounds(add_draws(no_draws(repeats, sizes), 0, samples, sizes, *pieces), samples, sizes).numpy()  # (G, R)
    means, errors = values.mean(axis=1), values.std(axis=1) / np.sqrt(repeats)
    assert means[0] == pytest.approx(model.log_p_x - kl, abs=5 * errors[0])
    rises = np.diff(values, axis=0)  # of the same draws
    assert (rises.mean(axis=1) > 5 * rises.std(axis=1) / np.sqrt(repeats)).all()
    assert means[-1] < model.log_p_x
