"""Draw comparison.png: the numbers of compared runs with error bars, their curves, and their samples."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from experiments.comparable import Row, Table, differing, heading, in_words
from experiments.figures import draw_spread
from utils import pictures, report

MOST_TABLES, MOST_ROWS = 6, 12  # in the picture
ACROSS = 6  # grids of samples beside each other
LETTERS = 34  # in a line of a label
SAMPLES = 5  # rows and columns shown of a run's grid of samples


def save_comparison(path: Path, tables: Sequence[Table]) -> None:
    """Draw the first tables below each other: the numbers of each row, its curves, and its samples. Raises OSError."""
    tables = tables[:MOST_TABLES]
    heights = [0.4 + sum(heights_of(table)) for table in tables]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(tables), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, table in zip(parts, tables, strict=True):
        draw_table(part, table)
    pictures.save_figure(path, figure)


def draw_table(part: SubFigure, table: Table) -> None:
    """Draw the first rows of a table, each in its colour."""
    some = table.rows[:MOST_ROWS]
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
    some = table.rows[:MOST_ROWS]
    return [3.2 if swept(some) else 1 + 0.4 * len(some), 3.4, 2.6 * -(-len(some) // ACROSS)]


def label_of(row: Row, table: Table) -> str:
    """The label of a row in the picture, in short lines."""
    words = pictures.drawable(in_words(row, table.rows) or row.runs[0].folder.name, 3 * LETTERS)
    return textwrap.fill(words, LETTERS)


def colours_of(rows: Sequence[Row]) -> list[Any]:
    """A colour for each row: along a scale if the rows differ in one number, else distinct colours."""
    if swept(rows):
        return [colormaps["viridis"](place) for place in np.linspace(0, 0.85, len(rows))]
    return [colormaps["tab20" if len(rows) > 10 else "tab10"](place) for place in range(len(rows))]


def swept(rows: Sequence[Row]) -> str | None:
    """The only setting that differs between rows, if it is a number, as in a sweep; else None."""
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
    """Draw a number of the tests over steps; with several seeds, their mean and a band for their range."""
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
    """The upper left images of a grid with ten per row, drawn in any size; any other grid is returned whole."""
    with Image.open(path) as picture:
        sheet = np.asarray(picture)
    if not of_ten:
        return sheet
    height, width = image_shape[:2]
    pixel = sheet.shape[1] / (2 + 10 * (width + 2))  # of the grid, in pixels of the picture
    return sheet[: round(pixel * (2 + SAMPLES * (height + 2))), : round(pixel * (2 + SAMPLES * (width + 2)))]
