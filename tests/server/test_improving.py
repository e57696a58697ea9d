"""When models are improved by themselves, which ones, and what is refused."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from registry.store.store import Store
from runtime.child import Child
from server.children.background import BackgroundWork
from server.config import Config
from server.improving.idle import Idleness, on_battery, within
from server.improving.records import ImprovementRecord, Records, speaks_of
from server.settings import BadSetting
from tests.daemon import Daemon, put_model
from tests.storing import put, put_better

GOOD = {"source": "org/kept", "level": "Q4_K_M", "content": "abc"}


def config(**env: str) -> Config:
    return Config.load(env={f"LM_{name.upper()}": value for name, value in env.items()}, file=Path("/none"))


@pytest.mark.parametrize(
    ("hours", "hour", "minute", "inside"),
    [
        ("22-6", 23, 0, True),
        ("22-6", 5, 59, True),
        ("22-6", 6, 0, False),
        ("9:30-17", 9, 29, False),
        ("9:30-17", 9, 30, True),
        ("0-24", 12, 0, True),
    ],
)
def test_hours_go_over_midnight(hours: str, hour: int, minute: int, inside: bool) -> None:
    found = config(improve_hours=hours).improve_hours
    assert within(found, datetime(2026, 1, 1, hour, minute)) == inside


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("improve", "sometimes"),
        ("improve_hours", "noon"),
        ("improve_hours", "22-22"),
        ("improve_hours", "25-3"),
        ("improve_share", "0"),
        ("improve_after", "soon"),
    ],
)
def test_settings_that_say_nothing_are_refused(name: str, value: str) -> None:
    with pytest.raises(BadSetting, match=name.upper()):
        config(**{name: value})


def test_work_waits_for_people_pulls_hours_and_mains_power(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, pulls, battery = SimpleNamespace(pending=0), [dict[str, Any]()], SimpleNamespace(power_plugged=True)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)

    async def reasons() -> None:
        jobs: Any = SimpleNamespace(under_way=lambda: pulls)
        idle = Idleness(config(improve_after="0", improve_hours="1-2"), pool, jobs, lambda: datetime(2026, 1, 1, 1, 30))  # type: ignore[arg-type]
        assert "is brought in" in idle.why_not()
        pulls.clear()
        assert idle.why_not() == ""
        pool.pending = 1
        assert "somebody asks" in idle.why_not()
        pool.pending, battery.power_plugged = 0, False
        assert "battery" in idle.why_not()
        late = Idleness(config(improve_after="0", improve_hours="1-2"), pool, jobs, lambda: datetime(2026, 1, 1, 3, 0))  # type: ignore[arg-type]
        assert "01:00-02:00" in late.why_not()
        slow = Idleness(config(), pool, jobs)  # type: ignore[arg-type]
        assert "300 s after the last request" in slow.why_not()
        for off in (config(improve="off"), config(improve_after="-1")):
            assert "improve" in Idleness(off, pool, jobs).why_not()  # type: ignore[arg-type]

    asyncio.run(reasons())
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None)
    assert not on_battery()


@pytest.fixture
def children_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.mark.usefixtures("children_find_the_tests")
def test_background_work_stands_still_goes_on_and_ends() -> None:
    def state(child: Child) -> str:
        return psutil.Process(child.pid).status()

    async def until(child: Child, wanted: set[str]) -> None:
        async with asyncio.timeout(20):
            while state(child) not in wanted:
                await asyncio.sleep(0.01)

    async def life() -> None:
        work = BackgroundWork()
        child = await Child.spawn("tests.runtime.echo_child", ["sleep"])
        with work.has(child):
            assert work.has_processes
            work.hold("somebody asks")
            await until(child, {psutil.STATUS_STOPPED})
            work.release()
            await until(child, {psutil.STATUS_SLEEPING, psutil.STATUS_RUNNING})
            work.hold("somebody asks")
            await until(child, {psutil.STATUS_STOPPED})
            ending = asyncio.create_task(work.end("its memory is needed"))
            assert await child.wait() == -9
        await ending
        assert not work.has_processes and work.ended == "its memory is needed"
        late = await Child.spawn("tests.runtime.echo_child", ["sleep"])
        with work.has(late):
            assert await late.wait() == -9, "nothing is begun after the end"

    asyncio.run(life())


@pytest.mark.usefixtures("children_find_the_tests")
def test_a_share_of_the_time_is_kept() -> None:
    async def life() -> tuple[int, int]:
        work = BackgroundWork(share=0.5)
        child = await Child.spawn("tests.runtime.echo_child", ["sleep"])
        seen = {True: 0, False: 0}
        with work.has(child):
            async with asyncio.timeout(60):
                while min(seen.values()) < 5:
                    seen[psutil.Process(child.pid).status() == psutil.STATUS_STOPPED] += 1
                    await asyncio.sleep(0.02)
            child.kill()
            await child.wait()
        return seen[True], seen[False]

    stopped, ran = asyncio.run(life())
    assert stopped >= 5 and ran >= 5


def test_records_count_for_their_weights_and_broken_ones_for_none(tmp_path: Path) -> None:
    records = Records(tmp_path / "improve")
    with Store.open(tmp_path / "store") as store:
        model = put(store, "org/model:Q4_K_M")
        assert records.of(model.name) is None and records.all() == []
        wish = ImprovementRecord(model.name, model.blob_digest, "wanted", "why", "2026-01-01", "1", True, True)
        records.note(wish, "a text\udc80")
        assert records.of(model.name) == wish and records.text(wish) == "a text?"
        done = ImprovementRecord(model.name, model.blob_digest, "no better", "why", "2026-01-02", "1")
        records.note(done)
        assert not list((tmp_path / "improve").glob("*.txt")), "a text goes with its wish"
        assert speaks_of(done, model)
        assert not speaks_of(done, put(store, "org/model:Q4_K_M", b"pulled anew"))
        (path,) = (tmp_path / "improve").glob("*.json")
        path.write_bytes(b'{"name')
        assert records.of(model.name) is None and records.all() == []


def test_requests_that_improve_nothing_are_refused_by_name(tmp_path: Path) -> None:
    put_model(tmp_path)
    put_model(tmp_path, "vectors", capabilities=("embedding",))
    config = {"model_format": "gguf", "file_type": "Q4_K_M", "capabilities": ["completion"]}
    with Store.open(tmp_path / "store") as store:
        put(store, "org/kept:Q4_K_M", config=config | {"lm": GOOD})
        put(store, "org/best:Q4_K_M", config=config | {"lm": GOOD | {"effort": "best"}})
        put(store, "org/plain:Q4_K_M", config=config | {"lm": {"source": "org/plain", "level": "Q4_K_M"}})
        put(store, "org/theirs:Q4_K_M", config=config | {"lm": GOOD | {"published": "x.gguf"}})
        put(store, "org/whole:F16", config=config | {"file_type": "F16", "lm": GOOD | {"level": "F16"}})
    with Daemon(tmp_path, env={"LM_OFFLINE": "1"}) as daemon:
        for body, code, said in (
            ({}, "bad_body", "model"),
            ({"model": "none"}, "model_not_found", "none"),
            ({"model": "vectors"}, "unsupported", "writes no text"),
            ({"model": "tiny"}, "unsupported", "too small"),
            ({"model": "org/best"}, "unsupported", "already"),
            ({"model": "org/plain"}, "unsupported", "does not say"),
            ({"model": "org/theirs"}, "unsupported", "nobody knows"),
            ({"model": "org/whole"}, "unsupported", "too small"),
            ({"model": "org/kept", "text": "  "}, "bad_body", "empty"),
            ({"model": "org/kept", "off": True, "now": True}, "bad_body", "excludes"),
            ({"model": "org/kept"}, "offline", "is not asked"),
        ):
            for now in ({}, {"now": True}) if code == "unsupported" else ({},):
                found = daemon.post("/lm/improve", body | now).lines[-1]
                assert found["code"] == code and said in found["error"], found
        assert daemon.post("/lm/rollback", {"model": "org/kept"}).json["code"] == "nothing_older"
        assert daemon.get("/lm/jobs").json["improvements"] == []
        left = daemon.post("/lm/improve", {"model": "org/kept", "off": True}).json
        assert left["state"] == "off" and daemon.get("/lm/jobs").json["improvements"][0]["state"] == "off"
    with Daemon(tmp_path, env={"LM_IMPROVE": "off"}) as daemon:
        found = daemon.post("/lm/improve", {"model": "org/kept"}).json
        assert found["code"] == "conflict" and "`improve` is off" in found["error"] and "--now" in found["hint"]
    (tmp_path / "policy.toml").write_text("require_signature = []\n")
    with Daemon(tmp_path) as daemon:
        assert daemon.post("/lm/improve", {"model": "org/kept"}).json["code"] == "policy_refused"


def test_an_improved_model_says_so_and_goes_back_in_a_moment(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Store.open(tmp_path / "store") as store:
        before = store.resolve("tiny")
        better = put_better(store, before, before.blob.read_bytes() + b"\0" * 32)
    with Daemon(tmp_path, script={}) as daemon:
        (row,) = daemon.listed()
        assert row["older"]["size"] > before.blob.stat().st_size - 1 and row["quality"]["mean"]["value"] < 0.2
        shown = daemon.post("/api/show", {"model": "tiny"}).json
        assert shown["lm"]["improved"]["after"]["value"] < shown["lm"]["improved"]["before"]["value"]
        usage = daemon.get("/lm/du").json
        assert usage["older"] > before.blob.stat().st_size and usage["unlisted"] == 0
        assert daemon.post("/lm/prune", {}).json["needless"] == []
        assert daemon.post("/api/generate", {"model": "tiny", "prompt": "x"}).lines[-1]["done"]
        back = daemon.post("/lm/rollback", {"model": "tiny"}).json
        assert back["digest"] == before.digest and better.digest != before.digest
        assert daemon.get("/api/ps").json["models"] == [], "the file that it was loaded from is gone"
        assert daemon.get("/lm/du").json["older"] == 0
        (job,) = daemon.get("/lm/jobs").json["improvements"]
        assert job["state"] == "rolled back" and job["after"]["value"] < 0.2
        assert daemon.post("/api/generate", {"model": "tiny", "prompt": "x"}).lines[-1]["done"]
        assert "older" not in daemon.listed()[0]
