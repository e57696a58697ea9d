"""Bodies as HTTP carries them: bounded, checked JSON from a client, whole or streamed JSON to it.

A hostile body costs little. Bytes are counted while they arrive. Nesting is measured before anything is decoded, by
removing innermost brackets, one pass per level. Large bodies are decoded in a thread.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from server.errors import BadBody, BodyTooLarge

MAX_BODY = 32 << 20
MAX_DEPTH = 64
IDLE_SECONDS = 30.0
DRAIN_SECONDS = 60.0
_LARGE = 1 << 20

T = TypeVar("T")

# Possessive quantifiers, and a closing quote that may be missing: no input makes the pattern backtrack.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")


async def read_body(request: web.Request, shape: type[T]) -> T:
    """The request's JSON body as `shape`; raises BadBody and BodyTooLarge."""
    raw = await _read_bytes(request)
    if not raw:
        raise BadBody("the request has no body", "send a JSON object")
    if len(raw) < _LARGE:
        return decode(raw, shape)
    return await asyncio.to_thread(decode, raw, shape)


def decode(raw: bytes, shape: type[T]) -> T:
    """JSON text as `shape`; raises BadBody that names the place where it does not match."""
    if too_deep(raw):
        raise BadBody(f"the body is nested more than {MAX_DEPTH} levels deep, or is not JSON", "send a flatter object")
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        kind = "does not match" if isinstance(error, msgspec.ValidationError) else "is not JSON"
        raise BadBody(f"the body {kind}: {_sentence(error)}", "see the API's documentation for the fields") from None


def too_deep(raw: bytes) -> bool:
    """Whether brackets outside strings nest deeper than MAX_DEPTH, or are so unbalanced that it is not JSON."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS).translate(_AS_SQUARE)
    for _ in range(MAX_DEPTH):
        inner = brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    return len(brackets) > MAX_DEPTH or (len(brackets) > 0 and b"[]" in brackets)


def _sentence(error: Exception) -> str:
    text = str(error).removeprefix("JSON is malformed: ").rstrip(".")
    return text[:1].lower() + text[1:300]


async def _read_bytes(request: web.Request) -> bytes:
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise BadBody("the body is compressed", "send it without Content-Encoding")
    declared = request.content_length
    parts: list[bytes] = []
    size = 0
    while declared is None or declared <= MAX_BODY:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                part = await request.content.readany()
        except TimeoutError:
            raise BadBody(f"the body stopped arriving for {IDLE_SECONDS:.0f} s", "send it whole") from None
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > MAX_BODY:
            break
        parts.append(part)
    raise BodyTooLarge(f"the body is larger than {MAX_BODY >> 20} MiB", "send less at once")


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


NDJSON = StreamForm("application/x-ndjson", _line)
# Server-sent events as OpenAI closes them.
EVENTS = StreamForm("text/event-stream", _event, b"data: [DONE]\n\n")


class Stream:
    """A streamed answer: `send` one object at a time."""

    def __init__(self, request: web.Request, form: StreamForm) -> None:
        self._request = request
        self._form = form
        self._response = web.StreamResponse(headers={"Content-Type": form.media, "Cache-Control": "no-cache"})

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
