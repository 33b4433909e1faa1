"""utils/workers.py: TF_CONFIG and its errors, the start, and what two processes exchange until one dies."""

import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from tests.shared import REPOSITORY, free_addresses, users_environment
from utils import workers
from utils.settings import SettingsError
from utils.start import tf

PAIR = ["one:2222", "two:2222"]


def config(cluster, job="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})}


# --- TF_CONFIG --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"TF_CONFIG": ""}, None),
        (config({"worker": ["one:2222"]}), None),
        (config({"worker": PAIR}, index=1), (("one:2222", "two:2222"), 1)),
        (config({"worker": PAIR, "chief": ["[::1]:1"]}, index=1), (("[::1]:1", "one:2222", "two:2222"), 2)),
        (config({"worker": PAIR, "chief": ["[::1]:1"]}, "chief"), (("[::1]:1", "one:2222", "two:2222"), 0)),
    ],
)
def test_tf_config_names_the_workers_with_the_chief_first(environ, expected):
    assert workers.read_tf_config(environ) == expected


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"TF_CONFIG": "{worker: one:2222}"}, "TF_CONFIG is not JSON"),
        ({"TF_CONFIG": "[]"}, "TF_CONFIG lacks a part"),
        ({"TF_CONFIG": '{"cluster": {"worker": ["one:2222"]}}'}, "TF_CONFIG lacks a part ('task')"),
        (config(None), "TF_CONFIG lacks a part"),
        (config({"worker": "one:2222"}), "TF_CONFIG: the addresses of job 'worker' are 'one:2222'; a list is allowed"),
        (config({"worker": PAIR}, index=2), "TF_CONFIG: index 2 of task 'worker' is not allowed; 0 to 1 is"),
        (config({"worker": PAIR}, index=-1), "TF_CONFIG: index -1 of task"),
        (config({"worker": PAIR}, index="0"), "TF_CONFIG: index '0' of task"),
        (config({"worker": PAIR}, "chief"), "TF_CONFIG: index 0 of task 'chief' is not allowed; none, as"),
        (config({"worker": PAIR}, "evaluator"), "TF_CONFIG: job 'evaluator' is not allowed; 'worker' is"),
        (config({"worker": PAIR, "ps": ["p:1"]}), "TF_CONFIG: job 'ps' is not allowed"),
        (config({"worker": PAIR, "chief": ["c:1", "d:1"]}), "TF_CONFIG: 2 chiefs are not allowed; one is"),
        (config({"worker": ["one", "two:2222"]}), "TF_CONFIG: address 'one' is not allowed; a host and a port as in"),
        (config({"worker": ["one:0", "two:2222"]}), "TF_CONFIG: address 'one:0' is not allowed"),
        (config({"worker": ["one:65536", "two:2222"]}), "TF_CONFIG: address 'one:65536' is not allowed"),
        (config({"worker": [1, "two:2222"]}), "TF_CONFIG: address 1 is not allowed"),
        (config({"worker": ["one:2222", "one:2222"]}), "TF_CONFIG: one:2222 is named twice"),
    ],
)
def test_a_mistake_in_tf_config_is_told_in_one_line(environ, told):
    with pytest.raises(SettingsError) as error:
        workers.read_tf_config(environ)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_a_batch_is_shared_equally_or_refused():
    workers.check_batch_size(128, 0.0, 4)
    workers.check_batch_size(128, 0.5, 1)
    with pytest.raises(SettingsError, match=r"^batch_size: 128 is not allowed; a multiple of 3, the number of devices"):
        workers.check_batch_size(128, 0.0, 3)
    with pytest.raises(SettingsError, match=r"^free_bits: 0.5 is not allowed on 2 devices; they need a whole batch$"):
        workers.check_batch_size(128, 0.5, 2)


# --- the start --------------------------------------------------------------------------------------------------------
def test_a_worker_waits_until_the_others_answer_and_says_for_whom():
    addresses, lines, late = free_addresses(3), [], ExitStack()
    present = late.enter_context(workers.listen(addresses[2]))
    timer = threading.Timer(3.0, lambda: late.enter_context(workers.listen(addresses[0])))
    timer.start()
    workers.wait_for_others(addresses, 1, lines.append)
    assert workers.answers(addresses[0])  # it has waited for worker 0
    assert not workers.answers(addresses[1])  # its own port is free again, for TensorFlow
    assert lines == [f"waiting    for worker 0 (the chief, {addresses[0]})"]
    assert present.fileno() > 0
    timer.join()
    late.close()


def test_a_worker_gives_up_waiting_in_one_line():
    addresses = free_addresses(2)
    with pytest.raises(workers.WorkerLost, match=rf"^worker 1 \({addresses[1]}\) did not start within 0.01 minutes$"):
        workers.wait_for_others(addresses, 0, pytest.fail, patience=0.6)


def test_a_worker_is_waited_for_at_its_own_address_only():
    (address,) = free_addresses(1)
    with workers.listen(address) as here:
        assert here.getsockname()[0] == "127.0.0.1"
    port = address.rpartition(":")[2]
    with workers.listen(f"203.0.113.7:{port}") as here:  # an address that this machine does not have
        assert here.getsockname() == ("0.0.0.0", int(port))


def test_a_port_that_is_taken_is_named():
    addresses = free_addresses(2)
    port = addresses[0].rpartition(":")[2]
    with (
        socket.create_server(("", int(port))),
        pytest.raises(SettingsError, match=rf"^TF_CONFIG: port {port} of 127.0.0.1:{port} can't be used here \(Addr"),
    ):
        workers.wait_for_others(addresses, 0, pytest.fail)


