"""Record a run while it trains: its folder, history, pictures, checkpoints, timing, signals and several workers.

main.py's loop calls a Recorder. All workers call its methods in the same order, because each waits for the others.
Only the chief reads and writes files.
"""

import contextlib
import json
import os
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils import batches, best, checkpoints, evaluation, explore, history, known, pictures, report, runs, workers
from utils.console import TO_LOWER, OutOfMemory, Problem, Say, Stopped, handled, is_out_of_memory, stops
from utils.dataset import BadImage, DataError, Dataset, LazyImages
from utils.files import remove_unfinished, write_json
from utils.settings import Command, Settings, SettingsError, load_saved, unread_notes, with_kl_steps
from utils.start import HAS_GPU, tf, xla_pays

Watch = Callable[[Any, int], None]
FIRST_STEPS = 200  # a run that diverges in these steps has too high a learning rate
PLACES = ("data_dir", "output_dir", "run_name", "start_from")  # settings that may differ between machines


# --- which run: the same for all workers ------------------------------------------------------------------------------
@contextlib.contextmanager
def together(command: Command) -> Iterator[tuple[Settings, Path | None, Say, workers.Workers]]:
    """Join the workers that TF_CONFIG names; without it, train alone.

    Yields the settings, the folder of the run to continue or None, a function that prints a line on the chief only, and
    the workers. Raises SettingsError, runs.RunError and WorkerLost.
    """
    crew = workers.start(workers.read_tf_config(os.environ))
    with workers.losses_told(crew), crew.scope(), tempfile.TemporaryDirectory() as scratch:
        settings, folder = agree_on_run(command, crew, Path(scratch))
        if not crew.is_chief:
            print(f"worker     {crew.index} of {crew.count - 1}; the chief, {crew.addresses[0]}, reports how it goes")
        elif crew.count > 1:
            print("note       anyone who reaches a worker's port can use files as its user: use a trusted network")
        yield settings, folder, print if crew.is_chief else lambda line: None, crew


def agree_on_run(command: Command, crew: workers.Workers, scratch: Path) -> tuple[Settings, Path | None]:
    """The settings to train with, and the folder of the run to continue, if any. All workers get those of the chief.

    Only the chief has the run; any other worker gets the folder `scratch`. Raises SettingsError and runs.RunError.
    """
    settings, folder = command.settings, None
    horizon, images = settings.epochs, {}
    with workers.all_or_none(crew):
        if crew.is_chief:
            settings, folder = runs.asked_for(command, print)
            horizon = runs.read_params(folder)["schedule_epochs"] if folder else settings.epochs
            images = known.for_others(folder) if crew.count > 1 else {}
        workers.check_batch_size(settings.batch_size, settings.free_bits, crew.replicas)
    about = {"settings": settings.model_dump(mode="json"), "schedule_epochs": horizon} | images
    told = json.loads(workers.broadcast_text(crew, json.dumps(about)))
    with workers.all_or_none(crew):
        chiefs = settings if crew.is_chief else load_saved(told["settings"], print)
        for name, here in settings:
            there = getattr(chiefs, name)
            if command.resume is None and name not in PLACES and here != there:
                raise SettingsError(
                    f"{name}: {here!r} here, but {there!r} on the chief; all workers need the same value"
                )
    if crew.is_chief:
        return settings, folder
    known.from_chief(scratch, told)
    write_json(scratch / "params.json", told)
    return chiefs.model_copy(update={"data_dir": settings.data_dir, "output_dir": settings.output_dir}), scratch


