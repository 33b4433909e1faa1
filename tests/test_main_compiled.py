"""What a run compiles: each function once, whatever it trains on, tests on, and goes on from.

XLA writes a file for each module that it compiles, into a folder that a flag names. Graph mode only traces functions,
and TensorFlow itself counts how often.
"""

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from tests.shared import REPOSITORY, users_environment
from utils import batches
from utils.settings import read_command_line
from utils.start import tf

pytestmark = pytest.mark.slow
RAGGED = shlex.split(  # 1,300 test images: two unequal batches, or for the bound 350, 350, 350 and 250 images
    "--labels 1 --held-out 1300 --binarize dynamic --encoder-layers 8 --decoder-layers 8 --latent-dim 2 --noise-dim 0 "
    "--bound iwae --bound-samples 2 --bound-chunk 700 --batch-size 200 --epochs 3 --checkpoint-every 20 --log-every 7 "
    "--nll-samples 3 --run-name r"
)  # fmt: skip
STREAMED = shlex.split(  # ten steps an epoch, in pieces of four, four and two
    "--dataset folder --image-size 8 --binarize dynamic --encoder-layers 8 --decoder-layers 8 --latent-dim 2 "
    "--noise-dim 0 --bound elbo --bound-samples 1 --batch-size 8 --epochs 3 --checkpoint-every 6 --log-every 5 "
    "--nll-samples 3 --run-name r"
)  # fmt: skip
STOPPED = """if True:
    import sys
    from utils.settings import read_command_line
    command = read_command_line(sys.argv[2:])
    import main
    from utils import batches
    batches.CHUNK_BYTES = 4 * 8 * 8 * 8
    def stop(vae, step):
        raise KeyboardInterrupt
    try:
        main.train(command.settings, watch=stop, watch_at=(int(sys.argv[1]),))
    except KeyboardInterrupt:
        print("stopped")
"""
TRACED = """if True:
    import json, sys
    from utils.settings import read_command_line
    command = read_command_line(sys.argv[1:])
    import main
    from utils.start import tf
    (processor,) = tf.config.list_physical_devices("CPU")
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(processor, halves)
    from tests.test_main_compiled import traces
    code, counts = traces(lambda: main.main(command))
    print(json.dumps(counts))
    sys.exit(code)
"""


def modules(folder, *words):
    """How many modules XLA compiles, by function, in a process with these words after `python`."""
    dump = folder / f"dump{len(list(folder.glob('dump*')))}"
    flags = f"--xla_cpu_copy_insertion_use_region_analysis=true --xla_dump_to={dump}"  # the first is main.py's own
    process = [sys.executable, *map(str, words), "--output-dir", str(folder)]
    environment = users_environment() | {"XLA_FLAGS": flags, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(process, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = r"(module_\d+)\.a_inference_(.+?)_\d+_"
    return dict(Counter(name for _, name in {re.match(named, path.name).groups() for path in dump.iterdir()}))


def traces(run):
    """What `run` returns, and how often each tf.function of the project is traced, by name."""
    made, real = [], tf.function

    def recorded(function=None, **options):
        if function is None:
            return lambda function: recorded(function, **options)
        compiled = real(function, **options)
        if function.__module__ == "main" or function.__module__.startswith("utils."):  # Keras makes some, too
            made.append((function.__name__, compiled))
        return compiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf, "function", recorded)
        result = run()
    return result, [(name, function.experimental_get_tracing_count()) for name, function in made]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 88 images; a tenth are test images."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (88, 8, 8), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_run_on_arrays_compiles_each_function_once_and_so_do_its_resumption_and_its_evaluation(tmp_path):
    once = {"train_steps": 1, "evaluate_batch": 1, "bound": 1, "encode": 1, "weigh_draws": 1}
    assert modules(tmp_path, "main.py", *RAGGED) == once
    assert modules(tmp_path, "main.py", "--resume", "r", "--epochs", "5") == once
    evaluation = modules(tmp_path, "-m", "experiments.evaluate", "r", "--samples", "250", "--components", "2")
    assert evaluation == {"weigh_draws": 1}  # 500, 500 and 300 images, the last call of each with fewer draws


def test_a_run_on_a_stream_compiles_each_function_once_also_when_it_goes_on_within_an_epoch(images, tmp_path):
    words = [*STREAMED, "--data-dir", images]
    assert modules(tmp_path, "-c", STOPPED, "17", *words) == {"train_steps": 1, "evaluate_batch": 1}
    once = {"train_steps": 1, "evaluate_batch": 1, "encode": 1, "weigh_draws": 1}
    assert modules(tmp_path, "main.py", "--resume", "r", "--epochs", "4") == once


@pytest.mark.parametrize("pieces", [1, 4, 10])  # in steps
def test_in_graph_mode_each_function_of_a_run_is_traced_once(pieces, images, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK_BYTES", pieces * 8 * 8 * 8)
    words = [*STREAMED, "--architecture", "conv", "--channels", "2", "--data-dir", str(images)]
    command = read_command_line([*words, "--output-dir", str(tmp_path)])
    _, counts = traces(lambda: main.train(command.settings))
    names = ["evaluate_batch", "train_steps", "bound", "weigh_draws", "encode"]
    assert counts == list(zip(names, [1, 1, 0, 1, 1], strict=True))


@pytest.mark.parametrize("arrays", [False, True])
def test_with_two_devices_each_function_of_a_run_is_traced_once(arrays, images, tmp_path):
    words = [*(RAGGED if arrays else [*STREAMED, "--data-dir", str(images)]), "--output-dir", str(tmp_path)]
    process = [sys.executable, "-c", TRACED, *words]
    done = subprocess.run(process, cwd=REPOSITORY, env=users_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    likelihood = [["weigh_draws", 1], ["encode", 1]]
    assert counts == [["evaluate_batch", 1], ["train_steps", 1], ["bound", int(arrays)], *likelihood]


def resident():
    """The memory of this process, in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the memory of a process on Linux only")
def test_memory_stays_flat_over_forty_epochs(tmp_path):
    words = ["--epochs", "40", "--bound", "elbo", "--bound-samples", "1", "--nll-samples", "0"]
    settings = read_command_line([*RAGGED, *words, "--output-dir", str(tmp_path)]).settings
    seen = {}

    def watch(vae, step):
        seen[step] = resident()

    main.train(settings, None, lambda line: None, watch, [27 * epoch for epoch in range(1, 41)])
    assert seen[27 * 40] - seen[27 * 5] < 20  # compiling again at every epoch would cost five each time
