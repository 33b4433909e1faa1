"""Four things that are said about the losses, each put to the test.

    python -m experiments.loss_claims

1. AD is less hard than MSE on an image whose pixels are shifted. Compares each loss of an image moved by one pixel with
   the loss of the same image blurred, at equal MSE. Then trains models to draw targets that are moved at random.
2. AD gets better in fewer steps than MSE. Counts the steps until a classifier reads most reconstructions right, with
   each KL schedule and with both cures of the collapse.
3. The dim nine that the collapsed AD draws comes from thin writing. Trains it on the thinnest, the middle and the
   thickest third of the training images.
4. Zeros stay apart longest while the KL weight rises. Measures how well a draw of z tells each digit from the others.

Writes loss_claims.json and loss_claims_*.png to images/.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from experiments.results import over_seeds, percent, publish, shown, summary, table
from experiments.study import (
    Study,
    Trained,
    Training,
    read_command_line,
    repeated,
    run_study,
    settings_of,
    steps_of,
    train_groups,
)

if __name__ == "__main__":
    STUDY = read_command_line("loss_claims", __doc__)  # before the seconds that TensorFlow takes

from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from tqdm import trange

import main
from experiments import classifier, figures, latent
from experiments.losses import LINEAR, ORIGINAL, SUM, SWEEPS, one_of_each
from experiments.samples import digit_classifier
from utils import data
from utils.batches import brightness
from utils.chance import NOISE, random_key, standard_normal
from utils.dataset import Dataset, epoch_order
from utils.pictures import save_figure
from utils.settings import Settings
from utils.start import tf

LOSSES = ("ce", "mse", "ad")
NEAREST_TO_CERTAIN = 1 / 512  # half a grey level: probabilities for CE stay that far from 0 and 1, or it is infinite
BLURS = 24  # halvings of the interval in which the width of a blur is looked for
WIDEST_BLUR = 8.0  # pixels
MOVED_IMAGES = 1_000  # test images that are moved and blurred
GREY = {"binarize": "none", "nll_samples": 0}
CURES = {  # what cures the collapse: its name in tables, and the settings
    "sum": ("sum", SUM),
    "scale": ("sum, learned scale", SUM | {"decoder_scale": "learned"}),
}
SCHEDULES = ("constant", "linear", "sigmoid", "cosine", "cyclical")
READ_IMAGES = 2_000  # test images whose reconstructions the classifier reads
READ = (0.8, 0.9)  # shares of them that are read right: a fair quality, and a good one
THIRDS = ("the thinnest third", "the middle third", "the thickest third")
APART = 0.9  # area under the ROC curve from which a digit counts as apart; 0.5 is chance


# --- 1. shifted images ------------------------------------------------------------------------------------------------
def moved(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Images (N, H, W, C) moved by whole pixels. What leaves enters on the other side, but MNIST's edges are black."""
    return np.roll(images, (down, right), axis=(1, 2))


