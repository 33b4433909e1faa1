"""utils/pictures.py: every pixel is in its place, and other programs can read the files."""

import math
import os

import numpy as np
import pytest
from google.protobuf import text_format
from matplotlib.figure import Figure
from PIL import Image, ImageFont
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from tests.shared import opened
from utils import pictures
from utils.dataset import Dataset
from utils.settings import from_params

BRIGHTNESS = {".": 255} | {letter: 10 * number for number, letter in enumerate("abcdefghijkl")}


# --- from images to a file --------------------------------------------------------------------------------------------
def drawn(rows):
    """A sheet (H, W, 1) from a drawing: a letter is a pixel, a dot is paper."""
    return np.array([[BRIGHTNESS[letter] for letter in row] for row in rows.split()], np.uint8)[..., np.newaxis]


def numbered(count, height=1, width=1):
    """uint8 images (N, H, W, 1) whose pixels, row by row, are a, b, c, ... of the drawing."""
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


CAPTION = "mnist-ce-z20-kl_weight_end4-seed1, epoch 7, step 7,020: gypsum; test ELBO -96.3 nats"


@pytest.mark.parametrize(("channels", "width"), [(1, 200), (3, 200), (1, 40), (3, 600)])
def test_a_caption_stands_below_and_leaves_every_pixel_as_it_was(channels, width, tmp_path):
    sheet = np.random.default_rng(0).integers(256, size=(9, width, channels), dtype=np.uint8)
    picture = pictures.captioned(sheet, CAPTION, scale=3)
    pictures.save_png(tmp_path / "picture.png", picture)
    pixels = opened(tmp_path / "picture.png").reshape(-1, 3 * width, channels)
    np.testing.assert_array_equal(pixels[:27], sheet.repeat(3, axis=0).repeat(3, axis=1), strict=True)
    strip = pixels[27:]
    assert len(strip) > 3 * width / 80  # large enough to be read beside a large grid
    assert strip.min() < 50  # there is ink,
    assert (strip[[0, -1]] == 255).all()  # and all of it is within the strip
    assert (strip[:, [0, -1]] == 255).all()


@pytest.mark.parametrize(("width", "count"), [(2_000, 1), (400, 2), (120, None), (40, None)])
def test_a_caption_is_wrapped_to_the_width_and_nothing_of_it_is_lost(width, count):
    font = ImageFont.load_default(15)
    lines = pictures.wrapped(CAPTION, font, width)
    assert max(font.getlength(line) for line in lines) <= width
    assert "".join(lines).replace(" ", "") == CAPTION.replace(" ", "")
    assert count in (None, len(lines))


# --- captions ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changed", "line", "told"),
    [
        ({}, None, "mnist-ce-z20, untrained: a cat"),
        ({"start_from": "other"}, None, "mnist-ce-z20, not trained further yet: a cat"),
        ({}, {"elbo": -96.25}, "mnist-ce-z20, epoch 3, step 7,020: a cat; test ELBO -96.2 nats"),
        ({}, {"elbo": None, "-(loss + KL)": -40.0},
         "mnist-ce-z20, epoch 3, step 7,020: a cat; test -(loss + KL) -40.0 nats"),
        ({}, {"elbo": None}, "mnist-ce-z20, epoch 3, step 7,020: a cat; test reconstruction loss 90.0 nats"),
        ({"run_name": "mnist-ce-z20", "labels": (1, 7), "kl_weight_end": 4.0}, None,
         "mnist-ce-z20 (mnist, labels 1, 7, loss ce, 20 latents, KL weight 4), untrained: a cat"),
        ({"labels": (1, 7), "kl_weight_end": 4.0, "binarize": "none", "reconstruction_reduction": "mean"}, None,
         "mnist-ce-z20 (not binarised, loss as a mean over pixels, KL weight 4), untrained: a cat"),
    ],
)  # fmt: skip
def test_a_caption_says_which_run_and_step_it_is_and_how_good(changed, line, told):
    usual = {"labels": (), "binarize": "dynamic", "loss": "ce", "latent_dim": 20, "run_name": "", "start_from": ""}
    line = line and {"split": "test", "epoch": 2.0137, "step": 7_020, "reconstruction": 90.0} | line
    assert pictures.caption(from_params(**usual | changed), "mnist-ce-z20", "a cat", line) == told


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
    pictures.write_grids(tmp_path, from_params(), {"samples": sheet}, 7, None)
    np.testing.assert_array_equal(sheet[2::3, 2::3, 0], np.arange(20).reshape(2, 10))
    assert shown(tmp_path / "samples_007.png", sheet)


