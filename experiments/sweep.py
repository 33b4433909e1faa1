"""Train with every combination of some values, and compare the results.

    python -m experiments.sweep --kl-weight-end 0.5 1 2 --seed 0 1 2 --epochs 5
    python -m experiments.sweep --encoder-layers 256,256 512 --autoencoder true false

Every constant of params.py is an option (python main.py --help explains them), and takes one or more values. A list is
one word: 256,256. The name of a run contains the swept values, as in mnist-ce-z20-kl_weight_end0.5-seed1; otherwise it
is a normal run. Several runs train at once on the CPU, each with one thread; --jobs 0 trains one after the other, with
all threads or the GPU.

After Ctrl-C the same command continues: it keeps finished runs, and resumes interrupted ones. If a run fails, a line
reports it, and the others continue. At the end come the table, comparison.png and comparison.csv of
experiments.compare. To choose among the values, hold images out: --held-out 10000.
"""

import math
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiments import compare, side_by_side
from experiments.side_by_side import MOST_JOBS
from utils import console, data, runs
from utils.console import Problem, experiment_parser
from utils.settings import Settings, read_command_line, read_constants

MOST_RUNS = 1_000
TRUTH = {"true": True, "false": False}  # the values that a sweep takes for a flag


class Asked(NamedTuple):
    """What the command line asks for."""

    settings: list[Settings]  # of each run
    swept: list[str]  # the names of the settings that differ between them
    jobs: int
    sort: str | None


# --- the command line -------------------------------------------------------------------------------------------------
def read_sweep(argv: Sequence[str] | None = None) -> Asked:
    """What the command line asks for. A mistake in any combination prints one line and exits with code 2."""
    parser = experiment_parser("sweep", __doc__)
    parser.usage = "python -m experiments.sweep [--help] [--jobs N] [--sort COLUMN] --CONSTANT VALUE [VALUE ...] ..."
    jobs = f"trainings side by side, one thread each; 0: one by one in this process [default {MOST_JOBS}]"
    parser.add_argument("--jobs", type=console.whole(0, 1_000), default=MOST_JOBS, metavar="N", help=jobs)
    parser.add_argument("--sort", metavar="COLUMN", help="how the comparison is sorted [default elbo]")
    asked, words = parser.parse_known_args(argv)
    try:
        if asked.sort is not None:
            compare.check_column(asked.sort)
        settings = combinations(grouped(words))
        check(settings)
    except Problem as problem:
        parser.error(str(problem))
    return Asked(settings, varied(settings), asked.jobs, asked.sort)


def varied(settings: Sequence[Settings]) -> list[str]:
    """The names of the settings that differ."""
    return [name for name, _ in settings[0] if len({getattr(s, name) for s in settings}) > 1]


def grouped(words: Sequence[str]) -> dict[str, list[str]]:
    """The values that follow each option, by option.

    Raises RunError for a word that follows no option, for an option that is there twice, and if there are no words.
    """
    if not words:
        raise runs.RunError("nothing to sweep; name a constant and its values, as in --seed 0 1 2")
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            if option in found:
                raise runs.RunError(f"{option} is there twice; all its values follow it at once, as in --seed 0 1 2")
            values = found[option] = [value] * bool(equals)
        elif not found:
            raise runs.RunError(f"{word!r} follows no option; a sweep is as in --seed 0 1 2")
        else:
            values.append(word)
    return found


def combinations(values: dict[str, list[str]]) -> list[Settings]:
    """The settings of each combination of values, without repeats; the last option varies fastest.

    Raises RunError, and exits with code 2 if main.py would.
    """
    if "--resume" in values:
        raise runs.RunError("--resume: not an option of a sweep; the same command continues it")
    ways = [[as_typed(option, value) for value in some or [""]] for option, some in values.items()]
    if (total := math.prod(map(len, ways))) > MOST_RUNS:
        raise runs.RunError(f"{total:,} combinations; at most {MOST_RUNS:,} are allowed")
    found = [read_command_line([word for words in way for word in words], "sweep").settings for way in product(*ways)]
    return list(dict.fromkeys(found))


def as_typed(option: str, value: str) -> list[str]:
    """An option and its value as main.py takes them; a flag has no value."""
    constant = read_constants().get(option.removeprefix("--").replace("-", "_"))
    if constant and constant.annotation is bool and value.lower() in TRUTH:
        return [option if TRUTH[value.lower()] else f"--no-{option.removeprefix('--')}"]
    return [option, value] if value else [option]


