"""What each program here does around its work: reads a command line, and turns what goes wrong into one line.

It imports nothing of the project, so that every room can raise a Problem.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from tqdm import tqdm

Say = Callable[[str], None]  # what shows a line on the console
NO_MEMORY = ("ResourceExhausted", "RESOURCE_EXHAUSTED", "OOM when allocating", "out of memory", "Out of memory")
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
    """Ctrl-C or SIGTERM, whose number is args[0]. Like KeyboardInterrupt it is not an Exception."""


def raise_stopped(number: int, _frame: Any = None) -> NoReturn:
    """A signal handler."""
    raise Stopped(number)


def run(program: str, work: Callable[[], Any], when_stopped: str = "") -> int:
    """Call work() and return the exit code of the program; what went wrong is a line on stderr.

    0 for success, 1 or 2 for a Problem or an OSError, 128 + the signal's number after Ctrl-C or SIGTERM, where the line
    `when_stopped` says what the user can do next.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, raise_stopped)
    try:
        work()
    except (KeyboardInterrupt, Stopped) as stopped:
        if when_stopped:
            print(f"\nstopped    {when_stopped}")
        return 128 + (stopped.args[0] if isinstance(stopped, Stopped) else signal.SIGINT)
    except Problem as problem:
        print(f"{program}: error: {problem}", file=sys.stderr)
        return problem.exit_code
    except OSError as error:
        print(f"{program}: error: {error.filename or 'the run'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(f"{program}: error: out of memory; {TO_LOWER}", file=sys.stderr)
        return 1
    return 0


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
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def experiment_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The command line of experiments/<name>.py. --help shows the docstring; a mistake is one line."""
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
