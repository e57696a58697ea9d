"""The place of a file at a source, found by following redirects, and the meaning of refusals.

A hub answers for a large file with a redirect to a CDN, signed and soon to expire. The `Locator` follows redirects by
hand, remembers where they led, and asks the hub again when the place has expired. The token goes to the origin of the
file's own URL only (scheme, host and port). A redirect may not go from `https` to `http`, nor further than five hops,
nor to a private address unless its host is the hub's own and private already. Link-local addresses are never asked.
That the file stays the same is checked on every answer by `X-Linked-ETag` (the hub's name for the content) and ETag.

Header names: https://huggingface.co/docs/huggingface_hub/package_reference/file_download (`HfFileMetadata`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPMessage

from registry.errors import AccessDenied, ModelNotFound, RegistryError, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.network import Network
from registry.net.retries import Passing, retry_after
from registry.net.transport import HttpClient, Response

HOPS = 5
_TURNS = 4
_REDIRECTS = (301, 302, 303, 307, 308)
_EXPIRED = (401, 403, 404, 410)
_PASSING = (408, 421, 425, 429)
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


@dataclass(frozen=True, slots=True)
class Remote:
    """A file at a source.

    url: must name one revision for good. size: in bytes, -1 where it is not known. name: for messages.
    refused: makes the error for a status of 4xx from the url's own origin; None for `locate.refused`. A hub tells more
    in headers of its own.
    """

    url: str
    size: int
    name: str
    refused: Callable[[int, HTTPMessage], RegistryError] | None = None

    @property
    def host(self) -> str:
        """The source's host."""
        return HttpAddress.parse(self.url).host


@dataclass(frozen=True, slots=True)
class _Place:
    address: HttpAddress
    etag: str | None
    public: bool


class Locator:
    """Opens ranges of one file, and remembers to which place its URL redirects; the threads that fetch it share it."""

    def __init__(self, remote: Remote, network: Network) -> None:
        self._remote, self._network = remote, network
        self._home = HttpAddress.parse(remote.url)
        self._lock = threading.Lock()
        self._place: _Place | None = None
        self._identity: str | None = None

    def open(self, client: HttpClient, headers: Mapping[str, str]) -> Response:
        """An answer of status 200 or 206 to a GET of the file, body unread.

        Close the client after an error: an answer may be left in it. Raises Passing, OSError and HTTPException for
        trouble that may pass; AccessDenied, ModelNotFound, SourceUnavailable for what will not.
        """
        for _ in range(_TURNS):
            place = self._place
            if place is None:
                with self._lock:
                    if self._place is None:
                        return self._walk(client, headers)
                continue
            reply = self._ask(client, place.address, headers, place.public)
            if reply.status not in _EXPIRED or place.address.origin == self._home.origin:
                return self._accept(reply, place)
            reply.discard()
            self.forget(place)
        raise Passing(f"`{self._home.host}` gives addresses that have expired")

    def forget(self, place: _Place | None = None) -> None:
        """Follow the redirects again at the next `open`: `place`, by default the present one, is of no use any more."""
        with self._lock:
            if place is None or place is self._place:
                self._place = None

    def _ask(self, client: HttpClient, address: HttpAddress, headers: Mapping[str, str], public: bool) -> Response:
        # A private host is asked only where the user configured it; behind a public hub not even then.
        public = public or not self._network.may_be_private(address, self._home)
        if address.origin != self._home.origin:
            return client.send("GET", address, headers, public=public)
        sent = self._network.authorization
        reply = client.send("GET", address, {**headers, **_authorized(sent)}, public=public)
        challenge, authorizer = reply.headers.get("WWW-Authenticate") or "", self._network.authorizer
        if reply.status == 401 and authorizer and challenge and authorizer.renew(sent, challenge):
            reply.discard()
            return client.send("GET", address, {**headers, **_authorized(authorizer.header)}, public=public)
        return reply

    def _walk(self, client: HttpClient, headers: Mapping[str, str]) -> Response:
        """Follow the redirects from the file's own URL, and remember where they end."""
        address, public, linked = self._home, False, None
        for _ in range(HOPS + 1):
            reply = self._ask(client, address, headers, public)
            if address == self._home:
                public, linked = reply.public, reply.headers.get("X-Linked-ETag")
                self._check_size(reply.headers)
            if reply.status not in _REDIRECTS:
                etag = reply.headers.get("ETag")
                reply = self._accept(reply, _Place(address, None, public))
                self._identify(linked or strong(etag))
                self._place = _Place(address, strong(etag), public)
                return reply
            reply.discard()
            following = address.join(reply.headers.get("Location") or "")
            if address.scheme == "https" and following.scheme != "https":
                raise SourceUnavailable(f"`{address.host}` redirects from `https` to `http`")
            address = following
        raise SourceUnavailable(f"`{self._home.host}` redirects more than {HOPS} times for `{self._remote.name}`")

    def _check_size(self, headers: HTTPMessage) -> None:
        size = headers.get("X-Linked-Size")
        if size is not None and self._remote.size >= 0 and size.strip() != str(self._remote.size):
            raise Passing(f"the source says {size[:20]} bytes now and said {self._remote.size} before")

    def _identify(self, identity: str | None) -> None:
        if self._identity is None:
            self._identity = identity
        elif identity is not None and identity != self._identity:
            raise SourceUnavailable(
                f"`{self._remote.name}` changed at its source while it was downloaded", "start the pull again"
            )

    def _accept(self, reply: Response, place: _Place) -> Response:
        status = reply.status
        etag = strong(reply.headers.get("ETag"))
        if status in (200, 206) and (place.etag is None or etag is None or etag == place.etag):
            return reply
        host = place.address.host
        if status in (200, 206):
            raise Passing(f"`{host}` sends another file than before")
        if status in _PASSING or status >= 500 or status == 416:
            raise Passing(f"`{host}` answers {status}", retry_after(reply.headers))
        if place.address.origin != self._home.origin and status in _EXPIRED:
            raise Passing(f"`{host}` answers {status} to an address that the source just gave")
        if self._remote.refused is not None:
            raise self._remote.refused(status, reply.headers)
        raise refused(self._remote, status, bool(self._network.authorization))


