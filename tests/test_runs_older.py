"""Runs that were saved with other constants than params.py has: they are loaded, exported, started from, resumed."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import main
from experiments import export
from experiments.load import load
from tests.shared import OURS, REPOSITORY, users_environment
from tests.tiny import SHAPE, TINY
from utils import checkpoints, data, runs
from utils.settings import BEFORE, SettingsError, from_params, resumed

GONE = {"zebra": 3}
FROM_BEFORE = (
    "note       not saved with older, so set to: IMAGE_SIZE = 64, IMAGE_CROP = 0, IMAGE_FIT = 'crop', "
    "SKIP_BAD_IMAGES = False, "
    "ARCHITECTURE = 'mlp', CHANNELS = (32, 64, 128), RESIDUAL_BLOCKS = 1, MIXED_PRECISION = False"
)
DROPPED = "note       saved with older, without effect and not in params.py, so dropped: ZEBRA = 3"


def change(folder, **parts):
    """Replace parts of a run's params.json; None removes one."""
    about = runs.read_params(folder) | parts
    runs.write_params(folder, {name: part for name, part in about.items() if part is not None})


def settings_in(folder):
    return runs.read_params(folder)["settings"]


@pytest.fixture
def run(tmp_path):
    """A run with its initial weights, and its settings."""
    settings = from_params(**TINY | {"output_dir": str(tmp_path), "run_name": "older"})
    folder = runs.create(settings, "CPU", SHAPE)
    checkpoints.save(checkpoints.checkpoint(main.build_vae(settings, SHAPE)), folder, 7)
    return folder, settings


def as_at_803fe99(folder):
    saved = {name: value for name, value in settings_in(folder).items() if name not in BEFORE}
    change(folder, settings=saved, unread=None)


def with_one_that_had_no_effect(folder):
    change(folder, settings=settings_in(folder) | GONE, unread=["zebra"])


KINDS = [(as_at_803fe99, FROM_BEFORE), (with_one_that_had_no_effect, DROPPED)]


@pytest.mark.parametrize(("make_older", "note"), KINDS)
def test_an_older_run_is_loaded_exported_and_started_from_with_a_note(make_older, note, run, monkeypatch):
    folder, settings = run
    make_older(folder)
    notes = []
    dataset = data.Dataset("nothing", *[np.zeros((2, *SHAPE), np.uint8)] * 4, "a test")
    monkeypatch.setattr(data, "prepare", lambda settings, say, folder: dataset)
    assert load(folder, say=notes.append).settings == settings
    assert notes == [note]
    export.export(folder, say=notes.append)
    assert notes[1] == note
    notes.clear()
    later = settings.model_copy(update={"start_from": str(folder), "seed": 9})
    vae = main.build_vae(later, SHAPE)
    checkpoints.start_from(later, vae, notes.append)
    assert notes == [note]
    same = main.build_vae(settings, SHAPE)
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(vae.weights, same.weights, strict=True))


def test_a_run_with_a_constant_that_had_an_effect_and_is_gone_is_refused(run):
    folder, settings = run
    change(folder, settings=settings_in(folder) | GONE)
    told = "^saved zebra: 3 had an effect, but params.py lacks it; put it back to use the run: ZEBRA: int = 3$"
    later = settings.model_copy(update={"start_from": str(folder)})
    for use in (
        lambda: runs.saved_settings(folder, pytest.fail),
        lambda: load(folder, say=pytest.fail),
        lambda: export.export(folder, say=pytest.fail),
        lambda: checkpoints.start_from(later, {}, pytest.fail),
    ):
        with pytest.raises(SettingsError, match=told):
            use()
    assert export.main(export.read_command_line([str(folder)])) == 2


@pytest.mark.parametrize(("make_older", "note"), KINDS)
def test_an_older_run_is_resumed_twice_and_the_second_time_lacks_nothing(make_older, note, run):
    folder, settings = run
    make_older(folder)
    before, notes = settings_in(folder), []
    going_on = resumed(runs.saved_settings(folder, notes.append), {"epochs": 5})
    assert going_on == settings.model_copy(update={"epochs": 5})
    runs.note_changes(folder, going_on)
    assert settings_in(folder) == before | settings.model_dump(mode="json") | {"epochs": 5}
    again = resumed(runs.saved_settings(folder, notes.append), {"epochs": 6})
    assert again == settings.model_copy(update={"epochs": 6})
    assert notes == [note, DROPPED] if make_older is with_one_that_had_no_effect else [note]
    about = runs.read_params(folder)
    runs.note_changes(folder, again)
    after = runs.read_params(folder)
    assert after.pop("checksum") != about.pop("checksum")
    assert after == about | {"settings": about["settings"] | {"epochs": 6}}


