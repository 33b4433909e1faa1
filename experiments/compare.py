"""Which run is better, and in what do they differ? A table, a picture and a CSV of finished runs.

    python -m experiments.compare mnist-ce-z20 mnist-ce-z2
    python -m experiments.compare "mnist-ce-*" --sort nll
    python -m experiments.compare                               # all runs in predictions/

Runs that differ in nothing but the seed are one row: their mean, ± their standard deviation. Runs whose numbers cannot
be compared, because they are of other images, other pixels or another loss, stand in tables of their own.

The columns, which --sort takes, as it takes any setting, such as kl_weight_end:
  elbo            test ELBO, nats per image; higher is better, and the order unless --sort is given
  nll             minus the test log-likelihood; in brackets its standard error over test images. Where all runs of
                  a table were evaluated with as many draws, it is that of experiments.evaluate, else the report's
  reconstruction  reconstruction loss, nats per image
  kl              KL, nats per image
  active_units    latents in use
  frechet         Frechet distance of samples from test images, of runs that experiments.evaluate has judged
  seconds         of training by the clock, with its tests and pictures; in a sweep others train meanwhile
  healthy         what the report said

It writes comparison.png (the numbers with error bars, the curves over each other, samples side by side) and
comparison.csv to OUTPUT_DIR.
"""

import argparse
import csv
import glob
import io
import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from experiments.figures import draw_spread
from experiments.load import Run
from experiments.results import shown, summary
from utils import console, known, mnist, pictures, report, runs
from utils.console import Problem, Say, experiment_parser
from utils.dataset import hashed
from utils.files import why_no_folder, write_whole
from utils.settings import from_params

BEST_FIRST = {  # the columns, and the sign by which the best comes first when they are sorted
    "elbo": -1, "nll": 1, "reconstruction": 1, "kl": 1, "active_units": -1, "frechet": 1, "seconds": 1, "healthy": -1,
}  # fmt: skip
DIGITS = {"active_units": 0, "frechet": 1, "seconds": 0}  # behind the point; of all other columns 2
TABLES_IN_THE_PICTURE, IN_THE_PICTURE = 6, 12  # and rows of each
MOST_NAMED = 3  # settings that are named for each row; of more only those that are not as in most rows
ACROSS = 6  # grids of samples beside each other
LETTERS = 34  # in a line of a label
SAMPLES = 5  # rows and columns of a run's grid of samples that are shown


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("compare", __doc__)
    names = "runs: names, folders, or patterns of names in quotes [default: all]"
    parser.add_argument("runs", nargs="*", metavar="RUN", help=names)
    parser.add_argument("--sort", metavar="COLUMN", help="column or setting to sort by [default elbo]")
    parser.add_argument("--output-dir", metavar="DIR", help="folder that holds the runs [default that of params.py]")
    parser.add_argument("--to", metavar="DIR", help="folder to write to [default the folder that holds the runs]")
    asked = parser.parse_args(argv)
    try:
        asked.output_dir = asked.output_dir or from_params().output_dir
        asked.to = Path(asked.to or runs.folder_of_runs(asked.output_dir))
        if why := why_no_folder(asked.to, to_write=True):
            raise runs.RunError(f"--to {console.shown(asked.to)}: {why}")
        asked.folders = find_all(asked.runs, asked.output_dir, print)
        if asked.sort is not None:
            check_column(asked.sort)
    except Problem as problem:
        parser.error(str(problem))
    return asked


