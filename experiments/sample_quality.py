"""Which loss and which prior make the best samples, and does the prior or the decoder spoil them?

    python -m experiments.sample_quality    # 10 minutes on two cores

Trains the VAE of the Analysis with three losses, as a plain autoencoder, and with each learned prior. It judges samples
from the prior, samples from a mixture of Gaussians fitted to the latents, and reconstructions. The judge is their
Frechet distance from the test images in the features of a digit classifier that is trained here (docs/analysis.md, 7).
The autoencoder samples from N(0, I), which it was not trained with. Images are compared as brightness, because draws of
binary pixels are speckled. Writes sample_quality.json and sample_quality.png to images/.
"""

from typing import Any

import numpy as np

from experiments.results import over_seeds, percent, publish, shown, table
from experiments.study import BASE, Study, Trained, read_command_line, repeated, run_study, train_groups

if __name__ == "__main__":
    STUDY = read_command_line("sample_quality", __doc__)  # before the seconds that TensorFlow takes

from matplotlib.figure import Figure

import main
from experiments import classifier, figures, latent
from experiments.samples import dataset_of, digit_classifier, judge_samples, prior_samples
from utils import pictures
from utils.batches import brightness
from utils.dataset import Dataset, binarize

DENSITY = {"decoder_scale": "learned", "binarize": "none"}
LEARNED = {"prior_components": 100, "prior_layers": 6, "prior_units": 128}  # a learned prior uses those that it needs
MODELS = {  # the name in table and figure, and the settings that differ from the VAE of the Analysis
    "CE": {},
    "MSE, learned scale": {"loss": "mse", **DENSITY},
    "AD, learned scale": {"loss": "ad", **DENSITY},
    "CE autoencoder": {"autoencoder": True},
    "CE, mixture prior": {"prior": "mixture", **LEARNED},
    "CE, VampPrior": {"prior": "vampprior", **LEARNED},
    "CE, RealNVP prior": {"prior": "realnvp", **LEARNED},
}
QUICK_MODELS = ("CE", "CE autoencoder", "CE, mixture prior")
SAMPLES = 10_000  # in a set: as many as there are test images
FITTED, QUICKLY_FITTED = 20_000, 3_000  # the mixture is fitted to the latents of so many training images
COMPONENTS = 20  # its Gaussians
SETS = {"prior": "samples from the prior", "mixture": "from a fitted mixture", "reconstructions": "reconstructions"}
SHOWN = 64  # samples of each model in the figure
PIXELS, CHOICE, NOISE = 200, 201, 202  # the purpose of a NumPy draw, used with the seed as its key


def chosen_images(study: Study, grey: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The training images for the mixture, and those of them to reconstruct: as many as there are test images."""
    order = np.random.default_rng((study.seed, CHOICE)).permutation(len(grey.train_images))
    fitted = order[: QUICKLY_FITTED if study.quick else FITTED]
    return fitted, fitted[: min(SAMPLES, len(grey.test_images))]


def sets_of(study: Study, trained: Trained, grey: Dataset) -> dict[str, np.ndarray]:
    """The three sets of images of a training, brightness (N, H, W, C) each, by the keys of SETS."""
    s, vae = trained.settings, trained.vae
    fitted, reconstructed = chosen_images(study, grey)
    images = grey.train_images[fitted]
    if s.binarize == "dynamic":  # as in training
        images = binarize(images, (s.seed, PIXELS))
    z_mean, z_log_std = latent.encode(vae.encoder, images)
    z = z_mean
    if not s.autoencoder:
        noise = np.random.default_rng((s.seed, NOISE)).standard_normal(z.shape, np.float32)
        z = z_mean + np.exp(z_log_std) * noise
    count = len(reconstructed)
    mixture = latent.fit_mixture(z, COMPONENTS, s.seed)
    return {
        "prior": prior_samples(vae, count, s.seed),
        "mixture": main.decode(vae, latent.draw_mixture(mixture, count, s.seed)),
        "reconstructions": main.decode(vae, z_mean[:count]),
    }


def measure(sets: dict[str, np.ndarray], judge: Any, real: np.ndarray) -> dict[str, float]:
    """The distance of each set from images with features (N, F), and the share of samples that are clear digits."""
    distances = classifier.frechet_distances(judge, sets, real)
    return distances | {"sure": judge_samples(judge, sets["prior"])["sure"]}


def save_figure(study: Study, drawn: dict[str, np.ndarray], models: dict[str, Any], floor: float) -> None:
    """Draw samples (N, H, W, C) of each model beside training images, in the order of their distance."""
    rows, columns = -(-len(drawn) // 4), 4
    figure = Figure(figsize=(10, 0.3 + 2.75 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, images) in zip(panels, drawn.items(), strict=False):
        distance = f"{models[name]['prior']['mean']:.1f}" if name in models else f"{floor:.2f}, the floor"
        figures.draw_images(axes, images[:SHOWN], 8, f"{name}: {distance}")
    figure.suptitle("samples, best first, by their Frechet distance in the features of a digit classifier", fontsize=10)
    pictures.save_figure(study.images / "sample_quality.png", figure)


def ranked(models: dict[str, Any]) -> list[str]:
    """The names of the models, best samples first."""
    return sorted(models, key=lambda name: models[name]["prior"]["mean"])


def run(study: Study) -> None:
    """Train, sample, judge, draw and publish."""
    names = QUICK_MODELS if study.quick else tuple(MODELS)
    results = train_groups(study, {name: repeated(study, **MODELS[name]) for name in names})

    grey = dataset_of(study, "none")
    fitted, reconstructed = chosen_images(study, grey)
    judge = digit_classifier(study)
    real = classifier.features(judge, brightness(grey.test_images[: len(reconstructed)]))
    training_images = brightness(grey.train_images[reconstructed]).numpy()
    floor = classifier.frechet_distance(classifier.features(judge, training_images), real)

    models, drawn = {}, {"training images": training_images}
    for name, trainings in results.items():
        measured = []
        for trained in trainings:
            sets = sets_of(study, trained, grey)
            drawn.setdefault(name, sets["prior"][:SHOWN])  # of the first seed
            measured.append(measure(sets, judge, real))
        models[name] = over_seeds(measured)
        if trainings[0].report["test_nll"] is not None:
            models[name] |= over_seeds([{"nll": trained.report["test_nll"]} for trained in trainings])
    order = ranked(models)
    save_figure(study, {name: drawn[name] for name in ("training images", *order)}, models, floor)
    numbers = {
        "models": {name: models[name] for name in order},
        "floor": floor,
        "images_in_a_set": len(reconstructed),
        "mixture": {"components": COMPONENTS, "images": len(fitted)},
        "classifier": "trained here; not comparable with an Inception FID",
    }
    publish(study, numbers, {"sample_quality": table_of(models, floor)})


def table_of(models: dict[str, Any], floor: float) -> str:
    """A row for real images, then a row for each model, best samples first."""
    nll = f"NLL of binarised test images, nats, K = {BASE['nll_samples']}"
    headers = ("model", *SETS.values(), "samples sure, %", nll)
    rows = [("training images", "", "", f"{floor:.2f}", "", "")]
    for name in ranked(models):
        found = models[name]
        worth = shown(found["nll"]) if "nll" in found else ""
        rows.append((name, *(shown(found[key]) for key in SETS), percent(found["sure"]), worth))
    return table(headers, rows)


if __name__ == "__main__":
    raise SystemExit(run_study(STUDY, run))