def test_params_json_says_what_nothing_read_and_a_resumed_run_that_some_of_it_is_read_by_now(run, monkeypatch):
    _, settings = run
    monkeypatch.setattr(runs, "unread", lambda: ["epochs", "loss", "channels"])
    folder = runs.create(settings.model_copy(update={"run_name": "noted"}), "CPU", SHAPE)
    assert runs.read_params(folder)["unread"] == ["epochs", "loss", "channels"]
    saved = {name: value for name, value in settings_in(folder).items() if name not in ("channels", "labels")} | GONE
    change(folder, settings=saved, unread=["epochs", "loss", "zebra"])
    monkeypatch.setattr(runs, "unread", lambda: ["loss", "channels", "seed"])
    runs.note_changes(folder, settings)
    assert runs.read_params(folder)["unread"] == ["loss", "zebra", "channels"]  # seed was read when it was saved
    runs.note_changes(folder, settings)
    assert runs.read_params(folder)["unread"] == ["loss", "zebra", "channels"]


# --- a user's own constant, in a copy of the code ---------------------------------------------------------------------
FEW = """--labels 1 --held-out 500 --encoder-layers 8 --decoder-layers 8 --latent-dim 2 --batch-size 500 --nll-samples 0
--kl-steps 5 --log-every 6 --checkpoint-every 6 --images-every 9"""
WORK = """
import sys
import main
from experiments import export
from experiments.load import load
from utils import runs
from utils.settings import SettingsError, read_command_line

def run(*words):
    assert main.main(read_command_line(words)) == 0, words
"""
USES = """
for count in "34":
    print(f"resume {count}")
    run("--resume", "old", "--epochs", count)
folder = runs.find("forgetful", "predictions")
print("load")
load(folder)
print("export")
export.export(folder)
print("start")
run(*sys.argv[1:], "--epochs", "1", "--run-name", "young", "--start-from", "forgetful", "--zebra", "2")
"""


@pytest.mark.slow
def test_runs_outlive_a_users_own_constant(tmp_path):
    """Runs are made without it, used with it, and used again when it is gone."""
    for name in ("utils", "experiments"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    for name in ("main.py", "params.py"):
        shutil.copy(REPOSITORY / name, tmp_path)

    def work(text):
        command = [sys.executable, "-c", WORK + text, *FEW.split()]
        done = subprocess.run(
            command, cwd=tmp_path, env=users_environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    work('run(*sys.argv[1:], "--epochs", "2", "--run-name", "old")')
    old, forgetful = (tmp_path / "predictions" / name for name in ("old", "forgetful"))
    shutil.copytree(old, forgetful)
    about = (old / "params.json").read_text()

    params = tmp_path / "params.py"
    source = params.read_text()
    params.write_text(f"{source}\nZEBRA: float = 0.5  # of my own\n")
    said = work(USES)
    taken = "note       not saved with {}, so set to: ZEBRA = 0.5\n"
    nothing_reads = f"note       params.py, line {len(source.splitlines()) + 2}: nothing reads ZEBRA\n"
    parts = re.split(r"^(?:resume \d|load|export|start)\n", said, flags=re.MULTILINE)[1:]
    assert [part.count(taken.format("old")) for part in parts] == [1, 0, 0, 0, 0]
    assert [part.count(taken.format("forgetful")) for part in parts] == [0, 0, 1, 1, 1]
    assert [part.count(nothing_reads) for part in parts] == [1, 1, 0, 0, 1]
    saved = {
        name: json.loads((tmp_path / "predictions" / name / "params.json").read_text()) for name in ("old", "young")
    }
    assert saved["old"]["settings"] == json.loads(about)["settings"] | {"zebra": 0.5, "epochs": 4}
    assert saved["young"]["settings"]["zebra"] == 2
    assert {*saved["young"]["unread"]} - OURS >= {"zebra"}

    params.write_text(source)
    saved["young"]["unread"] = []
    runs.write_params(tmp_path / "predictions" / "young", saved["young"])
    said = work('run("--resume", "old", "--epochs", "5"); print(main.main(read_command_line(["--resume", "young"])))')
    assert "note       saved with old, without effect and not in params.py, so dropped: ZEBRA = 0.5\n" in said
    way_on = "put it back to use the run: ZEBRA: float = 2.0"
    assert f"main.py: error: saved zebra: 2.0 had an effect, but params.py lacks it; {way_on}\n" in said
    assert "\n2\n" in said
