"""utils/images.py: every pixel where it belongs, and a caption that covers none."""

import numpy as np
import pytest

from tests.shared import opened
from utils import images

BRIGHTNESS = {".": 255} | {letter: 10 * number for number, letter in enumerate("abcdefghijkl")}


def drawn(rows):
    """A sheet (H, W, 1) from a drawing: a letter is a pixel, a dot is paper."""
    return np.array([[BRIGHTNESS[letter] for letter in row] for row in rows.split()], np.uint8)[..., np.newaxis]


def numbered(count, height=1, width=1):
    """uint8 images (N, H, W, 1) whose pixels are, read row by row, a, b, c, ... of the drawing."""
    return (10 * np.arange(count * height * width, dtype=np.uint8)).reshape(count, height, width, 1)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((3, 1, 2), {"columns": 2, "gap": 1}, "....... .ab.cd. ....... .ef.... ......."),  # the last row is filled up
        ((2, 2, 2), {"columns": 2, "gap": 0}, "abef cdgh"),
        ((2, 1, 1), {"columns": 3, "gap": 2}, "........... ........... ..a..b..... ........... ..........."),
        ((2, 1, 1), {"columns": 1}, "..... ..... ..a.. ..... ..... ..b.. ..... ....."),  # two pixels apart by default
        ((6, 1, 1), {"columns": 1, "gap": 1, "pair_rows": True}, "... .a. ... .b. ... ... ... .c. ... .d. "
                                                                 "... ... ... .e. ... .f. ..."),
    ],
)  # fmt: skip
def test_a_grid_is_laid_out_row_by_row_with_gaps(shape, layout, expected):
    np.testing.assert_array_equal(images.grid(numbered(*shape), **layout), drawn(expected), strict=True)


def test_a_grid_of_colour_images_keeps_the_channels():
    red, blue = (255, 0, 0), (0, 0, 254)
    sheet = images.grid(np.array([red, blue], np.uint8).reshape(2, 1, 1, 3), columns=2, gap=1)
    white = (255, 255, 255)
    found = [[tuple(pixel) for pixel in row] for row in sheet]
    assert found == [5 * [white], [white, red, white, blue, white], 5 * [white]]


def test_brightness_becomes_the_nearest_whole_number():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(images.to_uint8(every.astype(np.float32) / 255), every, strict=True)
    np.testing.assert_array_equal(images.to_uint8(np.array([-0.1, 0.999, 1.1])), np.array([0, 255, 255], np.uint8))
    assert images.to_uint8(every) is every  # whole numbers already, not brightness


@pytest.mark.parametrize("channels", [1, 3])
def test_a_caption_stands_below_and_leaves_every_pixel_as_it_was(channels, tmp_path):
    sheet = np.random.default_rng(0).integers(256, size=(9, 200, channels), dtype=np.uint8)
    picture = images.captioned(sheet, "epoch 7: gypsum", scale=3)
    images.save_png(tmp_path / "picture.png", picture)
    pixels = opened(tmp_path / "picture.png").reshape(-1, 600, channels)
    np.testing.assert_array_equal(pixels[:27], sheet.repeat(3, axis=0).repeat(3, axis=1), strict=True)
    strip = pixels[27:]
    assert strip.min() < 50  # there is ink,
    assert (strip[[0, -1]] == 255).all()  # all of it within the strip
    assert (strip[:, [0, -1]] == 255).all()
