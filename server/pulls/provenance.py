"""Where a pulled model comes from and how it was made: entries of its GGUF file, fields of its manifest, digests."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from quant.plan import ModelPlan
from quant.stream.copying import FileCopy
from quant.stream.pipeline import Conversion
from registry.names import Reference
from registry.sources.opening import Source
from server.config import VERSION


def gguf_entries(source: Source, plan: ModelPlan, level: str) -> dict[str, Any]:
    """Metadata for the GGUF file: its source, the digests of the source's files, the level, our version."""
    entries: dict[str, Any] = {"lm.version": VERSION, "lm.level": level, "lm.source": source.url}
    if source.revision:
        owner = source.title.partition("/")[0]
        entries |= {"general.author": owner, "general.organization": owner}
        entries |= {"lm.source_revision": source.revision, "general.source.repo_url": source.url}
        entries["lm.source_digests"] = [f"{shard} {source.digest(shard)}" for shard in plan.shards]
    return entries


def fingerprint(source: Source, conversion: Conversion | FileCopy) -> str:
    """A text that is the same for two pulls only if they write the same bytes: a pull may go on with the other's file.

    It covers the plan, the level, this program's version and the content of every file of the source.
    """
    stamps = "".join(source.stamp(shard) for shard in conversion.plan.shards)
    return f"{conversion.fingerprint} {stamps}"


def model_digest(source: Source, conversion: Conversion | FileCopy) -> str:
    """A digest of everything that decides the model: the file, and the sampling options that its makers recommend."""
    recommended = json.dumps(dict(conversion.plan.defaults), sort_keys=True)
    return hashlib.sha256(f"{fingerprint(source, conversion)} {recommended}".encode()).hexdigest()[:32]


def manifest_config(reference: Reference, source: Source, plan: ModelPlan, level: str, own: dict[str, Any]) -> Any:
    """The manifest's config: Ollama's fields, and ours under `lm`, to which `own` is added."""
    metadata = plan.metadata
    from_hub = reference.kind == "hub"
    lm: dict[str, Any] = {
        "source": f"hf.co/{reference.location}" if from_hub else reference.location,
        "revision": source.revision or "",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": VERSION,
        "parameters": plan.parameters,
        "level": level,
    }
    if plan.level:
        lm["published"] = plan.shards[0]
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


def count_text(count: int) -> str:
    """A number of parameters as people write it: 5.8M, 8.0B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
