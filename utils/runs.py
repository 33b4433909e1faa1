"""One run's folder: its name, its settings and its history, and which run another one goes on from.

params.json     every setting, those that nothing read, the git commit, versions and device
history.jsonl   a line per LOG_EVERY steps (split = train) and per epoch (split = test): utils/history.py
checkpoints/    the last three, each whole or not there, of a finished run the last one, and with HELD_OUT the best:
                utils/checkpoints.py, utils/best.py
film/           frames of the first epoch: utils/pictures.py
tensorboard/    event files of training (train/) and of tests (test/), with them grids and the projector's data
"""

import contextlib
import datetime
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.console import Problem, Say, shown
from utils.files import why_no_folder, write_json
from utils.settings import BEFORE, Command, Settings, SettingsError, load_saved, read_constants, resumed, unread

PACKAGES = ("tensorflow", "keras", "numpy")  # whose versions params.json notes
LONGEST_NAME = 80
MOST_EPOCHS = 10**6  # of a run
PATHS = ("data_dir", "start_from")  # of which a name has the last part
NOT_IN_NAMES = frozenset({"run_name", "output_dir", "log_every", "images_every", "checkpoint_every"})  # same training
REPOSITORY = Path(__file__).resolve().parent.parent
WEIGHTS_DEPEND_ON = (  # settings that two runs must share for one to start from the other's weights ...
    "architecture", "encoder_layers", "decoder_layers", "activation", "latent_dim", "noise_dim", "decoder_scale",
    "prior",
)  # fmt: skip
DEPEND_ON_MORE = {  # ... and these, by their architecture and by their prior
    "conv": ("channels",), "resnet": ("channels", "residual_blocks"),
    "vampprior": ("prior_components",), "mixture": ("prior_components",), "realnvp": ("prior_layers", "prior_units"),
}  # fmt: skip


class RunError(Problem):
    """Something about a run's folder that the user has to know."""

    exit_code = 2


# --- the folder -------------------------------------------------------------------------------------------------------
def derived_name(settings: Settings) -> str:
    """A run's name when the user gives none, made of what most tells runs apart, e.g. mnist-ce-z20."""
    scale = "-learned" if settings.decoder_scale == "learned" and settings.loss != "logistic" else ""
    kind = "-ae" if settings.autoencoder else ""
    labels = f"-{'_'.join(map(str, settings.labels))}" if settings.labels else ""
    labels = f"-{len(settings.labels)}labels" if len(labels) > LONGEST_NAME // 2 else labels
    noise = f"-noise{settings.noise_dim}" if settings.noise_dim else ""
    prior = f"-{settings.prior}" if settings.prior != "standard" else ""
    bound = f"-{settings.bound}{settings.bound_samples}" if settings.bound != "elbo" else ""
    network = f"-{settings.architecture}" if settings.architecture != "mlp" else ""
    model = f"{settings.loss}{scale}{kind}{network}-z{settings.latent_dim}{noise}{prior}{bound}"
    return plain_text(f"{settings.dataset}{labels}-{model}")[:LONGEST_NAME]  # of a dataset as in tfds:cifar10


