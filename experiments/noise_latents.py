"""A VAE has few trained latents, and noise that the encoder does not see. Does the decoder use the noise?

    python -m experiments.noise_latents    # 9 minutes on two cores

Trains 1, 2, 4 and 8 latents, each without noise and with 8 numbers of noise. The noise is drawn from N(0, I) at every
step for every image, and the decoder gets it together with z. Measures on the test set:

- the share of the variance of the decoded brightness that the noise explains, for z ~ q(z|x) of test images x, summed
  over pixels. By the law of total variance z explains the rest;
- how strongly the decoder's first layer weights the noise, compared with z and with its own random start;
- what using the noise costs: the nats per image that the ELBO would gain if the decoder's logits were averaged over it;
- ELBO, NLL (by importance sampling over z and noise together) and the share of samples a digit classifier is sure of.

Writes noise_latents.json, noise_latents.png and noise_latents_grid.png to images/. Section 6 of docs/analysis.md says
what to expect, and why.
"""

from typing import Any

import numpy as np

from experiments.results import in_percent, percent, publish, shown, summary, table
from experiments.study import Study, Trained, read_command_line, repeated, run_study, train_groups

if __name__ == "__main__":
    STUDY = read_command_line("noise_latents", __doc__)  # before the seconds that TensorFlow takes

from matplotlib.figure import Figure
from scipy.special import expit

import main
from experiments import figures
from experiments.samples import digit_classifier, judge_samples, prior_samples
from utils import data
from utils.batches import brightness
from utils.dataset import Dataset
from utils.pictures import save_figure
from utils.settings import Settings

NOISE = 8  # numbers of noise beside the trained latents
IMAGES, DRAWS = 1_000, 16  # test images, and draws of noise for each
WATCH_AT = (0, 10, 30, 100, 200, 300, 500, 1_000, 2_000, 3_000)  # the steps of ask_about_noise; the last step is added
GRID = 6, 8  # rows of one z each, and draws of noise in each
SPREAD_SHOWN = 0.03  # the standard deviation of brightness that is white in the grid
SAMPLES = 1_000  # judged by the classifier


# --- measures ---------------------------------------------------------------------------------------------------------
def noise_share(y: np.ndarray) -> float:
    """The share of the variance of y (N, M, D) that noise explains: N draws of z, M draws of noise for each, D pixels.

    Var(y) = E_z Var(y|z) + Var_z E(y|z), summed over pixels; the share is that of the first term. Both estimates are
    unbiased: the mean over M draws still contains 1/M of the noise's variance, which is subtracted. So the estimate of
    a share near 1 may be a little above 1.
    """
    from_noise = y.var(axis=1, ddof=1, dtype=np.float64).mean(axis=0).sum()
    from_z = y.mean(axis=1, dtype=np.float64).var(axis=0, ddof=1).sum() - from_noise / y.shape[1]
    return float(from_noise / (from_noise + from_z))


