"""What ARCHITECTURE adds to the dense layers: convolutions, and with "resnet" residual blocks between them.

The network is a chain of stages. Each stage of the encoder halves the image if its sides are even, and has its own
number of channels. The decoder goes back through the same sizes. Three stages turn 28 x 28 into 14, 7, 7 and 64 x 64
into 32, 16, 8. There is no normalisation, because its statistics would make the images of a batch depend on each other.
Instead, a residual block starts as the identity: the last layer of its branch starts at zero (Zhang et al. 2019, arXiv
1901.09321).
Shapes: B images a batch, (H, W, C) an image or a map of features.
"""

import math
from collections.abc import Sequence
from typing import Any

from utils.chance import DECODER_WEIGHTS, ENCODER_WEIGHTS, initializer
from utils.settings import Settings
from utils.start import keras

CONVOLUTIONS = 1_000  # in a key, in place of a dense layer's number


def hidden_precision(s: Settings) -> str:
    """The number format that hidden layers compute in; their weights are always float32."""
    return "mixed_bfloat16" if s.mixed_precision else "float32"


def with_noise_latents(z_mean: Any, z_log_std: Any, s: Settings) -> tuple[Any, Any]:
    """z_mean and z_log_std (B, L), followed by NOISE_DIM latents whose posterior is N(0, 1) for every image."""
    if not s.noise_dim:
        return z_mean, z_log_std
    return tuple(keras.ops.pad(part, [[0, 0], [0, s.noise_dim]]) for part in (z_mean, z_log_std))


# --- convolutions -----------------------------------------------------------------------------------------------------
def convolutions(x: Any, s: Settings) -> Any:
    """Images (B, H, W, C) -> features (B, h, w, CHANNELS[-1]), stage by stage."""
    sizes, key = map_sizes(*x.shape[1:3], s), (s.seed, ENCODER_WEIGHTS, CONVOLUTIONS)
    for number, channels in enumerate(s.channels):
        name, stage_key = f"encoder_conv_{number}", (*key, number + 1)
        # A kernel of 4 that moves by 2 covers all pixels equally often (Odena et al. 2016).
        halve = {"kernel_size": 4, "strides": 2} if sizes[number] != sizes[number + 1] else {}
        x = convolution(name, channels, stage_key, s, activate=not residual_blocks(s), **halve)(x)
        x = with_residuals(x, name, stage_key, s)
    return x


def transposed_convolutions(hidden: Any, image_shape: Sequence[int], s: Settings) -> Any:
    """The decoder's last hidden layer (B, units) -> logits (B, *image_shape), through the stages in reverse order."""
    sizes, key = map_sizes(*image_shape[:2], s), (s.seed, DECODER_WEIGHTS, CONVOLUTIONS)
    smallest, precision = (*sizes[-1], s.channels[-1]), hidden_precision(s)
    weights = initializer((s.seed, DECODER_WEIGHTS, len(s.decoder_layers)))
    hidden = keras.layers.Dense(
        math.prod(smallest), s.activation, kernel_initializer=weights, name="maps", dtype=precision
    )(hidden)
    maps = keras.layers.Reshape(smallest, dtype=precision)(hidden)
    for number in reversed(range(len(s.channels))):
        name, stage_key = f"decoder_conv_{number}", (*key, number + 1)
        maps = with_residuals(maps, name, stage_key, s)
        channels, activate = s.channels[max(number - 1, 0)], not residual_blocks(s) or number == 0
        double = {}
        if sizes[number] != sizes[number + 1]:
            double = {"kernel_size": 4, "strides": 2, "kind": keras.layers.Conv2DTranspose}
        maps = convolution(name, channels, stage_key, s, activate, **double)(maps)
    return convolution("conv_pixels", image_shape[-1], key, s, dtype="float32")(maps)


def residual_blocks(s: Settings) -> int:
    """How many residual blocks follow each stage."""
    return s.residual_blocks if s.architecture == "resnet" else 0


def map_sizes(height: int, width: int, s: Settings) -> list[tuple[int, int]]:
    """The sizes of the maps before the first stage of the encoder and after each."""
    found = [(height, width)]
    for _ in s.channels:
        height, width = found[-1]
        even = height % 2 == width % 2 == 0
        found.append((height // 2, width // 2) if even else (height, width))
    return found


def convolution(
    name: str, channels: int, key: tuple[int, ...], s: Settings, activate: bool = False,
    kind: type[keras.Layer] = keras.layers.Conv2D, **about: Any,
) -> keras.Layer:  # fmt: skip
    """A convolution that keeps the size, unless `about` says otherwise; its initial weights depend on `key`."""
    about = {"kernel_size": 3, "kernel_initializer": initializer(key), "dtype": hidden_precision(s)} | about
    return kind(channels, padding="same", activation=s.activation if activate else None, name=name, **about)


def with_residuals(maps: Any, name: str, key: tuple[int, ...], s: Settings) -> Any:
    """Maps (B, H, W, C) -> the same shape, through a stage's residual blocks (He et al. 2016, arXiv 1603.05027).

    The activation comes before each convolution, so that the sum passes from block to block unchanged.
    """
    blocks, channels, activate = residual_blocks(s), maps.shape[-1], keras.activations.get(s.activation)
    for block in range(blocks):
        inner = convolution(f"{name}_{block}_in", channels, (*key, block + 1), s, activate=True)(activate(maps))
        maps += convolution(f"{name}_{block}_out", channels, key, s, kernel_initializer="zeros")(inner)
    return activate(maps) if blocks else maps
