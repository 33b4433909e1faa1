"""experiments/kl_weight.py: its measures against closed forms, and its quick version as a whole."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

import main
from experiments import kl_weight, study

MEANS = np.array([[-2.0, 0.0, 0.3], [1.5, -0.7, 4.0]])  # posteriors of two images with three latents
LOG_STDS = np.array([[-3.0, 0.0, 0.5], [-0.1, 0.9, -1.0]])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(8)  # means over N(0, 1), exact up to the fifteenth power
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def moments(values):
    """Mean and variance over the noise of values (nodes, ...)."""
    mean = np.tensordot(WEIGHTS, values, 1)
    return mean, np.tensordot(WEIGHTS, np.square(values - mean), 1)


def far_apart(images, std=0.1):
    """Posteriors (N, 2) that do not overlap."""
    z_mean = np.stack([100.0 * np.arange(images), np.zeros(images)], axis=1)
    return z_mean, np.full(z_mean.shape, np.log(std))


# --- one sample -------------------------------------------------------------------------------------------------------
def test_one_sample_is_the_log_of_the_densities_quotient():
    noise = np.random.default_rng(0).normal(size=MEANS.shape)
    z = MEANS + np.exp(LOG_STDS) * noise
    quotient = norm.logpdf(z, MEANS, np.exp(LOG_STDS)) - norm.logpdf(z)
    np.testing.assert_allclose(kl_weight.kl_by_one_sample(MEANS, LOG_STDS, noise), quotient, rtol=1e-10)


def test_one_sample_has_the_kl_as_its_mean_and_the_variance_of_the_closed_form():
    mean, variance = moments(np.stack([kl_weight.kl_by_one_sample(MEANS, LOG_STDS, node) for node in NODES]))
    np.testing.assert_allclose(mean, main.kl_to_standard_normal(MEANS, LOG_STDS), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(variance, kl_weight.one_sample_variance(MEANS, LOG_STDS), rtol=1e-9, atol=1e-12)


def test_gradient_noise_is_that_of_the_one_sample_kl():
    step = 1e-20j  # a complex step gives the exact derivative
    by_mean, by_log_std = (
        moments([kl_weight.kl_by_one_sample(MEANS + a, LOG_STDS + b, node).imag / 1e-20 for node in NODES])
        for a, b in ((step, 0), (0, step))
    )
    noise, size = by_mean[1] + by_log_std[1], np.square(by_mean[0]) + np.square(by_log_std[0])
    np.testing.assert_allclose(
        kl_weight.gradient_noise(MEANS, LOG_STDS), np.sqrt(noise.mean() / size.mean()), rtol=1e-9
    )


# --- all images together ----------------------------------------------------------------------------------------------
def test_where_the_latents_of_all_images_are_the_prior_the_kl_is_all_information():
    std = 0.5  # means of variance 1 - std^2: together N(0, 1), with log(1 / std) nats of information
    z_mean = np.sqrt(1 - std**2) * norm.ppf((np.arange(4_000) + 0.5) / 4_000)[:, np.newaxis]
    taken = kl_weight.take_kl(z_mean, np.full(z_mean.shape, np.log(std)), draws=20, mixture_samples=8_000, seed=0)
    assert taken["analytic"] == pytest.approx(np.log(2), abs=0.002)
    assert taken["information"] == pytest.approx(np.log(2), abs=4 * taken["information_standard_error"])
    assert taken["information_standard_error"] < 0.011
    assert taken["moments"] == pytest.approx(0, abs=1e-3)
    assert taken["mixture"] == pytest.approx(0, abs=0.03)
    assert taken["one_sample_sd"] == pytest.approx(taken["one_sample_sd_closed_form"], rel=0.02)
    assert taken["one_sample_sd_closed_form"] == pytest.approx(np.sqrt(0.75**2 / 2 + 0.75 * 0.25), rel=1e-3)
    e = np.random.default_rng(1).normal(size=(2, 200_000))
    z = np.sqrt(0.75) * e[0] + 0.5 * e[1]
    below = (norm.logpdf(e[1]) - np.log(0.5) < norm.logpdf(z)).mean()
    assert taken["one_sample_negative"] == pytest.approx(below, abs=0.01)


def test_mixture_agrees_with_latent_aggregate_kl():
    rng = np.random.default_rng(0)
    posteriors = rng.normal(size=(300, 3)), rng.normal(-0.5, 0.3, size=(300, 3))
    value, error = kl_weight.latent.aggregate_kl(*posteriors, 20_000, 1)
    taken = kl_weight.take_kl(*posteriors, draws=2, mixture_samples=20_000, seed=2)
    assert taken["mixture"] == pytest.approx(value, abs=4 * np.hypot(error, taken["information_standard_error"]))
    assert taken["mixture"] > taken["moments"] > 0


def test_mixture_of_images_far_apart_is_the_least_it_can_be_for_each_count():
    by_count = kl_weight.mixture_by_count(*far_apart(100), [1, 10, 100], 300, 0)
    np.testing.assert_allclose(by_count["mixture"], by_count["least"], rtol=1e-6)
    each = 100.0**2 * np.square(np.arange(100)).mean() / 2 + (2 * 0.01 - 2) / 2 - 2 * np.log(0.1)
    assert by_count["least"][-1] == pytest.approx(each - np.log(100))
    assert by_count["least"][1] > 20 * 100.0**2 * np.square(np.arange(10)).mean() / 2  # at random, not the first ten
    assert kl_weight.mixture_by_count(np.zeros((9, 2)), np.zeros((9, 2)), [3, 9], 50, 0)["least"] == [0, 0]


def test_where_so_few_images_hide_how_much_is_told_the_table_marks_bounds(tmp_path):
    quick = study.Study("kl_weight", 0, True, 0, tmp_path, tmp_path)
    same = np.ones((100, 2)), np.zeros((100, 2))
    sizes = kl_weight.QUICK_SIZES._replace(draws=2, mixture_samples=50)
    ways = kl_weight.measure_ways(quick, sizes, {1: [far_apart(100)], 10: [same]})
    assert [n["at_ceiling"] for n in ways["by_beta"].values()] == [True, False]
    apart, together = ([cell.strip() for cell in row.split("|")[-4:-1]] for row in
                       kl_weight.ways_table(ways).splitlines()[2:])  # fmt: skip
    mixture = ways["by_beta"]["1"]["mixture"]["mean"]
    assert apart[1:] == [f"≤ {mixture:,.2f}", "≥ 4.61"]
    assert (together[1], together[2].lstrip("-")) == ("1.00", "0.00")


# --- curves -----------------------------------------------------------------------------------------------------------
def test_exchange_rates_lie_between_the_betas_of_their_ends():
    betas = np.array([1.0, 2, 5])
    rates, distortions = 10 * np.log(10 / betas), 10 * betas  # D = 100 exp(-R / 10), whose slope is -beta here
    exchanged = kl_weight.exchange_rates(rates, distortions)
    np.testing.assert_allclose(exchanged, [1 / np.log(2), 3 / np.log(2.5)])
    assert (betas[:-1] < exchanged).all()
    assert (exchanged < betas[1:]).all()


def test_a_latent_is_awake_since_it_stays_above_the_threshold():
    kl = np.array([[2, 0, 0.5, 9, 0.1], [2, 0, 0.0, 9, 0.1], [2, 1, 0.5, 9, 0.1], [2, 1, 0.5, 0, 0.1]])
    steps = np.array([0, 20, 40, 80])
    assert kl_weight.awake_since(steps, kl, 0.1) == [0, 40, 40, None, None]


def test_watched_steps_are_the_start_and_evenly_spaced_on_a_log_axis():
    assert kl_weight.watch_steps(1_000, 5) == (0, 1, 10, 100, 1_000)
    assert kl_weight.watch_steps(4, 20) == (0, 1, 2, 3, 4)  # none twice


def test_watch_is_the_kl_of_each_latent_over_the_first_images():
    x = keras.Input((2, 1, 1))
    flat = keras.layers.Flatten()(x)
    vae = main.VAE(keras.Model(x, [flat, flat - 1]), None, None, None)
    images = np.array([[0, 255], [255, 0], [255, 255]], np.uint8).reshape(3, 2, 1, 1)
    kl = kl_weight.kl_of_latents(vae, None, SimpleNamespace(test_images=images), images=2)["kl"]
    low, high = (np.exp(-2) - 1) / 2 + 1, 0.5  # m = 0, s = 1/e; m = 1, s = 1
    np.testing.assert_allclose(kl, [(low + high) / 2] * 2, rtol=1e-6)
    kl = kl_weight.kl_of_latents(vae, None, SimpleNamespace(test_images=images), images=3)["kl"]
    np.testing.assert_allclose(kl, [(low + 2 * high) / 3] * 2, rtol=1e-6)


def test_gain_of_a_schedule_is_taken_seed_by_seed():
    def runs(*elbos):
        others = dict.fromkeys(("test_nll", "test_reconstruction", "test_kl", "active_units"), 0)
        return [SimpleNamespace(report={"test_elbo": elbo, **others}) for elbo in elbos]

    numbers = kl_weight.measure_schedules({"constant": runs(-100, -90), "linear": runs(-99, -89)})
    assert numbers["linear"]["gain"] == {"mean": 1, "sd": 0, "values": [1, 1]}
    assert numbers["constant"]["gain"]["values"] == [0, 0]


# --- what is trained --------------------------------------------------------------------------------------------------
def test_trainings_are_shared_and_differ_by_what_is_varied_only(tmp_path):
    full = study.Study("kl_weight", 0, False, 0, tmp_path, tmp_path)
    asked = kl_weight.ask(full, kl_weight.Sizes())
    assert asked["beta", 1] == asked["free bits", 0] == asked["schedule", "constant"]
    names = {training.name: training for trainings in asked.values() for training in trainings}
    assert len(names) == 3 * (5 + 6 + 3)
    watched = [training for training in names.values() if training.watch]
    assert sorted((each.settings.kl_schedule, each.settings.seed) for each in watched) == [
        ("constant", 0),
        ("linear", 0),
    ]
    assert all(training.watch_at[:2] == (0, 1) and training.watch_at[-1] == 3_744 for training in watched)
    for (varied, value), trainings in asked.items():
        assert [training.settings.seed for training in trainings] == [0, 1, 2]
        settings = trainings[0].settings
        assert settings.kl_schedule == (value if varied == "schedule" else "constant")
        assert settings.kl_weight_end == (value if varied == "beta" else 1)
        assert settings.free_bits == (value if varied == "free bits" else 0)
        assert settings.kl_schedule == "constant" or (settings.kl_weight_start, settings.kl_steps) == (0, 2_000)


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quick_study(run_quick, capsys):
    folder, numbers = run_quick(kl_weight)
    mean = {  # of all summaries, by part and value
        part: {value: {key: n["mean"] for key, n in each.items() if isinstance(n, dict) and "mean" in n}
               for value, each in table.items()}
        for part, table in {**{key: numbers[key] for key in ("schedules", "beta", "free_bits")},
                            "ways": numbers["ways"]["by_beta"]}.items()
    }  # fmt: skip

    for n in (*mean["schedules"].values(), *mean["beta"].values(), *mean["free_bits"].values()):
        assert n["test_elbo"] == pytest.approx(-n["test_reconstruction"] - n["test_kl"], rel=1e-5)
    for n in mean["schedules"].values():
        assert -200 < n["test_elbo"] < -n["test_nll"] < -50  # the bound is below what it bounds

    light, heavy = mean["beta"]["1"], mean["beta"]["10"]  # a larger KL weight: a smaller KL and a worse reconstruction
    assert light["test_elbo"] == mean["schedules"]["constant"]["test_elbo"] == mean["free_bits"]["0"]["test_elbo"]
    assert heavy["test_kl"] < light["test_kl"] / 2
    assert heavy["test_reconstruction"] > light["test_reconstruction"] + 10
    assert heavy["active_units"] < light["active_units"] <= 20
    assert 1 < numbers["beta"]["1"]["exchange_rate_to_next"] < 10
    assert numbers["beta"]["10"]["exchange_rate_to_next"] is None

    assert mean["free_bits"]["0.5"]["least_kl"] > 0.4 > mean["free_bits"]["0"]["least_kl"]
    for schedule in ("linear", "constant"):
        n = numbers["latents"][schedule]
        assert sum(step is not None for step in n["awake_since_step"]) == n["awake_at_end"] <= n["most_awake"]
        assert n["kl_at_end"] == sorted(n["kl_at_end"], reverse=True)

    log_images = np.log(numbers["ways"]["images"])
    for n in mean["ways"].values():
        assert n["one_sample"] == pytest.approx(n["analytic"], abs=5 * n["one_sample_sd"] / np.sqrt(500))
        assert n["one_sample_sd"] == pytest.approx(n["one_sample_sd_closed_form"], rel=0.05)
        assert n["analytic"] == pytest.approx(n["mixture"] + n["information"])
        assert 0 < n["information"] < log_images
        assert n["mixture"] > n["moments"] - 5 * n["information_standard_error"]
    assert mean["ways"]["10"]["one_sample_negative"] > mean["ways"]["1"]["one_sample_negative"]

    out = capsys.readouterr().out
    for header in ("| schedule |", "| beta | rate: KL |", "| free nats per latent |", "| beta | KL: formula |"):
        assert header in out
    for what in ("schedules", "beta", "latents", "ways"):
        path = folder / f"kl_weight_{what}.png"
        assert path.stat().st_size < 400_000
        with Image.open(path) as picture:
            picture.load()
            assert picture.width == 1_100
            assert np.asarray(picture.convert("L")).std() > 10
