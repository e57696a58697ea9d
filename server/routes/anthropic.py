"""The routes of Anthropic's dialect, and the choice of a dialect where two have the same path."""

from __future__ import annotations

from aiohttp import web

from server.api.anthropic import messages
from server.api.anthropic import models as anthropic_models
from server.api.anthropic.bodies import MESSAGES_BODY
from server.api.anthropic.models import VERSION_HEADER
from server.routes.route import EVENTS, Handler, Route

ROUTES = [
    Route(
        "POST",
        "/v1/messages",
        "infer",
        messages.messages,
        "the next turn of a conversation, for Anthropic's clients, as server-sent events or whole",
        body=MESSAGES_BODY,
        media=EVENTS,
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        "infer",
        messages.count_tokens,
        "how many tokens these messages are to the model",
        body=MESSAGES_BODY,
    ),
]


def or_anthropic(handler: Handler, own: Handler) -> Handler:
    """A handler for both dialects: `own` for clients that send Anthropic's header, `handler` for all others."""

    async def chosen(request: web.Request) -> web.StreamResponse:
        return await (own if VERSION_HEADER in request.headers else handler)(request)

    return chosen


def models(handler: Handler) -> Handler:
    """The list of models in the form of whoever asks; `handler` makes OpenAI's."""
    return or_anthropic(handler, anthropic_models.models)


def model(handler: Handler) -> Handler:
    """One model in the form of whoever asks; `handler` makes OpenAI's."""
    return or_anthropic(handler, anthropic_models.model)
