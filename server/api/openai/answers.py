"""OpenAI's `/v1/chat/completions` and `/v1/completions`, as its API reference describes them.

A prompt that is too long is refused with both numbers, never cut.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from registry.store.catalog import Model
from runtime.errors import BadRequest
from runtime.infilling import Infill
from runtime.messages import Submit
from runtime.options import MAX_ANSWERS, MAX_MESSAGES
from server.api import options
from server.api.adapters import resolve_adapted
from server.api.calls import template_variables
from server.api.drafts import add_draft
from server.api.openai.bodies import CHAT_BODY, TEXT_BODY, ChatFields, CompletionFields
from server.api.openai.fields import OPENAI
from server.api.openai.tools import ToolSet, choose, read_tools
from server.api.openai.writer import OpenAIChatWriter, OpenAITextWriter
from server.api.prompts import prompts_of
from server.api.request import (
    pass_over,
    read,
    refuse,
    require,
    require_roles,
    warning_of,
    with_instructions,
)
from server.api.respond import Generation, respond
from server.api.thinking import add_thinking
from server.loaded.wish import LoadWish

_COUNT = options.Range(1, MAX_ANSWERS, whole=True)
# OpenAI's own default on this route.
TEXT_TOKENS = 16


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`: the next turn of a conversation."""
    body = await read(request, CHAT_BODY, OPENAI)
    model, submit, tools = await chat_submit(request, body)
    draft = await add_draft(request, model, body.draft, submit)
    writer = OpenAIChatWriter(body, model, warning_of(request), tools)
    return await respond(request, Generation(model, [submit], bool(body.stream), LoadWish(draft=draft)), writer)


async def chat_submit(request: web.Request, body: Any) -> tuple[Model, Submit, ToolSet]:
    """The model, the request and the tools of a chat's body (`CHAT_BODY`), which gets the model's name.

    Raises BadRequest, Unsupported, and as `resolve_adapted`.
    """
    model, adapters = await resolve_adapted(request, body.model, body.adapters)
    body.model = body.model or model.name
    _check_chat(body)
    most = options.most_tokens("max_completion_tokens", body.max_completion_tokens)
    if body.max_completion_tokens is None:
        most = options.most_tokens("max_tokens", body.max_tokens)
    submit = _submit(model, body, most)
    submit.adapters = adapters
    submit.turns = with_instructions(model, [message.turn() for message in body.messages])
    submit.template = model.own_template
    submit.logprobs = options.alternatives(bool(body.logprobs), body.top_logprobs)
    submit.prediction = body.prediction.text if body.prediction else ""
    tools = _add_tools(model, body, submit)
    await add_thinking(request, model, submit, body.thinks, body.all_budgets)
    await require_roles(request, model, submit.turns)
    pass_over(request, sorted(set().union(*(message.passed_over for message in body.messages))))
    pass_over(request, [*tools.passed_over, *body.passed_over])
    return model, submit, tools


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`: each prompt goes on as it is, without a template."""
    body = await read(request, TEXT_BODY, OPENAI)
    model, adapters = await resolve_adapted(request, body.model, body.adapters)
    body.model = body.model or model.name
    refuse(best_of=(body.best_of or 1) > (body.n or 1))
    most = TEXT_TOKENS if body.max_tokens is None else options.most_tokens("max_tokens", body.max_tokens)
    submits = []
    if body.prompt is None:
        raise BadRequest("`prompt` is missing", "send a text or token ids", "prompt")
    for prompt in prompts_of(body.prompt):
        submit = _submit(model, body, most)
        submit.adapters = adapters
        if body.suffix:
            require(model, "insert")
            submit.infill = Infill(body.suffix)
        submit.prompt, submit.parse_special, submit.echo = prompt, True, bool(body.echo)
        submit.logprobs = options.alternatives(body.logprobs is not None, body.logprobs, "logprobs")
        submits.append(submit)
    draft = await add_draft(request, model, body.draft, *submits)
    pass_over(request, body.passed_over)
    writer = OpenAITextWriter(body, model, warning_of(request))
    return await respond(request, Generation(model, submits, bool(body.stream), LoadWish(draft=draft)), writer)


def _check_chat(body: ChatFields) -> None:
    """Raise Unsupported or BadRequest for fields that cannot be honoured, or that need another field."""
    refuse(modalities=[kind for kind in body.modalities or [] if kind != "text"])
    if body.tool_choice is not None and not body.tools:
        raise BadRequest("`tool_choice` is given without `tools`", "leave it out", "tool_choice")
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("`top_logprobs` is given without `logprobs`", "send `logprobs: true` too", "top_logprobs")
    if not 0 < len(body.messages) <= MAX_MESSAGES:
        raise BadRequest(f"`messages` has {len(body.messages)} entries", f"send 1 to {MAX_MESSAGES}", "messages")


def _add_tools(model: Model, body: ChatFields, submit: Submit) -> ToolSet:
    """Take over the tools and the template's variables. Raises BadRequest, Unsupported."""
    tools = read_tools(body.tools)
    # The prompt names all tools, whichever is demanded, so that the next turn finds it in the cache.
    submit.tools, submit.forced = choose(body.tool_choice, tools)
    if submit.forced and submit.grammar:
        raise BadRequest("`tool_choice` and a form of the answer exclude each other", "leave one out", "tool_choice")
    if submit.tools and not submit.forced:
        require(model, "tools")
    submit.single = body.parallel_tool_calls is False
    submit.variables = template_variables(body.chat_template_kwargs)
    return tools


def _submit(model: Model, body: CompletionFields, most: int | None) -> Submit:
    require(model, "completion")
    if body.stream_options is not None and not body.stream:
        hint = "send `stream: true` too, or leave it out"
        raise BadRequest("`stream_options` is given without `stream`", hint, "stream_options")
    count = 1 if body.n is None else int(_COUNT.check("n", body.n))
    return Submit(
        id=0,
        sampling=options.sampling(model.params, options.sampling_fields(body)),
        limits=options.limits(model.params, {"num_predict": most, "stop": body.stop}),
        count=count,
        grammar=body.held_to,
        drafts=options.drafts(model.params, {"draft_num_predict": body.draft_num_predict}),
    )
