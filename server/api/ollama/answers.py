"""Ollama's `/api/generate` and `/api/chat`, as its `docs/api.md` describes them.

A field that bounds what the text may be is honoured or refused. Others that are not honoured are named in `warning`.
"""

from __future__ import annotations

from aiohttp import web

from registry.store.catalog import Model
from runtime.conversation import Turn
from runtime.errors import BadRequest
from runtime.infilling import Infill
from runtime.messages import Submit, Tokenize
from runtime.options import MAX_MESSAGES
from server.api import options
from server.api.adapters import resolve_adapted
from server.api.calls import checked_tools, template_variables
from server.api.drafts import add_draft
from server.api.ollama.bodies import CHAT_BODY, GENERATE_BODY, AnswerBody
from server.api.ollama.fields import OLLAMA
from server.api.ollama.writer import GenerateWriter, OllamaChatWriter, OllamaWriter
from server.api.request import (
    answer,
    begun_answer,
    in_use,
    pass_over,
    prompt_from,
    read,
    refuse,
    require,
    require_roles,
    warning_of,
    with_instructions,
)
from server.api.respond import Generation, respond
from server.api.thinking import add_thinking, budgets_of, effort
from server.services import SERVICES

_GENERATE = OLLAMA._replace(
    misplaced={"messages": "send `prompt`, or use /api/chat", "input": "send the question as `prompt`"}
)
_CHAT = OLLAMA._replace(
    misplaced={"prompt": "send `messages`, or use /api/generate", "input": "send the question as `messages`"}
)


async def generate(request: web.Request) -> web.StreamResponse:
    """`POST /api/generate`: an answer to one prompt; without a prompt, load or unload the model."""
    body = await read(request, GENERATE_BODY, _GENERATE)
    name = body.given_name if body.prompt or body.suffix else body.model_name
    model, adapters = await resolve_adapted(request, name, body.adapters)
    body.model = body.given_name or model.name
    refuse(images=body.images)
    if body.raw and (body.system or body.earlier or body.template):
        raise BadRequest("raw mode does not support template, system, or context", "leave them out, or `raw`")
    submit = await _submit(request, model, body)
    submit.adapters = adapters
    writer = GenerateWriter(body, warning_of(request))
    if not body.prompt and not body.suffix:
        return await _load_only(request, model, body, submit, writer)
    require(model, "completion")
    if body.suffix:
        require(model, "insert")
        submit.prompt, submit.infill = body.prompt or "", Infill(body.suffix)
        submit.template = body.template or model.own_template
    elif body.raw:
        submit.prompt, submit.parse_special = body.prompt, True
    else:
        system = [Turn.of("system", body.system)] if body.system else []
        submit.turns = with_instructions(model, [*system, Turn.of("user", body.prompt or "")])
        submit.template = body.template or model.own_template
        submit.earlier, submit.give_ids = body.earlier or [], True
    return await _answered(request, model, body, submit, writer)


async def chat(request: web.Request) -> web.StreamResponse:
    """`POST /api/chat`: the next turn of a conversation; without messages, load or unload the model."""
    body = await read(request, CHAT_BODY, _CHAT)
    name = body.given_name if body.messages else body.model_name
    model, adapters = await resolve_adapted(request, name, body.adapters)
    body.model = body.given_name or model.name
    if len(body.messages) > MAX_MESSAGES:
        raise BadRequest(f"more than {MAX_MESSAGES} messages", "send fewer")
    submit = await _submit(request, model, body)
    submit.adapters = adapters
    submit.tools = checked_tools(body.tools)
    if submit.tools:
        require(model, "tools")
    writer = OllamaChatWriter(body, warning_of(request))
    if not body.messages:
        return await _load_only(request, model, body, submit, writer)
    require(model, "completion")
    turns = [message.turn() for message in body.messages]
    if len(turns) > 1 and not (submit.grammar or turns[-1].thinking):
        submit.prompt = begun_answer(turns)
    submit.turns = with_instructions(model, turns)
    submit.template = model.own_template
    await require_roles(request, model, submit.turns)
    return await _answered(request, model, body, submit, writer)


async def _submit(request: web.Request, model: Model, body: AnswerBody) -> Submit:
    think = effort(body.think, "think")
    if think:
        require(model, "thinking")
    pass_over(request, options.check_options(body.given_options))
    submit = Submit(
        id=0,
        sampling=options.sampling(model.params, body.given_options),
        limits=options.limits(model.params, body.given_options),
        truncate=body.truncate is not False,
        shift=body.shift is True,
        logprobs=options.alternatives(bool(body.logprobs), body.top_logprobs),
        grammar=body.held_to,
        drafts=options.drafts(model.params, body.given_options),
        variables=template_variables(body.chat_template_kwargs),
    )
    # A false one asks for nothing of a model that does not think.
    field = "think" if think else ""
    await add_thinking(request, model, submit, (field, think), budgets_of(body))
    return submit


async def _answered(
    request: web.Request, model: Model, body: AnswerBody, submit: Submit, writer: OllamaWriter
) -> web.StreamResponse:
    """The answer, or the prompt as the model would read it, where that alone is asked for."""
    if not body.render_only:
        wish = body.wish(await add_draft(request, model, body.draft, submit))
        return await respond(request, Generation(model, [submit], body.stream is not False, wish), writer)
    async with in_use(request.app[SERVICES], model, body.wish()) as used:
        with prompt_from(writer.prompt_field):
            prompt = await used.worker.tokenize(Tokenize(0, submit=submit))
    return answer(request, writer.rendered(prompt.text))


async def _load_only(
    request: web.Request, model: Model, body: AnswerBody, submit: Submit, writer: OllamaWriter
) -> web.Response:
    """Answer a request without a prompt: load the model, or unload it where `keep_alive` is 0."""
    services = request.app[SERVICES]
    if body.keep_alive_seconds == 0:
        await services.pool.unload(model)
        return answer(request, writer.done("unload", {}))
    draft = await add_draft(request, model, body.draft, submit)
    async with in_use(services, model, body.wish(draft)) as used:
        return answer(request, writer.loaded(used))
