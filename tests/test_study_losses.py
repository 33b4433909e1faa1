"""experiments/losses.py: the collapsed runs collapse, the cured ones do not, and the measures are right."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import losses
from experiments.study import ROOT, make_study, settings_of
from utils.dataset import Dataset

OBJECTIVES = ("mean_objective", "sum_objective")


@pytest.fixture(scope="module")
def quick(run_quick):
    """The folder of a quick run, and its numbers."""
    return run_quick(losses)


@pytest.mark.slow
def test_the_collapse_collapses_and_the_cure_cures(quick):
    _, numbers = quick
    collapsed, between, cured = (numbers["models"][name] for name in ("MSE_0", "AD_1", "MSE sum"))
    assert collapsed["active"]["mean"] == 0
    assert collapsed["kl"]["mean"] < 0.1
    assert collapsed["digits"]["mean"] < 1.5  # all samples look alike
    assert cured["active"]["mean"] > 1
    assert cured["kl"]["mean"] > 2
    assert cured["mse"]["mean"] < 0.6 * collapsed["mse"]["mean"]
    assert cured["digits"]["mean"] > 1.5
    assert 0 < between["last_alive"][0]["step"] < 1_170  # its KL weight comes to 0.06
    terms = numbers["terms"]
    mean, whole = ({name: each[key]["mean"] for name, each in terms.items()} for key in OBJECTIVES)
    assert mean["MSE_0"] < mean["MSE sum"]  # so this objective prefers the collapse
    assert whole["MSE_0"] > whole["MSE sum"]
    assert whole["MSE sum"] == pytest.approx(sum(terms["MSE sum"][key]["mean"] for key in ("reconstruction", "kl")))
    foretold = numbers["collapse_weight"]["predicted"]["mse"]
    assert numbers["collapse_weight"]["measured"]["mse"][0]["weight"] == pytest.approx(foretold, rel=0.3)


def test_in_the_committed_numbers_the_collapsed_models_draw_the_mean_and_the_median():
    distances = json.loads((ROOT / "images" / "losses.json").read_text())["averages"]["distance"]
    assert max(distances["CE_0 to mean"], distances["MSE_0 to mean"], distances["AD_0 to median"]) < 0.01
    assert min(distances["CE_0 to median"], distances["MSE_0 to median"], distances["AD_0 to mean"]) > 0.05


@pytest.mark.slow
def test_the_pictures_are_there(quick):
    folder, _ = quick
    names = {path.name for path in folder.glob("*.[jp][pn]g")}
    assert names == {"MSE_0.jpg", "AD_1.jpg", "losses_cures.png", "losses_weight.png", "losses_average.png"}
    for name in names:
        with Image.open(folder / name) as picture:
            assert picture.width > 900
            assert np.ptp(np.asarray(picture.convert("L"))) > 200


def test_the_foretold_weight_is_that_of_the_largest_eigenvalue():
    pattern = np.zeros((4, 3), np.uint8)
    pattern[:2] = 255  # six pixels of twelve that are all white or all black: their covariance matrix is 1/4 throughout
    images = np.stack([pattern, 0 * pattern] * 500)[..., np.newaxis]
    assert losses.predicted_weight(images, "mse") == pytest.approx(2 * 6 / 4 / 12, rel=2e-3)
    assert losses.predicted_weight(images, "ce") == pytest.approx(6 / 12, rel=2e-3)  # correlations of 1


def watched(*variances):
    """What is watched at steps 0, 10, ... for one latent whose posterior mean has these variances."""
    return lambda: {10 * number: {"variance": np.array([value])} for number, value in enumerate(variances)}


def test_the_last_step_with_an_active_latent_is_found():
    study = make_study("losses", quick=True)
    settings = settings_of(study, kl_schedule="linear", kl_steps=1_000)
    run = SimpleNamespace(settings=settings, watched=watched(1.0, 0.5, 0.02, 0.005, 0.0))
    assert losses.last_alive(run) == {"step": 20, "weight": pytest.approx(0.02)}
    run.watched = watched(1.0, 0.0, 0.5)
    assert losses.last_alive(run) is None  # alive to the end
    run.watched = watched(1.0, 0.0, 0.0)
    assert losses.last_alive(run) is None  # the one of step 0 is untrained
    assert losses.active({"variance": np.array([0.011, 0.009, 2.0])}) == 2


def test_failed_reconstructions_are_counted_by_the_digit_they_show(monkeypatch):
    labels = np.arange(10).repeat(2)
    images = np.zeros((20, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(20)
    dataset = Dataset("Toy", images, labels, images, labels, "")
    order = losses.one_of_each(dataset, 20)[:, 0, 0, 0]
    assert order[:10].tolist() == list(range(0, 20, 2))
    assert order[10:].tolist() == list(range(1, 20, 2))
    seen = np.repeat([0, 1, 9, 9, 4, 9, 6, 3, 8, 9], 2)  # four digits are taken for others, three for a 9
    drawn = np.where(labels == seen, 1.0, 0.25)[:, np.newaxis, np.newaxis, np.newaxis] * np.ones((1, 28, 28, 1))
    monkeypatch.setattr(losses.classifier, "probabilities", lambda judge, x: np.eye(10)[seen])
    monkeypatch.setattr(losses.main, "reconstruct", lambda vae, images: drawn)
    found = losses.fallback(SimpleNamespace(vae=None), dataset, None, np.zeros((28, 28, 1)))
    assert found["failed"] == 0.4
    assert (found["digit"], found["share_of_failed"]) == (9, 0.75)
    assert (found["distance_of_failed"], found["distance_of_others"]) == (0.25, 1)
