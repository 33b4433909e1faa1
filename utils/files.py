"""Files that appear whole or not at all, and why a folder cannot be made."""

import errno
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename: a reader sees the old file or the new one, never a part.

    Raises OSError (no space, no permission) and leaves the old file as it was.
    """
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(beside, 0o644)  # mkstemp's files are for their owner only
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. Raises OSError, and ValueError for NaN and infinity."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


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
