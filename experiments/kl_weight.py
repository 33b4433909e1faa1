"""How strong should the KL weight be, and when should it start? And what does the KL measure?

    python -m experiments.kl_weight    # 16 minutes on two cores

Trains the VAE of the Analysis with five schedules of the KL weight, with weights (beta) from 0.1 to 10, and with free
bits. Measures on the test images: ELBO, log-likelihood, the two terms of the ELBO against each other (rate and
distortion), the KL of each latent during training, and how a digit classifier judges samples. Then it computes the KL
of the trained models in other ways: from one sample instead of the formula, and for the latents of all images together
instead of image by image. Writes kl_weight.json and kl_weight_*.png to images/.
"""

from experiments.results import in_percent, over_seeds, percent, publish, shown, summary, table
from experiments.study import Study, Trained, Training, read_command_line, repeated, run_study, steps_of, train_groups

if __name__ == "__main__":
    STUDY = read_command_line("kl_weight", __doc__)  # before the seconds that TensorFlow takes

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

import main
from experiments import latent
from experiments.figures import draw_images, draw_spread
from experiments.samples import dataset_of, digit_classifier, judge_samples, prior_samples
from utils.batches import brightness
from utils.pictures import save_figure
from utils.start import tf

AWAKE = 0.1  # nats: a latent whose KL, averaged over test images, is above this is awake
TERMS = ("test_kl", "test_reconstruction")  # rate and distortion
WATCHED = ("linear", "constant")  # the schedules during which the KL of each latent is watched
WATCHED_IMAGES = 1_000  # test images whose latents are watched


class Sizes(NamedTuple):
    """How much is trained and measured."""

    schedules: tuple[str, ...] = ("constant", "linear", "sigmoid", "cosine", "cyclical")
    kl_steps: int = 2_000  # of about 3,700
    betas: tuple[float, ...] = (0.1, 0.25, 0.5, 1, 2, 4, 10)
    shown_betas: tuple[float, ...] = (0.1, 1, 10)  # the figures show samples and scatters of these
    free_bits: tuple[float, ...] = (0.1, 0.5, 1)
    samples: int = 1_000  # from the prior, judged by the classifier
    watched_steps: int = 80  # at most; the KL of each latent is measured at these
    images: int = 10_000  # test images whose latents are measured
    draws: int = 100  # of z for each image
    mixture_samples: int = 2_000  # from the mixture of the posteriors


Posteriors = dict[float, list[tuple[np.ndarray, np.ndarray]]]  # by beta: z_mean and z_log_std (N, L) for each seed
QUICK_SIZES = Sizes(("constant", "linear"), 100, (1, 10), (1, 10), (0.5,), 200, 12, 500, 50, 500)


# --- trainings --------------------------------------------------------------------------------------------------------
def kl_of_latents(vae: main.VAE, settings: Any, dataset: Any, images: int) -> dict[str, np.ndarray]:
    """Watch the KL of each latent, averaged over the first test images, (L,) nats."""
    z_mean, z_log_std = vae.encoder(brightness(tf.constant(dataset.test_images[:images])))
    return {"kl": tf.reduce_mean(main.kl_to_standard_normal(z_mean, z_log_std), axis=0).numpy()}


def watch_steps(last: int, count: int) -> tuple[int, ...]:
    """The steps at which to watch: 0, and then steps evenly spaced on a log axis, up to `last`."""
    return (0, *np.unique(np.geomspace(1, last, count - 1).round().astype(int)).tolist())


def ask(study: Study, sizes: Sizes) -> dict[tuple[str, Any], list[Training]]:
    """The trainings, one per seed, by what is varied and its value; constant weight 1 is in all three groups."""
    asked = {("schedule", "constant"): repeated(study, kl_schedule="constant")}
    for schedule in sizes.schedules[1:]:
        asked["schedule", schedule] = repeated(study, kl_schedule=schedule, kl_steps=sizes.kl_steps)
    for schedule in WATCHED:
        first, *others = asked["schedule", schedule]
        steps = watch_steps(steps_of(first.settings), sizes.watched_steps)
        watched = first._replace(watch=partial(kl_of_latents, images=WATCHED_IMAGES), watch_at=steps)
        asked["schedule", schedule] = [watched, *others]

    plain = asked["schedule", "constant"]
    for beta in sizes.betas:
        changed = {"kl_schedule": "constant", "kl_weight_end": beta, "nll_samples": 0}
        asked["beta", beta] = plain if beta == 1 else repeated(study, **changed)
    asked["free bits", 0] = plain
    for nats in sizes.free_bits:
        asked["free bits", nats] = repeated(study, kl_schedule="constant", free_bits=nats, nll_samples=0)
    return asked


