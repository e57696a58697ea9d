"""One pull as its clients see it: its options, its lines, and whether it goes on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from registry.names import Reference
from registry.net.hub import Hub
from server.pulls.frames import Effort, Statistics
from server.pulls.story import Story

State = Literal["running", "pausing", "removing", "ended"]


@dataclass(frozen=True)
class PullOptions:
    """How a model is to be pulled: from which hub, at which rate (bytes/s, 0 for any).

    `pre` is the name of the pre-tokenizer, "" unless the user gave it. `accept_unknown_keys`: go on where nobody knows
    a key of the model's configuration. `base` names the model that an adapter is for, "" unless the user did. `copy`: a
    file of this machine is copied where it could be shared. `effort` and `statistics` are as in `PullTask`. `content`
    is the digest of the weights that the source has to have, "" for any.
    """

    hub: Hub
    limit_rate: float = 0.0
    pre: str = ""
    accept_unknown_keys: bool = False
    base: str = ""
    copy: bool = False
    effort: Effort = ""
    statistics: Statistics | None = None
    content: str = ""

    def note(self, failed: str = "") -> bytes:
        """The options as a daemon finds them that goes on with the pull later; a token is never written down.

        `failed` says why no daemon is to go on by itself.
        """
        names = ("limit_rate", "pre", "accept_unknown_keys", "base", "copy")
        fields = {key: getattr(self, key) for key in names}
        return msgspec.json.encode(_Wishes(self.hub.endpoint, **fields, failed=failed))

    @classmethod
    def of(cls, note: bytes, own: Hub) -> PullOptions:
        """The options in a note; the token of `own`, the daemon's hub, goes there only. Raises MsgspecError."""
        wishes = msgspec.json.decode(note, type=_Wishes)
        hub = own if wishes.endpoint == own.endpoint else replace(own, endpoint=wishes.endpoint, token="")
        return cls(hub, wishes.limit_rate, wishes.pre, wishes.accept_unknown_keys, wishes.base, wishes.copy)


def failure(note: bytes | None) -> str:
    """Why the pull with this note failed for good; "" where it did not, or nothing can be read there."""
    try:
        return msgspec.json.decode(note or b"{}", type=_Wishes).failed
    except msgspec.MsgspecError:
        return ""


class _Wishes(msgspec.Struct):
    """The note of a detached pull."""

    endpoint: str
    limit_rate: float = 0.0
    pre: str = ""
    accept_unknown_keys: bool = False
    base: str = ""
    failed: str = ""
    copy: bool = False


class Job(Story):
    """One pull. `task` does the work.

    `level` is "" until it is known. `owners` are the owners of the keys that asked for it, "" for the daemon's own
    user. `detached` jobs go on when nobody follows. A job that is "pausing" keeps its
    partial file, one that is "removing" throws it away.
    """

    def __init__(self, reference: Reference, options: PullOptions) -> None:
        super().__init__()
        self.reference = reference
        self.owners: set[str] = set()
        self.options = options
        self.detached = False
        self.level = ""
        self.state: State = "running"
        self.task: asyncio.Task[None] | None = None

    def pause(self) -> None:
        """End the work, and keep its partial file for the next pull of this name."""
        if self.state == "running":
            self._cancel("pausing")

    def remove(self) -> None:
        """End the work, and throw its partial file away, even where it was to be paused."""
        if self.state != "ended":
            self._cancel("removing")

    def end(self) -> None:
        """Say that no more lines will come."""
        self.state = "ended"
        super().end()

    def _cancel(self, state: State) -> None:
        if self.state == "running" and self.task:
            self.task.cancel()
        self.state = state
