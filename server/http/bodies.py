"""Bodies as HTTP carries them: bounded, checked JSON from a client.

A hostile body costs little. Bytes are counted while they arrive and while they are unpacked; `server/http/outline.py`
bounds what decoding can cost. One thread decodes all large bodies, one after the other, so that the event loop has at
most one other thread to share the interpreter with.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import msgspec
from aiohttp import web

from runtime.defaults import MAX_BODY
from server.errors import BadBody, BodyTooLarge, UnknownEncoding
from server.http.nested import unknown_within
from server.http.outline import check_outline

IDLE_SECONDS = 30.0
# Bytes that come at least within IDLE_SECONDS, unless they are the last.
STEADY = 32 << 10
_LARGE = 1 << 17
# Unknown fields within fields that are looked for; a warning names fewer.
MOST_NAMED = 32
_UNPACKED_AT_ONCE = 1 << 20
# The two forms of HTTP as numbers of `zlib`; the second one stands for zlib or gzip, whichever the first bytes are.
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 47}
# A half of a pair of surrogates alone, which JSON's escapes can spell and no text can hold. A pair passes unchanged.
_LONE = re.compile(rb"\\u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|d[89a-f][0-9a-f]{2})|\\\\", re.IGNORECASE)
_PAIR = 12  # bytes
# The first part of the place that msgspec names, or the name of a field that is missing at the top.
_PLACE = re.compile(r" - at `\$\.(\w+)|missing required field `(\w+)`$")

T = TypeVar("T")
Given = dict[str, msgspec.Raw]
"""The fields of a body that are not null, as JSON."""


class Body(NamedTuple):
    """A body that was read: the value of the route's shape, the fields that were given, and unknown ones in them."""

    value: Any
    given: Given
    unknown: list[str]


_decoder: ThreadPoolExecutor | None = None


async def apart(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work`, done in the one thread for what would hold the event loop up."""
    global _decoder
    if _decoder is None:
        _decoder = ThreadPoolExecutor(1, "bodies")
    return await asyncio.get_running_loop().run_in_executor(_decoder, work, *arguments)


async def read_body(request: web.Request, shape: type[msgspec.Struct]) -> Body:
    """The request's JSON body as `shape`; raises BadBody, BodyTooLarge and UnknownEncoding."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity" and encoding not in _WINDOWS:
        raise UnknownEncoding(
            f"the body is packed as `{encoding[:40]}`", "send it as it is, or with `Content-Encoding: gzip`"
        )
    raw = await _read_bytes(request)
    if not raw:
        raise BadBody("the request has no body", "send a JSON object")
    if encoding == "identity" and len(raw) < _LARGE:
        return decode(raw, shape)
    return await apart(_unpack_and_decode, raw, encoding, shape)


def decode(raw: bytes, shape: type[msgspec.Struct]) -> Body:
    """A JSON object as `shape`, in which null means "not given" for every field.

    Raises BadBody that names the place where it does not match, BodyTooLarge.
    """
    check_outline(raw)
    given = _decode(raw, Given)
    nulls = [name for name, value in given.items() if bytes(value) == b"null"]
    for name in nulls:
        del given[name]
    value = _decode(msgspec.json.encode(given) if nulls else raw, shape)
    return Body(value, given, unknown_within(given, shape, MOST_NAMED))


def _decode(raw: bytes, shape: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        raise _bad("does not match", error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not _is_text(raw):
            raise BadBody("the body is not text in UTF-8", "send it in this encoding, as JSON is sent") from None
        whole = _without_lone_surrogates(raw)
        if whole != raw:
            return _decode(whole, shape)
        raise _bad("is not JSON", error) from None


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bad(kind: str, error: Exception) -> BadBody:
    text = str(error).removeprefix("JSON is malformed: ").rstrip(".")
    sentence = text[:1].lower() + text[1:300]
    place = _PLACE.search(text)
    field = next(filter(None, place.groups())) if place else ""
    return BadBody(f"the body {kind}: {sentence}", "see the API's documentation for the fields", field)


def _without_lone_surrogates(raw: bytes) -> bytes:
    """The text with U+FFFD for each half of a pair, as Go and so Ollama reads it: clients cut texts in mid-emoji."""
    return _LONE.sub(lambda match: match[0] if len(match[0]) in (2, _PAIR) else b"\\ufffd", raw)


async def _read_bytes(request: web.Request) -> bytes:
    declared = request.content_length
    parts: list[bytes] = []
    size = 0
    clock = asyncio.get_running_loop().time
    began, steady = clock(), 0
    until = began + IDLE_SECONDS
    while declared is None or declared <= MAX_BODY:
        try:
            async with asyncio.timeout_at(until):
                part = await request.content.readany()
        except TimeoutError:
            raise BadBody(
                f"the body came too slowly: {size:,} bytes in {clock() - began:.0f} s", "send it whole"
            ) from None
        except (web.RequestPayloadError, ValueError):
            raise BadBody("the body ends too early, or is not in chunks as it says", "send it whole") from None
        if not part:
            return b"".join(parts)
        size += len(part)
        if size > MAX_BODY:
            break
        parts.append(part)
        if size - steady >= STEADY:
            until, steady = clock() + IDLE_SECONDS, size
    raise _too_large()


def _unpack_and_decode(raw: bytes, encoding: str, shape: type[msgspec.Struct]) -> Body:
    return decode(raw if encoding == "identity" else _unpack(raw, encoding), shape)


def _unpack(raw: bytes, encoding: str) -> bytes:
    """The bytes of a packed body, at most MAX_BODY of them. Raises BadBody, BodyTooLarge."""
    unpacker = zlib.decompressobj(_WINDOWS[encoding])
    parts: list[bytes] = []
    size = 0
    try:
        while not unpacker.eof:
            part = unpacker.decompress(raw, _UNPACKED_AT_ONCE)
            raw = unpacker.unconsumed_tail
            size += len(part)
            if size > MAX_BODY:
                raise _too_large()
            if not part and not raw:
                raise BadBody(f"the body ends in the middle of its {encoding} form", "send it whole")
            parts.append(part)
    except zlib.error:
        raise BadBody(f"the body is not in {encoding} form, as its Content-Encoding says", "correct either") from None
    return b"".join(parts)


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {MAX_BODY >> 20} MiB", "send less at once")
