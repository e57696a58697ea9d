"""The bounds of stored responses, files and batches, without a daemon."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from registry.store import fsops
from server.api.openai.batches import lines
from server.api.openai.batches.runner import BatchRunner, OwnAnswer
from server.api.openai.batches.store import BatchRecord, BatchStore
from server.api.openai.files import store as files
from server.api.openai.files.store import FileStore
from server.api.openai.responses import store as responses
from server.api.openai.responses.items import Item, new_item, output_text, sealed, turns_of, unsealed
from server.api.openai.responses.store import ResponseStore, StoredResponse
from server.errors import NoSuchObject, SpaceUsed
from tests.server.loops import alone

CHAT = "/v1/chat/completions"


def stored(name: str, text: str = "", previous: str | None = None, owner: str = "me") -> StoredResponse:
    message = new_item("message", f"msg_{name}", role="assistant", content=[output_text(text)])
    return StoredResponse(owner, {"id": name, "previous_response_id": previous, "output": [message]}, [])


def has(store: ResponseStore, name: str) -> bool:
    try:
        store.find("me", name)
    except NoSuchObject:
        return False
    return True


@alone
async def test_the_least_recently_used_response_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MOST", 3)
    store = ResponseStore()
    for name in "abc":
        store.keep(stored(name))
    assert has(store, "a")
    store.keep(stored("d"))
    assert [name for name in "abcd" if has(store, name)] == ["a", "c", "d"]
    await store.close()
    assert not has(store, "a")


@alone
async def test_bytes_of_responses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MOST_BYTES", 5000)
    store = ResponseStore()
    for name in "abc":
        store.keep(stored(name, "x" * 2000))
    assert [name for name in "abc" if has(store, name)] == ["b", "c"]
    store.keep(stored("huge", "x" * 6000))
    assert not has(store, "huge")
    await store.close()


@alone
async def test_a_response_goes_an_hour_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(responses, "_now", lambda: now)
    store = ResponseStore()
    store.keep(stored("a"))
    store.keep(stored("b", previous="a"))
    now = 3000.0
    assert store.history("me", "b")  # a conversation that goes on stays whole
    now = 6000.0
    assert has(store, "a") and has(store, "b")
    now = 6000.0 + responses.SECONDS
    assert not has(store, "a") and not has(store, "b")
    await store.close()


@alone
async def test_a_deleted_response_takes_its_words_from_those_behind_it() -> None:
    store = ResponseStore()
    store.keep(stored("a", "secret"))
    store.keep(stored("b", "more", previous="a"))
    texts = [item["content"][0]["text"] for item in store.history("me", "b")]
    assert texts == ["secret", "more"]
    with pytest.raises(NoSuchObject):
        store.history("other", "b")
    with pytest.raises(NoSuchObject):
        store.item("other", "msg_a")
    store.delete("me", "a")
    with pytest.raises(NoSuchObject):
        store.history("me", "b")
    await store.close()


def test_items_become_turns_of_the_assistant() -> None:
    def said(text: str) -> Item:
        return new_item("message", role="assistant", content=[output_text(text)])

    def called(name: str) -> Item:
        return new_item("function_call", call_id=name, name=name, arguments="{}")

    thinking = new_item("reasoning", summary=[], content=[], encrypted_content=sealed("hm"))
    result = new_item("function_call_output", call_id="f", output="5")
    turns = turns_of([thinking, said("I see."), called("f"), called("g"), result, said("Five."), said("Really.")])
    assert [(turn.role, turn.text, turn.thinking, len(turn.calls)) for turn in turns] == [
        ("assistant", "I see.", "hm", 2), ("tool", "5", "", 0), ("assistant", "Five.", "", 0),
        ("assistant", "Really.", "", 0),
    ]  # fmt: skip
    assert turns_of([thinking]) == []
    assert unsealed("lm1.!!!") is None and unsealed("gAAA") is None


@alone
async def test_files_of_a_key_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 10)
    store = FileStore(tmp_path)
    one = await store.begin("me")
    await store.append(one, b"x" * 8, sync=True)
    two = await store.begin("me")
    with pytest.raises(SpaceUsed):
        await store.append(two, b"x" * 3, sync=True)
    await store.append(await store.begin("other"), b"x" * 9, sync=True)  # another key's files do not count
    await store.finish(one, "a", "batch")
    await store.drop(two)
    again = FileStore(tmp_path)
    again.load(set())
    assert [each.id for each in again.of("me")] == [one] and again.used("me") == 8
    assert {path.name for path in (tmp_path / "files").iterdir()} == {one}  # what broke off is gone


@alone
async def test_files_go_when_their_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)
    names = [await store.begin("me") for _ in range(2)]
    for name in names:
        await store.finish(name, "a", "batch", 3600)
    later = files.now() + 3601
    monkeypatch.setattr(files, "now", lambda: later)
    with pytest.raises(NoSuchObject):
        store.find("me", names[0])
    await store.expire({names[1]})
    assert [each.id for each in store.of("me")] == [names[1]]


def record(identity: str = "batch_1", **more: Any) -> BatchRecord:
    made = {"owner": "me", "endpoint": CHAT, "input_file_id": "in", "created_at": 0, "expires_at": 2**40}
    return BatchRecord(id=identity, output="file-out", failures="file-bad", **(made | more))


def rows(count: int) -> bytes:
    line = {"method": "POST", "url": CHAT, "body": {"model": "tiny"}}
    return b"".join(json.dumps({"custom_id": str(n)} | line).encode() + b"\n" for n in range(count))


class Desk:
    """The daemon as a batch sees it: `answers` are given one after the other, then 200."""

    def __init__(self, home: Path, answers: list[OwnAnswer | None] | None = None) -> None:
        self.files, self.batches = FileStore(home), BatchStore(home)
        self.answers = answers or []
        self.asked = 0
        self.runner = BatchRunner(self.batches, self.files, self.ask, lambda: 0, 2)

    async def ask(self, owner: str, path: str, body: bytes) -> OwnAnswer | None:
        self.asked += 1
        assert (owner, path) == ("me", CHAT)
        usage = b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}'
        return self.answers.pop(0) if self.answers else OwnAnswer(200, {}, usage)

    async def work(self, batch: BatchRecord, data: bytes) -> BatchRecord:
        """The batch when it has ended."""
        running = asyncio.create_task(self.runner.run())
        await self.batches.loaded.wait()
        batch.input_file_id = await self.files.begin("me")
        await self.files.append(batch.input_file_id, data, sync=True)
        await self.files.finish(batch.input_file_id, "in", "batch")
        await self.batches.add(batch)
        async with asyncio.timeout(60):
            while not batch.ended:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
        return batch


@alone
async def test_what_is_busy_is_asked_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [OwnAnswer(429, {"retry-after": "0"}, b"{}"), OwnAnswer(503, {"retry-after": "0"}, b"{}")])
    batch = await desk.work(record(), rows(1))
    assert (batch.status, batch.completed, desk.asked) == ("completed", 1, 3)
    assert (batch.usage.input, batch.usage.output) == (1, 2)


@alone
async def test_a_fault_that_stays_is_told(tmp_path: Path) -> None:
    faults: list[OwnAnswer | None] = [OwnAnswer(500, {"retry-after": "0"}, b"{}")] * 3
    batch = await Desk(tmp_path, faults).work(record(), rows(1))
    assert (batch.status, batch.failed, batch.told()["output_file_id"]) == ("completed", 1, None)


@alone
async def test_a_batch_ends_with_its_key(tmp_path: Path) -> None:
    batch = await Desk(tmp_path, [None]).work(record(), rows(3))
    assert (batch.status, batch.errors[0]["code"]) == ("failed", "key_ended")


@alone
async def test_a_batch_that_is_late_says_which_requests_are_left(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    batch = await desk.work(record(expires_at=0), rows(5))
    assert (batch.status, batch.completed + batch.failed) == ("expired", 5)
    assert batch.failed
    told = desk.files.content(batch.failures).read_text().splitlines()
    assert all(json.loads(line)["error"]["code"] == "batch_expired" for line in told)


@alone
async def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line that a full disk left is cut off, and its request is asked again."""
    monkeypatch.setattr("server.api.openai.batches.runner.DISK_SECONDS", 0.01)
    append, full = fsops.append, [True, True]

    def short(path: Path, data: bytes) -> None:
        if b"custom_id" in data and b"response" in data and full:
            full.pop()
            append(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        append(path, data)

    monkeypatch.setattr(fsops, "append", short)
    desk = Desk(tmp_path)
    batch = await desk.work(record(), rows(6))
    assert (batch.status, batch.completed) == ("completed", 6)
    found = [json.loads(line)["custom_id"] for line in desk.files.content(batch.output).read_text().splitlines()]
    assert sorted(found) == [str(n) for n in range(6)]


@alone
async def test_too_many_requests_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_REQUESTS", 3)
    batch = await Desk(tmp_path).work(record(), rows(4))
    assert (batch.status, batch.errors[0]["code"]) == ("failed", "too_many_requests")
