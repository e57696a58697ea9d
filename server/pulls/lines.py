"""The lines that clients of a pull read, in Ollama's form: from a puller's frames, its errors, and paused pulls."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from registry.names import Name, Reference, parse
from registry.store.ingest import Ingest
from registry.store.store import Store
from server.http.problems import Problem
from server.pulls.frames import Note, Planned, Progress
from server.pulls.job import failure

_STATUS = {
    "resolving": "pulling manifest",
    "planning": "planning",
    "writing": "quantizing",
    "copying": "copying",
    "unpacking": "unpacking",
    "adapters": "copying the adapter",
    "draft": "copying the draft model",
    "checking": "checking that it works",
    "committing": "writing manifest",
}


def phase_line(phase: str) -> dict[str, Any]:
    """The line with which a phase begins."""
    return {"status": _STATUS.get(phase, phase), "phase": phase}


def frame_line(frame: Note | Planned | Progress) -> dict[str, Any]:
    """A line as Ollama's clients read it, with `phase` and figures: sizes in bytes, `rate` in bytes/s, `eta` in
    seconds."""
    match frame:
        case Note():
            return note_line(frame.text)
        case Planned():
            return {
                "status": frame.reason,
                "phase": "planned",
                "level": frame.level,
                "reason": frame.reason,
                "source_bytes": frame.source_bytes,
                "output_bytes": frame.output_bytes,
                "resumed": frame.resumed,
            }
        case Progress():
            line = phase_line(frame.phase) | ({"status": frame.doing} if frame.doing else {})
            if frame.total:
                line |= {"completed": frame.completed, "total": frame.total, "rate": round(frame.rate)}
                line["eta"] = round((frame.total - frame.completed) / frame.rate, 1) if frame.rate else None
            return line


def with_digest(name: str, line: dict[str, Any]) -> dict[str, Any]:
    """A line of the pull of `name` as Ollama's clients tell progress from steps: with figures it has a `digest`.

    Clients keep one bar for each digest, and a pull has one bar, whatever its phases are. The file's own digest is
    known at its end only.
    """
    if "completed" not in line:
        return line
    mark = hashlib.sha256(f"{name} {line['total']}".encode()).hexdigest()
    return line | {"digest": f"sha256:{mark}"}


def note_line(text: str) -> dict[str, Any]:
    """A sentence for the user."""
    return {"status": text, "phase": "note"}


def success_line(name: str, digest: str) -> dict[str, Any]:
    """The last line of a pull that brought in the model `name`, whose manifest has this digest."""
    return {"status": "success", "phase": "done", "name": name, "manifest_digest": digest}


def error_line(error: BaseException) -> dict[str, Any]:
    """The last line of a pull that ended in an error."""
    return {"status": "error", "phase": "failed"} | Problem.of(error).body("ollama")


def name_at_level(pulled: Reference, level: str) -> Name:
    """The name under which a pulled model will lie, with its level unless that is "", not known yet."""
    return pulled.name if pulled.name.tag or not level else pulled.name.tagged(level)


def partial_row(store: Store, ingest: Ingest, active: bool) -> dict[str, Any] | None:
    """A row of `/lm/partials`: a pull that is under way (`active`) or paused; sizes in bytes.

    None where it has ended meanwhile. Reads files.
    """
    journal = ingest.journal
    try:
        modified = ingest.data.stat().st_mtime
    except FileNotFoundError:
        return None
    if journal is None:
        return None
    facts = journal.facts
    return {
        "name": name_at_level(store.placed(parse(ingest.title)), facts.level).display,
        "source": ingest.title,
        "revision": facts.revision,
        "level": facts.level,
        "completed": journal.latest.size,
        "total": facts.size,
        "modified_at": datetime.fromtimestamp(modified, UTC).isoformat(),
        "active": active,
        "failed": "" if active else failure(ingest.detached),
    }
