"""The audit log for other programs: JSON lines, CSV, and ArcSight's Common Event Format, which SIEMs read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.audit.files import all_files, lines_of
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
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                moment = moment_of(record)
                if (since is None or moment >= since) and (until is None or moment <= until):
                    yield record, line.rstrip(b"\n")


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
        "src": record.get("from"),
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


def _value(value: Any) -> str:
    text = str(value).replace("\\", "\\\\").replace("=", "\\=")
    return text.replace("\r", "\\r").replace("\n", "\\n")


FORMATS: dict[str, Callable[[Any, bytes], str]] = {"jsonl": as_json, "csv": as_csv, "cef": as_cef}
