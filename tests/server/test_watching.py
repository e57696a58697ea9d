"""The routes that a page watches the daemon by: events, recent requests, doctor's findings, the end of the log."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from runtime.machine.hardware import Gpu, amd_gpus
from server.config import Config
from server.doctor.frames import Finding
from server.keys.file import change_keys
from server.keys.record import new_key
from server.loaded.pool import Pool
from server.watching import sampling
from server.watching.activity import KEPT
from server.watching.examining import Examiner
from server.watching.sampling import Held, Sample, Watcher, columns
from tests.daemon import Daemon, allowed, put_model, wait_until
from tests.server.loops import alone

PARTS = ("weights", "cache", "compute", "others", "free")
SECRET = "a sentence that nobody else may read"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("watched")
    put_model(home)
    put_model(home, "other")
    with Daemon(home, script={"echo": True, "delay": 0.01}) as daemon:
        yield daemon


def now(daemon: Daemon, **headers: str) -> Any:
    answer = daemon.get("/lm/events?follow=false", **headers)
    assert answer.status == 200, answer.body
    return answer.json


def next_event(response: Any) -> Any:
    lines = iter(response.readline, b"\n")
    name, data = (line.partition(b": ")[2] for line in lines)
    event = json.loads(data)
    assert event["type"] == name.decode().strip()
    return event


def test_parts_of_memory_are_the_whole_of_it_and_agree_with_proc(daemon: Daemon) -> None:
    daemon.post("/api/generate", {"model": "tiny"})
    seen = now(daemon)
    memory = seen["memory"]
    assert sum(memory[part] for part in PARTS) == memory["limit"]
    assert 0 < memory["limit"] <= psutil.virtual_memory().total
    row = next(each for each in seen["models"] if each["name"] == "tiny:F32")
    status = Path(f"/proc/{daemon.workers()[0]}/status").read_text().splitlines()
    own = next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))
    assert row["cache"] + row["compute"] == pytest.approx(own, abs=8 << 20)
    assert (row["state"], row["pending"], row["waiting"]) == ("ready", 0, 0)
    kernel = psutil.virtual_memory().available
    assert memory["free"] <= kernel + (256 << 20)


def test_events_begin_with_the_past_and_go_on_until_the_listener_leaves(daemon: Daemon) -> None:
    with daemon.opened("GET", "/lm/events") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        past = next_event(response)
        assert past["type"] == "history"
        assert len({len(past[name]) for name in (*PARTS, "at", "tokens_per_second")}) == 1
        first, second = next_event(response), next_event(response)
        assert first["type"] == second["type"] == "now"
        assert second["at"] > first["at"]
    assert daemon.get("/health").status == 200


def test_tokens_queue_and_requests_show_while_they_happen(daemon: Daemon) -> None:
    prompt = " ".join(["word"] * 1000)
    with daemon.opened("POST", "/api/generate", {"model": "tiny", "prompt": prompt}) as answering:
        answering.readline()
        with daemon.opened("GET", "/lm/events") as response:
            next_event(response)
            event = next_event(response)
            while not event["models"] or not event["models"][0]["tokens_per_second"]:
                event = next_event(response)
        assert event["models"][0]["running"] == 1
        row = daemon.get("/lm/activity").json["requests"][0]
        assert (row["model"], row["route"], row["status"]) == ("tiny:F32", "/api/generate", "")
        assert row["prompt_tokens"] == 1000 and row["answer_tokens"] > 0
    wait_until(lambda: daemon.get("/lm/activity").json["requests"][0]["status"] == "gone", 10)


def test_activity_says_who_asked_what_and_never_a_word_of_it(daemon: Daemon) -> None:
    turns = [{"role": "user", "content": SECRET}]
    daemon.post("/v1/chat/completions", {"model": "tiny", "messages": turns})
    daemon.post("/api/generate", {"model": "other", "prompt": SECRET, "system": SECRET, "stream": False})
    daemon.post("/v1/embeddings", {"model": "tiny", "input": SECRET})
    daemon.post("/api/chat", {"model": "nowhere", "messages": turns})
    answer = daemon.get("/lm/activity")
    rows = answer.json["requests"][:4]
    assert [(row["model"], row["status"], row["code"]) for row in rows] == [
        ("nowhere", "404", "model_not_found"),
        ("tiny:F32", "200", ""),
        ("other:F32", "200", ""),
        ("tiny:F32", "200", ""),
    ]
    words = len(SECRET.split())
    assert [(row["prompt_tokens"], row["answer_tokens"]) for row in rows[1:]] == [
        (words, 0),
        (words, words),
        (words, words),
    ]
    assert rows[3]["first_text_seconds"] <= rows[3]["seconds"]
    assert SECRET.encode() not in answer.body and b"sentence" not in answer.body
    assert "tokens" not in json.dumps(now(daemon)["jobs"])
    for _ in range(KEPT):
        daemon.post("/api/chat", {"model": "nowhere"})
    assert len(daemon.get("/lm/activity").json["requests"]) == KEPT


def test_whoever_may_only_ask_sees_the_own_requests_and_models(tmp_path: Path) -> None:
    put_model(tmp_path)
    put_model(tmp_path, "other")
    keys = {
        "asks": new_key("infer", name="asks", models=("tiny",)),
        "asks too": new_key("infer", name="asks too"),
        "runs": new_key("operator", name="runs"),
    }
    change_keys(tmp_path / "keys.json", lambda _: [key for _, key in keys.values()])
    header = {name: {"Authorization": f"Bearer {secret}"} for name, (secret, _) in keys.items()}
    with Daemon(tmp_path, script={"echo": True}) as daemon:
        assert daemon.ask("POST", "/api/generate", {"model": "tiny", "prompt": "a"}, header["asks"]).status == 200
        assert daemon.ask("POST", "/api/generate", {"model": "other", "prompt": "a"}, header["asks too"]).status == 200

        def who(caller: str) -> list[str]:
            return [row["who"] for row in daemon.ask("GET", "/lm/activity", None, header[caller]).json["requests"]]

        assert (who("asks"), who("asks too"), who("runs")) == (["asks"], ["asks too"], ["asks too", "asks"])
        limited, wide = (now(daemon, **header[name]) for name in ("asks", "runs"))
        assert [each["name"] for each in limited["models"]] == ["tiny:F32"]
        assert {each["name"] for each in wide["models"]} == {"tiny:F32", "other:F32"}
        assert limited["memory"]["compute"] < wide["memory"]["compute"]
        assert sum(limited["memory"][part] for part in PARTS) == limited["memory"]["limit"]
        assert daemon.ask("GET", "/lm/doctor", None, header["asks"]).status == 403
        assert daemon.ask("GET", "/lm/log", None, header["runs"]).status == 403


def test_a_daemon_ends_at_once_though_somebody_listens(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path) as daemon, daemon.opened("GET", "/lm/events") as response:
        next_event(response)
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < allowed(5)
        assert response.read().endswith(b"\n\n")  # whole events, and the end of the stream


def test_the_doctor_of_the_page_finds_what_the_doctor_at_the_terminal_finds(daemon: Daemon) -> None:
    first = daemon.get("/lm/doctor").json
    found = {each["check"]: each for each in first["findings"]}
    assert {"memory", "disk", "home", "processor", "llama.cpp", "daemon", "access"} <= set(found)
    assert found["home"]["found"] == str(daemon.home)
    assert str(daemon.pid) in found["daemon"]["found"]
    assert daemon.get("/lm/doctor").json == first  # kept for a while
    assert daemon.get("/lm/doctor?anew=true").json["at"] > first["at"]


@alone
async def test_many_who_ask_the_doctor_get_one_examination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = 0

    async def machine(self: Examiner) -> list[Finding]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return [Finding("memory", "ok", "enough")]

    monkeypatch.setattr(Examiner, "_machine", machine)
    examiner = Examiner(Config.load({"home": str(tmp_path)}, {}))
    answers = await asyncio.gather(*(examiner.findings() for _ in range(5)))
    assert asked == 1 and all(answer == answers[0] for answer in answers)
    await examiner.findings(anew=True)
    assert asked == 2


def test_the_log_shows_its_end(daemon: Daemon) -> None:
    daemon.get("/api/tags")
    lines = daemon.get("/lm/log?lines=3").json["lines"]
    assert len(lines) == 3 and any("/api/tags" in line for line in lines)
    for text in ("0", "-1", "x", "1001", "9" * 5000, "٣"):
        assert daemon.ask("GET", f"/lm/log?lines={text.encode().hex() if text == '٣' else text}").status == 400


def test_hidden_models_count_as_other_programs() -> None:
    seen, hidden = (cast(Any, object()) for _ in range(2))
    sample = Sample(0.0, 0.0, 1000, 700, (Held(seen, 100, 20, 30, 5.0), Held(hidden, 50, 10, 10, 7.0)))
    assert sample.memory(lambda _: True) == {
        "limit": 1000,
        "weights": 150,
        "cache": 30,
        "compute": 40,
        "others": 230,
        "free": 550,
    }
    part = sample.memory(lambda model: model is seen)
    assert part == {"limit": 1000, "weights": 100, "cache": 20, "compute": 30, "others": 250, "free": 600}
    assert sample.rate(lambda model: model is seen) == 5.0
    crowded = Sample(0.0, 0.0, 100, 10, (Held(seen, 90, 20, 30),))
    assert crowded.memory(lambda _: True) == {
        "limit": 100,
        "weights": 90,
        "cache": 10,
        "compute": 0,
        "others": 0,
        "free": 0,
    }
    assert columns([sample, crowded], lambda _: True)["weights"] == [150, 90]


class Still:
    """A pool without models."""

    def processes(self) -> list[Any]:
        return []

    def tallies(self) -> list[Any]:
        return []


@alone
async def test_one_watcher_serves_all_listeners_and_rests_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "STEP_SECONDS", 0.01)
    monkeypatch.setattr(sampling, "cards_now", tuple)
    watcher = Watcher(cast(Pool, Still()))
    streams = [watcher.samples() for _ in range(3)]
    for stream in streams:
        await anext(stream)
    rows = await asyncio.gather(*(anext(stream) for stream in streams))
    assert rows[0] is rows[1] is rows[2]
    assert watcher.listeners == 3
    for stream in streams:
        await stream.aclose()
    assert watcher.listeners == 0
    await asyncio.sleep(0.05)  # it notices
    kept = len(watcher.history())
    await asyncio.sleep(0.1)
    assert len(watcher.history()) == kept
    last = watcher.samples()
    await anext(last)
    await watcher.stop()
    with pytest.raises(StopAsyncIteration):
        while True:
            await anext(last)


@alone
async def test_samples_older_than_ten_minutes_go_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher(cast(Pool, Still()))
    clock = 1000.0
    monkeypatch.setattr(sampling.time, "monotonic", lambda: clock)
    for _ in range(1000):
        clock += 1
        watcher.look()
    rows = watcher.history()
    assert len(rows) <= 600 and rows[0].clock > clock - 601
    clock += 601
    watcher.look()
    assert [row.clock for row in watcher.history()] == [clock]
    await watcher.stop()


def test_amds_driver_says_how_much_memory_a_card_has(tmp_path: Path) -> None:
    device = tmp_path / "card0" / "device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text("1000\n")
    assert amd_gpus(tmp_path) == ()
    (device / "mem_info_vram_used").write_text("400\n")
    assert amd_gpus(tmp_path) == (Gpu("AMD graphics card (card0)", 1000, 600),)
