"""Twenty boxes, each a daemon on a port of its own, that come to one list while their power fails."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry.names import Name
from registry.store.store import Store
from tests.daemon import WIDTH, Daemon, put_model
from tests.storing import put

BOXES, AT_ONCE = 20, 5
# A mebibyte of weights is a line of progress; a box that dies between two of them has a part of a file.
ROWS = (3 << 20) // (4 * WIDTH)
HOST = "127.0.0.1:9"  # nobody answers there: the models come from the neighbour alone


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The box that has quantized for all: three models, two of them with the same weights."""
    home = tmp_path_factory.mktemp("source")
    for number in range(2):
        put_model(home, f"seed{number}", more={f"blk.{number}.attn_output.scale": (WIDTH, ROWS)})
    with Store.open(home / "store") as store:
        seeds = [store.resolve(f"seed{number}:F32") for number in range(2)]
        for number, seed in enumerate([*seeds, seeds[0]]):
            config = {"model_format": "gguf", "capabilities": ["completion"], "number": number}
            put(store, Name(HOST, "team", f"m{number}", "v1"), seed.blob.read_bytes(), config)
        for seed in seeds:
            store.delete(seed)
    with Daemon(home) as daemon:
        yield daemon


class Box:
    """A box that is brought to the list; `deaths` counts its power cuts, `halves` those in the middle of a file."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.chance = home, random.Random(seed)
        self.deaths = self.halves = 0

    def converge(self, body: object, wanted: dict[str, str]) -> None:
        """Sync, with power cuts, until all is there; whatever is listed on the way is right."""
        for cut in [*(self.chance.randint(0, 5) for _ in range(self.chance.randint(1, 2))), None]:
            with Daemon(self.home) as box:
                assert digests(box).items() <= wanted.items()
                if self.dies(box, body, cut):
                    self.deaths += 1
                    self.halves += any((self.home / "store" / "ingest").iterdir())
                else:
                    assert digests(box) == wanted
                    assert box.post("/lm/verify", {}).lines[-1]["hurt"] == []

    def dies(self, box: Daemon, body: object, cut: int | None) -> bool:
        """Sync, and kill the daemon after `cut` lines of it; False where it came to the end."""
        with box.opened("POST", "/lm/sync", body) as response:
            lines = 0
            while lines != cut and (line := response.readline()):
                lines += 1
                last = json.loads(line)
            if lines != cut:
                assert last["status"] == "success" and last["complete"], last
                return False
            box.kill()
        return True


def digests(box: Daemon) -> dict[str, str]:
    """The models that a box lists, each with its digest."""
    return {row["name"]: row["digest"] for row in box.listed()}


@pytest.mark.slow
def test_twenty_boxes_come_to_a_list_whenever_their_power_fails(source: Daemon, tmp_path: Path) -> None:
    wanted = digests(source)
    text = "".join(f"{name}@sha256:{digest}\n" for name, digest in wanted.items())
    body = {"source": "the team's list", "list": text, "near": [f"lm://127.0.0.1:{source.port}"]}
    boxes = [Box(tmp_path / f"box{number}", seed=number) for number in range(BOXES)]
    with ThreadPoolExecutor(AT_ONCE) as crew:
        list(crew.map(lambda box: box.converge(body, wanted), boxes))
    for box in boxes:
        for blob in (box.home / "store" / "blobs").iterdir():
            assert blob.name == f"sha256-{hashlib.sha256(blob.read_bytes()).hexdigest()}"
        assert not list((box.home / "store" / "ingest").iterdir())
    deaths, halves = (sum(counts) for counts in zip(*((box.deaths, box.halves) for box in boxes), strict=True))
    print(f"\n20/20 boxes have the list, byte for byte, after {deaths} power cuts, {halves} of them in mid work")
    assert deaths >= BOXES
