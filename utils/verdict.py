"""Decide from its report and history whether a finished run is healthy, and give each reason in a plain sentence."""

import math
from typing import Any, NamedTuple

import numpy as np

from utils.report import grows_for_ever, remarks
from utils.settings import Settings, ramp_end

UNUSED = 0.1  # nats of KL, over all latents; below this no picture shows that the latents are used


def judge(s: Settings, report: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """The verdict on a run, "healthy", "unhealthy" or "not finished", with its reasons and further remarks.

    A run that is not finished is neither healthy nor unhealthy: `healthy` is None. Only the first reason with advice
    shows its advice, because two pieces of advice may contradict each other.
    """
    progress = progress_of(s, history)
    trouble = trouble_with_objective(s, report, progress)
    missing = too_short(s, progress) or ([] if trouble or grows_for_ever(s) else still_falling(progress))
    found = trouble_with_kl(s, report, missing) + trouble
    verdict = "unhealthy" if found else "not finished" if missing else "healthy"
    healthy = None if verdict == "not finished" else not found
    learning = still_learning(progress) if verdict == "healthy" and not grows_for_ever(s) else []
    advised = next((reason for reason in [*found, *missing, *learning] if reason.advice), None)

    def said(reasons: list[Reason]) -> list[str]:
        return [f"{what} {advice}" if reason is advised else what for reason in reasons for what, advice in [reason]]

    known = {"problems": said(found), "unfinished": said(missing), "remarks": remarks(s, report) + said(learning)}
    return {"verdict": verdict, "healthy": healthy} | known


class Reason(NamedTuple):
    """A reason for a verdict and an advice, a sentence each; the advice is "" if there is none."""

    what: str
    advice: str


# --- lines that can be compared ---------------------------------------------------------------------------------------
class Lines(NamedTuple):
    """n lines of the history, arrays (n,): the step each begins after, the step it ends after, and its objective."""

    begin: np.ndarray
    end: np.ndarray
    objective: np.ndarray

    def since(self, step: int) -> "Lines":
        """The lines that begin after this step or later."""
        return Lines(*(values[self.begin >= step] for values in self))


class Progress(NamedTuple):
    """The progress of a run: its length, and the lines whose objectives can be compared."""

    steps: int
    steps_of_epoch: int
    train: Lines
    test: Lines


def progress_of(s: Settings, history: list[dict[str, Any]]) -> Progress:
    """The progress of a run from the lines of history.jsonl. Only objectives at the final KL weight can be compared."""
    train, test = lines_of(history, "train"), lines_of(history, "test")
    steps, steps_of_epoch = history[-1]["step"] if history else 0, int(np.diff([0, *test.end])[-1:].sum())
    return Progress(steps, steps_of_epoch, *(lines.since(ramp_end(s)) for lines in (train, test)))


def lines_of(history: list[dict[str, Any]], split: str) -> Lines:
    """All lines of a split. A training line is a mean over its steps; a test line has the KL weight of the last step.

    A short last training line is noisier than the others, so it is merged with the one before.
    """
    lines = [line for line in history if line["split"] == split]
    end = np.array([line["step"] for line in lines], int)
    objective = np.array([line["objective"] for line in lines], float)
    if split == "test":
        return Lines(end - 1, end, objective)
    begin = np.array([0, *end[:-1]], int)[: len(end)]
    if len(end) > 1 and 2 * (end[-1] - begin[-1]) < end[-2] - begin[-2]:
        both = np.average(objective[-2:], weights=(end - begin)[-2:])
        return Lines(begin[:-1], np.array([*end[:-2], end[-1]]), np.array([*objective[:-2], both]))
    return Lines(begin, end, objective)


# --- unhealthy --------------------------------------------------------------------------------------------------------
def trouble_with_kl(s: Settings, report: dict[str, Any], missing: list[Reason]) -> list[Reason]:
    """Whether the latents are unused, or surely will be. In a run that has just begun (`missing`) this is normal."""
    found, beta = [], report["effective_beta"]
    outweighs = beta is not None and beta >= 10 and s.reconstruction_reduction == "mean"
    inactive = s.prior == "standard" and report["active_units"] == 0  # active units are defined for N(0, I)
    if beta is not None and not missing and (inactive or report["test_kl"] < UNUSED):
        what = (
            "Posterior collapse: the latents say nothing about the image, so every reconstruction is the same picture."
        )
        lower = s.kl_weight_end > 1 and not outweighs
        found.append(Reason(what, "A lower KL_WEIGHT_END may fix that." if lower else ""))
    if outweighs:
        what = f"The KL outweighs the reconstruction: an effective beta of {beta:,.4g}; the ELBO has 1."
        found.append(Reason(what, "RECONSTRUCTION_REDUCTION = sum fixes it."))
    return found


def trouble_with_objective(s: Settings, report: dict[str, Any], progress: Progress) -> list[Reason]:
    """Whether the objective rose again at the end.

    Every test has the same images and noise, so any rise counts. A rise of the training objective counts only if it is
    larger than its noise, or if the test objective rose too.
    """
    train, test = progress.train.objective, progress.test.objective
    if rose_again(train) and (rose_again(test) or is_no_noise(train)):
        what = "Diverging: the training objective rose again at the end."
        return [Reason(what, "A lower LEARNING_RATE may fix that.")]
    if rose_again(test):
        what = f"Overfitting: the {'held-out' if s.held_out else 'test'} objective rose while that of training did not."
        best = report.get("best")
        kept = best and f"--best takes the weights of epoch {best['epoch']:,}, which are kept."
        return [Reason(what, kept or "Fewer EPOCHS or a smaller network.")]
    return []


def rose_again(values: np.ndarray) -> bool:
    """Whether the last tenth of the objectives (n,) is above their best tenth by more than 2 percent."""
    if len(values) < 2:
        return False
    tenths = in_tenths(values)
    return bool(tenths[-1] - tenths.min() > 0.02 * max(abs(tenths.min()), np.ptp(tenths)))


def is_no_noise(values: np.ndarray) -> bool:
    """Whether the rise of objectives (n,) to their last tenth is more than noise.

    It has to exceed half of the best tenth, or six standard errors. Six, because the best of ten is low by chance too.
    """
    tenths = in_tenths(values)
    rise = tenths[-1] - tenths.min()
    if rise > 0.5 * tenths.min() > 0:
        return True
    return len(values) > 4 and rise > 6 * math.sqrt(2 * len(tenths) / len(values)) * noise_of(values)


def in_tenths(values: np.ndarray) -> np.ndarray:
    """The mean of each tenth of the values (n,); with fewer than ten values, the values themselves."""
    return np.array([part.mean() for part in np.array_split(values, min(10, len(values)))])


def noise_of(values: np.ndarray) -> float:
    """The standard deviation of the noise in values (n,), n > 2, around a smooth curve, from second differences."""
    return float(np.median(abs(np.diff(values, 2))) / (0.6745 * math.sqrt(6)))  # assumes normal noise


# --- not finished -----------------------------------------------------------------------------------------------------
def too_short(s: Settings, progress: Progress) -> list[Reason]:
    """Whether a run ended before it can be judged."""
    ramp, steps = ramp_end(s), progress.steps
    if steps < ramp:
        ended = f"it ended at step {steps:,} of the {ramp:,} that the KL weight takes to reach KL_WEIGHT_END"
        return [Reason(f"{ended}.", "More EPOCHS, or a new run with fewer KL_STEPS.")]
    if max(len(progress.train.end), len(progress.test.end)) < 2:
        lines, there = len(progress.train.end), " at the final KL weight" if ramp else ""
        made = f"{steps - ramp:,} steps{there}, with {lines or 'no'} line{'s' * (lines != 1)} of the history"
        return [Reason(f"{made}, are too few to judge.", "More EPOCHS, or a new run with a smaller LOG_EVERY.")]
    return []


def still_falling(progress: Progress) -> list[Reason]:
    """Whether a run ended while its objective fell by more than 5 percent."""
    what, _, share, when = latest_fall(progress)
    fell = f"the {what} objective still fell by {share:.0%} within {when}."
    return [Reason(fell, "More EPOCHS.")] if share > 0.05 else []


def still_learning(progress: Progress) -> list[Reason]:
    """A remark if the objective fell by more than half a percent at the end, to its best value so far."""
    what, fall, share, when = latest_fall(progress)
    values = (progress.test if what == "test" else progress.train).objective
    if share <= 0.005 or values[-1] > values.min():
        return []
    return [Reason(f"Still learning: the {what} objective fell by {fall:.2g} within {when}.", "More EPOCHS help.")]


def latest_fall(progress: Progress) -> tuple[str, float, float, str]:
    """The latest fall of an objective: its name, the fall, the fall as a share of the objective, and when it was.

    It is the fall of the test objective within the last epoch or, in a run of many short epochs, the last tenth. With
    at most one test, the training objective is used instead. The first third of the run is excluded, because the KL's
    ramp may take that long.
    """
    train, test = progress.train, progress.test
    if len(test.end) > 1:
        since = min(int(np.searchsorted(test.end, 0.9 * progress.steps)), len(test.end) - 2)
        epochs = round((test.end[-1] - test.end[since]) / progress.steps_of_epoch)
        when = "the last epoch" if epochs == 1 else f"the last {epochs:,} epochs"
        return "test", *fall_of(test.objective, test.objective[since], test.objective[-1]), when
    late = train.since(progress.steps // 3)
    late = late if len(late.end) > 1 else train.since(train.begin[-2])
    earlier, later = (half.mean() for half in np.array_split(late.objective, 2))
    if len(late.end) > 4 and earlier - later < 4 * noise_of(late.objective) / math.sqrt(len(late.end)):
        earlier = later  # a fall of up to two standard errors is noise
    return "training", *fall_of(train.objective, earlier, later), f"the last {progress.steps - late.begin[0]:,} steps"


def fall_of(values: np.ndarray, before: float, after: float) -> tuple[float, float]:
    """A fall, and its share of the objective or, if the `values` (n,) reach 0 as a density may, of their range."""
    measure = max(abs(before), abs(after), np.ptp(values) if values.min() <= 0 else 0, 1e-9)
    return float(before - after), float((before - after) / measure)
