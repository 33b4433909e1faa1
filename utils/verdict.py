"""Whether a finished run is healthy, as its report and its history say: the reasons, a plain sentence each."""

import math
from typing import Any, NamedTuple

import numpy as np

from utils.report import grows_for_ever, kind, remarks
from utils.settings import Settings, ramp_end

UNUSED = 0.1  # nats of KL of all latents together, below which no picture shows that they are used


def judge(s: Settings, report: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """The verdict on a run, "healthy", "unhealthy" or "not finished", with its reasons, and what else to know.

    A run that is not finished is neither healthy nor unhealthy: `healthy` is None.
    """
    progress = progress_of(s, history)
    trouble = trouble_with_objective(progress)
    missing = too_short(s, progress) or ([] if trouble or grows_for_ever(s) else still_falling(progress))
    found = trouble_with_kl(s, report, missing) + trouble
    verdict = "unhealthy" if found else "not finished" if missing else "healthy"
    healthy = None if verdict == "not finished" else not found
    known = remarks(s, report)
    if verdict == "healthy" and not grows_for_ever(s):
        known += still_learning(progress)
    return {"verdict": verdict, "healthy": healthy, "problems": found, "unfinished": missing, "remarks": known}


class Progress(NamedTuple):
    """How far a run has come, and its objectives that compare: of lines in whose steps the KL had its final weight."""

    last_step: int
    last_weight: float | None  # of the KL, in the last step
    last_epoch: int  # its steps
    train: tuple[np.ndarray, np.ndarray]  # the last steps (n,) of the lines, and their objectives (n,)
    test: tuple[np.ndarray, np.ndarray]
    scale: float  # what changes of the objective are measured by


def progress_of(s: Settings, history: list[dict[str, Any]]) -> Progress:
    """Read it off the lines of history.jsonl."""
    train, test = (comparable(history, split, ramp_end(s)) for split in ("train", "test"))
    tested = [0, *(line["step"] for line in history if line["split"] == "test")]
    last = history[-1] if history else {"step": 0, "kl_weight": None, "objective": 0}
    scale = max(abs(last["objective"]), 1e-9)
    if kind(s) == "density" and len(train[1]):  # it may pass 0
        scale = max(scale, np.ptp(train[1]))
    return Progress(last["step"], last["kl_weight"], last["step"] - tested[-2:][0], train, test, scale)


def comparable(history: list[dict[str, Any]], split: str, since: int) -> tuple[np.ndarray, np.ndarray]:
    """The steps (n,) and objectives (n,) of a split's lines that have no step before step `since`.

    A training line is a mean over the steps since the one before, a test line is of the weight in the step it follows.
    """
    lines = [line for line in history if line["split"] == split]
    steps = np.array([line["step"] for line in lines], int)
    first = np.concatenate([[0], steps[:-1]]) if split == "train" else steps - 1
    chosen = first[: len(steps)] >= since
    return steps[chosen], np.array([line["objective"] for line in lines], float)[chosen]


def trouble_with_kl(s: Settings, report: dict[str, Any], missing: list[str]) -> list[str]:
    """Whether the latents are unused, which is normal while a run has just begun (`missing`), or surely will be."""
    found, beta = [], report["effective_beta"]
    if beta is not None and not missing and (report["active_units"] == 0 or report["test_kl"] < UNUSED):
        mended = " A lower KL_WEIGHT_END may mend that." if s.kl_weight_end > 1 else ""
        found.append(
            "Posterior collapse: the latents say nothing about the image, so every reconstruction is the same picture."
            f"{mended}"
        )
    if beta is not None and beta >= 10 and s.reconstruction_reduction == "mean":
        mended = "RECONSTRUCTION_REDUCTION = sum mends it."
        found.append(f"The KL outweighs the reconstruction: an effective beta of {beta:,.4g}; the ELBO has 1. {mended}")
    return found


def trouble_with_objective(progress: Progress) -> list[str]:
    """Whether the objective rose again at the end."""
    if rose_again(*progress.train, noisy=True):
        return ["Diverging: the training objective rose again at the end. A lower LEARNING_RATE may mend that."]
    if overfits(progress):
        return ["Overfitting: the test objective rose while that of training fell. Fewer EPOCHS or a smaller network."]
    return []


def too_short(s: Settings, progress: Progress) -> list[str]:
    """Whether a run ended before it can be judged."""
    lines = len(progress.train[1])
    if progress.last_step < ramp_end(s):
        weight = f"it ended at KL weight {progress.last_weight:.3g}, before KL_WEIGHT_END = {s.kl_weight_end:g}"
        return [f"{weight}. More EPOCHS or fewer KL_STEPS."]
    if lines < 2:
        steps = f"{progress.last_step - ramp_end(s):,} of {progress.last_step:,} steps"
        since = "" if s.autoencoder else f" since the KL has its final weight ({steps})"
        few = f"{lines or 'no'} line{'s' * (lines != 1)}{since}, too few to judge"
        return [f"the history has {few}. More EPOCHS or a smaller LOG_EVERY."]
    return []


def still_falling(progress: Progress) -> list[str]:
    """Whether a run ended while its objective fell by more than 5 percent."""
    fall, when = latest_fall(progress)
    share = fall / progress.scale
    return [f"the training objective still fell by {share:.0%} within {when}. More EPOCHS."] if share > 0.05 else []


def latest_fall(progress: Progress) -> tuple[float, str]:
    """By how much the training objective fell from the first to the second half of the last epoch, and when that was.

    Of a run of many short epochs it is the last tenth, of a single epoch its second half, instead.
    """
    steps, values = progress.train
    window = min(max(progress.last_epoch, progress.last_step // 10), progress.last_step // 2)
    latest = values[steps > progress.last_step - window]
    earlier, later = (half.mean() for half in np.array_split(latest if len(latest) > 1 else values[-2:], 2))
    return earlier - later, "the last epoch" if window == progress.last_epoch else f"the last {window:,} steps"


def rose_again(steps: np.ndarray, values: np.ndarray, noisy: bool = False) -> bool:
    """Whether the last tenth of the objectives (n,) lies over their best tenth by more than 2 percent.

    If they are `noisy`, also by more than four standard errors, as the changes from line to line give them.
    """
    if len(values) < 2:
        return False
    parts = np.array_split(values, min(10, len(values)))
    tenths = np.array([part.mean() for part in parts])
    best = tenths.argmin()
    rise = tenths[-1] - tenths[best]
    noise = np.median(abs(np.diff(values))) / 0.954 if noisy else 0  # 0.954: of differences of normal numbers
    error = noise * math.sqrt(1 / len(parts[-1]) + 1 / len(parts[best]))
    return bool(rise > 0.02 * max(abs(tenths[best]), np.ptp(tenths)) and rise > 4 * error)


def overfits(progress: Progress) -> bool:
    """Whether the test objective rose again at the end, while that of training fell from its best test on."""
    if not rose_again(*progress.test):
        return False
    best = progress.test[0][progress.test[1].argmin()]
    steps, values = progress.train
    until, since = values[steps <= best], values[steps > best]
    return len(until) > 0 and len(since) > 0 and since[-len(until) :].mean() < until[-len(since) :].mean()


def still_learning(progress: Progress) -> list[str]:
    """A sentence if the last epoch lowered the test objective by more than half a percent, to its best so far. With one
    test, it is about the training objective within the epoch."""
    _, values = progress.test
    if len(values) > 1:
        gain, what = values[-2] - values[-1], "the last epoch lowered the test objective"
    else:
        values = progress.train[1]
        gain, what = latest_fall(progress)[0], "the training objective still fell"
    if values[-1] > values.min() or gain <= 0.005 * progress.scale:
        return []
    return [f"Still learning: {what} by {gain:.2g}. More EPOCHS help."]
