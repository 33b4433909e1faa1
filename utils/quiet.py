"""Start TensorFlow quietly and faster: hide its chatter, pass on its real errors, and save nearly half of the time."""

import contextlib
import gc
import os
import re
import sys
import tempfile

# Notes and warnings of the C++ side ("I0000 ...", "W0000 ..."), and the errors that only mean that there is no GPU.
CHATTER = re.compile(
    r"^[IW]\d{4} |^\d{4}-\d\d-\d\d .*: [IW] |^WARNING: All log messages before absl|^To enable the following instruc"
    r"|failed call to cuInit|Unable to register cu|kernel driver does not appear|no NVIDIA GPU device"
)


@contextlib.contextmanager
def quiet_start():
    """Hold back what is written to file descriptor 2 inside the block; then print all of it that is not chatter.

    The C++ libraries write to the descriptor itself, so replacing `sys.stderr` would catch nothing. They write some
    lines before they read TF_CPP_MIN_LOG_LEVEL.
    """
    # Errors only. With several workers, fatal errors only: the end of a worker logs many, and raises an exception too.
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
    """Exempt every object that exists at the end of the block from Python's garbage collector, for good.

    An import of TensorFlow makes half a million objects that live as long as the process. The collector would scan them
    again and again, while they are made and when the process ends: two of the five seconds of `import main`.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
