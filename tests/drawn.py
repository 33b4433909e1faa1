"""Image files that can be told apart by their shade of grey."""

import numpy as np
from PIL import Image


def shade(number):
    """A level of grey that tells the images of a test apart, also after JPEG's losses."""
    return 5 * number


def draw(path, number, mode="RGB", size=(20, 24), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade(number)).convert(mode).save(path, **options)


def numbers_of(images):
    """Which images these are, by their shades."""
    return np.rint(images[:].mean(axis=(1, 2, 3)) / 5).astype(int).tolist()
