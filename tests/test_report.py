"""utils/report.py: the report's numbers against hand computations, its warnings against made-up histories."""

import json
import math
import statistics

import numpy as np
import pytest

from utils import report
from utils.settings import from_params

GREY_DENSITY = {"loss": "mse", "decoder_scale": "learned", "binarize": "none"}
RECONSTRUCTION = np.array([70.0, 80.0, 90.0, 80.0], np.float32)  # (N,)
KL = np.array([[20, 4, 0], [21, 5, 0], [19, 3, 0], [20, 4, 0]], np.float32)  # (N, L)
ESTIMATES = np.array([-90.0, -95.0, -105.0, -98.0], np.float32), np.array([0.5, 0.25, 0.75, 0.1], np.float32)
Z_MEAN = np.array([[1, 0.09, 7], [-1, -0.09, 7], [1, 0.09, 7], [-1, -0.09, 7]], np.float32)  # variances 1, 0.0081, 0


def history(train=(130, 110, 100), test=(111, 105, 104.9), weights=None, per_epoch=4):
    """Lines of training and test objectives; the KL weight is 1 all the time, or one of `weights` for each test line.

    Each value of `train` stands for an epoch, or is the list of the epoch's lines.
    """
    lines = []
    weights = np.ones(len(test), np.float32) if weights is None else weights
    for epoch, (values, tested, weight) in enumerate(zip(train, test, weights, strict=True), start=1):
        values = np.broadcast_to(values, per_epoch) if np.ndim(values) == 0 else values
        for number, value in enumerate(values, start=1):
            step = round((epoch - 1 + number / len(values)) * 100)
            lines.append({"split": "train", "step": step, "objective": float(value), "kl_weight": weight})
        lines.append({"split": "test", "step": epoch * 100, "objective": float(tested), "kl_weight": weight})
    return [line | {"kl_weight": weight if (weight := line["kl_weight"]) is None else float(weight)} for line in lines]


def made(estimates=ESTIMATES, z_mean=Z_MEAN, lines=None, **changes):
    """The report on the numbers above."""
    settings = from_params(**{"latent_dim": 3, "kl_steps": 250} | changes)
    lines = history(weights=[None] * 3 if settings.autoencoder else None) if lines is None else lines
    estimates = estimates if report.kind(settings) != "none" else None
    return report.make_report(settings, RECONSTRUCTION, KL, z_mean, estimates, lines, pixels=784)


def has(sentences, *words):
    """Whether there is one sentence, which has all the words."""
    return len(sentences) == 1 and all(word in sentences[0] for word in words)


# --- numbers ----------------------------------------------------------------------------------------------------------
def test_the_numbers_are_those_worked_out_by_hand():
    found = made(nll_samples=64)
    assert (found["test_reconstruction"], found["test_kl"], found["test_elbo"]) == (80.0, 24.0, -104.0)
    assert found["kl_per_latent"] == [20.0, 4.0, 0.0]
    assert found["active_units"] == 1
    assert found["test_nll"] == 97.0
    assert found["standard_error_images"] == pytest.approx(statistics.stdev([90, 95, 105, 98]) / 2)
    assert found["standard_error_sampling"] == pytest.approx(math.sqrt(0.5 + 0.25 + 0.75 + 0.1) / 4)
    assert (found["nll_samples"], found["latent_dim"], found["effective_beta"]) == (64, 3, 1.0)
    assert found["healthy"]
    assert "KL per latent          0.00 to 20.00 nats, mean 8.00" in report.table(found)
    json.dumps(found, allow_nan=False)


def test_the_sampling_error_is_how_far_the_mean_strays_when_it_is_sampled_again():
    variances = np.array([4.0, 1.0, 0.25, 9.0])
    draws = np.random.default_rng(0).normal(ESTIMATES[0], np.sqrt(variances), size=(20_000, 4))
    found = made(estimates=(ESTIMATES[0], variances))
    assert found["standard_error_sampling"] == pytest.approx(draws.mean(axis=1).std(), rel=0.02)


