"""The text that a user sees: doubts before a run, progress during it, and its numbers after it."""

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.console import shown
from utils.dataset import Dataset, LazyImages
from utils.settings import LEARNED_WIDTH, Settings, ramp_end

ACTIVE_VARIANCE = 0.01  # of a latent's posterior mean over the test set (Burda et al. 2015, section 5)
PUBLISHED_NLL = {  # by data set, for a single stochastic layer trained on the ELBO, dynamic binarisation
    "mnist": {"nll": 86.76, "source": "Burda et al. 2015", "model": "50 latents, 2 x 200 tanh, 5,000 samples"},
}
LISTED_LABELS = 10  # most labels whose counts the header shows
NO_ELBO = "-(loss + KL)"  # the name of the ELBO's sum if the loss is neither a likelihood nor a density
REPORTED = (  # the numbers of a report, in order; missing ones are null in report.json
    "kind", "test_reconstruction", "of", "test_elbo", NO_ELBO, "test_kl", "kl_per_latent", "active_units",
    "effective_beta", "latent_dim", "test_nll", "test_log_density", "standard_error_images", "standard_error_sampling",
    "nll_samples", "published_nll", "bits_per_dimension", "best",
)  # fmt: skip


# --- before -----------------------------------------------------------------------------------------------------------
def doubts(settings: Settings, steps: int, channels: int = 1) -> list[str]:
    """Settings that are allowed but surely not meant, a sentence each; `steps` of the run, `channels` of its images."""
    s = settings
    found = []
    if channels > 1 and s.binarize == "dynamic":
        found.append("BINARIZE = dynamic draws each colour of a pixel black or white; none keeps the colours.")
    if s.loss == "ce" and s.binarize == "none":
        pixels, way_out = "grey pixels (BINARIZE = none)", ""
        if channels > 1:
            pixels, way_out = "colours", " LOSS = logistic gives one."
        found.append(f"LOSS = ce on {pixels} is no likelihood: ELBO and NLL in nats mean nothing.{way_out}")
    if s.loss in LEARNED_WIDTH and s.binarize == "dynamic":
        found.append(f"LOSS = {s.loss} on black and white pixels; BINARIZE = none keeps the grey ones it is made for.")
    if ramp_end(s) > steps:
        found.append(f"KL_STEPS = {s.kl_steps:,} exceeds the run's {steps:,} steps: KL_WEIGHT_END will not be reached.")
    if not s.autoencoder and s.kl_schedule != "constant" and s.kl_weight_start == s.kl_weight_end > 0:
        found.append(f"KL_SCHEDULE = {s.kl_schedule} from {s.kl_weight_start:g} to the same: it is constant.")
    if not s.autoencoder and s.kl_weight_end == 0:
        found.append("KL_WEIGHT_END = 0: nothing pulls the latents to the prior, so samples will not look like images.")
    if s.reconstruction_reduction == "mean" and not s.autoencoder:
        found.append("RECONSTRUCTION_REDUCTION = mean: the KL outweighs the reconstruction; expect a collapse.")
    if s.bound != "elbo" and s.bound_samples == 1:
        found.append(f"BOUND = {s.bound} with BOUND_SAMPLES = 1 is the ELBO; more samples make it tighter.")
    if s.autoencoder and s.free_bits > 0:
        found.append("FREE_BITS does nothing with AUTOENCODER, which has no KL.")
    return found


def header(settings: Settings, dataset: Dataset, device: str, folder: Path) -> str:
    """The lines before a training: data, model, device, schedule and folder."""
    s = settings
    pixels = math.prod(dataset.train_images.shape[1:])
    encoder, decoder = ("-".join(map(str, layers)) for layers in (s.encoder_layers, s.decoder_layers))
    latents = f"{s.latent_dim}+{s.noise_dim} noise" if s.noise_dim else str(s.latent_dim)
    ends, size = [str(pixels)] * 2, " x ".join(map(str, dataset.train_images.shape[1:]))
    if s.architecture in ("conv", "resnet"):
        stages = [f"{s.architecture}({'-'.join(map(str, channels))})" for channels in (s.channels, s.channels[::-1])]
        ends = [f"{size}-{stages[0]}", f"{stages[1]}-{size}"]
    elif s.architecture != "mlp":  # of the user's own
        ends[0] = f"{size}-{s.architecture}"
    shape = "-".join(filter(None, (ends[0], encoder, latents, decoder, ends[1])))
    shape += f", {s.prior} prior" if s.prior != "standard" else ""
    shape += ", bfloat16 inside" if s.mixed_precision else ""
    several_draws = s.bound != "elbo" or s.bound_samples > 1
    shape += f", {s.bound.upper()} by {s.bound_samples} samples an image" if several_draws else ""
    sizes = f"{len(dataset.train_images):,} + {len(dataset.test_images):,} images"
    sizes += " (held out of the training images)" if s.held_out else ""
    sizes += f", {dataset.verified}" if dataset.verified else ""
    lines = [
        f"data       {dataset.title}: {sizes}, from {dataset.source}",
        *data_lines(dataset.details),
        f"model      {shape}, {device}",
        f"schedule   {schedule(s, len(dataset.train_images) // s.batch_size)}",
        f"run        {shown(folder)}",
    ]
    return "\n".join(lines)


