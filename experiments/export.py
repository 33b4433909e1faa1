"""Export a trained model for other programs: encoder and decoder as Keras files, and all as a TensorFlow SavedModel.

    python -m experiments.export mnist-ce-z20
    python -m experiments.export predictions/mnist-ce-z20 --to /srv/models/digits

It writes the run's newest checkpoint into the run's folder as export/. Reading it needs no code of this project:

- encoder.keras, x (B, H, W, C) -> z_mean, z_log_std (B, L), and decoder.keras, z (B, L) -> logits (B, H, W, C), for
  keras.models.load_model. L includes the noise latents of NOISE_DIM, for which the encoder returns N(0, 1);
- saved_model/, for tf.saved_model.load, TensorFlow Serving and other languages, with the signatures
    encode        x, brightness in [0, 1] (B, H, W, C)   -> z_mean, z_log_std (B, L)
    encode_uint8  x, uint8, 0 to 255 (B, H, W, C)        -> the same
    encode_image  image, uint8 of any size (H', W', C')  -> z_mean, z_log_std (1, L)
    encode_files  image_bytes, B JPEG or PNG files       -> z_mean, z_log_std (B, L)
    decode        z (B, L)                               -> brightness (B, H, W, C), the sigmoid of the logits
    sample        count, int32, and seed, int64          -> brightness (count, H, W, C) of draws from the prior
  In Python model.encode also takes uint8. Brightness outside [0, 1] is an error. encode_image and encode_files prepare
  an image as training did; export.json describes how (experiments/whole_images.py). The same count and seed give the
  same draws; the run's SEED and a count of 100 give the images of its samples_*.png.
  A plain autoencoder has no prior, and so no sample;
- with --tflite also encode.tflite and decode.tflite, for TensorFlow Lite: like encode and decode, but without checks;
- export.json: the run and its settings, the step, the signatures, versions, how to load it, how to prepare an image.

An earlier export of the run is replaced. The folder always holds the old one or the new one, never parts of both.
"""

# ruff: noqa: E402 (the command line is read first, before the seconds that TensorFlow takes)

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.load import load_vae, read_run
from utils import console
from utils.console import Say, experiment_parser
from utils.settings import Settings


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("export", __doc__)
    parser.add_argument("--to", metavar="FOLDER", help="folder to write [default export in the run's folder]")
    parser.add_argument("--tflite", action="store_true", help="write encode.tflite and decode.tflite, too")
    return read_run(parser, argv)


if __name__ == "__main__":
    console.begin()
    ASKED = read_command_line()

import main as vae_main
from experiments import whole_images
from utils import checkpoints, runs
from utils.chance import GRID_LATENTS, random_key
from utils.files import write_folder, write_json
from utils.quiet import quiet_start
from utils.start import keras, tf

FILES = ("encoder.keras", "decoder.keras", "saved_model", "export.json")
TFLITE = ("encode.tflite", "decode.tflite")
ROUNDING = 1e-5  # a brightness may be outside [0, 1] by this much, because resizing rounds


# --- the functions ----------------------------------------------------------------------------------------------------
def exported_functions(vae: Any, s: Settings, image_shape: tuple[int, ...]) -> dict[str, Callable]:
    """The functions of the SavedModel, traced for each type they take; a plain autoencoder has no `sample`.

    encode_image and encode_files exist only if the model's images are grey or RGB. XLA compiles nothing here, because
    not every program that loads the model has XLA, and because it draws other random numbers.
    """

    how = whole_images.prepared(s, image_shape)

    def encoded(x):
        z_mean, z_log_std = vae.encoder(x)
        return {"z_mean": z_mean, "z_log_std": z_log_std}

    @tf.function
    def encode(x):
        if x.dtype == tf.uint8:
            return encoded(tf.cast(x, tf.float32) / 255)
        told = "encode takes uint8, or floats in [0, 1]; the least and the greatest value here are"
        inside = tf.reduce_all((x >= -ROUNDING) & (x <= 1 + ROUNDING))  # both are false for NaN
        tf.debugging.Assert(inside, [told, tf.reduce_min(x), tf.reduce_max(x)])
        return encoded(tf.cast(x, tf.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.uint8, "image")])
    def encode_image(image):
        return encoded(whole_images.prepare(image, how)[tf.newaxis])

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "image_bytes")])
    def encode_files(image_bytes):
        def prepared(content):
            return whole_images.prepare(whole_images.read(content), how)

        return encoded(tf.map_fn(prepared, image_bytes, fn_output_signature=tf.TensorSpec(image_shape, tf.float32)))

    @tf.function(input_signature=[tf.TensorSpec((None, vae.decoder.input_shape[1]), tf.float32, "z")])
    def decode(z):
        return {"brightness": tf.sigmoid(vae.decoder(z))}

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32, "count"), tf.TensorSpec((), tf.int64, "seed")])
    def sample(count, seed):
        key = random_key(seed, GRID_LATENTS, 0)  # the key of the run's own grids of samples
        return {"brightness": tf.sigmoid(vae.decoder(vae_main.sample_prior(vae, count, key)))}

    for kind in (tf.float32, tf.float64, tf.uint8):
        encode.get_concrete_function(tf.TensorSpec((None, *image_shape), kind, "x"))
    functions = {"encode": encode, "decode": decode}
    if image_shape[-1] in (1, 3):
        functions |= {"encode_image": encode_image, "encode_files": encode_files}
    return functions if s.autoencoder else functions | {"sample": sample}


