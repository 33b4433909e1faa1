"""What does the latent space look like, what lies near what in it, and how does the KL shape it?

    python -m experiments.latent_space    # 5 minutes on two cores

Trains VAEs of 2 to 64 latents, and plain autoencoders of the same network with 2 and 20. It shows the space during
training, with more and more latents, and in the pictures of PCA, t-SNE and UMAP. It walks between two images. It takes
one gradient step on one image and measures how far all others move. Then it compares the space of the VAE with that of
the autoencoder: how clear are its samples, how normal is it, and what does it know about the digits? Writes
latent_space.json, latent_space_*.png and latent_space_training.gif to images/.

All images are test images, black and white by a fixed draw. Subsets of the 10,000 are evenly spaced, because the second
half of MNIST's test set is harder. kNN accuracies are 5-fold cross-validated on these images, with 10 neighbours.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.results import over_seeds, percent, publish, shown, table
from experiments.study import Study, Trained, Training, read_command_line, run_study, settings_of, steps_of, train_all

if __name__ == "__main__":
    STUDY = read_command_line("latent_space", __doc__)  # before the seconds that TensorFlow takes

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

import main
from experiments import latent
from experiments.classifier import probabilities, sure_share
from experiments.figures import draw_images, draw_spread
from experiments.latent import evenly
from experiments.samples import dataset_of, digit_classifier, judge_samples, prior_samples
from experiments.study import BASE
from utils.batches import brightness
from utils.dataset import Dataset, in_batches
from utils.pictures import save_figure, save_gif
from utils.start import tf

LATENTS = BASE["latent_dim"]  # of the spaces that are studied closely
COLORS = np.array(mpl.colormaps["tab10"].colors)  # a digit has the same colour everywhere
WALKS = {"straight": latent.straight, "spherical": latent.spherical}
WALK_STEPS = 11  # points of a walk, both ends included; an odd number, so that one is the midpoint
WALKS_SHOWN = 3
KINDS = {"vae": "VAE", "ae": "autoencoder"}
PLACES = {"pixels": "784 pixels", "latents": f"{LATENTS} latents", "pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
LEARNING_RATE = 1e-4  # of the one step; so small that half the rate moves everything half as far
BINS = 20  # of distances, with equally many pairs in each


class Sizes(NamedTuple):
    """How much is trained and measured."""

    latents: tuple[int, ...] = (2, 4, 8, 20, 32, 64)  # of the VAEs; 2 and LATENTS are among them
    frames: int = 40  # of the GIF
    shown: int = 2_000  # test images in a scatter plot
    projected: int = 5_000  # test images in the projections and for kNN accuracies
    projections: tuple[str, ...] = ("pca", "tsne", "umap")
    mixture: int = 1_000  # draws for the KL of the aggregate posterior
    pairs: int = 1_000  # walks
    samples: int = 1_000  # decoded and judged
    probes: int = 100  # images that a gradient step is taken on
    others: int = 2_000  # images whose movement is measured; the probes are among them


QUICK_SIZES = Sizes(  # without UMAP, because its code takes 10 seconds to compile
    latents=(2, LATENTS), frames=4, shown=300, projected=200, projections=("pca", "tsne"), mixture=50, pairs=20,
    samples=100, probes=6, others=200,
)  # fmt: skip


class Space(NamedTuple):
    """A trained VAE or autoencoder, and the test images in its latent space."""

    vae: main.VAE
    report: dict[str, Any]
    z_mean: np.ndarray  # (N, L)
    z_log_std: np.ndarray  # (N, L), without meaning for the autoencoder
    z: np.ndarray  # (N, L), one draw from each posterior; for the autoencoder z_mean


Spaces = dict[tuple[str, int, int], Space]  # by kind, number of latents and seed


def run(study: Study) -> None:
    """Train, measure, draw, publish."""
    tf.get_logger().setLevel("ERROR")  # else it warns because each of many networks traces its own functions
    size = QUICK_SIZES if study.quick else Sizes()
    trainings = trainings_of(study, size)
    trained = dict(zip(trainings, train_all(study, list(trainings.values())), strict=True))
    dataset = dataset_of(study)
    spaces = {key: open_space(key[0], training, dataset.test_images) for key, training in trained.items()}
    judge = digit_classifier(study)

    numbers = {
        "images": len(dataset.test_images),
        "training": show_training(study, size, trained["vae", 2, study.seed], dataset),
        "sizes": measure_sizes(study, size, spaces, dataset),
        "projections": measure_projections(study, size, spaces["vae", LATENTS, study.seed], dataset),
        "walks": measure_walks(study, size, spaces, dataset, judge),
        "one_image": measure_one_image(study, size, spaces, dataset),
        "vae_ae": compare_with_autoencoder(study, size, spaces, dataset, judge),
    }
    publish(study, numbers, tables_of(numbers))


# --- trainings --------------------------------------------------------------------------------------------------------
def trainings_of(study: Study, size: Sizes) -> dict[tuple[str, int, int], Training]:
    """The trainings, by kind, number of latents and seed. One with 2 latents is watched, which does not change it."""
    vaes = {("vae", n, seed): settings_of(study, seed=seed, latent_dim=n) for n in size.latents for seed in study.seeds}
    plain = partial(settings_of, study, autoencoder=True, nll_samples=0)
    codes = {("ae", LATENTS, seed): plain(seed=seed, latent_dim=LATENTS) for seed in study.seeds}
    codes["ae", 2, study.seed] = plain(seed=study.seed, latent_dim=2)
    trainings = {key: Training(settings) for key, settings in (vaes | codes).items()}

    watched, watch = ("vae", 2, study.seed), partial(watch_codes, count=size.shown)
    steps = frame_steps(steps_of(vaes[watched]), size.frames)
    return trainings | {watched: Training(vaes[watched], watch, steps)}


def frame_steps(last: int, frames: int) -> tuple[int, ...]:
    """The steps of the frames, from 0 to `last`: more and more rarely, because less and less changes."""
    return tuple(int(step) for step in np.unique(np.rint(last * np.linspace(0, 1, frames) ** 2)))


def watch_codes(vae: main.VAE, settings: Any, dataset: Dataset, count: int) -> dict[str, np.ndarray]:
    """z_mean (count, L) of test images."""
    images = dataset.test_images[evenly(len(dataset.test_images), count)]
    return {"z_mean": vae.encoder(brightness(images))[0].numpy()}


def open_space(kind: str, trained: Trained, images: np.ndarray) -> Space:
    """A finished training with the codes of these images (N, H, W, C)."""
    vae = trained.vae
    z_mean, z_log_std = latent.encode(vae.encoder, images)
    noise = np.random.default_rng(0).standard_normal(z_mean.shape, np.float32)
    z = z_mean + np.exp(z_log_std) * noise if kind == "vae" else z_mean
    return Space(vae, trained.report, z_mean, z_log_std, z)


# --- the space while it is trained ------------------------------------------------------------------------------------
def show_training(study: Study, size: Sizes, trained: Trained, dataset: Dataset) -> dict[str, list[float]]:
    """Write the GIF of a 2-D latent space; return the kNN accuracy of its frames."""
    labels = dataset.test_labels[evenly(len(dataset.test_labels), size.shown)]
    watched = {step: arrays["z_mean"] for step, arrays in trained.watched().items()}
    accuracies = [latent.knn_accuracy_in(z, labels, study.seed) for z in watched.values()]
    all_of_it = reach(np.concatenate(list(watched.values())))  # the space grows large before the KL shrinks it
    views = {"from afar": all_of_it, "from near": reach(list(watched.values())[-1])}
    folder = study.trainings / "frames-latent_space"
    folder.mkdir(exist_ok=True)
    paths = []
    for (step, z), accuracy in zip(watched.items(), accuracies, strict=True):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        for axes, (title, limit) in zip(figure.subplots(1, 2), views.items(), strict=True):
            draw_digits(axes, z, labels, size=5)
            draw_ellipses(axes, np.zeros(2), np.eye(2))
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="latent 1", title=title)
        figure.axes[0].set_ylabel("latent 2")
        weight = main.kl_weight(step, trained.settings)
        figure.suptitle(f"step {step:,}, KL weight {weight:.2f}, kNN accuracy {accuracy:.0%}")
        draw_legend(figure, labels)
        paths.append(folder / f"{step:06d}.png")
        save_figure(paths[-1], figure)
    save_gif(study.images / "latent_space_training.gif", paths, milliseconds=200)
    return {"steps": list(watched), "knn": accuracies}


def reach(z: np.ndarray) -> float:
    """Half the width of a picture, centred at the origin, that shows nearly all points (N, 2) and the prior."""
    return 1.1 * max(3.0, float(np.quantile(np.abs(z), 0.998)))


# --- as its size grows ------------------------------------------------------------------------------------------------
def measure_sizes(study: Study, size: Sizes, spaces: Spaces, dataset: Dataset) -> dict[str, Any]:
    """Measure the VAE's space for each number of latents: kNN accuracy, and how much of it a plane can show."""
    chosen = evenly(len(dataset.test_images), size.projected)
    labels = dataset.test_labels[chosen]
    pixels = latent.knn_accuracy_in(dataset.test_images[chosen].reshape(len(chosen), -1) / 255, labels, study.seed)
    pictures, numbers = {}, {}
    for latents in size.latents:
        rows = []
        for seed in study.seeds:
            space = spaces["vae", latents, seed]
            z_mean = space.z_mean[chosen]
            picture = latent.project(z_mean, "pca", seed)
            pictures.setdefault(latents, picture)  # of the first seed
            mean_kl = latent.mean_kl(space.z_mean, space.z_log_std)
            estimate, error = latent.aggregate_kl(space.z_mean, space.z_log_std, size.mixture, seed)
            rows.append({
                "knn": latent.knn_accuracy_in(z_mean, labels, seed),
                "knn_pca": latent.knn_accuracy_in(picture, labels, seed),
                "pca_variance": float(picture.var(axis=0).sum() / z_mean.var(axis=0).sum()),
                "active_units": space.report["active_units"],
                "kl": space.report["test_kl"],
                "moments_kl": latent.moments_kl(space.z_mean, space.z_log_std),
                "aggregate_kl": estimate,
                "aggregate_kl_error": error,
                "aggregate_kl_floor": max(0.0, mean_kl - np.log(len(space.z_mean))),
            })  # fmt: skip
        n = over_seeds(rows)
        information = n["kl"]["mean"] - n["aggregate_kl"]["mean"]
        numbers[str(latents)] = n | {"at_ceiling": latent.at_ceiling(information, len(dataset.test_images))}
    draw_sizes(study, pictures, labels, numbers, pixels)
    return {"knn_pixels": pixels, "latents": numbers}


