"""`/openapi.json` is the table of routes; errors keep their dialects' forms, hostile bodies and random requests too."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

from server.routes.document import document
from server.routes.route import Route
from server.routes.table import ROUTES
from tests.daemon import Daemon, allowed, put_model

# POST routes that read no body.
BARE = {
    "/v1/responses/{id:[^/]+}/cancel",
    "/v1/batches/{id:[^/]+}/cancel",
    "/props",
    "/slots/{slot:[^/]+}",
    "/lora-adapters",
    "/lm/shutdown",
}
# Routes that ask other machines, end the daemon, or leave what the next request would find.
APART = {"/api/pull", "/api/push", "/lm/advise", "/lm/login", "/lm/logout", "/lm/shutdown", "/api/delete", "/lm/stop"}
APART |= {"/lm/search", "/lm/outdated"}
# Their bodies need no field: to them a strange object is an empty one.
NEEDLESS = ("/lm/prune", "/lm/verify", "/lm/outdated")
TAKING = [route for route in ROUTES if isinstance(route.body, type) and route.path not in NEEDLESS]
HOSTILE = [
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"5",
    b"\xff\xfe{}",
    b'{"model": "tiny", "prompt": "' + b"a" * 100 + b'\x00"}',
    b'{"model": {}, "prompt": 1, "messages": 5, "input": {}}',
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"model": "tiny", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"model": "' + b"x" * 300_000 + b'"}',
    b'{"model": "../../etc/passwd"}',
]


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return document(ROUTES)


def operation(told: dict[str, Any], route: Route) -> dict[str, Any]:
    return dict(told["paths"][re.sub(r":[^{}]*\}", "}", route.path)][route.method.lower()])


def test_every_route_is_told_with_its_body(told: dict[str, Any], echo: Daemon) -> None:
    for route in ROUTES:
        found = operation(told, route)
        assert (found["summary"], found["x-lm-role"]) == (route.doc, route.role)
        if route.method in ("POST", "PUT"):
            assert ("requestBody" in found) == (route.path not in BARE), f"{route.path} tells no body"
    assert sum(map(len, told["paths"].values())) == len(ROUTES)
    assert echo.get("/openapi.json").json == json.loads(json.dumps(told))


def test_the_document_refers_to_what_it_has(told: dict[str, Any]) -> None:
    names = told["components"]["schemas"]
    text = json.dumps(told)
    used = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used <= set(names)
    for schema in names.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [each["operationId"] for path in told["paths"].values() for each in path.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("route", TAKING, ids=lambda route: route.path)
def test_hostile_bodies_are_refused_at_once_in_the_dialects_form(
    echo: Daemon, told: dict[str, Any], route: Route
) -> None:
    error = operation(told, route)["responses"]["default"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(error | {"components": told["components"]})
    for body in HOSTILE:
        began = time.monotonic()
        answer = echo.ask(route.method, route.path, body)
        assert 400 <= answer.status < 500, (body[:60], answer.body[:300])
        assert time.monotonic() - began < allowed(2)
        validator.validate(answer.json)
        assert b"Traceback" not in answer.body
    assert echo.get("/health").status == 200


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("fuzzed")
    put_model(home, capabilities=("completion", "insert", "tools", "thinking", "embedding"))
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


@pytest.mark.parametrize(
    "cases", [pytest.param(4, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.long(name="requests"))]
)
def test_random_requests_meet_no_failure_and_answers_keep_their_schema(target: Daemon, cases: int) -> None:
    """schemathesis makes them from the document; 55 operations take something, so that 100 each are five thousand."""
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_dict(target.get("/openapi.json").json)
    checks = schemathesis.checks.CHECKS.get_by_names(
        [
            "not_a_server_error",
            "content_type_conformance",
            "response_schema_conformance",
            "response_headers_conformance",
        ]
    )
    asked: list[str] = []
    for found in schema.get_all_operations():
        each = found.ok()
        if each.path in APART:
            continue

        @settings(max_examples=cases, database=None, suppress_health_check=list(HealthCheck))
        @given(case=each.as_strategy())
        def check(case: Any) -> None:
            asked.append(case.path)
            case.validate_response(case.call(base_url=target.url, timeout=60), checks=checks)

        check()
    assert cases < 100 or len(asked) >= 5000, f"{len(asked)} requests"
