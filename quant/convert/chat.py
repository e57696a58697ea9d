"""The makers' instructions for a model's use: chat templates, sampling defaults, licence.

Templates are copied as text and never run here.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

from quant.convert.config import ModelConfig, read_text
from quant.errors import MalformedFile
from quant.notes import MAX_TEMPLATE
from quant.plan import Files

# Tokens in front of the text before a hole, by which llama.cpp knows that a model can fill holes (`insert`).
_HOLES = (
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
)
# Texts in a template by which we know that its model thinks before it answers: a switch, the end of a thought, thoughts
# of earlier turns, the marks of Mistral and of OpenAI.
_THOUGHT = re.compile(r"enable_thinking|</think>|reasoning_content|\[THINK\]|<\|channel\|>analysis")
_FORM = "correct it, or remove it: the model works without its template, but does not chat as well"
# Generation settings: transformers' name → the name in Ollama's API.
_SETTINGS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
# Ollama's name of a setting → the name in GGUF's entry `general.sampling.…`.
_ENTRIES = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
    "repeat_last_n": "penalty_last_n",
}


def read_templates(files: Files, tokenizer_config: ModelConfig) -> dict[str, str]:
    """Chat templates by name, from the newest of the files that may hold them.

    `default` is the main template, or the first one where the files name no main one.
    """
    text = read_text(files, "chat_template.jinja")
    if text:
        templates = {"default": text}
    else:
        value = ModelConfig.read(files, "chat_template.json").get("chat_template") or tokenizer_config.get(
            "chat_template"
        )
        templates = _by_name(value)
    for name in sorted(files.names()):
        extra = re.fullmatch(r"additional_chat_templates/([A-Za-z0-9_-]{1,64})\.jinja", name)
        if extra:
            templates[extra[1]] = read_text(files, name)
    for name, template in templates.items():
        if len(template.encode(errors="replace")) > MAX_TEMPLATE:
            raise MalformedFile(f"the chat template `{name}` is longer than 1 MiB", "shorten it, or remove it")
    return {"default": next(iter(templates.values())), **templates} if templates else {}


def _by_name(value: Any) -> dict[str, str]:
    """The templates in a value of `chat_template`: one text, an object by names, or a list of named templates."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = {"default": value}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise MalformedFile("`chat_template` is neither text nor a list of named templates", _FORM)
    templates = [(entry.get("name"), entry.get("template")) for entry in value]
    for name, template in templates:
        if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9_-]{1,64}", name) or not isinstance(template, str):
            raise MalformedFile("`chat_template` holds an entry without a plain name and a text", _FORM)
    return dict(templates)


def describe_templates(templates: Mapping[str, str]) -> dict[str, Any]:
    """The GGUF entries of the templates."""
    others = [name for name in templates if name != "default"]
    entries: dict[str, Any] = {"tokenizer.chat_templates": others} if others else {}
    entries |= {f"tokenizer.chat_template.{name}": templates[name] for name in others}
    return entries | ({"tokenizer.chat_template": templates["default"]} if "default" in templates else {})


def read_defaults(generation: ModelConfig) -> dict[str, float]:
    """The sampling settings that the makers recommend, by Ollama's names."""
    if generation.get("do_sample") is False:
        return {}
    found = {ours: generation.get(theirs) for theirs, ours in _SETTINGS.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float) and value is not True}


def sampling_entries(defaults: Mapping[str, float]) -> dict[str, float]:
    """GGUF entries with recommended sampling settings, which are given by Ollama's names."""
    return {f"general.sampling.{theirs}": defaults[ours] for ours, theirs in _ENTRIES.items() if ours in defaults}


def read_sampling(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The sampling settings in GGUF entries, by Ollama's names; 0.6 in 4 bytes is 0.6 again."""
    found = {ours: metadata.get(f"general.sampling.{theirs}") for ours, theirs in _ENTRIES.items()}
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float) and value is not True}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in numbers.items()}


def capabilities(templates: Mapping[str, str], tokens: Container[str]) -> tuple[str, ...]:
    """The capabilities of a model in Ollama's words, as its templates and the texts of its tokens show them."""
    text = "\n".join(templates.values())
    found = ["completion"]
    if "tool_use" in templates or re.search(r"\{[%{][^}]*\btools\b", text):
        found.append("tools")
    if _THOUGHT.search(text):
        found.append("thinking")
    if any(token in tokens for token in _HOLES):
        found.append("insert")
    return tuple(found)


def read_card(files: Files) -> dict[str, Any]:
    """GGUF entries with licence and base model, from a few keys of the model card's front matter; no YAML is parsed."""
    if "README.md" not in files.names():
        return {}
    head = files.read("README.md", 0, min(files.size("README.md"), 65_536)).decode(errors="replace")
    matter = re.match(r"---\r?\n(.*?)\r?\n---", head, re.DOTALL)
    if not matter:
        return {}
    facts = {}
    for key, entry in (("license", "license"), ("license_name", "license.name"), ("license_link", "license.link")):
        found = re.search(rf"^{key}:[ \t]*([^\s#\[\]|>-][^\r\n]*)", matter[1], re.MULTILINE)
        if found:
            facts[f"general.{entry}"] = found[1].strip().strip("\"'")
    base = re.search(r"^base_model:\s*(?:-[ \t]*)?[\"']?([\w.-]+/[\w.-]+)", matter[1], re.MULTILINE)
    if base:
        facts["general.base_model.count"] = 1
        facts["general.base_model.0.repo_url"] = f"https://huggingface.co/{base[1]}"
    return facts
