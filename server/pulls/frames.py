"""The frames that the daemon and a puller exchange. Sizes are bytes.

As with a worker's frames: msgspec structs, tagged by type, sent as length-prefixed MessagePack. The token travels in
`PullTask`, never on a command line or in the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from quant.cuts.wish import NO_CUT, Cut
from registry.net.hub import Hub
from runtime.messages import CacheConfig
from server.children.frames import ErrorReport
from server.policy.rules import ANYTHING, PolicyRules

Effort = Literal["", "quick", "importance", "best"]


class ModelRequest(msgspec.Struct, frozen=True):
    """A model to plan for: the common part of `PullTask` and of the adviser's `AdviceTask`.

    `source` is a name that `registry.names.parse` reads in the child as in the daemon. `cache_folder` holds compiled
    kernels and the measured speed of this machine. `disk_free` counts the bytes that the store's disk has left.
    `cache_config` is the KV cache that the model will be loaded with.
    """

    source: str
    hub: Hub
    cache_folder: str
    disk_free: int
    cache_config: CacheConfig


class Statistics(msgspec.Struct, frozen=True):
    """Statistics of a model's inputs, by which errors are weighed: a file of importance of llama.cpp's at `path`.

    `name` is for people. `marks` are of the text that was read (`runtime.meter.passages`), empty where nobody knows it.
    `grams` is a file of Gram matrices (`quant/feedback/stored.py`) in the cache, by which errors are fed back. `harms`
    is a file of measured harms (`quant/levels/harms.py`), by which types are chosen.
    """

    path: str
    name: str
    marks: list[str] = []
    grams: str = ""
    harms: str = ""


class PullTask(msgspec.Struct, tag="pull"):
    """Daemon to puller, the first frame: the model to bring, and the folder in the store where its file is made.

    `limit_rate` is in bytes/s, 0 for no limit. `pre` names the pre-tokenizer, "" unless the user had to. `here` has the
    digests (`Planned.made_of`) of the variants that the store has already.
    `accept_unknown_keys`: go on where nobody knows a key of the model's configuration. `base` is the model that an
    adapter is for, "" unless the user named it. `sharing` says how a finished file of this machine may be taken over:
    by a hard link (a reflink comes before it), or by a copy alone. With `place` it is read where it is if it cannot be
    shared. The model has to keep the `rules`. `as_it_is`: whole weights in one GGUF file are not quantized. `effort`
    says how errors are weighed: `quick` by the weights alone, `importance` by `statistics`, `best` by their Gram
    matrices. Without these, and for "", an earlier pull's count, which lie in the folder. `cut` drops parts of a GGUF
    file, whose rest is copied.
    """

    model: ModelRequest
    folder: str
    limit_rate: float = 0.0
    pre: str = ""
    accept_unknown_keys: bool = False
    here: list[str] = []
    base: str = ""
    sharing: Literal["place", "link", "reflink", "copy"] = "reflink"
    as_it_is: bool = False
    effort: Effort = ""
    statistics: Statistics | None = None
    cut: Cut = NO_CUT
    rules: PolicyRules = ANYTHING


class Note(msgspec.Struct, tag="note"):
    """Puller to daemon: a sentence for the user, about something that is not as expected."""

    text: str


class Planned(msgspec.Struct, tag="planned"):
    """Puller to daemon: the level, and the reason for it. All checks are done and no weight has moved yet.

    `title` names the source for people. `source_bytes` will be read, `output_bytes` written, of which `resumed` are
    there from an earlier pull. Two pulls with the same `made_of` make the same model: it is a digest of source, recipe
    and version. `content` is a digest of the source alone. `plain` is the `made_of` of the same without statistics,
    "" where there are none.
    """

    level: str
    reason: str
    title: str
    source_bytes: int
    output_bytes: int
    resumed: int
    made_of: str
    content: str = ""
    plain: str = ""


class Progress(msgspec.Struct, tag="progress"):
    """Puller to daemon: `completed` of `total` bytes of the phase `phase` are done, at `rate` bytes/s.

    `total` is 0 where it is not known. `rate` is measured over the last seconds. `doing` is for people, "" where the
    phase says enough.
    """

    phase: str
    completed: int = 0
    total: int = 0
    rate: float = 0.0
    doing: str = ""


class FileBeside(msgspec.Struct):
    """A file that a puller wrote beside the weights, an adapter's or a draft model's: SHA-256 (hexadecimal), bytes."""

    sha256: str
    size: int


def adapter_path(folder: Path, number: int) -> Path:
    """The file of the adapter of this number, from 0, in a pull's folder."""
    return folder / f"adapter-{number}"


def draft_path(folder: Path) -> Path:
    """The file of a draft model in a pull's folder."""
    return folder / "draft"


class Done(msgspec.Struct, tag="done"):
    """Puller to daemon, the last frame: the file of `size` bytes is written and synced.

    The daemon commits it under `tag`. `config`, `params` and the texts go into the manifest: instructions (`system`), a
    Go template, licences, turns of a conversation; `card` is a quality card that came along. The file is a model's, or
    an `adapter`'s. `adapters` change the model, and lie beside it, as its `draft` does. `shared` is the state
    (`registry/store/sharing.py`) of a file that is another program's too; "" for one of lm's own. `signatures`
    came from the source; they are kept where they hold.
    """

    sha256: str
    size: int
    tag: str
    config: dict[str, Any]
    params: dict[str, Any]
    adapter: bool = False
    adapters: list[FileBeside] = []
    draft: FileBeside | None = None
    system: str = ""
    template: str = ""
    licenses: list[str] = []
    messages: list[dict[str, str]] = []
    card: dict[str, Any] = {}
    signatures: list[bytes] = []
    shared: str = ""


FromPuller = Note | Planned | Progress | Done | ErrorReport
