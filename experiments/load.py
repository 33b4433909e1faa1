"""What experiments on a finished run share: its part of the command line, and the run itself."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import best, data, runs
from utils.console import Problem, Say
from utils.dataset import Dataset
from utils.settings import Settings, from_params


def read_run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for, with RUN, whose folder is `run`, --output-dir and --best added to the parser.

    `kind` is that of the checkpoint to take: "best" or, of the last one, "step".
    """
    parser.add_argument("run", metavar="RUN", help="the run: its name, or its folder")
    folder = "folder that holds the runs [default OUTPUT_DIR of params.py]"
    parser.add_argument("--output-dir", metavar="DIR", help=folder)
    kept = "take the checkpoint that was best on the images of HELD_OUT [default the last one]"
    parser.add_argument("--best", dest="kind", action="store_const", const="best", default="step", help=kept)
    asked = parser.parse_args(argv)
    try:
        asked.run = runs.find(asked.run, asked.output_dir or from_params().output_dir, "RUN")
        if asked.kind == "best":
            best.check_kept(asked.run)
    except Problem as problem:
        parser.error(str(problem))
    return asked


def load_vae(folder: Path, settings: Settings, image_shape: tuple[int, ...], kind: str = "step") -> Any:
    """The VAE (main.VAE) of a run's newest checkpoint of a kind (read_run), for images (B, *image_shape).

    Raises runs.RunError.
    """
    import main  # here, because it brings TensorFlow along, and read_run does without
    from utils import checkpoints

    vae = main.build_vae(settings, image_shape)
    checkpoints.load_weights(vae, folder, kind)
    return vae


def load_run(folder: Path, say: Say, kind: str = "step") -> tuple[Any, Settings, Dataset]:
    """The trained VAE of a run (load_vae), its settings and its data; `say` is given notes.

    Raises SettingsError, runs.RunError and DataError.
    """
    settings = runs.saved_settings(folder, say)
    dataset = data.prepare(settings, say, folder)
    return load_vae(folder, settings, dataset.train_images.shape[1:], kind), settings, dataset
