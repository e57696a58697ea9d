"""What the page shows stays text, what it does stays on this machine, and a key opens what its role may."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from server.keys.file import change_keys
from server.keys.record import new_key
from tests.daemon import Daemon, put_model
from tests.page.conftest import CHROMIUM, VIEWS, ask, opened, settled, start, until

pytestmark = pytest.mark.slow
CALL = "window.hurt=1"
TAGS = (
    "script",
    "img",
    "svg",
    "iframe",
    "object",
    "embed",
    "video",
    "body",
    "math",
    "details",
    "form",
    "input",
    "base",
)
EVENTS = ("onerror", "onload", "onclick", "onfocus", "ontoggle", "onmouseover", "onanimationstart", "onbegin")
LINKS = (f"javascript:{CALL}", f"JaVaScRiPt:{CALL}", f"java\tscript:{CALL}", f" javascript:{CALL}", f"vbscript:{CALL}")


def hostile() -> list[str]:
    """200 texts that run a script or load something wherever one of them becomes HTML."""
    found = [f"<script>{CALL}</script>", f"</script><script>{CALL}</script>", f"<svg><script>{CALL}//</svg>"]
    found += [f'<{tag} src=x {event}="{CALL}">' for tag in TAGS for event in EVENTS]
    found += [f"[a]({link})" for link in LINKS] + [f"![a]({link})" for link in LINKS] + [f"<{link}>" for link in LINKS]
    found += [f'"><img src=x onerror={CALL}>', f"'><img src=x onerror={CALL}>", f"--><img src=x onerror={CALL}>"]
    found += [
        f"```<img src=x onerror={CALL}>\nx\n```",
        f"`<img src=x onerror={CALL}>`",
        f"$<img src=x onerror={CALL}>$",
    ]
    found += [f"| <img src=x onerror={CALL}> |\n|---|\n| <script>{CALL}</script> |", f"# <img src=x onerror={CALL}>"]
    found += [f"<a href='{link}'>a</a>" for link in LINKS] + [f"<iframe src='{link}'></iframe>" for link in LINKS]
    found += [f"<style>@import '//evil.example/{at}'</style>" for at in range(10)]
    found += [f"![p](https://evil.example/{at}.png)" for at in range(25)]
    found += [f"<img src=https://evil.example/{at}.png>" for at in range(25)]
    found += [f"[x](data:text/html,<script>{CALL}</script>)", f"[x][y]\n\n[y]: javascript:{CALL}"]
    found += ["{{constructor.constructor('window.hurt=1')()}}", "${window.hurt=1}", f"<!--<img src=--><img {CALL}>//"]
    return found[:200]


# Elements and attributes that the page never has, and links that it never makes.
FOUND = """() => [
    ...document.querySelectorAll("main img, main iframe, main object, main embed, main script, main style, main base"),
    ...document.querySelectorAll("main svg:not(.icon, .chart), main video, main math, main body"),
    ...[...document.querySelectorAll("main *")].filter(each => [...each.attributes].some(one => /^on/.test(one.name))),
    ...[...document.links].filter(each => !/^(https?:|mailto:|#)/.test(each.getAttribute("href"))),
].map(each => each.outerHTML.slice(0, 200))"""


def unhurt(page: Any) -> None:
    assert page.evaluate(FOUND) == []
    assert page.evaluate("window.hurt") is None


def test_200_hostile_texts_are_texts_in_an_answer(page: Any, daemon: Daemon) -> None:
    texts = hostile()
    assert len(set(texts)) == 200
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    start(page, daemon)
    for at in range(0, 200, 20):
        ask(page, "\n\n".join(texts[at : at + 20]))
        settled(page, at // 20 + 1)
        unhurt(page)
    shown = page.locator(".log").text_content()
    for tag in TAGS:
        assert f"<{tag} src=x onerror=" in shown
    page.reload()
    settled(page, 10)
    unhurt(page)
    assert {urlsplit(url).netloc for url in asked} <= {f"127.0.0.1:{daemon.port}", ""}


def test_hostile_names_templates_and_errors_are_texts(page: Any, daemon: Daemon) -> None:
    bad = f'x"><img src=x onerror={CALL}><script>{CALL}</script>'

    def spoiled(value: Any) -> Any:
        """The value with every text of it hostile, but for those that say what a thing is."""
        if isinstance(value, dict):
            keep = ("role", "version", "capabilities", "status", "modified_at", "expires_at", "severity", "level")
            return {key: each if key in keep else spoiled(each) for key, each in value.items()}
        if isinstance(value, list):
            return [spoiled(each) for each in value]
        return bad if value and isinstance(value, str) else value

    def answer(route: Any) -> None:
        path = urlsplit(route.request.url).path
        if path.startswith("/ui/") or path == "/lm/events":
            route.continue_()
        elif path == "/api/chat":
            route.fulfill(status=500, json={"error": bad, "hint": bad})
        else:
            response = route.fetch()
            kind = response.headers.get("content-type", "")
            route.fulfill(response=response, json=spoiled(response.json())) if "json" in kind else route.continue_()

    page.route("**/*", answer)
    start(page, daemon)
    assert bad in page.locator("#model").inner_text() or bad in page.locator("#model option").first.text_content()
    ask(page, bad)
    page.wait_for_selector(".problem")
    assert bad in page.locator(".problem").inner_text()
    unhurt(page)
    for view in VIEWS[1:]:
        page.goto(f"{daemon.url}/ui/#/{view}")
        page.wait_for_selector(f"#view-{view} *")
        unhurt(page)
    page.unroute_all(behavior="ignoreErrors")


def test_an_imported_conversation_is_text(page: Any, daemon: Daemon, tmp_path: Path) -> None:
    bad = f"<img src=x onerror={CALL}>"
    message = {
        "id": bad, "role": "assistant", "content": bad, "thinking": bad, "model": bad, "parent": None, "state": bad,
        "calls": [{"id": bad, "function": {"name": bad, "arguments": {bad: bad}}}],
        "files": [{"name": bad, "text": bad}],
        "stats": {"warning": bad, "reason": bad, "tokens": bad}, "error": {"message": bad, "hint": bad},
    }  # fmt: skip
    conversation = {"title": bad, "model": bad, "settings": {"system": bad}, "leaf": bad, "messages": [message]}
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({"format": "lm-conversations", "version": 1, "conversations": [conversation]}))
    start(page, daemon)
    page.set_input_files(".sidebar input[type=file]", file)
    page.click(".conversations a")
    page.wait_for_selector(".message")
    for details in page.locator("details").all():
        details.locator("summary").click()
    unhurt(page)


def test_nothing_leaves_this_machine(daemon: Daemon, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    arguments = [f"--log-net-log={log}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    script = f"""
from playwright.sync_api import sync_playwright
with sync_playwright() as running:
    browser = running.chromium.launch(executable_path={CHROMIUM!r}, args={arguments!r})
    page = browser.new_page()
    page.goto({daemon.url + "/ui/"!r})
    page.fill("#question", "![p](https://evil.example/a.png) https://evil.example/b")
    page.press("#question", "Enter")
    page.wait_for_selector(".assistant footer")
    for view in {VIEWS!r}:
        page.click(f"[data-view={{view}}]")
        page.wait_for_selector(f"#view-{{view}} *")
    page.wait_for_load_state()
    browser.close()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    text = log.read_text()
    try:
        found = json.loads(text)
    except json.JSONDecodeError:  # it was closed before the last line
        found = json.loads(text.rstrip().rstrip(",") + "]}")
    kind = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [event.get("params", {}) for event in found["events"] if event["type"] == kind]
    # Chromium asks its maker's hosts for things of its own; what a page asks for has the page's origin.
    asked = [job["url"] for job in jobs if job.get("initiator") == daemon.url]
    assert len(asked) > 20
    assert {urlsplit(url).netloc for url in asked} == {f"127.0.0.1:{daemon.port}"}
    assert "evil.example" not in " ".join(job.get("url", "") for job in jobs)


@pytest.fixture(scope="module")
def keyed(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, dict[str, str]]]:
    """A daemon that wants keys, and a key for each role."""
    home = tmp_path_factory.mktemp("keyed")
    put_model(home)
    made = {role: new_key(role) for role in ("infer", "operator", "admin")}
    change_keys(home / "keys.json", lambda _: [key for _, key in made.values()])
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon, {role: secret for role, (secret, _) in made.items()}


@pytest.fixture
def stranger(browser: Any) -> Iterator[Any]:
    yield from opened(browser)


def test_a_key_opens_the_page_and_stays_in_the_tab(stranger: Any, keyed: tuple[Daemon, dict[str, str]]) -> None:
    daemon, keys = keyed
    page = stranger
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request))
    page.goto(f"{daemon.url}/ui/#/chat/tiny?q=after")
    page.wait_for_selector("#key")
    assert page.locator("[data-view]:visible").count() == 0
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector(".login .problem")
    page.fill("#key", keys["infer"])
    page.keyboard.press("Enter")
    page.wait_for_selector("#question")
    until(page, "document.querySelector('#question').value === 'after'")
    assert page.locator(".notice").inner_text() == "infer: May ask models."
    assert page.locator("[data-view]:visible").all_inner_texts() == ["Chat", "Models", "Machine"]
    page.press("#question", "Enter")
    settled(page)
    page.reload()
    settled(page)
    assert page.evaluate("[document.cookie, JSON.stringify(localStorage)].join()").find(keys["infer"]) < 0
    assert all(keys["infer"] not in request.url for request in asked)
    assert all("cookie" not in request.headers for request in asked)
    page.goto(f"{daemon.url}/ui/#/fit")
    page.wait_for_selector("#view-fit .problem")
    assert "this view takes `operator`" in page.locator(".problem").inner_text()
    page.click("text=Forget key")
    page.wait_for_selector("#key")
    assert page.evaluate("sessionStorage.length") == 0


def test_a_key_that_ends_brings_the_login_back(stranger: Any, keyed: tuple[Daemon, dict[str, str]]) -> None:
    daemon, keys = keyed
    page = stranger
    page.goto(f"{daemon.url}/ui/")
    page.fill("#key", keys["operator"])
    page.keyboard.press("Enter")
    page.wait_for_selector("#question")
    assert page.locator("[data-view]:visible").count() == 4
    page.evaluate("sessionStorage.setItem('lm-key', 'ended')")
    ask(page, "x")
    page.wait_for_selector("#key")
