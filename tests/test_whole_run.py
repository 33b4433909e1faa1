"""Timed whole runs: these tests check how times are reported and compared, but not how long they are."""

import os
import sys

import pytest

from experiments import benchmark, whole_run
from tests import reference_runs
from utils.console import Problem
from utils.settings import from_params, read_command_line

TITLES = {"loop": "the loop alone", "ours": "main.py", "keras": "Keras fit", "against": "old"}


def made_run(epochs, end=0.0, elbo=-96.0):
    """The measurements of a run that took a second to start."""
    total = 1.0 + sum(epochs) + end
    return {"startup": 1.0, "epochs": epochs, "end": end, "total": total, "megabytes": 900.0, "test_elbo": elbo}


def test_times_are_told_by_the_dates_of_the_grids(tmp_path):
    for epoch, date in enumerate([1_004.0, 1_009.5, 1_011.5, 1_014.0]):
        (tmp_path / f"samples_{epoch:03}.png").touch()
        os.utime(tmp_path / f"samples_{epoch:03}.png", (0, date))
    ended = whole_run.Ended(started=1_000.0, ended=1_020.0, megabytes=7.0, output="")
    times = whole_run.times("main.py", tmp_path, 3, ended)
    assert times == {"startup": 4.0, "epochs": [5.5, 2.0, 2.5], "end": 6.0, "total": 20.0, "megabytes": 7.0}
    with pytest.raises(Problem, match=r"main\.py did not write samples_004\.png"):
        whole_run.times("main.py", tmp_path, 4, ended)


def test_ratios_are_formed_within_a_round():
    """Medians of the rounds' ratios, by hand; an epoch is the mean of all but the first."""
    ours = [([5, 1, 3], 2), ([5, 3, 3], 2), ([6, 4, 4], 2)]  # 2, 3 and 4 seconds an epoch; 12, 14 and 17 in all
    keras = [([9, 4, 6], 0), ([9, 6, 6], 0), ([9, 20, 20], 0)]  # 5, 6 and 20; 20, 22 and 50 in all
    old = [([5, 4, 4], 10), ([5, 4, 4], 14), ([5, 4, 4], 20)]  # 4 each; 24, 28 and 34 in all
    rounds = [
        {"loop": {"images_per_second": 24_000.0}, "ours": made_run(*a), "keras": made_run(*b), "against": made_run(*c)}
        for a, b, c in zip(ours, keras, old, strict=True)
    ]
    _, mine, theirs, other, _, keras_ratio, old_ratio, against, loop, aim = whole_run.table(rounds, TITLES)
    total, epoch = ["14.00", "(13.00-15.50)"], ["3.00", "(2.50-3.50)"]
    assert mine.split() == ["main.py", "1.00", "5.00", *epoch, "2.00", *total, "-96.00", "900"]
    assert theirs.split()[:6] == ["Keras", "fit", "1.00", "9.00", "6.00", "(5.50-13.00)"]
    assert other.split()[-5:] == ["14.00", "28.00", "(26.00-31.00)", "-96.00", "900"]
    # Per epoch 5/2, 6/3, 20/4; trained 20/10, 22/12, 50/15; in all 20/12, 22/14, 50/17.
    spreads = ["2.50", "(2.25-3.75)", "2.00", "(1.92-2.67)", "1.67", "(1.62-2.30)"]
    assert keras_ratio.split() == ["Keras", "fit", *spreads]
    assert old_ratio.split()[:3] == ["old", "1.33", "(1.17-1.67)"]
    assert against == "ours / old: 0.50 (0.50-0.50) of the total, 0.75 (0.62-0.88) of an epoch"
    assert loop == "the loop alone: 24,000 (24,000-24,000) images/s"  # 2.5 seconds for 60,000
    assert aim == "An epoch of ours by the clock takes 1.20 (1.00-1.40) times 60,000 / (its images/s)."

    rounds[1]["keras"]["test_elbo"] = -101.5
    assert any("not the same work" in line for line in whole_run.table(rounds, TITLES))


