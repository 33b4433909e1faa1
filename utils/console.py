"""The frame of each program here: it reads the command line, and reports an error in one line.

It imports nothing from the project, so every module can raise a Problem.
"""

import argparse
import contextlib
import errno
import faulthandler
import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

Say = Callable[[str], None]  # a function that shows a line on the console
NO_MEMORY = (
    "ResourceExhausted",
    "RESOURCE_EXHAUSTED",
    "OOM when allocating",
    "out of memory",
    "Out of memory",
    "could not create a primitive",
)  # the last message is from oneDNN, which computes TensorFlow's convolutions on a CPU
TO_LOWER = "lower BATCH_SIZE, BOUND_CHUNK, IMAGE_SIZE or the sizes of layers, or end other programs"


class Problem(Exception):
    """An error that ends a program and is no fault of the code. Its text is shown to the user unchanged."""

    exit_code = 1  # 2 if the command line or params.py must change


class OutOfMemory(Problem):
    """Memory ran out. The text says which settings to lower, and from where the run can go on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, TensorFlow or XLA (which has no own type for it) means out of memory."""
    return isinstance(error, MemoryError) or any(sign in f"{type(error).__name__}: {error}" for sign in NO_MEMORY)


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP; args[0] is the signal's number. Like KeyboardInterrupt, it is not an Exception."""


# Signals that ask a program to end: the terminal was closed (Windows lacks this one), Ctrl-C, kill. In numerical order.
STOPPING = tuple(number for name in ("SIGHUP", "SIGINT", "SIGTERM") if (number := getattr(signal, name, None)))
REPEATED = 0.5  # seconds; a signal this soon after another is a repetition, as a terminal and a parent may both send it


def begin() -> None:
    """Make Ctrl-C end the program without a traceback until `run`, and make printing safe on any console."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # hide its warning about a missing cache, which is harmless
    prepare_streams()


def run(program: str, work: Callable[[], Any], when_stopped: str = "") -> int:
    """Call work() and return the exit code of the program. An error is shown in one line on stderr.

    The code is 0 for success, 1 or 2 for a Problem or an OSError, and 128 + the signal's number after a signal of
    STOPPING. After a signal, the line `when_stopped` says what the user can do next.
    """
    prepare_streams()
    with handled(stops()):
        return exit_code(program, work, when_stopped)


def exit_code(program: str, work: Callable[[], Any], when_stopped: str) -> int:
    """Do the work of `run` while handlers for STOPPING are set: print the lines and return the exit code."""
    try:
        try:
            work()
        finally:
            for number in STOPPING:  # the program ends anyway, and only a line or two must still be printed
                signal.signal(number, signal.SIG_IGN)
    except (KeyboardInterrupt, Stopped) as stopped:
        if when_stopped:
            print(f"\nstopped    {when_stopped}")
        return 128 + (stopped.args[0] if isinstance(stopped, Stopped) else signal.SIGINT)
    except Problem as problem:
        print(f"{program}: error: {in_one_line(str(problem))}", file=sys.stderr)
        return problem.exit_code
    except OSError as error:
        where = "the run" if error.filename is None else shown(error.filename)
        print(f"{program}: error: {where}: {in_one_line(error.strerror or str(error))}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"{program}: error: out of memory; {TO_LOWER}", file=sys.stderr)
        return 1
    return 0


def stops() -> Callable[[int, Any], None]:
    """Make a signal handler that raises Stopped, only once for signals that come together.

    A second exception right after the first would get lost in TensorFlow's code, or break it.
    """
    last = [float("-inf")]

    def stop(number: int, _frame: Any = None) -> None:
        before, last[0] = last[0], time.monotonic()
        if last[0] - before >= REPEATED:
            raise Stopped(number)

    return stop


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within the block, call `handler` for a signal of STOPPING, except for a SIGHUP that nohup ignores.

    If a script starts a program in the background, the shell ignores SIGINT for it. Here SIGINT stops it nevertheless.

    faulthandler gives Python's handlers a separate stack. On the stack of the interrupted thread they damaged memory:
    oneDNN's matrix products keep numbers there that a handler may overwrite. Under very many signals, TensorFlow 2.21
    crashed in 7 of 10 trainings of small networks. With the separate stack it crashed in none of 8.
    """
    if sys.__stderr__ and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)
    hang_up = getattr(signal, "SIGHUP", None)
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        for number, now in before.items():
            if number != hang_up or now is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, then in before.items():
            signal.signal(number, then)


# --- what is printed --------------------------------------------------------------------------------------------------
def shown(path: str | bytes | Path) -> str:
    """A name from outside as text for one line. If it has unprintable characters, it is quoted, with escapes."""
    text = os.fsencode(path).decode(errors="backslashreplace") if not isinstance(path, str) else path
    return text if text.isprintable() else repr(text)


def in_one_line(text: str) -> str:
    """A text in one line: line breaks, control sequences and the like are written as escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class Console(io.TextIOWrapper):
    """A stream whose reader may leave (`| head`, a closed terminal). Later output is dropped, and work goes on."""

    def write(self, text: str) -> int:
        """Write text; on stdout, which shows no bars, escape the control sequences that a name may hold."""
        on_stdout = self.name == "<stdout>"
        with unread_dropped():
            super().write("\n".join(map(in_one_line, text.split("\n"))) if on_stdout else text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with unread_dropped():
            super().flush()


@contextlib.contextmanager
def unread_dropped() -> Iterator[None]:
    """Within the block, ignore the error that nobody reads the output."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise


def prepare_streams() -> None:
    """Make stdout and stderr Consoles. They write characters that their encoding lacks as escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # not a replacement, such as a test's
            stream.flush()
            kept = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, Console(stream.buffer, stream.encoding, "backslashreplace", **kept))


def waiting_bar(doing: str, total: int, done: int = 0) -> tqdm:
    """A progress bar with the time left, 79 columns wide. When it is closed, its line is free again.

    No bar is shown if `doing` is "", or if the work takes less than two seconds. A bar that is made while another one
    is open is drawn below it. tqdm draws only within `update`, so call that about once a second.
    """
    hidden = {} if doing else {"disable": True}  # without the key, tqdm follows the environment
    form = f"{doing:<10} |{{bar}}| {{remaining}} left"
    return tqdm(
        total=total, initial=done, delay=2, leave=False, miniters=0, ncols=79, ascii=" #", bar_format=form, **hidden
    )  # fmt: skip


# --- command lines ----------------------------------------------------------------------------------------------------
def refuse(program: str, message: str) -> NoReturn:
    """Report in one line what is wrong with a program's command line, and exit with code 2."""
    print(f"{program}: error: {in_one_line(message)}", file=sys.stderr)
    raise SystemExit(2) from None


def experiment_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The command line of experiments/<name>.py. --help shows the docstring; a mistake is reported in one line."""
    prepare_streams()
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = partial(refuse, name)
    return parser


def whole(least: int, most: int) -> Callable[[str], int]:
    """The argparse type of a whole number from `least` to `most`."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; an integer from {least} to {most:,} is")
        return int(text)

    return read
