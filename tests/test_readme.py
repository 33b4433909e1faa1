"""README, "Change it": a user's constant, loss and encoder, made in a copy of the project as printed."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.shared import REPOSITORY, users_environment

BLOCKS = re.findall(r"```diff\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def copy(tmp_path):
    """A copy of the project with all changes made, from the last commit if main.py has been edited."""
    shutil.copytree(REPOSITORY / "utils", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "params.py"):
        (tmp_path / name).write_text(committed(name) or (REPOSITORY / name).read_text())
    for block in BLOCKS:
        for name, change in re.findall(r"^--- (\S+)\n((?:[ +-].*\n|\n)+?)(?=---|\Z)", block, re.MULTILINE):
            make(change, tmp_path / name)
    return tmp_path


def committed(name):
    """The text of a file in the last commit, so that a user's edits make no test fail; "" without git."""
    try:
        ask = ["git", "-C", str(REPOSITORY), "show", f"HEAD:./{name}"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def make(change, path):
    """Replace the lines with '-' by those with '+', or add these after the lines with ' '; these must occur once."""
    lines = change.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if line[:1] in "- ")
    after = "".join(f"{line[1:]}\n" for line in lines if line[:1] in "+ ")
    source = path.read_text()
    assert source.count(before) == 1, before
    path.write_text(source.replace(before, after))


def main(folder, *words):
    process = [sys.executable, "main.py", *words]
    done = subprocess.run(process, cwd=folder, env=users_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_things_are_changed_and_help_has_them(copy):
    assert len(BLOCKS) == 3
    told = " ".join(main(copy, "--help").split())
    assert "--adam-beta-1 X share of the earlier gradients that Adam keeps" in told
    assert "'huber'" in told
    assert "'patches'" in told


@pytest.mark.slow
def test_a_run_with_all_three_trains_and_reports_and_is_resumed(copy):
    small = "--labels 1 --held-out 100 --encoder-layers 8 --latent-dim 2 --epochs 1 --nll-samples 4 --binarize none"
    told = main(copy, *small.split(), "--adam-beta-1", "0.5")
    assert "28 x 28 x 1-patches-8-2-" in told
    assert "without XLA" in told
    assert "Not known to be a likelihood: huber" in told
    assert "DECODER_SCALE" not in told  # this loss has no width
    (folder,) = (copy / "predictions").iterdir()
    saved = json.loads((folder / "params.json").read_text())
    assert {name: saved["settings"][name] for name in ("adam_beta_1", "loss", "architecture")} == {
        "adam_beta_1": 0.5,
        "loss": "huber",
        "architecture": "patches",
    }
    assert saved["unread"] == []
    assert "nothing reads" not in told
    main(copy, "--resume", folder.name, "--epochs", "2")
    assert (folder / "samples_002.png").exists()
