"""Reads a template: the subset of Go's language that chat templates use; what is beyond it is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runtime.text.gotemplate.functions import FUNCTIONS
from runtime.text.gotemplate.lexer import Piece, Word, pieces, text_of
from runtime.text.gotemplate.nodes import (
    Action,
    Branch,
    Dot,
    FieldPath,
    Function,
    GoTemplateError,
    Jump,
    Literal,
    Node,
    Pipe,
    Verbatim,
)

LONGEST = 1 << 20
_DEEPEST = 60
_MOST_PIECES = 20_000
_BEYOND = ("define", "template", "block")
_CONSTANTS = {"true": True, "false": False, "nil": None}


def parse(source: str) -> tuple[Node, ...]:
    """The nodes of a template. Raises GoTemplateError."""
    if len(source) > LONGEST:
        raise GoTemplateError(f"it is longer than {LONGEST:,} letters")
    found: list[Piece] = []
    for piece in pieces(source):
        found.append(piece)
        if len(found) > _MOST_PIECES:
            raise GoTemplateError(f"it has more than {_MOST_PIECES:,} actions")
    reader = _Reader(iter(found))
    nodes, ended = reader.nodes(0, in_range=False)
    if ended:
        raise GoTemplateError(f"line {reader.line}: `{{{{ {ended[0].text} }}}}` has nothing to end")
    return nodes


class _Reader:
    """The nodes of a list of pieces."""

    def __init__(self, found: Iterator[Piece]) -> None:
        self._found, self.line = found, 1
        self._variables = [["$"]]

    def nodes(self, depth: int, *, in_range: bool) -> tuple[tuple[Node, ...], list[Word]]:
        """The nodes up to `end` or `else`, and the words of that; no words at the end of the template."""
        if depth > _DEEPEST:
            raise GoTemplateError(f"line {self.line}: more than {_DEEPEST} actions lie within each other")
        nodes: list[Node] = []
        for piece in self._found:
            self.line = piece.line
            if piece.words is None:
                nodes.append(Verbatim(piece.text))
                continue
            words = piece.words
            if not words:
                raise self._wrong("an action is empty")
            first = words[0].text if words[0].kind == "word" else ""
            if first in ("end", "else"):
                return tuple(nodes), words
            if first in _BEYOND:
                raise self._wrong(f"`{first}` is not in the part of Go's templates that lm renders")
            if first in ("if", "with", "range"):
                nodes.append(self._branch(first, words[1:], depth, in_range=in_range))
            elif first in ("break", "continue"):
                if not in_range or len(words) > 1:
                    raise self._wrong(f"`{first}` stands outside of a range")
                nodes.append(Jump(first))
            else:
                nodes.append(Action(self._pipe(words)))
        return tuple(nodes), []

    def _branch(self, kind: str, words: Sequence[Word], depth: int, *, in_range: bool) -> Branch:
        begun = self.line
        self._variables.append([])
        pipe = self._pipe(words, kind)
        inside = in_range or kind == "range"
        body, ended = self.nodes(depth + 1, in_range=inside)
        otherwise: tuple[Node, ...] = ()
        if ended and ended[0].text == "else":
            if len(ended) > 1:
                chained = ended[1].text
                if chained not in ("if", "with") or kind == "range":
                    raise self._wrong(f"`else {chained}` is not understood")
                otherwise = (self._branch(chained, ended[2:], depth + 1, in_range=in_range),)
                self._variables.pop()
                return Branch(kind, pipe, body, otherwise)
            otherwise, ended = self.nodes(depth + 1, in_range=in_range)
        if [word.text for word in ended] != ["end"]:
            raise GoTemplateError(f"line {begun}: `{kind}` has no `{{{{ end }}}}`")
        self._variables.pop()
        return Branch(kind, pipe, body, otherwise)

    def _pipe(self, words: Sequence[Word], kind: str = "") -> Pipe:
        """A pipeline, with the variables that it is for."""
        signs = [index for index, word in enumerate(words) if word.kind == "sign" and word.text in (":=", "=")]
        names: tuple[str, ...] = ()
        assigns = False
        if signs:
            head, assigns, words = words[: signs[0]], words[signs[0]].text == "=", words[signs[0] + 1 :]
            given = [word for word in head if word.text != ","]
            two = kind == "range" and len(head) == 3 and head[1].text == ","
            if len(signs) > 1 or any(word.kind != "variable" for word in given) or not (len(head) == 1 or two):
                raise self._wrong("a variable is not given a value as `$name := …`")
            names = tuple(word.text for word in given)
        commands, rest = self._commands(words, 0)
        if rest:
            raise self._wrong(f"`{rest[0].text}` stands where it cannot")
        for name in names:
            if assigns:
                self._known(name)
            else:
                self._variables[-1].append(name)
        return Pipe(commands, names, assigns, self.line)

    def _commands(self, words: Sequence[Word], depth: int) -> tuple[tuple[tuple[Any, ...], ...], Sequence[Word]]:
        """Commands parted by `|`, and the words behind them, from a closing bracket on."""
        if depth > _DEEPEST:
            raise self._wrong("too many brackets lie within each other")
        commands: list[tuple[Any, ...]] = []
        operands: list[Any] = []
        while words and words[0].text != ")":
            word, words = words[0], words[1:]
            if word.kind == "sign" and word.text == "|":
                commands.append(self._command(operands))
                operands = []
                continue
            if operands and not word.spaced and word.kind != "field":
                raise self._wrong(f"`{word.text}` stands directly behind another word")
            operand, words = self._operand(word, words, depth)
            operands.append(operand)
        commands.append(self._command(operands))
        return tuple(commands), words

    def _command(self, operands: list[Any]) -> tuple[Any, ...]:
        if not operands:
            raise self._wrong("a command is missing")
        return tuple(operands)

    def _operand(self, word: Word, words: Sequence[Word], depth: int) -> tuple[Any, Sequence[Word]]:
        operand, words = self._term(word, words, depth)
        names: list[str] = []
        while words and words[0].kind == "field" and not words[0].spaced:
            names.append(words[0].text[1:])
            words = words[1:]
        if not names:
            return operand, words
        match operand:
            case FieldPath(before, variable, of):
                return FieldPath((*before, *names), variable, of), words
            case Pipe():
                return FieldPath(tuple(names), of=operand), words
        raise self._wrong(f"`.{names[0]}` stands behind what has no fields")

    def _term(self, word: Word, words: Sequence[Word], depth: int) -> tuple[Any, Sequence[Word]]:
        match word.kind:
            case "field":
                return FieldPath((word.text[1:],)), words
            case "variable":
                self._known(word.text)
                return FieldPath((), word.text), words
            case "string" | "raw":
                return Literal(text_of(word)), words
            case "char":
                return Literal(ord(text_of(word)[:1] or "\0")), words
            case "number":
                return Literal(self._number(word.text)), words
            case "word" if word.text in _CONSTANTS:
                return Literal(_CONSTANTS[word.text]), words
            case "word":
                if word.text not in FUNCTIONS:
                    raise self._wrong(f"there is no function `{word.text[:40]}`")
                return Function(word.text), words
        if word.text == "(":
            commands, rest = self._commands(words, depth + 1)
            if not rest:
                raise self._wrong("a bracket is not closed")
            return Pipe(commands, line=self.line), rest[1:]
        if word.text == ".":
            return Dot(), words
        raise self._wrong(f"`{word.text}` stands where it cannot")

    def _number(self, text: str) -> int | float:
        plain = text.replace("_", "")
        try:
            return int(plain, 0) if plain.lstrip("+-")[:2].lower() == "0x" else int(plain)
        except ValueError:
            return float(plain)

    def _known(self, name: str) -> None:
        if not any(name in scope for scope in self._variables):
            raise self._wrong(f"there is no variable `{name[:40]}`")

    def _wrong(self, what: str) -> GoTemplateError:
        return GoTemplateError(f"line {self.line}: {what}")


def fields(nodes: Sequence[Node]) -> set[str]:
    """All names of fields in a template, in lower case, as Ollama looks for what a template knows."""
    found: set[str] = set()

    def of_pipe(pipe: Pipe) -> None:
        for operand in (each for command in pipe.commands for each in command):
            if isinstance(operand, FieldPath):
                found.update(name.lower() for name in operand.names)
                if operand.of:
                    of_pipe(operand.of)
            elif isinstance(operand, Pipe):
                of_pipe(operand)

    for node in nodes:
        if isinstance(node, Action | Branch):
            of_pipe(node.pipe)
        if isinstance(node, Branch):
            found |= fields(node.body) | fields(node.otherwise)
    return found