def interval(reply: Response, start: int, end: int, size: int) -> tuple[int, int]:
    """The bytes of the file in an answer to a request for bytes start … end, as (first, end).

    `first` is `start`, and `end` may be less than asked for; or it is the whole file, (0, size), where the source
    ignores ranges. Raises Passing for other bytes, and for a compressed body.
    """
    if reply.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Passing("the source compresses what was asked for as it is")
    if reply.status == 200:
        if _length(reply) not in (None, size):
            raise Passing(f"the source sends {_length(reply)} bytes where {size} were declared")
        return 0, size
    text = reply.headers.get("Content-Range", "")
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise Passing("the source sends a range without saying which")
    first, last, total = int(match[1]), int(match[2]), match[3]
    if first != start or not start <= last < end or total not in ("*", str(size)):
        raise Passing(f"the source sends `{text[:60]}` where bytes {start}-{end - 1}/{size} were asked for")
    if _length(reply) not in (None, last + 1 - first):
        raise Passing(f"the source sends {_length(reply)} bytes for `{text[:60]}`")
    return first, last + 1


def _length(reply: Response) -> int | None:
    value = reply.headers.get("Content-Length", "").strip()
    return int(value) if re.fullmatch(r"[0-9]{1,19}", value) else None


def refused(remote: Remote, status: int, with_token: bool) -> RegistryError:
    """The error for a status of 4xx, for sources without error codes of their own."""
    name, host = remote.name, remote.host
    if status in (401, 403) and with_token:
        return AccessDenied(f"`{host}` does not let this token have `{name}`", "check the token, and what it may read")
    if status in (401, 403):
        return AccessDenied(f"`{host}` wants a token for `{name}`", "give it one, for a hub in `HF_TOKEN`")
    if status in (404, 410):
        return ModelNotFound(f"`{host}` has no `{name}`", "check the name and the revision")
    return SourceUnavailable(f"`{host}` answers {status} for `{name}`", "check the address of the source")


def _authorized(value: str) -> dict[str, str]:
    return {"Authorization": value} if value else {}


def strong(etag: str | None) -> str | None:
    """An ETag that promises equal bytes; weak ones do not."""
    return None if etag is None or etag.startswith("W/") else etag
