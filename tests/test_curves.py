"""utils/curves.py: every number is drawn, in a panel with the right name."""

import numpy as np
import pytest

from tests.shared import opened
from utils import curves
from utils.settings import from_params

RAMP = {"kl_schedule": "linear", "kl_steps": 20, "kl_weight_start": 0.0, "kl_weight_end": 1.0, "autoencoder": False}
REPORT = {"kind": "likelihood", "test_elbo": -96.25, "-(loss + KL)": None, "test_reconstruction": 71.5,
          "test_nll": 92.75, "test_log_density": None, "kl_per_latent": [0.5, 2.0, 1.0]}  # fmt: skip


def history(steps, **changed):
    """Lines that fall from 1,000 to about 100; every third is followed by a test line."""
    lines = []
    for step in steps:
        numbers = {"objective": 100 + 900 / step, "reconstruction": 90 + 900 / step, "kl": step / 2}
        numbers |= {"kl_weight": min(step / 20, 1), "elbo": -90 - 900 / step - step / 2} | changed
        lines.append({"split": "train", "step": step} | numbers)
        if step % 3 == 0:
            lines.append(lines[-1] | {"split": "test", "active_units": step // 3})
    return lines


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """A function: the figure of save_curves, as its title and its panels by the first word of their titles."""

    def draw_it(lines, changed, report):
        figures = []
        monkeypatch.setattr(curves, "save_figure", lambda path, figure: figures.append(figure))
        curves.save_curves(tmp_path / "mnist-ce-z20" / "curves.png", lines, from_params(**RAMP | changed), report)
        panels = {axes.get_title("left").split(" ")[0].strip(","): axes for axes in figures[0].axes}
        return figures[0].get_suptitle(), panels

    return draw_it


def test_the_curves_are_a_picture(tmp_path):
    curves.save_curves(tmp_path / "curves.png", history(range(1, 41)), from_params(**RAMP), REPORT)
    assert opened(tmp_path / "curves.png").shape[2] in (3, 4)


def check_curves(axes, lines, name):
    curves = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    for split, before in (("train", 0.5), ("test", 0)):  # a mean over one step is drawn in its middle
        those = [line for line in lines if line["split"] == split and line.get(name) is not None]
        points = [(line["step"] - before, line[name]) for line in those]
        np.testing.assert_allclose(curves.get(split, []), points)


def test_the_curves_draw_every_number_of_the_history_and_the_elbo_first(draw):
    lines = history(range(1, 41))
    title, panels = draw(lines, {}, REPORT)
    assert list(panels) == ["ELBO", "objective", "reconstruction", "KL", "active", ""]  # the last: the weight's axis
    names = {"ELBO": "elbo", "objective": "objective", "reconstruction": "reconstruction", "active": "active_units"}
    for panel, name in names.items():
        check_curves(panels[panel], lines, name)
    ((x, weights),) = (line.get_data() for line in panels[""].get_lines())
    np.testing.assert_allclose([x, weights], [np.arange(1, 41) - 0.5, np.minimum(np.arange(1, 41) / 20, 1)])
    assert title.startswith("mnist-ce-z20: test ELBO -96.25 nats, log-likelihood -92.75")
    assert "seed" in title
    low, high = panels["objective"].get_ylim()
    assert low < 100 + 900 / 40  # the later part is visible,
    assert 100 + 900 / 2 < high < 1000  # but not the steep fall of the first twentieth


def test_the_kl_of_each_latent_is_a_bar_from_the_largest_down(draw):
    (bars,) = draw(history(range(1, 41)), {}, REPORT)[1]["KL"].patches  # this title, too, begins with KL
    heights, edges, _ = bars.get_data()
    assert (heights.tolist(), edges.tolist()) == ([2, 1, 0.5], [0.5, 1.5, 2.5, 3.5])


@pytest.mark.parametrize(
    ("changed", "end", "words"),
    [
        ({}, 20, "KL weight 0 → 1"),
        ({"kl_schedule": "cyclical", "kl_cycles": 5, "kl_weight_end": 4.0}, 20, "KL weight 0 → 4, 5 times"),
        ({"kl_steps": 50}, 40, "KL weight 0 → 1 at step 50"),  # the ramp is longer than the run
        ({"kl_schedule": "constant"}, None, None),
    ],
)
def test_the_ramp_of_the_kl_weight_is_shaded_and_named(changed, end, words, draw):
    panels = draw(history(range(1, 41)), changed, REPORT)[1]
    for name in ("ELBO", "objective", "reconstruction"):
        shades = [(shade.get_x(), shade.get_x() + shade.get_width()) for shade in panels[name].patches]
        assert shades == ([(0, end)] if end else [])
    assert [text.get_text() for text in panels["objective"].texts] == ([words] if words else [])
    assert ("may rise while" in panels["objective"].get_title("left").replace("\n", " ")) == bool(end)


def test_what_a_run_does_not_have_is_left_out_of_its_curves(draw):
    """An autoencoder: its lines have None for the KL, the weight, the ELBO and the active units."""
    lines = history(range(1, 41), kl=None, kl_weight=None, elbo=None)
    for line in lines:
        line["active_units"] = None
    nothing = REPORT | {"kind": "none", "test_elbo": None, "test_nll": None, "kl_per_latent": None}
    title, panels = draw(lines, {"autoencoder": True}, nothing)
    assert list(panels) == ["objective", "reconstruction"]
    for name, axes in panels.items():
        check_curves(axes, lines, name)
    assert title.startswith("mnist-ce-z20: test reconstruction loss 71.50 nats")
    assert "ELBO" not in title


@pytest.mark.parametrize("older", [False, True])
def test_a_loss_that_is_no_likelihood_has_no_curve_called_elbo(older, draw):
    """Older histories call it elbo and have no active units."""
    lines = history(range(1, 41))
    for line in lines:
        line.pop("active_units", None)
        if not older:
            line["-(loss + KL)"], line["elbo"] = line["elbo"], None
    no_elbo = {"kind": "none", "test_elbo": None, "-(loss + KL)": -54.25, "test_nll": None}
    title, panels = draw(lines, {"loss": "mse"}, REPORT | no_elbo)
    assert list(panels) == ["-(loss", "objective", "reconstruction", "KL", ""]
    check_curves(panels["-(loss"], lines, "elbo" if older else "-(loss + KL)")
    assert title.startswith("mnist-ce-z20: test -(loss + KL) -54.25 nats")
    assert "ELBO" not in title


def test_a_history_of_one_line_is_a_point_in_each_panel(draw):
    lines = history([1])
    panels = draw(lines, {}, REPORT)[1]
    for panel, name in {"ELBO": "elbo", "objective": "objective", "reconstruction": "reconstruction"}.items():
        check_curves(panels[panel], lines, name)
        (point,) = panels[panel].get_lines()
        assert point.get_marker() == "o"
        assert panels[panel].get_ylim()[0] < lines[0][name] < panels[panel].get_ylim()[1]