def find_all(words: Sequence[str], output_dir: str, say: Say) -> list[Path]:
    """The folders of the runs that are named, or match a pattern; of all in `output_dir` if none is named.

    What is there and is no run is left out, and `say` is given a line. Raises RunError.
    """
    parent = runs.folder_of_runs(output_dir)
    there, found = sorted(path.parent for path in parent.glob("[!.]*/params.json")), []
    for word in words or ["*"]:
        if any(letter in word for letter in "*?["):
            some = [folder for folder in there if fnmatch(folder.name, word)]
            some = some or [Path(path) for path in sorted(glob.glob(os.path.expanduser(word))) if has_run(Path(path))]
            if not some:
                names = ", ".join(folder.name for folder in there) or "none"
                raise runs.RunError(f"RUN {word}: no such run in {parent}; there is {names}")
            found += some
        elif os.path.exists(word) and not has_run(Path(word)) and not has_run(parent / word):
            say(f"note       {console.shown(word)} is no run, and left out")  # as where a shell has put in all names
        else:
            found.append(runs.find(word, output_dir, "RUN"))
    return list({folder.resolve(): folder for folder in found}.values())


def has_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / "params.json").is_file()


def check_column(name: str) -> None:
    """Raise RunError unless there is such a column, or a setting that has a part in the result."""
    names = [*BEST_FIRST, *runs.that_count(from_params())]
    if name not in names:
        raise runs.RunError(f"--sort: {name!r} is not allowed; {', '.join(BEST_FIRST)} or a setting is")


# --- a run's numbers --------------------------------------------------------------------------------------------------
class Measured(NamedTuple):
    """What a run's ELBO and NLL are of: those of two runs compare if all of it is the same."""

    images: str  # known by what they show, whatever they are called
    pixels: str
    loss: str


def measured(run: Run) -> Measured:
    """What a run's numbers are of. Raises RunError."""
    s, record = run.settings, known.load(run.folder)
    images = f"{s.dataset} {s.labels} {s.held_out} {s.data_dir}"  # of a run from before its images were saved with it
    if record:
        images = str(hashed([np.sort(record["tested"])])[0])
    cut = () if s.dataset in (*mnist.TITLES, "arrays") else (s.image_crop, s.image_fit)
    loss = {"likelihood": "a likelihood", "density": "a density"}.get(report.kind(s), f"loss {s.loss}, no likelihood")
    if s.autoencoder:
        loss = f"plain autoencoder, loss {s.loss}"
    return Measured(images, f"{s.binarize} {run.image_shape} {cut}", loss)


def title_of(run: Run) -> str:
    """What a run's numbers are of, in words."""
    s, record = run.settings, known.load(run.folder)
    labels = f" ({', '.join(map(str, s.labels))} only)" if s.labels else ""
    count = f"{len(record['tested']):,} " if record else ""
    images = f"{count}{'held-out' if s.held_out else 'test'} images of {' x '.join(map(str, run.image_shape))}"
    pixels = "black and white" if s.binarize == "dynamic" else "as they are"
    return f"{s.dataset}{labels}: {images}, {pixels}; {measured(run).loss}"


def numbers_of(run: Run) -> dict[str, Any]:
    """The numbers of a finished run by their columns, None for one that it has not; and the errors of its NLL.

    "evaluated" has the same of experiments.evaluate, if that was done with the run's last step. Raises RunError.
    """
    judged, lines = run.report, run.history("train")
    check_numbers(run.folder / "report.json", judged)
    found = {name: judged.get(f"test_{name}") for name in ("elbo", "nll", "reconstruction", "kl")}
    if found["elbo"] is None:
        found["elbo"] = judged.get(report.NO_ELBO)
    if judged.get("test_log_density") is not None:
        found["nll"] = -judged["test_log_density"]
    errors = ("standard_error_images", "standard_error_sampling")
    found |= {"active_units": judged.get("active_units"), "healthy": judged.get("healthy"), "frechet": None}
    found |= {name: judged.get(name) for name in errors} | {"nll_samples": judged.get("nll_samples"), "evaluated": None}
    steps = np.diff([0, *(line["step"] for line in lines)])
    speeds = [line.get("images_per_second") for line in lines]
    found["seconds"] = sum(steps * run.settings.batch_size / speeds) if all(speeds) and lines else None
    return found | evaluated(run, errors)


