"""Sends the audit log to a collector when there is a network; lines that it acknowledged are never sent again.

Lines go as they stand, in order, as `application/x-ndjson` by POST. An answer of 2xx acknowledges all lines of a
request, and is written down before the next one. Where the answer is lost, the lines go once more, perhaps with others
behind them: `seq` in each line tells, and `Idempotency-Key` has the first number and the head behind the last line. The
log itself is what waits, so nothing more grows on the disk than `audit_keep` allows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from registry.errors import RegistryError
from server.audit.files import BLOCK, all_files, first_line, last_lines
from server.audit.line import NOTHING, Head, link_of
from server.audit.log import folder_lock
from server.collector import SENT, Collector, only_sender, read_sent, write_sent
from server.config import Config

_LOCK = "sent.lock"
# The bytes of lines in one request, but for the last line.
MOST_BYTES = 1 << 20
COMMAND = "lm audit push"


class OtherLog(RegistryError):
    """The collector acknowledged lines of another log."""

    code = "other_audit_log"


@dataclass
class Shipment:
    """One push: the lines sent now, the head that the collector has, and how many lines can be sent no more."""

    lines: int = 0
    head: Head = NOTHING
    missing: int = 0


def send(config: Config, url: str, token: str = "", sent: Callable[[Shipment], None] = lambda _: None) -> Shipment:
    """Send all lines behind the last one that the collector at `url` acknowledged; `sent` is called for each request.

    `token` is a bearer. Raises Offline, SourceUnavailable, AccessDenied, SentUnknown, OtherLog; what was acknowledged
    until then stays so. Raises OSError where a file of the log, or the file of heads that were sent, cannot be used.
    """
    folder = config.audit_folder
    with contextlib.closing(Collector(config, url, token, "lines")) as collector, only_sender(folder / _LOCK, COMMAND):
        notes = read_sent(folder, _noted)
        shipment = Shipment(head=notes.get(url, NOTHING))
        for body, first, head in _requests(folder, shipment):
            later = f"nothing is lost: the next `{COMMAND}` goes on behind line {shipment.head.seq}"
            collector.post(body, "application/x-ndjson", later, {"Idempotency-Key": f"{first}-{head}"})
            notes[url] = shipment.head = head
            shipment.lines += body.count(b"\n")
            write_sent(folder, {key: str(value) for key, value in notes.items()})
            sent(shipment)
    return shipment


def _requests(folder: Path, shipment: Shipment) -> Iterator[tuple[bytes, int, Head]]:
    """The bodies to send, each with the number of its first line and the head behind it."""
    lines, size, first, head = list[bytes](), 0, 0, shipment.head
    for line, link in _lines_behind(folder, shipment):
        if size >= MOST_BYTES:
            yield b"".join(lines), first, head
            lines, size = [], 0
        first = first if lines else link.seq
        lines.append(line)
        size += len(line)
        head = link
    if lines:
        yield b"".join(lines), first, head


def _lines_behind(folder: Path, shipment: Shipment) -> Iterator[tuple[bytes, Head]]:
    """The lines behind the head, with their own; lines that are not as they were written stay here, as `missing`."""
    head = shipment.head
    while file := _open_behind(folder, head):
        with file:
            end = os.fstat(file.fileno()).st_size
            while (left := end - file.tell()) > 0:
                line = file.readline(min(left, BLOCK))
                link = link_of(line.rstrip(b"\n"))
                if link is None or link.seq < head.seq:
                    continue
                if link.seq == head.seq:
                    _require_same(link.hash, head)
                    continue
                if link.seq == head.seq + 1:
                    _require_same(link.prev, head)
                shipment.missing += link.seq - head.seq - 1
                head = link.head
                yield line, head


def _open_behind(folder: Path, head: Head) -> BinaryIO | None:
    """The first file with lines behind `head`, opened; None where there is none. Raises OtherLog, OSError."""
    with folder_lock(folder):  # no file gets another name meanwhile
        behind: Path | None = None
        for path in reversed(all_files(folder)):
            lines, _ = last_lines(path)
            last = next((link for line in reversed(lines) if (link := link_of(line))), None)
            if last is None:
                continue
            if behind is None and last.seq < head.seq:
                raise _other(head)
            if last.seq <= head.seq:
                break
            behind = path
            first = link_of(first_line(path))
            if first is not None and first.seq <= head.seq + 1:
                break
        return behind.open("rb") if behind else None


def _require_same(value: str, head: Head) -> None:
    if value != head.hash:
        raise _other(head)


def _other(head: Head) -> OtherLog:
    return OtherLog(
        f"line {head.seq} of the audit log is not the one that the collector acknowledged",
        f"`lm audit verify --anchor {head}` says what is wrong; without `{SENT}` beside it a new log is sent whole",
    )


def _noted(text: str) -> Head:
    """The head that a note has. Raises ValueError, AttributeError."""
    number, _, value = text.partition(":")
    return Head(int(number), value)