def plain_text(text: str) -> str:
    """A text of letters, digits, "_", "-" and "." only."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)


def names_for(settings: Settings, parent: Path) -> Iterator[str]:
    """The names that a new run in the folder `parent` may have, best first, of at most 80 characters each.

    RUN_NAME alone, or those from the derived name.
    """
    if settings.run_name:
        yield settings.run_name
    else:
        yield from names_from(derived_name(settings), settings, parent)


def names_from(plain: str, settings: Settings, parent: Path) -> Iterator[str]:
    """A name, then others for where it is taken: with the settings in which the run differs from the one that has it,
    as in mnist-ce-z20-kl_weight_end4-seed1; then with a number, -2, -3, ...
    """
    yield plain
    yield (name := with_settings(plain, differences(settings, parent / plain)))
    yield from (f"{name}-{number}" for number in itertools.count(2))


def with_settings(plain: str, changed: dict[str, Any]) -> str:
    """A name with settings, by their names, behind it, and room for a number behind them.

    Where they take too much room, each of their words has four letters; where even then, it counts those left out.
    """
    room = LONGEST_NAME - len("-999")
    parts = [difference(name, value) for name, value in changed.items()]
    if len("-".join([plain, *parts])) > room:
        parts = [difference("_".join(word[:4] for word in name.split("_")), value) for name, value in changed.items()]
    name = "-".join([plain, *parts])
    if len(name) > room:
        room -= len("-and99more")
        name, left_out = plain[:room], 0
        for part in parts:
            fits = len(name) + len(part) < room
            name, left_out = (f"{name}-{part}", left_out) if fits else (name, left_out + 1)
        name += f"-and{left_out}more"
    return name


def differences(settings: Settings, folder: Path) -> dict[str, Any]:
    """The settings in which a run differs from that of `folder`, by name; none if that is no run.

    What that run was saved without counts as in settings.load_saved.
    """
    try:
        saved = read_params(folder)["settings"]
    except RunError:
        return {}
    before = {name: constant.value for name, constant in read_constants().items()} | BEFORE | saved
    before = {name: tuple(value) if isinstance(value, list) else value for name, value in before.items()}
    changed = {name: now for name, now in that_count(settings).items() if now != before.get(name)}
    return {name: Path(now).name if name in PATHS else now for name, now in changed.items()}


def that_count(settings: Settings) -> dict[str, Any]:
    """The settings, by name, that have a part in what a run learns, and so tell it from others."""
    without = NOT_IN_NAMES.union(unread(), () if settings.dataset in ("celeba", "folder", "arrays") else ("data_dir",))
    return {name: value for name, value in settings if name not in without}


def difference(name: str, value: Any) -> str:
    """A setting as a part of a name: kl_weight_end4, encoder_layers500_300, kl_schedule_sigmoid, no_autoencoder."""
    if value is True:
        return name
    if value is None or value is False or value in ("", ()):
        return f"no_{name}"
    if isinstance(value, str):
        return plain_text(f"{name}_{value}")
    if isinstance(value, tuple):
        return plain_text(name + "_".join(map(str, value)))
    return name + repr(value).removesuffix(".0").replace("+", "")


def create(
    settings: Settings, device: str, image_shape: Sequence[int], details: Mapping[str, Any] | None = None,
    save: Callable[[Path], None] = lambda folder: None,
) -> Path:  # fmt: skip
    """Make a new run's folder with its params.json and return it; an existing folder is never touched.

    `details` are those of its Dataset. `save` puts more into the folder, before it appears.

    Raises RunError if RUN_NAME is taken or OUTPUT_DIR can't be made, and OSError.
    """
    parent = folder_of_runs(settings.output_dir)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_place(settings, f"{parent}: {error.strerror}") from None
    about = {
        "id": uuid.uuid4().hex,  # which its checkpoints have, too
        "settings": settings.model_dump(mode="json"),
        "unread": unread(),  # settings that have no effect, so that the run can do without them later
        "image_shape": list(image_shape),  # (H, W, C), so that the networks can be built without the images
        "data": dict(details or {}),
        "schedule_epochs": settings.epochs,  # what the learning rate's cosine spans, also when EPOCHS grows later
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "device": device,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
    }
    beside = parent / f".new-{uuid.uuid4().hex}"  # so that the folder appears with its params.json, or not at all
    beside.mkdir()
    try:
        write_params(beside, about)
        save(beside)
        for name in names_for(settings, parent):
            folder = parent / name
            try:
                if os.path.lexists(folder):
                    raise FileExistsError
                beside.rename(folder)  # fails when another run made it a moment ago
                return folder
            except (FileExistsError, NotADirectoryError):
                pass
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
            if settings.run_name:
                raise taken(folder)
        raise AssertionError("names never end")
    except BaseException:
        if beside.is_dir():
            shutil.rmtree(beside)
        raise


def folder_of_runs(output_dir: str) -> Path:
    """The folder OUTPUT_DIR; a leading ~ is the home folder."""
    return Path(os.path.expanduser(output_dir))


def check_place(settings: Settings) -> None:
    """Raise RunError if it can be seen already that `create` will fail: by OUTPUT_DIR, or a RUN_NAME that is taken."""
    parent = folder_of_runs(settings.output_dir)
    if why := why_no_folder(parent, to_write=True):
        raise no_place(settings, why)
    if settings.run_name and os.path.lexists(parent / settings.run_name):
        raise taken(parent / settings.run_name)


def no_place(settings: Settings, why: str) -> RunError:
    """OUTPUT_DIR is no folder and can't become one."""
    return RunError(f"output_dir: {settings.output_dir!r} is not allowed; {why}")


def taken(folder: Path) -> RunError:
    """RUN_NAME is that of another run or of anything else that is there."""
    way_out = f"choose another, or go on with it: --resume {shlex.quote(str(folder.absolute()))}"
    if not (folder / "params.json").is_file():
        way_out = "choose another; what is there is no run"
    return RunError(f"run_name: {folder.name!r} is taken ({folder}); {way_out}")


