"""A trained run for experiments, scripts and notebooks: its settings, its report, its networks and its data.

    from experiments.load import load

    run = load("mnist-ce-z20")                # by its name or its folder
    z_mean, z_log_std = run.encode(images)    # uint8, or floats in [0, 1]: (N, H, W, C)
    images = run.decode(z_mean)               # brightness in [0, 1]

TensorFlow starts when the networks are first used, so that a command that only reads files does without.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from utils import data, report, runs
from utils.best import check_kept
from utils.console import Problem, Say
from utils.dataset import TEST_BINARIZATION_KEY, Dataset, Images, LazyImages, binarized
from utils.settings import Settings, from_params

ROUNDING = 1e-5  # by which a brightness may miss [0, 1], as resized images do


def load(run: str | Path, best: bool = False, output_dir: str | None = None, say: Say = print) -> "Run":
    """A run by its name, in the folder `output_dir` (default: OUTPUT_DIR of params.py), or by its own folder.

    Its weights are those of the last checkpoint or, with `best`, of the one that was best on the images of
    HELD_OUT. `say` is given notes for the user. Raises SettingsError and runs.RunError.
    """
    folder = runs.find(str(run), output_dir or from_params().output_dir, "run")
    if best:
        check_kept(folder)
    found = Run(folder, "best" if best else "step", say)
    found.vae  # noqa: B018 (read now, because whatever is wrong with it should be reported here)
    return found


def load_vae(folder: Path, settings: Settings, image_shape: tuple[int, ...], kind: str = "step") -> Any:
    """The VAE (main.VAE) of a run's newest checkpoint of a kind (Run), for images (B, *image_shape).

    Raises runs.RunError.
    """
    import main  # here, because it brings TensorFlow along
    from utils import checkpoints
    from utils.start import tf

    tf.get_logger().setLevel("ERROR")  # it warns of functions that are traced for each number of images
    vae = main.build_vae(settings, image_shape)
    checkpoints.load_weights(vae, folder, kind)
    return vae


@dataclass(frozen=True)
class Run:
    """A run in its folder. Each part is read when it is first asked for, and kept.

    `kind` is that of the checkpoint to take: "best" or, of the last one, "step". Images are NumPy arrays (N, H, W, C):
    uint8, or floats in [0, 1]; grey ones may be (N, H, W). They are worked on in batches. Latents are (N, L), with
    NOISE_DIM (N, L + NOISE_DIM). Whatever is given in another form raises ValueError. Parts of the folder that are
    missing or damaged raise runs.RunError, and data that are not there DataError.
    """

    folder: Path
    kind: str = "step"
    say: Say = print

    # --- what is in the folder ----------------------------------------------------------------------------------------
    @cached_property
    def settings(self) -> Settings:
        """What it was trained with, by the names of params.py in lower case. Raises SettingsError."""
        return runs.saved_settings(self.folder, self.say)

    @property
    def is_finished(self) -> bool:
        """Whether it has been trained to its end, and has a report."""
        return (self.folder / "report.json").exists()

    @cached_property
    def report(self) -> dict[str, Any]:
        """The numbers of the report, report.json."""
        path = self.folder / "report.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise runs.RunError(f"{self.folder} has no report: it is not finished") from None
        except ValueError as error:
            raise runs.RunError(f"{path} cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise runs.RunError(f"{path} is not what a run wrote")
        return found

    def history(self, split: str) -> list[dict[str, Any]]:
        """The lines of history.jsonl of a split: "train", each a mean over some steps, or "test", one an epoch."""
        return [line for line in runs.read_history(self.folder) if line["split"] == split]

    # --- what it was trained on ---------------------------------------------------------------------------------------
    @cached_property
    def _dataset(self) -> Dataset:
        return data.prepare(self.settings, self.say, self.folder)

    def dataset(self) -> Dataset:
        """Its images, as training had them: train_images and test_images, uint8 (N, H, W, C), train_labels, ...

        With BINARIZE = dynamic the test images are black and white, and the training images grey.
        """
        return self._dataset

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images."""
        return tuple(runs.read_params(self.folder).get("image_shape") or self.dataset().train_images.shape[1:])

    # --- what it has learned ------------------------------------------------------------------------------------------
    @cached_property
    def vae(self) -> Any:
        """The networks and the prior, main.VAE."""
        return load_vae(self.folder, self.settings, self.image_shape, self.kind)

    def encode(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """The posterior q(z|x) of each image: z_mean and z_log_std, (N, L) each. Noise latents are N(0, 1)."""
        from experiments import latent

        return latent.encode(self.vae.encoder, self._checked(images))

    def decode(self, z: np.ndarray) -> np.ndarray:
        """The brightness that latents (N, L) are decoded to, in [0, 1]: (N, H, W, C)."""
        import main

        z, latents = np.asarray(z, np.float32), self.settings.latent_dim + self.settings.noise_dim
        if z.ndim != 2 or z.shape[1] != latents or not len(z):
            raise ValueError(f"z: the shape {z.shape} is not allowed; (N, {latents}) is, with N at least 1")
        if not np.isfinite(z).all():
            raise ValueError("z: NaN and infinity are not allowed; finite numbers are")
        return main.decode(self.vae, z)

    def reconstruct(self, images: Images) -> np.ndarray:
        """The brightness that the posterior means of images are decoded to, (N, H, W, C)."""
        import main

        return main.reconstruct(self.vae, self._checked(images))

    def sample(self, count: int, seed: int | None = None) -> np.ndarray:
        """Images of the model's own, brightness (count, H, W, C), decoded from draws from the prior.

        A count of 100 and the run's own seed, which is the default, give the images of samples_*.png.
        """
        import main
        from utils.chance import GRID_LATENTS, random_key

        if self.settings.autoencoder:
            raise ValueError(f"sample: {report.no_likelihood(self.settings)}")
        seed = self.settings.seed if seed is None else seed
        check_whole("count", count, 1)
        check_whole("seed", seed, 0)
        return main.decode(self.vae, main.sample_prior(self.vae, count, random_key(seed, GRID_LATENTS, 0)))

    # --- how likely images are ----------------------------------------------------------------------------------------
    @cached_property
    def _evaluate(self) -> Any:
        import main
        from utils.evaluation import compile_evaluation

        return compile_evaluation(self.vae, self.settings, main.loss_terms)

    def terms(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """The reconstruction loss (N,) and the KL of each latent (N, L) in nats, by one draw of z for each image.

        The draws depend on an image's place. All test images, in their order, have those of the report. A learned prior
        has one KL of all latents, (N, 1); of a plain autoencoder it is 0.
        """
        return tuple(self._evaluate(self._as_tested(images))[:2])

    def elbo(self, images: Images) -> np.ndarray:
        """The ELBO of each image, (N,) nats, by one draw of z: -(reconstruction loss + KL), as in the report.

        Where the loss is no likelihood that is no ELBO either, and a line says so. Raises ValueError for a plain
        autoencoder, which has none.
        """
        if self.settings.autoencoder:
            raise ValueError(f"elbo: {report.no_likelihood(self.settings)}")
        reconstruction, kl = self.terms(images)
        if report.kind(self.settings) == "none":
            self.say(f"note       elbo: here {report.NO_ELBO}. {report.no_likelihood(self.settings)}")
        return -(reconstruction + kl.sum(axis=1))

    def log_likelihood(self, images: Images, samples: int = 128) -> np.ndarray:
        """log p(x) of each image, (N,) nats, estimated by importance sampling with so many draws of z.

        It is a lower bound, and nearer to log p(x) the more draws there are (Burda et al. 2015, eq. 8). Of a loss with
        a learned width on grey pixels it is a log-density. Raises ValueError where the loss is neither.
        """
        import main
        from utils.evaluation import estimate_log_likelihood

        if report.kind(self.settings) == "none":
            raise ValueError(f"log_likelihood: {report.no_likelihood(self.settings)}")
        check_whole("samples", samples, 1)
        settings = self.settings.model_copy(update={"nll_samples": samples})
        return estimate_log_likelihood(self.vae, settings, self._as_tested(images), main.reconstruction_loss)[0]

    # --- images -------------------------------------------------------------------------------------------------------
    def _checked(self, images: Images) -> Images:
        """Images (N, H, W, C) of this run's shape: uint8, or float32 in [0, 1]. Raises ValueError."""
        images = images if isinstance(images, LazyImages) else np.asarray(images)
        height, width, channels = self.image_shape
        if channels == 1 and images.shape[1:] == (height, width):
            images = images[..., np.newaxis]
        if images.shape[1:] != self.image_shape or len(images.shape) != 4 or not len(images):
            allowed = f"(N, {height}, {width}, {channels}) is, with N at least 1"
            raise ValueError(f"images: the shape {images.shape} is not allowed; {allowed}")
        if isinstance(images, LazyImages) or images.dtype == np.uint8:
            return images
        if images.dtype == bool:
            return np.float32(images)
        floats, allowed = np.issubdtype(images.dtype, np.floating), "uint8 (0 to 255) and floats in [0, 1] are"
        if not floats:
            raise ValueError(f"images: the type {images.dtype} is not allowed; {allowed}")
        if images.size and not (images.min() >= -ROUNDING and images.max() <= 1 + ROUNDING):  # of NaN neither is true
            raise ValueError(f"images: values from {images.min():g} to {images.max():g} are not allowed; {allowed}")
        return np.float32(images)

    def _as_tested(self, images: Images) -> Images:
        """The images as their likelihood is taken: with BINARIZE = dynamic black and white.

        Grey ones are drawn by the fixed key of the test images; then `say` is given a line.
        """
        images = self._checked(images)
        is_so = isinstance(images, LazyImages) and images is self.dataset().test_images
        if self.settings.binarize != "dynamic" or is_so:
            return images
        if isinstance(images, np.ndarray) and images.dtype != np.uint8:
            images = np.uint8(np.rint(images.clip(0, 1) * 255))
        binary = binarized(images, TEST_BINARIZATION_KEY)
        if isinstance(images, LazyImages) or not np.array_equal(binary, images):
            self.say("note       grey pixels are drawn black or white, by the fixed draw that test images have")
        return binary


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless a value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: {value!r} is not allowed; an integer of at least {least} is")


# --- commands on a run ------------------------------------------------------------------------------------------------
def read_run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for, with RUN, --output-dir and --best added to the parser, as in parse_run."""
    add_run(parser)
    return parse_run(parser, argv)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add RUN, --output-dir and --best to a parser."""
    parser.add_argument("run", metavar="RUN", help="the run: its name, or its folder")
    folder = "folder that holds the runs [default OUTPUT_DIR of params.py]"
    parser.add_argument("--output-dir", metavar="DIR", help=folder)
    kept = "take the checkpoint that was best on the images of HELD_OUT [default the last one]"
    parser.add_argument("--best", dest="kind", action="store_const", const="best", default="step", help=kept)


def parse_run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for: `run` is the folder of RUN, `kind` that of the checkpoint to take, as in Run."""
    asked = parser.parse_args(argv)
    try:
        asked.run = runs.find(asked.run, asked.output_dir or from_params().output_dir, "RUN")
        if asked.kind == "best":
            check_kept(asked.run)
    except Problem as problem:
        parser.error(str(problem))
    return asked
