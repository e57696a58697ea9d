"""Batches on disk: a record for each, which outlives the daemon. The results are files of `files/store.py`.

A record is written when the status changes. How many requests are done, and which, stands in the results alone: a line
is on the disk before it counts.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Literal

import msgspec
from aiohttp import web

from registry.store import fsops
from server.api.openai.files.store import DAYS_30
from server.api.openai.moments import now
from server.errors import NoSuchObject, SpaceUsed

log = logging.getLogger("lm.batches")
MOST_BATCHES = 1000
_RECORD = "batch.json"
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED = ("failed", "completed", "expired", "cancelled")


class BatchUsage(msgspec.Struct):
    """Tokens of all answers of a batch."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def add(self, usage: dict[str, Any]) -> None:
        """Add the `usage` of one answer, of any route."""
        self.input += usage.get("input_tokens", usage.get("prompt_tokens", 0))
        self.output += usage.get("output_tokens", usage.get("completion_tokens", 0))
        read = usage.get("input_tokens_details") or usage.get("prompt_tokens_details") or {}
        written = usage.get("output_tokens_details") or usage.get("completion_tokens_details") or {}
        self.cached += read.get("cached_tokens", 0)
        self.reasoning += written.get("reasoning_tokens", 0)

    def told(self) -> dict[str, Any]:
        """The object that clients get."""
        return {
            "input_tokens": self.input,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning},
            "total_tokens": self.input + self.output,
        }


class BatchRecord(msgspec.Struct, kw_only=True):
    """A batch as its file has it. Times are seconds since 1970; `output` and `failures` are ids of files."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    output: str
    failures: str
    metadata: dict[str, str] = {}
    status: Status = "validating"
    moments: dict[str, int] = {}
    errors: list[dict[str, Any]] = []
    total: int = 0
    completed: int = 0
    failed: int = 0
    usage: BatchUsage = msgspec.field(default_factory=BatchUsage)
    model: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in ENDED

    def told(self) -> dict[str, Any]:
        """The batch as clients get it."""
        stages = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        errors = {"object": "list", "data": self.errors} if self.errors else None
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output if self.ended and self.completed else None,
            "error_file_id": self.failures if self.ended and self.failed else None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{f"{stage}_at": self.moments.get(stage) for stage in stages},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": self.usage.told(),
            "metadata": self.metadata or None,
        }


class BatchStore:
    """The batches of a home. `loaded` is set when the records of an earlier daemon were read."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "batches"
        self._records: dict[str, BatchRecord] = {}
        self.loaded = asyncio.Event()
        self.added = asyncio.Event()
        """Set when there is a new batch."""
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Read all records, in a thread. Raises OSError."""
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            try:
                record = msgspec.json.decode((folder / _RECORD).read_bytes(), type=BatchRecord)
                self._records[record.id] = record
            except FileNotFoundError:
                fsops.remove_tree(folder)
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("`%s` is no batch's record, and is left alone: %s", folder, error)

    @property
    def unfinished(self) -> list[BatchRecord]:
        """The batches that have not ended, the oldest first."""
        return sorted((each for each in self._records.values() if not each.ended), key=lambda each: each.created_at)

    @property
    def inputs(self) -> set[str]:
        """Ids of the files that batches still read."""
        return {each.input_file_id for each in self.unfinished}

    def of(self, owner: str) -> list[BatchRecord]:
        """The batches of an owner, the oldest first."""
        found = (each for each in self._records.values() if each.owner == owner)
        return sorted(found, key=lambda each: each.created_at)

    def find(self, owner: str, identity: str) -> BatchRecord:
        """The batch of this id. Raises NoSuchObject where the owner has none."""
        record = self._records.get(identity)
        if record is None or record.owner != owner:
            raise NoSuchObject(f"there is no batch `{identity[:80]}` for this key", "list `/v1/batches`")
        return record

    async def add(self, record: BatchRecord) -> None:
        """Keep a new batch. Raises SpaceUsed, OSError."""
        if len(self.of(record.owner)) >= MOST_BATCHES:
            raise SpaceUsed(f"this key has {MOST_BATCHES} batches of the last 30 days", "wait for the oldest to go")
        await asyncio.to_thread(fsops.make_folders, self._home, self._folder / record.id)
        await self._write(record)
        self._records[record.id] = record
        self.added.set()

    async def enter(self, record: BatchRecord, status: Status) -> None:
        """Give a batch another status, with the date. Raises OSError."""
        record.status = status
        record.moments = record.moments | {status: now()}
        await self._write(record)

    async def expire(self) -> None:
        """Remove batches of more than 30 days ago. Raises OSError."""
        for record in list(self._records.values()):
            if record.ended and record.created_at + DAYS_30 <= now():
                del self._records[record.id]
                await asyncio.to_thread(fsops.remove_tree, self._folder / record.id)

    async def _write(self, record: BatchRecord) -> None:
        path = self._folder / record.id / _RECORD
        async with self._writing:
            await asyncio.to_thread(fsops.replace, path, msgspec.json.encode(record))


BATCHES = web.AppKey("batches", BatchStore)
