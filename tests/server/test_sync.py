"""`lm sync`: boxes that come to a list, from a registry and from each other; the guard rails of pruning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.errors import INTERRUPTED
from cli.main import run
from cli.watching import pause_after
from registry.names import Name
from registry.store.store import Store
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model
from tests.oci import Registry, digest
from tests.storing import put

MODEL = "application/vnd.ollama.image.model"


def sync(box: Daemon, **body: Any) -> Any:
    """The report of a sync."""
    answer = box.post("/lm/sync", body)
    lines = answer.lines
    assert lines[-1].get("status") == "success", lines[-1]
    return lines[-1]


def states(report: Any) -> dict[str, str]:
    return {row["name"]: row["state"] for row in report["models"]}


def tiny(home: Path, *names: str) -> None:
    """Models of a team in a home, each a file of its own, as one box has quantized them."""
    put_model(home, "seed")
    with Store.open(home / "store") as store:
        seed = store.resolve("seed:F32")
        data, config = seed.blob.read_bytes(), {"model_format": "gguf", "capabilities": ["completion"]}
        for name in names:
            put(store, Name("registry.lan", "team", name, "v1"), data, config | {"name": name})
        store.delete(seed)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The box that has quantized for all."""
    home = tmp_path_factory.mktemp("source")
    tiny(home, "a", "b", "c")
    with Daemon(home) as daemon:
        yield daemon


def near(box: Daemon) -> str:
    return f"lm://127.0.0.1:{box.port}"


def pinned(box: Daemon, *names: str) -> str:
    """A list of the models of a box, pinned by digest."""
    digests = {row["name"]: row["digest"] for row in box.listed()}
    full = {name: f"registry.lan/team/{name}:v1" for name in names}
    return "".join(f"{each}@sha256:{digests[each]}\n" for each in full.values())


def test_a_neighbour_serves_models_as_a_registry_does(source: Daemon) -> None:
    assert source.get("/v2/").status == 200
    assert source.get("/v2/_catalog").json["repositories"] == [f"registry.lan/team/{name}" for name in "abc"]
    assert source.get("/v2/registry.lan/team/a/tags/list").json["tags"] == ["v1"]
    manifest = source.get("/v2/registry.lan/team/a/manifests/v1")
    layer = next(each for each in manifest.json["layers"] if each["mediaType"] == MODEL)
    place = f"/v2/registry.lan/team/a/blobs/{layer['digest']}"
    whole, part = source.get(place), source.get(place, Range="bytes=10-19")
    assert (len(whole.body), part.status, part.body) == (layer["size"], 206, whole.body[10:20])
    assert source.ask("HEAD", place).headers["Content-Length"] == str(layer["size"])
    for wrong in ("a/manifests/v2", "none/tags/list", "a/blobs/sha256:" + "0" * 64, "a", "../a/tags/list"):
        assert source.get(f"/v2/registry.lan/team/{wrong}").status == 404


def test_a_box_takes_over_all_that_a_neighbour_has_and_nothing_twice(source: Daemon, tmp_path: Path) -> None:
    with Daemon(tmp_path) as box:
        report = sync(box, source=near(source))
        assert set(states(report).values()) == {"fetched"} and report["complete"]
        assert {row["digest"] for row in box.listed()} == {row["digest"] for row in source.listed()}
        assert set(states(sync(box, source=near(source))).values()) == {"here"}
        assert box.post("/lm/verify", {}).lines[-1]["hurt"] == []


def test_a_pinned_list_is_fetched_from_a_neighbour_and_what_left_it_goes(source: Daemon, tmp_path: Path) -> None:
    with Daemon(tmp_path) as box:
        body = {"source": "list", "near": [near(source)]}
        dry = sync(box, list=pinned(source, "a", "b", "c"), dry_run=True, **body)
        assert set(states(dry).values()) == {"missing"} and not box.listed()
        assert sync(box, list=pinned(source, "a", "b", "c"), **body)["complete"]
        assert sync(box, list=pinned(source, "a", "b"), **body)["removed"] == []  # without --prune all stay
        shown = sync(box, list=pinned(source, "a", "b"), prune=True, dry_run=True, **body)
        assert shown["removed"] == ["registry.lan/team/c:v1"] and len(box.listed()) == 3
        assert sync(box, list=pinned(source, "a", "b"), prune=True, **body)["removed"] == ["registry.lan/team/c:v1"]
        assert [row["name"][-4:] for row in sorted(box.listed(), key=lambda row: row["name"])] == ["a:v1", "b:v1"]


