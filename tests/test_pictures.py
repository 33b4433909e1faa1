"""utils/pictures.py: every pixel where it belongs, files that others can read, every number drawn."""

import math

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from tests.shared import opened
from utils import pictures
from utils.dataset import Dataset

BRIGHTNESS = {".": 255} | {letter: 10 * number for number, letter in enumerate("abcdefghijkl")}


# --- from images to a file --------------------------------------------------------------------------------------------
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
    np.testing.assert_array_equal(pictures.grid(numbered(*shape), **layout), drawn(expected), strict=True)


def test_a_grid_of_colour_images_keeps_the_channels():
    red, blue = (255, 0, 0), (0, 0, 254)
    sheet = pictures.grid(np.array([red, blue], np.uint8).reshape(2, 1, 1, 3), columns=2, gap=1)
    white = (255, 255, 255)
    found = [[tuple(pixel) for pixel in row] for row in sheet]
    assert found == [5 * [white], [white, red, white, blue, white], 5 * [white]]


def test_brightness_becomes_the_nearest_whole_number():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pictures.to_uint8(every.astype(np.float32) / 255), every, strict=True)
    np.testing.assert_array_equal(pictures.to_uint8(np.array([-0.1, 0.999, 1.1])), np.array([0, 255, 255], np.uint8))
    assert pictures.to_uint8(every) is every  # whole numbers already, not brightness


@pytest.mark.parametrize("channels", [1, 3])
def test_a_caption_stands_below_and_leaves_every_pixel_as_it_was(channels, tmp_path):
    sheet = np.random.default_rng(0).integers(256, size=(9, 200, channels), dtype=np.uint8)
    picture = pictures.captioned(sheet, "epoch 7: gypsum", scale=3)
    pictures.save_png(tmp_path / "picture.png", picture)
    pixels = opened(tmp_path / "picture.png").reshape(-1, 600, channels)
    np.testing.assert_array_equal(pixels[:27], sheet.repeat(3, axis=0).repeat(3, axis=1), strict=True)
    strip = pixels[27:]
    assert strip.min() < 50  # there is ink,
    assert (strip[[0, -1]] == 255).all()  # all of it within the strip
    assert (strip[:, [0, -1]] == 255).all()


# --- what a run leaves ------------------------------------------------------------------------------------------------
def shown(path, sheet, scale=2):
    """Whether a captioned picture shows the sheet: every pixel of it enlarged, at the top, nothing cut or covered."""
    large = sheet.squeeze(-1).repeat(scale, axis=0).repeat(scale, axis=1)
    return np.array_equal(opened(path)[: large.shape[0]], large)


def test_samples_stand_in_rows_of_ten(tmp_path):
    latents = np.arange(20, dtype=np.float32)[:, np.newaxis]

    def decode(z):
        return z.reshape(-1, 1, 1, 1) / 255  # image n has brightness n

    sheet = pictures.samples(decode, latents)
    pictures.write_grids(tmp_path, 7, {"samples": sheet})
    np.testing.assert_array_equal(sheet[2::3, 2::3, 0], np.arange(20).reshape(2, 10))
    assert shown(tmp_path / "samples_007.png", sheet)


def test_reconstructions_are_of_the_first_three_of_each_label_below_their_originals(tmp_path):
    labels = np.array([9, 4, 4, 9, 0, 9, 0, 4, 4, 0, 9, 0], np.uint8)
    first_three = {0: [4, 6, 9], 4: [1, 2, 7], 9: [0, 3, 5]}
    test_images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)  # an image is its own number
    dataset = Dataset("tiny", None, None, test_images, labels, "here")

    def reconstruct(originals):
        assert originals.dtype == np.uint8
        return (200 - originals.astype(np.float32)) / 255

    sheet = pictures.reconstructions(reconstruct, dataset)
    pictures.write_grids(tmp_path, 12, {"reconstructions": sheet})
    columns = sheet[:, 2::3, 0].T  # one for each label
    found = [[pixel for pixel in column if pixel < 255] for column in columns]
    assert found == [[value for n in rows for value in (n, 200 - n)] for rows in first_three.values()]
    assert shown(tmp_path / "reconstructions_012.png", sheet)


