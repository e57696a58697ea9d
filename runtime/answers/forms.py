"""The forms in which models write calls of tools, and their readers.

A section has one call or several, and a call has its name and its arguments:

    <tool_calls>                       `open`
    <invoke name="add">                `before`, with the slot of the name
    <parameter name="a">1</parameter>  the arguments, here as tags
    </invoke>                          `after`
    </tool_calls>                      `close`; `between` two calls is nothing here

Readers follow `runtime/answers/incoming.py`: they raise Malformed for text that breaks the form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Protocol

from runtime.answers.incoming import Incoming, Malformed, Reading
from runtime.answers.pieces import Arguments, CallBegun, CallEnded, Piece
from runtime.answers.values import DEPTH, read_json, value_of

NAME_LENGTH = 256
# Characters that end a name or an id, beside blanks.
_ENDS = frozenset("<>[]{}()\"'|,=:\\`#；｜")


class Hole(Enum):
    """A place in a pattern for a text that differs from call to call."""

    NAME = "name"
    SAME_NAME = "same name"
    ID = "id"
    INDEX = "index"
    NAMING_ID = "id that holds the name"
    REST = "anything up to the text that follows"


Pattern = tuple[str | Hole, ...]


@dataclass
class Calls:
    """The calls of one answer while they are read: what to tell of them, and the schemas of the tools by name."""

    schemas: dict[str, Any] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    count: int = 0
    # Whether a call has begun and not ended, and where in the source it began.
    open: bool = False
    started: int = 0

    def begin(self, name: str, id_: str = "") -> None:
        """A call begins. Raises Malformed for a name that is none."""
        if not name or len(name) > NAME_LENGTH or not name.isprintable():
            raise Malformed
        self.open = True
        self.pieces.append(CallBegun(self.count, name, id_))

    def arguments(self, text: str) -> None:
        """More of its arguments."""
        if text:
            self.pieces.append(Arguments(self.count, text))

    def end(self) -> None:
        """The call is complete."""
        self.pieces.append(CallEnded(self.count))
        self.count, self.open = self.count + 1, False

    def schema(self, tool: str, parameter: str) -> Any:
        """The schema of a tool's parameter; None where there is none."""
        schema = self.schemas.get(tool)
        properties = schema.get("properties") if isinstance(schema, dict) else None
        return properties.get(parameter) if isinstance(properties, dict) else None


class CallBody(Protocol):
    """The part of a call that holds the arguments, and in some forms the name.

    `ends_itself` where the end of the arguments shows in themselves, as in JSON; else a mark has to follow them.
    """

    @property
    def ends_itself(self) -> bool:
        """See above."""

    @property
    def forceable(self) -> bool:
        """Whether a model that has to call is held to this form, and not to a JSON object."""

    def read(self, source: Incoming, calls: Calls, name: str, id_: str) -> Reading[None]:
        """Read it; `name` is empty where the body has it."""


@dataclass(frozen=True)
class JsonArguments:
    """The arguments as a JSON object, after the name."""

    ends_itself: ClassVar[bool] = True
    forceable: ClassVar[bool] = True

    def read(self, source: Incoming, calls: Calls, name: str, id_: str) -> Reading[None]:
        """Tell the object as it comes."""
        if (yield from source.peek()) != "{":
            raise Malformed
        calls.begin(name, id_)
        yield from read_json(source, calls.arguments)


@dataclass(frozen=True)
class JsonCall:
    """The call as a JSON object; `name` and `arguments` are its keys. Without them its one key is the name."""

    name: str = ""
    arguments: str = ""
    id: str = ""
    ends_itself: ClassVar[bool] = True
    forceable: ClassVar[bool] = True

    def read(self, source: Incoming, calls: Calls, name: str, id_: str) -> Reading[None]:
        """Tell the arguments as they come where the name stands before them."""
        found = _Found()
        yield from _token(source, "{")
        while True:
            key = yield from read_json(source)
            yield from _token(source, ":")
            if not isinstance(key, str):
                raise Malformed
            yield from source.blanks()
            if not self.name:
                found.name, found.told = key, True
                yield from JsonArguments().read(source, calls, key, "")
            elif key == self.arguments and found.name and (yield from source.peek()) == "{":
                found.told = True
                yield from JsonArguments().read(source, calls, found.name, found.id)
            else:
                self._note(found, key, (yield from read_json(source)))
            if not (yield from _another(source, "}")):
                break
        if not found.told:
            arguments = _object(found.arguments)
            calls.begin(found.name, found.id)
            calls.arguments(arguments)

    def _note(self, found: _Found, key: str, value: Any) -> None:
        if key == self.name:
            found.name = value if isinstance(value, str) else ""
        elif key == self.id:
            found.id = str(value)
        elif key == self.arguments:
            found.arguments = value


@dataclass
class _Found:
    """The parts of a call that its JSON object has told so far."""

    name: str = ""
    id: str = ""
    arguments: Any = None
    told: bool = False


