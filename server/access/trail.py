"""The trail that a request leaves in the audit log: who asked, for which model, at which cost, and how it ended."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from registry.store.catalog import Model
from server.access.callers import CALLER, Caller
from server.access.peers import peer_of
from server.audit.line import AuditEvent
from server.audit.recorder import DAEMON, Recorder

# In whose name a task works: tasks and threads that a request starts have it too.
ACTOR: ContextVar[str] = ContextVar("actor", default=DAEMON)
RECORDER = web.AppKey("recorder", Recorder)
_REFUSALS = {401, 403, 429}


@dataclass
class Trail:
    """The facts about one request, gathered while it is answered."""

    act: str = ""
    """The word for an administrative act, "" for other requests."""
    target: str = ""
    model: Model | None = None
    tokens: int = 0
    code: str = ""
    """The code of the error that ended it."""
    request: str = ""
    answer: list[str] = field(default_factory=list)
    """The body and the texts of the answer, where `audit_text` wants them."""


TRAIL = web.RequestKey("trail", Trail)


def actor_of(caller: Caller | None, peer: str) -> str:
    """Who asks, as entries name it: a key by its id, others by their titles, a stranger by the address."""
    if caller is None:
        return f"stranger {peer}".rstrip()
    return f"key {caller.key.id}" if caller.key else caller.title


async def leave(request: web.Request, status: str, note: str) -> None:
    """Record a request that has ended, with an HTTP status or `gone`, if it is of a kind that is recorded.

    `note` are the log's words about it, which name its target.
    """
    recorder, trail = request.app[RECORDER], request[TRAIL]
    if not recorder.on or request.method == "OPTIONS":
        return
    trail.target = trail.target or note.removesuffix(f" {trail.code}").strip()
    number = int(status) if status.isdigit() else 0
    if number in _REFUSALS and number != 429:
        recorder.refused(_event(request, trail, trail.act or "ask", "refused", {"code": trail.code}))
    elif trail.act:
        if number == 429:
            result = "refused"
        else:
            result = "done" if 200 <= number < 400 else "left" if status == "gone" else "failed"
        more: dict[str, Any] = {"status": number, **({"code": trail.code} if trail.code else {})}
        await recorder.act(_event(request, trail, trail.act, result, more))
    elif number == 429:
        recorder.refused(_event(request, trail, "ask", "refused", {"code": trail.code}))
    elif trail.model is not None and (trail.tokens or number >= 400 or not number):
        recorder.answered(answer_event(request, status))


def answer_event(request: web.Request, status: str) -> AuditEvent:
    """The entry about an answer: the model with its digest, tokens read and written, never a text unless it is wanted.

    The tokens count from the last such entry on.
    """
    trail = request[TRAIL]
    number = int(status) if status.isdigit() else 0
    result = "done" if 200 <= number < 400 else "left" if status == "gone" else "failed"
    more: dict[str, Any] = {"digest": trail.model.blob_digest if trail.model else "", "tokens": trail.tokens}
    more |= {"status": number, "route": request.path}
    more |= {"code": trail.code} if trail.code else {}
    if request.app[RECORDER].text:
        more |= {"request": trail.request, "answer": "".join(trail.answer)}
    trail.tokens, trail.answer = 0, []
    return _event(request, trail, "answer", result, more)


def _event(request: web.Request, trail: Trail, action: str, result: str, more: dict[str, Any]) -> AuditEvent:
    peer = peer_of(request).name
    caller = request.get(CALLER)
    target = request.path if action == "ask" else trail.target
    if action == "answer" and trail.model is not None:
        target = trail.model.name
    return AuditEvent(actor_of(caller, peer), action, target, result, {"from": peer, **more})
