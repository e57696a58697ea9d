"""The matrix of access: every route of the table, asked by every kind of caller."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry.store.partial import Partial, PullFacts
from registry.store.store import Store
from server.access.roles import ACCESSES
from server.errors import StartFailed
from server.keys.file import change_keys
from server.keys.record import ApiKey, new_key
from server.routes.route import Route
from server.routes.table import ROUTES, check
from tests.daemon import Answer, Daemon, put_model

PULLED = "org/pulled:Q8_0"
TURNS = [{"role": "user", "content": "one two"}]
# Bodies by the ends of paths; the others get `{"model": "tiny"}`.
BODIES: dict[str, dict[str, Any]] = {
    "/chat": {"messages": TURNS, "stream": False},
    "/chat/completions": {"messages": TURNS},
    "/completions/input_tokens": {"messages": TURNS},
    "/apply-template": {"messages": TURNS},
    "/completions": {"prompt": "one two"},
    "/completion": {"prompt": "one two"},
    "/generate": {"prompt": "one two", "stream": False},
    "/embed": {"input": "one"},
    "/messages": {"messages": TURNS, "max_tokens": 8},
    "/count_tokens": {"messages": TURNS},
    "/v1/responses": {"input": "one two"},
    "/input_tokens": {"input": "one two"},
    "/api/embeddings": {"prompt": "one"},
    "/embeddings": {"input": "one"},
    "/embedding": {"input": "one"},
    "/infill": {"input_prefix": "one", "input_suffix": "two"},
    "rerank": {"query": "one", "documents": ["two"]},
    "reranking": {"query": "one", "documents": ["two"]},
}
OBJECT = "{id:[^/]+}"
# Routes that are refused whatever they name, and routes that take the model in their query.
REFUSED = {("POST", path) for path in ("/props", "/slots/{slot:[^/]+}", "/lora-adapters")}
ASKED = {("GET", path) for path in ("/props", "/lora-adapters")}
# Routes that name no model: of the whole store, or of a list; they show nothing that does not exist for a key.
WHOLE = {"/lm/prune", "/lm/import", "/lm/sync", "/lm/publish"}
# What these routes do to a model is done to one that is not there.
CHANGING = {route.path for route in ROUTES if route.role != "infer" and route.method != "GET"}


@dataclass
class House:
    """A daemon, and a key for each kind of caller; `owner` has begun a pull."""

    daemon: Daemon
    secrets: dict[str, str]

    def ask(self, caller: str, route: Route, model: str = "tiny") -> Answer:
        path = re.sub(r"\{[^{}]*\}", model, route.path)
        path += f"?model={model}" if route[:2] in ASKED else "?follow=false" if route.path == "/lm/events" else ""
        more = dict(next((body for end, body in BODIES.items() if path.endswith(end)), {}))
        more |= {"source": model, "destination": "copied"} if path.endswith("/copy") else {}
        body = {"model": model} | more if route.method != "GET" else None
        return self.daemon.ask(route.method, path, body, self.header(caller))

    def header(self, caller: str) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.secrets[caller]}"} if caller in self.secrets else {}
        return {"X-Request-Id": "same"} | key


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = tmp_path_factory.mktemp("house")
    put_model(home)
    keys: dict[str, tuple[str, ApiKey]] = {
        "infer": new_key("infer"),
        "operator": new_key("operator"),
        "admin": new_key("admin"),
        "expired": new_key("admin", expires=time.time() - 1),
        "revoked": new_key("admin", revoked=time.time() - 1),
        "other": new_key("operator", models=("another",)),
        "close": new_key("operator", models=("tinx",)),
        "owner": new_key("operator"),
    }
    change_keys(home / "keys.json", lambda _: [key for _, key in keys.values()])
    put_partial(home, keys["owner"][1].owner)
    with Daemon(home, script={"echo": True}) as daemon:
        yield House(daemon, {name: secret for name, (secret, _) in keys.items()})


def put_partial(home: Path, owner: str) -> None:
    """Leave a paused pull in the store of a home, which belongs to `owner`."""
    with Store.open(home / "store") as store:
        ingest = store.begin(PULLED)
        partial = Partial(ingest.folder)
        partial.begin(PullFacts(PULLED, "hub", "abc", "Q8_0", "why", "print", 9))
        partial.write(b"half")
        partial.reached(Position())
        partial.finish()
        partial.close()
        store.note_owners(PULLED, {owner})
        store.pause(ingest)


@dataclass
class Position:
    """A place in a source."""

    tensor: int = 0
    row: int = 0
    shard: str = "file"
    offset: int = 0
    state: bytes = b""


def expected(route: Route, caller: str) -> str:
    """Whether a caller is let in, or how it is refused: the whole rule, apart from the daemon's code."""
    if route.role == "open":
        return "in"
    if caller in ("none", "expired", "revoked"):
        return "401"
    role = "operator" if caller == "other" else caller
    return "in" if ACCESSES.index(role) >= ACCESSES.index(route.role) else "403"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method}{route.path.split('{')[0]}")
