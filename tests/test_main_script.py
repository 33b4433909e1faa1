"""main.py as a user runs it: in real processes that are left alone, killed, interrupted, or run out of disk space."""

import ast
import contextlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

import main
from tests.shared import REPOSITORY, contents, scalars, set_xla, users_environment
from utils import checkpoints, console, curves, evaluation, pictures, recorder, report, runs, size
from utils.dataset import TEST_BINARIZATION_KEY, BadImage, binarize
from utils.mnist import load
from utils.settings import from_params, read_command_line
from utils.start import tf

SMALL = shlex.split("--encoder-layers 32 --decoder-layers 32 --latent-dim 2 --kl-steps 200 --nll-samples 2 --epochs 3")
SMALL += shlex.split("--activation relu --batch-size 500 --log-every 25 --checkpoint-every 40")  # 120 steps an epoch
SAVED = [360]  # the checkpoint that a finished run keeps
PATIENCE = 300  # in seconds; nothing here needs as long, and a test that hangs must be stopped


# --- processes --------------------------------------------------------------------------------------------------------
class Script:
    """main.py in a process of its own, started in the folder `home`."""

    def __init__(self, home, *arguments):
        self.files = [home / f"{time.monotonic_ns()}.{stream}" for stream in ("out", "err")]
        with open(self.files[0], "wb") as out, open(self.files[1], "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, REPOSITORY / "main.py", *arguments],
                cwd=home, env=users_environment() | {"PYTHONUNBUFFERED": "1"}, stdout=out, stderr=err,
            )  # fmt: skip
        self.home = home

    out = property(lambda self: self.files[0].read_text())
    err = property(lambda self: self.files[1].read_text())

    @property
    def folder(self):
        """The run's folder, as the script prints it."""
        self.wait_until(lambda: re.search(r"^run +\S+\n", self.out, re.MULTILINE))
        return self.home / re.search(r"^run +(\S+)", self.out, re.MULTILINE)[1]

    def wait_until(self, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"it ended too soon:\n{self.out}\n{self.err}"
            assert time.monotonic() < end
            time.sleep(0.01)

    def freeze(self, condition):
        """Suspend the process while the condition holds."""
        while True:
            self.wait_until(condition)
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            if condition():
                return
            self.process.send_signal(signal.SIGCONT)

    def end(self, number=None):
        """Wait for the end, after sending a signal; return the exit code."""
        if number:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def history(folder, split=None):
    """The lines of history.jsonl, without one that is still being written."""
    path = folder / "history.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [line for text in whole.splitlines() if (line := json.loads(text))["split"] == split or split is None]


def last_step(folder):
    return max([line["step"] for line in history(folder)], default=0)


def checkpoint_of(folder, step):
    """The tensors of a checkpoint by their names; TensorFlow compares each with its checksum."""
    reader = tf.train.load_checkpoint(f"{folder}/checkpoints/step-{step}")
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def here(*argv):
    """Run main.py in this process; return its exit code."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return main.main(read_command_line(list(map(str, argv))))
    finally:
        signal.signal(signal.SIGTERM, before)


def without_bar(err):
    """The lines of stderr that are not the progress bar's; a line of the bar begins with a carriage return."""
    bar = r"(compiling|epoch +\d+/\d+|testing|likelihood|drawing|encoding) +\|[ #]+\|.*|\s*\x1b\[A"
    return [line for line in re.split(r"[\r\n]", err) if line.strip() and not re.fullmatch(bar, line)]


@pytest.fixture(scope="module")
def mnist():
    return load("mnist", from_params().data_dir)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Two runs of the same settings that were started at the same time.

    `unbroken` was left alone. `broken` was killed, resumed, interrupted, resumed, terminated, and resumed from a
    damaged checkpoint. `stops` has what its folder held and what it printed at each of these ends.
    """
    home = tmp_path_factory.mktemp("home")
    unbroken, broken = processes = [Script(home, *SMALL), Script(home, *SMALL)]
    try:
        folder = broken.folder
        stops = {}

        def stop(name, number, script):
            code = script.end(number)
            shutil.copytree(folder, home / name)
            stops[name] = SimpleNamespace(folder=home / name, code=code, out=script.out, err=script.err)

        def go_on(*words):
            processes.append(Script(home, *words))
            return processes[-1]

        # 1. Killed when the history was ahead of the newest checkpoint. Before, while frozen, it was asked for again.
        broken.freeze(lambda: 0 < max(runs.saved_steps(folder), default=0) < last_step(folder))
        before, err = contents(folder), io.StringIO()
        with contextlib.chdir(home), contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            refused = here("--resume", folder.name, "--epochs", "9")
        asked_twice = SimpleNamespace(code=refused, err=err.getvalue(), before=before, after=contents(folder))
        stop("killed", signal.SIGKILL, broken)

        # 2. Interrupted, then terminated, each time after at least one new line of the history.
        words = ["--resume", folder.name]
        for name, number in (("interrupted", signal.SIGINT), ("terminated", signal.SIGTERM)):
            reached = last_step(folder)
            script = go_on(*words)
            script.wait_until(lambda reached=reached: last_step(folder) > reached)
            stop(name, number, script)
            words = re.search(r"go on with: python \S+/main\.py (.*)", stops[name].out)[1].split()  # as printed

        # 3. The newest checkpoint loses half of its data.
        newest = folder / "checkpoints" / f"step-{runs.saved_steps(folder)[-1]}.data-00000-of-00001"
        os.truncate(newest, newest.stat().st_size // 2)
        stop("finished", None, go_on(*words))

        unbroken.end()
        yield SimpleNamespace(unbroken=unbroken, broken=folder, stops=stops, asked_twice=asked_twice)
    finally:
        for script in processes:
            script.process.kill()
            script.process.wait()


# --- a run that is left alone -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(story):
    """The folder of the unbroken run."""
    assert story.unbroken.process.returncode == 0, story.unbroken.err
    return story.unbroken.folder


@pytest.mark.slow
def test_the_script_leaves_everything_in_the_folder_of_the_run(run):
    epochs = ("000", "001", "002", "003")
    expected = {"params.json", "history.jsonl", "report.json", "explore.html"}
    expected |= {"curves.png", "manifold.png", "training.gif"}
    expected |= {f"{name}_{epoch}.png" for name in ("samples", "reconstructions") for epoch in epochs}
    parts = ("index", "data-00000-of-00001", "json")
    expected |= {f"checkpoints/step-{step}.{part}" for step in SAVED for part in parts} | {"data.npz"}
    expected |= {f"tensorboard/test/{name}" for name in ("latents.tsv", "labels.tsv", "sprite.png")}
    expected |= {"tensorboard/test/projector_config.pbtxt"}
    early = (1, 2, 4, 8, 16, 32, 64)
    expected |= {f"film/samples_{step}.png" for step in early}
    found = {name for name in contents(run) if "tfevents" not in name}
    assert found - {".lock"} == expected
    with Image.open(run / "training.gif") as film:
        assert film.n_frames == len(epochs) + len(early)
    for path in [*run.glob("*.png"), *run.glob("film/*.png")]:
        with Image.open(path) as picture:
            picture.load()


@pytest.mark.slow
def test_stderr_has_the_progress_bar_and_nothing_else_and_it_fits_80_columns(story):
    scripts = [story.unbroken, *story.stops.values()]
    for script in scripts:
        assert without_bar(script.err) == []
        assert all(len(line) <= 79 for line in re.split(r"\x1b\[A|[\r\n]", script.err))
    line = r"epoch  (\d)/3 \|#+ *\| [\d,]+ images/s  ELBO -\d+\.\d  KL \d+\.\d x \d\.\d\d"
    assert sorted(set(re.findall(line, story.unbroken.err))) == ["1", "2", "3"]


@pytest.mark.slow
def test_params_json_has_every_setting_and_what_it_ran_on(run):
    saved = json.loads((run / "params.json").read_text())
    statements = ast.parse((REPOSITORY / "params.py").read_text()).body
    constants = {node.target.id.lower() for node in statements if isinstance(node, ast.AnnAssign)}
    assert set(saved["settings"]) == constants
    named = {"encoder_layers": [32], "latent_dim": 2, "batch_size": 500, "checkpoint_every": 40, "run_name": ""}
    assert named.items() <= saved["settings"].items()
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", saved["git_commit"])
    assert saved["device"] in ("CPU with XLA", "GPU with XLA")
    assert saved["versions"]["tensorflow"] == tf.__version__
    assert saved["versions"]["numpy"] == np.__version__
    assert saved["versions"]["python"] == sys.version.split()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", saved["started"])


@pytest.mark.slow
def test_the_history_has_a_line_each_log_interval_and_each_epoch(run):
    lines = history(run)
    assert [line["step"] for line in lines if line["split"] == "train"] == [*range(25, 360, 25), 360]
    assert [line["step"] for line in lines if line["split"] == "test"] == [120, 240, 360]
    names = ["step", "epoch", "split", "objective", "reconstruction", "kl", "kl_weight", "elbo"]
    for line in lines:
        assert list(line) == [*names, "images_per_second" if line["split"] == "train" else "active_units"]
        assert line["epoch"] == pytest.approx(line["step"] / 120, abs=1e-4)
        first = (line["step"] - 1) // 25 * 25 if line["split"] == "train" else line["step"] - 1
        weights = [min(step / 200, 1) for step in range(first, line["step"])]
        assert line["kl_weight"] == pytest.approx(np.mean(weights))
        assert line["elbo"] == pytest.approx(-(line["reconstruction"] + line["kl"]))
        if line["split"] == "test":
            assert line["objective"] == pytest.approx(line["reconstruction"] + line["kl_weight"] * line["kl"])
    assert all(0 < line["images_per_second"] < 1e8 for line in lines if line["split"] == "train")
    assert lines[-1]["elbo"] > lines[0]["elbo"] + 50  # it learns


def events(folder):
    """What TensorBoard's own reader finds, {(split/tag, step): number or picture}; nothing may be there twice."""
    found = scalars(folder)
    for key, value in found.items():
        if np.ndim(value):
            with Image.open(io.BytesIO(value[2])) as picture:  # after its width and height
                found[key] = np.asarray(picture)
    return found


@pytest.mark.slow
def test_tensorboard_shows_the_history_and_the_grids(run):
    found = events(run)
    numbers = {key: value for key, value in found.items() if np.ndim(value) == 0}
    judged = json.loads((run / "report.json").read_text())
    assert numbers.pop(("test/log_likelihood", 360)) == np.float32(-judged["test_nll"])
    assert numbers == {
        (f"{line['split']}/{name}", line["step"]): np.float32(line[name])
        for line in history(run)
        for name in ("objective", "reconstruction", "kl", "kl_weight", "elbo", "active_units")
        if name in line
    }
    grids = {key: value for key, value in found.items() if np.ndim(value) > 0}
    names = ("test/samples", "test/reconstructions")
    assert set(grids) == {(name, 120 * epoch) for name in names for epoch in range(4)}
    for (tag, step), sheet in grids.items():
        with Image.open(run / f"{tag.removeprefix('test/')}_{step // 120:03}.png") as picture:
            pixels = np.asarray(picture)
        np.testing.assert_array_equal(pixels[: 2 * len(sheet) : 2, ::2], sheet)  # enlarged, above the caption
        assert (pixels[2 * len(sheet) :, -6:] == 255).all()  # the caption ends before the edge


@pytest.mark.slow
def test_the_projector_has_ten_thousand_codes_labels_and_thumbnails(run):
    folder = run / "tensorboard" / "test"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig()).embeddings[0]
    assert np.loadtxt(folder / config.tensor_path).shape == (10_000, 2)
    labels = np.loadtxt(folder / config.metadata_path)
    assert np.bincount(labels.astype(int)).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert list(config.sprite.single_image_dim) == [28, 28]
    with Image.open(folder / config.sprite.image_path) as sprite:
        assert sprite.size == (100 * 28, 100 * 28)


