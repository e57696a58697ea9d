"""A day of carrying models, ended by SIGKILL at one step after another; run as a program of its own, for it forks.

    python -m tests.registry.carrying FOLDER

A bundle comes in, a model is fetched from a neighbour with a pause in its middle, a push notes where it is, a sync
notes what it brought. After each death the store is opened as the next daemon would: each blob hashes to its name, each
model listed is complete, what was reported as done is there, and the day can be lived again to its end.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from registry.bundles.fetching import Fetch
from registry.bundles.reading import Import
from registry.bundles.writing import Export
from registry.names import parse
from registry.net.network import Network
from registry.sources.shelf import RegistryShelf
from registry.store import fsops, partial
from registry.store.store import Store
from registry.store.uploads import Uploads
from server.carrying.lists import SyncRecord, read_record, write_record
from tests import storing
from tests.oci import Registry, digest
from tests.registry.crashing import check_blobs, content, count_deaths

OLD, NEW, SHARED = b"old weights", b"new weights", b"weights of two models"
FETCHED = b"fetched weights" * 300_000
CARRIED = {"org/replaced:Q8_0": NEW, "org/two:Q8_0": SHARED, "org/three:Q8_0": SHARED}
PLACE, SENT = "http://registry.lan/v2/team/x", f"sha256:{'1' * 64}"
MODEL = "application/vnd.ollama.image.model"


def put(store: Store, name: str, data: bytes) -> None:
    storing.put(store, name, data, {"model_format": "gguf", "bytes": len(data)}, {"x": data.hex()[:100]})


def begin(root: Path) -> None:
    """The store on the evening before, and beside it the bundle that comes."""
    with Store.open(root) as store:
        put(store, "org/kept:Q8_0", OLD)
        put(store, "org/replaced:Q8_0", OLD)
    with Store.open(root.with_name("far")) as far:
        for name, data in CARRIED.items():
            put(far, name, data)
        pieces = Export(far, far.models()).pieces()
        parts = [piece.content if isinstance(piece.content, bytes) else piece.content.read_bytes() for piece in pieces]
    root.with_name("bundle.tar").write_bytes(b"".join(parts))


def live(root: Path, report: Callable[[str], None]) -> None:
    """The day; `report` hears of each deed when it is done."""
    with Store.open(root) as store, Registry() as registry:
        data = root.with_name("bundle.tar").read_bytes()
        Import(store, Stream(data), lambda *_: None).run(lambda line: None)
        report("imported")
        registry.blobs[digest(b"{}")] = b"{}"
        registry.add("team/far", "v1", [(MODEL, FETCHED)])
        for tries in range(2):
            with closing(RegistryShelf(registry.host, "team/far", Network())) as shelf:
                fetch = Fetch(
                    store, shelf, shelf.manifest("v1"), parse("registry.lan/team/far:v1").name, lambda *_: None
                )
                try:
                    fetch.run(lambda line: None, _after_some(tries))
                except InterruptedError:
                    report("paused")
        report("fetched")
        uploads = Uploads(store.root)
        for number in range(3):
            uploads.note(PLACE, SENT, f"{PLACE}/{number}")
        report("noted")
        uploads.forget(PLACE, SENT)
        record = SyncRecord("list", [["registry.lan", "team", "far", "v1"]])
        write_record(store.root, record)
        report("recorded")
        store.collect(())


class Stream(io.BytesIO):
    def readinto(self, target: Any) -> int:
        return super().readinto(target)


def _after_some(tries: int) -> Callable[[], bool]:
    """Stop the first fetch in its middle."""
    seen = 0

    def stopped() -> bool:
        nonlocal seen
        seen += 1
        return not tries and seen > 3

    return stopped


def check(root: Path, done: set[str]) -> None:
    """The invariants."""
    with Store.open(root) as store:
        check_blobs(root, store)
        assert content(store, "org/kept:Q8_0") == OLD
        assert content(store, "org/replaced:Q8_0") in ([NEW] if "imported" in done else [OLD, NEW])
        for name in ("org/two:Q8_0", "org/three:Q8_0"):
            assert content(store, name) in ([SHARED] if "imported" in done else [None, SHARED])
        assert content(store, "registry.lan/team/far:v1") in ([FETCHED] if "fetched" in done else [None, FETCHED])
        assert Uploads(root).find(PLACE, SENT) in ["", *(f"{PLACE}/{number}" for number in range(3))]
        assert ("recorded" not in done) or read_record(root, "list").names
        assert not [path for path in root.rglob("*") if path.name.startswith(fsops.TEMPORARY)]
        kept = [ingest for ingest in store.partials() if ingest.title != "registry.lan/team/far:v1"]
        assert not kept and len(list((root / "ingest").iterdir())) == len(store.partials())
    live(root, lambda deed: None)
    with Store.open(root) as store:
        assert content(store, "registry.lan/team/far:v1") == FETCHED and content(store, "org/replaced:Q8_0") == NEW
        assert not list((root / "ingest").iterdir())


if __name__ == "__main__":
    partial.Partial.__init__.__defaults__ = (1 << 20, 0.0)  # type: ignore[attr-defined]
    print(json.dumps(count_deaths(Path(sys.argv[1]), begin, live, check)))
