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
