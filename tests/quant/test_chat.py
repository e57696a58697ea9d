"""Chat templates: every one that a model has is found and kept, whichever way it is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from quant.convert.planning import plan_model
from tests.quant.support import DEMO, Folder
from tests.runtime.tiny import load

MAIN, TOOLS, RAG = (f"{{{{ messages[0]['content'] }}}} as {name}" for name in ("main", "tools", "rag"))
DIFFERENT = {"default": MAIN, "tool_use": TOOLS, "rag": RAG}
demo = Folder(DEMO)
FOLDERS = {
    "one": demo.change("tokenizer_config.json", chat_template=MAIN),
    "a list": demo.change(
        "tokenizer_config.json", chat_template=[{"name": n, "template": t} for n, t in DIFFERENT.items()]
    ),
    "a file": demo.with_file("chat_template.jinja", MAIN.encode()),
    "files": demo.with_file("chat_template.jinja", MAIN.encode())
    .with_file("additional_chat_templates/tool_use.jinja", TOOLS.encode())
    .with_file("additional_chat_templates/rag.jinja", RAG.encode()),
}
WANTED = {"one": {"default": MAIN}, "a list": DIFFERENT, "a file": {"default": MAIN}, "files": DIFFERENT}
ELSEWHERE = {
    "a processor's": demo.with_file("chat_template.json", json.dumps({"chat_template": MAIN}).encode()),
    "a processor's, by names": demo.with_file("chat_template.json", json.dumps({"chat_template": DIFFERENT}).encode()),
}


def kept(folder: Folder) -> Mapping[str, str]:
    """The templates in the file that is made of a folder, by name."""
    entries, start = plan_model(folder).metadata, "tokenizer.chat_template"
    named = {name: entries[f"{start}.{name}"] for name in entries.get("tokenizer.chat_templates", ())}
    return {"default": entries[start], **named}


@pytest.mark.parametrize("name", FOLDERS)
def test_all_templates_are_kept(name: str) -> None:
    assert kept(FOLDERS[name]) == WANTED[name]


def test_those_of_a_processor_are_kept() -> None:
    assert [kept(folder) for folder in ELSEWHERE.values()] == [{"default": MAIN}, DIFFERENT]


@pytest.mark.oracle
@pytest.mark.parametrize("name", FOLDERS)
def test_they_are_those_that_transformers_finds(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for file, data in FOLDERS[name].contents.items():
        if file.endswith((".json", ".jinja")):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(data)
    found = AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert ({"default": found} if isinstance(found, str) else found) == WANTED[name]


def test_without_a_main_one_the_first_is_used(tmp_path: Path) -> None:
    """A list of templates for special uses only is better than none: what answers is the model's own."""
    templates = [{"name": "tool_use", "template": TOOLS}, {"name": "rag", "template": RAG}]
    folder = demo.change("tokenizer_config.json", chat_template=templates)
    model = load(folder.json("tokenizer.json"), tmp_path / "m.gguf", tokenizer_config={"chat_template": templates})
    assert model.chat_template == TOOLS
    assert kept(folder) == {"default": TOOLS, "tool_use": TOOLS, "rag": RAG}