def test_the_manifold_grows_to_the_right_in_z1_and_upwards_in_z2_by_quantiles_of_the_prior(tmp_path):
    def decode(z):
        """Images of 1 x 2 pixels, which show the share of the prior below z1, and below z2."""
        below = [[(1 + math.erf(value / math.sqrt(2))) / 2 for value in point] for point in z]
        return np.reshape(below, (-1, 1, 2, 1))

    pictures.write_manifold(tmp_path, decode)
    sheet = opened(tmp_path / "manifold.png")[:40:2, ::2]
    shares = np.rint(255 * (np.arange(20) + 0.5) / 20)
    for found, expected in ((sheet[:, ::2], shares), (sheet[:, 1::2], shares[::-1, np.newaxis])):
        assert np.abs(found - np.broadcast_to(expected, (20, 20))).max() <= 1


@pytest.mark.parametrize(("name", "epochs"), [("samples", [0, 1, 2, 10]), ("reconstructions", [0, 998, 999, 1000])])
def test_the_film_has_a_frame_for_every_grid_in_the_order_of_the_epochs(name, epochs, tmp_path):
    sheet = np.full((4, 90, 1), 7, np.uint8)  # a collapsed run: the same picture all the time
    for epoch in reversed(epochs):
        pictures.save_png(tmp_path / f"{name}_{epoch:03}.png", pictures.captioned(sheet, f"epoch {epoch}"))
    for other in ("curves", f"{name}_mixture"):  # no frames; the second is from experiments/evaluate.py
        pictures.save_png(tmp_path / f"{other}.png", Image.new("L", (180, 34)))
    pictures.write_film(tmp_path, name)
    with Image.open(tmp_path / "training.gif") as film:
        assert (film.n_frames, film.info["loop"]) == (len(epochs), 0)
        for frame, epoch in enumerate(epochs):
            film.seek(frame)
            np.testing.assert_array_equal(film.convert("L"), opened(tmp_path / f"{name}_{epoch:03}.png"))
            assert film.info["duration"] == (300 if epoch != epochs[-1] else 2_000)


def test_the_projector_finds_codes_labels_and_thumbnails(tmp_path):
    thumbnails = (20 * np.arange(5 * 2 * 3, dtype=np.uint8) % 251).reshape(5, 2, 3, 1)
    codes = np.array([[0.5, -1.25], [2, 3], [-4, 0.0625], [6, 7], [8, 9]], np.float32)
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    pictures.write_projector(tmp_path, codes, labels, thumbnails)

    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig()).embeddings[0]
    np.testing.assert_array_equal(np.loadtxt(tmp_path / config.tensor_path, delimiter="\t"), codes)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / config.metadata_path), labels)  # no header: one column
    width, height = config.sprite.single_image_dim
    assert (width, height) == (3, 2)
    sprite = opened(tmp_path / config.sprite.image_path)
    assert sprite.shape[1] == 3 * width  # 5 images need a square of 3 x 3, row by row
    for number, thumbnail in enumerate(thumbnails):
        top, left = number // 3 * height, number % 3 * width
        np.testing.assert_array_equal(sprite[top : top + height, left : left + width], 255 - thumbnail[..., 0])


# --- the curves -------------------------------------------------------------------------------------------------------
def history(steps, autoencoder=False):
    """Lines that fall from 1,000 to about 100; every third is followed by a test line."""
    lines = []
    for step in steps:
        numbers = {"objective": 100 + 900 / step, "reconstruction": 90 + 900 / step, "kl": step / 2, "kl_weight": 0.5}
        if autoencoder:
            numbers |= {"kl": None, "kl_weight": None}
        lines += [{"split": split, "step": step} | numbers for split in ("train", "test")[: 2 if step % 3 == 0 else 1]]
    return lines


@pytest.mark.parametrize("autoencoder", [False, True])
def test_the_curves_draw_every_number_of_the_history(autoencoder, tmp_path, monkeypatch):
    figures = []
    real = pictures.save_figure
    monkeypatch.setattr(pictures, "save_figure", lambda path, figure: (figures.append(figure), real(path, figure)))
    lines = history(range(1, 41), autoencoder)
    pictures.save_curves(tmp_path / "curves.png", lines, "mnist-ce-z20")
    assert opened(tmp_path / "curves.png").shape[2] in (3, 4)
    for axes, name in zip(figures[0].axes, ("objective", "reconstruction", "kl", "kl_weight"), strict=True):
        curves = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        for split in ("train", "test"):
            points = [(line["step"], line[name]) for line in lines if line["split"] == split and line[name] is not None]
            np.testing.assert_allclose(curves[split], np.reshape(points, (-1, 2)))
    low, high = figures[0].axes[0].get_ylim()
    assert low < 100 + 900 / 40  # all of what came later is in sight,
    assert 100 + 900 / 2 < high < 1000  # but not the steep fall of the first twentieth
