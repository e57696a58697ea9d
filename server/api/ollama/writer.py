"""Ollama's answers: lines of JSON, of which the last has `done: true`.

Durations are nanoseconds. Beside Ollama's keys, `truncated` counts the prompt tokens that were dropped to fit, out of
`prompt_total`. `num_ctx` is there when the context is smaller than the one asked for. `context_reason` says what the
context means for answers, where that matters and the request loaded the model. `warning` names the fields and options
that were passed over. `draft_n` counts the tokens that were drafted, and `draft_n_accepted` the drafted tokens that the
answer has; the names are llama-server's.
"""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from runtime.messages import CallDelta, Delta, Finished, Started
from server.api.calls import call_id
from server.api.logprobs import logprob_rows
from server.api.ollama.bodies import AnswerBody
from server.api.request import InUse
from server.api.respond import AnswerWriter, Json, Usage
from server.http.problems import Dialect
from server.http.wire import NDJSON, StreamForm


class OllamaWriter(AnswerWriter):
    """The part that `/api/generate` and `/api/chat` share."""

    dialect: Dialect = "ollama"
    form: StreamForm = NDJSON

    def __init__(self, body: AnswerBody, warning: str) -> None:
        self._body = body
        self._warning = warning
        self._begun = asyncio.get_running_loop().time()
        self._figures: Json = {}
        self._reason = ""
        # Calls that are not complete yet: the first frame, and the text of the arguments.
        self._calls: defaultdict[int, list[CallDelta]] = defaultdict(list)

    @abstractmethod
    def content(self, text: str, **more: Any) -> Json:
        """The keys that carry an answer's text, and what else is given of its message."""

    @abstractmethod
    def message_of(self, line: Json) -> Json:
        """The part of a line that `content` made."""

    def delta(self, index: int, frame: Delta) -> Iterable[Json]:
        """One line."""
        rows = {"logprobs": logprob_rows(frame.logprobs)} if frame.logprobs else {}
        return [self._line("", rows, thinking=frame.text) if frame.kind == "thinking" else self._line(frame.text, rows)]

    def call(self, index: int, frame: CallDelta) -> Iterable[Json]:
        """One line for a call that is complete; the text of one that breaks is content."""
        if frame.broken:
            del self._calls[frame.call]
            return [self._line(frame.broken, {})]
        parts = self._calls[frame.call]
        parts.append(frame)
        if not frame.ended:
            return []
        arguments = json.loads("".join(part.arguments for part in parts))
        function = {"index": frame.call, "name": parts[0].name, "arguments": arguments}
        return [self._line("", {}, tool_calls=[{"id": parts[0].call_id or call_id(), "function": function}])]

    def first(self, index: int, frame: Started) -> Iterable[Json]:
        """Nothing: the last line tells how much of the prompt was dropped."""
        if frame.truncated:
            self._figures["truncated"] = frame.truncated
            self._figures["prompt_total"] = frame.prompt_tokens + frame.truncated
        return []

    def end(self, index: int, frame: Finished) -> Iterable[Json]:
        """Nothing: the last line has the figures."""
        self._reason = frame.reason
        self._figures |= {
            "prompt_eval_count": frame.prompt_tokens,
            "prompt_eval_duration": frame.prompt_ns,
            "eval_count": frame.answer_tokens,
            "eval_duration": frame.answer_ns,
            "prompt_cached": frame.cached,
        }
        if frame.drafted:
            self._figures |= {"draft_n": frame.drafted, "draft_n_accepted": frame.accepted}
        return []

    async def last(self, model: InUse, usage: Usage) -> Iterable[Json]:
        """The last line."""
        return [self.done(self._reason, {"load_duration": model.load_ns} | self._figures | self.remarks(model))]

    def loaded(self, model: InUse) -> Json:
        """The only line, where the model was loaded and there is nothing to answer."""
        return self.done("load", {"load_duration": model.load_ns} | self.remarks(model))

    def rendered(self, text: str) -> Json:
        """The only line, where the prompt is asked for, and no answer."""
        return self._line("", {"_debug_info": {"rendered_template": text}} | self._warned())

    def remarks(self, model: InUse) -> Json:
        """Whatever of the request's options is not as the client wanted it."""
        remarks: Json = {}
        wanted = self._body.context
        if wanted is not None and wanted > model.worker.context:
            remarks["num_ctx"] = model.worker.context
        if model.context_reason:
            remarks["context_reason"] = model.context_reason
        return remarks | self._warned()

    def whole(self, objects: list[Json], usage: Usage) -> Json:
        """The last line with the text and the probabilities of the lines before it."""
        messages = [self.message_of(line) for line in objects]
        thinking = "".join(message.get("thinking", "") for message in messages)
        calls = [call for message in messages for call in message.get("tool_calls", [])]
        more = ({"thinking": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
        text = "".join(str(message.get("content", message.get("response"))) for message in messages)
        last = objects[-1] | self.content(text, **more)
        rows = [row for line in objects for row in line.get("logprobs", [])]
        return last | {"logprobs": rows} if rows else last

    def done(self, reason: str, figures: Json) -> Json:
        """A last line; also the only one, where there is nothing to answer."""
        elapsed = round((asyncio.get_running_loop().time() - self._begun) * 1e9)
        return self._line("", {"done": True, "done_reason": reason, "total_duration": elapsed} | figures)

    def _warned(self) -> Json:
        return {"warning": self._warning} if self._warning else {}

    def _line(self, text: str, more: Json, **message: Any) -> Json:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        line = {"model": self._body.model_name, "created_at": now} | self.content(text, **message)
        return line | {"done": False} | more


class OllamaChatWriter(OllamaWriter):
    """Lines of `/api/chat`."""

    def content(self, text: str, **more: Any) -> Json:
        """A message of the assistant."""
        return {"message": {"role": "assistant", "content": text} | more}

    def message_of(self, line: Json) -> Json:
        """The message."""
        return dict(line["message"])


class GenerateWriter(OllamaWriter):
    """Lines of `/api/generate`; the last has `context`: the token ids of the conversation, as they were computed."""

    def content(self, text: str, **more: Any) -> Json:
        """The bare text, with the rest beside it."""
        return {"response": text} | more

    def message_of(self, line: Json) -> Json:
        """The line itself."""
        return line

    def end(self, index: int, frame: Finished) -> Iterable[Json]:
        """Nothing: the last line has the figures."""
        if frame.ids:
            self._figures["context"] = frame.ids
        return super().end(index, frame)