def git_commit() -> str | None:
    """The commit of this code, with "+changes" if files differ from it; None where git or the repository is missing."""
    try:
        ask = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(
            ask, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def find(run: str, output_dir: str, option: str = "--resume") -> Path:
    """The folder of a run that `option` names, by its name or its path. Raises RunError if there is none."""
    parent = folder_of_runs(output_dir)
    for folder in (parent / run, Path(os.path.expanduser(run))):
        if os.path.isfile(folder / "params.json"):  # False for whatever can't be a path
            return folder
    there = sorted(path.parent.name for path in parent.glob("[!.]*/params.json"))  # a dot: a killed `create` left it
    raise RunError(f"{option} {run}: no such run in {parent}; there is {', '.join(there) or 'none'}")


def read_params(folder: Path) -> dict[str, Any]:
    """What params.json holds. Raises RunError if it can't be read or is not what a run wrote."""
    path, about = folder / "params.json", unchecked_params(folder)
    if wrong := not_of_a_run(about):
        raise RunError(f"{path} is not what a run wrote: {wrong}")
    if ("checksum" in about or "id" in about) and about.get("checksum") != checksum(about):
        raise RunError(f"{path} is damaged or was edited: its checksum is of another text; put the old one back")
    return about


def unchecked_params(folder: Path) -> Any:
    """What params.json holds, whatever that is. Raises RunError if it can't be read."""
    try:
        return json.loads((folder / "params.json").read_bytes(), parse_constant=no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder / 'params.json'} can't be read: {error}") from None


def no_number(text: str) -> None:
    """Refuse NaN and infinity, which no run writes."""
    raise ValueError(f"it holds {text}")


def not_of_a_run(about: Any) -> str:
    """Which part of params.json is not as runs write it, and what it is; "" if all are."""
    if not isinstance(about, dict):
        return "it is no JSON object"
    epochs, shape, names = about.get("schedule_epochs"), about.get("image_shape", [1] * 3), about.get("unread", [])
    sound = {
        "settings": isinstance(about.get("settings"), dict),
        "schedule_epochs": type(epochs) is int and 1 <= epochs <= MOST_EPOCHS,
        "image_shape": isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape),
        "unread": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "data": isinstance(about.get("data", {}), dict),
    }
    return next((f"{name} is {json.dumps(about.get(name))[:40]}" for name in sound if not sound[name]), "")


def id_of(folder: Path) -> str | None:
    """What tells a run from all others; None of one that was made before there were any. Raises RunError.

    An edit of another part of params.json is not told here, so that it costs no run that is under way its checkpoint.
    """
    about = unchecked_params(folder) if (folder / "params.json").exists() else {}
    return about.get("id") if isinstance(about, dict) else None


def write_params(folder: Path, about: dict[str, Any]) -> None:
    """Write params.json with its checksum, whole or not at all. Raises OSError."""
    about = json.loads(json.dumps(about))  # as it will be read again
    write_json(folder / "params.json", about | {"checksum": checksum(about)})


