"""Group runs into the rows and tables of a comparison, sort them, and find the settings that differ.

Nothing here draws or prints: experiments/compare.py prints the tables, and experiments/comparison.py draws them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.load import Run
from experiments.results import shown, summary
from utils import known, mnist, report, runs
from utils.console import Problem, Say
from utils.dataset import hashed

BEST_FIRST = {  # the columns; sorting by sign * value puts the best first
    "elbo": -1, "nll": 1, "reconstruction": 1, "kl": 1, "active_units": -1, "frechet": 1, "seconds": 1, "healthy": -1,
}  # fmt: skip
DIGITS = {"active_units": 0, "frechet": 1, "seconds": 0}  # decimals; all other columns have 2
MOST_NAMED = 3  # if more settings differ, a row names only those whose value is not the commonest


# --- a run's numbers --------------------------------------------------------------------------------------------------
class Measured(NamedTuple):
    """What a run's ELBO and NLL measure. The numbers of two runs compare if all three parts are the same."""

    images: str  # identified by their content, not by name
    pixels: str
    loss: str


def measured(run: Run) -> Measured:
    """What a run's numbers measure. Raises RunError."""
    s, record = run.settings, known.load(run.folder)
    images = f"{s.dataset} {s.labels} {s.held_out} {s.data_dir}"  # for an old run, which did not save their hashes
    if record:
        images = str(hashed([np.sort(record["tested"])])[0])
    cut = () if s.dataset in (*mnist.TITLES, "arrays") else (s.image_crop, s.image_fit)
    loss = {"likelihood": "a likelihood", "density": "a density"}.get(report.kind(s), f"loss {s.loss}, no likelihood")
    if s.autoencoder:
        loss = f"plain autoencoder, loss {s.loss}"
    return Measured(images, f"{s.binarize} {run.image_shape} {cut}", loss)


def title_of(run: Run) -> str:
    """What a run's numbers measure, in words."""
    s, record = run.settings, known.load(run.folder)
    labels = f" ({', '.join(map(str, s.labels))} only)" if s.labels else ""
    count = f"{len(record['tested']):,} " if record else ""
    images = f"{count}{'held-out' if s.held_out else 'test'} images of {' x '.join(map(str, run.image_shape))}"
    pixels = "black and white" if s.binarize == "dynamic" else "as they are"
    return f"{s.dataset}{labels}: {images}, {pixels}; {measured(run).loss}"


def numbers_of(run: Run) -> dict[str, Any]:
    """The numbers of a finished run by column, None for a missing one; and the standard errors of its NLL.

    "evaluated" has the NLL of experiments.evaluate, if that was run at the run's last step. Raises RunError.
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
    """Raise RunError if a run's JSON file has text where a number belongs, or has no reconstruction loss."""
    texts = ("kind", "of", "verdict")
    odd = [name for name, value in found.items() if isinstance(value, str) and name not in texts]
    if odd or found.get("test_reconstruction") is None:
        raise runs.RunError(f"{path} is not what a run wrote: {(odd or ['test_reconstruction'])[0]}")


def evaluated(run: Run, errors: Sequence[str]) -> dict[str, Any]:
    """The results of experiments.evaluate, if it was run at the run's last step. Raises RunError."""
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
    """Runs that differ only in their seeds, the settings they share, and the numbers of each run."""

    runs: list[Run]
    settings: dict[str, Any]
    measured: Measured
    numbers: list[dict[str, Any]]

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [run.settings.seed for run in self.runs]

    def values(self, name: str) -> list[float]:
        """The values of a column, without missing ones; "healthy" is 1 for yes and 0 for no."""
        return [float(numbers[name]) for numbers in self.numbers if numbers[name] is not None]

    def mean(self, name: str) -> float | None:
        """The mean of a column, if it has values."""
        return float(np.mean(values)) if (values := self.values(name)) else None


def rows_of(found: Iterable[Run], say: Say) -> list[Row]:
    """The rows of finished runs. `say` gets a line for each run that is left out, with the reason."""
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
    """Rows whose numbers compare, best first, and notes on them, a sentence each."""

    rows: list[Row]
    notes: list[str]

    @property
    def title(self) -> str:
        """What the numbers measure, in words."""
        return title_of(self.rows[0].runs[0])

    @property
    def columns(self) -> list[str]:
        """The columns with at least one value."""
        return [name for name in BEST_FIRST if any(row.values(name) for row in self.rows)]


def tables_of(rows: list[Row], sort: str | None) -> list[Table]:
    """The rows in tables, so that the rows of a table compare; sorted by a column or setting (default: the ELBO)."""
    groups: dict[Measured, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.measured, []).append(row)
    return [Table(*with_order(*with_one_nll(group), sort)) for group in groups.values()]


def with_one_nll(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows with one kind of NLL, and notes. It is the evaluated one if all runs have it with the same K."""
    every = [numbers for row in rows for numbers in row.numbers]
    draws = {numbers["evaluated"]["nll_samples"] if numbers["evaluated"] else None for numbers in every}
    if len(draws) == 1 and None not in draws:
        return [row._replace(numbers=[n | n["evaluated"] for n in row.numbers]) for row in rows], []
    notes = []
    if draws != {None}:
        notes.append("Not all runs were evaluated with the same K, so the NLL is that of the reports.")
    return rows, notes


def with_order(rows: list[Row], notes: list[str], sort: str | None) -> tuple[list[Row], list[str]]:
    """The rows sorted, and the notes; a note warns if the NLLs use different numbers of draws."""
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
            f"The NLL is by {several} draws. More draws give a lower NLL, so only rows with the same K compare.",
        ]

    def place(row: Row) -> tuple[Any, ...]:
        if sort == "seed":
            return False, row.seeds
        if sort not in BEST_FIRST:
            return sortable(row.settings.get(sort))
        value = row.mean(sort)
        group = -(row.numbers[0]["nll_samples"] or 0) if sort == "nll" else 0  # only NLLs with the same K compare
        return value is None, group, BEST_FIRST[sort] * (value or 0)

    return sorted(rows, key=place), notes


def sortable(value: Any) -> tuple[Any, ...]:
    """A sort key for the value of a setting: numbers come before texts."""
    if isinstance(value, tuple):
        return tuple(map(sortable, value))
    return (1, value) if isinstance(value, str) else (0, float(value or 0))


# --- in words ---------------------------------------------------------------------------------------------------------
def differing(rows: Sequence[Row]) -> list[str]:
    """The names of the settings in which rows differ, in the order of params.py."""
    return [name for name in rows[0].settings if len({row.settings.get(name) for row in rows}) > 1] if rows else []


def in_words(row: Row, rows: Sequence[Row]) -> str:
    """How a row differs from the others: its differing settings or, if there are many, only its uncommon values."""
    names = differing(rows)
    if len(names) > MOST_NAMED and len(rows) > 2:  # with two rows no value is the commonest
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
    """The heading of a column on the console and in the picture."""
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
