"""The frames that the daemon and an adviser exchange; sizes are bytes. As those of a pull: see `messages.py`."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.messages import CacheConfig
from server.children.frames import ErrorReport


class Ask(msgspec.Struct, tag="ask"):
    """What would this model take here, and which of its levels should it be?

    `source` is a name that `registry.names.parse` reads the same way; where `path` is given, that file is the model,
    and `published` its level where it came as it is: its `source`, if named, has others to choose from. `memory` is
    what models may use, 0 for what the machine allows; `enough` the tokens/s below which a level is too slow. `loaded`
    are the models that could be unloaded, the least recently used first, with what they hold.
    """

    source: str
    path: str
    published: str
    installed: str
    level: str | None
    cache: str
    endpoint: str
    token: str
    proxy: str
    no_proxy: str
    disk_free: int
    cache_config: CacheConfig
    memory: int
    enough: float
    loaded: list[tuple[str, int]]


class Advised(msgspec.Struct, tag="advised"):
    """The answer, as `POST /lm/advise` gives it."""

    answer: dict[str, Any]


FromAdviser = Advised | ErrorReport
