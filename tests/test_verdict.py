"""utils/verdict.py: for each verdict a history that gets it, and one close to it that does not."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import main
from tests.reference_runs import CONVOLUTIONS, SHORT, command_line, draw_folder
from utils import report, verdict
from utils.settings import from_params, read_command_line

CONSTANT = {"kl_schedule": "constant"}  # so that all lines are comparable
DENSITY = {"loss": "mse", "decoder_scale": "learned", "binarize": "none"}


def history(train, test=None, log_every=25, epoch=100):
    """Lines of training objectives, one every `log_every` steps, and of test objectives, one per epoch of 100 steps.

    A number in `train` stands for a whole epoch, a list for the lines of one.
    """
    lines = []
    for number, values in enumerate(train):
        values = [values] * (epoch // log_every) if np.ndim(values) == 0 else values
        for place, value in enumerate(values, 1):
            step = number * epoch + min(place * log_every, epoch)
            lines.append({"split": "train", "step": step, "objective": float(value), "kl_weight": 0.5})
        tested = values[-1] if test is None else test[number]
        step = (number + 1) * epoch
        lines.append({"split": "test", "step": step, "objective": float(tested), "kl_weight": 0.5})
    return lines


def judged(lines, active=3, beta=1.0, kl=20.0, **changes):
    """The verdict on a made-up history."""
    settings = from_params(**CONSTANT | changes)
    found = verdict.judge(settings, {"active_units": active, "effective_beta": beta, "test_kl": kl}, lines)
    assert found["healthy"] == {"healthy": True, "unhealthy": False, "not finished": None}[found["verdict"]]
    return found


def said(found):
    """The verdict, and the first word of each problem or reason."""
    return found["verdict"], *(sentence.split()[0].strip(":") for sentence in found["problems"] + found["unfinished"])


FALLING = history([130, 110, 105, 104.9])
NOISE = np.random.default_rng(0).normal(0, 2.3, (20, 100))  # of the ELBO of single batches of 128 digits


# --- healthy ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "changes"),
    [
        (FALLING, {}),
        (history([130, 110, 100, 100], [131, 104, 103, 104]), {}),  # wavers within 2 percent
        (history([50, 80, 100, 100]), {"kl_schedule": "linear", "kl_steps": 200}),  # rose with the KL weight only
        (history([[50, 60, 70, 75], [80, 90, 101, 100], 100]), {"kl_schedule": "linear", "kl_steps": 170}),
        (history([-1000, -1010, -1010]), DENSITY),
        (history([[900, 500, 200, 100], [10, 0, -5, -10], [-12, -13, -14, -14]]), DENSITY),
        (history([0.30, 0.271, 0.27], [0.29, 0.27, 0.272]), {}),  # means over pixels
        (history(100 - np.arange(20)[:, np.newaxis] / 10 + NOISE, [100] * 20, log_every=1), {}),
    ],
    ids=["falling", "wavering", "ramp", "a line astride the ramp's end", "density", "through 0", "pixels", "noise"],
)
def test_a_healthy_run_is_called_healthy(lines, changes):
    assert said(judged(lines, **changes)) == ("healthy",)


# --- unhealthy --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("active", "kl", "changes", "verdict"),
    [
        (0, 0.2, {}, ("unhealthy", "Posterior")),
        (1, 0.02, {}, ("unhealthy", "Posterior")),  # for all latents together, as with KL_WEIGHT_END = 50
        (1, 0.2, {}, ("healthy",)),
        (0, 20, {"prior": "realnvp"}, ("healthy",)),  # the scale of its latents is free
        (0, 0.02, {"prior": "realnvp"}, ("unhealthy", "Posterior")),
    ],
)
def test_a_collapse_is_no_active_latent_or_next_to_no_kl(active, kl, changes, verdict):
    assert said(judged(FALLING, active, kl=kl, **changes)) == verdict


def test_the_plain_autoencoder_cannot_collapse():
    found = judged(FALLING, active=None, beta=None, kl=None, autoencoder=True)
    assert said(found) == ("healthy",)


def test_a_run_that_has_just_begun_is_not_called_collapsed():
    assert said(judged(history([[300, 200, 180, 140]]), active=0)) == ("not finished", "the")


@pytest.mark.parametrize(
    ("reduction", "beta", "words"),
    [("mean", 784.0, "of 784;"), ("mean", 78.4, "of 78.4;"), ("mean", 9.9, None), ("sum", 20.0, None)],
)
def test_a_mean_over_pixels_that_the_kl_outweighs_is_unhealthy(reduction, beta, words):
    found = judged(FALLING, beta=beta, reconstruction_reduction=reduction)
    assert found["verdict"] == ("unhealthy" if words else "healthy")
    if words:
        assert words in found["problems"][0]
        assert "RECONSTRUCTION_REDUCTION = sum" in found["problems"][0]


STEADY = [[100, 103, 106.1, 109.3, 112.6, 115.9]]  # 3 percent per line


@pytest.mark.parametrize(
    ("train", "changes", "diverges"),
    [
        ([130, 100, 103], {}, True),
        ([130, 100, 101.9], {}, False),  # less than 2 percent
        ([-1000, -1100, -1000], DENSITY, True),
        ([900, [300, 200, 100, 100], [101, 103, 110, 120]], {}, True),
        (STEADY, {}, True),
        ([[150, 150, 1500]], {}, True),  # three lines do not show their noise, but this is none
        ([[150, 150, 170]], {}, False),
        ([50, 100, 103], {"kl_schedule": "linear", "kl_steps": 100}, True),  # lines before the ramp's end do not count
        ([50, [60, 70, 80, 90], 103], {"kl_schedule": "linear", "kl_steps": 200}, False),  # the weight rose
        ([[195, 170, 150, 145, 160]], {"kl_schedule": "cyclical", "kl_steps": 80}, False),  # lines of full cycles
    ],
)
def test_a_training_objective_that_rises_at_one_weight_diverges(train, changes, diverges):
    per_epoch = len(train[0]) if len(train) == 1 else 4
    found = judged(history(train, log_every=-(-100 // per_epoch)), **changes)
    assert any("Diverging" in sentence for sentence in found["problems"]) == diverges
    if diverges:
        assert said(found) == ("unhealthy", "Diverging")  # one sentence for one problem


def test_a_few_lines_that_rise_diverge_only_beside_the_tests():
    rising = [100, 103, 106.1, 109.3]
    assert said(judged(history(rising, log_every=100))) == ("unhealthy", "Diverging")
    assert said(judged(history(rising, [100] * 4, log_every=100))) == ("healthy",)


def test_the_noise_of_small_batches_is_hardly_ever_taken_for_a_divergence():
    rng = np.random.default_rng(1)
    runs = [history([*rng.normal(100, 10, (3, 4))], [100, 100, 100]) for _ in range(300)]
    found = [said(judged(lines)) for lines in runs]
    assert sum("Diverging" in words for words in found) <= 3
    assert sum(np.mean([line["objective"] for line in lines[-5:]]) > 102 for lines in runs) > 50  # without that care


@pytest.mark.parametrize(
    ("train", "test", "overfits"),
    [
        ([130, 100, 98], [111, 104, 107], True),
        ([130, 100, 98], [111, 104, 106], False),  # less than 2 percent
        ([130, 100, [99, 98, 80, 70]], [111, 104, 120], True),  # it falls fast, but more training would be worse
        ([130, 100, 95, 90], [111, 100, 110, 108], True),  # the last epoch was better than the one before
    ],
)
def test_a_test_objective_that_rises_while_that_of_training_does_not_overfits(train, test, overfits):
    found = judged(history(train, test))
    assert said(found) == (("unhealthy", "Overfitting") if overfits else ("healthy",))
    assert not any("More EPOCHS" in sentence for sentence in found["unfinished"] + found["remarks"])


# --- not finished -----------------------------------------------------------------------------------------------------
def test_a_ramp_that_was_cut_short_is_not_finished():
    ramp = {"kl_schedule": "sigmoid", "kl_weight_end": 0.7}
    short = judged(history([50, 60, 70]), **ramp, kl_steps=301)
    assert said(short) == ("not finished", "it")
    assert short["unfinished"] == [
        "it ended at step 300 of the 301 that the KL weight takes to reach KL_WEIGHT_END. More EPOCHS, or a new "
        "run with fewer KL_STEPS."
    ]
    assert said(judged(history([50, 60, 70, 70]), **ramp, kl_steps=300)) == ("healthy",)
    assert "0 steps at the final KL weight" in judged(history([50, 60, 70]), **ramp, kl_steps=300)["unfinished"][0]


@pytest.mark.parametrize(
    ("train", "test", "log_every", "words"),
    [
        ([[400, 300, 200, 150]], [140], 25, "the training objective still fell by 25% within the last 50 steps"),
        ([[400, 300, 151, 150]], [140], 25, None),  # of a single epoch, only what comes after its first third
        ([[400, 300, 151, 150, 120]], [140], 24, None),  # a last line of four steps is joined with the one before
        ([[220, 220, 200, 190], [180, 170, 160, 150]], [190, 150], 25, "the test objective still fell by 21% within"),
        ([200, 150], [106, 101], 100, None),
        ([200, 150], [107, 101], 100, "the test objective still fell by 6% within the last epoch"),
        ([200], [200], 100, "100 steps, with 1 line of the history, are too few to judge"),
        ([[2e9, 1e9], [1e8, 1e2]], [1e9, 10], 50, "the test objective still fell by 100%"),
    ],
)
def test_an_objective_that_falls_fast_or_too_few_lines_are_not_finished(train, test, log_every, words):
    found = judged(history(train, test, log_every=log_every))
    assert found["verdict"] == ("not finished" if words else "healthy")
    assert [words in sentence for sentence in found["unfinished"]] == [True] * bool(words)


def test_a_run_that_logs_rarely_is_judged_by_its_tests():
    tests = history([130, 110, 105, 104.9], log_every=100)
    rarely = [line for line in tests if line["split"] == "test" or line["step"] == 400]
    assert said(judged(rarely)) == ("healthy",)
    assert said(judged(rarely, active=0)) == ("unhealthy", "Posterior")


def test_noise_alone_is_hardly_ever_taken_for_a_fall():
    rng = np.random.default_rng(2)
    runs = [history([rng.normal(100, 20, 100)], [100], log_every=1) for _ in range(300)]
    assert sum(judged(lines)["verdict"] == "not finished" for lines in runs) <= 15  # a fall by 5 is a standard error


def test_epochs_of_a_few_steps_are_judged_by_the_last_tenth_of_the_run():
    slowing, speeding = 100 + 100 / np.arange(1, 101), 2000 - np.arange(100) ** 1.5
    found = [judged(history([[value] for value in values], log_every=2, epoch=2)) for values in (slowing, speeding)]
    assert said(found[0]) == ("healthy",)
    assert "within the last 10 epochs" in found[1]["unfinished"][0]


def test_a_density_of_black_and_white_pixels_is_not_asked_for_more_epochs():
    lines = history([[900, 500, 200, 100], [-100, -400, -600, -900]])
    grows = judged(lines, **DENSITY | {"binarize": "dynamic"})
    assert (said(grows), "More EPOCHS" in str(grows)) == (("healthy",), False)
    assert said(judged(lines, **DENSITY))[0] == "not finished"


# --- remarks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([110, 105, 100], [111, 105, 100], "the test objective fell by 5 within the last epoch."),
        ([110, 105, 100], [111, 105, 104.9], None),  # less than half a percent
        ([110, 105, 100], [111, 105, 106], None),
        ([110, 105, 100], [100, 101.5, 100.7], None),  # it was better before
        ([[105, 104, 103, 101]], [101], "the training objective fell by 2 within the last 50 steps."),
        ([[120, 110, 101.2, 101]], [101], None),
    ],
)
def test_a_run_that_still_learns_is_remarked(train, test, words):
    found = judged(history(train, test))
    assert said(found) == ("healthy",)
    assert found["remarks"] == ([f"Still learning: {words} More EPOCHS help."] if words else [])


OBJECTIVES = st.lists(st.floats(-500, 500), min_size=4, max_size=4)
CHANGED = (  # advice on a run's health
    "(More|Fewer) EPOCHS", "lower LEARNING_RATE", "lower KL_WEIGHT_END", "fewer KL_STEPS", "smaller LOG_EVERY",
    "RECONSTRUCTION_REDUCTION = sum", "--best",
)  # fmt: skip


@given(
    st.lists(st.tuples(OBJECTIVES, st.floats(-500, 500)), min_size=1, max_size=6),
    st.integers(0, 2),
    st.fixed_dictionaries(
        {
            "loss": st.sampled_from(["ce", "mse", "logistic"]),
            "decoder_scale": st.sampled_from(["fixed", "learned"]),
            "binarize": st.sampled_from(["dynamic", "none"]),
            "kl_schedule": st.sampled_from(["constant", "linear"]),
            "kl_steps": st.sampled_from([100, 1_000]),
            "kl_weight_end": st.sampled_from([0.0, 1.0, 20.0]),
            "reconstruction_reduction": st.sampled_from(["sum", "mean"]),
            "held_out": st.sampled_from([0, 100]),
        }
    ),
    st.sampled_from([1, 3]),
)
def test_no_report_contradicts_itself_and_what_to_change_for_its_health_is_said_once(epochs, active, changes, channels):
    learned = {"ce": "fixed", "logistic": "learned"}.get(changes["loss"], changes["decoder_scale"])
    s = from_params(latent_dim=3, **changes | {"decoder_scale": learned})
    lines = history([train for train, _ in epochs], [test for _, test in epochs])
    numbers = {"active_units": active, "test_kl": 20.0, "effective_beta": report.effective_beta(s, 784)}
    numbers["best"] = {"epoch": 1} if s.held_out else None
    found = verdict.judge(s, numbers, lines)
    sentences = [*found["problems"], *found["unfinished"], *found["remarks"]]
    for_its_health = [sentence for sentence in sentences if re.search("|".join(CHANGED), sentence)]
    assert len(for_its_health) <= 1
    reasons = found["problems"] + found["unfinished"]
    assert not reasons or for_its_health or reasons[0].startswith("Posterior collapse")
    assert (found["verdict"] == "unhealthy") == bool(found["problems"])
    assert (found["verdict"] == "healthy") == (not found["problems"] and not found["unfinished"])

    everything = " ".join([*report.doubts(s, len(epochs) * 100, channels), *sentences])
    assert not ("More EPOCHS" in everything and "Fewer EPOCHS" in everything)
    for name in ("BINARIZE", "LOSS", "DECODER_SCALE"):  # the same advice before a run and after it
        assert len(set(re.findall(rf"{name} = (\w+) (?:makes|keeps|with|has)", everything))) <= 1


# --- real runs --------------------------------------------------------------------------------------------------------
ONES = SHORT | {"kl-steps": "0", "nll-samples": "2", "images-every": "100", "epochs": "6"}  # 62 steps an epoch
TINY_FOLDER = ONES | {
    "dataset": "folder", "labels": "none", "held-out": "0", "image-size": "16", "batch-size": "10", "log-every": "10",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """36 training and 12 test images of three digits."""
    folder = tmp_path_factory.mktemp("images")
    draw_folder(folder / "all")
    for split, count in (("train", 12), ("test", 4)):
        for label in "017":
            (folder / split / label).mkdir(parents=True)
            for path in sorted((folder / "all" / split / label).iterdir())[:count]:
                shutil.copy(path, folder / split / label)
    shutil.rmtree(folder / "all")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        (ONES, "healthy"),
        (ONES | {"epochs": "1"}, "not finished: the training objective still fell"),
        (ONES | {"kl-steps": "1000"}, "not finished: it ended at step 372 of the 1,000"),
        (ONES | {"kl-schedule": "cyclical"}, "healthy"),
        (ONES | CONVOLUTIONS, "healthy"),
        (ONES | {"autoencoder": True}, "healthy"),
        (ONES | {"loss": "mse"}, "healthy"),
        (ONES | {"loss": "mse", "binarize": "none", "decoder-scale": "learned"}, "healthy"),
        (ONES | {"bound": "iwae", "bound-samples": "4"}, "healthy"),
        (ONES | {"prior": "vampprior", "prior-components": "20"}, "healthy"),
        (ONES | {"latent-dim": "2"}, "healthy"),
        (ONES | {"reconstruction-reduction": "mean"}, "unhealthy: Posterior collapse"),
        (ONES | {"kl-weight-end": "50"}, "unhealthy: Posterior collapse"),
        (TINY_FOLDER | {"epochs": "1"}, "not finished: 2 steps at the final KL weight, with no lines of"),
        (TINY_FOLDER | {"epochs": "40"}, "healthy"),
    ],
    ids=[
        "one label", "one epoch", "long ramp", "cyclical", "conv", "autoencoder", "mse", "learned scale", "IWAE",
        "VampPrior", "two latents", "mean over pixels", "beta 50", "tiny, short", "tiny",
    ],
)  # fmt: skip
def test_a_real_run_gets_the_verdict_that_it_earns(constants, expected, tiny_folder, tmp_path, capsys):
    assert main.main(read_command_line(command_line(constants, tiny_folder, tmp_path))) == 0
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "report.json").read_text())
    reasons = [f": {sentence}" for sentence in (found["problems"] + found["unfinished"])[:1]]
    assert f"{found['verdict']}{''.join(reasons)}".startswith(expected)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    elbo = constants["loss"] == "ce" or constants["decoder-scale"] == "learned"
    for line in lines:
        assert (line["elbo"] is not None) == (elbo and not constants["autoencoder"])
        assert ("-(loss + KL)" in line) == (not elbo)
    console = capsys.readouterr()
    assert ("ELBO" in console.err) == (elbo and not constants["autoencoder"])
    assert ("-(loss + KL)" in console.err) == (not elbo)
