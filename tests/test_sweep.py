"""experiments/sweep.py and side_by_side.py: every combination once, under its name, even if others fail."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import side_by_side, sweep
from tests.shared import REPOSITORY, users_environment
from utils import console, runs
from utils.recorder import Diverged
from utils.settings import from_params

REPORT = {"kind": "likelihood", "test_elbo": -1.0, "test_reconstruction": 1.0, "test_kl": 0.0, "healthy": True}


def asked(tmp_path, line):
    usual = {"--dataset": "mnist", "--loss": "ce", "--latent-dim": "20"}  # params.py is the user's to edit
    more = [word for option, value in usual.items() if option not in line for word in (option, value)]
    return sweep.read_sweep([*line.split(), *more, "--output-dir", str(tmp_path)])


def names(tmp_path, line):
    wanted = asked(tmp_path, line)
    return [folder.name for folder in sweep.folders_of(wanted.settings, wanted.swept)]


@pytest.fixture
def trained(monkeypatch):
    """The `names` of the runs that reach a stand-in for training; it finishes all except those in `errors`."""
    seen = SimpleNamespace(names=[], errors={})

    def train_one(folder, settings, watch, watch_at):
        seen.names.append(folder.name)
        if not folder.exists():
            runs.create(settings.model_copy(update={"run_name": folder.name}), "CPU", (4, 4, 1))
        if folder.name in seen.errors:
            raise seen.errors[folder.name]
        (folder / "report.json").write_text(json.dumps(REPORT))

    monkeypatch.setattr(side_by_side, "train_one", train_one)
    monkeypatch.setattr(sweep.data, "prepare", lambda *_: None)
    monkeypatch.setattr(sweep.compare, "save_comparison", lambda *_: None)
    return seen


# --- combinations -----------------------------------------------------------------------------------------------------
def test_every_combination_is_there_once_with_lists_and_flags_as_one_word(tmp_path):
    line = "--encoder-layers 256,256 512 none --autoencoder false TRUE --seed=3 3 --epochs 2"
    wanted = asked(tmp_path, line)
    found = [(s.encoder_layers, s.autoencoder, s.seed, s.epochs) for s in wanted.settings]
    assert found == [(layers, kind, 3, 2) for layers in ((256, 256), (512,), ()) for kind in (False, True)]
    assert wanted.swept == ["encoder_layers", "autoencoder"]
    assert asked(tmp_path, "--jobs 0 --no-autoencoder --sort kl --labels 1,7 3").jobs == 0
    (one,) = asked(tmp_path, "--skip-bad-images").settings
    assert one.skip_bad_images


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--kl-weight-ned 1 2", "sweep takes no option '--kl-weight-ned' (did you mean --kl-weight-end?)"),
        ("--seed 1 x", "--seed: 'x' is not allowed; an integer of at least 0"),
        ("--loss ce mse --decoder-scale learned", "--decoder-scale: 'learned' is not allowed with loss 'ce'"),
        ("--autoencoder maybe true", "--autoencoder takes no value; it is a flag"),
        ("0 1 --seed 1", "'0' follows no option; a sweep is as in --seed 0 1 2"),
        ("--resume x", "--resume: not an option of a sweep; the same command continues it"),
        ("--sort elb --seed 1", "--sort: 'elb' is not allowed; elbo, nll,"),
        ("--jobs -1 --seed 1", "argument --jobs: '-1' is not allowed; an integer from 0 to 1,000 is"),
        ("--seed 0 --seed 1", "--seed is there twice; all its values follow it at once"),
        ("--run-name a b", "--run-name: several values are not allowed; they change no result"),
        ("--batch-size 128 70000", "batch_size: 70,000 is not allowed; at most 60,000"),
        ("--seed " + "1 " * 40 + "--epochs " + "1 " * 40, "1,600 combinations; at most 1,000 are allowed"),
    ],
)
def test_a_mistake_in_any_combination_is_one_line_before_anything_trains(tmp_path, capsys, line, told):
    with pytest.raises(SystemExit) as stopped:
        asked(tmp_path, line)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sweep: error: {told}")
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_nothing_to_sweep_is_refused(capsys):
    with pytest.raises(SystemExit):
        sweep.read_sweep(["--jobs", "2"])
    assert capsys.readouterr().err.startswith("sweep: error: nothing to sweep; name a constant and its values")


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep.read_sweep(["--help"])
    assert stopped.value.code == 0
    assert "python -m experiments.sweep --kl-weight-end 0.5 1 2 --seed 0 1 2 --epochs 5" in capsys.readouterr().out


# --- names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "--kl-weight-end 0.5 2 --seed 0 1",
            [f"z20-kl_weight_end{end}" for end in ("0.5-seed0", "0.5-seed1", "2-seed0", "2-seed1")],
        ),
        ("--latent-dim 2 3 --seed 0 1", ["z2-seed0", "z2-seed1", "z3-seed0", "z3-seed1"]),
        ("--encoder-layers 256,256 none", ["z20-encoder_layers256_256", "z20-no_encoder_layers"]),
        ("--epochs 3", ["z20"]),
    ],
)
def test_runs_are_named_after_what_is_swept_unless_their_name_has_it_already(tmp_path, line, expected):
    assert names(tmp_path, f"{line}") == [f"mnist-ce-{name}" for name in expected]
    found = names(tmp_path, "--loss ce mse --run-name mine")
    assert found == ["mine-loss_ce", "mine-loss_mse"]


def test_a_name_that_another_run_has_gets_what_differs_and_a_run_keeps_its_own(tmp_path):
    line = "--epochs 3 --seed 0 1"
    first = asked(tmp_path, line)
    for folder, s in sweep.folders_of(first.settings, first.swept).items():
        runs.create(s.model_copy(update={"run_name": folder.name}), "CPU", (4, 4, 1))
    assert names(tmp_path, line) == ["mnist-ce-z20-seed0", "mnist-ce-z20-seed1"]
    other = [f"mnist-ce-z20-seed{seed}-epochs4" for seed in (0, 1)]
    assert names(tmp_path, "--epochs 4 --seed 0 1") == other
    (tmp_path / other[0]).mkdir()
    assert names(tmp_path, "--epochs 4 --seed 0 1") == [f"{other[0]}-2", other[1]]


def test_names_that_are_too_long_to_differ_do_so_by_a_number(tmp_path):
    layers = [",".join(["65000"] * 30 + [str(last)]) for last in (1, 2)]
    found = names(tmp_path, f"--encoder-layers {' '.join(layers)}")
    assert len(set(found)) == 2
    assert max(map(len, found)) <= runs.LONGEST_NAME


# --- training ---------------------------------------------------------------------------------------------------------
LINE = "--seed 0 1 2 --jobs 0"


def test_a_run_that_fails_costs_a_line_and_the_same_command_tries_it_again(tmp_path, trained, capsys):
    broken = "mnist-ce-z20-seed1"
    trained.errors[broken] = Diverged("diverged in step 3: of a test")
    assert sweep.main(asked(tmp_path, LINE)) == 1
    told = capsys.readouterr()
    assert told.out.count("failed     ") == 1
    assert f"failed     {broken}: diverged in step 3: of a test\n" in told.out
    assert "mnist-ce-z20-seed0 and 1 more" in told.out  # the comparison of the runs that succeeded
    assert told.err.splitlines()[-1].startswith("sweep: error: 1 of 3 runs failed")
    trained.errors.clear()
    trained.names.clear()
    assert sweep.main(asked(tmp_path, LINE)) == 0
    assert trained.names == [broken]
    told = capsys.readouterr().out
    assert "note       2 of 3 runs were finished before\n" in told
    assert "mnist-ce-z20-seed0 and 2 more" in told


def test_if_all_fail_there_is_no_comparison(tmp_path, trained, capsys):
    trained.errors |= {f"mnist-ce-z20-seed{seed}": ZeroDivisionError("by zero") for seed in range(3)}
    assert sweep.main(asked(tmp_path, LINE)) == 1
    assert capsys.readouterr().out.count(": ZeroDivisionError: by zero\n") == 3
    assert not (tmp_path / "comparison.csv").exists()


def test_ctrl_c_says_how_to_go_on_and_leaves_the_rest(tmp_path, trained, capsys):
    trained.errors["mnist-ce-z20-seed1"] = console.Stopped(signal.SIGINT)
    assert sweep.main(asked(tmp_path, LINE)) == 130
    assert capsys.readouterr().out.endswith("stopped    the same command goes on from here\n")
    assert trained.names == ["mnist-ce-z20-seed0", "mnist-ce-z20-seed1"]


# --- processes --------------------------------------------------------------------------------------------------------
SMALL = {"labels": (1,), "held_out": 500, "encoder_layers": (8,), "decoder_layers": (8,), "latent_dim": 2, "epochs": 1,
         "nll_samples": 0, "dataset": "mnist", "loss": "ce", "binarize": "dynamic"}  # fmt: skip


def die(vae, settings, dataset):
    """A watch that ends its process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(vae, settings, dataset):
    """The same, but only the first time."""
    before = Path(settings.output_dir) / "died"
    if not before.exists():
        before.touch()
        die(vae, settings, dataset)
    return {}


