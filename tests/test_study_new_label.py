"""experiments/new_label.py: its measures against closed forms, and a quick run of the whole."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ortho_group

from experiments import new_label
from experiments.latent import align
from experiments.study import make_study

rng = np.random.default_rng(0)


# --- measures ---------------------------------------------------------------------------------------------------------
def test_drift_is_relative_to_the_distance_from_the_origin():
    before = rng.normal(size=(50, 4))
    assert new_label.drift(before, before) == 0
    assert new_label.drift(before, 0 * before) == pytest.approx(1)
    assert new_label.drift(before, 1.5 * before) == pytest.approx(0.5)
    assert new_label.drift(10 * before, 5 * before) == pytest.approx(0.5)


def test_a_turn_and_a_mirror_of_the_whole_space_are_no_drift():
    before = rng.normal(size=(50, 4))
    turned = before @ ortho_group.rvs(4, random_state=1) * [1, 1, 1, -1]
    assert new_label.drift(before, turned) > 0.5
    assert new_label.drift(before, align(turned, before)) == pytest.approx(0, abs=1e-7)


def test_separation_is_the_distance_of_the_means_in_standard_deviations_along_their_line():
    """Means 6 apart; along the line, means and posteriors together have variances 4 and 9; across it, huge ones."""
    points = rng.normal(size=(1_000, 2))
    points = (points - points.mean(axis=0)) / points.std(axis=0)
    a = points * [np.sqrt(3), 100], np.log(np.full((1_000, 2), 1.0))  # 3 + 1 = 4
    b = points * [2, 50] + [6, 0], np.log(np.full((1_000, 2), np.sqrt(5)))  # 4 + 5 = 9
    expected = 6 / np.sqrt((4 + 9) / 2)
    assert new_label.separation(a, b) == pytest.approx(expected)
    assert new_label.separation(b, a) == pytest.approx(expected)
    turn = ortho_group.rvs(2, random_state=2)  # a turn changes nothing, if posteriors are round as here
    assert new_label.separation((a[0] @ turn, a[1]), (b[0] @ turn, b[1])) == pytest.approx(expected)
    assert new_label.separation(a, a) == 0


@pytest.mark.parametrize(("start", "end"), [(-300, -100), (0, 0.4), (50, 20)])
def test_the_time_constant_of_an_exponential_is_its_own(start, end):
    steps = np.arange(0, 2_001)
    values = end + (start - end) * np.exp(-steps / 80)
    assert new_label.time_constant(steps, values) == pytest.approx(80, abs=0.01)


def test_the_time_constant_is_interpolated_and_the_first_crossing():
    steps = np.array([0, 100, 300, 1_000])
    assert new_label.time_constant(steps, np.array([0.0, 2.0, 1.5, 1.0])) == pytest.approx(50 * new_label.COVERED)
    there_and_back = np.array([*[0.0] * 5, 0.8, *[0.1] * 10, 1.0])
    assert new_label.time_constant(np.arange(17), there_and_back) == pytest.approx(4 + new_label.COVERED / 0.8)
    reached = 100 + 200 * (new_label.COVERED - 0.5) / 0.5
    assert new_label.time_constant(steps, np.array([0.0, 0.5, 1.0, 1.0])) == pytest.approx(reached)


def watched(step_elbo, shift):
    """Three points of each digit: a unit triangle around a place of its own, along the first of two latents."""
    triangle = np.array([[0, 1], [np.sqrt(3) / 2, -0.5], [-np.sqrt(3) / 2, -0.5]])
    places = np.repeat([[0, 0], [4, 0], [shift, 0]], 3, axis=0)
    labels = np.repeat(np.array([1, 7, 8]), 3)
    return {"z_mean": np.tile(triangle, (3, 1)) + places, "z_log_std": np.full((9, 2), -50.0),
            "elbo": np.asarray(step_elbo, float)[np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])], "labels": labels}  # fmt: skip


def test_measures_tell_old_digits_from_the_new():
    over_steps = {0: watched((-80, -100, -300), 2), 10: watched((-90, -104, -150), 10)}
    measures = new_label.measure(over_steps, (1, 7, 8))
    np.testing.assert_allclose(measures["new_elbo"], [-300, -150])
    np.testing.assert_allclose(measures["old_change"], [0, -7])
    np.testing.assert_allclose(measures["drift"], 0, atol=1e-7)  # only the new digit moved
    # Variance along the line 1/2: distances 4, 2 and 2, then 4, 10 and 6, in units of its root.
    np.testing.assert_allclose(measures["distances"], np.sqrt(2) * np.array([[4, 4], [2, 10], [2, 6]]), rtol=1e-6)


def test_the_two_old_digits_serve_as_control_and_have_no_time_constant_in_the_table(tmp_path):
    assert new_label.going_on_with((1, 7, 8), control=False) == {new_label.TOGETHER: (1, 7, 8), new_label.ALONE: (8,)}
    ways = new_label.going_on_with((1, 7, 8), control=True)
    assert ways[new_label.OLD] == (1, 7)
    steps = np.array([0, 10, 100])
    ramp = np.array([0.0, 1.0, 2.0])
    measures = {name: ramp for name in ("new_elbo", "old_change", "drift", "drift_with_turn")}
    curves = {way: [measures | {"distances": np.array([ramp, ramp, ramp])}] * 2 for way in ways}
    rows = new_label.table_of({"1, 7 + 8": {w: new_label.summarise(steps, c) for w, c in curves.items()}}, {})
    cells = [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows.splitlines()[2:]]
    assert {way: times for way, _, _, times, *_ in cells} == {
        new_label.TOGETHER: "34", new_label.ALONE: "34", new_label.OLD: ""
    }  # fmt: skip
    new_label.save_curves(make_study("new_label", images=tmp_path, quick=True), steps, {(1, 7, 8): curves})
    assert (tmp_path / "new_label_curves.png").stat().st_size > 10_000


# --- the whole --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_quick_run_learns_the_new_digit_and_forgets_the_old_without_them(run_quick):
    folder, numbers = run_quick(new_label)
    ways = numbers["trios"]["1, 7 + 8"]
    together, alone = ways[new_label.TOGETHER], ways[new_label.ALONE]
    assert together["new_elbo_before"] == alone["new_elbo_before"]  # both start from the same base
    for way in (together, alone):
        assert way["new_elbo_after"]["mean"] > way["new_elbo_before"]["mean"] + 30
        assert way["curves"]["drift"][0] == pytest.approx(0, abs=1e-5)
        assert 0 < way["new_elbo_steps"]["mean"] < numbers["steps"][-1]
        assert way["drift_with_turn_after"]["mean"] >= way["drift_after"]["mean"] > 0
        assert len(way["curves"]["new_elbo"]) == len(numbers["steps"])
    assert alone["old_change_after"]["mean"] < together["old_change_after"]["mean"] - 20

    with Image.open(folder / "new_label.gif") as film:
        assert film.n_frames == len(numbers["steps"])
        assert film.width <= 1_100
    with Image.open(folder / "new_label_curves.png") as figure:
        figure.load()
        assert figure.width <= 1_100


def test_what_is_watched_are_held_out_images_of_all_three_digits():
    images, labels = new_label.held_out("mnist", "~/.cache/vae", (4, 9, 0))
    np.testing.assert_array_equal(labels, np.repeat([4, 9, 0], new_label.HELD_OUT))
    assert images.shape == (3 * new_label.HELD_OUT, 28, 28, 1)
    assert set(np.unique(images)) == {0, 255}
