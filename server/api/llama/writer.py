"""llama-server's answers: pieces of `content`, and for each answer a last object with figures and settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from registry.store.catalog import Model
from runtime.messages import CallDelta, Delta, Finished, Started, Submit, Tokenize, TokenLogprob
from runtime.options import Sampling
from server.api.logprobs import logprob_rows
from server.api.request import InUse
from server.api.respond import AnswerWriter, Json, Usage
from server.api.timings import AnswerTimings, timings
from server.http.problems import Dialect
from server.http.wire import EVENTS, StreamForm

_STOPS = {"length": "limit", "cancelled": "none"}
# Settings of llama-server's samplers that are not here: they are off.
_ABSENT = {
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "adaptive_target": -1.0,
    "adaptive_decay": 0.9,
    "n_keep": 0,
    "n_discard": 0,
    "min_keep": 0,
    "post_sampling_probs": False,
    "lora": [],
}


@dataclass
class Answered:
    """One answer as far as it is known."""

    truncated: bool = False
    lines: bool = False
    """Whether its text has a line break."""
    end: Finished | None = None
    read: int = 0
    """Tokens of its prompt."""
    written: int = 0
    """Tokens of its text so far."""
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    rows: list[TokenLogprob] = field(default_factory=list)


class LlamaWriter(AnswerWriter):
    """The objects of `/completion` and `/infill`, for one answer or several."""

    dialect: Dialect = "llama"
    form: StreamForm = StreamForm(EVENTS.media, EVENTS.encode)

    def __init__(
        self,
        model: Model,
        submits: list[Submit],
        *,
        stream: bool,
        ids: bool,
        fields: list[str] | None,
        timed: bool | None,
        warning: str,
    ) -> None:
        """`ids` puts the tokens of an answer into a whole one; `fields` are the paths of the fields that are wanted.

        `timed` puts the times so far into every piece of a stream.
        """
        self._model, self._submits = model.name, submits
        self._stream, self._ids, self._fields = stream, ids, fields
        self._warning = {"warning": warning} if warning else {}
        self._timed, self._times = bool(timed), AnswerTimings(timed)
        self._several = len(submits) * submits[0].count > 1
        self._answers: dict[int, Answered] = {}
        self._prompts: list[str] = []

    def first(self, index: int, frame: Started) -> Iterable[Json]:
        """Nothing: the last object tells of the prompt."""
        self._times.start(index, frame)
        self._answers[index] = Answered(frame.truncated > 0, read=frame.prompt_tokens)
        return []

    def delta(self, index: int, frame: Delta) -> Iterable[Json]:
        """A piece of the text."""
        answer = self._answers[index]
        answer.lines = answer.lines or "\n" in frame.text
        answer.written += frame.tokens
        self._times.add(index, frame)
        if not self._stream:
            answer.text.append(frame.text)
            answer.ids += frame.ids
            answer.rows += frame.logprobs
            return []
        piece = {"index": index, "content": frame.text, "tokens": frame.ids, "stop": False, "id_slot": -1}
        piece |= {"tokens_predicted": answer.written, "tokens_evaluated": answer.read}
        rows = {"completion_probabilities": _probabilities(frame.logprobs)} if frame.logprobs else {}
        return [piece | rows | self._times.shown(index)]

    def call(self, index: int, frame: CallDelta) -> Iterable[Json]:
        """Nothing: no request of this dialect has tools."""
        return []

    def end(self, index: int, frame: Finished) -> Iterable[Json]:
        """Nothing: the last objects have the figures."""
        self._answers[index].end = frame
        return []

    async def last(self, model: InUse, usage: Usage) -> Iterable[Json]:
        """The last object of each answer."""
        if not self._fields or "prompt" in self._fields:
            await self._read_prompts(model)
        return [self._wanted(self._final(index)) for index in sorted(self._answers)]

    def whole(self, objects: list[Json], usage: Usage) -> Any:
        """The last object of the one answer, or a list of the last objects of all."""
        return objects if self._several else objects[0]

    async def _read_prompts(self, model: InUse) -> None:
        """Find the text of each prompt as the model read it, control tokens by their names."""
        ends = {index // self._submits[0].count: answer.end for index, answer in self._answers.items()}
        for number in sorted(ends):
            end = ends[number]
            ids = end.ids[: end.prompt_tokens] if end else []
            tokens = await model.worker.tokenize(Tokenize(0, text=[*ids], pieces=True))
            self._prompts.append(b"".join(tokens.pieces).decode(errors="replace"))
            await asyncio.sleep(0)

    def _final(self, index: int) -> Json:
        answer, number = self._answers[index], index // self._submits[0].count
        frame = answer.end
        assert frame is not None
        rows = {"completion_probabilities": _probabilities(answer.rows)} if answer.rows else {}
        return {
            "index": index,
            "content": "".join(answer.text),
            "tokens": answer.ids if self._ids else [],
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": frame.answer_tokens,
            "tokens_evaluated": frame.prompt_tokens,
            "generation_settings": settings(self._submits[number], stream=self._stream, timed=self._timed),
            "prompt": self._prompts[number] if self._prompts else "",
            "has_new_line": answer.lines,
            "truncated": answer.truncated,
            "stop_type": _STOPS.get(frame.reason, "word" if frame.stop else "eos"),
            "stopping_word": frame.stop,
            "tokens_cached": frame.cached,
            "timings": timings(frame),
            **rows,
            **self._warning,
        }

    def _wanted(self, whole: Json) -> Json:
        """The fields that the request wants, by their paths: `timings/prompt_n`."""
        if not self._fields:
            return whole
        found: Json = {}
        for path in self._fields:
            value: Any = whole
            for name in path.split("/"):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                found[path] = value
        return found


def settings(submit: Submit, *, stream: bool, timed: bool) -> Json:
    """`generation_settings`: how the answers to a request are made."""
    grammar = submit.grammar
    return default_settings(submit.sampling) | {
        "stop": submit.limits.stop,
        "max_tokens": submit.limits.max_tokens,
        "n_predict": submit.limits.max_tokens,
        "stream": stream,
        "timings_per_token": timed,
        "n_probs": max(submit.logprobs, 0),
        "grammar": grammar.text if grammar else "",
    }


def default_settings(sampling: Sampling) -> Json:
    """The settings of a request that has these sampling options and asks for nothing else."""
    options = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    options["logit_bias"] = [{"bias": bias, "token": token} for token, bias in sampling.logit_bias.items()]
    more = {"stop": [], "max_tokens": -1, "n_predict": -1, "stream": False, "n_probs": 0, "grammar": ""}
    more["timings_per_token"] = False
    return options | _ABSENT | more


def _probabilities(rows: list[TokenLogprob]) -> list[Json]:
    """As `logprob_rows`, with the id of each token."""
    found = []
    for row, shown in zip(rows, logprob_rows(rows), strict=True):
        shown["top_logprobs"] = [
            {"id": each[1]} | best for each, best in zip(row.top, shown["top_logprobs"], strict=True)
        ]
        found.append({"id": row.id} | shown)
    return found
