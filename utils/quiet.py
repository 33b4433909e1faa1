"""TensorFlow's start: its chatter kept off the screen, its real errors passed on, and half of its time saved."""

import contextlib
import gc
import os
import re
import sys
import tempfile

# Notes and warnings of the C++ side ("I0000 ...", "W0000 ..."), and the errors that only mean: there is no GPU here.
CHATTER = re.compile(
    r"^[IW]\d{4} |^\d{4}-\d\d-\d\d .*: [IW] |^WARNING: All log messages before absl|^To enable the following instruc"
    r"|failed call to cuInit|Unable to register cu|kernel driver does not appear|no NVIDIA GPU device"
)


@contextlib.contextmanager
def quiet_start():
    """Hold back what is written to file descriptor 2 inside the block, then write on all of it that is not chatter.

    The C++ libraries write to the descriptor itself, so that replacing `sys.stderr` would catch nothing, and some of
    their lines come before TF_CPP_MIN_LOG_LEVEL is read.
    """
    # Errors only and, of several workers, fatal ones only: the end of a worker makes many, and an exception as well.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if "TF_CONFIG" in os.environ else "2")
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if line.strip() and not CHATTER.search(line):
                    print(line, file=sys.stderr)


@contextlib.contextmanager
def uncollected():
    """Keep Python's garbage collector from all that was made until the end of the block, now and ever after.

    An import of TensorFlow makes half a million objects that live as long as the process. To look through them again
    and again, while they are made and when the process ends, takes two of the five seconds of `import main`.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
