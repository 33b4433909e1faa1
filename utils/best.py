"""The best checkpoint of a run: it has the lowest objective on the images of HELD_OUT, at the final KL weight.

Without HELD_OUT, only the test images could choose it. They must not choose anything, so then none is kept.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils import runs
from utils.settings import Settings, ramp_end

Line = dict[str, Any]  # a line of the history


def best_of(s: Settings, lines: Iterable[Line]) -> Line | None:
    """The test with the lowest objective, the first if several are equal, or None; `s` has KL_STEPS as a number."""
    tests = (line for line in lines if line["split"] == "test" and line["step"] > ramp_end(s))
    return min(tests, key=lambda line: line["objective"], default=None) if s.held_out else None


def kept(folder: Path, history: Iterable[Line]) -> Line | None:
    """The step, epoch and held-out objective of the best checkpoint that a run has kept, or None."""
    steps = runs.saved_steps(folder, "best")
    tests = {line["step"]: line for line in history if line["split"] == "test"}
    if not steps or steps[-1] not in tests:
        return None
    line = tests[steps[-1]]
    return {"step": line["step"], "epoch": round(line["epoch"]), "objective": line["objective"]}


def check_kept(folder: Path) -> None:
    """Raise RunError with the reason if a run has no best checkpoint, SettingsError if its settings cannot be read."""
    if runs.saved_steps(folder, "best"):
        return
    s, history = runs.saved_settings(folder, lambda line: None), runs.read_history(folder)
    weights = [line["kl_weight"] for line in history if line["split"] == "test"]
    at_the_end = any(weight is None or math.isclose(weight, s.kl_weight_end, rel_tol=1e-6) for weight in weights)
    why = "none was kept when it was trained" if at_the_end else "no test of it had the final KL weight yet"
    if not s.held_out:
        why = "it has HELD_OUT = 0, and the test images must not choose it"
    raise runs.RunError(f"--best: {folder.name} has no best checkpoint: {why}; without --best the last one is taken")
