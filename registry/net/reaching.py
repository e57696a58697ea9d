"""Which hosts are asked, and how: over TLS and at public addresses, but for this machine and hosts that the user named.

`LM_REGISTRIES` names hosts of one's own network: `registry.lan:5000` may have a private address, `http://box:5000` is
asked without TLS too, `https://localhost:5000` over TLS. The hub's token goes to none of them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from registry.errors import AccessDenied
from registry.net.address import HttpAddress
from registry.net.hub import OLLAMA_URL
from registry.net.network import Network

_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")


def is_loopback(host: str) -> bool:
    """Whether a host, without a port, is this machine."""
    return _LOOPBACK.fullmatch(host.strip("[]").lower()) is not None


def base_url(network: Network, host: str) -> str:
    """The URL of a registry's host (`name` or `name:port`): plain HTTP for this machine and where the user said so."""
    named, here = _named(network), is_loopback(re.sub(r":[0-9]+$", "", host))
    plain = f"http://{host.lower()}" in named or (here and f"https://{host.lower()}" not in named)
    return f"{'http' if plain else 'https'}://{host}"


def toward(network: Network, url: str) -> Network:
    """The way to the host of a URL that a user typed, without the hub's token.

    Raises AccessDenied for plain HTTP to another machine that the user has not named so, SourceUnavailable for no URL.
    """
    address = HttpAddress.parse(url)
    named = {re.sub(r"^https?://", "", name) for name in _named(network)}
    if is_loopback(address.host):
        named |= {address.host}
    elif address.scheme == "http" and not {f"http://{address.host}", f"http://{address.netloc}"} & _named(network):
        raise AccessDenied(
            f"`http://{address.netloc}` would send the model over the network unprotected",
            f"use `https://`, or allow it: `LM_REGISTRIES=http://{address.netloc}`",
        )
    return replace(network, token=None, private=frozenset(named))


def _named(network: Network) -> set[str]:
    """The hosts that the user named; a mirror of Ollama's registry is one of them."""
    mirror = () if network.ollama == OLLAMA_URL else (re.sub(r"^(https?://[^/]+).*", r"\1", network.ollama),)
    return {name.lower().rstrip("/") for name in (*network.registries, *mirror)}
