"""Models in tars that gzip or zstd packed: unpacked as a stream into the pull's folder, bounded, and never trusted."""

from __future__ import annotations

import gzip
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from registry.errors import DigestMismatch, DiskFull, RegistryError, SourceUnavailable
from registry.names import parse
from registry.net.network import Network
from registry.sources import unpacking
from registry.sources.opening import Source, open_source
from registry.sources.unpacking import Unpacking
from tests.oci import KITOPS, MODELPACK, Registry, described
from tests.registry.test_oci import FOLDER, HOSTILE, WEIGHTS, tarred

ROOM = 1 << 30
MEDIA = {"gzip": MODELPACK + "weight.v1.tar+gzip", "zstd": MODELPACK + "weight.v1.tar+zstd"}
NAMES = [name.removeprefix("m/") for name in FOLDER]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


PACKERS = {"gzip": gzip.compress, "zstd": zstd.compress}


def opened(registry: Registry, folder: Path, room: int = ROOM, seen: list[int] | None = None) -> Source:
    place = Unpacking(folder / "unpacked", room, lambda done, total: None if seen is None else seen.append(done))
    return open_source(parse(f"{registry.host}/ns/x:v1"), "", Network(), unpacking=place)


def content(source: Source, name: str, start: int = 0) -> bytes:
    with closing(source.open(name, start)) as reader:
        data = bytearray(source.size(name) - start)
        reader.readinto(memoryview(data))
        reader.finish()
        return bytes(data)


@pytest.mark.parametrize("media", [*MEDIA.values(), KITOPS + "model.v1.tar+gzip"])
def test_files_in_a_packed_tar_are_read_and_what_is_unpacked_is_not_fetched_again(
    registry: Registry, tmp_path: Path, media: str
) -> None:
    pack = PACKERS[media.rpartition("+")[2]]
    config = pack(tarred({"m/config.json": b"{}"}))
    weights = {name: data for name, data in FOLDER.items() if not name.endswith("config.json")}
    registry.add("ns/x", "v1", [(media, config), (media, pack(tarred(weights)))])
    seen: list[int] = []
    with closing(opened(registry, tmp_path, seen=seen)) as source:
        assert sorted(source.names()) == sorted(NAMES) and source.read("config.json", 0, 2) == b"{}"
        assert content(source, NAMES[1]) == WEIGHTS and content(source, NAMES[1], 999) == WEIGHTS[999:]
        stamps = [source.stamp(name) for name in NAMES]
        assert source.digest(NAMES[1]) is None
    assert seen
    registry.asked.clear()
    with closing(opened(registry, tmp_path)) as source:
        assert [source.stamp(name) for name in NAMES] == stamps
        assert content(source, NAMES[1]) == WEIGHTS
    assert not [path for path in registry.paths() if "/blobs/" in path]


@pytest.mark.parametrize("packer", PACKERS)
def test_a_stream_of_several_parts_is_one_tar(registry: Registry, tmp_path: Path, packer: str) -> None:
    data = tarred(FOLDER)
    parts = [data[start : start + 70_000] for start in range(0, len(data), 70_000)]
    registry.add("ns/x", "v1", [(MEDIA[packer], b"".join(map(PACKERS[packer], parts)))])
    with closing(opened(registry, tmp_path)) as source:
        assert content(source, NAMES[1]) == WEIGHTS


def test_without_a_place_it_is_said_that_a_pull_unpacks_it(registry: Registry) -> None:
    registry.add("ns/x", "v1", [(MODELPACK + "weight.v1.tar+gzip", gzip.compress(tarred(FOLDER)))])
    with closing(open_source(parse(f"{registry.host}/ns/x:v1"), "", Network())) as source:
        assert source.revision  # `lm list --outdated` wants no more
        with pytest.raises(SourceUnavailable, match="in a packed tar") as caught:
            source.names()
    assert "lm pull" in caught.value.hint
    assert not [path for path in registry.paths() if "/blobs/" in path]


