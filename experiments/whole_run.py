"""The time that a user waits: `python main.py` from start to end, and the same VAE in Keras.

    python -m experiments.benchmark --whole-run                             three rounds of runs of 15 epochs
    python -m experiments.benchmark --whole-run --only ours --against OLD   compare only with main.py of checkout OLD

Each contender runs once per round, in its own process. It writes samples_000.png before training, and another such file
after it has trained and tested each epoch. The dates of these files give the times:

    start-up     from the start of the process to samples_000.png
    first epoch  from there to samples_001.png; includes compiling
    epoch        the mean of all later epochs, because main.py saves a checkpoint only every other epoch or so
    end          from the last of these files to the end of the process

Up to the last file both do the same work (`trained`). After it only main.py does more. In each round the loop of
main.py also runs alone, as the process `python -m experiments.whole_run EPOCHS`. It shows how short an epoch could be.
Results go to predictions/whole_run.json.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.timing import IMAGES, environment, our_loop, spread
from utils import mnist
from utils.console import Problem
from utils.settings import ROOT, from_params

LOOP_EPOCHS = 5  # of the loop alone, after one epoch in which it compiles
ELBO_TOLERANCE = 5.0  # nats; seeds alone differ by up to 3 after 2 epochs, and by a few tenths after 15
SETTINGS = {  # all constants of the default run, because users may edit params.py; keras_vae.py has the same
    "dataset": "mnist", "binarize": "dynamic", "labels": (), "held_out": 0,
    "architecture": "mlp", "encoder_layers": (512, 512), "decoder_layers": (512, 512), "activation": "silu",
    "latent_dim": 20, "noise_dim": 0, "autoencoder": False, "prior": "standard",
    "loss": "ce", "reconstruction_reduction": "sum", "decoder_scale": "fixed",
    "kl_schedule": "linear", "kl_weight_start": 0.0, "kl_weight_end": 1.0, "kl_steps": 2_000, "free_bits": 0.0,
    "bound": "elbo", "bound_samples": 1,
    "batch_size": 128, "learning_rate": 1e-3, "gradient_clip": 0.0, "lr_schedule": "cosine", "mixed_precision": False,
    "seed": 0, "start_from": "", "log_every": 100, "images_every": 1, "checkpoint_every": 1_000, "nll_samples": 128,
}  # fmt: skip


def options(settings):
    """Settings by name as main.py takes them on the command line."""
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            values = value or ("none",) if isinstance(value, tuple) else (value,)
            words += [f"--{option}", *map(str, values)]
    return words


# --- a process --------------------------------------------------------------------------------------------------------
class Ended(NamedTuple):
    """A process that has ended without error."""

    started: float  # time in seconds, by the clock that dates files
    ended: float
    megabytes: float | None  # peak memory; None if the system does not report it
    output: str


def run_process(title, command, home):
    """Run a command in the folder `home` to its end. A failure ends the benchmark and shows its last lines."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.time()
        process = subprocess.Popen(command, cwd=home, env=environment(), stdout=output, stderr=errors)
        try:
            megabytes = wait(process)
            ended = time.time()
        finally:
            if process.returncode is None:  # Ctrl-C
                process.kill()
                process.wait()
        for stream in (output, errors):
            stream.seek(0)
        if process.returncode:
            tail = "\n".join(errors.read().splitlines()[-20:])
            raise Problem(f"{title} failed with exit code {process.returncode}\n{tail}")
        return Ended(started, ended, megabytes, output.read())


def wait(process):
    """Wait for the end of a process; return its peak memory in MB, or None."""
    if not hasattr(os, "wait4"):
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)  # bytes on macOS, kilobytes elsewhere


# --- turns ------------------------------------------------------------------------------------------------------------
def main_run(title, home, epochs, quick):
    """Run and time the main.py of the folder `home`."""
    changed = {"epochs": epochs, "data_dir": data_dir()} | ({"nll_samples": 2} if quick else {})
    with tempfile.TemporaryDirectory() as scratch:
        places = {"output_dir": scratch, "run_name": "run"}
        command = [sys.executable, "main.py", *options(SETTINGS | changed | places)]
        ended, folder = run_process(title, command, home), Path(scratch, "run")
        lines = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
        elbo = [line["elbo"] for line in lines if line["split"] == "test"][-1]
        commit = json.loads((folder / "params.json").read_text(encoding="utf-8"))["git_commit"]
        return times(title, folder, epochs, ended) | {"test_elbo": elbo, "git_commit": commit}