def blurred_as_wrong(x: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C), each blurred by a Gaussian so wide that its squared error is `error` (N,), by bisection.

    Brightness is in [0, 1]. NaN for an image that no blur up to WIDEST_BLUR makes that wrong.
    """
    low, high = np.zeros(len(x)), np.full(len(x), WIDEST_BLUR)

    def blur(widths):
        return np.stack([gaussian_filter(image, (w, w, 0)) for image, w in zip(x, widths, strict=True)])

    for _ in range(BLURS):
        middle = (low + high) / 2
        too_sharp = np.square(blur(middle) - x).sum(axis=(1, 2, 3)) < error
        low, high = np.where(too_sharp, middle, low), np.where(too_sharp, high, middle)
    unreached = high == WIDEST_BLUR
    return np.where(unreached[:, np.newaxis, np.newaxis, np.newaxis], np.nan, blur(high))


def costs(x: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """What each loss (N,) charges if `drawn` is drawn for x, (N, H, W, C) each, beyond what x itself would cost."""
    flat = [np.float32(part).reshape(len(x), -1) for part in (x, drawn)]
    found = {}
    for loss in LOSSES:
        least = NEAREST_TO_CERTAIN if loss == "ce" else 1e-7  # the losses take logits
        logits = [np.log(p / (1 - p)) for p in (np.clip(np.float64(part), least, 1 - least) for part in flat)]
        own, other = (main.LOSSES[loss](flat[0], np.float32(logit)).numpy() for logit in logits)
        found[loss] = other - own
    return found


def shifted_or_blurred(images: np.ndarray) -> dict[str, dict[str, float]]:
    """Each loss of uint8 images (N, H, W, C) moved by one pixel and of blurred ones of equal MSE: means, and the ratio
    of the means, over `pairs`: those that a blur can make that wrong. Right, down and the diagonal count alike."""
    x, shifted, blurred = images / 255, [], []
    for down, right in ((0, 1), (1, 0), (1, 1)):
        one = moved(x, down, right)
        same = blurred_as_wrong(x, np.square(one - x).sum(axis=(1, 2, 3)))
        reached = ~np.isnan(same).any(axis=(1, 2, 3))
        shifted.append(costs(x[reached], one[reached]))
        blurred.append(costs(x[reached], same[reached]))
    means = [
        {loss: float(np.mean(np.concatenate([each[loss] for each in part]))) for loss in LOSSES}
        for part in (shifted, blurred)
    ]
    pairs = sum(len(each["mse"]) for each in shifted)
    return {loss: {"shifted": means[0][loss], "blurred": means[1][loss], "ratio": means[0][loss] / means[1][loss],
                   "pairs": pairs} for loss in LOSSES}  # fmt: skip


def train_to_draw(s: Settings, images: np.ndarray, most: int, about: str) -> main.VAE:
    """Train a VAE on uint8 images (N, H, W, C) to draw each of them moved at random, by up to `most` pixels a side.

    The encoder sees the image where it was, so no code can say where it is going. With 0 it is the usual training.
    """
    tf.get_logger().setLevel("ERROR")  # it warns of many functions traced, one for each training
    vae, steps = main.build_vae(s, images.shape[1:]), len(images) // s.batch_size
    optimizer, shape = main.build_optimizer(vae, s, s.epochs * steps), (steps, s.batch_size, *images.shape[1:])

    @tf.function(jit_compile=True)
    def train_epoch(sources, targets, first):
        for number in tf.range(steps):
            step = first + tf.cast(number, tf.int64)
            noise = standard_normal((s.batch_size, s.latent_dim), random_key(s.seed, NOISE, step))
            with tf.GradientTape() as tape:
                z_mean, z_log_std = vae.encoder(brightness(tf.gather(sources, number)))
                z, target = main.sample_latent(z_mean, z_log_std, noise), brightness(tf.gather(targets, number))
                reconstruction = main.reconstruction_loss(vae, target, z, s)
                kl, weight = main.kl_to_standard_normal(z_mean, z_log_std), main.kl_weight(step, s)
                minimised = main.objective(reconstruction, kl, weight, s, images[0].size)
            optimizer.apply(tape.gradient(minimised, [variable.value for variable in vae.weights]), vae.weights)

    for epoch in trange(s.epochs, desc=about, unit="epoch", ncols=79, ascii=" #", leave=False):
        order = epoch_order(len(images), (s.seed, epoch))[: steps * s.batch_size]
        sources = images[order]
        way = np.random.default_rng((s.seed, epoch, 1)).integers(-most, most + 1, (len(order), 2))
        targets = sources.copy()
        for down, right in np.unique(way, axis=0):
            chosen = (way == (down, right)).all(axis=1)
            targets[chosen] = moved(sources[chosen], down, right)
        first = tf.constant(epoch * steps, tf.int64)
        train_epoch(*(tf.constant(part.reshape(shape)) for part in (sources, targets)), first)
    return vae


def drawn_by(vae: main.VAE, dataset: Dataset, judge: object) -> dict[str, float]:
    """What a VAE draws of the test images: the share that is read right, the ink kept, how grey it is, MSE and AD.

    `ink` is the brightness of all pixels together, over that of the images. `grey` is the mean of 4 y (1 - y) over
    pixels, weighted by their brightness y: 0 if they are black and white.
    """
    x, y = dataset.test_images / 255, np.float64(main.reconstruct(vae, dataset.test_images))
    verdicts = classifier.probabilities(judge, np.float32(y)).argmax(axis=1)
    return {
        "read": float((verdicts == dataset.test_labels).mean()),
        "ink": float(y.sum() / x.sum()),
        "grey": float((4 * y * y * (1 - y)).sum() / y.sum()),
        "mse": float(np.square(y - x).sum(axis=(1, 2, 3)).mean()),
        "ad": float(np.abs(y - x).sum(axis=(1, 2, 3)).mean()),
    }


# --- 2. steps to a given quality --------------------------------------------------------------------------------------
@cache
def reader(quick: bool) -> object:
    """The digit classifier of a process; the same in all of them."""
    return digit_classifier(Study("loss_claims", 0, quick, 0, None, None))


def read_right(vae: main.VAE, settings: Settings, dataset: Dataset) -> dict[str, np.ndarray]:
    """The share () of reconstructions in which the classifier sees the digit of the label: it favours no loss."""
    images, labels = dataset.test_images[:READ_IMAGES], dataset.test_labels[:READ_IMAGES]
    verdicts = classifier.probabilities(reader(bool(settings.labels)), main.reconstruct(vae, images)).argmax(axis=1)
    return {"read": np.array((verdicts == labels).mean())}


def steps_until(run: Trained, share: float) -> float | None:
    """The step at which this share is read right first, interpolated between those that were watched; or None."""
    steps, shares = zip(*((step, float(kept["read"])) for step, kept in run.watched().items()), strict=True)
    later = next((place for place, found in enumerate(shares) if found >= share), None)
    if later is None:
        return None
    around = slice(max(later - 1, 0), later + 1)
    return float(np.interp(share, shares[around], steps[around]))


# --- 3. the dim nine --------------------------------------------------------------------------------------------------
def thickness(images: np.ndarray) -> np.ndarray:
    """The thickness of the strokes of each image (N, H, W, 1), in pixels, (N,): twice the area over the outline.

    A stroke of width w and length l has the area w l and the outline 2 (w + l). Ink is what is brighter than half of
    the image's brightest pixel. The outline is its total variation: the sum of the lengths of its gradient.
    """
    x = np.float64(images[..., 0] > images.max(axis=(1, 2))[:, np.newaxis] / 2)
    x = np.pad(x, [(0, 0), (1, 1), (1, 1)])
    down, right = np.diff(x, axis=1)[:, :, :-1], np.diff(x, axis=2)[:, :-1, :]
    return 2 * x.sum(axis=(1, 2)) / np.sqrt(np.square(down) + np.square(right)).sum(axis=(1, 2))


def by_thickness(images: np.ndarray) -> dict[str, np.ndarray]:
    """The images, and their thirds by thickness."""
    thirds = np.array_split(np.argsort(thickness(images), kind="stable"), len(THIRDS))
    return {"all images": images} | {name: images[third] for name, third in zip(THIRDS, thirds, strict=True)}


def collapsed_image(study: Study, images: np.ndarray, seed: int, name: str) -> np.ndarray:
    """The one image (H, W, C) that a VAE with AD averaged over pixels draws, trained on these images."""
    epochs = 2 if study.quick else round(ORIGINAL["epochs"] * 60_000 / len(images))
    s = settings_of(study, **ORIGINAL | {"loss": "ad", "epochs": epochs, "seed": seed})
    vae = train_to_draw(s, images, 0, f"AD on {name}")
    return main.reconstruct(vae, images[:500]).mean(axis=0)


def dimness(images: np.ndarray, drawn: np.ndarray, judge: object) -> dict[str, float]:
    """How an image drawn (H, W, C) compares with those (N, H, W, C) that it was learned from."""
    chances = classifier.probabilities(judge, np.float32(drawn[np.newaxis]))[0]
    return {
        "thickness": float(thickness(images).mean()),
        "drawn_thickness": float(thickness(drawn[np.newaxis])[0]),
        "ink": float(drawn.sum() / (images.sum(axis=(1, 2, 3)).mean() / 255)),
        "brightest": float(drawn.max()),
        "to_median": float(np.abs(drawn - np.median(images, axis=0) / 255).mean()),
        "digit": int(chances.argmax()),
        "chance": float(chances.max()),
        "chance_of_nine": float(chances[9]) if len(chances) > 9 else 0.0,
    }


# --- 4. zeros ---------------------------------------------------------------------------------------------------------
def apart(vae: main.VAE, settings: Settings, dataset: Dataset) -> dict[str, np.ndarray]:
    """How well one draw of z tells each digit from all others: the area under the ROC curve, (digits,).

    By linear discriminants that were fitted to one half of the test images and judged on the other.
    """
    z_mean, z_log_std = latent.encode(vae.encoder, dataset.test_images)
    z = z_mean + np.exp(z_log_std) * np.random.default_rng(settings.seed).standard_normal(z_mean.shape)
    half, labels = len(z) // 2, dataset.test_labels
    fitted = LinearDiscriminantAnalysis().fit(z[:half], labels[:half])
    chances = fitted.predict_proba(z[half:])
    areas = [roc_auc_score(labels[half:] == digit, chances[:, place]) for place, digit in enumerate(fitted.classes_)]
    return {"apart": np.array(areas)}


def last_apart(run: Trained) -> list[float]:
    """For each digit the KL weight up to which it is apart; 0 if it never is."""
    watched = run.watched()
    weights = np.array([float(main.kl_weight(step, run.settings)) for step in watched])
    areas = np.array([kept["apart"] for kept in watched.values()])  # (watched, digits)
    return [float(weights[found >= APART].max(initial=0)) for found in areas.T]


# --- trainings --------------------------------------------------------------------------------------------------------
def train_ramps(study: Study) -> tuple[dict, dict]:
    """Runs by (cure, schedule, loss), watched by read_right, and those of the slow ramps by loss, watched by apart."""
    quick = study.quick
    wanted: dict[object, list[Training]] = {}
    for cure in ("sum",) if quick else CURES:
        for schedule in SCHEDULES[1:2] if quick else SCHEDULES:
            for loss in ("mse", "ad") if quick or cure == "scale" else LOSSES:
                overrides = GREY | CURES[cure][1] | {"loss": loss, "kl_schedule": schedule, "epochs": 4}
                trainings = repeated(study, **overrides)
                last = steps_of(trainings[0].settings)
                watch_at = (*range(0, min(1_000, last), 50), *range(1_000, last, 125), last)
                wanted[cure, schedule, loss] = [
                    each._replace(watch=read_right, watch_at=watch_at) for each in trainings
                ]
    for loss in ("mse",) if quick else SWEEPS:
        ramp = ORIGINAL | LINEAR | {"loss": loss, "kl_weight_end": SWEEPS[loss], "epochs": 10}
        last = steps_of(repeated(study, **ramp)[0].settings)
        watch_at = tuple(range(0, last, last // 80))
        wanted[loss] = [
            each._replace(watch=apart, watch_at=watch_at) for each in repeated(study, **ramp | {"kl_steps": last})
        ]
    trained = train_groups(study, wanted)
    return {key: runs for key, runs in trained.items() if isinstance(key, tuple)}, {
        key: runs for key, runs in trained.items() if isinstance(key, str)
    }


# --- pictures ---------------------------------------------------------------------------------------------------------
def draw_shifted(study: Study, dataset: Dataset, drawers: dict[tuple[str, int], main.VAE]) -> None:
    """Write loss_claims_shifted.png: images, moved, blurred, and what models draw whose targets were moved."""
    images = one_of_each(dataset)
    x = images / 255
    one = moved(x, 0, 1)
    blurred = blurred_as_wrong(x, np.square(one - x).sum(axis=(1, 2, 3)))
    rows = {"test images": x, "moved to the right by a pixel": one, "blurred, with the same squared error": blurred}
    for (loss, most), vae in drawers.items():
        if most:
            rows[f"drawn by {loss.upper()}, whose targets were moved at random"] = main.reconstruct(vae, images)
    figure = Figure(figsize=(7, 0.95 * len(rows)), layout="constrained")
    for axes, (title, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        figures.draw_images(axes, np.nan_to_num(row), len(images), title)
    save_figure(study.images / "loss_claims_shifted.png", figure)


def draw_steps(study: Study, runs: dict[tuple[str, str, str], list[Trained]]) -> None:
    """Write loss_claims_steps.png: the share read right over steps, a row a cure and a column a schedule."""
    cures, schedules = list(dict.fromkeys(key[0] for key in runs)), list(dict.fromkeys(key[1] for key in runs))
    figure = Figure(figsize=(1.2 + 2.3 * len(schedules), 0.6 + 2.3 * len(cures)), layout="constrained")
    panels = figure.subplots(len(cures), len(schedules), squeeze=False, sharex=True, sharey=True)
    for (cure, schedule, loss), seeds in runs.items():
        axes = panels[cures.index(cure)][schedules.index(schedule)]
        watched = [run.watched() for run in seeds]
        shares = np.array([[kept["read"] for kept in seed.values()] for seed in watched])
        color = f"C{LOSSES.index(loss)}"
        figures.draw_spread(axes, list(watched[0]), shares * 100, loss.upper(), color)
        axes.set_title(f"{CURES[cure][0]}: {schedule}", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    for axes in panels[:, 0]:
        axes.set_ylabel("read right (%)")
        axes.legend(fontsize=8, loc="lower right")
    save_figure(study.images / "loss_claims_steps.png", figure)


def draw_nine(study: Study, groups: dict[str, np.ndarray], drawn: dict[str, np.ndarray]) -> None:
    """Write loss_claims_nine.png: of all images and of each third, six examples, the median, and what AD draws."""
    figure = Figure(figsize=(7, 1.15 * len(groups)), layout="constrained")
    rows = figure.subplots(len(groups), 3, width_ratios=(6, 1, 1))
    for row, (name, images) in zip(rows, groups.items(), strict=True):
        examples = images[np.linspace(0, len(images) - 1, 6).astype(int)]
        figures.draw_images(row[0], examples, 6, name)
        figures.draw_images(row[1], np.median(images, axis=0)[np.newaxis] / 255, 1, "the median")
        figures.draw_images(row[2], drawn[name][np.newaxis], 1, "drawn by AD")
    save_figure(study.images / "loss_claims_nine.png", figure)


def draw_zeros(study: Study, ramps: dict[str, list[Trained]]) -> None:
    """Write loss_claims_zeros.png: how well each digit is told from the others while the KL weight rises."""
    figure = Figure(figsize=(4 * len(ramps), 3.6), layout="constrained")
    panels = figure.subplots(1, len(ramps), squeeze=False, sharey=True)[0]
    for axes, (loss, runs) in zip(panels, ramps.items(), strict=True):
        watched = [run.watched() for run in runs]
        weights = [float(main.kl_weight(step, runs[0].settings)) for step in watched[0]]
        areas = np.mean([[kept["apart"] for kept in seed.values()] for seed in watched], axis=0)  # (watched, digits)
        for digit, area in enumerate(areas.T):
            style = {"linewidth": 2.5, "color": "black", "zorder": 3} if digit == 0 else {"linewidth": 1}
            axes.plot(weights, area, label=str(digit), **style)
        axes.axhline(APART, color="grey", linestyle=":", linewidth=1)
        axes.set(title=f"{loss.upper()}, averaged over pixels", xlabel="KL weight")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("told from the others (ROC area)")
    panels[0].legend(title="digit", fontsize=7, title_fontsize=8, ncols=2)
    save_figure(study.images / "loss_claims_zeros.png", figure)


# --- the experiment ---------------------------------------------------------------------------------------------------
def run(study: Study) -> None:
    """Train, measure, draw and publish."""
    runs, ramps = train_ramps(study)
    judge, dataset = digit_classifier(study), data.prepare(settings_of(study, **GREY), print)

    drawers, draws = {}, {}
    for loss in LOSSES[1:] if study.quick else LOSSES:
        for most in (0, 1):
            for seed in study.seeds:
                s = settings_of(study, **GREY | SUM | {"loss": loss, "seed": seed})
                vae = train_to_draw(s, dataset.train_images, most, f"{loss.upper()}, moved by up to {most}")
                drawers.setdefault((loss, most), vae)
                draws.setdefault((loss, most), []).append(drawn_by(vae, dataset, judge))

    groups = by_thickness(dataset.train_images)
    drawn = {
        name: [collapsed_image(study, images, seed, name) for seed in study.seeds] for name, images in groups.items()
    }

    draw_shifted(study, dataset, drawers)
    draw_steps(study, runs)
    draw_nine(study, groups, {name: images[0] for name, images in drawn.items()})
    draw_zeros(study, ramps)

    numbers = {
        "shifted": shifted_or_blurred(dataset.test_images[: 20 if study.quick else MOVED_IMAGES]),
        "targets": {f"{loss} moved {most}": over_seeds(found) for (loss, most), found in draws.items()},
        "steps": {
            " ".join(key): {f"{share:.0%}": [steps_until(seed, share) for seed in seeds] for share in READ}
            | {"end": summary(float([*seed.watched().values()][-1]["read"]) for seed in seeds)}
            for key, seeds in runs.items()
        },
        "nine": {
            name: over_seeds([dimness(groups[name], image, judge) for image in images])
            for name, images in drawn.items()
        },
        "zeros": {loss: [last_apart(seed) for seed in seeds] for loss, seeds in ramps.items()},
    }
    publish(study, numbers, tables(numbers))


def reached(steps: Sequence[float | None]) -> str:
    """Steps to a quality, one a seed, as the table shows them."""
    found = [step for step in steps if step is not None]
    if len(found) == len(steps):
        return shown(summary(found), 0)
    return "not reached" if not found else f"{shown(summary(found), 0)}, {len(found)} of {len(steps)} seeds"


def tables(numbers: dict) -> dict[str, str]:
    """The tables of the Analysis."""
    moved_by = [
        (loss.upper(), f"{found['shifted']:.1f}", f"{found['blurred']:.1f}", f"{found['ratio']:.2f}", found["pairs"])
        for loss, found in numbers["shifted"].items()
    ]
    targets = []
    for name, found in numbers["targets"].items():
        loss, _, most = name.split()
        where = "moved at random" if int(most) else "as they are"
        targets.append((loss.upper(), where, f"{percent(found['read'])} %", shown(found["ink"], 2),
                        shown(found["grey"], 2), shown(found["mse"]), shown(found["ad"])))  # fmt: skip
    steps = []
    for cure, schedule in dict.fromkeys(tuple(name.split()[:2]) for name in numbers["steps"]):
        of_loss = {loss: numbers["steps"].get(f"{cure} {schedule} {loss}") for loss in LOSSES}
        cells = [reached(of[share]) if of else "-" for share in ("80%", "90%") for of in of_loss.values()]
        steps.append((CURES[cure][0], schedule, *cells))
    nine = [
        (name, shown(found["thickness"], 2), shown(found["drawn_thickness"], 2), f"{percent(found['ink'], 0)} %",
         shown(found["brightest"], 2), ", ".join(f"{digit:.0f}" for digit in found["digit"]["values"]),
         f"{percent(found['chance_of_nine'], 0)} %")
        for name, found in numbers["nine"].items()
    ]  # fmt: skip
    zeros = []
    for loss, seeds in numbers["zeros"].items():
        by_digit = np.array(seeds)  # (seeds, digits)
        places = [str(1 + int((one > one[0]).sum())) for one in by_digit]
        order = np.argsort(-by_digit.mean(axis=0), kind="stable")
        longest = ", ".join(f"{digit} ({by_digit[:, digit].mean():.4f})" for digit in order[:3])
        zeros.append((loss.upper(), shown(summary(by_digit[:, 0]), 4), ", ".join(places), longest))
    return {
        "loss_claims shifted": table(("loss", "moved by a pixel", "blurred", "moved / blurred", "pairs"), moved_by),
        "loss_claims targets": table(("loss", "targets", "read right", "ink", "grey", "MSE", "AD"), targets),
        "loss_claims steps": table(
            ("cure", "KL schedule", *(f"{loss.upper()}, {share}" for share in ("80 %", "90 %") for loss in LOSSES)),
            steps,
        ),
        "loss_claims nine": table(
            ("trained on", "thickness", "of the drawn image", "ink", "brightest pixel", "digit seen", "chance of 9"),
            nine,
        ),
        "loss_claims zeros": table(("loss", "zeros apart up to", "place of the zeros", "apart longest"), zeros),
    }


if __name__ == "__main__":
    raise SystemExit(run_study(STUDY, run))
