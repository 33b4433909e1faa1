"""Train side by side, in processes with one thread each, for studies and sweeps.

On two cores and with the small networks of the Analysis, this is 1.4 times as fast as one training after the other with
two threads. The processes use only the CPU, so that no number depends on how many of them run.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.timing import usable_cores
from utils import console, data
from utils.console import Say
from utils.settings import Settings, from_params

LOG = "processes.log"  # stderr of the processes that train: TensorFlow's messages, and why a process died
MOST_JOBS = min(8, usable_cores())  # each needs 1.5 GB of memory
TICK = 1.0  # seconds after which the caller gets control again
GRACE = 4.0  # seconds; with most networks, a process ends within this time after Ctrl-C

Task = tuple[Settings, Callable | None, tuple[int, ...]]  # settings, watch and watch_at of train_one


def train_all(
    tasks: dict[Path, Task], jobs: int, log: Path, say: Say = tqdm.write
) -> Iterator[tuple[Path | None, BaseException | None]]:
    """Train in each of the folders; yield a folder and None when it is finished, or what went wrong there.

    `jobs` of them train at once; with 0, one after the other in this process. Each second it yields (None, None), so
    that a bar can move. When the iterator is closed, for example after Ctrl-C, running trainings first save a
    checkpoint.

    If a process dies, for example because memory runs out, the running trainings are tried once more, one at a time.
    This shows which of them is the cause. `say` gets a line.
    """
    if jobs == 0:
        for number, (folder, task) in enumerate(tasks.items(), 1):
            say(f"training   {number} of {len(tasks)}: {folder.name}")
            yield folder, error_of(train_one, folder, *task)
        return
    os.environ["TQDM_DISABLE"] = "1"  # the processes inherit this line and the next
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    left, suspects = dict(tasks), []
    while left:
        at_once = suspects[:1] or [*left]  # a suspect trains alone, so that it is clear whose process dies
        workers = min(jobs, len(at_once))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), use_one_thread) as pool:
            with stderr_to(log):
                folders: dict[Future, Path] = {submit(pool, folder, left[folder]): folder for folder in at_once}
            try:
                while folders:
                    done = wait(folders, TICK, FIRST_COMPLETED).done
                    if any(isinstance(future.exception(), BrokenProcessPool) for future in done) and not suspects:
                        suspects = [*islice(folders.values(), workers)]  # the trainings that were running
                        names = " and ".join(folder.name for folder in suspects)
                        say(f"note       a process died ({log} may say why); once more: {names}")
                        break
                    for future in done:
                        folder = folders.pop(future)
                        del left[folder]
                        suspects = suspects[1:]
                        yield folder, future.exception()
                    yield None, None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                stop_processes()
                raise


def submit(pool: ProcessPoolExecutor, folder: Path, task: Task) -> Future:
    """Have a process of the pool train; settings are sent as a dictionary, because their class is made at run time."""
    settings, watch, watch_at = task
    return pool.submit(train_one, folder, settings.model_dump(), watch, watch_at)


def stop_processes() -> None:
    """End the processes. After Ctrl-C, which they receive too, they end by themselves; else they are terminated.

    Those that train save a checkpoint first.
    """
    until = time.monotonic() + GRACE
    for process in multiprocessing.active_children():
        process.join(max(0, until - time.monotonic()))
        if process.is_alive():
            process.terminate()


def error_of(function: Callable, *arguments: Any) -> Exception | None:
    """Call a function; return the exception that it raises, except those that end the program."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Let processes that start within the block inherit this file as their stderr."""
    screen = os.dup(2)
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def use_one_thread() -> None:
    """Keep a process to one thread, before TensorFlow starts any."""
    from utils.start import tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def train_one(folder: Path, settings: Any, watch: Callable | None, watch_at: tuple[int, ...]) -> None:
    """Train in a folder, or continue there; watched arrays go to its folder watched/."""
    import main
    from utils.start import tf

    tf.get_logger().setLevel("ERROR")  # else it warns because each training traces its own functions
    settings = from_params(**dict(settings) | {"run_name": folder.name, "output_dir": str(folder.parent)})
    started = folder if (folder / "params.json").exists() else None
    dataset = data.prepare(settings, print, started) if watch else None

    def keep(vae, step):
        place = folder / "watched"
        place.mkdir(exist_ok=True)
        beside = place / f".{step}.npz"
        np.savez(beside, **watch(vae, settings, dataset))
        os.replace(beside, place / f"{step}.npz")

    try:
        main.train(settings, started, lambda line: None, keep, watch_at)
    except (KeyboardInterrupt, console.Stopped):
        (folder / "report.json").unlink(missing_ok=True)  # it marks a finished run, but may lack the likelihood
        raise
