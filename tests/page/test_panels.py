"""The views of models, fit and machine in a browser: what a person does there, and what the daemon says to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from registry.sources.opening import DEMO
from registry.store import manifest
from registry.store.layers import Staged
from registry.store.store import Store
from tests.daemon import Daemon, alive, put_model, wait_until
from tests.hub import Faults, Hub
from tests.page.conftest import opened, until
from tests.storing import card

pytestmark = pytest.mark.slow
SECRET = "nobody else may read this sentence"
HOSTILE = (
    "<img src=x onerror=window.hurt=1>",
    "<script>window.hurt=1</script>",
    "<svg/onload=window.hurt=1>",
    '"><iframe srcdoc="<script>parent.hurt=1</script>">',
    "javascript:window.hurt=1",
    "</title><script>window.hurt=1</script>",
    "{{constructor.constructor('window.hurt=1')()}}",
    "&lt;img src=x onerror=window.hurt=1&gt;",
    "<a href='javascript:window.hurt=1' autofocus onfocus=window.hurt=1>x</a>",
    "\u202e<details open ontoggle=window.hurt=1>",
)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub({"org/demo": DEMO, "org/slow": DEMO}) as hub:
        yield hub


@pytest.fixture(scope="module")
def daemon(browser: Any, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("panels")
    put_model(home)
    put_model(home, "another")
    with Store.open(home / "store") as store:
        model = store.resolve("another")
        store.attach(model, Staged.json(card(model, mean=0.01234), manifest.QUALITY))
    nowhere = {"HF_HOME": str(home / "none"), "OLLAMA_MODELS": str(home / "none")}
    with Daemon(home, script={"echo": True, "delay": 0.01}, env={"HF_ENDPOINT": hub.url} | nowhere) as daemon:
        yield daemon


def show(page: Any, daemon: Daemon, route: str) -> None:
    page.goto("about:blank")
    page.goto(f"{daemon.url}/ui/#/{route}")
    page.wait_for_selector("#main h1")


def amount(text: str) -> float:
    """Bytes from a size as the page writes it."""
    value, unit = text.split()
    return float(value) * 1000.0 ** ("B", "kB", "MB", "GB", "TB").index(unit)


def test_a_pull_shows_its_way_pauses_resumes_and_survives_a_fault(page: Any, daemon: Daemon, hub: Hub) -> None:
    show(page, daemon, "models")
    page.fill("#pull-name", "org/nowhere")
    page.press("#pull-name", "Enter")
    problem = page.locator(".notice-error")
    problem.wait_for()
    assert "org/nowhere" in problem.inner_text() and "Hint:" in problem.inner_text()
    hub.bandwidth, hub.faults = 1_000_000, replace(Faults(), cut_after=2_000_000)
    page.fill("#pull-name", "org/slow:Q5_0")
    page.press("#pull-name", "Enter")
    row = page.locator(".pull", has_text="org/slow")
    until(page, "/\u00a0% · .* left/.test(document.querySelector('.pull')?.innerText ?? '')")
    row.get_by_role("button", name="Pause").click()
    row.get_by_role("button", name="Resume").wait_for()
    assert "paused" in row.inner_text()
    (paused,) = daemon.get("/lm/partials").json["partials"]
    assert paused["active"] is False
    page.reload()
    hub.bandwidth = None
    row.get_by_role("button", name="Resume").click()
    page.locator("tbody tr", has_text="org/slow:Q5_0").wait_for()
    row.wait_for(state="detached")
    assert any("org/slow" in each["name"] for each in daemon.listed())
    assert daemon.get("/lm/partials").json["partials"] == []


def test_a_paused_pull_can_be_thrown_away(page: Any, daemon: Daemon, hub: Hub) -> None:
    show(page, daemon, "models")
    hub.bandwidth = 500_000
    page.fill("#pull-name", "org/slow:Q4_0")
    page.press("#pull-name", "Enter")
    row = page.locator(".pull", has_text="org/slow:Q4_0")
    until(page, "/\u00a0%/.test(document.querySelector('.pull')?.innerText ?? '')")
    row.get_by_role("button", name="Pause").click()
    row.get_by_role("button", name="Throw away").click()
    row.wait_for(state="detached")
    hub.bandwidth = None
    assert daemon.get("/lm/partials").json["partials"] == []


def test_a_model_is_removed_only_after_a_question_that_says_what_it_frees(page: Any, daemon: Daemon) -> None:
    put = daemon.post("/api/copy", {"source": "tiny", "destination": "copied"})
    assert put.status == 200
    show(page, daemon, "models")
    row = page.locator("tbody tr", has_text="copied")
    row.get_by_role("button", name="Remove").click()
    dialog = page.locator("dialog")
    assert "copied" in dialog.inner_text() and "frees" in dialog.inner_text()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    row.get_by_role("button", name="Remove").click()
    dialog.get_by_role("button", name="Remove").click()
    row.wait_for(state="detached")
    assert all("copied" not in each["name"] for each in daemon.listed())


def test_a_model_tells_why_it_is_as_it_is(page: Any, daemon: Daemon) -> None:
    show(page, daemon, "models")
    page.locator("tbody a.name", has_text="tiny").click()
    page.wait_for_selector(".detail")
    text = page.locator(".detail").inner_text()
    shown = daemon.post("/api/show", {"model": "tiny"}).json
    assert shown["lm"]["reason"] in text
    assert "2,048 tokens" in text
    page.locator("summary", has_text="Modelfile").click()
    assert "FROM tiny" in page.locator("pre", has_text="FROM").inner_text()


def test_a_quality_card_is_shown_with_its_errors(page: Any, daemon: Daemon) -> None:
    show(page, daemon, "models/another")
    panel = page.locator(".detail section", has_text="KL divergence")
    panel.wait_for()
    text = panel.inner_text()
    assert "0.01234" in text and "0.9 ± 0.01" in text and "90 ± 1\u00a0%" in text
    assert "the original · BF16" in text and "a text, 1 window of 512 tokens" in text
    show(page, daemon, "models/tiny")
    page.locator(".detail section", has_text="Not measured here").wait_for()


def test_the_choice_moves_with_the_sliders_and_is_the_daemons(page: Any, daemon: Daemon) -> None:
    show(page, daemon, "fit/org%2Fdemo")
    page.wait_for_selector("tr.chosen")
    assert page.locator("tr.chosen").get_attribute("data-level") == daemon.advice("org/demo")["level"]
    page.focus("#fit-memory")
    levels = [moved(page, daemon, "Home")]
    while len(set(levels)) < 3 and len(levels) < 40:
        levels.append(moved(page, daemon, "ArrowRight"))
    assert levels[0] == "" and len(set(levels)) == 3
    page.focus("#fit-parallel")
    moved(page, daemon, "End", parallel=32)
    page.get_by_role("button", name="As the daemon has it").click()
    until(page, "document.querySelector('tr.chosen')?.dataset.level === 'Q8_0'")


def moved(page: Any, daemon: Daemon, key: str, **wished: int) -> str:
    """The level that is chosen after a key on a slider, which is the daemon's choice for what the page asked."""
    with page.expect_response("**/lm/advise") as got:
        page.keyboard.press(key)
    wishes = got.value.request.post_data_json
    assert wished.items() <= wishes.items()
    answer = daemon.post("/lm/advise", wishes).json
    until(page, f"document.querySelector('.choice').innerText.includes({json.dumps(answer['reason'])})")
    chosen = page.locator("tr.chosen")
    level = chosen.get_attribute("data-level") if chosen.count() else ""
    assert level == answer["level"]
    return str(level)


