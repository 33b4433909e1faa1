"""experiments/latent_space.py: its quick run, and its measures against closed forms."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

import main
from experiments import latent, latent_space
from experiments.study import BASE
from utils.batches import brightness
from utils.settings import from_params
from utils.start import keras, tf

SHAPE = (4, 4, 1)


def cloud(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# --- the whole --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def quick(run_quick):
    return run_quick(latent_space)


@pytest.mark.slow
def test_the_quick_run_draws_every_figure(quick):
    folder, _ = quick
    names = ("sizes", "projections", "walks", "one_image", "vae_ae")
    for name in names:
        with Image.open(folder / f"latent_space_{name}.png") as picture:
            picture.load()
            assert 900 < picture.width <= 1_100
    with Image.open(folder / "latent_space_training.gif") as film:
        assert film.n_frames == latent_space.QUICK_SIZES.frames


@pytest.mark.slow
def test_the_quick_run_watches_from_the_first_step_to_the_last(quick, quick_trainings):
    _, numbers = quick
    watched = quick_trainings.glob("*/watched/*.npz")  # including those of other experiments
    (trained,) = {path.parent.parent for path in watched if np.load(path).files == ["z_mean"]}
    lines = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert numbers["training"]["steps"][0] == 0
    assert numbers["training"]["steps"][-1] == lines[-1]["step"]


@pytest.mark.slow
def test_the_quick_run_finds_what_holds_for_any_trained_network(quick):
    _, numbers = quick
    for found in numbers["sizes"]["latents"].values():
        value = {name: v["mean"] for name, v in found.items() if name != "at_ceiling"}
        assert value["knn"] > 0.75  # two digits; chance gives 0.5
        assert value["aggregate_kl"] <= value["kl"] + 5 * value["aggregate_kl_error"]
        assert value["aggregate_kl"] >= value["aggregate_kl_floor"] - 5 * value["aggregate_kl_error"] - 1e-6
        assert value["aggregate_kl_floor"] >= 0
    assert numbers["sizes"]["latents"]["2"]["pca_variance"]["mean"] == pytest.approx(1)
    assert numbers["projections"]["knn"]["latents"] == numbers["sizes"]["latents"]["20"]["knn"]["mean"]
    assert numbers["training"]["knn"][-1] > 0.75

    one = {name: v["mean"] for name, v in numbers["one_image"].items() if isinstance(v, dict)}
    assert one["half_step"] == pytest.approx(0.5, abs=0.02)
    assert one["rank_latents"] < -0.1  # near images move more
    assert one["same_digit_latents"] > one["same_digit_any"] + 0.1

    walks = {name: {key: v["mean"] for key, v in found.items()} for name, found in numbers["walks"]["walks"].items()}
    for kind in ("vae", "ae"):
        straight, arc = walks[f"{kind} straight"], walks[f"{kind} spherical"]
        assert straight["length_middle"] < arc["length_middle"]
        assert straight["sure_ends"] == arc["sure_ends"] > straight["sure_middle"]
    vae, plain = numbers["vae_ae"]["vae"], numbers["vae_ae"]["ae"]
    assert plain["reconstruction_at_mean"]["mean"] < vae["reconstruction_at_mean"]["mean"]
    assert plain["correlation_kl"]["mean"] > vae["correlation_kl"]["mean"]
    assert "prior_sure" not in plain


@pytest.mark.slow
def test_the_table_of_each_part_has_its_numbers(quick, capsys):
    _, numbers = quick
    tables = latent_space.tables_of(numbers)
    assert set(tables) == {f"latent_space {part}" for part in ("sizes", "projections", "walks", "one_image", "vae_ae")}
    share = numbers["projections"]["knn"]["tsne"]
    assert f"| t-SNE | {100 * share:.1f} |" in tables["latent_space projections"]
    spaces = numbers["sizes"]["latents"]
    marked = {"sizes": {"latents": {n: v | {"at_ceiling": n == "20"} for n, v in spaces.items()}}}
    rows = latent_space.tables_of(numbers | marked)["latent_space sizes"].splitlines()[2:]
    kl = {n: f"{v['aggregate_kl']['mean']:.2f}" for n, v in spaces.items()}
    assert [row.split(" | ")[7] for row in rows] == [kl["2"], f"≤ {kl['20']}"]
    length = numbers["walks"]["walks"]["ae spherical"]["length_middle"]["mean"]
    assert tables["latent_space walks"].splitlines()[-1].endswith(f"| {length:.2f} |")


# --- choosing ---------------------------------------------------------------------------------------------------------
def test_frames_go_from_the_start_to_the_end_and_grow_rare():
    steps = latent_space.frame_steps(3_744, 40)
    assert (steps[0], steps[-1], len(steps)) == (0, 3_744, 40)
    assert (np.diff(steps, n=2) >= -1).all()  # up to rounding
    assert steps[5] < 100


def test_pairs_are_of_different_digits_and_follow_from_the_seed():
    labels = np.repeat([0, 1], (900, 100))
    pairs = latent_space.draw_pairs(labels, 200, seed=3)
    assert pairs.shape == (200, 2)
    assert (labels[pairs[:, 0]] != labels[pairs[:, 1]]).all()
    np.testing.assert_array_equal(pairs, latent_space.draw_pairs(labels, 200, seed=3))
    assert (pairs != latent_space.draw_pairs(labels, 200, seed=4)).any()


# --- walks ------------------------------------------------------------------------------------------------------------
class Judge:
    """A stand-in for the classifier: its logits are 20 times the pixels, so the image decides how sure it is."""

    def predict(self, images, **_):
        return 20 * images.reshape(len(images), -1)


def lookup_space(z_mean):
    """A space whose decoder's brightness is sigmoid(9 z), pixel by pixel: two latents, two pixels."""
    z = keras.Input((2,))
    decoder = keras.Model(z, keras.layers.Reshape((2, 1, 1))(9 * z))
    return latent_space.Space(main.VAE(None, decoder, None, None), {}, z_mean, None, z_mean)


