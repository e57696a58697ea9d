"""One box that is brought to a list of models and may lose its power at a step; for `test_carrying.py`.

    python -m tests.registry.fleet STORE HOST LIST STEP

Fetches each model of LIST, `PATH:TAG` with commas between, from the registry at HOST. STEP is the step at which the
process kills itself, 0 for none. Exits with 0 when all are there.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from registry.bundles.fetching import Fetch
from registry.errors import ModelNotFound
from registry.names import parse
from registry.net.network import Network
from registry.sources.shelf import RegistryShelf
from registry.store import fsops
from registry.store.store import Store
from tests.registry.crashing import Die


def main(root: Path, host: str, listed: str, step: int) -> None:
    """Bring a store to a list."""
    if step:
        fsops.hook = Die(step, "after" if step % 2 else "before")
    with Store.open(root) as store:
        for text in listed.split(","):
            path, _, tag = text.partition(":")
            try:
                store.resolve(f"registry.lan/{text}")
            except ModelNotFound:
                with closing(RegistryShelf(host, path, Network())) as shelf:
                    name = parse(f"registry.lan/{text}").name
                    Fetch(store, shelf, shelf.manifest(tag), name, lambda *_: None).run(lambda _: None, lambda: False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
