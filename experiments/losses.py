"""Why does a VAE collapse, what cures it, and what only postpones it?

    python -m experiments.losses    # 17 minutes on two cores

Trains with three losses (cross-entropy CE, squared error MSE, absolute difference AD) as many first VAEs are trained:
on grey pixels, with the reconstruction averaged over pixels and the KL summed. Then it trains with each supposed cure.
The same numbers judge all models: CE, MSE and AD of their reconstructions of the test set, KL, active units, samples.
Writes losses.json, losses_*.png and pictures such as CE_0.jpg to images/.
"""

from experiments.results import over_seeds, percent, publish, shown, summary, table
from experiments.study import Study, Trained, Training, read_command_line, repeated, run_study, steps_of, train_groups

if __name__ == "__main__":
    STUDY = read_command_line("losses", __doc__)  # before the seconds that TensorFlow takes

import numpy as np
from matplotlib.figure import Figure

import main
from experiments import classifier, figures
from experiments.samples import digit_classifier, judge_samples, prior_samples
from utils import data
from utils.batches import brightness
from utils.dataset import Dataset, in_batches
from utils.pictures import save_figure
from utils.report import ACTIVE_VARIANCE
from utils.settings import Settings
from utils.start import keras, tf

ORIGINAL = {  # grey pixels, the mistake of a mean over them, and a constant learning rate
    "binarize": "none", "reconstruction_reduction": "mean", "kl_schedule": "constant", "lr_schedule": "constant",
    "epochs": 9, "nll_samples": 0,
}  # fmt: skip
LINEAR, SUM = {"kl_schedule": "linear"}, {"reconstruction_reduction": "sum"}
MODELS = {  # the name in captions and the table, and the settings that differ from ORIGINAL
    "CE_0": ("CE, mean, with KL", {"loss": "ce"}),
    "CE_1": ("CE alone: an autoencoder", {"loss": "ce", "autoencoder": True}),
    "MSE_0": ("MSE, mean, with KL", {"loss": "mse"}),
    "MSE_1": ("MSE, mean, KL weight 0 to 1 in 20,000 steps", {"loss": "mse", **LINEAR, "kl_steps": 20_000}),
    "MSE_2": (
        "MSE, mean, KL weight 0 to 1 in 500,000 steps",
        {"loss": "mse", **LINEAR, "kl_steps": 500_000, "epochs": 20},
    ),
    "MSE autoencoder": ("MSE alone: an autoencoder", {"loss": "mse", "autoencoder": True}),
    "AD_0": ("AD, mean, with KL", {"loss": "ad"}),
    "AD_1": ("AD, mean, KL weight 0 to 1 in 20,000 steps", {"loss": "ad", **LINEAR, "kl_steps": 20_000}),
    "AD autoencoder": ("AD alone: an autoencoder", {"loss": "ad", "autoencoder": True}),
    "MSE scale": ("MSE, mean, learned scale", {"loss": "mse", "decoder_scale": "learned"}),
    "MSE bits": ("MSE, mean, 0.5 free bits a latent", {"loss": "mse", "free_bits": 0.5}),
    "MSE 1/784": ("MSE, mean, KL weight 1/784", {"loss": "mse", "kl_weight_end": 1 / 784}),
    "CE sum": ("CE, sum", {"loss": "ce", **SUM}),
    "MSE sum": ("MSE, sum", {"loss": "mse", **SUM}),
    "AD sum": ("AD, sum", {"loss": "ad", **SUM}),
    "MSE scale sum": ("MSE, sum, learned scale", {"loss": "mse", "decoder_scale": "learned", **SUM}),
    "AD scale sum": ("AD, sum, learned scale", {"loss": "ad", "decoder_scale": "learned", **SUM}),
}
PICTURES = ("CE_0", "CE_1", "MSE_0", "MSE_1", "MSE_2", "AD_0", "AD_1")  # models with a picture file
SWEEPS = {"ce": 0.1, "mse": 0.03, "ad": 0.05}  # the last weight of a slow ramp, well past the collapse
ALONG = (100, 200, 400, 1_000, 4_000)  # steps that the pictures show
EARLY = tuple(range(0, 1_000, 40))  # more steps at which the ramps are watched
JUDGED = 300  # samples of each model that the classifier judges


