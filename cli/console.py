"""Where words go: data and answers to stdout, everything else to stderr.

No escape code is written but to a terminal that wants them (not with NO_COLOR or TERM=dumb); `rich`, which
knows the rules for that and how wide letters are, is imported for nothing else. Control characters in a model's answer
never reach the terminal.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_QUOTED = re.compile(r"`[^`]*`")
_UNITS = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second"))


def prepare() -> None:
    """Let neither a closed stream nor a letter that the terminal's encoding lacks end a command."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard() -> None:
    """Send the text that stdout could not take nowhere, so that Python does not try to write it again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


@cache
def fancy(stderr: bool = True) -> Console | None:
    """rich's console on stderr or stdout, or None where plain lines are wanted."""
    if not (sys.stderr if stderr else sys.stdout).isatty():
        return None
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    return None if console.no_color or console.is_dumb_terminal else console


def out(text: str = "", end: str = "\n") -> None:
    """Data, at once; on a terminal without control characters other than tab and line feed."""
    sys.stdout.write((_CONTROL.sub("", text) if sys.stdout.isatty() else text) + end)
    sys.stdout.flush()


def line(text: str, indent: int) -> None:
    """A line of data; on a terminal that is too narrow for it, broken between words and going on behind `indent`."""
    out(wrapped(text, columns(sys.stdout), " " * indent))


def answer(text: str, wrapping: Callable[[str, int], str] | None) -> None:
    """Print a piece of an answer at once; on a terminal `wrapping(text, columns)` breaks its lines, if given."""
    if wrapping is None or fancy(stderr=False) is None:
        out(text, end="")
    else:
        sys.stdout.write(wrapping(_CONTROL.sub("", text), columns(sys.stdout)))
        sys.stdout.flush()


def faint(text: str, wrapping: Callable[[str, int], str] | None = None) -> None:
    """As `answer`, in faint letters on a terminal."""
    if fancy(stderr=False) is None:
        out(text, end="")
        return
    clean = _CONTROL.sub("", text)
    sys.stdout.write(f"\x1b[2m{wrapping(clean, columns(sys.stdout)) if wrapping else clean}\x1b[22m")
    sys.stdout.flush()


def at_terminal() -> bool:
    """Whether answers go to a terminal."""
    return sys.stdout.isatty()


def note(text: str = "", style: str = "") -> None:
    """A line that is no data; `style` as rich names it."""
    console = fancy() if style else None
    text = wrapped(_CONTROL.sub("", text), columns(sys.stderr))
    if console is None:
        print(text, file=sys.stderr, flush=True)
    else:
        console.print(text, style=style, markup=False, soft_wrap=True)


def complain(message: str, hint: str = "") -> None:
    """An error: a sentence, and what to do."""
    console = fancy()
    for word, text in (("Error", message), ("hint", hint)):
        if not text:
            continue
        if console is None:
            note(f"{word}: {text}")
        else:
            colour = "bold red" if word == "Error" else "cyan"
            lines = wrapped(_CONTROL.sub("", f"{word}: {text}"), columns(sys.stderr))
            console.print(f"[{colour}]{word}:[/]", end="")
            console.print(lines.removeprefix(f"{word}:"), markup=False, soft_wrap=True)


def columns(stream: TextIO) -> int:
    """The width of the terminal that a stream goes to, 0 where it goes to none or the width is not known."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        return 0


def wrapped(text: str, most: int, indent: str | None = None) -> str:
    """The lines of a text, broken between words at `most` columns, 0 for no limit; text between backticks stays whole.

    A broken line goes on below its own beginning, or behind `indent`.
    """
    if not most or len(text) < most:
        return text
    import textwrap

    lines = []
    for line in text.split("\n"):
        own = line[: len(line) - len(line.lstrip())] if indent is None else indent
        kept = _QUOTED.sub(lambda found: found.group().replace(" ", "\0"), line)
        parts = textwrap.wrap(kept, most - 1, subsequent_indent=own, break_long_words=False, break_on_hyphens=False)
        lines.append("\n".join(parts).replace("\0", " "))
    return "\n".join(lines)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show what is being waited for, on one line of a terminal, until the block ends."""
    shown = f"{text[: max(0, columns(sys.stderr) - 2)]}…" if sys.stderr.isatty() else ""
    if shown:
        print(shown, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print(" " * len(shown), end="\r", file=sys.stderr, flush=True)


def clear() -> None:
    """Clear the terminal that data go to, if they go to one."""
    if fancy(stderr=False) is not None:
        sys.stdout.write("\x1b[H\x1b[2J")
        sys.stdout.flush()


def as_json(value: Any) -> None:
    """Data for programs."""
    out(json.dumps(value, indent=2, ensure_ascii=False))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell.

    On a narrow terminal a long first cell gets a line of its own; on a narrower one each cell does, behind its heading.
    """
    widths = [max(map(width, column)) for column in zip(header, *rows, strict=True)]
    room = columns(sys.stdout) or sys.maxsize
    gap = 4 if sum(widths) + 4 * (len(widths) - 1) < room else 2
    left = room - 1 - sum(widths[1:]) - gap * (len(widths) - 1)
    if left < min(widths[0], max(1, width(header[0]))):
        _records(header, rows)
        return
    widths[0] = min(widths[0], left)
    for row in (header, *rows):
        first = row[0]
        if width(first) > widths[0]:
            out(first)
            first = ""
        cells = [cell + " " * (most - width(cell)) for cell, most in zip((first, *row[1:]), widths, strict=True)]
        out((" " * gap).join(cells).rstrip())


def _records(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    room = max(map(width, header))
    for row in rows:
        for name, cell in zip(header, row, strict=True):
            if cell:
                line(f"{name:<{room}}  {cell}", room + 2)
        out()


def width(text: str) -> int:
    """Columns that a text takes on a terminal: none for combining marks, two for wide letters."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def span(seconds: float) -> str:
    """A length of time in its largest unit: `3 hours`."""
    for length, unit in _UNITS:
        if seconds >= length:
            count = int(seconds / length)
            return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
    return "a moment"


def ago(timestamp: str) -> str:
    """How long a moment (RFC 3339) is past."""
    return f"{span((datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds())} ago"


def timings(line: Mapping[str, Any]) -> None:
    """The figures of an answer's last line, as Ollama's `--verbose` shows them."""
    rows = []
    for key in ("total", "load", "prompt_eval", "eval"):
        name = key.replace("_", " ")
        spent = line.get(f"{key}_duration", 0) / 1e9
        count = line.get(f"{key}_count")
        rows += [] if count is None else [(f"{name} count:", f"{count} token(s)")]
        rows.append((f"{name} duration:", f"{spent:.3f} s"))
        rows += [(f"{name} rate:", f"{count / spent:.2f} tokens/s")] if count and spent else []
    note()
    for name, value in rows:
        note(f"{name:<22}{value}")
