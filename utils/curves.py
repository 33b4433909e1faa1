"""curves.png: the course of a run, and the KL of each latent at its end."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.pictures import Line, save_figure, settings_in_words
from utils.report import NO_ELBO
from utils.settings import Settings, ramp_end

TRAIN, TEST, RAMP = "#8fb4d9", "#d1495b", "#f2c14e"  # colours


def save_curves(path: Path, history: list[Line], s: Settings, report: dict[str, Any]) -> None:
    """Draw a run's history and the KL of each latent from its report.json. Raises OSError.

    The picture can be read on its own. The ELBO comes first and is large, because only the ELBO can be compared over
    the whole run. The other panels show the objective, its parts, the active units and the KL per latent. A panel for
    which the run has no numbers is left out.
    """
    if not history:
        return
    lines = [line | {"elbo": line[NO_ELBO] if NO_ELBO in line else line["elbo"]} for line in placed(history)]
    titles = {
        "elbo": f"{bound_in_words(report)}, in nats per image; higher is better, and it compares over the whole run",
        "objective": f"objective, what is minimised: {objective_in_words(s)}"
        + "; star: the best checkpoint" * bool(report.get("best")),
        "reconstruction": "reconstruction loss, in nats per image",
        "kl": "KL, in nats per image",
        "active_units": f"active units: latents in use, of {s.latent_dim}",
    }
    titles = {name: title for name, title in titles.items() if any(line.get(name) is not None for line in lines)}
    bars = ["kl_per_latent"] * bool(report["kl_per_latent"])
    first = ["elbo"] if "elbo" in titles else []
    small = [name for name in titles if name != "elbo"] + bars
    rows = [first] * bool(first) + [list(row) for row in np.array_split(small, -(-len(small) // 3))]
    heights = [3.6] * bool(first) + [2.9] * (len(rows) - bool(first))
    figure = Figure(figsize=(11, sum(heights) + 0.6), layout="constrained")
    cells = [[name for name in row for _ in range(6 // len(row))] for row in rows]
    panels = figure.subplot_mosaic(cells, height_ratios=heights)
    for name, title in titles.items():
        (row,) = (row for row in rows if name in row)
        panels[name].set_title(textwrap.fill(title, 156 // len(row)), loc="left", fontsize=9)
        draw_curve(panels[name], lines, name, s)
    if "active_units" in titles:
        panels["active_units"].set_ylim(0, 1.05 * s.latent_dim)
        panels["active_units"].yaxis.get_major_locator().set_params(integer=True)
    if best := report.get("best"):
        panels["objective"].plot(best["step"], best["objective"], color=TEST, marker="*", markersize=11)
    if "kl" in titles:
        draw_weight(panels["objective"], lines, s)
    for axes in [panels[name] for name in bars]:
        nats = sorted(report["kl_per_latent"], reverse=True)
        axes.stairs(nats, np.arange(len(nats) + 1) + 0.5, fill=True, color=TEST)  # one shape for all latents
        axes.set_title("KL of each latent on test images, sorted, in nats", loc="left", fontsize=9)
        axes.set(xlabel="latent, by its KL", xlim=(0.3, len(nats) + 0.7))
    for axes in panels.values():
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    panels[rows[0][0]].legend(frameon=False)
    figure.suptitle(run_in_words(path.parent.name, s, report), fontsize=10)
    save_figure(path, figure)


def placed(history: list[Line]) -> list[Line]:
    """The lines, each with the step `at` which it is drawn. A training line is a mean, so it is in mid-interval."""
    lines, begin = [], 0
    for line in history:
        is_mean = line["split"] == "train"
        lines.append(line | {"at": (begin + line["step"]) / 2 if is_mean else line["step"]})
        begin = line["step"] if is_mean else begin
    return lines


def draw_curve(axes: Axes, lines: list[Line], name: str, s: Settings) -> None:
    """Draw one quantity of the history over steps, for training and test images, and shade the ramp of the KL weight.

    The vertical axis ignores the steep change in the first twentieth of the run, so that the rest can be read.
    """
    last = lines[-1]["step"]
    for split, style in (("train", {"color": TRAIN}), ("test", {"color": TEST, "marker": "o", "markersize": 3})):
        points = [(line["at"], line[name]) for line in lines if line["split"] == split and line.get(name) is not None]
        if len(points) == 1:  # a line through one point would be invisible
            style |= {"marker": "o", "markersize": 3}
        if points:
            axes.plot(*zip(*points, strict=True), label=split, linewidth=1.2, **style)
    later = [line[name] for line in lines if line.get(name) is not None and line["step"] >= last / 20]
    room = 0.05 * (max(later) - min(later)) or 1
    axes.set(xlabel="step", xlim=(0, 1.02 * last), ylim=(min(later) - room, max(later) + room))
    if ramp_end(s):
        axes.axvspan(0, min(s.kl_steps, last), color=RAMP, alpha=0.2, linewidth=0)


def draw_weight(axes: Axes, lines: list[Line], s: Settings) -> None:
    """Draw the KL weight over steps in the panel of the objective, with its own axis, and label its ramp."""
    points = [(line["at"], line["kl_weight"]) for line in lines if line["split"] == "train"]
    if not points:  # the history was damaged
        return
    style = {"color": "grey", "linewidth": 0.9, "linestyle": ":", "marker": "o" * (len(points) == 1), "markersize": 3}
    right = axes.twinx()
    right.plot(*zip(*points, strict=True), **style)
    right.set_ylabel("KL weight (dotted)", fontsize=8, color="grey")
    right.set_ylim(0, 1.3 * max(weight for _, weight in points) or 1)
    right.tick_params(labelsize=8, labelcolor="grey")
    right.spines["top"].set_visible(False)
    if ramp_end(s):
        words = f"KL weight {s.kl_weight_start:g} → {s.kl_weight_end:g}"
        words += f", {s.kl_cycles} times" if s.kl_schedule == "cyclical" else ""
        words += f" at step {s.kl_steps:,}" if lines[-1]["step"] < s.kl_steps else ""
        place = {"transform": axes.transAxes, "ha": "right", "va": "top"}  # the objective rarely passes there
        axes.text(0.98, 0.97, words, fontsize=8, bbox={"color": RAMP, "alpha": 0.35, "pad": 2}, **place)


def bound_in_words(report: dict[str, Any]) -> str:
    """The name of the sum that a run reports as its ELBO, or instead of it."""
    names = {"likelihood": "ELBO", "density": "ELBO of a density"}
    return names.get(report["kind"], f"{NO_ELBO} (this loss has no ELBO)")


def objective_in_words(s: Settings) -> str:
    """What is minimised, and why it may rise."""
    mean = " / pixels" if s.reconstruction_reduction == "mean" else ""
    if s.autoencoder:
        return f"reconstruction{mean}"
    free = f" (per latent at least {s.free_bits:g})" if s.free_bits else ""
    what = f"reconstruction{mean} + KL weight x KL{free}"
    if s.bound != "elbo":
        what = f"minus the {s.bound.upper()} bound of {s.bound_samples} samples, its KL times the KL weight"
    rises = ramp_end(s) and s.kl_weight_end > s.kl_weight_start
    return what + ("; it may rise while the KL weight does" if rises else "")


def run_in_words(run: str, s: Settings, report: dict[str, Any]) -> str:
    """The run's name and its result, and below them its settings: a few lines."""
    elbo = report[NO_ELBO] if report["test_elbo"] is None else report["test_elbo"]
    found = {
        f"test reconstruction loss {report['test_reconstruction']:,.2f} nats": s.autoencoder,
        f"test {bound_in_words(report).partition(' (this')[0]} {elbo or 0:,.2f} nats": elbo is not None,
        f"log-likelihood {-(report['test_nll'] or 0):,.2f}": report["test_nll"] is not None,
        f"log-density {report['test_log_density'] or 0:,.2f}": report["test_log_density"] is not None,
    }
    result = f"{run}: {', '.join(words for words, known in found.items() if known)}"
    how = [*settings_in_words(s), f"{s.epochs} epoch{'s' * (s.epochs > 1)}", f"batches of {s.batch_size}"]
    how += [f"learning rate {s.learning_rate:g}", f"seed {s.seed}"]
    return "\n".join(textwrap.fill(line, 156) for line in (result, ", ".join(how)))
