"""utils/files.py: files are complete or not there."""

import errno
import json
import math
import resource

import pytest

from utils import files


def disk_full(path, monkeypatch):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # Python ignores its signal


def killed(path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)


@pytest.mark.parametrize(("trouble", "error"), [(disk_full, OSError), (killed, KeyboardInterrupt)])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(trouble, error, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    files.write_whole(path, b"old")
    try:
        trouble(path, monkeypatch)
        with pytest.raises(error) as raised:
            files.write_whole(path, b"new" * 1_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert error is not OSError or raised.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_whole_while_others_read_it(tmp_path):
    path = tmp_path / "report.json"
    files.write_json(path, {"elbo": -97.25})
    with open(path) as reader:
        files.write_json(path, {})
        assert json.load(reader) == {"elbo": -97.25}  # it still reads the whole old file
    assert json.loads(path.read_text()) == {}
    assert path.stat().st_mode & 0o777 == 0o644


def test_numbers_that_are_none_in_json_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "report.json", {"elbo": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_chmod_is_written_to(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("chmod", "fchmod", "link"):
        monkeypatch.setattr(files.os, name, refuse)
    files.write_json(tmp_path / "report.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_what_a_killed_write_left_goes_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "replace", lambda *_: None)  # as if it were killed before this
    for folder in ("run", "elsewhere"):
        (tmp_path / folder).mkdir()
        files.write_whole(tmp_path / folder / "samples_000.png", b"")
    (tmp_path / "run" / "film").symlink_to(tmp_path / "elsewhere")
    theirs = [
        ".git",
        f".a.b{files.UNFINISHED}",
        ".samples_000.png.jt6tzkmb",
        f".mine{files.UNFINISHED}",
        f"x.0123abcd{files.UNFINISHED}",
    ]
    for name in theirs:
        (tmp_path / "run" / name).touch()
    files.remove_unfinished(tmp_path / "run")
    files.remove_unfinished(tmp_path / "run" / "film")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*theirs, "film"])
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