@pytest.mark.slow
def test_report_and_pictures_are_of_the_last_checkpoint(run, mnist):
    """The checkpoint's networks, computed in NumPy for the binarised test images, give what was written."""
    binary = binarize(mnist.test_images, TEST_BINARIZATION_KEY)
    vae = main.build_vae(runs.saved_settings(run, pytest.fail), (28, 28, 1))
    tf.train.Checkpoint(encoder=vae.encoder, decoder=vae.decoder).read(f"{run}/checkpoints/step-360").expect_partial()
    hidden, posterior = ([part.numpy() for part in layer.weights] for layer in vae.encoder.layers if layer.weights)
    features = np.maximum(binary.reshape(10_000, 784) / 255 @ hidden[0] + hidden[1], 0)
    z_mean, z_log_std = np.split(features @ posterior[0] + posterior[1], 2, axis=1)
    kl = np.exp(2 * z_log_std) / 2 + z_mean**2 / 2 - 0.5 - z_log_std

    report = json.loads((run / "report.json").read_text())
    np.testing.assert_allclose(report["kl_per_latent"], kl.mean(axis=0), rtol=1e-4)
    assert report["active_units"] == sum(z_mean.var(axis=0) > 0.01)
    np.testing.assert_allclose(np.loadtxt(run / "tensorboard" / "test" / "latents.tsv"), z_mean, atol=2e-3)

    rows = [np.flatnonzero(mnist.test_labels == label)[0] for label in range(10)]  # the first of each label
    deep, out = ([part.numpy() for part in layer.weights] for layer in vae.decoder.layers if layer.weights)
    logits = np.maximum(z_mean[rows] @ deep[0] + deep[1], 0) @ out[0] + out[1]
    expected = [binary[rows].reshape(10, 28, 28), 255 / (1 + np.exp(-logits.reshape(10, 28, 28)))]
    with Image.open(run / "reconstructions_003.png") as picture:
        sheet = np.asarray(picture, float)[::2, ::2]
    for row, images in enumerate(expected):
        found = np.stack([sheet[2 + 30 * row :][:28, 2 + 30 * column :][:, :28] for column in range(10)])
        assert np.abs(found - images).max() < 1.01