def ends_of(runs: list[Trained], *keys: str) -> dict[str, Any]:
    """Numbers from the reports of trainings that differ only in their seed, summarised."""
    return over_seeds([{key: run.report[key] for key in keys} for run in runs])


# --- schedules --------------------------------------------------------------------------------------------------------
def measure_schedules(by_schedule: dict[str, list[Trained]]) -> dict[str, Any]:
    """The final numbers of each schedule, and its gain in ELBO over constant weight 1, seed by seed."""
    plain = [run.report["test_elbo"] for run in by_schedule["constant"]]
    numbers = {}
    for schedule, runs in by_schedule.items():
        ends = ends_of(runs, "test_elbo", "test_nll", "test_reconstruction", "test_kl", "active_units")
        gains = [elbo - other for elbo, other in zip(ends["test_elbo"]["values"], plain, strict=True)]
        numbers[schedule] = ends | {"gain": summary(gains)}
    return numbers


def schedule_table(numbers: dict[str, Any]) -> str:
    """The final numbers of each schedule, as Markdown."""
    headers = ["schedule", "test ELBO", "more than constant", "test NLL", "KL", "active units"]
    rows = []
    for schedule, n in numbers.items():
        gain = "" if schedule == "constant" else shown(n["gain"], 2)
        ends = [shown(n["test_nll"], 2), shown(n["test_kl"], 2), shown(n["active_units"])]
        rows.append([schedule, shown(n["test_elbo"], 2), gain, *ends])
    return table(headers, rows)


