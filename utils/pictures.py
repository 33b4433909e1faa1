"""The pictures of a run, as files: grids, film, manifold, and the data for TensorBoard's projector."""

import io
import math
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Circle, Rectangle
from PIL import Image, ImageDraw, ImageFont

from utils.console import Say, shown
from utils.dataset import Dataset, label_name
from utils.files import write_whole
from utils.report import NO_ELBO
from utils.settings import Settings

PAPER = 255  # the brightness between and around images
SHOWN_OF_A_LABEL = 3  # test images per label in the grid of reconstructions, if there are that many
MOST_COLUMNS = 30  # of that grid
LONGEST_LABEL = 24  # letters, in a legend
WIDEST = 1_920  # pixels of a grid: the width of a screen
MANIFOLD = 1_120  # pixels: most of a manifold and of the codes beside it, before both are fitted to a screen
SPRITE_SIDE = 2_800  # pixels
FLOATS = 2**22  # brightness values, 17 MB, that are decoded at once for a grid; but at least one row
PROJECTED = 2_000_000  # most numbers in the codes that TensorBoard's projector reads
SCATTERED = 5_000  # most test images whose codes are drawn beside the manifold
FILM_PIXELS = 128 * 128 * 3  # values in an image; larger images get no frames of the first epoch: a grid has 100
CAPTIONS = {"samples": "samples from the prior", "reconstructions": "test images over their reconstructions"}