def test_active_units_are_latents_whose_mean_varies_by_more_than_a_hundredth():
    variances = np.array([0.0, 0.0099, 0.0101, 4.0])
    z_mean = 5 + np.sqrt(variances) * np.array([[1], [-1], [1], [-1]])  # a population's variance: divided by N
    assert report.active_units(z_mean) == sum(statistics.pvariance(column) > 0.01 for column in z_mean.T.tolist()) == 2


def test_a_single_sample_has_no_sampling_error():
    found = made(estimates=(ESTIMATES[0], np.full(4, np.nan)), nll_samples=1)
    assert found["standard_error_sampling"] is None
    assert "+- ? sampling, K = 1" in report.table(found)


@pytest.mark.parametrize(
    ("changes", "kind", "published"),
    [
        ({}, "likelihood", 86.76),
        ({"dataset": "fashion_mnist"}, "likelihood", None),  # the number is of MNIST
        ({"labels": (1, 7)}, "likelihood", None),  # and of all its digits
        ({"binarize": "none"}, "none", None),
        ({"loss": "mse"}, "none", None),
        ({"loss": "ad", "binarize": "none"}, "none", None),
        (GREY_DENSITY, "density", None),
        (GREY_DENSITY | {"loss": "ad"}, "density", None),
        ({"autoencoder": True}, "none", None),
        (GREY_DENSITY | {"autoencoder": True}, "none", None),
    ],
)
def test_only_a_likelihood_is_called_one_and_set_beside_the_published_number(changes, kind, published):
    found = made(**changes)
    assert found["kind"] == kind
    assert (found["published_nll"] or {}).get("nll") == published
    assert found["test_nll"] == (97.0 if kind == "likelihood" else None)
    assert found["test_log_density"] == (-97.0 if kind == "density" else None)
    assert ("86.76" in report.table(found)) == bool(published)
    assert ("log-likelihood" in report.table(found)) == (kind == "likelihood")
    assert ("density" in report.table(found)) == (kind == "density" or "learned makes it a density" in str(found))


def test_the_autoencoder_pretends_nothing():
    found = made(autoencoder=True)
    for name in ("test_elbo", "test_kl", "kl_per_latent", "active_units", "effective_beta", "test_nll", "nll_samples"):
        assert found[name] is None
    assert found["problems"] == []
    shown = report.table(found)
    assert "80.00 nats" in shown
    assert not any(word in shown.split("note")[0] for word in ("ELBO", "KL", "likelihood", "active"))
    assert has(found["remarks"], "no prior", "no likelihood")


# --- problems ---------------------------------------------------------------------------------------------------------
NOISE = np.random.default_rng(0).normal(0, 2.3, (20, 468))  # of the ELBO of single batches of 128


@pytest.mark.parametrize(
    "lines",
    [
        history(),
        history(test=(111, 104, 105)),  # within 2 percent
        history(train=(50, 80, 100), test=(50, 80, 100), weights=[0.1, 0.5, 1]),  # rose with the KL weight only
        history(train=-1000 + NOISE[:3, :4], test=(-999, -998, -997)),  # densities may be below 0
        history(train=(0.30, 0.27, 0.26), test=(0.29, 0.27, 0.272)),  # means over pixels
        history(train=100 - np.arange(20)[:, np.newaxis] / 10 + NOISE, test=[100] * 20),  # LOG_EVERY = 1
    ],
    ids=["falling", "wavering", "annealed", "density", "mean over pixels", "noise of single batches"],
)
def test_a_healthy_run_has_no_problems(lines):
    assert made(lines=lines)["problems"] == []


