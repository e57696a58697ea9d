"""A whole answer and the stream of the same request say the same, on every route that generates text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from server.api import respond
from tests.daemon import Daemon

TURNS = [{"role": "user", "content": "one two three"}]
ROUTES = {
    "/api/chat": {"messages": TURNS},
    "/api/generate": {"prompt": "one two three", "raw": True},
    "/v1/chat/completions": {"messages": TURNS},
    "/v1/completions": {"prompt": ["one two three"]},
}
OLLAMA = ("/api/chat", "/api/generate")


def text(part: dict[str, Any]) -> str:
    """The text of an object of any of the routes, in a stream or whole."""
    if "choices" in part:
        choice = part["choices"][0] if part["choices"] else {"text": ""}
        message = choice.get("delta", choice.get("message"))
        return str(choice["text"] if message is None else message.get("content", ""))
    return str(part["message"]["content"] if "message" in part else part["response"])


@pytest.mark.parametrize("route", ROUTES)
def test_a_stream_says_the_whole_answer(echo: Daemon, route: str) -> None:
    body = {"model": "tiny"} | ROUTES[route]
    whole = echo.post(route, body | {"stream": False}).json
    streamed = echo.post(route, body | {"stream": True})
    parts = streamed.lines if route in OLLAMA else streamed.events
    assert len(parts) > 3
    assert "".join(map(text, parts)) == text(whole) == "one two three"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [True, False])
def test_an_error_before_the_first_byte_has_a_status(echo: Daemon, route: str, stream: bool) -> None:
    """The prompt is refused by the worker, which is asked only after the model is loaded."""
    long = "word " * 5000
    question = {"messages": [{"role": "user", "content": long}]} if "chat" in route else {"prompt": long}
    answer = echo.post(route, {"model": "tiny", "stream": stream} | question)
    assert answer.status == 400
    assert ("prompt_too_long" if route in OLLAMA else "context_length_exceeded") in answer.body.decode()


class Told:
    """A stream that has begun."""

    started = True


def test_a_silent_stream_gives_signs_of_life_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "SILENT_SECONDS", 0.001)
    asyncio.run(_silent())


async def _silent() -> None:
    release, closed = asyncio.Event(), asyncio.Event()

    async def objects() -> AsyncGenerator[respond.Json]:
        try:
            yield {"n": 1}
            await release.wait()
            yield {"n": 2}
            await asyncio.Event().wait()
        finally:
            closed.set()

    source = objects()
    signed = respond._with_signs(source, cast(Any, Told()), {"type": "ping"})
    assert await anext(signed) == {"n": 1}
    assert await anext(signed) == {"type": "ping"}
    release.set()
    rest = [each async for each in _until(signed, {"n": 2})]
    assert rest[-1] == {"n": 2} and all(each == {"type": "ping"} for each in rest[:-1])
    assert await anext(signed) == {"type": "ping"}
    await signed.aclose()  # while the next object is awaited
    await source.aclose()
    assert closed.is_set()


async def _until(signed: AsyncGenerator[respond.Json], last: respond.Json) -> AsyncGenerator[respond.Json]:
    async for each in signed:
        yield each
        if each == last:
            return
