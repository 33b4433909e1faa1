"""Every constant you may turn, one ruled block per concern. Edit a value and run `python main.py`.

For a one-off run leave this file alone and name the constant on the command line: `python main.py --latent-dim 2`.
The annotation behind a name is what is allowed; anything else is refused in one line before the run starts. A constant
of your own is one more line, with its annotation: MY_CONSTANT is then `settings.my_constant` and `--my-constant`.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt
from pydantic import StringConstraints

_Tfds = Annotated[  # a text in an annotation says in words what is allowed
    str,
    StringConstraints(pattern=r"^tfds:[a-z][a-z0-9_]*(/[A-Za-z0-9_.-]+)?(:[0-9.*]+)?$"),
    "a name of TensorFlow Datasets as in 'tfds:cifar10'",
]
_Name = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$"),
    "a name of letters, digits, '_', '-' and '.' that starts with neither '-' nor '.'",
]
_Path = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$"), "the name or path of a folder"]
_Place = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$"), "the name or path of a folder or file"]
_Label = Annotated[int, Ge(0), Le(10**6)] | Annotated[str, StringConstraints(min_length=1), "names"]
_Width = Annotated[int, Ge(1), Le(65_536)]  # of a layer or a prior

# --- data -------------------------------------------------------------------------------------------------------------
DATASET: Literal["mnist", "fashion_mnist", "celeba", "folder", "arrays"] | _Tfds = "mnist"  # 60,000 + 10,000 grey
# images of 28 x 28: digits or clothes; faces; your own images, in files or in arrays; or e.g. "tfds:cifar10", with
# TensorFlow Datasets installed
DATA_DIR: _Place = "~/.cache/vae"  # folder where a downloaded data set is kept, so that it is fetched once; of celeba
# and folder, where the images are; of arrays, a file (.npz, .npy, .csv, IDX; plain or .gz) or the folder of such files
IMAGE_SIZE: Annotated[int, Ge(4), Le(1_024)] = 64  # pixels a side to which the images of celeba, folder and tfds: are
# resized; those of MNIST have 28, and arrays keep their own size
IMAGE_CROP: Annotated[int, Ge(0), Le(65_536)] = 0  # pixels a side of the square that is cut from the middle of an
# image before that; 0: 148 of celeba, as is usual, and the largest there is of others
IMAGE_FIT: Literal["crop", "pad", "keep"] = "crop"  # of celeba, folder and tfds: what becomes of a picture that is not
# square: its middle square is taken; all of it, on black; or (folder) a rectangle of the usual shape, whose longer side
# is IMAGE_SIZE
SKIP_BAD_IMAGES: bool = False  # True takes the next image in place of one that cannot be read, and counts them; else
# the first one ends the run
BINARIZE: Literal["dynamic", "none"] = "dynamic"  # "dynamic" draws each pixel black or white, anew every epoch,
# with its grey value as probability: what likelihoods need
LABELS: Annotated[tuple[_Label, ...], "as in (1, 7)"] = ()  # only images with these labels, by number or name, e.g.
# 1 and 7, or "cat" and "dog"; none means all
HELD_OUT: Annotated[int, Ge(0), Le(10**9)] = 0  # training images, the last ones, to hold out and test on in place
# of the test images: for choosing settings without looking at those

# --- model ------------------------------------------------------------------------------------------------------------
ARCHITECTURE: Literal["mlp", "conv", "resnet"] = "mlp"  # dense layers, convolutions, or convolutions with residual
# blocks between them
ENCODER_LAYERS: tuple[_Width, ...] = (512, 512)  # units of each dense layer before z; none: no such layer
DECODER_LAYERS: tuple[_Width, ...] = (512, 512)  # the same for the decoder, in order from z to pixels
CHANNELS: Annotated[tuple[_Width, ...], "as in (32, 64, 128)"] = (32, 64, 128)  # "conv" and "resnet": of each stage
# of the encoder, of which each halves the image as long as its side is even; the decoder goes back the same way
RESIDUAL_BLOCKS: Annotated[int, Ge(1), Le(100)] = 1  # "resnet": blocks of two convolutions behind each stage
ACTIVATION: Literal["relu", "gelu", "silu", "elu", "tanh"] = "silu"  # behind each hidden layer
LATENT_DIM: Annotated[int, Ge(1), Le(4_096)] = 20  # latents per image; 2 can be looked at as a map (manifold.png)
NOISE_DIM: Annotated[int, Ge(0), Le(4_096)] = 0  # further latents that are pure noise, which the encoder doesn't
# see: does the decoder use them? (README, Analysis)
AUTOENCODER: bool = False  # True leaves out noise and KL: the plain autoencoder, which has no prior to sample from

# --- prior ------------------------------------------------------------------------------------------------------------
PRIOR: Literal["standard", "vampprior", "mixture", "realnvp"] = "standard"  # N(0, I), or a learned one: the encoder's
# answers to learned images, Gaussians, or a flow
PRIOR_COMPONENTS: _Width = 500  # pseudo-inputs of the VampPrior, or Gaussians of the mixture
PRIOR_LAYERS: Annotated[int, Ge(1), Le(100)] = 6  # coupling layers of RealNVP
PRIOR_UNITS: _Width = 128  # units in each of the two hidden layers of a coupling network

# --- losses -----------------------------------------------------------------------------------------------------------
LOSS: Literal["ce", "mse", "ad", "logistic"] = "ce"  # cross-entropy, squared error, absolute difference, or the
# discretised logistic likelihood of 8-bit pixels, grey or coloured; in nats per image
RECONSTRUCTION_REDUCTION: Literal["sum", "mean"] = "sum"  # over pixels; "mean", a common mistake, makes the KL weigh
# 784 times as much
DECODER_SCALE: Literal["fixed", "learned"] = "fixed"  # "learned" (mse, ad; always with logistic) fits the width
# of the pixel noise, which balances reconstruction and KL by itself

# --- KL ---------------------------------------------------------------------------------------------------------------
KL_SCHEDULE: Literal["constant", "linear", "sigmoid", "cosine", "cyclical"] = "linear"  # how its weight gets
# from start to end; "constant" is KL_WEIGHT_END throughout
KL_WEIGHT_START: Annotated[float, Ge(0), Le(10**6)] = 0.0  # at step 0; a low one lets latents be used before they cost
KL_WEIGHT_END: Annotated[float, Ge(0), Le(10**6)] = 1.0  # from KL_STEPS on; 1 is the ELBO, others are beta-VAE's beta
KL_STEPS: Annotated[int, Ge(0), Lt(2**31)] = 0  # steps from start to end; 0: a third of the run, at most 2,000
KL_CYCLES: Annotated[int, Ge(1), Lt(2**31)] = 4  # ramps within KL_STEPS, "cyclical" only; each rises in its first
# half, then holds
FREE_BITS: Annotated[float, Ge(0), Le(10**6)] = 0.0  # nats of KL per latent that are free: no latent gains by giving up

# --- bound ------------------------------------------------------------------------------------------------------------
BOUND: Literal["elbo", "iwae", "dreg"] = "elbo"  # what is maximised: the ELBO, or the tighter importance-weighted bound
# ("dreg": with a less noisy gradient)
BOUND_SAMPLES: Annotated[int, Ge(1), Le(65_536)] = 1  # draws of z per image and step: a tighter bound or, of the ELBO,
# less noise
BOUND_CHUNK: Annotated[int, Ge(1), Le(65_536)] = 1_024  # with several draws, how many are worked on at once, which
# bounds the memory: a batch is split into equal parts

# --- optimiser --------------------------------------------------------------------------------------------------------
BATCH_SIZE: Annotated[int, Ge(1), Le(10**6)] = 128  # images per step, on all devices together; a larger one makes
# fewer, less noisy steps an epoch
EPOCHS: Annotated[int, Ge(1), Le(10**6)] = 15  # passes over the training images
LEARNING_RATE: Annotated[float, Ge(1e-35), Le(1e38)] = 1e-3  # Adam's step size; lower it when a run diverges
GRADIENT_CLIP: Annotated[float, Ge(0), Le(1e38)] = 0.0  # a gradient, of all weights together, is cut to this length;
# 0: never
LR_SCHEDULE: Literal["constant", "cosine"] = "cosine"  # "cosine" falls to a hundredth of it by the end of the run
MIXED_PRECISION: bool = False  # True computes hidden layers in bfloat16, which newer GPUs do faster; weights, losses
# and KL stay float32

# --- run --------------------------------------------------------------------------------------------------------------
SEED: Annotated[int, Ge(0), Lt(2**31)] = 0  # every random draw follows from it; change it to see what is chance
RUN_NAME: _Name = ""  # folder of the run; "": named after its settings, as in mnist-ce-z20
START_FROM: _Path = ""  # a run (name or folder) whose weights to start from, e.g. to go on with other labels; "":
# from random ones
OUTPUT_DIR: _Path = "predictions"  # folder that holds the runs
LOG_EVERY: Annotated[int, Ge(1), Le(10**9)] = 100  # steps between two lines of history.jsonl, each a mean over those
# steps
IMAGES_EVERY: Annotated[int, Ge(1), Le(10**6)] = 1  # epochs between two grids of samples and reconstructions
CHECKPOINT_EVERY: Annotated[int, Ge(1), Le(10**9)] = 1_000  # steps between two checkpoints, which --resume goes on from
NLL_SAMPLES: Annotated[int, Ge(0), Le(10**6)] = 128  # importance samples per test image for the log-likelihood;
# 0 leaves it out
