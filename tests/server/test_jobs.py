"""Pulls through the daemon, from folders and from a hub of the tests' own, quantized by our kernels."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.errors import ModelNotFound, SourceUnavailable
from registry.sources.opening import DEMO
from server.pulls.trying import PAUSES, pause_after
from tests.daemon import Daemon, alive, wait_until
from tests.hub import Hub
from tests.publishing import make


@contextlib.contextmanager
def slow(hub: Hub) -> Iterator[None]:
    """The hub sends the model in about ten seconds, unless nobody waits for it."""
    hub.bandwidth = 1e6
    try:
        yield
    finally:
        hub.bandwidth = None


def stored(daemon: Daemon) -> set[str]:
    return {row["name"] for row in daemon.listed()}


def leftovers(daemon: Daemon) -> list[Path]:
    return list((daemon.home / "store" / "ingest").iterdir())


def licensed(folder: Path) -> Path:
    """The demo with a licence: another revision of it."""
    newer = folder / "newer"
    shutil.copytree(DEMO, newer)
    (newer / "README.md").write_text("---\nlicense: mit\n---\n")
    return newer


def test_the_demo_comes_in_quantized_with_its_reason(daemon: Daemon) -> None:
    lines = daemon.post("/api/pull", {"model": "demo"}).lines
    phases = [line["phase"] for line in lines if line["phase"] != "note"]  # one says where kernels are compiled
    assert phases[0] == "resolving"
    assert [phase for phase in dict.fromkeys(phases) if phase != "compiling"] == [
        "resolving",
        "planning",
        "planned",
        "writing",
        "committing",
        "done",
    ]
    planned = next(line for line in lines if line["phase"] == "planned")
    assert planned["reason"].startswith("Q8_0: ")
    assert lines[-1]["status"] == "success"
    assert lines[-1]["name"] == "demo:Q8_0"
    (row,) = [row for row in daemon.listed() if row["name"] == "demo:Q8_0"]
    assert row["reason"] == planned["reason"]
    assert row["details"]["parameter_size"] == "5.8M"
    shown = daemon.post("/api/show", {"model": "demo"}).json
    assert shown["model_info"]["general.architecture"] == "llama"
    assert {tensor["type"] for tensor in shown["tensors"]} == {"Q8_0", "F32"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "org/demo"])
def test_pulling_again_what_has_not_changed_moves_no_weight(daemon: Daemon, name: str) -> None:
    for level in ("Q8_0", "Q4_0"):
        daemon.pull(f"{name}:{level}")
    before = {path: path.stat().st_mtime_ns for path in (daemon.home / "store" / "blobs").iterdir()}
    lines = daemon.post("/api/pull", {"model": f"{name}:Q8_0"}).lines
    assert "writing" not in {line["phase"] for line in lines} and lines[-1]["status"] == "success"
    assert lines[-1]["name"].endswith("demo:Q8_0")
    assert {path: path.stat().st_mtime_ns for path in (daemon.home / "store" / "blobs").iterdir()} == before
    assert daemon.post("/api/show", {"model": name}).json["details"]["quantization_level"] == "Q8_0"
    assert not leftovers(daemon) and not partials(daemon)


@pytest.mark.slow
def test_a_level_of_ones_own_choosing_is_another_variant(daemon: Daemon) -> None:
    assert daemon.pull("demo:q4_k_m")["name"] == "demo:Q4_K_M"
    for name, level in (("demo:Q4_K_M", "Q4_K_M"), ("demo:Q8_0", "Q8_0"), ("demo", "Q8_0")):
        assert daemon.post("/api/show", {"model": name}).json["details"]["quantization_level"] == level


@pytest.mark.parametrize("key", ["model", "name"])
def test_a_repository_of_the_hub(daemon: Daemon, hub: Hub, key: str) -> None:
    answer = daemon.post("/api/pull", {key: "org/demo", "stream": False})
    assert (answer.status, answer.json["status"]) == (200, "success")
    assert answer.json["name"] == "hf.co/org/demo:Q8_0"
    own = daemon.post("/api/show", {"model": "org/demo"}).json["lm"]
    assert own["revision"] == hub.heads["org/demo"]


def test_the_source_decides_the_bytes_not_the_way_there(daemon: Daemon) -> None:
    demo, hub = (daemon.post("/api/show", {"model": name}).json for name in ("demo:Q8_0", "org/demo:Q8_0"))
    assert demo["tensors"] == hub["tensors"]


def test_two_clients_follow_one_job(daemon: Daemon, hub: Hub) -> None:
    followers: list[list[Any]] = []

    def follow() -> None:
        followers.append(daemon.post("/api/pull", {"model": "org/demo:Q6_K"}).lines)

    hub.bandwidth = 16e6
    before = hub.bytes_sent
    threads = [threading.Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hub.bandwidth = None
    assert [lines[-1]["status"] for lines in followers] == ["success"] * 2
    assert [lines[0]["phase"] for lines in followers] == ["resolving"] * 2
    together = hub.bytes_sent - before
    daemon.ask("DELETE", "/api/delete", {"model": "org/demo:Q6_K"})
    daemon.pull("org/demo:Q6_K")
    alone = hub.bytes_sent - before - together
    assert together < 1.5 * alone


def test_progress_counts_up_to_the_whole(daemon: Daemon, hub: Hub) -> None:
    hub.bandwidth = 12e6
    lines = daemon.post("/api/pull", {"model": "org/demo:Q5_K_M"}).lines
    hub.bandwidth = None
    counts = [(line["completed"], line["total"]) for line in lines if "completed" in line]
    assert len(counts) > 2
    assert counts == sorted(counts)
    assert counts[-1][0] == counts[-1][1]


def partials(daemon: Daemon) -> dict[str, Any]:
    return {row["name"]: row for row in daemon.get("/lm/partials").json["partials"]}


def pullers(daemon: Daemon) -> list[int]:
    return [child.pid for child in daemon.children() if "server.pulls.puller" in child.cmdline()]


@pytest.mark.slow
def test_the_last_follower_gone_pauses_the_job(daemon: Daemon, hub: Hub) -> None:
    name = "hf.co/org/demo:Q4_K_S"
    with slow(hub):
        body = {"model": "org/demo:Q4_K_S"}
        with daemon.opened("POST", "/api/pull", body) as one, daemon.opened("POST", "/api/pull", body) as two:
            two.readline()
            wait_until(lambda: name in partials(daemon), 20)
            assert partials(daemon)[name]["active"]
            one.close()
        wait_until(lambda: not daemon.children(), 5)
        wait_until(lambda: not partials(daemon)[name]["active"], 5)
    assert name not in stored(daemon)
    lines = daemon.post("/api/pull", body).lines
    assert lines[-1]["status"] == "success"
    assert next(line for line in lines if line["phase"] == "planned")["resumed"] > 0
    assert not leftovers(daemon)


def test_a_pull_that_is_left_at_once_and_begun_again(daemon: Daemon, hub: Hub) -> None:
    with slow(hub):
        for _ in range(3):
            with daemon.opened("POST", "/api/pull", {"model": "org/demo:Q5_K_S"}) as response:
                response.readline()
    assert daemon.pull("org/demo:Q5_K_S")["status"] == "success"


def test_a_detached_pull_goes_on(daemon: Daemon, hub: Hub) -> None:
    hub.bandwidth = 8e6
    with daemon.opened("POST", "/api/pull", {"model": "org/demo:Q2_K", "detach": True}) as response:
        response.readline()
    wait_until(lambda: "hf.co/org/demo:Q2_K" in stored(daemon), 30)
    hub.bandwidth = None


def test_removing_ends_a_pull_and_what_it_made(daemon: Daemon, hub: Hub) -> None:
    with slow(hub), daemon.opened("POST", "/api/pull", {"model": "org/demo:Q3_K_L", "detach": True}) as response:
        wait_until(lambda: "hf.co/org/demo:Q3_K_L" in partials(daemon), 20)
        assert daemon.ask("DELETE", "/api/delete", {"model": "org/demo:Q3_K_L"}).status == 200
        last = json.loads(response.read().splitlines()[-1])
    assert "removed" in last["error"] and last["hint"]
    assert not partials(daemon) and not leftovers(daemon) and not daemon.children()
    assert daemon.ask("DELETE", "/api/delete", {"model": "org/demo:Q3_K_L"}).status == 404


@pytest.mark.parametrize("way", ["stop", "rm"])
def test_a_pull_without_a_level_is_known_by_the_name_that_partial_shows(daemon: Daemon, hub: Hub, way: str) -> None:
    hub.push("org/shown", DEMO)
    with slow(hub), daemon.opened("POST", "/api/pull", {"model": "org/shown"}) as response:
        wait_until(lambda: "hf.co/org/shown:Q8_0" in partials(daemon), 20)
        if way == "stop":
            assert daemon.post("/lm/stop", {"model": "hf.co/org/shown:Q8_0"}).json["paused"]
            assert not partials(daemon)["hf.co/org/shown:Q8_0"]["active"]
        assert daemon.ask("DELETE", "/api/delete", {"model": "hf.co/org/shown:Q8_0"}).status == 200
        assert json.loads(response.read().splitlines()[-1])["code"] == "stopping"
    assert "hf.co/org/shown:Q8_0" not in partials(daemon)


@pytest.mark.slow
def test_a_bare_name_over_the_api_brings_in_no_other_level(daemon: Daemon, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "ours")
    daemon.pull(f"{tmp_path}/ours:Q4_0")
    for name in ("ours", "ours:latest"):
        assert daemon.post("/api/pull", {"model": name}).lines[-1]["name"] == "ours:Q4_0"
    assert {name for name in stored(daemon) if name.startswith("ours:")} == {"ours:Q4_0"}


@pytest.mark.slow
def test_a_detached_pull_goes_on_when_the_daemon_starts_again(hub: Hub, tmp_path: Path) -> None:
    hub.push("org/away", DEMO)
    env = {"HF_ENDPOINT": hub.url}
    with slow(hub), Daemon(tmp_path, env=env) as first:
        for name in ("org/away:Q8_0", "org/away:Q4_0"):
            with first.opened("POST", "/api/pull", {"model": name, "detach": True}):
                wait_until(lambda name=name: f"hf.co/{name}" in partials(first), 20)
        assert first.post("/lm/stop", {"model": "org/away:Q4_0"}).json["paused"]
        first.kill()
    with Daemon(tmp_path, env=env) as second:
        wait_until(lambda: "hf.co/org/away:Q8_0" in stored(second), 20)
        assert not partials(second)["hf.co/org/away:Q4_0"]["active"], "a pull that the user paused stays paused"


@pytest.mark.slow
def test_a_detached_pull_that_cannot_succeed_is_kept_with_its_reason_and_not_tried_at_each_start(
    hub: Hub, tmp_path: Path
) -> None:
    hub.push("org/leaving", DEMO)
    env, name = {"HF_ENDPOINT": hub.url}, "hf.co/org/leaving:Q8_0"
    with slow(hub), Daemon(tmp_path, env=env) as first:
        with first.opened("POST", "/api/pull", {"model": name, "detach": True}):
            wait_until(lambda: name in partials(first), 20)
        first.kill()
    del hub.repos["org/leaving"]
    with Daemon(tmp_path, env=env) as second:
        wait_until(lambda: partials(second)[name]["failed"], 20)
        assert "org/leaving" in partials(second)[name]["failed"]
    asked = len(hub.requests)
    with Daemon(tmp_path, env=env) as third:
        row = partials(third)[name]
        assert (row["active"], bool(row["failed"]), len(hub.requests)) == (False, True, asked)
        lines = third.post("/api/pull", {"model": name}).lines
        assert any(line["status"].startswith("the last try ended with: ") for line in lines)


def test_only_trouble_that_may_pass_is_met_with_another_try() -> None:
    waits = [pause_after(SourceUnavailable("x", ""), tries) for tries in range(len(PAUSES) + 1)]
    assert waits == [*PAUSES, None] and sum(PAUSES) < 24 * 3600
    assert pause_after(ModelNotFound("x", ""), 0) is None
    assert pause_after(ValueError("x"), 0) is None


@pytest.mark.slow
def test_two_folders_of_one_name_do_not_replace_each_other(daemon: Daemon, tmp_path: Path) -> None:
    for parent in ("a", "模型"):
        shutil.copytree(DEMO, tmp_path / parent / "twin")
    assert daemon.pull(f"{tmp_path}/a/twin:Q8_0")["name"] == "twin:Q8_0"
    lines = daemon.post("/api/pull", {"model": f"{tmp_path}/模型/twin:Q8_0"}).lines
    assert lines[-1]["name"] == "模型-twin:Q8_0"
    assert any("this model is called `模型-twin:Q8_0`" in line["status"] for line in lines)
    for name, source in (("twin", "a"), ("模型-twin", "模型"), (f"{tmp_path}/模型/twin", "模型")):
        assert daemon.post("/api/show", {"model": name}).json["lm"]["source"] == f"{tmp_path}/{source}/twin"
    assert "nothing has changed" in str(daemon.post("/api/pull", {"model": "模型-twin"}).lines)
    assert daemon.ask("DELETE", "/api/delete", {"model": f"{tmp_path}/模型/twin"}).json["deleted"] == "模型-twin:Q8_0"
    assert {name for name in stored(daemon) if "twin" in name} == {"twin:Q8_0"}


@pytest.mark.slow
def test_removing_a_model_that_is_pulled_again_removes_both(daemon: Daemon, hub: Hub, tmp_path: Path) -> None:
    name = "hf.co/org/third:Q3_K_S"
    hub.push("org/third", DEMO)
    daemon.pull(name)
    hub.push("org/third", licensed(tmp_path))
    with slow(hub), daemon.opened("POST", "/api/pull", {"model": name}):
        wait_until(lambda: name in partials(daemon), 20)
        assert daemon.ask("DELETE", "/api/delete", {"model": name}).status == 200
    assert not partials(daemon) and name not in stored(daemon)


@pytest.mark.slow
def test_a_loaded_model_is_pulled_again_and_answers_meanwhile(daemon: Daemon, hub: Hub, tmp_path: Path) -> None:
    """A newer revision: the worker keeps the old file until it is unloaded, then the disk has it back."""
    name, blobs = "org/other:Q8_0", daemon.home / "store" / "blobs"
    hub.push("org/other", DEMO)
    daemon.pull(name)
    ask = {"model": name, "prompt": "hello", "stream": False}
    assert daemon.post("/api/generate", ask).json["done"]
    hub.push("org/other", licensed(tmp_path))
    before = {path.name for path in blobs.iterdir()}
    daemon.pull(name)
    during = {path.name for path in blobs.iterdir()}
    assert len(during - before) > 0
    assert daemon.post("/api/generate", ask).json["done"]
    assert daemon.post("/api/show", {"model": name}).json["license"] == "mit"
    daemon.post("/lm/stop", {"model": name})
    assert daemon.ask("DELETE", "/api/delete", {"model": name}).status == 200
    wait_until(lambda: not {path.name for path in blobs.iterdir()} & (during - before), 5)


@pytest.mark.slow
def test_a_paused_pull_is_removed_without_the_model_that_is_here(daemon: Daemon, hub: Hub, tmp_path: Path) -> None:
    name = "hf.co/org/newer:Q8_0"
    hub.push("org/newer", DEMO)
    daemon.pull(name)
    hub.push("org/newer", licensed(tmp_path))
    with slow(hub), daemon.opened("POST", "/api/pull", {"model": name}) as response:
        wait_until(lambda: partials(daemon) and pullers(daemon), 20)
        os.kill(pullers(daemon)[0], signal.SIGKILL)
        response.read()
    removal = {"model": name, "partial": True}
    assert daemon.ask("DELETE", "/api/delete", removal).json["all"] == [name]
    assert not leftovers(daemon) and name in stored(daemon)
    assert daemon.ask("DELETE", "/api/delete", removal).status == 404


def test_a_killed_puller_is_a_clear_error_and_its_work_is_kept(daemon: Daemon, hub: Hub) -> None:
    with slow(hub), daemon.opened("POST", "/api/pull", {"model": "org/demo:Q3_K_M"}) as response:
        wait_until(lambda: partials(daemon) and pullers(daemon), 20)
        os.kill(pullers(daemon)[0], signal.SIGKILL)
        last = json.loads(response.read().splitlines()[-1])
    assert "SIGKILL" in last["error"]
    assert last["hint"]
    assert "hf.co/org/demo:Q3_K_M" in partials(daemon)
    assert daemon.ask("DELETE", "/api/delete", {"model": "org/demo:Q3_K_M"}).status == 200
    assert not leftovers(daemon)


@pytest.mark.slow
def test_a_killed_daemon_takes_its_puller_along_and_the_next_one_goes_on(hub: Hub, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": hub.url}
    with slow(hub), Daemon(tmp_path, env=env) as daemon, daemon.opened("POST", "/api/pull", {"model": "org/demo"}):
        wait_until(lambda: partials(daemon) and daemon.children(), 20)
        (begun,) = partials(daemon)
        children = daemon.children()
        daemon.kill()
        wait_until(lambda: not any(alive(child) for child in children), 5)
    with Daemon(tmp_path, env=env) as daemon:
        assert not stored(daemon)
        assert list(partials(daemon)) == [begun]
        lines = daemon.post("/api/pull", {"model": "org/demo"}).lines
        assert lines[-1]["name"] == begun
        assert next(line for line in lines if line["phase"] == "planned")["resumed"] > 0
        assert not leftovers(daemon)


def test_progress_tells_rate_and_time_left(daemon: Daemon, hub: Hub) -> None:
    hub.bandwidth = 5e6
    # No kernel is compiled for BF16, so the file grows as fast as the hub sends.
    lines = daemon.post("/api/pull", {"model": "org/demo:BF16"}).lines
    hub.bandwidth = None
    middle = next(line for line in reversed(lines) if line["phase"] == "writing" and line["eta"])
    assert middle["rate"] > 0
    assert middle["eta"] == pytest.approx((middle["total"] - middle["completed"]) / middle["rate"], abs=0.1)


@pytest.mark.parametrize("rate", [-1, 10, 1e13])
def test_a_rate_that_is_none(daemon: Daemon, rate: float) -> None:
    assert daemon.post("/api/pull", {"model": "demo", "limit_rate": rate}).status == 400


def test_a_disk_too_small_is_told_before_a_weight_moves(daemon: Daemon, hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "store").mkdir(parents=True)
    small = ["mount", "-t", "tmpfs", "-o", "size=20m", "none", home / "store"]
    if subprocess.run(small, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    before = hub.bytes_sent
    try:
        with Daemon(home, env={"HF_ENDPOINT": hub.url}) as daemon:
            answer = daemon.post("/api/pull", {"model": "org/demo:F32", "stream": False})
            assert daemon.get("/api/version").status == 200
            assert not leftovers(daemon)
    finally:
        subprocess.run(["umount", "-l", home / "store"], check=True)
    assert (answer.status, answer.json["code"]) == (507, "does_not_fit")
    assert "F32 would need up to 2" in answer.json["error"] and "would fit" in answer.json["hint"]  # 57 MB once
    assert hub.bytes_sent - before < 3_000_000


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("org/none", 404, "model_not_found"),
        ("llama3", 502, "source_unavailable"),
        ("127.0.0.1:1/org/model:tag", 502, "source_unavailable"),
        ("http://127.0.0.1:1/m.gguf", 502, "source_unavailable"),
        ("http://box.example/m.gguf", 403, "access_denied"),
        ("package://nothing", 404, "model_not_found"),
        ("/nowhere/at/all", 404, "model_not_found"),
        ("demo:Q9_X", 400, "unknown_level"),
        ("./relative", 400, "bad_name"),
        ("a/../b", 400, "bad_name"),
        ("hf.co/org", 400, "bad_name"),
        ("", 400, "bad_body"),
    ],
)
def test_what_cannot_be_pulled_says_why(daemon: Daemon, name: str, status: int, code: str) -> None:
    answer = daemon.post("/api/pull", {"model": name, "stream": False})
    assert (answer.status, answer.json["code"]) == (status, code), answer.body
    assert answer.json["error"]
    assert answer.json["hint"]
    assert not leftovers(daemon)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda folder: (folder / "config.json").unlink(), "malformed_file"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": ["Alien"]}'), "unsupported_model"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "malformed_file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "malformed_file"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5_000_000), "malformed_file"),
        (lambda folder: os.truncate(folder / "model.safetensors", 4), "malformed_file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 1000), "malformed_file"),
    ],
    ids=["no config", "architecture", "deep config", "tokenizer", "cut weights", "no weights", "nonsense weights"],
)
def test_damaged_folders_say_why_and_leave_nothing(daemon: Daemon, tmp_path: Path, damage: Any, code: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(DEMO, folder)
    damage(folder)
    last = daemon.post("/api/pull", {"model": str(folder)}).lines[-1]
    assert last["code"] == code, last
    assert "Traceback" not in last["error"]
    assert not leftovers(daemon)
    assert "damaged:Q8_0" not in stored(daemon)


def test_deleting_frees_the_disk_and_keeps_the_others(daemon: Daemon) -> None:
    daemon.pull("demo:Q5_0")
    blobs = daemon.home / "store" / "blobs"
    before = sum(path.stat().st_size for path in blobs.iterdir())
    assert daemon.ask("DELETE", "/api/delete", {"name": "demo:Q5_0"}).status == 200
    assert sum(path.stat().st_size for path in blobs.iterdir()) < before - 3_000_000
    assert daemon.post("/api/show", {"model": "demo:Q5_0"}).status == 404
    assert daemon.post("/api/show", {"model": "demo:Q8_0"}).status == 200


def test_the_daemon_answers_while_it_pulls(daemon: Daemon, hub: Hub) -> None:
    with slow(hub), daemon.opened("POST", "/api/pull", {"model": "org/demo:F16"}) as response:
        response.readline()
        assert daemon.get("/api/version").status == 200
        assert stored(daemon)


@pytest.mark.slow
def test_a_pull_of_a_url_goes_on_by_another_signature_with_the_same_file_only(
    daemon: Daemon, hub: Hub, tmp_path: Path
) -> None:
    make(tmp_path / "one" / "signed.gguf", "Q8_0")
    make(tmp_path / "two" / "signed.gguf", "Q4_0")
    hub.push("org/signed", tmp_path / "one")
    url = f"{hub.url}/org/signed/resolve/main/signed.gguf"

    def paused() -> dict[str, Any]:
        return {row["source"]: row for row in daemon.get("/lm/partials").json["partials"]}

    def begun(query: str) -> None:
        """Leave a pull of which a part is here."""
        with slow(hub), daemon.opened("POST", "/api/pull", {"model": url + query}):
            wait_until(lambda: paused().get(url + query, {}).get("completed", 0) > 0, 20)
        wait_until(lambda: not paused()[url + query]["active"], 10)

    begun("?signature=1")
    lines = daemon.post("/api/pull", {"model": f"{url}?signature=2"}).lines
    assert lines[-1]["status"] == "success", lines
    assert f"going on with the paused pull of `{url}`, by its new address" in [line["status"] for line in lines]
    assert next(line for line in lines if line["phase"] == "planned")["resumed"] > 0
    assert not [title for title in paused() if title.startswith(url)]
    assert "signature" not in json.dumps(daemon.post("/api/show", {"model": lines[-1]["name"]}).json["lm"])
    daemon.ask("DELETE", "/api/delete", {"model": lines[-1]["name"]})
    begun("?signature=3")
    hub.push("org/signed", tmp_path / "two")
    lines = daemon.post("/api/pull", {"model": f"{url}?signature=4"}).lines
    assert lines[-1]["status"] == "success", lines
    assert any("has changed since the pull began: the pull begins anew" in line["status"] for line in lines)
    assert next(line for line in lines if line["phase"] == "planned")["resumed"] == 0
    assert not [title for title in paused() if title.startswith(url)]
