"""The daemon's side of the audit log: entries from the event loop, those about answers in batches.

An administrative entry is on the disk before its request is answered. Entries about answers and about refusals wait for
a second, so that a busy daemon writes once for many of them; equal refusals in that time become one entry with a count.
Where the disk is full, acts that need room are refused, others go on and use the log's reserve, and entries about
answers are counted as lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.audit.line import AuditEvent, Head
from server.audit.log import FREEING, AuditFailed, AuditLog
from server.keys.record import redacted
from server.settings import SECRETS
from server.values import Extent

log = logging.getLogger("lm.audit")
# How long an entry about an answer waits for others, in seconds, and how many wait at most.
BATCH_SECONDS = 1.0
MOST_WAITING = 20_000
# The head of the chain is printed after this number of lines.
PRINT_EVERY = 1000
DAEMON = "lm"


@dataclass
class AuditCounts:
    """Numbers for `/metrics`: lines written, entries lost, acts refused since the daemon started."""

    written: int = 0
    lost: int = 0
    refused: int = 0


class Recorder:
    """Writes entries of one daemon; with the extent `off` it takes them and does nothing."""

    def __init__(self, audit_log: AuditLog, extent: Extent = "all", *, text: bool = False) -> None:
        """`text` has questions and answers recorded, too."""
        self.text = text and extent == "all"
        self.counts = AuditCounts()
        self._log = audit_log
        self._extent = extent
        self._waiting: list[AuditEvent] = []
        self._refusals: dict[tuple[Any, ...], AuditEvent] = {}
        self._lost_untold = 0
        self._fails = ""
        self._printed = 0

    @property
    def on(self) -> bool:
        """Whether anything is recorded."""
        return self._extent != "off"

    async def require_room(self, act: str) -> None:
        """Raise AuditFailed for an act that needs room, where the log has none or cannot be written."""
        if not self.on or act in FREEING:
            return
        try:
            await asyncio.to_thread(self._log.require_room)
        except AuditFailed:
            self.counts.refused += 1
            raise

    async def act(self, event: AuditEvent) -> None:
        """Record what was done, on the disk when this returns; where that fails it is counted and logged."""
        if self.on:
            await asyncio.to_thread(self._append, [*self._taken(), event], from_reserve=True)

    def act_now(self, event: AuditEvent) -> None:
        """As `act`, from a thread."""
        if self.on:
            self._append([event], from_reserve=True)

    def answered(self, event: AuditEvent) -> None:
        """Record an answer, within a second."""
        if self._extent == "all":
            self.noted(event)

    def noted(self, event: AuditEvent) -> None:
        """Record something that nobody waits for, such as a load, within a second."""
        if not self.on:
            return
        if len(self._waiting) >= MOST_WAITING:
            self.counts.lost += 1
            self._lost_untold += 1
            return
        self._waiting.append(event)

    def refused(self, event: AuditEvent) -> None:
        """Record a refusal, within a second; equal ones are counted."""
        if not self.on:
            return
        key = (event.actor, event.action, event.target, tuple(event.more.items()))
        first = self._refusals.get(key)
        if first is None and len(self._refusals) >= MOST_WAITING:
            self.counts.lost += 1
            self._lost_untold += 1
            return
        count = first.more.get("count", 1) + 1 if first else 1
        self._refusals[key] = replace(event, more={**event.more, "count": count}) if first else event

    async def keep_writing(self) -> None:
        """Until cancelled: write the entries that wait."""
        while True:
            await asyncio.sleep(BATCH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write the entries that wait; where there is no room they are lost, and counted."""
        if events := self._taken():
            await asyncio.to_thread(self._append, events, from_reserve=False)

    def _taken(self) -> list[AuditEvent]:
        """The entries that wait, which then wait no more; the event loop alone takes them."""
        waiting = [*self._waiting, *self._refusals.values()]
        self._waiting, self._refusals = [], {}
        return waiting

    def _append(self, events: list[AuditEvent], from_reserve: bool) -> None:
        lost = self._lost_untold
        gap = [AuditEvent(DAEMON, "audit.gap", more={"lost": lost})] if lost else []
        try:
            head = self._log.append([*gap, *events], from_reserve=from_reserve)
        except AuditFailed as failure:
            self._missed(len(events), failure)
        else:
            self._written(len(gap) + len(events), head)
            self._lost_untold -= lost

    def _written(self, count: int, head: Head) -> None:
        self.counts.written += count
        if self._fails:
            log.info("the audit log is written again")
            self._fails = ""
        if head.seq - self._printed >= PRINT_EVERY:
            self._print(head)

    def _missed(self, count: int, failure: AuditFailed) -> None:
        self.counts.lost += count
        self._lost_untold += count
        if self._fails != str(failure):
            log.warning("%s; what goes on is not recorded: %s", failure, failure.hint)
        self._fails = str(failure)

    def _print(self, head: Head) -> None:
        """Tell the head to the log, or the journal: an anchor that whoever changes the file does not have."""
        log.info("audit head %s", head)
        self._printed = head.seq

    def start(self, settings: Mapping[str, Any], version: str) -> None:
        """Say that the daemon starts, with its settings."""
        if not self.on:
            return
        told = {name: value for name, value in settings.items() if name not in SECRETS and value not in ("", [], None)}
        shown = {name: redacted(str(value)) for name, value in told.items()}
        with contextlib.suppress(AuditFailed):  # the daemon runs, so that `lm rm` makes room
            self._print(self._log.append([AuditEvent(DAEMON, "daemon.start", version, more={"settings": shown})]))
            return
        log.warning("the audit log in `%s` cannot be written: acts that take an entry are refused", self._log.folder)

    async def stop(self) -> None:
        """Write what waits, and say that the daemon ends."""
        if not self.on:
            return
        await self.flush()
        await self.act(AuditEvent(DAEMON, "daemon.stop"))
        with contextlib.suppress(AuditFailed):
            self._print(await asyncio.to_thread(self._log.head))
        self._log.close()
