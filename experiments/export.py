"""A trained model for other programs: encoder and decoder as Keras files, and all of it as a TensorFlow SavedModel.

    python -m experiments.export mnist-ce-z20
    python -m experiments.export predictions/mnist-ce-z20 --to /srv/models/digits

It writes the run's newest checkpoint into the run's folder as export/, which is read without any code of this project:

- encoder.keras, x (B, H, W, C) -> z_mean, z_log_std (B, L), and decoder.keras, z (B, L) -> logits (B, H, W, C), for
  keras.models.load_model; L counts the noise latents of NOISE_DIM, too, about which the encoder says N(0, 1);
- saved_model/, for tf.saved_model.load, TensorFlow Serving and other languages, with the signatures
    encode   x, brightness in [0, 1] (B, H, W, C)    -> z_mean, z_log_std (B, L)
    decode   z (B, L)                                -> brightness (B, H, W, C), the sigmoid of the logits
    sample   count, int32, and seed, int64           -> brightness (count, H, W, C) of draws from the prior
  The same count and seed give the same draws; the run's SEED and a count of 100 give those of its samples_*.png.
  A plain autoencoder has no prior, and so no sample;
- export.json: the run and its settings, the step, the signatures, versions, and how to load it.

An earlier export of the run is replaced; the folder holds the old one or the new one, never parts of both.
"""

# ruff: noqa: E402 (the command line is read first, before the seconds that TensorFlow takes)

import argparse
import json
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.load import load_vae, read_run
from utils.console import Say, experiment_parser
from utils.settings import Settings


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("export", __doc__)
    parser.add_argument("--to", metavar="FOLDER", help="folder to write [default export in the run's folder]")
    return read_run(parser, argv)


if __name__ == "__main__":
    ASKED = read_command_line()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() begins

import main as vae_main
from utils import checkpoints, console, runs
from utils.chance import GRID_LATENTS, random_key
from utils.files import write_json
from utils.start import keras, tf

FILES = ("encoder.keras", "decoder.keras", "saved_model", "export.json")


# --- the functions ----------------------------------------------------------------------------------------------------
def exported_functions(vae: Any, settings: Settings, image_shape: tuple[int, ...]) -> dict[str, Callable]:
    """The functions of the SavedModel, by the names of their signatures; a plain autoencoder has no `sample`.

    They are not compiled by XLA, which not every program that loads them has, and which has other random numbers.
    """
    latents = vae.decoder.input_shape[1]

    @tf.function(input_signature=[tf.TensorSpec((None, *image_shape), tf.float32, "x")])
    def encode(x):
        z_mean, z_log_std = vae.encoder(x)
        return {"z_mean": z_mean, "z_log_std": z_log_std}

    @tf.function(input_signature=[tf.TensorSpec((None, latents), tf.float32, "z")])
    def decode(z):
        return {"brightness": tf.sigmoid(vae.decoder(z))}

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32, "count"), tf.TensorSpec((), tf.int64, "seed")])
    def sample(count, seed):
        key = random_key(seed, GRID_LATENTS, 0)  # of the run's own grids of samples
        return decode(vae_main.sample_prior(vae, count, key))

    functions = {"encode": encode, "decode": decode}
    return functions if settings.autoencoder else functions | {"sample": sample}


def describe(function: Callable) -> dict[str, dict[str, Any]]:
    """The shape and type of each input and output of an exported function; None is a size that is free."""
    concrete = function.get_concrete_function()
    inputs = {spec.name: spec for spec in concrete.structured_input_signature[0]}

    def about(tensors):
        return {name: {"shape": list(part.shape), "dtype": part.dtype.name} for name, part in tensors.items()}

    return {"inputs": about(inputs), "outputs": about(concrete.structured_outputs)}


