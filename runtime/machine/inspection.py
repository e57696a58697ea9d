"""Asking llama.cpp, in a child process, what cannot be known for certain without it; the answers come from `meter.py`.

A child, because an odd header can abort the process that reads it, and because neither the daemon nor a puller loads
llama.cpp. Whoever asks must have another way: every answer may be None.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from quant.gguf.writer import encode_header, layout
from quant.types import Tensor
from runtime import child
from runtime.messages import CacheConfig

log = logging.getLogger("lm.measure")
RESERVE_SECONDS = 20.0
PROBE_SECONDS = 60.0
ROW_BYTES = 2048
_ALIGNMENT = 32
# The one entry of a tokenizer by which tensors are shaped.
_KINDS = "tokenizer.ggml.token_type_count"


class Reserve(msgspec.Struct, tag="reserve"):
    """What would the model take whose header is at `path`, loaded like this?"""

    path: str
    cache_config: CacheConfig


class Probe(msgspec.Struct, tag="probe"):
    """How fast does this machine read weights of these types, with so many threads, or by its graphics card?"""

    types: list[str]
    threads: int
    card: bool = False


class Examine(msgspec.Struct, tag="examine"):
    """What is llama.cpp, and what was it built with?"""


Question = Reserve | Probe | Examine


class Reserved(msgspec.Struct, tag="reserved", frozen=True):
    """Bytes of the cache, of the graph's buffer and of the logits', for just this `cache_config`.

    `repacks` are the types whose matrices this build copies into a layout of its own.
    """

    cache_config: CacheConfig
    cache: int
    compute: int
    output: int
    repacks: tuple[str, ...] = ()


class Probed(msgspec.Struct, tag="probed"):
    """Bytes of weights per second by type, seconds that a layer takes beside them, and that each query head of it takes
    for each token before, where the keys of a token are `ROW_BYTES`; it grows with a power of these.

    What is not `steady` was measured while something else used the processors too.
    """

    rates: dict[str, float]
    layer_seconds: float
    head_seconds: float
    row_power: float = 0.0
    steady: bool = True


class Device(msgspec.Struct, frozen=True):
    """What llama.cpp can compute on: `kind` is `cpu`, `gpu`, `igpu` (in the processor), `accel` or `meta`; bytes."""

    name: str
    what: str
    kind: str
    free: int = 0
    total: int = 0

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


class Refused(msgspec.Struct, tag="refused"):
    """llama.cpp said no, in its own words."""

    reason: str


Answer = Reserved | Probed | Examined | Refused


def ask(question: Question, seconds: float) -> Answer:
    """The answer, Refused where the child died, hung or said nothing that makes sense."""
    try:
        answer: Answer = child.ask("runtime.machine.inspector", question, Answer, seconds)
        return answer
    except TimeoutError:
        return Refused(f"no answer within {seconds:.0f} s")
    except (OSError, EOFError, msgspec.MsgspecError, UnicodeDecodeError):
        return Refused("the process that was asked died")


def ask_reserved(
    metadata: Mapping[str, Any],
    tensors: Iterable[Tensor],
    cache_config: CacheConfig,
) -> Reserved | None:
    """What llama.cpp itself reserves for a model of these metadata and `tensors`; None where it cannot say."""
    with tempfile.TemporaryDirectory(prefix="lm-reserve-") as folder:
        path = Path(folder) / "header.gguf"
        write_skeleton(path, metadata, tensors)
        answer = ask(Reserve(str(path), cache_config), RESERVE_SECONDS)
    if isinstance(answer, Reserved):
        return answer
    log.info("llama.cpp cannot say what the model takes: %s", answer)
    return None


def write_skeleton(path: Path, metadata: Mapping[str, Any], tensors: Iterable[Tensor]) -> int:
    """A GGUF file without a tokenizer whose tensors are a hole in the file; its length in bytes."""
    placed = layout(tensors)
    architecture = metadata.get("general.architecture", "")
    rows = {tensor.name: tensor.shape[-1] for tensor in placed}
    entries = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.") or key == _KINDS}
    entries["tokenizer.ggml.model"] = "no_vocab"
    entries.setdefault(f"{architecture}.vocab_size", rows.get("token_embd.weight", 1))
    header = encode_header(entries, placed)
    length = len(header) + (placed[-1].offset + placed[-1].nbytes if placed else 0)
    with path.open("wb") as file:
        file.write(header)
        os.truncate(file.fileno(), length + -length % _ALIGNMENT)
    return length
