"""What each loss of main.py is: minus the logarithm of a density, the KL between two normals, and the weight of the KL.

Each is compared with SciPy or a closed form, with a value worked out by hand, and at logits whose sigmoid rounds to 0
or 1. The gradients are compared with differences of the same formulas in float64. x is an image's brightness, p is
sigmoid(logits), and everything is summed over pixels, in nats.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from scipy.stats import bernoulli, laplace, logistic, norm

import main
from tests.tiny import TINY, float32, plain_kl_weight
from utils.settings import from_params
from utils.start import tf

few = settings(max_examples=25, deadline=None)
log_scales = st.floats(-3, 3)
BLACK = np.zeros((2, 28, 28, 1))  # images whose logits are 0 too: p is 1/2


@st.composite
def images_and_logits(draw):
    shape = draw(hnp.array_shapes(min_dims=4, max_dims=4, max_side=3))
    return [draw(hnp.arrays(np.float32, shape, elements=st.floats(*ends, width=32))) for ends in ((0, 1), (-12, 12))]


def reconstruction_loss(x, logits, name, log_scale=None):
    """The loss (B,) of images (B, H, W, C) for these logits of the decoder; with a scale, its width is learned."""
    vae = SimpleNamespace(decoder=lambda z: logits, log_scale=log_scale)
    scale = "fixed" if log_scale is None else "learned"
    chosen = from_params(**TINY | {"loss": name, "decoder_scale": scale})
    return main.reconstruction_loss(vae, x, tf.zeros((len(x), 1)), chosen)


def loss_of(name, x, logits, log_scale=None):
    """The same for NumPy arrays."""
    return reconstruction_loss(float32(x), float32(logits), name, None if log_scale is None else float32(log_scale))


def assert_is(formula, name, images, log_scale=None):
    """Check that a loss is the sum over pixels of a formula of x, p and the scale."""
    x, logits = map(np.float64, images)
    pixels = formula(x, expit(logits), None if log_scale is None else math.exp(log_scale))
    np.testing.assert_allclose(loss_of(name, *images, log_scale), pixels.sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-4)


def differences(formula, values, step=1e-5):
    """The gradient of a number that a formula computes from values, in float64, by central differences."""
    gradient = np.zeros(np.shape(values))
    for place in np.ndindex(gradient.shape):
        nudge = np.zeros(gradient.shape)
        nudge[place] = step
        gradient[place] = (formula(values + nudge) - formula(values - nudge)) / (2 * step)
    return gradient


def assert_gradients_are_differences_of(formula, name, log_scale=None):
    """Check that a loss's gradients by the logits and the scale are those of a formula of x, p and the scale."""
    rng = np.random.default_rng(0)
    x, logits = rng.integers(256, size=(2, 3, 4, 1)) / 255, rng.normal(0, 2, (2, 3, 4, 1))
    x[:, 0, 0], x[:, 0, 1] = 0, 1

    def total(logits, log_scale=log_scale):
        return formula(x, expit(logits), None if log_scale is None else np.exp(log_scale)).sum()

    inputs = [tf.Variable(value, dtype=tf.float32) for value in (logits, log_scale) if value is not None]
    with tf.GradientTape() as tape:
        value = reconstruction_loss(float32(x), inputs[0], name, inputs[1] if log_scale is not None else None)
    found = tape.gradient(value, inputs)
    np.testing.assert_allclose(found[0], differences(total, logits), rtol=1e-3, atol=1e-4)
    if log_scale is not None:
        np.testing.assert_allclose(found[1], differences(lambda a: total(logits, a), log_scale), rtol=1e-4)


def assert_far_out(name, values, slopes):
    """Check a loss and its gradient for black and white pixels at logits of -200, then of 200."""
    x, logits = float32([0, 1, 0, 1]), float32([-200, -200, 200, 200])
    x, logits = tf.reshape(x, (4, 1, 1, 1)), tf.Variable(tf.reshape(logits, (4, 1, 1, 1)))
    with tf.GradientTape() as tape:
        value = reconstruction_loss(x, logits, name)
    np.testing.assert_allclose(value, values, atol=1e-6)
    np.testing.assert_allclose(np.ravel(tape.gradient(value, logits)), slopes, atol=1e-6)


