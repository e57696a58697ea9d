"""Lists in pages, as OpenAI's routes send them: `after`, `limit`, `order`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from runtime.errors import BadRequest


def page(request: web.Request, entries: list[dict[str, Any]], most: int = 100, default: int = 20) -> dict[str, Any]:
    """The page that the query asks for, out of all `entries`, the oldest first; the newest first unless `order=asc`.

    Raises BadRequest.
    """
    text = request.query.get("limit", str(default))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if not 1 <= limit <= most:
        raise BadRequest(f"`limit` is `{text[:20]}`", f"send a number from 1 to {most}", "limit")
    order = request.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest(f"`order` is `{order[:20]}`", "send asc or desc", "order")
    rows = entries if order == "asc" else entries[::-1]
    if after := request.query.get("after"):
        places = [number for number, row in enumerate(rows) if row["id"] == after]
        if not places:
            raise BadRequest(f"there is no `{after[:80]}` in this list", "send the `last_id` of a page", "after")
        rows = rows[places[0] + 1 :]
    shown = rows[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(rows) > limit,
    }
