"""OpenAI's `/v1/models`, `/v1/chat/completions` and `/v1/completions`.

Shapes as in OpenAI's API reference: server-sent events end in `[DONE]`, an error in mid-stream is an event with
`error`, the usage chunk has no choices. A prompt that is too long is refused with both numbers, never cut.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from registry.store.catalog import Model
from runtime.conversation import Text, Turn
from runtime.errors import BadRequest
from runtime.messages import Delta, Finished, Started, Submit
from runtime.options import MAX_ANSWERS, MAX_INT, MAX_MESSAGES
from server.api import options
from server.api.openai.shapes import Choices, Offset, Usage, chat_logprobs, text_logprobs
from server.api.request import LOG_NOTE, hold, named, refuse, require
from server.http.problems import Problem
from server.http.wire import Stream, read_body, reply
from server.services import SERVICES

MAX_PROMPTS = 64


class StreamOptions(msgspec.Struct):
    """What a stream carries beside text."""

    include_usage: bool | None = None


class Asked(msgspec.Struct, kw_only=True):
    """The fields that both routes share, but those about sampling."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    max_tokens: int | None = None


class Part(msgspec.Struct):
    """A piece of a message's content."""

    type: str
    text: str | None = None


class Message(msgspec.Struct):
    """One turn of a conversation."""

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None

    def turn(self) -> Turn:
        """The turn; raises Unsupported unless it is text alone."""
        parts = self.content if isinstance(self.content, list) else [Part("text", self.content or "")]
        other = next((part.type for part in parts if part.type != "text"), "")
        refuse(tool_calls=self.tool_calls, **({other: True} if other else {}))
        role = "system" if self.role == "developer" else self.role
        return Turn(role, [Text(part.text or "") for part in parts])


