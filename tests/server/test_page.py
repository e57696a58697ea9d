"""The page as files: how they are served, what they may load, and who may call the routes behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.api.lm.page import MEDIA, files
from server.routes.route import Route
from server.routes.table import ROUTES
from tests.daemon import Daemon
from tests.test_architecture import ROOT

STATIC = ROOT / "server" / "static"
SENT = [route for route in ROUTES if route.method not in ("GET", "HEAD")]
CHANGING = [route for route in ROUTES if route.changes and route.method != "HEAD"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("page"), env={"LM_API_KEY": "sesame"}) as daemon:
        yield daemon


def test_a_browser_comes_from_the_root_to_the_page_and_a_program_does_not(served: Daemon) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in ("/", "/ui"):
        answer = served.get(path, **browser)
        assert (answer.status, answer.headers["Location"]) == (302, "ui/")
    assert served.get("/").body == b"Ollama is running"
    assert b"<title>lm</title>" in served.get("/ui/", **browser).body


@pytest.mark.parametrize("path", sorted(files()))
def test_every_file_needs_no_key_and_comes_with_its_policy(served: Daemon, path: str) -> None:
    answer = served.get(f"/ui/{path}")
    assert answer.status == 200
    assert answer.body == (STATIC / path).read_bytes()
    assert answer.headers["Content-Type"] == f"{MEDIA[path.rpartition('.')[2]]}; charset=utf-8"
    assert answer.headers["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_file_that_is_known_is_not_sent_again(served: Daemon) -> None:
    etag = served.get("/ui/").headers["Etag"]
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = served.get("/ui/", **{"If-None-Match": known})
        assert (answer.status, answer.body, answer.headers["Etag"]) == (304, b"", etag)
        assert "Content-Security-Policy" in answer.headers
    assert served.get("/ui/", **{"If-None-Match": '"other"'}).status == 200


@pytest.mark.parametrize(
    "path", ["nothing.js", "../app.py", "%2e%2e/app.py", "views/../../app.py", "views", "a" * 3000]
)
def test_nothing_else_is_served(served: Daemon, path: str) -> None:
    answer = served.get(f"/ui/{path}")
    assert answer.status == 404
    assert "hint" in answer.json and len(answer.body) < 400


def test_a_link_of_another_site_may_open_the_page_and_do_nothing_else(served: Daemon) -> None:
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert served.get("/ui/", **visit).status == 200
    assert served.get("/ui/", **visit | {"Sec-Fetch-Dest": "iframe"}).status == 403
    assert served.get("/ui/app.js", **visit | {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}).status == 403
    assert served.get("/api/tags", Authorization="Bearer sesame", **visit).status == 403
    assert served.get("/ui/", Host="evil.example", **visit).status == 403


@pytest.mark.parametrize("route", CHANGING, ids=lambda route: f"{route.method}{route.path}")
def test_a_route_that_changes_something_refuses_pages_of_others_and_forms(served: Daemon, route: Route) -> None:
    path = re.sub(r"\{[^{}]*\}", "x", route.path)
    key = {"Authorization": "Bearer sesame"}
    own = f"http://127.0.0.1:{served.port}"
    json, form = {"Content-Type": "application/json"}, {"Content-Type": "application/x-www-form-urlencoded"}
    for headers in (
        {"Origin": "https://evil.example"} | json,
        {"Origin": "http://localhost:1"} | json,
        {"Origin": "null"} | json,
        {"Origin": own} | form,
        {"Origin": own, "Content-Type": "multipart/form-data; boundary=x"},
        {"Origin": own, "Content-Type": "text/plain"},
        {"Sec-Fetch-Mode": "navigate"} | form,
        {"Sec-Fetch-Site": "cross-site"} | json,
    ):
        answer = served.ask(route.method, path, b"{}", key | headers)
        assert answer.status == 403, headers


@pytest.mark.parametrize("route", SENT, ids=lambda route: f"{route.method}{route.path}")
def test_no_route_answers_to_another_site_or_a_form_that_a_person_sends(served: Daemon, route: Route) -> None:
    path = re.sub(r"\{[^{}]*\}", "x", route.path)
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Mode": "navigate"}):
        assert served.ask(route.method, path, b"{}", {"Authorization": "Bearer sesame"} | headers).status == 403


def test_curl_still_needs_no_headers(served: Daemon) -> None:
    key = {"Authorization": "Bearer sesame", "Content-Type": "application/x-www-form-urlencoded"}
    assert served.ask("POST", "/lm/stop", b'{"model": "none"}', key).status == 404


def test_health_says_who_asks(served: Daemon) -> None:
    assert served.get("/health").json == {"status": "ok"}
    told = served.get("/health", Authorization="Bearer sesame").json
    assert (told["role"], told["caller"]) == ("admin", "the key LM_API_KEY")


def sources(*endings: str) -> list[Path]:
    return [path for path in sorted(STATIC.rglob("*")) if path.suffix in endings]


def test_the_page_stays_small() -> None:
    scripts = {path: len(path.read_text().splitlines()) for path in sources(".js")}
    assert max(scripts.values()) <= 300, max(scripts, key=lambda path: scripts[path])
    assert sum(scripts.values()) <= 2920
    assert sum(path.stat().st_size for path in STATIC.rglob("*") if path.is_file()) <= 143_000
    assert max(len(line) for path in scripts for line in path.read_text().splitlines()) <= 120


@pytest.mark.parametrize("path", sources(".js", ".html", ".css"), ids=lambda path: path.name)
def test_no_text_becomes_html_and_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "Function("):
        assert way not in text
    assert not re.search(r"""(?:src|href|url|import|from)\s*[=(]?\s*["']?(?:https?:)?//""", text)
    assert " style=" not in text and "onclick=" not in text


def test_every_file_of_the_page_has_a_job() -> None:
    for path in sources(".js"):
        assert path.read_text().startswith("// "), path
