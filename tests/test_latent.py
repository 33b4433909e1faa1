"""experiments/latent.py against closed forms, SciPy and clouds whose answers are known."""

import keras
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.spatial.transform import Rotation
from scipy.stats import ks_2samp, norm, ortho_group

from experiments import latent

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
vectors = arrays(np.float64, 3, elements=st.floats(-100, 100))
WALKS = (latent.straight, latent.spherical)


def cloud(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def islands(per_island=30, latents=3):
    """Three clouds of unit width, 20 widths apart, in random order: points (N, L) and labels (N,)."""
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat([0, 1, 2], per_island))
    return 20 * np.eye(3, latents)[labels] + rng.normal(size=(len(labels), latents)), labels


# --- choose and encode ------------------------------------------------------------------------------------------------
def test_images_are_taken_evenly_and_never_twice():
    assert latent.evenly(9, 3).tolist() == [0, 4, 8]
    assert latent.evenly(5, 100).tolist() == [0, 1, 2, 3, 4]


def test_encoding_gives_mean_and_log_std_of_every_image_in_order_from_brightness():
    x = keras.Input((2, 2, 1))
    flat = keras.layers.Flatten()(x)
    encoder = keras.Model(x, [flat[:, :3], 10 * flat[:, 1:]])
    images = np.random.default_rng(0).integers(0, 256, (2_003, 2, 2, 1), np.uint8)  # batches, the last one short
    z_mean, z_log_std = latent.encode(encoder, images)
    pixels = images.reshape(-1, 4) / 255
    np.testing.assert_allclose(z_mean, pixels[:, :3], rtol=1e-6)
    np.testing.assert_allclose(z_log_std, 10 * pixels[:, 1:], rtol=1e-6)
    assert isinstance(z_mean, np.ndarray)
    assert z_mean.dtype == z_log_std.dtype == np.float32


# --- fit --------------------------------------------------------------------------------------------------------------
def test_a_mixture_finds_clusters_and_its_draws_are_distributed_like_them():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(-4, 1, (700, 2)), rng.normal(4, [0.5, 2], (300, 2))]).astype(np.float32)
    mixture = latent.fit_mixture(z, 2, seed=0)
    order = np.argsort(mixture.means_[:, 0])
    np.testing.assert_allclose(mixture.weights_[order], [0.7, 0.3], atol=0.01)
    np.testing.assert_allclose(np.sqrt(mixture.covariances_[order][:, [0, 1], [0, 1]]), [[1, 1], [0.5, 2]], rtol=0.1)
    drawn = latent.draw_mixture(mixture, 4_000, seed=1)
    assert drawn.dtype == np.float32
    for axis in (0, 1):
        assert ks_2samp(drawn[:, axis], z[:, axis]).pvalue > 0.01
    left = drawn[:, 0] < 0
    assert abs(left[:2_000].mean() - left[2_000:].mean()) < 0.1  # components are mixed, not one after the other
    np.testing.assert_array_equal(drawn, latent.draw_mixture(mixture, 4_000, seed=1))
    assert np.isin(drawn, latent.draw_mixture(mixture, 4_000, seed=2)).mean() < 0.01  # float32 numbers may repeat
    assert latent.fit_mixture(z[:3], 50, seed=0).n_components == 3  # at most one Gaussian per point


# --- walk -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("walk", WALKS)
@few
@given(vectors, vectors, st.integers(2, 9))
def test_a_walk_has_its_length_and_its_ends_exactly(walk, a, b, steps):
    path = walk(a, b, steps)
    assert path.shape == (steps, 3)
    np.testing.assert_array_equal(path[[0, -1]], [a, b])
    assert np.isfinite(path).all()


def test_a_straight_walk_takes_equal_steps():
    np.testing.assert_allclose(latent.straight([0, 4], [3, -2], 4), [[0, 4], [1, 2], [2, 0], [3, -2]], atol=1e-12)


@few
@given(st.floats(0, 6.2), st.floats(0.01, 3.1), st.floats(0.1, 9), st.floats(0.1, 9))
def test_a_spherical_walk_turns_evenly_and_lengthens_evenly(start, turn, a_length, b_length):
    angles, lengths = np.linspace(start, start + turn, 7), np.linspace(a_length, b_length, 7)
    expected = lengths[:, np.newaxis] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(latent.spherical(expected[0], expected[-1], 7), expected, rtol=1e-9, atol=1e-9)


