"""Training on several GPUs and several machines: the workers, and the messages between them.

Every process is a worker. Each of its devices is a replica, which computes an equal share of every batch. TF_CONFIG
names the workers; it is the same on all machines except for the index. The first worker is the chief, and only the
chief reads and writes files. All workers call these functions in the same order, because each waits for the others.
"""

import contextlib
import errno
import faulthandler
import json
import os
import re
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from utils.console import Problem, Say
from utils.dataset import Dataset
from utils.quiet import quiet_start
from utils.settings import SettingsError
from utils.start import keras, tf

PATIENCE = 300.0  # seconds to wait for workers that are not started yet
# Seconds in which TensorFlow reports a lost worker to all others. A worker that ends earlier would seem the lost one.
LINGER = 12.0
FORM = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


class WorkerLost(Problem):
    """Another worker is gone or can't start, so no step can be computed; the text says which worker."""


class Workers(NamedTuple):
    """All workers of a training, as seen by one of them."""

    strategy: tf.distribute.Strategy | None  # None for a single device
    addresses: tuple[str, ...]  # host:port of each worker, the chief first; none without TF_CONFIG
    index: int  # of this worker

    @property
    def count(self) -> int:
        """How many processes train together."""
        return max(1, len(self.addresses))

    @property
    def replicas(self) -> int:
        """How many devices share a batch."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def is_chief(self) -> bool:
        """Whether this worker reads and writes the files."""
        return self.index == 0

    def scope(self) -> contextlib.AbstractContextManager:
        """A block in which variables are made on all devices."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()


ALONE = Workers(None, (), 0)


# --- TF_CONFIG --------------------------------------------------------------------------------------------------------
def read_tf_config(environ: Mapping[str, str]) -> tuple[tuple[str, ...], int] | None:
    """The addresses of all workers, the chief first, and the index of this one; None if it trains alone.

    It trains alone without TF_CONFIG, or if TF_CONFIG names one worker. TF_CONFIG has to look like FORM; a "chief" job
    is allowed too. Raises SettingsError for anything else.
    """
    text = environ.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        job, index = str(task["type"]), task["index"]
        cluster = [(name, address) for name in sorted(jobs) for address in jobs[name]]  # "chief" before "worker"
    except ValueError as error:
        raise SettingsError(f"TF_CONFIG is not JSON ({error}); it has to have the form {FORM}") from None
    except (KeyError, TypeError) as error:
        raise SettingsError(f"TF_CONFIG lacks a part ({error}); it has the form {FORM}") from None

    if others := sorted({*jobs, job} - {"chief", "worker"}):
        raise SettingsError(f"TF_CONFIG: job {others[0]!r} is not allowed; 'worker' is, and 'chief' for the first one")
    for name, addresses in jobs.items():
        if not isinstance(addresses, list):
            raise SettingsError(f"TF_CONFIG: the addresses of job {name!r} are {addresses!r}; a list is allowed")
    if len(jobs.get("chief", [])) > 1:
        raise SettingsError(f"TF_CONFIG: {len(jobs['chief'])} chiefs are not allowed; one is")
    addresses = [address for _, address in cluster]
    for address in addresses:
        if not (isinstance(address, str) and re.fullmatch(r".+:\d+", address) and 0 < split(address)[1] < 2**16):
            raise SettingsError(f"TF_CONFIG: address {address!r} is not allowed; a host and a port as in host1:2222 is")
        if addresses.count(address) > 1:
            raise SettingsError(f"TF_CONFIG: {address} is named twice; each worker has an address of its own")
    count = len(jobs.get(job, []))
    if type(index) is not int or not 0 <= index < count:
        allowed = f"0 to {count - 1}" if count else "none, as the cluster has no such job,"
        raise SettingsError(f"TF_CONFIG: index {index!r} of task {job!r} is not allowed; {allowed} is")
    place = [name for name, _ in cluster].index(job) + index
    return (tuple(addresses), place) if len(addresses) > 1 else None


