"""Ollama's `/api/generate` and `/api/chat`.

Shapes as in Ollama's `docs/api.md`: newline-delimited JSON whose last line has `done: true` or `error`, durations in
nanoseconds. Beside Ollama's keys, `truncated` counts prompt tokens that were dropped to fit, of `prompt_total`, and
`num_ctx` is there when the context is smaller than what was asked for. What cannot be honoured is refused, never passed
over; only options that do not exist are, as Ollama does it, and `warning` says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from registry.store.catalog import Model
from runtime.conversation import Turn
from runtime.errors import BadRequest
from runtime.messages import Delta, Finished, Started, Submit, Tokenize, TokenLogprob
from runtime.options import MAX_MESSAGES
from server.api import options
from server.api.ollama.models import Named
from server.api.openai.shapes import chat_logprobs
from server.api.request import LOG_NOTE, Held, hold, named, refuse, require
from server.config import duration
from server.http.problems import Problem
from server.http.wire import Stream, read_body, reply
from server.services import SERVICES


class Asked(Named):
    """The fields that generate, chat and embed share."""

    options: dict[str, Any] | None = None
    keep_alive: str | int | float | None = None

    @property
    def stays(self) -> float | None:
        """Seconds to stay loaded, None where nothing was said; raises BadRequest."""
        if self.keep_alive is None:
            return None
        try:
            return duration(self.keep_alive)
        except ValueError:
            shown = str(self.keep_alive)[:40]
            raise BadRequest(
                f"`keep_alive` is no duration: `{shown}`", 'send seconds, or a text such as "5m"'
            ) from None


class AskedText(Asked):
    """The fields that generate and chat share."""

    format: Any = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class Generate(AskedText):
    """The body of `/api/generate`."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class Message(msgspec.Struct):
    """One turn of a conversation."""

    role: str
    content: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Any] | None = None

    def turn(self) -> Turn:
        """The turn; raises Unsupported unless it is text alone."""
        refuse(images=self.images, tool_calls=self.tool_calls)
        return Turn.of(self.role.lower(), self.content or "")


class Chat(AskedText):
    """The body of `/api/chat`."""

    messages: list[Message] = msgspec.field(default_factory=list)
    tools: list[Any] | None = None


@dataclass
class Plan:
    """One answer to make: what to submit, and how its text is called in the answer's lines."""

    model: Model
    body: AskedText
    submit: Submit
    chat: bool
    begun: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def line(self, text: str = "", **more: Any) -> dict[str, Any]:
        """One line of the answer."""
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        return {"model": self.body.wanted, "created_at": now, **content, "done": False, **more}

    def last(self, reason: str, **more: Any) -> dict[str, Any]:
        """The last line of the answer."""
        return self.line(done=True, done_reason=reason, total_duration=self.elapsed(), **more)

    def elapsed(self) -> int:
        """Nanoseconds since the request came in."""
        return round((asyncio.get_running_loop().time() - self.begun) * 1e9)


async def generate(request: web.Request) -> web.StreamResponse:
    """`POST /api/generate`: an answer to one prompt; without a prompt, load or unload the model."""
    body = await read_body(request, Generate)
    model = await named(request, body.wanted)
    refuse(suffix=body.suffix, template=body.template, images=body.images)
    if body.raw and (body.system or body.context):
        raise BadRequest("raw mode does not support system or context", "leave them out, or `raw`")
    plan = Plan(model, body, _submit(model, body), chat=False)
    if not body.prompt:
        return await _load_only(request, plan)
    require(model, "completion")
    if body.raw:
        plan.submit.prompt = body.prompt
        plan.submit.parse_special = True
    else:
        system = [Turn.of("system", body.system)] if body.system else []
        plan.submit.turns = [*system, Turn.of("user", body.prompt)]
    return await _respond(request, plan, body)


async def chat(request: web.Request) -> web.StreamResponse:
    """`POST /api/chat`: the next turn of a conversation; without messages, load or unload the model."""
    body = await read_body(request, Chat)
    model = await named(request, body.wanted)
    refuse(tools=body.tools)
    if len(body.messages) > MAX_MESSAGES:
        raise BadRequest(f"more than {MAX_MESSAGES} messages", "send fewer")
    plan = Plan(model, body, _submit(model, body), chat=True)
    if not body.messages:
        return await _load_only(request, plan)
    require(model, "completion")
    plan.submit.turns = [message.turn() for message in body.messages]
    return await _respond(request, plan, None)


