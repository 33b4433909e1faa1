"""python main.py in two processes on loopback: they learn what one process learns; what is left when one dies.

The images are drawn faces in CelebA's layout, streamed, and the networks are convolutional. So one process uses graph
mode, too, and the random numbers are the same.
"""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import draw_faces
from tests.drawn import draw
from tests.shared import REPOSITORY, free_addresses, users_environment

pytestmark = pytest.mark.slow
SMALL = {  # 160 images to train on, 10 steps an epoch, 160 in all
    "dataset": "celeba", "image-size": 16, "binarize": "none", "architecture": "conv", "channels": 4,
    "encoder-layers": 8, "decoder-layers": 8, "activation": "silu", "latent-dim": 3, "noise-dim": 0,
    "loss": "logistic", "decoder-scale": "learned", "kl-schedule": "linear", "kl-steps": 20, "batch-size": 16,
    "epochs": 16, "learning-rate": 0.002, "gradient-clip": 100, "lr-schedule": "cosine", "seed": 5, "run-name": "r",
    "log-every": 5, "checkpoint-every": 15, "images-every": 100, "nll-samples": 2,
}  # fmt: skip
WORDS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
STEPS = 160
TIMINGS = {"images_per_second": 0, "waiting": 0}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Drawn faces: 160 to train on."""
    folder = tmp_path_factory.mktemp("faces")
    draw_faces.draw(folder, 200)
    return folder


def start(words, place, faces, addresses=(), index=0):
    """A process of main.py that writes its console to `place`.txt and its runs into the folder `place`."""
    environment = users_environment()
    if addresses:
        task = {"type": "worker", "index": index}
        environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    command = [sys.executable, "main.py", "--data-dir", str(faces), "--output-dir", str(place), *words]
    with open(f"{place}.txt", "ab") as console:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=console, stderr=subprocess.STDOUT)


def start_two(words, place, faces):
    """Two workers on free ports of this machine."""
    addresses = free_addresses(2)
    return [start(words, place.with_name(f"{place.name}{index}"), faces, addresses, index) for index in (0, 1)]


def history(folder):
    """The lines of a run's history without timings."""
    return [json.loads(line) | TIMINGS for line in (folder / "r" / "history.jsonl").read_text().splitlines()]


def numbers(lines):
    return np.array([[line[name] for name in ("objective", "reconstruction", "kl", "kl_weight")] for line in lines])


@pytest.fixture(scope="module")
def unbroken(faces, tmp_path_factory):
    """The place of an undisturbed run by two workers; the chief's folder is place0."""
    place = tmp_path_factory.mktemp("unbroken") / "worker"
    assert [process.wait(240) for process in start_two(WORDS, place, faces)] == [0, 0]
    return place


@pytest.fixture(scope="module")
def alone(faces, tmp_path_factory):
    """The place of the same run by one process on one device."""
    place = tmp_path_factory.mktemp("alone") / "worker"
    assert start(WORDS, place, faces).wait(240) == 0
    return place


def check_same_learning(place, alone):
    """Check that the run in a place is that of one process, except for rounding."""
    one, two = history(alone), history(place)
    assert [(line["split"], line["step"]) for line in two] == [(line["split"], line["step"]) for line in one]
    assert len(one) == STEPS // 5 + 16
    np.testing.assert_allclose(numbers(two)[:12], numbers(one)[:12], rtol=1e-5, atol=1e-4)  # one epoch, and on
    np.testing.assert_allclose(numbers(two)[:, 0], numbers(one)[:, 0], rtol=1e-5)
    assert numbers(one)[-1, 0] < 0.95 * numbers(one)[0, 0]  # it did learn
    nll = [json.loads((each / "r" / "report.json").read_text())["test_nll"] for each in (alone, place)]
    assert nll[1] == pytest.approx(nll[0], rel=1e-3)


def test_two_workers_learn_what_one_process_learns_and_the_chief_alone_writes(unbroken, alone):
    check_same_learning(unbroken.with_name("worker0"), alone)
    assert not unbroken.with_name("worker1").exists()
    told = unbroken.with_name("worker1.txt").read_text()
    assert told.startswith("worker     1 of 1; the chief, 127.0.0.1:")
    assert told.count("\n") == 1


def test_two_devices_of_one_process_learn_what_one_device_learns(faces, alone, tmp_path):
    code = """if True:
        import sys
        from utils.settings import read_command_line
        command = read_command_line(sys.argv[1:])
        import main
        from utils.start import tf
        (processor,) = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(processor, halves)
        sys.exit(main.main(command))"""
    words = ["--data-dir", str(faces), "--output-dir", str(tmp_path), *WORDS]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=REPOSITORY, env=users_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 x CPU without XLA" in done.stdout
    check_same_learning(tmp_path, alone)


def deadly_wound(how, victim, faces, tmp_path):
    """Start two workers, send a signal to one as soon as there is a checkpoint, and wait for the other.

    Returns the other's exit code, the seconds it took to leave, and the lines of its console.
    """
    processes = start_two(WORDS, tmp_path / "worker", faces)
    checkpoints, deadline = tmp_path / "worker0" / "r" / "checkpoints", time.monotonic() + 120
    while not list(checkpoints.glob("step-*.index")) and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[victim].send_signal(how)
    begun = time.monotonic()
    code = processes[1 - victim].wait(90)
    seconds = time.monotonic() - begun
    processes[victim].kill()
    processes[victim].wait(10)
    console = (tmp_path / f"worker{1 - victim}.txt").read_text().replace("\r", "\n").splitlines()
    return code, seconds, [line for line in console if line.strip()]


