"""Every constant you may change, in blocks. Edit a value and run `python main.py`.

To change a constant for one run only, name it on the command line: `python main.py --latent-dim 2`. The annotation
after a name says which values are allowed. Any other value is refused, in one line, before the run starts. A constant
of your own is one more line with an annotation: MY_CONSTANT is then `settings.my_constant` and `--my-constant`.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt
from pydantic import StringConstraints

_Tfds = Annotated[  # a text in an annotation is what messages show as allowed
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
DATASET: Literal["mnist", "fashion_mnist", "celeba", "folder", "arrays"] | _Tfds = "mnist"  # digits or clothes
# (70,000 grey images of 28 x 28 each), faces, your own image files or arrays, or a set of TensorFlow Datasets
DATA_DIR: _Place = "~/.cache/vae"  # folder that keeps downloads; for celeba and folder: the image folder; for arrays:
# a file (.npz, .npy, .csv, IDX; plain or .gz) or a folder of such files
IMAGE_SIZE: Annotated[int, Ge(4), Le(1_024)] = 64  # side of the images after resizing, in pixels (celeba, folder,
# tfds:); MNIST has 28, and arrays keep their size
IMAGE_CROP: Annotated[int, Ge(0), Le(65_536)] = 0  # side of the centre square that is cut out before resizing, in
# pixels; 0: 148 for celeba, else the largest square
IMAGE_FIT: Literal["crop", "pad", "keep"] = "crop"  # other shapes: "crop" takes the centre square, "pad" puts the whole
# picture on a black square, "keep" (folder only) gives all their median shape, with IMAGE_SIZE as the longer side
SKIP_BAD_IMAGES: bool = False  # an image that cannot be read: True uses the next one instead and counts it, False ends
# the run
BINARIZE: Literal["dynamic", "none"] = "dynamic"  # "dynamic" draws each pixel black or white in each epoch, with
# its brightness as the probability of white; with "ce", a likelihood needs this
LABELS: Annotated[tuple[_Label, ...], "as in (1, 7)"] = ()  # train only on these labels, by number or name: (1, 7) or
# ("cat", "dog"); none means all
HELD_OUT: Annotated[int, Ge(0), Le(10**9)] = 0  # the last so many training images are left out of training, and tested
# on instead of the test images; for choosing settings

# --- model ------------------------------------------------------------------------------------------------------------
ARCHITECTURE: Literal["mlp", "conv", "resnet"] = "mlp"  # dense layers, convolutions, or convolutions with residual
# blocks
ENCODER_LAYERS: tuple[_Width, ...] = (512, 512)  # units of each dense layer from image to z; may be empty
DECODER_LAYERS: tuple[_Width, ...] = (512, 512)  # units of each dense layer from z to image; may be empty
CHANNELS: Annotated[tuple[_Width, ...], "as in (32, 64, 128)"] = (32, 64, 128)  # of each stage of the encoder ("conv",
# "resnet"); a stage halves the image if its sides are even, and the decoder goes back the same way
RESIDUAL_BLOCKS: Annotated[int, Ge(1), Le(100)] = 1  # blocks of two convolutions after each stage ("resnet")
ACTIVATION: Literal["relu", "gelu", "silu", "elu", "tanh"] = "silu"  # after each hidden layer
LATENT_DIM: Annotated[int, Ge(1), Le(4_096)] = 20  # latents per image; with 2, manifold.png draws them as a map
NOISE_DIM: Annotated[int, Ge(0), Le(4_096)] = 0  # extra inputs of the decoder that are pure noise, to see whether it
# uses them (docs/analysis.md, 6)
AUTOENCODER: bool = False  # True: a plain autoencoder, with no noise, no KL and no prior to sample from

# --- prior ------------------------------------------------------------------------------------------------------------
PRIOR: Literal["standard", "vampprior", "mixture", "realnvp"] = "standard"  # N(0, I), or a learned one: a mixture of
# the posteriors of learned images, a mixture of Gaussians, or a flow
PRIOR_COMPONENTS: _Width = 500  # learned images of the VampPrior, or Gaussians of the mixture
PRIOR_LAYERS: Annotated[int, Ge(1), Le(100)] = 6  # coupling layers of RealNVP
PRIOR_UNITS: _Width = 128  # units in each of the two hidden layers of a coupling network

# --- losses -----------------------------------------------------------------------------------------------------------
LOSS: Literal["ce", "mse", "ad", "logistic"] = "ce"  # cross-entropy, squared error, absolute difference, or the
# discretised logistic likelihood of 8-bit pixels
RECONSTRUCTION_REDUCTION: Literal["sum", "mean"] = "sum"  # over pixels; "mean" is a common mistake: on MNIST it makes
# the KL weigh 784 times as much
DECODER_SCALE: Literal["fixed", "learned"] = "fixed"  # width of the pixel noise: "learned" (mse, ad; always with
# logistic) balances reconstruction and KL by itself

# --- KL ---------------------------------------------------------------------------------------------------------------
KL_SCHEDULE: Literal["constant", "linear", "sigmoid", "cosine", "cyclical"] = "linear"  # how the KL weight goes
# from start to end; "constant" is KL_WEIGHT_END throughout
KL_WEIGHT_START: Annotated[float, Ge(0), Le(10**6)] = 0.0  # at step 0; if low, latents are in use before they cost
KL_WEIGHT_END: Annotated[float, Ge(0), Le(10**6)] = 1.0  # from step KL_STEPS on; 1 is the ELBO, others are beta-VAE
KL_STEPS: Annotated[int, Ge(0), Lt(2**31)] = 0  # steps from start to end; 0: a third of the run, at most 2,000
KL_CYCLES: Annotated[int, Ge(1), Lt(2**31)] = 4  # ramps within KL_STEPS ("cyclical"); each rises in its first half
FREE_BITS: Annotated[float, Ge(0), Le(10**6)] = 0.0  # nats of KL that each latent has free, to keep it active

# --- bound ------------------------------------------------------------------------------------------------------------
BOUND: Literal["elbo", "iwae", "dreg"] = "elbo"  # what is maximised: the ELBO, or the tighter importance-weighted
# bound, "iwae" with its plain gradient, "dreg" with a less noisy one
BOUND_SAMPLES: Annotated[int, Ge(1), Le(65_536)] = 1  # draws of z per image and step; more make a tighter bound or,
# with the ELBO, less noise
BOUND_CHUNK: Annotated[int, Ge(1), Le(65_536)] = 1_024  # largest number of draws computed at once; a batch with more
# is split into equal parts, to save memory

# --- optimiser --------------------------------------------------------------------------------------------------------
BATCH_SIZE: Annotated[int, Ge(1), Le(10**6)] = 128  # images per step, on all devices together
EPOCHS: Annotated[int, Ge(1), Le(10**6)] = 15  # passes over the training images
LEARNING_RATE: Annotated[float, Ge(1e-35), Le(1e38)] = 1e-3  # of Adam; lower it if a run diverges
GRADIENT_CLIP: Annotated[float, Ge(0), Le(1e38)] = 0.0  # largest norm of a step's gradient; 0: no limit
LR_SCHEDULE: Literal["constant", "cosine"] = "cosine"  # "cosine" falls to a hundredth by the end of the run
MIXED_PRECISION: bool = False  # True computes hidden layers in bfloat16, which is faster on newer GPUs

# --- run --------------------------------------------------------------------------------------------------------------
SEED: Annotated[int, Ge(0), Lt(2**31)] = 0  # of all random draws; change it to see what is chance
RUN_NAME: _Name = ""  # folder of the run; "": a name made from its settings, such as mnist-ce-z20
START_FROM: _Path = ""  # a run, by name or folder, whose weights to start from; "": random weights
OUTPUT_DIR: _Path = "predictions"  # folder that holds the runs
LOG_EVERY: Annotated[int, Ge(1), Le(10**9)] = 100  # each line of history.jsonl is the mean of so many steps
IMAGES_EVERY: Annotated[int, Ge(1), Le(10**6)] = 1  # epochs between two grids of samples and reconstructions
CHECKPOINT_EVERY: Annotated[int, Ge(1), Le(10**9)] = 1_000  # steps between two checkpoints
NLL_SAMPLES: Annotated[int, Ge(0), Le(10**6)] = 128  # importance samples per test image for the log-likelihood; 0: none