@few
@given(st.floats(-15, -1), st.booleans())
def test_an_arc_too_thin_or_too_wide_to_be_one_is_still_walked_without_a_jump(exponent, opposite):
    angle = abs(np.pi * opposite - 10**exponent)
    path = latent.spherical([1, 0], [np.cos(angle), np.sin(angle)], 101)
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() < 0.04
    assert np.linalg.norm(path, axis=1).max() < 1 + 1e-9


@few
@given(vectors, vectors)
def test_the_length_of_a_spherical_walk_stays_between_that_of_its_ends(a, b):
    shorter, longer = sorted([np.linalg.norm(a), np.linalg.norm(b)])
    assume(shorter > 1e-3)
    assume(1 - abs(a @ b) / (shorter * longer) > 1e-6)
    lengths = np.linalg.norm(latent.spherical(a, b, 9), axis=1)
    assert lengths.min() > shorter * (1 - 1e-9)
    assert lengths.max() < longer * (1 + 1e-9)


@pytest.mark.parametrize(("a", "b"), [([1, 2], [2, 4]), ([1, 2], [-1, -2]), ([0, 0], [1, 2]), ([1, 2], [0, 0])])
def test_without_an_arc_a_spherical_walk_is_straight(a, b):
    np.testing.assert_array_equal(latent.spherical(a, b, 5), latent.straight(a, b, 5))
    np.testing.assert_array_equal(latent.spherical(np.zeros(2), np.zeros(2), 5), np.zeros((5, 2)))


# --- project ----------------------------------------------------------------------------------------------------------
SLOW_UMAP = pytest.param("umap", marks=pytest.mark.slow)  # most of the time is numba's compilation


@pytest.mark.parametrize("method", ["pca", "tsne", SLOW_UMAP])
def test_a_projection_keeps_islands_apart_and_follows_from_its_seed(method):
    z, labels = islands()
    plane = latent.project(z, method, seed=1)
    assert plane.shape == (len(z), 2)
    centres = np.array([plane[labels == label].mean(axis=0) for label in range(3)])
    distances = np.linalg.norm(plane[:, np.newaxis] - centres, axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), labels)
    np.testing.assert_array_equal(latent.project(z, method, seed=1), plane)


