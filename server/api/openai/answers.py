"""OpenAI's `/v1/chat/completions` and `/v1/completions`, as its API reference describes them.

A prompt that is too long is refused with both numbers, never cut.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.messages import Submit
from runtime.options import MAX_ANSWERS, MAX_INT, MAX_MESSAGES
from server.api import options
from server.api.openai.bodies import CHAT_BODY, TEXT_BODY, CompletionFields
from server.api.openai.writer import OpenAIChatWriter, OpenAITextWriter
from server.api.request import refuse, require, resolve_model
from server.api.respond import Generation, respond
from server.http.wire import read_body

MAX_PROMPTS = 64
# OpenAI's own default on this route.
TEXT_TOKENS = 16


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`: the next turn of a conversation."""
    body = await read_body(request, CHAT_BODY)
    model = await resolve_model(request, body.model)
    kind = (body.response_format or {}).get("type", "text")
    refuse(tools=body.tools, functions=body.functions, response_format=kind != "text")
    refuse(modalities=[kind for kind in body.modalities or [] if kind != "text"])
    if not 0 < len(body.messages) <= MAX_MESSAGES:
        raise BadRequest(f"`messages` has {len(body.messages)} entries", f"send 1 to {MAX_MESSAGES}")
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    submit = _submit(model, body, most)
    submit.turns = [message.turn() for message in body.messages]
    submit.logprobs = options.alternatives(bool(body.logprobs), body.top_logprobs)
    return await respond(request, Generation(model, [submit], bool(body.stream)), OpenAIChatWriter(body, model))


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`: each prompt goes on as it is, without a template."""
    body = await read_body(request, TEXT_BODY)
    model = await resolve_model(request, body.model)
    refuse(suffix=body.suffix, best_of=(body.best_of or 1) > (body.n or 1))
    submits = []
    for prompt in _prompts(body.prompt):
        submit = _submit(model, body, TEXT_TOKENS if body.max_tokens is None else body.max_tokens)
        submit.prompt, submit.parse_special, submit.echo = prompt, True, bool(body.echo)
        submit.logprobs = options.alternatives(body.logprobs is not None, body.logprobs)
        submits.append(submit)
    return await respond(request, Generation(model, submits, bool(body.stream)), OpenAITextWriter(body, model))


def _submit(model: Model, body: CompletionFields, most: int | None) -> Submit:
    require(model, "completion")
    count = 1 if body.n is None else body.n
    if not 1 <= count <= MAX_ANSWERS:
        raise BadRequest(f"`n` is {count}", f"ask for 1 to {MAX_ANSWERS} answers")
    if most is not None and most < 0:
        raise BadRequest(f"`max_tokens` is {most}", "send 0 or more, or leave it out")
    return Submit(
        id=0,
        sampling=options.sampling(model.params, options.sampling_fields(body)),
        limits=options.limits(model.params, {"num_predict": most, "stop": body.stop}),
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
