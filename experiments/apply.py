"""A trained run on images of one's own: how likely each is, how it is reconstructed, and what does not belong.

    python -m experiments.apply mnist-ce-z20 my_digits/
    python -m experiments.apply mnist-ce-z20 scan_1.png scan_2.png --invert

The images, files or whole folders of them, are prepared as in training: turned, cut, resized, grey or in colour, and
with BINARIZE = dynamic drawn black and white. Each has a score, its ELBO in nats by one draw of z. Where the loss is no
likelihood it is -(loss + KL), and of a plain autoencoder -loss. Beside it stands how many of the run's test images
score lower. An image below all of them does not belong. The reverse is not proved: the score also says how simple an
image is (of MNIST the ones have the highest), and images of another kind may score as high (Nalisnick et al. 2019,
arXiv 1810.09136).

It writes a folder, applied in the run's folder or --to:
  applied.png        the scores beside those of test images; the least likely images over their reconstructions
  scores.csv         a line an image, the least likely first: file, score, its parts, and z_mean
  reconstructions/   those of the 1,000 least likely images, numbered as in scores.csv
"""

# ruff: noqa: E402 (the command line is read first, before the seconds that TensorFlow takes)

import argparse
import csv
import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.load import Run, add_run, parse_run
from utils import console
from utils.console import Problem, Say, experiment_parser, shown


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("apply", __doc__)
    add_run(parser)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--invert", action="store_true", help="turn dark into light: for ink on paper, as MNIST has not"
    )
    parser.add_argument("--to", metavar="DIR", type=Path, help="folder to write [default applied in the run's folder]")
    asked = parse_run(parser, argv)
    for name in asked.images:
        if not os.path.exists(name):
            parser.error(f"IMAGE {name}: no such file or folder")
    return asked


if __name__ == "__main__":
    console.begin()
    ASKED = read_command_line()

from matplotlib.figure import Figure
from PIL import Image

from experiments import latent, whole_images
from utils import folders, images, known, pictures, report, runs
from utils.dataset import BadImage, DataError, evaluated_at_once, rows_of
from utils.files import write_folder, write_whole
from utils.images import Prepared

FILES = ("applied.png", "scores.csv", "reconstructions")
MOST_TESTED = 2_000  # test images whose scores are compared with
MOST_WRITTEN = 1_000  # reconstructions
SHOWN = 10  # images in a line of the console's table and a row of the picture
LONGEST_FILE = 22  # letters of a file's name in the picture


# --- the images -------------------------------------------------------------------------------------------------------
def find(names: Sequence[str]) -> tuple[list[bytes], list[str]]:
    """The paths of all images that are named or lie in a folder that is; and what was left out, in words.

    Raises DataError if there is none.
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
        raise DataError(f"no image among what was named; there is {'; '.join(left_out) or 'nothing'}")
    return kept, left_out


def preparation(run: Run, survey: images.Survey) -> Prepared:
    """How an image is prepared for a run. Raises DataError if its images are neither grey nor in colour."""
    if run.image_shape[2] not in (1, 3):
        raise DataError(f"{run.folder.name} has images of {run.image_shape[2]} channels; no image file has these")
    record, seen = known.load(run.folder), images.prepared(survey, 4, 0, "crop").white
    white = int(record["white"]) if record and "white" in record else seen
    return whole_images.prepared(run.settings, run.image_shape)._replace(white=white)


class Read(NamedTuple):
    """Images that can be read, uint8 (N, H, W, C), and their paths."""

    pixels: np.ndarray
    paths: list[bytes]


def read(paths: Sequence[bytes], how: Prepared, invert: bool, bad: list[str]) -> Read:
    """Read images; why one cannot be read is added to `bad`."""

    def read_one(path: bytes) -> np.ndarray | None:
        try:
            return images.read_image(path, how)
        except BadImage as error:
            bad.append(str(error))
            return None

    with images.ThreadPoolExecutor(images.READERS) as pool:
        found = [*pool.map(read_one, paths)]
    pixels = np.array([image for image in found if image is not None], np.uint8).reshape(-1, *how.shape)
    kept = [path for path, image in zip(paths, found, strict=True) if image is not None]
    return Read(255 - pixels if invert else pixels, kept)


# --- the scores -------------------------------------------------------------------------------------------------------
class Scores(NamedTuple):
    """What a run makes of N images: their paths, parts of their scores (N,), and z_mean (N, L)."""

    paths: list[bytes]
    reconstruction: np.ndarray
    kl: np.ndarray
    z_mean: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """The scores (N,), in nats; higher is likelier."""
        return -(self.reconstruction + self.kl)


def score(run: Run, paths: Sequence[bytes], how: Prepared, invert: bool) -> tuple[Scores, float, list[str]]:
    """Score images, a few at a time; also their mean brightness in [0, 1], and why some could not be read.

    The least likely come first. Raises DataError if none can be read.
    """
    at_once, parts, bad = evaluated_at_once((0, *how.shape)), [], []
    with console.waiting_bar("scoring", len(paths)) as bar:
        for start in range(0, len(paths), at_once):
            some = read(paths[start : start + at_once], how, invert, bad)
            if some.paths:
                reconstruction, kl = run.terms(some.pixels)
                z_mean, _ = run.encode(some.pixels)
                parts.append((some.paths, reconstruction, kl.sum(axis=1), z_mean, some.pixels.mean(axis=(1, 2, 3))))
            bar.update(len(paths[start : start + at_once]))
    if not parts:
        raise DataError(f"none of {len(paths):,} images can be read, e.g. {bad[0]}")
    names, *numbers, light = zip(*parts, strict=True)
    found = Scores([*chain.from_iterable(names)], *map(np.concatenate, numbers))
    order = np.argsort(found.total, kind="stable")
    sorted_ = Scores([found.paths[n] for n in order], *(part[order] for part in found[1:]))
    return sorted_, float(np.concatenate(light).mean() / 255), bad


def of_tests(run: Run) -> tuple[np.ndarray, float] | None:
    """The scores of the run's test images and their mean brightness; None, and a line, if the data cannot be had."""
    try:
        tests = run.dataset().test_images
    except (Problem, OSError) as error:
        print(f"note       no comparison with test images: {error}")
        return None
    some = rows_of(tests, latent.evenly(len(tests), MOST_TESTED))
    reconstruction, kl = run.terms(some)
    return -(reconstruction + kl.sum(axis=1)), float(some[:].mean() / 255)


