"""utils/pictures.py: every pixel where it belongs, files that others can read, every number drawn."""

import math

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


CAPTION = "mnist-ce-z20-kl_weight_end4-seed1, epoch 7, step 7,020: gypsum; test ELBO -96.3 nats"


@pytest.mark.parametrize(("channels", "width"), [(1, 200), (3, 200), (1, 40), (3, 1_000)])
def test_a_caption_stands_below_and_leaves_every_pixel_as_it_was(channels, width, tmp_path):
    sheet = np.random.default_rng(0).integers(256, size=(9, width, channels), dtype=np.uint8)
    picture = pictures.captioned(sheet, CAPTION, scale=3)
    pictures.save_png(tmp_path / "picture.png", picture)
    pixels = opened(tmp_path / "picture.png").reshape(-1, 3 * width, channels)
    np.testing.assert_array_equal(pixels[:27], sheet.repeat(3, axis=0).repeat(3, axis=1), strict=True)
    strip = pixels[27:]
    assert len(strip) > 3 * width / 80  # large enough to be read beside a large grid
    assert strip.min() < 50  # there is ink,
    assert (strip[[0, -1]] == 255).all()  # all of it within the strip
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
         "mnist-ce-z20 (mnist, labels 1, 7, binarised, loss ce, 20 latents, KL weight 4), untrained: a cat"),
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
    test_images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)  # an image is its own number
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


LINE = {"split": "test", "epoch": 3.0, "step": 30, "objective": 99.0, "reconstruction": 80.0, "elbo": -99.0}


def test_the_manifold_grows_to_the_right_in_z1_and_upwards_in_z2_by_quantiles_of_the_prior(tmp_path):
    def decode(z):
        """Images of 1 x 2 pixels, which show the share of the prior below z1, and below z2."""
        below = [[(1 + math.erf(value / math.sqrt(2))) / 2 for value in point] for point in z]
        return np.reshape(below, (-1, 1, 2, 1))

    pictures.write_manifold(tmp_path, from_params(), decode, np.zeros((9, 2)), np.arange(9), LINE)
    sheet = opened(tmp_path / "manifold.png")[:40:2, 600::2, 0]  # to the right of the codes
    shares = np.rint(255 * (np.arange(20) + 0.5) / 20)
    for found, expected in ((sheet[:, ::2], shares), (sheet[:, 1::2], shares[::-1, np.newaxis])):
        assert np.abs(found - np.broadcast_to(expected, (20, 20))).max() <= 1


@pytest.mark.parametrize("count", [1, 2, 10, 15, 40])
def test_the_codes_beside_the_manifold_are_coloured_by_label_around_the_prior(count, monkeypatch):
    figures, real = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *rest, **named: (figures.append(figure), real(figure, *rest, **named))
    )
    z_mean = np.random.default_rng(0).normal(scale=5, size=(400, 2))
    labels = np.random.default_rng(1).permutation(np.arange(400) % count * 3)
    assert pictures.draw_codes(z_mean, labels, 1.96, side=610).shape == (610, 610, 3)
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
        ("reconstructions", [0, 998, 999, 1000], [], [0, 998, 1000]),  # of an older run, without a folder of frames
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
    for other in ("curves", f"{name}_mixture"):  # no frames; the second is from experiments/evaluate.py
        pictures.save_png(tmp_path / f"{other}.png", Image.new("L", (180, 34)))
    pictures.write_film(tmp_path, name)
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
RAMP = {"kl_schedule": "linear", "kl_steps": 20, "kl_weight_start": 0.0, "kl_weight_end": 1.0, "autoencoder": False}
REPORT = {"kind": "likelihood", "test_elbo": -96.25, "test_reconstruction": 71.5, "test_nll": 92.75,
          "test_log_density": None, "kl_per_latent": [0.5, 2.0, 1.0]}  # fmt: skip


