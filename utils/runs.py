"""The folder of a run: its name, its settings and its history, and how another run continues or starts from it.

params.json     every setting, the names of the settings that nothing read, the git commit, versions and device
history.jsonl   a line per LOG_EVERY steps (split = train) and per epoch (split = test): utils/history.py
checkpoints/    the last three, each complete or absent; of a finished run the last one; with HELD_OUT also the best:
                utils/checkpoints.py, utils/best.py
film/           frames of the first epoch: utils/pictures.py
tensorboard/    event files of training (train/) and of tests (test/), grids, and the projector's data
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

PACKAGES = ("tensorflow", "keras", "numpy")  # params.json notes their versions
LONGEST_NAME = 80
MOST_EPOCHS = 10**6  # of a run
PATHS = ("data_dir", "start_from")  # a run's name has only their last part
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
    """A problem with a run's folder, in words for the user."""

    exit_code = 2


# --- the folder -------------------------------------------------------------------------------------------------------
def derived_name(settings: Settings) -> str:
    """A run's name if the user gives none, made of the settings that differ most often, e.g. mnist-ce-z20."""
    scale = "-learned" if settings.decoder_scale == "learned" and settings.loss != "logistic" else ""
    kind = "-ae" if settings.autoencoder else ""
    labels = f"-{'_'.join(map(str, settings.labels))}" if settings.labels else ""
    labels = f"-{len(settings.labels)}labels" if len(labels) > LONGEST_NAME // 2 else labels
    noise = f"-noise{settings.noise_dim}" if settings.noise_dim else ""
    prior = f"-{settings.prior}" if settings.prior != "standard" else ""
    bound = f"-{settings.bound}{settings.bound_samples}" if settings.bound != "elbo" else ""
    network = f"-{settings.architecture}" if settings.architecture != "mlp" else ""
    model = f"{settings.loss}{scale}{kind}{network}-z{settings.latent_dim}{noise}{prior}{bound}"
    return plain_text(f"{settings.dataset}{labels}-{model}")[:LONGEST_NAME]  # DATASET may have a colon


def plain_text(text: str) -> str:
    """The text with every character replaced by "_" except letters, digits, "_", "-" and "."."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)


def names_for(settings: Settings, parent: Path) -> Iterator[str]:
    """The names that a new run in the folder `parent` may have, best first, of at most 80 characters each.

    These are RUN_NAME alone or, if it is empty, the names made from the derived name.
    """
    if settings.run_name:
        yield settings.run_name
    else:
        yield from names_from(derived_name(settings), settings, parent)


def names_from(plain: str, settings: Settings, parent: Path) -> Iterator[str]:
    """A name, then others in case it is taken.

    The second one adds the settings that differ from the run of that name, as in mnist-ce-z20-kl_weight_end4-seed1. The
    others add a number to this: -2, -3, ...
    """
    yield plain
    yield (name := with_settings(plain, differences(settings, parent / plain)))
    yield from (f"{name}-{number}" for number in itertools.count(2))


def with_settings(plain: str, changed: dict[str, Any]) -> str:
    """A name followed by the changed settings, with room left for a number.

    If that is too long, each word of the settings' names is cut to four letters. If it is still too long, settings that
    do not fit are left out and counted.
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
    """The settings, by name, in which a run differs from the run in `folder`; none if that is no run.

    A setting that the run in `folder` was saved without gets its value as in settings.load_saved.
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
    """The settings, by name, that affect what a run learns, and so distinguish it from others."""
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

    `details` are those of its Dataset. `save` writes more files into the folder before it appears.

    Raises OSError, and RunError if RUN_NAME is taken or OUTPUT_DIR can't be made.
    """
    parent = folder_of_runs(settings.output_dir)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise no_place(settings, f"{parent}: {error.strerror}") from None
    about = {
        "id": uuid.uuid4().hex,  # its checkpoints have it, too
        "settings": settings.model_dump(mode="json"),
        "unread": unread(),  # settings without effect: params.py may drop them later
        "image_shape": list(image_shape),  # (H, W, C), so that the networks can be built without the images
        "data": dict(details or {}),
        "schedule_epochs": settings.epochs,  # length of the learning rate's cosine, even if EPOCHS grows later
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "device": device,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
    }
    beside = parent / f".new-{uuid.uuid4().hex}"  # the folder appears with its params.json, or not at all
    beside.mkdir()
    try:
        write_params(beside, about)
        save(beside)
        for name in names_for(settings, parent):
            folder = parent / name
            try:
                if os.path.lexists(folder):
                    raise FileExistsError
                beside.rename(folder)  # fails if another run made it a moment ago
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
    """Raise RunError if `create` is sure to fail, because of OUTPUT_DIR or because RUN_NAME is taken."""
    parent = folder_of_runs(settings.output_dir)
    if why := why_no_folder(parent, to_write=True):
        raise no_place(settings, why)
    if settings.run_name and os.path.lexists(parent / settings.run_name):
        raise taken(parent / settings.run_name)


