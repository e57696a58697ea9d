"""The care of the store, as its routes offer it: check, disk usage, and what nothing needs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from registry.store import care
from registry.store.catalog import Model
from registry.store.store import Store
from server.carrying.following import Line, Send, follow
from server.carrying.signing import described
from server.policy.rules import ANYTHING, PolicyRules
from server.pulls.job import failure


async def verify(
    store: Store, models: list[Model], rules: PolicyRules = ANYTHING, whole: bool = False
) -> AsyncGenerator[Line]:
    """Hash the blobs of these models again; the last line has `models` with their problems, and `hurt`.

    Each model has its `signatures`, and `policy`, the sentence for which the rules want another one, "" where they do
    not. With `whole` it has its `files`, and the signatures themselves.
    """
    ending = threading.Event()

    def work(send: Send) -> Line:
        def progress(digest: str, done: int, total: int) -> None:
            status = f"verifying {digest[7:19]}"
            send({"status": status, "phase": "verifying", "digest": digest, "total": total, "completed": done})

        with store.hold(_digests(store, models)):
            found = care.check(store, models, progress, ending.is_set)
        by_name = {model.name: model for model in models}
        rows = [
            {"name": name, "problem": problem} | ({} if problem else described(store, by_name[name], rules, whole))
            for name, problem in found.problems.items()
        ]
        last = {"status": "success", "phase": "done", "models": rows, "hurt": found.hurt}
        return last | {"blobs": found.blobs, "bytes": found.read_bytes}

    async with aclosing(follow(work, ending.set)) as lines:
        async for line in lines:
            yield line


async def usage(store: Store, in_use: set[str]) -> dict[str, Any]:
    """Bytes that the store takes of the disk: `size` of each model, and the part that it has `alone`.

    `elsewhere` are bytes of files that are read where another program keeps them.
    """
    found = await asyncio.to_thread(care.room, store, tuple(in_use))
    rows = [
        {"name": each.model.name, "size": each.size, "alone": each.alone, "elsewhere": each.elsewhere}
        for each in found.models
    ]
    return {
        "models": sorted(rows, key=lambda row: -row["size"]),
        "blobs": found.blobs,
        "elsewhere": found.elsewhere,
        "unlisted": sum(found.unlisted.values()),
        "older": sum(found.older.values()),
        "partials": sum(found.partials.values()),
        "free": await asyncio.to_thread(store.free_bytes),
    }


async def needless(store: Store, in_use: set[str], active: set[str], paused: bool) -> list[dict[str, Any]]:
    """Things that nothing needs: blobs that no model lists, pulls that failed for good; with `paused` paused ones too.

    `active` are the pulls that are under way. Raises StoreDamaged, StoreFailed where nobody knows what is needed.
    """

    def find() -> list[dict[str, Any]]:
        blobs = [
            {"kind": "blob", "name": digest, "bytes": size, "reason": "no model lists it"}
            for digest, size in store.unlisted(in_use).items()
        ]
        pulls = []
        for ingest in store.partials():
            why, journal = failure(ingest.detached), ingest.journal
            if journal and ingest.title not in active and (why or paused):
                reason = f"it failed: {why}" if why else "it is paused"
                pulls.append({"kind": "pull", "name": ingest.title, "bytes": journal.latest.size, "reason": reason})
        return blobs + pulls

    return await asyncio.to_thread(find)


def _digests(store: Store, models: list[Model]) -> set[str]:
    return {layer.digest for model in models if not model.problem for layer in store.manifest(model)[1].blobs}
