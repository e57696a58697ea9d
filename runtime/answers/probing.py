"""Conversations that show how a chat template writes answers, and what stands in them between the probes.

Tags are taken as wholes: before texts are compared, each becomes one character (`Atoms`), so that no comparison ends
within a tag that two texts begin alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from runtime.answers.parser import Marks

Render = Callable[..., str | None]
"""Renders messages with `tools`, and with or without the beginning of the answer (`answering`); None if refused."""

USER, TEXT, THOUGHT = "Qprobe", "Ωprobe-textΩ", "Ωprobe-thoughtΩ"
NAMES = ("probe_alpha", "probe_beta")
IDS = ("Wcall7aa1", "Wcall7bb2")
ARGUMENTS: tuple[dict[str, Any], ...] = ({"key_one": "vprobe", "key_two": 7731}, {"key_one": "wprobe"})
# Marks of thinking that templates cut out of earlier answers without writing them.
COMMON_THINKING = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
)
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
_TAG = re.compile(r"\]<\][\w.-]+\[>\[|<[|｜][^<>|｜]*[|｜]>|</?[|｜]?[\w:.-]+[|｜]?>|\[/?[A-Z][A-Z_]*\]")
_PROBE = re.compile("probe|key_|Wcall7")
_FIRST_ATOM = 0xE000
_ATOMS = "\ue000-\uf8ff"


class Atoms:
    """Tags as single characters of Unicode's private area, and back."""

    def __init__(self) -> None:
        self._tags: list[str] = []

    def pack(self, text: str) -> str:
        """The text with a character in the place of each tag."""
        return _TAG.sub(lambda found: found[0] if _PROBE.search(found[0]) else self._atom(found[0]), text)

    def unpack(self, text: str) -> str:
        """The text with its tags."""
        return "".join(
            self._tags[place] if 0 <= (place := ord(letter) - _FIRST_ATOM) < len(self._tags) else letter
            for letter in text
        )

    def _atom(self, tag: str) -> str:
        if tag not in self._tags:
            self._tags.append(tag)
        return chr(_FIRST_ATOM + self._tags.index(tag))


class Probes:
    """The conversations of one template. Texts that it gives are packed (`Atoms`)."""

    def __init__(self, render: Render, source: str) -> None:
        self._render = render
        self._tools: list[dict[str, Any]] | None = None
        self.atoms = Atoms()
        if self._turn([_answer(TEXT)]) is None:
            self._tools = tools()
        self.prompt = self._turn([], answering=True) or ""
        self.plain = self._turn([_answer(TEXT)]) or ""
        self.thinking = next((each for each in COMMON_THINKING if each.close in source), None)
        self.thinking = self._learn_thinking() or self.thinking
        self.content = self._learn_content()
        if self.thinking and self.content:
            closing = self.thinking.close.removesuffix(self.atoms.unpack(self.content.open.strip()))
            self.thinking = self.thinking._replace(close=closing) if closing.strip() else self.thinking

    def calls(self, count: int, as_text: bool) -> str | None:
        """An answer with `count` calls; None where the template does not write them."""
        given = [json.dumps(arguments) if as_text else arguments for arguments in ARGUMENTS]
        calls = [
            {"type": "function", "id": IDS[index], "function": {"name": NAMES[index], "arguments": given[index]}}
            for index in range(count)
        ]
        for content in ("", None):
            found = self._turn([_answer(content) | {"tool_calls": calls}], tools=tools())
            if found and (NAMES[count - 1] in found or IDS[count - 1] in found) and '\\"key_one' not in found:
                return self._region(found)
        return None

    def header(self) -> tuple[str, ...]:
        """The text that begins a turn, where a model may write it itself between its thinking and its answer."""
        found = re.search(r"\S\w+$", self.prompt)
        return (self.atoms.unpack(found[0]),) if found and ord(found[0][0]) >= _FIRST_ATOM else ()

    def _turn(self, messages: list[dict[str, Any]], *, answering: bool = False, **variables: Any) -> str | None:
        """The conversation after the user's text."""
        user = {"role": "user", "content": USER}
        text = self._render([user, *messages], **{"tools": self._tools, "answering": answering, **variables})
        return None if text is None else self.atoms.pack(text[text.rfind(USER) + len(USER) :])

    def _region(self, found: str) -> str:
        """The part of an answer's turn that the model writes, without the end of the turn."""
        start = self._start(found)
        end = min(common_end(found, self.plain), len(found) - start)
        text = found[start : len(found) - end]
        if self.content is not None:
            # The marks of an answer without text.
            after = self.plain.rpartition(TEXT)[2]
            closing = after[: len(after) - common_end(after, found)].strip()
            empty = re.escape(self.content.open.strip()) + r"\s*" + re.escape(closing)
            text = re.sub(r"^\s*" + empty, "", text) if closing else text
            self.content = Marks(self.content.open, closing)
        return text

    def _start(self, found: str) -> int:
        """Where in an answer's turn that begins which the model writes after its thinking."""
        start = common(found, self.prompt)
        left = self.prompt[start:].strip()
        opening, closing = map(self.atoms.pack, self.thinking or ("", ""))
        if not self.prompt or left not in ("", opening, opening + closing):
            start = common(found, self.plain)
        if self.thinking is None:
            return start
        empty = re.compile(rf"\s*(?:{re.escape(opening)})?\s*{re.escape(closing)}").match(found, start)
        return empty.end() if empty else start

    def _learn_thinking(self) -> Marks | None:
        for keys in (_THOUGHT_KEYS, *((key,) for key in _THOUGHT_KEYS)):
            found = self._turn([_answer(TEXT) | dict.fromkeys(keys, THOUGHT)])
            if not found or THOUGHT not in found or TEXT not in found.rpartition(THOUGHT)[2]:
                continue
            before, _, after = found.rpartition(THOUGHT)
            closing, beside = after[: after.find(TEXT)], self.plain[: self.plain.rfind(TEXT)]
            shared = common_end(closing, beside)
            closing = closing[: len(closing) - shared] if closing[: len(closing) - shared].strip() else closing
            opening = before[common(before, self.prompt) :].strip() or self._opened(before, closing.strip())
            if opening.strip() and closing.strip():
                return Marks(self.atoms.unpack(opening).strip(), self.atoms.unpack(closing).strip())
        return None

    def _opened(self, before: str, closing: str) -> str:
        """The mark that begins the thinking where the prompt has it at its end; `before` stands before the thinking."""
        found = re.search(rf"(?:[{_ATOMS}]\w+)?[{_ATOMS}]$", before.rstrip())
        if found and self.prompt.rstrip().removesuffix(closing).rstrip().endswith(found[0]):
            return found[0]
        return self.prompt[common(before, self.prompt) :]

    def _learn_content(self) -> Marks | None:
        """The marks around an answer's own text, packed; None where the prompt ends with the first of them."""
        before, found, _ = self.plain.partition(TEXT)
        opening = before[self._start(before + TEXT) :]
        return Marks(opening, "") if found and opening.strip() else None


def tools() -> list[dict[str, Any]]:
    """Two tools with the names of the probes."""
    properties = {"key_one": {"type": "string", "description": "d"}, "key_two": {"type": "integer", "description": "d"}}
    parameters = {"type": "object", "properties": properties, "required": ["key_one"]}
    return [
        {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}} for name in NAMES
    ]


def common(one: str, two: str) -> int:
    """The length of the common beginning."""
    count = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        count += 1
    return count


def common_end(one: str, two: str) -> int:
    """The length of the common end."""
    return common(one[::-1], two[::-1])


def _answer(content: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": content}