def snippet(path: str, settings: Settings, image_shape: tuple[int, ...]) -> list[str]:
    """Five lines of Python that load the SavedModel at `path` and use it."""
    some = f"tf.zeros((16, {', '.join(map(str, image_shape))}))  # in place of your images, brightness in [0, 1]"
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
    """Raise RunError unless `place` is free or an export, of `run` if that is given; `name` is what the user calls it.

    What is there is going to be deleted, so an export with a file that is none of its own is not replaced either.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        found = json.loads((place / "export.json").read_text())
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and "run" in found):
        raise runs.RunError(f"{name} is there already and is no export; name a folder that is not there")
    if run not in (None, found["run"]):
        raise runs.RunError(f"{name} is an export of {found['run']}; name another folder, or delete it")
    if strays := sorted({path.name for path in place.iterdir()} - set(FILES)):
        raise runs.RunError(f"{name} would be replaced, but {strays[0]} in it is none of its files; move that")


def write_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `place` by `write`, which is given a new one beside it; an old `place` is replaced only then.

    Raises OSError, which names `place`, and leaves what was there.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            write(new)
            try:
                if place.exists():
                    place.rename(old)
                new.rename(place)
            except BaseException:
                if old.exists() and not place.exists():
                    old.rename(place)  # back again
                raise
    except OSError as error:  # of a file whose name would say little, or of h5py, without one
        raise OSError(error.errno, error.strerror or str(error), str(place)) from error


def save_networks(folder: Path, vae: Any, functions: dict[str, Callable]) -> None:
    """Write the Keras files and the SavedModel into the folder, which is empty. Raises OSError."""
    module = tf.Module()
    module.weights = [weight.value for weight in (*vae.encoder.weights, *vae.decoder.weights, *vae.prior.weights)]
    for name, function in functions.items():
        setattr(module, name, function)
    with checkpoints.os_errors(folder):
        vae.encoder.save(folder / "encoder.keras")
        vae.decoder.save(folder / "decoder.keras")
        tf.saved_model.save(module, str(folder / "saved_model"), signatures=functions)


def description(
    folder: Path, kind: str, about: dict[str, Any], image_shape: tuple[int, ...], load: list[str],
    functions: dict[str, Callable],
) -> dict[str, Any]:  # fmt: skip
    """What export.json says; `about` is from the run's params.json, `load` the lines that load the SavedModel."""
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
        "signatures": {name: describe(function) for name, function in functions.items()},
        "load": load,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__},
        "git_commit": about.get("git_commit"),  # of the code it was trained by
        "settings": about["settings"],
    }


def export(folder: Path, to: str | None = None, kind: str = "step", say: Say = print) -> Path:
    """Export a run's newest checkpoint of a `kind` (load.read_run) to the folder `to`, or else into its own; return
    where it is.

    Raises SettingsError, runs.RunError and OSError.
    """
    about = runs.read_params(folder)
    settings = runs.saved_settings(folder, say)
    if not runs.saved_steps(folder):
        raise runs.RunError(f"{folder} has no checkpoint to export; train it first")
    place = (Path(to).expanduser() if to else folder / "export").absolute()
    target = place.resolve()  # where a link leads; the link is left as it is
    check_replaceable(target, f"--to {to}" if to else str(place), folder.name if to else None)
    image_shape = tuple(about["image_shape"])
    vae = load_vae(folder, settings, image_shape, kind)
    functions = exported_functions(vae, settings, image_shape)
    lines = snippet("saved_model", settings, image_shape)
    described = description(folder, kind, about, image_shape, lines, functions)
    say(f"run        {folder}, step {described['step']:,}{', the best one' * (kind == 'best')}")

    def write(new: Path) -> None:
        save_networks(new, vae, functions)
        write_json(new / "export.json", described)

    write_folder(target, write)
    for line in table(described, settings):
        say(line)
    say(f"export     {place}: {', '.join(FILES)}")
    say("\nLoad it anywhere, without this code:")
    for line in snippet(str(place / "saved_model"), settings, image_shape):
        say(f"    {line}")
    return place


# --- main -------------------------------------------------------------------------------------------------------------
def table(described: dict[str, Any], settings: Settings) -> list[str]:
    """The signatures as lines for the console."""

    def tensors(parts):
        def shape(sizes):
            return f" ({', '.join('B' if size is None else str(size) for size in sizes)})" if sizes else ""

        return ", ".join(f"{name} {part['dtype']}{shape(part['shape'])}" for name, part in parts.items())

    lines = [
        f"{name:<10} {tensors(about['inputs'])} -> {tensors(about['outputs'])}"
        for name, about in described["signatures"].items()
    ]
    note = "note       a plain autoencoder has no prior, and so no signature sample"
    return [*lines, note] if settings.autoencoder else lines


def main(asked: argparse.Namespace) -> int:
    """Export as the command line says; return the exit code."""

    def work():
        export(asked.run, asked.to, asked.kind)

    return console.run("export", work, "nothing was exported")


if __name__ == "__main__":
    sys.exit(main(ASKED))
