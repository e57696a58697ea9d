"""JSON in a text that comes in pieces, and the values that forms of calls write in other ways."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from typing import Any

from runtime.answers.incoming import Incoming, Malformed, Reading

# Nested arrays and objects; `json` itself fails at a thousand.
DEPTH = 200
Emit = Callable[[str], None]


def read_json(source: Incoming, emit: Emit | None = None) -> Reading[Any]:
    """One JSON value. Its text goes to `emit` as it comes. Raises Malformed for what is none."""
    yield from source.blanks()
    start = told = source.at

    def tell() -> None:
        nonlocal told
        if emit is not None and told < source.at:
            emit(source.text[told : source.at])
            told = source.at

    earlier, source.on_pause = source.on_pause, tell
    try:
        yield from _pass_over(source)
        value = json.loads(source.text[start : source.at])
    except (ValueError, RecursionError):
        raise Malformed from None
    finally:
        source.on_pause = earlier
    tell()
    return value


def _pass_over(source: Incoming) -> Reading[None]:
    """The text of one value: brackets are counted, strings read to their ends."""
    opened = 0
    if (yield from source.peek()) not in '{["':
        yield from _read_word(source)
        return
    while True:
        letter = yield from source.take()
        if letter == '"':
            yield from _read_string(source)
        opened += (letter in "{[") - (letter in "}]")
        if opened > DEPTH:
            raise Malformed
        if opened <= 0:
            return


def _read_string(source: Incoming) -> Reading[None]:
    """The rest of a string, of which the first quote is read."""
    while (letter := (yield from source.take())) != '"':
        if letter == "\\":
            yield from source.take()


def _read_word(source: Incoming) -> Reading[None]:
    """A number, or one of the words `true`, `false` and `null`."""
    while (letter := (yield from source.peek())) and (letter.isalnum() or letter in "+-."):
        source.at += 1


def value_of(text: str, schema: Any = None) -> Any:
    """The value of a parameter between tags: text where `schema` says so, else JSON or a Python literal, else text."""
    kinds = _kinds(schema)
    if text.startswith("<![CDATA[") and text.endswith("]]>"):
        return text[9:-3]
    if kinds == {"string"}:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python(text)
    if "string" in kinds and not isinstance(value, dict | list | None) and not (kinds & _kinds_of(value)):
        return text
    return value


def _kinds(schema: Any) -> set[str]:
    """The types that a JSON schema names; empty where it says nothing."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(kind, str):
        return {kind}
    return {each for each in kind if isinstance(each, str)} if isinstance(kind, list) else set()


def _kinds_of(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    return {"number"} if isinstance(value, float) else {"null"} if value is None else set()


def _python(text: str) -> Any:
    """The value of a Python literal that JSON can hold; the text itself where it is none."""
    try:
        value = ast.literal_eval(text.strip()) if len(text) <= 1 << 20 else text
        json.dumps(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text
    return value if isinstance(value, dict | list | bool | int | float | None) else text
