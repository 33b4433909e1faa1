"""utils/images.py: image files of every kind become the right pixels, or one line that names the file."""

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.drawn import draw
from utils import images
from utils.dataset import BadImage


def read(path, size, crop, channels, **how):
    return images.read_image(path, images.Prepared((size, size, channels), crop, **how))


def test_an_image_is_cropped_in_the_middle_and_shrunk_by_averaging(tmp_path):
    across, down = np.meshgrid(np.arange(178), np.arange(218))
    gradient = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    Image.fromarray(gradient).save(path := tmp_path / "gradient.png")
    image = read(path, 64, 148, 3)
    assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
    centre = (np.arange(64) + 0.5) * 148 / 64 - 0.5  # of each pixel, in the crop, which starts at (15, 35)
    inner = slice(2, -2)  # at the edges a pixel has no neighbour on one side
    np.testing.assert_allclose(image[:, inner, 0], np.tile(15 + centre[inner], (64, 1)), atol=0.51)
    np.testing.assert_allclose(image[inner, :, 1], np.tile(35 + centre[inner, None], (1, 64)), atol=0.51)
    np.testing.assert_allclose(image[:, inner, 2], np.tile(240 - centre[inner], (64, 1)), atol=0.51)

    board = 255 * (np.indices((40, 40)).sum(axis=0) % 2).astype(np.uint8)  # without averaging: all black or all white
    Image.fromarray(board).save(path)
    np.testing.assert_allclose(read(path, 10, 0, 1)[1:-1, 1:-1], 127.5, atol=1)


@pytest.mark.parametrize(("crop", "left", "top", "side"), [(0, 0, 2, 20), (99, 0, 2, 20), (8, 6, 8, 8), (1, 9, 11, 1)])
def test_a_crop_that_is_not_resized_keeps_its_pixels(tmp_path, crop, left, top, side):
    pixels = np.random.default_rng(1).integers(256, size=(24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    image = read(tmp_path / "noise.png", side, crop, 3)
    np.testing.assert_array_equal(image, pixels[top : top + side, left : left + side])


def test_images_stand_upright(tmp_path):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :, 0] = 255  # the upper half is red
    turned = Image.fromarray(np.rot90(upright).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "turned.png", 16, 0, 3), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_upright_pictures(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (9, 5)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = ImageOps.exif_transpose(image).size
    assert images.survey(tmp_path, np.array([b"a.png"])).sizes.tolist() == [[*expected]]


@pytest.mark.parametrize(("first", "looked_at"), [(4_000, 9), (0, 2)])
def test_all_images_are_looked_at_where_the_largest_pixel_matters(tmp_path, monkeypatch, first, looked_at):
    monkeypatch.setattr(images, "SURVEYED", 2)
    for number in range(9):
        kind = np.uint16 if first else np.uint8
        Image.fromarray(np.full((5, 5), first + number % 8, kind)).save(tmp_path / f"{number}.png")
    names = np.array([b"%d.png" % number for number in range(9)])
    found = images.survey(tmp_path, names)
    assert (found.count, found.deepest) == (looked_at, first and first + 7)


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({"shape": (4, 16, 1), "fit": "keep"}, [1, 0.25, 1 / 16]),  # four times as wide as high
        ({"shape": (16, 16, 1)}, [0.25, 1, 0.25]),
        ({"shape": (16, 16, 1), "crop": 16}, [1 / 16, 1 / 16, 1 / 16]),
        ({"shape": (16, 16, 1), "fit": "pad"}, [1, 1, 1]),
    ],
)
def test_what_part_of_a_picture_is_left(how, kept):
    sizes = np.array([(128, 32), (64, 64), (32, 128)])
    np.testing.assert_allclose(images.kept_of(sizes, images.Prepared(**how)), kept)


