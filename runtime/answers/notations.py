"""Forms of answers that no comparison of conversations shows: the template leaves the calls out, or writes them in a
notation of its own. Each is recognised by what stands in the template.

`@notation` adds one. Sources: the models' cards and their templates.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from runtime.answers.forms import NAME_LENGTH, CallForm, Calls, Hole, JsonArguments, JsonCall
from runtime.answers.incoming import Incoming, Malformed, Reading
from runtime.answers.parser import AnswerForm, Marks
from runtime.answers.values import DEPTH

_LONGEST = 1 << 20


class Notation(NamedTuple):
    """`form` takes what was learned otherwise, and the template's source; None where it is not this notation."""

    name: str
    form: Callable[[AnswerForm, str], AnswerForm | None]


NOTATIONS: list[Notation] = []


def notation(name: str) -> Callable[[Callable[[AnswerForm, str], AnswerForm | None]], Callable[..., Any]]:
    """Add a notation."""

    def add(form: Callable[[AnswerForm, str], AnswerForm | None]) -> Callable[..., Any]:
        NOTATIONS.append(Notation(name, form))
        return form

    return add


# ---- gpt-oss: channels


@notation("channels of gpt-oss")
def channels(learned: AnswerForm, source: str) -> AnswerForm | None:
    """Thinking in the channel `analysis`, the answer in `final`, calls in `commentary`; the receiver's place varies."""
    if "<|channel|>analysis<|message|>" not in source:
        return None
    calls = tuple(
        CallForm(JsonArguments(), before=(before, Hole.NAME, Hole.REST, "<|message|>"), after="<|call|>")
        for before in ("<|channel|>commentary to=functions.", "<|channel|>analysis to=functions.", "to=functions.")
    )
    return AnswerForm(
        thinking=Marks("<|channel|>analysis<|message|>", "<|end|>"),
        content=Marks("<|channel|>final<|message|>", "<|return|>"),
        calls=calls,
        noise=("<|start|>assistant", "<|channel|>commentary<|message|>", "<|end|>"),
        turn="<|start|>assistant",
    )


# ---- Gemma 4: a notation like JSON, with a token for quotes

_QUOTE = '<|"|>'


class GemmaArguments:
    """`{city:<|"|>Paris<|"|>,days:[1,2]}`: keys are bare, and a token stands for the quotes of text."""

    ends_itself = forceable = True

    def read(self, source: Incoming, calls: Calls, name: str, id_: str) -> Reading[None]:
        """Tell the arguments when they are complete."""
        if (yield from source.peek()) != "{":
            raise Malformed
        calls.begin(name, id_)
        calls.arguments(json.dumps((yield from self._value(source, 0)), ensure_ascii=False))

    def _value(self, source: Incoming, depth: int) -> Reading[Any]:
        if depth > DEPTH:
            raise Malformed
        yield from source.blanks()
        first = yield from source.peek()
        if first == "{":
            return (yield from self._object(source, depth))
        if first == "[":
            return (yield from self._list(source, depth))
        if (yield from source.follows(_QUOTE)):
            return (yield from source.until(_QUOTE))
        word = ""
        while (letter := (yield from source.peek())) and letter not in ",}]":
            word += letter
            source.at += 1
        try:
            return json.loads(word)
        except ValueError:
            raise Malformed from None

    def _object(self, source: Incoming, depth: int) -> Reading[dict[str, Any]]:
        found: dict[str, Any] = {}
        source.at += 1
        while not (yield from source.follows("}")):
            quoted = yield from source.follows(_QUOTE)
            key = (yield from source.until(_QUOTE if quoted else ":", _LONGEST)).strip()
            if quoted:
                yield from source.literal(":")
            found[key] = yield from self._value(source, depth + 1)
            if not (yield from source.follows(",")) and (yield from source.peek()) != "}":
                raise Malformed
        return found

    def _list(self, source: Incoming, depth: int) -> Reading[list[Any]]:
        found: list[Any] = []
        source.at += 1
        while not (yield from source.follows("]")):
            found.append((yield from self._value(source, depth + 1)))
            if not (yield from source.follows(",")) and (yield from source.peek()) != "]":
                raise Malformed
        return found