def draw_schedules(by_schedule: dict[str, list[Trained]], numbers: dict[str, Any]) -> Figure:
    """Draw the weight, the KL and the ELBO over steps, and the final numbers."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    (weights, kls), (elbos, ends) = figure.subplots(2, 2)
    for place, (schedule, runs) in enumerate(by_schedule.items()):
        color = f"C{place}"
        for axes, split, key in ((kls, "train", "kl"), (elbos, "test", "elbo")):
            lines = [run.history(split) for run in runs]
            steps = [line["step"] for line in lines[0]]
            draw_spread(axes, steps, [[line[key] for line in one] for one in lines], schedule, color)
        weights.plot(main.kl_weight(tf.range(steps[-1]), runs[0].settings), color=color, label=schedule)
        for marker, key, sign in (("o", "test_elbo", -1), ("x", "test_nll", 1)):
            values = sign * np.array(numbers[schedule][key]["values"])
            ends.plot(np.full(len(values), place), values, marker, color=color)
    weights.set(title="weight of the KL", xlabel="step", ylabel="weight")
    kls.set(title="KL of training images, means over 100 steps", xlabel="step", ylabel="nats (log scale)", yscale="log")
    elbos.set(title="test ELBO (weight 1), after each epoch", xlabel="step", ylabel="nats")
    kls.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    kls.yaxis.set_major_formatter("{x:.0f}")
    kls.yaxis.set_minor_locator(NullLocator())
    ends.set(title="at the end, a mark per seed:  o  -ELBO    x  NLL", ylabel="nats (less is better)")
    ends.set_xticks(range(len(by_schedule)), list(by_schedule))
    for axes in (weights, kls, elbos, ends):
        axes.grid(alpha=0.3)
    weights.legend()
    return figure


# --- beta -------------------------------------------------------------------------------------------------------------
def exchange_rates(rates: np.ndarray, distortions: np.ndarray) -> np.ndarray:
    """Nats of distortion saved per extra nat of rate, between neighbours on the curve: (P,), (P,) -> (P - 1,).

    At the minimum of distortion + beta * rate the curve has slope -beta (Alemi et al. 2018, arXiv 1711.00464). So the
    exchange rate between two exact minimisers lies between their betas.
    """
    return -np.diff(distortions) / np.diff(rates)


def measure_betas(study: Study, sizes: Sizes, by_beta: dict[float, list[Trained]], judge: Any) -> dict[str, Any]:
    """Rate, distortion and samples for each beta."""
    numbers = {}
    for beta, runs in by_beta.items():
        samples = [prior_samples(run.vae, sizes.samples, study.seed) for run in runs]
        verdicts = [judge_samples(judge, drawn) for drawn in samples]
        ends = ends_of(runs, "test_kl", "test_reconstruction", "test_elbo", "active_units")
        numbers[f"{beta:g}"] = ends | over_seeds(verdicts)
    rates, distortions = (np.array([n[key]["mean"] for n in numbers.values()]) for key in TERMS)
    for n, rate in zip(numbers.values(), [*exchange_rates(rates, distortions).tolist(), None], strict=True):
        n["exchange_rate_to_next"] = rate
    return numbers


def beta_table(numbers: dict[str, Any], real: dict[str, float]) -> str:
    """Rate, distortion and samples for each beta, as Markdown; `real` is how the classifier judges test images."""
    headers = ["beta", "rate: KL", "distortion: reconstruction", "test ELBO", "active units"]
    headers += ["saved per nat of KL, up to the next beta", "clear samples, %", "digits in samples"]
    rows = []
    for beta, n in numbers.items():
        nats = [shown(n[key]) for key in ("test_kl", "test_reconstruction", "test_elbo", "active_units")]
        exchange = n["exchange_rate_to_next"]
        rows.append([beta, *nats, "" if exchange is None else f"{exchange:.2f}"])
        rows[-1] += [percent(n["sure"]), shown(n["digits"])]
    rows.append(["test images", "", "", "", "", "", f"{100 * real['sure']:.1f}", f"{real['digits']:.1f}"])
    return table(headers, rows)


def draw_betas(study: Study, sizes: Sizes, by_beta: dict[float, list[Trained]], numbers: dict[str, Any]) -> Figure:
    """Rate against distortion, active units and clear samples over beta, and samples."""
    figure = Figure(figsize=(10, 7.8), layout="constrained")
    curves, samples = figure.subfigures(2, 1, height_ratios=[2.3, 1])
    plane, over_beta = curves.subplots(1, 2)
    draw_rate_distortion(plane, numbers)

    betas = list(by_beta)
    percent = over_beta.twinx()
    active = np.transpose([n["active_units"]["values"] for n in numbers.values()])
    sure = np.transpose([in_percent(n["sure"])["values"] for n in numbers.values()])
    draw_spread(over_beta, betas, active, "active units", "C0")
    draw_spread(percent, betas, sure, "clear samples", "C1")
    over_beta.set(xscale="log", xlabel="beta (log scale)", ylim=(0, 1.05 * active.max()))
    over_beta.set_ylabel("active units", color="C0")
    over_beta.set_xticks(betas, [f"{beta:g}" for beta in betas])
    over_beta.minorticks_off()
    over_beta.set_title("latents in use, and samples that the classifier is sure of", fontsize=10)
    over_beta.yaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    percent.set_ylim(0, 100)
    percent.set_ylabel("clear samples (%)", color="C1")
    over_beta.grid(alpha=0.3)

    for axes, beta in zip(samples.subplots(1, len(sizes.shown_betas)), sizes.shown_betas, strict=True):
        n = numbers[f"{beta:g}"]
        drawn = prior_samples(by_beta[beta][0].vae, 40, study.seed)
        title = f"samples, beta {beta:g}: KL {n['test_kl']['mean']:.1f} nats, {100 * n['sure']['mean']:.0f} % clear"
        draw_images(axes, drawn, 8, title)
    return figure


def draw_rate_distortion(axes: Axes, numbers: dict[str, Any]) -> None:
    """Draw the rate-distortion curve, a dot per training, and the lines of equal ELBO."""
    rates, distortions = (np.array([n[key]["values"] for n in numbers.values()]) for key in TERMS)
    axes.plot(rates.mean(axis=1), distortions.mean(axis=1), color="C0", linewidth=1)
    axes.plot(rates.ravel(), distortions.ravel(), "o", color="C0", markersize=4)
    for beta, rate, distortion in zip(numbers, rates.mean(axis=1), distortions.mean(axis=1), strict=True):
        axes.annotate(f"beta {beta}", (rate, distortion), xytext=(6, 5), textcoords="offset points")
    axes.margins(x=0.25, y=0.15)  # room for the labels
    left, right = axes.set_xlim(0, axes.get_xlim()[1])
    bottom, top = axes.set_ylim(*axes.get_ylim())
    for total in MaxNLocator(10, steps=(1, 2, 5, 10)).tick_values(left + bottom, right + top):
        axes.plot([left, right], [total - left, total - right], color="grey", linewidth=0.6, linestyle=":")
        if bottom < total - right < top:  # the line leaves the picture on the right; its label is outside
            axes.text(right, total - right, f" {-total:.0f}", color="grey", fontsize=7, va="center")
        elif left < total - bottom < right:  # at the bottom
            axes.text(total - bottom, bottom, f"{-total:.0f} ", color="grey", fontsize=7, va="bottom", ha="right")
    axes.set(xlabel="rate: KL (nats)", ylabel="distortion: reconstruction loss (nats)")
    axes.set_title("what a nat of rate buys (dotted: equal ELBO, in nats)", fontsize=10)


# --- each latent ------------------------------------------------------------------------------------------------------
def awake_since(steps: np.ndarray, kl: np.ndarray, threshold: float) -> list[int | None]:
    """The step from which on the KL (T, L) of each latent stays above `threshold`; None if it ends below.

    It is one of `steps` (T,), and 0 if the KL was above at all times, even before training. The first step above would
    be misleading: the latents of an untrained encoder already differ from the prior, and from image to image.
    """
    stays = np.logical_and.accumulate((kl > threshold)[::-1])[::-1]  # (T, L), True from some step on
    return [int(steps[column.argmax()]) if column.any() else None for column in stays.T]


def watched_kl(run: Trained) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) and the KL of each latent at them, (T, L) nats; the latent with the largest final KL comes first."""
    watched = run.watched()
    kl = np.stack([at["kl"] for at in watched.values()])
    return np.array(list(watched)), kl[:, np.argsort(-kl[-1])]