def checksum(about: dict[str, Any]) -> str:
    """The SHA-256 of all else that params.json holds."""
    rest = {name: value for name, value in about.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_can_go_on(folder: Path, settings: Settings) -> None:
    """Raise RunError if what a resumed run deletes in is no folder or a link, or if all checkpoints it made are gone.

    A run that was killed before its first checkpoint begins again.
    """
    for name in ("checkpoints", "tensorboard", "tensorboard/train", "tensorboard/test", "film", ".lock"):
        if (folder / name).is_symlink():
            raise RunError(f"{folder / name} is a link; a resumed run would delete and write where it leads")
        if name != ".lock" and (folder / name).exists() and not (folder / name).is_dir():
            raise RunError(f"{folder / name} is no folder; move it away")
    step = max((line["step"] for line in read_history(folder)), default=0)
    saved = read_params(folder).get("saved") or (folder / "report.json").exists() or step > settings.checkpoint_every
    if saved and not saved_steps(folder):
        raise RunError(f"{folder}: its checkpoints are gone, so it can't go on; start a new run")


def saved_settings(folder: Path, say: Say, given: dict[str, Any] | None = None) -> Settings:
    """The settings of a run. `say` is given notes where params.py has other constants by now, `given` are load_saved's.

    Raises SettingsError (see load_saved) and RunError.
    """
    about = read_params(folder)
    return load_saved(about["settings"], say, about.get("unread", ()), folder.name, given)


def asked_for(command: Command, say: Say) -> tuple[Settings, Path | None]:
    """The settings to train with, and the folder of the run to continue, if any. `say` is given saved_settings' notes.

    Raises SettingsError for a contradiction to that run, and RunError.
    """
    if command.resume is None:
        return command.settings, None
    folder = find(command.resume, command.settings.output_dir)
    settings = resumed(saved_settings(folder, say, command.given), command.given)
    check_can_go_on(folder, settings)
    return settings, folder


def note_saved(folder: Path) -> None:
    """Note in params.json that a run has had a checkpoint: without one it can't begin again. Raises OSError."""
    with contextlib.suppress(RunError):  # edited meanwhile, which is told when the run is to go on
        if not (about := read_params(folder)).get("saved"):
            write_params(folder, about | {"saved": True})


def note_changes(folder: Path, settings: Settings) -> None:
    """Note in params.json what a resumed run may change: its epochs, where its data are, and SKIP_BAD_IMAGES.

    The constants that it was saved without are added: it is trained with their values from now on. One that had no
    effect, but is read by now, is one that has. Raises OSError.
    """
    about = read_params(folder)
    before, now, no_effect = about["settings"], settings.model_dump(mode="json"), unread()
    changed = {
        name: now[name] for name in now if name not in before or name in ("epochs", "data_dir", "skip_bad_images")
    }
    without = [name for name in about.get("unread", ()) if name in no_effect or name not in now]
    without += [name for name in no_effect if name not in before]
    after = about | {"settings": before | changed, "unread": without}
    if after != about:
        write_params(folder, after)


@contextlib.contextmanager
def locked(folder: Path, say: Say = lambda line: None) -> Iterator[None]:
    """Hold the folder for this process, and the lock ends with it. Where there are no locks, `say` is given a note.

    Raises RunError if another process trains in it, or its .lock is a link or the like.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    if os.path.lexists(folder / ".lock") and not stat.S_ISREG(os.lstat(folder / ".lock").st_mode):
        raise RunError(f"{shown(folder / '.lock')} is not a file of this project; remove it")
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RunError(f"{shown(folder)} is being trained by another process") from None
    except OSError as error:
        say(f"note       this file system has no locks ({error.strerror}): train a run by one process at a time")
    try:
        yield
    finally:
        os.close(lock)


# --- history ----------------------------------------------------------------------------------------------------------
def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of history.jsonl by their steps, each step of a split once, without those that are damaged."""
    lines = {(line["step"], line["split"]): line for line in history_lines(folder) if line}
    return sorted(lines.values(), key=lambda line: line["step"])


def history_lines(folder: Path) -> list[dict[str, Any] | None]:
    """The lines of history.jsonl, None for one that is damaged; a last one that a crash cut short is left out."""
    path = folder / "history.jsonl"
    texts = path.read_bytes().split(b"\n") if path.is_file() else []
    return [history_line(text) for text in texts[:-1]] + list(filter(None, map(history_line, texts[-1:])))


def history_line(text: bytes) -> dict[str, Any] | None:
    """A line of the history, whose optional numbers are None if they are missing; None for anything else."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("split") not in ("train", "test"):
        return None
    numbers = {name: value for name, value in line.items() if name != "split" and value is not None}
    if any(type(value) not in (int, float) or not abs(value) < 1e300 for value in numbers.values()):
        return None
    if not {"step", "epoch", "objective", "reconstruction"} <= numbers.keys() or type(line["step"]) is not int:
        return None
    return line | {name: None for name in ("kl", "kl_weight", "elbo") if name not in line}


def saved_steps(folder: Path, kind: str = "step") -> list[int]:
    """The steps of the checkpoints in a run's folder, oldest first; of the kind "best" those of the best tests."""
    place = folder / "checkpoints"
    names = os.listdir(place) if place.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(rf"{kind}-(0|[1-9]\d*)\.index", name)))


# --- weights to start from --------------------------------------------------------------------------------------------
def newest_step(folder: Path, kind: str = "step") -> int:
    """The step of a run's newest checkpoint of a kind, as in saved_steps. Raises RunError if it has none."""
    if not (steps := saved_steps(folder, kind)):
        raise RunError(f"{folder} has no checkpoint to start from")
    return steps[-1]


def starts_from_another(settings: Settings, folder: Path | None) -> bool:
    """Whether a run begins with the weights of the run START_FROM: one in `folder` may be past that."""
    return bool(settings.start_from) and not (folder and saved_steps(folder))


def weights_depend_on(settings: Settings) -> list[str]:
    """The settings by which the shapes of the weights, or what they mean, may differ from those of another run."""
    more = (DEPEND_ON_MORE.get(kind, ()) for kind in (settings.architecture, settings.prior))
    return [*itertools.chain(WEIGHTS_DEPEND_ON, *more)]


def to_start_from(settings: Settings, say: Say) -> Path:
    """The folder of the run START_FROM, whose weights fit the networks that these settings build.

    `say` is given notes where that run was saved with other constants than params.py has.
    Raises SettingsError if that run's networks are others, and RunError.
    """
    folder = find(settings.start_from, settings.output_dir, "--start-from")
    saved = saved_settings(folder, say)
    for name in weights_depend_on(settings):
        if (here := getattr(settings, name)) != (there := getattr(saved, name)):
            raise SettingsError(f"{name}: {here!r} is not allowed with start_from {folder.name!r}, which has {there!r}")
    newest_step(folder)
    return folder
