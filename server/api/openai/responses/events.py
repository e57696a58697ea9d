"""The events of a response, in the order that OpenAI's API reference describes, and the response that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from runtime.messages import CallDelta, Delta, Finished, Started
from server.api.calls import call_id
from server.api.logprobs import logprob_rows
from server.api.openai.moments import now
from server.api.openai.responses.items import Item
from server.api.openai.responses.parts import OpenItem, OpenMessage, OpenThoughts, Step, open_call
from server.api.openai.tools import ToolSet
from server.api.request import InUse
from server.api.respond import AnswerWriter, Json, Usage, predicted
from server.http.problems import Dialect, Problem
from server.http.wire import NAMED_EVENTS, StreamForm

# Codes of errors as the object of a failed response may have them.
_ERROR_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


class ResponseWriter(AnswerWriter):
    """Events and the response. `response` is how it stands now.

    `done` gets the response before its last event goes out. With `summary` thinking is told as a summary.
    """

    dialect: Dialect = "openai"
    form: StreamForm = NAMED_EVENTS
    prompt_field = "input"

    def __init__(
        self, response: Json, tools: ToolSet, done: Callable[[Json], None], *, summary: bool, encrypted: bool
    ) -> None:
        self.response = response
        self._tools = tools
        self._done = done
        self._thoughts = {"summary": summary, "encrypted": encrypted}
        self._open: OpenItem | None = None
        self._index = 0
        self._sequence = 0
        self._begun = False

    def begin(self, *, queued: bool = False) -> list[Json]:
        """The first events; a response in the background is `queued` before it is in progress."""
        self._begun = True
        self.response["status"] = "queued" if queued else "in_progress"
        events = [self._whole_event("created")]
        return [*events, self._whole_event("queued")] if queued else events

    def first(self, index: int, frame: Started) -> Iterable[Json]:
        """The answer is on its way."""
        events = [] if self._begun else self.begin()
        self.response["status"] = "in_progress"
        return [*events, self._whole_event("in_progress")]

    def delta(self, index: int, frame: Delta) -> Iterator[Json]:
        """More text, or more thinking."""
        if self._open is None or self._open.kind != frame.kind:
            opened = OpenThoughts(**self._thoughts) if frame.kind == "thinking" else OpenMessage()
            yield from self._next(opened)
        yield from self._more(frame.text, logprob_rows(frame.logprobs))

    def call(self, index: int, frame: CallDelta) -> Iterator[Json]:
        """More of a call; one that breaks is no part of the response, and its text is."""
        if frame.name:
            tool = self._tools.client_name(frame.name)
            yield from self._next(open_call(tool, frame.call_id or f"call_{call_id()}"))
        if frame.arguments:
            yield from self._more(frame.arguments, [])
        if frame.ended:
            yield from self._close("completed")
        elif frame.broken:
            if self._open is not None and self._open.kind == "call":
                broken = self._open.item
                yield from self._close("incomplete")
                self.response["output"].remove(broken)
            yield from self.delta(index, Delta(frame.id, frame.broken, 0, index))

    def end(self, index: int, frame: Finished) -> Iterator[Json]:
        """The last item is complete, or as complete as it will be."""
        whole = frame.reason == "stop"
        if self._open is None and not self._index:
            yield from self._next(OpenMessage())  # an answer without a word is an empty message
        yield from self._close("completed" if whole else "incomplete")
        self.response["status"] = "completed" if whole else "incomplete"
        if not whole:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}

    async def last(self, model: InUse, usage: Usage) -> Iterable[Json]:
        """The whole response."""
        self.response["usage"] = response_usage(usage)
        self.response["completed_at"] = now() if self.response["status"] == "completed" else None
        self._done(self.response)
        return [self._whole_event(self.response["status"])]

    def failed(self, problem: Problem) -> list[Json]:
        """The failed response, then the error in the form that clients raise, and in the form of the reference."""
        told = problem.body("openai")["error"]
        code = _ERROR_CODES.get(problem.status("openai"), "server_error")
        self.response |= {"status": "failed", "error": {"code": code, "message": told["message"]}}
        failed = self._whole_event("failed")
        self._sequence += 1
        about = {"code": told["code"], "message": told["message"], "param": told["param"]}
        return [failed, {"type": "error", "sequence_number": self._sequence - 1, **about, "error": told}]

    def whole(self, objects: list[Json], usage: Usage) -> Json:
        """The response."""
        return self.response

    def _next(self, item: OpenItem) -> Iterator[Json]:
        yield from self._close("completed")
        self._open = item
        yield from self._steps(item.open())

    def _more(self, text: str, rows: list[Item]) -> Iterator[Json]:
        if self._open is not None:
            yield from self._steps(self._open.add(text, rows))

    def _close(self, status: str) -> Iterator[Json]:
        if self._open is None:
            return
        item = self._open
        yield from self._steps(item.close(status))
        self.response["output"].append(item.item)
        self._open = None
        self._index += 1

    def _steps(self, steps: Iterator[Step]) -> Iterator[Json]:
        assert self._open is not None
        identity = self._open.item["id"]
        for kind, fields in steps:
            about: dict[str, Any] = {} if "item" in fields else {"item_id": identity}
            yield self._event(kind, **about, output_index=self._index, **fields)

    def _whole_event(self, kind: str) -> Json:
        return self._event(kind, response=self.response | {"output": list(self.response["output"])})

    def _event(self, kind: str, **fields: Any) -> Json:
        self._sequence += 1
        return {"type": f"response.{kind}", "sequence_number": self._sequence - 1, **fields}


def response_usage(usage: Usage) -> Json:
    """The `usage` object: tokens that were not found in the cache are written to it."""
    drafted = predicted(usage.drafted, usage.accepted) if usage.drafted else {}
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.prompt - usage.cached},
        "output_tokens": usage.answer,
        "output_tokens_details": {"reasoning_tokens": usage.thinking, **drafted},
        "total_tokens": usage.prompt + usage.answer,
    }