def measure_latents(by_schedule: dict[str, list[Trained]]) -> dict[str, Any]:
    """Since when each latent is awake, and the least, the largest and the final number of awake latents.

    The latents have the order of watched_kl.
    """
    numbers = {}
    for schedule in WATCHED:
        steps, kl = watched_kl(by_schedule[schedule][0])
        awake = (kl > AWAKE).sum(axis=1)
        numbers[schedule] = {
            "awake_since_step": awake_since(steps, kl, AWAKE),
            "kl_at_end": kl[-1].tolist(),
            "least_awake": int(awake.min()),
            "most_awake": int(awake.max()),
            "awake_at_end": int(awake[-1]),
        }
    return numbers


def measure_free_bits(by_free_bits: dict[float, list[Trained]]) -> dict[str, Any]:
    """The final numbers with free bits; the KL per latent is sorted within each training, then averaged over seeds."""
    numbers = {}
    for nats, runs in by_free_bits.items():
        sorted_kl = [sorted(run.report["kl_per_latent"], reverse=True) for run in runs]
        ends = ends_of(runs, "test_elbo", "test_reconstruction", "test_kl", "active_units")
        least, most = (summary(kl[place] for kl in sorted_kl) for place in (-1, 0))
        mean_kl = np.mean(sorted_kl, axis=0).tolist()
        numbers[f"{nats:g}"] = ends | {"least_kl": least, "most_kl": most, "sorted_kl": mean_kl}
    return numbers


def free_bits_table(numbers: dict[str, Any]) -> str:
    """The final numbers with free bits, as Markdown."""
    headers = ["free nats per latent", "in all", "test ELBO", "reconstruction", "KL", "active units"]
    headers += ["least KL of a latent", "largest"]
    rows = []
    for nats, n in numbers.items():
        free = float(nats) * len(n["sorted_kl"])
        ends = [shown(n[key]) for key in ("test_elbo", "test_reconstruction", "test_kl", "active_units")]
        rows.append([nats, f"{free:g}", *ends, shown(n["least_kl"], 3), shown(n["most_kl"], 2)])
    return table(headers, rows)


