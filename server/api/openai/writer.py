"""OpenAI's answers: chunks of a stream, and whole completions."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from registry.store.catalog import Model
from runtime.messages import CallDelta, Delta, Finished, Started, TokenLogprob
from server.api.calls import call_id
from server.api.logprobs import logprob_rows
from server.api.openai.bodies import CompletionFields
from server.api.openai.moments import now
from server.api.openai.tools import Kind, ToolSet, full_name, text_input
from server.api.request import InUse
from server.api.respond import AnswerWriter, Json, Usage, predicted
from server.api.timings import AnswerTimings
from server.http.problems import Dialect
from server.http.wire import EVENTS, StreamForm


class OpenAIWriter(AnswerWriter):
    """The part that both routes share; subclasses name their kinds of object, and make the choices."""

    dialect: Dialect = "openai"
    form: StreamForm = EVENTS
    prefix: str
    chunk_kind: str
    whole_kind: str

    def __init__(self, body: CompletionFields, model: Model, warning: str) -> None:
        self._warning = {"warning": warning} if warning else {}
        self._told = False
        self._wants_usage = body.wants_usage
        self._times = AnswerTimings(body.timings_per_token)
        self._id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._about = {
            "created": now(),
            "model": body.model,
            "system_fingerprint": f"lm-{model.digest[:12]}",
        }

    @abstractmethod
    def whole_choice(self, index: int, choices: list[Json]) -> Json:
        """One choice, joined from the choices of its chunks."""

    def chunk(self, choice: Json) -> Json:
        """One event of a stream; the first one has the `warning` too."""
        event = self._head(self.chunk_kind) | {"choices": [choice]} | ({"usage": None} if self._wants_usage else {})
        event |= self._times.shown(choice["index"]) | ({} if self._told else self._warning)
        self._told = True
        return event

    async def last(self, model: InUse, usage: Usage) -> Iterable[Json]:
        """The usage, in a chunk without choices, where the request wants it."""
        if not self._wants_usage:
            return []
        return [self._head(self.chunk_kind) | {"choices": [], "usage": usage_object(usage)}]

    def whole(self, objects: list[Json], usage: Usage) -> Json:
        """The completion in one piece."""
        choices: dict[int, list[Json]] = {}
        for chunk in objects:
            for choice in chunk["choices"]:
                choices.setdefault(choice["index"], []).append(choice)
        joined = [self.whole_choice(index, choices[index]) for index in sorted(choices)]
        about = self._times.shown(0) | self._warning
        return self._head(self.whole_kind) | {"choices": joined, "usage": usage_object(usage)} | about

    def _head(self, kind: str) -> Json:
        return {"id": self._id, "object": kind} | self._about


class OpenAIChatWriter(OpenAIWriter):
    """Chunks and completions of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    prompt_field = "messages"
    chunk_kind = "chat.completion.chunk"
    whole_kind = "chat.completion"

    def __init__(self, body: CompletionFields, model: Model, warning: str, tools: ToolSet) -> None:
        super().__init__(body, model, warning)
        self._about["service_tier"] = "default"
        self._tools = tools
        # The arguments so far of calls of custom tools, whose text comes whole.
        self._custom: dict[tuple[int, int], str] = {}
        # Answers with a call that is complete, and calls that broke, by their answers.
        self._called: set[int] = set()
        self._broken: set[tuple[int, int]] = set()

    def first(self, index: int, frame: Started) -> Iterable[Json]:
        """A chunk with the role."""
        self._times.start(index, frame)
        return [self._piece(index, {"role": "assistant", "content": ""})]

    def delta(self, index: int, frame: Delta) -> Iterable[Json]:
        """A chunk with text; thinking has the two names that clients know."""
        self._times.add(index, frame)
        key = {"reasoning_content": frame.text, "reasoning": frame.text}
        return [self._piece(index, key if frame.kind == "thinking" else {"content": frame.text}, frame.logprobs)]

    def call(self, index: int, frame: CallDelta) -> Iterable[Json]:
        """A chunk with more of a call; the text of one that breaks is content."""
        place = (index, frame.call)
        if frame.broken:
            self._broken.add(place)
            return [self._piece(index, {"content": frame.broken})]
        if frame.name and self._tools.client_name(frame.name).kind == "custom":
            self._custom[place] = ""
        if place in self._custom:
            self._custom[place] += frame.arguments
        if frame.ended:
            self._called.add(index)
            text = text_input(self._custom[place]) if place in self._custom else ""
            return [self._call(index, frame, "custom", {"input": text})] if text else []
        if place in self._custom:
            return [self._call(index, frame, "custom", {"input": ""})] if frame.name else []
        return [self._call(index, frame, "function", {"arguments": frame.arguments})]

    def _call(self, index: int, frame: CallDelta, kind: Kind, inner: Json) -> Json:
        """A chunk with a part of a call; the first one has the id and the name."""
        call: Json = {"index": frame.call}
        if frame.name:
            tool = self._tools.client_name(frame.name)
            inner["name"] = full_name(tool.name, tool.namespace)
            call |= {"id": frame.call_id or call_id(), "type": kind}
        return self._piece(index, {"tool_calls": [call | {kind: inner}]})

    def end(self, index: int, frame: Finished) -> Iterable[Json]:
        """A chunk with the reason to end."""
        self._times.finish(index, frame)
        called = index in self._called and frame.reason == "stop"
        return [self._piece(index, {}, reason="tool_calls" if called else frame.reason)]

    def whole_choice(self, index: int, choices: list[Json]) -> Json:
        """A choice with a message."""
        deltas = [choice["delta"] for choice in choices]
        text = "".join(delta.get("content", "") for delta in deltas)
        rows = [row for choice in choices if choice["logprobs"] for row in choice["logprobs"]["content"]]
        message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        if thinking := "".join(delta.get("reasoning", "") for delta in deltas):
            message |= {"reasoning_content": thinking, "reasoning": thinking}
        if calls := self._whole_calls(index, deltas):
            message |= {"tool_calls": calls, "content": text or None}
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": rows, "refusal": None} if rows else None,
            "finish_reason": choices[-1]["finish_reason"],
        }

    def _whole_calls(self, index: int, deltas: list[Json]) -> list[Json]:
        """The complete calls of an answer; the broken ones are in its text."""
        calls: dict[int, Json] = {}
        for part in (part for delta in deltas for part in delta.get("tool_calls", [])):
            kind: Kind = "custom" if "custom" in part else "function"
            field = "input" if kind == "custom" else "arguments"
            if part["index"] not in calls:
                inner = {"name": part[kind]["name"], field: ""}
                calls[part["index"]] = {"id": part["id"], "type": kind, kind: inner}
            calls[part["index"]][kind][field] += part[kind][field]
        return [call for number, call in calls.items() if (index, number) not in self._broken]

    def _piece(
        self, index: int, delta: Json, rows: list[TokenLogprob] | None = None, reason: str | None = None
    ) -> Json:
        logprobs = {"content": logprob_rows(rows), "refusal": None} if rows else None
        return self.chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})


