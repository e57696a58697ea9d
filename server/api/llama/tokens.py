"""llama-server's `/tokenize` and `/detokenize`: between a text and the tokens of a model."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from runtime.errors import BadRequest
from runtime.messages import Tokenize, Tokens
from server.api.llama.bodies import TOKENS
from server.api.prompts import is_id
from server.api.request import answer, in_use, prompt_from, read, resolve_model
from server.services import SERVICES


class TokenizeBody(msgspec.Struct):
    """A text, or token ids with texts between them. Control tokens are parsed unless `parse_special` is false."""

    content: str | list[str | int] = ""
    model: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(msgspec.Struct):
    """Token ids."""

    tokens: list[int] = []
    model: str | None = None


async def tokenize(request: web.Request) -> web.Response:
    """`POST /tokenize`: the ids of a text, with the text of each where `with_pieces` asks for it."""
    body = await read(request, TokenizeBody, TOKENS)
    _check(body.content if isinstance(body.content, list) else [], "content")
    wanted = Tokenize(0, text=body.content, special=body.parse_special, add=body.add_special, pieces=body.with_pieces)
    tokens = await _asked(request, body.model, wanted, "content")
    if not body.with_pieces:
        return answer(request, {"tokens": tokens.ids})
    rows = [{"id": id, "piece": _piece(raw)} for id, raw in zip(tokens.ids, tokens.pieces, strict=True)]
    return answer(request, {"tokens": rows})


async def detokenize(request: web.Request) -> web.Response:
    """`POST /detokenize`: the text of tokens, control tokens by their names."""
    body = await read(request, DetokenizeBody, TOKENS)
    _check(body.tokens, "tokens")
    tokens = await _asked(request, body.model, Tokenize(0, text=[*body.tokens], pieces=True), "tokens")
    return answer(request, {"content": b"".join(tokens.pieces).decode(errors="replace")})


async def _asked(request: web.Request, name: str | None, wanted: Tokenize, field: str) -> Tokens:
    model = await resolve_model(request, name)
    async with in_use(request.app[SERVICES], model) as used:
        with prompt_from(field):
            return await used.worker.tokenize(wanted)


def _check(parts: list[Any], field: str) -> None:
    """Raise BadRequest for a number that is no token's id in any vocabulary."""
    if not all(isinstance(part, str) or is_id(part) for part in parts):
        raise BadRequest(f"`{field}` holds a number that is no token id", "correct it", field)


def _piece(raw: bytes) -> str | list[int]:
    """The text of a token, or its bytes where they are a part of a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