@pytest.mark.slow
def test_report_history_and_console_tell_the_same(run, story):
    report, test = json.loads((run / "report.json").read_text()), history(run, "test")[-1]
    assert report["test_elbo"] == pytest.approx(-(report["test_reconstruction"] + report["test_kl"]))
    assert sum(report["kl_per_latent"]) == pytest.approx(report["test_kl"], rel=1e-5)
    for name in ("elbo", "reconstruction", "kl"):
        assert report[f"test_{name}"] == pytest.approx(test[name], rel=1e-5)
    assert -report["test_nll"] > report["test_elbo"]  # the bound of two samples is tighter than that of one
    assert (report["kind"], report["nll_samples"], report["effective_beta"]) == ("likelihood", 2, 1.0)
    out = story.unbroken.out
    table = " ".join(out.split())
    rounded = {name: f"{value:.2f}" for name, value in report.items() if isinstance(value, float)}
    terms = f"-({rounded['test_reconstruction']} reconstruction + {rounded['test_kl']} KL)"
    assert f"test ELBO {rounded['test_elbo']} nats = {terms}" in table
    assert f"log-likelihood -{rounded['test_nll']} nats +- {rounded['standard_error_images']} over images" in table
    assert f"+- {report['standard_error_sampling']:.2g} sampling, K = 2" in table
    assert f"active units {report['active_units']} of 2" in table
    assert ("healthy? Yes." in table) == (report["healthy"] is True) == (report["verdict"] == "healthy")
    assert all(sentence in out for sentence in report["problems"] + report["unfinished"] + report["remarks"])
    assert f"predictions/{run.name}: samples_003.png, reconstructions_003.png, training.gif, manifold.png" in out
    first, second = out.splitlines()[:2]
    assert first == "building   0.1 M parameters, 1 MB with gradients and Adam's moments"
    assert second.startswith("data       MNIST: 60,000 + 10,000 images, SHA-256 verified")


# --- a run that is broken again and again -----------------------------------------------------------------------------
@pytest.mark.slow
def test_two_runs_at_once_have_a_folder_each(story):
    assert {story.unbroken.folder.name, story.broken.name} == {"mnist-ce-z2", "mnist-ce-z2-2"}


@pytest.mark.slow
def test_a_run_that_is_being_trained_is_not_gone_on_with(story):
    asked = story.asked_twice
    assert asked.code == 2
    assert re.fullmatch(r"main\.py: error: .*mnist-ce-z2(-2)? is being trained by another process\n", asked.err)
    assert asked.after == asked.before