def signatures_of(functions: dict[str, Callable], image_shape: tuple[int, ...]) -> dict[str, Callable]:
    """The signatures of the SavedModel. A signature takes one type, so encode has a second one for uint8."""
    kinds = {"encode": tf.float32, "encode_uint8": tf.uint8}
    x = {name: tf.TensorSpec((None, *image_shape), kind, "x") for name, kind in kinds.items()}
    signatures = {name: functions["encode"].get_concrete_function(spec) for name, spec in x.items()}
    others = (name for name in functions if name != "encode")
    return signatures | {name: functions[name].get_concrete_function() for name in others}


def describe(concrete: Callable) -> dict[str, dict[str, Any]]:
    """The shape and type of each input and output of an exported function; None means any size."""
    inputs = {spec.name: spec for spec in concrete.structured_input_signature[0]}

    def about(tensors):
        return {name: {"shape": list(part.shape), "dtype": part.dtype.name} for name, part in tensors.items()}

    return {"inputs": about(inputs), "outputs": about(concrete.structured_outputs)}


def snippet(path: str, settings: Settings, image_shape: tuple[int, ...]) -> list[str]:
    """Five lines of Python that load the SavedModel at `path` and use it."""
    some = f"tf.zeros((16, {', '.join(map(str, image_shape))}))  # in place of your images: uint8, or floats in [0, 1]"
    drawn = f'model.sample(count=16, seed={settings.seed})["brightness"]  # brightness in [0, 1]'
    return [
        "import tensorflow as tf",
        f"model = tf.saved_model.load({path!r})",
        f"images = {some if settings.autoencoder else drawn}",
        "latents = model.encode(images)  # z_mean and z_log_std, the log of the standard deviation",
        'reconstructions = model.decode(latents["z_mean"])["brightness"]',
    ]


# --- the folder -------------------------------------------------------------------------------------------------------
def check_replaceable(place: Path, name: str, run: str | None) -> None:
    """Raise RunError unless `place` is free or an export, of `run` if that is given; `name` is for the message.

    The export will be deleted. So it is not replaced either if it contains a file that export did not write.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        found = json.loads((place / "export.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and "run" in found):
        raise runs.RunError(f"{name} is there already and is no export; name a folder that is not there")
    if run not in (None, found["run"]):
        raise runs.RunError(f"{name} is an export of {found['run']}; name another folder, or delete it")
    if strays := sorted({path.name for path in place.iterdir()} - {*FILES, *TFLITE}):
        raise runs.RunError(f"{name} would be replaced, but export did not write {strays[0]} in it; move that file")


def save_networks(folder: Path, vae: Any, functions: dict[str, Callable], signatures: dict[str, Callable]) -> None:
    """Write the Keras files and the SavedModel into an empty folder. Raises OSError."""
    module = with_weights(vae)
    for name, function in functions.items():
        setattr(module, name, function)
    with checkpoints.os_errors(folder):
        vae.encoder.save(folder / "encoder.keras")
        vae.decoder.save(folder / "decoder.keras")
        tf.saved_model.save(module, str(folder / "saved_model"), signatures=signatures)


def with_weights(vae: Any) -> tf.Module:
    """A module that holds all variables; TensorFlow saves only the variables that a module holds."""
    module = tf.Module()
    module.weights = [weight.value for weight in (*vae.encoder.weights, *vae.decoder.weights, *vae.prior.weights)]
    return module


def save_tflite(folder: Path, vae: Any, image_shape: tuple[int, ...]) -> None:
    """Write encode.tflite and decode.tflite into the folder: float32 in and out, in batches of any size."""
    latents = vae.decoder.input_shape[1]

    @tf.function(input_signature=[tf.TensorSpec((None, *image_shape), tf.float32, "x")])
    def encode(x):
        return dict(zip(("z_mean", "z_log_std"), vae.encoder(x), strict=True))

    @tf.function(input_signature=[tf.TensorSpec((None, latents), tf.float32, "z")])
    def decode(z):
        return {"brightness": tf.sigmoid(vae.decoder(z))}

    for name, function in zip(TFLITE, (encode, decode), strict=True):
        with quiet_start():
            concrete = function.get_concrete_function()
            content = tf.lite.TFLiteConverter.from_concrete_functions([concrete], with_weights(vae)).convert()
        (folder / name).write_bytes(content)


def description(
    folder: Path, kind: str, about: dict[str, Any], image_shape: tuple[int, ...], load: list[str],
    signatures: dict[str, Callable], settings: Settings,
) -> dict[str, Any]:  # fmt: skip
    """The content of export.json; `about` is the run's params.json, `load` the lines that load the SavedModel."""
    return {
        "run": folder.name,
        "step": runs.newest_step(folder, kind),
        "checkpoint": "best" if kind == "best" else "last",
        "image_shape": list(image_shape),
        "files": {
            "encoder.keras": "x -> z_mean, z_log_std",
            "decoder.keras": "z -> logits, whose sigmoid is the brightness",
            "saved_model": "the signatures",
        },
        "signatures": {name: describe(concrete) for name, concrete in signatures.items()},
        "prepare_an_image": whole_images.in_words(settings, whole_images.prepared(settings, image_shape)),
        "data": about.get("data", {}),
        "load": load,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__},
        "git_commit": about.get("git_commit"),  # of the code that trained it
        "settings": about["settings"],
    }


