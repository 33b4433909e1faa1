"""Encoder and decoder bodies beyond dense layers: convolutions, with residual blocks between them if there are any.

A body is a chain of stages. Each stage of the encoder halves the image as long as its sides are even, and has channels
of its own; the decoder goes back through the same sizes. 28 x 28 with three stages goes 14, 7, 7; 64 x 64 goes 32, 16,
8. There is no normalisation, whose statistics would tie the images of a batch together: a residual block begins as the
identity instead (Zhang et al. 2019, arXiv 1901.09321: the last layer of a branch starts at zero).
Shapes: B images a batch, (H, W, C) an image or a map of features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

FLOAT32, MIXED = "float32", "mixed_bfloat16"  # what hidden layers compute in; the weights of both are float32


class Convolutions(NamedTuple):
    """The convolutional part of an encoder or a decoder."""

    channels: tuple[int, ...]  # of each stage of the encoder; the decoder has them backwards
    blocks: int  # residual blocks behind each stage; 0 for plain convolutions
    activation: str
    precision: str  # FLOAT32 or MIXED

    def layer(
        self, name: str, channels: int, key: tuple[int, ...], activation: bool = False,
        kind: type[keras.Layer] = keras.layers.Conv2D, **about: Any,
    ) -> keras.Layer:  # fmt: skip
        """A convolution that keeps the size, unless `about` says otherwise; its initial weights follow from `key`."""
        about = {"kernel_size": 3, "kernel_initializer": initializer(key), "dtype": self.precision} | about
        return kind(channels, padding="same", activation=self.activation if activation else None, name=name, **about)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The sizes of the maps before the first stage of the encoder and behind each."""
        found = [(height, width)]
        for _ in self.channels:
            height, width = found[-1]
            even = height % 2 == width % 2 == 0
            found.append((height // 2, width // 2) if even else (height, width))
        return found

    def residual(self, maps: Any, name: str, key: tuple[int, ...]) -> Any:
        """Maps (B, H, W, C) -> the same shape, through this stage's residual blocks (He et al. 2016, arXiv 1603.05027).

        The activation comes before each convolution, so that nothing stands in the way of the sum.
        """
        channels, activate = maps.shape[-1], keras.activations.get(self.activation)
        for block in range(self.blocks):
            inner = self.layer(f"{name}_{block}_in", channels, (*key, block + 1), activation=True)(activate(maps))
            maps += self.layer(f"{name}_{block}_out", channels, key, kernel_initializer="zeros")(inner)
        return activate(maps) if self.blocks else maps

    def down(self, x: Any, key: tuple[int, ...]) -> Any:
        """Images (B, H, W, C) -> features (B, h, w, channels[-1]), stage by stage."""
        sizes = self.sizes(*x.shape[1:3])
        for number, channels in enumerate(self.channels):
            name, stage_key = f"encoder_conv_{number}", (*key, number + 1)
            # A kernel of 4 that moves by 2 covers all pixels equally often (Odena et al. 2016).
            halve = {"kernel_size": 4, "strides": 2} if sizes[number] != sizes[number + 1] else {}
            x = self.layer(name, channels, stage_key, activation=not self.blocks, **halve)(x)
            x = self.residual(x, name, stage_key)
        return x

    def up(self, maps: Any, image_shape: Sequence[int], key: tuple[int, ...]) -> Any:
        """Features (B, h, w, channels[-1]) -> logits (B, *image_shape), stage by stage the way back, in float32."""
        sizes = self.sizes(*image_shape[:2])
        for number in reversed(range(len(self.channels))):
            name, stage_key = f"decoder_conv_{number}", (*key, number + 1)
            maps = self.residual(maps, name, stage_key)
            channels, activation = self.channels[max(number - 1, 0)], not self.blocks or number == 0
            if sizes[number] == sizes[number + 1]:
                maps = self.layer(name, channels, stage_key, activation)(maps)
            else:
                double = {"kernel_size": 4, "strides": 2, "kind": keras.layers.Conv2DTranspose}
                maps = self.layer(name, channels, stage_key, activation, **double)(maps)
        return self.layer("conv_pixels", image_shape[-1], key, dtype=FLOAT32)(maps)


def initializer(key: tuple[int, ...]) -> keras.initializers.Initializer:
    """Glorot's uniform initial weights, drawn by `key` alone."""
    return keras.initializers.GlorotUniform(int(np.random.SeedSequence(key).generate_state(1)[0]))
