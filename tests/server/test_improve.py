"""A model is improved, from its source to the way back; and its bad days: removed, replaced, asked for, killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.sources.opening import DEMO
from registry.store.store import Store
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model, wait_until
from tests.hub import Hub
from tests.storing import put_better

NAME = "original:Q3_K_M"
ASKED = {"model": NAME, "now": True, "windows": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a model made of a folder, the kernels that were compiled for it, and the folder."""
    root = tmp_path_factory.mktemp("improve")
    shutil.copytree(DEMO, root / "original")
    with Daemon(root / "home", runtime="llama", env={"LM_IMPROVE": "off"}) as daemon:
        daemon.pull(f"{root / 'original'}:Q3_K_M")
        warm = daemon.post("/lm/improve", ASKED).lines[-1]
        assert warm["state"] == "better", warm
        assert daemon.post("/lm/rollback", {"model": NAME}).status == 200
    return root


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    """A copy of that home, without what was collected and noted there."""
    shutil.copytree(prepared / "home", tmp_path / "home")
    for name in ("improve", "logs", "cache/statistics", "cache/quality"):
        shutil.rmtree(tmp_path / "home" / name)
    return tmp_path / "home"


def improve(daemon: Daemon, **more: Any) -> dict[str, Any]:
    """The last line of an improvement."""
    last: dict[str, Any] = daemon.post("/lm/improve", ASKED | more).lines[-1]
    return last


def until(daemon: Daemon, step: str) -> Iterator[Any]:
    """The connection of an improvement that has reached a step; left when the iterator is closed."""
    with daemon.opened("POST", "/lm/improve", ASKED) as response:
        for line in response:
            found = json.loads(line)
            assert "error" not in found, found
            if found["phase"] == step:
                break
        yield response


def at(daemon: Daemon, step: str) -> Any:
    return next(steps := until(daemon, step)), steps


def blob(daemon: Daemon) -> str:
    """The digest of the model's weights, which are whole."""
    with_store = daemon.post("/api/show", {"model": NAME}).json
    assert with_store["details"]["quantization_level"] == "Q3_K_M"
    (path,) = (daemon.home / "store" / "manifests").rglob("Q3_K_M")
    layers = json.loads(path.read_text())["layers"]
    return next(str(each["digest"]) for each in layers if each["mediaType"].endswith("image.model"))


def job(daemon: Daemon) -> dict[str, Any]:
    (found,) = daemon.get("/lm/jobs").json["improvements"]
    return dict(found)


def check_store(home: Path) -> None:
    """Each blob hashes to its name, each model is whole, and no file is left in the making."""
    for path in (home / "store" / "blobs").iterdir():
        assert path.name == f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}"
    with Store.open(home / "store") as store:
        assert [model.problem for model in store.models()] == [""]


@pytest.mark.slow
def test_the_whole_way_by_the_terminal(home: Path) -> None:
    with Daemon(home, runtime="llama") as daemon:
        lm = Cli.at(home, daemon.url.removeprefix("http://"))
        plain, size = blob(daemon), daemon.listed()[0]["size"]
        wanted = lm("improve", "original")
        assert wanted.code == 0 and "is improved when this machine is idle (somebody asked" in wanted.err, wanted.err
        assert job(daemon)["state"] == "wanted"
        off = lm("improve", "original", "--off")
        assert off.code == 0 and job(daemon)["state"] == "off", off.err
        done = improve(daemon)
        assert done["state"] == "better" and done["after"]["mean"]["value"] < 0.7 * done["before"]["mean"]["value"]
        better = blob(daemon)
        assert better != plain and abs(daemon.listed()[0]["size"] - size) < 1 << 16
        shown = lm("show", "original").out
        assert "KL divergence" in shown and "`lm rollback` goes back" in shown, shown
        assert "which takes" in lm("list").err and "(`lm rollback`)" in lm("du").err
        jobs = lm("jobs")
        assert "better" in jobs.out and "→" in jobs.out and jobs.code == 0, jobs.out
        again = lm("pull", "original")
        assert again.code == 0 and blob(daemon) == better, "a pull leaves the better file"
        assert lm("improve", "original", "--now").code == 1, "it is made with the best effort already"
        back = lm("rollback", "original")
        assert back.code == 0 and blob(daemon) == plain, back.err
        card = daemon.listed()[0]["quality"]
        assert card["mean"] == done["before"]["mean"], "the older card stays with the older file"
        twice = lm("rollback", "original")
        assert twice.code == 1 and "nothing to go back to" in twice.err
        assert job(daemon)["state"] == "rolled back" and job(daemon)["after"] == done["after"]["mean"]
    check_store(home)