def export(folder: Path, to: str | None = None, kind: str = "step", say: Say = print, tflite: bool = False) -> Path:
    """Export a run's newest checkpoint of a `kind` (load.Run), also for TensorFlow Lite if `tflite`; return the folder.

    The folder is `to`, or else export in the run's folder. Raises SettingsError, runs.RunError and OSError.
    """
    about = runs.read_params(folder)
    settings = runs.saved_settings(folder, say)
    if not runs.saved_steps(folder):
        raise runs.RunError(f"{folder} has no checkpoint to export; train it first")
    place = (Path(to).expanduser() if to else folder / "export").absolute()
    target = place.resolve()  # the target of a link; the link itself stays
    check_replaceable(target, f"--to {to}" if to else str(place), folder.name if to else None)
    image_shape = tuple(about["image_shape"])
    vae = load_vae(folder, settings, image_shape, kind)
    functions = exported_functions(vae, settings, image_shape)
    lines = snippet("saved_model", settings, image_shape)
    signatures, files = signatures_of(functions, image_shape), FILES + TFLITE * tflite
    described = description(folder, kind, about, image_shape, lines, signatures, settings)
    say(f"run        {folder}, step {described['step']:,}{', the best one' * (kind == 'best')}")

    def write(new: Path) -> None:
        save_networks(new, vae, functions, signatures)
        if tflite:
            lite = settings.model_copy(update={"mixed_precision": False})  # TensorFlow Lite has no bfloat16
            save_tflite(new, load_vae(folder, lite, image_shape, kind), image_shape)
        write_json(new / "export.json", described)

    write_folder(target, write)
    for line in table(described, settings):
        say(line)
    say(f"export     {place}: {', '.join(files)}")
    say("\nLoad it anywhere, without this code:")
    for line in snippet(str(place / "saved_model"), settings, image_shape):
        say(f"    {line}")
    return place


# --- main -------------------------------------------------------------------------------------------------------------
def table(described: dict[str, Any], settings: Settings) -> list[str]:
    """The signatures as lines for the console."""

    def tensors(parts):
        def shape(sizes):
            free = "B" if sizes != [None] * 3 else "any"  # a batch size, except for a whole image
            return f" ({', '.join(free if size is None else str(size) for size in sizes)})" if sizes else ""

        return ", ".join(f"{name} {part['dtype']}{shape(part['shape'])}" for name, part in parts.items())

    lines = [
        f"{name:<12} {tensors(about['inputs'])} -> {tensors(about['outputs'])}"
        for name, about in described["signatures"].items()
    ]
    note = "note       a plain autoencoder has no prior, and so no signature sample"
    return [*lines, note] if settings.autoencoder else lines


def main(asked: argparse.Namespace) -> int:
    """Export as the command line says; return the exit code."""

    def work():
        export(asked.run, asked.to, asked.kind, tflite=asked.tflite)

    return console.run("export", work, "nothing was exported")


if __name__ == "__main__":
    sys.exit(main(ASKED))
