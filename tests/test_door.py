"""utils/door.py: what cannot be done is refused in a line before TensorFlow loads, and leaves no trace."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.shared import REPOSITORY, contents, users_environment
from utils import data, door, folders, mnist, runs
from utils.settings import from_params, read_command_line

SHAPE = (28, 28, 1)
DONE = {"latent_dim": 3, "epochs": 3}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with a run that has a checkpoint, a folder of 20 images of two labels, CelebA's lists of 10
    images, and a file."""
    monkeypatch.chdir(tmp_path)
    folder = runs.create(from_params(run_name="done", **DONE), "CPU", SHAPE)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-7.index").touch()
    (folder / ".lock").touch()  # every training leaves one
    for number in range(20):
        place = tmp_path / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(place / f"{number}.png")
    (tmp_path / "celeba").mkdir()
    parts = "".join(f"{number}.jpg {0 if number < 7 else 2}\n" for number in range(10))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(parts)
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("10\nBald\n")
    (tmp_path / "file").touch()
    return tmp_path


PICTURES = ["--dataset", "folder", "--data-dir", "images", "--batch-size", "10"]
FACES = ["--dataset", "celeba", "--data-dir", "celeba", "--batch-size", "5"]
NO_CACHE = ["--data-dir", "new"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--resume", "none"], "--resume none: no such run in predictions; there is done"),
        (["--resume", "no\0ne"], r"--resume no\\x00ne: no such run in predictions; there is done"),
        (["--resume", "done", "--latent-dim", "2"], r"--latent-dim 2 contradicts the run's 3; .*"),
        (["--resume", "done", "--data-dir", "file"], "data_dir: 'file' is not allowed; file is not a folder"),
        (["--start-from", "none"], "--start-from none: no such run in predictions; there is done"),
        (["--start-from", "done", "--latent-dim", "4"], r"latent_dim: 4 is not allowed with .*, which has 3"),
        (["--run-name", "done"], r"run_name: 'done' is taken .*--resume \S*/done"),
        (["--output-dir", "file"], "output_dir: 'file' is not allowed; file is not a folder"),
        (["--output-dir", "file/a/b"], "output_dir: 'file/a/b' is not allowed; file is not a folder"),
        (["--output-dir", "x" * 300], r"output_dir: 'x+' is not allowed; x+: File name too long"),
        (["--data-dir", "file/a"], "data_dir: 'file/a' is not allowed; file is not a folder"),
        (["--batch-size", "60_001"], "batch_size: 60,001 is not allowed; at most 60,000, all training images, is"),
        (["--labels", "1", "10"], "labels: 10 is not allowed; MNIST has 0 to 9"),
        (["--held-out", "60000"], "held_out: 60,000 is not allowed; at most 59,999 training images are"),
        (["--dataset", "fashion_mnist", "--labels", "Bag", "Hat"], r"labels: Hat .* Fashion-MNIST has T-shirt/top, .*"),
        ([*NO_CACHE, "--labels", "1", "10"], "labels: 10 is not allowed; MNIST has 0 to 9"),
        ([*NO_CACHE, "--labels", "1", "--batch-size", "6743"], r"batch_size: 6,743 is not allowed; at most 6,742, .*"),
        (["--dataset", "folder", "--data-dir", "no"], "no: no such folder; set DATA_DIR to the folder of images"),
        (["--dataset", "folder", "--data-dir", "celeba"], r"celeba: no images; there is 2 x not an image \(.*"),
        ([*PICTURES, "--batch-size", "19"], "batch_size: 19 is not allowed; at most 18, all training images, is"),
        ([*PICTURES, "--labels", "2"], "labels: 2 is not allowed; images has a, b"),
        (["--dataset", "celeba", "--data-dir", "images"], r"images/list_eval_partition.txt: No such file .*"),
        ([*FACES, "--batch-size", "8"], "batch_size: 8 is not allowed; at most 7, all training images, is"),
        ([*FACES, "--labels", "1"], "labels: 1 is not allowed; CelebA has 0 to 0"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line_and_nothing_is_changed(words, told, home, capsys):
    before = contents(home)
    with pytest.raises(SystemExit) as stopped:
        door.refuse_early(read_command_line(words))
    assert stopped.value.code == 2
    assert re.fullmatch(f"main\\.py: error: {told}\n", capsys.readouterr().err)
    assert contents(home) == before


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--output-dir", "a/b/c", "--labels", "1", "7", "--held-out", "100", "--batch-size", "12907"],
        ["--resume", "done", "--epochs", "4"],
        ["--start-from", "predictions/done", "--latent-dim", "3"],
        [*NO_CACHE, "--batch-size", "60000"],
        [*NO_CACHE, "--dataset", "fashion_mnist", "--labels", "Bag", "0"],
        [*NO_CACHE, "--held-out", "5950"],  # it is not known yet which images are held out
        [*PICTURES, "--batch-size", "14"],
        [*FACES, "--batch-size", "7"],
        ["--dataset", "tfds:cifar10", "--batch-size", "1000000"],  # only TensorFlow can check it
    ],
)
def test_what_can_be_done_passes_without_a_word_and_without_a_trace(words, home, capsys):
    before = contents(home)
    door.refuse_early(read_command_line(words))
    assert capsys.readouterr() == ("", "")
    assert contents(home) == before


