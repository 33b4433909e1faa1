"""Can arithmetic on the latents of a finished run add an attribute, such as a smile?

    python -m experiments.attribute_walk celeba-logistic-z64 --attribute smiling
    python -m experiments.attribute_walk mnist-ce-z20 --attribute 7

The vector of an attribute is the mean z_mean of the training images with it minus the mean z_mean of those without
(Larsen et al. 2016, arXiv 1512.09300). A walk starts at the z_mean of a test image and adds t times this vector.
Attributes that occur together are added together (White 2016, arXiv 1609.04468, balances the images against this).

The attributes are those of the data set, such as CelebA's. If it has none, each label is one. By default the command
takes the three attributes that the latents know best. With BINARIZE = dynamic the images are black and white, by a
fixed draw. It takes a minute or two. It prints these numbers and writes attribute_walk.json to the run's folder:

- how well the latents know the attribute: the AUC of the projection of test images' z_mean on the vector. It is the
  chance that an image with the attribute lies further along than one without; 0.5 is a guess;
- whether walks work: at each t, the share of test images without the attribute in which a small classifier sees it. The
  classifier is trained here on real images, but decoded images are blurry. So the floor is the share at t = 0, the
  reconstructions. The ceiling is the share among reconstructions of images that have the attribute;
- how much the image changes: the mean absolute change of a pixel's brightness (0 to 1) from t = 0 to t = 1;
- attribute_walk_<name>.png: eight test images without the attribute gain it, and eight with it lose it.
"""

# ruff: noqa: E402 (the command line is read first, before the seconds that TensorFlow takes)

import argparse
import math
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.load import Run, read_run
from utils import console
from utils.console import experiment_parser
from utils.settings import Settings, SettingsError


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("attribute_walk", __doc__)
    names = "attributes or labels, upper or lower case [default: the three that the latents know best]"
    parser.add_argument("--attribute", nargs="+", default=(), metavar="NAME", help=names)
    return read_run(parser, argv)


if __name__ == "__main__":
    console.begin()
    ASKED = read_command_line()

from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

import main as vae_main
from experiments import classifier, evaluate, figures, latent
from utils import data, runs
from utils.batches import brightness
from utils.dataset import Dataset, binarize, in_batches, label_name
from utils.files import write_json
from utils.pictures import save_figure

MOST_TRAINING, MOST_TEST, MOST_WALKED = 20_000, 10_000, 1_000  # images
MOST_NUMBERS = MOST_TRAINING * 64 * 64 * 3  # in a classifier's images: 1 GB as brightness
FEWEST = 10  # images with an attribute, and as many without; otherwise it is left out
CHOSEN = 3  # attributes, if none is asked for
STEPS = (0.0, 0.5, 1.0, 1.5, 2.0)  # t, in attribute vectors
SHOWN = 8  # images in each half of the picture
TRAINING_PIXELS = 103  # the purpose of a NumPy draw, used with the run's seed as its key; evaluate has other numbers
CLASSIFIER_SEED = 0  # the same for all runs, so that runs on the same data have the same judge
JUDGE_EPOCHS, JUDGE_RATE = 4, 2e-3  # longer and slower than for digits, which fill their images
BETTER_THAN_GUESS = 0.02  # a useful classifier beats guessing by at least this share of images


# --- attributes -------------------------------------------------------------------------------------------------------
class Attributes(NamedTuple):
    """The names of A attributes, and whether each training and test image has them, bool (N, A) and (M, A)."""

    names: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray


def find_attributes(dataset: Dataset) -> Attributes:
    """The attributes of a data set; if it has none, each of its labels is one.

    Raises SettingsError if there is only one label, because it does not tell images apart.
    """
    if dataset.attributes:
        return Attributes(dataset.attributes, dataset.train_attributes, dataset.test_attributes)
    labels = np.unique(dataset.train_labels)
    if len(labels) < 2:
        raise SettingsError(f"attribute: {dataset.title} has none, and only one label, {labels[0]}: nothing to tell")
    is_it = (np.equal.outer(of_images, labels) for of_images in (dataset.train_labels, dataset.test_labels))
    return Attributes(tuple(label_name(label, dataset.label_names) for label in labels), *is_it)


def places(asked: Sequence[str], names: Sequence[str]) -> list[int]:
    """The positions of the `asked` words among `names`, in any case. Raises SettingsError for an unknown one."""
    by_name = {name.casefold(): place for place, name in enumerate(names)}
    for word in asked:
        if word.casefold() not in by_name:
            close = get_close_matches(word.casefold(), by_name, n=1)
            hint = f" (did you mean {names[by_name[close[0]]]!r}?)" if close else ""
            raise SettingsError(f"attribute: {word!r} is not allowed; one of {', '.join(names)} is{hint}")
    return list(dict.fromkeys(by_name[word.casefold()] for word in asked))