# --- what is watched while they train ---------------------------------------------------------------------------------
def progress(vae: main.VAE, settings: Settings, dataset: Dataset) -> dict[str, np.ndarray]:
    """Watch the losses, the latents and some pictures.

    Means over the test set: CE, MSE and AD of the reconstructions (from posterior means), and the KL of each latent
    (L,). Also the variance of z_mean (L,), ten reconstructions and JUDGED samples as uint8, and the width of the pixel
    noise.
    """

    def score(images, _start):
        x = brightness(tf.constant(images))
        z_mean, z_log_std = vae.encoder(x)
        x, logits = (tf.reshape(values, (len(x), -1)) for values in (x, vae.decoder(z_mean)))
        losses = [main.LOSSES[loss](x, logits) for loss in ("ce", "mse", "ad")]
        return *losses, main.kl_to_standard_normal(z_mean, z_log_std), z_mean

    *losses, kl, z_mean = in_batches(score, dataset.test_images)
    pictures = main.reconstruct(vae, one_of_each(dataset)), prior_samples(vae, JUDGED, settings.seed)
    return {
        "losses": np.array([loss.mean() for loss in losses]),
        "kl": kl.mean(axis=0),
        "variance": z_mean.var(axis=0),
        "reconstructions": np.uint8(np.rint(pictures[0] * 255)),
        "samples": np.uint8(np.rint(pictures[1] * 255)),
        "scale": np.array(1.0 if vae.log_scale is None else np.exp(vae.log_scale)),
    }


def latents(vae: main.VAE, settings: Settings, dataset: Dataset) -> dict[str, np.ndarray]:
    """Watch the variance of z_mean and the mean KL of each latent, (L,), for 2,000 test images."""
    z_mean, z_log_std = vae.encoder(brightness(tf.constant(dataset.test_images[:2_000])))
    return {
        "variance": np.var(z_mean, axis=0),
        "kl": np.mean(main.kl_to_standard_normal(z_mean, z_log_std), axis=0),
    }


def one_of_each(dataset: Dataset, count: int = 10) -> np.ndarray:
    """The first test image of each label, then the first of the others, `count` in all: uint8 (count, H, W, C)."""
    first = [np.flatnonzero(dataset.test_labels == label)[0] for label in np.unique(dataset.test_labels)]
    rest = np.setdiff1d(np.arange(len(dataset.test_images)), first)
    return dataset.test_images[np.concatenate([first, rest])[:count]]


# --- what is computed -------------------------------------------------------------------------------------------------
def active(watched: dict[str, np.ndarray]) -> int:
    """How many latents are active at a watched step."""
    return int((watched["variance"] > ACTIVE_VARIANCE).sum())


def last_alive(run: Trained) -> dict[str, float] | None:
    """The last watched step with an active latent, and the KL weight there.

    None if a latent is active to the end, or if none is active after step 0, which is untrained.
    """
    steps = [step for step, watched in run.watched().items() if step and active(watched)]
    if not steps or steps[-1] == max(run.watched()):
        return None
    return {"step": steps[-1], "weight": float(main.kl_weight(steps[-1], run.settings))}


def predicted_weight(images: np.ndarray, loss: str) -> float:
    """The KL weight (with the mean over pixels) above which no latent lowers the loss; for uint8 images (N, H, W, C).

    It holds for small codes. Near the collapse the decoder is linear in z: it draws the mean image plus z times a
    direction w. The squared error then falls by 2 w'Cw per nat of KL, where C is the covariance of the pixels. This is
    at most twice the largest eigenvalue of C (for Gaussian pixels: Lucas et al. 2019, Don't blame the ELBO). For the
    cross-entropy, pixels are measured in units of their Bernoulli standard deviation sqrt(p (1 - p)), without the 2.
    """
    x = images.reshape(len(images), -1) / 255
    covariance, mean = np.cov(x.T), x.mean(axis=0)
    if loss == "ce":
        p = np.clip(mean, 1e-4, 1 - 1e-4)
        scale = np.sqrt(p * (1 - p))
        covariance = covariance / np.outer(scale, scale)
    factor = {"ce": 1, "mse": 2}[loss]
    return float(factor * np.linalg.eigvalsh(covariance)[-1] / x.shape[1])


