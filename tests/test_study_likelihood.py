"""experiments/likelihood.py: what its rows are made of, and a toy run of one."""

import json
import time
from itertools import pairwise

import pytest
from PIL import Image

from experiments import likelihood
from experiments.results import with_tables
from experiments.study import ROOT
from tests.shared import OURS, set_xla
from utils import runs


def asked(*words):
    return likelihood.read_command_line(words)


@pytest.mark.parametrize("name", likelihood.ROWS)
def test_each_training_of_a_row_starts_from_the_one_before_with_the_same_networks(name):
    stages = likelihood.stages_of(name, asked(name))
    assert stages[0].start_from == ""
    for before, after in pairwise(stages):
        assert after.start_from == f"{before.output_dir}/{before.run_name}"
        for setting in runs.WEIGHTS_DEPEND_ON:
            assert getattr(after, setting) == getattr(before, setting)
    for settings in stages:
        assert settings.binarize == "dynamic"
        assert settings.held_out == 0
        assert settings.kl_weight_end == 1
    held_out = likelihood.stages_of(name, asked(name, "--held-out"))
    assert {settings.held_out for settings in held_out} == {5_000}
    assert not {one.run_name for one in stages} & {one.run_name for one in held_out}


def test_the_published_networks_are_those_of_the_paper():
    for settings in (*likelihood.stages_of("vae", asked()), *likelihood.stages_of("iwae", asked())):
        assert settings.encoder_layers == settings.decoder_layers == (200, 200)
        assert (settings.activation, settings.latent_dim, settings.prior) == ("tanh", 50, "standard")
    assert {(s.bound, s.bound_samples) for s in likelihood.stages_of("vae", asked())} == {("elbo", 1)}
    assert likelihood.stages_of("iwae", asked())[-1].bound_samples == 50


def test_rows_that_begin_alike_share_their_beginning_and_no_other_training(monkeypatch):
    names = {name: [settings.run_name for settings in likelihood.stages_of(name, asked())] for name in likelihood.ROWS}
    first, *rest = names.pop("iwae")
    assert [first] == names["vae"]
    others = [name for row in names.values() for name in row]
    assert len(set(rest + others)) == len(rest + others)
    iwae = likelihood.ROWS["iwae"]
    longer = (iwae.stages[0] | {"epochs": 2_001}, *iwae.stages[1:])
    monkeypatch.setitem(likelihood.ROWS, "iwae", iwae._replace(stages=longer))
    changed = {settings.run_name for settings in likelihood.stages_of("iwae", asked())}
    assert not changed & {first, *rest}  # the names depend on what came before, too


@pytest.mark.parametrize("name", likelihood.ROWS)
def test_a_row_leaves_no_constant_that_has_a_part_in_the_result_to_params(name):
    elsewhere = {"data_dir", "run_name", "output_dir"}
    for stage in likelihood.ROWS[name].stages:
        assert set(likelihood.COMMON | stage) == OURS - elsewhere


def test_an_unknown_row_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit):
        asked("vaee")
    told = "likelihood: error: ROW: 'vaee' is not allowed; vae, iwae, mlp, best, fashion are\n"
    assert capsys.readouterr().err == told


def test_the_committed_rows_are_those_that_the_code_makes():
    numbers = json.loads((ROOT / "images" / "likelihood.json").read_text())
    for name, row in numbers["rows"].items():
        made_now = [
            stage.model_dump(mode="json", include=OURS - likelihood.PLACES)
            for stage in likelihood.stages_of(name, asked())
        ]
        assert [training["settings"] for training in row["trainings"]] == made_now
    page = likelihood.PAGE.read_text()
    assert with_tables(page, numbers["tables"]) == page
    assert numbers["tables"]["likelihood"] == likelihood.table_of(numbers["rows"])


def test_held_out_and_quick_runs_stay_out_of_the_table():
    assert asked().images == ROOT / "images"
    assert ROOT / "images" not in (asked("--held-out").images, asked("--quick").images)


@pytest.mark.slow
def test_a_toy_row_is_trained_evaluated_and_not_made_twice(monkeypatch, tmp_path, capsys):
    set_xla(monkeypatch)
    monkeypatch.setattr(likelihood, "ROOT", tmp_path)
    toy = {"labels": (0, 1), "encoder_layers": (8,), "decoder_layers": (8,), "latent_dim": 3, "bound_samples": 2}
    monkeypatch.setattr(likelihood, "QUICK", likelihood.QUICK | toy)
    once = asked("iwae", "--quick")
    once.samples, once.images = 5, tmp_path / "figures"
    assert likelihood.main(once) == 0
    path = tmp_path / "figures" / "likelihood.json"
    first = json.loads(path.read_text())["rows"]["iwae"]
    folders = [
        tmp_path / "predictions" / "quick-likelihood" / stage.run_name for stage in likelihood.stages_of("iwae", once)
    ]
    assert [json.loads((folder / "params.json").read_text())["settings"]["bound"] for folder in folders] == [
        "elbo",
        "dreg",
        "dreg",
    ]
    evaluation = json.loads((folders[-1] / "evaluation.json").read_text())
    assert first["nll"] == -evaluation["likelihood"]["log_likelihood"]
    assert [bound["samples"] for bound in first["bounds"]] == [1, 2, 5]
    assert -first["nll"] == pytest.approx(first["bounds"][-1]["bound"])
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (825, 528)
    assert first["standard_error_images"] == evaluation["likelihood"]["standard_error_images"]
    assert len(first["trainings"]) == 3
    assert str(tmp_path) not in path.read_text()
    assert min(minutes for training in first["trainings"] for minutes in training["minutes"].values()) > 0
    monkeypatch.setattr(likelihood.vae_main, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(likelihood.evaluate, "weigh_all", lambda *_: pytest.fail("evaluated again"))
    assert likelihood.main(once) == 0
    assert json.loads(path.read_text())["rows"]["iwae"] == first
    assert f"{first['nll']:.2f}" in capsys.readouterr().out


def test_a_training_that_is_killed_keeps_its_minutes_up_to_the_last_checkpoint(monkeypatch, tmp_path):
    settings = likelihood.stages_of("vae", asked())[0].model_copy(update={"output_dir": str(tmp_path)})
    folder = tmp_path / settings.run_name
    folder.mkdir()
    noted = []

    def train(settings, resumed, watch, watch_at):
        assert list(watch_at)[:2] == [0, settings.checkpoint_every]
        watch(None, 0)
        time.sleep(0.05)
        watch(None, settings.checkpoint_every)
        noted.append(json.loads((folder / "minutes.json").read_text())["clock"])
        if len(noted) == 1:
            monkeypatch.setattr(likelihood, "write_json", lambda *_: None)  # killed: nothing more is written
            raise KeyboardInterrupt
        (folder / "report.json").write_text("{}")

    monkeypatch.setattr(likelihood.vae_main, "train", train)
    write = likelihood.write_json
    with pytest.raises(KeyboardInterrupt):
        likelihood.train(settings)
    monkeypatch.setattr(likelihood, "write_json", write)
    _, minutes = likelihood.train(settings)
    assert 0.05 / 60 <= noted[0] < noted[1] <= minutes["clock"]
    assert minutes["clock"] >= 0.1 / 60
