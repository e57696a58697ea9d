"""Modelfiles: the text from which `lm create` makes a model, in the grammar of Ollama's `parser/parser.go`.

A line is an instruction, a comment (`#`) or empty. Upper and lower case of an instruction do not matter, nor does the
order. A value goes to the end of its line. One that begins with `"` goes on to the first line that ends with `"`, and
one that begins with three of them likewise; quotes are taken off, and nothing within them is changed. So neither
backslashes nor single quotes mean anything.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from registry.errors import BadModelfile

Instruction = Literal[
    "from", "parameter", "template", "system", "adapter", "license", "message", "requires", "draft", "renderer",
    "parser",
]  # fmt: skip
INSTRUCTIONS: tuple[Instruction, ...] = get_args(Instruction)
ROLES = ("system", "user", "assistant")
LONGEST = 8 << 20  # bytes: licences may be long
_MOST = 4096  # instructions
_LINE = re.compile(r"[ \t]*(\w+)(?:[ \t]+(.*))?", re.DOTALL)
_KEY = re.compile(r"(\w+)(?:[ \t]+(.*))?", re.DOTALL)
_KEYED = ("parameter", "message")
_QUOTES = ('"""', '"')
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Command(NamedTuple):
    """One instruction. `key` is the name of a PARAMETER, or the role of a MESSAGE; `line` counts from 1."""

    instruction: Instruction
    value: str
    key: str = ""
    line: int = 0


class Message(NamedTuple):
    """A turn of the conversation with which every chat of the model begins."""

    role: str
    content: str


@dataclass(frozen=True)
class Modelfile:
    """The instructions of a Modelfile, in their order."""

    commands: tuple[Command, ...]

    def values(self, instruction: Instruction) -> list[str]:
        """The values of all instructions of this kind."""
        return [each.value for each in self.commands if each.instruction == instruction]

    def last(self, instruction: Instruction) -> str | None:
        """The value of the last instruction of this kind, which replaces those before it; None without one."""
        return next(reversed(self.values(instruction)), None)

    @property
    def parameters(self) -> dict[str, str | list[str]]:
        """The parameters as texts: `stop` may be given several times, of any other the last one counts."""
        found: dict[str, str | list[str]] = {}
        stops = [each.value for each in self.commands if each.key == "stop" and each.instruction == "parameter"]
        for each in self.commands:
            if each.instruction == "parameter":
                found[each.key] = stops if each.key == "stop" else each.value
        return found

    @property
    def messages(self) -> list[Message]:
        """The turns of its MESSAGE instructions."""
        return [Message(each.key, each.value) for each in self.commands if each.instruction == "message"]

    @property
    def text(self) -> str:
        """The Modelfile as text, from which `parse` makes the same. Raises BadModelfile for values that no text has."""
        return "".join(f"{written(each)}\n" for each in self.commands)


def decode(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 behind its mark. Raises BadModelfile."""
    if len(data) > LONGEST:
        raise BadModelfile(f"the Modelfile has {len(data):,} bytes, and {LONGEST:,} are allowed")
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise BadModelfile("the Modelfile is not text in UTF-8", "save it in this encoding") from None


def parse(text: str) -> Modelfile:
    """The instructions of a Modelfile. Raises BadModelfile, which names the line."""
    if len(text) > LONGEST:
        raise BadModelfile(f"the Modelfile has {len(text):,} letters, and {LONGEST:,} are allowed")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    commands: list[Command] = []
    at = 0
    while at < len(lines):
        line = lines[at].lstrip()
        if not line or line.startswith("#"):
            at += 1
            continue
        if len(commands) >= _MOST:
            raise _wrong(at, f"there are more than {_MOST:,} instructions")
        instruction, key, rest = _begun(line, at)
        value, after = _value(rest, lines, at)
        commands.append(Command(instruction, value, key, at + 1))
        at = after
    if not any(each.instruction == "from" for each in commands):
        raise BadModelfile("the Modelfile has no FROM line", "say what the model is made of: `FROM NAME`")
    return Modelfile(tuple(commands))


def written(command: Command) -> str:
    """An instruction as text. Raises BadModelfile for a value that no text has, such as one with a line that ends in
    three quotes."""
    head = " ".join(filter(None, (command.instruction.upper(), command.key)))
    value = command.value
    quoted = [f"{quotes}{value}{quotes}" for quotes in reversed(_QUOTES)]
    candidates = [value, *quoted] if "\n" not in value else reversed(quoted)
    for candidate in candidates:
        lines = candidate.split("\n")
        try:
            if candidate and _value(lines[0].lstrip(), lines, 0) == (value, len(lines)):
                return f"{head} {candidate}"
        except BadModelfile:
            continue
    raise BadModelfile(f"the {command.instruction.upper()} of this model cannot be written in a Modelfile")


def written_as_far_as_possible(commands: Iterable[Command]) -> str:
    """The instructions as text, a comment in the place of each that no text has."""
    lines = []
    for command in commands:
        try:
            lines.append(written(command))
        except BadModelfile as error:
            lines.append(f"# {error}")
    return "".join(f"{line}\n" for line in lines)


def _begun(line: str, at: int) -> tuple[Instruction, str, str]:
    """The instruction of a line, its key, and the first line of its value."""
    found = _LINE.fullmatch(line)
    word = found[1].lower() if found else ""
    instruction = next((each for each in INSTRUCTIONS if each == word), None)
    if found is None or instruction is None:
        shown = line.split()[0][:40]
        known = ", ".join(each.upper() for each in INSTRUCTIONS)
        raise _wrong(at, f"`{_plain(shown)}` is no instruction", f"known are {known}")
    rest, key = found[2] or "", ""
    if instruction in _KEYED:
        inner = _KEY.fullmatch(rest)
        key, rest = (inner[1].lower(), inner[2] or "") if inner else ("", "")
        if not key:
            raise _wrong(at, f"{instruction.upper()} has no {'role' if instruction == 'message' else 'name'}")
        if instruction == "message" and key not in ROLES:
            raise _wrong(at, f"`{_plain(key[:40])}` is no role of a MESSAGE", f"roles are {', '.join(ROLES)}")
    if not rest.strip():
        raise _wrong(at, f"{instruction.upper()} has no value", 'an empty one is written `""`')
    return instruction, key, rest


def _value(rest: str, lines: list[str], at: int) -> tuple[str, int]:
    """The value that begins with `rest` on line `at`, and the line behind it."""
    quotes = next((each for each in _QUOTES if rest.startswith(each)), None)
    if quotes is None:
        return rest.rstrip(), at + 1
    parts = [rest[len(quotes) :]]
    end = at
    while not _closed(parts, quotes):
        end += 1
        if end >= len(lines):
            raise _wrong(at, f"the {quotes} of this line is never closed", f"end the value's last line with {quotes}")
        parts.append(lines[end])
    parts[-1] = parts[-1].rstrip()[: -len(quotes)]
    return "\n".join(parts), end + 1


def _closed(parts: list[str], quotes: str) -> bool:
    return parts[-1].rstrip().endswith(quotes)


def _wrong(at: int, what: str, hint: str = "") -> BadModelfile:
    return BadModelfile(f"line {at + 1} of the Modelfile: {what}", hint)


def _plain(text: str) -> str:
    return ascii(text)[1:-1]
