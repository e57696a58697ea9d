"""Small files are replaced whole, or left as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.small_files import replace_file


def test_a_file_is_replaced_in_folders_that_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"
    for content in (b"1", b"22"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_failure_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    replace_file(path, b"old")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_what_a_killed_process_left_goes_and_what_a_running_one_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, earlier, written = (tmp_path / f".file.json.{part}" for part in (f"{ended.pid}.x", "abc", f"{os.getpid()}.y"))
    other = tmp_path / ".file.jsonl"
    for each in (left, earlier, written, other):
        each.touch()
    replace_file(path, b"new")
    assert set(tmp_path.iterdir()) == {path, written, other}