def check_loss_is_told(victim, code, seconds, console):
    assert code == 1
    assert seconds < 60
    assert console[-1].startswith(f"main.py: error: worker {victim} (")
    way_out = "does not answer any more; start all workers again, with --resume, to go on from the last checkpoint"
    assert console[-1].endswith(way_out)
    assert not [line for line in console[:-1] if "rror" in line]  # neither TensorFlow's lines nor a traceback


def test_when_a_worker_is_killed_the_chief_stops_and_both_go_on_as_if_nothing_had_been(faces, unbroken, tmp_path):
    check_loss_is_told(1, *(found := deadly_wound(signal.SIGKILL, 1, faces, tmp_path)))
    run = tmp_path / "worker0" / "r"
    assert f"stopped    go on, on all workers, with: python {REPOSITORY}/main.py --resume {run}" in found[2]
    assert history(tmp_path / "worker0")[-1]["step"] < STEPS
    resumed = start_two(["--resume", "r"], tmp_path / "worker", faces)
    assert [process.wait(120) for process in resumed] == [0, 0]
    assert history(tmp_path / "worker0") == history(unbroken.with_name("worker0"))


@pytest.mark.parametrize(("how", "victim"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_when_the_chief_is_killed_or_a_worker_freezes_the_other_stops_with_a_line(how, victim, faces, tmp_path):
    check_loss_is_told(victim, *deadly_wound(how, victim, faces, tmp_path))


def test_a_worker_that_is_told_to_stop_takes_the_chief_along_which_saves(faces, tmp_path):
    code, _, console = deadly_wound(signal.SIGTERM, 1, faces, tmp_path)
    assert code == 128 + signal.SIGTERM
    assert console[-1].startswith("stopped    go on, on all workers, with: ") or "stopped    go on" in console[-2]
    last = history(tmp_path / "worker0")[-1]["step"]
    saved = max(int(path.stem[5:]) for path in (tmp_path / "worker0" / "r" / "checkpoints").glob("step-*.index"))
    assert last <= saved < STEPS


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "6"], "main.py: error: seed: 6 here, but 5 on the chief; all workers need the same value"),
        (["--data-dir", "nowhere"], "main.py: error: nowhere"),
        (["--kl-steps", "0"], "main.py: error: kl_steps: 0 here, but 20 on the chief"),
    ],
)
def test_a_worker_with_other_settings_or_without_the_data_ends_in_a_line(words, told, faces, tmp_path):
    addresses = free_addresses(2)
    chief = start(WORDS, tmp_path / "worker0", faces, addresses, 0)
    worker = start([*WORDS, *words], tmp_path / "worker1", faces, addresses, 1)
    assert worker.wait(60) in (1, 2)
    assert chief.wait(60) == 1
    here, chiefs = ((tmp_path / f"worker{index}.txt").read_text() for index in (1, 0))
    assert told in here
    why = next(line for line in here.splitlines() if "error: " in line).removeprefix("main.py: error: ")
    assert f"main.py: error: worker 1 ({addresses[1]}) could not begin: {why}\n" in chiefs
    assert "--resume" not in chiefs
    assert not (tmp_path / "worker0").exists()


def test_all_workers_hear_what_is_wrong_with_the_run_that_the_chief_is_to_go_on_with(faces, tmp_path):
    addresses = free_addresses(2)
    words = [["--resume", "nothing"], WORDS]
    both = [start(words[index], tmp_path / f"worker{index}", faces, addresses, index) for index in (0, 1)]
    assert [process.wait(60) for process in both] == [2, 1]
    why = f"--resume nothing: no such run in {tmp_path}/worker0; there is none"
    assert f"main.py: error: {why}\n" in (tmp_path / "worker0.txt").read_text()
    chief = f"worker 0 (the chief, {addresses[0]})"
    assert f"main.py: error: {chief} could not begin: {why}\n" in (tmp_path / "worker1.txt").read_text()


def test_two_workers_keep_to_the_images_that_a_run_began_with(tmp_path):
    for number in range(40):
        draw(tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number:02}.png", number)
    words = ["--dataset", "folder", "--image-size", "8", "--batch-size", "8", "--epochs", "1", "--run-name", "r"]
    words += ["--binarize", "none", "--loss", "mse", "--encoder-layers", "4", "--decoder-layers", "4"]
    words += ["--nll-samples", "0", "--kl-steps", "2", "--log-every", "1"]
    for more in (words, ["--resume", "r", "--epochs", "2"]):
        both = start_two(more, tmp_path / "worker", tmp_path / "images")
        consoles = [(tmp_path / f"worker{index}.txt") for index in (0, 1)]
        assert [process.wait(120) for process in both] == [0, 0], [path.read_text() for path in consoles]
        for number in range(40, 60):  # added between the two runs
            draw(tmp_path / "images" / "eel" / f"{number:02}.png", number)
    told = "note       20 images are new since the run began, e.g. eel/40.png; they are left out"
    assert [path.read_text().count(told) for path in consoles] == [1, 0]  # only the chief prints it
    assert history(tmp_path / "worker0")[-1]["step"] == 2 * (36 // 8)
