"""Parts of figures that several experiments draw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.pictures import grid, save_figure


def draw_spread(axes: Axes, x: Sequence[float], values: np.ndarray, label: str, color: str | None = None) -> None:
    """Draw the mean of `values` (repetitions, len(x)) as a line, and a band from the least to the greatest value."""
    line = axes.plot(x, np.mean(values, axis=0), label=label, color=color, marker="o", markersize=3)[0]
    axes.fill_between(x, np.min(values, axis=0), np.max(values, axis=0), color=line.get_color(), alpha=0.2, linewidth=0)


def draw_images(axes: Axes, images: np.ndarray, columns: int, title: str) -> None:
    """Draw images (N, H, W, C), grey or RGB, brightness in [0, 1] or uint8, in rows of `columns`, under a title."""
    sheet = grid(images, columns)
    axes.imshow(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def save_bounds(path: Path, numbers: dict[str, Any]) -> None:
    """Draw the bound on log p(x) over the number of draws, from the `numbers` of experiments/evaluate.py, as `path`.

    The bound is in nats, with a label at its end. A published log-likelihood is drawn too, if known. Raises OSError.
    """
    found, published, likely = numbers["likelihood"], numbers["published_nll"], numbers["kind"] == "likelihood"
    keys = ("samples", "bound", "standard_error_images")
    sizes, values, errors = (np.array([bound[key] for bound in found["bounds"]]) for key in keys)
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(sizes, values, marker="o", markersize=4, label="by K draws of z; K = 1: the ELBO")
    band = {"alpha": 0.2, "linewidth": 0, "label": "standard error over images (the same images for all K)"}
    axes.fill_between(sizes, values - errors, values + errors, **band)
    if published:
        label = f"{-published['nll']:.2f}: {published['source']}"
        axes.axhline(-published["nll"], color="C3", linestyle="--", linewidth=1, label=label)
    place = {"textcoords": "offset points", "xytext": (0, 8), "ha": "right", "weight": "bold"}
    last = f"NLL {-found['log_likelihood']:.2f}" if likely else f"log-density {found['log_likelihood']:.2f}"
    axes.annotate(f"{last}, K = {found['samples']:,}", (sizes[-1], values[-1]), **place)
    axes.set(xscale="log", xlabel="K", ylabel="bound on the log-likelihood (nats per image)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(y=0.15)
    axes.set_title(f"{path.parent.name}\n{numbers['images']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")
    save_figure(path, figure)


def save_image_sets(path: Path, sets: dict[str, np.ndarray], title: str) -> None:
    """Draw sets of images, brightness (N, H, W, C) by name, side by side as grids of ten columns. Raises OSError."""
    figure = Figure(figsize=(1 + 3.6 * len(sets), 4.1), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, (name, images) in zip(figure.subplots(1, len(sets), squeeze=False).flat, sets.items(), strict=True):
        draw_images(axes, images, 10, name)
    save_figure(path, figure)