def name_of_score(run: Run) -> str:
    """What a score is."""
    if run.settings.autoencoder:
        return "-loss"
    return "ELBO" if report.kind(run.settings) != "none" else report.NO_ELBO


def below(scores: np.ndarray, tests: np.ndarray) -> np.ndarray:
    """The share of test scores (M,) that lie below each score (N,)."""
    return np.searchsorted(np.sort(tests), scores) / len(tests)


# --- what is shown ----------------------------------------------------------------------------------------------------
def table(found: Scores, name: str, tests: np.ndarray | None) -> list[str]:
    """The least likely images as lines for the console."""
    lines = ["", f"What does not belong?  {len(found.paths):,} images by their {name} in nats, the least likely first:"]
    lines.append(f"  {name:>12} {'reconstruction':>15} {'KL':>9} {'lower tests':>12}  file")
    shares = below(found.total, tests) if tests is not None else [None] * len(found.paths)
    for path, loss, kl, total, share in [*zip(*found[:3], found.total, shares, strict=True)][:SHOWN]:
        lower = "" if share is None else f"{share:.1%}"
        lines.append(f"  {total:>12,.2f} {loss:>15,.2f} {kl:>9,.2f} {lower:>12}  {shown(path)}")
    if len(found.paths) > SHOWN:
        lines.append(f"  and {len(found.paths) - SHOWN:,} more in scores.csv")
    if tests is not None:
        lines.append(f"  median {np.median(found.total):,.2f}; of {len(tests):,} test images {np.median(tests):,.2f}")
    return lines


def as_csv(found: Scores, tests: np.ndarray | None) -> str:
    """A line for each image."""
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    latents = [f"z_mean_{number}" for number in range(1, found.z_mean.shape[1] + 1)]
    writer.writerow(["place", "file", "score", "reconstruction", "kl", "lower_tests", *latents])
    shares = below(found.total, tests) if tests is not None else [""] * len(found.paths)
    rows = zip(found.paths, found.total, found.reconstruction, found.kl, shares, found.z_mean, strict=True)
    for place, (path, *numbers, z_mean) in enumerate(rows, 1):
        writer.writerow([place, shown(path), *numbers, *z_mean])
    return text.getvalue()


