"""utils/pictures.py: every image where it belongs, and files that others can read."""

import math

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from tests.shared import opened
from utils import images, pictures
from utils.dataset import Dataset


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
        images.save_png(tmp_path / f"{name}_{epoch:03}.png", images.captioned(sheet, f"epoch {epoch}"))
    for other in ("curves", f"{name}_mixture"):  # no frames; the second is from experiments/evaluate.py
        images.save_png(tmp_path / f"{other}.png", Image.new("L", (180, 34)))
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
