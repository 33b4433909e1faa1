"""The common part of the experiments of the Analysis: a command line, and trainings that are made once.

An experiment is a file with a function `run(study)`. It asks `train_all` for the trainings that it needs, computes, and
calls results.publish with its numbers and tables. A training is identified by its settings, by what is watched and by
the code that makes it. A finished training is read from predictions/analysis/, no matter which experiment made it. An
interrupted one continues from its last checkpoint. Trainings run side by side (experiments/side_by_side.py).

TensorFlow is imported only where it is needed, so that --help is fast and a typo is reported at once.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments import side_by_side
from experiments.fingerprint import ROOT, code_of, fingerprint, settings_that_count, sources
from experiments.load import Run
from experiments.side_by_side import MOST_JOBS, train_one
from utils import console, mnist
from utils.files import write_json
from utils.settings import BEFORE, Settings, from_params

SEEDS = 3  # trainings per setting, if a claim depends on a difference between trainings

# The VAE of the Analysis. It names every constant that affects the result, because users may edit params.py.
BASE = BEFORE | {
    "dataset": "mnist", "binarize": "dynamic", "labels": (), "held_out": 0,
    "encoder_layers": (256, 256), "decoder_layers": (256, 256), "activation": "silu", "latent_dim": 20,
    "noise_dim": 0, "autoencoder": False, "prior": "standard", "prior_components": 500,
    "prior_layers": 6, "prior_units": 128, "bound": "elbo", "bound_samples": 1, "bound_chunk": 1_000,
    "loss": "ce", "reconstruction_reduction": "sum", "decoder_scale": "fixed",
    "kl_schedule": "linear", "kl_weight_start": 0.0, "kl_weight_end": 1.0, "kl_steps": 1_000, "kl_cycles": 4,
    "free_bits": 0.0,
    "batch_size": 128, "epochs": 8, "learning_rate": 1e-3, "gradient_clip": 0.0, "lr_schedule": "cosine",
    "start_from": "", "log_every": 100, "images_every": 1_000, "checkpoint_every": 2_000, "nll_samples": 64,
}  # fmt: skip
QUICK = {  # a version that trains in a second or two, for the tests: two digits, a small network, few steps
    "labels": (1, 7), "encoder_layers": (64,), "decoder_layers": (64,), "batch_size": 100, "epochs": 2,
    "kl_steps": 100, "nll_samples": 4,
}  # fmt: skip


class Study(NamedTuple):
    """One call of an experiment: the options of the command line, and the folders."""

    name: str  # of the experiment, as in experiments/<name>.py
    seed: int  # the first one; repeated trainings take seed, seed + 1, ...
    quick: bool
    jobs: int  # processes that train at once; 0 trains in this process, for tests
    images: Path  # the folder for figures and numbers
    trainings: Path  # the folder for trainings, and for the marks of finished studies

    @property
    def seeds(self) -> list[int]:
        """The seeds of repeated trainings; a quick study repeats nothing."""
        return [self.seed + number for number in range(1 if self.quick else SEEDS)]


class Training(NamedTuple):
    """A training to make. `watch(vae, settings, dataset)` returns arrays by name, saved at each step of watch_at."""

    settings: Settings
    watch: Callable[..., dict[str, np.ndarray]] | None = None
    watch_at: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder; the same settings, watch and code give the same name."""
        from utils.runs import derived_name

        texts, used = [settings_that_count(self.settings)], sources(train_one, {})
        if self.watch:
            parts = self.watch if isinstance(self.watch, partial) else partial(self.watch)
            texts += [repr((parts.args, parts.keywords, self.watch_at))]
            sources(parts.func, used)
        return f"{derived_name(self.settings)}-{fingerprint([*texts, *used.values()])}"


class Trained(Run):
    """A finished training, by its folder."""

    @property
    def seconds(self) -> float:
        """Time spent in training steps, on one core, by the median speed: most lines have no test between them."""
        lines = self.history("train")
        speed = np.median([line["images_per_second"] for line in lines])
        return float(lines[-1]["step"] * self.settings.batch_size / speed)

    def watched(self) -> dict[int, dict[str, np.ndarray]]:
        """The watched arrays, by step."""
        paths = sorted((self.folder / "watched").glob("*.npz"), key=lambda path: int(path.stem))
        return {int(path.stem): dict(np.load(path)) for path in paths}


