"""utils/plots.py: every number of the history is drawn."""

import numpy as np
import pytest

from tests.shared import opened
from utils import plots


def history(steps, autoencoder=False):
    """Lines that fall from 1,000 to about 100; every third is followed by a test line."""
    lines = []
    for step in steps:
        numbers = {"objective": 100 + 900 / step, "reconstruction": 90 + 900 / step, "kl": step / 2, "kl_weight": 0.5}
        if autoencoder:
            numbers |= {"kl": None, "kl_weight": None}
        lines += [{"split": split, "step": step} | numbers for split in ("train", "test")[: 2 if step % 3 == 0 else 1]]
    return lines


@pytest.mark.parametrize("autoencoder", [False, True])
def test_the_curves_draw_every_number_of_the_history(autoencoder, tmp_path, monkeypatch):
    figures = []
    real = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda path, figure: (figures.append(figure), real(path, figure)))
    lines = history(range(1, 41), autoencoder)
    plots.save_curves(tmp_path / "curves.png", lines, "mnist-ce-z20")
    assert opened(tmp_path / "curves.png").shape[2] in (3, 4)
    for axes, name in zip(figures[0].axes, ("objective", "reconstruction", "kl", "kl_weight"), strict=True):
        curves = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        for split in ("train", "test"):
            points = [(line["step"], line[name]) for line in lines if line["split"] == split and line[name] is not None]
            np.testing.assert_allclose(curves[split], np.reshape(points, (-1, 2)))
    low, high = figures[0].axes[0].get_ylim()
    assert low < 100 + 900 / 40  # all of what came later is in sight,
    assert 100 + 900 / 2 < high < 1000  # but not the steep fall of the first twentieth