@notation("Gemma 4")
def gemma(learned: AnswerForm, source: str) -> AnswerForm | None:
    """Calls as `call:NAME{…}` between tokens."""
    if "<|tool_call>call:" not in source:
        return None
    call = CallForm(GemmaArguments(), before=("<|tool_call>call:", Hole.NAME), after="<tool_call|>")
    return AnswerForm(thinking=Marks("<|channel>thought", "<channel|>"), calls=(call,), noise=("<|tool_response>",))


# ---- LFM2: calls of Python


class PythonCall:
    """`name(city="Paris", days=3)`."""

    ends_itself, forceable = True, False

    def read(self, source: Incoming, calls: Calls, name: str, id_: str) -> Reading[None]:
        """Tell the call when it is complete."""
        yield from source.blanks()
        found = (yield from source.until("(", NAME_LENGTH)).strip()
        if not found.replace(".", "").replace("-", "").isidentifier():
            raise Malformed
        start = source.at
        yield from self._closing(source)
        arguments = self._keywords(source.text[start : source.at - 1])
        calls.begin(found, id_)
        calls.arguments(arguments)

    def _closing(self, source: Incoming) -> Reading[None]:
        """Pass over the text up to the bracket that closes the call."""
        opened, quote, start = 1, "", source.at
        while opened:
            letter = yield from source.take()
            if source.at - start > _LONGEST:
                raise Malformed
            if quote:
                if letter == "\\":
                    yield from source.take()
                elif letter == quote:
                    quote = ""
            elif letter in "'\"":
                quote = letter
            else:
                opened += (letter in "([{") - (letter in ")]}")

    def _keywords(self, text: str) -> str:
        """The keyword arguments as the text of a JSON object."""
        try:
            call = ast.parse(f"f({text})", mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise Malformed
            found = {str(each.arg): ast.literal_eval(_as_python(each.value)) for each in call.keywords}
            escaped = json.dumps(found)
            written = json.dumps(found, ensure_ascii=False)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise Malformed from None
        # Python keeps the two halves of a letter that is escaped as in JSON (`\\ud83d\\ude00`).
        return escaped if any("\ud800" <= letter <= "\udfff" for letter in written) else written


_WORDS = {"true": True, "false": False, "null": None}


def _as_python(node: ast.AST) -> Any:
    """The tree with JSON's words in the place of the names that they would be."""

    class Constants(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.AST:
            return ast.Constant(_WORDS[name.id]) if name.id in _WORDS else name

    return Constants().visit(node)


@notation("calls of Python")
def python(learned: AnswerForm, source: str) -> AnswerForm | None:
    """LFM2's calls: a list of Python's calls between tokens, which most of its templates leave out."""
    if "<|tool_call_start|>" not in source and "List of tools: " not in source:
        return None
    call = CallForm(PythonCall(), open="<|tool_call_start|>", close="<|tool_call_end|>", listed=True)
    return AnswerForm(thinking=learned.thinking, content=learned.content, calls=(call,))


# ---- templates that tell the model the form, and leave its calls out


@notation("Granite 3")
def granite(learned: AnswerForm, source: str) -> AnswerForm | None:
    """A list of JSON objects after a token."""
    if learned.calls or "respond only with <|tool_call|>" not in source:
        return None
    call = CallForm(JsonCall("name", "arguments"), open="<|tool_call|>", listed=True)
    return AnswerForm(thinking=learned.thinking, content=learned.content, calls=(call,))


@notation("calls as the prompt tells")
def told(learned: AnswerForm, source: str) -> AnswerForm | None:
    """JSON between `<tool_call>` and `</tool_call>`, as a template's own instructions ask of the model."""
    if learned.calls or "<tool_call>" not in source or "</tool_call>" not in source:
        return None
    call = CallForm(JsonCall("name", "arguments"), before=("<tool_call>",), after="</tool_call>")
    return AnswerForm(thinking=learned.thinking, content=learned.content, calls=(call,))