def keras_run(title, epochs):
    """Run and time keras_vae.py."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "experiments.keras_vae", "--epochs", str(epochs), "--output-dir", scratch]
        ended, folder = run_process(title, command, ROOT), Path(scratch)
        with open(folder / "history.csv", newline="") as file:
            elbo = -float(list(csv.DictReader(file))[-1]["val_loss"])
        return times(title, folder, epochs, ended) | {"test_elbo": elbo}


def loop_run(title, epochs):
    """Time the loop of main.py alone."""
    command = [sys.executable, "-m", "experiments.whole_run", str(epochs)]
    return json.loads(run_process(title, command, ROOT).output)


def measure_loop(epochs):
    """The images per second of the loop alone, with the same network and images, and drawing the pixels too."""
    settings = from_params(**SETTINGS | {"lr_schedule": "constant"})
    images = mnist.load("mnist", data_dir()).train_images
    images = images[: len(images) // settings.batch_size * settings.batch_size]
    train, _ = our_loop(images, settings)
    train(1)  # compiles
    start = time.perf_counter()
    train(epochs)
    return {"images_per_second": epochs * len(images) / (time.perf_counter() - start)}


def data_dir():
    """The folder of the data set, the same for all checkouts."""
    return str(ROOT / Path(from_params().data_dir).expanduser())


def times(title, folder, epochs, ended):
    """The seconds and the memory of a run that wrote its grids into `folder`."""
    grids = [folder / f"samples_{epoch:03}.png" for epoch in range(epochs + 1)]
    if missing := [grid.name for grid in grids if not grid.exists()]:
        raise Problem(f"{title} did not write {missing[0]}, by whose date it is timed")
    dates = [grid.stat().st_mtime for grid in grids]
    return {
        "startup": dates[0] - ended.started,
        "epochs": np.diff(dates).tolist(),
        "end": ended.ended - dates[-1],
        "total": ended.ended - ended.started,
        "megabytes": ended.megabytes,
    }


def take_rounds(args, titles):
    """Run all contenders in turn; return a list of rounds, each with the results by the names in `titles`."""
    take = {
        "loop": lambda title: loop_run(title, 1 if args.quick else LOOP_EPOCHS),
        "ours": lambda title: main_run(title, ROOT, args.epochs, args.quick),
        "keras": lambda title: keras_run(title, args.epochs),
        "against": lambda title: main_run(title, args.against, args.epochs, args.quick),
    }
    rounds = [{} for _ in range(args.rounds)]
    with tqdm(total=len(rounds) * len(titles), ncols=79, disable=None) as progress:
        for measured in rounds:
            for name, title in titles.items():
                progress.set_description(title)
                measured[name] = take[name](title)
                progress.update()
    return rounds


# --- what is shown ----------------------------------------------------------------------------------------------------
COMPARED = {  # the seconds of a run for which ratios are shown
    "per epoch": lambda run: float(np.mean(run["epochs"][1:])),  # without the first, which compiles
    "trained": lambda run: run["total"] - run["end"],
    "total": lambda run: run["total"],
}


def table(rounds, titles):
    """The lines of the result: the seconds of each contender, their ratios, and what the loop alone would allow."""
    names = [name for name in titles if name != "loop"]
    width = 2 + max(map(len, ["it / ours", *titles.values()]))
    lines = [f"{'seconds':{width}}{'start-up':>8}{'first epoch':>13}  {'per epoch (quartiles)':23}"
             f"{'end':>6}  {'total (quartiles)':23}{'test ELBO':>9}{'MB':>7}"]  # fmt: skip
    for name in names:
        runs = [r[name] for r in rounds]
        median = {key: np.median([run[key] for run in runs]) for key in ("startup", "end", "test_elbo")}
        first = np.median([run["epochs"][0] for run in runs])
        epoch, total = (spread([COMPARED[key](run) for run in runs], 2) for key in ("per epoch", "total"))
        memory = "" if runs[0]["megabytes"] is None else f"{np.median([run['megabytes'] for run in runs]):,.0f}"
        lines.append(f"{titles[name]:{width}}{median['startup']:8.2f}{first:13.2f}  {epoch:23}"
                     f"{median['end']:6.2f}  {total:23}{median['test_elbo']:9.2f}{memory:>7}".rstrip())  # fmt: skip
    elbos = [r[name]["test_elbo"] for r in rounds for name in names]
    if max(elbos) - min(elbos) > ELBO_TOLERANCE:
        lines.append(f"The test ELBOs differ by more than {ELBO_TOLERANCE:g} nats: this is not the same work.")
    if "ours" not in names:
        return lines
    if len(names) > 1:
        lines.append(f"{'it / ours':{width}}" + "".join(f"{key + ' (quartiles)':25}" for key in COMPARED).rstrip())
    for name in names[1:]:
        spreads = [spread(ratios(rounds, name, "ours", key), 2) for key in COMPARED]
        lines.append(f"{titles[name]:{width}}" + "".join(f"{text:25}" for text in spreads).rstrip())
    if "against" in names:
        epoch, total = (spread(ratios(rounds, "ours", "against", key), 2) for key in ("per epoch", "total"))
        lines.append(f"ours / {titles['against']}: {total} of the total, {epoch} of an epoch")
    speeds = np.array([r["loop"]["images_per_second"] for r in rounds])
    share = spread([COMPARED["per epoch"](r["ours"]) for r in rounds] * speeds / IMAGES, 2)
    lines.append(f"{titles['loop']}: {spread(speeds)} images/s")
    lines.append(f"An epoch of ours by the clock takes {share} times {IMAGES:,} / (its images/s).")
    return lines


def ratios(rounds, name, other, key):
    """The time of a run over the time of another run in the same round, for each round."""
    return [COMPARED[key](r[name]) / COMPARED[key](r[other]) for r in rounds]


def measure(args):
    """Measure in turns, and print the table; return the results to save: the titles and all rounds."""
    wanted = args.only or ["ours", "keras"]
    titles = {"loop": "the loop alone", "ours": "main.py", "keras": "Keras fit"}
    titles = {name: title for name, title in titles.items() if name in wanted or (name == "loop" and "ours" in wanted)}
    if args.against:
        titles["against"] = args.against.name
    mnist.load("mnist", data_dir())  # a download, if needed, happens before the measurement
    rounds = take_rounds(args, titles)
    print(*table(rounds, titles), sep="\n")
    return {"titles": titles, "rounds": rounds}


if __name__ == "__main__":
    print(json.dumps(measure_loop(int(sys.argv[1]))))