@pytest.mark.slow
def test_a_machine_that_is_idle_improves_its_models_by_itself_once(home: Path) -> None:
    env = {"LM_IMPROVE_AFTER": "0.2", "LM_IMPROVE_SHARE": "90"}
    with Daemon(home, runtime="llama", env=env) as daemon:
        plain = blob(daemon)
        wait_until(lambda: daemon.get("/lm/jobs").json["improvements"], 60)
        assert daemon.post("/api/generate", {"model": NAME, "prompt": "Once"}).lines[-1]["done"]
        wait_until(lambda: job(daemon)["state"] == "better", 120, step=0.2)
        assert blob(daemon) != plain
        assert daemon.post("/lm/rollback", {"model": NAME}).status == 200
        assert job(daemon)["state"] == "rolled back"
    with Daemon(home, runtime="llama", env=env) as daemon:
        assert job(daemon)["state"] == "rolled back" and blob(daemon) == plain
    check_store(home)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["grams", "planned", "improved"])
def test_a_client_that_leaves_pauses_it_and_the_same_command_goes_on(home: Path, step: str) -> None:
    with Daemon(home, runtime="llama") as daemon:
        plain = blob(daemon)
        _, steps = at(daemon, step)
        steps.close()
        wait_until(lambda: job(daemon)["state"] == "wanted", 20)
        assert blob(daemon) == plain
        lines = daemon.post("/lm/improve", ASKED).lines
        assert lines[-1]["state"] == "better", lines[-1]
        assert step == "grams" or any("are here already" in line["status"] for line in lines)
    check_store(home)


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["removed", "made anew", "asked for", "measured"])
def test_a_model_may_be_used_in_any_way_while_it_is_improved(home: Path, deed: str) -> None:
    with Daemon(home, runtime="llama") as daemon:
        response, steps = at(daemon, "planned")
        if deed == "removed":
            assert daemon.ask("DELETE", "/api/delete", {"model": NAME}).status == 200
        elif deed == "made anew":
            made = daemon.post("/lm/quantize", {"model": NAME, "level": "Q3_K_M"}).lines[-1]
            assert made["status"] == "success", made
            anew = blob(daemon)
        elif deed == "measured":
            measured = daemon.post("/lm/quality", {"model": NAME, "windows": 2}).lines[-1]
            assert measured["status"] == "success", measured
        else:
            assert daemon.post("/api/generate", {"model": NAME, "prompt": "Once"}).lines[-1]["done"]
        last = json.loads(response.read().splitlines()[-1])
        steps.close()
        if deed == "removed":
            assert last["code"] == "conflict" and "was removed while it was improved" in last["error"], last
            assert daemon.listed() == [] and not list((home / "store" / "blobs").iterdir())
        elif deed == "made anew":
            assert last["code"] == "conflict" and "was brought in anew" in last["error"], last
            assert blob(daemon) == anew and job(daemon)["state"] == "failed"
        else:
            assert last["state"] == "better", last
        assert not list((home / "store" / "ingest").iterdir())


@pytest.mark.slow
def test_texts_that_are_too_short_and_sources_that_have_changed_are_refused(home: Path, prepared: Path) -> None:
    weights = prepared / "original" / "model.safetensors"
    before = weights.stat()
    with Daemon(home, runtime="llama") as daemon:
        plain = blob(daemon)
        short = improve(daemon, text="once")
        assert short["code"] == "bad_request" and "one window takes 512" in short["error"], short
        try:
            os.utime(weights)
            stale = improve(daemon)
        finally:
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert stale["code"] == "conflict" and "has changed since" in stale["error"], stale
        assert blob(daemon) == plain and job(daemon)["state"] == "failed"
        assert not list((home / "store" / "ingest").iterdir())


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_changes_nothing(home: Path) -> None:
    store = home / "store"
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    shutil.move(store, home / "before")
    store.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size + (3 << 20)},mode=700", "tmpfs", str(store)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        shutil.copytree(home / "before", store, dirs_exist_ok=True)
        with Daemon(home, runtime="llama") as daemon:
            plain = blob(daemon)
            full = improve(daemon)
            assert full["code"] in ("does_not_fit", "disk_full"), full
            assert blob(daemon) == plain and job(daemon)["state"] == "wanted", "it is tried again later"
        check_store(home)
    finally:
        subprocess.run(["umount", str(store)], check=True)