def test_a_level_can_be_made_from_the_picture(page: Any, daemon: Daemon) -> None:
    show(page, daemon, "fit/org%2Fdemo")
    page.get_by_role("button", name="Make it: Q4_K_M").click()
    page.wait_for_selector("#view-models")
    page.locator("tbody tr", has_text="org/demo:Q4_K_M").wait_for()
    assert any(each["name"].endswith("org/demo:Q4_K_M") for each in daemon.listed())


def test_two_models_answer_side_by_side(page: Any, daemon: Daemon) -> None:
    show(page, daemon, "fit/")
    page.wait_for_selector(".compare:not([hidden])")
    page.fill(".compare textarea", "one two three")
    page.get_by_role("button", name="Ask both").click()
    until(page, "[...document.querySelectorAll('.compare [role=status]')].every((e) => /tokens.s/.test(e.textContent))")
    assert page.locator(".compare .answer").all_inner_texts() == ["one two three"] * 2
    names = page.locator(".compare select").evaluate_all("(all) => all.map((each) => each.value)")
    assert len(set(names)) == 2


def test_the_gauge_agrees_with_proc_and_a_model_can_be_unloaded(page: Any, daemon: Daemon) -> None:
    daemon.post("/api/generate", {"model": "tiny", "keep_alive": -1})
    pid = next(row["pid"] for row in daemon.get("/api/ps").json["models"] if row["name"] == "tiny:F32")
    show(page, daemon, "machine")
    row = page.locator("tbody tr", has_text="tiny:F32").first
    row.wait_for()
    until(page, "document.querySelector('.legend-list dd').textContent !== ''")
    parts = [amount(text) for text in page.locator(".legend-list dd").all_inner_texts()]
    whole = amount(
        page.locator("section", has_text="in all").locator(".number").first.inner_text().removesuffix(" in all")
    )
    assert sum(parts) == pytest.approx(whole, rel=0.02)
    assert whole <= psutil.virtual_memory().total * 1.01
    assert parts[-1] <= psutil.virtual_memory().available + 1e9
    status = Path(f"/proc/{pid}/status").read_text()
    own = int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) << 10
    assert amount(row.locator("td").nth(4).inner_text()) == pytest.approx(own, rel=0.2, abs=2e6)
    assert "for ever" in row.inner_text()
    row.get_by_role("button", name="Unload").click()
    row.get_by_role("button", name="Unload").wait_for(state="detached")
    wait_until(lambda: not (psutil.pid_exists(pid) and alive(psutil.Process(pid))), 10)


