"""A VAE that knows two digits sees a third: how fast do the latents adapt, and what happens to the old digits?

    python -m experiments.new_label    # 5 minutes on two cores

Trains a base on two digits. Two trainings start from its weights: one continues with all three digits, one with the new
digit alone. As a control, the first trio has a third training, which continues with the two old digits. Learning rate
and KL weight are constant, so they stay the same; Adam's state starts empty. At many steps the same held-out test
images of the three digits are encoded, to measure:

- the ELBO of the new digit and the change in that of the old ones, in nats per image, from one fixed draw of noise;
- the drift of the old digits' embeddings, after the best rotation or reflection, which does not change N(0, I);
- the distance of each two of the three clouds, in standard deviations along the line between their means. It shows how
  well they can be told apart. The Frechet distance would add differences in width, and grow with the clouds;
- time constants: the steps until 1 - 1/e, 63 percent, of the change up to the last step is made.

Writes new_label.json, new_label_curves.png and new_label.gif to images/.
"""

from functools import cache, partial
from typing import Any

import numpy as np

from experiments.results import publish, shown, summary, table
from experiments.study import Study, Trained, Training, read_command_line, run_study, settings_of, steps_of, train_all

if __name__ == "__main__":
    STUDY = read_command_line("new_label", __doc__)  # before the seconds that TensorFlow takes

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

import main
from experiments import figures
from experiments.latent import align
from utils import mnist
from utils.batches import brightness
from utils.dataset import TEST_BINARIZATION_KEY, Dataset, binarize
from utils.pictures import save_figure, save_gif
from utils.settings import Settings

TOGETHER, ALONE, OLD = "all three", "the new one alone", "the two old ones"  # the digits a training continues with
COLORS = {TOGETHER: "C0", ALONE: "C3", OLD: "0.45"}
COVERED = 1 - 1 / np.e  # the share of a change that is made after one time constant
HELD_OUT = 300  # test images of each digit that are encoded at every watched step

Trio = tuple[int, int, int]  # two old digits and the new one
Watched = dict[int, dict[str, np.ndarray]]  # the result of `embed`, by step
Curves = dict[Trio, dict[str, list[dict[str, np.ndarray]]]]  # the results of `measure`, by trio and way, for each seed


def sizes(study: Study) -> tuple[list[Trio], Trio | None, tuple[int, ...]]:
    """The trios (the figures show the first in detail), the trio with the control or None, and the watched steps."""
    if study.quick:
        return [(1, 7, 8)], None, (0, 1, 10, 30, 100)
    steps = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 75, 100, 125, 150, 200, 250, 300, 400, 500, 700, 850, 1_000)
    return [(1, 7, 8), (3, 5, 8), (4, 9, 0), (0, 6, 2)], (1, 7, 8), steps


# --- trainings --------------------------------------------------------------------------------------------------------
def going_on_with(trio: Trio, control: bool) -> dict[str, tuple[int, ...]]:
    """The labels of the trainings that start from a base."""
    ways = {TOGETHER: trio, ALONE: trio[2:]}
    return ways | {OLD: trio[:2]} if control else ways


