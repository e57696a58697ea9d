"""Checking the audit log: each line's hash, the chain through all files, heads that were written down elsewhere.

The chain shows lines that were changed, removed, added or swapped. It cannot show that the end was cut off: that takes
an anchor, a head that was kept elsewhere, such as in the journal, to which the daemon prints it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from server.audit.files import CURRENT, all_files, first_line, last_lines, lines_of
from server.audit.line import GENESIS, NOTHING, ChainLink, Head, link_of
from server.audit.line import now as clocks

# Seconds by which the wall clock may differ from the time that passed.
DRIFT_SECONDS = 60.0
_SHOWN = 20
# A new file begins with at most N lines about files that were turned or removed.
_FIRST_LINES = 8


@dataclass
class AuditReport:
    """The state of a log. `problems` are sentences about a chain that is broken; `notes` are about what is known."""

    folder: str
    files: int = 0
    lines: int = 0
    first: int = 0
    head: Head = NOTHING
    torn: int = 0
    """Bytes behind the last line break: the next writer cuts them off, and says so."""
    anchors: int = 0
    problems: list[str] = field(default_factory=list)
    more_problems: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def blame(self, sentence: str) -> None:
        """Add a problem; of many only the first ones are kept."""
        if len(self.problems) < _SHOWN:
            self.problems.append(sentence)
        else:
            self.more_problems += 1


def verify(folder: Path, anchors: Sequence[Head] = ()) -> AuditReport:
    """Check every line in the folder, and that the lines of `anchors` are there. Raises OSError."""
    report, chain = AuditReport(str(folder)), _Chain()
    wanted = {anchor.seq: anchor for anchor in anchors}
    for path in all_files(folder):
        report.files += 1
        for line in lines_of(path):
            if not line.endswith(b"\n"):
                report.torn += len(line)
                report.blame(f"`{path.name}` ends with {len(line)} bytes of a torn line; the next entry mends it")
                continue
            link = chain.follow(line[:-1], path, report)
            if link and (anchor := wanted.pop(link.seq, None)):
                report.anchors += 1
                if anchor.hash != link.hash:
                    report.blame(f"line {link.seq} is another one than the anchor names")
    report.head = chain.head
    for seq in sorted(wanted):
        if seq > chain.head.seq:
            report.blame(f"the end is cut off: the anchor names line {seq}, and the last line is {chain.head.seq}")
        else:
            report.blame(f"line {seq}, which an anchor names, is not here")
    return report


class _Chain:
    """The lines so far."""

    def __init__(self) -> None:
        self.head = NOTHING
        self._clock = _Clock()
        self._start: ChainLink | None = None
        """The first line, where that is not the first one of all: a line has to say that earlier ones were removed."""

    def follow(self, line: bytes, path: Path, report: AuditReport) -> ChainLink | None:
        """Take one line; None where it is not as it was written."""
        report.lines += 1
        link = link_of(line)
        if link is None:
            report.blame(f"`{path.name}`: the line after line {self.head.seq} is not as it was written")
            return None
        if report.first == 0:
            report.first = link.seq
            if link.prev != GENESIS or link.seq != 1:
                self._start = link
                report.blame(_lacking(1, link.seq - 1))
        elif link.seq != self.head.seq + 1 or link.prev != self.head.hash:
            report.blame(self._gap(link, path))
        self.head = link.head
        for note in self._clock.follow(line):
            report.notes.append(note)
        if self._start is not None and b'"action":"audit.removed"' in line:
            self._allow(json.loads(line), report)
        return link

    def _gap(self, link: ChainLink, path: Path) -> str:
        if link.seq > self.head.seq + 1:
            return _lacking(self.head.seq + 1, link.seq - 1)
        return f"`{path.name}`: line {link.seq} does not follow line {self.head.seq}"

    def _allow(self, record: Any, report: AuditReport) -> None:
        """Earlier lines may lack where a line says that they were removed when their time was over."""
        start = self._start
        if start and (record.get("until"), record.get("head")) == (start.seq - 1, start.prev):
            report.problems.remove(_lacking(1, start.seq - 1))
            report.notes.append(f"lines 1 to {start.seq - 1} were removed when their time was over")
            self._start = None


def _lacking(first: int, last: int) -> str:
    return f"line {first} is missing" if first == last else f"lines {first} to {last} are missing"


class _Clock:
    """Compares the wall clock with the time since the machine's start, from line to line."""

    def __init__(self) -> None:
        self._last: tuple[str, float, float] | None = None

    def follow(self, line: bytes) -> Iterator[str]:
        """A note where the wall clock was set between two lines, of the same boot or back in time."""
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            now = record["boot"], moment_of(record), float(record["up"])
            before, self._last = self._last, now
            if before is not None and (jump := _jump(before, now)):
                yield f"the clock was set {jump} before line {record['seq']}"


def moment_of(record: Any) -> float:
    """The moment of a line in seconds since 1970. Raises ValueError, KeyError, TypeError."""
    return datetime.fromisoformat(record["time"]).timestamp()


def _jump(before: tuple[str, float, float], now: tuple[str, float, float]) -> str:
    """How the wall clock was set between two readings (boot, wall, up), "" where it was not, or nobody can know."""
    if before[0] == now[0] != "":
        off = (now[1] - before[1]) - (now[2] - before[2])
        return f"{abs(off):,.0f} s {'forward' if off > 0 else 'back'}" if abs(off) > DRIFT_SECONDS else ""
    back = before[1] - now[1]
    return f"{back:,.0f} s back" if back > DRIFT_SECONDS else ""


def _said_to_be_removed(files: list[Path], first: ChainLink) -> bool:
    """Whether a line says that all lines before `first` were removed; it stands at the beginning of a file."""
    wanted = f'"until":{first.seq - 1},"head":"{first.prev}"'.encode()
    return any(wanted in line for path in files for line in islice(lines_of(path), _FIRST_LINES))


def glance(folder: Path, boot: str) -> list[str]:
    """Sentences about what is wrong, by the first and last line of each file and by the clock. Raises OSError.

    Quick, for each start of the daemon; `verify` reads every line.
    """
    found, head, last = [], NOTHING, b""
    files = all_files(folder)
    for number, path in enumerate(files):
        first = link_of(first_line(path))
        lines, torn = last_lines(path)
        end = link_of(lines[-1]) if lines else None
        if first is None and not lines:
            continue
        if first is None or end is None:
            found.append(f"`{path.name}` has lines that are not as they were written")
        elif number and (first.seq, first.prev) != (head.seq + 1, head.hash):
            lacking = first.seq > head.seq + 1
            found.append(
                f"`{path.name}` does not follow the file before: "
                + (_lacking(head.seq + 1, first.seq - 1) if lacking else "lines were exchanged")
            )
        if number == 0 and first is not None and first.seq > 1 and not _said_to_be_removed(files, first):
            found.append(_lacking(1, first.seq - 1))
        head = end.head if end else head
        last = lines[-1] if lines else last
        if torn and path.name != CURRENT:
            found.append(f"`{path.name}` ends with a torn line")
    if files and files[-1].name != CURRENT:
        found.append(f"`{CURRENT}` is missing: the lines after line {head.seq}, if there were any")
    with suppress(ValueError, KeyError, TypeError):
        record = json.loads(last)
        wall, up = clocks()
        if jump := _jump((record["boot"], moment_of(record), float(record["up"])), (boot, wall, up)):
            found.append(f"the clock was set {jump} since the last line of the audit log")
    return found
