"""One line of the audit log: a JSON object whose last member is the SHA-256 of the line without it.

`prev` is the hash of the line before, so the lines are a chain, which breaks where lines are changed, removed, added or
swapped.
The hash covers the bytes as they stand, from `{` to the end of `prev` and a closing `}`; a checker needs no rules for
writing JSON. Lines are ASCII: control characters and letters that turn the direction of text are escaped.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from server.keys.record import redacted

# Before the first line there is no other.
GENESIS = "0" * 64
LONGEST_TEXT = 400
# Letters of a question and of an answer, where `audit_text` is set.
LONGEST_PROSE = 32 << 10
PROSE = ("request", "answer")
_END = re.compile(rb',"prev":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}')
_END_BYTES = len(',"prev":"","hash":""}') + 128
_HASH_BYTES = len(',"hash":""}') + 64
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_NUMBER = re.compile(rb'\{"seq":([1-9][0-9]{0,17}),')
_BOOT = Path("/proc/sys/kernel/random/boot_id")
# Linux counts the time that a machine sleeps on this clock alone.
_UP = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Head(NamedTuple):
    """The end of a chain: the number of its last line, and that line's hash."""

    seq: int
    hash: str

    def __str__(self) -> str:
        """As it is shown, and as `parse_heads` reads it."""
        return f"{self.seq}:{self.hash}"


NOTHING = Head(0, GENESIS)
_HEAD = re.compile(r"\b([0-9]{1,18}):([0-9a-f]{64})\b")


def parse_heads(text: str) -> list[Head]:
    """All heads in a text, such as an excerpt of the daemon's log."""
    return [Head(int(number), value) for number, value in _HEAD.findall(text)]


@dataclass(frozen=True)
class AuditEvent:
    """An act or an answer: whose it was (`actor`), its kind, its target, and how it ended (`result`).

    `result` is `done`, `failed` or `refused`. `more` are further members, numbers or texts without secrets.
    """

    actor: str
    action: str
    target: str = ""
    result: str = "done"
    more: Mapping[str, Any] = field(default_factory=dict)
    moment: float = field(default_factory=time.time)
    up: float = field(default_factory=lambda: time.clock_gettime(_UP))


def boot_id() -> str:
    """The beginning of the id of this boot of the machine, "" where the system has none."""
    try:
        return _BOOT.read_text("ascii")[:8]
    except (OSError, ValueError):
        return ""


def now() -> tuple[float, float]:
    """The wall clock in seconds since 1970, and the seconds since the machine was started."""
    return time.time(), time.clock_gettime(_UP)


def chained(event: AuditEvent, head: Head, boot: str) -> tuple[bytes, Head]:
    """The line of an event behind `head`, with its line break, and the new head."""
    seq = head.seq + 1
    record: dict[str, Any] = {
        "seq": seq,
        "time": shown_moment(event.moment),
        "up": round(event.up, 3),
        "boot": boot,
        "actor": _short(event.actor),
        "action": event.action,
        "target": _short(event.target),
        "result": event.result,
    }
    for key, value in event.more.items():
        bound = LONGEST_PROSE if key in PROSE else LONGEST_TEXT
        record[key] = _short(value, bound) if isinstance(value, str) else value
    record["prev"] = head.hash
    body = _ENCODE(record).encode("ascii")
    value = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"hash":"{value}"}}\n'.encode("ascii"), Head(seq, value)


class ChainLink(NamedTuple):
    """The part of a line that the chain needs: its number, the hash of the line before, and its own."""

    seq: int
    prev: str
    hash: str

    @property
    def head(self) -> Head:
        """The head of a chain that ends here."""
        return Head(self.seq, self.hash)


def link_of(line: bytes) -> ChainLink | None:
    """The link of a line without its line break; None for a line that is not as it was written."""
    number, end = _NUMBER.match(line), _END.fullmatch(line, max(0, len(line) - _END_BYTES))
    if number is None or end is None:
        return None
    if hashlib.sha256(line[:-_HASH_BYTES] + b"}").hexdigest().encode() != end[2]:
        return None
    return ChainLink(int(number[1]), end[1].decode(), end[2].decode())


def number_of(line: bytes) -> int:
    """The number at the beginning of a line, 0 where there is none; the line is not checked."""
    number = _NUMBER.match(line)
    return int(number[1]) if number else 0


def shown_moment(moment: float) -> str:
    """A moment in UTC, to the millisecond, as ISO 8601 has it."""
    text = datetime.fromtimestamp(min(max(moment, 0.0), 253_370_764_800.0), UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _short(text: str, bound: int = LONGEST_TEXT) -> str:
    """The text without secrets, cut where it is longer than `bound`."""
    text = redacted(text)[:bound]
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