class OpenAITextWriter(OpenAIWriter):
    """Chunks and completions of `/v1/completions`."""

    prefix = "cmpl"
    chunk_kind = whole_kind = "text_completion"

    def __init__(self, body: CompletionFields, model: Model, warning: str) -> None:
        super().__init__(body, model, warning)
        self._offsets: dict[int, TokenOffset] = {}

    def first(self, index: int, frame: Started) -> Iterable[Json]:
        """A chunk without text."""
        self._times.start(index, frame)
        self._offsets[index] = TokenOffset()
        return [self._piece(index)]

    def delta(self, index: int, frame: Delta) -> Iterable[Json]:
        """A chunk with text."""
        self._times.add(index, frame)
        offset = self._offsets[index].advance(frame)
        logprobs = text_logprobs(frame.logprobs, offset) if frame.logprobs else None
        return [self._piece(index, frame.text, logprobs)]

    def end(self, index: int, frame: Finished) -> Iterable[Json]:
        """A chunk with the reason to end."""
        self._times.finish(index, frame)
        return [self._piece(index, reason=frame.reason)]

    def whole_choice(self, index: int, choices: list[Json]) -> Json:
        """A choice with text."""
        columns = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        joined = {key: [entry for each in columns for entry in each[key]] for key in columns[0]} if columns else None
        text = "".join(choice["text"] for choice in choices)
        return {"index": index, "text": text, "logprobs": joined, "finish_reason": choices[-1]["finish_reason"]}

    def _piece(self, index: int, text: str = "", logprobs: Json | None = None, reason: str | None = None) -> Json:
        return self.chunk({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})


@dataclass
class TokenOffset:
    """Where in an answer's text the next token with probabilities stands, in characters.

    The prompt counts where it is repeated in front of the answer. Text of the answer that stop strings hold back
    arrives late, so offsets count the tokens' own lengths.
    """

    at: int = 0

    def advance(self, frame: Delta) -> int:
        """The offset of the first token of `frame`."""
        at = self.at
        self.at += len(frame.text) if frame.kind == "prompt" else sum(map(_letters, frame.logprobs))
        return at


def usage_object(usage: Usage) -> Json:
    """The `usage` object."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.thinking,
            "audio_tokens": 0,
            **predicted(usage.drafted, usage.accepted),
        },
    }


def text_logprobs(rows: list[TokenLogprob], start: int) -> Json:
    """The `logprobs` object of a text choice; the first token stands at `start` of the text."""
    offsets = [start]
    for row in rows:
        offsets.append(offsets[-1] + _letters(row))
    return {
        "tokens": [_label(row.token, row.raw) for row in rows],
        "token_logprobs": [row.logprob for row in rows],
        "top_logprobs": [_best(row) if row.logprob is not None else None for row in rows],
        "text_offset": offsets[:-1],
    }


def _best(row: TokenLogprob) -> dict[str, float]:
    """The alternatives by their texts. Where two have the same text, it stands for the more probable one."""
    best: dict[str, float] = {}
    for token, _, value, raw in row.top:  # the most probable first
        best.setdefault(_label(token, raw), value)
    return best


def _label(token: str, raw: bytes) -> str:
    """A token's text; of a part of a character the bytes, as OpenAI wrote them: `bytes:\\xe2\\x80`."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return f"bytes:{repr(raw)[2:-1]}"
    return token


def _letters(row: TokenLogprob) -> int:
    """Characters that a token adds to the text; a control token adds none."""
    return len(row.raw.decode(errors="replace"))