def split(address: str) -> tuple[str, int]:
    """host:port -> host, port; an IPv6 host is written in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_batch_size(batch_size: int, free_bits: float, replicas: int) -> None:
    """Raise SettingsError unless a batch can be shared equally, and its objective is a mean over images."""
    if batch_size % replicas:
        rule = f"a multiple of {replicas}, the number of devices that share a batch,"
        raise SettingsError(f"batch_size: {batch_size} is not allowed; {rule} is")
    if free_bits and replicas > 1:
        raise SettingsError(f"free_bits: {free_bits:g} is not allowed on {replicas} devices; they need a whole batch")


# --- the start --------------------------------------------------------------------------------------------------------
def start(cluster: tuple[tuple[str, ...], int] | None, say: Say = print) -> Workers:
    """Join the workers of `cluster`, which read_tf_config returned. If it is None, use one device or all GPUs.

    Call it before TensorFlow computes anything. Raises SettingsError, and WorkerLost if a worker is missing.
    """
    if cluster is not None:
        wait_for_others(*cluster, say)
        workers = Workers(tf.distribute.get_strategy(), *cluster)
        with losses_told(workers):
            return workers._replace(strategy=join(*cluster))
    with quiet_start():
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        return ALONE
    return Workers(tf.distribute.MirroredStrategy([device.name for device in devices]), (), 0)


def wait_for_others(addresses: Sequence[str], index: int, say: Say, patience: float = PATIENCE) -> None:
    """Wait until all other workers answer at their addresses; meanwhile answer at this worker's own address.

    TensorFlow would wait for an hour, print nothing, and ignore Ctrl-C, because it holds Python's lock. Raises
    SettingsError if this worker's port is taken, and WorkerLost after `patience` seconds.
    """
    started, told = time.monotonic(), None
    with listen(addresses[index]):
        while missing := [i for i, address in enumerate(addresses) if i != index and not answers(address)]:
            names = ", ".join(name(addresses, i) for i in missing)
            waited = time.monotonic() - started
            if waited > patience:
                raise WorkerLost(f"{names} did not start within {patience / 60:g} minutes")
            if waited > 2 and names != told:  # print nothing if all start at about the same time
                say(f"waiting    for {names}")
                told = names
            time.sleep(0.5)


def name(addresses: Sequence[str], index: int) -> str:
    """A worker's index and address, for messages."""
    return f"worker {index} ({'the chief, ' * (index == 0)}{addresses[index]})"


