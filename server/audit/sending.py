"""Sends the audit log to a collector when there is a network; lines that it acknowledged are never sent again.

Lines go as they stand, in order, as `application/x-ndjson` by POST. An answer of 2xx acknowledges all lines of a
request, and is written down before the next one. Where the answer is lost, the lines go once more, perhaps with others
behind them: `seq` in each line tells, and `Idempotency-Key` has the first number and the head behind the last line. The
log itself is what waits, so nothing more grows on the disk than `audit_keep` allows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from registry.errors import AccessDenied, RegistryError, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.network import Network
from registry.net.transport import HttpClient
from registry.store import fsops
from server.audit.files import BLOCK, all_files, first_line, last_lines
from server.audit.line import NOTHING, Head, link_of
from server.audit.log import folder_lock
from server.config import Config
from server.values import is_loopback

SENT = "sent.json"
_LOCK = "sent.lock"
# The bytes of lines in one request, but for the last line.
MOST_BYTES = 1 << 20
_REFUSALS = (401, 403)
_TOKEN = re.compile(r"[\x21-\x7e]{0,4096}")


class OtherLog(RegistryError):
    """The collector acknowledged lines of another log."""

    code = "other_audit_log"


@dataclass
class Shipment:
    """One push: the lines sent now, the head that the collector has, and how many lines can be sent no more."""

    lines: int = 0
    head: Head = NOTHING
    missing: int = 0


def send(config: Config, url: str, token: str = "", sent: Callable[[Shipment], None] = lambda _: None) -> Shipment:
    """Send all lines behind the last one that the collector at `url` acknowledged; `sent` is called for each request.

    `token` is a bearer. Raises Offline, SourceUnavailable, AccessDenied, OtherLog; what was acknowledged until then
    stays so. Raises OSError where a file of the log, or the file of heads that were sent, cannot be used.
    """
    address = HttpAddress.parse(url)
    if not _TOKEN.fullmatch(token):
        raise AccessDenied("the token contains characters that no token has", "name a file with the token alone")
    if token and address.scheme != "https" and not is_loopback(address.host):
        raise AccessDenied(f"the token is not sent to `{address.host}` in plain text", "name an address with `https`")
    proxies = {"all": config.proxy, "no": ",".join(config.no_proxy)} if config.proxy else {}
    network = Network(token=token or None, proxies=proxies, offline=config.offline)
    folder = config.audit_folder
    with _only_one(folder):
        notes = _read_notes(folder)
        shipment = Shipment(head=notes.get(url, NOTHING))
        client = HttpClient(network)
        try:
            for body, first, head in _requests(folder, shipment):
                _post(client, network, address, body, f"{first}-{head}", shipment.head)
                notes[url] = shipment.head = head
                shipment.lines += body.count(b"\n")
                fsops.replace(folder / SENT, json.dumps({key: str(value) for key, value in notes.items()}).encode())
                sent(shipment)
        finally:
            client.close()
    return shipment


def _post(client: HttpClient, network: Network, address: HttpAddress, body: bytes, key: str, before: Head) -> None:
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": key}
    if network.authorization:
        headers["Authorization"] = network.authorization
    later = f"nothing is lost: the next `lm audit push` goes on behind line {before.seq}"
    try:
        reply = client.send("POST", address, headers, body)
        reply.discard()
    except (OSError, HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SourceUnavailable(f"the collector `{address.host}` cannot be reached: {why}", later) from None
    if reply.status in _REFUSALS:
        hint = "`--token-file FILE` names a file with the token that it wants"
        raise AccessDenied(f"the collector `{address.host}` refuses the lines: HTTP {reply.status}", hint)
    if not 200 <= reply.status < 300:
        raise SourceUnavailable(f"the collector `{address.host}` does not take the lines: HTTP {reply.status}", later)


def _requests(folder: Path, shipment: Shipment) -> Iterator[tuple[bytes, int, Head]]:
    """The bodies to send, each with the number of its first line and the head behind it."""
    lines, size, first, head = list[bytes](), 0, 0, shipment.head
    for line, link in _lines_behind(folder, shipment):
        if size >= MOST_BYTES:
            yield b"".join(lines), first, head
            lines, size = [], 0
        first = first if lines else link.seq
        lines.append(line)
        size += len(line)
        head = link
    if lines:
        yield b"".join(lines), first, head


def _lines_behind(folder: Path, shipment: Shipment) -> Iterator[tuple[bytes, Head]]:
    """The lines behind the head, with their own; lines that are not as they were written stay here, as `missing`."""
    head = shipment.head
    while file := _open_behind(folder, head):
        with file:
            end = os.fstat(file.fileno()).st_size
            while (left := end - file.tell()) > 0:
                line = file.readline(min(left, BLOCK))
                link = link_of(line.rstrip(b"\n"))
                if link is None or link.seq < head.seq:
                    continue
                if link.seq == head.seq:
                    _require_same(link.hash, head)
                    continue
                if link.seq == head.seq + 1:
                    _require_same(link.prev, head)
                shipment.missing += link.seq - head.seq - 1
                head = link.head
                yield line, head


def _open_behind(folder: Path, head: Head) -> BinaryIO | None:
    """The first file with lines behind `head`, opened; None where there is none. Raises OtherLog, OSError."""
    with folder_lock(folder):  # no file gets another name meanwhile
        behind: Path | None = None
        for path in reversed(all_files(folder)):
            lines, _ = last_lines(path)
            last = next((link for line in reversed(lines) if (link := link_of(line))), None)
            if last is None:
                continue
            if behind is None and last.seq < head.seq:
                raise _other(head)
            if last.seq <= head.seq:
                break
            behind = path
            first = link_of(first_line(path))
            if first is not None and first.seq <= head.seq + 1:
                break
        return behind.open("rb") if behind else None


def _require_same(value: str, head: Head) -> None:
    if value != head.hash:
        raise _other(head)


def _other(head: Head) -> OtherLog:
    return OtherLog(
        f"line {head.seq} of the audit log is not the one that the collector acknowledged",
        f"`lm audit verify --anchor {head}` says what is wrong; without `{SENT}` beside it a new log is sent whole",
    )


def _read_notes(folder: Path) -> dict[str, Head]:
    """The last acknowledged line by collector. Raises OSError, OtherLog for a file that cannot be understood."""
    try:
        data = (folder / SENT).read_bytes()
    except FileNotFoundError:
        return {}
    try:
        notes = {}
        for url, text in json.loads(data).items():
            number, _, value = text.partition(":")
            notes[url] = Head(int(number), value)
    except (ValueError, AttributeError):
        hint = "remove it to send the log whole once more"
        raise OtherLog(f"`{folder / SENT}` does not tell which lines were sent", hint) from None
    return notes


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Be the one sender. Raises SourceUnavailable where another is at work."""
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceUnavailable("another `lm audit push` is at work", "wait until it has ended") from None
        yield
    finally:
        os.close(lock)
