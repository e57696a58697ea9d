"""Keys of a running daemon: the file, its changes, the end of a key, limits as real clients meet them, secrecy."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.keys.file import BadKeyFile, change_keys, read_keys
from server.keys.record import Allowance, ApiKey, is_secret, new_key, redacted
from tests.daemon import Daemon, allowed, put_model, wait_until

TURNS = [{"role": "user", "content": "one two three"}]
# The routes that use tokens, with a body that uses some.
SPENDING: dict[str, dict[str, Any]] = {
    "/api/chat": {"messages": TURNS},
    "/api/generate": {"prompt": "one two three"},
    "/api/embed": {"input": "one two three"},
    "/api/embeddings": {"prompt": "one two three"},
    "/v1/chat/completions": {"messages": TURNS, "stream": True},
    "/v1/completions": {"prompt": "one two three"},
    "/v1/embeddings": {"input": "one two three"},
}


class Keys:
    """The file of keys of a home, changed as `lm key` does it."""

    def __init__(self, home: Path) -> None:
        self.path = home / "keys.json"

    def add(self, role: Any = "infer", **more: Any) -> tuple[str, ApiKey]:
        secret, key = new_key(role, **more)
        change_keys(self.path, lambda keys: [*keys, key])
        return secret, key

    def change(self, key: ApiKey, **fields: Any) -> None:
        change_keys(self.path, lambda keys: [replace(each, **fields) if each.id == key.id else each for each in keys])


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Keys, str]]:
    """A daemon that speaks slowly, its keys, and the secret of an admin."""
    home = tmp_path_factory.mktemp("keyed")
    put_model(home)
    keys = Keys(home)
    secret, _ = keys.add("admin")
    with Daemon(home, script={"tokens": [" word"] * 500, "delay": 0.02}) as daemon:
        yield daemon, keys, secret


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def knows(daemon: Daemon, secret: str) -> bool:
    return daemon.get("/api/version", **bearer(secret)).status == 200


def grown(keys: Keys, daemon: Daemon, **more: Any) -> tuple[str, ApiKey]:
    """A new key that the running daemon knows."""
    made = keys.add(**more)
    wait_until(lambda: knows(daemon, made[0]) or None, 1)
    return made


def test_a_key_is_random_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    secrets = {new_key("infer")[0] for _ in range(100)}
    assert len(secrets) == 100 and all(map(is_secret, secrets))
    keys = Keys(tmp_path / "home")
    secret, key = keys.add(name="näm e", models=("a",), rate=Allowance(1, 60), tokens=Allowance(2, 60), expires=9e9)
    text = keys.path.read_text()
    assert secret not in text and secret[3:] not in text
    assert keys.path.stat().st_mode & 0o777 == 0o600
    assert read_keys(keys.path) == [key]
    assert read_keys(tmp_path / "none") is None


def broken(**fields: Any) -> bytes:
    record = new_key("infer")[1].as_json() | fields
    return json.dumps({"version": 1, "keys": [record]}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{" * 100_000,
        b"\xff\xfe",
        b'{"version": 2, "keys": []}',
        b'{"version": 1, "keys": {}}',
        b'{"version": 1, "keys": [5]}',
        broken(role="god"),
        broken(expires=float("nan")),
        broken(expires="never"),
        broken(expires=""),
        broken(expires=10**400),
        broken(created=None),
        broken(models=[]),
        broken(models="tiny"),
        broken(revoked=True),
        broken(name="a\x1b[31m"),
        broken(name="a\u202eb"),
        broken(models=["\n"]),
        broken(rate={"count": 0, "seconds": 60}),
        broken(hash="abc"),
        broken(surprise=1),
    ],
    ids=range(22),
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(BadKeyFile, match=str(path)) as error:
        read_keys(path)
    assert str(error.value).isprintable()
    with pytest.raises(BadKeyFile):
        change_keys(path, lambda keys: keys)
    assert path.read_bytes() == data


def test_what_a_log_must_not_have_is_taken_out() -> None:
    secret, _ = new_key("infer")
    text = f"pull of https://me:pw@h/x.gguf?sig=abc#sha256=00 and `http://h/y?z`: is {secret} a key? yes"
    assert redacted(text) == "pull of https://…@h/x.gguf?…#sha256=00 and `http://h/y?…`: is lm_… a key? yes"


@pytest.mark.parametrize("kind", ["open", "link", "pipe", "folder"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "keys.json", Keys(tmp_path / "other")
    other.add()
    if kind == "open":
        path.write_bytes(other.path.read_bytes())
        path.chmod(0o640)
    elif kind == "link":
        path.symlink_to(other.path)
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.mkdir(0o700)
    with pytest.raises(BadKeyFile, match=str(path)):
        read_keys(path)


def test_many_writers_at_once_lose_no_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: keys.add()[1].id, range(40)))
    assert {key.id for key in read_keys(keys.path) or []} == set(made)


def test_a_change_that_fails_leaves_the_file(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.add()
    before = keys.path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        change_keys(keys.path, lambda _: [1 // 0])  # type: ignore[list-item]
    assert keys.path.read_bytes() == before


def test_a_daemon_does_not_start_with_a_broken_or_an_open_file(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.add()
    keys.path.chmod(0o644)
    refused = Daemon(tmp_path)
    assert refused.ended() == 1
    assert str(keys.path) in refused.ready_line and "chmod 600" in refused.ready_line


def test_changes_hold_within_a_second(keyed: tuple[Daemon, Keys, str]) -> None:
    daemon, keys, _ = keyed
    secret, key = grown(keys, daemon, name="short")
    keys.change(key, revoked=time.time())
    wait_until(lambda: not knows(daemon, secret), 1)
    told = daemon.get("/v1/models", **bearer(secret))
    assert (told.status, told.json["error"]["code"]) == (401, "invalid_api_key")
    assert "revoked" in told.json["error"]["message"]
    secret, _ = grown(keys, daemon, expires=time.time() + 3)
    wait_until(lambda: not knows(daemon, secret), 3)
    assert "expired" in daemon.get("/api/tags", **bearer(secret)).json["error"]


def test_a_file_that_breaks_lets_nobody_in_until_it_is_mended(tmp_path: Path) -> None:
    put_model(tmp_path)
    keys = Keys(tmp_path)
    secret, key = keys.add(role="infer")
    with Daemon(tmp_path, env={"LM_API_KEY": secret}) as daemon:
        # The limits of the key hold, whoever put it into the daemon's environment.
        assert daemon.post("/lm/shutdown", {}, **bearer(secret)).status == 403
        good = keys.path.read_bytes()
        keys.path.write_bytes(good[:-9])
        wait_until(lambda: daemon.get("/api/tags", **bearer(secret)).status == 503, 1)
        told = daemon.get("/v1/models", **bearer(secret))
        assert (told.status, told.headers["Retry-After"]) == (503, "5")
        assert str(tmp_path) not in told.body.decode()
        assert daemon.get("/api/tags").status == 401
        keys.path.unlink()
        wait_until(lambda: "read 0 keys" in daemon.log, 1)
        assert daemon.get("/api/tags").status == 401  # keys stay wanted
        keys.path.write_bytes(good)
        keys.path.chmod(0o600)
        wait_until(lambda: daemon.post("/lm/shutdown", {}, **bearer(secret)).status == 403, 1)
        assert key.id not in daemon.log


@pytest.mark.parametrize("route", ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions"])
def test_a_stream_ends_with_its_key(keyed: tuple[Daemon, Keys, str], route: str) -> None:
    daemon, keys, admin = keyed
    secret, key = grown(keys, daemon)
    body = {"model": "tiny", "stream": True} | SPENDING[route]
    with daemon.opened("POST", route, body, bearer(secret)) as response:
        first = response.readline()
        assert b"word" in first or b"role" in first or b"text" in first
        began = time.monotonic()
        keys.change(key, revoked=time.time())
        rest = response.read()
        assert time.monotonic() - began < allowed(1)
    last = json.loads(rest.strip().splitlines()[-1].removeprefix(b"data: "))
    if route.startswith("/v1/"):
        assert last["error"]["code"] == "invalid_api_key"
        assert b"[DONE]" not in rest
    else:
        assert last["code"] == "unauthorized" and "done" not in last
    wait_until(lambda: daemon.get("/api/ps", **bearer(admin)).json["models"][0]["active"] == 0, 2)


def test_an_answer_in_one_piece_ends_with_its_key(keyed: tuple[Daemon, Keys, str]) -> None:
    daemon, keys, _ = keyed
    secret, key = grown(keys, daemon)
    timer = threading.Timer(0.3, lambda: keys.change(key, revoked=time.time()))
    timer.start()
    answer = daemon.post("/v1/chat/completions", {"model": "tiny", "messages": TURNS}, **bearer(secret))
    timer.join()
    assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("route", SPENDING)
def test_every_route_counts_its_tokens(keyed: tuple[Daemon, Keys, str], route: str) -> None:
    daemon, keys, _ = keyed
    secret, _ = grown(keys, daemon, tokens=Allowance(3, 86400))
    body = {"model": "tiny", "max_tokens": 3, "options": {"num_predict": 3}} | SPENDING[route]
    if route.startswith("/v1/"):
        del body["options"]
    else:
        del body["max_tokens"]
    assert daemon.post(route, body, **bearer(secret)).status == 200
    refused = daemon.post(route, body, **bearer(secret))
    assert refused.status == 429
    told = refused.json["error"]
    assert (
        (told["type"], told["code"]) == ("insufficient_quota", "insufficient_quota") if isinstance(told, dict) else True
    )
    assert "3 tokens" in (told["message"] if isinstance(told, dict) else told)
    assert 80_000 < int(refused.headers["Retry-After"]) <= 86400
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


def test_used_tokens_survive_the_daemons_death(tmp_path: Path) -> None:
    put_model(tmp_path)
    secret, _ = Keys(tmp_path).add(tokens=Allowance(20, 86400))
    script = {"tokens": [" word"] * 500, "delay": 0.02}
    with Daemon(tmp_path, script=script) as daemon:
        body = {"model": "tiny", "messages": TURNS}
        with daemon.opened("POST", "/api/chat", body, bearer(secret)) as response:
            for _ in range(30):
                response.readline()
            usage = tmp_path / "usage.json"
            wait_until(lambda: usage.exists() and json.loads(usage.read_bytes())["windows"], 1)
            wait_until(lambda: next(iter(json.loads(usage.read_bytes())["windows"].values()))[0] >= 20, 1)
            daemon.kill()
    with Daemon(tmp_path, script=script) as daemon:
        refused = daemon.post("/api/chat", body, **bearer(secret))
        assert (refused.status, refused.json["code"]) == (429, "quota_used")


def test_wrong_keys_are_refused_after_twenty(tmp_path: Path) -> None:
    good, _ = Keys(tmp_path).add()
    with Daemon(tmp_path, env={"LM_API_KEY": "sesame"}) as daemon, contextlib.ExitStack() as stack:
        from http.client import HTTPConnection

        for number in range(20):  # their answers are held back
            connection = HTTPConnection("127.0.0.1", daemon.port)
            stack.callback(connection.close)
            connection.request("GET", "/api/tags", headers=bearer(f"wrong {number}"))
        wait_until(lambda: daemon.get("/api/tags", **bearer("sesame")).status == 429, 2)
        refused = daemon.get("/v1/models", **bearer("wrong"))
        assert (refused.status, refused.json["error"]["type"]) == (429, "rate_limit_error")
        assert 0 < int(refused.headers["Retry-After"]) <= 60
        assert daemon.get("/api/tags", **bearer(good)).status == 200
        assert daemon.get("/health", **bearer("wrong")).json == {"status": "ok"}


def test_ten_thousand_keys_are_no_burden(tmp_path: Path) -> None:
    made = [new_key("infer") for _ in range(10_000)]
    change_keys(tmp_path / "keys.json", lambda _: [key for _, key in made])
    with Daemon(tmp_path) as daemon:
        assert daemon.get("/api/version", **bearer(made[0][0])).status == 200
        assert daemon.get("/api/version", **bearer(made[-1][0])).status == 200


def test_no_key_is_anywhere_but_with_its_client(tmp_path: Path) -> None:
    """Twenty keys, sent in every way: none is in a log, an error, a list of processes or a child's environment."""
    put_model(tmp_path)
    keys = Keys(tmp_path)
    good = [keys.add(name=f"n{number}")[0] for number in range(7)]
    ended = [keys.add(revoked=time.time())[0] for _ in range(6)]
    wrong = [new_key("infer")[0] for _ in range(6)]
    planted = [*good, *ended, *wrong, "my-own-secret-key"]
    told = []
    with (
        Daemon(tmp_path, script={"echo": True}, env={"LM_API_KEY": planted[-1]}) as daemon,
        ThreadPoolExecutor(8) as pool,
    ):

        def send(secret: str) -> None:
            for path in ("/api/tags", f"/api/show?key={secret}", f"/{secret}" if is_secret(secret) else "/"):
                told.append(daemon.ask("POST", path, b"{", bearer(secret)).body)
            told.append(daemon.get("/v1/models", **{"x-api-key": secret}).body)
            told.append(daemon.ask("POST", "/v1/chat/completions", {"model": "tiny"}, bearer(secret)).body)

        list(pool.map(send, [*good[1:], *ended[:2], planted[-1]]))
        told += [daemon.get("/v1/models", **bearer(secret)).body for secret in wrong[:2]]
        daemon.post("/api/chat", {"model": "tiny", "messages": TURNS}, **bearer(good[0]))
        children = daemon.children()
        assert children
        for process in [psutil.Process(daemon.pid), *children]:
            told.append(" ".join(process.cmdline()).encode())
        told += ["\0".join(f"{k}={v}" for k, v in child.environ().items()).encode() for child in children]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    told += [path.read_bytes() for path in files]
    hits = [secret for secret in planted for text in told if secret.encode() in text]
    assert len(planted) == 20 and not hits


