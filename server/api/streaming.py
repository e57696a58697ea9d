"""Work that goes on for long, as a stream of lines: notes, progress, and success or an error at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

from server.api.request import FAILED, answer, warning_of
from server.http.problems import STATUS
from server.http.wire import NDJSON, Stream
from server.pulls.lines import error_line, note_line


async def stream_lines(
    request: web.Request, lines: AsyncGenerator[dict[str, Any]], whole: bool = False
) -> web.StreamResponse:
    """Send the lines as they come; with `whole` the last one alone, as an answer of its own.

    An error before the first line is raised; a later one is the last line.
    """
    if whole:
        last: dict[str, Any] = {}
        async for line in lines:
            last = line
        return answer(request, last)
    stream = Stream(request, NDJSON)
    if warning := warning_of(request):
        await stream.send(note_line(warning) | {"warning": warning})
    try:
        async for line in lines:
            await stream.send(line)
    except ConnectionError:
        raise
    except Exception as error:
        if not stream.started:
            raise
        line = error_line(error)
        request[FAILED] = str(STATUS[line["code"]])
        await stream.send(line)
    return await stream.end()
