"""Files and folders that appear whole or not at all, and why a folder cannot be made."""

import errno
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished-write"  # how the name of a file ends that is being written


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename: a reader sees the old file or the new one, never a part.

    Raises OSError (no space, no permission) and leaves the old file as it was.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with open(beside, "xb", opener=readable_by_all) as file:
            file.write(content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def readable_by_all(path: str, flags: int) -> int:
    """An opener of files with mode 644, without chmod, which some file systems lack."""
    return os.open(path, flags, 0o644)


def remove_unfinished(folder: Path) -> None:
    """Delete what write_whole left in a folder when its process was killed. A link to a folder is not followed."""
    if not folder.is_symlink():
        for path in folder.glob(f".*{UNFINISHED}"):
            if re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(UNFINISHED)}", path.name) and not path.is_dir():
                path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. Raises OSError, and ValueError for NaN and infinity."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `place` by `write`, which is given a new one beside it; an old `place` is replaced only then.

    Raises OSError, which names `place`, and leaves what was there.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            write(new)
            try:
                if place.exists():
                    place.rename(old)
                new.rename(place)
            except BaseException:
                if old.exists() and not place.exists():
                    old.rename(place)  # back again
                raise
    except OSError as error:  # of a file whose name would say little, or of h5py, without one
        raise OSError(error.errno, error.strerror or str(error), str(place)) from error


def why_no_folder(path: Path, to_write: bool = False) -> str:
    """Why a folder `path` can neither be used (to write in it) nor be made, in a few words; "" if nothing is seen."""
    for place in (path, *path.parents):
        try:
            is_folder = stat.S_ISDIR(os.stat(place).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue  # what is in the way is above
        except OSError as error:
            return f"{place}: {error.strerror}"
        if is_folder and to_write and not os.access(place, os.W_OK | os.X_OK):
            return f"{place}: {os.strerror(errno.EACCES)}"
        return "" if is_folder else f"{place} is not a folder"
    return ""