@pytest.mark.parametrize("end", [0.1, 0.7, 1e-3, 1.0, 4.0])
@pytest.mark.parametrize(("kl_steps", "last_weight"), [(250, 1), (300, 299 / 300)])  # 300 steps are 0 to 299
def test_a_finished_schedule_is_not_called_unfinished(end, kl_steps, last_weight):
    weights = [0.0, end / 2, np.float32(end * last_weight)]  # as TensorFlow gives it, rounded to float32
    assert made(lines=history(weights=weights), kl_weight_end=end, kl_steps=kl_steps)["problems"] == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (history(train=(130, 100, 103)), ["Diverging", "training", "LEARNING_RATE"]),
        (history(train=(-1000, -1100, -1000)), ["Diverging"]),
        (history(train=(130, 100, 103), test=(111, 100, 110)), ["Diverging"]),  # one sentence for one trouble
        (history(train=(900, 100, 103), weights=[0.1, 1, 1]), ["Diverging"]),  # the lines before are another objective
        (history(test=(111, 104, 107)), ["Overfitting", "test objective", "EPOCHS"]),
        (history(train=[[220, 220, 200, 190], [180, 170, 160, 150]], test=[190, 150]), ["Unfinished", "fell by 13%"]),
        (history(train=[[300, 200, 150, 150]], test=[170]), ["Unfinished", "fell by 67%"]),  # all there is, an epoch
    ],
)
def test_a_history_that_went_wrong_is_told_in_a_sentence(lines, words):
    found = made(lines=lines, kl_steps=50)
    assert has(found["problems"], *words)
    assert not found["healthy"]


def test_a_schedule_that_was_cut_short_is_told():
    found = made(lines=history(weights=[0.2, 0.4, 0.6]), kl_steps=500)
    assert has(found["problems"], "Unfinished", "KL weight 0.6", "KL_WEIGHT_END = 1", "EPOCHS", "KL_STEPS")


def test_a_collapse_is_told():
    found = made(z_mean=Z_MEAN[:, 1:])
    assert has(found["problems"], "collapse", "same picture")
    assert "Is this run healthy?  No." in report.table(found)
    assert found["problems"][0] in report.table(found)


@pytest.mark.parametrize(
    ("changes", "beta"),
    [
        ({"reconstruction_reduction": "mean"}, "784"),
        ({"reconstruction_reduction": "mean", "kl_weight_end": 0.1}, "78.4"),
        ({"kl_weight_end": 20.0}, "20"),
        ({"kl_weight_end": 4.0}, None),  # a beta-VAE
        ({"reconstruction_reduction": "mean", "kl_weight_end": 1 / 784}, None),  # the ELBO again, scaled
    ],
)
def test_a_kl_that_outweighs_the_reconstruction_is_told_with_its_effective_beta(changes, beta):
    found = made(lines=history(weights=[np.float32(changes.get("kl_weight_end", 1))] * 3), **changes)
    outweighs = [sentence for sentence in found["problems"] if "outweighs" in sentence]
    assert has(outweighs, f"effective beta of {beta}") if beta else outweighs == []
    assert ("RECONSTRUCTION_REDUCTION = sum" in str(outweighs)) == (beta in ("784", "78.4"))


# --- remarks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"binarize": "none"}, ["Not a likelihood", "grey pixels", "BINARIZE = dynamic"]),
        ({"loss": "mse", "binarize": "none"}, ["Not a likelihood", "mse", "DECODER_SCALE = learned"]),
        ({"loss": "ad", "binarize": "dynamic"}, ["Not a likelihood", "ad", "DECODER_SCALE = learned"]),
        (GREY_DENSITY, ["density", "may exceed 0", "not to be compared"]),
        (GREY_DENSITY | {"binarize": "dynamic"}, ["density of black and white", "grows", "BINARIZE = none"]),
    ],
)
def test_what_the_numbers_are_not_is_remarked(changes, words):
    found = made(**changes)
    assert has(found["remarks"], *words) if words else found["remarks"] == []
    assert all(sentence in report.table(found) for sentence in found["remarks"])


@pytest.mark.parametrize("binarize", ["dynamic", "none"])
def test_a_loss_of_ones_own_is_no_likelihood_and_gets_no_advice_that_it_cannot_follow(binarize):
    own = from_params(latent_dim=3, binarize=binarize).model_copy(update={"loss": "focal"})
    assert report.doubts(own, steps=5_000) == []
    found = report.make_report(own, RECONSTRUCTION, KL, Z_MEAN, None, history(), pixels=784)
    assert has(found["remarks"], "Not known to be a likelihood", "focal", "your own")
    assert "learned" not in report.table(found)
    assert (found["kind"], found["test_nll"]) == ("none", None)


