"""Draft models of a request: the field `draft` of all dialects, and the model that it means."""

from __future__ import annotations

from aiohttp import web

from registry.store.catalog import Model
from runtime.defaults import DRAFT_ROWS
from runtime.errors import BadRequest
from runtime.messages import Submit
from server.api.request import visible_model
from server.services import SERVICES


async def add_draft(request: web.Request, model: Model, name: str | None, *submits: Submit) -> Model | None:
    """The model that is to draft for `model`, None where the request names none.

    Drafts are then made for answers with a seed as well, unless `draft_num_predict` says how long they are. Raises
    BadRequest where the named model cannot draft, ModelNotFound, BadName.
    """
    if not name:
        return None
    services = request.app[SERVICES]
    if not services.config.speculation:
        raise BadRequest(
            "drafts are switched off by the setting `speculation`", "ask without `draft`, or switch them on", "draft"
        )
    draft = await visible_model(request, name)
    if draft.is_adapter:
        raise BadRequest(f"`{draft.name}` is an adapter, and no model", "name a model", "draft")
    await services.library.check_draft(draft, model)
    for submit in submits:
        if submit.drafts < 0:
            submit.drafts = DRAFT_ROWS
    return draft