def check_numbers(path: Path, found: dict[str, Any]) -> None:
    """Raise RunError if a number in one of a run's JSON files is none, or there is no reconstruction loss."""
    texts = ("kind", "of", "verdict")
    odd = [name for name, value in found.items() if isinstance(value, str) and name not in texts]
    if odd or found.get("test_reconstruction") is None:
        raise runs.RunError(f"{path} is not what a run wrote: {(odd or ['test_reconstruction'])[0]}")


def evaluated(run: Run, errors: Sequence[str]) -> dict[str, Any]:
    """What experiments.evaluate has found, if that was of the run's last step. Raises RunError."""
    path, last = run.folder / "evaluation.json", max((line["step"] for line in run.history("test")), default=0)
    if not path.exists():
        return {}
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        if evaluation["step"] != last:
            return {}
        likely, distances = evaluation["likelihood"], evaluation["samples"]["frechet"] or {}
        found = {"frechet": distances.get("samples from the prior")}
        if likely:
            numbers = {"nll": -likely["log_likelihood"], "nll_samples": likely["samples"]}
            found["evaluated"] = numbers | {name: likely[name] for name in errors}
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise runs.RunError(f"{path} is not what experiments.evaluate wrote: {error!r}") from None


# --- rows and tables --------------------------------------------------------------------------------------------------
class Row(NamedTuple):
    """Runs that differ in nothing but their seeds, the settings they share, and the numbers of each."""

    runs: list[Run]
    settings: dict[str, Any]
    measured: Measured
    numbers: list[dict[str, Any]]

    @property
    def seeds(self) -> list[int]:
        """The seeds, one of each run."""
        return [run.settings.seed for run in self.runs]

    def values(self, name: str) -> list[float]:
        """The values of a column that there are; of "healthy" 1 for yes and 0 for no."""
        return [float(numbers[name]) for numbers in self.numbers if numbers[name] is not None]

    def mean(self, name: str) -> float | None:
        """The mean of a column, if it has values."""
        return float(np.mean(values)) if (values := self.values(name)) else None


def rows_of(found: Iterable[Run], say: Say) -> list[Row]:
    """The rows of finished runs. `say` is given a line for each run that is left out, and why."""
    rows: dict[Any, Row] = {}
    for run in found:
        try:
            if not run.is_finished:
                raise runs.RunError("it has no report yet")
            settings, of = runs.that_count(run.settings), measured(run)
            seed, numbers = settings.pop("seed"), numbers_of(run)
        except (Problem, OSError) as problem:
            say(f"note       {run.folder.name} is left out: {problem}")
            continue
        row = rows.setdefault((of, *sorted(settings.items())), Row([], settings, of, []))
        if seed in row.seeds:
            first = row.runs[row.seeds.index(seed)].folder.name
            say(f"note       {run.folder.name} is left out: it has the settings and the seed of {first}")
            continue
        row.runs.append(run)
        row.numbers.append(numbers)
    return [sorted_by_seed(row) for row in rows.values()]


def sorted_by_seed(row: Row) -> Row:
    """The row with its runs in the order of their seeds."""
    order = np.argsort(row.seeds)
    return row._replace(runs=[row.runs[n] for n in order], numbers=[row.numbers[n] for n in order])


class Table(NamedTuple):
    """Rows whose numbers compare, best first, and what to know of them, a sentence each."""

    rows: list[Row]
    notes: list[str]

    @property
    def title(self) -> str:
        """What the numbers are of."""
        return title_of(self.rows[0].runs[0])

    @property
    def columns(self) -> list[str]:
        """The columns that have a value."""
        return [name for name in BEST_FIRST if any(row.values(name) for row in self.rows)]


def tables_of(rows: list[Row], sort: str | None) -> list[Table]:
    """The rows in tables of those that compare, sorted by a column or setting (default: the ELBO)."""
    groups: dict[Measured, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.measured, []).append(row)
    return [Table(*with_order(*with_one_nll(group), sort)) for group in groups.values()]


