"""The table of likelihoods: published models trained here, and models that go past them.

    python -m experiments.likelihood vae            # one row
    python -m experiments.likelihood                # all rows, which takes hours, then the table

A row is one training, or several, each of which starts from the weights of the one before. Then experiments.evaluate
evaluates it. Networks, rates and clipping were chosen on 5,000 training images that were held out. (--held-out trains a
row without these, and evaluates on them.) The rows of the table are trained on all 60,000. Trainings are kept in
predictions/likelihood/, the numbers and their figure in images/. After Ctrl-C the same command goes on.
"""

# ruff: noqa: E402 (the command line is read first, before the seconds that TensorFlow takes)

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.study import BASE
from utils import console
from utils.console import experiment_parser
from utils.files import write_json
from utils.settings import ROOT, Settings, from_params

HELD_OUT = 5_000
PAGE = ROOT / "docs" / "likelihoods.md"

# What all rows have in common. It starts from the settings of the Analysis, which fix every constant that matters.
COMMON = BASE | {
    "kl_steps": 10_000, "bound_chunk": 500, "batch_size": 100, "gradient_clip": 0.0, "seed": 0,
    "log_every": 1_000, "images_every": 50, "checkpoint_every": 20_000, "nll_samples": 0,
}  # fmt: skip
BURDA = {  # the network of Burda et al. 2015 with a single stochastic layer
    "encoder_layers": (200, 200), "decoder_layers": (200, 200), "activation": "tanh", "latent_dim": 50,
}  # fmt: skip
FLOW = {
    "encoder_layers": (512, 512), "decoder_layers": (512, 512), "activation": "gelu", "latent_dim": 40,
    "prior": "realnvp", "batch_size": 250, "kl_steps": 2_000, "learning_rate": 3e-3, "gradient_clip": 5.0,
}  # fmt: skip
WIDE = {"encoder_layers": (800, 800), "decoder_layers": (800, 800), "learning_rate": 2e-3}
TIGHTEN = {"bound": "dreg", "kl_schedule": "constant", "learning_rate": 5e-4}  # a tighter bound at the end
PLACES = {"data_dir", "output_dir", "run_name", "start_from"}  # say where a result is, and do not affect it
BOUND_NAMES = {"iwae": "IWAE", "dreg": "DReG"}
QUICK = {"labels": (1, 7), "encoder_layers": (32,), "decoder_layers": (32,), "kl_steps": 50}


class Row(NamedTuple):
    """A row of the table: its title, its trainings in their order, and a published number to compare it with."""

    title: str
    stages: tuple[dict[str, Any], ...]
    published: str