def draw_sizes(study: Study, pictures: dict[int, np.ndarray], labels: np.ndarray, numbers: dict, pixels: float) -> None:
    """Draw the first two principal components for each number of latents, and kNN accuracy over that number."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.1, 1))
    panels = left.subplots(2, -(-len(pictures) // 2), squeeze=False).flat
    for axes, (latents, picture) in zip(panels, pictures.items(), strict=True):
        draw_digits(axes, picture, labels, size=2)
        found = numbers[str(latents)]
        axes.set_title(f"{latents} latents\n{percent(found['pca_variance'], 0)} % of the variance", fontsize=9)
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim", box_aspect=1)
    left.supxlabel("first principal component", fontsize=9)
    left.supylabel("second principal component", fontsize=9)
    draw_legend(left, labels)

    axes = right.subplots()
    for name, label in (("knn", "in all latents"), ("knn_pca", "in the picture")):
        values = np.transpose([found[name]["values"] for found in numbers.values()])
        draw_spread(axes, list(pictures), 100 * values, label)
    axes.axhline(100 * pixels, color="gray", linestyle="--", label="in the pixels")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(pictures), list(pictures))
    axes.set(xlabel="latents", ylabel="kNN accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(study.images / "latent_space_sizes.png", figure)


# --- projections ------------------------------------------------------------------------------------------------------
def measure_projections(study: Study, size: Sizes, space: Space, dataset: Dataset) -> dict[str, Any]:
    """Draw PCA, t-SNE and UMAP of one VAE's latents side by side, with kNN accuracies."""
    chosen = evenly(len(dataset.test_images), size.projected)
    labels = dataset.test_labels[chosen]
    clouds = {
        "pixels": dataset.test_images[chosen].reshape(len(chosen), -1) / 255,
        "latents": space.z_mean[chosen],
        **{method: latent.project(space.z_mean[chosen], method, study.seed) for method in size.projections},
    }
    accuracies = {name: latent.knn_accuracy_in(cloud, labels, study.seed) for name, cloud in clouds.items()}
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    for axes, method in zip(figure.subplots(1, len(size.projections)), size.projections, strict=True):
        draw_digits(axes, clouds[method], labels, size=2)
        axes.set_title(f"{PLACES[method]}: kNN accuracy {accuracies[method]:.1%}", fontsize=10)
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim", box_aspect=1)
    found = f"kNN accuracy {accuracies['latents']:.1%} (in the pixels {accuracies['pixels']:.1%})"
    figure.suptitle(f"{LATENTS} latents of {len(chosen):,} test images: {found}", fontsize=10)
    draw_legend(figure, labels)
    save_figure(study.images / "latent_space_projections.png", figure)
    return {"images": len(chosen), "knn": accuracies}