@pytest.mark.parametrize(
    ("test", "weights", "remarked"),
    [
        ((111, 105, 100), [1, 1, 1], True),
        ((111, 105, 104.9), [1, 1, 1], False),  # less than half a percent
        ((111, 105, 106), [1, 1, 1], False),
        ((111, 105, 100), [0.5, 0.9, 1], False),  # another objective than the epoch before
    ],
)
def test_a_run_that_still_learns_is_remarked(test, weights, remarked):
    found = made(lines=history(test=test, weights=weights))["remarks"]
    assert has(found, "Still learning", "lowered the test objective by 5") if remarked else found == []


# --- what is said before and during a run -----------------------------------------------------------------------------
def test_the_defaults_raise_no_doubts():
    settings = from_params()
    assert report.doubts(settings, settings.epochs * (60_000 // settings.batch_size)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"binarize": "none"}, ["LOSS = ce", "grey pixels", "no likelihood"]),
        ({"loss": "mse"}, ["LOSS = mse", "black and white"]),
        (GREY_DENSITY, None),
        ({"kl_steps": 5_001}, ["KL_STEPS = 5,001", "5,000 steps", "not be reached"]),
        ({"kl_steps": 4_999}, None),
        ({"kl_steps": 5_001, "kl_schedule": "constant"}, None),
        ({"kl_steps": 5_001, "autoencoder": True}, None),
        ({"kl_weight_start": 1.0}, ["KL_SCHEDULE = linear", "constant"]),
        ({"kl_weight_end": 0.0, "kl_schedule": "constant"}, ["KL_WEIGHT_END = 0", "samples"]),
        ({"reconstruction_reduction": "mean"}, ["RECONSTRUCTION_REDUCTION = mean", "outweighs", "collapse"]),
        ({"reconstruction_reduction": "mean", "autoencoder": True}, None),
        ({"free_bits": 0.1, "autoencoder": True}, ["FREE_BITS", "AUTOENCODER"]),
        ({"free_bits": 0.1}, None),
    ],
)
def test_what_is_legal_but_surely_not_meant_is_doubted(changes, words):
    found = report.doubts(from_params(**changes), steps=5_000)
    assert has(found, *words) if words else found == []


@pytest.mark.parametrize(("speed", "elbo"), [(31_204.0, -101.3), (1_234_567.0, -1.5e20)])
@pytest.mark.parametrize("epochs", [7, 1_000])
def test_the_progress_line_fits_80_columns_and_has_its_numbers(speed, elbo, epochs, capsys):
    bar = report.progress_bar(steps=epochs * 100, done=0)
    line = {"step": 600, "reconstruction": 76.1, "elbo": elbo, "kl": 25.2, "kl_weight": 0.66}
    report.show_progress(bar, 600, 6, epochs, line | {"images_per_second": speed})
    report.show_progress(bar, 650, 7, epochs, None)
    bar.close()
    drawn = capsys.readouterr().err.replace("\n", "").split("\r")
    assert max(map(len, drawn)) <= 79  # the last column stays free, or the cursor would break the line
    assert drawn[-1].startswith(f"epoch  7/{epochs} |")
    assert bar.n == 650
    if elbo == -101.3:
        assert drawn[-1].endswith("| 31,204 images/s  ELBO -101.3  KL 25.2 x 0.66")


def test_the_progress_of_an_autoencoder_shows_its_only_loss(capsys):
    bar = report.progress_bar(steps=100, done=40)
    line = {"step": 60, "reconstruction": 76.1, "kl": None, "kl_weight": None, "elbo": None, "images_per_second": 1e4}
    report.show_progress(bar, 60, 1, 1, line)
    bar.close()
    assert capsys.readouterr().err.rstrip().endswith("| 10,000 images/s  reconstruction 76.1")
    assert bar.n == 60


def test_the_user_is_sent_to_the_newest_pictures(tmp_path):
    for name in ("samples_000.png", "samples_999.png", "samples_1000.png", "reconstructions_005.png", "curves.png"):
        (tmp_path / name).touch()
    shown = report.look_at(tmp_path).splitlines()[1]
    assert shown == f"look at    {tmp_path}: samples_1000.png, reconstructions_005.png, curves.png"
