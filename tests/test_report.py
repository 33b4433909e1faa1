"""utils/report.py: the report's numbers against hand computations, and messages before, during and after a run."""

import json
import math
import statistics

import numpy as np
import pytest

from utils import report
from utils.settings import from_params, with_kl_steps

GREY_DENSITY = {"loss": "mse", "decoder_scale": "learned", "binarize": "none"}
RECONSTRUCTION = np.array([70.0, 80.0, 90.0, 80.0], np.float32)  # (N,)
KL = np.array([[20, 4, 0], [21, 5, 0], [19, 3, 0], [20, 4, 0]], np.float32)  # (N, L)
ESTIMATES = np.array([-90.0, -95.0, -105.0, -98.0], np.float32), np.array([0.5, 0.25, 0.75, 0.1], np.float32)
Z_MEAN = np.array([[1, 0.09, 7], [-1, -0.09, 7], [1, 0.09, 7], [-1, -0.09, 7]], np.float32)  # variances 1, 0.0081, 0


def made(estimates=ESTIMATES, z_mean=Z_MEAN, **changes):
    """The report on the numbers above, of a run whose history shows nothing wrong."""
    settings = from_params(**{"latent_dim": 3, "kl_steps": 250} | changes)
    estimates = estimates if report.kind(settings) != "none" else None
    found = report.make_report(settings, RECONSTRUCTION, KL, z_mean, estimates, pixels=784)
    return found | {"verdict": "healthy", "problems": [], "unfinished": [], "remarks": report.remarks(settings, found)}


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
        ({"dataset": "fashion_mnist"}, "likelihood", None),  # the published number is for MNIST
        ({"labels": (1, 7)}, "likelihood", None),  # and for all its digits
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
    if not changes.get("autoencoder"):  # -(80 + 24), an ELBO only for a likelihood or a density
        assert (found["test_elbo"], found["-(loss + KL)"]) == ((None, -104.0) if kind == "none" else (-104.0, None))
        assert ("test ELBO" in report.table(found)) == (report.sum_name(from_params(**changes)) == "elbo")
    assert found["test_log_density"] == (-97.0 if kind == "density" else None)
    assert ("86.76" in report.table(found)) == bool(published)
    assert ("log-likelihood" in report.table(found)) == (kind == "likelihood")
    assert ("density" in report.table(found)) == (kind == "density" or "learned makes it a density" in str(found))


def test_the_autoencoder_pretends_nothing():
    found = made(autoencoder=True)
    for name in ("test_elbo", "-(loss + KL)", "test_kl", "kl_per_latent", "active_units", "effective_beta", "test_nll"):
        assert found[name] is None
    assert found["nll_samples"] is None
    shown = report.table(found)
    assert "80.00 nats" in shown
    assert not any(word in shown.split("note")[0] for word in ("ELBO", "KL", "likelihood", "active"))
    assert has(found["remarks"], "no prior", "no likelihood")


# --- remarks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"binarize": "none"}, ["Not a likelihood", "grey pixels", "BINARIZE = dynamic"]),
        ({"loss": "mse", "binarize": "none"}, ["Not a likelihood", "mse", "DECODER_SCALE = learned"]),
        ({"loss": "ad", "binarize": "dynamic"}, ["Not a likelihood", "ad", "DECODER_SCALE = learned"]),
        (GREY_DENSITY, ["density", "may exceed 0", "does not compare"]),
        (GREY_DENSITY | {"binarize": "dynamic"}, ["density of black and white", "grows", "BINARIZE = none"]),
        ({"kl_weight_end": 10.0}, ["beta-VAE", "KL weight of 10", "fewer latents", "blurred"]),
        ({"kl_weight_end": 9.0}, []),
        ({"kl_weight_end": 0.0}, ["KL has no weight", "samples"]),
        ({"kl_weight_end": 10.0, "reconstruction_reduction": "mean"}, []),  # it is a problem: utils/verdict.py
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
    found = report.make_report(own, RECONSTRUCTION, KL, Z_MEAN, None, pixels=784)
    assert has(report.remarks(own, found), "Not known to be a likelihood", "focal", "your own")
    assert "learned" not in str(report.remarks(own, found))
    assert (found["kind"], found["test_nll"]) == ("none", None)


