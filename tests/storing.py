"""Putting models into a store, as a pull commits them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from registry.names import Name, parse
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.ingest import Ingest
from registry.store.layers import Staged
from registry.store.store import Store


def weights(ingest: Ingest, data: bytes) -> Staged:
    """The layer of a file that holds `data`."""
    return Staged.file(ingest.data, manifest.MODEL, hashlib.sha256(data).hexdigest(), len(data))


def card(model: Model, mean: float = 0.5, **more: Any) -> dict[str, Any]:
    """A quality card of these weights, whose mean divergence is `mean`."""
    names = ("median", "p99", "p999", "top1", "flips", "perplexity", "reference_perplexity", "ratio")
    figures = {name: {"value": 0.9, "error": 0.01} for name in names} | {"mean": {"value": mean, "error": None}}
    reference = {"name": "the original", "level": "BF16", "whole": True, "why": "it was named", "digest": "sha256:1"}
    text = {"name": "a text", "digest": "2", "window": 512}
    own = {"weights": model.blob_digest, "manifest": model.digest, "windows": 1, "reference": reference, "text": text}
    return own | figures | {"errors": "by windows", "measured": "2026-01-01", "version": "1", **more}


def put(
    store: Store,
    name: str | Name,
    data: bytes = b"weights",
    config: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    chosen: bool = True,
) -> Model:
    """Commit `data` as the weights of a model."""
    ingest = store.begin(str(name))
    ingest.data.write_bytes(data)
    layers = [weights(ingest, data), Staged.json(dict(params or {"stop": ["x"]}), manifest.PARAMS)]
    key = parse(name).name if isinstance(name, str) else name
    return store.commit(ingest, layers, key, dict(config or {"model_format": "gguf"}), chosen)


def put_better(store: Store, model: Model, data: bytes = b"better weights", gain: float = 0.4) -> Model:
    """Put better weights in the place of a model's, whose manifest is kept, as an improvement does it."""
    before, after = card(model), card(model, 0.5 - gain)
    ingest = store.begin(f"improve {model.name}", beside=True)
    ingest.data.write_bytes(data)
    file = weights(ingest, data)
    figures = {"before": before["mean"], "after": after["mean"]}
    improved = {"older": model.digest, "was": sorted(model.digests), "at": "2026-01-01T00:00:00+00:00", **figures}
    layers = [
        file,
        Staged.json(after | {"weights": file.layer.digest}, manifest.QUALITY),
        Staged.json(model.config | {"lm": model.own | {"improved": improved}}, manifest.CONFIG),
    ]
    try:
        listed = manifest.with_layers(store.manifest(model)[0], [each.layer for each in layers])
        return store.adopt(ingest, listed, layers, model.key, f"sha256:{model.digest}", keep_older=True)
    finally:
        store.abandon(ingest)