# --- walks ------------------------------------------------------------------------------------------------------------
def measure_walks(study: Study, size: Sizes, spaces: Spaces, dataset: Dataset, judge: Any) -> dict[str, Any]:
    """Walk between test images of different digits, straight and spherical, in the VAE and in the autoencoder."""
    pairs = draw_pairs(dataset.test_labels, size.pairs, study.seed)
    shown_pairs = most_different(spaces["vae", LATENTS, study.seed], pairs)[:WALKS_SHOWN]
    numbers, curves, pictures = {}, {}, {}
    for kind in KINDS:
        for name, walk in WALKS.items():
            found = [measure_walk(spaces[kind, LATENTS, seed], walk, pairs, judge) for seed in study.seeds]
            curves[kind, name] = found
            numbers[f"{kind} {name}"] = over_seeds([at_middle(curve) for curve in found])
            first = spaces[kind, LATENTS, study.seed]
            z = walk_between(walk, *(first.z_mean[ends] for ends in shown_pairs.T))
            pictures[kind, name] = [main.decode(first.vae, codes) for codes in z]
    draw_walks(study, pictures, dataset.test_labels[shown_pairs], curves)
    return {"pairs": len(pairs), "walks": numbers}


def most_different(space: Space, pairs: np.ndarray) -> np.ndarray:
    """The pairs (P, 2), sorted: first those for which the midpoints of the different walks look least alike."""
    ends = [space.z_mean[ends] for ends in pairs.T]
    middles = [walk_between(walk, *ends)[:, WALK_STEPS // 2] for walk in WALKS.values()]
    straight, spherical = (main.decode(space.vae, z) for z in middles)
    return pairs[np.argsort(-np.square(straight - spherical).sum(axis=(1, 2, 3)), kind="stable")]


def measure_walk(space: Space, walk: Callable, pairs: np.ndarray, judge: Any) -> dict[str, Any]:
    """Walk between the codes of pairs (P, 2) of images, and judge the decoded images.

    By step: the share of images that the classifier is sure of, and the mean length of the code over the mean length of
    all images' codes. For all steps together: third_digit_share.
    """
    z = walk_between(walk, *(space.z_mean[ends] for ends in pairs.T))  # (P, steps, L)
    verdicts = probabilities(judge, main.decode(space.vae, z.reshape(-1, z.shape[2])))
    verdicts = verdicts.reshape(*z.shape[:2], -1)  # (P, steps, classes)
    typical = np.linalg.norm(space.z_mean, axis=1).mean()
    return {
        "sure": [sure_share(verdicts[:, step]) for step in range(WALK_STEPS)],
        "length": (np.linalg.norm(z, axis=2).mean(axis=0) / typical).tolist(),
        "third": third_digit_share(verdicts),
    }


def at_middle(curve: dict[str, Any]) -> dict[str, float]:
    """The results of measure_walk at the midpoint, and the classifier's verdicts at the ends."""
    sure, middle = curve["sure"], WALK_STEPS // 2
    return {
        "sure_ends": (sure[0] + sure[-1]) / 2,
        "sure_middle": sure[middle],
        "third_middle": curve["third"],
        "length_middle": curve["length"][middle],
    }


def draw_pairs(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw pairs (count, 2) of indices of images with different labels (N,)."""
    pairs = np.random.default_rng(seed).integers(len(labels), size=(20 * count, 2))
    return pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]][:count]


def walk_between(walk: Callable, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Walk from each point of a (N, L) to its partner in b (N, L): (N, WALK_STEPS, L)."""
    return np.stack([walk(start, end, WALK_STEPS) for start, end in zip(a, b, strict=True)])


def third_digit_share(verdicts: np.ndarray) -> float:
    """The share of walks whose midpoint shows neither of the digits at the ends, by verdicts (N, steps, classes)."""
    digits = verdicts.argmax(axis=2)
    middle = digits[:, digits.shape[1] // 2]
    return float(((middle != digits[:, 0]) & (middle != digits[:, -1])).mean())


def draw_walks(study: Study, pictures: dict, digits: np.ndarray, curves: dict) -> None:
    """Draw some pairs in four walks, and for all pairs the clarity of images and the length of codes along the way."""
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    names = [f"{KINDS[kind]}, {name}" for kind, name in pictures]
    for number, (axes, (start, end)) in enumerate(zip(left.subplots(len(digits), 1), digits, strict=True)):
        rows = np.concatenate([walked[number] for walked in pictures.values()])
        draw_images(axes, rows, WALK_STEPS, f"from a {start} to a {end}")
        label_rows(axes, names)

    way = np.linspace(0, 1, WALK_STEPS)
    upper, lower = right.subplots(2, 1, sharex=True)
    for (kind, name), found in curves.items():
        style = {"label": f"{KINDS[kind]}, {name}", "color": f"C{list(KINDS).index(kind)}"}
        for axes, what, unit in ((upper, "sure", 100), (lower, "length", 1)):
            draw_spread(axes, way, unit * np.array([row[what] for row in found]), **style)
            axes.lines[-1].set_linestyle("-" if name == "straight" else ":")
    upper.set(ylabel="classifier is sure (% of images)")
    lower.set(xlabel="share of the way", ylabel="length of code / mean length")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    save_figure(study.images / "latent_space_walks.png", figure)


# --- one image's effect -----------------------------------------------------------------------------------------------
class Effect(NamedTuple):
    """How a gradient step on each of P images moves N images that include them; only `own` has the effect on itself."""

    moved: np.ndarray  # (P, N - 1), latent units
    own: np.ndarray  # (P,), latent units
    latents: np.ndarray  # (P, N - 1), distance in the latent space before the step
    pixels: np.ndarray  # (P, N - 1), distance in the pixels, with brightness in [0, 1]


def measure_one_image(study: Study, size: Sizes, spaces: Spaces, dataset: Dataset) -> dict[str, Any]:
    """Measure how far all embeddings move after one gradient step on one image, against their distance from it."""
    chosen = evenly(len(dataset.test_images), size.others)
    images, labels = dataset.test_images[chosen], dataset.test_labels[chosen]
    probes = np.random.default_rng(study.seed).permutation(len(images))[: size.probes]
    effects, rows = [], []
    for seed in study.seeds:
        space = spaces["vae", LATENTS, seed]
        moved = movements(space.vae, images, probes, LEARNING_RATE, seed)
        half = movements(space.vae, images, probes[:5], LEARNING_RATE / 2, seed)
        effect = effect_of(moved, probes, space.z_mean[chosen], images)
        effects.append(effect)
        same = without_own(np.broadcast_to(labels, moved.shape), probes) == labels[probes][:, np.newaxis]  # (P, N - 1)
        ink = without_own(np.broadcast_to(images.mean(axis=(1, 2, 3)), moved.shape), probes)
        rows.append({
            "own": float(np.median(effect.own)),
            "others": float(np.median(effect.moved / effect.own[:, np.newaxis])),
            "half_step": float(np.median(half / moved[:5])),
            "rank_latents": rank_correlation(effect.latents, effect.moved),
            "rank_pixels": rank_correlation(effect.pixels, effect.moved),
            "rank_ink": rank_correlation(ink, effect.moved),
            "same_digit_moved": nearest_share(-effect.moved, same),
            "same_digit_latents": nearest_share(effect.latents, same),
            "same_digit_pixels": nearest_share(effect.pixels, same),
            "same_digit_any": float(same.mean()),
        })  # fmt: skip
    draw_one_image(study, effects, images, probes)
    return {"probes": len(probes), "images": len(images), "learning_rate": LEARNING_RATE, **over_seeds(rows)}


def movements(vae: main.VAE, images: np.ndarray, probes: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """How far z_mean moves after one gradient step on one image: (P, N), in latent units.

    The images are uint8 (N, H, W, C); the step is taken on each of the probes, indices (P,). It is plain gradient
    descent on -ELBO (KL weight 1) of that image alone, with noise fixed by the seed. The VAE's weights do not change:
    each step starts from the trained weights and changes a copy.
    """
    x = brightness(tf.constant(images))
    weights = vae.encoder.trainable_variables  # the decoder's weights do not affect z_mean in a single step
    latents = vae.decoder.input_shape[1]
    noise = np.random.default_rng(seed).standard_normal((len(probes), 1, latents), np.float32)

    @tf.function  # without XLA, because compiling would take longer than running
    def moved_by(probe, noise, x, rate):
        with tf.GradientTape() as tape:
            image = x[probe][tf.newaxis]
            z_mean, z_log_std = vae.encoder(image)
            logits = vae.decoder(main.sample_latent(z_mean, z_log_std, noise))
            reconstruction = main.cross_entropy(tf.reshape(image, (1, -1)), tf.reshape(logits, (1, -1)))
            minimised = reconstruction[0] + tf.reduce_sum(main.kl_to_standard_normal(z_mean, z_log_std))
        values = [weight.value for weight in weights]
        gradients = tape.gradient(minimised, values)
        stepped = [value - rate * gradient for value, gradient in zip(values, gradients, strict=True)]
        (after, _), _ = vae.encoder.stateless_call(stepped, [], x)
        return tf.norm(after - vae.encoder(x)[0], axis=1)

    steps = zip(tf.constant(probes, tf.int32), tf.constant(noise), strict=True)
    return np.stack([moved_by(probe, draw, x, tf.constant(rate)) for probe, draw in steps])


def effect_of(moved: np.ndarray, probes: np.ndarray, z_mean: np.ndarray, images: np.ndarray) -> Effect:
    """Combine movements (P, N) with the distances of the N images from the probes, indices (P,)."""
    pixels = images.reshape(len(images), -1) / 255
    return Effect(
        moved=without_own(moved, probes),
        own=moved[np.arange(len(probes)), probes],
        latents=without_own(cdist(z_mean[probes], z_mean), probes),
        pixels=without_own(cdist(pixels[probes], pixels), probes),
    )


def without_own(values: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """Values (P, N) without column probes[p] in row p: (P, N - 1)."""
    others = np.arange(values.shape[1]) != probes[:, np.newaxis]
    return values[others].reshape(len(probes), -1)


def rank_correlation(distances: np.ndarray, moved: np.ndarray) -> float:
    """Spearman's rank correlation of distance and movement (P, N), over N images, averaged over P probes."""
    return float(np.mean([spearmanr(*row).statistic for row in zip(distances, moved, strict=True)]))


def nearest_share(distances: np.ndarray, same: np.ndarray, neighbours: int = 10) -> float:
    """The share of `same` (P, N), booleans, among the nearest neighbours of each probe; distances are (P, N)."""
    nearest = np.argsort(distances, axis=1)[:, :neighbours]
    return float(np.take_along_axis(same, nearest, axis=1).mean())


def in_bins(x: np.ndarray, y: np.ndarray, bins: int) -> np.ndarray:
    """Sort pairs (x, y) by x into bins of equal count: the median of x, and the quartiles of y in each, (4, bins)."""
    order = np.argsort(x, axis=None, kind="stable")
    parts = np.array_split(order, bins)
    x, y = np.ravel(x), np.ravel(y)
    return np.transpose([[np.median(x[part]), *np.quantile(y[part], (0.25, 0.5, 0.75))] for part in parts])


def draw_one_image(study: Study, effects: list[Effect], images: np.ndarray, probes: np.ndarray) -> None:
    """Draw movement over distance, and the nearest images of two probes by each measure."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.7, 1))
    panels = upper.subplots(1, 2, sharey=True)
    for axes, (name, unit) in zip(panels, (("latents", "latent units"), ("pixels", "brightness")), strict=True):
        for seed, effect in zip(study.seeds, effects, strict=True):
            relative = 100 * effect.moved / effect.own[:, np.newaxis]
            x, low, median, high = in_bins(getattr(effect, name), relative, BINS)
            line = axes.plot(x, median, marker="o", markersize=3, label=f"seed {seed}: median, quartiles")[0]
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        rank = np.mean([rank_correlation(getattr(effect, name), effect.moved) for effect in effects])
        axes.set_title(f"rank correlation {rank:.2f}", fontsize=10)
        axes.set(xlabel=f"distance from that image in the {name} ({unit})")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="movement (% of that image's own)", ylim=(0, None))
    panels[0].legend(fontsize=8)

    effect, names = effects[0], ("moved most", "nearest in latents", "nearest in pixels")
    for number, axes in enumerate(lower.subplots(1, 2)):
        others = images[np.arange(len(images)) != probes[number]]
        orders = [np.argsort(d[number])[:8] for d in (-effect.moved, effect.latents, effect.pixels)]
        rows = [np.concatenate([images[probes[number], np.newaxis], others[order]]) for order in orders]
        draw_images(axes, np.concatenate(rows), 9, "the image, and eight others:")
        if number == 0:
            label_rows(axes, names)
    save_figure(study.images / "latent_space_one_image.png", figure)


# --- VAE against autoencoder ------------------------------------------------------------------------------------------
def compare_with_autoencoder(study: Study, size: Sizes, spaces: Spaces, dataset: Dataset, judge: Any) -> dict[str, Any]:
    """Compare the space of the VAE with that of the autoencoder: samples, normality, kNN."""
    chosen = evenly(len(dataset.test_images), size.projected)
    labels, numbers, grids = dataset.test_labels[chosen], {}, {}
    for kind in KINDS:
        rows = []
        for seed in study.seeds:
            space = spaces[kind, LATENTS, seed]
            fitted = main.decode(space.vae, fitted_gaussian(space.z, size.samples, seed))
            samples = fitted if kind == "ae" else prior_samples(space.vae, size.samples, seed)
            grids.setdefault(kind, samples[:60])  # of the first seed
            row = {
                "reconstruction_at_mean": reconstruction_at_mean(space, dataset.test_images),
                "knn": latent.knn_accuracy_in(space.z_mean[chosen], labels, seed),
                **{f"fitted_{name}": value for name, value in judge_samples(judge, fitted).items()},
                **latent.normality(standardised(space.z)),
                "correlation_kl": correlation_kl(space.z),
            }
            if kind == "vae":  # only the VAE's latents were trained to follow N(0, I)
                row |= {f"prior_{name}": value for name, value in judge_samples(judge, samples).items()}
                row |= {f"raw_{name}": value for name, value in latent.normality(space.z).items()}
                row |= {"moments_kl": latent.moments_kl(space.z_mean, space.z_log_std)}
            rows.append(row)
        numbers[kind] = over_seeds(rows)
    draw_comparison(study, size, spaces, dataset, grids, numbers)
    return numbers


def reconstruction_at_mean(space: Space, images: np.ndarray) -> float:
    """The cross-entropy of uint8 images (N, H, W, C) decoded from their z_mean, in nats, mean over images.

    A VAE's loss uses a draw of z instead of z_mean, and is larger. An autoencoder's loss is exactly this.
    """

    def compare_batch(batch, start):
        logits = space.vae.decoder(space.z_mean[start : start + len(batch)])
        pixels = tf.reshape(brightness(batch), (len(batch), -1)), tf.reshape(logits, (len(batch), -1))
        return (main.cross_entropy(*pixels),)

    return float(in_batches(compare_batch, images)[0].mean())


def standardised(z: np.ndarray) -> np.ndarray:
    """Points (N, L) shifted and scaled to mean 0 and variance 1 in each dimension."""
    z = np.float64(z)
    return (z - z.mean(axis=0)) / z.std(axis=0)


def correlation_kl(z: np.ndarray) -> float:
    """The KL to N(0, I), in nats, of the Gaussian with the correlations of z (N, L): what `standardised` leaves."""
    return latent.moments_kl(standardised(z), np.full(z.shape, -np.inf))  # points, without width


def fitted_gaussian(z: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws (count, L) from the Gaussian with the mean and the full covariance of z (N, L)."""
    z = np.float64(z)
    return np.random.default_rng(seed).multivariate_normal(z.mean(axis=0), np.cov(z.T), count)


def draw_comparison(study: Study, size: Sizes, spaces: Spaces, dataset: Dataset, grids: dict, numbers: dict) -> None:
    """Draw the spaces of 2 latents, and samples from those of 20."""
    chosen = evenly(len(dataset.test_images), size.shown)
    labels = dataset.test_labels[chosen]
    figure = Figure(figsize=(9, 6.9), layout="constrained")
    upper, lower = figure.subplots(2, 2, height_ratios=(2, 1))
    for axes, (kind, title) in zip(upper, KINDS.items(), strict=True):
        z = spaces[kind, 2, study.seed].z[chosen]
        draw_digits(axes, z, labels, size=5)
        around = (np.zeros(2), np.eye(2)) if kind == "vae" else (z.mean(axis=0), np.cov(z.T))
        draw_ellipses(axes, *around)
        lines = "the prior" if kind == "vae" else "the Gaussian fitted to them"
        about = "a draw from each image's posterior" if kind == "vae" else "each image's code"
        axes.set_title(f"{title}, 2 latents: {about};\n1 and 2 sigma of {lines}", fontsize=9)
        axes.set(xlabel="latent 1", ylabel="latent 2", aspect="equal", adjustable="datalim")
    for axes, (kind, title) in zip(lower, KINDS.items(), strict=True):
        source = "prior" if kind == "vae" else "fitted"
        sure, digits = (numbers[kind][f"{source}_{what}"] for what in ("sure", "digits"))
        draws = "the prior" if kind == "vae" else "a Gaussian fitted to its codes"
        found = f"{percent(sure)} % the classifier is sure of, {shown(digits)} digits"
        draw_images(axes, grids[kind], 12, f"{title}, {LATENTS} latents: samples from {draws};\n{found}")
    draw_legend(figure, labels)
    save_figure(study.images / "latent_space_vae_ae.png", figure)


# --- drawing ----------------------------------------------------------------------------------------------------------
def draw_digits(axes: Axes, points: np.ndarray, labels: np.ndarray, size: float) -> None:
    """Draw points (N, 2), coloured by digit, in the order of the images, so that no digit covers the others."""
    axes.scatter(*points.T, c=COLORS[labels], s=size, linewidths=0)


def draw_legend(figure: Figure | SubFigure, labels: np.ndarray) -> None:
    """Draw a legend of the digits' colours at the right."""
    style = {"marker": "o", "linestyle": "", "markersize": 5}
    handles = [Line2D([], [], color=COLORS[digit], label=str(digit), **style) for digit in np.unique(labels)]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8, handletextpad=0)


def draw_ellipses(axes: Axes, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Draw the lines 1 and 2 standard deviations from the mean of a Gaussian in the plane."""
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ np.linalg.cholesky(covariance).T  # (200, 2)
    for sigmas in (1, 2):
        axes.plot(*(mean + sigmas * circle).T, color="black", linewidth=0.8)


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write names to the left of the rows of an image grid."""
    bottom, top = axes.get_ylim()
    axes.set_anchor("E")  # away from the names, which constrained layout would cut off
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7)
    axes.set_xticks([])
    axes.set_yticks(top + (np.arange(len(names)) + 0.5) / len(names) * (bottom - top), names)


# --- tables -----------------------------------------------------------------------------------------------------------
def tables_of(numbers: dict[str, Any]) -> dict[str, str]:
    """The tables for the Analysis.

    If the information is as large as this number of images can show, the mixture's KL is marked as an upper bound.
    """

    sizes = [
        [n, shown(v["active_units"], 0),
         percent(v["knn"]), percent(v["pca_variance"], 0), percent(v["knn_pca"]),
         shown(v["kl"]), shown(v["moments_kl"], 2),
         f"{'≤ ' * v['at_ceiling']}{shown(v['aggregate_kl'], 2)}", shown(v["aggregate_kl_floor"], 2)]
        for n, v in numbers["sizes"]["latents"].items()
    ]  # fmt: skip
    walks = []
    for name, v in numbers["walks"]["walks"].items():
        kind, walk = name.split()
        shares = [percent(v[key]) for key in ("sure_ends", "sure_middle", "third_middle")]
        walks.append([f"{KINDS[kind]}, {walk}", *shares, shown(v["length_middle"], 2)])
    one = numbers["one_image"]
    measures = [
        ["latents", shown(one["rank_latents"], 2), percent(one["same_digit_latents"])],
        ["pixels", shown(one["rank_pixels"], 2), percent(one["same_digit_pixels"])],
        ["movement itself", "", percent(one["same_digit_moved"])],
        ["white pixels of the other image", shown(one["rank_ink"], 2), ""],
        ["any other image", "", percent(one["same_digit_any"])],
    ]
    return {
        "latent_space sizes": table(
            ["latents", "active", "kNN accuracy, %", "PCA: variance, %", "kNN in that picture, %", "KL, nats",
             "all together: KL by moments", "by the mixture", "which cannot fall below"], sizes),
        "latent_space projections": table(
            ["in", "kNN accuracy, %"],
            [[PLACES[place], f"{100 * share:.1f}"] for place, share in numbers["projections"]["knn"].items()]),
        "latent_space walks": table(
            ["walk", "sure at the ends, %", "sure in the middle, %", "a third digit there, %",
             "length there / mean length"], walks),
        "latent_space one_image": table(
            ["distance by", "rank correlation with movement", "same digit among the 10 nearest, %"], measures),
        "latent_space vae_ae": table(["", "VAE", "autoencoder"], comparison_rows(numbers)),
    }  # fmt: skip


def comparison_rows(numbers: dict[str, Any]) -> list[list[str]]:
    """The rows of the table that compares VAE and autoencoder."""
    found = numbers["vae_ae"]
    middle = {kind: numbers["walks"]["walks"][f"{kind} straight"] for kind in KINDS}

    def row(title, show, key, source=found):
        return [title, *(show(source[kind][key]) if key in source[kind] else "" for kind in KINDS)]

    two = partial(shown, digits=2)
    return [
        row("reconstruction at z_mean, nats", shown, "reconstruction_at_mean"),
        row(f"kNN accuracy in {LATENTS} latents, %", percent, "knn"),
        row("samples from the prior: classifier sure, %", percent, "prior_sure"),
        row("... how many digits", shown, "prior_digits"),
        row("samples from a fitted Gaussian: classifier sure, %", percent, "fitted_sure"),
        row("... how many digits", shown, "fitted_digits"),
        row("midpoints of straight walks: classifier sure, %", percent, "sure_middle", middle),
        row("latents as they are: distance from N(0, 1), KS", two, "raw_ks"),
        row("... KL to N(0, I) by moments, nats", two, "moments_kl"),
        row("standardised: distance from N(0, 1), KS", two, "ks"),
        row("... skew", two, "skew_abs"),
        row("... excess kurtosis", two, "excess_kurtosis_abs"),
        row("... KL to N(0, I) by correlations, nats", two, "correlation_kl"),
    ]


if __name__ == "__main__":
    raise SystemExit(run_study(STUDY, run))