ROWS = {
    "vae": Row(
        "VAE of Burda et al.: 50 latents, 2 x 200 tanh, K = 1",
        (BURDA | {"epochs": 2_000},),
        published="86.76 (Burda et al. 2015), 86.35 (nbip/IWAE)",
    ),
    "iwae": Row(  # goes on from `vae`: each draw costs time, and the early epochs can do without many
        "IWAE of Burda et al.: the same network, K = 50",
        (
            BURDA | {"epochs": 2_000},
            BURDA | TIGHTEN | {"bound_samples": 5, "epochs": 60},
            BURDA | TIGHTEN | {"bound_samples": 50, "epochs": 37},
        ),
        published="84.78 (Burda et al. 2015), 84.59 (nbip/IWAE)",
    ),
    "mlp": Row(
        "2 x 512 GELU, 40 latents, RealNVP prior",
        (
            FLOW | {"epochs": 105},
            FLOW | TIGHTEN | {"bound_samples": 8, "epochs": 6},
        ),
        published="",
    ),
    "best": Row(
        "2 x 800 GELU, 40 latents, RealNVP prior",
        (
            FLOW | WIDE | {"epochs": 120},
            FLOW | WIDE | TIGHTEN | {"bound_samples": 8, "epochs": 80, "learning_rate": 1e-3},
        ),
        published="78.61, ConvVAE with RealNVP prior (see below)",
    ),
    "fashion": Row(
        "Fashion-MNIST: 2 x 512 GELU, 40 latents, RealNVP prior",
        (
            FLOW | {"dataset": "fashion_mnist", "epochs": 105},
            FLOW | TIGHTEN | {"dataset": "fashion_mnist", "bound_samples": 8, "epochs": 6},
        ),
        published="",
    ),
}  # fmt: skip


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments: rows, samples (per test image), held_out, quick, and images (a folder)."""
    rows = "\n".join(f"  {name:<8} {row.title}" for name, row in ROWS.items())
    parser = experiment_parser("likelihood", f"{__doc__}\nrows:\n{rows}")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which to make: {', '.join(ROWS)} [default all]")
    parser.add_argument("--held-out", action="store_true", help="train without the last 5,000 training images, and "
                        "evaluate on those instead of on the test images; not for the table")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a toy version in a minute, to see that it works")
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.rows if name not in ROWS]:
        parser.error(f"ROW: {unknown[0]!r} is not allowed; {', '.join(ROWS)} are")
    place = ROOT / ("predictions/quick" if asked.quick else "predictions/likelihood" if asked.held_out else "images")
    asked.rows, asked.samples, asked.images = asked.rows or list(ROWS), 50 if asked.quick else 5_000, place
    return asked


if __name__ == "__main__":
    console.begin()
    ASKED = read_command_line()
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the rows are made on the CPU, even if there is a GPU

from matplotlib.figure import Figure

import main as vae_main
from experiments import benchmark, evaluate
from experiments.fingerprint import fingerprint, settings_that_count
from experiments.results import put_tables, table
from utils import pictures, runs


# --- a row ------------------------------------------------------------------------------------------------------------
def stages_of(name: str, asked: argparse.Namespace) -> list[Settings]:
    """The settings of a row's trainings, in their order. Each but the first starts from the one before.

    A training is named after its settings and those of the trainings before it. So rows that begin alike share these.
    """
    parent, found, history = ROOT / "predictions" / ("quick-likelihood" if asked.quick else "likelihood"), [], []
    for stage in ROWS[name].stages:
        values = COMMON | stage | {"held_out": HELD_OUT if asked.held_out else 0}
        if asked.quick:
            values |= QUICK | {"epochs": 1, "bound_samples": min(2, values["bound_samples"])}
        settings = from_params(**values, output_dir=str(parent))
        history.append(settings_that_count(settings))
        names = {
            "start_from": str(parent / found[-1].run_name) if found else "",
            "run_name": f"{runs.derived_name(settings)}-{fingerprint(history)}",
        }
        found.append(settings.model_copy(update=names))
    return found


def train(settings: Settings) -> tuple[Path, dict[str, float]]:
    """Make a training, or the rest of it; return its folder and the minutes that it took.

    The minutes are those of the clock and, because the machine may have had other work to do, of the processor: what
    all cores together spent on it. They are written with every checkpoint, so that they are right after a crash, too.
    """
    folder = Path(settings.output_dir) / settings.run_name
    path = folder / "minutes.json"
    if (folder / "report.json").exists():
        return folder, json.loads(path.read_text(encoding="utf-8"))
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"clock": 0, "processor": 0}
    started = {"clock": time.perf_counter(), "processor": time.process_time()}

    def note_minutes(*_):
        now = {"clock": time.perf_counter(), "processor": time.process_time()}
        write_json(path, {name: before[name] + (now[name] - started[name]) / 60 for name in before})

    steps = settings.epochs * (60_000 - settings.held_out) // settings.batch_size
    try:
        vae_main.train(
            settings, folder if (folder / "params.json").exists() else None,
            watch=note_minutes, watch_at=range(0, steps, settings.checkpoint_every),
        )  # fmt: skip
    finally:
        if folder.exists():
            note_minutes()
    return folder, json.loads(path.read_text(encoding="utf-8"))


def make_row(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate a row; return its numbers."""
    trainings = []
    for settings in stages_of(name, asked):
        print(f"\n{name}: training {len(trainings) + 1} of {len(ROWS[name].stages)}", flush=True)
        folder, minutes = train(settings)
        commit, values = runs.read_params(folder)["git_commit"], settings.model_dump(mode="json", exclude=PLACES)
        trainings.append({"minutes": minutes, "commit": commit, "settings": values})
    worth = evaluate.evaluate(folder, asked.samples, components=25)
    likelihood = worth["likelihood"]
    kept = ("bounds", "inactive_from_prior", "standard_error_images", "standard_error_sampling", "samples", "seconds",
            "active_units", "latent_dim")  # fmt: skip
    return {
        "command": f"python -m experiments.likelihood {name}",
        "nll": -likelihood["log_likelihood"],
        "images": worth["images"],
        "trainings": trainings,
        "hardware": f"{benchmark.usable_cores()} cores of {benchmark.machine()['cpu']}",
        **{key: likelihood[key] for key in kept},
    }


