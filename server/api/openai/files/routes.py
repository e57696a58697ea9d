"""OpenAI's `/v1/files`, for the purpose `batch`."""

from __future__ import annotations

import asyncio
import re
from pathlib import PurePath

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from runtime.errors import BadRequest
from server.access.callers import caller_of
from server.api.openai.batches.store import BATCHES
from server.api.openai.files.store import DAYS_30, FILES, FileStore
from server.api.openai.pages import page
from server.errors import BadBody, BodyTooLarge, Conflict
from server.http.bodies import IDLE_SECONDS
from server.http.wire import reply

MAX_FILE = 200 << 20
_PIECE = 1 << 20
_LONGEST_FIELD = 1 << 10
_LONGEST_NAME = 255
_MOST_PARTS = 16
_SHORTEST = 3600
_HINT = 'send a form with `purpose="batch"` and the `file`, of one request a line'


async def upload(request: web.Request) -> web.Response:
    """`POST /v1/files`: keep a file, of 200 MiB at most."""
    await request.app[BATCHES].loaded.wait()
    if not request.content_type.startswith("multipart/"):
        raise BadBody("a file comes as multipart/form-data", _HINT)
    if (request.content_length or 0) > MAX_FILE + _PIECE:
        raise _too_large()
    files, owner = request.app[FILES], caller_of(request).owner
    identity = await files.begin(owner)
    try:
        fields = await _read_form(request, files, identity)
        _check_purpose(fields.get("purpose", ""))
        if "file" not in fields:
            raise BadBody("the form has no `file`", _HINT, "file")
        seconds = _seconds(fields)
        record = await files.finish(identity, fields["file"], "batch", seconds)
    except BaseException:
        await asyncio.shield(files.drop(identity))
        raise
    return reply(record.told())


async def files(request: web.Request) -> web.Response:
    """`GET /v1/files`: the files of this key."""
    await request.app[BATCHES].loaded.wait()
    purpose = request.query.get("purpose")
    records = request.app[FILES].of(caller_of(request).owner)
    told = [record.told() for record in records if purpose in (None, record.purpose)]
    return reply(page(request, told, most=10_000, default=10_000))


async def file(request: web.Request) -> web.Response:
    """`GET /v1/files/{id}`: one file."""
    await request.app[BATCHES].loaded.wait()
    return reply(request.app[FILES].find(caller_of(request).owner, request.match_info["id"]).told())


async def content(request: web.Request) -> web.FileResponse:
    """`GET /v1/files/{id}/content`: its bytes."""
    await request.app[BATCHES].loaded.wait()
    store = request.app[FILES]
    record = store.find(caller_of(request).owner, request.match_info["id"])
    return web.FileResponse(store.content(record.id), headers={"Content-Type": "application/jsonl"})


async def delete(request: web.Request) -> web.Response:
    """`DELETE /v1/files/{id}`: remove a file at once."""
    await request.app[BATCHES].loaded.wait()
    store = request.app[FILES]
    record = store.find(caller_of(request).owner, request.match_info["id"])
    if record.id in request.app[BATCHES].inputs:
        raise Conflict(f"a batch still reads `{record.id}`", "cancel the batch first, or wait for it")
    await store.drop(record.id)
    return reply({"id": record.id, "object": "file", "deleted": True})


async def _read_form(request: web.Request, files: FileStore, identity: str) -> dict[str, str]:
    """The fields of the form. The content of `file` is appended to the file, and its name is the field's value."""
    fields: dict[str, str] = {}
    try:
        form = await request.multipart()
        for _ in range(_MOST_PARTS):
            async with asyncio.timeout(IDLE_SECONDS):
                part = await form.next()
            if part is None:
                return fields
            if not isinstance(part, BodyPartReader):
                raise BadBody("the form has a form inside", _HINT)
            name = part.name or ""
            if name == "file" and "file" not in fields:
                fields[name] = _file_name(part.filename)
                await _read_file(part, files, identity)
            else:
                fields[name[:_LONGEST_NAME]] = (await _read_field(part)).decode(errors="replace")
    except TimeoutError:
        raise BadBody("the file came too slowly", "send it again") from None
    except (ValueError, AssertionError, HttpProcessingError, web.RequestPayloadError):
        raise BadBody("the form is broken, or ends too early", _HINT) from None
    raise BadBody(f"the form has more than {_MOST_PARTS} parts", _HINT)


async def _read_file(part: BodyPartReader, files: FileStore, identity: str) -> None:
    size = 0
    pieces: list[bytes] = []
    while True:
        async with asyncio.timeout(IDLE_SECONDS):
            piece = await part.read_chunk(_PIECE)
        size += len(piece)
        if size > MAX_FILE:
            raise _too_large()
        pieces.append(piece)
        if not piece or sum(map(len, pieces)) >= _PIECE:
            await files.append(identity, b"".join(pieces), sync=False)
            pieces = []
        if not piece:
            return


async def _read_field(part: BodyPartReader) -> bytes:
    found = b""
    while True:
        async with asyncio.timeout(IDLE_SECONDS):
            piece = await part.read_chunk(_LONGEST_FIELD)
        found += piece
        if not piece:
            return found
        if len(found) > _LONGEST_FIELD:
            raise BadBody("a field of the form is too long", _HINT)


def _check_purpose(purpose: str) -> None:
    if purpose != "batch":
        raise BadRequest(f"files are kept for the purpose `batch`, not `{purpose[:40]}`", _HINT, "purpose")


def _seconds(fields: dict[str, str]) -> int:
    """How long the file is kept. Raises BadRequest."""
    text = fields.get("expires_after[seconds]", str(DAYS_30))
    if re.fullmatch(r"[0-9]{1,9}", text) is None or not _SHORTEST <= int(text) <= DAYS_30:
        hint = f"send {_SHORTEST} to {DAYS_30} seconds"
        raise BadRequest(f"`expires_after` is `{text[:20]}`", hint, "expires_after")
    return int(text)


def _file_name(given: str | None) -> str:
    name = PurePath(given or "").name
    return "".join(letter for letter in name if letter.isprintable())[:_LONGEST_NAME] or "file.jsonl"


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the file is larger than {MAX_FILE >> 20} MiB", "send it in parts")
