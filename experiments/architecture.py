"""What do width, depth and latents buy? And from which number on do more latents stay unused?

    python -m experiments.architecture    # 5 minutes on two cores

Trains the VAE of the Analysis (784-256-256-20) with one thing changed at a time: the width of its hidden layers, their
number, the number of latents. Writes architecture.json and architecture.png to images/.
"""

from experiments.results import publish, shown, summary, table
from experiments.study import Study, Trained, read_command_line, repeated, run_study, train_groups

if __name__ == "__main__":
    STUDY = read_command_line("architecture", __doc__)  # before the seconds that TensorFlow takes

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import main
from experiments import figures
from utils.pictures import save_figure

WIDTHS = (64, 128, 256, 512)  # units of each of two hidden layers, in encoder and decoder
DEPTHS = (0, 1, 2, 3)  # hidden layers of 256 units
LATENTS = (2, 4, 8, 20, 32, 64)
TELLING = 0.1  # nats: a latent with a larger KL carries real information about the image
QUICK_VALUES = {"width": (64,), "depth": (0, 1), "latents": (2, 20)}


def overrides(question: str, value: int) -> dict[str, Any]:
    """The settings of the Analysis that a value changes."""
    if question == "latents":
        return {"latent_dim": value}
    layers = {"width": (value, value), "depth": (256,) * value}[question]
    return {"encoder_layers": layers, "decoder_layers": layers}


def measure(runs: list[Trained]) -> dict[str, Any]:
    """The results, the cost and the KL per latent (largest first) of the runs of one value, one run per seed."""
    reports = [run.report for run in runs]
    weights = main.build_vae(runs[0].settings, (28, 28, 1)).weights
    kl_per_latent = [sorted(report["kl_per_latent"], reverse=True) for report in reports]
    return {
        "parameters": sum(math.prod(weight.shape) for weight in weights),
        "elbo": summary(report["test_elbo"] for report in reports),
        "nll": summary(report["test_nll"] for report in reports),
        "kl": summary(report["test_kl"] for report in reports),
        "active": summary(report["active_units"] for report in reports),
        "telling": summary(sum(nats > TELLING for nats in report["kl_per_latent"]) for report in reports),
        "latents": reports[0]["latent_dim"],
        "kl_per_latent": np.mean(kl_per_latent, axis=0).tolist(),
        "seconds_per_epoch": summary(run.seconds / run.settings.epochs for run in runs),
    }


def by_seed(measured: dict[int, dict[str, Any]], name: str) -> np.ndarray:
    """A number for each seed and value, (seeds, values)."""
    return np.array([numbers[name]["values"] for numbers in measured.values()]).T


def draw_quality(axes: Axes, title: str, label: str, measured: dict[int, dict[str, Any]]) -> None:
    """ELBO and log-likelihood over the values of a question."""
    places = range(len(measured))
    for name, line, sign in (("elbo", "ELBO", 1), ("nll", "log-likelihood", -1)):
        figures.draw_spread(axes, places, sign * by_seed(measured, name), line)
    axes.set(xlabel=label, ylabel="nats per test image", xticks=places, xticklabels=list(measured))
    axes.set_title(title, fontsize=10)


def draw_cost(axes: Axes, measured: dict[str, dict[int, dict[str, Any]]]) -> None:
    """ELBO over the number of parameters, for width and for depth."""
    for question in ("width", "depth"):
        millions = [numbers["parameters"] / 1e6 for numbers in measured[question].values()]
        figures.draw_spread(axes, millions, by_seed(measured[question], "elbo"), f"more {question}")
    axes.set(xlabel="million parameters", ylabel="ELBO (nats per test image)", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("what a parameter buys", fontsize=10)


def draw_use(axes: Axes, measured: dict[int, dict[str, Any]]) -> None:
    """How many of the latents are active."""
    values = list(measured)
    axes.plot(values, values, color="grey", linewidth=1, linestyle="--", label="all of them")
    figures.draw_spread(axes, values, by_seed(measured, "active"), "active units (variance above 0.01)")
    figures.draw_spread(axes, values, by_seed(measured, "telling"), f"KL above {TELLING} nats")
    axes.set(xlabel="latents", ylabel="how many of them")
    axes.set_title("latents in use", fontsize=10)


def draw_shares(axes: Axes, measured: dict[int, dict[str, Any]]) -> None:
    """The KL of each latent, from the largest to the smallest."""
    for value, numbers in measured.items():
        axes.plot(range(1, value + 1), numbers["kl_per_latent"], marker=".", label=f"{value} latents")
    axes.set(xlabel="latents, in the order of their KL", ylabel="KL (nats)")
    axes.set_title("KL of each latent", fontsize=10)


def draw(study: Study, measured: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Write architecture.png."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = list(figure.subplots(2, 3).flat)
    labels = {"width": "units per hidden layer (2 layers)", "depth": "hidden layers of 256", "latents": "latents"}
    for axes, (question, label) in zip(panels[:3], labels.items(), strict=True):
        draw_quality(axes, question, label, measured[question])
    draw_cost(panels[3], measured)
    draw_use(panels[4], measured["latents"])
    draw_shares(panels[5], measured["latents"])
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(study.images / "architecture.png", figure)


def run(study: Study) -> None:
    """Train, measure, draw and publish."""
    values = QUICK_VALUES if study.quick else {"width": WIDTHS, "depth": DEPTHS, "latents": LATENTS}
    questions = [(question, value) for question in values for value in values[question]]
    trained = train_groups(study, {asked: repeated(study, **overrides(*asked)) for asked in questions})
    measured: dict[str, dict[int, dict[str, Any]]] = {question: {} for question in values}
    for (question, value), runs in trained.items():
        measured[question][value] = measure(runs)
    draw(study, measured)
    publish(study, {"measured": measured}, tables(measured))


def tables(measured: dict[str, dict[int, dict[str, Any]]]) -> dict[str, str]:
    """The table of the Analysis, a row for each network."""
    rows = {}  # by name, because the network of the Analysis occurs in all three questions
    for question, values in measured.items():
        for value, numbers in values.items():
            names = {"width": f"2 x {value}, 20", "depth": f"{value} x 256, 20", "latents": f"2 x 256, {value}"}
            rows.setdefault(names[question], row(names[question], numbers))
    headers = ("hidden, latents", "parameters", "ELBO", "NLL", "KL", "active units", f"KL above {TELLING} nats",
               "seconds an epoch")  # fmt: skip
    return {"architecture": table(headers, rows.values())}


def row(name: str, numbers: dict[str, Any]) -> list[str]:
    """A network's row of the table."""
    return [
        name,
        f"{numbers['parameters']:,}",
        *(shown(numbers[key], digits) for key, digits in (("elbo", 2), ("nll", 2), ("kl", 1))),
        f"{shown(numbers['active'])} of {numbers['latents']}",
        shown(numbers["telling"]),
        shown(numbers["seconds_per_epoch"]),
    ]


if __name__ == "__main__":
    raise SystemExit(run_study(STUDY, run))