def test_an_error_names_no_model_that_does_not_exist_for_the_key(tmp_path: Path) -> None:
    for name in ("tiny", "second"):
        put_model(tmp_path, name)
    keys = Keys(tmp_path)
    admin, limited = keys.add("admin")[0], keys.add("infer", models=("second",))[0]
    with Daemon(tmp_path, env={"LM_MAX_MODELS": "1"}) as daemon:
        daemon.post("/api/generate", {"model": "tiny", "keep_alive": -1}, **bearer(admin))
        for secret, seen in ((admin, True), (limited, False)):
            refused = daemon.post("/api/generate", {"model": "second"}, **bearer(secret))
            assert (refused.status, refused.json["code"]) == (507, "does_not_fit")
            assert ("tiny" in refused.json["error"]) == seen


def test_a_valid_key_lets_the_daemon_listen_wide(tmp_path: Path) -> None:
    keys, wide = Keys(tmp_path), ("--host", "0.0.0.0")
    keys.add(revoked=time.time())
    refused = Daemon(tmp_path, arguments=wide)
    assert refused.ended() == 1 and "lm key create" in refused.ready_line
    secret, _ = keys.add()
    with Daemon(tmp_path, arguments=wide) as daemon:
        assert daemon.get("/api/tags", Host="any.example", **bearer(secret)).status == 200
        assert daemon.get("/health", Host="any.example").status == 403
        assert daemon.get("/health").json == {"status": "ok"}