def data_lines(details: Mapping[str, Any]) -> list[str]:
    """More about the data, a line each: split, labels with their counts, pixels, what is left out."""
    lines, labels = [], details.get("labels", {})
    if details.get("split"):
        lines.append(f"split      {details['split']}")
    if len(labels) > 1 and details.get("split"):
        counts = [f"{name} {train:,} + {test:,}" for name, (train, test) in islice(labels.items(), LISTED_LABELS)]
        more = [f"and {len(labels) - LISTED_LABELS:,} more"] if len(labels) > LISTED_LABELS else []
        lines.append(f"labels     {len(labels):,}: {', '.join(counts + more)}")
    found = [details[name] for name in ("pixels", "sizes") if name in details]
    lines += [f"pictures   {', '.join(found)}"] if found else []
    lines += [f"           {details[name]}" for name in ("range", "fit") if name in details]
    return lines + [f"left out   {text}" for text in details.get("left_out", ())]


def schedule(s: Settings, steps_per_epoch: int) -> str:
    """How long a run is, and how its KL weight reaches the final value."""
    length = f"{s.epochs:,} epoch{'s' * (s.epochs > 1)} of {steps_per_epoch:,} step{'s' * (steps_per_epoch > 1)}"
    if s.autoencoder:
        return length
    if not ramp_end(s):
        return f"{length}; KL weight {s.kl_weight_end:g} throughout"
    ends = f"{s.kl_weight_start:g} to {s.kl_weight_end:g}"
    return f"{length}; KL weight {ends} ({s.kl_schedule}) over the first {s.kl_steps:,} steps"


# --- during -----------------------------------------------------------------------------------------------------------
def progress_bar(steps: int, done: int, shown: bool = True) -> tqdm:
    """The bar of a training run, 79 columns wide, counted in steps."""
    hidden = {} if shown else {"disable": True}  # without `disable` tqdm reads TQDM_DISABLE
    return tqdm(total=steps, initial=done, ncols=79, ascii=" #", bar_format="compiling |{bar}|", **hidden)


def show_progress(bar: tqdm, step: int, epoch: int, epochs: int, line: dict[str, Any] | None) -> None:
    """Move the bar to a step and, if there is a new training line of the history, show its numbers."""
    if line is not None:
        numbers = f"reconstruction {line['reconstruction']:.1f}"
        if line["kl"] is not None:
            name, value = ("ELBO", line["elbo"]) if line["elbo"] is not None else (NO_ELBO, line[NO_ELBO])
            numbers = f"{name} {value:.1f}  KL {line['kl']:.1f} x {line['kl_weight']:.2f}"
        bar.set_description_str(f" {line['images_per_second']:,.0f} images/s  {numbers}", refresh=False)
    bar.bar_format = f"epoch {epoch:>2}/{epochs} |{{bar}}|{{desc}}"
    bar.update(step - bar.n)


# --- after ------------------------------------------------------------------------------------------------------------
def kind(settings: Settings) -> str:
    """What the loss is: a "likelihood" of binary or 8-bit pixels, a "density" of continuous ones, or "none"."""
    if settings.autoencoder:
        return "none"
    if settings.loss == "logistic":
        return "likelihood"
    if settings.decoder_scale == "learned":
        return "density"
    return "likelihood" if settings.loss == "ce" and settings.binarize == "dynamic" else "none"


def sum_name(settings: Settings) -> str:
    """What -(reconstruction + KL) is called in a line of the history: "elbo" only where it is one."""
    return NO_ELBO if kind(settings) == "none" else "elbo"


def bits_per_dimension(nats: float, pixels: int) -> float:
    """Nats per image as bits per dimension; an image has `pixels` dimensions, one for each pixel and colour."""
    return nats / (pixels * math.log(2))