def history(steps, **changed):
    """Lines that fall from 1,000 to about 100; every third is followed by a test line."""
    lines = []
    for step in steps:
        numbers = {"objective": 100 + 900 / step, "reconstruction": 90 + 900 / step, "kl": step / 2}
        numbers |= {"kl_weight": min(step / 20, 1), "elbo": -90 - 900 / step - step / 2} | changed
        lines.append({"split": "train", "step": step} | numbers)
        if step % 3 == 0:
            lines.append(lines[-1] | {"split": "test", "active_units": step // 3})
    return lines


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """A function: the figure of save_curves, as its title and its panels by the first word of theirs."""

    def draw_it(lines, changed, report):
        figures = []
        monkeypatch.setattr(pictures, "save_figure", lambda path, figure: figures.append(figure))
        pictures.save_curves(tmp_path / "mnist-ce-z20" / "curves.png", lines, from_params(**RAMP | changed), report)
        panels = {axes.get_title("left").split(" ")[0].strip(","): axes for axes in figures[0].axes}
        return figures[0].get_suptitle(), panels

    return draw_it


def test_the_curves_are_a_picture(tmp_path):
    pictures.save_curves(tmp_path / "curves.png", history(range(1, 41)), from_params(**RAMP), REPORT)
    assert opened(tmp_path / "curves.png").shape[2] in (3, 4)


def check_curves(axes, lines, name):
    curves = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    for split in ("train", "test"):
        points = [(line["step"], line[name]) for line in lines if line["split"] == split and line.get(name) is not None]
        np.testing.assert_allclose(curves.get(split, []), points)


def test_the_curves_draw_every_number_of_the_history_and_the_elbo_first(draw):
    lines = history(range(1, 41))
    title, panels = draw(lines, {}, REPORT)
    assert list(panels) == ["ELBO", "objective", "reconstruction", "KL", "active", ""]  # the last: the weight's axis
    names = {"ELBO": "elbo", "objective": "objective", "reconstruction": "reconstruction", "active": "active_units"}
    for panel, name in names.items():
        check_curves(panels[panel], lines, name)
    ((x, weights),) = (line.get_data() for line in panels[""].get_lines())
    np.testing.assert_allclose([x, weights], [range(1, 41), np.minimum(np.arange(1, 41) / 20, 1)])
    assert title.startswith("mnist-ce-z20: test ELBO -96.25 nats, log-likelihood -92.75")
    assert "seed" in title
    low, high = panels["objective"].get_ylim()
    assert low < 100 + 900 / 40  # all of what came later is in sight,
    assert 100 + 900 / 2 < high < 1000  # but not the steep fall of the first twentieth


def test_the_kl_of_each_latent_is_a_bar_from_the_largest_down(draw):
    bars = draw(history(range(1, 41)), {}, REPORT)[1]["KL"].patches  # this title, too, begins with KL
    assert [bar.get_height() for bar in bars] == [2, 1, 0.5]


@pytest.mark.parametrize(
    ("changed", "end", "words"),
    [
        ({}, 20, "KL weight 0 → 1"),
        ({"kl_schedule": "cyclical", "kl_cycles": 5, "kl_weight_end": 4.0}, 20, "KL weight 0 → 4, 5 times"),
        ({"kl_steps": 50}, 40, "KL weight 0 → 1 at step 50"),  # longer than the run
        ({"kl_schedule": "constant"}, None, None),
    ],
)
def test_the_ramp_of_the_kl_weight_is_shaded_and_named(changed, end, words, draw):
    panels = draw(history(range(1, 41)), changed, REPORT)[1]
    for name in ("ELBO", "objective", "reconstruction"):
        shades = [(shade.get_x(), shade.get_x() + shade.get_width()) for shade in panels[name].patches]
        assert shades == ([(0, end)] if end else [])
    assert [text.get_text() for text in panels["objective"].texts] == ([words] if words else [])
    assert ("rises while" in panels["objective"].get_title("left").replace("\n", " ")) == bool(end)


def test_what_a_run_does_not_have_is_left_out_of_its_curves(draw):
    """An autoencoder, of which lines have None for the KL, the weight, the ELBO and the active units."""
    lines = history(range(1, 41), kl=None, kl_weight=None, elbo=None)
    for line in lines:
        line["active_units"] = None
    nothing = REPORT | {"kind": "none", "test_elbo": None, "test_nll": None, "kl_per_latent": None}
    title, panels = draw(lines, {"autoencoder": True}, nothing)
    assert list(panels) == ["objective", "reconstruction"]
    for name, axes in panels.items():
        check_curves(axes, lines, name)
    assert title.startswith("mnist-ce-z20: test reconstruction loss 71.50 nats")
    assert "ELBO" not in title


@pytest.mark.parametrize("older", [False, True])
def test_a_loss_that_is_no_likelihood_has_no_curve_called_elbo(older, draw):
    """Older histories call it elbo, and know no active units."""
    lines = history(range(1, 41))
    for line in lines:
        line.pop("active_units", None)
        if not older:
            line["-(loss + KL)"], line["elbo"] = line["elbo"], None
    title, panels = draw(lines, {"loss": "mse"}, REPORT | {"kind": "none", "test_nll": None})
    assert list(panels) == ["-(loss", "objective", "reconstruction", "KL", ""]
    check_curves(panels["-(loss"], lines, "elbo" if older else "-(loss + KL)")
    assert title.startswith("mnist-ce-z20: test -(loss + KL) -96.25 nats")
    assert "ELBO" not in title


def test_a_history_of_one_line_is_a_point_in_each_panel(draw):
    lines = history([1])
    panels = draw(lines, {}, REPORT)[1]
    for panel, name in {"ELBO": "elbo", "objective": "objective", "reconstruction": "reconstruction"}.items():
        check_curves(panels[panel], lines, name)
        (point,) = panels[panel].get_lines()
        assert point.get_marker() == "o"
        assert panels[panel].get_ylim()[0] < lines[0][name] < panels[panel].get_ylim()[1]
