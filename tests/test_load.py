"""experiments/load.py: a run from Python against the same VAE in NumPy and integrals, and what a user may pass."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

import main
from experiments.load import load
from tests.shared import REPOSITORY, lazy
from tests.tiny import SHAPE, TINY, NumpyVAE, random_images, random_vae
from utils import checkpoints, data, runs
from utils.dataset import TEST_BINARIZATION_KEY, Dataset, binarize
from utils.settings import from_params

DRAWS = 20_000


@pytest.fixture
def make_run(tmp_path):
    """A run with random weights, and the same VAE in NumPy."""

    def make(**overrides):
        s = from_params(**TINY | {"output_dir": str(tmp_path), "run_name": "tiny"} | overrides)
        vae = random_vae(s)
        folder = runs.create(s, "CPU", SHAPE)
        checkpoints.save(checkpoints.checkpoint(vae), folder, 7)
        return folder, NumpyVAE(s, [weight.numpy() for weight in vae.weights])

    return make


def flat(images):
    return images.reshape(len(images), -1)


# --- against NumPy ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [1, 255])
def test_it_encodes_decodes_and_reconstructs_as_numpy_does(make_run, scale):
    folder, same = make_run()
    pixels = random_images(5)
    run, images = load(folder), pixels / np.float64(255) if scale == 1 else pixels
    mean, log_std = same.encode(flat(pixels) / 255)
    np.testing.assert_allclose(run.encode(images), (mean, log_std), atol=1e-5)
    np.testing.assert_allclose(flat(run.decode(mean)), expit(same.decode(mean)), atol=1e-5)
    np.testing.assert_allclose(flat(run.reconstruct(images)), expit(same.decode(mean)), atol=1e-5)
    assert run.reconstruct(images).shape == (5, *SHAPE)


def test_samples_are_decoded_draws_from_the_prior_that_follow_from_the_seed(make_run):
    folder, same = make_run(seed=3)
    run = load(folder)
    many = flat(run.sample(DRAWS, 9))
    wanted = expit(same.decode(np.random.default_rng(0).standard_normal((DRAWS, 2))))
    errors = np.hypot(many.std(axis=0), wanted.std(axis=0)) / np.sqrt(DRAWS)
    assert (abs(many.mean(axis=0) - wanted.mean(axis=0)) < 5 * errors).all()
    assert (abs(many.std(axis=0) - wanted.std(axis=0)) < 5 * errors).all()
    np.testing.assert_array_equal(run.sample(4), run.sample(4, 3))
    assert (run.sample(4) != run.sample(4, 4)).any()


def test_the_terms_are_those_of_numpy_and_the_elbo_is_minus_their_sum(make_run):
    folder, same = make_run()
    run, (image,) = load(folder, say=pytest.fail), random_images(1)
    images = np.broadcast_to(image, (DRAWS, *SHAPE))
    reconstruction, kl = run.terms(images)
    noise = np.random.default_rng(1).standard_normal((DRAWS, 2))
    wanted_loss, wanted_kl = same.terms(flat(images) / 255, noise)
    np.testing.assert_allclose(kl, wanted_kl, rtol=1e-4)
    error = np.hypot(reconstruction.std(), wanted_loss.std()) / np.sqrt(DRAWS)
    assert abs(reconstruction.mean() - wanted_loss.mean()) < 5 * error
    run = load(folder, say=[].append)
    np.testing.assert_allclose(run.elbo(images[:9]), -run.terms(images[:9])[0] - wanted_kl[0].sum(), rtol=1e-5)


def test_the_log_likelihood_is_the_integral_over_z(make_run):
    folder, same = make_run(binarize="dynamic")
    images = 255 * (random_images(3) > 128).astype(np.uint8)
    grid = np.linspace(-7, 7, 281)
    z = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    logits = same.decode(z)
    wanted = []
    for x in flat(images) / 255:
        log_p = -same.loss(x, logits) + norm.logpdf(z).sum(axis=1)
        wanted.append(np.log(np.exp(log_p).sum() * (grid[1] - grid[0]) ** 2))
    found = load(folder, say=pytest.fail).log_likelihood(images, 4_000)
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert (load(folder).log_likelihood(np.repeat(images, 500, axis=0), 1).reshape(3, 500).mean(axis=1) < wanted).all()


def test_a_plain_autoencoder_has_terms_without_noise_and_nothing_that_needs_a_prior(make_run):
    folder, same = make_run(autoencoder=True)
    run, images = load(folder), random_images(4)
    wanted, _ = same.terms(flat(images) / 255, None)
    reconstruction, kl = run.terms(images)
    np.testing.assert_allclose(reconstruction, wanted, rtol=1e-5)
    assert not kl.any()
    for name, use in {"elbo": run.elbo, "log_likelihood": run.log_likelihood, "sample": run.sample}.items():
        with pytest.raises(ValueError, match=f"^{name}: A plain autoencoder has no prior and no likelihood"):
            use(images)


def test_what_is_no_elbo_is_called_so_and_has_no_likelihood(make_run):
    folder, _ = make_run(loss="mse")
    said = []
    run = load(folder, say=said.append)
    run.elbo(random_images(2))
    assert said == [
        "note       elbo: here -(loss + KL). Not a likelihood: mse without its constants. "
        "DECODER_SCALE = learned makes it a density of pixels."
    ]
    with pytest.raises(ValueError, match=r"^log_likelihood: Not a likelihood: mse"):
        run.log_likelihood(random_images(2))


# --- black and white --------------------------------------------------------------------------------------------------
def test_grey_images_are_drawn_as_the_test_images_are_and_a_line_says_so(make_run):
    folder, _ = make_run(binarize="dynamic")
    said, grey = [], random_images(6)
    run, binary = load(folder, say=said.append), binarize(grey, TEST_BINARIZATION_KEY)
    wanted = run.elbo(binary)
    assert said == []
    for images in (grey, grey / 255):
        np.testing.assert_array_equal(run.elbo(images), wanted)
        assert len(said) == 1
        assert said.pop().startswith("note       grey pixels are drawn black or white")
    assert (run.encode(grey)[0] != run.encode(binary)[0]).any()  # pixels are encoded as they were passed


def test_images_that_are_read_when_asked_for_are_worked_on_as_those_in_memory(make_run, monkeypatch):
    said, images = [], lazy(numbers=range(6))
    s = from_params(**TINY | {"output_dir": str(make_run()[0].parent), "run_name": "lazy", "binarize": "dynamic"})
    folder = runs.create(s, "CPU", images.shape[1:])
    checkpoints.save(checkpoints.checkpoint(main.build_vae(s, images.shape[1:])), folder, 7)
    dataset = Dataset("a test", images, np.arange(6), images, np.arange(6), "nowhere")
    monkeypatch.setattr(data, "prepare", lambda *_: dataset)
    run = load(folder, say=said.append)
    np.testing.assert_array_equal(run.encode(images), run.encode(images[:]))
    assert run.elbo(run.dataset().test_images).shape == (6,)  # they are black and white already
    assert said == []
    run.elbo(images.rows(slice(0, 3)))
    assert len(said) == 1


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros(SHAPE, np.uint8), r"the shape \(4, 2, 2\) is not allowed; \(N, 4, 2, 2\) is, with N at least 1"),
        (np.zeros((0, *SHAPE), np.uint8), r"the shape \(0, 4, 2, 2\)"),
        (np.zeros((3, 4, 2, 3), np.uint8), r"the shape \(3, 4, 2, 3\)"),
        (np.zeros((3, *SHAPE), np.int64), r"the type int64 is not allowed; uint8 \(0 to 255\) and floats in \[0, 1\]"),
        (np.full((3, *SHAPE), 255.0), r"values from 255 to 255 are not allowed; uint8"),
        (np.full((3, *SHAPE), np.nan), r"values from nan to nan"),
        (np.full((3, *SHAPE), -0.1), r"values from -0.1 to -0.1"),
    ],
)
def test_images_in_another_form_are_refused_in_a_line(make_run, images, told):
    run = load(make_run(binarize="dynamic")[0])
    for use in (run.encode, run.reconstruct, run.terms, run.elbo, run.log_likelihood):
        with pytest.raises(ValueError, match=f"^images: {told}"):
            use(images)


def test_latents_of_another_number_are_refused_and_noise_latents_count(make_run):
    run = load(make_run(noise_dim=1)[0])
    assert run.decode(run.encode(random_images(2))[0]).shape == (2, *SHAPE)
    for z in (np.zeros((3, 2)), np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(
            ValueError, match=r"^z: the shape \([03],.*\) is not allowed; \(N, 3\) is, with N at least 1$"
        ):
            run.decode(z)
    with pytest.raises(ValueError, match=r"^z: NaN and infinity are not allowed"):
        run.decode(np.full((1, 3), np.inf))


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "many"])
def test_numbers_that_count_are_whole_and_positive(make_run, value):
    run = load(make_run(binarize="dynamic")[0])
    with pytest.raises(ValueError, match=rf"^count: {value!r} is not allowed; an integer of at least 1 is$"):
        run.sample(value)
    with pytest.raises(ValueError, match=rf"^samples: {value!r} is not allowed"):
        run.log_likelihood(random_images(1), value)
    if value:
        with pytest.raises(ValueError, match=rf"^seed: {value!r} is not allowed; an integer of at least 0 is$"):
            run.sample(1, value)


def test_grey_images_need_no_channel_and_truth_values_are_brightness(tmp_path):
    s = from_params(**TINY | {"output_dir": str(tmp_path)})
    folder = runs.create(s, "CPU", (5, 4, 1))
    checkpoints.save(checkpoints.checkpoint(main.build_vae(s, (5, 4, 1))), folder, 7)
    run, ink = load(folder), np.random.default_rng(0).random((3, 5, 4)) > 0.5
    for images in (ink, np.float32(ink)[..., np.newaxis], 255 * ink.astype(np.uint8)):
        np.testing.assert_array_equal(run.encode(images), run.encode(np.float32(ink)))


def test_a_run_that_is_not_there_or_lacks_a_part_is_one_line(make_run, tmp_path):
    folder, _ = make_run()
    with pytest.raises(runs.RunError, match=rf"^run nothing: no such run in {tmp_path}; there is tiny$"):
        load("nothing", output_dir=str(tmp_path))
    with pytest.raises(runs.RunError, match="has HELD_OUT = 0, and the test images must not choose it"):
        load(folder, best=True)
    run = load("tiny", output_dir=str(tmp_path))
    assert run.folder == folder
    assert not run.is_finished
    for content, told in ((None, "has no report: it is not finished"), ("{", r"report\.json cannot be read")):
        if content:
            (folder / "report.json").write_text(content)
        with pytest.raises(runs.RunError, match=told):
            run.report  # noqa: B018 (it raises)
    (folder / "report.json").write_text(json.dumps({"test_elbo": -3.0}))
    assert run.report == {"test_elbo": -3.0}
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    assert run.settings.latent_dim == 2  # no checkpoint needed
    with pytest.raises(runs.RunError, match="has no checkpoint"):
        load(folder)


def test_files_are_read_without_tensorflow_from_another_folder(make_run, tmp_path):
    folder, _ = make_run()
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from experiments.load import Run
run = Run(Path({str(folder)!r}))
assert run.settings.latent_dim == 2 and run.history("train") == [] and run.image_shape == {SHAPE}
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
