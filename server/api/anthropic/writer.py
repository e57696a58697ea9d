"""Anthropic's answers: events of a stream, and whole messages.

The input of a tool is told when it is complete, so that a call that breaks is text; a tool with `eager_input_streaming`
gets it as it is written. The signature of a thinking is a digest of it, or brings back a thinking that is not shown.
Tokens that are read anew are told as written to the cache where the request marks a part of its prompt for it: every
prompt is kept.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable

from runtime.messages import CallDelta, Delta, Finished, Started
from server.api.anthropic.blocks import carried
from server.api.anthropic.bodies import MessagesFields
from server.api.calls import call_id
from server.api.request import InUse
from server.api.respond import AnswerWriter, Json, Usage, predicted
from server.http.problems import Dialect, Problem
from server.http.wire import NAMED_EVENTS, StreamForm

_PING: Json = {"type": "ping"}


class AnthropicWriter(AnswerWriter):
    """Events and messages of `/v1/messages`."""

    dialect: Dialect = "anthropic"
    form: StreamForm = NAMED_EVENTS
    prompt_field = "messages"

    def __init__(
        self, body: MessagesFields, most: int, eager: Collection[str], *, request_id: str, warning: str
    ) -> None:
        """The answer has at most `most` tokens; tools of the names `eager` get their input as it is written."""
        self._request_id = request_id
        self.sign = _PING
        self._body = body
        self._marked = body.wants_cache
        self._most = most
        self._eager = eager
        self._warning = {"warning": warning} if warning else {}
        self._blocks = 0
        self._open = ""  # the type of the block that is being written
        self._thinking: list[str] = []
        self._thinking_tokens = 0
        self._called = False
        # Calls that are not complete yet.
        self._calls: defaultdict[int, list[CallDelta]] = defaultdict(list)

    def first(self, index: int, frame: Started) -> Iterable[Json]:
        """The message without content, and a sign of life as the service sends it."""
        usage = self._usage(frame.prompt_tokens, frame.cached)
        written = {"ephemeral_5m_input_tokens": usage["cache_creation_input_tokens"], "ephemeral_1h_input_tokens": 0}
        message: Json = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self._body.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": usage | {"cache_creation": written, "output_tokens": 0, "service_tier": "standard"},
        }
        return [{"type": "message_start", "message": message | self._warning}, _PING]

    def delta(self, index: int, frame: Delta) -> Iterable[Json]:
        """More of a text or of a thinking."""
        if not frame.text:
            return []
        if frame.kind != "thinking":
            start = self._begin("text", {"text": ""})
            return [*start, self._delta({"type": "text_delta", "text": frame.text})]
        self._thinking_tokens += frame.tokens
        start = self._begin("thinking", {"thinking": "", "signature": ""})
        self._thinking.append(frame.text)
        if self._body.hides_thinking:
            return start
        return [*start, self._delta({"type": "thinking_delta", "thinking": frame.text})]

    def call(self, index: int, frame: CallDelta) -> Iterable[Json]:
        """A call that is complete, or more of an eager one; the text of one that breaks is text."""
        parts = self._calls[frame.call]
        parts.append(frame)
        events: list[Json] = []
        if parts[0].name in self._eager:
            events = self._piece(frame)
        elif frame.ended:
            for part in parts:
                events += self._piece(part)
        if frame.ended:
            self._called = True
        if frame.broken:
            broken = Delta(frame.id, frame.broken, 0, frame.index)
            events += [*self._close(), *self.delta(index, broken)]
        if frame.ended or frame.broken:
            del self._calls[frame.call]
        return events

    def end(self, index: int, frame: Finished) -> Iterable[Json]:
        """The end of the last block, the reason and the usage."""
        stopped = frame.stop if frame.stop in (self._body.stop_sequences or []) and not self._called else ""
        details: Json = {"thinking_tokens": self._thinking_tokens}
        if frame.drafted:
            details |= predicted(frame.drafted, frame.accepted)
        usage = self._usage(frame.prompt_tokens, frame.cached) | {"output_tokens": frame.answer_tokens}
        delta: Json = {
            "stop_reason": "stop_sequence" if stopped else self._reason(frame),
            "stop_sequence": stopped or None,
            "stop_details": None,
        }
        told: Json = {"type": "message_delta", "delta": delta, "usage": usage | {"output_tokens_details": details}}
        return [*self._close(), told]

    async def last(self, model: InUse, usage: Usage) -> Iterable[Json]:
        """The last event."""
        return [{"type": "message_stop"}]

    def failed(self, problem: Problem) -> list[Json]:
        """An error with the id of its request."""
        return [problem.body(self.dialect, self._request_id)]

    def whole(self, objects: list[Json], usage: Usage) -> Json:
        """The message in one piece."""
        message: Json = {}
        blocks: list[Json] = []
        inputs: defaultdict[int, str] = defaultdict(str)
        for event in objects:
            match event["type"]:
                case "message_start":
                    message = event["message"]
                case "content_block_start":
                    blocks.append(event["content_block"])
                case "content_block_delta":
                    delta = event["delta"]
                    if delta["type"] == "input_json_delta":
                        inputs[event["index"]] += delta["partial_json"]
                        continue
                    key = delta["type"].removesuffix("_delta")
                    blocks[event["index"]][key] += delta[key]
                case "message_delta":
                    message |= event["delta"] | {"usage": message["usage"] | event["usage"]}
        for number, text in inputs.items():
            blocks[number]["input"] = json.loads(text)
        return message | {"content": blocks}

    def _piece(self, frame: CallDelta) -> list[Json]:
        """The events of a call's frame as it stands."""
        events: list[Json] = []
        if frame.name:
            block = {"id": frame.call_id or call_id(), "name": frame.name, "input": {}}
            events += [*self._close(), *self._begin("tool_use", block)]
        if frame.arguments:
            events.append(self._delta({"type": "input_json_delta", "partial_json": frame.arguments}))
        return [*events, *(self._close() if frame.ended else [])]

    def _reason(self, frame: Finished) -> str:
        if frame.reason == "length":
            return "max_tokens" if frame.answer_tokens >= self._most else "model_context_window_exceeded"
        return "tool_use" if self._called else "end_turn"

    def _begin(self, kind: str, block: Json) -> list[Json]:
        """The events before a piece of a block of this kind: none where one is being written."""
        if self._open == kind:
            return []
        closed = self._close()
        self._open = kind
        return [
            *closed,
            {"type": "content_block_start", "index": self._blocks, "content_block": {"type": kind} | block},
        ]

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._blocks, "delta": delta}

    def _close(self) -> list[Json]:
        """The events at the end of the block that is being written, none where none is."""
        if not self._open:
            return []
        events: list[Json] = []
        if self._open == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": self._signature()}))
        events.append({"type": "content_block_stop", "index": self._blocks})
        self._open = ""
        self._blocks += 1
        return events

    def _signature(self) -> str:
        thinking = "".join(self._thinking)
        self._thinking.clear()
        if self._body.hides_thinking:
            return carried(thinking)
        return hashlib.sha256(thinking.encode()).hexdigest()

    def _usage(self, prompt: int, cached: int) -> Json:
        """The counts of the prompt's tokens."""
        fresh = prompt - cached
        written = fresh if self._marked else 0
        return {
            "input_tokens": fresh - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": cached,
        }
