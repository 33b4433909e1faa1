"""Saved numbers -> matplotlib figures; trains nothing."""

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from utils.files import write_whole

CURVES = {
    "objective": "objective (what is minimised)",
    "reconstruction": "reconstruction loss (nats per image)",
    "kl": "KL (nats per image)",
    "kl_weight": "weight of the KL",
}


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the path's suffix, .png or .jpg, whole or not at all. Raises OSError."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=110)
    write_whole(path, content.getvalue())


def save_curves(path: Path, history: list[dict[str, Any]], title: str) -> None:
    """Draw objective, reconstruction, KL and KL weight over steps, for training and test images. Raises OSError.

    `history` holds the lines of history.jsonl. The axes of objective and losses leave out the steep fall of the first
    twentieth, so that the rest can be read.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    figure.suptitle(title)
    for axes, (name, label) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for split, style in (("train", {"linewidth": 1}), ("test", {"marker": "o", "markersize": 3, "linewidth": 1})):
            lines = [line for line in history if line["split"] == split and line[name] is not None]
            axes.plot([line["step"] for line in lines], [line[name] for line in lines], label=split, **style)
        later = [line[name] for line in history if line[name] is not None and line["step"] >= history[-1]["step"] / 20]
        if later and name != "kl_weight":
            room = 0.05 * (max(later) - min(later)) or 1
            axes.set_ylim(min(later) - room, max(later) + room)
        axes.set(xlabel="step", title=label)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(path, figure)
