"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`, as its API reference describes them.

A prompt that is too long is refused with both numbers, never cut.
"""

from __future__ import annotations

from aiohttp import web

from registry.store.catalog import Model
from runtime.conversation import Turn
from runtime.errors import BadRequest
from runtime.messages import Submit, Tokenize
from runtime.options import MAX_INT, MAX_MESSAGES
from server.api import options
from server.api.adapters import resolve_adapted
from server.api.anthropic.blocks import hosted_kinds, system_text, turns_of
from server.api.anthropic.bodies import MESSAGES_BODY, MessagesFields
from server.api.anthropic.fields import ANTHROPIC
from server.api.anthropic.tools import toolbox
from server.api.anthropic.writer import AnthropicWriter
from server.api.drafts import add_draft
from server.api.request import (
    LOG_NOTE,
    answer,
    begun_answer,
    in_use,
    pass_over,
    prompt_from,
    read,
    require,
    require_roles,
    warning_of,
    with_instructions,
)
from server.api.respond import Generation, respond
from server.api.thinking import add_thinking
from server.loaded.wish import LoadWish
from server.services import SERVICES

_MOST_TOKENS = options.Range(0, MAX_INT, whole=True)
# The beta by which clients ask for the input of all tools as it is written.
_EAGER = "fine-grained-tool-streaming"


async def messages(request: web.Request) -> web.StreamResponse:
    """`POST /v1/messages`: the next turn of a conversation."""
    body = await read(request, MESSAGES_BODY, ANTHROPIC)
    if body.max_tokens is None:
        raise BadRequest("the body has no `max_tokens`", "send the most tokens that the answer may have", "max_tokens")
    most = int(_MOST_TOKENS.check("max_tokens", body.max_tokens))
    model, submit = await _prepared(request, body)
    submit.limits = options.limits(model.params, {"num_predict": most, "stop": body.stop_sequences})
    draft = await add_draft(request, model, body.draft, submit)
    eager = {tool.name for tool in body.tools or [] if tool.eager_input_streaming}
    if _EAGER in request.headers.get("anthropic-beta", ""):
        eager = {str(tool["function"]["name"]) for tool in submit.tools}
    writer = AnthropicWriter(body, most, eager, request_id=request["id"], warning=warning_of(request))
    return await respond(request, Generation(model, [submit], bool(body.stream), LoadWish(draft=draft)), writer)


async def count_tokens(request: web.Request) -> web.Response:
    """`POST /v1/messages/count_tokens`: how many tokens these messages are to the model, which is loaded for that."""
    body = await read(request, MESSAGES_BODY, ANTHROPIC)
    model, submit = await _prepared(request, body)
    async with in_use(request.app[SERVICES], model) as used:
        with prompt_from("messages"):
            count = len((await used.worker.tokenize(Tokenize(0, submit=submit))).ids)
    request[LOG_NOTE] += f" {count} tokens"
    return answer(request, {"input_tokens": count})


async def _prepared(request: web.Request, body: MessagesFields) -> tuple[Model, Submit]:
    """The model and its prompt, without the limits of the answer. Raises as `resolve_adapted`, BadRequest."""
    model, adapters = await resolve_adapted(request, body.model, body.adapters)
    body.model = body.model or model.name
    require(model, "completion")
    turns, begun = _turns(model, body)
    submit = Submit(
        id=0,
        turns=turns,
        prompt=begun,
        template=model.own_template,
        sampling=options.sampling(model.params, options.sampling_fields(body)),
        grammar=body.held_to,
        drafts=options.drafts(model.params, {"draft_num_predict": body.draft_num_predict}),
        adapters=adapters,
    )
    _add_tools(request, model, body, submit)
    wish = body.thinks
    if body.effort and not wish:
        pass_over(request, ["`output_config.effort` (without `thinking`)"])
    budget = body.thinking.budget_tokens if body.thinking and wish else None
    await add_thinking(request, model, submit, ("thinking" if wish else "", wish), {"thinking.budget_tokens": budget})
    pass_over(request, [f"blocks `{kind}`" for kind in hosted_kinds(body.messages)])
    await require_roles(request, model, submit.turns or [])
    return model, submit


def _turns(model: Model, body: MessagesFields) -> tuple[list[Turn], str | None]:
    """The turns, and the beginning of the answer where the last one is the assistant's. Raises BadRequest."""
    if not 0 < len(body.messages) <= MAX_MESSAGES:
        raise BadRequest(f"`messages` has {len(body.messages)} entries", f"send 1 to {MAX_MESSAGES}", "messages")
    system = system_text(body.system)
    turns = [*([Turn.of("system", system)] if system else []), *turns_of(body.messages)]
    begun = begun_answer(turns)
    if not turns:
        raise BadRequest("`messages` has no message of the user", "begin with one", "messages")
    if turns[-1].calls or (begun and (body.tool_choice or body.held_to)):
        message = "an answer that is begun in `messages` can have no calls before it, no `tool_choice` and no form"
        raise BadRequest(message, "end with a message of the user", "messages")
    return with_instructions(model, turns), begun


def _add_tools(request: web.Request, model: Model, body: MessagesFields, submit: Submit) -> None:
    box = toolbox(body.tools, body.tool_choice)
    if box.forced and submit.grammar:
        raise BadRequest("`tool_choice` and a form of the answer exclude each other", "leave one out", "tool_choice")
    if box.tools and not box.forced:
        require(model, "tools")
    submit.tools, submit.forced, submit.single = box.tools, box.forced, box.single
    pass_over(request, box.left_out)