# --- messages before and during a run ---------------------------------------------------------------------------------
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


@pytest.mark.parametrize(
    ("verdict", "lines"),
    [
        ("healthy", ["Is this run healthy?  Yes."]),
        ("unhealthy", ["Is this run healthy?  No.", "  ! One.", "  ! Two."]),
        ("not finished", ["Is this run healthy?  Not finished: it ended early."]),
        ("both", ["Is this run healthy?  No.", "  ! One.", "  ! Two.", "  ! Not finished: it ended early."]),
    ],
)
def test_the_verdict_is_the_first_line_and_its_reasons_come_next(verdict, lines):
    wrong = ["One.", "Two."] if verdict in ("unhealthy", "both") else []
    early = ["it ended early."] if verdict in ("not finished", "both") else []
    found = made() | {"verdict": verdict.replace("both", "unhealthy"), "problems": wrong, "unfinished": early}
    shown = report.table(found).splitlines()
    assert shown[: len(lines) + 1] == ["", *lines]
    assert shown[len(lines) + 1].startswith("  test ELBO")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "15 epochs of 468 steps; KL weight 0 to 1 (linear) over the first 2,000 steps"),
        ({"epochs": 1}, "1 epoch of 468 steps; KL weight 0 to 1 (linear) over the first 156 steps"),
        ({"kl_schedule": "constant", "kl_weight_end": 4.0}, "15 epochs of 468 steps; KL weight 4 throughout"),
        ({"autoencoder": True}, "15 epochs of 468 steps"),
    ],
)
def test_the_schedule_is_shown_in_a_line(changes, words):
    settings = from_params(**{"epochs": 15, "kl_steps": 0} | changes)
    assert report.schedule(with_kl_steps(settings, settings.epochs * 468), 468) == words


@pytest.mark.parametrize(("speed", "elbo"), [(31_204.0, -101.3), (1_234_567.0, -1.5e20)])
@pytest.mark.parametrize("epochs", [7, 1_000])
@pytest.mark.parametrize(("key", "name"), [("elbo", "ELBO"), ("-(loss + KL)", "-(loss + KL)")])
def test_the_progress_line_fits_80_columns_and_has_its_numbers(speed, elbo, epochs, key, name, capsys):
    bar = report.progress_bar(steps=epochs * 100, done=0)
    line = {"step": 600, "reconstruction": 76.1, "kl": 25.2, "kl_weight": 0.66, "elbo": None} | {key: elbo}
    report.show_progress(bar, 600, 6, epochs, line | {"images_per_second": speed})
    report.show_progress(bar, 650, 7, epochs, None)
    bar.close()
    drawn = capsys.readouterr().err.replace("\n", "").split("\r")
    assert max(map(len, drawn)) <= 79  # the last column stays free, or the cursor would break the line
    assert drawn[-1].startswith(f"epoch  7/{epochs} |")
    assert bar.n == 650
    if elbo == -101.3:
        assert drawn[-1].endswith(f"| 31,204 images/s  {name} -101.3  KL 25.2 x 0.66")


def test_the_progress_of_an_autoencoder_shows_its_only_loss(capsys):
    bar = report.progress_bar(steps=100, done=40)
    line = {"step": 60, "reconstruction": 76.1, "kl": None, "kl_weight": None, "elbo": None, "images_per_second": 1e4}
    report.show_progress(bar, 60, 1, 1, line)
    bar.close()
    assert capsys.readouterr().err.rstrip().endswith("| 10,000 images/s  reconstruction 76.1")
    assert bar.n == 60


def test_a_single_value_has_no_standard_error():
    assert report.standard_error(np.array([3.0])) is None
    assert report.standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
    assert [report.error_in_words(error, ".2f") for error in (None, 0.126)] == ["?", "0.13"]