@pytest.mark.slow
def test_a_killed_run_had_gone_beyond_its_checkpoint(story):
    stop = story.stops["killed"]
    assert stop.code == -signal.SIGKILL
    assert 0 < runs.saved_steps(stop.folder)[-1] < last_step(stop.folder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("interrupted", 130), ("terminated", 143)])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(name, code, story):
    stop = story.stops[name]
    assert stop.code == code
    saved = runs.saved_steps(stop.folder)[-1]  # all lines up to it exist: every 25th step and the ends of epochs
    assert last_step(stop.folder) == max(saved // 25 * 25, saved // 120 * 120)
    assert last_step(stop.folder) > last_step(story.stops["killed"].folder)
    way_on = f"python {REPOSITORY}/main.py --resume {story.broken}"  # from any working directory
    assert stop.out.splitlines()[-1] == f"stopped    go on with: {way_on}"
    assert not (stop.folder / "report.json").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_one_line(story):
    damaged = runs.saved_steps(story.stops["terminated"].folder)[-1]
    lines = [line for line in story.stops["finished"].out.splitlines() if "damaged" in line]
    assert len(lines) == 1
    assert f"step {damaged:,} is damaged" in lines[0]


@pytest.mark.slow
def test_a_run_that_was_broken_ends_as_one_that_never_was(run, story):
    assert story.stops["finished"].code == 0
    broken = story.broken
    for step in SAVED:
        first, second = checkpoint_of(run, step), checkpoint_of(broken, step)
        assert first.keys() == second.keys()
        assert len(first) >= 3 * 8  # eight weights, each with both moments of Adam
        for name, tensor in first.items():
            np.testing.assert_array_equal(tensor, second[name], err_msg=name)
    lines = [[{**line, "images_per_second": 0} for line in history(folder)] for folder in (run, broken)]
    assert lines[0] == lines[1]
    shown = [events(folder) for folder in (run, broken)]
    assert shown[0].keys() == shown[1].keys()
    for key, value in shown[0].items():
        np.testing.assert_array_equal(value, shown[1][key], err_msg=str(key))
    files = [contents(folder) for folder in (run, broken)]
    own = ("tfevents", "params.json", "history.jsonl", "checkpoints/")  # they have times, or the run's name
    own += ("curves", "samples", "reconstructions", "manifold", "training")  # pictures with the name in their captions
    own += ("explore",)
    files = [{name: held for name, held in held.items() if not any(word in name for word in own)} for held in files]
    assert files[0] == files[1]
    pages = [(folder / "explore.html").read_text().replace(folder.name, "") for folder in (run, broken)]
    assert pages[0] == pages[1]
    for first, second in zip(*(sorted(folder.glob("film/*")) for folder in (run, broken)), strict=True):
        with Image.open(first) as frame, Image.open(second) as same:
            grids = [np.asarray(picture)[:604] for picture in (frame, same)]  # above the captions
        np.testing.assert_array_equal(*grids, err_msg=first.name)
    own = dict.fromkeys(("started", "id", "checksum"))
    about = [json.loads((folder / "params.json").read_text()) | own for folder in (run, broken)]
    assert about[0] == about[1]


# --- other runs, in this process and on few images --------------------------------------------------------------------
FEW = shlex.split("--encoder-layers 16 --decoder-layers 16 --latent-dim 3 --kl-steps 8 --nll-samples 0 --epochs 3")
FEW += shlex.split("--activation relu --batch-size 100 --log-every 4 --checkpoint-every 4")  # of 18 steps, 6 an epoch


@contextlib.contextmanager
def few_images_in(folder, mnist):
    """`here` runs in this folder, with 600 training and 200 test images, and without the slow parts: XLA's compilation,
    and drawing the curves."""
    fields = (f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels", "ids"))
    parts = {name: getattr(mnist, name)[: 600 if "train" in name else 200] for name in fields}
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        set_xla(patch)
        patch.setattr(pictures, "save_figure", lambda path, figure: path.touch())
        patch.setattr("utils.mnist.load", lambda *_: mnist._replace(**parts))
        yield


@pytest.fixture
def small(tmp_path, mnist):
    """The folder in which `here` runs on few images."""
    with few_images_in(tmp_path, mnist):
        yield tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mnist):
    """The folder of a finished run on few images; copy it before changing it."""
    home = tmp_path_factory.mktemp("few")
    with few_images_in(home, mnist), contextlib.redirect_stderr(io.StringIO()):
        assert here(*FEW, "--run-name", "done") == 0
    return home / "predictions" / "done"


@pytest.fixture
def done(finished, small):
    """A copy of the finished run, in the place where `here` looks for it."""
    shutil.copytree(finished, small / "predictions" / "done")
    return small / "predictions" / "done"


def numbers(lines, *names):
    return np.array([[line[name] for name in names] for line in lines])


def test_a_line_of_the_history_is_the_mean_of_its_steps(done):
    assert here(*FEW, "--run-name", "all", "--log-every", "1") == 0
    every, lines = history(done.parent / "all", "train"), history(done, "train")
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 18]  # 5 to 8 are in two epochs; 17 and 18 remain
    for line, first in zip(lines, (0, 4, 8, 12, 16), strict=True):
        means = numbers(every[first : line["step"]], "objective", "reconstruction", "kl", "elbo").mean(axis=0)
        found = numbers([line], "objective", "reconstruction", "kl", "elbo")[0]
        np.testing.assert_allclose(found, means, rtol=1e-4)
        assert line["kl_weight"] == pytest.approx(np.mean([min(step / 8, 1) for step in range(first, line["step"])]))
    weighted = numbers(every, "reconstruction")[:, 0] + np.minimum(np.arange(18) / 8, 1) * numbers(every, "kl")[:, 0]
    np.testing.assert_allclose(numbers(every, "objective")[:, 0], weighted, rtol=1e-4)
    tests = [history(folder, "test") for folder in (done, done.parent / "all")]
    np.testing.assert_allclose(*[numbers(test, "objective", "kl") for test in tests], rtol=1e-4)


