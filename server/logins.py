"""Logins at registries: the file in the home that `lm login` writes, and Docker's, which is only read.

`credentials.json` (mode 0600) maps hosts to `USER:PASSWORD`. Only `auths` of Docker's config counts: helpers are
programs that somebody else chose, and none is run. A file that cannot be understood is an error where it is ours, and
no login where it is Docker's.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

import msgspec

from registry.errors import RegistryError, StoreDamaged
from registry.store import fsops, reading
from registry.store.fsops import plainly
from server.config import Config

_LONGEST = 1 << 20
_DOCKER_HUB = "registry-1.docker.io"
_HOST = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}(:[0-9]{1,5})?")

Logins = dict[str, str]


def host_of(text: str) -> str:
    """The host that a login is for: `ghcr.io`, `localhost:5000`; from a URL too. Raises ValueError."""
    host = re.sub(r"^https?://", "", text.strip().lower()).partition("/")[0]
    if not _HOST.fullmatch(host) or ".." in host:
        raise ValueError("no host")
    return _DOCKER_HUB if host in ("docker.io", "index.docker.io") else host


def read_logins(config: Config) -> tuple[tuple[str, str], ...]:
    """Pairs of host and `USER:PASSWORD`; our own before Docker's. Raises StoreDamaged, StoreFailed."""
    return tuple((_of_docker(config.docker_config.expanduser()) | _own(config)).items())


def save_login(config: Config, host: str, login: str | None) -> bool:
    """Keep a login, or forget it (None); whether there was one. Raises DiskFull, StoreDamaged, StoreFailed."""
    logins, path = _own(config), credentials_file(config)
    there = host in logins
    logins = {name: pair for name, pair in logins.items() if name != host} | ({host: login} if login else {})
    with plainly(path.parent):
        fsops.replace(path, msgspec.json.encode(logins))
    return there


def credentials_file(config: Config) -> Path:
    """The file of our own logins."""
    return config.home / "credentials.json"


def _own(config: Config) -> Logins:
    data = reading.contents(credentials_file(config), _LONGEST)
    if data is None:
        return {}
    try:
        return msgspec.json.decode(data, type=Logins)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise StoreDamaged(
            f"`{credentials_file(config)}` cannot be understood", "move it away, and log in again"
        ) from None


class _Auth(msgspec.Struct):
    auth: str = ""


class _DockerConfig(msgspec.Struct):
    auths: dict[str, _Auth] = {}


def _of_docker(folder: Path) -> Logins:
    try:
        data = reading.contents(folder / "config.json", _LONGEST)
        found = msgspec.json.decode(data or b"{}", type=_DockerConfig)
    except (RegistryError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    logins = {}
    for name, entry in found.auths.items():
        try:
            pair = base64.b64decode(entry.auth, validate=True).decode()
            if ":" in pair and pair.isprintable():
                logins[host_of(name)] = pair
        except (binascii.Error, ValueError):
            continue
    return logins
