"""Apply a trained run to your own images: how likely is each, how is it reconstructed, and which do not belong?

    python -m experiments.apply mnist-ce-z20 my_digits/
    python -m experiments.apply mnist-ce-z20 scan_1.png scan_2.png --invert

You can name image files and whole folders. Images are prepared as in training: turned, cropped, resized, made grey or
RGB, and with BINARIZE = dynamic drawn black and white. The score of an image is its ELBO in nats, a mean over 16 draws
that are the same for every image. If the loss is no likelihood, the score is -(loss + KL); for a plain autoencoder it
is -loss. Beside each score stands the share of the run's test images that score lower. An image below all of them does
not belong. The reverse does not hold. The score also depends on how simple an image is (in MNIST, ones score highest),
and images of another kind may score as high (Nalisnick et al. 2019, arXiv 1810.09136).

It writes a folder: --to, or else applied in the run's folder (with --best: applied_best). The folder has
  applied.png        the scores beside those of test images; the least likely images over their reconstructions
  scores.csv         one line per image, the least likely first: file, score, its standard error and parts, z_mean
  reconstructions/   the reconstructions of the 1,000 least likely images, numbered as in scores.csv
"""

# ruff: noqa: E402 (the command line is read first, before the seconds that TensorFlow takes)

import argparse
import csv
import io
import math
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.load import Run, add_run, parse_run
from utils import console, runs
from utils.console import Problem, Say, experiment_parser, shown
from utils.files import why_no_folder

NUMBERED = r"[0-9]{4}_[A-Za-z0-9_.-]*\.png"  # the names of reconstructions


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("apply", __doc__)
    add_run(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--invert", action="store_true", help="swap dark and light: for ink on paper; MNIST is light on dark"
    )
    parser.add_argument("--to", metavar="DIR", type=Path, help="folder to write [default applied in the run's folder]")
    asked = parse_run(parser, argv)
    asked.to = (asked.to or asked.run / ("applied_best" if asked.kind == "best" else "applied")).resolve()
    try:
        check_replaceable(asked.to, asked.images)
    except Problem as problem:
        parser.error(str(problem))
    return asked


def check_replaceable(place: Path, names: Sequence[str]) -> None:
    """Raise RunError if an image does not exist, or if `place` can be neither made nor replaced.

    Only a folder that this command has written is replaced.
    """
    for name in names:
        if not os.path.exists(name):
            raise runs.RunError(f"IMAGE {shown(name)}: no such file or folder")
        path = Path(name).resolve()
        if place in (path, *path.parents) or path in place.parents:
            raise runs.RunError(f"--to {shown(place)}: overlaps IMAGE {shown(name)}; name another folder")
    if why := why_no_folder(place, to_write=True) or why_no_folder(place.parent, to_write=True):
        raise runs.RunError(f"--to {shown(place)}: {why}")
    own = rf"applied\.png|scores\.csv|reconstructions(/{NUMBERED})?"
    there = [path.relative_to(place) for path in sorted(place.rglob("*"))]
    others = [path for path in there if not re.fullmatch(own, path.as_posix())]
    if others or (there and not (place / "scores.csv").is_file()):
        strange = shown(others[0] if others else there[0])
        raise runs.RunError(f"{shown(place)} would be replaced, but this command did not write {strange} in it")


if __name__ == "__main__":
    console.begin()
    ASKED = read_command_line()

from matplotlib.figure import Figure
from PIL import Image

from experiments import latent, whole_images
from utils import folders, images, known, pictures, report
from utils.dataset import READERS, BadImage, evaluated_at_once
from utils.files import write_folder, write_whole
from utils.images import Prepared

FILES = ("applied.png", "scores.csv", "reconstructions")
DRAWS = 16  # a score is a mean over so many draws of z and of black and white pixels
MOST_TESTED = 1_000  # test images whose scores the comparison uses
MOST_WRITTEN = 1_000  # reconstructions
READ_AT_ONCE = 100  # images
SHOWN = 10  # images in a line of the console's table and a row of the picture
LONGEST_FILE = 22  # letters of a file's name in the picture


class NoImage(Problem):
    """The named files and folders hold no usable image."""

    exit_code = 2


