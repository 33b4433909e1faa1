"""What needs no TensorFlow to be refused is refused here, before that loads, which takes seconds."""

import os

from utils import runs
from utils.console import Problem, refuse
from utils.settings import Command


def refuse_early(command: Command) -> None:
    """Exit with code 2 and a line if a run is to be continued, started from, named or fed that cannot be."""
    if "TF_CONFIG" in os.environ:  # one of several workers: the chief alone has the run, and all have to hear of it
        return
    try:
        check(command)
    except Problem as problem:
        refuse("main.py", str(problem))
    except OSError:
        return  # the run comes to it again, and says what it is


def check(command: Command) -> None:
    """Raise the Problem that main.main would come to, as far as it can be seen at once."""
    from utils import data  # here, because a typo does not have to wait for NumPy

    def later(note: str) -> None:
        """Notes are shown when the run begins."""

    settings, folder = runs.asked_for(command, later)
    if folder is None:
        runs.check_place(settings)
    else:
        with runs.locked(folder):  # by no other process
            pass
    if runs.starts_from_another(settings, folder):
        runs.to_start_from(settings, later)
    data.check_early(settings, folder)