def test_reconstructions_are_of_the_first_three_of_each_label_below_their_originals(tmp_path):
    labels = np.array([9, 4, 4, 9, 0, 9, 0, 4, 4, 0, 9, 0], np.uint8)
    first_three = {0: [4, 6, 9], 4: [1, 2, 7], 9: [0, 3, 5]}
    test_images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)  # image n has brightness n
    dataset = Dataset("tiny", None, None, test_images, labels, "here")

    def reconstruct(originals):
        assert originals.dtype == np.uint8
        return (200 - originals.astype(np.float32)) / 255

    sheet = pictures.reconstructions(reconstruct, dataset)
    pictures.write_grids(tmp_path, from_params(), {"reconstructions": sheet}, 12, None)
    columns = sheet[:, 2::3, 0].T  # one for each label
    found = [[pixel for pixel in column if pixel < 255] for column in columns]
    assert found == [[value for n in rows for value in (n, 200 - n)] for rows in first_three.values()]
    assert shown(tmp_path / "reconstructions_012.png", sheet)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([4], [[0]]),
        ([0, 0, 1, 0, 0], [[0, 2, 1, 3, 4]]),  # the first of each label, then the second of each
        (range(40), [range(10), range(10, 20), range(20, 30)]),
        (
            np.repeat(range(31), 3),
            [range(0, 30, 3), range(30, 60, 3), range(60, 90, 3)],
        ),  # too many for one row
        (np.repeat(range(30), 3), [range(0, 90, 3), range(1, 90, 3), range(2, 90, 3)]),
        ([7] * 20, [range(6), range(6, 12), range(12, 18)]),
    ],
)
def test_reconstructions_show_what_there_is_of_few_or_many_labels(labels, expected):
    labels = np.array(labels)
    assert [row.tolist() for row in pictures.shown_of(labels)] == [[*row] for row in expected]
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    dataset = Dataset("Toy", images, labels, images, labels, "memory")
    sheet = pictures.reconstructions(lambda originals: originals / 255, dataset)
    assert pictures.captioned(sheet, "a caption of several words").width == 2 * sheet.shape[1]
    places = [np.argwhere(sheet[..., 0] == row[0]).tolist() for row in expected]
    assert all(len(place) == 2 for place in places)  # the image and, below it, its reconstruction


LINE = {"split": "test", "epoch": 3.0, "step": 30, "objective": 99.0, "reconstruction": 80.0, "elbo": -99.0}