def test_files_that_differ_at_one_end_only_have_other_ids(tmp_path):
    paths = [os.fsencode(tmp_path / name) for name in ("one", "two", "same", "three")]
    for path, (start, end) in zip(paths, ["aa", "ab", "aa", "ba"], strict=True):
        with open(path, "w") as file:
            file.write(start + "x" * 200_000 + end)
    _, ids = images.look_at_files(tuple(paths), (0,) * 4)
    assert len(set(ids)) == 3
    assert ids[0] == ids[2]


RED = (255, 0, 0)
PICTURES = {  # what is saved, and the RGB pixel and the grey pixel that are read
    "rgb": (lambda: Image.new("RGB", (9, 9), RED), RED, 76),
    "grey": (lambda: Image.new("L", (9, 9), 40), (40, 40, 40), 40),
    "black and white": (lambda: Image.new("1", (9, 9), 1), (255, 255, 255), 255),
    "palette": (lambda: Image.new("RGB", (9, 9), RED).quantize(4), RED, 76),
    "half transparent": (lambda: Image.new("RGBA", (9, 9), (255, 0, 0, 128)), (255, 127, 127), 165),
    "grey and transparent": (lambda: Image.new("LA", (9, 9), (40, 0)), (255, 255, 255), 255),
    "16 bits": (lambda: Image.fromarray(np.full((9, 9), 40 * 256 + 99, np.uint16)), (40, 40, 40), 40),
    "cmyk": (lambda: Image.new("CMYK", (9, 9), (0, 255, 255, 0)), RED, 76),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_pixel_becomes_8_bits(tmp_path, kind):
    make, rgb, grey = PICTURES[kind]
    make().save(path := tmp_path / "image", format="TIFF" if kind == "cmyk" else "PNG")
    np.testing.assert_allclose(read(path, 4, 0, 3), np.full((4, 4, 3), rgb), atol=1)
    np.testing.assert_allclose(read(path, 4, 0, 1), np.full((4, 4, 1), grey), atol=1)


def test_the_content_tells_the_format_and_not_the_name(tmp_path):
    draw(tmp_path / "number.jpg", 7, format="PNG")
    assert np.unique(read(tmp_path / "number.jpg", 8, 0, 3)).tolist() == [35]


def jpeg() -> bytes:
    noise = np.random.default_rng(1).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


def tiff_of_32_bits(mode: str, pixel: float) -> bytes:
    Image.new(mode, (9, 9), pixel).save(file := io.BytesIO(), "TIFF")
    return file.getvalue()


BROKEN = {
    "truncated": (jpeg()[:2_000], r"image file is truncated \(\d+ bytes not processed\)"),
    "text": (b"not found", "not an image"),
    "a web page": (b"\n<!DOCTYPE html><html>Quota exceeded</html>", "an HTML page"),
    "empty": (b"", "an empty file"),
    "whole numbers": (tiff_of_32_bits("I", 65_536), "pixels of 32 bits, whose value for white is unknown"),
    "floats": (tiff_of_32_bits("F", 0.5), "pixels of 32 bits, whose value for white is unknown"),
    "another format": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "an EPS picture, to be converted to PNG"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_told_by_file_and_reason(tmp_path, kind):
    content, why = BROKEN[kind]
    path = tmp_path / "000001.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=f"^{path}: {why}$"):
        read(path, 8, 0, 3)


def test_missing_folders_and_bombs_are_told_too(tmp_path, monkeypatch):
    with pytest.raises(BadImage, match=f"^{tmp_path}/no.jpg: No such file or directory$"):
        read(tmp_path / "no.jpg", 8, 0, 3)
    with pytest.raises(BadImage, match=f"^{tmp_path}: Is a directory$"):
        read(tmp_path, 8, 0, 3)
    draw(tmp_path / "large.png", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(BadImage, match=f"^{tmp_path}/large.png: more than 400 pixels$"):
        read(tmp_path / "large.png", 8, 0, 3)


def test_a_name_that_is_no_text_can_be_told(tmp_path):
    with pytest.raises(BadImage, match=r"xff\.jpg: No such file or directory$"):
        read(os.fsencode(tmp_path) + b"/\xff.jpg", 8, 0, 3)
