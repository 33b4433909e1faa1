"""Runs that between them use every constant of params.py, and the numbers they came to: a change of code keeps these.

    python tests/reference_runs.py                      make the runs and compare them with tests/reference_runs.json
    python tests/reference_runs.py --code DIR --write   write that file with the code in DIR, a checkout of f235d13

The committed numbers are those of commit f235d13. All runs are made in this process, but for the one that is killed.
"""

import argparse
import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).resolve()
NUMBERS = HERE.with_suffix(".json")
TERMS = ("objective", "reconstruction", "kl")
IN_REPORT = (  # the numbers of a report that are kept
    "test_elbo", "test_reconstruction", "test_kl", "test_nll", "test_log_density", "standard_error_images",
    "standard_error_sampling", "active_units",
)  # fmt: skip

# The default run. Every constant is named, because params.py is the user's to edit.
DEFAULT = {
    "dataset": "mnist", "image-size": "64", "image-crop": "0", "image-fit": "crop",
    "skip-bad-images": False, "binarize": "dynamic",
    "labels": "none", "held-out": "0", "architecture": "mlp", "encoder-layers": "512 512", "decoder-layers": "512 512",
    "channels": "32 64 128", "residual-blocks": "1", "activation": "silu", "latent-dim": "20", "noise-dim": "0",
    "autoencoder": False, "prior": "standard", "prior-components": "500", "prior-layers": "6", "prior-units": "128",
    "loss": "ce", "reconstruction-reduction": "sum", "decoder-scale": "fixed", "kl-schedule": "linear",
    "kl-weight-start": "0", "kl-weight-end": "1", "kl-steps": "2000", "kl-cycles": "4", "free-bits": "0",
    "bound": "elbo", "bound-samples": "1", "bound-chunk": "1024", "batch-size": "128", "epochs": "15",
    "learning-rate": "0.001", "gradient-clip": "0", "lr-schedule": "cosine", "mixed-precision": False, "seed": "0",
    "log-every": "100", "images-every": "1", "checkpoint-every": "1000", "nll-samples": "128",
}  # fmt: skip
# A small network on the ones of MNIST: two epochs of 62 steps, tested on 500 images that are held out.
SHORT = DEFAULT | {
    "labels": "1", "held-out": "500", "encoder-layers": "32", "decoder-layers": "32", "latent-dim": "4",
    "kl-steps": "80", "batch-size": "100", "epochs": "2", "log-every": "10", "images-every": "2", "nll-samples": "8",
}  # fmt: skip
CONVOLUTIONS = {"architecture": "conv", "channels": "4 8", "encoder-layers": "16", "decoder-layers": "16"}
RUNS = {
    "default": DEFAULT,
    "conv, cyclical": SHORT | CONVOLUTIONS | {"kl-schedule": "cyclical", "kl-cycles": "3", "activation": "relu"},
    "resnet, 8-bit stream": SHORT | CONVOLUTIONS | {
        "dataset": "folder", "labels": "none", "held-out": "200", "image-size": "16", "image-crop": "24",
        "image-fit": "pad",
        "skip-bad-images": True, "binarize": "none", "architecture": "resnet", "residual-blocks": "2",
        "loss": "logistic", "decoder-scale": "learned", "batch-size": "50", "epochs": "3", "nll-samples": "4",
    },
    "binarised stream": SHORT | {
        "dataset": "folder", "labels": "none", "held-out": "0", "image-size": "16", "batch-size": "50", "epochs": "3",
        "seed": "4",
    },
    "vampprior, IWAE": SHORT | {
        "prior": "vampprior", "prior-components": "20", "bound": "iwae", "bound-samples": "5", "bound-chunk": "100",
    },
    "mixture, DReG": SHORT | {
        "prior": "mixture", "prior-components": "10", "bound": "dreg", "bound-samples": "4", "bound-chunk": "1000",
        "kl-weight-end": "0.5",  # the chunk divides the test images: for a remainder f235d13 made other draws
    },
    "realnvp": SHORT | {
        "prior": "realnvp", "prior-layers": "3", "prior-units": "16", "gradient-clip": "20", "learning-rate": "0.003",
    },
    "free bits": SHORT | {"free-bits": "0.3", "kl-schedule": "constant", "kl-weight-end": "2"},
    "squared error, learned width": SHORT | {
        "binarize": "none", "loss": "mse", "decoder-scale": "learned", "kl-schedule": "sigmoid",
        "kl-weight-start": "0.1",
    },
    "absolute difference, learned width": SHORT | {
        "binarize": "none", "loss": "ad", "decoder-scale": "learned", "kl-schedule": "cosine", "activation": "elu",
    },
    "squared error, mean over pixels": SHORT | {
        "binarize": "none", "loss": "mse", "reconstruction-reduction": "mean", "lr-schedule": "constant",
    },
    "noise latents, two labels": SHORT | {
        "labels": "1 7", "noise-dim": "3", "bound-samples": "2", "activation": "gelu", "epochs": "1",
    },
    "autoencoder": SHORT | {"autoencoder": True, "loss": "ad", "binarize": "none", "activation": "tanh"},
    "mixed precision": SHORT | {"mixed-precision": True},
    "killed and resumed": SHORT | {"checkpoint-every": "50", "bound-samples": "3", "bound-chunk": "30"},
}  # fmt: skip
KILLED_AFTER = {"killed and resumed": 80}  # steps; its last checkpoint is then that of step 50
DYING = """
import os, signal, sys
import main
from utils.settings import read_command_line

def die(vae, step):
    os.kill(os.getpid(), signal.SIGKILL)

main.train(read_command_line(sys.argv[2:]).settings, watch=die, watch_at=(int(sys.argv[1]),))
"""