def test_the_manifold_grows_to_the_right_in_z1_and_upwards_in_z2_by_quantiles_of_the_prior(tmp_path):
    def decode(z):
        """Images of 1 x 2 pixels, which show the share of the prior below z1, and below z2."""
        below = [[(1 + math.erf(value / math.sqrt(2))) / 2 for value in point] for point in z]
        return np.reshape(below, (-1, 1, 2, 1))

    pictures.write_manifold(tmp_path, from_params(), decode, np.zeros((9, 2)), np.arange(9), (), LINE)
    sheet = opened(tmp_path / "manifold.png")[:40:2, 600::2, 0]  # to the right of the codes
    shares = np.rint(255 * (np.arange(20) + 0.5) / 20)
    for found, expected in ((sheet[:, ::2], shares), (sheet[:, 1::2], shares[::-1, np.newaxis])):
        assert np.abs(found - np.broadcast_to(expected, (20, 20))).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "left", "right"),
    [(28, 28, 960, 960), (16, 32, 600, 640), (99, 99, 960, 960), (20, 100, 600, 1_120), (200, 20, 1_120, 800)],
)
def test_a_manifold_is_no_wider_than_a_screen_and_decoded_in_parts(height, width, left, right, tmp_path):
    counts = []

    def decode(z):
        counts.append(len(z))
        return np.zeros((len(z), height, width, 1), np.float32)

    pictures.write_manifold(tmp_path, from_params(), decode, np.zeros((9, 2)), np.arange(9), (), LINE)
    is_black = (opened(tmp_path / "manifold.png")[5] == 0).all(axis=-1)
    assert len(is_black) == left + right <= pictures.WIDEST
    assert np.flatnonzero(~is_black)[-1] == left - 1
    rows = max(1, 2**22 // (20 * height * width))
    assert counts == [20] + [20 * rows] * (19 // rows) + [20 * (19 % rows)] * (19 % rows > 0)


@pytest.mark.parametrize("count", [1, 2, 10, 15, 40])
def test_the_codes_beside_the_manifold_are_coloured_by_label_around_the_prior(count, monkeypatch):
    figures, real = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *rest, **named: (figures.append(figure), real(figure, *rest, **named))
    )
    z_mean = np.random.default_rng(0).normal(scale=5, size=(400, 2))
    labels = np.random.default_rng(1).permutation(np.arange(400) % count * 3)
    assert pictures.draw_codes(z_mean, labels, (), 1.96, side=610).shape == (610, 610, 3)
    (axes,) = figures[0].axes
    (codes,) = axes.collections
    np.testing.assert_allclose(codes.get_offsets(), z_mean)
    colours = np.array([colour.tobytes() for colour in codes.get_facecolors()])
    of_label = [set(colours[labels == label]) for label in np.unique(labels)]
    assert [len(found) for found in of_label] == [1] * count
    assert len(set.union(*of_label)) == count
    legend = [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
    assert legend == [str(3 * label) for label in range(count) if 1 < count <= 20]
    shapes = [shape.get_extents().transformed(axes.transData.inverted()).bounds for shape in axes.patches]
    np.testing.assert_allclose(shapes, [(-edge, -edge, 2 * edge, 2 * edge) for edge in (1, 2, 1.96)], rtol=0.02)
    reach = np.abs([axes.get_xlim(), axes.get_ylim()])
    assert (reach == reach[0, 0]).all()
    assert (np.abs(z_mean) < reach[0, 0]).mean() > 0.99


@pytest.mark.parametrize(
    ("steps", "shape", "expected"),
    [
        (468, (28, 28, 1), [1, 2, 4, 8, 16, 32, 64, 128, 256]),
        (8, (28, 28, 1), [1, 2, 4]),  # step 8 is the end of the epoch, which has a grid
        (9, (128, 128, 3), [1, 2, 4, 8]),
        (1, (28, 28, 1), []),
        (468, (132, 132, 3), []),
    ],
)
def test_the_film_has_frames_of_early_steps_of_the_first_epoch(steps, shape, expected):
    assert pictures.film_steps(steps, shape) == expected


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (range(1, 101), [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 100]),
        (range(1, 16), [1, 2, 3, 4, 6, 8, 11, 15]),
        (range(10, 101, 10), [10, 20, 30, 40, 50, 70, 100]),
        (range(1, 65), [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64]),
        ([1], [1]),
        ([500, 501], [500, 501]),
        ([], []),
    ],
)
def test_the_film_thins_out_late_epochs(epochs, expected):
    assert pictures.thinned(list(epochs)) == expected


@pytest.mark.parametrize(
    ("name", "epochs", "early", "shown"),
    [
        ("samples", [0, 1, 2, 9, 10, 11], [1, 2, 16], [0, 1, 2, 9, 11]),
        ("reconstructions", [0, 998, 999, 1000], [], [0, 998, 1000]),  # an older run, without a folder of frames
    ],
)
def test_the_film_has_a_frame_for_the_start_the_early_steps_and_thinned_epochs_in_order(
    name, epochs, early, shown, tmp_path
):
    sheet = np.full((4, 90, 1), 7, np.uint8)  # a collapsed run: the same picture all the time
    for epoch in reversed(epochs):
        pictures.save_png(tmp_path / f"{name}_{epoch:03}.png", pictures.captioned(sheet, f"epoch {epoch}"))
    for step in early:
        pictures.write_frame(tmp_path, from_params(), name, sheet, LINE | {"step": step})  # with more lines of text
    for other in ("curves", f"{name}_mixture"):  # not frames; the second is from experiments/evaluate.py
        pictures.save_png(tmp_path / f"{other}.png", Image.new("L", (180, 34)))
    pictures.write_film(tmp_path, name, pytest.fail)
    frames = [tmp_path / f"{name}_{epoch:03}.png" for epoch in shown]
    frames[1:1] = [tmp_path / "film" / f"{name}_{step}.png" for step in early]
    height = max(len(opened(frame)) for frame in frames)
    with Image.open(tmp_path / "training.gif") as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (len(frames), (180, height), 0)
        for number, frame in enumerate(frames):
            film.seek(number)
            found, expected = np.asarray(film.convert("L")), opened(frame)
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert (found[len(expected) :] == 255).all()
            assert film.info["duration"] == (300 if frame != frames[-1] else 2_000)


