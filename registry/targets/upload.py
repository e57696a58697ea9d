"""One blob on its way to a registry: there already, mounted from another repository, or sent in pieces.

A piece is a PATCH; after trouble the registry is asked how far it is, and the rest is sent. Where the upload stands is
noted in the store, so that a push goes on after a restart of the daemon too. A registry that takes no pieces gets the
blob in one PUT. A registry that has forgotten an upload is told everything again, a bounded number of times.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from registry.errors import DigestMismatch, SourceUnavailable, StoreDamaged
from registry.net.address import HttpAddress
from registry.net.retries import Passing
from registry.net.transport import Response
from registry.store.uploads import Uploads
from registry.targets.repository import TargetRepository

# Bytes of a piece: the most, the first, and the least to which a registry may bring it down by refusing larger bodies.
# It grows while pieces take less than some seconds: a push that is ended waits for the piece that is on its way.
PIECE = 128 << 20
_FIRST = 16 << 20
_LEAST = 1 << 20
_QUICK = 1.0
# A blob of no more bytes goes in one request: its begin and its end are two, whatever is between them.
SMALL = 1 << 20
# Bytes that are given to the socket at once; the timeout of a connection is for each of them.
_STEP = 256 << 10
_OCTETS = "application/octet-stream"
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")

Outcome = Literal["there", "mounted", "sent"]


@dataclass(frozen=True)
class Blob:
    """A blob to send: its digest, its length in bytes, and its file or its bytes."""

    digest: str
    size: int
    content: Path | bytes

    def pieces(self, start: int, end: int, sent: Callable[[int], None]) -> Iterator[bytes | memoryview]:
        """Bytes start … end; `sent` hears how far reading has come. Raises StoreDamaged, OSError."""
        if isinstance(self.content, bytes):
            yield self.content[start:end]
            return
        try:
            yield from self._read(self.content, start, end, sent)
        except FileNotFoundError:
            raise StoreDamaged(f"the blob `{self.digest[:19]}` is missing", "its model was removed, or hurt") from None

    def _read(self, path: Path, start: int, end: int, sent: Callable[[int], None]) -> Iterator[memoryview]:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != self.size:
                raise StoreDamaged(f"the blob `{self.digest[:19]}` has changed", "`lm verify` says which model is hurt")
            file.seek(start)
            buffer = memoryview(bytearray(_STEP))
            while start < end:
                count = file.readinto(buffer[: min(_STEP, end - start)])
                if not count:
                    raise StoreDamaged(f"the blob `{self.digest[:19]}` ends early", "`lm verify` checks all")
                yield buffer[:count]
                start += count
                sent(start)


class Upload:
    """The upload of one blob. `progress` hears how many of its bytes the registry has."""

    def __init__(
        self, repository: TargetRepository, blob: Blob, notes: Uploads, progress: Callable[[int], None]
    ) -> None:
        self._repository, self._blob, self._notes, self._progress = repository, blob, notes, progress
        self._piece, self._most, self._whole = min(_FIRST, PIECE), PIECE, blob.size <= SMALL
        self._furthest = 0

    def run(self, elsewhere: Sequence[str]) -> Outcome:
        """Bring the blob there; `elsewhere` are repositories of this registry that may have it.

        Raises AccessDenied, SourceUnavailable, StoreDamaged, DigestMismatch.
        """
        what = f"`{self._blob.digest[:19]}`"
        return self._repository.persist(lambda: self._attempt(elsewhere), what, lambda: self._furthest)

    def _attempt(self, elsewhere: Sequence[str]) -> Outcome:
        if self._is_there():
            return "there"
        place, offset = self._resumed()
        for other in elsewhere if place is None else ():
            place = self._begin(other)
            if place is None:
                return "mounted"
        place = place or self._begin("")
        if place is None:
            return "mounted"
        try:
            self._send(place, offset)
        except (OSError, HTTPException, Passing) as problem:
            if isinstance(problem, BrokenPipeError | ConnectionResetError):
                self._bound(self._piece // 2)  # a link that breaks early carries smaller pieces
            raise
        self._notes.forget(self._repository.url, self._blob.digest)
        return "sent"

    def _is_there(self) -> bool:
        reply = self._repository.ask("HEAD", self._repository.address(f"blobs/{self._blob.digest}"))
        length = reply.headers.get("Content-Length", "")
        reply.discard()
        if reply.status == 200:
            return not length.isascii() or not length.isdigit() or int(length) == self._blob.size
        if reply.status in (404, 410):
            return False
        raise self._repository.refused(reply, f"look into `{self._repository.path}`")

    def _begin(self, other: str) -> HttpAddress | None:
        """The address of a new upload; None where the blob was mounted from the repository `other`."""
        query = f"?mount={self._blob.digest}&from={quote(other, safe='/')}" if other else ""
        address = self._repository.address(f"blobs/uploads/{query}")
        reply = self._repository.ask("POST", address, {"Content-Length": "0"}, b"")
        if other and reply.status in (401, 403, 404):  # nobody may read the other one: then it is sent
            reply.discard()
            return self._begin("")
        if reply.status == 201:
            reply.discard()
            return None
        if reply.status != 202:
            raise self._repository.refused(reply, f"push to `{self._repository.path}`")
        least = reply.headers.get("OCI-Chunk-Min-Length", "")
        if re.fullmatch(r"[0-9]{1,12}", least):
            self._piece = max(self._piece, int(least))
            self._most = max(self._most, self._piece)
        return self._located(reply)

    def _resumed(self) -> tuple[HttpAddress | None, int]:
        """The address of an upload that was begun, and the bytes that the registry has of it; None where none is."""
        noted = "" if self._whole else self._notes.find(self._repository.url, self._blob.digest)
        if not noted:
            return None, 0
        try:
            reply = self._repository.ask("GET", self._repository.joined(noted))
        except SourceUnavailable:  # a note that leads where nobody goes
            self._forget()
            return None, 0
        match = _RANGE.fullmatch(reply.headers.get("Range", ""))
        if reply.status not in (204, 202) or match is None:
            reply.discard()
            self._forget()
            return None, 0
        last = int(match[1])
        offset = last + 1 if last else 0  # `0-0` stands for nothing as well as for one byte
        place = self._located(reply)
        if offset > self._blob.size:
            self._forget()
            return None, 0
        return place, offset

    def _send(self, place: HttpAddress, offset: int) -> None:
        while offset < self._blob.size and not self._whole:
            self._reached(offset)
            end, began = min(self._blob.size, offset + self._piece), time.monotonic()
            reply = self._patch(place, offset, end)
            if reply.status == 413 and self._piece > _LEAST:
                reply.discard()
                self._bound(min(self._piece, self._blob.size) // 4)
            elif reply.status in (404, 405, 501) and not offset:
                reply.discard()
                self._whole = True
                if reply.status == 404:  # it may have forgotten the upload, or know no pieces
                    fresh = self._begin("")
                    assert fresh is not None
                    place = fresh
            elif reply.status in (404, 410, 416):
                self._forget()
                reply.discard()
                raise Passing(f"`{self._repository.host}` has forgotten the upload")
            elif reply.status not in (202, 201, 204):
                raise self._repository.refused(reply, f"push to `{self._repository.path}`")
            else:
                place, offset = self._located(reply), end
                self._notes.note(self._repository.url, self._blob.digest, _url(place))
                if time.monotonic() - began < _QUICK:
                    self._piece = min(self._most, 2 * self._piece)
        self._finish(place)

    def _bound(self, size: int) -> None:
        """Send no pieces of more bytes from now on, but of the least that there are."""
        self._piece = self._most = max(_LEAST, size)

    def _patch(self, place: HttpAddress, offset: int, end: int) -> Response:
        headers = {
            "Content-Type": _OCTETS,
            "Content-Length": str(end - offset),
            "Content-Range": f"{offset}-{end - 1}",
        }
        self._notes.note(self._repository.url, self._blob.digest, _url(place))
        with self._repository.unbroken():
            return self._repository.ask("PATCH", place, headers, lambda: self._blob.pieces(offset, end, self._reached))

    def _finish(self, place: HttpAddress) -> None:
        """End the upload, with the whole blob where it is sent in one request."""
        separator = "&" if "?" in place.target else "?"
        place = place._replace(target=f"{place.target}{separator}digest={quote(self._blob.digest, safe='')}")
        size = self._blob.size if self._whole else 0
        headers = {"Content-Type": _OCTETS, "Content-Length": str(size)}
        body = (lambda: self._blob.pieces(0, size, self._reached)) if size else b""
        reply = self._repository.ask("PUT", place, headers, body)
        if reply.status in (404, 410, 416):
            self._forget()
            reply.discard()
            raise Passing(f"`{self._repository.host}` has forgotten the upload")
        if reply.status == 400:
            self._forget()
            error = self._repository.refused(reply, f"push to `{self._repository.path}`")
            raise Passing(str(error))
        if reply.status not in (201, 204):
            raise self._repository.refused(reply, f"push to `{self._repository.path}`")
        found = reply.headers.get("Docker-Content-Digest", self._blob.digest)
        reply.discard()
        if found != self._blob.digest:
            raise DigestMismatch(f"`{self._repository.host}` keeps another blob than it was sent", "push again")
        self._progress(self._blob.size)

    def _located(self, reply: Response) -> HttpAddress:
        location = reply.headers.get("Location") or ""
        reply.discard()
        if not location:
            raise SourceUnavailable(f"`{self._repository.host}` begins an upload and does not say where")
        return self._repository.joined(location)

    def _reached(self, offset: int) -> None:
        self._furthest = max(self._furthest, offset)
        self._progress(offset)

    def _forget(self) -> None:
        self._notes.forget(self._repository.url, self._blob.digest)


def _url(address: HttpAddress) -> str:
    return f"{address.scheme}://{address.netloc}{address.target}"
