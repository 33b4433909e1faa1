"""What a run shows of its model: grids, the film of its training, the map of two latents, the projector's data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats
from PIL import Image

from utils.dataset import SHOWN_OF_A_LABEL, Dataset
from utils.files import write_whole
from utils.images import captioned, grid, save_gif, save_png, to_uint8

SPRITE_SIDE = 2_800  # pixels

Decode = Callable[[np.ndarray], np.ndarray]  # latents (N, L) -> brightness (N, H, W, C) in [0, 1]
Reconstruct = Callable[[np.ndarray], np.ndarray]  # uint8 images (N, H, W, C) -> brightness, the same shape


def samples(decode: Decode, latents: np.ndarray) -> np.ndarray:
    """The decoded `latents` (N, L) in rows of ten: a grid, uint8 (H', W', C)."""
    return grid(decode(latents), columns=10)


def reconstructions(reconstruct: Reconstruct, dataset: Dataset) -> np.ndarray:
    """The first three test images of each label, each over its reconstruction: a grid, uint8 (H', W', C).

    If there are fewer than ten labels it has more of each, to fill a row of ten.
    """
    labels, counts = np.unique(dataset.test_labels, return_counts=True)
    rows = SHOWN_OF_A_LABEL
    each = max(1, min(-(-10 // len(labels)), counts.min() // rows))  # in a row
    of_label = [np.flatnonzero(dataset.test_labels == label)[: rows * each].reshape(rows, each) for label in labels]
    chosen = np.concatenate(of_label, axis=1)  # (rows, columns)
    originals = [dataset.test_images[row] for row in chosen]
    rows = [images for original in originals for images in (original, to_uint8(reconstruct(original)))]
    return grid(np.concatenate(rows), columns=chosen.shape[1], pair_rows=True)


CAPTIONS = {"samples": "samples from the prior", "reconstructions": "test images over their reconstructions"}


def write_grids(folder: Path, epoch: int, grids: dict[str, np.ndarray]) -> None:
    """Write each grid as <name>_<epoch>.png, with its name's caption."""
    for name, sheet in grids.items():
        save_png(folder / f"{name}_{epoch:03}.png", captioned(sheet, f"epoch {epoch}: {CAPTIONS[name]}"))


def grids_of(folder: Path, name: str) -> list[Path]:
    """A run's grids called `name`, in the order of their epochs."""
    return sorted(folder.glob(f"{name}_[0-9]*.png"), key=lambda path: int(path.stem.rpartition("_")[2]))


def write_film(folder: Path, name: str) -> None:
    """Write training.gif from a run's grids called `name`, epoch by epoch."""
    save_gif(folder / "training.gif", grids_of(folder, name))


def write_manifold(folder: Path, decode: Decode) -> None:
    """Write manifold.png: a 2-D latent space decoded at 20 x 20 points that the prior makes equally likely."""
    quantiles = scipy.stats.norm.ppf((np.arange(20) + 0.5) / 20)
    across, up = np.meshgrid(quantiles, quantiles[::-1])  # the second latent grows upwards, as on a map
    sheet = grid(decode(np.stack([across.ravel(), up.ravel()], axis=1)), columns=20, gap=0)
    caption = f"z1 (across) and z2 (up) from {quantiles[0]:.2f} to {quantiles[-1]:.2f}: quantiles of the prior"
    save_png(folder / "manifold.png", captioned(sheet, caption))


def write_projector(folder: Path, z_mean: np.ndarray, labels: np.ndarray, images: np.ndarray) -> None:
    """Write what TensorBoard's projector shows: codes (N, L), labels (N,), thumbnails of uint8 images (N, H, W, C).

    Of larger images it shows the first ones, as many as the 10,000 of MNIST have pixels.
    """
    count = min(len(images), (SPRITE_SIDE // max(images.shape[1:3])) ** 2)
    z_mean, labels, images = z_mean[:count], labels[:count], images[:count]
    side = int(np.ceil(np.sqrt(count)))  # the projector wants a square sprite
    shown = 255 - images if images.shape[-1] == 1 else images  # ink on paper, as points are drawn on white
    sprite = grid(shown, columns=side, gap=0).squeeze()
    sprite = np.pad(sprite, [(0, sprite.shape[1] - sprite.shape[0])] + [(0, 0)] * (sprite.ndim - 1))
    save_png(folder / "sprite.png", Image.fromarray(sprite))
    rows = ("\t".join(f"{value:.4f}" for value in code) for code in z_mean)
    write_whole(folder / "latents.tsv", "".join(f"{row}\n" for row in rows).encode())
    write_whole(folder / "labels.tsv", "".join(f"{label}\n" for label in labels).encode())
    height, width = images.shape[1:3]
    config = (
        'embeddings {\n  tensor_name: "test images, z_mean"\n  tensor_path: "latents.tsv"\n'
        '  metadata_path: "labels.tsv"\n'
        f'  sprite {{ image_path: "sprite.png" single_image_dim: {width} single_image_dim: {height} }}\n}}\n'
    )
    write_whole(folder / "projector_config.pbtxt", config.encode())
