"""Whole images for an exported encoder: what training does to an image of any size, as TensorFlow functions.

Training reads its images by Pillow. TensorFlow's resizing differs from that by at most 1 of 255 in a pixel.
"""

from typing import Any

from utils.folders import CELEBA_CROP
from utils.settings import Settings
from utils.start import tf

LUMA = (19_595, 38_470, 7_471)  # of red, green and blue, in 65,536ths: Pillow's grey (ITU-R 601-2)


def crop_of(s: Settings) -> int:
    """The side in pixels of the square that is cut out first; 0 is the largest there is."""
    if s.dataset in ("folder", "celeba") or s.dataset.startswith("tfds:"):
        return s.image_crop or CELEBA_CROP * (s.dataset == "celeba")
    return 0


def prepare(image: tf.Tensor, s: Settings, shape: tuple[int, ...]) -> tf.Tensor:
    """A uint8 image (H, W, C) of any size, grey or RGB, with or without alpha -> brightness in [0, 1], of the `shape`
    that the encoder takes. Its middle is cut out in that shape and resized; what is transparent turns white.
    """
    size = tf.shape(image)
    height, width, channels = (size[axis] for axis in range(3))
    allowed = (channels >= 1) & (channels <= 4)
    tf.debugging.Assert(allowed & (height > 0) & (width > 0), ["an image is (H, W, C) with 1 to 4 channels, not", size])
    colours = tf.cast(image[..., : channels - 1 + channels % 2], tf.int32)
    alpha = tf.cast(image[..., -1:], tf.int32) if channels % 2 == 0 else tf.fill((height, width, 1), 255)
    colours = tf.broadcast_to((colours * alpha + 255 * (255 - alpha) + 127) // 255, (height, width, 3))
    if shape[-1] == 1:
        colours = (tf.reduce_sum(colours * LUMA, axis=-1, keepdims=True) + 2**15) // 2**16
    crop = crop_of(s)
    least = tf.minimum(height * shape[1], width * shape[0])  # of a square (n, n) the shorter side times n
    rows, columns = (tf.maximum(least // side, 1) for side in (shape[1], shape[0]))
    if crop:
        rows, columns = tf.minimum(rows, crop), tf.minimum(columns, crop)
    top, left = (height - rows) // 2, (width - columns) // 2
    cut = tf.cast(colours[top : top + rows, left : left + columns], tf.float32)
    resized = tf.image.resize(cut, shape[:2], antialias=True)
    return tf.ensure_shape(tf.clip_by_value(tf.round(resized), 0, 255) / 255, shape)


def read(content: tf.Tensor) -> tf.Tensor:
    """The content of a JPEG, PNG, GIF or BMP file -> its pixels, uint8 (H, W, C)."""
    if tf.io.is_jpeg(content):
        image = tf.io.decode_jpeg(content, dct_method="INTEGER_ACCURATE")  # as Pillow decodes
    else:
        image = tf.io.decode_image(content, expand_animations=False)
    return image


def in_words(s: Settings, shape: tuple[int, ...]) -> dict[str, Any]:
    """How an image is prepared, for programs that do it themselves."""
    crop = f"the middle square of {crop_of(s)} pixels, or the largest that there is" if crop_of(s) else "the middle"
    feed = "grey as it is; with BINARIZE = none the encoder was trained on that"
    if s.binarize == "dynamic":
        feed = "grey as it is, though the encoder was trained on pixels drawn 0 or 1 with their brightness as "
        feed += "probability: its answer is next to the mean over such draws, nearer than that to one draw, or rounded"
    return {
        "transparent": "on white",
        "channels": "grey: (19595 R + 38470 G + 7471 B + 32768) // 65536" if shape[-1] == 1 else "RGB",
        "turned": "as EXIF says in training; encode_image and encode_files do not, so turn such a photo before",
        "crop": f"{crop} in the shape {shape[0]} x {shape[1]}" if not crop_of(s) else crop,
        "resize": f"to (height, width) = ({shape[0]}, {shape[1]}), bilinear with antialias (Pillow's BILINEAR; "
        "tf.image.resize(antialias=True) differs by at most 1 of 255), rounded to whole numbers",
        "scale": "divided by 255: brightness in [0, 1]",
        "pixels": feed,
    }
