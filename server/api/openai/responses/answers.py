"""OpenAI's `/v1/responses`: an answer whole, streamed or in the background, and stored unless `store` is false."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from functools import partial

from aiohttp import web

from registry.store.catalog import Model
from runtime.conversation import Turn
from runtime.errors import BadRequest
from runtime.messages import Submit
from server.access.callers import caller_of
from server.access.gate import GATE
from server.api import options
from server.api.adapters import resolve_adapted
from server.api.calls import template_variables
from server.api.drafts import add_draft
from server.api.openai.responses.body import (
    ENCRYPTED,
    KNOWN,
    LOGPROBS,
    RESPONSE_BODY,
    CountedFields,
    ReasoningConfig,
)
from server.api.openai.responses.events import ResponseWriter
from server.api.openai.responses.items import Input, turns_of
from server.api.openai.responses.record import new_response
from server.api.openai.responses.store import RESPONSES, Background, StoredResponse
from server.api.openai.tools import ToolSet, choose, read_tools
from server.api.request import pass_over, read, require, require_roles, warning_of, with_instructions
from server.api.respond import Generation, Json, respond, unattended
from server.api.thinking import add_thinking, effort
from server.http.problems import Problem
from server.http.wire import Stream, reply
from server.loaded.wish import LoadWish

log = logging.getLogger("lm.requests")


async def responses(request: web.Request) -> web.StreamResponse:
    """`POST /v1/responses`: the next turn of a conversation."""
    body = await read(request, RESPONSE_BODY, KNOWN)
    if body.background and not body.keeps:
        raise BadRequest("`background` needs a stored response", "leave `store: false` out", "background")
    model, given, submit, tools = await asked(request, body)
    most = options.most_tokens("max_output_tokens", body.max_output_tokens)
    submit.sampling = options.sampling(model.params, options.sampling_fields(body))
    submit.limits = options.limits(model.params, {"num_predict": most, "stop": body.stop})
    submit.drafts = options.drafts(model.params, {"draft_num_predict": body.draft_num_predict})
    submit.grammar = body.grammar_of_answer
    if submit.grammar and submit.forced:
        raise BadRequest("`tool_choice` and a form of the answer exclude each other", "leave one out", "tool_choice")
    wants_rows = body.includes(LOGPROBS) or bool(body.top_logprobs)
    submit.logprobs = options.alternatives(wants_rows, body.top_logprobs)
    pass_over(request, body.passed_over)
    draft = await add_draft(request, model, body.draft, submit)
    response = new_response(body, model, submit, tools)
    if warning := warning_of(request):
        response["warning"] = warning
    stored = StoredResponse(caller_of(request).owner, response, given.items)
    writer = ResponseWriter(
        response,
        tools,
        partial(_keep, request, stored) if body.keeps else _forget,
        summary=bool(response["reasoning"]["summary"]),
        encrypted=body.includes(ENCRYPTED),
    )
    generation = Generation(model, [submit], bool(body.stream), LoadWish(draft=draft))
    if body.background:
        return await _in_background(request, generation, writer, stored)
    return await respond(request, generation, writer)


async def asked(request: web.Request, body: CountedFields) -> tuple[Model, Input, Submit, ToolSet]:
    """The model, the input, and the request that they make, without sampling and limits.

    Raises BadRequest, Unsupported, NoSuchObject, and as `resolve_adapted`.
    """
    store, owner = request.app[RESPONSES], caller_of(request).owner
    model, adapters = await resolve_adapted(request, body.model, body.adapters)
    require(model, "completion")
    given = Input(body.input, partial(store.item, owner))
    earlier = store.history(owner, body.previous_response_id) if body.previous_response_id else []
    told = [Turn.of("system", body.instructions)] if body.instructions else []
    turns = [*told, *turns_of([*earlier, *given.items])]
    if not turns:
        raise BadRequest("there is no `input`", "send a text or items", "input")
    tools = read_tools([*(body.tools or []), *given.tools])
    choice = choose(body.tool_choice, tools)
    submit = Submit(id=0, turns=with_instructions(model, turns), truncate=body.cuts, adapters=adapters)
    submit.tools, submit.forced = choice
    submit.template = model.own_template
    if submit.tools and not submit.forced:
        require(model, "tools")
    submit.single = body.parallel_tool_calls is False
    submit.variables = template_variables(body.chat_template_kwargs)
    wish = effort((body.reasoning or ReasoningConfig()).effort, "reasoning.effort")
    await add_thinking(request, model, submit, ("reasoning.effort" if wish is not None else "", wish), {})
    await require_roles(request, model, submit.turns or [])
    pass_over(request, [*tools.passed_over, *dict.fromkeys(given.passed_over)])
    return model, given, submit, tools


def _keep(request: web.Request, stored: StoredResponse, response: Json) -> None:
    stored.response = response
    request.app[RESPONSES].keep(stored)


def _forget(response: Json) -> None:
    """`store: false` leaves nothing."""


async def _in_background(
    request: web.Request, generation: Generation, writer: ResponseWriter, stored: StoredResponse
) -> web.StreamResponse:
    """Begin the answer, which goes on when the connection has gone; the response is queued, or its events follow."""
    store = request.app[RESPONSES]
    background = stored.background = Background()
    for event in writer.begin(queued=True):
        background.push(event)
    store.keep(stored)
    background.task = asyncio.create_task(_answer(request, generation, writer, stored))
    key = caller_of(request).key
    if key is not None:
        request.app[GATE].end_with(key, background.task)
    if generation.stream:
        return await send_events(request, background, -1)
    return reply(stored.response)


async def _answer(request: web.Request, generation: Generation, writer: ResponseWriter, stored: StoredResponse) -> None:
    """Make a response in the background."""
    background, store = stored.background, request.app[RESPONSES]
    assert background is not None
    try:
        async with aclosing(unattended(request, generation, writer)) as events:
            async for event in events:
                background.push(event)
    except asyncio.CancelledError:
        stored.response["status"] = "cancelled"
    except Exception as error:
        problem = Problem.of(error)
        if problem.code == "internal":
            log.exception("a response in the background failed")
        for event in writer.failed(problem):
            background.push(event)
    finally:
        background.task = None
        background.end()
        if store.has(stored):
            store.keep(stored)


async def send_events(request: web.Request, background: Background, after: int) -> web.StreamResponse:
    """The events of a response in the background, those above the number `after`, as they come."""
    stream = Stream(request, ResponseWriter.form)
    async with aclosing(background.follow(after)) as events:
        async for event in events:
            await stream.send(event)
    return await stream.end()
