"""`POST /lm/login`: a login at a registry, tried there before it is kept; and `POST /lm/logout`."""

from __future__ import annotations

import asyncio
from http.client import HTTPMessage

import msgspec
from aiohttp import web

from registry.errors import AccessDenied, RegistryError, SourceUnavailable
from registry.net.authorize import Authorizer
from registry.net.fetch import Fetcher
from registry.net.network import Network
from registry.net.reaching import base_url, toward
from server.access.peers import require_loopback
from server.api.fields import KnownFields
from server.api.request import answer, read
from server.config import Config
from server.errors import BadBody
from server.logins import host_of, save_login
from server.services import SERVICES

_LONGEST_ANSWER = 1 << 20


class LoginBody(msgspec.Struct):
    """The body: a registry's host, and for a login the name and the password (or token)."""

    registry: str = ""
    username: str = ""
    password: str = ""

    @property
    def host(self) -> str:
        """The host. Raises BadBody."""
        try:
            return host_of(self.registry)
        except ValueError:
            raise BadBody(f"`{self.registry[:80]!r}` is no host of a registry", "send one such as `ghcr.io`") from None


async def login(request: web.Request) -> web.Response:
    """`POST /lm/login`: keep a login, once the registry has taken it."""
    body = await read(request, LoginBody, KnownFields())
    require_loopback(request, "a login")
    pair = f"{body.username}:{body.password}"
    if not body.username or not body.password or ":" in body.username or not pair.isprintable():
        raise BadBody("a login is a name without a colon, and a password", "send `username` and `password`")
    config, host = request.app[SERVICES].config, body.host
    await asyncio.to_thread(check, config, host, pair)
    await asyncio.to_thread(save_login, config, host, pair)
    return answer(request, {"registry": host})


async def logout(request: web.Request) -> web.Response:
    """`POST /lm/logout`: forget a login."""
    body = await read(request, LoginBody, KnownFields())
    require_loopback(request, "a login")
    host = body.host
    there = await asyncio.to_thread(save_login, request.app[SERVICES].config, host, None)
    return answer(request, {"registry": host, "forgotten": there})


def check(config: Config, host: str, pair: str) -> None:
    """Ask a registry for its first route, as every client does, with a login, `USER:PASSWORD`.

    Raises AccessDenied, also where the registry lets another host check logins; SourceUnavailable.
    """

    def refused(status: int, headers: HTTPMessage) -> RegistryError:
        if status in (401, 403):
            return AccessDenied(f"`{host}` does not accept that login", "check the name and the password or token")
        return SourceUnavailable(f"`{host}` answers {status} to a login", "is there a registry?")

    network = Network().with_hub(config.hub)
    base = base_url(network, host)
    network = toward(network, base)
    authorizer = Authorizer(network, base, "", {host: pair})
    fetcher = Fetcher(network.with_authorizer(authorizer))
    try:
        fetcher.document(f"{base}/v2/", "the answer to the login", _LONGEST_ANSWER, refused)
    finally:
        fetcher.close()
    if authorizer.elsewhere:
        raise AccessDenied(
            f"`{host}` has its logins checked by `{authorizer.elsewhere}`, to which lm sends none",
            "what everybody may read there needs no login",
        )
