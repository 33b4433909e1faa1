"""What a run shows of its model, as files: grids, film, manifold, the projector's data, and curves."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from utils.dataset import SHOWN_OF_A_LABEL, Dataset
from utils.files import write_whole

PAPER = 255  # the brightness between and around images
SPRITE_SIDE = 2_800  # pixels
CAPTIONS = {"samples": "samples from the prior", "reconstructions": "test images over their reconstructions"}
CURVES = {
    "objective": "objective (what is minimised)",
    "reconstruction": "reconstruction loss (nats per image)",
    "kl": "KL (nats per image)",
    "kl_weight": "weight of the KL",
}

Decode = Callable[[np.ndarray], np.ndarray]  # latents (N, L) -> brightness (N, H, W, C) in [0, 1]
Reconstruct = Callable[[np.ndarray], np.ndarray]  # uint8 images (N, H, W, C) -> brightness, the same shape


# --- from images to a file --------------------------------------------------------------------------------------------
def to_uint8(images: np.ndarray) -> np.ndarray:
    """Brightness in [0, 1], any shape, as whole numbers 0..255; uint8 images are returned as they are."""
    if images.dtype == np.uint8:
        return images
    return np.clip(np.rint(np.asarray(images) * 255.0), 0, 255).astype(np.uint8)


def grid(images: np.ndarray, columns: int, gap: int = 2, pair_rows: bool = False) -> np.ndarray:
    """Lay images (N, H, W, C) out row by row, `gap` pixels apart; return (height, width, C) as uint8.

    With `pair_rows` every second gap between rows is wider, so that rows are read in pairs. A last row that is not full
    is filled up with paper.
    """
    images = to_uint8(images)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    tops = [gap + row * (height + gap) + (row // 2 * 2 * gap if pair_rows else 0) for row in range(rows)]
    sheet = np.full((tops[-1] + height + gap, gap + columns * (width + gap), channels), PAPER, np.uint8)
    for index, image in enumerate(images):
        top, left = tops[index // columns], gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def captioned(sheet: np.ndarray, caption: str, scale: int = 2) -> Image.Image:
    """A grid (H, W, C), enlarged `scale` times without smoothing, with one line of text below it."""
    sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    strip = np.full((26, *sheet.shape[1:]), PAPER, np.uint8)
    picture = Image.fromarray(np.concatenate((sheet, strip)).squeeze())
    place, font = (6, len(sheet) + 12), ImageFont.load_default(size=15)
    ImageDraw.Draw(picture).text(place, caption, fill="black", font=font, anchor="lm")
    return picture


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, whole or not at all. Raises OSError."""
    picture.save(content := io.BytesIO(), format="PNG")
    write_whole(path, content.getvalue())


def save_gif(path: Path, frames: Sequence[Path], milliseconds: int = 300) -> None:
    """Turn picture files into an endless GIF whose last frame stays for two seconds. Raises OSError.

    The frames have to differ, as captions with the epoch make them: Pillow merges frames that are the same.
    """
    first, *others = [Image.open(io.BytesIO(frame.read_bytes())) for frame in frames]
    durations = [milliseconds] * len(others) + [2_000]
    first.save(content := io.BytesIO(), format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    write_whole(path, content.getvalue())


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the path's suffix, .png or .jpg, whole or not at all. Raises OSError."""
    figure.savefig(content := io.BytesIO(), format=path.suffix[1:], dpi=110)
    write_whole(path, content.getvalue())


# --- the grids and their film -----------------------------------------------------------------------------------------
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


# --- the latents ------------------------------------------------------------------------------------------------------
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
    height, width, channels = images.shape[1:]
    count = min(len(images), (SPRITE_SIDE // max(height, width)) ** 2)
    side = int(np.ceil(np.sqrt(count)))  # the projector wants a square sprite
    shown = 255 - images[:count] if channels == 1 else images[:count]  # ink on paper, as points are drawn on white
    sprite = grid(shown, columns=side, gap=0).squeeze()
    sprite = np.pad(sprite, [(0, sprite.shape[1] - sprite.shape[0])] + [(0, 0)] * (sprite.ndim - 1))
    save_png(folder / "sprite.png", Image.fromarray(sprite))
    for name, values, form in (("latents.tsv", z_mean, "%.4f"), ("labels.tsv", labels, "%d")):
        np.savetxt(content := io.BytesIO(), values[:count], form, delimiter="\t")
        write_whole(folder / name, content.getvalue())
    config = (
        'embeddings {\n  tensor_name: "test images, z_mean"\n  tensor_path: "latents.tsv"\n'
        '  metadata_path: "labels.tsv"\n'
        f'  sprite {{ image_path: "sprite.png" single_image_dim: {width} single_image_dim: {height} }}\n}}\n'
    )
    write_whole(folder / "projector_config.pbtxt", config.encode())


# --- the curves -------------------------------------------------------------------------------------------------------
def save_curves(path: Path, history: list[dict[str, Any]], title: str) -> None:
    """Draw objective, reconstruction, KL and KL weight over steps, for training and test images. Raises OSError.

    `history` holds the lines of history.jsonl. The axes of objective and losses leave out the steep fall of the first
    twentieth, so that the rest can be read.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    figure.suptitle(title)
    for axes, (name, label) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        for split, style in (("train", {}), ("test", {"marker": "o", "markersize": 3})):
            lines = [line for line in history if line["split"] == split and line[name] is not None]
            steps, values = ([line[key] for line in lines] for key in ("step", name))
            axes.plot(steps, values, label=split, linewidth=1, **style)
        later = [line[name] for line in history if line[name] is not None and line["step"] >= history[-1]["step"] / 20]
        if later and name != "kl_weight":
            room = 0.05 * (max(later) - min(later)) or 1
            axes.set_ylim(min(later) - room, max(later) + room)
        axes.set(xlabel="step", title=label)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(path, figure)