def test_contenders_may_be_left_out():
    rounds = [{"keras": made_run([9, 4, 6])}]
    assert [line.split()[0] for line in whole_run.table(rounds, {"keras": "Keras fit"})] == ["seconds", "Keras"]
    rounds = [{"loop": {"images_per_second": 24_000.0}, "ours": made_run([9, 4, 6]) | {"megabytes": None}}]
    titles = {name: TITLES[name] for name in ("loop", "ours")}
    assert [line.split()[0] for line in whole_run.table(rounds, titles)] == ["seconds", "main.py", "the", "An"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--whole-run --profile", "--profile: does not go with --whole-run"),
        ("--whole-run --time-to-quality", "--time-to-quality: does not go with --whole-run"),
        ("--whole-run --architecture conv", "--architecture: does not go with --whole-run"),
        ("--whole-run --steps 20", "--steps: does not go with --whole-run"),
        ("--whole-run --batch-size 64", "--batch-size: does not go with --whole-run"),
        ("--whole-run --only ours torch", "--only: with --whole-run there are ours, keras"),
        ("--whole-run --epochs 1", "--epochs: at least 2, as the first also compiles"),
        ("--whole-run --against nowhere", "--against: there is no main.py in nowhere"),
        ("--whole-run --only keras --against .", "--against: compares with ours, which --only leaves out"),
        ("--epochs 2", "--epochs: goes with --whole-run only"),
        ("--profile --against .", "--against: goes with --whole-run only"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, line, capsys, monkeypatch):
    monkeypatch.chdir(benchmark.ROOT)
    with pytest.raises(SystemExit):
        benchmark.main(arguments.split())
    assert capsys.readouterr().err.splitlines()[-1] == f"benchmark: error: {line}"


def test_the_run_is_named_in_full_on_the_command_line():
    """So that an edited params.py changes nothing."""
    command = read_command_line(whole_run.options(whole_run.SETTINGS))
    assert command.given == whole_run.SETTINGS
    reference = read_command_line(reference_runs.command_line(reference_runs.DEFAULT, None, "predictions"))
    places = {"output_dir": "predictions", "run_name": ""}
    assert from_params(**whole_run.SETTINGS, **places, epochs=15) == reference.settings
    command = read_command_line(whole_run.options({"labels": (1, 7), "autoencoder": True}))
    assert command.settings == from_params(labels=(1, 7), autoencoder=True)


def test_a_failing_process_tells_why(tmp_path):
    script = "import sys; print('all was well'); sys.exit('it broke')"
    with pytest.raises(Problem, match=r"^main\.py failed with exit code 1\nit broke$"):
        whole_run.run_process("main.py", [sys.executable, "-c", script], tmp_path)


def test_a_process_is_timed_and_killed_by_ctrl_c(tmp_path, monkeypatch):
    ended = whole_run.run_process("it", [sys.executable, "-c", "import time; time.sleep(0.2); print(1)"], tmp_path)
    assert ended.output == "1\n"
    assert 0.2 < ended.ended - ended.started < 60
    assert ended.megabytes is None or ended.megabytes > 1

    processes = []

    def interrupted(process):
        processes.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_run, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        whole_run.run_process("it", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path)
    assert processes[0].returncode  # it was killed, and is gone


@pytest.mark.slow
def test_whole_runs_are_measured(monkeypatch, capsys):
    """All contenders, for two epochs."""
    written = {}
    monkeypatch.setattr(benchmark, "write_results", lambda name, args, results: written.update({name: results}))
    benchmark.main(["--whole-run", "--quick"])
    printed = capsys.readouterr().out
    assert "not the same work" not in printed
    assert "An epoch of ours by the clock takes" in printed
    (results,) = written["whole_run"]["rounds"]
    assert results["loop"]["images_per_second"] > 0
    for name in ("ours", "keras"):
        run = results[name]
        assert len(run["epochs"]) == 2
        assert min(run["startup"], *run["epochs"], run["end"]) > 0
        assert run["startup"] + sum(run["epochs"]) + run["end"] == pytest.approx(run["total"])
