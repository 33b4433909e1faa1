"""utils/recorder.py: what it writes while a run trains, and what ends a training."""

import os
import pickle
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.tiny import TINY
from utils import checkpoints, console, history, recorder, runs, workers
from utils.dataset import Dataset
from utils.settings import from_params
from utils.start import keras, tf


# --- the loop ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path):
    """A recorder of two epochs of ten steps, a line every four and a checkpoint every seven; step 13 is watched.

    The film has frames of steps 1, 2, 4 and 8.
    """
    (tmp_path / "params.json").write_text('{"schedule_epochs": 2, "settings": {}}')
    every = {"batch_size": 2, "epochs": 2, "log_every": 4, "checkpoint_every": 7, "images_every": 2}
    images, labels = np.zeros((21, 2, 2, 1), np.uint8), np.zeros(21)
    dataset = Dataset("tiny", images, labels, images, labels, "a test")
    return recorder.Recorder(None, from_params(**TINY | every), dataset, tmp_path, pytest.fail, None, (13,))


def test_it_stops_for_each_line_checkpoint_watched_step_frame_and_end(run):
    stops = []
    while run.step < 20:
        stops.append(run.next_stop(end=10 if run.step < 10 else 20))
        run.advance(tf.zeros(3), tf.zeros(3), tf.constant(stops[-1]))
    assert stops == [1, 2, 4, 7, 8, 10, 12, 13, 14, 16, 20]