def test_speed_is_by_the_clock_with_all_that_lies_between_two_lines(small, monkeypatch):
    clock = [0.0]  # moves only for compiling, training and the tests: a second for a step, 2 for a test

    def tick(compiles, seconds):
        def compile_slowly(*arguments):
            function = compiles(*arguments)

            def run(*values):
                clock[0] += seconds(*values)
                return function(*values)

            return run

        return compile_slowly

    def seconds_of_steps(batches, first, step, stop, sums):
        return int(stop - step) or 1_000  # a call for no steps compiles

    monkeypatch.setattr(recorder, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(main, "compile_train_steps", tick(main.compile_train_steps, seconds_of_steps))
    monkeypatch.setattr(main, "compile_test", tick(main.compile_test, lambda *_: 2))
    assert here(*FEW, "--run-name", "clock") == 0
    # A line has four steps of 100 images, the last one two. A test after every six steps counts in the next line.
    speeds = [line["images_per_second"] for line in history(small / "predictions" / "clock", "train")]
    assert speeds == [100, round(400 / 6), 100, round(400 / 6), 100]


@pytest.mark.slow
def test_a_run_that_logs_and_saves_rarely_stops_soon_and_goes_on_as_if_it_never_had(small, monkeypatch):
    rarely = ("--log-every", "100000", "--checkpoint-every", "100000", "--run-name")
    assert here(*FEW, *rarely, "unbroken") == 0

    def interrupt(bar, step, *more, real=report.show_progress):
        if step == 12:
            os.kill(os.getpid(), signal.SIGINT)
        real(bar, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(report, "show_progress", interrupt)
        assert here(*FEW, *rarely, "broken") == 130
    folders = [small / "predictions" / name for name in ("unbroken", "broken")]
    assert runs.saved_steps(folders[1]) == [2 * 6]
    assert here("--resume", "broken") == 0
    lines = [[{**line, "images_per_second": 0} for line in history(folder)] for folder in folders]
    assert lines[0] == lines[1]
    assert [line["step"] for line in history(folders[1], "train")] == [18]


def test_the_length_of_the_run_and_the_number_of_pixels_reach_the_report(small, capsys):
    words = ("--epochs", "1", "--kl-steps", "7", "--reconstruction-reduction", "mean", "--run-name", "beta")
    assert here(*FEW, *words) == 0
    assert json.loads((small / "predictions" / "beta" / "report.json").read_text())["effective_beta"] == 784
    before, after = capsys.readouterr().out.split("healthy?")
    assert "note       KL_STEPS = 7 exceeds the run's 6 steps" in before
    assert "an effective beta of 784" in after


@pytest.mark.slow
def test_keras_computes_with_tensorflow_in_single_precision_whatever_its_configuration(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "jax", "floatx": "float64"}')
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    ask = "import main, keras; print(keras.backend.backend(), keras.config.floatx())"
    told = subprocess.run([sys.executable, "-c", ask], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert told.stdout.split() == ["tensorflow", "float32"]


def test_grids_are_of_the_same_latents_and_images_and_as_often_as_is_asked(small):
    assert here(*FEW, "--run-name", "still", "--learning-rate", "1e-30", "--images-every", "2") == 0
    folder = small / "predictions" / "still"
    for name in ("samples", "reconstructions"):
        assert sorted(path.stem[-3:] for path in folder.glob(f"{name}_*.png")) == ["000", "002", "003"]
        grids = [value for (tag, _), value in sorted(events(folder).items()) if tag == f"test/{name}"]
        assert len(grids) == 3
        assert (grids[0] == grids[1]).all()
        assert (grids[0] == grids[2]).all()
        assert np.ptp(grids[0][grids[0] < 255]) > 0


def test_the_autoencoder_makes_no_samples_and_has_no_elbo(small, capsys):
    assert here(*FEW, "--run-name", "ae", "--autoencoder", "--latent-dim", "2") == 0
    folder = small / "predictions" / "ae"
    pictures = {path.name for path in folder.iterdir() if path.suffix in (".png", ".gif")}
    assert pictures == {f"reconstructions_00{n}.png" for n in range(4)} | {"curves.png", "training.gif"}
    assert {path.name for path in folder.glob("film/*")} == {f"reconstructions_{step}.png" for step in (1, 2, 4)}
    with Image.open(folder / "training.gif") as film:
        assert film.n_frames == 4 + 3
    for line in history(folder):
        assert (line["kl"], line["kl_weight"], line["elbo"]) == (None, None, None)
        assert line["objective"] == line["reconstruction"]
    tags = {f"{split}/{name}" for split in ("train", "test") for name in ("objective", "reconstruction")}
    assert {tag for tag, _ in events(folder)} == tags | {"test/reconstructions"}
    said = capsys.readouterr()
    assert not re.search(r"(ELBO|KL|NLL|likelihood)\b.*\d", said.out + said.err)


def test_a_learned_scale_gives_a_density_and_a_likelihood_of_grey_pixels_is_warned_of(small, capsys):
    grey = ("--binarize", "none", "--epochs", "1", "--nll-samples", "2")
    assert here(*FEW, *grey, "--run-name", "density", "--loss", "mse", "--decoder-scale", "learned") == 0
    said = capsys.readouterr().out
    assert re.search(r"test log-density +-?\d+", said)
    assert not re.search(r"NLL:|log-likelihood|published", said)
    assert here(*FEW, *grey, "--run-name", "grey") == 0
    before, after = capsys.readouterr().out.split("healthy?")
    assert "note       LOSS = ce on grey pixels" in before
    assert "Not a likelihood: cross-entropy on grey pixels" in after
    assert not re.search(r"test (ELBO|log)|published", after)


@pytest.mark.slow
def test_a_run_on_two_labels_with_noise_latents_is_gone_on_from_with_a_third_label(small, capsys):
    noisy = (*FEW, "--batch-size", "20", "--noise-dim", "2", "--nll-samples", "2")
    assert here(*noisy, "--labels", "1", "7") == 0
    said = capsys.readouterr().out
    assert re.search(r"^data +MNIST \(1, 7 only\): \d+ \+ \d+ images", said, re.MULTILINE)
    assert "784-16-3+2 noise-16-784" in said
    assert re.search(r"active units +\d of 3\n", said)
    assert "published" not in said
    assert here(*noisy, "--labels", "1", "7", "8", "--start-from", "mnist-1_7-ce-z3-noise2", "--epochs", "1") == 0
    first, second = (history(Path("predictions", f"mnist-{labels}-ce-z3-noise2")) for labels in ("1_7", "1_7_8"))
    assert second[0]["reconstruction"] < first[0]["reconstruction"]  # despite one more digit: no start from scratch
    shutil.rmtree("predictions/mnist-1_7-ce-z3-noise2")  # resuming the second run does not need the first
    assert here("--resume", "mnist-1_7_8-ce-z3-noise2", "--epochs", "2") == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--resume", "none"], 2, r"--resume none: no such run in predictions; there is done"),
        (["--resume", "done", "--latent-dim", "2"], 2, r"--latent-dim 2 contradicts the run's 3; .*may grow.*"),
        (["--resume", "done", "--epochs", "2"], 2, r"--epochs 2 contradicts the run's 3; .*"),
        ([*FEW, "--run-name", "done"], 2, r"run_name: 'done' is taken .*--resume \S*/done"),
        ([*FEW, "--batch-size", "601"], 2, r"batch_size: 601 is not allowed; at most 600, all training images, is"),
        ([*FEW, "--labels", "1", "11"], 2, r"labels: 11 is not allowed; MNIST has 0 to 9"),
        ([*FEW, "--start-from", "none"], 2, r"--start-from none: no such run in predictions; there is done"),
        ([*FEW, "--start-from", "done", "--latent-dim", "4"], 2, r"latent_dim: 4 is not .* 'done', which has 3"),
        ([*FEW, "--output-dir", "predictions/done/report.json/below"], 2, r"output_dir: .*: Not a directory"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line_and_nothing_is_changed(words, code, told, done, capsys):
    before = contents(done.parent)
    assert here(*words) == code
    assert re.fullmatch(f"main\\.py: error: {told}\n", capsys.readouterr().err)
    assert contents(done.parent) == before


def test_networks_that_memory_cannot_hold_are_refused_before_they_are_built(small, capsys, monkeypatch):
    monkeypatch.setattr(size, "memory", lambda: 10**5)
    monkeypatch.setattr(main, "build_optimizer", pytest.fail)
    assert here(*FEW) == 2
    assert re.fullmatch(r"main\.py: error: \w+_layers: \(16,\) is not allowed; .* lower it\n", capsys.readouterr().err)
    assert not (small / "predictions").exists()


def test_checkpoints_that_are_all_damaged_are_told_and_nothing_is_changed(done, capsys):
    for path in (done / "checkpoints").glob("*.data*"):
        os.truncate(path, 1_000)
    before = contents(done)
    assert here("--resume", "done", "--epochs", "4") == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"main\.py: error: .*none of its checkpoints can be read.*\n", said.err)
    assert said.out.count("is damaged") == 1
    assert contents(done) == before


@pytest.mark.parametrize(("name", "call"), [("write_line", 2), ("write_images", 2)])
@pytest.mark.slow
def test_a_run_that_breaks_off_at_the_end_of_an_epoch_lacks_nothing_later(name, call, small, monkeypatch):
    """The checkpoint comes last: what belongs to its step is not written again."""
    calls, real = [], getattr(recorder.history, name)

    def break_off(*arguments):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        real(*arguments)

    words = ["--run-name", "cut", "--log-every", "6", "--checkpoint-every", "6"]
    with monkeypatch.context() as patch:
        patch.setattr(recorder.history, name, break_off)
        assert here(*FEW, *words) == 130
    assert here("--resume", "cut") == 0
    folder = small / "predictions" / "cut"
    assert [(line["step"], line["split"]) for line in history(folder)] == [
        (step, split) for step in (6, 12, 18) for split in ("train", "test")
    ]
    for name in ("samples", "reconstructions"):
        assert [step for tag, step in events(folder) if tag == f"test/{name}"] == [0, 6, 12, 18]
        assert sorted(path.stem[-3:] for path in folder.glob(f"{name}_*.png")) == ["000", "001", "002", "003"]


def test_a_finished_run_is_only_judged_again(done, capsys):
    before = contents(done)
    assert here("--resume", "done") == 0
    after = contents(done)
    changed = {name for name in after if after[name] != before.get(name)}
    assert all("tfevents" in name for name in changed)
    assert runs.saved_steps(done) == [18]  # since the end of the first training
    assert "healthy?" in capsys.readouterr().out


def test_a_signal_while_the_run_is_judged_leaves_a_run_to_go_on_with(small, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(curves, "save_curves", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        assert here(*FEW, "--run-name", "late", "--output-dir", "my runs") == 143
    assert runs.saved_steps(small / "my runs" / "late") == [12, 16, 18]  # all are kept until the run is judged
    told = re.search(r"stopped    go on with: python \S+/main\.py (.*)", capsys.readouterr().out)[1]
    monkeypatch.chdir("/")
    assert here(*shlex.split(told)) == 0
    assert runs.saved_steps(small / "my runs" / "late") == [18]
    assert (small / "my runs" / "late" / "curves.png").exists()


LEFT = {"curves.png", "manifold.png", "training.gif", "report.json", "tensorboard/test/latents.tsv"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_likelihood_leaves_a_finished_run_that_lacks_it(number, code, small, capsys, monkeypatch):
    words = [*FEW, "--latent-dim", "2", "--nll-samples", "3", "--run-name"]
    assert here(*words, "unbroken") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.likelihood, "estimate", lambda *_: os.kill(os.getpid(), number))
        assert here(*words, "broken") == code
    folder, said = small / "predictions" / "broken", capsys.readouterr().out
    assert {name for name in contents(folder) if name in LEFT} == LEFT
    expected, report = (
        json.loads((folder.parent / name / "report.json").read_text()) for name in ("unbroken", "broken")
    )
    assert expected["test_nll"] > 0
    lacks = ("test_nll", "standard_error_images", "standard_error_sampling", "nll_samples", "published_nll")
    assert report == expected | dict.fromkeys(lacks)
    assert re.search(r"\nstopping   the log-likelihood is left out; .*\n", said)
    assert f"test ELBO              {report['test_elbo']:.2f} nats" in said
    assert f"look at    {folder}: samples_003.png" in said
    assert f"explore    {(folder / 'explore.html').as_uri()}\n" in said
    told = re.search(
        r"\n\nstopped    without the log-likelihood; estimate it with: python (\S+)/main\.py (.*)\n$", said
    )
    assert told[1] == str(REPOSITORY)
    monkeypatch.chdir("/")
    assert here(*shlex.split(told[2])) == 0
    assert json.loads((folder / "report.json").read_text()) == expected


def test_a_finished_run_that_lost_its_history_or_its_checkpoints_says_so_in_a_line(small, capsys):
    assert here(*FEW, "--latent-dim", "2", "--run-name", "old") == 0
    folder = small / "predictions" / "old"
    (folder / "history.jsonl").write_text("null\n")
    capsys.readouterr()
    assert here("--resume", "old") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note ")]
    assert said[:2] == [
        "note       1 of 1 lines of history.jsonl are damaged or duplicate and are deleted",
        "note       history.jsonl has lost its line of step 18, and maybe others",
    ]
    assert [line["step"] for line in history(folder)] == [18]  # the last epoch's test, which is made again
    shutil.rmtree(folder / "checkpoints")
    (folder / "report.json").unlink()
    before = contents(folder)
    assert here("--resume", "old") == 2
    told = "main.py: error: predictions/old: its checkpoints are gone, so it can't go on; start a new run\n"
    assert capsys.readouterr().err == told
    assert contents(folder) == before


def test_a_second_signal_ends_at_once(small, capsys, monkeypatch):
    monkeypatch.setattr(console, "REPEATED", 0.0)  # however soon the second one comes
    for owner, name in ((evaluation.likelihood, "estimate"), (curves, "save_curves")):
        monkeypatch.setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    assert here(*FEW, "--nll-samples", "3", "--run-name", "twice") == 130
    assert not (small / "predictions" / "twice" / "training.gif").exists()
    said = capsys.readouterr().out
    assert "healthy?" not in said
    assert "\nstopped    go on with: " in said


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BadImage("x.png: not an image"), "x.png: not an image; to use the next image instead: python "),
        (MemoryError(), "out of memory after step 6; .*; the checkpoint of step 6 is good; "),
    ],
)
def test_what_ends_a_test_leaves_a_checkpoint_and_the_resumed_run_makes_the_test(
    error, told, done, small, capsys, monkeypatch
):
    def evaluate(images):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "compile_evaluation", lambda *_: evaluate)
        assert here(*FEW, "--held-out", "0", "--run-name", "bad") == 1
    assert re.search(told, capsys.readouterr().err)
    folder = small / "predictions" / "bad"
    assert runs.saved_steps(folder) == [4, 6]  # step 6 ends the first epoch, which was not tested
    assert here("--resume", "bad") == 0
    lines = [[{**line, "images_per_second": 0} for line in history(each)] for each in (folder, done)]
    assert lines[0] == lines[1]
    assert contents(folder / "film").keys() == contents(done / "film").keys()
    assert (folder / "samples_001.png").exists() == (done / "samples_001.png").exists()


@pytest.mark.parametrize("name", ["show_progress", "save"])  # in the first steps, and with the last checkpoint
def test_two_signals_at_once_leave_the_checkpoint_that_is_promised(name, small, capsys, monkeypatch):
    owner = {"show_progress": report, "save": checkpoints}[name]
    real = getattr(owner, name)

    def interrupt(*arguments):
        real(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(owner, name, real)

    monkeypatch.setattr(owner, name, interrupt)
    assert here(*FEW, "--run-name", "both", "--checkpoint-every", "1000") == 143
    said = capsys.readouterr().out
    assert "\nstopped    go on with: " in said
    assert "healthy?" not in said
    assert len(runs.saved_steps(small / "predictions" / "both")) == 1


@pytest.mark.slow
def test_a_likelihood_that_is_interrupted_is_had_from_another_folder_later(tmp_path):
    script = Script(tmp_path, *SMALL, "--epochs", "1", "--nll-samples", "500")
    try:
        script.wait_until(lambda: "\ntesting " in script.out)
        folder = script.folder
        assert script.end(signal.SIGINT) == 130
        assert without_bar(script.err) == []
        assert {name for name in contents(folder) if name in LEFT} == LEFT
        assert json.loads((folder / "report.json").read_text())["test_nll"] is None
        (*words,) = shlex.split(script.out.splitlines()[-1].partition("; estimate it with: ")[2])
        assert words == ["python", str(REPOSITORY / "main.py"), "--resume", str(folder)]
        (elsewhere := tmp_path / "elsewhere").mkdir()
        script = Script(elsewhere, *words[2:])
        assert script.end() == 0, script.err
        report = json.loads((folder / "report.json").read_text())
        assert -report["test_nll"] > report["test_elbo"]
        assert without_bar(script.err) == []
    finally:
        script.process.kill()
        script.process.wait()


@pytest.mark.slow
def test_more_epochs_keep_the_horizon_of_the_learning_rate_and_say_so(done, capsys, monkeypatch):
    built = []

    def build_optimizer(vae, settings, horizon, real=main.build_optimizer):
        built.append((real(vae, settings, horizon), horizon))
        return built[-1][0]

    monkeypatch.setattr(main, "build_optimizer", build_optimizer)
    lines = history(done)
    for epochs in (4, 5):
        assert here("--resume", "done", "--epochs", epochs) == 0
        about = json.loads((done / "params.json").read_text())
        assert (about["settings"]["epochs"], about["schedule_epochs"]) == (epochs, 3)
        optimizer, horizon = built[-1]
        assert horizon == 3 * 6
        assert float(optimizer.learning_rate) == pytest.approx(1e-3 * 0.01)  # it stays where the cosine ended
        assert int(optimizer.iterations) == last_step(done) == epochs * 6
        assert re.search("learning rate|LEARNING_RATE", capsys.readouterr().out.split("healthy?")[0])
    assert history(done)[: len(lines)] == lines


@pytest.mark.parametrize(
    ("words", "what", "good"),
    [
        ("--learning-rate 1e6 --checkpoint-every 2", r"(objective|reconstruction|kl) is (nan|-?inf)", True),
        ("--learning-rate 1e6 --checkpoint-every 1", r"has weights that are not finite|is (nan|-?inf)", True),
        # The weights break in the only step of an epoch: its terms are still finite, those of the test images are not.
        ("--learning-rate 1e37 --checkpoint-every 2 --batch-size 600", r"is (nan|-?inf)", False),
    ],
)
def test_a_run_that_diverges_says_where_and_how_and_keeps_what_is_good(words, what, good, small, capsys):
    assert here(*FEW, "--run-name", "nan", "--log-every", "1", *words.split()) == 1
    folder = small / "predictions" / "nan"
    saved = runs.saved_steps(folder)
    assert bool(saved) == good
    left = f"the checkpoint of step {saved[-1]} is good" if good else "there is no checkpoint yet"
    line = without_bar(capsys.readouterr().err)[-1]
    told = re.fullmatch(rf"main\.py: error: diverged in step (\d+): .*({what}).*; {left}; .*LEARNING_RATE.*", line)
    assert told, line
    assert int(told[1]) > max(saved, default=0)
    for tensors in map(checkpoint_of, [folder] * len(saved), saved):
        assert all(np.isfinite(tensor).all() for name, tensor in tensors.items() if "coder" in name)


@pytest.mark.parametrize(
    ("owner", "name", "call", "room"),
    [
        (recorder.history, "write_line", 3, 0),
        (recorder.history, "write_images", 2, 3_000),  # enough for all but the event file
        (checkpoints, "save", 2, 3_000),
        (curves, "save_curves", 1, 3_000),
    ],
)
def test_a_full_disk_costs_a_line_and_nothing_that_was_there(owner, name, call, room, small, capsys, monkeypatch):
    calls, folder = [], small / "predictions" / "full"
    real = getattr(owner, name)

    def fill(*arguments, **named):
        calls.append(name)
        if len(calls) == call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))  # no file may grow larger
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, fill)
    try:
        code = here(*FEW, "--run-name", "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert code == 1
    [line] = [line for line in without_bar(capsys.readouterr().err) if not line.startswith("WARNING:tensorflow")]
    assert re.fullmatch(r"main\.py: error: .*File too large.*", line)
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]  # nothing half-written is left
    assert {path.name for path in folder.glob("*.json")} == {"params.json", *(["report.json"] * (owner is curves))}
    assert len(runs.saved_steps(folder)) >= 1
    assert all(checkpoint_of(folder, step) for step in runs.saved_steps(folder))