@dataclass(frozen=True)
class Tags:
    """The arguments one by one, each a key and a value between tags.

    `kind` are the texts around an attribute that stands between both, `text_kind` is its value for strings.
    """

    before_key: str
    after_key: str
    after_value: str
    kind: tuple[str, str] | None = None
    text_kind: str = ""
    ends_itself: ClassVar[bool] = False
    forceable: ClassVar[bool] = True

    def read(self, source: Incoming, calls: Calls, name: str, id_: str) -> Reading[None]:
        """Tell each argument when it is complete."""
        calls.begin(name, id_)
        first = True
        while (yield from self._goes_on(source)):
            if self.kind is None:
                key = (yield from source.until(self.after_key.strip(), NAME_LENGTH)).strip()
                text = False
            else:
                key = yield from source.until(self.kind[0], NAME_LENGTH)
                text = (yield from source.until(self.kind[1].rstrip(), NAME_LENGTH)) == self.text_kind
            yield from _blank(source, self.after_key)
            closing = self.after_value.replace("{key}", key)
            written = yield from source.until(closing.strip())
            written = written.removesuffix(closing[: len(closing) - len(closing.lstrip())])
            value = written if text else self._value(written, calls.schema(name, key))
            calls.arguments(("{" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            calls.arguments(json.dumps(value, ensure_ascii=False))
            first = False
        calls.arguments("{}" if first else "}")

    def _goes_on(self, source: Incoming) -> Reading[bool]:
        """Whether another argument begins, where a mark that closes the call may begin alike."""
        start = source.at
        if not (yield from source.follows(self.before_key)):
            return False
        if (yield from source.peek()) != "/":
            return True
        source.at = start
        return False

    def _value(self, text: str, schema: Any, depth: int = 0) -> Any:
        """The value of a text, in which arrays and objects may be written as tags again."""
        if not text.startswith(self.before_key.strip()) or "{key}" not in self.after_value or depth > DEPTH:
            return value_of(text, schema)
        found: list[tuple[str, Any]] = []
        while text.startswith(self.before_key.strip()):
            key, _, rest = text[len(self.before_key.strip()) :].partition(self.after_key.strip())
            inner, closed, text = rest.partition(self.after_value.replace("{key}", key).strip())
            if not closed:
                raise Malformed
            found.append((key, self._value(inner, None, depth + 1)))
            text = text.lstrip()
        return [value for _, value in found] if all(key == "item" for key, _ in found) else dict(found)


@dataclass(frozen=True)
class CallForm:
    """A form of sections; see this file's first lines. `listed` calls are the elements of a JSON array."""

    body: CallBody
    open: str = ""
    before: Pattern = ()
    after: str = ""
    between: str | None = None
    close: str = ""
    listed: bool = False

    @property
    def trigger(self) -> str:
        """The text with which a section begins; empty where it is its JSON alone, at the answer's start."""
        first = self.before[0] if self.before and isinstance(self.before[0], str) else ""
        return (self.open.strip() or first.strip()).split("\n")[0]

    @property
    def bare(self) -> bool:
        """Whether any text could be taken for a section's beginning, so that one counts at the answer's start alone."""
        return len(self.trigger) < 3

    def read(self, source: Incoming, calls: Calls) -> Reading[None]:
        """One section. Calls that are complete stand, whatever follows them."""
        yield from source.literal(self.open)
        if self.listed:
            yield from self._read_list(source, calls)
        else:
            yield from self._read_call(source, calls)
            while not (yield from self._closed(source)):
                if self.between is None or not (yield from source.follows(self.between)):
                    return
                yield from self._read_call(source, calls)

    def _closed(self, source: Incoming) -> Reading[bool]:
        if self.between is None and not self.close.strip():
            return True
        return bool(self.close.strip()) and (yield from source.follows(self.close, may_end=True))

    def _read_list(self, source: Incoming, calls: Calls) -> Reading[None]:
        yield from _token(source, "[")
        while True:
            yield from self._read_call(source, calls)
            yield from source.blanks()
            if not (yield from source.has(1)):
                return
            if not (yield from _another(source, "]")):
                break
        yield from source.follows(self.close, may_end=True)

    def _read_call(self, source: Incoming, calls: Calls) -> Reading[None]:
        name = id_ = ""
        for part, following in zip(self.before, (*self.before[1:], ""), strict=False):
            match part:
                case Hole.REST:
                    yield from source.until(str(following).strip(), NAME_LENGTH)
                    source.at -= len(str(following).strip())
                case str():
                    yield from source.literal(part)
                case Hole.NAME:
                    name = yield from _word(source)
                case Hole.ID:
                    id_ = yield from _word(source)
                case Hole.NAMING_ID:
                    id_ = yield from _word(source, more=":")
                    name = id_.removeprefix("functions.").partition(":")[0]
                case Hole.SAME_NAME:
                    yield from source.literal(name)
                case Hole.INDEX:
                    yield from _word(source)
        yield from source.blanks()
        yield from self.body.read(source, calls, name, id_)
        if not (yield from source.follows(self.after, may_end=self.body.ends_itself, blanks=False)):
            raise Malformed
        calls.end()
        calls.started = source.at


def _word(source: Incoming, more: str = "") -> Reading[str]:
    """A name, an id or a number. Raises Malformed where there is none."""
    start = source.at
    while (letter := (yield from source.peek())) and not letter.isspace() and (letter in more or letter not in _ENDS):
        source.at += 1
        if source.at - start > NAME_LENGTH:
            raise Malformed
    if source.at == start:
        raise Malformed
    return source.text[start : source.at]


def _token(source: Incoming, wanted: str) -> Reading[None]:
    yield from source.blanks()
    if (yield from source.take()) != wanted:
        raise Malformed


def _another(source: Incoming, close: str) -> Reading[bool]:
    """Whether a comma follows, and so another element; else `close` has to. Either is passed over."""
    yield from source.blanks()
    letter = yield from source.take()
    if letter not in (",", close):
        raise Malformed
    return letter == ","


def _blank(source: Incoming, after: str) -> Reading[None]:
    """Pass over the blanks at the end of `after`, as far as they are there."""
    for blank in after[len(after.rstrip()) :]:
        if (yield from source.peek()) == blank:
            source.at += 1


def _object(value: Any) -> str:
    """Arguments as the text of a JSON object; some models write that text as a string. Raises Malformed for others."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Malformed from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise Malformed
    return json.dumps(value, ensure_ascii=False)
