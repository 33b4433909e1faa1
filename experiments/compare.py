"""Which run is better, and how do the runs differ? A table, a picture and a CSV of finished runs.

    python -m experiments.compare mnist-ce-z20 mnist-ce-z2
    python -m experiments.compare "mnist-ce-*" --sort nll
    python -m experiments.compare                               # all runs in predictions/

Runs that differ only in the seed are one row: their mean, ± their standard deviation. Runs on other images, on other
pixels or with another loss are in separate tables, because their numbers do not compare.

--sort takes any of these columns, or a setting such as kl_weight_end:
  elbo            test ELBO, nats per image; higher is better; the default order
  nll             minus the test log-likelihood; in brackets its standard error over test images. It comes from
                  experiments.evaluate if all runs of a table were evaluated with the same K, else from the report
  reconstruction  reconstruction loss, nats per image
  kl              KL, nats per image
  active_units    latents in use
  frechet         Frechet distance of samples from test images, for runs that experiments.evaluate has judged
  seconds         wall-clock time of training, with tests and pictures; in a sweep, other runs train meanwhile
  healthy         the verdict of the report

It writes comparison.png (the numbers with error bars, the curves over each other, samples side by side) and
comparison.csv to OUTPUT_DIR.
"""

import argparse
import csv
import glob
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from experiments.comparable import (
    BEST_FIRST,
    Row,
    Table,
    cell,
    differing,
    heading,
    in_words,
    rows_of,
    tables_of,
    value_in_words,
)  # fmt: skip
from experiments.comparison import MOST_TABLES, save_comparison
from experiments.load import Run
from experiments.results import summary
from utils import console, runs
from utils.console import Problem, Say, experiment_parser
from utils.files import why_no_folder, write_whole
from utils.settings import from_params


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
    """The folders of the runs that are named or match a pattern; without names, all runs in `output_dir`.

    An existing path that is not a run is left out, and `say` gets a line. Raises RunError.
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
            say(f"note       {console.shown(word)} is no run, and left out")  # a shell may have expanded * to all names
        else:
            found.append(runs.find(word, output_dir, "RUN"))
    return list({folder.resolve(): folder for folder in found}.values())


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / "params.json").is_file()


def check_column(name: str) -> None:
    """Raise RunError unless this is a column, or a setting that affects the result."""
    names = [*BEST_FIRST, *runs.that_count(from_params())]
    if name not in names:
        raise runs.RunError(f"--sort: {name!r} is not allowed; {', '.join(BEST_FIRST)} or a setting is")


# --- what is shown ----------------------------------------------------------------------------------------------------
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
        lines.append("To choose between runs, train with HELD_OUT: the numbers then do not come from test images.")
    if apart := why_apart(tables):
        lines += ["", apart]
    return lines


def why_apart(tables: Sequence[Table]) -> str:
    """Why there are several tables, in a sentence; "" if there is only one."""
    of = [table.rows[0].measured for table in tables]
    names = {"images": "images", "pixels": "pixels", "loss": "losses"}
    other = [f"other {plural}" for name, plural in names.items() if len({getattr(each, name) for each in of}) > 1]
    return f"The tables are of {', '.join(other)}: no number compares between them." if other else ""


def as_csv(tables: Sequence[Table], rows: Sequence[Row]) -> str:
    """All tables as one CSV: a line per row, with the settings that differ, and mean and deviation over seeds."""
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


# --- main -------------------------------------------------------------------------------------------------------------
def compare(folders: Sequence[Path], to: Path, sort: str | None = None, say: Say = print) -> list[Table]:
    """Compare the runs in these folders: show the tables, write comparison.png and comparison.csv into the folder `to`.

    Raises OSError, and RunError if no run is finished.
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
    if len(tables) > MOST_TABLES:
        say(f"note       comparison.png has the first {MOST_TABLES} of {len(tables)} tables")
    say(f"\nlook at    {console.shown((to / 'comparison.png').absolute())}, comparison.csv")
    return tables


def counted(items: Iterable[Any], update: Callable[[int], Any]) -> Iterable[Any]:
    """Yield the same items; call `update` when the caller is done with each."""
    for item in items:
        yield item
        update(1)


def quiet(note: str) -> None:
    """Drop a note. Notes on constants that an old run did not save do not affect its numbers."""


def main(asked: argparse.Namespace) -> int:
    """Compare as the command line says; return the exit code."""
    return console.run("compare", lambda: compare(asked.folders, asked.to, asked.sort), "the same command begins again")


if __name__ == "__main__":
    console.begin()
    sys.exit(main(read_command_line()))
