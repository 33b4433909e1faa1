"""utils/recorder.py: what it writes while a run trains, and what ends a training."""

import os
import pickle
import signal
import threading

import numpy as np
import pytest

from tests.shared import scalars, written
from utils import console, recorder, runs
from utils.start import keras, tf


# --- history ----------------------------------------------------------------------------------------------------------
def test_a_line_of_the_history_adds_up():
    line = recorder.history_line("train", 150, 468, tf.constant([90.5, 80.25, 20.5]), tf.constant(0.5))
    assert line == {
        "step": 150, "epoch": 0.3205, "split": "train", "objective": 90.5, "reconstruction": 80.25, "kl": 20.5,
        "kl_weight": 0.5, "elbo": -100.75,
    }  # fmt: skip


def test_a_line_of_the_autoencoder_has_neither_kl_nor_elbo():
    line = recorder.history_line("test", 468, 468, tf.constant([80.25, 80.25, 0]), None)
    assert (line["kl"], line["kl_weight"], line["elbo"], line["reconstruction"]) == (None, None, None, 80.25)


def test_tensorboard_gets_the_numbers_of_the_history_and_no_others(tmp_path):
    written(tmp_path, [10, 20])
    written(tmp_path, [20], split="test")
    expected = {
        (f"{line['split']}/{name}", line["step"]): np.float32(line[name]).item()
        for line in runs.read_history(tmp_path)
        for name in ("objective", "reconstruction", "kl", "kl_weight", "elbo")
    }
    assert len(expected) == 15
    assert scalars(tmp_path) == expected


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
        runs.save(tf.train.Checkpoint(), tmp_path, step)
    recorder.check_terms(tf.constant([90.0, 80, 20]), 1_234, tmp_path)
    left = "the checkpoint of step 1,200 is good" if steps else "there is no checkpoint yet"
    with pytest.raises(recorder.Diverged, match=f"^diverged in step 1,234: {words}; {left}; .*LEARNING_RATE"):
        recorder.check_terms(tf.constant(terms, tf.float32), 1_234, tmp_path)


def test_weights_that_are_not_finite_are_told(tmp_path):
    good, bad = keras.Variable([1.0, 2.0], name="good"), keras.Variable([1.0, np.inf], name="bad")
    recorder.check_weights([good], 7, tmp_path)
    with pytest.raises(
        recorder.Diverged, match=r"^diverged in step 7: bad has weights that are not finite; there is no"
    ):
        recorder.check_weights([good, bad], 7, tmp_path)


def test_a_divergence_keeps_its_words_on_the_way_out_of_a_process(tmp_path):
    error = pickle.loads(pickle.dumps(recorder.diverged(7, "kl is nan", tmp_path)))
    assert isinstance(error, recorder.Diverged)
    assert str(error).startswith("diverged in step 7: kl is nan; there is no checkpoint yet; ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_stops_at_once(number):
    before = signal.getsignal(number)
    with recorder.deferred_signals() as asked:
        os.kill(os.getpid(), number)
        assert asked == [number]
        with pytest.raises(console.Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.args == (signal.SIGINT,)
    assert not isinstance(stopped.value, Exception)  # so that `except Exception` lets it pass
    assert signal.getsignal(number) is before


def test_signals_are_left_alone_outside_the_main_thread():
    before, asked = signal.getsignal(signal.SIGINT), []

    def work():
        with recorder.deferred_signals() as signals:
            asked.append((list(signals), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [([], before)]