def assert_scale_is_drawn_to(best, entropy, name, x, logits):
    """Check that the best scale has no gradient, nearby scales are pulled to it, and the loss there is the entropy."""
    log_scale = tf.Variable([best - 0.1, best, best + 0.1], dtype=tf.float32)
    with tf.GradientTape() as tape:
        losses = [reconstruction_loss(float32(x), float32(logits), name, scale) for scale in tf.unstack(log_scale)]
        total = tf.reduce_sum(losses)
    below, at, above = tape.gradient(total, log_scale).numpy()
    assert below < -1 < 1 < above
    assert at == pytest.approx(0, abs=1e-4)
    assert np.mean(losses[1]) == pytest.approx(x[0].size * entropy, rel=1e-5)


@pytest.fixture
def random_error():
    """x and logits of three images of 20 pixels, and x - p."""
    rng = np.random.default_rng(0)
    x, logits = rng.uniform(size=(3, 5, 4, 1)), rng.normal(size=(3, 5, 4, 1))
    return x, logits, x - expit(logits)


# --- cross-entropy: LOSS = ce -----------------------------------------------------------------------------------------
def minus_log_bernoulli(x, p, _):
    return -x * bernoulli.logpmf(1, p) - (1 - x) * bernoulli.logpmf(0, p)


@few
@given(images_and_logits())
def test_cross_entropy_is_minus_the_log_of_bernoullis_probability(images):
    assert_is(minus_log_bernoulli, "ce", images)


def test_cross_entropy_of_a_pixel_at_logit_0_is_log_2():
    np.testing.assert_allclose(loss_of("ce", BLACK, BLACK), 2 * [784 * math.log(2)], rtol=1e-6)


def test_cross_entropy_far_out_is_the_logit_and_its_slope_p_minus_x():
    assert_far_out("ce", [0, 200, 200, 0], [0, -1, 1, 0])


def test_cross_entropys_gradient_is_that_of_differences():
    assert_gradients_are_differences_of(minus_log_bernoulli, "ce")


# --- squared error: LOSS = mse ----------------------------------------------------------------------------------------
def minus_log_gaussian_of_variance_half(x, p, _):
    return -norm.logpdf(x, p, math.sqrt(1 / 2)) - math.log(math.pi) / 2


@few
@given(images_and_logits())
def test_squared_error_is_minus_log_density_of_a_gaussian_of_variance_half_but_for_a_constant(images):
    assert_is(minus_log_gaussian_of_variance_half, "mse", images)


def test_squared_error_of_a_black_pixel_at_logit_0_is_a_quarter():
    np.testing.assert_allclose(loss_of("mse", BLACK, BLACK), 2 * [784 / 4], rtol=1e-6)


def test_squared_error_far_out_is_0_or_1_and_flat_as_the_sigmoid_is():
    assert_far_out("mse", [0, 1, 1, 0], [0, 0, 0, 0])


def test_squared_errors_gradient_is_that_of_differences():
    assert_gradients_are_differences_of(minus_log_gaussian_of_variance_half, "mse")


# --- absolute difference: LOSS = ad -----------------------------------------------------------------------------------
def minus_log_laplace_of_scale_1(x, p, _):
    return -laplace.logpdf(x, p, 1) - math.log(2)


@few
@given(images_and_logits())
def test_absolute_difference_is_minus_log_density_of_a_laplace_of_scale_1_but_for_a_constant(images):
    assert_is(minus_log_laplace_of_scale_1, "ad", images)


def test_absolute_difference_of_a_black_pixel_at_logit_0_is_half():
    np.testing.assert_allclose(loss_of("ad", BLACK, BLACK), 2 * [784 / 2], rtol=1e-6)


def test_absolute_difference_far_out_is_0_or_1_and_flat_as_the_sigmoid_is():
    assert_far_out("ad", [0, 1, 1, 0], [0, 0, 0, 0])


def test_absolute_differences_gradient_is_that_of_differences():
    assert_gradients_are_differences_of(minus_log_laplace_of_scale_1, "ad")


# --- Gaussian: LOSS = mse, DECODER_SCALE = learned --------------------------------------------------------------------
def minus_log_gaussian(x, p, scale):
    return -norm.logpdf(x, p, scale)


@few
@given(images_and_logits(), log_scales)
def test_gaussian_is_minus_log_density_at_a_standard_deviation_that_is_learned(images, log_scale):
    assert_is(minus_log_gaussian, "mse", images, log_scale)


def test_gaussians_scale_is_drawn_to_the_root_mean_squared_error(random_error):
    x, logits, error = random_error
    best = np.log(np.sqrt((error**2).mean()))
    assert_scale_is_drawn_to(best, norm(0, math.exp(best)).entropy(), "mse", x, logits)


