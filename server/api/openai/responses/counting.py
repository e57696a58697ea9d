"""OpenAI's `/v1/responses/input_tokens`."""

from __future__ import annotations

from aiohttp import web

from runtime.messages import Tokenize
from server.api.openai.responses.answers import asked
from server.api.openai.responses.body import KNOWN, CountedFields
from server.api.request import LOG_NOTE, answer, in_use, prompt_from, read
from server.services import SERVICES


async def input_tokens(request: web.Request) -> web.Response:
    """`POST /v1/responses/input_tokens`: how many tokens the prompt is to the model, which is loaded for that."""
    body = await read(request, CountedFields, KNOWN)
    model, _, submit, _ = await asked(request, body)
    async with in_use(request.app[SERVICES], model) as used:
        with prompt_from("input"):
            count = len((await used.worker.tokenize(Tokenize(0, submit=submit))).ids)
    request[LOG_NOTE] += f" {count} tokens"
    return answer(request, {"object": "response.input_tokens", "input_tokens": count})
