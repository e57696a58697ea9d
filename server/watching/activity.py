"""Recent requests: who asked which model, how many tokens and how long it took. Texts are never kept.

The last `KEPT` requests that name a model, those under way too; in memory only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from registry.store.catalog import Model
from server.access.callers import Caller
from server.keys.record import redacted

KEPT = 256
_LONGEST_NAME = 100


@dataclass(eq=False)
class Asked:
    """One request. `name` is the model's, or what the client called it where there is no such model.

    Tokens count as they come; times are seconds, `first` to the first text. `status` is "" while it goes on, `code` is
    the code of its error.
    """

    id: str
    path: str
    who: str
    owner: str
    name: str
    model: Model | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    first: float | None = None
    seconds: float | None = None
    status: str = ""
    code: str = ""
    at: float = field(default_factory=time.time)
    _began: float = field(default_factory=time.monotonic)

    def found(self, model: Model) -> None:
        """Note which model was meant."""
        self.model, self.name = model, model.name

    def text_came(self) -> None:
        """Note that some of the answer is there."""
        if self.first is None:
            self.first = time.monotonic() - self._began

    def end(self, status: str) -> None:
        """Note that it is answered."""
        self.status, self.seconds = status, time.monotonic() - self._began

    def row(self) -> dict[str, Any]:
        """The request as `/lm/activity` shows it."""
        return {
            "id": self.id,
            "at": round(self.at, 3),
            "who": self.who,
            "model": self.name,
            "route": self.path,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "answer_tokens": self.answer_tokens,
            "first_text_seconds": None if self.first is None else round(self.first, 3),
            "seconds": round(time.monotonic() - self._began if self.seconds is None else self.seconds, 3),
            "status": self.status,
            "code": self.code,
        }


class Activity:
    """The last requests, the newest last."""

    def __init__(self) -> None:
        self._asked: deque[Asked] = deque(maxlen=KEPT)

    def begin(self, request: web.Request, caller: Caller, name: str) -> None:
        """Note a request that names a model, once; names may be anything that a client sends, so they are cut."""
        if ASKED in request or request.method != "POST":
            return
        key = caller.key
        who = (key.name or key.id) if key else caller.title
        path, name = redacted(request.path)[:_LONGEST_NAME], redacted(name[:_LONGEST_NAME])
        request[ASKED] = asked = Asked(str(request.get("id", "")), path, who, caller.owner, name)
        self._asked.append(asked)

    def rows(self, may_see: Callable[[Asked], bool]) -> list[dict[str, Any]]:
        """The requests that pass, the newest first."""
        return [asked.row() for asked in reversed(self._asked) if may_see(asked)]


ACTIVITY = web.AppKey("activity", Activity)
ASKED = web.RequestKey("asked", Asked)
