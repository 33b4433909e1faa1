"""experiments/loss_claims.py: its measures against closed forms, and a quick run of the whole."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from experiments import loss_claims
from experiments.results import ANALYSIS, with_tables
from experiments.study import BASE
from utils.settings import from_params

rng = np.random.default_rng(0)


def bar(width: int, length: int, brightness: int = 255) -> np.ndarray:
    """An image (1, 28, 28, 1) of an upright bar."""
    image = np.zeros((1, 28, 28, 1), np.uint8)
    image[:, 2 : 2 + length, 5 : 5 + width] = brightness
    return image


# --- shifted images ---------------------------------------------------------------------------------------------------
def test_an_image_moves_down_and_right():
    image = bar(1, 1)
    assert np.argwhere(loss_claims.moved(image, 1, 0)[0, ..., 0]).tolist() == [[3, 5]]
    assert np.argwhere(loss_claims.moved(image, 0, -1)[0, ..., 0]).tolist() == [[2, 4]]


def test_a_blurred_image_has_the_error_asked_for():
    x = np.concatenate([bar(3, 20), bar(5, 12)]) / 255
    error = np.array([4.0, 15.0])
    blurred = loss_claims.blurred_as_wrong(x, error)
    np.testing.assert_allclose(np.square(blurred - x).sum(axis=(1, 2, 3)), error, rtol=1e-4)
    np.testing.assert_allclose(blurred.sum(axis=(1, 2, 3)), x.sum(axis=(1, 2, 3)), rtol=1e-3)  # ink is spread, not lost


def test_what_no_blur_reaches_is_not_a_number():
    x = bar(3, 20) / 255
    assert np.isnan(loss_claims.blurred_as_wrong(x, np.array([np.square(x).sum() * 2]))).all()


def test_the_losses_of_a_moved_bar_are_known():
    """A black-and-white bar of length 20, moved to the right by a pixel, is wrong by 1 in 40 pixels."""
    x = bar(3, 20) / 255
    found = loss_claims.costs(x, loss_claims.moved(x, 0, 1))
    certain = 1 - loss_claims.NEAREST_TO_CERTAIN
    assert found["mse"] == pytest.approx([40], rel=1e-4)
    assert found["ad"] == pytest.approx([40], rel=1e-4)
    assert found["ce"] == pytest.approx([40 * np.log(certain / (1 - certain))], rel=1e-4)


def test_of_errors_with_one_square_a_spread_one_costs_ad_more():
    """An error of 1 in one pixel and errors of 1/2 in four have the same square; the absolute difference doubles."""
    x = np.zeros((1, 28, 28, 1))
    one, spread = x.copy(), x.copy()
    one[0, 5, 5], spread[0, 5, 5:9] = 1, 0.5
    at_once, in_parts = loss_claims.costs(x, one), loss_claims.costs(x, spread)
    assert at_once["mse"] == pytest.approx(in_parts["mse"], rel=1e-4)
    assert in_parts["ad"] == pytest.approx(2 * at_once["ad"], rel=1e-3)
    assert in_parts["ce"] < at_once["ce"]


def test_what_is_trained_to_draw_pays_for_its_kl_and_draws_the_target():
    """Trained on two bars, the code separates them for a few nats; a heavy KL weight makes q(z|x) the prior."""
    images = np.concatenate([bar(8, 20), bar(8, 8)] * 100)
    kl, drawn = {}, {}
    for weight in (1.0, 1_000.0):
        s = from_params(**BASE | loss_claims.GREY | {
            "loss": "ce", "kl_schedule": "constant", "kl_weight_end": weight, "encoder_layers": (16,),
            "decoder_layers": (16,), "latent_dim": 2, "batch_size": 10, "epochs": 40, "learning_rate": 3e-3,
        })  # fmt: skip
        vae = loss_claims.train_to_draw(s, images, 0, "bars")
        z_mean, z_log_std = loss_claims.latent.encode(vae.encoder, images[:2])
        kl[weight] = float(np.mean(loss_claims.main.kl_to_standard_normal(z_mean, z_log_std)))
        drawn[weight] = loss_claims.main.reconstruct(vae, images[:2])
    assert kl[1_000.0] < 0.01 < 1 < kl[1.0]
    apart = {weight: np.square(one - other).sum() for weight, (one, other) in drawn.items()}
    assert apart[1_000.0] < 1
    assert apart[1.0] == pytest.approx(8 * 12, rel=0.2)  # the pixels that only the long bar has


# --- steps ------------------------------------------------------------------------------------------------------------
def test_the_step_of_a_share_lies_between_those_watched():
    watched = {0: {"read": 0.1}, 100: {"read": 0.7}, 200: {"read": 0.9}, 300: {"read": 0.85}}
    run = SimpleNamespace(watched=lambda: watched)
    assert loss_claims.steps_until(run, 0.8) == pytest.approx(150)
    assert loss_claims.steps_until(run, 0.7) == pytest.approx(100)
    assert loss_claims.steps_until(run, 0.95) is None
    assert loss_claims.reached([100.0, 110.0, None]) == "105 ± 7, 2 of 3 seeds"
    assert loss_claims.reached([None, None, None]) == "not reached"


# --- thickness --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("brightness", [80, 255])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_thickness_of_a_long_bar_is_its_width(width, brightness):
    """2 w l / 2 (w + l); the one corner where both gradients meet is cut, by 2 - sqrt(2)."""
    length = 24
    outline = 2 * (width + length) - (2 - np.sqrt(2))
    assert loss_claims.thickness(bar(width, length, brightness))[0] == pytest.approx(2 * width * length / outline)


def test_the_thirds_are_sorted_by_thickness():
    images = np.concatenate([bar(width, 20) for width in (6, 1, 3, 2, 5, 4)])
    groups = loss_claims.by_thickness(images)
    widths = {name: sorted((group[:, 10, :, 0] > 0).sum(axis=1).tolist()) for name, group in groups.items()}
    assert list(widths.values()) == [[1, 2, 3, 4, 5, 6], [1, 2], [3, 4], [5, 6]]


# --- apart ------------------------------------------------------------------------------------------------------------
def test_digits_that_the_code_names_are_apart_and_a_code_of_noise_tells_nothing():
    """An encoder that sees one pixel, which is bright for zeros, with little noise in z and with much."""
    labels = rng.integers(0, 3, 2_000)
    images = np.zeros((2_000, 2, 2, 1), np.uint8)
    images[labels == 0] = 255
    dataset = SimpleNamespace(test_images=images, test_labels=labels)
    for log_std, zeros, others in ((-3.0, 1.0, 0.75), (6.0, 0.5, 0.5)):  # ones and twos are separated by chance

        def encoder(x, log_std=log_std):
            z_mean = np.tile(np.asarray(x)[:, 0, 0], (1, 2)).astype(np.float32)
            return z_mean, np.full_like(z_mean, log_std)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss_claims.latent, "encode", lambda encoder, images: encoder(images / np.float32(255)))
            found = loss_claims.apart(SimpleNamespace(encoder=encoder), from_params(**BASE), dataset)["apart"]
        assert found[0] == pytest.approx(zeros, abs=0.05)
        assert found[1:] == pytest.approx([others, others], abs=0.05)


def test_a_digit_is_apart_up_to_the_last_weight_at_which_it_is_told():
    settings = from_params(**BASE | {"kl_steps": 100, "kl_weight_end": 1.0})
    areas = {0: [0.5, 0.5], 50: [0.95, 0.8], 80: [0.91, 0.85], 90: [0.6, 0.6]}
    run = SimpleNamespace(settings=settings, watched=lambda: {s: {"apart": np.array(a)} for s, a in areas.items()})
    assert loss_claims.last_apart(run) == pytest.approx([0.8, 0])


# --- the whole --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_quick_run_measures_all_four(run_quick):
    folder, numbers = run_quick(loss_claims)
    with_tables(ANALYSIS.read_text(), numbers["tables"])  # each table has its place
    assert numbers["shifted"]["mse"]["ratio"] == pytest.approx(1, abs=1e-3)  # by construction
    assert numbers["shifted"]["ad"]["ratio"] < 0.9
    as_they_are, at_random = (numbers["targets"][f"mse moved {most}"] for most in (0, 1))
    assert at_random["mse"]["mean"] > as_they_are["mse"]["mean"]
    steps = numbers["steps"]["sum linear mse"]["80%"]
    assert len(steps) == 1
    assert 0 < steps[0] < 260
    thirds = [numbers["nine"][name]["thickness"]["mean"] for name in loss_claims.THIRDS]
    assert thirds == sorted(thirds)
    assert min(numbers["zeros"]["mse"][0]) > 0
    for name in ("shifted", "steps", "nine", "zeros"):
        with Image.open(folder / f"loss_claims_{name}.png") as figure:
            figure.load()
            assert figure.width <= 1_400
