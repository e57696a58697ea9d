"""Files on disk: uploads, and the results of batches. Each belongs to the key that made it, and goes after 30 days.

A file is a folder below `files` in the home: `content`, and beside it `file.json`, which is written last. A folder
without the second is an upload that broke off, or the results of a batch that is not done.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from registry.store import fsops
from server.api.openai.moments import now
from server.errors import NoSuchObject, SpaceUsed

log = logging.getLogger("lm.files")
MOST_BYTES = 1 << 30
"""Bytes of all files of one owner."""
MOST_FILES = 1000
DAYS_30 = 30 * 86400
_RECORD, _CONTENT = "file.json", "content"


class FileRecord(msgspec.Struct):
    """A file as `file.json` has it. Times are seconds since 1970."""

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int

    def told(self) -> dict[str, Any]:
        """The file as clients get it."""
        about = {key: value for key, value in msgspec.structs.asdict(self).items() if key != "owner"}
        return about | {"object": "file", "status": "processed", "status_details": None}


class FileStore:
    """The files of a home. Records are kept in memory; the methods are for the event loop, but `load`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "files"
        self._records: dict[str, FileRecord] = {}
        self._growing: dict[str, tuple[str, int]] = {}
        """Owners and bytes of files that are being written."""

    def load(self, unfinished: set[str]) -> None:
        """Read all records; remove folders of uploads that broke off, but those in `unfinished`. Raises OSError."""
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            try:
                record = msgspec.json.decode((folder / _RECORD).read_bytes(), type=FileRecord)
                self._records[record.id] = record
            except FileNotFoundError:
                if folder.name not in unfinished:
                    fsops.remove_tree(folder)
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("`%s` is no file's record, and is left alone: %s", folder, error)

    def of(self, owner: str) -> list[FileRecord]:
        """The files of an owner, the oldest first."""
        found = (each for each in self._records.values() if each.owner == owner)
        return sorted(found, key=lambda each: each.created_at)

    def find(self, owner: str, identity: str, field: str = "") -> FileRecord:
        """The file of this id. Raises NoSuchObject where the owner has none; `field` is the field that names it."""
        record = self._records.get(identity)
        if record is None or record.owner != owner or record.expires_at <= now():
            raise NoSuchObject(f"there is no file `{identity[:80]}` for this key", "list `/v1/files`", field)
        return record

    def content(self, identity: str) -> Path:
        """The path of a file's content."""
        return self._folder / identity / _CONTENT

    async def begin(self, owner: str) -> str:
        """The id of a new file, to which bytes may be appended. Raises SpaceUsed, OSError."""
        if len(self.of(owner)) >= MOST_FILES:
            raise SpaceUsed(f"this key has {MOST_FILES} files", "delete some")
        identity = f"file-{secrets.token_hex(12)}"
        self._growing[identity] = (owner, 0)
        await asyncio.to_thread(fsops.make_folders, self._home, self._folder / identity)
        return identity

    async def resume(self, identity: str, owner: str, size: int) -> None:
        """Begin a file under this id, or go on with one of `size` bytes. Raises OSError."""
        await asyncio.to_thread(fsops.make_folders, self._home, self._folder / identity)
        self._growing[identity] = (owner, size)

    async def append(self, identity: str, data: bytes, *, sync: bool) -> None:
        """Put bytes behind the end of a file that was begun. Raises SpaceUsed, OSError."""
        owner, size = self._growing[identity]
        if self.used(owner) + len(data) > MOST_BYTES:
            raise SpaceUsed(f"the files of this key would take more than {MOST_BYTES >> 20} MiB", "delete some")
        self._growing[identity] = (owner, size + len(data))
        path = self.content(identity)
        await asyncio.to_thread(fsops.append, path, data)
        if sync:
            await asyncio.to_thread(fsops.fsync, path)

    async def finish(self, identity: str, filename: str, purpose: str, seconds: int = DAYS_30) -> FileRecord:
        """Make a file of the appended bytes; it may be empty. Raises OSError."""
        owner, size = self._growing[identity]
        moment = now()
        record = FileRecord(identity, owner, filename, purpose, size, moment, moment + seconds)
        path = self.content(identity)
        if not size:
            await asyncio.to_thread(fsops.append, path, b"")
        await asyncio.to_thread(fsops.fsync, path)
        await asyncio.to_thread(fsops.replace, path.with_name(_RECORD), msgspec.json.encode(record))
        del self._growing[identity]
        self._records[identity] = record
        return record

    async def drop(self, identity: str) -> None:
        """Remove a file, complete or not. Raises OSError."""
        self._records.pop(identity, None)
        folder = self._folder / identity
        # The record goes first: half a file must not come back after a crash.
        await asyncio.to_thread(fsops.unlink, folder / _RECORD)
        await asyncio.to_thread(fsops.remove_tree, folder)
        self._growing.pop(identity, None)

    async def expire(self, used: set[str]) -> None:
        """Remove the files whose time is up, but those in `used`. Raises OSError."""
        moment = now()
        for record in [each for each in self._records.values() if each.expires_at <= moment and each.id not in used]:
            await self.drop(record.id)

    def used(self, owner: str) -> int:
        """Bytes of all files of an owner."""
        growing = sum(size for other, size in self._growing.values() if other == owner)
        return growing + sum(each.bytes for each in self._records.values() if each.owner == owner)


FILES = web.AppKey("files", FileStore)
