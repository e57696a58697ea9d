"""The chat in a browser: what a person does with it, from the first question to another browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, wait_until
from tests.page.conftest import SLOW_WORDS, ask, settled, start, until

pytestmark = pytest.mark.slow
SLOW = "word " * SLOW_WORDS


def texts(page: Any, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def shown(page: Any, selector: str, expected: list[str]) -> None:
    """Wait until the elements have these texts."""
    found = f"[...document.querySelectorAll({json.dumps(selector)})].map(each => each.innerText.trim())"
    until(page, f"JSON.stringify({found}) === JSON.stringify({json.dumps(expected)})")


def test_an_answer_comes_with_its_figures_and_stays_after_a_reload(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    ask(page, "one **two** three")
    settled(page)
    assert texts(page, ".assistant .text") == ["one two three"]
    assert page.locator(".assistant .text strong").inner_text() == "two"
    assert re.search(r"tokens/s · first token .* of 2,048 tokens", texts(page, ".figures")[0])
    page.reload()
    settled(page)
    assert texts(page, ".user .text") == ["one **two** three"]
    assert texts(page, ".conversations a span") == ["one **two** three"]
    until(page, "document.querySelector('#model-state').textContent.startsWith('loaded')")


def test_an_answer_can_be_stopped_and_keeps_what_has_come(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    ask(page, SLOW)
    until(page, "document.querySelector('.assistant .text').innerText.split(' ').length > 20")
    page.keyboard.press("Escape")
    settled(page)
    assert texts(page, ".figures")[0].endswith("stopped")
    kept = texts(page, ".assistant .text")[0]
    assert 20 < len(kept.split()) < SLOW_WORDS
    wait_until(lambda: all(row["active"] == 0 for row in daemon.get("/api/ps").json["models"]), 10)
    page.reload()
    settled(page)
    assert texts(page, ".assistant .text")[0] == kept


def test_a_reload_amid_an_answer_keeps_its_beginning(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    ask(page, SLOW)
    until(page, "document.querySelector('.assistant .text').innerText.split(' ').length > 400")
    page.reload()
    settled(page)
    assert texts(page, ".figures")[0].endswith("stopped")
    assert "word word" in texts(page, ".assistant .text")[0]


def test_an_answer_goes_on_while_another_view_is_shown(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    ask(page, "word " * 300)
    page.wait_for_selector(".assistant .text p")
    address = page.url
    page.click("[data-view=machine]")
    page.wait_for_selector("#view-machine")
    page.goto(address)
    settled(page)
    assert len(texts(page, ".assistant .text")[0].split()) == 300


def test_edits_and_other_answers_are_branches(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    ask(page, "first")
    settled(page)
    page.hover(".user")
    page.click(".user footer >> text=Edit")
    page.fill(".user .text textarea", "second")
    page.click("text=Send as a branch")
    shown(page, ".text", ["second", "second"])
    settled(page)
    shown(page, ".user .branches", ["2 / 2"])
    page.click(".assistant footer >> text=Regenerate")
    shown(page, ".assistant .branches", ["2 / 2"])
    settled(page)
    page.click(".user [aria-label='Earlier branch']")
    shown(page, ".text", ["first", "first"])
    assert page.locator(".assistant .branches").count() == 0
    page.reload()
    settled(page)
    shown(page, ".text", ["first", "first"])
    page.click(".user [aria-label='Later branch']")
    shown(page, ".assistant .branches", ["2 / 2"])
    page.click(".assistant footer >> text=Edit")
    page.fill(".assistant .text textarea", "mine")
    page.click("text=Keep as a branch")
    shown(page, ".assistant .text", ["mine"])
    shown(page, ".assistant .branches", ["3 / 3"])


def test_thoughts_are_folded(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    ask(page, "<think>hidden thought</think>seen answer")
    settled(page)
    assert texts(page, ".assistant .text") == ["seen answer"]
    assert not page.locator(".thought").is_visible()
    page.click(".thinking summary")
    assert "hidden thought" in page.locator(".thought").inner_text()


def test_tools_are_called_and_their_results_sent(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    page.click("[aria-label=Settings].icon-button")
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    page.get_by_label("Tools").fill(json.dumps([tool]))
    ask(page, '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>')
    page.wait_for_selector(".results")
    assert texts(page, ".call .badge") == ["calls weather"]
    assert json.loads(page.locator(".call code").inner_text()) == {"city": "Bern"}
    page.fill(".results textarea", "snow")
    with page.expect_request("**/api/chat") as asked:
        page.click("text=Send results")
    turns = asked.value.post_data_json["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]
    assert turns[1]["tool_calls"][0]["function"] == {"index": 0, "name": "weather", "arguments": {"city": "Bern"}}
    assert (turns[2]["content"], turns[2]["tool_name"]) == ("snow", "weather")
    settled(page, 2)
    assert texts(page, ".assistant .text")[1] == "snow"


def test_settings_go_with_the_question_and_a_form_is_shown_as_one(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    page.click("[aria-label=Settings].icon-button")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Top K").fill("-4")  # not a number of the range: left out
    page.get_by_label("Form of the answer").fill('{"type": "object"}')
    with page.expect_request("**/api/chat") as asked:
        ask(page, '{"a":[1,2]}')
    body = asked.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["options"], body["format"]) == ({"temperature": 0.2}, {"type": "object"})
    settled(page)
    assert json.loads(page.locator(".assistant .code code").inner_text()) == {"a": [1, 2]}
    assert "\n" in page.locator(".assistant .code code").inner_text()
    page.get_by_label("Form of the answer").fill("{broken")
    ask(page, "again")
    settled(page, 2)
    assert "is no JSON" in page.locator(".problem").inner_text()


def test_a_link_fills_the_box_and_does_nothing_else(page: Any, daemon: Daemon) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    loaded = len(daemon.workers())
    start(page, daemon, "#/chat/tiny?q=why%20%26%20how")
    assert page.input_value("#question") == "why & how"
    assert page.input_value("#model").startswith("tiny")
    assert page.locator(".message").count() == 0
    page.goto(f"{daemon.url}/ui/#/chat/nobody/has%3Athis?q=x")
    page.wait_for_selector(".notice-error")
    assert "`nobody/has:this` is not on this machine" in page.locator(".notice-error").inner_text()
    assert set(sent) == {"GET"}
    assert len(daemon.workers()) == loaded


def test_conversations_leave_and_come_back_as_a_file(page: Any, daemon: Daemon, tmp_path: Path) -> None:
    start(page, daemon)
    ask(page, "to be kept")
    settled(page)
    with page.expect_download() as waiting:
        page.click("text=Export all")
    file = tmp_path / "conversations.json"
    waiting.value.save_as(file)
    assert json.loads(file.read_text())["conversations"][0]["title"] == "to be kept"
    page.hover(".conversations li")
    page.click(".conversations .icon-button")
    page.click("dialog >> text=Keep")
    page.hover(".conversations li")
    page.click(".conversations .icon-button")
    page.click("dialog .danger")
    page.wait_for_selector(".conversations .quiet")
    page.set_input_files(".sidebar input[type=file]", file)
    page.click(".conversations a")
    settled(page)
    assert texts(page, ".text") == ["to be kept", "to be kept"]
    wrong = tmp_path / "wrong.json"
    for text in ("[]", "{", '{"format": "lm-conversations", "conversations": [{"messages": [{"role": "x"}]}]}'):
        wrong.write_text(text)
        page.set_input_files(".sidebar input[type=file]", wrong)
        page.wait_for_selector(".notice-error >> text=wrong.json")
        page.click(".notice-error .icon-button")
    assert page.locator(".conversations a").count() == 1


def test_files_go_along_as_text(page: Any, daemon: Daemon, tmp_path: Path) -> None:
    start(page, daemon)
    (tmp_path / "notes.md").write_text("some ```fenced``` notes")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\xff")
    page.set_input_files(".composer input[type=file]", [tmp_path / "notes.md", tmp_path / "picture.png"])
    page.wait_for_selector(".notice-error >> text=picture.png")
    assert texts(page, ".chips .badge") == ["notes.md"]
    with page.expect_request("**/api/chat") as asked:
        ask(page, "read")
    content = asked.value.post_data_json["messages"][0]["content"]
    assert content == "notes.md\n````\nsome ```fenced``` notes\n````\n\nread"
    settled(page)
    drop = """text => {
        const data = new DataTransfer();
        data.items.add(new File([text], "dropped.txt"));
        document.querySelector(".chat").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }"""
    page.evaluate(drop, "more")
    page.wait_for_selector(".chips .badge")
    assert texts(page, ".chips .badge") == ["dropped.txt"]


def test_a_failure_is_a_sentence_with_a_hint(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    with page.expect_response("**/api/chat"):
        ask(page, "word " * 3000)
    page.wait_for_selector(".message .problem")
    said = page.locator(".problem").inner_text()
    assert "3000 tokens" in said.replace(",", "") and "Hint:" in said
    settled(page)
    ask(page, "short")
    settled(page, 2)
    assert texts(page, ".assistant .text")[1] == "short"


def test_the_keyboard_is_enough(page: Any, daemon: Daemon) -> None:
    start(page, daemon)
    page.keyboard.type("by key")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    settled(page)
    assert texts(page, ".user .text") == ["by key\nsecond line"]
    reached: set[str] = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent || document.activeElement.id"))
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if page.evaluate("document.activeElement.matches('button, a, select')"):
            assert style != "none", page.evaluate("document.activeElement.outerHTML")
    assert {"Copy", "Edit", "Regenerate", "Skip to content", "Machine"} <= reached
    page.focus("text=Regenerate")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
