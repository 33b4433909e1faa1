"""Batches of images -> one grid -> PNG or GIF."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.files import write_whole

PAPER = 255  # the brightness between and around images


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
    picture = Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    font = ImageFont.load_default(size=15)
    strip = 26
    whole = Image.new(picture.mode, (picture.width, picture.height + strip), color="white")
    whole.paste(picture)
    ImageDraw.Draw(whole).text((6, picture.height + strip // 2 - 1), caption, fill="black", font=font, anchor="lm")
    return whole


def save_png(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, whole or not at all. Raises OSError."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_whole(path, content.getvalue())


def save_gif(path: Path, frames: Sequence[Path], milliseconds: int = 300) -> None:
    """Turn picture files into an endless GIF whose last frame stays for two seconds. Raises OSError.

    The frames have to differ, as captions with the epoch make them: Pillow merges frames that are the same.
    """
    pictures = [Image.open(io.BytesIO(frame.read_bytes())) for frame in frames]
    content = io.BytesIO()
    durations = [milliseconds] * (len(pictures) - 1) + [2_000]
    pictures[0].save(content, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    write_whole(path, content.getvalue())