# --- a run that is recorded -------------------------------------------------------------------------------------------
@contextlib.contextmanager
def recording(
    vae: Any,
    s: Settings,
    dataset: Dataset,
    folder: Path | None,
    say: Say,
    watch: Watch | None,
    watch_at: Collection[int],
    crew: workers.Workers,
) -> Iterator["Recorder"]:
    """Record a run in `folder`, or in a new one. Print what is trained and, if it is stopped, how to go on.

    The parameters are those of main.train. Raises SettingsError, RunError, and DataError for an image that cannot be
    read.
    """
    if crew.is_chief and runs.starts_from_another(s, folder):
        checkpoints.start_from(s, vae, say)
    device = f"{crew.replicas} x " * (crew.replicas > 1) + ("GPU" if HAS_GPU else "CPU")
    device += " with XLA" if xla_pays(vae.encoder, vae.decoder) else " without XLA"
    save = partial(known.save, found=dataset.record)
    folder = folder or runs.create(s, device, dataset.train_images.shape[1:], dataset.details, save)
    save(folder)  # for a run that began before runs saved this
    run = Recorder(vae, s, dataset, folder, say, watch, watch_at, crew)
    say(report.header(run.s, dataset, device, folder))
    for doubt in report.doubts(run.s, run.last_step, dataset.train_images.shape[-1]):
        say(f"note       {doubt}")
    for note in unread_notes():
        say(note)
    go_on = resume_command(folder, s)
    with runs.locked(folder, say):
        try:
            with workers.losses_told(crew):
                yield run
                workers.agree(crew, True)  # wait, because a worker that ends first would seem lost
        except (Stopped, KeyboardInterrupt, workers.WorkerLost):
            say(f"\nstopped    go on{', on all workers,' * (crew.count > 1)} with: {go_on}")
            raise
        except BadImage as error:
            raise DataError(f"{error}; to use the next image instead: {go_on} --skip-bad-images") from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            steps = runs.saved_steps(folder)
            left = "there is no checkpoint yet"
            if steps:
                left = f"the checkpoint of step {steps[-1]:,} is good; where there is more memory, go on with: {go_on}"
            raise OutOfMemory(f"out of memory after step {run.step:,}; {TO_LOWER}; {left}") from None
    say(pictures.look_at(folder))
    if page := explore.link(folder):
        say(page)
    if run.stopped:
        say(f"\nstopped    without the log-likelihood; estimate it with: {go_on}")
        raise run.stopped


def resume_command(folder: Path, s: Settings) -> str:
    """The command that goes on with the run in `folder`; it works from any working directory."""
    words = ["python", str(runs.REPOSITORY / "main.py"), "--resume", str(folder.absolute())]
    place = Path(s.data_dir).expanduser()
    return shlex.join(words if place.is_absolute() else [*words, "--data-dir", str(place.absolute())])


