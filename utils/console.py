"""What each program here does around its work: reads a command line, and turns what goes wrong into one line.

It imports nothing of the project, so that every room can raise a Problem.
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

Say = Callable[[str], None]  # what shows a line on the console
NO_MEMORY = (
    "ResourceExhausted",
    "RESOURCE_EXHAUSTED",
    "OOM when allocating",
    "out of memory",
    "Out of memory",
    "could not create a primitive",
)  # the last is what oneDNN, TensorFlow's convolutions on a CPU, says
TO_LOWER = "lower BATCH_SIZE, BOUND_CHUNK, IMAGE_SIZE or the sizes of layers, or end other programs"


class Problem(Exception):
    """What ends a program and is no fault of the code. Its text is shown to the user as it is."""

    exit_code = 1  # 2 where the command line or params.py has to change


class OutOfMemory(Problem):
    """Memory ran out; its text says what to lower, and what is left to go on from."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, NumPy's, TensorFlow's, or XLA's, which has no type of its
    own.
    """
    return isinstance(error, MemoryError) or any(sign in f"{type(error).__name__}: {error}" for sign in NO_MEMORY)


class Stopped(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP, whose number is args[0]. Like KeyboardInterrupt it is not an Exception."""


# What asks a program to end, in the order of their numbers: a terminal that is closed (Windows has none), Ctrl-C, kill.
STOPPING = tuple(number for name in ("SIGHUP", "SIGINT", "SIGTERM") if (number := getattr(signal, name, None)))
REPEATED = 0.5  # seconds in which a signal means what the one before did: a terminal and a parent may both send it


def begin() -> None:
    """Until `run`, Ctrl-C ends the program without a traceback. Whatever the console is, what is printed fits it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that it finds no place for its cache harms nobody
    prepare_streams()


def run(program: str, work: Callable[[], Any], when_stopped: str = "") -> int:
    """Call work() and return the exit code of the program; what went wrong is a line on stderr.

    0 for success, 1 or 2 for a Problem or an OSError, 128 + the signal's number after one of STOPPING, where the line
    `when_stopped` says what the user can do next.
    """
    prepare_streams()
    with handled(stops()):
        return exit_code(program, work, when_stopped)


def exit_code(program: str, work: Callable[[], Any], when_stopped: str) -> int:
    """What `run` returns, and the lines it prints, while handlers for STOPPING are set."""
    try:
        try:
            work()
        finally:
            for number in STOPPING:  # work has ended, and so does the program: a line or two are left
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
    """A signal handler that raises Stopped, once for signals that come together: a second exception on the heels of
    the first one would be lost in TensorFlow's code, or break it.
    """
    last = [float("-inf")]

    def stop(number: int, _frame: Any = None) -> None:
        before, last[0] = last[0], time.monotonic()
        if last[0] - before >= REPEATED:
            raise Stopped(number)

    return stop


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within the block `handler` is called for a signal of STOPPING, but for a SIGHUP that nohup has ignored.

    A shell ignores SIGINT for what a script starts in the background, which is to be stopped by one all the same.

    Python's handlers then run on a stack of their own, which faulthandler brings along. On the stack of the thread that
    a signal interrupts they damaged memory: oneDNN's matrix products keep numbers there that a handler may overwrite,
    and under a rain of signals TensorFlow 2.21 crashed in 7 of 10 trainings of small networks, but in none of 8 so.
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
    """A name from outside as text for one line: quoted, with escapes, if it has what is no plain character."""
    text = os.fsencode(path).decode(errors="backslashreplace") if not isinstance(path, str) else path
    return text if text.isprintable() else repr(text)


def in_one_line(text: str) -> str:
    """A text whose line breaks, escape sequences and the like are written as escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class Console(io.TextIOWrapper):
    """A stream whose reader may leave (`| head`, a closed terminal): what is printed then is dropped, work goes on."""

    def write(self, text: str) -> int:
        """As that of any text file; on stdout, where no bar is drawn, without escape sequences from names."""
        on_stdout = self.name == "<stdout>"
        with unread_dropped():
            super().write("\n".join(map(in_one_line, text.split("\n"))) if on_stdout else text)
        return len(text)

    def flush(self) -> None:
        """As that of any text file."""
        with unread_dropped():
            super().flush()


@contextlib.contextmanager
def unread_dropped() -> Iterator[None]:
    """Within the block it is no error that nobody reads."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise


def prepare_streams() -> None:
    """Make stdout and stderr Consoles that write as escapes what their encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # and no one's own
            stream.flush()
            kept = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, Console(stream.buffer, stream.encoding, "backslashreplace", **kept))


def waiting_bar(doing: str, total: int, done: int = 0) -> tqdm:
    """A bar with the time left of what takes long, 79 columns wide; its line is free again when it is closed.

    Work that is done within two seconds shows none, nor does "". One that is made while another one is open is drawn
    below that. tqdm shows a bar within `update` only, which should be called each second or so.
    """
    hidden = {} if doing else {"disable": True}  # else tqdm asks the environment
    form = f"{doing:<10} |{{bar}}| {{remaining}} left"
    return tqdm(
        total=total, initial=done, delay=2, leave=False, miniters=0, ncols=79, ascii=" #", bar_format=form, **hidden
    )  # fmt: skip


# --- command lines ----------------------------------------------------------------------------------------------------
def refuse(program: str, message: str) -> NoReturn:
    """Say in one line what is wrong with a program's command line, and exit with code 2."""
    print(f"{program}: error: {in_one_line(message)}", file=sys.stderr)
    raise SystemExit(2) from None


def experiment_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The command line of experiments/<name>.py. --help shows the docstring; a mistake is one line."""
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
