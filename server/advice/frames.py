"""The frames that the daemon and an adviser exchange. Sizes are bytes; see `server/pulls/frames.py` for their form."""

from __future__ import annotations

from typing import Any

import msgspec

from server.children.frames import ErrorReport
from server.pulls.frames import ModelRequest


class AdviceTask(msgspec.Struct, tag="advise"):
    """Daemon to adviser, the only frame: judge the levels of a model, and choose one as a pull would.

    Without `path` the model is looked up at `model.source`. With `path`, that file in the store is judged, and
    `installed` is the name of its model. `published` is the level of such a file if it was published at that level, and
    "" if lm made it. The source of a published file may have other levels to choose from: `model.source` is that
    source, and "" where it need not be asked.

    `level` is the level that the user asks for, None for the best. `memory` counts the bytes that models may use, 0 for
    as many as the machine allows. Levels that write fewer than `enough` tokens/s are too slow. `loaded` lists the names
    and bytes of the models that could be unloaded, the least recently used first.
    """

    model: ModelRequest
    path: str
    published: str
    installed: str
    level: str | None
    memory: int
    enough: float
    loaded: list[tuple[str, int]]


class Advised(msgspec.Struct, tag="advised"):
    """Adviser to daemon, the last frame: the body that answers `POST /lm/advise`."""

    answer: dict[str, Any]


FromAdviser = Advised | ErrorReport