def test_the_projector_finds_codes_labels_and_thumbnails(tmp_path):
    thumbnails = (20 * np.arange(5 * 2 * 3, dtype=np.uint8) % 251).reshape(5, 2, 3, 1)
    codes = np.array([[0.5, -1.25], [2, 3], [-4, 0.0625], [6, 7], [8, 9]], np.float32)
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    pictures.write_projector(tmp_path, codes, labels, (), thumbnails)

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


@pytest.mark.parametrize(("count", "shape"), [(7, (4, 3)), (50, (9, 7)), (3, (100, 99)), (1, (5, 1))])
def test_the_sprite_of_tall_images_is_square_and_has_full_rows(tmp_path, count, shape):
    images = np.random.default_rng(0).integers(256, size=(count, *shape, 3), dtype=np.uint8)
    pictures.write_projector(tmp_path, np.zeros((count, 2)), np.zeros(count, int), (), images)
    with Image.open(tmp_path / "sprite.png") as picture:
        sprite = np.asarray(picture)
    assert sprite.shape[0] == sprite.shape[1]
    columns = sprite.shape[1] // shape[1]  # as the projector counts them
    for number, image in enumerate(images):
        top, left = number // columns * shape[0], number % columns * shape[1]
        np.testing.assert_array_equal(sprite[top : top + shape[0], left : left + shape[1]], image)


def test_the_projector_is_given_no_more_numbers_than_it_can_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PROJECTED", 1_000)
    pictures.write_projector(tmp_path, np.zeros((9, 400)), np.arange(9), (), np.zeros((9, 2, 2, 1), np.uint8))
    assert np.loadtxt(tmp_path / "latents.tsv").shape == (2, 400)
    assert np.loadtxt(tmp_path / "labels.tsv").tolist() == [0, 1]


# --- where they are ---------------------------------------------------------------------------------------------------
def test_the_user_is_sent_to_the_newest_pictures(tmp_path):
    for name in ("samples_000.png", "samples_999.png", "samples_1000.png", "reconstructions_005.png", "curves.png"):
        (tmp_path / name).touch()
    shown = pictures.look_at(tmp_path).splitlines()[1]
    assert shown == f"look at    {tmp_path}: samples_1000.png, reconstructions_005.png, curves.png"


def test_the_film_leaves_out_what_it_cannot_read_with_a_line_and_what_is_not_its_own(tmp_path):
    for number in range(4):
        Image.new("L", (9, 9), 9 * number).save(tmp_path / f"samples_{number:03}.png")
    (tmp_path / "samples_002.png").write_bytes((tmp_path / "samples_002.png").read_bytes()[:40])
    for name in ("samples_best.png", "samples_mixture.png", "samples_0 (copy).png", "samples_12x.png"):
        (tmp_path / name).write_text("another's")
    os.mkfifo(tmp_path / "samples_009.png")  # opening it would wait for ever
    said = []
    pictures.write_film(tmp_path, "samples", said.append)
    told = f"1 pictures cannot be read, e.g. {tmp_path}/samples_002.png; training.gif lacks them"
    assert said == [f"note       {told}"]
    with Image.open(tmp_path / "training.gif") as film:
        assert film.n_frames == 3


def test_labels_are_shown_by_their_names_whatever_is_in_these(tmp_path):
    names = ("cat", "$x_1$ and a name that is too long for a legend", "画像", "two\nlines\tand a tab", "\ud800")
    assert pictures.drawable(names[1]) == r"\$x_1\$ and a name that..."
    assert pictures.drawable(names[2]) == "??"
    z_mean, labels = np.random.default_rng(0).normal(size=(50, 2)), np.arange(50) % 5
    assert pictures.draw_codes(z_mean, labels, names, 1.96, side=310).shape == (310, 310, 3)  # without a warning
    pictures.write_projector(tmp_path, z_mean, labels, names, np.zeros((50, 2, 2, 1), np.uint8))
    lines = (tmp_path / "labels.tsv").read_text().splitlines()
    assert len(lines) == 50
    assert lines[:5] == ["cat", names[1], "画像", "two lines and a tab", "?"]


@pytest.mark.parametrize(("width", "expected"), [(300, 600), (960, 1_920), (961, 961), (1_921, 1_920), (9_000, 1_920)])
def test_a_grid_is_never_wider_than_a_screen(width, expected):
    sheet = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[np.newaxis, :, np.newaxis], (90, width, 3))
    picture = np.asarray(pictures.captioned(np.ascontiguousarray(sheet), "words"))
    assert picture.shape[1] == expected
    np.testing.assert_allclose(picture[:5, :, 0], np.linspace(0, 255, expected)[np.newaxis].repeat(5, axis=0), atol=2)
