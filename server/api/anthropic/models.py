"""`/v1/models` as Anthropic's clients want it: they send the header `anthropic-version`."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from aiohttp import web

from registry.store.catalog import Model
from server.access.callers import caller_of
from server.api.request import visible_model
from server.errors import BadBody, NotFound
from server.http.wire import reply
from server.library import capabilities
from server.services import SERVICES

VERSION_HEADER = "anthropic-version"
_USUAL, _MOST = 20, 1000


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`: a page of all models; `limit`, `after_id` and `before_id` choose it."""
    found, _ = await request.app[SERVICES].library.listing()
    sees = caller_of(request).sees
    rows = [_entry(model) for model in found if not model.problem and sees(model)]
    limit = _limit(request.query.get("limit", ""))
    if before := request.query.get("before_id"):
        end = _place(rows, before)
        return _page(rows[max(0, end - limit) : end], more=end > limit)
    after = request.query.get("after_id")
    start = _place(rows, after) + 1 if after else 0
    return _page(rows[start : start + limit], more=start + limit < len(rows))


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`: one model."""
    name = request.match_info["id"]
    return reply(_entry(await visible_model(request, name)) | {"id": name})


def _page(rows: list[dict[str, Any]], more: bool) -> web.Response:
    first, last = (rows[0]["id"], rows[-1]["id"]) if rows else (None, None)
    return reply({"data": rows, "has_more": more, "first_id": first, "last_id": last})


def _limit(text: str) -> int:
    """The rows of a page. Raises BadBody."""
    if not text:
        return _USUAL
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MOST):
        raise BadBody(f"`limit` is `{text[:20]}`", f"send a number from 1 to {_MOST:,}", "limit")
    return int(text)


def _place(rows: list[dict[str, Any]], name: str) -> int:
    """The place of a model in the list. Raises NotFound."""
    for place, row in enumerate(rows):
        if row["id"] == name:
            return place
    raise NotFound(f"there is no model `{name[:100]}` in the list", "send an `id` that it has")


def _entry(model: Model) -> dict[str, Any]:
    context = int(model.config.get("context_length") or 0) or None
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": model.modified.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "lifecycle": "active",
        "line": None,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": context,
        "max_tokens": context,
        "capabilities": _abilities(capabilities(model)),
    }


def _abilities(able: list[str]) -> dict[str, Any]:
    """The abilities of a model by Anthropic's names."""
    yes, no = {"supported": True}, {"supported": False}
    thinks = yes if "thinking" in able else no
    kinds = dict.fromkeys(("adaptive", "between_tools", "disabled", "enabled"), thinks)
    efforts = dict.fromkeys(("low", "medium", "high", "max", "xhigh"), thinks)
    return {
        "batch": no,
        "citations": no,
        "code_execution": no,
        "context_management": no,
        "effort": thinks | efforts,
        "image_input": no,
        "pdf_input": no,
        "server_tools": no | {"code_execution": no, "web_search": no},
        "structured_outputs": yes,
        "thinking": thinks | {"types": kinds},
    }