# --- the images -------------------------------------------------------------------------------------------------------
def find(names: Sequence[str]) -> tuple[list[bytes], list[str]]:
    """The paths of all images that are named or lie in a named folder; and what was left out, in words.

    Raises NoImage if there is no image.
    """
    paths: dict[bytes, int] = {}
    strange: list[tuple[str, bytes]] = []
    for name in names:
        if not os.path.isdir(name):
            paths[os.fsencode(name)] = os.stat(name).st_mtime_ns
            continue
        found, others = folders.find_files(Path(name))
        paths |= {os.path.join(os.fsencode(name), file): found[file] for file in sorted(found)}
        strange += others
    kinds, _ = images.look_at_files(tuple(paths), tuple(paths.values()))
    strange += [(kind, path) for kind, path in zip(kinds, paths, strict=True) if kind]
    left_out = images.counted(strange)
    if not (kept := [path for kind, path in zip(kinds, paths, strict=True) if not kind]):
        named = " ".join(map(shown, names))
        raise NoImage(f"IMAGE {named}: no image there; there is {'; '.join(left_out) or 'nothing'}")
    return kept, left_out


def preparation(run: Run, survey: images.Survey) -> Prepared:
    """How an image is prepared for a run. Raises NoImage if the run's images are neither grey nor RGB."""
    if run.image_shape[2] not in (1, 3):
        raise NoImage(f"{run.folder.name} has images of {run.image_shape[2]} channels; no image file has these")
    record, seen = known.load(run.folder), images.prepared(survey, 4, 0, "crop").white
    white = int(record["white"]) if record and "white" in record else seen
    return whole_images.prepared(run.settings, run.image_shape)._replace(white=white)


class Read(NamedTuple):
    """The readable images, uint8 (N, H, W, C), and their paths."""

    pixels: np.ndarray
    paths: list[bytes]


def read(paths: Sequence[bytes], how: Prepared, invert: bool) -> tuple[Read, dict[bytes, str]]:
    """Read images; also return the reason for each one that cannot be read."""
    bad: dict[bytes, str] = {}

    def read_one(path: bytes) -> np.ndarray | None:
        try:
            return images.read_image(path, how)
        except BadImage as error:
            bad[path] = str(error)
            return None

    with ThreadPoolExecutor(READERS) as pool:
        found = {path: image for path, image in zip(paths, pool.map(read_one, paths), strict=True) if path not in bad}
    pixels = np.array([*found.values()], np.uint8).reshape(-1, *how.shape)
    return Read(255 - pixels if invert else pixels, [*found]), bad


def read_again(paths: Sequence[bytes], how: Prepared, invert: bool) -> np.ndarray:
    """Read images once more, uint8 (N, H, W, C). Raises NoImage for one that can no longer be read."""
    again, bad = read(paths, how, invert)
    for why in bad.values():
        raise NoImage(f"it could be read a moment ago: {why}")
    return again.pixels


# --- the scores -------------------------------------------------------------------------------------------------------
class Scores(NamedTuple):
    """The scores of N images: paths, the parts of each score and its standard error (N,), and z_mean (N, L)."""

    paths: list[bytes]
    reconstruction: np.ndarray
    kl: np.ndarray
    errors: np.ndarray
    z_mean: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """The scores (N,), in nats; higher is likelier."""
        return -(self.reconstruction + self.kl)


def score_images(run: Run, pixels: Any) -> np.ndarray:
    """Reconstruction loss, KL and the standard error of their sum for uint8 images (N, H, W, C), in nats: (3, N).

    Each image is a batch of DRAWS copies. So all images have the same draws, and no score depends on another image.
    """
    found = []
    for number in range(len(pixels)):
        reconstruction, kl = run.terms(np.repeat(pixels[number : number + 1], DRAWS, axis=0))
        total = reconstruction + kl.sum(axis=1)
        found.append((reconstruction.mean(), kl.sum(axis=1).mean(), total.std(ddof=1) / math.sqrt(DRAWS)))
    return np.array(found, float).reshape(-1, 3).T


def score(run: Run, paths: Sequence[bytes], how: Prepared, invert: bool) -> tuple[Scores, float, dict[bytes, str]]:
    """Score images, a few at a time; also return their mean brightness in [0, 1], and why some cannot be read.

    The least likely images come first. Raises NoImage if none can be read.
    """
    at_once, parts, bad = min(READ_AT_ONCE, evaluated_at_once((0, *how.shape))), [], {}
    with console.waiting_bar("scoring", len(paths)) as bar:
        for start in range(0, len(paths), at_once):
            some, others = read(paths[start : start + at_once], how, invert)
            bad |= others
            if some.paths:
                z_mean, _ = run.encode(some.pixels)
                light = some.pixels.mean(axis=(1, 2, 3))
                parts.append((some.paths, *score_images(run, some.pixels), z_mean, light))
            bar.update(len(paths[start : start + at_once]))
    if not parts:
        raise NoImage(f"none of the images can be read; the first: {next(iter(bad.values()))}")
    names, *numbers, light = zip(*parts, strict=True)
    found = Scores([*chain.from_iterable(names)], *map(np.concatenate, numbers))
    order = np.argsort(found.total, kind="stable")
    in_order = Scores([found.paths[n] for n in order], *(part[order] for part in found[1:]))
    return in_order, float(np.concatenate(light).mean() / 255), bad


