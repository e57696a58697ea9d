"""A browser for the tests of the page: Debian's Chromium by Playwright; skipped where one of them is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, allowed, put_model, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Words of a question that takes a while to answer: each is a token of the echo.
SLOW_WORDS = 1500
ECHO = {"echo": True, "delay": 0.004}
VIEWS = ("chat", "models", "fit", "machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser, for the tests of a module: while Playwright runs, no other test can run an event loop."""
    playwright = pytest.importorskip("playwright.sync_api", reason="there is no Playwright (extra `page`)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        # Chromium has no sandbox for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which finds barriers in a page."""
    path = Path(os.environ.get("LM_CLIENTS_NODE", "/nowhere")) / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        pytest.skip("there is no axe-core below LM_CLIENTS_NODE")
    return path.read_text()


@pytest.fixture(scope="module")
def daemon(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose models say what they are asked, word by word."""
    home = tmp_path_factory.mktemp("page")
    able = ("completion", "tools", "thinking")
    put_model(home, capabilities=able)
    put_model(home, "another", level="Q8_0", capabilities=able)
    with Daemon(home, script=ECHO) as running:
        yield running


@pytest.fixture
def page(browser: Any, daemon: Daemon) -> Iterator[Any]:
    """A page of a new browser profile; errors of its scripts fail the test."""
    yield from opened(browser)


def opened(browser: Any, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
    context.set_default_timeout(allowed(5) * 1000)
    found = context.new_page()
    errors: list[str] = []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    yield found
    context.close()
    assert errors == []


def start(page: Any, daemon: Daemon, route: str = "") -> None:
    """Open the chat, ready for a question."""
    page.goto(f"{daemon.url}/ui/{route}")
    page.wait_for_selector("#question")
    until(page, "document.querySelector('#model').value !== '' && document.activeElement.id === 'question'")


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def settled(page: Any, answers: int = 1) -> None:
    """Wait until this many answers are shown, and none is on its way."""
    until(
        page,
        f"document.querySelectorAll('.message.assistant').length === {answers}"
        " && !document.querySelector('[aria-busy]') && document.querySelector('.go').title === 'Send'",
    )


def until(page: Any, condition: str, seconds: float = 10) -> None:
    """Wait until an expression is true in the page: one that asks an element which is not there yet is not true.

    Playwright's own way needs `eval`, which the policy forbids.
    """
    asked = f"() => {{ try {{ return Boolean({condition}) }} catch (error) {{ return false }} }}"
    wait_until(lambda: page.evaluate(asked), seconds, 0.05)
