"""experiments/noise_latents.py: its measures against closed forms, and a quick run of the whole."""

import numpy as np
import pytest
from PIL import Image

import main
from experiments import noise_latents

rng = np.random.default_rng(0)


# --- measures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 3.0])
def test_the_share_of_a_linear_decoder_is_known(weight):
    """y = A z + weight * B e: by independence the noise's part of the variance is weight^2 |B|^2 of the whole."""
    a, b = rng.normal(size=(2, 5)), weight * rng.normal(size=(3, 5))
    z, e = rng.normal(size=(20_000, 1, 2)), rng.normal(size=(20_000, 4, 3))
    share = noise_latents.noise_share(z @ a + e @ b)
    assert share == pytest.approx((b**2).sum() / ((a**2).sum() + (b**2).sum()), abs=0.01)


def test_the_share_is_unbiased_with_as_few_as_two_draws():
    """Only noise: if the noise stayed in the means, z would seem to explain a third of the variance."""
    assert noise_latents.noise_share(rng.normal(size=(20_000, 2, 3))) == pytest.approx(1, abs=0.02)
    assert noise_latents.noise_share(np.repeat(rng.normal(size=(100, 1, 3)), 5, axis=1)) == pytest.approx(0, abs=1e-12)


def test_the_share_of_a_nonlinear_decoder_follows_the_law_of_total_variance():
    """y = z e: its mean given z is 0, so all of its variance comes from the noise."""
    z, e = rng.normal(size=(50_000, 1, 1)), rng.normal(size=(50_000, 8, 1))
    assert noise_latents.noise_share(z * e) == pytest.approx(1, abs=0.02)
    assert noise_latents.noise_share(z * (1 + e)) == pytest.approx(0.5, abs=0.02)


def test_the_cost_of_noise_is_jensens_gap():
    """White pixels with logits +a and -a in turn cost mean softplus; with their mean, 0, they cost log 2."""
    a = 3.0
    logits = np.array([[[a, a], [-a, -a]], [[a, a], [a, a]]], np.float32)  # (2 images, 2 draws, 2 pixels)
    gap = (np.log1p(np.exp(-a)) + np.log1p(np.exp(a))) / 2 - np.log(2)
    cost = noise_latents.noise_cost(np.ones((2, 2), np.float32), logits)
    np.testing.assert_allclose(cost, [2 * gap, 0], atol=1e-6)


def test_no_use_of_noise_is_free():
    x = rng.integers(0, 2, (200, 6)).astype(np.float32)
    assert (noise_latents.noise_cost(x, rng.normal(0, 5, (200, 7, 6)).astype(np.float32)) > 0).all()


def test_rows_norm_is_the_rms_length_of_the_inputs_weights():
    assert noise_latents.rows_norm(np.array([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(5 / np.sqrt(2))


def test_every_z_is_decoded_with_noise_of_its_own():
    """A decoder whose first pixels are its inputs: z is kept along a row, and no draw of noise occurs twice."""
    import keras

    decoder = keras.Sequential([keras.Input((5,)), keras.layers.Reshape((5, 1, 1))])
    z = rng.normal(size=(4, 2)).astype(np.float32)
    logits = noise_latents.logits_under_noise(main.VAE(None, decoder, None, None), z, draws=6, seed=3)
    assert logits.shape == (4, 6, 5)
    np.testing.assert_array_equal(logits[:, :, :2], np.repeat(z[:, np.newaxis], 6, axis=1))
    assert len(np.unique(logits[:, :, 2:])) == 4 * 6 * 3


# --- the whole --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_quick_run_finds_that_the_noise_is_unlearned(run_quick):
    folder, numbers = run_quick(noise_latents)
    assert list(numbers["cases"]) == [f"{size} latents, {noise} of noise" for size in (1, 2) for noise in (0, 8)]
    for size in (1, 2):
        without, noisy = (numbers["cases"][f"{size} latents, {noise} of noise"] for noise in (0, 8))
        assert "noise_share" not in without
        by_step = [share["mean"] for share in numbers["noise_share_by_step"][f"{size} latents"].values()]
        assert by_step[0] > 0.4  # eight noise latents affect an untrained decoder more than one or two latents do
        assert by_step[-1] == noisy["noise_share"]["mean"]
        assert 0 < by_step[-1] < by_step[0] / 2
        assert noisy["noise_cost"]["mean"] > 0
        for case in (without, noisy):
            assert -case["elbo"]["mean"] > case["nll"]["mean"]  # the ELBO is the looser bound
            assert 0 <= case["sure"]["mean"] <= 1

    for name in ("noise_latents.png", "noise_latents_grid.png"):
        with Image.open(folder / name) as figure:
            figure.load()
            assert figure.width <= 1_100
