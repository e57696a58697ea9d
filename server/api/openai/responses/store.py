"""Responses that were stored: in memory only, bounded in number, bytes and age, each for the key that made it.

A response keeps its own input and output, and the id of the response before it. Whoever deletes a response takes its
words from its successors, too: these cannot be continued any more.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from server.api.openai.responses.items import Item
from server.api.respond import Json
from server.errors import NoSuchObject

MOST = 1000
MOST_BYTES = 64 << 20
SECONDS = 3600.0


@dataclass
class Background:
    """An answer that is made without a connection: its task, and its events so far."""

    task: asyncio.Task[None] | None = None
    events: list[Json] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def push(self, event: Json) -> None:
        """Add an event."""
        self.events.append(event)
        self.changed.set()

    def end(self) -> None:
        """No more events come."""
        self.ended.set()
        self.changed.set()

    async def follow(self, after: int = -1) -> AsyncGenerator[Json]:
        """The events whose number is above `after`, those to come too."""
        at = after + 1
        while True:
            for event in self.events[at:]:
                at += 1
                yield event
            if self.ended.is_set() and at >= len(self.events):
                return
            self.changed.clear()
            if not self.ended.is_set() and at >= len(self.events):
                await self.changed.wait()


@dataclass
class StoredResponse:
    """A response, and the input that its request had. `used` is the moment of its last use, by the loop's clock."""

    owner: str
    response: Json
    items: list[Item]
    background: Background | None = None
    size: int = 0
    used: float = 0.0

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.response["id"])

    @property
    def previous(self) -> str | None:
        """The id of the response that it continues."""
        found = self.response["previous_response_id"]
        return None if found is None else str(found)

    def measure(self) -> None:
        """Find its size in bytes."""
        events = self.background.events if self.background else []
        self.size = len(msgspec.json.encode([self.response, self.items, events]))


class ResponseStore:
    """The stored responses, the least recently used one first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, StoredResponse] = OrderedDict()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, stored: StoredResponse) -> None:
        """Store a response, or take in that it has grown; the least recently used ones make room."""
        before = self._kept.pop(stored.id, None)
        self._bytes -= before.size if before else 0
        stored.measure()
        stored.used = _now()
        self._kept[stored.id] = stored
        self._bytes += stored.size
        while len(self._kept) > MOST or self._bytes > MOST_BYTES:
            self._drop(next(iter(self._kept)))
        self._expire()

    def find(self, owner: str, identity: str, field: str = "") -> StoredResponse:
        """The response of this id. Raises NoSuchObject where the owner has none; `field` is the field that names it."""
        self._expire()
        stored = self._kept.get(identity)
        if stored is None or stored.owner != owner:
            shown = identity[:80]
            hint = f"responses are kept in memory for {SECONDS / 60:.0f} minutes after their last use; `store: false` "
            raise NoSuchObject(f"there is no response `{shown}` for this key", f"{hint}keeps none", field)
        stored.used = _now()
        self._kept.move_to_end(identity)
        return stored

    def history(self, owner: str, identity: str) -> list[Item]:
        """The items of a conversation up to a response, from the first on. Raises NoSuchObject."""
        chain = []
        at: str | None = identity
        while at is not None:
            stored = self.find(owner, at, "previous_response_id")
            chain.append([*stored.items, *stored.response["output"]])
            at = stored.previous
        return [item for items in reversed(chain) for item in items]

    def item(self, owner: str, identity: str) -> Item:
        """The item of this id in any response of the owner. Raises NoSuchObject."""
        for stored in reversed(self._kept.values()):
            items: list[Item] = [*stored.items, *stored.response["output"]] if stored.owner == owner else []
            for item in items:
                if item["id"] == identity:
                    return item
        raise NoSuchObject(f"there is no item `{identity[:80]}` for this key", "send the item itself", "input")

    def delete(self, owner: str, identity: str) -> None:
        """Forget a response at once, and end what still makes it. Raises NoSuchObject."""
        self.find(owner, identity)
        self._drop(identity)

    def has(self, stored: StoredResponse) -> bool:
        """Whether a response is still here."""
        return self._kept.get(stored.id) is stored

    async def close(self) -> None:
        """End what is made in the background, and forget all."""
        tasks = [each.background.task for each in self._kept.values() if each.background and each.background.task]
        for identity in list(self._kept):
            self._drop(identity)
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _drop(self, identity: str) -> None:
        stored = self._kept.pop(identity)
        self._bytes -= stored.size
        if stored.background and stored.background.task:
            stored.background.task.cancel()

    def _expire(self) -> None:
        """Forget what was not used for an hour, and look again when the next one comes to its end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._kept:
            identity, stored = next(iter(self._kept.items()))
            left = stored.used + SECONDS - _now()
            if left > 0:
                self._timer = asyncio.get_running_loop().call_later(left + 1, self._expire)
                return
            self._drop(identity)


def _now() -> float:
    return asyncio.get_running_loop().time()


RESPONSES = web.AppKey("responses", ResponseStore)