def test_prune_has_guard_rails(source: Daemon, tmp_path: Path) -> None:
    put_model(tmp_path, "own")
    with Daemon(tmp_path) as box:
        body = {"source": "list", "near": [near(source)]}
        sync(box, list=pinned(source, "a", "b", "c"), **body)
        for text in ("", "# nothing\n", pinned(source, "a")):
            refused = box.post("/lm/sync", body | {"list": text, "prune": True})
            assert refused.json["code"] == "bad_body" and "--force" in refused.json["hint"]
        away = "registry.lan/team/away:v1@sha256:" + "0" * 64 + "\n"
        kept = sync(box, list=pinned(source, "a", "b") + away, prune=True, **body)
        assert kept["removed"] == [] and "away" in kept["kept"][0]["reason"] and not kept["complete"]
        other = sync(box, source="another list", list="", prune=True)
        assert other["removed"] == [] and len(box.listed()) == 4
        assert box.post("/lm/default", {"model": "registry.lan/team/b:v1"}).json["code"] == "bad_name"
        box.post("/api/generate", {"model": "registry.lan/team/b:v1", "prompt": "x", "stream": False})
        forced = sync(box, list=pinned(source, "a"), prune=True, force=True, **body)
        assert forced["removed"] == ["registry.lan/team/c:v1"]
        assert forced["kept"] == [{"name": "registry.lan/team/b:v1", "reason": "it is loaded"}]
        assert {row["name"] for row in box.listed()} >= {"own:F32", "registry.lan/team/a:v1"}


def test_a_model_that_is_hurt_at_a_neighbour_is_not_taken_for_gone(tmp_path: Path) -> None:
    tiny(tmp_path / "hurt", "a", "b")
    with Daemon(tmp_path / "hurt") as hurt, Daemon(tmp_path / "box") as box:
        assert sync(box, source=near(hurt))["complete"]
        config = hurt.get("/v2/registry.lan/team/b/manifests/v1").json["config"]["digest"]
        (hurt.home / "store" / "blobs" / config.replace(":", "-")).unlink()
        assert hurt.get("/v2/registry.lan/team/b/manifests/v1").status == 404
        assert sync(box, source=near(hurt), prune=True)["removed"] == [] and len(box.listed()) == 2


def test_a_list_that_makes_no_sense_is_refused_with_its_line(source: Daemon) -> None:
    for text in ("good/one\n../../x\n", "a b\n", "x@sha256:12\n", "./folder\n", "a\n" * 5 + "//\n"):
        answer = source.post("/lm/sync", {"source": "list", "list": text})
        assert answer.json["code"] == "bad_body" and "line" in answer.json["error"]
    for wrong in (
        {},
        {"source": "lm://a b"},
        {"source": "org/repo"},
        {"source": "x", "list": "", "near": ["http://x"]},
    ):
        assert source.post("/lm/sync", wrong).status == 400


@pytest.mark.slow
def test_a_list_in_a_registry_is_followed_and_a_moved_tag_replaces_the_model(source: Daemon, tmp_path: Path) -> None:
    blob = source.get("/v2/registry.lan/team/a/manifests/v1").json["layers"][0]["digest"]
    data = source.get(f"/v2/registry.lan/team/a/blobs/{blob}").body
    with Registry() as registry, Daemon(tmp_path) as box:
        registry.blobs[digest(b"{}")] = b"{}"
        registry.add("team/tale", "v1", [(MODEL, data)])
        text = f"{registry.host}/team/tale:v1\n".encode()
        registry.add("team/list", "v1", [("application/vnd.lm.list.v1+text", text)])
        report = sync(box, source=f"{registry.host}/team/list:v1")
        assert set(states(report).values()) == {"fetched"} and box.listed()[0]["name"].endswith("team/tale:v1")
        newer = registry.add("team/tale", "v1", [(MODEL, data), ("application/vnd.ollama.image.system", b"Be kind.")])
        report = sync(box, source=f"{registry.host}/team/list:v1")
        assert box.listed()[0]["digest"] == newer.removeprefix("sha256:") and report["complete"]
        registry.statuses += [500] * 50
        failed = box.post("/lm/sync", {"source": f"{registry.host}/team/list:v1"})
        assert failed.json["code"] == "source_unavailable" and len(box.listed()) == 1