@pytest.mark.parametrize(("workers_there", "expected"), [(1, [1, 2, 4, 6, 7, 8]), (2, [1, 2, 4, 7, 8])])
def test_a_slow_network_stops_every_two_seconds_if_it_is_alone(workers_there, expected, run, monkeypatch):
    clock, stops = [0.0], []
    monkeypatch.setattr(recorder, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    run.crew = workers.Workers(None, ("one:1", "two:2")[:workers_there], 0)
    while run.step < 8:
        stops.append(run.next_stop(end=10))
        clock[0] += stops[-1] - run.step  # a second per step
        run.advance(tf.zeros(3), tf.zeros(3), tf.constant(stops[-1]))
    assert stops == expected


def test_tests_and_pictures_are_due_at_ends_of_epochs_and_frames_of_the_film_in_the_first(run, monkeypatch):
    drawn, captions = [], []
    monkeypatch.setattr(recorder.pictures, "captioned", lambda sheet, caption: (sheet, caption))
    monkeypatch.setattr(recorder.pictures, "save_png", lambda path, sheet: captions.append((path, *sheet)))
    monkeypatch.setattr(history, "write_images", lambda folder, events, step, grids: drawn.append((step, list(grids))))
    run.events = None
    found = []
    for step in (0, 1, 3, 4, 10, 13, 16, 20):
        run.advance(tf.zeros(3), tf.constant([7.0, 8 + step, 0.5]), tf.constant(step))
        found.append((run.epoch, run.test_is_due))
        if step in (10, 20):
            run.tested = history.history_line("test", step, 10, [7.0, 2, 3], 0.5)
            assert not run.test_is_due  # not a second time
        run.write_pictures(str.upper)
    assert found == [(0, False), *[(1, False)] * 3, (1, True), *[(2, False)] * 2, (2, True)]
    both = ["samples", "reconstructions"]
    assert drawn == [(0, both), (20, both)]  # every two epochs
    place, no_elbo = run.folder, "samples from the prior; train -(loss + KL)"
    name = f"{place.name} (not binarised, KL weight 1.5)"
    samples = [(path, caption) for path, sheet, caption in captions if sheet == "SAMPLES"]
    assert samples == [
        (place / "samples_000.png", f"{name}, untrained: samples from the prior"),
        (
            place / "film" / "samples_1.png",
            f"{name}, epoch 1, step 1: {no_elbo} -9.5 nats",
        ),
        (
            place / "film" / "samples_4.png",
            f"{name}, epoch 1, step 4: {no_elbo} -12.5 nats",
        ),
        (place / "samples_002.png", f"{name}, epoch 2, step 20: samples from the prior; test ELBO -5.0 nats"),
    ]
    assert [path.stem for path, sheet, _ in captions if sheet == "RECONSTRUCTIONS"] == [
        "reconstructions_000", "reconstructions_002",
    ]  # fmt: skip
    run.tested, run.crew = None, workers.Workers(None, ("one:1", "two:2"), 1)
    assert not run.test_is_due  # only the chief tests
    run.step = 0
    run.write_pictures(pytest.fail)


def test_a_line_has_the_mean_of_its_steps_and_their_speed_by_the_clock(run, monkeypatch):
    clock, lines = [100.0], []
    monkeypatch.setattr(recorder, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(history, "write_line", lambda folder, events, line: lines.append(line))
    monkeypatch.setattr(recorder.report, "show_progress", lambda *_: None)
    run.events = run.bar = None
    run.film_steps = ()
    run.compile(lambda *_: None)
    for step, total in ((3, 30.0), (4, 48.0), (7, 21.0), (8, 28.0)):
        run.next_stop(step)
        clock[0] += 1
        run.advance(tf.constant([total, total, 0]), tf.zeros(3), tf.constant(step))
        run.write_train_line(lambda steps: tf.cast(steps, tf.float32))  # the KL weight is the number of the step
    names = ("step", "objective", "kl_weight", "images_per_second")
    assert [tuple(line[name] for name in names) for line in lines] == [(4, 12, 1.5, 4), (8, 7, 5.5, 4)]


def test_a_test_line_counts_the_active_units(run, monkeypatch):
    lines = []
    monkeypatch.setattr(history, "write_line", lambda folder, events, line: lines.append(line))
    run.events, run.step = None, 10
    z_mean = np.float32([[1, 0.09, 7], [-1, -0.09, 7]])  # variances 1, 0.0081 and 0
    run.write_test_line(tf.constant([90.0, 80, 20]), z_mean, tf.constant(0.5))
    run.s = run.s.model_copy(update={"autoencoder": True})
    run.write_test_line(tf.constant([80.0, 80, 0]), z_mean, tf.constant(0.0))
    assert [(line["step"], line["kl"], line["active_units"]) for line in lines] == [(10, 20, 1), (10, None, None)]


@pytest.mark.parametrize(("epochs", "steps"), [(2, 6), (7, 6)])  # the run grew from 2 epochs of 10 steps
def test_kl_steps_0_is_a_third_of_the_run_as_it_was_planned(epochs, steps, run, tmp_path):
    s = run.s.model_copy(update={"epochs": epochs, "kl_steps": 0})
    grown = recorder.Recorder(None, s, run.dataset, tmp_path, pytest.fail)
    assert (grown.last_step, grown.s.kl_steps) == (epochs * 10, steps)


# --- what ends a training ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [(), (10, 1_200)])
@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ([np.nan, 80, 20], "objective is nan"),
        ([np.inf, np.inf, 20], "objective is inf, reconstruction is inf"),
        ([90, 80, -np.inf], "kl is -inf"),
    ],
)
def test_terms_that_are_not_finite_are_told_with_what_is_left(terms, words, steps, tmp_path):
    for step in steps:
        checkpoints.save(tf.train.Checkpoint(), tmp_path, step)
    chosen = from_params(**TINY | {"learning_rate": 0.02})
    recorder.check_terms(tf.constant([90.0, 80, 20]), 1_234, tmp_path, chosen)
    left = "the checkpoint of step 1,200 is good" if steps else "there is no checkpoint yet"
    with pytest.raises(recorder.Diverged, match=f"^diverged in step 1,234: {words}; {left}; .*LEARNING_RATE"):
        recorder.check_terms(tf.constant(terms, tf.float32), 1_234, tmp_path, chosen)