# --- the table --------------------------------------------------------------------------------------------------------
def publish(numbers: dict[str, Any], asked: argparse.Namespace) -> None:
    """Write the numbers of all rows made so far to likelihood.json, and draw their bounds to the .png beside it.

    Also prints their table, and puts it in docs/likelihoods.md.
    """
    path = asked.images / ("likelihood-held-out.json" if asked.held_out else "likelihood.json")
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}
    rows = {name: (before | numbers)[name] for name in ROWS if name in before | numbers}
    tables = {"likelihood": table_of(rows)}
    asked.images.mkdir(parents=True, exist_ok=True)
    write_json(path, {"rows": rows, "tables": tables})
    save_figure(path.with_suffix(".png"), rows)
    print(f"\n{tables['likelihood']}")
    if asked.images == ROOT / "images":
        put_tables(PAGE, tables)


def save_figure(path: Path, rows: dict[str, Any]) -> None:
    """Draw the bound on the log-likelihood against the number of draws, for each row of MNIST."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    rows = {name: row for name, row in rows.items() if row["trainings"][0]["settings"]["dataset"] == "mnist"} or rows
    for name, row in rows.items():
        sizes, values = ([bound[key] for bound in row["bounds"]] for key in ("samples", "bound"))
        axes.plot(sizes, values, marker="o", markersize=4, label=f"{name}: ELBO {values[0]:.2f}, NLL {row['nll']:.2f}")
    axes.set(xscale="log", xlabel="K, draws of z", ylabel="bound on the log-likelihood (nats per image)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(next(iter(rows.values()))["images"], fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")
    pictures.save_figure(path, figure)


def table_of(rows: dict[str, Any]) -> str:
    """The table, in Markdown."""
    headers = ("row", "model", "NLL", "± images", "± sampling", "published", "active", "epochs", "minutes",
               "core-minutes")  # fmt: skip

    def epochs_of(training: dict[str, Any]) -> str:
        s = training["settings"]
        of_what = "ELBO" if s["bound"] == "elbo" else f"{BOUND_NAMES[s['bound']]} K = {s['bound_samples']}"
        return f"{s['epochs']:,} {of_what}"

    def line(name: str, row: dict[str, Any]) -> tuple[str, ...]:
        spent = [training["minutes"] for training in row["trainings"]]
        clock, processor = (sum(minutes[name] for minutes in spent) for name in ("clock", "processor"))
        return (
            f"`{name}`",
            ROWS[name].title,
            f"{row['nll']:.2f}",
            f"{row['standard_error_images']:.2f}",
            f"{row['standard_error_sampling']:.3f}",
            ROWS[name].published,
            f"{row['active_units']} of {row['latent_dim']}",
            ", ".join(map(epochs_of, row["trainings"])),
            f"{clock:.0f}",
            f"{processor:.0f}",
        )

    return table(headers, (line(name, row) for name, row in rows.items()))


def main(asked: argparse.Namespace) -> int:
    """Make the rows that were asked for; return the exit code."""

    def work():
        numbers = {}
        for name in asked.rows:
            numbers[name] = make_row(name, asked)
            publish(numbers, asked)

    return console.run("likelihood", work, "the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main(ASKED))