def check(settings: Sequence[Settings]) -> None:
    """Raise the Problem that a run would have before it trains, as far as a quick check can find it."""
    for name in varied(settings):
        if name in runs.NOT_IN_NAMES:
            raise runs.RunError(f"--{name.replace('_', '-')}: several values are not allowed; they change no result")
    runs.check_place(settings[0].model_copy(update={"run_name": ""}))  # here RUN_NAME is only the start of each name
    for s in {s.model_copy(update={"seed": 0}): s for s in settings}.values():
        if s.start_from:
            runs.to_start_from(s, lambda note: None)
        data.check_early(s, None)


# --- folders ----------------------------------------------------------------------------------------------------------
def folders_of(settings: Sequence[Settings], swept: Sequence[str]) -> dict[Path, Settings]:
    """The folder of each run; it already exists if the run was begun before."""
    pairs = [(s, s.run_name or runs.derived_name(s)) for s in settings]
    plain = {name for _, name in pairs}
    # Settings that the derived name already contains, such as the number of latents, are not added again.
    said = [name for name in swept if len({(base, getattr(s, name)) for s, base in pairs}) > len(plain)]
    found: dict[Path, Settings] = {}
    for s, base in pairs:
        parent, name = runs.folder_of_runs(s.output_dir), runs.with_settings(base, {n: getattr(s, n) for n in said})
        places = (parent / each for each in runs.names_from(name, s, parent))
        found[next(place for place in places if place not in found and is_for(s, place))] = s
    return found


def is_for(s: Settings, folder: Path) -> bool:
    """Whether a folder is free, or holds a run with these settings."""
    return not folder.exists() or (compare.has_run(folder) and not runs.differences(s, folder))


# --- training ---------------------------------------------------------------------------------------------------------
def train(folders: dict[Path, Settings], jobs: int, log: Path) -> dict[Path, BaseException]:
    """Train the unfinished runs, with one progress bar; return the errors of those that failed."""
    missing = {folder: s for folder, s in folders.items() if not (folder / "report.json").exists()}
    if ended := len(folders) - len(missing):
        print(f"note       {ended} of {len(folders)} runs were finished before")
    for s in {(s.dataset, s.data_dir): s for s in missing.values()}.values():
        data.prepare(s, print)  # a download, if needed, happens here, once
    failed, tasks = {}, {folder: (s, None, ()) for folder, s in missing.items()}
    done = {folder: epochs_of(folder) for folder in missing}
    total, hidden = sum(s.epochs for s in missing.values()), not (missing and jobs)  # with 0 jobs a run has its own bar
    look = {"bar_format": "{desc} |{bar}| {remaining} left", "ncols": 79, "ascii": " #", "disable": hidden}
    training = side_by_side.train_all(tasks, jobs, log)
    with tqdm(total=total, initial=sum(done.values()), **look) as bar, closing(training):
        bar.set_description_str(f"{ended} of {len(folders)} runs")
        for folder, error in training:
            if folder is not None:
                ended, done[folder] = ended + 1, missing[folder].epochs
                bar.set_description_str(f"{ended} of {len(folders)} runs")
            if error is not None:
                failed[folder] = error
                bar.write(f"failed     {folder.name}: {why(error, log)}")
            done |= {other: epochs_of(other) for other in done if done[other] < missing[other].epochs}
            bar.update(sum(done.values()) - bar.n)
    return failed


def epochs_of(folder: Path) -> float:
    """How many epochs the history of a run has."""
    lines = runs.read_history(folder)
    return lines[-1]["epoch"] if lines else 0


def why(error: BaseException, log: Path) -> str:
    """Why a training failed, in one line."""
    if isinstance(error, BrokenProcessPool):
        return f"its process died twice, as when memory runs out; {log} may say why"
    return str(error) if isinstance(error, Problem) else f"{type(error).__name__}: {error}"


# --- main -------------------------------------------------------------------------------------------------------------
def sweep(asked: Asked) -> None:
    """Train the unfinished runs, and compare all. Raises OSError, and Problem if a run has failed."""
    folders = folders_of(asked.settings, asked.swept)
    parent = runs.folder_of_runs(asked.settings[0].output_dir)
    parent.mkdir(parents=True, exist_ok=True)
    how = f"{asked.jobs} at once, on the CPU with one thread each" if asked.jobs else "one by one"
    print(f"sweep      {len(folders)} runs in {parent}, {how}; they differ in {', '.join(asked.swept) or 'nothing'}")
    failed = train(folders, asked.jobs, parent / side_by_side.LOG)
    if finished := [folder for folder in folders if folder not in failed]:
        compare.compare(finished, parent, asked.sort)
    if failed:
        raise Problem(f"{len(failed)} of {len(folders)} runs failed, as said above; the same command tries them again")


def main(asked: Asked) -> int:
    """Sweep as the command line says; return the exit code."""
    return console.run("sweep", lambda: sweep(asked), "the same command goes on from here")


if __name__ == "__main__":
    console.begin()
    sys.exit(main(read_sweep()))