def of_tests(run: Run) -> tuple[np.ndarray, float] | None:
    """The scores and the mean brightness of the run's test images; None, with a note, if the data are missing."""
    try:
        tests = run.dataset().test_images
    except (Problem, OSError) as error:
        print(f"note       no comparison with test images: {error}")
        return None
    chosen, scores, light = latent.evenly(len(tests), MOST_TESTED), [], []
    with console.waiting_bar("comparing", len(chosen)) as bar:
        for start in range(0, len(chosen), READ_AT_ONCE):
            pixels = tests[chosen[start : start + READ_AT_ONCE]]
            reconstruction, kl, _ = score_images(run, pixels)
            scores.append(-(reconstruction + kl))
            light.append(pixels.mean(axis=(1, 2, 3)))
            bar.update(len(pixels))
    return np.concatenate(scores), float(np.concatenate(light).mean() / 255)


def name_of_score(run: Run) -> str:
    """The name of the score."""
    if run.settings.autoencoder:
        return "-loss"
    return "ELBO" if report.kind(run.settings) != "none" else report.NO_ELBO


def below(scores: np.ndarray, tests: np.ndarray) -> np.ndarray:
    """The share of test scores (M,) that lie below each score (N,)."""
    return np.searchsorted(np.sort(tests), scores) / len(tests)


# --- what is shown ----------------------------------------------------------------------------------------------------
def table(found: Scores, name: str, tests: np.ndarray | None) -> list[str]:
    """The least likely images as lines for the console."""
    images = f"{len(found.paths):,} image{'s' * (len(found.paths) > 1)} by {name} in nats"
    lines = ["", f"What does not belong?  {images}, the least likely first:"]
    lines.append(f"  {name:>12} {'error':>7} {'reconstruction':>15} {'KL':>9} {'lower tests':>12}  file")
    shares = below(found.total, tests) if tests is not None else [None] * len(found.paths)
    for path, loss, kl, error, total, share in [*zip(*found[:4], found.total, shares, strict=True)][:SHOWN]:
        lower = "" if share is None else f"{share:.1%}"
        numbers = f"{total:>12,.2f} {error:>7,.2f} {loss:>15,.2f} {kl:>9,.2f}"
        lines.append(f"  {numbers} {lower:>12}  {shown(path)}")
    if len(found.paths) > SHOWN:
        lines.append(f"  and {len(found.paths) - SHOWN:,} more in scores.csv")
    if tests is not None:
        lines.append(f"  median {np.median(found.total):,.2f}; of {len(tests):,} test images {np.median(tests):,.2f}")
    return lines


def as_csv(found: Scores, tests: np.ndarray | None, bad: dict[bytes, str]) -> str:
    """A line for each image; the unreadable ones come last, with the reason."""
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    latents = [f"z_mean_{number}" for number in range(1, found.z_mean.shape[1] + 1)]
    parts = ["score", "standard_error", "reconstruction", "kl", "lower_tests"]
    writer.writerow(["place", "file", *parts, "problem", *latents])
    shares = below(found.total, tests) if tests is not None else [""] * len(found.paths)
    numbers = found.total, found.errors, found.reconstruction, found.kl, shares
    for place, (path, z_mean, *of_image) in enumerate(zip(found.paths, found.z_mean, *numbers, strict=True), 1):
        writer.writerow([place, shown(path), *of_image, "", *z_mean])
    for path, why in bad.items():
        writer.writerow(["", shown(path), *[""] * len(parts), why])
    return text.getvalue()