def test_every_route_lets_in_whom_the_table_says(house: House, route: Route) -> None:
    for caller in ("none", "infer", "operator", "admin", "expired", "revoked"):
        if route.path == "/lm/shutdown" and expected(route, caller) == "in":
            continue  # the last test of this file
        answer = house.ask(caller, route, "missing" if route.path in CHANGING else "tiny")
        told = str(answer.status) if answer.status in (401, 403, 429) else "in"
        assert told == expected(route, caller), (caller, answer.body)
        if told == "in" and caller == "admin" and route.path not in CHANGING:
            # Responses, files and batches have ids that nobody can guess.
            nowhere = OBJECT in route.path or route.path.startswith(("/v2/{", "/ui/{"))
            assert answer.status in ((404,) if nowhere else (200, 302, 400)), answer.body
        if told == "403" and route.method != "HEAD":
            assert f"`{route.role}`" in answer.body.decode()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method}{route.path.split('{')[0]}")
def test_a_model_that_is_not_on_a_keys_list_does_not_exist(house: House, route: Route) -> None:
    answer = house.ask("other", route)
    if route.method == "POST" and route.path in ("/v1/files", "/v1/batches"):
        assert answer.status == 400  # their requests name models, not they
    elif expected(route, "other") == "403":
        assert answer.status == 403
    elif "/blobs/" in route.path:
        assert answer.status == 400  # it names no model
    elif route.path == "/lm/prune":
        assert (answer.status, b"tiny" in answer.body) == (200, False)
    elif route.path == "/lm/search":
        assert answer.status == 400  # it is about no model that is here
    elif route[:2] in REFUSED:
        assert (answer.status, b"tiny" in answer.body) == (400, False)
    elif route.path == "/lm/activity":
        statuses = {row["status"] for row in answer.json["requests"] if row["model"].startswith("tiny")}
        assert statuses == {"404"}  # what this key asked for itself, in vain
    elif route.method == "GET" and "{" not in route.path and route[:2] not in ASKED:
        assert answer.status == (302 if route.path == "/ui" else 200)
        assert b"tiny" not in answer.body
    elif route.path in WHOLE:
        assert b"tiny" not in answer.body
    else:
        assert answer.status == 404, answer.body
        missing = house.ask("other", route, "missing")
        same = answer.body.replace(b"tiny", b"missing")
        assert (missing.status, missing.body) == (404, same)


@pytest.mark.parametrize("route", ["POST /api/pull", "DELETE /api/delete", "POST /api/show"])
def test_no_hint_names_a_model_that_is_not_on_a_keys_list(house: House, route: str) -> None:
    found = next(each for each in ROUTES if f"{each.method} {each.path}" == route)
    assert b"tiny" in house.ask("admin", found, "tinx").body
    answer = house.ask("close", found, "tinx").body
    assert b"tinx" in answer and b"tiny" not in answer


def test_a_pull_exists_for_the_key_that_made_it(house: House) -> None:
    by = {f"{route.method} {route.path}": route for route in ROUTES}
    listed, stop, delete = by["GET /lm/partials"], by["POST /lm/stop"], by["DELETE /api/delete"]
    for caller, seen in (("operator", False), ("other", False), ("owner", True), ("admin", True)):
        rows = house.ask(caller, listed).json["partials"]
        assert [row["source"] for row in rows] == ([PULLED] if seen else [])
    for route in (stop, delete):
        assert house.ask("operator", route, PULLED).status == 404
    assert house.ask("owner", delete, PULLED).status == 200
    assert house.ask("admin", listed).json["partials"] == []


def test_paths_that_are_no_routes_are_for_nobody_without_a_key(house: House) -> None:
    for method, path in (("GET", "/nowhere"), ("PUT", "/api/chat"), ("GET", "/v1/messages"), ("POST", "/api/me")):
        assert house.daemon.ask(method, path).status == 401
        assert house.daemon.ask(method, path, headers=house.header("infer")).status in (404, 405)
    # Another way to write a path is no way around its role.
    for path in ("/lm//shutdown", "/lm/shutdown/", "//lm/shutdown", "/lm/%73hutdown", "/%6cm/shutdown"):
        assert house.daemon.ask("POST", path, {}, house.header("operator")).status == 403
        assert house.daemon.ask("POST", path, {}).status == 401


def test_a_route_without_a_role_does_not_start() -> None:
    check(ROUTES)
    nobodys = replace_role(ROUTES[0], "")
    with pytest.raises(StartFailed, match=r"GET /"):
        check([*ROUTES, nobodys])
    with pytest.raises(TypeError):
        Route("GET", "/x", handler=ROUTES[0].handler, doc="")  # type: ignore[call-arg]


def replace_role(route: Route, role: Any) -> Route:
    return route._replace(role=role)


def test_an_admin_may_end_the_daemon(house: House) -> None:
    route = next(route for route in ROUTES if route.path == "/lm/shutdown")
    assert house.ask("admin", route).status == 200
    assert house.daemon.ended() == 0