def with_one_nll(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows with an NLL of one kind, and notes: the evaluated one if all runs have it, by as many draws."""
    every = [numbers for row in rows for numbers in row.numbers]
    draws = {numbers["evaluated"]["nll_samples"] if numbers["evaluated"] else None for numbers in every}
    if len(draws) == 1 and None not in draws:
        return [row._replace(numbers=[n | n["evaluated"] for n in row.numbers]) for row in rows], []
    notes = []
    if draws != {None}:
        notes.append("Not all were evaluated with as many draws, so the NLL is that of the reports.")
    return rows, notes


def with_order(rows: list[Row], notes: list[str], sort: str | None) -> tuple[list[Row], list[str]]:
    """The rows sorted, and the notes with what an NLL by other numbers of draws means for the order."""
    usual = "elbo" if any(row.values("elbo") for row in rows) else "reconstruction"
    if sort in BEST_FIRST and not any(row.values(sort) for row in rows):
        notes = [*notes, f"No row has {sort}, so the order is that of {usual}."]
        sort = usual
    sort = sort or usual
    draws = {numbers["nll_samples"] for row in rows for numbers in row.numbers} - {None}
    if len(draws) > 1:
        several = " and ".join(f"K = {count:,}" for count in sorted(draws))
        notes = [
            *notes,
            f"The NLL is by {several} draws. More give a lower one, so only those with the same K compare.",
        ]

    def place(row: Row) -> tuple[Any, ...]:
        if sort == "seed":
            return False, row.seeds
        if sort not in BEST_FIRST:
            return sortable(row.settings.get(sort))
        value = row.mean(sort)
        group = -(row.numbers[0]["nll_samples"] or 0) if sort == "nll" else 0  # as only one K compares
        return value is None, group, BEST_FIRST[sort] * (value or 0)

    return sorted(rows, key=place), notes


def sortable(value: Any) -> tuple[Any, ...]:
    """A setting as what can be sorted: numbers come before texts."""
    if isinstance(value, tuple):
        return tuple(map(sortable, value))
    return (1, value) if isinstance(value, str) else (0, float(value or 0))


# --- in words ---------------------------------------------------------------------------------------------------------
def differing(rows: Sequence[Row]) -> list[str]:
    """The names of the settings in which rows differ, in the order of params.py."""
    return [name for name in rows[0].settings if len({row.settings.get(name) for row in rows}) > 1] if rows else []


def in_words(row: Row, rows: Sequence[Row]) -> str:
    """In what a row differs from the others: its settings or, where many differ, those that are not as in most rows."""
    names = differing(rows)
    if len(names) > MOST_NAMED and len(rows) > 2:  # of two rows neither is as most
        usual = {name: Counter(other.settings.get(name) for other in rows).most_common(1)[0][0] for name in names}
        names = [name for name in names if row.settings.get(name) != usual[name]]
    words = [f"{name} {value_in_words(row.settings.get(name))}" for name in names]
    if len({*(tuple(other.seeds) for other in rows)}) > 1:
        words.append(f"seed {' '.join(map(str, row.seeds))}")
    return ", ".join(words) or "as most" * (len(rows) > 1)


def value_in_words(value: Any) -> str:
    """A setting in one word, as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value) or "none"


def heading(name: str, table: Table) -> str:
    """What a column of a table is called on the console and in the picture."""
    meaning = report.kind(table.rows[0].runs[0].settings)
    if name == "elbo":
        return "ELBO" if meaning != "none" else report.NO_ELBO
    if name == "nll":
        draws = {numbers["nll_samples"] for row in table.rows for numbers in row.numbers} - {None}
        several = " and ".join(f"{count:,}" for count in sorted(draws))
        return ("NLL" if meaning == "likelihood" else "-log-density") + f" (K {several})" * bool(draws)
    return {"kl": "KL", "active_units": "active units", "frechet": "Frechet"}.get(name, name)


