"""How a hub is reached: its address, and the user's token and proxy. Travels in frames between processes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hub:
    """A hub (`endpoint`, an http(s) URL), the bearer token for it ("" for none), and the way there.

    `proxy` is the URL of a proxy for all hosts but the ones in `no_proxy`, "" to reach every host directly. Token and
    proxy are kept in memory only: the URL of a proxy may hold a password.
    """

    endpoint: str
    token: str = field(default="", repr=False)
    proxy: str = field(default="", repr=False)
    no_proxy: tuple[str, ...] = ()