def pixels_of(settings: Settings) -> str:
    """The kind of pixels that a likelihood is of, as text."""
    return "binarised" if settings.loss == "ce" else "8-bit pixels"


def effective_beta(settings: Settings, pixels: int) -> float:
    """The final weight of the KL relative to the reconstruction summed over pixels; 1 is the ELBO."""
    return settings.kl_weight_end * (pixels if settings.reconstruction_reduction == "mean" else 1)


def active_units(z_mean: np.ndarray) -> int:
    """How many latents have a posterior mean (N, L) with a variance above 0.01 over the images (Burda et al. 2015)."""
    return int((z_mean.var(axis=0) > ACTIVE_VARIANCE).sum())


def make_report(
    settings: Settings,
    reconstruction: np.ndarray,
    kl: np.ndarray,
    z_mean: np.ndarray,
    log_likelihood: tuple[np.ndarray, np.ndarray] | None,
    pixels: int,
) -> dict[str, Any]:
    """Put a run's numbers together for report.json, without the verdict (utils/verdict.py).

    The arguments are of the test images: reconstruction loss (N,) and KL (N, L) in nats, posterior means (N, L), and
    estimates (N,) of log p(x) with their sampling variances (N,), or None.
    """
    meaning, kl_of_image = kind(settings), kl.sum(axis=1)
    report = dict.fromkeys(REPORTED) | {
        "kind": meaning,
        "test_reconstruction": float(reconstruction.mean()),
        "of": pixels_of(settings) if meaning == "likelihood" else None,
        "latent_dim": settings.latent_dim,
    }
    if not settings.autoencoder:
        report |= {
            NO_ELBO if meaning == "none" else "test_elbo": float(-(reconstruction + kl_of_image).mean()),
            "test_kl": float(kl_of_image.mean()),
            "kl_per_latent": [float(nats) for nats in kl.mean(axis=0)] if settings.prior == "standard" else None,
            "active_units": active_units(z_mean),
            "effective_beta": effective_beta(settings, pixels),
        }
    if log_likelihood is not None:
        estimates, variances = (np.asarray(values, np.float64) for values in log_likelihood)
        sampling_error = float(np.sqrt(variances.sum()) / len(estimates))
        report |= {
            "standard_error_images": standard_error(estimates),
            "standard_error_sampling": sampling_error if math.isfinite(sampling_error) else None,
            "nll_samples": settings.nll_samples,
        }
        if meaning == "likelihood":
            report |= {"test_nll": float(-estimates.mean()), "published_nll": published_nll(settings)}
        else:
            report["test_log_density"] = float(estimates.mean())
    if meaning == "likelihood" and settings.loss == "logistic":
        nats = {"elbo": -report["test_elbo"], "nll": report["test_nll"]}
        bits = {name: bits_per_dimension(value, pixels) for name, value in nats.items() if value is not None}
        report["bits_per_dimension"] = bits
    return report


def standard_error(values: np.ndarray) -> float | None:
    """The standard error of the mean of values (N,); None for a single value, which has no spread."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def error_in_words(error: float | None, form: str) -> str:
    """A standard error as text; "?" if it is not known."""
    return "?" if error is None else format(error, form)


def published_nll(settings: Settings) -> dict[str, Any] | None:
    """The published NLL to compare a run's with, if there is one for the same images and pixels."""
    comparable = settings.loss == "ce" and not settings.labels and not settings.held_out
    return PUBLISHED_NLL.get(settings.dataset) if comparable else None


def grows_for_ever(s: Settings) -> bool:
    """Whether the objective has no limit: the density of black and white pixels grows as its width shrinks."""
    return kind(s) == "density" and s.binarize == "dynamic"


def remarks(s: Settings, report: dict[str, Any]) -> list[str]:
    """What to know when reading a run's numbers, a plain sentence each."""
    found, beta = [], report["effective_beta"]
    if s.held_out:
        found.append(f"No test image was looked at: these are {s.held_out:,} images held out of the training set.")
    if beta is not None and beta >= 10 and s.reconstruction_reduction == "sum":
        found.append(f"A beta-VAE: at a KL weight of {beta:g} fewer latents are used, and reconstructions are blurred.")
    if beta == 0:
        found.append("The KL has no weight: nothing pulls latents to the prior, so samples do not look like images.")
    return found + [sentence for sentence in [no_likelihood(s)] if sentence]


