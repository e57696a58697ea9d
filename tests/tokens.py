"""A token server's tokens: each is for the scope that was asked for, and expires after some requests."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

SERVICE = "registry of a test"


@dataclass
class Tokens:
    """Tokens for `login` (`user:password`). `lifetime`: requests until one expires; `grants`: what it grants at most.

    `wishes` are the scopes that were asked for, in order.
    """

    login: str = "me:secret"
    lifetime: int = 1 << 30
    grants: tuple[str, ...] = ("pull", "push")
    wishes: list[str] = field(default_factory=list)
    _left: dict[str, int] = field(default_factory=dict)

    def issue(self, target: str, authorization: str) -> tuple[int, bytes]:
        """The answer of the token server."""
        query = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
        if authorization != "Basic " + base64.b64encode(self.login.encode()).decode():
            return 401, b"{}"
        assert query["service"] == SERVICE
        self.wishes.append(query["scope"])
        name, _, actions = query["scope"].removeprefix("repository:").rpartition(":")
        granted = ",".join(each for each in actions.split(",") if each in self.grants)
        token = f"{len(self.wishes)}:{name}:{granted}"
        self._left[token] = self.lifetime
        return 200, json.dumps({"token": token, "expires_in": 60}).encode()

    def challenge(self, method: str, path: str, authorization: str, realm: str) -> dict[str, str]:
        """The headers of a 401 for a request without a good token; none for one that is let through."""
        match = re.match(r"/v2/(.+)/(?:blobs|manifests)/", path)
        name, needed = match[1] if match else "", "pull" if method in ("GET", "HEAD") else "pull,push"
        token = authorization.removeprefix("Bearer ")
        _, _, scope = token.partition(":")
        owner, _, actions = scope.rpartition(":")
        if self._left.get(token, 0) and owner == name and set(needed.split(",")) <= set(actions.split(",")):
            self._left[token] -= 1
            return {}
        wanted = f'scope="repository:{name}:{needed}"'
        return {"WWW-Authenticate": f'Bearer realm="{realm}",service="{SERVICE}",{wanted}'}