def no_place(settings: Settings, why: str) -> RunError:
    """The error if OUTPUT_DIR is no folder and can't become one."""
    return RunError(f"output_dir: {settings.output_dir!r} is not allowed; {why}")


def taken(folder: Path) -> RunError:
    """The error if RUN_NAME is taken, by another run or by anything else."""
    way_out = f"choose another, or go on with it: --resume {shlex.quote(str(folder.absolute()))}"
    if not (folder / "params.json").is_file():
        way_out = "choose another; that is not a run"
    return RunError(f"run_name: {folder.name!r} is taken ({folder}); {way_out}")


def git_commit() -> str | None:
    """The commit of this code, with "+changes" if files differ from it; None if git or the repository is missing."""
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
        if os.path.isfile(folder / "params.json"):  # False, without an error, for a text that can't be a path
            return folder
    there = sorted(path.parent.name for path in parent.glob("[!.]*/params.json"))  # a killed `create` leaves .new-*
    raise RunError(f"{option} {run}: no such run in {parent}; there is {', '.join(there) or 'none'}")


def read_params(folder: Path) -> dict[str, Any]:
    """The content of params.json. Raises RunError if it can't be read or is not what a run wrote."""
    path, about = folder / "params.json", unchecked_params(folder)
    if wrong := not_of_a_run(about):
        raise RunError(f"{path} is not what a run wrote: {wrong}")
    if ("checksum" in about or "id" in about) and about.get("checksum") != checksum(about):
        raise RunError(f"{path} is damaged or was edited: its checksum does not match; restore the old file")
    return about


def unchecked_params(folder: Path) -> Any:
    """The content of params.json, without any check. Raises RunError if it can't be read."""
    try:
        return json.loads((folder / "params.json").read_bytes(), parse_constant=no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder / 'params.json'} can't be read: {error}") from None


def no_number(text: str) -> None:
    """Refuse NaN and infinity, which no run writes."""
    raise ValueError(f"it holds {text}")


def not_of_a_run(about: Any) -> str:
    """The first part of params.json that no run would write, with its value; "" if there is none."""
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
    """The unique id of a run; None for a run that was made before runs had ids. Raises RunError.

    Other parts of params.json are not checked here, so that a run that is training can still save its checkpoint after
    somebody edits them.
    """
    about = unchecked_params(folder) if (folder / "params.json").exists() else {}
    return about.get("id") if isinstance(about, dict) else None


def write_params(folder: Path, about: dict[str, Any]) -> None:
    """Write params.json with its checksum, whole or not at all. Raises OSError."""
    about = json.loads(json.dumps(about))  # as it will be when it is read again
    write_json(folder / "params.json", about | {"checksum": checksum(about)})


