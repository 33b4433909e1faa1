"""Write files and folders completely or not at all, and find out why a folder cannot be made."""

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

UNFINISHED = ".unfinished-write"  # the end of the name of a file that is being written


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a file beside `path`, then rename it. A reader sees the old file or the new one, never a part.

    Raises OSError (no space, no permission) and then leaves the old file unchanged.
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
    """Open a file with mode 644, without chmod, because some file systems lack it."""
    return os.open(path, flags, 0o644)


def remove_unfinished(folder: Path) -> None:
    """Delete files that write_whole left in a folder when it was killed. A link to a folder is not followed."""
    if not folder.is_symlink():
        for path in folder.glob(f".*{UNFINISHED}"):
            if re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(UNFINISHED)}", path.name) and not path.is_dir():
                path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all. Raises OSError, and ValueError for NaN and infinity."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `place`: `write` fills a new folder beside it, which then replaces an old `place`.

    Raises OSError, which names `place`, and then leaves the old folder unchanged.
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
    except OSError as error:  # its file name would mean little to the user, or is missing (h5py)
        raise OSError(error.errno, error.strerror or str(error), str(place)) from error


def why_no_folder(path: Path, to_write: bool = False) -> str:
    """Why the folder `path` can neither be used (with `to_write`, written to) nor made, in a few words; else ""."""
    for place in (path, *path.parents):
        try:
            is_folder = stat.S_ISDIR(os.stat(place).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue  # a folder above shows the reason
        except OSError as error:
            return f"{place}: {error.strerror}"
        if is_folder and to_write and not os.access(place, os.W_OK | os.X_OK):
            return f"{place}: {os.strerror(errno.EACCES)}"
        return "" if is_folder else f"{place} is not a folder"
    return ""
