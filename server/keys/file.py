"""The file of keys, `keys.json` in the home: read with suspicion, replaced whole, changed by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.store.fsops import replace
from server.config import Config
from server.keys.record import ApiKey
from server.settings import BadSetting

VERSION = 1
MAX_KEYS = 100_000
_LONGEST = 128 << 20
_LOCK = "keys.lock"


class BadKeyFile(BadSetting):
    """The file of keys cannot be used: nobody is let in by it."""

    code = "bad_key_file"


def key_file(config: Config) -> Path:
    """Where the keys of a home are."""
    return config.home / "keys.json"


def read_keys(path: Path) -> list[ApiKey] | None:
    """The keys in a file, None where there is no file. Raises BadKeyFile for one that is broken or open to others."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}", "it must be a file of your own") from None
    try:
        _check_rights(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(_LONGEST + 1)
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}", "check the file and its disk") from None
    finally:
        os.close(descriptor)
    return _decoded(path, data)


def change_keys(path: Path, change: Callable[[list[ApiKey]], list[ApiKey]]) -> None:
    """Replace the keys in a file by what `change` makes of them; other writers wait meanwhile.

    A reader sees the file before the change or after it, and a loss of power changes nothing about that. Whatever
    `change` raises leaves the file as it was. Raises BadKeyFile, OSError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.with_name(_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = change(read_keys(path) or [])
        if len(keys) > MAX_KEYS:
            raise _bad(path, f"would hold more than {MAX_KEYS:,} keys", "use one key for several clients")
        table = {"version": VERSION, "keys": [key.as_json() for key in keys]}
        replace(path, json.dumps(table, indent=1).encode() + b"\n")
    finally:
        os.close(lock)


def _check_rights(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _bad(path, "is no file", "move it away")
    if status.st_uid not in (os.geteuid(), 0):
        raise _bad(path, f"belongs to the user {status.st_uid}", "it must be a file of your own")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise _bad(path, f"is open to other users (mode {mode:04o})", f"`chmod 600 {path}`; then rotate its keys")


def _decoded(path: Path, data: bytes) -> list[ApiKey]:
    hint = "mend it, or move it away and create the keys again"
    try:
        table = json.loads(data) if len(data) <= _LONGEST else None
    except (ValueError, RecursionError):
        raise _bad(path, "is no JSON", hint) from None
    records: Any = table.get("keys") if isinstance(table, dict) else None
    if not isinstance(records, list) or not isinstance(table, dict) or table.get("version") != VERSION:
        raise _bad(path, "is no file of keys of this version", hint)
    keys = []
    for number, record in enumerate(records, 1):
        try:
            keys.append(ApiKey.of(record))
        except (ValueError, KeyError, TypeError):
            raise _bad(path, f"is broken at its key {number}", hint) from None
    if len({key.id for key in keys}) < len(keys) or len({key.hash for key in keys}) < len(keys):
        raise _bad(path, "has one key twice", hint)
    return keys


def _bad(path: Path, what: str, hint: str) -> BadKeyFile:
    return BadKeyFile(f"the file of keys `{path}` {what}", hint)
