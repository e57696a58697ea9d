"""Which requests the daemon takes: the names it answers to, and the pages that may ask.

A browser carries requests for pages of other origins. A name that an attacker's DNS points at loopback even makes such
a page "same origin" (facts/reliability.md C6). So the Host must be one of the daemon's names, a known Origin is
required of pages, and a request that the browser itself calls cross-site is refused. Programs other than browsers send
neither Origin nor Sec-Fetch-Site, and are not affected.
"""

from __future__ import annotations

import ipaddress
import re
import socket

from aiohttp import web

from server.config import Config
from server.errors import Forbidden
from server.values import is_loopback

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?")
# Origins of desktop programs that show pages; no website can have one. They may ask, as pages of this machine may, and
# change nothing: a program shows pages of others too, such as the outputs of a notebook in VS Code. (Ollama lets them
# change models, and pages of `file://` as well, which any HTML file is that was downloaded.)
_PROGRAMS = ("app://*", "tauri://*", "vscode-webview://*", "vscode-file://*")
# Media types that forms send, and that a page may send without asking first (Fetch standard).
_FORMS = frozenset(("application/x-www-form-urlencoded", "multipart/form-data", "text/plain"))
# Names that no public name server resolves, so that an attacker cannot point one at this machine.
_PRIVATE = re.compile(r"[a-z0-9_-]+|.+\.(?:local|internal|home\.arpa)")


class AccessRules:
    """Who may send requests, by the settings of one daemon."""

    def __init__(self, config: Config) -> None:
        self._wide = not is_loopback(config.host)
        self._origins = [_pattern(origin) for origin in (*_PROGRAMS, *config.origins)]
        self._names = {config.host.lower(), socket.gethostname().lower()} - {"0.0.0.0", "::", ""}
        # The host of an allowed origin is a name of the daemon too: a daemon in a network needs one.
        allowed = (origin.rstrip("/").lower() for origin in config.origins)
        self._names |= {match[1] for origin in allowed if (match := _ORIGIN.fullmatch(origin))}
        self._trusted = [_pattern(origin) for origin in config.origins if origin != "*"]

    def admit(self, request: web.Request, *, known: bool, changes: bool, tells_nothing: bool) -> None:
        """Check Host, Origin, forms and Sec-Fetch-Site, in this order; raises Forbidden.

        `known`: the caller has shown who it is. A page cannot have tricked anybody into such a request, so it may name
        any host. `changes`: the request would change what is here, which pages of other origins may not do unless a
        setting names theirs. `tells_nothing`: the route is open to anybody, so that a link of another site may lead
        to it.
        """
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not (known or self._is_own_name(hosts[0])):
            raise Forbidden(
                f"the daemon does not answer to the host `{', '.join(hosts)[:100]}`",
                "ask it as `localhost`, or start it with the name in LM_ORIGINS, such as `http://NAME`",
            )
        origin = request.headers.get("Origin")
        if origin is not None and not self.allows_origin(origin):
            raise Forbidden(
                f"pages of `{origin[:100]}` may not use this daemon", "start it with that in LM_ORIGINS to allow them"
            )
        if changes and origin is not None and not self._may_change(origin, hosts[0]):
            raise Forbidden(
                f"pages of `{origin[:100]}` may ask models, but change nothing here",
                "use `lm` for that, or start the daemon with that in LM_ORIGINS",
            )
        if _is_form(request, origin, changes):
            raise Forbidden("forms may not use this daemon", "send JSON with `Content-Type: application/json`")
        if tells_nothing and _is_visit(request):
            return
        if origin is None and request.headers.get("Sec-Fetch-Site") == "cross-site" and not self.allows_origin("null"):
            raise Forbidden("another site's page may not use this daemon", "it has to send its Origin")

    def _may_change(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may change something: the daemon's own, or one that a setting names."""
        origin = origin.lower()
        own = origin in (f"http://{host.lower()}", f"https://{host.lower()}")
        return own or any(pattern.fullmatch(origin) for pattern in self._trusted)

    def allows_origin(self, origin: str) -> bool:
        """Whether a page of this origin may ask: any page of this machine, and the origins in the settings."""
        origin = origin.lower()
        match = _ORIGIN.fullmatch(origin)
        local = match is not None and (is_loopback(match[1]) or match[1].endswith(".localhost"))
        return local or any(pattern.fullmatch(origin) for pattern in self._origins)

    def _is_own_name(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().strip("[]").rstrip(".")
        if is_loopback(name) or name.endswith(".localhost") or name in self._names:
            return True
        origins = [f"{scheme}://{form}" for scheme in ("http", "https") for form in (name, host.lower())]
        if any(pattern.fullmatch(each) for pattern in self._trusted for each in origins):
            return True
        return self._wide and (_is_address(name) or _PRIVATE.fullmatch(name) is not None)


def sent_key(request: web.Request) -> str:
    """The key that a request carries, "" where it has none: `Authorization: Bearer`, or Anthropic's `x-api-key`."""
    authorization = request.headers.get("Authorization")
    if authorization:
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            return key.strip()
    return request.headers.get("x-api-key", "")


def _pattern(origin: str) -> re.Pattern[str]:
    """A pattern for an origin in the settings: `*` alone is any origin, `*` within one any part of a name or port."""
    if origin == "*":
        return re.compile(r"[^\s]+")
    text = re.sub(r"(?<=[^:/])/+$", "", origin.lower())
    return re.compile(re.escape(text).replace(r"\*", r"[a-z0-9_.:\[\]-]*"))


def _is_form(request: web.Request, origin: str | None, changes: bool) -> bool:
    """Whether a browser sends a form, or to a route that changes something what a form could have sent.

    `curl -d` sends the media type of a form too, but no Origin.
    """
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return False
    typed = "Content-Type" in request.headers and request.content_type in _FORMS
    return request.headers.get("Sec-Fetch-Mode") == "navigate" or (changes and origin is not None and typed)


def _is_visit(request: web.Request) -> bool:
    """Whether a person goes to this address in a window of its own: not in a frame, and not by a form."""
    headers = request.headers
    mode, destination = headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")
    return request.method == "GET" and "Origin" not in headers and (mode, destination) == ("navigate", "document")


def _is_address(name: str) -> bool:
    """Whether the host is an IP address. DNS can point only names elsewhere, so an address is safe."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