def save_picture(
    path: Path, run: Run, found: Scores, tests: np.ndarray | None, pixels: np.ndarray, reconstructed: np.ndarray
) -> None:
    """Draw the scores as a histogram, and below it images, uint8 (M, H, W, C), over their reconstructions.

    These are of the first scores or, if there are more, all but the last SHOWN; which are of the last scores.
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
    above.suptitle(f"{run.folder.name}: what does not belong? Each image over its reconstruction", fontsize=11)
    last = len(found.paths) - len(pixels)
    for place, panel in enumerate(beneath.subplots(rows, SHOWN, squeeze=False).flat):
        panel.set_axis_off()
        if place < len(pixels):
            at = place if place < len(pixels) - SHOWN or not last else place + last
            pair = pictures.grid(np.stack([pixels[place], pictures.to_uint8(reconstructed[place])]), 1)
            panel.imshow(pair.squeeze(), cmap="gray", vmin=0, vmax=255)
            file = pictures.drawable(os.path.basename(shown(found.paths[at])), LONGEST_FILE)
            panel.set_title(f"{at + 1:,}: {found.total[at]:,.1f}\n{file}", fontsize=7)
    pictures.save_figure(path, figure)


# --- main -------------------------------------------------------------------------------------------------------------
def apply(run: Run, names: Sequence[str], place: Path, invert: bool = False) -> Scores:
    """Apply a run to images: show their scores, write the folder `place`, and return the scores.

    Raises SettingsError, RunError, DataError and OSError.
    """
    check_replaceable(place)
    print(f"run        {run.folder}, step {runs.newest_step(run.folder, run.kind):,}")
    paths, left_out = find(names)
    survey = images.survey(Path("."), np.array(paths))
    how = preparation(run, survey)
    details = images.describe(survey, how, len(paths)) if survey.count else {}
    for line in report.data_lines(details | {"left_out": left_out}):
        print(line)
    found, light, bad = score(run, paths, how, invert)
    if bad:
        print(f"note       {len(bad):,} that cannot be read: {bad[0]}{' and others' * (len(bad) > 1)}")
    tests = None
    if compared := of_tests(run):
        tests, usual = compared
        if abs(1 - light - usual) + 0.2 < abs(light - usual):
            way = "--invert turns dark into light" if not invert else "they fit better without --invert"
            print(f"note       the mean brightness is {light:.2f}, but {usual:.2f} in test images: {way}")
    for line in table(found, name_of_score(run), tests):
        print(line)
    write_folder(place, partial(write, run, found, tests, how, invert))
    print(f"\nlook at    {shown(place.absolute())}: {', '.join(FILES)}/")
    return found


def write(run: Run, found: Scores, tests: np.ndarray | None, how: Prepared, invert: bool, folder: Path) -> None:
    """Write the picture, the CSV and the reconstructions into a new folder. Raises OSError."""
    write_whole(folder / "scores.csv", as_csv(found, tests).encode(errors="replace"))
    places = range(len(found.paths))
    shown_ = [*places] if len(places) <= 3 * SHOWN else [*places[: 2 * SHOWN], *places[-SHOWN:]]
    pixels = read([found.paths[at] for at in shown_], how, invert, []).pixels
    save_picture(folder / "applied.png", run, found, tests, pixels, run.reconstruct(pixels))
    (folder / "reconstructions").mkdir()
    at_once = evaluated_at_once((0, *how.shape))
    for start in range(0, min(len(places), MOST_WRITTEN), at_once):
        some = found.paths[start : min(start + at_once, MOST_WRITTEN)]
        for place, path, image in zip(
            places[start:], some, run.reconstruct(read(some, how, invert, []).pixels), strict=False
        ):
            name = runs.plain_text(Path(os.path.basename(shown(path))).stem)[:60]
            picture = Image.fromarray(pictures.to_uint8(image).squeeze())
            pictures.save_png(folder / "reconstructions" / f"{place + 1:04}_{name}.png", picture)


def check_replaceable(place: Path) -> None:
    """Raise RunError unless a folder is free, or what this command has written, which is replaced."""
    if os.path.lexists(place) and not place.is_dir():
        raise runs.RunError(f"{shown(place)} is no folder; name another with --to")
    if place.is_dir() and (others := sorted({path.name for path in place.iterdir()} - {*FILES})):
        raise runs.RunError(f"{shown(place)} would be replaced, but {shown(others[0])} in it is not of this command")


def each_once(say: Say) -> Say:
    """What says each line once: of some images at a time it would be said again and again."""
    before: set[str] = set()

    def say_once(line: str) -> None:
        if line not in before:
            before.add(line)
            say(line)

    return say_once


def main(asked: argparse.Namespace) -> int:
    """Apply a run as the command line says; return the exit code."""

    def work():
        apply(
            Run(asked.run, asked.kind, each_once(print)), asked.images, asked.to or asked.run / "applied", asked.invert
        )

    return console.run("apply", work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main(ASKED))