def test_requests_are_shown_without_a_word_of_them(page: Any, daemon: Daemon) -> None:
    daemon.post("/api/generate", {"model": "tiny", "prompt": SECRET})
    daemon.post("/v1/chat/completions", {"model": "missing", "messages": [{"role": "user", "content": SECRET}]})
    show(page, daemon, "machine")
    page.locator("tr", has_text="missing").wait_for()
    page.check("#wrong-only")
    statuses = page.locator("section", has_text="Recent requests").locator("tbody tr").all_inner_texts()
    assert statuses and all("404" in text for text in statuses)
    page.locator("summary", has_text="Log").click()
    until(page, "/completions/.test(document.querySelector('.log-lines').textContent)")
    page.locator("summary", has_text="well").wait_for()
    assert SECRET not in page.content()


def test_what_anybody_may_write_stays_text(page: Any, daemon: Daemon) -> None:
    """Every text of every answer that the views show is hostile at once; nothing of it becomes an element."""
    kept = {"status", "state", "phase", "fits", "quality", "digest", "modified_at", "role", "version", "type"}

    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: poisoned(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [poisoned(each, key) for each in value]
        return " ".join(HOSTILE) + value if isinstance(value, str) and key not in kept else value

    def answer(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=json.dumps(poisoned(response.json())))

    daemon.post("/api/chat", {"model": HOSTILE[0], "messages": []})
    for path in (
        "api/tags",
        "api/show",
        "lm/activity",
        "lm/doctor*",
        "lm/log*",
        "lm/found",
        "lm/partials",
        "lm/advise",
    ):
        page.route(f"**/{path}", answer)
    for view, ready in (
        ("models", "tbody a.name"),
        ("models/tiny", ".detail"),
        ("fit/org%2Fdemo", "tr.chosen"),
        ("machine", "tbody tr"),
    ):
        show(page, daemon, view)
        page.wait_for_selector(ready)
        found = page.evaluate(
            "[window.hurt, document.querySelectorAll('#main :is(img, script, iframe, object, svg[onload])').length]"
        )
        assert found == [None, 0]
        links = page.locator("#main a").evaluate_all("(all) => all.map((each) => each.protocol)")
        assert "javascript:" not in links
    page.unroute_all(behavior="wait")  # an answer may still be on its way through `answer`
    show(page, daemon, "models")
    page.fill("#pull-name", HOSTILE[0])
    page.press("#pull-name", "Enter")
    page.locator(".notice-error").wait_for()
    show(page, daemon, "machine")
    page.locator("td", has_text="<img").first.wait_for()
    assert page.evaluate("[window.hurt, document.querySelectorAll('#main img').length]") == [None, 0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser: Any, daemon: Daemon, axe: str, scheme: str) -> None:
    daemon.post("/api/generate", {"model": "tiny", "prompt": "one"})
    for page in opened(browser, color_scheme=scheme):
        for view, ready in (
            ("models", "tbody tr"),
            ("models/tiny", ".detail"),
            ("fit/org%2Fdemo", "tr.chosen"),
            ("machine", ".findings"),
        ):
            show(page, daemon, view)
            page.wait_for_selector(ready, state="attached")
            page.evaluate("() => Promise.all(document.getAnimations().map((each) => each.finished))")
            page.evaluate(axe)
            violations = page.evaluate("axe.run().then((result) => result.violations)")
            assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations] == [], view
