"""experiments/whole_images.py against Pillow, which training uses to read its images."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments import whole_images
from utils import images
from utils.settings import from_params
from utils.start import tf

PICTURES = {"L": (40, 30), "RGB": (31, 50), "RGBA": (64, 64), "LA": (20, 70)}  # width, height


def picture(mode):
    """A picture of this mode, smooth as photos are."""
    rng, channels = np.random.default_rng(0), len(mode)
    small = rng.integers(0, 256, (6, 6, channels), np.uint8)
    parts = [Image.fromarray(small[..., channel]).resize(PICTURES[mode]) for channel in range(channels)]
    return np.stack([np.asarray(part) for part in parts], axis=-1)


@pytest.mark.parametrize("mode", PICTURES)
@pytest.mark.parametrize("crop", [0, 16])
@pytest.mark.parametrize("fit", ["crop", "pad", "keep"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (12, 12, 3)])
def test_an_image_is_prepared_as_training_does_to_one_of_255(mode, crop, fit, shape):
    content = io.BytesIO()
    pixels = picture(mode)
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(content, "PNG")
    how = whole_images.prepared(from_params(dataset="folder", image_crop=crop, image_fit=fit), shape)
    content.seek(0)
    found = 255 * whole_images.prepare(tf.constant(pixels), how).numpy()
    wrong = np.abs(found - images.decode(content, how))
    if fit == "keep" and not crop:  # Pillow cuts at fractions of a pixel, up to half of one
        assert wrong.mean() < 8
    else:
        assert wrong.max() < (1.01 if "A" not in mode else 2.01)


def test_celeba_is_cropped_as_published_and_an_image_of_the_size_of_digits_stays_as_it_is():
    pixels = picture("L")[:28, :28]
    found = whole_images.prepare(tf.constant(pixels), whole_images.prepared(from_params(dataset="mnist"), (28, 28, 1)))
    np.testing.assert_array_equal(found, pixels / np.float32(255))
    sides = [whole_images.prepared(from_params(dataset="celeba", image_crop=crop), (8, 8, 3)).crop for crop in (0, 100)]
    assert sides == [148, 100]


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_a_file_is_read_as_it_is_stored(kind):
    content = io.BytesIO()
    Image.fromarray(picture("RGB")).save(content, kind)
    np.testing.assert_array_equal(whole_images.read(tf.constant(content.getvalue())), picture("RGB"))


def test_a_jpeg_is_read_as_pillow_reads_it():
    content = io.BytesIO()
    Image.fromarray(picture("RGB")).save(content, "JPEG")
    with Image.open(content) as image:
        found = whole_images.read(tf.constant(content.getvalue()))
        np.testing.assert_allclose(found, np.asarray(image), atol=1)


def test_an_array_that_is_no_image_is_refused():
    how = whole_images.prepared(from_params(dataset="folder"), (8, 8, 3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="1 to 4 channels"):
        whole_images.prepare(tf.zeros((9, 9, 5), tf.uint8), how)
