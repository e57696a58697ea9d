"""How pulls are told to clients: frames of a puller as lines, its errors, the list of what is on its way or paused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from registry.names import Name, Reference, parse
from registry.store.store import Ingest
from server.http.problems import Problem
from server.pulls.frames import Note, Planned, Progress

_STATUS = {
    "resolving": "pulling manifest",
    "planning": "planning",
    "writing": "quantizing",
    "copying": "copying",
    "committing": "writing manifest",
}


def told(frame: Note | Planned | Progress) -> dict[str, Any]:
    """A line as Ollama's clients read it, with `phase` and figures; sizes in bytes, `eta` in seconds."""
    if isinstance(frame, Note):
        return {"status": frame.text, "phase": "note"}
    if isinstance(frame, Planned):
        return {
            "status": frame.reason,
            "phase": "planned",
            "level": frame.level,
            "reason": frame.reason,
            "source_bytes": frame.source_bytes,
            "output_bytes": frame.output_bytes,
            "resumed": frame.resumed,
        }
    line: dict[str, Any] = {"status": _STATUS.get(frame.phase, frame.phase), "phase": frame.phase}
    if frame.total:
        line |= {"completed": frame.completed, "total": frame.total, "rate": round(frame.rate)}
        line["eta"] = round((frame.total - frame.completed) / frame.rate, 1) if frame.rate else None
    return line


def failed(error: BaseException) -> dict[str, Any]:
    """The last line of a pull that ended in an error."""
    return {"status": "error", "phase": "failed"} | Problem.of(error).body("ollama")


def tagged(pulled: Reference, level: str) -> Name:
    """Under which name it will lie, if its level is known."""
    return pulled.name if pulled.name.tag or not level else pulled.name.tagged(level)


def listed(ingest: Ingest, active: bool) -> dict[str, Any]:
    """A pull that is under way or paused, as `/lm/partials` lists it; sizes in bytes."""
    journal = ingest.journal
    assert journal is not None
    facts = journal.facts
    return {
        "name": tagged(parse(ingest.title), facts.level).display,
        "source": ingest.title,
        "revision": facts.revision,
        "level": facts.level,
        "completed": journal.latest.size,
        "total": facts.size,
        "modified_at": datetime.fromtimestamp(ingest.data.stat().st_mtime, UTC).isoformat(),
        "active": active,
    }