def noise_cost(x: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Nats (N,) that images x (N, D) cost more under logits (N, M, D) than under their mean over M draws of noise.

    Never negative (Jensen's inequality). M draws underestimate it, by about 1/M of its value.
    """
    draws, pixels = logits.shape[1:]
    each = main.cross_entropy(np.repeat(x, draws, axis=0), logits.reshape(-1, pixels)).numpy()  # (N * M,)
    return each.reshape(-1, draws).mean(axis=1) - main.cross_entropy(x, logits.mean(axis=1)).numpy()


def rows_norm(kernel: np.ndarray) -> float:
    """The RMS length of the rows of a kernel (inputs, units): how strongly a layer weights an input, on average."""
    return float(np.sqrt(np.square(kernel).sum(axis=1).mean()))


def logits_under_noise(vae: main.VAE, z: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Logits (N, draws, D) of each z (N, L) together with `draws` draws of noise; no draw is used twice."""
    latents = vae.decoder.input_shape[1]
    noise = np.random.default_rng(seed).standard_normal((len(z), draws, latents - z.shape[1]), np.float32)
    whole = np.concatenate([np.repeat(z[:, np.newaxis], draws, axis=1), noise], axis=2)  # (N, draws, L + NOISE)
    return vae.decoder(whole.reshape(-1, latents)).numpy().reshape(len(z), draws, -1)


def ask_about_noise(vae: main.VAE, settings: Settings, dataset: Dataset) -> dict[str, np.ndarray]:
    """Watch how the decoder uses the noise: its share of the variance, and its mean cost in nats per image, ()."""
    x = brightness(dataset.test_images[:IMAGES])
    rng = np.random.default_rng(settings.seed)
    z_mean, z_log_std = (part[:, : settings.latent_dim] for part in vae.encoder(x))
    z = main.sample_latent(z_mean, z_log_std, rng.standard_normal(z_mean.shape, np.float32)).numpy()
    logits = logits_under_noise(vae, z, DRAWS, settings.seed)
    cost = noise_cost(x.numpy().reshape(len(x), -1), logits).mean()
    return {"noise_share": np.array(noise_share(expit(logits))), "noise_cost": np.array(cost)}


def measure_noise(trained: Trained) -> dict[str, float]:
    """How a trained decoder uses the noise, and how strongly its first layer weights it."""
    s, vae = trained.settings, trained.vae
    numbers = ask_about_noise(vae, s, data.prepare(s, lambda line: None))
    untrained = main.build_vae(s, vae.encoder.input_shape[1:])
    now, at_start = (net.decoder.get_layer("decoder_0").kernel.numpy() for net in (vae, untrained))
    from_noise = rows_norm(now[s.latent_dim :])
    return {name: float(number) for name, number in numbers.items()} | {
        "weights_noise_to_z": from_noise / rows_norm(now[: s.latent_dim]),
        "weights_noise_to_start": from_noise / rows_norm(at_start[s.latent_dim :]),
    }


def measure(study: Study, trained: Trained, judge: Any) -> dict[str, float]:
    """All numbers of one training; with noise latents also those about noise."""
    report = trained.report
    numbers = {"elbo": report["test_elbo"], "nll": report["test_nll"], "active_units": report["active_units"]}
    numbers |= judge_samples(judge, prior_samples(trained.vae, SAMPLES, study.seed))
    return numbers | (measure_noise(trained) if trained.settings.noise_dim else {})


def shares_by_step(trained: list[Trained], measured: list[dict[str, float]]) -> dict[int, np.ndarray]:
    """The share of the variance that the noise explains, for each seed (seeds,), at each watched step and the last."""
    watched = [one.watched() for one in trained]
    shares = {step: np.array([by_step[step]["noise_share"] for by_step in watched]) for step in watched[0]}
    last_step = trained[0].history("test")[-1]["step"]
    return shares | {last_step: np.array([numbers["noise_share"] for numbers in measured])}


# --- pictures ---------------------------------------------------------------------------------------------------------
Measured = dict[tuple[int, int], list[dict[str, float]]]  # by trained latents and noise: the numbers for each seed


def save_numbers(study: Study, shares: dict[int, dict[int, np.ndarray]], measured: Measured) -> None:
    """Draw what the noise explains over steps, and for each number of latents ELBO, NLL and how noise changes them.

    `shares` are shares of the variance, (seeds,), by trained latents and step.
    """
    figure, latents = Figure(figsize=(10, 3.8), layout="constrained"), list(shares)
    explained, bounds, differences = figure.subplots(1, 3)

    def values(name: str, noise: int) -> np.ndarray:  # (seeds, latents)
        return np.array([[numbers[name] for numbers in measured[size, noise]] for size in latents]).T

    for size, by_step in shares.items():
        over_steps = 100 * np.array(list(by_step.values())).T  # (seeds, steps)
        figures.draw_spread(explained, list(by_step), over_steps, f"{size} latent{'s' * (size > 1)}")
    explained.set(ylabel="percent of the output's variance", yscale="log", xlabel="step")
    explained.set_xscale("symlog", linthresh=10)  # shows step 0 too
    explained.set_xlim(left=-1)
    explained.set_title("what the noise explains", fontsize=10)
    for noise, color in ((0, "C0"), (NOISE, "C3")):
        for name, sign, style in (("elbo", 1, "-"), ("nll", -1, "--")):
            label = f"{'ELBO' if name == 'elbo' else 'log-likelihood'}, {f'{noise} of noise' if noise else 'no noise'}"
            figures.draw_spread(bounds, latents, sign * values(name, noise), label, color)
            bounds.lines[-1].set_linestyle(style)
    bounds.set(ylabel="nats per test image")
    bounds.set_title("ELBO and log-likelihood", fontsize=10)
    for name, sign, label in (("elbo", 1, "ELBO"), ("nll", -1, "log-likelihood")):
        figures.draw_spread(differences, latents, sign * (values(name, NOISE) - values(name, 0)), label)
    differences.axhline(0, color="0.5", linewidth=0.8)
    differences.set(ylabel="nats per test image")
    differences.set_title("with noise minus without", fontsize=10)
    for axes in (bounds, differences):
        axes.set_xscale("log", base=2)
        axes.set_xticks(latents, latents)
        axes.set_xlabel("trained latents")
    for axes in (explained, bounds, differences):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(study.images / "noise_latents.png", figure)


def save_grid(study: Study, with_noise: dict[int, Trained], measured: Measured) -> None:
    """Draw samples from the prior for each number of trained latents: a row has one z, its columns different noise.

    The last column shows how much the pixels of the row vary: their standard deviation over DRAWS other draws, scaled
    so that SPREAD_SHOWN is white.
    """
    rows, columns = GRID
    lines = (len(with_noise) + 1) // 2
    figure = Figure(figsize=(10, 0.4 + 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, 2, squeeze=False)
    for axes, (size, trained) in zip(panels.flat, with_noise.items(), strict=True):
        z, vae = np.random.default_rng(study.seed).standard_normal((rows, size), np.float32), trained.vae
        drawn = expit(logits_under_noise(vae, z, columns, study.seed))  # (rows, columns, D)
        spread = expit(logits_under_noise(vae, z, DRAWS, study.seed + 1)).std(axis=1, keepdims=True)
        pictures = np.concatenate([drawn, spread / SPREAD_SHOWN], axis=1).reshape(-1, 28, 28, 1)
        share = 100 * measured[size, NOISE][0]["noise_share"]
        title = f"{size} trained latent{'s' * (size > 1)}: the noise explains {share:.2g} % of the variance"
        figures.draw_images(axes, pictures, columns + 1, title)
    text = f"In a row: one z of the prior, {columns} draws of noise. Last: deviation over noise, white = {SPREAD_SHOWN}"
    figure.suptitle(text, fontsize=10)
    save_figure(study.images / "noise_latents_grid.png", figure)


# --- the experiment ---------------------------------------------------------------------------------------------------
def run(study: Study) -> None:
    """Train, measure, draw and publish."""
    latents = [1, 2] if study.quick else [1, 2, 4, 8]
    wanted = {}
    for size in latents:
        wanted[size, 0] = repeated(study, latent_dim=size, noise_dim=0)
        noisy = repeated(study, latent_dim=size, noise_dim=NOISE)
        wanted[size, NOISE] = [one._replace(watch=ask_about_noise, watch_at=WATCH_AT) for one in noisy]
    trained = train_groups(study, wanted)

    judge = digit_classifier(study)
    measured = {case: [measure(study, one, judge) for one in runs] for case, runs in trained.items()}
    numbers = {
        f"{size} latents, {noise} of noise": {name: summary(n[name] for n in seeds) for name in seeds[0]}
        for (size, noise), seeds in measured.items()
    }
    shares = {size: shares_by_step(trained[size, NOISE], measured[size, NOISE]) for size in latents}
    save_numbers(study, shares, measured)
    save_grid(study, {size: trained[size, NOISE][0] for size in latents}, measured)
    over_steps = {
        f"{size} latents": {step: summary(values) for step, values in by_step.items()}
        for size, by_step in shares.items()
    }
    about = {"noise_dim": NOISE, "images": IMAGES, "draws": DRAWS, "samples": SAMPLES}
    about |= {"cases": numbers, "noise_share_by_step": over_steps}
    publish(study, about, {"noise_latents": table_of(numbers, latents)})


def table_of(numbers: dict[str, Any], latents: list[int]) -> str:
    """A row for each number of trained latents."""
    headers = (
        "trained latents", "ELBO without noise", "with", "NLL without", "with", "samples sure without, %", "with, %",
        "variance from noise, %", "cost of it (nats)", "weights: noise / z", "noise / its start",
    )  # fmt: skip
    rows = []
    for size in latents:
        without, noisy = (numbers[f"{size} latents, {noise} of noise"] for noise in (0, NOISE))
        rows.append((
            size,
            *(shown(n["elbo"]) for n in (without, noisy)),
            *(shown(n["nll"]) for n in (without, noisy)),
            *(percent(n["sure"]) for n in (without, noisy)),
            f"{in_percent(noisy['noise_share'])['mean']:.2g}",
            shown(noisy["noise_cost"], 2),
            *(shown(noisy[name], 3) for name in ("weights_noise_to_z", "weights_noise_to_start")),
        ))  # fmt: skip
    return table(headers, rows)


if __name__ == "__main__":
    raise SystemExit(run_study(STUDY, run))
