"""The audit log for other programs: JSON lines, CSV, and ArcSight's Common Event Format, which SIEMs read."""

from __future__ import annotations

import csv
import io
import ipaddress
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.audit.files import all_files, first_line, lines_of
from server.audit.line import link_of, number_of
from server.audit.verify import moment_of
from server.config import VERSION

COLUMNS = (
    "seq",
    "time",
    "actor",
    "from",
    "action",
    "target",
    "result",
    "status",
    "code",
    "digest",
    "tokens",
    "count",
    "boot",
    "up",
    "prev",
    "hash",
)
# Severities of CEF, 0 to 10.
_SEVERITY = {"done": 3, "left": 3, "failed": 5, "refused": 7}
# A spreadsheet takes a cell that begins so for a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def records(folder: Path, since: float | None = None, until: float | None = None) -> Iterator[tuple[Any, bytes]]:
    """The lines of all files between two moments, each as an object and as bytes. Raises OSError.

    Bytes that are no line are left out: `verify` names them.
    """
    for path in all_files(folder):
        for line in lines_of(path):
            if each := _read(line):
                moment = moment_of(each[0])
                if (since is None or moment >= since) and (until is None or moment <= until):
                    yield each


def last_records(folder: Path, count: int) -> list[tuple[Any, bytes]]:
    """The last lines, at most `count`, as `records` has them; files before them are not read. Raises OSError."""
    found: list[tuple[Any, bytes]] = []
    for path in reversed(all_files(folder)):
        if len(found) >= count:
            break
        lines = deque(lines_of(path), count - len(found))
        found = [*(each for line in lines if (each := _read(line))), *found]
    return found


def records_behind(folder: Path, seq: int) -> Iterator[tuple[Any, bytes]]:
    """The lines behind the one with a number, as `records` has them. Raises OSError."""
    files = all_files(folder)
    firsts = [link_of(first_line(path)) for path in files]
    known = [place for place, first in enumerate(firsts) if first and first.seq <= seq]
    for path in files[known[-1] if known else 0 :]:
        for line in lines_of(path):
            if number_of(line) > seq and (each := _read(line)):
                yield each


def _read(line: bytes) -> tuple[Any, bytes] | None:
    """A line as an object and as bytes; None for bytes that are no line."""
    with suppress(ValueError, KeyError, TypeError):
        record = json.loads(line)
        moment_of(record)
        return record, line.rstrip(b"\n")
    return None


def as_json(record: Any, line: bytes) -> str:
    """The line as it is, so that its hash holds."""
    return line.decode("ascii", "replace")


def csv_row(cells: list[Any]) -> str:
    """A row of CSV (RFC 4180) without its line break."""
    text = io.StringIO()
    shown = [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell for cell in cells]
    csv.writer(text, lineterminator="").writerow(shown)
    return text.getvalue()


def as_csv(record: Any, line: bytes) -> str:
    """The members that have a column, and all others as JSON in the last one."""
    more = {key: value for key, value in record.items() if key not in COLUMNS}
    return csv_row([*(record.get(name, "") for name in COLUMNS), json.dumps(more) if more else ""])


def as_cef(record: Any, line: bytes) -> str:
    """A line of CEF, version 0: a header of eight fields, and pairs."""
    action = str(record.get("action", ""))
    head = ["CEF:0", "lm", "lm", VERSION, action, action, str(_SEVERITY.get(record.get("result"), 3))]
    pairs: dict[str, Any] = {
        "rt": round(moment_of(record) * 1000),
        "suser": record.get("actor"),
        "src": _address(record.get("from")),
        "act": action,
        "outcome": record.get("result"),
        "reason": record.get("code"),
        "externalId": record.get("seq"),
        "fileHash": record.get("digest"),
        "cnt": record.get("count"),
        "cs1Label": "target",
        "cs1": record.get("target"),
        "cs2Label": "hash",
        "cs2": record.get("hash"),
    }
    if "tokens" in record:
        pairs |= {"cn1Label": "tokens", "cn1": record["tokens"]}
    shown = " ".join(f"{key}={_value(value)}" for key, value in pairs.items() if value not in (None, ""))
    return "|".join([head[0], *(part.replace("\\", "\\\\").replace("|", "\\|") for part in head[1:]), shown])


def _address(peer: Any) -> str:
    """The address of a peer; "" for the user of a Unix socket, whom `suser` has."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(str(peer)))
    return ""


def _value(value: Any) -> str:
    text = str(value).replace("\\", "\\\\").replace("=", "\\=")
    return text.replace("\r", "\\r").replace("\n", "\\n")


FORMATS: dict[str, Callable[[Any, bytes], str]] = {"jsonl": as_json, "csv": as_csv, "cef": as_cef}
