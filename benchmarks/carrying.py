"""Pull, push, import and export of 1 GB on loopback against `curl`, `cat` and `sha256sum`, as ratios in one run.

    python -m benchmarks.carrying [FOLDER]

FOLDER is on the disk to measure, by default the system's for temporary files. The peers: `curl | tee | sha256sum`, then
`sync`, for a fetch, and for `lm pull` with its trial run; `curl -T` for a push, to the same registry (Debian's
`docker-registry`, left out where it is not installed); `cat`, `sync`, `sha256sum` for an import. Each is the best of
three.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from registry.bundles.fetching import Fetch
from registry.bundles.reading import Import
from registry.bundles.writing import Export
from registry.names import parse
from registry.net.network import Network
from registry.sources.shelf import RegistryShelf
from registry.store import manifest
from registry.store.catalog import Model
from registry.store.layers import Staged
from registry.store.partial import Partial, PullFacts
from registry.store.store import Store
from registry.targets.forms import as_stored
from registry.targets.pushing import Push

SIZE = 1 << 30
_TIMES = 3


def main(folder: Path) -> None:
    """Measure, and print a line for each."""
    with Store.open(folder / "store") as store:
        model = _put(store)
        _import(store, model, folder)
        if shutil.which("docker-registry") and shutil.which("curl"):
            from tests.debian import Running

            with closing(Running(folder / "registry")) as registry:
                _push(store, model, registry.port, folder)
                _fetch(store, model, registry.port, folder)
                _pull(registry.port, folder)


def _put(store: Store) -> Model:
    """A model of random weights."""
    ingest = store.begin("bench/large:v1")
    partial = Partial(ingest.folder)
    partial.begin(PullFacts("bench/large:v1", "bench", "", "v1", "", "x", SIZE))
    for _ in range(SIZE >> 24):
        partial.write(os.urandom(1 << 24))
    layers = [Staged.file(ingest.data, manifest.MODEL, *partial.finish())]
    partial.close()
    return store.commit(ingest, layers, parse("registry.lan/bench/large:v1").name, {"model_format": "gguf"})


def _import(store: Store, model: Model, folder: Path) -> None:
    bundle = folder / "bundle.tar"
    with bundle.open("wb") as file:
        for piece in Export(store, [model]).pieces():
            file.write(piece.content if isinstance(piece.content, bytes) else piece.content.read_bytes())

    def ours(target: Path) -> None:
        with Store.open(target) as other, bundle.open("rb", buffering=0) as file:
            Import(other, _Raw(file), lambda *_: None).run(lambda line: None)

    def theirs(target: Path) -> None:
        target.mkdir()
        _shell(f"cat {bundle} > {target}/copy && sync {target}/copy && sha256sum {target}/copy > /dev/null")

    _report("import", "cat, sync, sha256sum", _best(ours, folder), _best(theirs, folder))


def _push(store: Store, model: Model, port: int, folder: Path) -> None:
    data, contents = store.manifest(model)
    count = 0

    def ours(_: Path) -> None:
        nonlocal count
        count += 1
        _forget(folder, store)
        target = parse(f"localhost:{port}/ours{count}/large:v1").name
        Push(store, as_stored(data, contents), target, Network()).run(lambda line: None)

    def theirs(_: Path) -> None:
        nonlocal count
        count += 1
        _forget(folder, store)
        base = f"http://localhost:{port}/v2/theirs{count}/large/blobs/uploads/"
        place = f"$(curl -s -i -X POST {base} | tr -d '\\r' | sed -n 's/^Location: //p')"
        _shell(f'place={place}; curl -s -f -T {model.blob} "$place&digest={model.blob_digest}"')

    mine, peers = _best(ours, folder), _best(theirs, folder)
    _report("push", "curl -T", mine, peers)


def _fetch(store: Store, model: Model, port: int, folder: Path) -> None:
    path = "fetched/large"
    _forget(folder, store)
    outgoing = as_stored(*store.manifest(model))
    Push(store, outgoing, parse(f"localhost:{port}/{path}:v1").name, Network()).run(lambda line: None)

    def ours(target: Path) -> None:
        with Store.open(target) as other, closing(RegistryShelf(f"localhost:{port}", path, Network())) as shelf:
            Fetch(other, shelf, shelf.manifest("v1"), model.key, lambda *_: None).run(lambda line: None, lambda: False)

    def theirs(target: Path) -> None:
        target.mkdir()
        url = f"http://localhost:{port}/v2/{path}/blobs/{model.blob_digest}"
        _shell(f"curl -s {url} | tee {target}/copy | sha256sum > /dev/null; sync {target}/copy")

    _report("fetch", "curl | tee | sha256sum, sync", _best(ours, folder), _best(theirs, folder))


def _pull(port: int, folder: Path) -> None:
    """The whole command, for 1.2 GB of a model's shape: random bytes are no GGUF file."""
    program, source, name = Path(sys.executable).with_name("lm"), folder / "source", f"localhost:{port}/pulled/large:v1"
    lm = f"LM_HOME={folder}/home LM_HOST=127.0.0.1:0 {program}"
    _shell(f"{sys.executable} -m benchmarks.synthetic {source}; {lm} pull {source}:Q8_0 && {lm} push source {name}")
    blob = max((folder / "home/store/blobs").iterdir(), key=lambda path: path.stat().st_size)
    size, url = blob.stat().st_size, f"http://localhost:{port}/v2/pulled/large/blobs/{blob.name.replace('-', ':')}"
    _shell(f"{lm} rm source")

    def theirs(target: Path) -> None:
        target.mkdir()
        _shell(f"curl -s {url} | tee {target}/copy | sha256sum > /dev/null; sync {target}/copy")

    mine = _best(lambda _: _shell(f"{lm} pull {name}"), folder, lambda: _shell(f"{lm} rm {name}"))
    _report("lm pull", "curl | tee | sha256sum, sync", mine, _best(theirs, folder), size)
    _shell(f"{lm} stop --daemon")


class _Raw:
    """A file as a stream of bytes."""

    def __init__(self, file: object) -> None:
        self.readinto = file.readinto  # type: ignore[attr-defined]


def _forget(folder: Path, store: Store) -> None:
    """Let neither the registry nor the notes know the blob."""
    shutil.rmtree(folder / "registry/data", ignore_errors=True)
    shutil.rmtree(store.root / "uploads", ignore_errors=True)


def _best(work: Callable[[Path], None], folder: Path, after: Callable[[], None] = lambda: None) -> float:
    """The seconds of the fastest of several runs, each in a folder of its own; `after` each, something is undone."""
    found = []
    for number in range(_TIMES):
        target = folder / f"run{number}"
        os.sync()
        began = time.perf_counter()
        work(target)
        found.append(time.perf_counter() - began)
        shutil.rmtree(target, ignore_errors=True)
        after()
    return min(found)


def _shell(command: str) -> None:
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)


def _report(what: str, peer: str, ours: float, theirs: float, size: int = SIZE) -> None:
    rate = size / ours / 1e6
    print(f"{what:8} {ours:6.2f} s ({rate:,.0f} MB/s)   {peer}: {theirs:.2f} s   {theirs / ours:.2f} times its speed")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as place:
        main(Path(place))