class ChatBody(Asked, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None


class CompletionBody(Asked, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None


_ChatBody = options.with_sampling(ChatBody)
_CompletionBody = options.with_sampling(CompletionBody)


@dataclass
class Plan:
    """Some answers to make: what to submit, one after the other, and how they are presented."""

    model: Model
    body: Asked
    submits: list[Submit]
    chat: bool
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One event of a stream."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._about(kind) | {"choices": choices} | more

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        kind = "chat.completion" if self.chat else "text_completion"
        return self._about(kind) | {"choices": choices, "usage": usage}

    def _about(self, kind: str) -> dict[str, Any]:
        about = {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}
        return about | {"system_fingerprint": f"lm-{self.model.digest[:12]}"}


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`: all models."""
    found = await request.app[SERVICES].library.models()
    return reply({"object": "list", "data": [_entry(model) for model in found if not model.problem]})


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`: one model."""
    name = request.match_info["id"]
    found = await request.app[SERVICES].library.resolve(name)
    return reply(_entry(found) | {"id": name})


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`: the next turn of a conversation."""
    body = await read_body(request, _ChatBody)
    model = await named(request, body.model)
    kind = (body.response_format or {}).get("type", "text")
    refuse(tools=body.tools, functions=body.functions, response_format=kind != "text")
    refuse(modalities=[kind for kind in body.modalities or [] if kind != "text"])
    if not 0 < len(body.messages) <= MAX_MESSAGES:
        raise BadRequest(f"`messages` has {len(body.messages)} entries", f"send 1 to {MAX_MESSAGES}")
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    submit = _submit(model, body, most)
    submit.turns = [message.turn() for message in body.messages]
    submit.logprobs = options.alternatives(bool(body.logprobs), body.top_logprobs)
    return await _respond(request, Plan(model, body, [submit], chat=True))


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`: each prompt goes on as it is, without a template."""
    body = await read_body(request, _CompletionBody)
    model = await named(request, body.model)
    refuse(suffix=body.suffix, best_of=(body.best_of or 1) > (body.n or 1))
    submits = []
    for prompt in _prompts(body.prompt):
        submit = _submit(model, body, 16 if body.max_tokens is None else body.max_tokens)
        submit.prompt, submit.parse_special, submit.echo = prompt, True, bool(body.echo)
        submit.logprobs = options.alternatives(body.logprobs is not None, body.logprobs)
        submits.append(submit)
    return await _respond(request, Plan(model, body, submits, chat=False))


def _submit(model: Model, body: Asked, most: int | None) -> Submit:
    require(model, "completion")
    asked = {"num_predict": most, "stop": body.stop}
    count = 1 if body.n is None else body.n
    if not 1 <= count <= MAX_ANSWERS:
        raise BadRequest(f"`n` is {count}", f"ask for 1 to {MAX_ANSWERS} answers")
    if most is not None and most < 0:
        raise BadRequest(f"`max_tokens` is {most}", "send 0 or more, or leave it out")
    return Submit(
        id=0,
        sampling=options.sampling(model.params, options.asked_of(body)),
        limits=options.limits(model.params, asked),
        count=count,
    )


def _prompts(given: str | list[str | int | list[int]] | None) -> list[str | list[int]]:
    """The prompts one by one: a text, token ids, or a list of either; raises BadRequest."""
    if given is None:
        raise BadRequest("`prompt` is missing", "send a text or token ids")
    found: list[Any] = [given] if isinstance(given, str) or all(isinstance(entry, int) for entry in given) else given
    if not 0 < len(found) <= MAX_PROMPTS or found == [[]]:
        raise BadRequest("`prompt` is empty or has too many entries", f"send 1 to {MAX_PROMPTS} prompts")
    for prompt in found:
        ids = prompt if isinstance(prompt, list) else []
        if isinstance(prompt, int) or not all(0 <= token <= MAX_INT for token in ids):
            raise BadRequest("`prompt` mixes its forms, or holds a number that is no token id", "send one form")
    return found


async def _respond(request: web.Request, plan: Plan) -> web.StreamResponse:
    usage = Usage()
    frames = _frames(request, plan, usage)
    async with aclosing(frames):
        if not plan.body.stream:
            choices = Choices(plan.chat, len(plan.submits) * plan.submits[0].count)
            async for index, frame in frames:
                choices.add(index, frame)
            return reply(plan.whole(choices.whole(), usage.body()))
        stream = Stream(request, "sse")
        offsets: defaultdict[int, Offset] = defaultdict(Offset)
        try:
            async for index, frame in frames:
                await stream.send(plan.chunk([_piece(plan.chat, index, frame, offsets[index])]))
            if plan.body.stream_options and plan.body.stream_options.include_usage:
                await stream.send(plan.chunk([], usage=usage.body()))
            return await stream.end()
        except Exception as error:
            if not stream.started or isinstance(error, ConnectionError):
                raise
            return await stream.fail(Problem.of(error).body("openai"))


async def _frames(
    request: web.Request, plan: Plan, usage: Usage
) -> AsyncGenerator[tuple[int, Started | Delta | Finished]]:
    """The frames of all answers, each with the index of its choice."""
    async with hold(request.app[SERVICES], plan.model) as held:
        for number, submit in enumerate(plan.submits):
            first = number * submit.count
            async with held.frames(submit) as frames:
                async for frame in frames:
                    if isinstance(frame, Started):
                        usage.begin(frame)
                        for index in range(submit.count):
                            yield first + index, frame
                        continue
                    if isinstance(frame, Finished):
                        usage.end(frame)
                    yield first + frame.index, frame
    request[LOG_NOTE] += f" {usage.prompt}+{usage.answer} tokens"


def _piece(chat: bool, index: int, frame: Started | Delta | Finished, offset: Offset) -> dict[str, Any]:
    """The one choice of a chunk; offsets of tokens run on from chunk to chunk."""
    reason = frame.reason if isinstance(frame, Finished) else None
    text = frame.text if isinstance(frame, Delta) else ""
    rows = frame.logprobs if isinstance(frame, Delta) else []
    if not chat:
        start = offset.take(frame) if isinstance(frame, Delta) else 0
        logprobs = text_logprobs(rows, start) if rows else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
    delta: dict[str, Any] = {"content": text} if isinstance(frame, Delta) else {}
    if isinstance(frame, Started):
        delta = {"role": "assistant", "content": ""}
    logprobs = chat_logprobs(rows) if rows else None
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _entry(model: Model) -> dict[str, Any]:
    owner = model.key.namespace if "/" in model.name else "library"
    return {"id": model.name, "object": "model", "created": int(model.modified.timestamp()), "owned_by": owner}