# --- the command line -------------------------------------------------------------------------------------------------
def read_command_line(name: str, doc: str) -> Study:
    """The study that the command line asks for; --help shows `doc`, the experiment's docstring."""
    parser, integer = console.experiment_parser(name, doc), console.whole(0, 2**30 - 1)
    parser.add_argument("--quick", action="store_true", help="a toy version in seconds, to see that everything works")
    parser.add_argument("--seed", type=integer, default=0, metavar="N", help="the first seed [default 0]")
    jobs = f"trainings side by side, one thread each; 0: one by one in this process [default {MOST_JOBS}]"
    parser.add_argument("--jobs", type=integer, default=MOST_JOBS, metavar="N", help=jobs)
    images = "folder for figures and numbers [default images, which the docs show; with --quick predictions/quick]"
    parser.add_argument("--images", type=Path, default=None, metavar="DIR", help=images)
    asked = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # always use the CPU, so that the numbers do not depend on a GPU
    return make_study(name, asked.seed, asked.quick, asked.jobs, asked.images)


def make_study(name: str, seed: int = 0, quick: bool = False, jobs: int = 0, images: Path | None = None) -> Study:
    """A study with its folders."""
    trainings = ROOT / "predictions" / ("quick" if quick else "analysis")
    return Study(name, seed, quick, jobs, (images or (trainings if quick else ROOT / "images")).resolve(), trainings)


def run_study(study: Study, experiment: Callable[[Study], None]) -> int:
    """Run an experiment, and mark it as finished; return the exit code."""

    def work():
        started, code = time.perf_counter(), code_of(f"experiments.{study.name}")
        print(f"{study.name}: figures and numbers go to {study.images}", flush=True)
        for folder in (study.images, study.trainings):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            experiment(study)
        except BrokenProcessPool:
            place = study.trainings / side_by_side.LOG
            raise console.Problem(f"a training's process died; {place} may say why") from None
        seconds = time.perf_counter() - started
        print(f"{study.name}: done in {seconds / 60:.1f} minutes")
        write_json(mark(study), {"code": code, "numbers": numbers_of(study), "seconds": round(seconds)})

    return console.run(study.name, work, "the same command goes on from here")


def mark(study: Study) -> Path:
    """The file that marks this study as finished."""
    return study.trainings / f"{study.name}-seed{study.seed}.json"


def is_finished(study: Study) -> bool:
    """Whether this code has finished this study, and its numbers are still there unchanged."""
    if not mark(study).exists() or not (study.images / f"{study.name}.json").exists():
        return False
    marked = json.loads(mark(study).read_text(encoding="utf-8"))
    return marked["code"] == code_of(f"experiments.{study.name}") and marked["numbers"] == numbers_of(study)


def numbers_of(study: Study) -> str:
    """A fingerprint of the numbers that a study has written."""
    return fingerprint([(study.images / f"{study.name}.json").read_text(encoding="utf-8")])


# --- trainings --------------------------------------------------------------------------------------------------------
def settings_of(study: Study, **overrides: Any) -> Settings:
    """The settings of the Analysis with some of them replaced; a quick study has a small network and few steps.

    Raises utils.settings.SettingsError.
    """
    values = {**BASE, "seed": study.seed, **overrides}
    if study.quick:
        values |= {name: value for name, value in QUICK.items() if name not in overrides}
    return from_params(**values)


def repeated(study: Study, **overrides: Any) -> list[Training]:
    """One training for each seed, with the settings of the Analysis, some of them replaced."""
    return [Training(settings_of(study, seed=seed, **overrides)) for seed in study.seeds]


def steps_of(settings: Settings) -> int:
    """The number of steps of a training."""
    labels = mnist.load(settings.dataset, settings.data_dir).train_labels
    images = np.isin(labels, settings.labels).sum() if settings.labels else len(labels)
    return settings.epochs * int(images // settings.batch_size)


def train_all(study: Study, trainings: Sequence[Training]) -> list[Trained]:
    """Make the unfinished trainings, and return all in the given order. Raises the exceptions of main.train."""
    study.trainings.mkdir(parents=True, exist_ok=True)
    results = [Trained(study.trainings / training.name) for training in trainings]
    missing = {
        result.folder: training
        for result, training in zip(results, trainings, strict=True)
        if not (result.folder / "report.json").exists()
    }
    if not missing:
        return results
    for source in {(training.settings.dataset, training.settings.data_dir) for training in missing.values()}:
        mnist.load(*source)  # a download, if needed, happens here, once
    about = {"desc": study.name, "unit": "training", "ncols": 79, "ascii": " #"}
    training = side_by_side.train_all(missing, study.jobs, study.trainings / side_by_side.LOG)
    with tqdm(total=len(missing), disable=False, **about) as bar, closing(training):
        for folder, error in training:
            if error:
                raise error
            bar.update(folder is not None)
    return results


def train_groups(study: Study, wanted: dict[Any, list[Training]]) -> dict[Any, list[Trained]]:
    """Do the same for groups of trainings by key, such as the trainings of one model with several seeds."""
    trained = iter(train_all(study, [training for group in wanted.values() for training in group]))
    return {key: [next(trained) for _ in group] for key, group in wanted.items()}
