"""The frames that the daemon and a puller exchange; sizes are bytes.

As with a worker's frames: msgspec structs, tagged by type, length-prefixed MessagePack. The token travels in `Task`,
never on a command line or in the environment.
"""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.messages import CacheConfig
from server.children.frames import ErrorReport


class Task(msgspec.Struct, tag="task"):
    """The first frame, daemon to puller: what to bring, and what it must fit into.

    `source` is a name that `registry.names.parse` reads the same way, `folder` the place in the store where the file is
    made, `disk_free` what the store's disk has left. `proxy` is for all hosts but those in `no_proxy`; `limit_rate` is
    in bytes/s, 0 for none. `cache_config` is the KV cache that the model will be loaded with. `pre` names the
    pre-tokenizer where the user had to.
    """

    source: str
    folder: str
    cache: str
    endpoint: str
    token: str
    proxy: str
    no_proxy: str
    limit_rate: float
    disk_free: int
    cache_config: CacheConfig
    pre: str = ""


class Note(msgspec.Struct, tag="note"):
    """A sentence for the user, about what is not as expected."""

    text: str


class Planned(msgspec.Struct, tag="planned"):
    """The level, and why: everything was checked and no weight has moved yet; `resumed` bytes of output are there.

    `made_of` is another text where anything is another that decides the result: source, recipe, version.
    """

    level: str
    reason: str
    title: str
    source_bytes: int
    output_bytes: int
    resumed: int
    made_of: str


class Progress(msgspec.Struct, tag="progress"):
    """How far a phase is; `total` 0 where that is not known, `rate` in bytes/s over the last seconds."""

    phase: str
    completed: int = 0
    total: int = 0
    rate: float = 0.0


class Done(msgspec.Struct, tag="done"):
    """The file is written and synced; the daemon commits it under `tag`. `config` and `params` go into the manifest."""

    sha256: str
    size: int
    tag: str
    config: dict[str, Any]
    params: dict[str, Any]


FromPuller = Note | Planned | Progress | Done | ErrorReport
