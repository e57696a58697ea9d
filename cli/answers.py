"""The answers of a batch in a file: taken up again where it is, whatever ended the last run, and left in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cli.errors import Failure

Line = dict[str, Any]

_BEGIN = b'{"line": '


class Question(NamedTuple):
    """A line of the input: its number from 1, and its text."""

    line: int
    text: bytes

    @property
    def mark(self) -> str:
        """A digest by which an answer is known to be the answer to this text."""
        return hashlib.sha256(self.text.strip()).hexdigest()[:16]


class Answers:
    """The file of answers, taken up again where it is: a question that has its answer there is not asked again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = {(row["line"], row["mark"]): row for row in _rows(path)}
        self._meant: list[tuple[int, str]] = []
        try:
            self._file = path.open("ab")
            if (torn := _torn(path)) is not None:
                self._file.truncate(torn)
        except OSError as error:
            raise _unwritable(path, error) from None

    def left(self, found: Iterator[Question]) -> Iterator[Question]:
        """The questions that have no answer yet, or an error in its place."""
        for question in found:
            key = (question.line, question.mark)
            self._meant.append(key)
            if "error" in self._rows.get(key, {"error": ""}):
                yield question

    @property
    def kept(self) -> int:
        """How many answers were there before."""
        return sum("error" not in self._rows.get(key, {"error": ""}) for key in self._meant)

    def write(self, row: Line) -> None:
        """Add an answer. Raises Failure."""
        try:
            self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def finish(self) -> None:
        """Leave each question's answer once, in the order of the questions. Raises Failure."""
        self._file.close()
        rows = {(row["line"], row["mark"]): row for row in _rows(self._path)}
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            with beside.open("w", encoding="utf-8", errors="replace") as file:
                file.writelines(json.dumps(rows[key], ensure_ascii=False) + "\n" for key in self._meant if key in rows)
            beside.replace(self._path)
        except OSError as error:
            raise _unwritable(self._path, error) from None


def _torn(path: Path) -> int | None:
    """Where the last line begins that a power cut tore, None where all are whole."""
    data = path.read_bytes()
    return None if not data or data.endswith(b"\n") else data.rfind(b"\n") + 1


def _unwritable(path: Path, error: OSError) -> Failure:
    return Failure(f"`{path}` cannot be written: {error.strerror}", "make room, or name another file")


def _rows(path: Path) -> Iterator[Line]:
    """The answers in a file; a last line that is torn is passed over. Raises Failure for a file of something else."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Failure(f"`{path}` cannot be read: {error.strerror}", "name another file", "usage") from None
    filled = [line for line in lines if line.strip()]
    for at, line in enumerate(filled):
        row: Any = None
        with suppress(ValueError):
            row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("line"), int) and isinstance(row.get("mark"), str):
            yield row
        elif at < len(filled) - 1 or line[: len(_BEGIN)] != _BEGIN[: len(line)]:
            hint = "name another file; this one is left as it is"
            raise Failure(f"`{path}` holds other lines than answers of a batch", hint, "usage")