def draw_latents(by_schedule: dict[str, list[Trained]], by_free_bits: dict[float, list[Trained]]) -> Figure:
    """Draw the KL of each latent during training, and at the end with and without free bits."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.4, 1])
    panels = above.subplots(1, len(WATCHED), sharey=True)
    for axes, schedule in zip(panels, WATCHED, strict=True):
        steps, kl = watched_kl(by_schedule[schedule][0])
        rows = np.arange(1, kl.shape[1] + 1)
        logarithmic = steps > 0  # a log axis has no step 0; a latent that was awake then has its dot at step 1
        shades = {"norm": LogNorm(0.01, 10), "cmap": "viridis"}
        colors = axes.pcolormesh(steps[logarithmic], rows, kl[logarithmic].T.clip(0.01), **shades)
        woken = [(row, at) for row, at in zip(rows, awake_since(steps, kl, AWAKE), strict=True) if at is not None]
        axes.plot([max(at, 1) for _, at in woken], [row for row, _ in woken], ".", color="red", markersize=5)
        title = f"{schedule} weight: {len(woken)} of {len(rows)} awake at the end"
        axes.set(xscale="log", xlabel="step (log scale)", title=title)
    panels[0].set(ylabel="latent, by its KL at the end", ylim=(len(rows) + 0.5, 0.5), yticks=rows)
    above.colorbar(colors, ax=panels, label="KL (nats), mean of test images", extend="both")
    above.suptitle(f"KL of each latent; red: above {AWAKE} nats from here on (left edge: all along)", fontsize=11)

    axes = below.subplots()
    for nats, runs in by_free_bits.items():
        kl = [sorted(run.report["kl_per_latent"], reverse=True) for run in runs]
        draw_spread(axes, rows, kl, f"{nats:g} nats free per latent" if nats else "no free bits")
    axes.set(xlabel="latent, by its KL", ylabel="KL (nats)", xticks=rows)
    axes.set_title("KL of each latent at the end, with weight 1 throughout")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


# --- ways to take the KL ----------------------------------------------------------------------------------------------
def kl_by_one_sample(z_mean: np.ndarray, z_log_std: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """log q(z|x) - log p(z) of each latent for z = z_mean + std * noise, in nats; all (N, L).

    Its mean over the noise is the KL. The KL is never negative, but one sample can be.
    """
    z = z_mean + np.exp(z_log_std) * noise
    return (np.square(z) - np.square(noise)) / 2 - z_log_std


def one_sample_variance(z_mean: np.ndarray, z_log_std: np.ndarray) -> np.ndarray:
    """The variance of kl_by_one_sample over the noise, (N, L) square nats: (s^2 - 1)^2 / 2 + m^2 s^2.

    With z = m + s e the sample is (s^2 - 1) e^2 / 2 + m s e + a constant; e^2 has variance 2 and no covariance with e.
    A latent that carries much information has a small s. Then about 1/2 is left, all of it from log q(z|x): pure noise.
    """
    variance = np.exp(2 * z_log_std)
    return np.square(variance - 1) / 2 + np.square(z_mean) * variance


def gradient_noise(z_mean: np.ndarray, z_log_std: np.ndarray) -> float:
    """The noise of the gradient of the one-sample KL: its standard deviation over the size of the KL's gradient.

    The gradient of an image's KL with respect to the encoder's outputs m and log s (N, L) is m and s^2 - 1. From one
    sample, z = m + s e, it is z and z s e - 1, with variances s^2 and s^2 (m^2 + 2 s^2). Both noise and size are root
    mean squares over all images.
    """
    variance = np.exp(2 * z_log_std)
    noise = variance + variance * (np.square(z_mean) + 2 * variance)
    size = np.square(z_mean) + np.square(variance - 1)
    return float(np.sqrt(noise.mean() / size.mean()))


def draw_values(z_mean: np.ndarray, z_log_std: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The KL (draws, N) of images from one sample, repeated `draws` times, in nats."""
    rng = np.random.default_rng(seed)
    noises = (rng.standard_normal(z_mean.shape) for _ in range(draws))
    return np.stack([kl_by_one_sample(z_mean, z_log_std, noise).sum(axis=1) for noise in noises])


