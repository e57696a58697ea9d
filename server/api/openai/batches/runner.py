"""Works batches off: while nobody else asks, several requests at once, through restarts of the daemon.

A request of a batch goes through the same door as any other, in the name of the key that made the batch, so that its
role, its models, its rate and its quota hold. An answer counts when its line is on the disk. After a crash the requests
without a line are asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from server.api.openai.batches import lines
from server.api.openai.batches.lines import BatchRequest
from server.api.openai.batches.store import BatchRecord, BatchStore, Status
from server.api.openai.files.store import FileStore
from server.api.openai.moments import now
from server.errors import SpaceUsed

log = logging.getLogger("lm.batches")
LOOK_SECONDS = 0.2
EXPIRE_SECONDS = 3600.0
DISK_SECONDS = 30.0
# Requests of all batches at once at most; fewer where the engine has fewer sequences.
SLOTS = 4
# Tries of a request whose answers are faults of the daemon.
TRIES = 3
BUSY = (429, 503)


class OwnAnswer(NamedTuple):
    """An answer of the daemon to itself."""

    status: int
    headers: dict[str, str]
    body: bytes


Ask = Callable[[str, str, bytes], Awaitable[OwnAnswer | None]]
"""Asks in the name of an owner, at a path, with a body; None where no key of the owner is valid any more."""


class KeyEnded(Exception):
    """The key that made a batch has ended."""


class BatchRunner:
    """The work on all batches of a daemon."""

    def __init__(self, store: BatchStore, files: FileStore, ask: Ask, asked: Callable[[], int], sequences: int) -> None:
        """`asked` counts the requests of models that are under way; `sequences` may be answered at once."""
        self._store = store
        self._files = files
        self._ask = ask
        self._asked = asked
        self._slots = max(1, min(SLOTS, sequences // 2))
        self._turns = asyncio.Semaphore(self._slots)
        self._asking = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Read what an earlier daemon left, then work until cancelled."""
        await self._load()
        looked = asyncio.get_running_loop().time()
        try:
            while True:
                self._store.added.clear()
                for record in self._store.unfinished:
                    if record.id not in self._tasks:
                        self._tasks[record.id] = asyncio.create_task(self._guarded(record))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EXPIRE_SECONDS):
                        await self._store.added.wait()
                if asyncio.get_running_loop().time() - looked >= EXPIRE_SECONDS:
                    looked = asyncio.get_running_loop().time()
                    await self._expire()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._store.load)
                unfinished = {name for each in self._store.unfinished for name in (each.output, each.failures)}
                await asyncio.to_thread(self._files.load, unfinished)
            except OSError as error:
                log.error("files and batches cannot be read: %s", error)
                await asyncio.sleep(DISK_SECONDS)
            else:
                break
        self._store.loaded.set()
        await self._expire()

    async def _expire(self) -> None:
        try:
            await self._files.expire(self._store.inputs)
            await self._store.expire()
        except OSError as error:
            log.warning("old files and batches cannot be removed: %s", error)

    async def _guarded(self, record: BatchRecord) -> None:
        """Work on a batch until it has ended, whatever the disk does meanwhile."""
        try:
            while not record.ended:
                try:
                    await self._work(record)
                except OSError as error:
                    log.error("batch %s waits for its disk: %s", record.id, error)
                    await asyncio.sleep(DISK_SECONDS)
        except Exception:
            log.exception("batch %s failed", record.id)
            await self._fail(record, "internal", "the daemon failed at this batch: see `lm logs`")
        finally:
            del self._tasks[record.id]

    async def _work(self, record: BatchRecord) -> None:
        path = self._files.content(record.input_file_id)
        if record.status == "validating":
            record.total, record.errors = 0, []
            await asyncio.to_thread(lines.check, record, path)
            if record.errors:
                await self._store.enter(record, "failed")
                return
            await self._store.enter(record, "in_progress")
        output, failures = self._files.content(record.output), self._files.content(record.failures)
        done, sizes = await asyncio.to_thread(lines.recover, record, output, failures)
        for name, size in sizes.items():
            await self._files.resume(name, record.owner, size)
        end: Status = "completed"
        try:
            if record.status != "finalizing":
                await self._answer_all(record, path, done)
                end = self._ending(record) or "completed"
        except KeyEnded:
            end, record.errors = "failed", [_error("key_ended", "the key that made this batch has ended")]
        except SpaceUsed as error:
            end, record.errors = "failed", [_error(error.code, f"{error} ({error.hint})")]
        await self._finish(record, end)

    async def _answer_all(self, record: BatchRecord, path: Path, done: set[str]) -> None:
        """Answer the requests that are not done, until they are or the batch has ended."""
        rows = self._rows(path, done)
        lock = asyncio.Lock()

        async def work() -> None:
            while True:
                async with lock:
                    request = await anext(rows, None)
                if request is None:
                    return
                await self._answer(record, request, done)

        working = [asyncio.create_task(work()) for _ in range(self._slots)]
        watching = asyncio.create_task(self._until_ended(record))
        try:
            left = {*working, watching}
            while watching in left and len(left) > 1:
                ended, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
        finally:
            for task in (*working, watching):
                task.cancel()
            await asyncio.gather(*working, watching, return_exceptions=True)
        if self._ending(record) == "expired":
            async for request in self._rows(path, done):
                line = lines.failure(request, "batch_expired", "the batch was not done within its time")
                await self._note(record, request, done, line, failed=True)

    async def _rows(self, path: Path, done: set[str]) -> AsyncGenerator[BatchRequest]:
        """The requests that are not done."""
        source = lines.requests(path)
        while (row := await asyncio.to_thread(next, source, None)) is not None:
            request = msgspec.json.decode(row[1], type=BatchRequest)
            if request.custom_id not in done:
                yield request

    async def _until_ended(self, record: BatchRecord) -> None:
        while not self._ending(record):
            await asyncio.sleep(LOOK_SECONDS)

    def _ending(self, record: BatchRecord) -> Status | None:
        """The status that a batch will end with although requests are left; None while it may go on."""
        if record.status == "cancelling":
            return "cancelled"
        return "expired" if record.expires_at <= now() else None

    async def _answer(self, record: BatchRecord, request: BatchRequest, done: set[str]) -> None:
        """Ask, again where the daemon or the key's limits are busy, and note the answer."""
        faults = 0
        while True:
            async with self._turn():
                answered = await self._ask(record.owner, record.endpoint, bytes(request.body))
            if answered is None:
                raise KeyEnded
            faults += answered.status >= 500 and answered.status not in BUSY
            if answered.status in BUSY or (answered.status >= 500 and faults < TRIES):
                await asyncio.sleep(min(float(answered.headers.get("retry-after", "1")), EXPIRE_SECONDS))
                continue
            break
        identity = answered.headers.get("x-request-id", "")
        line = lines.result(request, answered.status, identity, answered.body)
        failed = answered.status != 200
        if not failed:
            usage = msgspec.json.decode(answered.body).get("usage") or {}
            record.usage.add(usage)
        await self._note(record, request, done, line, failed=failed)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the few places, once nobody else asks a model."""
        async with self._turns:
            while self._asked() > self._asking:
                await asyncio.sleep(LOOK_SECONDS)
            self._asking += 1
            try:
                yield
            finally:
                self._asking -= 1

    async def _note(
        self, record: BatchRecord, request: BatchRequest, done: set[str], line: bytes, *, failed: bool
    ) -> None:
        """Put a line of a result on the disk, which counts then. Raises SpaceUsed, OSError."""
        await self._files.append(record.failures if failed else record.output, line, sync=True)
        done.add(request.custom_id)
        if failed:
            record.failed += 1
        else:
            record.completed += 1

    async def _finish(self, record: BatchRecord, end: Status) -> None:
        """Make files of the results, and end the batch."""
        if record.status == "in_progress" and end == "completed":
            await self._store.enter(record, "finalizing")
        for identity, count, kind in (
            (record.output, record.completed, "output"),
            (record.failures, record.failed, "error"),
        ):
            if count:
                await self._files.finish(identity, f"{record.id}_{kind}.jsonl", "batch_output")
            else:
                await self._files.drop(identity)
        await self._store.enter(record, end)

    async def _fail(self, record: BatchRecord, code: str, message: str) -> None:
        record.errors = [_error(code, message)]
        with contextlib.suppress(OSError):
            await self._finish(record, "failed")


def _error(code: str, message: str) -> dict[str, object]:
    return {"code": code, "line": None, "message": message, "param": None}
