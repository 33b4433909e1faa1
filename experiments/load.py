"""A trained run for experiments, scripts and notebooks: its settings, its report, its networks and its data.

    from experiments.load import load

    run = load("mnist-ce-z20")                # by its name or its folder
    z_mean, z_log_std = run.encode(images)    # uint8, or floats in [0, 1]: (N, H, W, C)
    images = run.decode(z_mean)               # brightness in [0, 1]

TensorFlow starts when the networks are first used. So a command that only reads files does not need it.
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

ROUNDING = 1e-5  # a brightness may be outside [0, 1] by this much, because resizing rounds


def load(run: str | Path, best: bool = False, output_dir: str | None = None, say: Say = print) -> "Run":
    """Load a run by its name in the folder `output_dir` (default: OUTPUT_DIR of params.py), or by its own folder.

    It has the weights of the last checkpoint or, with `best`, of the one that was best on the images of HELD_OUT. `say`
    gets notes for the user. Raises SettingsError and runs.RunError.
    """
    folder = runs.find(str(run), output_dir or from_params().output_dir, "run")
    if best:
        check_kept(folder)
    found = Run(folder, "best" if best else "step", say)
    found.vae  # noqa: B018 (loaded now, so that any problem with it is reported here)
    return found


def load_vae(folder: Path, settings: Settings, image_shape: tuple[int, ...], kind: str = "step") -> Any:
    """The VAE (main.VAE) of a run's newest checkpoint of a `kind` (see Run), for images (B, *image_shape).

    Raises runs.RunError.
    """
    import main  # here, because it imports TensorFlow
    from utils import checkpoints
    from utils.start import tf

    tf.get_logger().setLevel("ERROR")  # else it warns because functions are traced again for each number of images
    vae = main.build_vae(settings, image_shape)
    checkpoints.load_weights(vae, folder, kind)
    return vae


@dataclass(frozen=True)
class Run:
    """A run in its folder. Each part is read when it is first used, and then kept.

    `kind` selects the checkpoint: "step" is the last one, "best" the best one. Images are NumPy arrays (N, H, W, C):
    uint8, or floats in [0, 1]; grey ones may be (N, H, W). They are processed in batches. Latents are (N, L), with
    NOISE_DIM (N, L + NOISE_DIM). Other input raises ValueError. Missing or damaged parts of the folder raise
    runs.RunError, and missing data raise DataError.
    """

    folder: Path
    kind: str = "step"
    say: Say = print

    # --- what is in the folder ----------------------------------------------------------------------------------------
    @cached_property
    def settings(self) -> Settings:
        """The settings of its training, by the names of params.py in lower case. Raises SettingsError."""
        return runs.saved_settings(self.folder, self.say)

    @property
    def is_finished(self) -> bool:
        """Whether its training is complete and it has a report."""
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
        """The lines of history.jsonl for a split: "train", each a mean over some steps, or "test", one per epoch."""
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
        """Decode latents (N, L) to brightness in [0, 1], (N, H, W, C)."""
        import main

        z, latents = np.asarray(z, np.float32), self.settings.latent_dim + self.settings.noise_dim
        if z.ndim != 2 or z.shape[1] != latents or not len(z):
            raise ValueError(f"z: the shape {z.shape} is not allowed; (N, {latents}) is, with N at least 1")
        if not np.isfinite(z).all():
            raise ValueError("z: NaN and infinity are not allowed; finite numbers are")
        return main.decode(self.vae, z)

    def reconstruct(self, images: Images) -> np.ndarray:
        """Decode the posterior means of images to brightness, (N, H, W, C)."""
        import main

        return main.reconstruct(self.vae, self._checked(images))

    def sample(self, count: int, seed: int | None = None) -> np.ndarray:
        """Sample new images, brightness (count, H, W, C), decoded from draws from the prior.

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
        """The reconstruction loss (N,) and the KL of each latent (N, L) in nats, from one draw of z for each image.

        The draw depends on the position of an image. All test images, in their order, get the draws of the report. A
        learned prior has one KL for all latents, (N, 1); for a plain autoencoder the KL is 0.
        """
        return tuple(self._evaluate(self._as_tested(images))[:2])

    def elbo(self, images: Images) -> np.ndarray:
        """The ELBO of each image, (N,) nats, from one draw of z: -(reconstruction loss + KL), as in the report.

        If the loss is no likelihood, the result is no ELBO, and a note says so. Raises ValueError for a plain
        autoencoder, which has no ELBO.
        """
        if self.settings.autoencoder:
            raise ValueError(f"elbo: {report.no_likelihood(self.settings)}")
        reconstruction, kl = self.terms(images)
        if report.kind(self.settings) == "none":
            self.say(f"note       elbo: here {report.NO_ELBO}. {report.no_likelihood(self.settings)}")
        return -(reconstruction + kl.sum(axis=1))

    def log_likelihood(self, images: Images, samples: int = 128) -> np.ndarray:
        """log p(x) of each image, (N,) nats, estimated by importance sampling with `samples` draws of z.

        It is a lower bound, and more draws bring it nearer to log p(x) (Burda et al. 2015, eq. 8). For a loss with a
        learned width on grey pixels it is a log-density. Raises ValueError if the loss gives neither.
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
        if images.size and not (images.min() >= -ROUNDING and images.max() <= 1 + ROUNDING):  # both are false for NaN
            raise ValueError(f"images: values from {images.min():g} to {images.max():g} are not allowed; {allowed}")
        return np.float32(images)

    def _as_tested(self, images: Images) -> Images:
        """The images in the form whose likelihood is measured: black and white with BINARIZE = dynamic.

        Grey ones are drawn with the fixed key of the test images; then `say` gets a line.
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
    """Add RUN, --output-dir and --best to the parser, and read the command line as parse_run does."""
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
    """What the command line asks for: `run` is the folder of RUN, and `kind` the kind of checkpoint, as in Run."""
    asked = parser.parse_args(argv)
    try:
        asked.run = runs.find(asked.run, asked.output_dir or from_params().output_dir, "RUN")
        if asked.kind == "best":
            check_kept(asked.run)
    except Problem as problem:
        parser.error(str(problem))
    return asked