@pytest.mark.slow
def test_weights_at_a_hub_are_fetched_where_somebody_wants_it_and_their_bytes_are_said(home: Path) -> None:
    env = {"LM_IMPROVE_AFTER": "0.2", "LM_IMPROVE_SHARE": "100"}
    shutil.rmtree(home / "store")
    with Hub({"org/demo": DEMO}) as hub, Daemon(home, runtime="llama", env=env | {"HF_ENDPOINT": hub.url}) as daemon:
        daemon.pull("org/demo:Q3_K_M")
        sent = hub.bytes_sent
        wait_until(lambda: daemon.get("/lm/jobs").json["waits"] == "", 20)
        assert daemon.get("/lm/jobs").json["improvements"] == []
        wanted = daemon.post("/lm/improve", {"model": "org/demo"}).json
        assert wanted["state"] == "wanted" and 20e6 < wanted["download_bytes"] < 30e6, wanted
        assert hub.bytes_sent - sent < 5e6, "headers alone"
        wait_until(lambda: job(daemon)["state"] == "better", 120, step=0.2)
        assert hub.bytes_sent - sent > 11e6


def test_a_running_answer_ends_on_the_file_that_it_began_with(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Store.open(tmp_path / "store") as store:
        before = store.resolve("tiny")
        put_better(store, before, before.blob.read_bytes() + b"\0" * 32)
    with Daemon(tmp_path, script={"tokens": ["one "] * 40, "delay": 0.02}) as daemon:
        with daemon.opened("POST", "/api/generate", {"model": "tiny", "prompt": "x"}) as response:
            response.readline()
            assert daemon.post("/lm/rollback", {"model": "tiny"}).status == 200
            lines = [json.loads(line) for line in response]
        assert lines[-1]["done_reason"] == "stop" and len(lines) > 30, lines[-1]
        wait_until(lambda: daemon.get("/api/ps").json["models"] == [], 5)
        wait_until(lambda: len([*(tmp_path / "store" / "blobs").iterdir()]) == 3, 5)  # the better file goes then


@pytest.mark.parametrize(
    "kills", [pytest.param(6, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long(name="improvements"))]
)
def test_an_improvement_that_is_killed_at_any_moment_loses_nothing(home: Path, kills: int) -> None:
    chance, finished, seen = random.Random(kills), 0, set[str]()
    env = {"LM_IMPROVE": "off"}
    with Daemon(home, runtime="llama", env=env) as daemon:
        plain = blob(daemon)
    for death in range(kills + 1):
        daemon = Daemon(home, runtime="llama", env=env)
        (row,) = daemon.listed()
        own = daemon.post("/api/show", {"model": NAME}).json["lm"]
        assert not row["problem"] and ("improved" in own) == (blob(daemon) != plain)
        if "improved" in own:  # the better one: it can go back, and the next one begins anew
            assert own["improved"]["after"]["value"] < own["improved"]["before"]["value"] and row["older"]["size"] > 0
            assert daemon.post("/lm/rollback", {"model": NAME}).status == 200
            finished += 1
            for name in ("statistics", "quality"):
                shutil.rmtree(home / "cache" / name, ignore_errors=True)
        assert blob(daemon) == plain
        if death < kills:
            seen.add(killed_at(daemon, chance.uniform(0.05, 9.0)))
        daemon.kill()
        check_store(home)
        if death % 20 == 19 or death == kills:
            phases = ", ".join(sorted(seen))
            print(f"\n{death} deaths, {finished} improved models, 0 lost, 0 worse; deaths in: {phases}", flush=True)


def killed_at(daemon: Daemon, seconds: float) -> str:
    """Kill a daemon so long after an improvement has begun; the phase that was reached."""
    killing, phase = threading.Timer(seconds, daemon.process.kill), ""
    killing.start()
    with contextlib.suppress(OSError, ValueError):
        with daemon.opened("POST", "/lm/improve", ASKED) as response:
            for line in response:
                phase = json.loads(line).get("phase", "")
        killing.join()
    killing.join()
    return phase
