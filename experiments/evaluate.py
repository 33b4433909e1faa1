"""How good is a finished run? Its likelihood, as papers report it, and a number for the quality of its samples.

    python -m experiments.evaluate mnist-ce-z20
    python -m experiments.evaluate predictions/mnist-ce-z20 --samples 1000

It takes the run's newest checkpoint, or with --best the one that was best on the images of HELD_OUT. It uses all test
images; MNIST takes about five minutes (docs/likelihoods.md). With BINARIZE = dynamic the images are binarised once, by
a fixed draw that is the same for every run. It prints the results and writes them to the run's folder, as
evaluation.json and two pictures (with --best their names end in _best):

- the log-likelihood by importance sampling (Burda et al. 2015), with two standard errors. One shows how much other test
  images would change it, the other how much other draws would. bound.png shows the bound over the number of draws;
- active units. If some are inactive, also the log-likelihood with those drawn from the prior (section 5.2 there);
- Frechet distances from the test images, for reconstructions, for samples from the prior, and for samples from a
  mixture of Gaussians fitted to the posteriors of the training images; samples_mixture.png shows all three. If the
  mixture has the better samples, the prior is to blame; if not, the decoder is. The distances rank runs with the same
  DATASET, LABELS and HELD_OUT. They use the features of a small classifier of that data, so no "FID" compares.

After Ctrl-C the same command continues the log-likelihood; the rest, a minute, starts again. If this code has already
evaluated the run, the command only prints the results.
"""

# ruff: noqa: E402 (the command line is read first, before the seconds that TensorFlow takes)

import argparse
import io
import json
import math
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.load import Run, read_run
from utils import console
from utils.console import experiment_parser, whole
from utils.settings import Settings


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("evaluate", __doc__)
    samples = "importance samples per test image, as K in papers [default 5000]"
    parser.add_argument("--samples", type=whole(2, 10**6), default=5_000, metavar="K", help=samples)
    components = "Gaussians in the mixture fitted to the latents [default 25]"
    parser.add_argument("--components", type=whole(1, 1_000), default=25, metavar="N", help=components)
    return read_run(parser, argv)


if __name__ == "__main__":
    console.begin()
    ASKED = read_command_line()

import main as vae_main
from experiments import classifier, figures, latent
from experiments.fingerprint import code_of, fingerprint
from utils import data, likelihood, mnist, pictures, report, runs, size
from utils.batches import brightness
from utils.chance import GRID_LATENTS, random_key
from utils.dataset import Dataset, binarized, filled_up, rows_of
from utils.evaluation import compile_weighing
from utils.files import write_json, write_whole
from utils.start import tf

IMAGES_AT_ONCE = 500  # with one draw each: large matrices that still fit in a processor's cache
PARTS_AT_ONCE = 2  # so that one core has work while the other handles the small operations of a part
SHOWN = 100  # images in each part of samples_mixture.png
CLASSIFIER_SEED = 0  # the same for all runs, so that distances of runs on the same data compare
MIXTURE, REAL_IMAGES, CHOICE = 100, 101, 102  # the purpose of a NumPy draw, used with the run's seed as its key


# --- the likelihood ---------------------------------------------------------------------------------------------------
class Weighed(NamedTuple):
    """The results of importance sampling for N images, in nats: float arrays by image."""

    estimates: np.ndarray  # of log p(x), (N,)
    variances: np.ndarray  # of the estimates, due to the sampling, (N,)
    bounds: np.ndarray  # on log p(x), for G numbers of draws, (G, N)


def sizes_up_to(samples: int) -> tuple[int, ...]:
    """The numbers of draws for which the bound is shown: 1, 2, 5, 10, 20, 50, ... and `samples`."""
    round_numbers = (digit * 10**power for power in range(len(str(samples))) for digit in (1, 2, 5))
    return (*(number for number in round_numbers if number < samples), samples)