def _submit(model: Model, body: AskedText) -> Submit:
    asked = body.options or {}
    refuse(format=body.format)
    if body.think:
        require(model, "thinking")
    return Submit(
        id=0,
        sampling=options.sampling(model.params, asked),
        limits=options.limits(model.params, asked),
        truncate=body.truncate is not False,
        shift=body.shift is True,
        logprobs=options.alternatives(bool(body.logprobs), body.top_logprobs),
    )


async def _load_only(request: web.Request, plan: Plan) -> web.Response:
    """Nothing to answer: load the model, or unload it where `keep_alive` is 0."""
    services = request.app[SERVICES]
    if plan.body.stays == 0:
        await services.pool.unload(plan.model)
        return reply(plan.last("unload"))
    async with hold(services, plan.model, options.context(plan.body.options or {}), plan.body.stays) as held:
        return reply(plan.last("load", load_duration=held.load_ns))


async def _respond(request: web.Request, plan: Plan, generated: Generate | None) -> web.StreamResponse:
    """Answer in a stream of lines, or with all of them joined; an error after the first line is the last line."""
    lines = _lines(request, plan, generated)
    async with aclosing(lines):
        if plan.body.stream is False:
            return reply(_joined([line async for line in lines], plan.chat))
        stream = Stream(request, "ndjson")
        try:
            async for line in lines:
                await stream.send(line)
            return await stream.end()
        except Exception as error:
            if not stream.started or isinstance(error, ConnectionError):
                raise
            return await stream.fail(Problem.of(error).body("ollama"))


async def _lines(request: web.Request, plan: Plan, generated: Generate | None) -> AsyncGenerator[dict[str, Any]]:
    asked = options.context(plan.body.options or {})
    async with hold(request.app[SERVICES], plan.model, asked, plan.body.stays) as held:
        prompt = await _rendered(held, plan, generated) if generated and not generated.raw else None
        text: list[str] = []
        more: dict[str, Any] = {"load_duration": held.load_ns}
        async with held.frames(plan.submit) as frames:
            async for frame in frames:
                match frame:
                    case Started():
                        more |= _cut(frame)
                    case Delta():
                        text.append(frame.text)
                        yield plan.line(frame.text, **_probabilities(frame.logprobs))
                    case Finished():
                        more |= _figures(frame)
                        reason = frame.reason
        if asked is not None and asked > held.worker.context:
            more["num_ctx"] = held.worker.context
        if warning := options.unknown(plan.body.options or {}):
            more["warning"] = warning
        if prompt is not None:
            more["context"] = prompt + await held.worker.tokenize(Tokenize(0, text="".join(text)))
        request[LOG_NOTE] += f" {more['prompt_eval_count']}+{more['eval_count']} tokens"
        yield plan.last(reason, **more)


async def _rendered(held: Held, plan: Plan, body: Generate) -> list[int]:
    """The prompt's token ids, which `context` of the answer needs, after those of the conversation so far."""
    ids = await held.worker.tokenize(Tokenize(0, turns=plan.submit.turns))
    plan.submit.turns = None
    plan.submit.prompt = [*(body.context or []), *ids]
    return plan.submit.prompt


def _cut(frame: Started) -> dict[str, Any]:
    """What was dropped of the prompt, and how long it was, where something was dropped."""
    if not frame.truncated:
        return {}
    return {"truncated": frame.truncated, "prompt_total": frame.prompt_tokens + frame.truncated}


def _figures(frame: Finished) -> dict[str, Any]:
    return {
        "prompt_eval_count": frame.prompt_tokens,
        "prompt_eval_duration": frame.prompt_ns,
        "eval_count": frame.answer_tokens,
        "eval_duration": frame.answer_ns,
        "prompt_cached": frame.cached,
    }


def _probabilities(rows: list[TokenLogprob]) -> dict[str, Any]:
    return {"logprobs": chat_logprobs(rows)["content"]} if rows else {}


def _joined(lines: list[dict[str, Any]], chat: bool) -> dict[str, Any]:
    """All lines as one: the last one with the text, and the probabilities, of those before it."""
    last = lines[-1]
    if chat:
        last["message"]["content"] = "".join(line["message"]["content"] for line in lines)
    else:
        last["response"] = "".join(line["response"] for line in lines)
    told = [row for line in lines for row in line.get("logprobs", [])]
    return last | {"logprobs": told} if told else last
