"""Authorization at a registry: a token from the address that its challenge names, or a name and a password.

    GET /v2/…                                → 401, WWW-Authenticate: Bearer realm="https://auth.example/token",service="…"
    GET https://auth.example/token?service=…&scope=repository:NAME:pull      → {"token": "…"}

The credentials go to the registry's own host and port, to a realm there, and to Docker Hub's own token server. Any
other realm gets them only where the user logged in to that host by name; else it is asked for an anonymous token.
Tokens go to the registry only.

Source: https://distribution.github.io/distribution/spec/auth/token/ and the OCI distribution specification.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

from registry.errors import AccessDenied, RegistryError, SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.fetch import Fetcher
from registry.net.network import Network

_LONGEST_ANSWER = 1 << 20
# Registries whose logins another host of the same owner checks: the only ones that get a login for another host.
_TOKEN_SERVERS = {"registry-1.docker.io": "auth.docker.io"}
# A name begins where no letter is before it: then a challenge of letters alone is read once, not from each of them.
_PARAMETER = re.compile(r'(?<![A-Za-z_])([A-Za-z_]{1,64})\s*=\s*(?:"((?:[^"\\]|\\.){0,2048})"|([^\s,"]{1,2048}))')
_HEADER_VALUE = re.compile(r"[\x21-\x7e]{1,65536}")


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class Authorizer:
    """The header `Authorization` for one repository of a registry; renewed when the registry refuses it.

    Used by all threads that fetch from the repository.
    """

    def __init__(self, network: Network, base: str, scope: str, logins: Mapping[str, str]) -> None:
        """`base` is the registry's URL. `logins` maps hosts (`name` or `name:port`) to `USER:PASSWORD`."""
        self._network, self._home, self._scope = network, HttpAddress.parse(base), scope
        self._logins = {host.lower(): pair for host, pair in logins.items()}
        self._lock = threading.Lock()
        self._header = ""
        self.elsewhere = ""
        """The host of a token server that got no credentials although there are some for the registry."""

    @property
    def header(self) -> str:
        """The value to send, "" for none."""
        return self._header

    @property
    def logged_in(self) -> bool:
        """Whether there are credentials for the registry, and they were not withheld."""
        return self._login(self._home) is not None and not self.elsewhere

    def renew(self, refused: str, challenge: str) -> bool:
        """Get another value than `refused`, by the registry's `challenge`; whether there is one.

        Raises AccessDenied, SourceUnavailable.
        """
        with self._lock:
            if self._header != refused:  # another thread was faster
                return True
            scheme, _, rest = challenge.strip().partition(" ")
            values = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}
            if scheme.lower() == "bearer" and "realm" in values:
                header = f"Bearer {self._token(values)}"
            elif scheme.lower() == "bearer" and (login := self._login(self._home)):
                header = f"Bearer {login.partition(':')[2]}"  # another lm, whose keys are no passwords of anybody
            elif scheme.lower() == "basic" and (login := self._login(self._home)):
                header = _basic(login)
            else:
                return False
            changed, self._header = header != refused, header
            return changed

    def _token(self, values: Mapping[str, str]) -> str:
        """A token from the realm of a challenge."""
        realm = self._home.join(values["realm"])
        if realm.scheme != "https" and realm.origin != self._home.origin:
            raise SourceUnavailable(f"`{self._home.host}` sends its users to `{realm.host}` without TLS")
        query = {key: values[key] for key in ("service",) if values.get(key)}
        query["scope"] = values.get("scope") or self._scope
        login = self._login(self._home if self._is_own(realm) else realm)
        self.elsewhere = realm.netloc if login is None and self._login(self._home) else ""
        url = f"{realm.scheme}://{realm.netloc}{realm.target}{'&' if '?' in realm.target else '?'}{urlencode(query)}"
        try:
            data = self._ask(url, _basic(login) if login else "")
        except AccessDenied:
            known = "does not accept that login" if login else "wants a login"
            raise AccessDenied(f"`{self._home.netloc}` {known}", f"`lm login {self._home.netloc}`") from None
        try:
            answer = msgspec.json.decode(data, type=_Token)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            answer = _Token()
        token = answer.token or answer.access_token
        if not _HEADER_VALUE.fullmatch(token):
            raise SourceUnavailable(f"`{realm.host}` gives no token for `{self._home.host}`")
        return token

    def _is_own(self, realm: HttpAddress) -> bool:
        """Whether a token server is the registry itself, or one that is known to be its own."""
        known = _TOKEN_SERVERS.get(self._home.host) == realm.host
        both = (self._home.scheme, self._home.port, realm.scheme, realm.port)
        return realm.origin == self._home.origin or (known and both == ("https", 443) * 2)

    def _ask(self, url: str, header: str) -> bytes:
        fetcher = Fetcher(self._network.with_authorizer(_Fixed(header)))
        try:
            return fetcher.document(url, "a token", _LONGEST_ANSWER, self._refused)
        finally:
            fetcher.close()

    def _refused(self, status: int, headers: object) -> RegistryError:
        if status in (400, 401, 403):
            return AccessDenied(f"`{self._home.host}` gives no token")
        return SourceUnavailable(f"the token server of `{self._home.host}` answers {status}", "try again later")

    def _login(self, address: HttpAddress) -> str | None:
        keys = (f"{address.host}:{address.port}", address.netloc)
        return next((self._logins[key] for key in keys if key in self._logins), None)


class _Fixed:
    """A header that is never renewed."""

    def __init__(self, header: str) -> None:
        self.header = header

    def renew(self, refused: str, challenge: str) -> bool:
        """Never."""
        return False


def _basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()