def test_weights_that_are_not_finite_are_told(tmp_path):
    good, bad = keras.Variable([1.0, 2.0], name="good"), keras.Variable([1.0, np.inf], name="bad")
    chosen = from_params(**TINY)
    recorder.check_weights([good], 7, tmp_path, chosen)
    with pytest.raises(
        recorder.Diverged, match=r"^diverged in step 7: bad has weights that are not finite; there is no"
    ):
        recorder.check_weights([good, bad], 7, tmp_path, chosen)


@pytest.mark.parametrize(
    ("step", "rate", "clip", "advice"),
    [
        (72, 0.01, 0, "LEARNING_RATE = 0.003 (it is 0.01)"),
        (8, 0.3, 5, "LEARNING_RATE = 0.003 (it is 0.3)"),  # a third of it would diverge as well
        (5, 0.005, 0, "LEARNING_RATE = 0.002 (it is 0.005)"),
        (5, 1e-3, 20, "LEARNING_RATE = 0.0003 (it is 0.001)"),
        (4_740, 0.02, 0, "LEARNING_RATE = 0.003 (it is 0.02) or GRADIENT_CLIP = 5 (it is off)"),
        (4_740, 2e-5, 20, "LEARNING_RATE = 7e-06 (it is 2e-05) or GRADIENT_CLIP = 5 (it is 20)"),
        (4_740, 0.003, 2, "LEARNING_RATE = 0.001 (it is 0.003) or GRADIENT_CLIP = 0.5 (it is 2)"),
    ],
)
def test_a_divergence_says_what_to_lower_and_by_how_much(step, rate, clip, advice, tmp_path):
    chosen = from_params(**TINY | {"learning_rate": rate, "gradient_clip": clip})
    told = str(recorder.diverged(step, "kl is nan", tmp_path, chosen))
    assert told.endswith(f"; there is no checkpoint yet; start a new run with {advice}")


def test_the_command_to_go_on_works_from_any_folder_and_through_a_shell(tmp_path, monkeypatch):
    (tmp_path / "my $runs").mkdir()
    monkeypatch.chdir(tmp_path / "my $runs")

    def words(**overrides):
        command = recorder.resume_command(Path("one"), from_params(**TINY | overrides))
        return subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True).stdout.split(
            "\n"
        )

    folder = str(tmp_path / "my $runs" / "one")
    expected = ["python", str(runs.REPOSITORY / "main.py"), "--resume", folder]
    assert words(data_dir="/data") == words(data_dir="~/data") == [*expected, ""]
    assert words(data_dir="../faces") == [*expected, "--data-dir", str(tmp_path / "my $runs" / ".." / "faces"), ""]


def test_a_divergence_keeps_its_words_on_the_way_out_of_a_process(tmp_path):
    error = pickle.loads(pickle.dumps(recorder.diverged(7, "kl is nan", tmp_path, from_params(**TINY))))
    assert isinstance(error, recorder.Diverged)
    assert str(error).startswith("diverged in step 7: kl is nan; there is no checkpoint yet; ")


@pytest.mark.parametrize("number", console.STOPPING)
def test_two_signals_are_noted_and_the_third_stops_at_once(number):
    before = signal.getsignal(number)
    with recorder.deferred_signals() as asked:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [number, signal.SIGTERM]
        with pytest.raises(console.Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        asked.clear()
    assert stopped.value.args == (signal.SIGINT,)
    assert not isinstance(stopped.value, Exception)  # so that `except Exception` lets it pass
    assert signal.getsignal(number) is before


def test_a_signal_that_nobody_read_ends_the_block():
    with pytest.raises(console.Stopped) as stopped, recorder.deferred_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.args == (signal.SIGTERM,)


def test_signals_are_left_alone_outside_the_main_thread():
    before, asked = signal.getsignal(signal.SIGINT), []

    def work():
        with recorder.deferred_signals() as signals:
            asked.append((list(signals), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [([], before)]