def take_kl(z_mean: np.ndarray, z_log_std: np.ndarray, draws: int, mixture_samples: int, seed: int) -> dict[str, float]:
    """The KL from posteriors (N, L) to the prior, computed in all ways, in nats.

    analytic: the formula, mean over images. one_sample: the same from one draw per image, with the standard deviation
    over the noise (measured with `draws`, and in closed form) and the share of draws below zero. moments, mixture: the
    KL of all images' latents together, as the Gaussian with their moments and as their exact mixture. The analytic KL
    minus the mixture's is the mutual information (Hoffman & Johnson 2016): the analytic KL charges for telling images
    apart, the mixture's does not.
    """
    z_mean, z_log_std = np.float64(z_mean), np.float64(z_log_std)
    values = draw_values(z_mean, z_log_std, draws, seed)
    told, standard_error = latent.mutual_information(z_mean, z_log_std, mixture_samples, seed)
    return {
        "analytic": latent.mean_kl(z_mean, z_log_std),
        "one_sample": float(values[0].mean()),
        "one_sample_sd": float(np.sqrt(values.var(axis=0, ddof=1).mean())),
        "one_sample_sd_closed_form": float(np.sqrt(one_sample_variance(z_mean, z_log_std).sum(axis=1).mean())),
        "one_sample_negative": float((values < 0).mean()),
        "gradient_noise": gradient_noise(z_mean, z_log_std),
        "moments": latent.moments_kl(z_mean, z_log_std),
        "mixture": latent.mean_kl(z_mean, z_log_std) - told,  # as in latent.aggregate_kl
        "information": told,
        "information_standard_error": standard_error,
    }


def mixture_by_count(
    z_mean: np.ndarray, z_log_std: np.ndarray, counts: list[int], samples: int, seed: int
) -> dict[str, list[float]]:
    """The KL from the mixture of posteriors (N, L) to the prior, in nats, for random subsets of `counts` images.

    "least" is its lower bound: 0, or the mean KL of these images - log(their number).
    """
    order = np.random.default_rng(seed).permutation(len(z_mean))
    subsets = [(np.float64(z_mean[order[:count]]), np.float64(z_log_std[order[:count]])) for count in counts]
    return {
        "mixture": [latent.aggregate_kl(*subset, samples, seed)[0] for subset in subsets],
        "least": [max(0.0, latent.mean_kl(*subset) - float(np.log(len(subset[0])))) for subset in subsets],
    }