def no_likelihood(s: Settings) -> str:
    """A sentence on why the loss is no likelihood and what would be one; "" if it is one."""
    meaning = kind(s)
    if s.autoencoder:
        return "A plain autoencoder has no prior and no likelihood: no samples, no ELBO, no NLL."
    if grows_for_ever(s):
        binary = "A density of black and white pixels says nothing: it grows for ever as the learned width shrinks."
        return f"{binary} BINARIZE = none keeps the grey ones."
    if meaning == "density":
        return "A density of grey pixels. It may exceed 0 and does not compare with the NLL of binary pixels."
    if meaning == "likelihood":
        return ""
    if s.loss == "ce":
        way_out = "BINARIZE = dynamic makes it one; for colours use LOSS = logistic."
        return f"Not a likelihood: cross-entropy on grey pixels. {way_out}"
    if s.loss in LEARNED_WIDTH:
        way_out = "BINARIZE = none with " * (s.binarize == "dynamic") + "DECODER_SCALE = learned makes it a density"
        return f"Not a likelihood: {s.loss} without its constants. {way_out} of pixels."
    return f"Not known to be a likelihood: {s.loss} is a loss of your own (utils/report.py, kind, knows which are)."


def rows_of_report(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers of a report, each as a name and a text."""
    meaning, rows = report["kind"], []
    if report["test_kl"] is None:
        rows.append(("test reconstruction", f"{report['test_reconstruction']:.2f} nats"))
    else:
        names = {"likelihood": "test ELBO", "density": "test ELBO (density)", "none": f"{NO_ELBO} on test"}
        value = report[NO_ELBO if meaning == "none" else "test_elbo"]
        terms = f"-({report['test_reconstruction']:.2f} reconstruction + {report['test_kl']:.2f} KL)"
        of_pixels = f", {report['of']}" if meaning == "likelihood" else ""
        rows.append((names[meaning], f"{value:.2f} nats   = {terms}{of_pixels}"))
    if report["nll_samples"]:
        name, value = "test log-density", report["test_log_density"]
        if meaning == "likelihood":
            name, value = "test log-likelihood", -report["test_nll"]
        images, sampling = report["standard_error_images"], report["standard_error_sampling"]
        over_images, by_sampling = error_in_words(images, ".2f"), error_in_words(sampling, ".2g")
        errors = f"+- {over_images} over images, +- {by_sampling} sampling"
        rows.append((name, f"{value:.2f} nats   {errors}, K = {report['nll_samples']}"))
    if bits := report["bits_per_dimension"]:
        rows.append(("bits per dimension", ", ".join(f"{value:.3f} ({name.upper()})" for name, value in bits.items())))
    if published := report["published_nll"]:
        rows.append(("published", f"-{published['nll']} nats   {published['source']}: {published['model']}"))
    if report["active_units"] is not None:
        rows.append(("active units", f"{report['active_units']} of {report['latent_dim']}"))
    if kl := report["kl_per_latent"]:
        rows.append(("KL per latent", f"{min(kl):.2f} to {max(kl):.2f} nats, mean {np.mean(kl):.2f}"))
    if best := report["best"]:
        chosen = f"epoch {best['epoch']:,}, step {best['step']:,}: objective {best['objective']:.2f}"
        rows.append(("best test", f"{chosen}; evaluate and export take it with --best"))
    return rows + [("note", sentence) for sentence in report["remarks"]]


def answer(report: dict[str, Any]) -> tuple[str, list[str]]:
    """Whether the run is healthy, in a few words, and what is wrong with it, a sentence each."""
    early = [f"Not finished: {sentence}" for sentence in report["unfinished"]]
    short = {"healthy": "Yes.", "unhealthy": "No.", "not finished": "".join(early)}[report["verdict"]]
    return short, report["problems"] + early * bool(report["problems"])


def table(report: dict[str, Any]) -> str:
    """The report as a few lines for the console."""
    short, problems = answer(report)
    lines = ["", f"Is this run healthy?  {short}", *(f"  ! {sentence}" for sentence in problems)]
    return "\n".join(lines + [f"  {name:<22} {text}" for name, text in rows_of_report(report)])


def skipped_images(dataset: Dataset) -> list[str]:
    """The errors of the images that were skipped so far; the next image was used instead of each."""
    sets = (dataset.train_images, dataset.test_images)
    return sorted(set().union(*(images.skipped for images in sets if isinstance(images, LazyImages))))


def skipped(dataset: Dataset) -> str:
    """A line that counts the images that were skipped and names the first; "" if there were none."""
    if not (found := skipped_images(dataset)):
        return ""
    images, more = ("1 image", "") if len(found) == 1 else (f"{len(found):,} images", "; all are in report.json")
    return f"skipped    {images} that could not be read, replaced by the next: {found[0]}{more}"