def weigh_part(weigh: Callable, part: tuple, samples: int, tell: Callable[[int], bool]) -> Weighed | None:
    """Weigh `samples` draws for each image of a part: uint8 images, the number of the first, z_mean and z_log_std.

    `weigh` is from evaluation.compile_weighing. After every few draws, `tell` gets their number per image and returns
    whether to continue. If it returns False, the result is None.
    """
    for draws, sums in weigh(*part, samples):  # noqa: B007 (the last sums cover all draws)
        if not tell(draws):
            return None
    values = *likelihood.estimate(sums, samples), likelihood.bounds(sums, samples, sizes_up_to(samples))
    return Weighed(*(value.numpy() for value in values))


def weigh_all(
    vae: Any, settings: Settings, images: np.ndarray, posteriors: tuple[np.ndarray, np.ndarray], samples: int,
    place: Path, name: str,
) -> Weighed:  # fmt: skip
    """Weigh `samples` draws for each of the uint8 images (N, H, W, C).

    `posteriors` are their z_mean and z_log_std, (N, L + NOISE_DIM) each. Finished parts are kept in the folder `place`
    under `name`, and read from there the next time. The last part is padded with copies of the last image: all parts
    then have one shape, and `weigh` is compiled once.
    """
    weigh = compile_weighing(vae, settings, vae_main.reconstruction_loss, 2**31, sizes_up_to(samples))
    at_once = min(IMAGES_AT_ONCE, max(1, size.at_once(vae) // PARTS_AT_ONCE), len(images))
    kept = {start: place / f"{name}-{start}.npz" for start in range(0, len(images), at_once)}
    before = sum(min(at_once, len(images) - start) for start, path in kept.items() if path.exists())
    telling, stopped = threading.Lock(), threading.Event()

    def tell(draws: int) -> bool:
        with telling:
            bar.update(draws)
        return not stopped.is_set()

    def part(start: int) -> Weighed | None:
        path, count = kept[start], min(at_once, len(images) - start)
        if stopped.is_set():
            return None
        if path.exists():
            return Weighed(**np.load(path))
        rows = slice(start, start + count)
        batch, *of_batch = (filled_up(part[rows], at_once) for part in (images, *posteriors))
        try:
            if weighed := weigh_part(weigh, (batch, start, *of_batch), samples, lambda draws: tell(draws * count)):
                weighed = Weighed(*(values[..., :count] for values in weighed))
                content = io.BytesIO()
                np.savez(content, **weighed._asdict())
                write_whole(path, content.getvalue())
        except BaseException:
            stopped.set()
            raise
        return weighed

    total = len(images) * samples
    with console.waiting_bar(name, total, before * samples) as bar, ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
        try:
            parts = list(threads.map(part, kept))
        finally:  # after Ctrl-C, the running parts stop after their current draws
            stopped.set()
    return Weighed(*(np.concatenate(values, axis=-1) for values in zip(*parts, strict=True)))


def summary(weighed: Weighed) -> dict[str, float]:
    """The mean of the estimates, in nats, and its two standard errors."""
    estimates, variances = (np.float64(values) for values in weighed[:2])
    return {
        "log_likelihood": float(estimates.mean()),
        "standard_error_images": report.standard_error(estimates),
        "standard_error_sampling": float(math.sqrt(variances.sum()) / len(variances)),
    }


def with_inactive_from_prior(
    posteriors: tuple[np.ndarray, np.ndarray], active: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """z_mean and z_log_std (N, L + NOISE_DIM), with each latent not in `active` (L,) replaced by N(0, 1)."""
    more = posteriors[0].shape[1] - len(active)
    keep = np.pad(active, (0, more))  # the noise latents are N(0, 1) already
    return tuple(np.where(keep, part, np.float32(0)) for part in posteriors)


def evaluate_likelihood(vae: Any, s: Settings, images: np.ndarray, samples: int, place: Path) -> dict[str, Any]:
    """The log-likelihood (or log-density) of uint8 images (N, H, W, C), its bounds, and the active units."""
    posteriors = latent.encode(vae.encoder, images)
    at_once, started = not any(place.iterdir()), time.perf_counter()
    weighed = weigh_all(vae, s, images, posteriors, samples, place, "weighing")
    seconds = time.perf_counter() - started
    active = posteriors[0][:, : s.latent_dim].var(axis=0) > report.ACTIVE_VARIANCE  # (L,), without noise latents
    numbers = summary(weighed) | {
        "samples": samples,
        "seconds": round(seconds, 1) if at_once else None,  # None after a stop, because only the last part was timed
        "bounds": [
            {"samples": size, "bound": float(bound.mean()), "standard_error_images": report.standard_error(bound)}
            for size, bound in zip(sizes_up_to(samples), weighed.bounds, strict=True)
        ],
        "active_units": int(active.sum()),
        "latent_dim": s.latent_dim,
        "inactive_from_prior": None,
        "bits_per_dimension": None,
    }
    if s.loss == "logistic":
        nll, dimensions = -numbers["log_likelihood"], math.prod(images.shape[1:])
        numbers["bits_per_dimension"] = report.bits_per_dimension(nll, dimensions)
    if s.prior == "standard" and not active.all():  # a learned prior need not have independent latents to draw
        replaced = with_inactive_from_prior(posteriors, active)
        numbers["inactive_from_prior"] = summary(weigh_all(vae, s, images, replaced, samples, place, "inactive"))
    return numbers


# --- samples ----------------------------------------------------------------------------------------------------------
def draw_latents(vae: Any, s: Settings, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw z (N, L), without noise latents, from the posterior of each uint8 image (N, H, W, C).

    For a plain autoencoder z is the code of the image.
    """
    z_mean, z_log_std = (part[:, : s.latent_dim] for part in latent.encode(vae.encoder, images))
    if s.autoencoder:
        return z_mean
    return z_mean + np.exp(z_log_std) * rng.standard_normal(z_mean.shape, np.float32)


def evaluate_samples(
    vae: Any, s: Settings, dataset: Dataset, grey: Dataset, components: int, path: Path
) -> dict[str, Any]:
    """Compare reconstructions, samples from the prior and samples from a mixture fitted to the latents.

    Draws them as the picture `path` and returns the numbers. `dataset` has the images as in training, and `grey` has
    them without binarisation.
    """
    rng = np.random.default_rng((s.seed, MIXTURE))
    train = dataset.train_images
    if s.binarize == "dynamic":
        train = binarized(train, (s.seed, REAL_IMAGES))
    print(f"fitting    a mixture of {components} Gaussians to the latents of {len(train):,} training images")
    mixture = latent.fit_mixture(draw_latents(vae, s, train, rng), components, s.seed)
    z = draw_latents(vae, s, dataset.test_images, rng)  # the mixture was not fitted to these
    numbers: dict[str, Any] = {
        "mixture": {
            "components": mixture.n_components,
            "iterations": mixture.n_iter_,
            "converged": bool(mixture.converged_),
            "log_density_of_latents": float(mixture.score(np.float64(z))),
        },
        "frechet": None,
    }
    judged = grey.test_images.shape[1:] == (28, 28, 1)
    count = min(len(train), len(z), len(z) if judged else SHOWN)  # the size of all sets, because it affects distances
    chosen = np.random.default_rng(CHOICE).permutation(len(train))[:count]  # one choice for all seeds, so one floor

    def made(make: Callable, of: np.ndarray) -> np.ndarray:  # floats if they are judged, else uint8
        return make(vae, of) if judged else np.concatenate([*pictures.decoded_rows(partial(make, vae), of, 10)])

    sets = {"reconstructions": made(vae_main.reconstruct, rows_of(train, chosen))}
    if not s.autoencoder:
        prior_latents = vae_main.sample_prior(vae, count, random_key(s.seed, GRID_LATENTS, 1))
        sets["samples from the prior"] = made(vae_main.decode, prior_latents)
        numbers["prior"] = {"log_density_of_latents": float(np.mean(vae.prior.log_density(tf.constant(z))))}
    noise = rng.standard_normal((count, s.noise_dim), np.float32)
    drawn = np.concatenate([latent.draw_mixture(mixture, count, s.seed), noise], axis=1)
    sets["samples from the mixture"] = made(vae_main.decode, drawn)
    if judged:
        print("judging    by a small classifier, trained for it on the grey training images")
        numbers["frechet"] = frechet_distances(sets, grey, chosen, count)
    distances = {name: f", {distance:.1f}" for name, distance in (numbers["frechet"] or {}).items()}
    figures.save_image_sets(
        path,
        {f"{name}{distances.get(name, '')}": images[:SHOWN] for name, images in sets.items()},
        title=f"{path.parent.name}{': behind the comma the Frechet distance from test images' * bool(distances)}",
    )
    return numbers


def frechet_distances(sets: dict[str, np.ndarray], grey: Dataset, chosen: np.ndarray, count: int) -> dict[str, float]:
    """The distances of sets of brightness (count, H, W, C), and of the training images, from `count` grey test images.

    Grey images are compared with grey images, because binary pixels would add the noise of their draw.
    """
    judge = classifier.train_classifier(grey.train_images, grey.train_labels, CLASSIFIER_SEED)
    sets = {"training images": brightness(grey.train_images[chosen])} | sets
    real = classifier.features(judge, brightness(grey.test_images[:count]))
    return classifier.frechet_distances(judge, sets, real)


# --- what is shown ----------------------------------------------------------------------------------------------------
def test_set(settings: Settings, count: int) -> str:
    """The images behind the numbers, in words."""
    name = "held-out training" if settings.held_out else "test"
    drawn = "binarised once by a fixed draw, the same for every run"
    grey = "grey as they are" if settings.dataset in mnist.TITLES else "as they are"
    return f"{count:,} {name} images, {drawn if settings.binarize == 'dynamic' else grey}"


def table(numbers: dict[str, Any]) -> str:
    """The numbers as a few lines for the console."""
    lines = ["", f"What is this run worth?  Of {numbers['images']}:"]

    def row(name: str, value: str, more: str = "") -> None:
        lines.append(f"  {name:<25} {value:<14} {more}".rstrip())

    def likelihood_row(name: str, found: dict[str, float], samples: int) -> None:
        errors = f"+- {report.error_in_words(found['standard_error_images'], '.2f')} over images"
        if "standard_error_sampling" in found:
            errors += f", +- {found['standard_error_sampling']:.2g} sampling"
        nats = found.get("log_likelihood", found.get("bound"))
        row(name, f"{nats:.2f} nats", f"{errors}, K = {samples:,}{of_pixels}")

    of_pixels = f", {numbers['of']}" if numbers["of"] else ""
    if found := numbers["likelihood"]:
        name = "log-likelihood" if numbers["kind"] == "likelihood" else "log-density"
        likelihood_row("ELBO", found["bounds"][0], 1)
        likelihood_row(name, found, found["samples"])
        if found["inactive_from_prior"]:
            likelihood_row("... inactive as prior", found["inactive_from_prior"], found["samples"])
        if bits := found["bits_per_dimension"]:
            row("bits per dimension", f"{bits:.3f}", "minus the log-likelihood in bits, by pixel and colour")
        if published := numbers["published_nll"]:
            row("published", f"-{published['nll']} nats", f"{published['source']}: {published['model']}")
        row("active units", f"{found['active_units']} of {found['latent_dim']}")
        if found["seconds"] is not None:
            row("weighing took", f"{found['seconds']:.0f} seconds")
    if numbers["checkpoint"] == "best":
        row("note", "the checkpoint was chosen by these images, so their numbers are a little too good")
    if numbers["note"]:
        row("note", numbers["note"])
    if "prior" in numbers["samples"]:
        prior, mixture = (numbers["samples"][name]["log_density_of_latents"] for name in ("prior", "mixture"))
        row("latents under prior", f"{prior:.2f} nats")
        more = "the difference: the KL from the latents to the prior is at least this" * (mixture > prior)
        row("... under the mixture", f"{mixture:.2f} nats", more)
    if distances := numbers["samples"]["frechet"]:
        lines += ["", "How far from test images?  Frechet distance in a small classifier's features; no Inception FID."]
        for name, distance in distances.items():
            row(name, f"{distance:.2f}", "the floor" if name == "training images" else "")
    return "\n".join(lines)


# --- main -------------------------------------------------------------------------------------------------------------
def named(folder: Path, name: str, kind: str) -> Path:
    """The path of a file of an evaluation; its name ends in _best for the best checkpoint (the kind "best")."""
    stem, dot, suffix = name.partition(".")
    return folder / f"{stem}{'_best' * (kind == 'best')}{dot}{suffix}"


def unfinished(folder: Path, samples: int, kind: str = "step", tested: str = "") -> Path:
    """The folder for the finished parts of an evaluation.

    It depends on the code, the checkpoint, the number of samples, and `tested`, a text that identifies the test images.
    """
    texts = [
        (folder / "params.json").read_text(encoding="utf-8"),
        str(runs.newest_step(folder, kind)),
        str(samples),
        tested,
    ]
    name = fingerprint([*texts, kind * (kind == "best"), code_of("experiments.evaluate")])
    return folder / f".evaluation-{name}"


def evaluate(folder: Path, samples: int, components: int, kind: str = "step") -> dict[str, Any]:
    """Evaluate a run: write evaluation.json and the pictures into its folder, and return the numbers.

    `kind` is the kind of checkpoint (load.Run). Numbers that this code has already computed are read from the file.
    Raises SettingsError, runs.RunError, DataError and OSError.
    """
    run = Run(folder, kind)
    vae, s, dataset = run.vae, run.settings, run.dataset()
    place = unfinished(folder, samples, kind, str(dataset.test_ids.tolist()))
    identity = f"{place.name.removeprefix('.evaluation-')}-{components}"
    path = named(folder, "evaluation.json", kind)
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if before.get("identity") == identity:
        print(f"run        {folder}, step {before['step']:,}, evaluated before")
        return before
    meaning = report.kind(s)
    numbers: dict[str, Any] = {
        "run": folder.name,
        "identity": identity,
        "step": runs.newest_step(folder, kind),
        "checkpoint": "best" if kind == "best" else "last",
        "kind": meaning,
        "of": report.pixels_of(s) if meaning == "likelihood" else None,
        "images": test_set(s, len(dataset.test_images)),
        "prior_distribution": s.prior,
        "likelihood": None,
        "published_nll": None,
        "note": None,
    }
    print(f"run        {folder}, step {numbers['step']:,}")
    if meaning != "likelihood":
        numbers["note"] = report.no_likelihood(s)
    if meaning != "none":
        for old in folder.iterdir():
            if re.fullmatch(r"\.evaluation-[0-9a-f]+(-best)?", old.name) and old != place and not old.is_symlink():
                shutil.rmtree(old)
        place.mkdir(exist_ok=True)
        numbers["likelihood"] = evaluate_likelihood(vae, s, dataset.test_images, samples, place)
        if meaning == "likelihood":
            numbers["published_nll"] = report.published_nll(s)
        figures.save_bounds(named(folder, "bound.png", kind), numbers)
    grey = data.prepare(s.model_copy(update={"binarize": "none"}), lambda line: None, folder)
    numbers["samples"] = evaluate_samples(vae, s, dataset, grey, components, named(folder, "samples_mixture.png", kind))
    write_json(path, numbers)
    shutil.rmtree(place, ignore_errors=True)
    return numbers


def main(asked: argparse.Namespace) -> int:
    """Evaluate as the command line says; return the exit code."""

    def work():
        folder = asked.run
        print(table(evaluate(folder, asked.samples, asked.components, asked.kind)))
        files = (named(folder, name, asked.kind) for name in ("bound.png", "samples_mixture.png", "evaluation.json"))
        print(f"\nlook at    {folder.absolute()}: {', '.join(path.name for path in files if path.exists())}")

    return console.run("evaluate", work, "the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main(ASKED))
