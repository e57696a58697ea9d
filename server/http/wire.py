"""Answers as HTTP carries them: JSON to a client, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

DRAIN_SECONDS = 60.0


def reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """One JSON answer."""
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8", headers=headers)


@dataclass(frozen=True)
class StreamForm:
    """How objects follow each other: the media type, the bytes of one object, the bytes after the last one."""

    media: str
    encode: Callable[[Any], bytes]
    closing: bytes = b""


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _named_event(value: Any) -> bytes:
    return b"event: " + str(value.get("type", "error")).encode() + b"\n" + _event(value)


NDJSON = StreamForm("application/x-ndjson", _line)
# Server-sent events as OpenAI closes them.
EVENTS = StreamForm("text/event-stream", _event, b"data: [DONE]\n\n")
# Server-sent events that have the object's `type` for a name, by which clients tell them apart.
NAMED_EVENTS = StreamForm("text/event-stream", _named_event)


class Stream:
    """A streamed answer: `send` one object at a time."""

    def __init__(self, request: web.Request, form: StreamForm) -> None:
        self._request = request
        self._form = form
        self._response = web.StreamResponse(headers={"Content-Type": form.media, "Cache-Control": "no-cache"})
        request[STREAM] = self

    @property
    def started(self) -> bool:
        """Whether the status line is out, so that an error can only be a line of the stream."""
        return self._response.prepared

    async def send(self, value: Any) -> None:
        """Write one object, and the headers before the first one.

        Raises ConnectionResetError for a reader that takes nothing for `DRAIN_SECONDS`.
        """
        await self._write(self._form.encode(value))

    async def end(self) -> web.StreamResponse:
        """Finish with the bytes that close the form."""
        if self._form.closing:
            await self._write(self._form.closing)
        await self._response.write_eof()
        return self._response

    async def fail(self, value: Any) -> web.StreamResponse:
        """Finish with an error as the last object, and without the closing bytes."""
        await self.send(value)
        await self._response.write_eof()
        return self._response

    async def _write(self, data: bytes) -> None:
        if not self._response.prepared:
            await self._response.prepare(self._request)
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._response.write(data)
        except TimeoutError:
            raise ConnectionResetError("the reader took nothing for a minute") from None


# The stream of a request, for an error that comes when its status line is out already.
STREAM = web.RequestKey("stream", Stream)