@pytest.mark.slow
def test_a_training_whose_process_dies_is_tried_once_more_and_takes_no_other_with_it(tmp_path, capsys):
    settings = [from_params(**SMALL, seed=seed) for seed in range(4)]
    tasks = {tmp_path / str(s.seed): (s, None, ()) for s in settings}
    tasks[tmp_path / "1"] = settings[1], die, (2,)
    tasks[tmp_path / "2"] = settings[2], die_once, (2,)
    ended = [(folder.name, error) for folder, error in side_by_side.train_all(tasks, 2, tmp_path / "log") if folder]
    assert sorted(name for name, _ in ended) == ["0", "1", "2", "3"]
    ((name, error),) = [(name, error) for name, error in ended if error]
    assert name == "1"
    assert "its process died twice, as when memory runs out" in sweep.why(error, tmp_path / "log")
    again = re.findall(r"^note .* once more: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert again[0] == "0 and 1"
    assert [(tmp_path / name / "report.json").exists() for name in "0123"] == [True, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("everybody_hears", [True, False])  # Ctrl-C in a terminal, and kill
def test_a_sweep_that_is_stopped_goes_on_where_it_was(tmp_path, everybody_hears):
    number, send = (signal.SIGINT, os.killpg) if everybody_hears else (signal.SIGTERM, os.kill)
    line = "--labels 1,7 --encoder-layers 64 --decoder-layers 64 --kl-weight-end 1 2 --epochs 12 --checkpoint-every 20"
    line += " --log-every 10 --images-every 20 --nll-samples 0 --jobs 2 --dataset mnist --loss ce --latent-dim 20"
    command = [sys.executable, "-m", "experiments.sweep", *line.split(), "--output-dir", str(tmp_path)]
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    about = {"cwd": REPOSITORY, "env": users_environment()} | pipes
    folders = [tmp_path / f"mnist-1_7-ce-z20-kl_weight_end{end}" for end in (1, 2)]
    process = subprocess.Popen(command, **about)
    while not all(runs.saved_steps(folder) for folder in folders) and process.poll() is None:
        time.sleep(0.1)
    send(process.pid, number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert "stopped    the same command goes on from here\n" in told
    assert not any((folder / "report.json").exists() for folder in folders)
    before = [runs.read_history(folder) for folder in folders]  # including how long each step took
    done = subprocess.run(command, **about, timeout=200)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^2 +-\d+\.\d\d ", done.stdout, re.MULTILINE)
    for folder, lines in zip(folders, before, strict=True):
        now = runs.read_history(folder)
        assert 0 < lines[-1]["step"] < now[-1]["step"] == 12 * 101
        assert now[: len(lines)] == lines