Line = dict[str, Any]  # of history.jsonl
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

    With `pair_rows` every second gap between rows is wider, so that rows are read in pairs. The rest of the last row is
    paper.
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
    """A grid (H, W, C), enlarged `scale` times without smoothing, with a caption below it, wrapped to its width.

    It is enlarged less, or shrunk, if it would be wider than a screen.
    """
    sheet = scaled(sheet, scale, WIDEST)
    size = max(15, sheet.shape[1] // 80)  # so that it can be read in a picture that is scaled down
    font, margin = ImageFont.load_default(size), size // 2
    lines = wrapped(caption, font, sheet.shape[1] - 2 * margin)
    strip = np.full((round(1.4 * size * len(lines)) + margin, *sheet.shape[1:]), PAPER, np.uint8)
    picture = Image.fromarray(np.concatenate((sheet, strip)).squeeze())
    for number, line in enumerate(lines):
        place = margin, len(sheet) + margin + round(1.4 * size * number)
        ImageDraw.Draw(picture).text(place, line, fill="black", font=font, anchor="lt")
    return picture


def scaled(sheet: np.ndarray, scale: int, widest: int) -> np.ndarray:
    """A grid (H, W, C), enlarged `scale` times. If that is wider than `widest`, it is left as it is, or shrunk."""
    height, width, channels = sheet.shape
    if scale * width <= widest:
        return sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    if width <= widest:
        return sheet
    size = widest, max(1, round(height * widest / width))
    return np.asarray(Image.fromarray(sheet.squeeze()).resize(size, Image.Resampling.BOX)).reshape(
        *size[::-1], channels
    )


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """The text in lines of at most `width` pixels; a word is broken only if it is wider than that."""
    for letters in range(len(text), 1, -1):
        lines = textwrap.wrap(text, letters)
        if all(font.getlength(line) <= width for line in lines):
            return lines
    return list(text)


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, whole or not at all. Raises OSError."""
    picture.save(content := io.BytesIO(), format="PNG")
    write_whole(path, content.getvalue())


def save_gif(path: Path, frames: Sequence[Path], milliseconds: int = 300) -> None:
    """Turn picture files into an endless GIF whose last frame stays for two seconds. Raises OSError.

    Smaller pictures get paper on the right and below. The frames have to differ, because Pillow merges equal frames;
    the step in the caption makes them differ.
    """
    pictures = [Image.open(io.BytesIO(frame.read_bytes())) for frame in frames]
    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    sheets = [Image.new(picture.mode, (width, height), "white") for picture in pictures]
    for sheet, picture in zip(sheets, pictures, strict=True):
        sheet.paste(picture)
    first, *others = sheets
    durations = [milliseconds] * len(others) + [2_000]
    first.save(content := io.BytesIO(), format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    write_whole(path, content.getvalue())


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the path's suffix, .png or .jpg, whole or not at all. Raises OSError."""
    figure.savefig(content := io.BytesIO(), format=path.suffix[1:], dpi=110)
    write_whole(path, content.getvalue())


# --- the grids and their film -----------------------------------------------------------------------------------------
def samples(decode: Decode, latents: np.ndarray) -> np.ndarray:
    """The decoded `latents` (N, L) as a grid with ten in a row, uint8 (H', W', C)."""
    return grid(np.concatenate([*decoded_rows(decode, latents, columns=10)]), columns=10)


def decoded_rows(decode: Decode, latents: np.ndarray, columns: int) -> Iterator[np.ndarray]:
    """The decoded `latents` (N, L) row by row, uint8 (columns, H, W, C); the last row may be shorter.

    The first row is decoded alone, then as many rows at a time as FLOATS allows.
    """
    first = to_uint8(decode(latents[:columns]))
    yield first
    at_once = columns * max(1, FLOATS // first.size)
    for start in range(columns, len(latents), at_once):
        some = to_uint8(decode(latents[start : start + at_once]))
        yield from (some[row : row + columns] for row in range(0, len(some), columns))


def reconstructions(reconstruct: Reconstruct, dataset: Dataset) -> np.ndarray:
    """The first three test images of each label, each above its reconstruction: a grid, uint8 (H', W', C).

    With fewer than ten labels there are more images of each, to fill rows of ten. If a label has fewer than three
    images, or there are more than 30 labels, the grid shows the first of each label, then the second of each, and so
    on: 30 in all.
    """
    rows = shown_of(dataset.test_labels)
    columns, sheet = len(rows[0]), []
    for row in rows:
        original = dataset.test_images[row]
        rest = np.full((columns - len(row), *original.shape[1:]), PAPER, np.uint8)
        for images in (original, to_uint8(reconstruct(original))):
            sheet += [images, rest]
    return grid(np.concatenate(sheet), columns, pair_rows=True)


def shown_of(test_labels: np.ndarray) -> list[np.ndarray]:
    """The positions of the test images to show, row by row."""
    labels, inverse, counts = np.unique(test_labels, return_inverse=True, return_counts=True)
    if counts.min() < SHOWN_OF_A_LABEL or len(labels) > MOST_COLUMNS:
        by_label = np.argsort(inverse, kind="stable")
        rank = np.empty(len(inverse), int)  # 0, 1, ... within each label
        rank[by_label] = np.arange(len(inverse)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.lexsort((inverse, rank))[: 10 * SHOWN_OF_A_LABEL]
        return [chosen[start : start + 10] for start in range(0, len(chosen), 10)]
    each = max(1, min(-(-10 // len(labels)), counts.min() // SHOWN_OF_A_LABEL))  # in a row
    of_label = [np.flatnonzero(inverse == label)[: SHOWN_OF_A_LABEL * each] for label in range(len(labels))]
    return [*np.concatenate([found.reshape(SHOWN_OF_A_LABEL, each) for found in of_label], axis=1)]


def write_grids(folder: Path, s: Settings, grids: dict[str, np.ndarray], epoch: int, line: Line | None) -> None:
    """Write each grid as <name>_<epoch>.png. `line` is the newest test line; None before training."""
    for name, sheet in grids.items():
        about = caption(s, folder.name, CAPTIONS[name], line)
        save_png(folder / f"{name}_{epoch:03}.png", captioned(sheet, about))


def grids_of(folder: Path, name: str) -> list[Path]:
    """A run's grids called `name`, in the order of their epochs or steps. Other file names are ignored."""
    found = folder.glob(f"{name}_*.png")
    return sorted((p for p in found if re.fullmatch(rf"{name}_[0-9]+\.png", p.name) and p.is_file()), key=number_of)


def number_of(path: Path) -> int:
    """The epoch or step at the end of a picture's name."""
    return int(path.stem.rpartition("_")[2])


def film_steps(steps_per_epoch: int, image_shape: tuple[int, ...]) -> list[int]:
    """The steps within the first epoch after which the film has a frame: 1, 2, 4, 8, ...; none for large images."""
    if math.prod(image_shape) > FILM_PIXELS:
        return []
    return [2**power for power in range((steps_per_epoch - 1).bit_length())]


def names_of(s: Settings) -> list[str]:
    """The names of a run's grids; the film shows the first. An autoencoder has no prior to sample from."""
    return ["reconstructions"] if s.autoencoder else ["samples", "reconstructions"]


def write_frame(folder: Path, s: Settings, name: str, sheet: np.ndarray, line: Line) -> None:
    """Write the grid that the film shows after the step of `line`, as film/<name>_<step>.png."""
    (folder / "film").mkdir(exist_ok=True)
    about = caption(s, folder.name, CAPTIONS[name], line)
    save_png(folder / "film" / f"{name}_{line['step']}.png", captioned(sheet, about))


def write_film(folder: Path, name: str, say: Say) -> None:
    """Write training.gif from a run's grids called `name`, with small steps early and large steps late.

    It shows the untrained network, then the frames of the first epoch, then the grids of the `thinned` epochs. `say`
    gets a line if pictures cannot be read.
    """
    grids = {number_of(path): path for path in grids_of(folder, name)}
    before = [path for epoch, path in grids.items() if epoch == 0]
    later = [grids[epoch] for epoch in thinned([epoch for epoch in grids if epoch > 0])]
    frames = before + grids_of(folder / "film", name) + later
    whole = [path for path in frames if is_whole(path)]
    if len(whole) < len(frames):
        first = next(path for path in frames if path not in whole)
        say(f"note       {len(frames) - len(whole):,} pictures cannot be read, e.g. {first}; training.gif lacks them")
    if whole:
        save_gif(folder / "training.gif", whole)


def is_whole(path: Path) -> bool:
    """Whether a picture can be read to its end."""
    try:
        with Image.open(path) as picture:
            picture.load()
        return True
    except Exception:  # Pillow's decoders raise exceptions of any kind
        return False


def thinned(epochs: Sequence[int]) -> list[int]:
    """The epochs that the film shows, in rising order.

    These are the first epoch at or after each rounded power of the square root of 2 (1, 1.4, 2, 2.8, 4, ...), and the
    last epoch. Of 100 epochs these are 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 100.
    """
    if not epochs:
        return []
    powers = (round(2 ** (half / 2)) for half in range(2 * epochs[-1].bit_length()))
    first = (next((epoch for epoch in epochs if epoch >= power), epochs[-1]) for power in powers)
    return sorted({*first, epochs[-1]})


# --- captions ---------------------------------------------------------------------------------------------------------
def caption(s: Settings, run: str, shown: str, line: Line | None) -> str:
    """The caption, which makes a picture self-contained: run, epoch, step, what is shown, and the ELBO of `line`."""
    if words := settings_in_words(s, named=not s.run_name):
        run = f"{run} ({', '.join(words)})"
    if line is None:
        return f"{run}, {'not trained further yet' if s.start_from else 'untrained'}: {shown}"
    return f"{run}, epoch {math.ceil(line['epoch'])}, step {line['step']:,}: {shown}; {score(line)}"


def score(line: Line) -> str:
    """The score in a line of the history: its ELBO, else -(loss + KL), else its reconstruction loss."""
    names = {"elbo": "ELBO", NO_ELBO: NO_ELBO, "reconstruction": "reconstruction loss"}
    name = next(name for name in names if line.get(name) is not None)
    return f"{line['split']} {names[name]} {line[name]:,.1f} nats"


def settings_in_words(s: Settings, named: bool = False) -> list[str]:
    """The settings that say what is modelled and how, without those that have their usual values.

    If the run has a derived name (utils/runs.py), `named`, the settings in that name are left out too.
    """
    width = " with a learned width" if s.decoder_scale == "learned" else ""
    mean = " as a mean over pixels" if s.reconstruction_reduction == "mean" else ""
    in_name = {
        s.dataset: True,
        f"labels {', '.join(map(str, s.labels))}": s.labels,
        f"{s.architecture} network": s.architecture != "mlp",
        "plain autoencoder": s.autoencoder,
        f"loss {s.loss}{width}": True,
        f"{s.latent_dim} latent{'s' * (s.latent_dim > 1)}": True,
        f"{s.noise_dim} of pure noise": s.noise_dim,
        f"{s.prior} prior": s.prior != "standard",
    }
    found = ({} if named else in_name) | {
        "not binarised": s.binarize == "none",
        f"loss{mean}": mean,
        f"{s.bound.upper()} by {s.bound_samples} samples": s.bound != "elbo" or s.bound_samples > 1,
        f"KL weight {s.kl_weight_end:g}": s.kl_weight_end != 1 and not s.autoencoder,
        f"{s.free_bits:g} free nats per latent": s.free_bits,
    }
    return [words for words, matter in found.items() if matter]


# --- the latents ------------------------------------------------------------------------------------------------------
def write_manifold(
    folder: Path, s: Settings, decode: Decode, z_mean: np.ndarray, labels: np.ndarray, names: Sequence[str], line: Line
) -> None:
    """Write manifold.png: on the left the codes (N, 2) of test images, coloured by their labels (N,); on the right the
    2-D latent space, decoded at 20 x 20 points that are evenly spaced in the prior's quantiles. `line` is the last test
    line.
    """
    quantiles = scipy.stats.norm.ppf((np.arange(20) + 0.5) / 20)
    across, up = np.meshgrid(quantiles, quantiles[::-1])  # the second latent grows upwards
    rows = decoded_rows(decode, np.stack([across.ravel(), up.ravel()], axis=1), columns=20)
    right = np.concatenate([scaled(grid(row, columns=20, gap=0), 2, MANIFOLD) for row in rows])
    side = max(600, min(len(right), MANIFOLD))
    left = draw_codes(z_mean[:SCATTERED], labels[:SCATTERED], names, quantiles[-1], side)
    both = np.full((max(len(left), len(right)), left.shape[1] + right.shape[1], 3), PAPER, np.uint8)
    both[: len(left), : left.shape[1]], both[: len(right), left.shape[1] :] = left, right
    shown = f"where the encoder puts {min(SCATTERED, len(z_mean)):,} test images (left), and what the decoder makes of"
    shown += f" the square within, z1 across and z2 up from {quantiles[0]:.2f} to {quantiles[-1]:.2f} (right)"
    save_png(folder / "manifold.png", captioned(both, caption(s, folder.name, shown, line), scale=1))


def draw_codes(z_mean: np.ndarray, labels: np.ndarray, names: Sequence[str], edge: float, side: int) -> np.ndarray:
    """A square picture, uint8 (side, side, 3), of codes (N, 2) by label (N,), with the prior and a square up to `edge`.

    The axes show all codes except the outermost 0.2 percent.
    """
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    found = np.unique(labels)
    colours = "tab10" if len(found) <= 10 else "tab20" if len(found) <= 20 else "turbo"
    size = np.clip(20_000 / len(z_mean), 5, 40)  # of a point: a few small points are easily missed
    codes = axes.scatter(*z_mean.T, s=size, c=np.searchsorted(found, labels), cmap=colours, linewidths=0, alpha=0.8)
    for deviations in (1, 2):
        axes.add_artist(Circle((0, 0), deviations, fill=False, edgecolor="black", linewidth=0.8, linestyle="--"))
    axes.add_artist(Rectangle((-edge, -edge), 2 * edge, 2 * edge, fill=False, edgecolor="black", linewidth=1.2))
    if 1 < len(found) <= 20:
        handles, _ = codes.legend_elements(num=None)
        called = [drawable(label_name(label, names)) for label in found]
        axes.legend(handles, called, title="label", loc="upper right", fontsize=8, markerscale=0.8, framealpha=0.8)
    reach = max(3, 1.05 * float(np.quantile(np.abs(z_mean), 0.998)))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="z1", ylabel="z2", aspect="equal")
    axes.set_title("codes z_mean; circles: 1 and 2 standard deviations of the prior; square: shown decoded", fontsize=8)
    figure.savefig(content := io.BytesIO(), format="png", dpi=side / 7)
    return np.asarray(Image.open(content).convert("RGB").resize((side, side)))


def drawable(name: str, longest: int = LONGEST_LABEL) -> str:
    """A name as matplotlib can draw it: short, without formulas, and with "?" for letters that its font lacks."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    name = name if len(name) <= longest else f"{name[: longest - 3]}..."
    return "".join(letter if ord(letter) in known else "?" for letter in name).replace("$", r"\$")


def write_projector(
    folder: Path, z_mean: np.ndarray, labels: np.ndarray, names: Sequence[str], images: np.ndarray
) -> None:
    """Write the data of TensorBoard's projector: codes (N, L), labels (N,), thumbnails of uint8 images (N, H, W, C).

    If the images are large or the latents many, only the first ones are shown. Their thumbnails fit a square of
    SPRITE_SIDE, as 10,000 images of MNIST do, and their codes have at most PROJECTED numbers.
    """
    height, width, channels = images.shape[1:]
    count = min(len(images), max(1, SPRITE_SIDE // max(height, width)) ** 2, max(1, PROJECTED // z_mean.shape[1]))
    columns = math.isqrt(count - 1) + 1
    while columns * width < -(-count // columns) * height:  # the projector needs a square sprite with full rows
        columns += 1
    shown = 255 - images[:count] if channels == 1 else images[:count]  # dark on white, like the projector
    sprite = grid(shown, columns, gap=0)
    sprite = np.pad(sprite, [(0, sprite.shape[1] - sprite.shape[0]), (0, 0), (0, 0)])
    save_png(folder / "sprite.png", Image.fromarray(sprite.squeeze()))
    np.savetxt(content := io.BytesIO(), z_mean[:count], "%.4f", delimiter="\t")
    write_whole(folder / "latents.tsv", content.getvalue())
    called = (" ".join(label_name(label, names).split()) for label in labels[:count])
    write_whole(folder / "labels.tsv", "".join(f"{name}\n" for name in called).encode(errors="replace"))
    config = (
        'embeddings {\n  tensor_name: "test images, z_mean"\n  tensor_path: "latents.tsv"\n'
        '  metadata_path: "labels.tsv"\n'
        f'  sprite {{ image_path: "sprite.png" single_image_dim: {width} single_image_dim: {height} }}\n}}\n'
    )
    write_whole(folder / "projector_config.pbtxt", config.encode())


# --- where the pictures are -------------------------------------------------------------------------------------------
def look_at(folder: Path) -> str:
    """Two lines: where the pictures of a run are, and the command of TensorBoard. The paths are absolute."""
    newest = [grids_of(folder, name)[-1:] for name in ("samples", "reconstructions")]
    names = [path.name for paths in newest for path in paths]
    names += [name for name in ("training.gif", "manifold.png", "curves.png") if (folder / name).exists()]
    logs = shlex.quote(str(folder.absolute().parent))
    return f"\nlook at    {shown(folder.absolute())}: {', '.join(names)}\n           tensorboard --logdir {logs}"