def test_a_list_of_celeba_that_is_wrong_is_told_with_its_line(home, capsys):
    (home / "celeba" / "list_eval_partition.txt").write_text("0.jpg 0\n1.jpg\n2.jpg 0\n3.jpg 2\n4.jpg 2\n5.jpg 2\n")
    with pytest.raises(SystemExit):
        door.refuse_early(read_command_line(FACES))
    assert "list_eval_partition.txt, line 2: '1.jpg' is not a name and 1 of 0, 1, 2\n" in capsys.readouterr().err


def test_a_run_that_another_process_trains_is_refused(home, capsys):
    with runs.locked(home / "predictions" / "done"), pytest.raises(SystemExit):
        door.refuse_early(read_command_line(["--resume", "done"]))
    assert capsys.readouterr().err == "main.py: error: predictions/done is being trained by another process\n"


def test_one_of_several_workers_is_let_in_because_the_chief_alone_has_the_runs(home, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    door.refuse_early(read_command_line(["--resume", "none"]))


def test_a_folder_that_one_may_not_write_in_is_refused_for_runs_only(home, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: False)  # because root may write anywhere
    with pytest.raises(runs.RunError, match=r"^output_dir: 'sub/runs' is not allowed; \.: Permission denied$"):
        runs.check_place(from_params(output_dir="sub/runs"))
    data.check_place(from_params(data_dir="sub"))


def test_labels_are_had_early_as_the_data_set_has_them(home):
    whole = mnist.load("mnist", from_params().data_dir)
    labels = whole.train_labels, whole.test_labels
    cached = mnist.labels("mnist", from_params().data_dir)
    for known, early, counts in zip(labels, cached, mnist.COUNTS["mnist"], strict=True):
        np.testing.assert_array_equal(known, early)
        assert np.bincount(known).tolist() == list(counts)
    assert [sum(counts) for counts in mnist.COUNTS["fashion_mnist"]] == [60_000, 10_000]
    whole = folders.folder(from_params(dataset="folder", data_dir="images"), pytest.fail)
    title, *early, names = folders.folder_labels("images")
    assert names == whole.label_names
    assert title == whole.title == "images"
    for known, found in zip((whole.train_labels, whole.test_labels), early, strict=True):
        np.testing.assert_array_equal(known, found)


def test_labels_of_a_cache_that_is_broken_or_another_ones_are_not_taken(tmp_path):
    assert mnist.labels("mnist", str(tmp_path)) is None
    (tmp_path / "mnist.npz").write_bytes(b"PK\x03\x04 half a file")
    assert mnist.labels("mnist", str(tmp_path)) is None
    np.savez(tmp_path / "mnist.npz", y_train=np.zeros(60_000, np.uint8), y_test=np.zeros(10_000, np.uint8))
    assert mnist.labels("mnist", str(tmp_path)) is None


def test_main_refuses_before_tensorflow(home):
    (home / "path").mkdir()
    (home / "path" / "tensorflow.py").write_text("raise SystemExit('too late')")
    (home / "path" / "keras.py").write_text("raise SystemExit('too late')")
    environment = users_environment() | {"PYTHONPATH": str(home / "path")}

    def ask(*words):
        command = [sys.executable, REPOSITORY / "main.py", *words]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert ask("--resume", "none") == (2, "main.py: error: --resume none: no such run in predictions; there is done\n")
    assert ask() == (1, "too late\n")