def train_trios(study: Study) -> dict[Trio, dict[str, list[Trained]]]:
    """Train from the bases; return the trainings by trio and by the digits they continue with, one per seed."""
    trios, controlled, steps = sizes(study)

    def settings(seed: int, digits: tuple[int, ...], **overrides: Any) -> Settings:
        changed = {"labels": digits, "lr_schedule": "constant", "nll_samples": 0, **overrides}
        of_epochs = partial(settings_of, study, seed=seed, **changed)
        return of_epochs(epochs=-(-steps[-1] // steps_of(of_epochs(epochs=1))))  # the fewest that reach the last step

    kl_steps = steps[-1] // 2  # so that the KL has full weight long before the new digit comes
    bases = {
        (trio, seed): Training(settings(seed, trio[:2], kl_steps=kl_steps)) for trio in trios for seed in study.seeds
    }
    train_all(study, list(bases.values()))  # first, because the next trainings start from their weights
    trainings = {
        (trio, way, seed): Training(
            settings(seed, digits, kl_schedule="constant", start_from=bases[trio, seed].name),
            partial(embed, trio=trio),
            steps,
        )
        for trio in trios
        for way, digits in going_on_with(trio, control=trio == controlled).items()
        for seed in study.seeds
    }
    trained: dict[Trio, dict[str, list[Trained]]] = {trio: {} for trio in trios}
    for (trio, way, _), one in zip(trainings, train_all(study, list(trainings.values())), strict=True):
        trained[trio].setdefault(way, []).append(one)
    return trained


def embed(vae: main.VAE, settings: Settings, dataset: Dataset, trio: Trio) -> dict[str, np.ndarray]:
    """Watch the posteriors (N, L) and the ELBO (N,), in nats, of held-out images of all three digits.

    The images, and the noise for the ELBO, are the same at every step and in every training.
    """
    test_images, labels = held_out(settings.dataset, settings.data_dir, trio)
    x = brightness(test_images)
    z_mean, z_log_std = vae.encoder(x)
    noise = np.random.default_rng(0).standard_normal(z_mean.shape, np.float32)
    reconstruction, kl = (part.numpy() for part in main.loss_terms(vae, x, noise, settings))
    elbo = -(reconstruction + kl.sum(axis=1))
    return {"z_mean": z_mean.numpy(), "z_log_std": z_log_std.numpy(), "elbo": elbo, "labels": labels}


@cache
def held_out(dataset: str, data_dir: str, trio: Trio) -> tuple[np.ndarray, np.ndarray]:
    """The first HELD_OUT test images of each digit, black and white (N, H, W, C), with labels (N,), digit by digit."""
    whole = mnist.load(dataset, data_dir)
    rows = np.concatenate([np.flatnonzero(whole.test_labels == digit)[:HELD_OUT] for digit in trio])
    return binarize(whole.test_images, TEST_BINARIZATION_KEY)[rows], whole.test_labels[rows]


# --- measures ---------------------------------------------------------------------------------------------------------
def drift(before: np.ndarray, after: np.ndarray) -> float:
    """How far points (N, L) have moved: the RMS movement over the RMS distance from the origin before.

    0 means that nothing moved, 1 as much movement as if all points had fallen into the origin.
    """
    return float(np.sqrt(np.square(after - before).sum() / np.square(before).sum()))


def separation(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """The distance of two clouds of posteriors, each given by z_mean and z_log_std (N, L), in standard deviations.

    A cloud is the mixture of its posteriors. The result is the distance of the two means over the standard deviation
    along the line between them (the root of the mean of the two variances). Cut two normal clouds of the same shape at
    a distance d in the middle: each has a share Phi(-d/2) on the wrong side, 16 percent for 2 and 2 percent for 4.
    """
    line = a[0].mean(axis=0, dtype=np.float64) - b[0].mean(axis=0, dtype=np.float64)  # (L,)
    if not line.any():
        return 0.0
    along = line / np.linalg.norm(line)
    variances = [(z_mean @ along).var() + (np.exp(2 * z_log_std) @ along**2).mean() for z_mean, z_log_std in (a, b)]
    return float(np.linalg.norm(line) / np.sqrt(np.mean(variances)))


def time_constant(steps: np.ndarray, values: np.ndarray) -> float:
    """Steps until COVERED of the change from the first value to the last is made, interpolated linearly."""
    covered = (np.asarray(values) - values[0]) / (values[-1] - values[0])
    there = int(np.argmax(covered >= COVERED))
    return float(np.interp(COVERED, covered[there - 1 : there + 1], steps[there - 1 : there + 1]))


def pairs(trio: Trio) -> list[tuple[int, int]]:
    """The two old digits, then each of them with the new one."""
    first, second, new = trio
    return [(first, second), (first, new), (second, new)]


def measure(watched: Watched, trio: Trio) -> dict[str, np.ndarray]:
    """The measures at each watched step, (T,) each; the distances of the three pairs of clouds are (3, T)."""
    start, labels = watched[0], watched[0]["labels"]
    old, new = labels != trio[2], labels == trio[2]

    def cloud(at: dict[str, np.ndarray], digit: int) -> tuple[np.ndarray, np.ndarray]:
        return at["z_mean"][labels == digit], at["z_log_std"][labels == digit]

    before, moments = start["z_mean"][old], watched.values()
    return {
        "new_elbo": np.array([at["elbo"][new].mean() for at in moments]),
        "old_change": np.array([(at["elbo"] - start["elbo"])[old].mean() for at in moments]),
        "drift": np.array([drift(before, align(at["z_mean"][old], before)) for at in moments]),
        "drift_with_turn": np.array([drift(before, at["z_mean"][old]) for at in moments]),
        "distances": np.array([[separation(cloud(at, a), cloud(at, b)) for at in moments] for a, b in pairs(trio)]),
    }


def summarise(steps: np.ndarray, curves: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The numbers of a trio and a way of continuing, summarised over seeds, with their mean curves."""
    return {
        "new_elbo_before": summary(c["new_elbo"][0] for c in curves),
        "new_elbo_after": summary(c["new_elbo"][-1] for c in curves),
        "new_elbo_steps": summary(time_constant(steps, c["new_elbo"]) for c in curves),
        "old_change_at_worst": summary(c["old_change"].min() for c in curves),
        "old_change_after": summary(c["old_change"][-1] for c in curves),
        "drift_after": summary(c["drift"][-1] for c in curves),
        "drift_with_turn_after": summary(c["drift_with_turn"][-1] for c in curves),
        "drift_steps": summary(time_constant(steps, c["drift"]) for c in curves),
        "new_distance_before": summary(c["distances"][1:, 0].min() for c in curves),  # to the nearer of the old two
        "new_distance_after": summary(c["distances"][1:, -1].min() for c in curves),
        "curves": {name: np.mean([c[name] for c in curves], axis=0).tolist() for name in curves[0]},
    }


# --- pictures ---------------------------------------------------------------------------------------------------------
def save_curves(study: Study, steps: np.ndarray, curves: Curves) -> None:
    """Draw every measure over steps: the first trio with its spread over seeds, the others as thin lines."""
    figure = Figure(figsize=(10, 11), layout="constrained")
    panels = figure.subplots(3, 2)
    (first, main_curves), *others = curves.items()
    titles = {
        "new_elbo": "ELBO of the new digit (nats per image)",
        "old_change": "change in the old digits' ELBO (nats per image)",
        "drift": "drift of the old digits' embeddings",
    }
    for axes, (name, title) in zip(panels.flat, titles.items(), strict=False):
        for _, ways in others:
            for way, seeds in ways.items():
                axes.plot(steps, np.mean([c[name] for c in seeds], axis=0), color=COLORS[way], linewidth=0.7, alpha=0.7)
        for way, seeds in main_curves.items():
            figures.draw_spread(axes, steps, np.array([c[name] for c in seeds]), f"on with {way}", COLORS[way])
        axes.set_title(title, fontsize=10)
    panels[0, 0].legend(fontsize=8)
    panels[1, 0].set_ylabel("RMS way / RMS distance from origin")
    draw_time_constants(panels[1, 1], steps, curves)
    for axes, way in zip(panels[2], (TOGETHER, ALONE), strict=True):
        for number, (a, b) in enumerate(pairs(first)):
            distances = np.array([c["distances"][number] for c in main_curves[way]])
            figures.draw_spread(axes, steps, distances, f"{a} and {b}", f"C{number + 4}")
        axes.set_title(f"distance of the clouds, on with {way}", fontsize=10)
        axes.set_ylabel("standard deviations")
        axes.set_ylim(0, 1.05 * max(c["distances"].max() for seeds in main_curves.values() for c in seeds))
        axes.legend(fontsize=8)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        if axes is not panels[1, 1]:
            axes.set_xscale("symlog", linthresh=1)  # shows step 0 too
            axes.set_xlim(-0.2, 1.2 * steps[-1])
            axes.set_xlabel("steps since the new digit came")
    others_told = f"; thin: {', '.join(named(trio) for trio, _ in others)}" if others else ""
    repeated = f", mean and range over {len(study.seeds)} seeds" if len(study.seeds) > 1 else ""
    figure.suptitle(f"{named(first)}{repeated}{others_told}", fontsize=11)
    save_figure(study.images / "new_label_curves.png", figure)


def draw_time_constants(axes: Axes, steps: np.ndarray, curves: Curves) -> None:
    """Draw two marks for each training: the time constants of the new digit's ELBO and of the old digits' drift."""
    for place, ways in enumerate(curves.values()):
        for way in (TOGETHER, ALONE):
            for name, marker, shift in (("new_elbo", "o", -0.12), ("drift", "^", 0.12)):
                times = [time_constant(steps, c[name]) for c in ways[way]]
                what = {"new_elbo": "new ELBO", "drift": "old drift"}[name]
                label = f"{what}, on with {way}" if place == 0 else None
                style = {"color": COLORS[way], "alpha": 0.8, "linestyle": "none", "label": label}
                axes.plot([place + shift] * len(times), times, marker, **style)
    axes.set_xticks(range(len(curves)), [named(trio) for trio in curves], fontsize=8)
    axes.set(yscale="log", ylabel="steps", xlim=(-0.6, len(curves) - 0.4))
    axes.set_ylim(top=4 * axes.get_ylim()[1])  # room for the legend
    axes.set_title("time constants: steps until 63 % of the change is made", fontsize=10)
    axes.legend(fontsize=7)


def named(trio: Trio) -> str:
    """The name of a trio, such as "1, 7 + 8"."""
    return f"{trio[0]}, {trio[1]} + {trio[2]}"


def save_film(study: Study, trio: Trio, together: Watched, alone: Watched) -> None:
    """Write a film of the latent space for both ways of continuing, in the same plane.

    The plane has the two largest principal components of the 3 x HELD_OUT posterior means at the last step of the
    first way.
    """
    last = max(together)
    plane = PCA(2).fit(together[last]["z_mean"])
    places = {
        way: {step: plane.transform(at["z_mean"]) for step, at in watched.items()}
        for way, watched in ((TOGETHER, together), (ALONE, alone))
    }
    reach = 1.05 * max(np.abs(points).max() for frames in places.values() for points in frames.values())
    folder = study.trainings / "frames-new_label"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{step:05}.png" for step in together]
    for step, path in zip(together, paths, strict=True):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        for axes, (way, frames) in zip(figure.subplots(1, 2), places.items(), strict=True):
            for digit, color in zip(trio, ("C0", "C2", "C3"), strict=True):
                shown_points = frames[step][together[step]["labels"] == digit]
                axes.scatter(*shown_points.T, s=5, color=color, label=f"{digit}{' (new)' * (digit == trio[2])}")
            axes.set_title(f"on with {way}", fontsize=10)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            axes.set(xlabel="first principal component", ylabel="second")
        figure.axes[0].legend(fontsize=8, loc="upper left")
        figure.suptitle(f"step {step:,} of {last:,}", fontsize=11)
        save_figure(path, figure)
    save_gif(study.images / "new_label.gif", paths, milliseconds=350)


# --- the experiment ---------------------------------------------------------------------------------------------------
def run(study: Study) -> None:
    """Train, measure, draw and publish."""
    trained = train_trios(study)
    trios, _, watch_at = sizes(study)
    steps = np.array(watch_at)
    curves = {
        trio: {way: [measure(one.watched(), trio) for one in seeds] for way, seeds in ways.items()}
        for trio, ways in trained.items()
    }
    numbers = {
        named(trio): {way: summarise(steps, seeds) for way, seeds in ways.items()} for trio, ways in curves.items()
    }
    overall = {  # over seeds and trios
        way: {
            name: summary(value for ways in numbers.values() for value in ways[way][name]["values"])
            for name in ("new_elbo_steps", "drift_steps", "old_change_after", "drift_after", "drift_with_turn_after")
        }
        for way in (TOGETHER, ALONE)
    }
    save_curves(study, steps, curves)
    save_film(study, trios[0], *(trained[trios[0]][way][0].watched() for way in (TOGETHER, ALONE)))
    publish(
        study,
        {"steps": list(watch_at), "trios": numbers, "over_seeds_and_trios": overall},
        {"new_label": table_of(numbers, overall)},
    )


def table_of(numbers: dict[str, Any], overall: dict[str, Any]) -> str:
    """A row for each trio and way of continuing, then one for each way over all trios and seeds."""
    headers = (
        "old + new digit", "on with", "new digit's ELBO before", "after", "time constant (steps)",
        "old digits' ELBO, change at worst", "at the end", "their drift", "time constant (steps)",
    )  # fmt: skip
    rows = [
        (
            trio,
            way,
            *(shown(n[name]) for name in ("new_elbo_before", "new_elbo_after")),
            "" if way == OLD else shown(n["new_elbo_steps"], 0),  # there is nothing new to learn
            *(shown(n[name]) for name in ("old_change_at_worst", "old_change_after")),
            shown(n["drift_after"], 2),
            shown(n["drift_steps"], 0),
        )
        for trio, ways in numbers.items()
        for way, n in ways.items()
    ]
    for way, n in overall.items():
        after, drifted = shown(n["old_change_after"]), shown(n["drift_after"], 2)
        times = [shown(n[name], 0) for name in ("new_elbo_steps", "drift_steps")]
        rows.append(("all trios", way, "", "", times[0], "", after, drifted, times[1]))
    return table(headers, rows)


if __name__ == "__main__":
    raise SystemExit(run_study(STUDY, run))
