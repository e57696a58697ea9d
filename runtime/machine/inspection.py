"""How does llama.cpp answer a question about itself, a model or this machine? Asked in a child process.

A child, because an odd header can abort the process that reads it, and because neither the daemon nor a puller loads
llama.cpp. `runtime/machine/inspector.py` is that process. Every answer may be `Refused`, so a caller must have another
way.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from quant.gguf.writer import encode_header, layout
from quant.types import Tensor
from runtime import child
from runtime.messages import CacheConfig
from runtime.processor import FOREIGN

log = logging.getLogger("lm.measure")
INSPECTOR = "runtime.machine.inspector"
RESERVE_SECONDS = 20.0
PROBE_SECONDS = 60.0
EXAMINE_SECONDS = 30.0
# The keys of one token in one layer for which attention is timed.
ROW_BYTES = 2048
_ALIGNMENT = 32
# Entries about the files that a header was read from.
_OF_ITS_FILE = re.compile(r"split\..*|general\.alignment")
# The only entry of a tokenizer that the shape of a tensor depends on.
_KINDS = "tokenizer.ggml.token_type_count"


class DraftMeans(msgspec.Struct, frozen=True):
    """The means of a worker for drafts within its model: `heads`, and states that go back by `rollback` tokens."""

    heads: bool = False
    rollback: int = 0


NO_DRAFTS = DraftMeans()


class Reserve(msgspec.Struct, tag="reserve"):
    """How many bytes would llama.cpp reserve for the model whose header is at `path`, with this KV cache?"""

    path: str
    cache_config: CacheConfig
    drafts: DraftMeans = NO_DRAFTS


class Probe(msgspec.Struct, tag="probe"):
    """How fast does this machine read weights of these types, with N threads, or by its graphics card?"""

    types: list[str]
    threads: int
    card: bool = False


class Examine(msgspec.Struct, tag="examine"):
    """Which version of llama.cpp is installed, and for which hardware was it built?"""


class Try(msgspec.Struct, tag="try"):
    """Does the model at `path` load, and does it compute a short text, where `memory` bytes are free?"""

    path: str
    threads: int
    memory: int


Question = Reserve | Probe | Examine | Try


class Reserved(msgspec.Struct, tag="reserved", frozen=True):
    """Bytes of the cache, of the graph's buffer and of the logits', for just this `cache_config` and these `drafts`.

    `repacks` are the types whose matrices this build copies into a layout of its own.
    """

    cache_config: CacheConfig
    cache: int
    compute: int
    output: int
    repacks: tuple[str, ...] = ()
    drafts: DraftMeans = NO_DRAFTS


class Probed(msgspec.Struct, tag="probed"):
    """The speed of this machine, as the model of time in `runtime/machine/step_time.py` wants it."""

    rates: dict[str, float]
    """Bytes of weights per second, by type."""
    layer_seconds: float
    """Time of a layer beside reading its weights."""
    head_seconds: float
    """Time of a query head for each token in the cache, where one layer's keys of a token take `ROW_BYTES`."""
    row_power: float = 0.0
    """The power of the keys' bytes with which `head_seconds` grows: 0 not at all, 1 in proportion."""
    steady: bool = True
    """False where something else used the processors during the measurement."""


class Device(msgspec.Struct, frozen=True):
    """A device that llama.cpp can compute on: `kind` is `cpu`, `gpu`, `igpu` (in the processor), `accel` or `meta`."""

    name: str
    description: str
    kind: str
    free: int = 0
    total: int = 0

    @property
    def graphics(self) -> bool:
        """Whether it is a graphics card, of its own or in the processor."""
        return self.kind in ("gpu", "igpu")

    @property
    def shared(self) -> bool:
        """Whether its memory is the machine's own."""
        return self.kind == "igpu" or self.name.startswith(("Metal", "MTL"))


class Examined(msgspec.Struct, tag="examined"):
    """`package` and `version` are llama-cpp-python's and llama.cpp's, `features` what it was built for."""

    package: str
    version: str
    features: dict[str, str]
    gpu: bool
    devices: list[Device]
    amx_is_broken: bool


class Tried(msgspec.Struct, tag="tried"):
    """The model has read a short text; `fault` is what was wrong with its answer, a clause, "" for nothing.

    `remark` is a sentence on what else the user should know.
    """

    fault: str
    remark: str = ""


