"""explore.html: a trained VAE as a page for the browser, in one file that needs no network and no server.

The page's source is in utils/page/. Its JavaScript runs the encoder and the decoder. This module puts the parts of the
page together: the layers with their weights as float16, test images with their codes, the settings and the report. ONNX
Runtime Web could run the networks too, but it needs 14 MB of WebAssembly for a model of 3 MB, and a converter to ONNX.
Our own layers take 150 lines (network.js).
Shapes: N images, L latents (L + NOISE_DIM if there are noise latents), C components of a prior.
"""

import base64
import html
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils import pictures, report, runs, size
from utils.batches import brightness
from utils.celeba import CELEBA_CROP
from utils.console import Problem, Say, in_one_line
from utils.dataset import Dataset, Images, in_batches, label_name
from utils.files import write_whole
from utils.priors import LOG_SCALE_BOUND
from utils.settings import Settings
from utils.start import keras, tf

NAME = "explore.html"
MOST_PARAMETERS = 10_000_000
MOST_IMAGES = 2_000  # on the map
IMAGE_BYTES = 8 * 2**20  # limit for these images and their codes, uncompressed, so there are fewer large images
FEWEST_IMAGES = 10  # however large they are
MOST_LABELS = 20  # colours on the map; if there are more labels, the rarer ones share the last colour
PAGE = Path(__file__).parent / "page"
SCRIPTS = (  # a module comes before the modules that import it
    "network", "vae", "canvas", "state", "map", "latents", "paper", "charts", "draw", "walk", "samples", "page",
)  # fmt: skip
LOSSES = {"ce": "ce", "mse": "mse", "ad": "ad"}  # by LOSS, the names in vae.js
LEARNED_LOSSES = {"mse": "gaussian", "ad": "laplace", "logistic": "logistic"}  # with DECODER_SCALE = learned


class NoPage(Problem):
    """The reason why a model gets no page."""