def test_gaussians_gradients_are_those_of_differences():
    assert_gradients_are_differences_of(minus_log_gaussian, "mse", -1.2)


# --- Laplace: LOSS = ad, DECODER_SCALE = learned ----------------------------------------------------------------------
def minus_log_laplace(x, p, scale):
    return -laplace.logpdf(x, p, scale)


@few
@given(images_and_logits(), log_scales)
def test_laplace_is_minus_log_density_at_a_scale_that_is_learned(images, log_scale):
    assert_is(minus_log_laplace, "ad", images, log_scale)


def test_laplaces_scale_is_drawn_to_the_mean_absolute_error(random_error):
    x, logits, error = random_error
    best = np.log(abs(error).mean())
    assert_scale_is_drawn_to(best, laplace(0, math.exp(best)).entropy(), "ad", x, logits)


def test_laplaces_gradients_are_those_of_differences():
    assert_gradients_are_differences_of(minus_log_laplace, "ad", -1.2)


# --- discretised logistic: LOSS = logistic ----------------------------------------------------------------------------
def minus_log_mass(x, p, scale):
    """Minus the log of a logistic's probability of the interval around x; that of 0 and 1 has no outer end."""
    ends = np.where(x <= 0, -np.inf, x - 1 / 510), np.where(x >= 1, np.inf, x + 1 / 510)
    below, above = (logistic.cdf(end, p, scale) for end in ends)
    return -np.log(above - below)