def cell(row: Row, name: str) -> str:
    """A number of a row as text."""
    if not (values := row.values(name)):
        return "not finished" if name == "healthy" and row.runs[0].report.get("verdict") == "not finished" else "-"
    if name == "healthy":
        yes, count = int(sum(values)), len(row.runs)
        return ("yes" if yes else "no") if count == 1 else f"{yes} of {count}"
    text = shown(summary(values), DIGITS.get(name, 2))
    if name == "active_units":
        return f"{text} of {row.settings['latent_dim']}"
    errors = [numbers["standard_error_images"] for numbers in row.numbers if name == "nll"]
    return f"{text} ({np.mean(errors):.2f})" if errors and None not in errors else text


def in_lines(tables: Sequence[Table], rows: Sequence[Row]) -> list[str]:
    """The tables for the console."""
    lines = []
    for table in tables:
        grid = [["", *(heading(name, table) for name in table.columns), "run", "differs in"]]
        for place, row in enumerate(table.rows, 1):
            more = f" and {len(row.runs) - 1} more" if len(row.runs) > 1 else ""
            cells = [cell(row, name) for name in table.columns]
            grid.append([str(place), *cells, row.runs[0].folder.name + more, in_words(row, table.rows)])
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        lines += ["", f"{table.title}:"]
        lines += [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in grid
        ]
        lines += [f"  {note}" for note in table.notes]
    if any(len(row.runs) > 1 for row in rows):
        lines.append("±: the standard deviation over seeds")
    if any(row.values("nll") for row in rows):
        lines.append("(): the standard error over test images; runs tested on the same images share most of it")
    if len(rows) > 1 and not all(row.settings["held_out"] for row in rows):
        lines.append("To choose by such numbers train with HELD_OUT: then they are of images that are no test images.")
    if apart := why_apart(tables):
        lines += ["", apart]
    return lines


def why_apart(tables: Sequence[Table]) -> str:
    """Why there are several tables, in a sentence; "" for one."""
    of = [table.rows[0].measured for table in tables]
    names = {"images": "images", "pixels": "pixels", "loss": "losses"}
    other = [f"other {plural}" for name, plural in names.items() if len({getattr(each, name) for each in of}) > 1]
    return f"The tables are of {', '.join(other)}: no number compares between them." if other else ""


def as_csv(tables: Sequence[Table], rows: Sequence[Row]) -> str:
    """All tables as one CSV: a line a row, with the settings that differ, and of several seeds mean and deviation."""
    names, columns = differing(rows), [name for name in BEST_FIRST if any(row.values(name) for row in rows)]
    of_nll = {"nll_error_images": "standard_error_images", "nll_error_sampling": "standard_error_sampling"}
    of_nll |= {"nll_draws": "nll_samples"}
    head = ["table", "place", "runs", "seeds", *names]
    head += [part for name in columns for part in (name, f"{name}_sd")] + [*of_nll]
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerow(head)
    for table in tables:
        for place, row in enumerate(table.rows, 1):
            folders, seeds = (";".join(map(str, some)) for some in ([run.folder for run in row.runs], row.seeds))
            line = [table.title, place, folders, seeds]
            line += [value_in_words(row.settings.get(name)) for name in names]
            for name in columns:
                found = summary(row.values(name)) if row.values(name) else {"mean": None, "sd": None}
                line += [found["mean"], found["sd"]]
            writer.writerow(line + [row.mean(name) for name in of_nll.values()])
    return text.getvalue()


# --- the picture ------------------------------------------------------------------------------------------------------
def save_comparison(path: Path, tables: Sequence[Table]) -> None:
    """Draw the first tables below each other: the numbers of each row, its curves, and its samples. Raises OSError."""
    tables = tables[:TABLES_IN_THE_PICTURE]
    heights = [0.4 + sum(heights_of(table)) for table in tables]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(tables), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, table in zip(parts, tables, strict=True):
        draw_table(part, table)
    pictures.save_figure(path, figure)


