"""experiments/study.py and all.py: trainings are made once and go on when interrupted; results go where they belong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import pytest

import main
from experiments import all as everything
from experiments import fingerprint, results
from experiments import study as studies
from experiments.study import BASE, Training, make_study, settings_of, train_all
from tests.shared import OURS
from utils import console, data, history, runs
from utils.dataset import DataError
from utils.evaluation import compile_evaluation

RUN_ONLY = {"data_dir", "seed", "run_name", "output_dir"}  # constants that do not affect a result, or are asked for


@pytest.fixture
def study(tmp_path):
    return make_study("toy", quick=True, images=tmp_path)._replace(trainings=tmp_path / "trainings")


def first_code(vae, settings, dataset, count=1):
    """A watch."""
    return {"z": vae.encoder(dataset.test_images[:count] / np.float32(255))[0].numpy()}


def second_code(vae, settings, dataset):
    """Another watch."""
    return first_code(vae, settings, dataset, count=2)


def test_the_base_names_every_constant_that_has_a_part_in_a_result():
    assert set(BASE) == OURS - RUN_ONLY


@pytest.mark.slow
def test_trainings_in_processes_are_those_in_this_one_and_are_made_once(study, tmp_path, monkeypatch):
    small = {"epochs": 1, "encoder_layers": (8,), "decoder_layers": (8,), "latent_dim": 2, "nll_samples": 0}
    wanted = [Training(settings_of(study, **small, seed=seed), first_code, (0, 5)) for seed in (3, 4)]
    here = train_all(study, wanted)
    there = train_all(study._replace(trainings=tmp_path / "others", jobs=2), wanted)
    for one, other in zip(here, there, strict=True):
        assert one.report == other.report
        assert one.folder.name == other.folder.name
        np.testing.assert_array_equal(one.watched()[5]["z"], other.watched()[5]["z"])
    assert here[0].report != here[1].report
    assert list(here[0].watched()) == [0, 5]
    assert here[0].seconds > 0
    monkeypatch.setattr(main, "train", None)  # what is finished is not trained again
    assert train_all(study, wanted[::-1]) == here[::-1]
    images = data.prepare(wanted[0].settings, print).test_images
    loaded = compile_evaluation(here[0].vae, wanted[0].settings, main.loss_terms)(images)
    assert float(-(loaded[0] + loaded[1].sum(axis=1)).mean()) == pytest.approx(here[0].report["test_elbo"], rel=1e-6)


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(study, monkeypatch):
    training = Training(settings_of(study, epochs=2, nll_samples=0, checkpoint_every=50), first_code, (10, 200))
    write_line, lines = history.write_line, []

    def interrupt(*arguments):
        lines.append(arguments)
        if len(lines) == 3:
            raise KeyboardInterrupt
        write_line(*arguments)

    monkeypatch.setattr(history, "write_line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_all(study, [training])
    steps = runs.saved_steps(study.trainings / training.name)
    assert steps  # so that there is something to go on from
    train_all(study, [training])
    assert len(lines) < 3 + 4  # the lines before the checkpoint were not made again


def test_a_training_is_not_finished_if_its_likelihood_was_interrupted(study, monkeypatch):
    training = Training(settings_of(study))
    folder = study.trainings / training.name

    def train(*_):
        folder.mkdir()
        (folder / "report.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "train", train)
    with pytest.raises(KeyboardInterrupt):
        train_all(study, [training])
    assert not (folder / "report.json").exists()


def test_a_training_is_known_by_its_settings_what_is_watched_and_the_code(study, monkeypatch, tmp_path):
    settings = settings_of(study)
    watches = [None, first_code, partial(first_code, count=2), partial(first_code, count=3), second_code]
    trainings = [Training(settings, watch, (1,)) for watch in watches] + [Training(settings, first_code, (2,))]
    trainings += [Training(settings_of(study, kl_weight_end=2.0))]
    names = [training.name for training in trainings]
    assert len(set(names)) == len(names)
    moved = Training(settings.model_copy(update={"output_dir": "elsewhere", "data_dir": "far"}))
    assert moved.name == names[0]
    for source in (studies.ROOT / "main.py", *(studies.ROOT / "utils").glob("*.py")):
        copy = tmp_path / source.relative_to(studies.ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(source, copy)
    monkeypatch.setattr(fingerprint, "code_of", partial(fingerprint.code_of, root=tmp_path))
    assert trainings[0].name == names[0]
    for name in ("networks", "workers"):
        path = tmp_path / "utils" / f"{name}.py"
        text = path.read_text()
        path.write_text(f"# A comment.\n{text}")
        assert trainings[0].name == names[0]
        path.write_text(f"{text}\nADDED = 1\n")
        assert trainings[0].name != names[0]
        path.write_text(text)


def test_a_summary_is_a_mean_with_its_spread():
    assert results.summary([1, 2, 6]) == {"mean": 3, "sd": pytest.approx(7**0.5), "values": [1, 2, 6]}
    assert results.shown(results.summary([1, 2, 6])) == "3.0 ± 2.6"
    assert results.shown(results.summary([1234.5])) == "1,234.5"
    assert results.shown(results.summary([2.01, 2.02])) == "2.0"
    assert results.table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_tables_replace_what_stands_in_their_places_only():
    readme = "1\n<!-- table: a -->\nold\n<!-- end -->\n2\n<!-- table: b -->\n<!-- end -->\n3\n"
    new = results.with_tables(readme, {"a": r"| \1 |", "b": "| 2 |"})
    assert new == "1\n<!-- table: a -->\n| \\1 |\n<!-- end -->\n2\n<!-- table: b -->\n| 2 |\n<!-- end -->\n3\n"
    assert results.with_tables(new, {"a": "old", "b": ""}).count("old") == 1
    with pytest.raises(ValueError, match="0 places for the table 'c'"):
        results.with_tables(readme, {"c": ""})


def test_a_page_without_a_place_for_a_table_is_named_and_left_as_it_is(tmp_path):
    (page := tmp_path / "page.md").write_text("no places")
    with pytest.raises(ValueError, match=r"page\.md: 0 places for the table 'c'"):
        results.put_tables(page, {"c": "| 1 |"})
    assert page.read_text() == "no places"


@pytest.mark.parametrize("name", everything.EXPERIMENTS)
def test_the_analysis_shows_the_tables_of_the_committed_numbers(name):
    numbers = json.loads((studies.ROOT / "images" / f"{name}.json").read_text())
    assert not numbers["quick"]
    page = results.ANALYSIS.read_text()
    assert results.with_tables(page, numbers["tables"]) == page


def test_a_quick_study_touches_neither_the_analysis_nor_its_images(study, capsys):
    before = results.ANALYSIS.read_text()
    results.publish(study, {"x": 1}, {"nowhere": "| 1 |"})
    assert json.loads((study.images / "toy.json").read_text())["x"] == 1
    assert "| 1 |" in capsys.readouterr().out
    assert results.ANALYSIS.read_text() == before


def test_all_runs_what_is_not_finished_and_goes_on_behind_what_is(study, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(everything, "command", lambda one: ran.append(one.name) or [sys.executable, "-c", "exit(3)"])
    assert everything.main(study) == 3
    assert ran == ["losses"]

    def finish(words):
        studies.run_study(study._replace(name=ran[-1]), lambda one: results.publish(one, {}, {}))
        return 0

    monkeypatch.setattr(everything, "run", finish)
    assert everything.main(study) == 0
    assert ran == ["losses", *everything.EXPERIMENTS]
    assert everything.main(study) == 0
    assert ran == ["losses", *everything.EXPERIMENTS]  # nothing is done again ...
    (study.images / "new_label.json").unlink()
    (study.images / "kl_weight.json").write_text('{"of": "somebody else"}')
    mark = studies.mark(study._replace(name="losses"))
    assert json.loads(mark.read_text())["code"] == fingerprint.code_of("experiments.losses")
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"code": "of yesterday"}))
    assert everything.main(study) == 0
    assert ran[-3:] == ["losses", "kl_weight", "new_label"]  # ... except what is gone or was not made by this code
    assert re.search(r"^all +\d+\.\d minutes$", capsys.readouterr().out, re.MULTILINE)


def test_an_experiment_that_is_interrupted_is_given_time_to_save():
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert everything.run([sys.executable, "-c", "import time; time.sleep(2); exit(7)"]) == 7


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "goes on from here"),
        (console.Stopped(15), 143, "goes on from here"),
        (DataError("no source"), 1, "losses: error: no source"),
        (BrokenProcessPool(), 1, "processes.log may say why"),
    ],
)
def test_what_ends_an_experiment_is_told_in_a_line_and_leaves_no_mark(study, error, code, told, capsys):
    def experiment(study):
        raise error

    assert studies.run_study(study._replace(name="losses"), experiment) == code
    assert told in "".join(capsys.readouterr())
    assert not studies.mark(study._replace(name="losses")).exists()


@pytest.mark.parametrize("name", everything.EXPERIMENTS)
def test_every_experiment_answers_help_and_a_typo(name):
    for words, code, told in ((["--help"], 0, "--quick"), (["--seed", "-1"], 2, "'-1' is not allowed")):
        ended = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", *words], cwd=studies.ROOT, capture_output=True, text=True
        )
        assert ended.returncode == code
        assert told in ended.stdout + ended.stderr