def checksum(about: dict[str, Any]) -> str:
    """The SHA-256 of params.json without its checksum."""
    rest = {name: value for name, value in about.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_can_go_on(folder: Path, settings: Settings) -> None:
    """Raise RunError if a folder that a resumed run writes to is a link or no folder, or if all checkpoints are gone.

    A run that was killed before its first checkpoint starts again.
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
    """The settings of a run. `say` gets notes if params.py has other constants by now; `given` is as in load_saved.

    Raises SettingsError (see load_saved) and RunError.
    """
    about = read_params(folder)
    return load_saved(about["settings"], say, about.get("unread", ()), folder.name, given)


def asked_for(command: Command, say: Say) -> tuple[Settings, Path | None]:
    """The settings to train with, and the folder of the run to continue, if any. `say` gets saved_settings' notes.

    Raises RunError, and SettingsError if the command line contradicts that run.
    """
    if command.resume is None:
        return command.settings, None
    folder = find(command.resume, command.settings.output_dir)
    settings = resumed(saved_settings(folder, say, command.given), command.given)
    check_can_go_on(folder, settings)
    return settings, folder


def note_saved(folder: Path) -> None:
    """Note in params.json that a run has saved a checkpoint; now it can't resume without one. Raises OSError."""
    with contextlib.suppress(RunError):  # edited meanwhile: reported when the run is resumed
        if not (about := read_params(folder)).get("saved"):
            write_params(folder, about | {"saved": True})


def note_changes(folder: Path, settings: Settings) -> None:
    """Note in params.json what a resumed run may change: EPOCHS, DATA_DIR and SKIP_BAD_IMAGES. Raises OSError.

    Constants that the run was saved without are added, because it is trained with their values from now on. A constant
    that is read by now leaves the list of those without effect.
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
    """Lock the folder for this process during the block. If the file system has no locks, `say` gets a note.

    Raises RunError if another process trains in it, or if its .lock is no regular file.
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
    """The lines of history.jsonl ordered by step, without damaged ones, and one for each step of a split."""
    lines = {(line["step"], line["split"]): line for line in history_lines(folder) if line}
    return sorted(lines.values(), key=lambda line: line["step"])


def history_lines(folder: Path) -> list[dict[str, Any] | None]:
    """The lines of history.jsonl, None for a damaged one. A last line that a crash cut short is left out."""
    path = folder / "history.jsonl"
    texts = path.read_bytes().split(b"\n") if path.is_file() else []
    return [history_line(text) for text in texts[:-1]] + list(filter(None, map(history_line, texts[-1:])))


def history_line(text: bytes) -> dict[str, Any] | None:
    """A line of the history, with None for missing optional numbers; None if the text is no such line."""
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
    """The steps of the checkpoints in a run's folder, oldest first. The kind "best" are those of the best tests."""
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
    """Whether a run begins with the weights of the run START_FROM, not with a checkpoint of its own in `folder`."""
    return bool(settings.start_from) and not (folder and saved_steps(folder))


def weights_depend_on(settings: Settings) -> list[str]:
    """The settings on which the shapes or the meaning of the weights depend."""
    more = (DEPEND_ON_MORE.get(kind, ()) for kind in (settings.architecture, settings.prior))
    return [*itertools.chain(WEIGHTS_DEPEND_ON, *more)]


def to_start_from(settings: Settings, say: Say) -> Path:
    """The folder of the run START_FROM, whose weights fit the networks that these settings build.

    `say` gets notes if that run was saved with other constants than params.py has. Raises RunError, and SettingsError
    if that run's networks are different.
    """
    folder = find(settings.start_from, settings.output_dir, "--start-from")
    saved = saved_settings(folder, say)
    for name in weights_depend_on(settings):
        if (here := getattr(settings, name)) != (there := getattr(saved, name)):
            raise SettingsError(f"{name}: {here!r} is not allowed with start_from {folder.name!r}, which has {there!r}")
    newest_step(folder)
    return folder