def command_line(constants, images, runs):
    """The words that set all constants; `images` is the folder of images, `runs` is where runs go."""
    found = ["--output-dir", str(runs), "--run-name", "", "--start-from", ""]
    for name, value in constants.items():
        found += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", *value.split()]
    return found + (["--data-dir", str(images)] if constants["dataset"] == "folder" else [])


def draw_folder(folder):
    """Write 2,000 training and 200 test images of MNIST as PNG files, in a folder for each label."""
    from utils import data
    from utils.settings import from_params

    dataset = data.read(from_params(dataset="mnist"), print)
    for split, count in (("train", 2_000), ("test", 200)):
        images, labels = (getattr(dataset, f"{split}_{what}") for what in ("images", "labels"))
        for number in range(count):
            place = folder / split / str(labels[number])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number, ..., 0]).save(place / f"{number}.png")


def make_run(name, images):
    """Make a run; return its numbers, which do not depend on the order in which runs are made."""
    import main
    from utils.settings import read_command_line

    with tempfile.TemporaryDirectory() as runs:
        words = command_line(RUNS[name], images, runs)
        if name in KILLED_AFTER:
            process = [sys.executable, "-c", DYING, str(KILLED_AFTER[name]), *words]
            killed = subprocess.run(process, cwd=Path(main.__file__).parent, capture_output=True, text=True)
            assert killed.returncode < 0, killed.stderr
            words = ["--output-dir", runs, "--resume", next(Path(runs).iterdir()).name]
        said, handlers = io.StringIO(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main.main(read_command_line(words))
        for number, handler in handlers.items():
            signal.signal(number, handler)
        assert code == 0, f"{name}: {said.getvalue()}"
        (folder,) = Path(runs).iterdir()
        lines = [json.loads(text) for text in (folder / "history.jsonl").read_text().splitlines()]
        report = json.loads((folder / "report.json").read_text())
    if report["test_elbo"] is None:  # f235d13 called every -(loss + KL) an ELBO
        report["test_elbo"] = report.get("-(loss + KL)")
    history = {
        split: [[line["step"], *(short(line[term]) for term in TERMS)] for line in lines if line["split"] == split]
        for split in ("train", "test")
    }
    return history | {"report": {key: short(report[key]) for key in IN_REPORT if report[key] is not None}}


def short(number):
    """Nine digits, enough to distinguish any two float32 numbers."""
    return None if number is None else float(f"{number:.9g}")


def make_runs(names):
    """The numbers of the runs, by name."""
    with tempfile.TemporaryDirectory() as images:
        draw_folder(Path(images))
        with tqdm(names, ncols=79, ascii=" #", disable=None) as bar:
            return {name: make_run(name, images) for name in bar if bar.set_description(name[:20]) is None}


def machine():
    """The processor and versions behind a number's last bits."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in cpu)}
    wide = sorted(flag for flag in about.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    versions = {package: version(package) for package in ("tensorflow", "keras", "numpy", "pillow")}
    return {"cpu": about.get("model name"), "instructions": " ".join(wide), "cores": os.cpu_count(), **versions}


def deviation(found, expected, steps=math.inf):
    """The largest difference of two runs in any term of the history up to so many steps: relative, or absolute for
    terms below 1. Infinite if their lines are not of the same steps, or if there are none."""
    sizes = []
    for split in ("train", "test"):
        lines, others = ([line for line in run[split] if line[0] <= steps] for run in (found, expected))
        if [line[0] for line in lines] != [line[0] for line in others]:
            return math.inf
        sizes += [size_of(*pair) for both in zip(lines, others, strict=True) for pair in zip(*both, strict=True)]
    return max(sizes, default=math.inf)


def size_of(number, expected):
    """The relative difference of two numbers, or the absolute one if they are below 1. Two None are the same."""
    if number is None or expected is None:
        return 0.0 if number is expected else math.inf
    size = abs(number - expected) / max(1, abs(expected))
    return size if math.isfinite(size) else math.inf


def main():
    """Make the runs; write their numbers, or show how far they are from the written ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = "the folder whose main.py is run [default: this project's]"
    parser.add_argument("--code", type=Path, default=HERE.parents[1], metavar="DIR", help=folder)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help="make these runs")
    parser.add_argument("--write", action="store_true", help=f"write {NUMBERS.name} instead of comparing with it")
    asked = parser.parse_args()
    if asked.write and asked.only != list(RUNS):
        parser.error("--write: does not go with --only, since the file has all runs")
    sys.path.insert(0, str(asked.code.resolve()))
    found = make_runs(asked.only)
    if asked.write:
        rows = ",\n".join(f'"{name}": {json.dumps(run)}' for name, run in found.items())
        NUMBERS.write_text(f'{{"machine": {json.dumps(machine())},\n"runs": {{\n{rows}\n}}}}\n')
        return
    kept = json.loads(NUMBERS.read_text())
    if kept["machine"] != machine():
        print(f"note: the numbers are of another machine, {kept['machine']}")
    print(f"{'largest deviation in':38}{'100 steps':>11}{'all steps':>11}{'ELBO':>10}")
    for name, run in found.items():
        sizes = "".join(f"{deviation(run, kept['runs'][name], steps):11.1e}" for steps in (100, math.inf))
        same = "  bit for bit" if run == kept["runs"][name] else ""
        print(f"{name:38}{sizes}{run['report'].get('test_elbo', float('nan')):10.2f}{same}")


if __name__ == "__main__":
    main()
