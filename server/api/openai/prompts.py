"""The prompt of a chat, without an answer: its text by `/apply-template`, its length by `…/input_tokens`."""

from __future__ import annotations

from aiohttp import web

from runtime.messages import Tokenize, Tokens
from server.api.openai.answers import chat_submit
from server.api.openai.bodies import CHAT_BODY
from server.api.openai.fields import OPENAI
from server.api.request import answer, in_use, prompt_from, read
from server.services import SERVICES


async def apply_template(request: web.Request) -> web.Response:
    """`POST /apply-template`: the text that the model's chat template writes for the messages."""
    return answer(request, {"prompt": (await _prompt(request)).text})


async def input_tokens(request: web.Request) -> web.Response:
    """`POST /v1/chat/completions/input_tokens`: how many tokens the prompt of a chat has."""
    count = len((await _prompt(request)).ids)
    return answer(request, {"object": "response.input_tokens", "input_tokens": count})


async def _prompt(request: web.Request) -> Tokens:
    model, submit, _ = await chat_submit(request, await read(request, CHAT_BODY, OPENAI))
    async with in_use(request.app[SERVICES], model) as used:
        with prompt_from("messages"):
            return await used.worker.tokenize(Tokenize(0, submit=submit))