def draw_table(part: SubFigure, table: Table) -> None:
    """Draw the first rows of a table, each in its colour."""
    some = table.rows[:IN_THE_PICTURE]
    if by := swept(some):
        some = sorted(some, key=lambda row: row.settings[by])
    more = f"; the first {len(some)} of {len(table.rows)} rows" if len(some) < len(table.rows) else ""
    spread = "\nbars: standard deviation over seeds; dots: runs; behind curves: the range over seeds"
    part.suptitle(f"{table.title}{more}{spread * any(len(row.runs) > 1 for row in some)}", fontsize=11)
    labels = [label_of(row, table) for row in some]
    colours = colours_of(some)
    above, middle, below = part.subfigures(3, 1, height_ratios=heights_of(table))
    names = [name for name in table.columns if name not in ("seconds", "healthy", "reconstruction")] or [
        "reconstruction"
    ]
    for place, (axes, name) in enumerate(zip(above.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
        draw_numbers(axes, some, name, heading(name, table), labels if place == 0 else None, colours)
    curves = [name for name in ("elbo", "kl") if name in names] or ["reconstruction"]
    for axes, name in zip(middle.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        draw_curves(axes, some, name, heading(name, table), labels, colours)
        if name == curves[0]:
            axes.legend(fontsize=8)
    draw_samples(below, some, labels, colours)


def heights_of(table: Table) -> list[float]:
    """The heights of the numbers, the curves and the samples of a table, in inches."""
    some = table.rows[:IN_THE_PICTURE]
    return [3.2 if swept(some) else 1 + 0.4 * len(some), 3.4, 2.6 * -(-len(some) // ACROSS)]


def label_of(row: Row, table: Table) -> str:
    """What a row is called in the picture, in short lines."""
    words = pictures.drawable(in_words(row, table.rows) or row.runs[0].folder.name, 3 * LETTERS)
    return textwrap.fill(words, LETTERS)


def colours_of(rows: Sequence[Row]) -> list[Any]:
    """A colour for each row: along a scale if they differ in one number, else as unlike as may be."""
    if swept(rows):
        return [colormaps["viridis"](place) for place in np.linspace(0, 0.85, len(rows))]
    return [colormaps["tab20" if len(rows) > 10 else "tab10"](place) for place in range(len(rows))]


def swept(rows: Sequence[Row]) -> str | None:
    """The setting that is a number and alone differs between rows, as in a sweep; None if there is none."""
    names = differing(rows)
    numbers = [row.settings.get(names[0]) for row in rows] if len(names) == 1 else []
    return names[0] if numbers and all(type(value) in (int, float) for value in numbers) else None


def draw_numbers(
    axes: Axes, rows: Sequence[Row], name: str, title: str, labels: list[str] | None, colours: list[Any]
) -> None:
    """Draw a column: each row's mean with its standard deviation, and every run as a small point."""
    by = swept(rows)
    for place, row in enumerate(rows):
        values = row.values(name)
        if not values:
            continue
        at = row.settings[by] if by else -place
        spread = np.std(values, ddof=1) if len(values) > 1 else 0
        style = {"color": colours[place], "marker": "o", "markersize": 6, "capsize": 4}
        ends = {"y": np.mean(values), "yerr": spread} if by else {"x": np.mean(values), "xerr": spread}
        axes.errorbar(**({"x": at} if by else {"y": at}), **ends, **style)
        points = ([at] * len(values), values) if by else (values, [at] * len(values))
        axes.plot(*points, linestyle="", marker=".", markersize=4, color="black", alpha=0.5)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if name == "active_units":
        (axes.yaxis if by else axes.xaxis).get_major_locator().set_params(integer=True)
    if by:
        axes.set_xlabel(by)
        if all(type(row.settings[by]) is int for row in rows):
            axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.set_yticks([-place for place in range(len(rows))], labels or [""] * len(rows), fontsize=8)
        axes.set_ylim(0.5 - len(rows), 0.5)


def draw_curves(
    axes: Axes, rows: Sequence[Row], name: str, title: str, labels: Sequence[str], colours: Sequence[Any]
) -> None:
    """Draw a number of the tests over steps: of several seeds the mean, and the range behind it."""
    for row, label, colour in zip(rows, labels, colours, strict=True):
        tests = [{line["step"]: value for line in run.history("test") if (value := of_test(line, name)) is not None}
                 for run in row.runs]  # fmt: skip
        steps = sorted(set.intersection(*(set(found) for found in tests)))
        if steps:
            draw_spread(axes, steps, np.array([[found[step] for step in steps] for found in tests]), label, colour)
    axes.set_title(f"{title} by step, in nats per image", fontsize=10)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)


def of_test(line: dict[str, Any], name: str) -> float | None:
    """A number of a test line of the history."""
    return line.get(report.NO_ELBO) if name == "elbo" and line["elbo"] is None else line[name]


def draw_samples(part: SubFigure, rows: Sequence[Row], labels: Sequence[str], colours: Sequence[Any]) -> None:
    """Show a corner of the newest grid of each row's first run."""
    panels = part.subplots(-(-len(rows) // ACROSS), ACROSS, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, row, label, colour in zip(panels.flat, rows, labels, colours, strict=False):
        run, name = row.runs[0], pictures.names_of(row.runs[0].settings)[0]
        if grids := [*filter(pictures.is_whole, pictures.grids_of(run.folder, name)[-1:])]:
            axes.imshow(corner(grids[-1], run.image_shape, name == "samples"), cmap="gray", vmin=0, vmax=255)
        seed = f", seed {row.seeds[0]}" if len(row.runs) > 1 else ""
        axes.set_title(f"{label}{seed}: {name}", fontsize=8, color=colour)


def corner(path: Path, image_shape: Sequence[int], of_ten: bool) -> np.ndarray:
    """The upper left images of a grid that has ten a row, in whatever size it was drawn; of another the whole."""
    with Image.open(path) as picture:
        sheet = np.asarray(picture)
    if not of_ten:
        return sheet
    height, width = image_shape[:2]
    pixel = sheet.shape[1] / (2 + 10 * (width + 2))  # of the grid, in pixels of the picture
    return sheet[: round(pixel * (2 + SAMPLES * (height + 2))), : round(pixel * (2 + SAMPLES * (width + 2)))]


# --- main -------------------------------------------------------------------------------------------------------------
def compare(folders: Sequence[Path], to: Path, sort: str | None = None, say: Say = print) -> list[Table]:
    """Compare the runs in these folders: show the tables, write comparison.png and comparison.csv into the folder `to`.

    Raises RunError if none of them is finished, and OSError.
    """
    with console.waiting_bar("reading", len(folders)) as bar:
        rows = rows_of(counted((Run(folder, say=quiet) for folder in folders), bar.update), say)
    if not rows:
        raise runs.RunError("there is no finished run to compare")
    tables = tables_of(rows, sort)
    for line in in_lines(tables, rows):
        say(line)
    to.mkdir(parents=True, exist_ok=True)
    save_comparison(to / "comparison.png", tables)
    write_whole(to / "comparison.csv", as_csv(tables, rows).encode(errors="replace"))
    if len(tables) > TABLES_IN_THE_PICTURE:
        say(f"note       comparison.png has the first {TABLES_IN_THE_PICTURE} of {len(tables)} tables")
    say(f"\nlook at    {console.shown((to / 'comparison.png').absolute())}, comparison.csv")
    return tables


def counted(items: Iterable[Any], update: Callable[[int], Any]) -> Iterable[Any]:
    """The same items; `update` is called when each is done with."""
    for item in items:
        yield item
        update(1)


def quiet(note: str) -> None:
    """Say nothing: how a run that was saved without a constant is taken changes nothing in its numbers."""


def main(asked: argparse.Namespace) -> int:
    """Compare as the command line says; return the exit code."""
    return console.run("compare", lambda: compare(asked.folders, asked.to, asked.sort), "the same command begins again")


if __name__ == "__main__":
    console.begin()
    sys.exit(main(read_command_line()))