def test_a_walk_between_right_angles_is_as_long_as_geometry_says_and_unsure_in_the_middle():
    space = lookup_space(np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]) * np.array([[2.0], [2.0], [2.0]]))
    opposite = latent_space.measure_walk(space, latent.straight, np.array([[0, 1], [1, 0]]), Judge())
    assert opposite["sure"][0] == opposite["sure"][-1] == 1
    assert opposite["sure"][latent_space.WALK_STEPS // 2] == 0  # at the origin both pixels are 1/2
    assert opposite["length"] == pytest.approx(np.abs(np.linspace(-1, 1, latent_space.WALK_STEPS)))
    right = [latent_space.measure_walk(space, w, np.array([[0, 2]]), Judge()) for w in latent_space.WALKS.values()]
    middles = [latent_space.at_middle(curve)["length_middle"] for curve in right]
    assert middles == pytest.approx([np.sqrt(0.5), 1])


def test_the_pairs_shown_first_are_those_whose_walks_differ_most(monkeypatch):
    """On a circle, the middle of a line is off the arc by 1 - cos(half the angle)."""
    angles = np.radians([0, 20, 150, 90])
    codes = SimpleNamespace(z_mean=np.stack([np.cos(angles), np.sin(angles)], axis=1), vae=None)
    monkeypatch.setattr(main, "decode", lambda vae, z: np.reshape(z, (-1, 1, 2, 1)))
    pairs = np.array([(0, 1), (0, 2), (0, 3)])
    assert latent_space.most_different(codes, pairs).tolist() == [[0, 2], [0, 3], [0, 1]]


def test_the_numbers_at_the_middle_are_those_of_the_middle():
    curve = {"sure": list(range(11)), "length": list(range(10, 21)), "third": 0.25}
    expected = {"sure_ends": 5, "sure_middle": 5, "third_middle": 0.25, "length_middle": 15}
    assert latent_space.at_middle(curve) == expected
    curve["sure"] = [4, *[0] * 9, 2]
    assert latent_space.at_middle(curve)["sure_ends"] == 3


def test_a_third_digit_is_one_that_neither_end_shows():
    digits = np.array([[1, 1, 7], [1, 7, 7], [1, 4, 7], [1, 3, 1]])  # of four walks
    assert latent_space.third_digit_share(np.eye(10)[digits]) == 0.5


# --- one image --------------------------------------------------------------------------------------------------------
def small_vae(layers=(8,), latents=3):
    """A VAE of the Analysis, except for its size."""
    size = {"encoder_layers": layers, "decoder_layers": (8,), "latent_dim": latents, "seed": 1}
    return main.build_vae(from_params(**BASE | size), SHAPE)


def binary_images(count):
    return 255 * np.random.default_rng(5).integers(0, 2, (count, *SHAPE), np.uint8)


def test_in_a_linear_encoder_an_image_moves_by_its_product_with_the_one_that_was_learned():
    """z_mean = W x + b: a step changes W by -rate * g x_p^T, b by -rate * g, so x moves by rate * |g| (x . x_p + 1)."""
    images, probes = binary_images(30), np.array([4, 17])
    moved = latent_space.movements(small_vae(layers=()), images, probes, rate=1e-3, seed=0)
    x = images.reshape(30, -1) / 255
    expected = x[probes] @ x.T + 1
    relative = moved / moved[[0, 1], probes][:, np.newaxis]
    np.testing.assert_allclose(relative, expected / expected[[0, 1], probes][:, np.newaxis], rtol=1e-3)


def test_the_step_is_that_of_plain_gradient_descent_on_minus_elbo_and_leaves_the_vae_as_it_was():
    vae, images, rate = small_vae(), binary_images(6), 0.01
    before = [weight.numpy() for weight in vae.weights]
    moved = latent_space.movements(vae, images, np.array([2, 5]), rate, seed=7)
    for weight, value in zip(vae.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)

    x, noise = brightness(images), np.random.default_rng(7).standard_normal((2, 1, 3), np.float32)
    for row, probe in enumerate((2, 5)):
        with tf.GradientTape() as tape:
            z_mean, z_log_std = vae.encoder(x[probe : probe + 1])
            logits = vae.decoder(z_mean + tf.exp(z_log_std) * noise[row])
            p = tf.sigmoid(logits)
            pixel = x[probe : probe + 1]
            log_p = tf.reduce_sum(pixel * tf.math.log(p) + (1 - pixel) * tf.math.log(1 - p))
            kl = tf.reduce_sum(main.kl_to_standard_normal(z_mean, z_log_std))
            minus_elbo = kl - log_p
        weights = vae.encoder.trainable_variables
        optimizer = keras.optimizers.SGD(rate)
        optimizer.build(weights)
        start = vae.encoder(x)[0].numpy()
        optimizer.apply(tape.gradient(minus_elbo, [weight.value for weight in weights]), weights)
        expected = np.linalg.norm(vae.encoder(x)[0].numpy() - start, axis=1)
        np.testing.assert_allclose(moved[row], expected, rtol=1e-3)
        for weight, value in zip(vae.weights, before, strict=True):
            weight.assign(value)


def test_an_effect_leaves_the_image_itself_out_and_keeps_the_others_in_order():
    z_mean = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    images = np.uint8([[[[0]], [[0]]], [[[255]], [[0]]], [[[255]], [[255]]]])  # (3, 2, 1, 1)
    moved = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    effect = latent_space.effect_of(moved, np.array([0, 2]), z_mean, images)
    np.testing.assert_array_equal(effect.own, [1, 6])
    np.testing.assert_array_equal(effect.moved, [[2, 3], [4, 5]])
    np.testing.assert_allclose(effect.latents, [[5, 1], [1, np.sqrt(18)]])
    np.testing.assert_allclose(effect.pixels, [[1, np.sqrt(2)], [np.sqrt(2), 1]])


def test_the_rank_correlation_is_within_each_image_and_of_ranks():
    distances = np.array([[1.0, 2, 3, 4], [10, 20, 30, 40]])
    falling = np.exp(-distances) * np.array([[1.0], [1e9]])  # across rows it would rise
    assert latent_space.rank_correlation(distances, falling) == pytest.approx(-1)
    assert latent_space.rank_correlation(distances, np.stack([falling[0], distances[1]])) == pytest.approx(0)


def test_the_share_of_the_nearest_counts_only_the_nearest():
    same = np.array([[True, False, True, False]])
    assert latent_space.nearest_share(np.array([[1, 4, 2, 3]]), same, neighbours=2) == 1
    assert latent_space.nearest_share(np.array([[1, 2, 4, 3]]), same, neighbours=2) == 0.5


def test_bins_hold_equally_many_and_show_quartiles():
    x = np.arange(1_000)[::-1].reshape(10, 100)
    bins = latent_space.in_bins(x, 2.0 * x, 4)
    assert bins.shape == (4, 4)
    np.testing.assert_allclose(bins[0], [124.5, 374.5, 624.5, 874.5])
    np.testing.assert_allclose(bins[2], 2 * bins[0])
    np.testing.assert_allclose(bins[3] - bins[1], 249.5, atol=1)  # half of the 500 in a bin, except at the ends


# --- VAE against autoencoder ------------------------------------------------------------------------------------------
def test_the_fitted_gaussian_has_mean_and_covariance_of_the_codes():
    z = cloud((4_000, 3)) @ np.array([[2.0, 0, 0], [1, 1, 0], [0, -1, 0.5]]) + [5, 0, -5]
    draws = latent_space.fitted_gaussian(z, 200_000, seed=1)
    np.testing.assert_allclose(draws.mean(axis=0), z.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(z.T), atol=0.06)
    np.testing.assert_array_equal(draws[:5], latent_space.fitted_gaussian(z, 200_000, seed=1)[:5])


def test_standardised_points_of_any_normal_cloud_pass_for_standard_normal():
    z = norm(loc=[3, -2], scale=[0.1, 20]).rvs((5_000, 2), random_state=0)
    around = latent_space.standardised(z)
    np.testing.assert_allclose([around.mean(axis=0), around.std(axis=0)], [[0, 0], [1, 1]], atol=1e-12)
    assert latent.normality(around)["ks"] < 0.02
    assert latent.normality(z)["ks"] > 0.4


def test_the_kl_by_correlations_is_that_of_the_correlation_matrix():
    z = cloud((500, 2)) @ np.array([[1, 0.8], [0, 0.6]]) * [3, 7]
    correlation = np.corrcoef(z.T)[0, 1]
    assert latent_space.correlation_kl(z) == pytest.approx(-np.log(1 - correlation**2) / 2)


def test_the_reconstruction_at_the_mean_is_the_bernoullis_of_the_decoded_codes():
    z_mean = np.float32([[0.5, -1.0], [0.0, 2.0]])
    images = np.uint8([[0, 255], [255, 255]]).reshape(2, 2, 1, 1)
    p = 1 / (1 + np.exp(-9 * np.float64(z_mean)))  # lookup_space's decoder
    expected = -np.log([[1 - p[0, 0], p[0, 1]], [p[1, 0], p[1, 1]]]).sum(axis=1).mean()
    assert latent_space.reconstruction_at_mean(lookup_space(z_mean), images) == pytest.approx(expected, rel=1e-5)
