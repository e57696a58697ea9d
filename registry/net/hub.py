"""How a hub is reached: its address, and the user's token and proxy. Travels in frames between processes."""

from __future__ import annotations

from dataclasses import dataclass, field

OLLAMA_URL = "https://registry.ollama.ai"


@dataclass(frozen=True)
class Hub:
    """A hub (`endpoint`, an http(s) URL), the bearer token for it ("" for none), and the way there.

    `ollama` is the URL of Ollama's registry or of a mirror, `registries` are hosts that may have private addresses.
    `logins` are pairs of a registry's host and `USER:PASSWORD`.
    `proxy` is the URL of a proxy for all hosts but the ones in `no_proxy`, "" to reach every host directly. Token and
    proxy are kept in memory only: the URL of a proxy may hold a password. `offline`: no other machine is asked.
    """

    endpoint: str
    token: str = field(default="", repr=False)
    proxy: str = field(default="", repr=False)
    no_proxy: tuple[str, ...] = ()
    ollama: str = OLLAMA_URL
    registries: tuple[str, ...] = ()
    logins: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    offline: bool = False
