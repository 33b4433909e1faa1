"""Refuse bad commands early: these checks need no TensorFlow, which takes seconds to load."""

import os

from utils import runs
from utils.console import Problem, refuse
from utils.settings import Command


def refuse_early(command: Command) -> None:
    """Exit with code 2 and one line if the run cannot be resumed, started from another, named or given its data."""
    if "TF_CONFIG" in os.environ:  # one of several workers: only the chief has the run, and all must learn of an error
        return
    try:
        check(command)
    except Problem as problem:
        refuse("main.py", str(problem))
    except OSError:
        return  # the run will meet this error again and report it


def check(command: Command) -> None:
    """Raise the Problem that main.main would raise, if it can be found quickly."""
    from utils import data  # imported here, so that a typo is reported without loading NumPy

    def later(note: str) -> None:
        """Do nothing, because notes are shown when the run begins."""

    settings, folder = runs.asked_for(command, later)
    if folder is None:
        runs.check_place(settings)
    else:
        with runs.locked(folder):  # raises if another process holds the lock
            pass
    if runs.starts_from_another(settings, folder):
        runs.to_start_from(settings, later)
    data.check_early(settings, folder)