# --- the model --------------------------------------------------------------------------------------------------------
class Tensors:
    """The numbers of a page, one after the other: `add` appends an array and returns where it is."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.end = 0

    def add(self, array: Any, half: bool = False) -> dict[str, Any]:
        """Append an array, as float16 if `half`, else float32. Raises NoPage if this type cannot hold a number."""
        numbers = np.asarray(array, np.float32)
        if not np.all(np.isfinite(numbers)):
            raise NoPage("a number of the model is not finite")
        if half and np.abs(numbers).max(initial=0) > np.finfo(np.float16).max:
            raise NoPage(f"a weight of {np.abs(numbers).max():.3g} is too large for the page's float16")
        content = numbers.astype("<f2" if half else "<f4").tobytes()
        place = {"at": self.end, "size": numbers.size, "half": half}
        self.parts.append(content + b"\0" * (-len(content) % 4))  # the browser needs float32 at multiples of 4
        self.end += len(self.parts[-1])
        return place


def name_of_activation(function: Any, layer: str) -> str:
    """The name of a Keras activation in network.js. Raises NoPage if it has none."""
    name = getattr(function, "__name__", type(function).__name__)
    if name not in ("linear", "relu", "gelu", "silu", "elu", "tanh", "sigmoid"):
        raise NoPage(f"layer {layer} has the activation {name}, which the page does not know")
    return name


def convolution(layer: Any, before: Sequence[int], after: Sequence[int], transposed: bool) -> dict[str, Any]:
    """Describe a convolution for network.js, from maps of one size (H, W, C) to another. Raises NoPage."""
    kernel, strides = layer.kernel_size, layer.strides
    usual = getattr(layer, "groups", 1) == 1 and set(layer.dilation_rate) == {1}
    usual = usual and layer.data_format == "channels_last"
    if not usual or (transposed and layer.padding != "same") or layer.padding not in ("same", "valid"):
        raise NoPage(f"layer {layer.name} is a convolution of a kind that the page does not know")
    large, small = (after, before) if transposed else (before, after)
    missing = [(small[side] - 1) * strides[side] + kernel[side] - large[side] for side in (0, 1)]
    pad = [max(pixels, 0) // 2 for pixels in missing] if layer.padding == "same" else [0, 0]
    return {"from": before, "to": after, "size": kernel, "strides": strides, "pad": pad}


def steps_of(network: keras.Model, tensors: Tensors) -> dict[str, Any]:
    """Describe a network's layers and operations for network.js, in order; add their weights to `tensors`.

    Raises NoPage for a layer that the page does not know.
    """
    if not hasattr(network, "operations"):
        raise NoPage(f"{type(network).__name__} is not a network of Keras layers that the page can follow")
    numbers = {id(tensor): number for number, tensor in enumerate(network.inputs)}
    steps = []
    for part in network.operations:
        if isinstance(part, keras.layers.InputLayer):
            continue
        if len(part._inbound_nodes) != 1:  # Keras 3 has no public name for the uses of a layer
            raise NoPage(f"layer {part.name} is used more than once, which the page does not know")
        ends = [keras.tree.flatten(end) for end in (part.input, part.output)]
        before, after = ([list(tensor.shape[1:]) for tensor in end] for end in ends)
        kind, about = known(part, before, after)
        for name in ("kernel", "bias") if kind in ("dense", "conv", "transposed_conv") else ():
            weight = getattr(part, name)
            about[name] = tensors.add(np.zeros(after[0][-1]) if weight is None else weight, half=True)
        for tensor in ends[1]:
            numbers[id(tensor)] = len(numbers)
        inputs, outputs = ([numbers[id(tensor)] for tensor in end] for end in ends)
        sizes = [math.prod(shape) for shape in after]
        steps.append({"layer": kind, "inputs": inputs, "outputs": outputs, "sizes": sizes, **about})
    return {"steps": steps, "results": [numbers[id(tensor)] for tensor in network.outputs]}


def known(part: Any, before: list[list[int]], after: list[list[int]]) -> tuple[str, dict[str, Any]]:
    """The name of a layer or an operation in network.js, and what network.js needs to know about it.

    `before` and `after` are the shapes of its inputs and outputs. Raises NoPage if network.js does not know it.
    """
    layers, kind = keras.layers, type(part).__name__
    if type(part) is layers.Dense and len(before[0]) == 1:
        return "dense", {"activation": name_of_activation(part.activation, part.name)}
    if type(part) in (layers.Conv2D, layers.Conv2DTranspose):
        transposed = type(part) is layers.Conv2DTranspose
        about = convolution(part, before[0], after[0], transposed)
        name = "transposed_conv" if transposed else "conv"
        return name, about | {"activation": name_of_activation(part.activation, part.name)}
    if type(part) in (layers.Flatten, layers.Reshape):
        return "reshape", {}
    if type(part) is layers.Activation:
        return "activation", {"activation": name_of_activation(part.activation, part.name)}
    if not isinstance(part, keras.Layer):
        exact = {"Gelu": getattr(part, "approximate", None) is False, "Elu": getattr(part, "alpha", None) == 1}
        if kind in ("Relu", "Silu", "Tanh") or exact.get(kind):
            return "activation", {"activation": kind.lower()}
        if kind == "Add" and len(before) == 2 and before[0] == before[1]:
            return "add", {}
        if kind == "Split" and part.axis == 1 and len({*map(tuple, after)}) == 1 and len(before[0]) == 1:
            return "split", {}
        if kind == "Pad" and len(before[0]) == 1 and part.pad_width[1][0] == 0 and part.mode == "constant":
            return "pad", {}
    raise NoPage(f"layer {part.name} ({kind}) is of a kind that the page does not know")


def prior_of(vae: Any, s: Settings, tensors: Tensors) -> dict[str, Any]:
    """Describe the prior for vae.js; add its numbers to `tensors`. A VampPrior becomes the mixture of its encoder."""
    if s.autoencoder or s.prior == "standard":
        return {"kind": "none" if s.autoencoder else "standard"}
    if s.prior == "realnvp":
        weights = vae.prior.weights  # six for each coupling network
        networks = [coupling_of(weights[first : first + 6], tensors) for first in range(0, len(weights), 6)]
        return {"kind": "realnvp", "couplings": networks, "bound": LOG_SCALE_BOUND}
    if s.prior == "vampprior":
        (pixels,) = vae.prior.weights
        means, log_stds = in_batches(
            lambda some, start: [part[:, : s.latent_dim] for part in vae.encoder(tf.sigmoid(some))],
            pixels.numpy(),
            size.at_once(vae),
        )
        log_shares = np.full(len(means), -np.log(len(means)))
    else:
        means, log_stds, logits = (weight.numpy() for weight in vae.prior.weights)
        log_shares = tf.nn.log_softmax(logits).numpy()
    about = {"means": means, "log_stds": log_stds, "log_shares": log_shares}
    return {"kind": "mixture"} | {name: tensors.add(part) for name, part in about.items()}


def coupling_of(weights: Sequence[Any], tensors: Tensors) -> dict[str, Any]:
    """Describe a RealNVP coupling network for network.js, from the kernels and biases of its three dense layers."""
    steps = []
    for number, activation in enumerate(("relu", "relu", "linear")):
        kernel, bias = weights[2 * number : 2 * number + 2]
        about = {"kernel": tensors.add(kernel, half=True), "bias": tensors.add(bias, half=True)}
        ends = {"inputs": [number], "outputs": [number + 1], "sizes": [bias.shape[0]]}
        steps.append({"layer": "dense", "activation": activation, **ends, **about})
    return {"steps": steps, "results": [3]}


def check_size(vae: Any) -> int:
    """The number of a VAE's parameters. Raises NoPage if there are too many for a page."""
    count = sum(math.prod(weight.shape) for weight in vae.weights)
    if count > MOST_PARAMETERS:
        raise NoPage(f"{size.millions(count)} M parameters; a page takes {size.millions(MOST_PARAMETERS)} M at most")
    return count


