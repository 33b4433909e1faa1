"""utils/best.py: which test is the best, that its weights are kept through stops, and when --best is refused."""

import json
import shutil

import numpy as np
import pytest

import main
from experiments import evaluate, export
from tests.shared import set_xla
from tests.test_export import make_run
from tests.tiny import TINY, random_images, random_vae
from utils import best, checkpoints, runs
from utils.dataset import Dataset
from utils.evaluation import compile_evaluation
from utils.recorder import Recorder
from utils.settings import from_params
from utils.start import tf

LINEAR = {"kl_schedule": "linear", "kl_weight_start": 0.0, "kl_weight_end": 1.0, "kl_steps": 20, "held_out": 5}


def history_of(*objectives):
    """The history of a run of epochs of ten steps, each of which ends with a test."""
    steps = [(10 * number, value) for number, value in enumerate(objectives, 1)]
    train = [{"split": "train", "step": step, "epoch": step / 10, "objective": 0.0} for step, _ in steps]
    return train + [{"split": "test", "step": step, "epoch": step / 10, "objective": value} for step, value in steps]


# --- which ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("objectives", "changes", "step"),
    [
        ([5, 6, 9, 8, 8.5], {}, 40),  # the tests of steps 10 and 20 had a lower KL weight
        ([5, 6, 9, 8, 8], {}, 40),  # the first of equal ones
        ([5, 6, 9], {"kl_steps": 19}, 20),  # step 20, the last of that epoch, had the final weight
        ([5, 6], {}, None),
        ([5, 6, -9, -8], {}, 30),
        ([5, 6, 9], {"kl_schedule": "cyclical", "kl_cycles": 2}, 30),
        ([5, 6, 9], {"kl_schedule": "constant"}, 10),
        ([5, 6, 9], {"kl_weight_start": 1.0}, 10),
        ([5, 6, 9], {"autoencoder": True}, 10),
        ([5, 6, 9, 8], {"held_out": 0}, None),  # these are the test images
    ],
)
def test_the_best_is_the_lowest_held_out_objective_at_the_final_weight(objectives, changes, step):
    found = best.best_of(from_params(**TINY | LINEAR | changes), history_of(*objectives))
    assert (found and found["step"]) == step


# --- kept -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def fit(monkeypatch, tmp_path):
    """Train a VAE on seven images for six epochs of three steps, which overfits; return its weights by step."""
    set_xla(monkeypatch)
    monkeypatch.setattr(main, "draw_grid", lambda *_: np.zeros((4, 90, 1), np.uint8))
    dataset = Dataset("tiny", random_images(7), np.zeros(7), random_images(3, 1), np.zeros(3), "")
    changes = {"learning_rate": 0.3, "epochs": 6, "checkpoint_every": 4, "held_out": 3, "lr_schedule": "constant"}

    def fit_it(stop_at=None, **more):
        chosen, seen = from_params(**TINY | changes | more), {}
        (tmp_path / "params.json").write_text('{"schedule_epochs": 6, "settings": {"epochs": 6}}')

        def watch(vae, step):
            seen[step] = [weight.numpy() for weight in vae.weights]
            if step == stop_at:
                raise KeyboardInterrupt

        vae = random_vae(chosen)
        run = Recorder(vae, chosen, dataset, tmp_path, print, watch, range(1, 19))
        main.fit(vae, chosen, dataset, compile_evaluation(vae, chosen, main.loss_terms), run)
        return seen

    return fit_it


def kept_weights(folder):
    vae = random_vae(from_params(**TINY), seed=9)
    checkpoints.load_weights(vae, folder, "best")
    return [weight.numpy() for weight in vae.weights]


def objectives(folder):
    return {line["step"]: line["objective"] for line in runs.read_history(folder) if line["split"] == "test"}


def same(some, others):
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.slow
def test_the_weights_of_the_best_test_are_kept_whatever_stops_the_run(fit, tmp_path, monkeypatch):
    seen = fit()
    tests = objectives(tmp_path)
    later = {step: value for step, value in tests.items() if step > 4}
    step = min(later, key=later.get)
    assert 6 <= step < 18  # neither first nor last, or this test would show little
    assert runs.saved_steps(tmp_path, "best")[-1] == step
    assert same(kept_weights(tmp_path), seen[step])
    checkpoints.keep_newest(tmp_path)
    assert (runs.saved_steps(tmp_path), runs.saved_steps(tmp_path, "best")) == ([18], [step])
    assert best.kept(tmp_path, runs.read_history(tmp_path)) == {
        "step": step, "epoch": step // 3, "objective": tests[step],
    }  # fmt: skip

    def interrupt(*_):
        raise KeyboardInterrupt

    for where in (step + 1, "save_best", "keep_newest"):
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "history.jsonl").unlink()
        with monkeypatch.context() as patch:
            if isinstance(where, str):
                patch.setattr(checkpoints, where, interrupt)
            with pytest.raises(KeyboardInterrupt):
                fit(where)
        checkpoints.save_best(random_vae(from_params(**TINY)), tmp_path, 17)  # as if there had been another best test
        fit()
        assert objectives(tmp_path) == tests
        assert runs.saved_steps(tmp_path, "best")[-1] == step, where
        assert same(kept_weights(tmp_path), seen[step]), where