# --- the loss of a worker ---------------------------------------------------------------------------------------------
RESET = "remote target /job:worker/replica:0/task:{} while calling /tensorflow.WorkerService/RecvBuf: reset by peer"
SILENT = "Error reported from /job:worker/task:{0}: tasks are unhealthy (no heartbeats): /job:worker/replica:0/task:{0}"


@pytest.mark.parametrize(
    ("message", "own", "lost"),
    [
        (RESET.format(2), 0, 2),
        (RESET.format(2) + RESET.format(0), 1, 2),  # worker 1 got this from worker 0
        (SILENT.format(1), 0, 1),
        ("Deadline Exceeded RPC: /tensorflow.CoordinationService/Heartbeat", 1, 0),  # the service runs in the chief
        (SILENT.format(1), 1, 1),  # it was frozen itself
    ],
)
def test_the_lost_worker_is_the_one_that_tensorflow_names_first(message, own, lost):
    assert workers.lost_worker(message, own) == lost


def test_an_error_that_is_no_loss_passes_as_it_is():
    pair = workers.Workers(tf.distribute.get_strategy(), ("one:1", "two:2"), 0)
    with pytest.raises(tf.errors.ResourceExhaustedError), workers.losses_told(pair):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
    with pytest.raises(tf.errors.UnavailableError), workers.losses_told(pair._replace(addresses=())):
        raise tf.errors.UnavailableError(None, None, RESET.format(1))
    with pytest.raises(workers.WorkerLost, match=r"^worker 1 \(two:2\) does not answer any more; start all"):  # noqa: SIM117
        with workers.losses_told(pair):
            raise tf.errors.UnavailableError(None, None, RESET.format(1))


# --- alone ------------------------------------------------------------------------------------------------------------
def test_alone_nothing_is_sent():
    alone = workers.start(None)
    variable = tf.Variable(3.0)
    workers.broadcast(alone, [variable])
    assert (variable.numpy(), workers.broadcast_text(alone, "a"), alone.count, alone.is_chief) == (3.0, "a", 1, True)
    assert [workers.agree(alone, flag) for flag in (False, True)] == [False, True]


# --- real processes ---------------------------------------------------------------------------------------------------
SHARES = """
def shares(strategy):
    batch = tf.reshape(tf.range(24.0), (2, 4, 3))  # the second axis is that of the batch
    def of_replica():
        own = workers.own_share(batch, 2, axis=1)
        mean, scalar = workers.mean_over_replicas([own, tf.reduce_sum(own)])
        return own, mean, scalar
    own, mean, scalar = tf.function(lambda: strategy.run(of_replica))()
    local = strategy.experimental_local_results
    return [[each.numpy().tolist() for each in local(part)] for part in (own, mean, scalar)]
"""
WORKER = f"""
import json, os, signal, sys
from utils.quiet import quiet_start
with quiet_start():
    import tensorflow as tf
from utils import workers
{SHARES}
me = workers.start(workers.read_tf_config(os.environ), say=lambda line: None)
with me.strategy.scope():
    mirrored = tf.Variable([1.5, -2.0])
plain = tf.Variable(2**40 + me.index, dtype=tf.int64)
mirrored.assign([me.index + 0.25, 7.0])
workers.broadcast(me, [mirrored, plain])
text = workers.broadcast_text(me, "gr\\u00fcn" if me.is_chief else "another, longer one")
flags = [workers.agree(me, flag) for flag in (False, me.index == 1, me.index == 0)]
whys = [workers.texts_of_all(me, text) for text in ("", "\u00fc" * (me.index + 1), "one" if me.index else "")]
print(json.dumps([mirrored.numpy().tolist(), int(plain.numpy()), text, flags, shares(me.strategy), whys]), flush=True)
try:
    with workers.losses_told(me):
        workers.agree(me, False)
        if me.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            workers.agree(me, False)
except workers.WorkerLost as lost:
    sys.exit(str(lost))
"""
REPLICAS = f"""
import json
from utils.quiet import quiet_start
with quiet_start():
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
from utils import workers
{SHARES}
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
print(json.dumps(shares(workers.start(None).strategy)))
"""
HALVES = [
    [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [[12.0, 13.0, 14.0], [15.0, 16.0, 17.0]]],
    [[[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]], [[18.0, 19.0, 20.0], [21.0, 22.0, 23.0]]],
]
MEAN = [[[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]], [[15.0, 16.0, 17.0], [18.0, 19.0, 20.0]]]
MEAN_OF_SUMS = (102.0 + 174.0) / 2


def python(code, **variables):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env=users_environment() | variables, **pipes)


@pytest.mark.slow
def test_two_devices_of_one_process_share_a_batch():
    process = python(REPLICAS)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out) == [HALVES, [MEAN, MEAN], [MEAN_OF_SUMS, MEAN_OF_SUMS]]


@pytest.mark.slow
def test_two_processes_share_what_the_chief_has_and_the_end_of_one_ends_the_other():
    addresses = free_addresses(2)
    processes = [python(WORKER, **config({"worker": addresses}, index=index)) for index in (0, 1)]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, (out, _) in enumerate(outputs):
        values, number, text, flags, shares, whys = json.loads(out)
        assert whys == [["", ""], ["\u00fc", "\u00fc\u00fc"], ["", "one"]]
        assert (values, number, text, flags) == ([0.25, 7.0], 2**40, "grün", [False, True, True])
        assert shares == [[HALVES[index]], [MEAN], [MEAN_OF_SUMS]]
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL]
    way_out = "start all workers again, with --resume, to go on from the last checkpoint"
    assert outputs[0][1] == f"worker 1 ({addresses[1]}) does not answer any more; {way_out}\n"
