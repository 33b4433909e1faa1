"""Prepare images of any size for an exported encoder, as training does, with TensorFlow functions.

Training reads its images with Pillow. TensorFlow's resizing differs from Pillow's by at most 1 of 255 in a pixel.
"""

from typing import Any

from utils.celeba import CELEBA_CROP
from utils.images import Prepared
from utils.settings import Settings
from utils.start import tf

LUMA = (19_595, 38_470, 7_471)  # weights of red, green and blue, in 65,536ths: Pillow's grey (ITU-R 601-2)


def prepared(s: Settings, shape: tuple[int, ...]) -> Prepared:
    """How a run's images got their shape; if the data set already had it, how to fit other images to it."""
    if s.dataset in ("folder", "celeba") or s.dataset.startswith("tfds:"):
        published = CELEBA_CROP * (s.dataset == "celeba" and s.image_fit == "crop")
        return Prepared(shape, s.image_crop or published, s.image_fit)
    return Prepared(shape, 0, "keep")


def prepare(image: tf.Tensor, how: Prepared) -> tf.Tensor:
    """A uint8 image (H, W, C) of any size, grey or RGB, with or without alpha -> brightness in [0, 1] of how.shape.

    It does the same as utils/images.decode; transparent pixels turn white.
    """
    size, shape = tf.shape(image), how.shape
    height, width, channels = (size[axis] for axis in range(3))
    allowed = (channels >= 1) & (channels <= 4)
    tf.debugging.Assert(allowed & (height > 0) & (width > 0), ["an image is (H, W, C) with 1 to 4 channels, not", size])
    colours = tf.cast(image[..., : channels - 1 + channels % 2], tf.int32)
    alpha = tf.cast(image[..., -1:], tf.int32) if channels % 2 == 0 else tf.fill((height, width, 1), 255)
    colours = tf.broadcast_to((colours * alpha + 255 * (255 - alpha) + 127) // 255, (height, width, 3))
    if shape[-1] == 1:
        colours = (tf.reduce_sum(colours * LUMA, axis=-1, keepdims=True) + 2**15) // 2**16
    if how.fit == "crop" or how.crop:
        side = tf.minimum(height, width)
        height = width = tf.minimum(side, how.crop) if how.crop else side
        colours = middle(colours, height, width)
    inside = shape[:2]
    if how.fit == "keep":  # crop to the aspect ratio of the shape
        ratio = shape[1] / shape[0]
        colours = middle(
            colours, tf.minimum(height, rounded(width, 1 / ratio)), tf.minimum(width, rounded(height, ratio))
        )
    elif how.fit == "pad":  # keep the whole image
        ratio = tf.cast(height / width, tf.float64)
        inside = [tf.minimum(shape[0], rounded(shape[1], ratio)), tf.minimum(shape[1], rounded(shape[0], 1 / ratio))]
    resized = tf.image.resize(tf.cast(colours, tf.float32), inside, antialias=True)
    top, left = (
        rounded(side - within, 0.5, 0)
        for side, within in zip(shape[:2], tf.unstack(tf.shape(resized)[:2]), strict=True)
    )
    framed = tf.image.pad_to_bounding_box(resized, top, left, *shape[:2])  # on black
    return tf.ensure_shape(tf.clip_by_value(tf.round(framed), 0, 255) / 255, shape)


def middle(image: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The middle part, of this size, of an image (H, W, C)."""
    top, left = (tf.shape(image)[0] - height) // 2, (tf.shape(image)[1] - width) // 2
    return image[top : top + height, left : left + width]


def rounded(side: Any, ratio: Any, least: int = 1) -> tf.Tensor:
    """The length `side` * `ratio`, rounded, and at least `least`; halves are rounded as in Pillow."""
    return tf.maximum(tf.cast(tf.round(tf.cast(side, tf.float64) * ratio), tf.int32), least)


def read(content: tf.Tensor) -> tf.Tensor:
    """The content of a JPEG, PNG, GIF or BMP file -> its pixels, uint8 (H, W, C)."""
    if tf.io.is_jpeg(content):
        image = tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE")  # as Pillow decodes
    else:
        image = tf.io.decode_image(content, expand_animations=False)
    return image


def in_words(s: Settings, how: Prepared) -> dict[str, Any]:
    """How an image is prepared, in words, for programs that do it themselves."""
    shape = how.shape
    square = (
        f"its middle square of {how.crop} pixels, or the largest" if how.crop else "the largest square in its middle"
    )
    cut = {"crop": square, "pad": "all of it, on black", "keep": "its middle, as much as has the shape"}[how.fit]
    cut = f"{square}, then {cut}" if how.crop and how.fit != "crop" else cut
    feed = "grey as it is; with BINARIZE = none the encoder was trained on that"
    if s.binarize == "dynamic":
        feed = "grey as it is, though the encoder was trained on pixels drawn 0 or 1 with their brightness as "
        feed += "probability: its answer is near the mean over such draws; for one draw or rounded pixels it is farther"
    return {
        "transparent": "on white",
        "channels": "grey: (19595 R + 38470 G + 7471 B + 32768) // 65536" if shape[-1] == 1 else "RGB",
        "turned": "as EXIF says in training; encode_image and encode_files ignore EXIF, so turn such a photo first",
        "crop": cut,
        "resize": f"to (height, width) = ({shape[0]}, {shape[1]}), bilinear with antialias (Pillow's BILINEAR; "
        "tf.image.resize(antialias=True) differs by at most 1 of 255), rounded to whole numbers",
        "scale": "divided by 255: brightness in [0, 1]",
        "pixels": feed,
    }