def test_a_run_that_goes_on_from_an_earlier_checkpoint_has_the_best_of_that_time(tmp_path):
    vae = random_vae(from_params(**TINY))
    for step, is_best in ((4, 0), (6, 1), (8, 0), (9, 1), (12, 2), (16, 0), (18, 1), (20, 0)):
        if is_best:
            checkpoints.save_best(vae, tmp_path, step)
        if is_best != 1:
            checkpoints.save(checkpoints.checkpoint(vae), tmp_path, step)
    assert runs.saved_steps(tmp_path) == [12, 16, 20]
    assert runs.saved_steps(tmp_path, "best") == [12, 18]
    checkpoints.drop_best_after(tmp_path, 16)  # the checkpoint of step 20 was damaged
    assert runs.saved_steps(tmp_path, "best") == [12]


def test_without_held_out_images_or_the_final_weight_none_is_kept(fit, tmp_path):
    for changes in ({"held_out": 0}, {"kl_steps": 19}):
        fit(**changes)
        assert runs.saved_steps(tmp_path, "best") == []
        assert best.kept(tmp_path, runs.read_history(tmp_path)) is None
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "history.jsonl").unlink()


# --- taken ------------------------------------------------------------------------------------------------------------
def line(step, weight):
    terms = f'"reconstruction": 5, "objective": 7.0, "kl_weight": {weight}'
    return f'{{"step": {step}, "epoch": {step / 7}, "split": "test", {terms}}}\n'


@pytest.mark.parametrize("command", [evaluate, export])
@pytest.mark.parametrize(
    ("held_out", "history", "why"),
    [
        (0, line(7, 0.7), "it has HELD_OUT = 0, and the test images must not choose it"),
        (5, line(7, 0.5), "no test of it had the final KL weight yet"),
        (5, "", "no test of it had the final KL weight yet"),
        (5, line(7, np.float64(np.float32(0.7))), "none was kept when it was trained"),
        (5, line(7, "null"), "none was kept when it was trained"),
    ],
)
def test_best_is_refused_in_a_line_where_there_is_none(command, held_out, history, why, tmp_path, capsys):
    folder, *_ = make_run(tmp_path, held_out=held_out, kl_weight_end=0.7)
    (folder / "history.jsonl").write_text(history)
    with pytest.raises(SystemExit) as stopped:
        command.read_command_line([str(folder), "--best"])
    assert stopped.value.code == 2
    name = command.__name__.rpartition(".")[2]
    told = f"{name}: error: --best: tiny has no best checkpoint: {why}; without --best the last one is taken\n"
    assert capsys.readouterr().err == told
    assert command.read_command_line([str(folder)]).kind == "step"


def test_a_damaged_best_checkpoint_is_not_replaced_by_another_without_a_word(tmp_path, capsys):
    folder, vae, _ = make_run(tmp_path, held_out=5)
    checkpoints.save_best(vae, folder, 6)
    (data,) = (folder / "checkpoints").glob("best-6.data*")
    data.write_bytes(b"")
    assert export.main(export.read_command_line([str(folder), "--best"])) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"export: error: {folder}/checkpoints/best-6 is damaged (")
    assert told.count("\n") == 1


@pytest.mark.slow
def test_the_export_has_the_best_weights_and_takes_whole_images(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_export.SHAPE", (4, 4, 1))
    folder, vae, _ = make_run(tmp_path, held_out=5)
    for weight in vae.weights:
        weight.assign(2 * weight)
    checkpoints.save_best(vae, folder, 6)
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 1), np.uint8)
    expected = vae.encoder(image[np.newaxis] / np.float32(255))[0]
    assert export.main(export.read_command_line([str(folder), "--best"])) == 0
    about = json.loads((folder / "export" / "export.json").read_text())
    assert (about["step"], about["checkpoint"]) == (6, "best")
    model = tf.saved_model.load(str(folder / "export" / "saved_model"))
    np.testing.assert_allclose(model.encode_image(image)["z_mean"], expected, atol=1e-5)
    larger = np.kron(image, np.ones((8, 8, 1), np.uint8))[:, 4:-4]  # its middle is 24 x 24
    content = tf.io.encode_png(np.pad(larger, [(0, 0), (4, 4), (0, 0)], "edge")).numpy()
    assert model.encode_files(tf.constant([content, content]))["z_mean"].shape == (2, 3)
    assert evaluate.unfinished(folder, 9, "best") != evaluate.unfinished(folder, 9)
