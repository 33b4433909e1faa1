"""experiments/sample_quality.py: a quick run of the whole, and that its numbers are those of its pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import main
from experiments import classifier, sample_quality
from experiments.study import make_study, settings_of
from utils.dataset import Dataset

SETS = ("prior", "mixture", "reconstructions")


@pytest.fixture(scope="module")
def quick(run_quick):
    """The folder of a quick run, and its numbers."""
    return run_quick(sample_quality)


@pytest.mark.slow
def test_the_models_are_ranked_and_nothing_beats_real_images(quick):
    _, numbers = quick
    models = numbers["models"]
    assert set(models) == set(sample_quality.QUICK_MODELS)
    distances = [model["prior"]["mean"] for model in models.values()]
    assert distances == sorted(distances)
    for model in models.values():
        assert all(model[name]["mean"] > numbers["floor"] for name in SETS)
        assert model["reconstructions"]["mean"] < model["prior"]["mean"]
    assert list(models)[-1] == "CE autoencoder"  # its codes are not distributed as N(0, I) ...
    autoencoder = models["CE autoencoder"]
    assert autoencoder["mixture"]["mean"] < autoencoder["prior"]["mean"] / 2  # ... but as the mixture
    assert "nll" not in autoencoder
    assert models["CE"]["nll"]["mean"] > 0


@pytest.mark.slow
def test_the_table_has_a_row_for_each_model_in_order_under_that_of_real_images(quick):
    _, numbers = quick
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in numbers["tables"]["sample_quality"].splitlines()
    ]
    assert [row[0] for row in rows[2:]] == ["training images", *numbers["models"]]
    assert rows[2][3] == f"{numbers['floor']:.2f}"
    for row, model in zip(rows[3:], numbers["models"].values(), strict=True):
        assert [float(cell) for cell in row[1:4]] == pytest.approx([model[name]["mean"] for name in SETS], abs=0.06)


@pytest.mark.slow
def test_the_picture_is_there(quick):
    folder, _ = quick
    with Image.open(folder / "sample_quality.png") as picture:
        assert 900 < picture.width <= 1_100
        panels = np.array_split(np.asarray(picture.convert("L")), 4, axis=1)
    for panel in panels:  # each has a grid of images, which are grey while the networks have hardly learned
        assert (panel < 230).mean() > 0.5
    assert (panels[0] < 20).mean() > 0.4  # the training images, digits on black


def test_every_model_names_settings_that_exist_and_differs_from_the_others():
    study = make_study("sample_quality")
    settings = [settings_of(study, **overrides) for overrides in sample_quality.MODELS.values()]
    assert len({one.model_dump_json() for one in settings}) == 7
    assert {one.prior for one in settings} == {"standard", "mixture", "vampprior", "realnvp"}


def test_the_sets_are_what_they_are_called(monkeypatch):
    """A decoder that repeats its latent and an encoder that reads it off: N(7, 0.1^2) for every image."""
    grey = Dataset("toy", np.full((300, 1, 1, 1), 128, np.uint8), None, np.zeros((200, 1, 1, 1), np.uint8), None, "")
    study = make_study("sample_quality")
    settings = settings_of(study, latent_dim=1)
    seen = []

    def encoder(x):
        seen.append(np.asarray(x))
        return np.full((len(x), 1), 7, np.float32), np.full((len(x), 1), np.log(0.1), np.float32)

    decoder = lambda z: np.float32(z).reshape(-1, 1, 1, 1)  # noqa: E731
    vae = SimpleNamespace(encoder=encoder, prior=SimpleNamespace(weights=[]))
    monkeypatch.setattr(main, "decode", lambda vae, z: decoder(z))
    vae.decoder = SimpleNamespace(input_shape=(None, 1))
    trained = SimpleNamespace(settings=settings, vae=vae)
    sets = sample_quality.sets_of(study, trained, grey)
    assert all(images.shape == (200, 1, 1, 1) for images in sets.values())
    assert set(np.unique(np.concatenate(seen))) == {0, 1}  # the images are binarised, as in training
    np.testing.assert_array_equal(sets["reconstructions"], 7)
    assert sets["mixture"].mean() == pytest.approx(7, abs=0.05)
    assert sets["mixture"].std() == pytest.approx(0.1, rel=0.2)
    assert sets["prior"].mean() == pytest.approx(0, abs=0.3)
    assert sets["prior"].std() == pytest.approx(1, rel=0.2)


def test_a_set_is_judged_by_its_distance_and_by_how_sure_the_classifier_is():
    rng = np.random.default_rng(0)
    real, near, far = rng.random((3, 50, 28, 28, 1), np.float32)
    judge = classifier.build_classifier((28, 28, 1), 10, seed=0)
    features = classifier.features(judge, real)
    numbers = sample_quality.measure({"prior": near, "mixture": real, "reconstructions": far / 2}, judge, features)
    assert numbers["mixture"] == pytest.approx(0, abs=1e-6)
    expected = classifier.frechet_distance(classifier.features(judge, near), features)
    assert numbers["prior"] == pytest.approx(expected)
    assert numbers["reconstructions"] > numbers["prior"]
    assert numbers["sure"] == classifier.sure_share(classifier.probabilities(judge, near))
