"""The lines of a batch: requests in its input, and answers in its results."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from registry.store import fsops
from runtime.defaults import MAX_BODY
from server.api.openai.batches.store import BatchRecord

MOST_REQUESTS = 50_000
MOST_ERRORS = 100
_LONGEST_ID = 256


class BatchRequest(msgspec.Struct):
    """One request of a batch."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class _AnswerForm(msgspec.Struct):
    """The fields of a request that say how it would be answered."""

    model: str | None = None
    stream: bool | None = None
    background: bool | None = None


class _DoneLine(msgspec.Struct):
    custom_id: str
    response: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


def requests(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of an input that are not empty, each with its number from 1 on. Raises OSError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def check(record: BatchRecord, path: Path) -> None:
    """Count the requests of a batch, and note the errors of its input in the record. Raises OSError."""
    seen: set[str] = set()
    for number, line in requests(path):
        record.total += 1
        if problem := _problem(record, line, seen):
            code, message = problem
            record.errors.append({"code": code, "line": number, "message": message, "param": None})
        if len(record.errors) >= MOST_ERRORS or record.total > MOST_REQUESTS:
            break
    if record.total > MOST_REQUESTS:
        told = f"the file has more than {MOST_REQUESTS:,} requests"
        record.errors.append({"code": "too_many_requests", "line": None, "message": told, "param": None})
    if not record.total:
        record.errors.append({"code": "empty_file", "line": None, "message": "the file is empty", "param": None})


def _problem(record: BatchRecord, line: bytes, seen: set[str]) -> tuple[str, str] | None:
    """The code and the sentence about a line that is no request of this batch; None for one that is."""
    if len(line) > MAX_BODY:
        return "line_too_long", f"the line is larger than {MAX_BODY >> 20} MiB"
    try:
        request = msgspec.json.decode(line, type=BatchRequest)
        body = msgspec.json.decode(request.body, type=_AnswerForm)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return "invalid_json_line", f"the line is no request: {str(error)[:200]}"
    if not request.custom_id or len(request.custom_id) > _LONGEST_ID:
        return "invalid_custom_id", f"`custom_id` has 1 to {_LONGEST_ID} characters"
    if request.custom_id in seen:
        return "duplicate_custom_id", f"`{request.custom_id[:80]}` stands in an earlier line, too"
    if request.method != "POST" or request.url != record.endpoint:
        return "mismatched_endpoint", f"the batch is for `POST {record.endpoint}`"
    if body.stream or body.background:
        return "invalid_request", "`stream` and `background` are not for batches"
    record.model = record.model or body.model
    seen.add(request.custom_id)
    return None


def result(request: BatchRequest, status: int, request_id: str, body: bytes) -> bytes:
    """A line about an answer."""
    response = {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
    return _line(request.custom_id, response, None)


def failure(request: BatchRequest, code: str, message: str) -> bytes:
    """A line about a request that was not answered."""
    return _line(request.custom_id, None, {"code": code, "message": message})


def recover(record: BatchRecord, output: Path, failures: Path) -> tuple[set[str], dict[str, int]]:
    """The requests that are done, by the results that an earlier daemon left, and the sizes of these files.

    The counts of the record begin anew. A line that a crash cut off is removed. Raises OSError.
    """
    done: set[str] = set()
    sizes = {}
    record.completed = record.failed = 0
    record.usage = type(record.usage)()
    for path in (output, failures):
        sizes[path.parent.name] = _without_torn_line(path)
        for _, line in requests(path) if path.exists() else ():
            row = msgspec.json.decode(line, type=_DoneLine)
            done.add(row.custom_id)
            if path is output:
                record.completed += 1
                record.usage.add(usage_of(bytes(row.response)))
            else:
                record.failed += 1
    return done, sizes


def usage_of(response: bytes) -> dict[str, Any]:
    """The usage in the response of a line."""
    found = msgspec.json.decode(response)["body"].get("usage")
    return found if isinstance(found, dict) else {}


def _without_torn_line(path: Path) -> int:
    """The size of a file of whole lines; the rest of a line at its end is cut off. Raises OSError."""
    if not path.exists():
        return 0
    size = whole = 0
    with path.open("rb") as file:
        for line in file:
            size += len(line)
            whole = size if line.endswith(b"\n") else whole
    if whole < size:
        fsops.cut(path, whole)
    return whole


def _line(custom_id: str, response: Any, error: Any) -> bytes:
    row = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(row) + b"\n"