def too_few(has: np.ndarray, split: str) -> str | None:
    """Why too few images of a split have, or do not have, an attribute, bool (N,); None if there are enough."""
    for number, of_them in ((np.count_nonzero(has), "have it"), (np.count_nonzero(~has), "do not have it")):
        if number < FEWEST:
            return f"{number} of {len(has):,} {split} images {of_them}, and at least {FEWEST} are needed"
    return None


# --- images -----------------------------------------------------------------------------------------------------------
def encode_rows(vae: Any, images: np.ndarray, rows: np.ndarray, binarization: Sequence[int] | None) -> np.ndarray:
    """z_mean (R, L + NOISE_DIM), float64, of some rows (R,) of uint8 images (N, H, W, C), read batch by batch.

    The z_mean of a noise latent is 0. If `binarization`, a key, is given, the images are first drawn black or white.
    """

    def encode_batch(part, start):
        batch = images[part]
        if binarization is not None:
            batch = binarize(batch, (*binarization, int(start)))
        return latent.encode(vae.encoder, batch)

    return np.float64(in_batches(encode_batch, rows, doing="encoding")[0])


class Encoded(NamedTuple):
    """R of the N images of a split, and their latents. Images may lie on a disk and are read a few at a time."""

    images: Any  # uint8 (N, H, W, C) as in training; supports only len(), slices and arrays of row numbers
    grey: Any  # the same, not binarised
    rows: np.ndarray  # the chosen images, int (R,)
    has: np.ndarray  # their attributes, bool (R, A)
    z: np.ndarray  # z_mean, float64 (R, L + NOISE_DIM)


# --- the vector and the walk ------------------------------------------------------------------------------------------
def attribute_vector(z: np.ndarray, has: np.ndarray) -> np.ndarray:
    """The mean of the points (N, L) with the attribute, bool (N,), minus the mean of the points without it: (L,)."""
    return z[has].mean(axis=0) - z[~has].mean(axis=0)


def walk(z: np.ndarray, vector: np.ndarray, steps: Sequence[float]) -> np.ndarray:
    """Points (N, L) plus t times the vector (L,), for T steps t: (T, N, L)."""
    return z + np.multiply.outer(np.asarray(steps), vector)[:, np.newaxis]


class Told(NamedTuple):
    """What the latents show about an attribute."""

    vector: np.ndarray  # float64 (L + NOISE_DIM,); 0 for noise latents, because they know nothing of the image
    auc: float  # 0 to 1; the score is the projection of a test image on the vector


def tell_attributes(train: Encoded, test: Encoded) -> dict[int, Told]:
    """What the latents show about each attribute, by its number. Attributes with too few images are left out."""
    told = {}
    for number in range(train.has.shape[1]):
        has, test_has = train.has[:, number], test.has[:, number]
        if not too_few(has, "training") and not too_few(test_has, "test"):
            vector = attribute_vector(train.z, has)
            told[number] = Told(vector, float(roc_auc_score(test_has, test.z @ vector)))
    return told


# --- does it work -----------------------------------------------------------------------------------------------------
def judged_share(judge: Any, brightness: np.ndarray) -> float:
    """The share of images, brightness (N, H, W, C) in [0, 1], that a two-class classifier puts in the second class."""
    return float(classifier.probabilities(judge, brightness).argmax(axis=1).mean())


