"""One file of a hub as a stream of checked bytes: in order, resumed where the connection broke, hashed as it passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from registry.digest import Check
from registry.errors import SourceUnavailable
from registry.web import Answer, Passing, Patience, Web

CHUNK = 1 << 20
_PROGRESS = 1 << 20  # bytes that count as such, so that a server cutting after every few bytes does not last for ever


def stream(web: Web, url: str, check: Check, refuse: Callable[[Answer], None]) -> Iterator[bytes]:
    """The bytes of `url`, of the name, size and digest that `check` knows.

    `refuse` raises what an answer of 400 and above means. After a cut the rest is asked for by range; where the server
    ignores ranges, what we have is read again and skipped.
    Raises DigestMismatch at the end, SourceUnavailable.
    """
    patience = Patience(f"`{check.name}` from `{web.host}`")
    since = 0
    while check.seen < check.size:
        try:
            with web.get(url, start=check.seen) as answer:
                refuse(answer)
                skip = _position(answer, check, check.seen)
                while data := answer.read(CHUNK):
                    data, skip = data[skip:], max(skip - len(data), 0)
                    check.update(data)
                    since += len(data)
                    if since >= _PROGRESS:
                        patience.progress()
                        since = 0
                    yield data
            if check.seen < check.size:
                raise Passing("the server sent less than it announced")
        except Passing as trouble:
            patience.wait(trouble)
    check.finish()


def part(web: Web, url: str, start: int, end: int, check: Check, refuse: Callable[[Answer], None]) -> bytes:
    """The bytes from `start` up to `end` of a file, only their number checked. Raises Passing, SourceUnavailable."""
    with web.get(url, start=start, end=end) as answer:
        refuse(answer)
        skip = _position(answer, check, start)
        data = b""
        while len(data) < skip + end - start and (part := answer.read(skip + end - start - len(data))):
            data += part
    if len(data) != skip + end - start:
        raise Passing("the server sent less than was asked for")
    return data[skip:]


def _position(answer: Answer, check: Check, start: int) -> int:
    """How many bytes of the body come before the ones wanted: none, or all of them where the range was ignored."""
    if answer.status == 200:
        announced = answer.headers.get("Content-Length", str(check.size))
        if announced != str(check.size):
            raise SourceUnavailable(
                f"`{check.name}` has {announced} bytes where {check.size:,} were declared", _CHANGED
            )
        return start
    found = re.fullmatch(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", answer.headers.get("Content-Range", ""))
    if answer.status != 206 or found is None:
        raise SourceUnavailable(f"the source answers {answer.status} for `{check.name}`", "try again later")
    if int(found[1]) != start or found[3] not in ("*", str(check.size)):
        raise SourceUnavailable(f"the source sends another part of `{check.name}` than was asked for", _CHANGED)
    return 0


_CHANGED = "the source contradicts itself; try again later"
