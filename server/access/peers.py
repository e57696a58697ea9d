"""The other end of a connection: a machine by its address, or a user by the credentials of a Unix socket."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from typing import NamedTuple

from aiohttp import web

from server.access.callers import Caller
from server.config import Config
from server.errors import Forbidden, StartFailed

# pid, uid and gid, by unix(7).
_CREDENTIALS = struct.Struct("3i")


class Credentials(NamedTuple):
    """The user at the other end of a Unix socket, as the kernel tells it."""

    uid: int
    gid: int


class Peer(NamedTuple):
    """The other end of a request. `name` is its address, or its user; `credentials` are there for Unix sockets only."""

    name: str
    credentials: Credentials | None = None


def peer_at(transport: object) -> Peer:
    """The other end of a connection; its name is "" where it has gone."""
    get = getattr(transport, "get_extra_info", None)
    if get is None:
        return Peer("")
    connection = get("socket")
    if connection is not None and connection.family == socket.AF_UNIX:
        return _user_at(connection)
    place = get("peername")
    return Peer(str(place[0]) if place else "")


_PEER = web.RequestKey("peer", Peer)


def peer_of(request: web.Request) -> Peer:
    """The other end of a request, remembered from the first time on: a client that goes has none any more."""
    peer = request.get(_PEER)
    if peer is None:
        peer = request[_PEER] = peer_at(request.transport)
    return peer


def is_on_loopback(request: web.Request) -> bool:
    """Whether the client is on this machine."""
    name, credentials = peer_of(request)
    return credentials is not None or bool(name and ipaddress.ip_address(name.split("%")[0]).is_loopback)


def require_loopback(request: web.Request, subject: str) -> None:
    """Raise Forbidden unless the client is on this machine; `subject` begins the message."""
    if not is_on_loopback(request):
        raise Forbidden(f"{subject} is for clients on this machine", "ask on the machine itself")


def peers_role(config: Config, credentials: Credentials) -> Caller | None:
    """The caller that a user of the Unix socket is: the daemon's own user, root, a member of the group; else None."""
    uid, gid = credentials
    if uid in (0, os.geteuid()):
        return Caller("admin", "the user who runs the daemon")
    if config.socket_group and _is_member(uid, gid, group_id(config.socket_group)):
        return Caller(config.socket_role, f"the group `{config.socket_group}`")
    return None


def group_id(name: str) -> int:
    """The number of a group. Raises StartFailed where there is none of this name."""
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartFailed(f"there is no group `{name}`", "set LM_SOCKET_GROUP to a group of this machine") from None


def _is_member(uid: int, gid: int, group: int) -> bool:
    import pwd

    if gid == group:
        return True
    with contextlib.suppress(KeyError, OSError):
        return group in os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    return False


def _user_at(connection: socket.socket) -> Peer:
    if not hasattr(socket, "SO_PEERCRED"):
        return Peer("", Credentials(-1, -1))  # a system that does not tell: keys only
    try:
        _, uid, gid = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
    except OSError:
        return Peer("", Credentials(-1, -1))
    return Peer(f"user {uid}", Credentials(uid, gid))
