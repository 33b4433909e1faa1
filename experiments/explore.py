"""Make a page to play with a trained model in the browser: explore.html, in the run's folder.

    python -m experiments.explore mnist-ce-z20
    python -m experiments.explore predictions/mnist-ce-z20 --open

`python main.py` writes this page at the end of a run. This command makes it from the newest checkpoint, for a run that
has no page or is not finished. The page is one file: it needs no network and no server, and you can mail it or put it
on the web. It shows a map of the test images, a slider for each latent, paper to draw on, walks between images, and
samples. The page holds the model, which runs in the browser.

Models of more than 10 million parameters, or with layers of your own that the page does not know, get no page.
"""

# ruff: noqa: E402 (the command line is read first, before the seconds that TensorFlow takes)

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from experiments.load import Run, read_run
from utils import console
from utils.console import Say, experiment_parser


def read_command_line(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for. A mistake prints one line and exits with code 2."""
    parser = experiment_parser("explore", __doc__)
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    return read_run(parser, argv)


if __name__ == "__main__":
    console.begin()
    ASKED = read_command_line()

from utils import explore


def write_page(folder: Path, kind: str = "step", say: Say = print) -> Path:
    """Write the page of a run's newest checkpoint of a `kind` (load.Run); return its path.

    Raises SettingsError, runs.RunError, DataError, explore.NoPage and OSError.
    """
    run = Run(folder, kind, say)
    explore.check_size(run.vae)
    judged = run.report if run.is_finished and kind == "step" else None  # a report is of the last step
    terms = run.terms(run.dataset().test_images)
    explore.write_page(folder, run.vae, run.settings, run.dataset(), terms, judged, kind)
    say(explore.link(folder))
    return folder.absolute() / explore.NAME


def main(asked: argparse.Namespace) -> int:
    """Write the page as the command line says; return the exit code."""

    def work():
        page = write_page(asked.run, asked.kind)
        if asked.open and not webbrowser.open(page.as_uri()):
            print("note       no browser was found; open the file yourself")

    return console.run("explore", work, "no page was written")


if __name__ == "__main__":
    sys.exit(main(ASKED))
