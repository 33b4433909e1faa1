"""Format the numbers of an experiment, and write them to a JSON file, the console and a page of docs/."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fingerprint import ROOT
from experiments.study import Study
from utils.files import write_json, write_whole

ANALYSIS = ROOT / "docs" / "analysis.md"  # the page with their tables


def summary(values: Iterable[float]) -> dict[str, Any]:
    """The mean of values, their standard deviation (None for a single value), and the values themselves."""
    values = [float(value) for value in values]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": spread, "values": values}


def over_seeds(values: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """A summary of each number over several seeds."""
    return {name: summary(value[name] for value in values) for name in values[0]}


def in_percent(summarised: dict[str, Any]) -> dict[str, Any]:
    """A summary of shares, converted to percent."""
    return summary(100 * value for value in summarised["values"])


def shown(summarised: dict[str, Any], digits: int = 1) -> str:
    """A summary as tables show it, "96.3 ± 0.2"; without a spread that rounds to 0."""
    mean, spread = summarised["mean"], summarised["sd"]
    if spread is None or round(spread, digits) == 0:
        return f"{mean:,.{digits}f}"
    return f"{mean:,.{digits}f} ± {spread:.{digits}f}"


def percent(summarised: dict[str, Any], digits: int = 1) -> str:
    """A summary of shares, shown in percent."""
    return shown(in_percent(summarised), digits)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def publish(study: Study, numbers: dict[str, Any], tables: dict[str, str]) -> None:
    """Write numbers and tables to <name>.json beside the figures, print the tables, and put them into the Analysis.

    The page changes only if the study writes to images/, where the figures of the page are.
    """
    about = {"command": f"python -m experiments.{study.name}", "seeds": study.seeds, "quick": study.quick}
    write_json(study.images / f"{study.name}.json", about | numbers | {"tables": tables})
    for text in tables.values():
        print(f"\n{text}")
    if not study.quick and study.images == ROOT / "images":
        put_tables(ANALYSIS, tables)


def put_tables(page: Path, tables: dict[str, str]) -> None:
    """Put these tables in their places on a page. Raises ValueError, as with_tables does, and names the page."""
    try:
        text = with_tables(page.read_text(encoding="utf-8"), tables)
    except ValueError as error:
        raise ValueError(f"{page.name}: {error}") from None
    write_whole(page, text.encode())


def with_tables(text: str, tables: dict[str, str]) -> str:
    """The text of a page with these tables in their places, between <!-- table: <key> --> and <!-- end -->.

    Raises ValueError if a place is missing.
    """
    for key, markdown in tables.items():
        place = re.compile(rf"(<!-- table: {re.escape(key)} -->\n)(?:(?!<!-- table).)*?(<!-- end -->)", re.DOTALL)
        text, replaced = place.subn(lambda match, new=markdown: f"{match[1]}{new}\n{match[2]}", text)
        if replaced != 1:
            raise ValueError(f"{replaced} places for the table {key!r}, not one")
    return text