class Recorder:
    """A run while it trains. `step` counts the steps so far; `s` has KL_STEPS as a number.

    The order of calls: `training` (a block); inside it `compile`; then, for each of `batches`, repeat `next_stop`,
    `advance`, `write_train_line`, `write_test_line` if `test_is_due`, `write_pictures`, `save`.
    """

    def __init__(
        self, vae: Any, s: Settings, dataset: Dataset, folder: Path, say: Say,
        watch: Watch | None = None, watch_at: Collection[int] = (), crew: workers.Workers = workers.ALONE,
    ):  # fmt: skip
        """Change no file yet; the parameters are those of main.train."""
        self.vae, self.dataset, self.folder, self.say, self.crew = vae, dataset, folder, say, crew
        self.watch, self.watch_at = watch, watch_at
        self.steps_per_epoch = len(dataset.train_images) // s.batch_size
        self.last_step = s.epochs * self.steps_per_epoch
        self.horizon = runs.read_params(folder)["schedule_epochs"] * self.steps_per_epoch
        self.s = with_kl_steps(s, self.horizon)
        self.film_steps = pictures.film_steps(self.steps_per_epoch, dataset.train_images.shape[1:])
        self.step = self.line_due = self.save_due = 0
        self.terms = tf.zeros(3)  # of the last step
        self.tested: dict[str, Any] | None = None  # the newest test line
        self.best: dict[str, Any] | None = None  # the best one, with HELD_OUT
        self.stopped: BaseException | None = None  # Ctrl-C or SIGTERM, while the log-likelihood was estimated
        # For the next line of the history: the sum of its terms, the step and time of its start, and the wait for data.
        self.sums_so_far, self.start = tf.Variable(tf.zeros(3)), tf.Variable(0)
        self.last_line, self.clock, self.waited = 0, 0.0, 0.0
        self.called, self.steps_in_two_seconds = 0.0, 1
        self.in_a_step = False  # when the weights may be partly updated

    @contextlib.contextmanager
    def training(self, optimizer: Any) -> Iterator[None]:
        """Within the block a run is trained, from the newest checkpoint if there is one. Raises RunError and OSError.

        Ctrl-C takes effect at `save`. If an image cannot be read, or memory runs out outside a step, a checkpoint is
        saved first.
        """
        s, crew, folder = self.s, self.crew, self.folder
        self.checkpoint = checkpoints.checkpoint(self.vae, optimizer=optimizer, sums=self.sums_so_far, start=self.start)
        for place in (folder, folder / "film", folder / "checkpoints", folder / "tensorboard"):
            remove_unfinished(place)
        checkpoints.restore(self.checkpoint, folder, self.say)
        workers.broadcast(crew, [*self.vae.weights, *optimizer.variables, self.sums_so_far, self.start])
        self.step = int(optimizer.iterations.numpy())
        history.cut_back(folder, self.step, self.say, logged=int(self.start.numpy()))
        checkpoints.drop_best_after(folder, self.step)
        lines = runs.read_history(folder)
        self.tested = next((line for line in reversed(lines) if line["split"] == "test"), None)
        self.best = best.best_of(s, lines)
        runs.note_changes(folder, s)
        if self.last_step > self.horizon and s.lr_schedule == "cosine":
            ends = self.horizon // self.steps_per_epoch
            told = f"the learning rate's cosine ends with epoch {ends}, as saved; later it stays a hundredth"
            self.say(f"note       {told}")
        with (
            history.event_writer(folder, "train") as train_events,
            history.event_writer(folder, "test") as test_events,
            deferred_signals() as self.signals,
            report.progress_bar(self.last_step, self.step, shown=crew.is_chief) as self.bar,
            contextlib.closing(batches.of_run(self.dataset.train_images, s, self.step, crew)) as self.coming,
        ):
            self.events = {"train": train_events, "test": test_events}
            try:
                yield
            except Exception as error:
                bad_image = isinstance(error, BadImage)  # in a batch or in a test
                if bad_image or (self.step and not self.in_a_step and is_out_of_memory(error)):
                    checkpoints.save(self.checkpoint, self.folder, self.step)
                raise
            self.leave_if_stopped()  # by a signal since the last `save`

    @property
    def sums(self) -> tf.Tensor:
        """The sums (3,) of the terms since the last line of the history."""
        return self.sums_so_far.value()

    @property
    def epoch(self) -> int:
        """The number of the epoch that the last step belongs to; 0 before the first step."""
        return -(-self.step // self.steps_per_epoch)

    @property
    def test_is_due(self) -> bool:
        """Whether the last step ended an epoch that has no test line yet, and this is the chief, which tests."""
        is_new = self.step > (self.tested["step"] if self.tested else 0)
        return is_new and self.step % self.steps_per_epoch == 0 and self.crew.is_chief

    def compile(self, train_steps: Callable) -> None:
        """Compile train_steps by a call for no steps, so that no speed includes compiling; start the clock."""
        images, s = self.dataset.train_images, self.s
        if self.step < self.last_step:
            shape = batches.steps_at_once(images, s), s.batch_size // self.crew.count, *images.shape[1:]
            train_steps(tf.zeros(shape, tf.uint8), *map(tf.constant, (0, 0, 0)), self.sums)
        self.last_line, self.clock, self.waited = self.step, time.perf_counter(), 0.0

    def batches(self) -> Iterator[tuple[int, int, tf.Tensor]]:
        """The items of batches.of_run for the remaining steps; the time spent waiting for them is counted."""
        while self.step < self.last_step:
            asked = time.perf_counter()
            coming = next(self.coming)
            self.waited += time.perf_counter() - asked
            yield coming

    def next_stop(self, end: int) -> int:
        """The step to stop before: the next line, checkpoint, watched step or film frame, or the end of the batches.

        A single worker stops about every two seconds, so that the bar moves and Ctrl-C is noticed. This does not
        change what is learned. Several workers have to stop at the same steps, whatever their speed.
        """
        every = self.s.log_every, self.s.checkpoint_every
        self.line_due, self.save_due = ((self.step // steps + 1) * steps for steps in every)
        seen = (due for due in (*self.watch_at, *self.film_steps) if due > self.step)
        self.called, self.in_a_step = time.perf_counter(), True
        soon = self.step + self.steps_in_two_seconds if self.crew.count == 1 else end
        return min(self.line_due, self.save_due, end, soon, *seen)

    def advance(self, sums: tf.Tensor, terms: tf.Tensor, step: tf.Tensor) -> None:
        """Store what train_steps returned; Python waits here, once for many steps. Raises Diverged."""
        made, self.step, self.in_a_step = int(step) - self.step, int(step), False
        seconds = max(time.perf_counter() - self.called, 1e-6)
        self.steps_in_two_seconds = max(1, int(2 * made / seconds))
        self.sums_so_far.assign(sums)
        self.terms = terms
        check_terms(terms, self.step, self.folder, self.s)

    def call_watch(self) -> None:
        """Call `watch` with the VAE if it watches this step."""
        if self.step in self.watch_at:
            self.watch(self.vae, self.step)

    # --- what is reported ---------------------------------------------------------------------------------------------
    def write_train_line(self, weight: Callable[[tf.Tensor], tf.Tensor]) -> None:
        """Write a training line of the history if one is due, and bring the bar up to this step.

        The line has means over the steps since the line before, also of the KL `weight`, steps (n,) -> weights (n,).
        Its images per second count all time since then, including tests, pictures and checkpoints.
        """
        line = None
        if self.step in (self.line_due, self.last_step):
            steps = tf.range(self.start, self.step)
            line = self._line("train", self.sums / len(steps), np.mean(weight(steps), dtype=float))
            now = time.perf_counter()
            line["images_per_second"] = round((self.step - self.last_line) * self.s.batch_size / (now - self.clock))
            if isinstance(self.dataset.train_images, LazyImages):
                line["waiting"] = round(self.waited / (now - self.clock), 3)
            history.write_line(self.folder, self.events, line)
            self.sums_so_far.assign(tf.zeros(3))
            self.start.assign(self.step)
            self.last_line, self.clock, self.waited = self.step, now, 0.0
        report.show_progress(self.bar, self.step, self.epoch, self.s.epochs, line)

    def write_test_line(self, terms: tf.Tensor, z_mean: np.ndarray, weight: tf.Tensor) -> None:
        """Write a test line of the history, and save the weights if they are the best so far.

        `z_mean` (N, L) is of the test images. Raises Diverged.
        """
        check_terms(terms, self.step, self.folder, self.s)
        active = None if self.s.autoencoder else report.active_units(z_mean)
        self.tested = self._line("test", terms, weight) | {"active_units": active}
        history.write_line(self.folder, self.events, self.tested)
        self.best = best.best_of(self.s, [self.best, self.tested] if self.best else [self.tested])
        if self.best and self.best["step"] == self.step:
            check_weights(self.vae.weights, self.step, self.folder, self.s)
            checkpoints.save_best(self.vae, self.folder, self.step)

    def write_pictures(self, draw: Callable[[str], np.ndarray]) -> None:
        """Write the pictures that are due; draw(name) returns a grid.

        All grids are due at the start, with the test of every IMAGES_EVERY epochs, and at the end. Within the first
        epoch a frame of the film is due after steps 1, 2, 4, 8, ...
        """
        names = pictures.names_of(self.s)
        is_tested = self.tested["step"] == self.step if self.tested else self.step == 0 and self.crew.is_chief
        if is_tested and (self.epoch % self.s.images_every == 0 or self.step == self.last_step):
            grids = {name: draw(name) for name in names}
            pictures.write_grids(self.folder, self.s, grids, self.epoch, self.tested)
            history.write_images(self.folder, self.events, self.step, grids)
            if self.step == 0:
                self.call_watch()
        elif self.step in self.film_steps and self.crew.is_chief:
            line = self._line("train", self.terms, 0.0)  # only its ELBO is shown, which does not depend on the weight
            pictures.write_frame(self.folder, self.s, names[0], draw(names[0]), line)

    def _line(self, split: str, terms: tf.Tensor, weight: Any) -> dict[str, Any]:
        weight, name = None if self.s.autoencoder else weight, report.sum_name(self.s)
        return history.history_line(split, self.step, self.steps_per_epoch, terms, weight, name)

    # --- what is saved ------------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Call `watch` if this step is watched, and save a checkpoint if one is due or the run is to stop.

        Raises Stopped, after the checkpoint is saved, and Diverged.
        """
        self.call_watch()
        stopped = workers.agree(self.crew, bool(self.signals))
        if stopped or self.step in (self.save_due, self.last_step):
            check_weights(self.vae.weights, self.step, self.folder, self.s)
            if self.crew.is_chief:
                checkpoints.save(self.checkpoint, self.folder, self.step)
        if stopped:
            self.leave_if_stopped()  # no worker leaves before the chief has saved

    def leave_if_stopped(self) -> None:
        """Raise Stopped if any worker was asked to end."""
        if workers.agree(self.crew, bool(self.signals)):
            raise Stopped(self.signals[0] if self.signals else signal.SIGTERM)

    def judge(self, evaluate: Callable, reconstruction_loss: Callable, decode: Callable) -> None:
        """Test the trained model, write its report and pictures, and print the report (evaluation.judge).

        The estimate of the log-likelihood may take long. The first Ctrl-C or SIGTERM ends only this estimate, is stored
        in `stopped`, and the report lacks the log-likelihood. A second one ends everything at once. A finished run
        keeps only its last checkpoint.
        """
        if not self.crew.is_chief:
            return
        images, estimates = self.dataset.test_images, None
        self.say(f"testing    {len(images):,} images that it has not been trained on")
        try:
            if evaluation.has_log_likelihood(self.s):
                estimates = evaluation.estimate_log_likelihood(self.vae, self.s, images, reconstruction_loss)
        except (KeyboardInterrupt, Stopped) as stopped:
            self.stopped = stopped
            self.say("\nstopping   the log-likelihood is left out; report and pictures follow")
        judged = evaluation.judge(self.vae, self.s, self.dataset, self.folder, evaluate, estimates, decode, self.say)
        history.write_likelihood(self.folder, self.step, judged)
        self.say(report.table(judged))
        if skipped := report.skipped(self.dataset):
            self.say(skipped)
        checkpoints.keep_newest(self.folder)


# --- what ends a training ---------------------------------------------------------------------------------------------
def check_terms(terms: tf.Tensor, step: int, folder: Path, s: Settings) -> None:
    """Raise Diverged if objective, reconstruction loss or KL, in this order (3,), is NaN or infinite."""
    named = zip(("objective", "reconstruction", "kl"), terms.numpy(), strict=True)
    if broken := [f"{name} is {value}" for name, value in named if not np.isfinite(value)]:
        raise diverged(step, ", ".join(broken), folder, s)


def check_weights(weights: Iterable[Any], step: int, folder: Path, s: Settings) -> None:
    """Raise Diverged if a weight is NaN or infinite."""
    if broken := [weight.path for weight in weights if not tf.reduce_all(tf.math.is_finite(weight))]:
        raise diverged(step, f"{broken[0]} has weights that are not finite", folder, s)


class Diverged(Problem):
    """Training broke at a step; its text says how, and which checkpoint is left."""


def diverged(step: int, what: str, folder: Path, s: Settings) -> Diverged:
    """The error for `what` happened in a step of the run in `folder`.

    GRADIENT_CLIP shortens a single steep gradient, which can end a sound training. It is not advised in the first
    steps. There the step length of Adam is LEARNING_RATE, however steep the gradient, and clipped runs diverged too.
    """
    steps = runs.saved_steps(folder)
    left = f"the checkpoint of step {steps[-1]:,} is good" if steps else "there is no checkpoint yet"
    advice = f"start a new run with LEARNING_RATE = {lower_rate(s.learning_rate):g} (it is {s.learning_rate:g})"
    if step > FIRST_STEPS:
        lower, now = (s.gradient_clip / 4, f"{s.gradient_clip:g}") if s.gradient_clip else (5, "off")
        advice += f" or GRADIENT_CLIP = {lower:g} (it is {now})"
    return Diverged(f"diverged in step {step:,}: {what}; {left}; {advice}")


def lower_rate(rate: float) -> float:
    """A learning rate at which a run that diverged at `rate` probably trains: a third, to one digit, at most 0.003."""
    return float(f"{min(0.003, rate / 3):.0e}")


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Within the block the first two of Ctrl-C, SIGTERM or SIGHUP only add their numbers to the list.

    The loop reads the list where it is safe, saves a checkpoint and ends. A third signal raises Stopped at once.
    If the list is not empty at the end of the block, Stopped is raised then. Only the main thread receives signals; in
    any other thread the list stays empty.
    """
    asked: list[int] = []
    stop = stops()

    def note(number: int, frame: Any) -> None:
        if len(asked) < 2:
            asked.append(number)
        else:
            stop(number, frame)

    with handled(note) if threading.current_thread() is threading.main_thread() else contextlib.nullcontext():
        yield asked
    if asked:
        raise Stopped(asked[0])