def test_pca_shows_the_two_directions_of_largest_variance():
    z = cloud((200, 3)) * [1, 9, 4] + 5
    plane = latent.project(z, "pca", seed=0)
    variances = np.linalg.eigvalsh(np.cov(z, rowvar=False))[::-1][:2]
    np.testing.assert_allclose(np.cov(plane, rowvar=False), np.diag(variances), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(plane.mean(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize("method", ["tsne", SLOW_UMAP])
def test_few_points_can_be_projected(method):
    assert np.isfinite(latent.project(cloud((6, 3)), method, seed=0)).all()


def test_an_unknown_method_is_refused():
    with pytest.raises(KeyError, match="mds"):
        latent.project(cloud((6, 3)), "mds", seed=0)


# --- labels -----------------------------------------------------------------------------------------------------------
def test_the_number_of_neighbours_is_heeded():
    z, labels = islands(per_island=5)
    assert latent.knn_accuracy_in(z, labels, 0, neighbours=1) == 1
    assert latent.knn_accuracy_in(z, labels, 0, neighbours=12) < 0.7  # 12 points include those of all islands


def test_neighbours_outvote_a_wrong_label():
    z, labels = islands()
    labels[:6] = (labels[:6] + 1) % 3
    assert latent.knn_accuracy_in(z, labels, seed=0) == pytest.approx(84 / 90)


def test_within_a_cloud_no_point_is_its_own_neighbour():
    z, labels = islands()
    assert latent.knn_accuracy_in(z, labels, seed=0) == 1
    labels = np.random.default_rng(0).integers(2, size=600)
    accuracies = [latent.knn_accuracy_in(cloud((600, 2)), labels, seed, neighbours=1) for seed in (0, 0, 1)]
    assert max(accuracies) < 0.6  # chance gives 0.5, with a standard deviation of 0.02; its own neighbour 1
    assert accuracies[0] == accuracies[1] != accuracies[2]


# --- align ------------------------------------------------------------------------------------------------------------
@few
@given(seeds, st.integers(2, 5), st.booleans())
def test_a_turned_or_mirrored_cloud_is_turned_back(seed, latents, mirrored):
    fixed = cloud((40, latents), seed)
    turn = ortho_group.rvs(latents, random_state=seed)
    if (np.linalg.det(turn) < 0) != mirrored:
        turn[0] *= -1
    np.testing.assert_allclose(latent.align(fixed @ turn, fixed), fixed, atol=1e-9)


def test_noise_is_aligned_as_scipy_aligns_vectors_and_a_shift_is_left():
    fixed = cloud((50, 3))
    moved = Rotation.from_rotvec([0.3, -2, 1]).apply(fixed) + 0.05 * cloud((50, 3), 1)
    best, _ = Rotation.align_vectors(fixed, moved)
    np.testing.assert_allclose(latent.align(moved, fixed), best.apply(moved), atol=1e-6)
    lengths = np.linalg.norm(latent.align(moved + 7, fixed), axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(moved + 7, axis=1))


# --- KL of the aggregate posterior ------------------------------------------------------------------------------------
def kl_of_gaussian(mean, covariance):
    """KL(N(mean, covariance) || N(0, I)), by eigenvalues."""
    variances = np.linalg.eigvalsh(covariance)
    return (np.sum(variances - np.log(variances) - 1) + np.sum(np.square(mean))) / 2


def kl_of_mixture_on_a_line(means, stds):
    """KL(q || N(0, 1)) of an equal mixture of normal distributions, by quadrature."""

    def integrand(z):
        log_q = np.log(np.mean(norm.pdf(z, means, stds)))
        return np.exp(log_q) * (log_q - norm.logpdf(z))

    return quad(integrand, -8, 8, points=list(means), limit=200)[0]


def test_equal_posteriors_have_the_kl_of_one():
    mean, log_std = np.array([0.5, -1.0, 0.0]), np.array([-1.0, 0.3, 0.0])
    expected = kl_of_gaussian(mean, np.diag(np.exp(2 * log_std)))
    z_mean, z_log_std = np.tile(mean, (50, 1)), np.tile(log_std, (50, 1))
    assert latent.moments_kl(z_mean, z_log_std) == pytest.approx(expected)
    kl, error = latent.aggregate_kl(z_mean, z_log_std, 20_000, seed=0)
    assert error == pytest.approx(0, abs=1e-9)  # all images are alike, so it is known exactly
    assert kl == pytest.approx(expected)


def test_posteriors_that_are_the_prior_are_at_no_distance_without_any_error():
    for kl in (*latent.aggregate_kl(*np.zeros((2, 7, 4)), 100, seed=0), latent.moments_kl(*np.zeros((2, 7, 4)))):
        assert kl == pytest.approx(0, abs=1e-12)


@few
@given(seeds)
def test_posteriors_far_apart_cost_the_mean_kl_less_log_n(seed):
    n = 16
    z_mean = 1e3 * np.arange(n)[:, np.newaxis] + cloud((n, 2), seed)
    z_log_std = cloud((n, 2), seed + 1) / 2
    kls = [kl_of_gaussian(m, np.diag(np.exp(2 * s))) for m, s in zip(z_mean, z_log_std, strict=True)]
    assert latent.mean_kl(z_mean, z_log_std) == pytest.approx(np.mean(kls))
    information, error = latent.mutual_information(z_mean, z_log_std, 500, seed)
    assert (information, error) == pytest.approx((np.log(n), 0), abs=1e-4)  # with squares up to 1e10
    assert latent.at_ceiling(information, n)
    assert latent.aggregate_kl(z_mean, z_log_std, 500, seed) == pytest.approx((np.mean(kls) - information, error))


def test_so_do_spikes():
    z_mean = np.stack([np.arange(16) - 7.5, np.zeros(16)], axis=1)
    kls = [kl_of_gaussian(m, 1e-6 * np.eye(2)) for m in z_mean]
    kl, error = latent.aggregate_kl(z_mean, np.full((16, 2), np.log(1e-3)), 500, seed=0)
    assert (kl, error) == pytest.approx((np.mean(kls) - np.log(16), 0), abs=1e-6)


def test_images_with_one_posterior_tell_nothing():
    same = np.full((50, 2), 0.7), np.full((50, 2), -1.0)
    assert latent.mutual_information(*same, 200, seed=0) == pytest.approx((0, 0), abs=1e-9)


def test_the_information_of_two_images_is_that_of_the_integral():
    z_mean, z_log_std = np.array([[-0.5], [1.0]]), np.log([[0.6], [1.2]])

    def integrand(z):
        each = norm.pdf(z, z_mean[:, 0], np.exp(z_log_std[:, 0]))
        return (each * np.log(each / each.mean())).mean()

    value, error = latent.mutual_information(z_mean, z_log_std, 40_000, seed=0)
    assert 0 < error < 0.005
    assert value == pytest.approx(quad(integrand, -6, 8)[0], abs=4 * error)


def test_the_ceiling_is_the_log_of_how_many_images_there_are():
    assert [latent.at_ceiling(told, 10_000) for told in (9.21, 9.02, 9.0, 0)] == [True, True, False, False]
    assert latent.at_ceiling(9.0, 1_000)


def test_overlapping_posteriors_are_as_quadrature_has_them_and_the_error_is_right():
    means, stds = np.array([-1.0, 0.2, 1.5]), np.array([0.3, 1.0, 0.5])
    expected = kl_of_mixture_on_a_line(means, stds)
    estimates = np.array([latent.aggregate_kl(means[:, None], np.log(stds)[:, None], 400, s) for s in range(300)])
    kl, error = estimates.mean(axis=0)
    assert kl == pytest.approx(expected, abs=4 * error / np.sqrt(300))
    assert estimates[:, 0].std() == pytest.approx(error, rel=0.15)
    moments = latent.moments_kl(means[:, None], np.log(stds)[:, None])
    assert moments == pytest.approx(kl_of_gaussian(means.mean(), [[means.var() + np.mean(stds**2)]]))
    assert moments < expected - 0.01  # the mixture is not Gaussian


def test_the_aggregate_is_the_same_in_chunks_and_follows_from_its_seed(monkeypatch):
    z_mean, z_log_std = cloud((30, 3)), cloud((30, 3), 1) / 3
    whole = latent.aggregate_kl(z_mean, z_log_std, 101, seed=5)
    assert whole == latent.aggregate_kl(z_mean, z_log_std, 101, seed=5)
    assert whole != latent.aggregate_kl(z_mean, z_log_std, 101, seed=6)
    for numbers in (1, 299):  # one row at a time, and nine
        monkeypatch.setattr(latent, "CHUNK_NUMBERS", numbers)
        assert latent.aggregate_kl(z_mean, z_log_std, 101, seed=5) == pytest.approx(whole, rel=1e-12)


@few
@given(seeds)
def test_the_moments_are_those_of_draws_from_the_aggregate(seed):
    z_mean = cloud((40, 3), seed) @ cloud((3, 3), seed + 1) / 2 + 0.3  # with correlations
    z_log_std = cloud((40, 3), seed + 2) / 4
    draws = (z_mean + np.exp(z_log_std) * cloud((4_000, 40, 3), 0)).reshape(-1, 3)
    expected = kl_of_gaussian(draws.mean(axis=0), np.cov(draws, rowvar=False))
    assert latent.moments_kl(z_mean, z_log_std) == pytest.approx(expected, rel=0.03, abs=0.01)


# --- clouds -----------------------------------------------------------------------------------------------------------
def test_the_normality_of_quantiles_and_of_known_distributions():
    quantiles = norm.ppf((np.arange(10_000) + 0.5) / 10_000)
    normal = latent.normality(quantiles[:, None])
    assert normal == pytest.approx(
        {"mean_abs": 0, "std": 1, "skew_abs": 0, "excess_kurtosis_abs": 0, "ks": 0.5e-4}, abs=5e-3
    )
    assert normal["ks"] == pytest.approx(0.5e-4)  # half a step of the 10,000 points
    moved = latent.normality(3 * quantiles[:, None] - 1)
    largest = np.abs(norm.cdf(quantiles, -1, 3) - norm.cdf(quantiles)).max()
    assert moved == pytest.approx(
        {"mean_abs": 1, "std": 3, "skew_abs": 0, "excess_kurtosis_abs": 0, "ks": largest}, abs=5e-3
    )
    exponential = -np.log1p(-(np.arange(100_000) + 0.5) / 100_000)
    other = latent.normality(np.stack([exponential, -exponential], axis=1))  # signs must not cancel
    assert other["mean_abs"] == pytest.approx(1, rel=0.01)
    assert other["skew_abs"] == pytest.approx(2, rel=0.01)
    assert other["excess_kurtosis_abs"] == pytest.approx(6, rel=0.02)
    assert other["ks"] == pytest.approx(0.5, abs=1e-3)


def test_what_normality_says_of_draws_is_what_its_docstring_says_and_is_plain_numbers():
    values = latent.normality(cloud((2_500, 200)).astype(np.float32))
    assert {type(value) for value in values.values()} == {float}
    expected = {"mean_abs": 0.8, "skew_abs": 2, "excess_kurtosis_abs": 4, "ks": 0.87}
    for name, constant in expected.items():
        assert values[name] * 50 == pytest.approx(constant, rel=0.15)
    assert values["std"] == pytest.approx(1, abs=0.01)