def save_picture(
    path: Path, run: Run, found: Scores, tests: np.ndarray | None, drawn: Sequence[int], pixels: np.ndarray,
    reconstructed: np.ndarray,
) -> None:  # fmt: skip
    """Draw the scores as a histogram, and below it some images, uint8 (M, H, W, C), over their reconstructions.

    `drawn` are the positions of these images among the scores, (M,). Raises OSError.
    """
    rows, name = -(-len(pixels) // SHOWN), name_of_score(run)
    height, width = pixels.shape[1:3]
    tall = 13 / SHOWN * 2 * height / width + 0.55
    figure = Figure(figsize=(13, 3 + rows * tall), layout="constrained")
    above, beneath = figure.subfigures(2, 1, height_ratios=[3, rows * tall])
    axes = above.subplots()
    every = found.total if tests is None else np.concatenate([found.total, tests])
    low, high = np.quantile(every, (0.001, 1))
    bins = np.linspace(low, high + 1e-6, 80)
    if tests is not None:
        share = np.full(len(tests), 1 / len(tests))
        axes.hist(tests.clip(low), bins, weights=share, color="0.75", label=f"{len(tests):,} test images")
    share = np.full(len(found.total), 1 / len(found.total))
    label = f"{len(found.total):,} images"
    axes.hist(found.total.clip(low), bins, weights=share, color="#d1495b", alpha=0.6, label=label)
    axes.set(xlabel=f"{name}, in nats per image", ylabel="share of images")
    axes.legend(frameon=False)
    which = f"{run.folder.name}{', the best checkpoint' * (run.kind == 'best')}"
    above.suptitle(f"{which}: what does not belong? Each image over its reconstruction", fontsize=11)
    panels = beneath.subplots(rows, SHOWN, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for panel, at, *pair in zip(panels.flat, drawn, pixels, pictures.to_uint8(reconstructed), strict=False):
        panel.imshow(pictures.grid(np.stack(pair), 1).squeeze(), cmap="gray", vmin=0, vmax=255)
        file = pictures.drawable(os.path.basename(shown(found.paths[at])), LONGEST_FILE)
        panel.set_title(f"{at + 1:,}: {found.total[at]:,.1f}\n{file}", fontsize=7)
    pictures.save_figure(path, figure)


# --- main -------------------------------------------------------------------------------------------------------------
def apply(run: Run, names: Sequence[str], place: Path, invert: bool = False) -> Scores:
    """Apply a run to images: show their scores, write the folder `place`, and return the scores.

    Raises SettingsError, RunError, DataError, NoImage and OSError.
    """
    check_replaceable(place, names)
    step = runs.newest_step(run.folder, run.kind)
    print(f"run        {run.folder}, step {step:,}{', the best one' * (run.kind == 'best')}")
    paths, left_out = find(names)
    survey = images.survey(Path("."), np.array(paths))
    how = preparation(run, survey)
    details = images.describe(survey, how, len(paths)) if survey.count else {}
    for line in report.data_lines(details | {"left_out": left_out}):
        print(line)
    found, light, bad = score(run, paths, how, invert)
    if bad:
        print(f"note       {len(bad):,} that cannot be read, at the end of scores.csv: {next(iter(bad.values()))}")
    tests = None
    if compared := of_tests(run):
        tests, usual = compared
        if abs(1 - light - usual) + 0.2 < abs(light - usual):
            way = "--invert turns dark into light" if not invert else "they fit better without --invert"
            print(f"note       the mean brightness is {light:.2f}, but {usual:.2f} in test images: {way}")
    for line in table(found, name_of_score(run), tests):
        print(line)
    write_folder(place, partial(write, run, found, tests, bad, how, invert))
    print(f"\nlook at    {shown(place)}: {', '.join(FILES)}/")
    return found


def write(
    run: Run, found: Scores, tests: np.ndarray | None, bad: dict[bytes, str], how: Prepared, invert: bool, folder: Path
) -> None:
    """Write the picture, the CSV and the reconstructions into a new folder. Raises NoImage and OSError."""
    write_whole(folder / "scores.csv", as_csv(found, tests, bad).encode(errors="replace"))
    count = len(found.paths)
    drawn = [*range(count)] if count <= 3 * SHOWN else [*range(2 * SHOWN), *range(count - SHOWN, count)]
    pixels = read_again([found.paths[at] for at in drawn], how, invert)
    save_picture(folder / "applied.png", run, found, tests, drawn, pixels, run.reconstruct(pixels))
    (folder / "reconstructions").mkdir()
    for start in range(0, min(count, MOST_WRITTEN), READ_AT_ONCE):
        some = found.paths[start : min(start + READ_AT_ONCE, MOST_WRITTEN)]
        reconstructed = run.reconstruct(read_again(some, how, invert))
        for place, (path, image) in enumerate(zip(some, reconstructed, strict=True), start + 1):
            name = runs.plain_text(Path(os.path.basename(shown(path))).stem)[:60]
            picture = Image.fromarray(pictures.to_uint8(image).squeeze())
            pictures.save_png(folder / "reconstructions" / f"{place:04}_{name}.png", picture)


def each_once(say: Say) -> Say:
    """A `say` that says each line only once. Images come a few at a time, and each time would repeat the line."""
    before: set[str] = set()

    def say_once(line: str) -> None:
        if line not in before:
            before.add(line)
            say(line)

    return say_once


def main(asked: argparse.Namespace) -> int:
    """Apply a run as the command line says; return the exit code."""

    def work():
        apply(Run(asked.run, asked.kind, each_once(print)), asked.images, asked.to, asked.invert)

    return console.run("apply", work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main(ASKED))