def test_the_command_reads_a_file_and_its_exit_code_says_whether_all_is_here(source: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"# the team's models\n{pinned(source, 'a')}")
    with Daemon(tmp_path / "home") as box:
        lm = Cli.at(box.home)
        first = lm("sync", str(path), "--from", near(source), "--json")
        assert first.code == 0 and json.loads(first.out)["models"][0]["state"] == "fetched"
        path.write_text(pinned(source, "a") + "registry.lan/team/away:v1@sha256:" + "1" * 64)
        second = lm("sync", str(path), "--from", near(source))
        assert second.code == 1 and "failed" in second.out
        assert lm("sync", str(tmp_path / "none.txt")).code != 0


def test_a_neighbour_that_wants_a_key_gets_the_one_that_login_keeps(tmp_path: Path) -> None:
    tiny(tmp_path / "closed", "a")
    key = "k" * 32
    with Daemon(tmp_path / "closed", env={"LM_API_KEY": key}) as closed, Daemon(tmp_path / "box") as box:
        refused = box.post("/lm/sync", {"source": near(closed)})
        assert refused.json["code"] == "access_denied" and "lm login" in refused.json["hint"]
        login = {"registry": f"127.0.0.1:{closed.port}", "username": "box", "password": "wrong"}
        assert box.post("/lm/login", login).status == 403
        assert box.post("/lm/login", login | {"password": key}).status == 200
        assert sync(box, source=near(closed))["complete"] and len(box.listed()) == 1


def test_a_watched_list_is_followed_through_changes_and_outages(
    source: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, pauses, seen = tmp_path / "list.txt", list[float](), list[int]()
    path.write_text(pinned(source, "a"))
    away = f"127.0.0.1:9/team/away:v1@sha256:{'1' * 64}\n"
    changes = [
        lambda: path.write_text(pinned(source, "a", "b")),
        path.unlink,
        lambda: path.write_text(pinned(source, "a", "b", "c") + away),
        lambda: path.write_text("a b\n"),
        lambda: path.write_text(pinned(source, "a", "b", "c")),
    ]

    def sleep(seconds: float) -> None:
        """The time between two syncs, in which somebody changes the list; then somebody presses Ctrl-C."""
        pauses.append(seconds)
        seen.append(len(box.listed()))
        if not changes:
            raise KeyboardInterrupt
        changes.pop(0)()

    with Daemon(tmp_path / "home") as box:
        for name, value in Cli.at(box.home).env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("cli.watching.time", SimpleNamespace(sleep=sleep))
        assert run(["sync", str(path), "--from", near(source), "--watch", "10"]) == INTERRUPTED
    assert seen == [1, 2, 2, 3, 3, 3]
    for pause, wanted in zip(pauses, (10, 10, 10, 20, 40, 10), strict=True):
        assert 0.8 * wanted <= pause <= 1.2 * wanted
    told = capsys.readouterr()
    assert "cannot be read as text" in told.err and "line 1 of the list" in told.err


def test_a_registry_that_has_lost_its_list_for_a_while_is_asked_again(
    source: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = source.get("/v2/registry.lan/team/a/manifests/v1").json["layers"][0]["digest"]
    data = source.get(f"/v2/registry.lan/team/a/blobs/{blob}").body
    seen = list[int]()

    def sleep(seconds: float) -> None:
        seen.append(len(box.listed()))
        registry.statuses.clear()
        if len(seen) == 3:
            raise KeyboardInterrupt
        if len(seen) == 2:
            registry.statuses += [404] * 10

    with Registry() as registry, Daemon(tmp_path / "home") as box:
        registry.blobs[digest(b"{}")] = b"{}"
        registry.add("team/tale", "v1", [(MODEL, data)])
        text = f"{registry.host}/team/tale:v1\n".encode()
        registry.add("team/list", "v1", [("application/vnd.lm.list.v1+text", text)])
        registry.statuses += [404] * 10
        for name, value in Cli.at(box.home).env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("cli.watching.time", SimpleNamespace(sleep=sleep))
        assert run(["sync", f"{registry.host}/team/list:v1", "--watch", "1"]) == INTERRUPTED
        assert seen == [0, 1, 1]


def test_a_watch_that_is_used_wrongly_ends_at_once(source: Daemon, tmp_path: Path) -> None:
    (path := tmp_path / "list.txt").write_text("a b\n")
    ended = Cli.at(source.home)("sync", str(path), "--watch", "10")
    assert ended.code == 2 and "line 1 of the list" in ended.err


def test_pauses_grow_to_a_bound_however_long_it_fails() -> None:
    pauses = [pause_after(failures, 1.0) for failures in range(5000)]
    assert pauses[:4] == [1.0, 10.0, 20.0, 40.0] and max(pauses) == pauses[-1] == 900.0
    assert pause_after(3, 300.0) == 300.0 and pause_after(1, 86400.0) == 900.0