@pytest.mark.slow
def test_a_step_that_a_real_limit_does_not_hold_costs_a_line(tmp_path):
    images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(256, axis=1).repeat(256, axis=2)
    np.save(tmp_path / "images.npy", images)
    words = shlex.split("--dataset arrays --image-size 256 --architecture conv --channels 400 4 --batch-size 32")
    words += ["--data-dir", str(tmp_path / "images.npy"), "--output-dir", str(tmp_path), "--encoder-layers", "8"]

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (1_400_000_000,) * 2)  # a layer of 400 x 128 x 128 takes 840 MB

    command = [sys.executable, "main.py", *words, "--decoder-layers", "8"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 1
    told = "main.py: error: out of memory after step 0; lower BATCH_SIZE, .*; there is no checkpoint yet"
    assert re.fullmatch(told, without_bar(done.stderr)[-1])


@pytest.mark.parametrize(
    ("last", "left"),
    [(0, "there is no checkpoint yet"), *((step, f"the checkpoint of step {step} is good") for step in (4, 8))],
)
def test_memory_that_runs_out_in_a_step_costs_a_line_and_what_it_left_is_gone_on_from(
    last, left, done, small, capsys, monkeypatch
):
    def exhausted(*arguments, real=main.compile_train_steps):
        train_steps = real(*arguments)

        def exhaust(batches, first, step, stop, sums):
            if stop > last:
                arguments[0].weights[0].assign_add(tf.ones(arguments[0].weights[0].shape))  # half a step
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            return train_steps(batches, first, step, stop, sums)

        return exhaust

    with monkeypatch.context() as patch:
        patch.setattr(main, "compile_train_steps", exhausted)
        assert here(*FEW, "--run-name", "few") == 1
    [line] = without_bar(capsys.readouterr().err)
    assert re.match(rf"main\.py: error: out of memory after step {last}; lower BATCH_SIZE.*; {left}", line)
    frames = contents(small / "predictions" / "few" / "film") if last else {}
    assert here("--resume", "few") == 0
    assert frames.items() <= contents(small / "predictions" / "few" / "film").items()
    ends = [history(small / "predictions" / name)[-1] | {"images_per_second": 0} for name in ("few", "done")]
    assert ends[0] == ends[1]