def train_judge(train: Encoded, number: int) -> Any:
    """Train a classifier of the attribute of this number on the grey (not binarised) images; class 1 has it.

    If the images are too large for memory, it sees fewer of them, evenly spaced.
    """
    kept = latent.evenly(len(train.rows), MOST_NUMBERS // math.prod(train.grey.shape[1:]))
    has = train.has[kept, number].astype(np.int64)
    return classifier.train_classifier(train.grey[train.rows[kept]], has, CLASSIFIER_SEED, JUDGE_EPOCHS, JUDGE_RATE)


def accuracy(judge: Any, test: Encoded, number: int) -> float:
    """The share of images for which a classifier is right about the attribute of this number."""

    def judge_batch(part, start):
        return (classifier.probabilities(judge, brightness(test.grey[part])).argmax(axis=1),)

    return float((in_batches(judge_batch, test.rows, doing="judging")[0] == test.has[:, number]).mean())


def measure_walk(vae: Any, judge: Any, without: np.ndarray, having: np.ndarray, vector: np.ndarray) -> dict[str, Any]:
    """Judge the walks from z_mean (N, L) `without` the attribute, and the ceiling: images (M, L) `having` it.

    Also measures how much the images change.
    """
    steps = walk(without, vector, STEPS)
    shares = [judged_share(judge, vae_main.decode(vae, z)) for z in steps]  # one step's images in memory at a time
    before, after = (vae_main.decode(vae, z) for z in walk(without, vector, (0, 1)))
    return {
        "walked_images": len(without),
        "walk": [{"t": t, "judged_to_have_it": share} for t, share in zip(STEPS, shares, strict=True)],
        "having_images": len(having),
        "ceiling": judged_share(judge, vae_main.decode(vae, having)),
        "brightness_change": float(np.abs(after - before).mean()),
    }


# --- what is shown ----------------------------------------------------------------------------------------------------
def draw_walks(
    axes: Any, vae: Any, originals: np.ndarray, z: np.ndarray, vector: np.ndarray, sign: int, title: str
) -> None:
    """Draw a row for each uint8 image (N, H, W, C) with z_mean (N, L): itself, its reconstruction, and its walk."""
    decoded = [vae_main.decode(vae, points) for points in walk(z, vector, sign * np.array(STEPS))]
    images = np.stack([brightness(originals), *decoded], axis=1)  # (N, columns, H, W, C)
    figures.draw_images(axes, images.reshape(-1, *originals.shape[1:]), images.shape[1], "")
    names = ["original", "t = 0:\nreconstruction", *(f"t = {sign * t:g}" for t in STEPS[1:])]
    pitch = originals.shape[2] + 2  # an image and the gap beside it
    above = {"textcoords": "offset points", "xytext": (0, 2), "ha": "center", "va": "bottom", "fontsize": 8}
    for number, name in enumerate(names):
        axes.annotate(name, ((number + 0.5) * pitch + 0.5, 0), **above)
    axes.set_title(title, fontsize=10, pad=30)


def save_walks(
    path: Path, name: str, vae: Any, vector: np.ndarray, without: tuple[np.ndarray, ...], having: tuple[np.ndarray, ...]
) -> None:
    """Draw walks that add the attribute `name`, and walks that take it away. Raises OSError.

    Each starts from uint8 images (N, H, W, C) and their z_mean (N, L).
    """
    figure = Figure(figsize=(13, 9.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)  # inches, so that the titles do not touch
    title = f"{path.parent.name}: z_mean + t x (mean z_mean of those with {name} - of those without)"
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2)
    draw_walks(left, vae, *without, vector, 1, f"test images without {name}: it is added")
    draw_walks(right, vae, *having, vector, -1, f"test images with {name}: it is taken away")
    save_figure(path, figure)


def picture_name(name: str) -> str:
    """The file of an attribute's picture; each character of its name except letters, digits, - and _ becomes _."""
    return f"attribute_walk_{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.png"


def table(numbers: dict[str, Any]) -> str:
    """The numbers as a few lines for the console."""
    steps = "".join(f"{f't = {t:g}':>9}" for t in STEPS)
    lines = [
        "",
        f"Can it be added along its vector?  Of {numbers['images']}:",
        f"  {'':<20} {'latents':>8} {'classifier':>16}   judged to have it, of images without{'':<9} with  change of",
        f"  {'attribute':<20} {'AUC':>8} {'right':>7} {'(guess)':>8}{steps}{'t = 0':>9} brightness",
    ]
    for found in numbers["walks"]:
        guess = f"({found['larger_class']:.1%})"
        judge = f"{found['classifier_accuracy']:>7.1%} {guess:>8}"
        shares = "".join(f"{step['judged_to_have_it']:>9.1%}" for step in found["walk"])
        more = f"{found['ceiling']:>9.1%} {found['brightness_change']:>10.3f}"
        lines.append(f"  {found['attribute']:<20} {found['auc']:>8.3f} {judge}{shares}{more}")
        if found["classifier_accuracy"] < found["larger_class"] + BETTER_THAN_GUESS:
            lines.append(f"  ! the classifier only guesses {found['attribute']}: ignore its judgements")
    lines.append("  t = 0: reconstructions; without it they are the floor, with it the ceiling; change: at t = 1")
    return "\n".join(lines)


# --- main -------------------------------------------------------------------------------------------------------------
def encode_data(
    vae: Any, s: Settings, dataset: Dataset, attributes: Attributes, folder: Path
) -> tuple[Encoded, Encoded]:
    """Training and test images of a run, at most MOST_TRAINING and MOST_TEST of them. Raises DataError."""
    grey, key = dataset, None
    if s.binarize == "dynamic":
        grey = data.prepare(s.model_copy(update={"binarize": "none"}), lambda line: None, folder)
        key = s.seed, TRAINING_PIXELS
    train = latent.evenly(len(dataset.train_images), MOST_TRAINING)
    test = latent.evenly(len(dataset.test_images), MOST_TEST)
    z_train = encode_rows(vae, dataset.train_images, train, key)
    z_test = encode_rows(vae, dataset.test_images, test, None)  # already black and white if BINARIZE = dynamic
    return (
        Encoded(dataset.train_images, grey.train_images, train, attributes.train[train], z_train),
        Encoded(dataset.test_images, grey.test_images, test, attributes.test[test], z_test),
    )


def choose(
    asked: Sequence[int], told: dict[int, Told], names: Sequence[str], train: Encoded, test: Encoded
) -> list[int]:
    """The numbers of the attributes to walk along: those asked for, or those that the latents know best.

    Raises SettingsError if too few images have, or do not have, an attribute that was asked for, or any attribute.
    """
    for number in asked:
        if number not in told:
            why = too_few(train.has[:, number], "training") or too_few(test.has[:, number], "test")
            raise SettingsError(f"attribute: {names[number]!r} is not allowed; {why}")
    if not told:
        raise SettingsError(f"attribute: none of {', '.join(names)} has {FEWEST} images with it and {FEWEST} without")
    return list(asked) or sorted(told, key=lambda number: -told[number].auc)[:CHOSEN]


def walk_along(
    folder: Path, vae: Any, settings: Settings, name: str, number: int, told: Told, train: Encoded, test: Encoded
) -> dict[str, Any]:
    """Walk along the attribute of this name and number: write its picture, return its results. Raises OSError."""
    has, test_has = train.has[:, number], test.has[:, number]
    kinds = map(np.flatnonzero, (~test_has, test_has))
    without, having = (rows[latent.evenly(len(rows), MOST_WALKED)] for rows in kinds)
    judge = train_judge(train, number)
    numbers = {
        "attribute": name,
        "training_images_with": int(has.sum()),
        "training_images_without": int((~has).sum()),
        "vector": told.vector[: settings.latent_dim].tolist(),
        "auc": told.auc,
        "classifier_accuracy": accuracy(judge, test, number),
        "larger_class": float(max(test_has.mean(), (~test_has).mean())),
        **measure_walk(vae, judge, test.z[without], test.z[having], told.vector),
    }
    shown = (rows[latent.evenly(len(rows), SHOWN)] for rows in (without, having))
    halves = ((test.images[test.rows[rows]], test.z[rows]) for rows in shown)
    save_walks(folder / picture_name(name), name, vae, told.vector, *halves)
    return numbers


def attribute_walk(folder: Path, asked: Sequence[str], kind: str = "step") -> dict[str, Any]:
    """Walk along the `asked` attributes, or those known best; write the results into the run's folder and return them.

    `kind` is the kind of checkpoint (load.Run).
    Raises SettingsError, runs.RunError, DataError and OSError.
    """
    run = Run(folder, kind)
    vae, s, dataset = run.vae, run.settings, run.dataset()
    attributes, step = find_attributes(dataset), runs.newest_step(folder, kind)
    names = attributes.names
    numbers_asked = places(asked, names)  # first, so that a typo is reported before anything is encoded
    print(f"run        {folder}, step {step:,}")
    train, test = encode_data(vae, s, dataset, attributes, folder)
    print(f"encoded    {len(train.rows):,} training and {len(test.rows):,} test images")
    told = tell_attributes(train, test)
    walks = []
    for number in choose(numbers_asked, told, names, train, test):
        print(f"walking    along {names[number]}, judged by a small classifier that is trained for it")
        walks.append(walk_along(folder, vae, s, names[number], number, told[number], train, test))
    numbers = {
        "run": folder.name,
        "step": step,
        "images": evaluate.test_set(s, len(test.rows)),
        "training_images": len(train.rows),
        "auc": {name: told[number].auc if number in told else None for number, name in enumerate(names)},
        "walks": walks,
    }
    write_json(folder / "attribute_walk.json", numbers)
    return numbers


def main(asked: argparse.Namespace) -> int:
    """Walk as the command line says; return the exit code."""

    def work():
        folder = asked.run
        numbers = attribute_walk(folder, asked.attribute, asked.kind)
        print(table(numbers))
        pictures = ", ".join(picture_name(found["attribute"]) for found in numbers["walks"])
        print(f"\nlook at    {folder.absolute()}: {pictures}, attribute_walk.json")

    return console.run("attribute_walk", work, "the same command begins again")


if __name__ == "__main__":
    sys.exit(main(ASKED))