def score(runs: list[Trained], judge: keras.Model) -> dict:
    """The final scores of a model's runs, one per seed, summarised."""
    finals = [run.watched()[max(run.watched())] for run in runs]
    autoencoder = runs[0].settings.autoencoder
    losses = zip(*(final["losses"] for final in finals), strict=True)
    numbers = {name: summary(values) for name, values in zip(("ce", "mse", "ad"), losses, strict=True)}
    numbers |= {"scale": summary(final["scale"] for final in finals)}
    if not autoencoder:
        numbers |= over_seeds([judge_samples(judge, final["samples"] / np.float32(255)) for final in finals])
        numbers |= {"kl": summary(final["kl"].sum() for final in finals)}
        numbers |= {"active": summary(active(final) for final in finals)}
        numbers |= {"last_alive": [last_alive(run) for run in runs]}
    return numbers | {"reduction": runs[0].settings.reconstruction_reduction, "autoencoder": autoencoder}


def fallback(run: Trained, dataset: Dataset, judge: keras.Model, median: np.ndarray) -> dict:
    """Which digit do the failed reconstructions of a trained model show, and are they nearer to the median image?

    A reconstruction has failed if the classifier sees a digit that is not its label. `failed` is the share of failed
    ones, `digit` the digit that most of them show, and `share_of_failed` the share of them that show it. Distances are
    from the median image of the data.
    """
    reconstructions = main.reconstruct(run.vae, dataset.test_images)
    verdicts = classifier.probabilities(judge, reconstructions).argmax(axis=1)
    failed = verdicts != dataset.test_labels
    counts = np.bincount(verdicts[failed], minlength=10)
    to_median = np.abs(reconstructions - median).mean(axis=(1, 2, 3))
    return {
        "failed": float(failed.mean()),
        "digit": int(counts.argmax()),
        "share_of_failed": float(counts.max() / max(failed.sum(), 1)),
        "distance_of_failed": float(to_median[failed].mean()) if failed.any() else None,
        "distance_of_others": float(to_median[~failed].mean()) if not failed.all() else None,
    }


def collapsed_images(results: dict[str, list[Trained]], dataset: Dataset) -> dict[str, np.ndarray]:
    """The single image that each collapsed model draws, and the mean and the median training image, in [0, 1]."""
    x = dataset.train_images / 255
    images = {"mean": x.mean(axis=0), "median": np.median(x, axis=0)}
    for name in ("CE_0", "MSE_0", "AD_0"):
        if name in results:
            watched = results[name][0].watched()
            images[name] = watched[max(watched)]["reconstructions"].mean(axis=0) / 255
    return images


# --- pictures ---------------------------------------------------------------------------------------------------------
def row_title(step: int, watched: dict[str, np.ndarray], run: Trained) -> str:
    """The title over a row: its numbers."""
    losses = zip(("CE", "MSE", "AD"), watched["losses"], strict=True)
    text = f"step {step:,}:  " + ", ".join(f"{name} {loss:.1f}" for name, loss in losses)
    if run.settings.autoencoder:
        return text
    weight = float(main.kl_weight(step, run.settings))
    return f"{text};  KL {watched['kl'].sum():.2f} nats x weight {weight:.2g};  {active(watched)} active"


def draw_rows(figure: Figure, rows: list[tuple[str, np.ndarray, np.ndarray]], samples: str) -> None:
    """Draw rows of (title, ten images, ten samples), one below the other."""
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (left, right), (title, images, drawn) in zip(axes, rows, strict=True):
        figures.draw_images(left, images, 10, "")
        left.set_title(title, fontsize=8, loc="left")
        right.set_axis_off()
        if len(drawn):
            figures.draw_images(right, drawn, 10, "")
    axes[0][1].text(0.02, 0.02, f"below: {samples}", fontsize=8, transform=axes[0][1].transAxes)


def draw_along(study: Study, name: str, run: Trained, dataset: Dataset) -> None:
    """Write <name>.jpg: test images, and below them their reconstructions and samples during training."""
    watched = run.watched()
    steps = [step for step in watched if step in ALONG]
    if max(watched) > 2 * ALONG[-1]:
        steps.append(max(watched))  # MSE_2 trains longer, until it collapses
    rows = [("ten test images", one_of_each(dataset, 10), np.empty(0))]
    for step in steps:
        kept = watched[step]
        rows.append((row_title(step, kept, run), kept["reconstructions"][:10], kept["samples"][:10]))
    figure = Figure(figsize=(10, 0.85 * len(rows) + 0.5), layout="constrained")
    figure.suptitle(f"{name}: {MODELS[name][0]}", fontsize=11)
    samples = "draws from N(0, I), decoded: no prior here" if run.settings.autoencoder else "samples from the prior"
    draw_rows(figure, rows, samples)
    save_figure(study.images / f"{name}.jpg", figure)