def loss_of(s: Settings) -> str | None:
    """The name of the loss in vae.js; None for a loss that vae.js does not know, such as the user's own."""
    return (LOSSES if s.decoder_scale == "fixed" else LEARNED_LOSSES).get(s.loss)


# --- the images -------------------------------------------------------------------------------------------------------
def chosen(test_images: Images, s: Settings) -> np.ndarray:
    """The positions of the test images (N, H, W, C) that the page shows: MOST_IMAGES, evenly spaced, or fewer."""
    count, each = len(test_images), math.prod(test_images.shape[1:]) + 8 * (s.latent_dim + s.noise_dim)
    most = max(FEWEST_IMAGES, min(MOST_IMAGES, IMAGE_BYTES // each))
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def labels_of(labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """For each image the number of its label among `names`; if there are many, the rarer ones share one name."""
    found, counts = np.unique(labels, return_counts=True)
    if len(found) > MOST_LABELS:
        found = np.sort(found[np.argsort(-counts, kind="stable")[: MOST_LABELS - 1]])
    called = [label_name(label, names) for label in found]
    position = {label: number for number, label in enumerate(found)}
    of = [position.get(label, len(found)) for label in labels]
    return {"names": called + ["other labels"] * (len(found) in of), "of": of}


def plane_of(z_mean: np.ndarray, tensors: Tensors) -> dict[str, Any] | None:
    """The plane through the codes (N, L) in which they differ most (PCA): a point, and two directions of length 1.

    None if there are two latents or fewer, or hardly any images.
    """
    if min(z_mean.shape) < 3:
        return None
    centre = z_mean.mean(axis=0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(z_mean - centre, full_matrices=False)
    across, up = (direction * np.sign(direction[np.abs(direction).argmax()]) for direction in directions[:2])
    share = float((lengths[:2] ** 2).sum() / max((lengths**2).sum(), 1e-30))
    named = {"centre": centre, "across": across, "up": up}
    return {"share": share} | {name: tensors.add(part) for name, part in named.items()}


def sprite(images: np.ndarray) -> tuple[str, int]:
    """All images (N, H, W, C) in one square picture, as a PNG in base64, and the number of images in a row."""
    columns = math.ceil(math.sqrt(len(images)))
    sheet = pictures.grid(images, columns, gap=0)
    Image.fromarray(sheet.squeeze(axis=2) if sheet.shape[2] == 1 else sheet).save(content := io.BytesIO(), format="PNG")
    return base64.b64encode(content.getvalue()).decode(), columns


# --- the page ---------------------------------------------------------------------------------------------------------
def script() -> str:
    """The modules of utils/page/ as one script, because a page that is opened as a file may not import modules.

    Each module becomes a function that is called immediately and returns what the module exports.
    """
    return "\n".join(["const modules = {};", *map(wrapped, SCRIPTS)])


def wrapped(name: str) -> str:
    """A module as `modules.name = ...`. Each import must be one line, and `export` must precede a definition."""
    code = (PAGE / f"{name}.js").read_text(encoding="utf-8")
    code = re.sub(r'^import ({.*}) from "./(\w+).js";', r"const \1 = modules.\2;", code, flags=re.MULTILINE)
    exported = re.findall(r"^export (?:async )?(?:function|const) (\w+)", code, flags=re.MULTILINE)
    code = re.sub(r"^export ", "", code, flags=re.MULTILINE)
    return f"modules.{name} = (() => {{\n{code}\nreturn {{ {', '.join(exported)} }};\n}})();"


def filled_in(pieces: dict[str, str]) -> str:
    """The page with each {{NAME}} replaced by its piece."""
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda found: pieces[found[1]], page)


def as_json(value: Any) -> str:
    """JSON that is safe in a script element, whatever texts it has. Raises ValueError for NaN and infinity."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def settings_in_page(s: Settings) -> dict[str, str]:
    """The settings as texts. Paths are cut to their last part, because the page may be given to others."""

    def text(value):
        if not isinstance(value, str):
            return repr(value)
        return os.path.basename(os.path.normpath(value)) if os.path.isabs(os.path.expanduser(value)) else value

    return {name.upper(): text(value) for name, value in s.model_dump().items()}


def report_in_page(judged: dict[str, Any] | None) -> dict[str, Any] | None:
    """The report as texts; None if the run has none. What an old report lacks is left out."""
    if judged is None:
        return None
    missing = dict.fromkeys(report.REPORTED) | {"remarks": [], "problems": [], "unfinished": []}
    judged = missing | {"verdict": "healthy" if judged.get("healthy") else "unhealthy"} | judged
    answer, problems = report.answer(judged)
    return {"answer": answer, "problems": problems, "rows": report.rows_of_report(judged)}


def make_page(
    name: str, vae: Any, s: Settings, dataset: Dataset, costs: Sequence[np.ndarray], step: int,
    judged: dict[str, Any] | None,
) -> str:  # fmt: skip
    """The page of a VAE trained for `step` steps, as HTML.

    `costs` are the reconstruction loss (N,) and the KL (N, L) of the test images, in nats; `judged` is the run's
    report, if it has one. Raises NoPage.
    """
    parameters, tensors = check_size(vae), Tensors()
    images, shape = dataset.test_images, dataset.test_images.shape[1:]
    rows = chosen(images, s)
    some = images[rows]
    z_mean, z_log_std = in_batches(
        lambda batch, start: vae.encoder(brightness(batch)), some, size.at_once(vae), "encoding"
    )
    picture, columns = sprite(some)
    about = {
        "run": name,
        "title": dataset.title,
        "step": step,
        "parameters": parameters,
        "shape": shape,
        "test_images": len(images),
        "latents": s.latent_dim,
        "noise": s.noise_dim,
        "autoencoder": s.autoencoder,
        "loss": loss_of(s),
        "log_scale": None if vae.log_scale is None else float(vae.log_scale.numpy()),
        "sum": "ELBO" if report.kind(s) != "none" else report.NO_ELBO,
        "binary": s.binarize == "dynamic",
        "centred": s.dataset == "mnist",
        "crop": s.image_crop or (CELEBA_CROP if s.dataset == "celeba" and s.image_fit == "crop" else 0),
        "fit": s.image_fit,
        "active_variance": report.ACTIVE_VARIANCE,
        "encoder": steps_of(vae.encoder, tensors),
        "decoder": steps_of(vae.decoder, tensors),
        "prior": prior_of(vae, s, tensors),
        "labels": labels_of(dataset.test_labels[rows], dataset.label_names),
        "columns": columns,
        "z_mean": tensors.add(z_mean),
        "z_log_std": tensors.add(z_log_std),
        "decoded": tensors.add(tf.sigmoid(vae.decoder(z_mean[:1]))),
        "costs": [tensors.add(costs[0][rows]), tensors.add(costs[1][rows].sum(axis=1))],
        "plane": plane_of(z_mean[:, : s.latent_dim], tensors),
        "settings": settings_in_page(s),
        "report": report_in_page(judged),
    }
    pieces = {
        "TITLE": html.escape(name),
        "STYLE": (PAGE / "style.css").read_text(encoding="utf-8"),
        "SCRIPT": script(),
        "ABOUT": as_json(about),
        "NUMBERS": base64.b64encode(b"".join(tensors.parts)).decode(),
        "SPRITE": picture,
    }
    return filled_in(pieces)


def write_page(
    folder: Path, vae: Any, s: Settings, dataset: Dataset, costs: Sequence[np.ndarray], judged: dict[str, Any] | None,
    kind: str = "step",
) -> None:  # fmt: skip
    """Write the page of a run into its folder. `kind` is the kind of the checkpoint (experiments/load.py).

    The other arguments are as in make_page. Raises NoPage and OSError.
    """
    page = make_page(folder.name, vae, s, dataset, costs, runs.newest_step(folder, kind), judged)
    write_whole(folder / NAME, page.encode(errors="backslashreplace"))


def leave_page(say: Say, folder: Path, *about: Any) -> None:
    """Call write_page at the end of a run. An error is reported in one line and does not stop the run."""
    try:
        (folder / NAME).unlink(missing_ok=True)  # an earlier checkpoint's page could be mistaken for this one's
        write_page(folder, *about)
    except Exception as error:
        why = str(error) if isinstance(error, Problem | OSError) else f"{type(error).__name__}: {error}"
        say(f"explore    no page: {in_one_line(why)}")


def link(folder: Path) -> str:
    """A line with a link to the page of a run, which a terminal can open; "" if there is no page."""
    page = folder.absolute() / NAME
    return f"explore    {page.as_uri()}" if page.exists() else ""
