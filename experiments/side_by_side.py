"""Trainings side by side, in processes of one thread each, for studies and sweeps.

On two cores that is 1.4 times as fast as one after the other with two threads, for networks as small as those of the
Analysis. The processes use the CPU only, so that no number depends on how many of them there are.
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

LOG = "processes.log"  # TensorFlow's chatter in the processes that train, and why one of them died
MOST_JOBS = min(8, usable_cores())  # each holds 1.5 GB
TICK = 1.0  # seconds after which the caller is heard again
GRACE = 4.0  # seconds in which a process ends that has heard Ctrl-C, with most networks

Task = tuple[Settings, Callable | None, tuple[int, ...]]  # settings, watch and watch_at of train_one


def train_all(
    tasks: dict[Path, Task], jobs: int, log: Path, say: Say = tqdm.write
) -> Iterator[tuple[Path | None, BaseException | None]]:
    """Train in each of the folders; yield a folder and None when it is finished, or what went wrong there.

    `jobs` of them train at once; with 0 one after the other in this process. Each second (None, None) is yielded, so
    that a bar can move. If this is closed, as after Ctrl-C, the trainings that were begun save a checkpoint first.

    Trainings whose processes die, as when memory runs out, are tried once more, one at a time: then it is known which
    of them it is. `say` is given a line.
    """
    if jobs == 0:
        for number, (folder, task) in enumerate(tasks.items(), 1):
            say(f"training   {number} of {len(tasks)}: {folder.name}")
            yield folder, error_of(train_one, folder, *task)
        return
    os.environ["TQDM_DISABLE"] = "1"  # which the processes inherit, as they do this:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    left, suspects = dict(tasks), []
    while left:
        at_once = suspects[:1] or [*left]  # alone, it is known whose process dies
        workers = min(jobs, len(at_once))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), use_one_thread) as pool:
            with stderr_to(log):
                folders: dict[Future, Path] = {submit(pool, folder, left[folder]): folder for folder in at_once}
            try:
                while folders:
                    done = wait(folders, TICK, FIRST_COMPLETED).done
                    if any(isinstance(future.exception(), BrokenProcessPool) for future in done) and not suspects:
                        suspects = [*islice(folders.values(), workers)]  # those that were under way
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
    """Have a process of the pool train; the settings go as a dictionary, as their class is made at run time."""
    settings, watch, watch_at = task
    return pool.submit(train_one, folder, settings.model_dump(), watch, watch_at)


def stop_processes() -> None:
    """Have the processes end: after Ctrl-C, which they hear too, they do so by themselves; after a kill they are told.

    Those that train save a checkpoint first.
    """
    until = time.monotonic() + GRACE
    for process in multiprocessing.active_children():
        process.join(max(0, until - time.monotonic()))
        if process.is_alive():
            process.terminate()


def error_of(function: Callable, *arguments: Any) -> Exception | None:
    """Call a function; return what it raises, unless that ends the program."""
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Within the block new processes inherit this file as their stderr."""
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
    """Train in a folder, or go on there; what is watched is written to its folder watched/."""
    import main
    from utils.start import tf

    tf.get_logger().setLevel("ERROR")  # it warns of many functions traced, one for each training
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
        (folder / "report.json").unlink(missing_ok=True)  # it may lack the likelihood, and would be taken for finished
        raise