def draw_cures(study: Study, results: dict[str, list[Trained]], dataset: Dataset) -> None:
    """Write losses_cures.png: reconstructions and samples of every model after its last step."""
    rows = [("ten test images", one_of_each(dataset, 10), np.empty(0))]
    for name, runs in results.items():
        watched = runs[0].watched()
        final = watched[max(watched)]
        autoencoder = runs[0].settings.autoencoder
        numbers = f"MSE {final['losses'][1]:.1f}" + ("" if autoencoder else f", KL {final['kl'].sum():.1f} nats")
        samples = np.empty(0) if autoencoder else final["samples"][:10]
        rows.append((f"{MODELS[name][0]}:  {numbers}", final["reconstructions"][:10], samples))
    figure = Figure(figsize=(10, 0.82 * len(rows)), layout="constrained")
    draw_rows(figure, rows, "samples from the prior")
    save_figure(study.images / "losses_cures.png", figure)


def draw_weights(study: Study, sweeps: dict[str, list[Trained]], predicted: dict[str, float]) -> None:
    """Write losses_weight.png: active units and KL while the weight rises slowly, and the predicted collapse."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for number, (loss, runs) in enumerate(sweeps.items()):
        watched = [run.watched() for run in runs]
        weights = [float(main.kl_weight(step, runs[0].settings)) for step in watched[0]]
        color = f"C{number}"
        units = np.array([[active(kept) for kept in seed.values()] for seed in watched])
        nats = np.array([[kept["kl"].sum() for kept in seed.values()] for seed in watched])
        figures.draw_spread(axes[0], weights, units, loss.upper(), color)
        figures.draw_spread(axes[1], weights, nats, loss.upper(), color)
        if loss in predicted:
            for panel in axes:
                panel.axvline(predicted[loss], color=color, linestyle="--", linewidth=1)
    title = "the KL weight rises from 0; dashed: where, by theory, the last latent dies"
    axes[0].set(ylabel="active units of 20", title=title)
    axes[1].set(ylabel="KL (nats)", xlabel="KL weight, with the reconstruction averaged over pixels", yscale="symlog")
    axes[0].legend()
    for panel in axes:
        panel.grid(alpha=0.3)
    save_figure(study.images / "losses_weight.png", figure)


def draw_fallback(study: Study, images: dict[str, np.ndarray]) -> None:
    """Write losses_average.png: the images of the collapsed models, beside the data's mean and median."""
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    titles = {"mean": "mean of the data", "median": "median of the data"}
    for axes, (name, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        figures.draw_images(axes, image[np.newaxis], 1, titles.get(name, f"{name}, collapsed"))
    save_figure(study.images / "losses_average.png", figure)


# --- the experiment ---------------------------------------------------------------------------------------------------
def train_models(study: Study) -> tuple[dict[str, list[Trained]], dict[str, list[Trained]]]:
    """The runs of each model, and the slow ramps of each loss, one per seed.

    A quick study has a model that collapses, one that is cured, and one in between.
    """
    models: dict[str, list[Training]] = {}
    for name in ("MSE_0", "AD_1", "MSE sum") if study.quick else MODELS:
        _, overrides = MODELS[name]
        for training in repeated(study, **ORIGINAL | overrides):
            last = steps_of(training.settings)
            early = EARLY if overrides.get("kl_schedule") == "linear" else ()
            late = range(1_000, last, 200) if name == "MSE_2" else ()
            watch_at = sorted({step for step in (0, *early, *ALONG, *late) if step < last} | {last})
            models.setdefault(name, []).append(training._replace(watch=progress, watch_at=tuple(watch_at)))
    ramps: dict[str, list[Training]] = {}
    for loss in ("mse",) if study.quick else SWEEPS:
        ramp = ORIGINAL | LINEAR | {"loss": loss, "kl_weight_end": SWEEPS[loss], "epochs": 10}
        last = steps_of(repeated(study, **ramp)[0].settings)
        watch_at = tuple(range(0, last, last // 80))
        trainings = repeated(study, **ramp | {"kl_steps": last})
        ramps[loss] = [training._replace(watch=latents, watch_at=watch_at) for training in trainings]
    trained = train_groups(study, models | ramps)  # in one call, so that no core waits
    return {name: trained[name] for name in models}, {loss: trained[loss] for loss in ramps}


def terms(results: dict[str, list[Trained]], pixels: int) -> dict[str, dict[str, dict]]:
    """For each fixed-scale VAE: its terms on the test set in nats, and the objective with mean and with sum."""
    found = {}
    for name in ("CE_0", "CE sum", "MSE_0", "MSE sum", "AD_0", "AD sum"):
        if name in results:
            reports = [run.report for run in results[name]]
            both = [(report["test_reconstruction"], report["test_kl"]) for report in reports]
            found[name] = {
                "reconstruction": summary(loss for loss, _ in both),
                "kl": summary(nats for _, nats in both),
                "mean_objective": summary(loss / pixels + nats for loss, nats in both),
                "sum_objective": summary(loss + nats for loss, nats in both),
            }
    return found


def run(study: Study) -> None:
    """Train, score, draw and publish."""
    results, sweeps = train_models(study)
    judge = digit_classifier(study)
    dataset = data.prepare(next(iter(results.values()))[0].settings, print)
    pixels = dataset.train_images[0].size
    predicted = {loss: predicted_weight(dataset.train_images, loss) for loss in ("ce", "mse")}
    images = collapsed_images(results, dataset)

    for name in PICTURES:
        if name in results:
            draw_along(study, name, results[name][0], dataset)
    draw_cures(study, results, dataset)
    draw_weights(study, sweeps, predicted)
    draw_fallback(study, images)

    scores = {name: score(runs, judge) for name, runs in results.items()}
    deaths = {loss: [last_alive(run) for run in runs] for loss, runs in sweeps.items()}
    averages = {
        f"{a} to {b}": float(np.abs(images[a] - images[b]).mean()) for a in images for b in ("mean", "median") if a != b
    }
    verdicts = {
        name: int(classifier.probabilities(judge, np.float32(image[np.newaxis])).argmax())
        for name, image in images.items()
    }
    test = classifier.probabilities(judge, brightness(dataset.test_images))
    numbers = {
        "classifier": {
            "accuracy": float((test.argmax(axis=1) == dataset.test_labels).mean()),
            "sure": classifier.sure_share(test),
        },
        "models": scores,
        "terms": terms(results, pixels),
        "collapse_weight": {"predicted": predicted, "measured": deaths},
        "total_variance": float(dataset.train_images.reshape(-1, pixels).astype(np.float32).var(axis=0).sum() / 255**2),
        "averages": {"distance": averages, "digit": verdicts},
        "failed_reconstructions": {
            name: [fallback(run, dataset, judge, images["median"]) for run in results[name]]
            for name in ("AD_1", "AD sum", "MSE sum")
            if name in results
        },
    }
    publish(study, numbers, tables(numbers))


def tables(numbers: dict) -> dict[str, str]:
    """The tables of the Analysis."""
    headers = ("model", "reduction", "CE", "MSE", "AD", "KL, nats", "active", "samples sure", "digits")
    rows = []
    for name, scores in numbers["models"].items():
        row = [MODELS[name][0], scores["reduction"], *(shown(scores[loss]) for loss in ("ce", "mse", "ad"))]
        if scores["autoencoder"]:
            rows.append([*row, "-", "-", "-", "-"])
        else:
            row += [shown(scores["kl"]), shown(scores["active"], 0)]
            row += [f"{percent(scores['sure'], 0)} %", shown(scores["digits"])]
            rows.append(row)
    why = [
        (MODELS[name][0], shown(each["reconstruction"]), shown(each["kl"]), shown(each["mean_objective"], 3),
         shown(each["sum_objective"]))
        for name, each in numbers["terms"].items()
    ]  # fmt: skip
    collapse = []
    for loss, deaths in numbers["collapse_weight"]["measured"].items():
        foretold = numbers["collapse_weight"]["predicted"].get(loss)
        weights = [death["weight"] for death in deaths if death]
        measured = shown(summary(weights), 4) if len(weights) == len(deaths) else "not reached"
        collapse.append((loss.upper(), f"{foretold:.4f}" if foretold else "-", measured))
    return {
        "losses models": table(headers, rows),
        "losses terms": table(("model", "reconstruction", "KL", "mean + KL", "sum + KL"), why),
        "losses collapse": table(("loss", "foretold KL weight", "last active unit dies at"), collapse),
    }


if __name__ == "__main__":
    raise SystemExit(run_study(STUDY, run))
