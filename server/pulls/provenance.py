"""Where a pulled model comes from and how it was made: entries of its GGUF file, fields of its manifest, digests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from quant import notes
from quant.convert.chat import sampling_entries
from quant.gguf.values import readable
from quant.plan import ModelPlan
from registry.sources.base import Companions
from registry.sources.opening import Source
from runtime.options import MAX_STOP_LENGTH, MAX_STOPS, Sampling
from runtime.text.gotemplate.chat import GoTemplate, fault_of
from server.config import VERSION

if TYPE_CHECKING:  # the daemon has use for some of this, and imports no numpy
    from quant.stream.copying import FileCopy
    from quant.stream.pipeline import Conversion

# Names in Ollama's `params` besides the sampling options, and names of its engine's, which lm decides by itself.
_NUMBERS = ("num_ctx", "num_predict")
_ENGINE = ("num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "low_vram", "numa")
_SAMPLING = frozenset(field.name for field in msgspec.structs.fields(Sampling))
# Characters of an origin that are kept.
_LONGEST = 500


def gguf_entries(source: Source, plan: ModelPlan, level: str) -> dict[str, Any]:
    """Metadata for the GGUF file: its source, the digests of the source's files, level, sampling, our version.

    A plan that is cut keeps the source in its metadata: it is made of a file that goes afterwards.
    """
    url = plan.metadata.get(notes.SOURCE, "") if notes.CUT in plan.metadata else source.url
    entries: dict[str, Any] = {notes.VERSION: VERSION, notes.LEVEL: level, notes.SOURCE: url}
    entries |= sampling_entries(recommended(plan))
    if source.revision:
        entries |= {"general.author": source.owner, "general.organization": source.owner} if source.owner else {}
        entries |= {notes.REVISION: source.revision, "general.source.repo_url": source.url}
        entries[notes.SOURCE_DIGESTS] = [f"{shard} {source.digest(shard)}" for shard in plan.shards]
    return entries


def recommended(plan: ModelPlan) -> dict[str, Any]:
    """The makers' sampling settings, as far as their values are in the ranges of requests."""
    return {name: value for name, value in plan.defaults.items() if _may_be(name, value)}


def _may_be(name: str, value: float) -> bool:
    try:
        msgspec.convert({name: value}, Sampling)
    except msgspec.ValidationError:
        return False
    return math.isfinite(value)


def settings(given: Mapping[str, Any], plan: ModelPlan) -> tuple[dict[str, Any], list[str]]:
    """The model's own settings: the makers' sampling, then a registry's `params`; and names that are no use here.

    An unknown name, or a value out of its range, would fail every request: it is passed over, and said.
    """
    kept = {name: value for name, value in given.items() if _counts(name, value)}
    dropped = [readable(name)[:40] for name in given if name not in kept and name not in _ENGINE]
    return recommended(plan) | kept, dropped


def _counts(name: str, value: Any) -> bool:
    """Whether an entry of `params` is one that requests know, with a value that they take."""
    if name == "stop":
        texts = value if isinstance(value, list) else [value]
        fits = all(isinstance(text, str) and len(text) <= MAX_STOP_LENGTH for text in texts)
        return fits and len(texts) <= MAX_STOPS
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in _NUMBERS:
        return number and float(value).is_integer() and abs(value) < 2**31
    return number and name in _SAMPLING and _may_be(name, value)


def fingerprint(source: Source, conversion: Conversion | FileCopy) -> str:
    """A text that is the same for two pulls only if they write the same bytes: a pull may go on with the other's file.

    It covers the plan, the level, this program's version and the content of every file of the source.
    """
    stamps = "".join(source.stamp(shard) for shard in conversion.plan.shards)
    return f"{conversion.fingerprint} {stamps}"


def digests(source: Source, conversion: Conversion | FileCopy) -> dict[str, str]:
    """`made_of`: the digest of all that decides the model. `content`: a digest of the source's weights alone, whatever
    is made of them; another one says that the source has changed."""
    stamps = "".join(source.stamp(shard) for shard in conversion.plan.shards)
    content = hashlib.sha256(stamps.encode()).hexdigest()[:32]
    return {"made_of": model_digest(source, conversion), "content": content}


def model_digest(source: Source, conversion: Conversion | FileCopy) -> str:
    """A digest of everything that decides the model: the file, and what its makers put beside it."""
    recommendation = json.dumps(recommended(conversion.plan), sort_keys=True)
    beside = source.companions
    texts = (
        repr((dict(beside.params), beside.system, beside.template, beside.licenses)) if beside != Companions() else ""
    )
    texts += repr(beside.messages) if beside.messages else ""
    texts += repr(beside.signatures) if beside.signatures else ""
    texts += "".join(source.stamp(name) for name in filter(None, (*beside.adapters, beside.draft)))
    text = f"{fingerprint(source, conversion)} {recommendation}{texts}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def manifest_config(origin: str, revision: str, plan: ModelPlan, level: str, own: dict[str, Any]) -> Any:
    """The manifest's config: Ollama's fields, and ours under `lm`, to which `own` is added.

    `origin` and `revision` say where the model came from.
    """
    metadata = plan.metadata
    lm: dict[str, Any] = {
        "source": origin,
        "revision": revision,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": VERSION,
        "parameters": plan.parameters,
        "level": level,
    }
    if plan.level:
        lm["published"] = plan.shards[0]
        lm["origin"] = _origin(metadata)
    return {
        "model_format": "gguf",
        "model_family": plan.architecture,
        "model_families": [plan.architecture],
        "model_type": count_text(plan.parameters),
        "architecture": "amd64",
        "os": "linux",
        "file_type": level,
        "capabilities": list(plan.capabilities),
        "context_length": metadata.get(f"{plan.architecture}.context_length", 0),
        "embedding_length": metadata.get(f"{plan.architecture}.embedding_length", 0),
        "lm": lm | own,
    }


def take_template(config: dict[str, Any], template: str, plan: ModelPlan) -> str:
    """Note a Go template in a config where the file has no template of its own; why it cannot be used, or ""."""
    if not template or "tokenizer.chat_template" in plan.metadata:
        return ""
    if fault := fault_of(template):
        return fault
    config["lm"]["template"] = "only"
    more = [each for each in GoTemplate(template).capabilities if each not in config["capabilities"]]
    config["capabilities"] = [*config["capabilities"], *more]
    return ""


def _origin(metadata: Mapping[str, Any]) -> str:
    """The source that lm made a file from before it was carried here, as the file says; "" for any other file."""
    source, revision = metadata.get(notes.SOURCE), metadata.get(notes.REVISION)
    if not isinstance(source, str):
        return ""
    return readable(f"{source} at {revision}" if isinstance(revision, str) else source)[:_LONGEST]


def count_text(count: int) -> str:
    """A number of parameters as people write it: 5.8M, 8.0B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
