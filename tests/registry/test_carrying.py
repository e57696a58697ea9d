"""Many models at once: pulled, pushed and removed beside a prune; fetched through a bad network."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from registry.bundles.fetching import Fetch
from registry.errors import RegistryError
from registry.names import parse
from registry.net.network import Network
from registry.net.retries import DOWNLOADS, FETCHES
from registry.sources.shelf import RegistryShelf
from registry.store.store import Store
from registry.targets.forms import as_stored
from registry.targets.pushing import Push
from tests.oci import Registry, digest
from tests.storing import put
from tests.taking import Taking

MODEL = "application/vnd.ollama.image.model"
SYSTEM = "application/vnd.ollama.image.system"
PAUSES = {"shortest": 0.001, "longest": 0.01}
FAST = Network(fetches=replace(FETCHES, **PAUSES), downloads=replace(DOWNLOADS, **PAUSES))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def whole(store: Store) -> None:
    """Each model is complete, each blob hashes to its name."""
    assert not [model.problem for model in store.models() if model.problem]
    for blob in (store.root / "blobs").iterdir():
        assert blob.name == f"sha256-{hashlib.sha256(blob.read_bytes()).hexdigest()}"


@pytest.mark.slow
def test_no_blob_is_missing_after_500_deeds_on_20_overlapping_models_beside_a_prune(store: Store) -> None:
    names, pools = [f"org/m{number}:v1" for number in range(20)], [bytes([kind]) * 5000 for kind in range(5)]
    ending, failures, counts = threading.Event(), list[str](), dict[str, int]()

    def prune() -> None:
        while not ending.is_set():
            store.unlisted(())
            store.collect(())

    def deeds(seed: int, registry: Taking) -> None:
        chance = random.Random(seed)
        for _ in range(125):
            name, deed = chance.choice(names), chance.choice(["pull", "pull", "push", "remove"])
            try:
                if deed == "pull":
                    put(store, name, chance.choice(pools), {"model_format": "gguf", "name": name})
                elif deed == "push":
                    model = store.resolve(name)
                    data, contents = store.manifest(model)
                    Push(store, as_stored(data, contents), parse(f"{registry.host}/a/b:c").name, FAST).run(
                        lambda _: None
                    )
                else:
                    store.delete(store.resolve(name))
                counts[deed] = counts.get(deed, 0) + 1
            except RegistryError:
                counts["refused"] = counts.get("refused", 0) + 1  # it is not here, or another one makes it
            except Exception as error:
                failures.append(f"{deed}: {error!r}")

    with Taking() as registry:
        threads = [threading.Thread(target=deeds, args=(seed, registry)) for seed in range(4)]
        pruning = threading.Thread(target=prune)
        for thread in (*threads, pruning):
            thread.start()
        for thread in threads:
            thread.join()
        ending.set()
        pruning.join()
        for blob, data in registry.kept.get("a/b", {}).items():
            assert digest(data) == blob
    assert not failures
    whole(store)
    print(f"\n500 deeds beside a prune: {counts}, 0 missing blobs")


@pytest.mark.slow
def test_a_hundred_fetches_through_a_bad_network_are_right_or_refused(tmp_path: Path) -> None:
    chance, right, refused = random.Random(7), 0, 0
    data = b"GGUF" + bytes(range(256)) * 800
    for number in range(100):
        with Registry() as registry, Store.open(tmp_path / str(number)) as store:
            registry.blobs[digest(b"{}")] = b"{}"
            registry.add("team/tale", "v1", [(MODEL, data), (SYSTEM, b"Be brief.")])
            registry.statuses += [chance.choice([500, 503, 429]) for _ in range(chance.choice([0, 1, 3, 30]))]
            registry.wrong = chance.choice([0, 0, 1])
            registry.ignore_ranges = chance.random() < 0.3
            try:
                with closing(RegistryShelf(registry.host, "team/tale", FAST)) as shelf:
                    name = parse("registry.lan/team/tale:v1").name
                    found = Fetch(store, shelf, shelf.manifest("v1"), name, lambda *_: None)
                    assert found.run(lambda _: None, lambda: False).blob.read_bytes() == data
                right += 1
            except RegistryError as error:
                assert str(error)
                refused += 1
            whole(store)
    print(f"\n100 fetches through a bad network: {right} right, {refused} refused, 0 wrong")
    assert right > 30