class Refused(msgspec.Struct, tag="refused"):
    """No answer, and the reason; llama.cpp's own words where it gave any.

    `unloadable`: llama.cpp has judged the model, and will load it nowhere. Otherwise something else failed, or nobody
    knows. `asked_for` has the names of all tensors that llama.cpp looked for where the model has more than these.
    `crashed`: the process ended by it, as a worker's would.
    """

    reason: str
    unloadable: bool = False
    asked_for: list[str] = []
    crashed: bool = False

    @classmethod
    def crash(cls, signal: str) -> Refused:
        """The answer about a file at which the process was ended by this signal, such as `SIGSEGV`.

        An unknown instruction (`SIGILL`) is a fault of the installation, and says nothing of the file.
        """
        if signal == "SIGILL":
            return cls(FOREIGN)
        return cls(f"it crashes on this file ({signal})", unloadable=True, crashed=True)


Answer = Reserved | Probed | Examined | Tried | Refused


def ask(question: Question, seconds: float) -> Answer:
    """The answer, Refused where the child died, hung or said nothing that makes sense."""
    try:
        answer: Answer = child.ask(INSPECTOR, question, Answer, seconds)
        return answer
    except TimeoutError:
        return Refused(f"no answer within {seconds:.0f} s")
    except child.Crashed as crash:
        about_file = isinstance(question, Reserve | Try) or crash.signal == "SIGILL"
        return Refused.crash(crash.signal) if about_file else Refused(str(crash))
    except (OSError, EOFError, msgspec.MsgspecError, UnicodeDecodeError):
        return Refused("the process that was asked died")


def ask_reserved(
    metadata: Mapping[str, Any],
    tensors: Iterable[Tensor],
    cache_config: CacheConfig,
    drafts: DraftMeans = NO_DRAFTS,
) -> Reserved | None:
    """The bytes that llama.cpp reserves for a model of these metadata and `tensors`; None where it cannot say."""
    sizes = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.") or key == _KINDS}
    answer = ask_model(sizes, tensors, cache_config, drafts=drafts)
    return answer if isinstance(answer, Reserved) else None


def ask_model(
    metadata: Mapping[str, Any],
    tensors: Iterable[Tensor],
    cache_config: CacheConfig,
    kinds: Mapping[str, str] | None = None,
    drafts: DraftMeans = NO_DRAFTS,
) -> Reserved | Refused:
    """As `ask_reserved`, about the tokenizer too where `metadata` has one; with the reason where there is no answer.

    `kinds` are GGUF kinds of entries that are not the usual ones of their Python types.
    """
    with tempfile.TemporaryDirectory(prefix="lm-reserve-") as folder:
        path = Path(folder) / "header.gguf"
        write_skeleton(path, metadata, tensors, kinds)
        answer = ask(Reserve(str(path), cache_config, drafts), RESERVE_SECONDS)
    if isinstance(answer, Reserved):
        return answer
    refused = answer if isinstance(answer, Refused) else Refused("the process that was asked gave another answer")
    log.warning("llama.cpp cannot say what the model takes: %s", refused.reason)
    return refused


def write_skeleton(
    path: Path, metadata: Mapping[str, Any], tensors: Iterable[Tensor], kinds: Mapping[str, str] | None = None
) -> int:
    """A GGUF file whose tensors are a hole in the file; its length in bytes. It need not have tokens."""
    placed = layout(tensors)
    architecture = metadata.get("general.architecture", "")
    rows = {tensor.name: tensor.shape[-1] for tensor in placed}
    entries = {key: value for key, value in metadata.items() if not _OF_ITS_FILE.fullmatch(key)}
    if "tokenizer.ggml.tokens" not in entries:
        entries["tokenizer.ggml.model"] = "no_vocab"
    entries.setdefault(f"{architecture}.vocab_size", rows.get("token_embd.weight", 1))
    header = encode_header(entries, placed, kinds)
    length = len(header) + (placed[-1].offset + placed[-1].nbytes if placed else 0)
    with path.open("wb") as file:
        file.write(header)
        os.truncate(file.fileno(), length + -length % _ALIGNMENT)
    return length