def measure_ways(study: Study, sizes: Sizes, posteriors: Posteriors) -> dict[str, Any]:
    """The KL of trained models in all ways, for each beta; for the first seed also the mixture's by number of images.

    at_ceiling: the number of images limits the information from above, and the mixture's KL from below.
    """
    images = len(next(iter(posteriors.values()))[0][0])
    counts = [images // part for part in (100, 30, 10, 3, 1)]
    by_beta = {}
    for beta, of_seeds in posteriors.items():
        taken = [take_kl(*posterior, sizes.draws, sizes.mixture_samples, study.seed) for posterior in of_seeds]
        n = over_seeds(taken)
        by_beta[f"{beta:g}"] = n | {
            "at_ceiling": latent.at_ceiling(n["information"]["mean"], images),
            "by_count": mixture_by_count(*of_seeds[0], counts, sizes.mixture_samples, study.seed),
        }
    return {"images": images, "log_images": float(np.log(images)), "counts": counts, "by_beta": by_beta}


def ways_table(numbers: dict[str, Any]) -> str:
    """The KL in all ways, as Markdown.

    The information may be as large as this number of images can show. Then it is marked as a lower bound of the
    information for all possible images, and the mixture's KL as an upper bound.
    """
    headers = ["beta", "KL: formula", "by one sample", "its sd (closed form)", "below 0, %"]
    headers += ["noise of its gradient, % of it", "all images together: moments", "mixture"]
    headers += [f"I(x; z), of which so many images show up to {numbers['log_images']:.2f}"]
    rows = []
    for beta, n in numbers["by_beta"].items():
        spread = f"{n['one_sample_sd']['mean']:.2f} ({n['one_sample_sd_closed_form']['mean']:.2f})"
        rows.append([beta, shown(n["analytic"], 2), shown(n["one_sample"], 2), spread])
        rows[-1] += [percent(n[key]) for key in ("one_sample_negative", "gradient_noise")]
        at_most, at_least = ("≤ ", "≥ ") if n["at_ceiling"] else ("", "")
        rows[-1] += [shown(n["moments"], 2), at_most + shown(n["mixture"], 2), at_least + shown(n["information"], 2)]
    return table(headers, rows)


def draw_ways(study: Study, sizes: Sizes, posteriors: Posteriors, numbers: dict[str, Any]) -> Figure:
    """Draw one sample against the formula, image by image, and the mixture's KL against its number of images."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.2])
    for axes, beta in zip(above.subplots(1, len(sizes.shown_betas)), sizes.shown_betas, strict=True):
        z_mean, z_log_std = (part[:1_000] for part in posteriors[beta][0])
        analytic = main.kl_to_standard_normal(z_mean, z_log_std).numpy().sum(axis=1)
        axes.plot(analytic, draw_values(z_mean, z_log_std, 1, study.seed)[0], ".", markersize=2)
        axes.axline((analytic.mean(), analytic.mean()), slope=1, color="black", linewidth=1, label="both the same")
        axes.axhline(0, color="grey", linewidth=0.8, linestyle=":")
        deviation = numbers["by_beta"][f"{beta:g}"]["one_sample_sd_closed_form"]["values"][0]
        axes.set(xlabel="KL by the formula (nats)", title=f"beta {beta:g}: sd of a sample {deviation:.1f} nats")
    above.axes[0].set_ylabel("by one sample (nats)")
    above.axes[0].legend(fontsize=8, loc="upper left")

    by_count, by_beta = below.subplots(1, 2)
    counts, measured = numbers["counts"], numbers["by_beta"]
    for place, (beta, n) in enumerate(measured.items()):
        by_count.plot(counts, n["by_count"]["mixture"], "o", color=f"C{place}", markersize=4)
        by_count.plot(counts, n["by_count"]["least"], ":", color=f"C{place}")
        end = (counts[-1], n["by_count"]["mixture"][-1])
        by_count.annotate(f"beta {beta}", end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    by_count.margins(x=0.2)
    by_count.set(xscale="log", yscale="log", xlabel="images in the mixture", ylabel="nats")
    by_count.set_title("all images' latents together, as a mixture\n(dotted: mean KL - log(images))", fontsize=10)

    betas = [float(beta) for beta in measured]
    for key, label in (("analytic", "mean KL of an image"), ("mixture", "all together, as a mixture"),
                       ("moments", "all together, by their moments")):  # fmt: skip
        draw_spread(by_beta, betas, np.transpose([n[key]["values"] for n in measured.values()]), label)
    by_beta.set(xscale="log", yscale="log", xlabel="beta", ylabel="nats")
    by_beta.set_xticks(betas, list(measured))
    by_beta.minorticks_off()
    by_beta.set_title(f"the KL of {counts[-1]:,} images, by what it charges for", fontsize=10)
    by_beta.legend(fontsize=8)
    for axes in (by_count, by_beta):
        axes.grid(alpha=0.3)
    return figure


# --- the study --------------------------------------------------------------------------------------------------------
def run(study: Study) -> None:
    """Train, measure, draw, publish."""
    sizes = QUICK_SIZES if study.quick else Sizes()
    trained = train_groups(study, ask(study, sizes))
    by_schedule, by_beta, by_free_bits = (
        {value: runs for (varied, value), runs in trained.items() if varied == what}
        for what in ("schedule", "beta", "free bits")
    )
    judge = digit_classifier(study)
    binary, grey = (dataset_of(study, pixels).test_images[: sizes.images] for pixels in ("dynamic", "none"))
    posteriors = {beta: [latent.encode(run.vae.encoder, binary) for run in runs] for beta, runs in by_beta.items()}

    schedules, latents = measure_schedules(by_schedule), measure_latents(by_schedule)
    betas, free_bits = measure_betas(study, sizes, by_beta, judge), measure_free_bits(by_free_bits)
    real, ways = judge_samples(judge, brightness(grey)), measure_ways(study, sizes, posteriors)

    save_figure(study.images / "kl_weight_schedules.png", draw_schedules(by_schedule, schedules))
    save_figure(study.images / "kl_weight_beta.png", draw_betas(study, sizes, by_beta, betas))
    save_figure(study.images / "kl_weight_latents.png", draw_latents(by_schedule, by_free_bits))
    save_figure(study.images / "kl_weight_ways.png", draw_ways(study, sizes, posteriors, ways))
    numbers = {
        "schedules": schedules, "latents": latents, "beta": betas, "test_images": real, "free_bits": free_bits,
        "ways": ways,
    }  # fmt: skip
    tables = {
        "kl_weight schedules": schedule_table(schedules),
        "kl_weight beta": beta_table(betas, real),
        "kl_weight free bits": free_bits_table(free_bits),
        "kl_weight ways": ways_table(ways),
    }
    publish(study, numbers, tables)


if __name__ == "__main__":
    raise SystemExit(run_study(STUDY, run))