def listen(address: str) -> socket.socket:
    """A socket at `address`, or only at its port if this machine does not have the address.

    Raises SettingsError if neither works.
    """
    host, port = split(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        try:
            return socket.create_server((host, port), family=family)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            return socket.create_server(("", port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno)
        raise SettingsError(f"TF_CONFIG: port {port} of {address} can't be used here ({reason})") from None


def answers(address: str) -> bool:
    """Whether a process listens at the address."""
    try:
        with socket.create_connection(split(address), timeout=2) as connection:
            return connection.getsockname() != connection.getpeername()  # by chance, a socket can connect to itself
    except OSError:
        return False


def join(addresses: Sequence[str], index: int) -> tf.distribute.Strategy:
    """The strategy of several workers, all of which answer at their addresses."""
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=index,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    with ended_by_system(seconds=60), quiet_start():  # it would wait for a worker that answered and then died
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)


@contextlib.contextmanager
def ended_by_system(seconds: float) -> Iterator[None]:
    """Within the block the operating system ends the process on Ctrl-C or SIGTERM, or with a traceback after `seconds`.

    Python's own signal handlers would not run, because no Python code runs in the block.
    """
    with contextlib.ExitStack() as after:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                after.callback(signal.signal, number, signal.signal(number, signal.SIG_DFL))
        screen = after.enter_context(os.fdopen(os.dup(2), "w"))  # a copy, because quiet_start redirects descriptor 2
        faulthandler.dump_traceback_later(seconds, exit=True, file=screen)
        after.callback(faulthandler.cancel_dump_traceback_later)
        yield


# --- messages between workers -----------------------------------------------------------------------------------------
@cache
def compile_sum(strategy: tf.distribute.Strategy) -> Callable:
    """A compiled function: tensors of this worker -> their sums over all workers."""

    @tf.function
    def sum_over_workers(tensors):
        def sum_over_replicas():
            context = tf.distribute.get_replica_context()
            replicas_here = len(strategy.extended.worker_devices)
            speaks = context.replica_id_in_sync_group % replicas_here == 0  # one replica of each worker
            mine = [tf.where(speaks, tensor, tf.zeros_like(tensor)) for tensor in tensors]
            return [context.all_reduce("SUM", tensor) for tensor in mine]

        return [strategy.experimental_local_results(total)[0] for total in strategy.run(sum_over_replicas)]

    return sum_over_workers


def broadcast(workers: Workers, variables: Sequence[Any]) -> None:
    """Give the variables, of any numeric type, the values that they have on the chief."""
    if workers.count == 1:
        return
    values = [tf.convert_to_tensor(variable) for variable in variables]
    mine = values if workers.is_chief else [tf.zeros_like(value) for value in values]
    for variable, value in zip(variables, compile_sum(workers.strategy)(mine), strict=True):
        variable.assign(value)


def broadcast_text(workers: Workers, text: str) -> str:
    """The chief's text, on all workers; it must not be empty."""
    return text if workers.count == 1 else texts_of_all(workers, text if workers.is_chief else "")[0]


def texts_of_all(workers: Workers, text: str) -> list[str]:
    """The texts of all workers, the chief's first."""
    total = compile_sum(workers.strategy)
    letters = np.frombuffer(text.encode(errors="backslashreplace"), np.uint8).astype(np.int32)
    (lengths,) = total([tf.constant(np.eye(workers.count, dtype=np.int32)[workers.index] * len(letters))])
    ends = np.cumsum(lengths)
    mine = np.zeros(-(-ends[-1] // 4096) * 4096, np.int32)  # padded, because each new length is compiled
    mine[ends[workers.index] - len(letters) : ends[workers.index]] = letters
    received = total([tf.constant(mine)])[0].numpy() if ends[-1] else mine
    return [part.astype(np.uint8).tobytes().decode() for part in np.split(received, ends)[:-1]]


@contextlib.contextmanager
def all_or_none(workers: Workers) -> Iterator[None]:
    """If a Problem or an OSError ends the block on one worker, it is raised there, and WorkerLost on all others.

    The WorkerLost has the reason. Within the block no worker may wait for another.
    """
    if workers.count == 1:
        yield
        return
    failed = None
    try:
        yield
    except (Problem, OSError) as error:
        failed = error
    whys = texts_of_all(workers, str(failed) if failed else "")
    if any(whys):
        with contextlib.suppress(*LOSSES):
            agree(workers, True)  # no worker ends before all know the reason
        first = next(index for index, why in enumerate(whys) if why)
        raise failed or WorkerLost(f"{name(workers.addresses, first)} could not begin: {whys[first]}")


def check_same(workers: Workers, dataset: Dataset) -> None:
    """Raise SettingsError unless this worker has the same images as the chief."""
    ids = [ids for ids in (dataset.train_ids, dataset.test_ids) if ids is not None]
    here = [len(dataset.train_images), zlib.crc32(b"".join(part.tobytes() for part in ids))]
    chiefs = json.loads(broadcast_text(workers, json.dumps(here)))
    with all_or_none(workers):
        if here[0] != chiefs[0]:
            counts = f"{here[0]:,} training images here, but {chiefs[0]:,} on the chief"
            raise SettingsError(f"{counts}; all workers need the same data")
        if here != chiefs:
            raise SettingsError("other images here than on the chief; all workers need the same data")


def agree(workers: Workers, flag: bool) -> bool:
    """Whether the flag is true on any worker. It is also a barrier, because each worker waits for the others here."""
    if workers.count == 1:
        return flag
    (flags,) = compile_sum(workers.strategy)([tf.constant(int(flag))])
    return bool(flags > 0)


# --- a step -----------------------------------------------------------------------------------------------------------
class Adam(keras.optimizers.Adam):
    """Adam for gradients that are already means over all replicas; Keras's Adam would sum them over the replicas again.

    That sum comes after the clipping, so each replica would clip its own gradient.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


def on_replicas(workers: Workers, step: Callable, *arguments: Any) -> tf.Tensor:
    """Run step(*arguments) on all replicas at once; return its result, which is the same on all."""
    if workers.strategy is None:
        return step(*arguments)
    return workers.strategy.experimental_local_results(workers.strategy.run(step, arguments))[0]


def own_share(tensor: tf.Tensor, shares: int, axis: int = 0) -> tf.Tensor:
    """Split a tensor along an axis into `shares` equal parts; return the part of the replica that calls.

    `shares` is the number of replicas of all workers, or of this worker.
    """
    if shares == 1:
        return tensor
    axis %= len(tensor.shape)
    before, size, after = tensor.shape[:axis], tensor.shape[axis], tensor.shape[axis + 1 :]
    split = tf.reshape(tensor, (*before, shares, size // shares, *after))
    return tf.gather(split, tf.distribute.get_replica_context().replica_id_in_sync_group % shares, axis=axis)


def own_shares(workers: Workers, images: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The calling replica's share of this worker's images (B, ...), and of the noise (..., B, L) for all images."""
    devices = workers.replicas // workers.count  # of this worker
    return own_share(images, devices), own_share(noise, workers.replicas, axis=-2)


def mean_over_replicas(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Float32 tensors of this replica -> their means over all replicas, sent as one tensor."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return list(tensors)
    flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
    parts = tf.split(context.all_reduce("MEAN", flat), [tensor.shape.num_elements() for tensor in tensors])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


# --- the loss of a worker ---------------------------------------------------------------------------------------------
LOSSES = (  # TensorFlow raises these 1 to 12 seconds after a worker died, or 8 to 13 seconds after it froze
    tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError, tf.errors.CancelledError,
    tf.errors.FailedPreconditionError,
)  # fmt: skip


@contextlib.contextmanager
def losses_told(workers: Workers) -> Iterator[None]:
    """Within the block, TensorFlow's errors for a lost worker are raised as WorkerLost."""
    try:
        yield
    except LOSSES as error:
        if workers.count == 1:
            raise
        lost = lost_worker(error.message, workers.index)
        what = "did not answer for too long" if lost == workers.index else "does not answer any more"
        if workers.count > 2:
            time.sleep(LINGER)
        way_out = "start all workers again, with --resume, to go on from the last checkpoint"
        raise WorkerLost(f"{name(workers.addresses, lost)} {what}; {way_out}") from None


def lost_worker(message: str, own: int) -> int:
    """The index of the lost worker in TensorFlow's message, as received by worker `own`.

    Workers pass the message on, so the first worker named in it, other than `own`, is the lost one. If no worker is
    named, the chief's coordination service does not answer. If only `own` is named, it was frozen and the others have
    given it up.
    """
    named = [int(task) for task in re.findall(r"/job:worker/(?:replica:\d+/)?task:(\d+)", message)]
    return next((task for task in named if task != own), own if named else 0)
