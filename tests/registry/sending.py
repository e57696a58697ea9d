"""Models of a store, and pushes of them as the daemon's thread makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from registry.names import parse
from registry.net.network import Network
from registry.net.retries import DOWNLOADS
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.layers import Staged
from registry.store.store import Store
from registry.targets.forms import as_modelpack, as_stored
from registry.targets.pushing import Push
from tests.storing import weights

DATA = b"GGUF" + bytes(range(256)) * 20_000
FAST = replace(DOWNLOADS, shortest=0.001, longest=0.01, patience=2.0)
LICENSE = "Apache License 2.0\nwith all its words"


def put(store: Store, name: str = "org/tale:Q8_0", data: bytes = DATA) -> Model:
    ingest = store.begin(name)
    ingest.data.write_bytes(data)
    layers = [weights(ingest, data), Staged.json({"stop": ["x"]}, manifest.PARAMS)]
    layers += [Staged.text(LICENSE, manifest.LICENSE), Staged.text("Be brief.", manifest.SYSTEM)]
    own = {"source": "hf.co/org/tale", "revision": "abc", "level": "Q8_0", "reason": "it fits"}
    return store.commit(ingest, layers, parse(name).name, {"model_format": "gguf", "lm": own})


def push(
    store: Store,
    model: Model,
    host: str,
    text: str,
    network: Network | None = None,
    pack: bool = False,
    hear: Callable[[Push, dict[str, Any]], None] = lambda pushing, line: None,
) -> list[dict[str, Any]]:
    """The lines of a push, which `hear` gets as they come; the last one has the digest of the manifest."""
    data, contents = store.manifest(model)
    notes = {"io.lm.source-digests": '["a sha256:b"]'}
    outgoing = as_modelpack(model, contents, notes) if pack else as_stored(data, contents)
    lines: list[dict[str, Any]] = []

    def send(line: dict[str, Any]) -> None:
        lines.append(line)
        hear(pushing, line)

    target = parse(f"{host}/{text}").name
    pushing = Push(store, outgoing, target, network or Network(downloads=FAST))
    found = pushing.run(send)
    return [*lines, {"digest": found}]


def outcomes(lines: list[dict[str, Any]]) -> set[str]:
    """What became of the blobs of a push."""
    return {line["outcome"] for line in lines if "outcome" in line}