@few
@given(st.floats(-12, 12), st.floats(-7, 3))
def test_the_discretised_logistic_is_scipys_mass_and_that_of_all_256_values_is_one(logit, log_scale):
    x = np.arange(256).reshape(256, 1, 1, 1) / 255
    found = loss_of("logistic", x, np.full(x.shape, logit), log_scale)
    assert np.exp(-np.float64(found)).sum() == pytest.approx(1, abs=2e-4)
    ends = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 255, [np.inf]])
    masses = np.diff(logistic.cdf(ends, expit(logit), math.exp(log_scale)))
    likely = masses > 1e-8  # for the others the difference of two numbers near 1 is too inexact
    np.testing.assert_allclose(np.float64(found)[likely], -np.log(masses[likely]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("log_scale", [-30.0, -10.0, 0.0, 30.0])
def test_the_discretised_logistic_and_its_gradients_are_finite_far_out(log_scale):
    x, logits = float32([0, 1, 0, 1, 0.2]), float32([-200, -200, 200, 200, 200])
    x, logits = tf.reshape(x, (5, 1, 1, 1)), tf.Variable(tf.reshape(logits, (5, 1, 1, 1)))
    scale = tf.Variable(log_scale)
    with tf.GradientTape() as tape:
        value = reconstruction_loss(x, logits, "logistic", scale)
    gradients = tape.gradient(value, [logits, scale])
    assert all(np.isfinite(part).all() for part in (value, *gradients))
    if log_scale < 30:  # beyond, it is so wide that all are alike
        assert value[0] < value[1]
        assert value[3] < value[2]


@pytest.mark.parametrize("log_scale", [-3.0, -1.2])
def test_the_discretised_logistics_gradients_are_those_of_differences(log_scale):
    assert_gradients_are_differences_of(minus_log_mass, "logistic", log_scale)


# --- KL ---------------------------------------------------------------------------------------------------------------
def kl_by_quadrature(mean, log_std):
    """The mean of log q(z) - log p(z) over q, exact because the integrand is quadratic."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z, std = mean + np.exp(log_std) * nodes, np.exp(log_std)
    return weights @ (norm.logpdf(z, mean, std) - norm.logpdf(z)) / weights.sum()


def test_the_kl_is_known_for_three_posteriors_latent_by_latent():
    kl = main.kl_to_standard_normal(float32([[0, 1, 0]]), float32([[0, 0, 1]]))
    np.testing.assert_allclose(kl, [[0, 0.5, (math.e**2 - 3) / 2]], rtol=1e-6)


@few
@given(st.floats(-5, 5), st.floats(-3, 2.5))
def test_the_kl_is_the_mean_of_log_q_minus_log_p(mean, log_std):
    expected = kl_by_quadrature(mean, log_std)
    found = main.kl_to_standard_normal(float32([[mean]]), float32([[log_std]]))
    np.testing.assert_allclose(found, [[expected]], rtol=1e-5, atol=1e-5)


def test_the_kls_gradients_are_those_of_differences():
    posterior = np.array([[-2.0, 0.0, 0.3], [-1.5, 0.4, 1.2]])  # means, and logs of the standard deviations
    variable = tf.Variable(posterior, dtype=tf.float32)
    with tf.GradientTape() as tape:
        kl = main.kl_to_standard_normal(*tf.unstack(variable))

    def total(posterior):
        return sum(kl_by_quadrature(*one) for one in posterior.T)

    np.testing.assert_allclose(tape.gradient(kl, variable), differences(total, posterior), rtol=1e-4, atol=1e-5)


# --- free bits --------------------------------------------------------------------------------------------------------
def test_free_bits_clamp_the_batch_mean_of_each_latent_and_below_them_nothing_pulls():
    kl = tf.Variable([[0.0, 1.0, 0.3], [0.4, 3.0, 0.9]])  # two images; means 0.2, 2.0 and 0.6
    for free_bits, charged, slopes in ((0.0, 2.8, [0.5, 0.5, 0.5]), (0.3, 2.9, [0, 0.5, 0.5]), (1.0, 4, [0, 0.5, 0])):
        with tf.GradientTape() as tape:
            value = main.charged_kl(kl, free_bits)
        assert value.numpy() == pytest.approx(charged)
        np.testing.assert_allclose(tape.gradient(value, kl), [slopes, slopes])


# --- KL weight: KL_SCHEDULE -------------------------------------------------------------------------------------------
SCHEDULES = ("constant", "linear", "sigmoid", "cosine", "cyclical")


def kl_weight(step, name, start, end, steps, cycles):
    """main.kl_weight with a schedule of these settings."""
    schedule = {"kl_schedule": name, "kl_weight_start": start, "kl_weight_end": end, "kl_steps": steps}
    return main.kl_weight(step, from_params(**TINY | schedule | {"kl_cycles": cycles}))


kl_weights = st.floats(0, 1e6, width=32, allow_subnormal=False)


@few
@given(st.sampled_from(SCHEDULES), kl_weights, kl_weights, st.integers(1, 10**6), st.data())
def test_a_schedule_is_exact_at_its_start_at_its_end_and_ever_after(name, start, end, steps, more):
    cycles = more.draw(st.integers(1, min(steps, 20)), "cycles")
    at_start, *behind = (
        kl_weight(step, name, start, end, steps, cycles).numpy() for step in (0, steps, steps + 1, 2**31 - 1)
    )
    assert at_start == np.float32(end if name == "constant" else start)
    assert behind == [np.float32(end)] * 3


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("start", "end", "steps", "cycles"), [(0.0, 1.0, 24, 3), (0.2, 4.0, 7, 2), (2.0, 0.5, 10, 1)])
def test_a_schedule_is_its_formula_in_plain_python_and_monotone_unless_cyclical(name, start, end, steps, cycles):
    found = [float(kl_weight(step, name, start, end, steps, cycles)) for step in range(steps + 3)]
    expected = [plain_kl_weight(name, step, start, end, steps, cycles) for step in range(steps + 3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    if name != "cyclical":
        assert found == sorted(found, reverse=start > end)


def test_the_middle_of_a_schedule_and_the_ramps_of_a_cyclical_one():
    for name, middle in {"constant": 3, "linear": 2, "sigmoid": 2, "cosine": 2}.items():
        assert float(kl_weight(50, name, 1.0, 3.0, 100, 4)) == pytest.approx(middle, rel=1e-6)
    ramps = [float(kl_weight(step, "cyclical", 0.0, 1.0, 16, 2)) for step in range(18)]
    np.testing.assert_allclose(ramps, 2 * [0, 0.25, 0.5, 0.75, 1, 1, 1, 1] + [1, 1])


def test_a_schedule_is_the_same_for_a_tensor_and_compiled():
    @tf.function(jit_compile=True)
    def compiled(step):
        return tf.stack([kl_weight(step, name, 0.0, 2.0, 12, 3) for name in SCHEDULES])

    for step in (0, 5, 6, 11, 12, 13):
        plain = [kl_weight(step, name, 0.0, 2.0, 12, 3).numpy() for name in SCHEDULES]
        rounding = 0 if step in (0, 12, 13) else 1e-6
        np.testing.assert_allclose(compiled(tf.constant(step)), plain, rtol=rounding)
    assert compiled.experimental_get_tracing_count() == 1