FULL = tarred({"x.gguf": b"GGUF" + bytes(3 << 20)})
BAD: list[tuple[str, bytes, int, type[RegistryError], str]] = [
    row
    for packer, pack in PACKERS.items()
    for row in (
        (packer, pack(FULL), ROOM, SourceUnavailable, "32 times as long"),
        (packer, pack(tarred(FOLDER)), 1000, DiskFull, "does not fit"),
        (packer, pack(tarred(FOLDER))[:-9], ROOM, SourceUnavailable, "ends early"),
        (packer, pack(tarred(FOLDER)) + b"behind it", ROOM, SourceUnavailable, f"not packed by {packer}"),
        (packer, tarred(FOLDER), ROOM, SourceUnavailable, f"not packed by {packer}"),
        (packer, b"", ROOM, SourceUnavailable, "ends early"),
    )
]


@pytest.mark.parametrize(("packer", "data", "room", "error", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_one_is_refused_and_leaves_nothing(
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packer: str,
    data: bytes,
    room: int,
    error: type,
    said: str,
) -> None:
    monkeypatch.setattr(unpacking, "SLACK", 1 << 20)
    registry.add("ns/x", "v1", [(MEDIA[packer], data)])
    with pytest.raises(error, match=said) as caught:
        opened(registry, tmp_path, room)
    assert caught.value.hint
    assert not list((tmp_path / "unpacked").iterdir())


def test_a_window_of_zstd_larger_than_is_granted_is_refused(registry: Registry, tmp_path: Path) -> None:
    options = {zstd.CompressionParameter.window_log: 29, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)
    data = packer.compress(tarred(FOLDER)) + packer.flush()
    registry.add("ns/x", "v1", [(MEDIA["zstd"], data)])
    with pytest.raises(SourceUnavailable, match="not packed by zstd"):
        opened(registry, tmp_path)


def test_bytes_that_are_not_those_declared_are_not_kept(registry: Registry, tmp_path: Path) -> None:
    registry.add("ns/x", "v1", [(MODELPACK + "weight.v1.tar+gzip", gzip.compress(tarred(FOLDER), 0))])
    registry.wrong = 5000
    with pytest.raises((DigestMismatch, SourceUnavailable)):
        opened(registry, tmp_path)
    assert not list((tmp_path / "unpacked").iterdir())


@pytest.mark.parametrize("data", HOSTILE[:-2], ids=range(len(HOSTILE) - 2))
def test_what_is_in_it_is_trusted_no_more_than_in_any_tar(registry: Registry, tmp_path: Path, data: bytes) -> None:
    registry.add("ns/x", "v1", [(MODELPACK + "weight.v1.tar+gzip", gzip.compress(data))])
    with pytest.raises(SourceUnavailable):
        opened(registry, tmp_path)
    assert {path.suffix for path in (tmp_path / "unpacked").iterdir()} <= {".tar"}


def test_a_model_of_a_store_in_tars_is_read_too(tmp_path: Path) -> None:
    import json

    layers = [
        (MODELPACK + "weight.config.v1.tar", tarred({"m/config.json": b"{}"}, tarfile.GNU_FORMAT)),
        (MODELPACK + "weight.v1.tar+gzip", gzip.compress(tarred({NAMES[1]: WEIGHTS}))),
    ]
    path = tmp_path / "manifests" / "h.lan" / "ns" / "x" / "v1"
    for folder in (path.parent, tmp_path / "blobs"):
        folder.mkdir(parents=True)
    listed = [described(*layer) for layer in layers]
    for each, (_, data) in zip(listed, layers, strict=True):
        (tmp_path / "blobs" / each["digest"].replace(":", "-")).write_bytes(data)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": listed}))
    place = Unpacking(tmp_path / "here" / "unpacked", ROOM, lambda *_: None)
    (tmp_path / "here").mkdir()
    with closing(open_source(parse(str(path)), "", Network(), unpacking=place)) as source:
        assert sorted(source.names()) == sorted(["m/config.json", NAMES[1]])
        assert (source.read("m/config.json", 0, 2), content(source, NAMES[1])) == (b"{}", WEIGHTS)
