"""Bundles: what goes in comes out byte for byte, other programs read it, and a hostile file brings nothing in."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.bundles.fetching import Inspect
from registry.bundles.reading import Import
from registry.bundles.writing import Export
from registry.errors import BadBundle, RegistryError
from registry.sources.layers import PART
from registry.store import fsops
from registry.store.catalog import Model
from registry.store.store import Store
from tests.oci import DOCKER, MODELPACK, Layer, described, digest
from tests.registry.test_push import put

DATA = b"GGUF" + bytes(range(256)) * 1000
OTHER = b"GGUF" + bytes(1000)
Files = list[tuple[tarfile.TarInfo, bytes]]


class Stream(io.BytesIO):
    """A stream that gives its bytes in uneven portions, as a network does."""

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        return super().readinto(target[: random.Random(self.tell()).randint(1, 9000)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "other") as opened:
        yield opened


def written(store: Store, *models: Model) -> bytes:
    export = Export(store, models)
    parts = [p.content if isinstance(p.content, bytes) else p.content.read_bytes() for p in export.pieces()]
    data = b"".join(parts)
    assert len(data) == export.size and len(data) % 10240 == 0
    return data


def read(store: Store, data: bytes, inspect: Inspect | None = None) -> list[Model]:
    return Import(store, Stream(data), inspect or (lambda *_: None)).run(lambda line: None)


def files(data: bytes) -> Files:
    """The members of a tar, to be changed."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def packed(members: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_models_come_in_byte_for_byte_and_shared_blobs_travel_once(store: Store, other: Store) -> None:
    models = [put(store, "org/a:Q8_0", DATA), put(store, "org/b:Q8_0", DATA), put(store, "local/mine:v1", OTHER)]
    data = written(store, *models)
    assert len(data) < 2 * len(DATA)
    found = read(other, data)
    assert [(model.name, model.digest) for model in found] == [(model.name, model.digest) for model in models]
    for model in models:
        assert other.manifest(other.resolve(model.name)) == store.manifest(model)
        assert other.resolve(model.name).blob.read_bytes() == model.blob.read_bytes()
    assert not list((other.root / "ingest").iterdir())
    assert [model.digest for model in read(other, data)] == [model.digest for model in models]  # nothing changes
    assert written(other, *found) == data


def test_the_order_of_members_does_not_matter_and_tars_of_other_programs_are_read(store: Store, other: Store) -> None:
    model = put(store, "org/a:Q8_0", DATA)
    members = files(written(store, model))[::-1]
    folder = tarfile.TarInfo("./blobs/")
    folder.type = tarfile.DIRTYPE
    for member, _ in members:
        member.name = f"./{member.name}"
        member.pax_headers = {"mtime": "1.5"}
    assert read(other, packed([(folder, b""), *members]))[0].digest == model.digest


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_a_bundle_and_its_copy_is_brought_in(store: Store, other: Store, tmp_path: Path) -> None:
    model = put(store, "org/a:Q8_0", DATA)
    (tmp_path / "bundle.tar").write_bytes(written(store, model))
    places = [f"oci-archive:{tmp_path}/bundle.tar", f"oci-archive:{tmp_path}/again.tar:{model.name}"]
    done = subprocess.run(["skopeo", "--insecure-policy", "copy", *places], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = read(other, (tmp_path / "again.tar").read_bytes())
    assert found[0].blob.read_bytes() == DATA and found[0].name == model.name


def layout(name: str, layers: list[Layer], key: str = "org.opencontainers.image.ref.name") -> bytes:
    """A bundle of one model with these layers, as another program writes it."""
    manifest = {"schemaVersion": 2, "config": described("application/json", b"{}")}
    data = json.dumps(manifest | {"layers": [described(*layer) for layer in layers]}).encode()
    listed = described("application/vnd.oci.image.manifest.v1+json", data, {key: name})
    index = json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode()
    blobs = {f"blobs/sha256/{digest(each)[7:]}": each for each in (b"{}", data, *(layer[1] for layer in layers))}
    members = []
    for path, content in {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index, **blobs}.items():
        member = tarfile.TarInfo(path)
        member.size = len(content)
        members.append((member, content))
    return packed(members)


WEIGHTS: dict[str, Layer] = {
    "modelpack": (f"{MODELPACK}weight.v1.raw", DATA, {"org.cncf.model.filepath": "tale.gguf"}),
    "docker": (f"{DOCKER}gguf.v3", DATA),
    "kitops": ("application/vnd.kitops.modelkit.model.v1.raw", DATA, {"org.opencontainers.image.title": "a/x.gguf"}),
}


@pytest.mark.parametrize("form", WEIGHTS)
def test_a_model_in_another_programs_form_is_brought_in_with_what_lies_beside_it(other: Store, form: str) -> None:
    licence: Layer = (f"{DOCKER}license", b"Be free.")
    data = layout("docker.io/ai/tale:v1", [WEIGHTS[form], licence], "io.containerd.image.name")
    (model,) = read(other, data)
    assert (model.name, model.licenses, model.blob.read_bytes()) == ("docker.io/ai/tale:v1", ("Be free.",), DATA)
    assert [each.name for each in read(other, data)] == [model.name]
    assert written(other, model) and not list((other.root / "ingest").iterdir())


def test_a_modelpack_of_our_own_comes_back_with_its_settings(other: Store) -> None:
    part = f"{MODELPACK}weight.config.v1.raw"
    layers: list[Layer] = [WEIGHTS["modelpack"], (part, b'{"stop": ["x"]}', {PART: "params"})]
    (model,) = read(other, layout("h.lan/ns/tale:v1", [*layers, (part, b"Be brief.", {PART: "system"})]))
    assert (model.params, model.system) == ({"stop": ["x"]}, "Be brief.")


@pytest.mark.parametrize(
    "layers",
    [
        [(f"{DOCKER}safetensors", DATA)],
        [WEIGHTS["docker"], (f"{DOCKER}gguf.v3", OTHER)],
        [("text/plain", b"no model")],
        [(f"{MODELPACK}weight.v1.tar", DATA)],
        [WEIGHTS["docker"], (f"{MODELPACK}weight.config.v1.raw", b"{", {PART: "params"})],
        [],
    ],
    ids=["safetensors", "two files", "no weights", "packed", "bad params", "empty"],
)
def test_a_form_that_cannot_be_taken_as_it_is_is_refused(other: Store, layers: list[Layer]) -> None:
    with pytest.raises(BadBundle):
        read(other, layout("h.lan/ns/tale:v1", layers))
    untouched(other)


def change(index: Any) -> None:
    index["manifests"][0]["size"] += 1


def sparse(members: Files) -> None:
    members[-1][0].pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.size": "10"}


def named(name: str) -> Callable[[Files], None]:
    def rename(members: Files) -> None:
        members[-1][0].name = name

    return rename


def kind(type: bytes) -> Callable[[Files], None]:
    def retype(members: Files) -> None:
        member = tarfile.TarInfo("blobs/sha256/x")
        member.type, member.linkname = type, "/etc/passwd"
        members.append((member, b""))

    return retype


def indexed(edit: Callable[[Any], None]) -> Callable[[Files], None]:
    """A change of the index."""

    def rewrite(members: Files) -> None:
        at = next(place for place, (member, _) in enumerate(members) if member.name == "index.json")
        index = json.loads(members[at][1])
        edit(index)
        data = json.dumps(index).encode()
        members[at][0].size = len(data)
        members[at] = members[at][0], data

    return rewrite


def twice(members: Files) -> None:
    members.append(next(each for each in members if each[0].name == "index.json"))


def flip(members: Files) -> None:
    member, data = members[-1]
    members[-1] = member, data[:-1] + bytes([data[-1] ^ 1])


def without_blob(members: Files) -> None:
    members.pop()


def without_index(members: Files) -> None:
    members[:] = [each for each in members if each[0].name != "index.json"]


def long_header(members: Files) -> None:
    members[0][0].pax_headers = {"comment": "x" * 200_000}


HOSTILE: dict[str, Callable[[Files], None]] = {
    "absolute": named("/etc/passwd"),
    "above": named("../../x"),
    "sparse": sparse,
    "link": kind(tarfile.SYMTYPE),
    "hard link": kind(tarfile.LNKTYPE),
    "device": kind(tarfile.CHRTYPE),
    "pipe": kind(tarfile.FIFOTYPE),
    "holes": kind(tarfile.GNUTYPE_SPARSE),
    "second index": twice,
    "flipped": flip,
    "missing blob": without_blob,
    "no index": without_index,
    "long header": long_header,
    "size lies": indexed(change),
    "nested": indexed(lambda index: index["manifests"][0].update(mediaType="application/vnd.oci.image.index.v1+json")),
    "other digest": indexed(lambda index: index["manifests"][0].update(digest="sha512:" + "0" * 128)),
    "no name": indexed(lambda index: index["manifests"][0].update(annotations={"io.lm.name": "../../x:y"})),
    "empty": indexed(lambda index: index.update(manifests=[])),
    "many": indexed(lambda index: index.update(manifests=index["manifests"] * 2000)),
    "one name twice": indexed(lambda index: index.update(manifests=index["manifests"] * 2)),
    "other manifest": indexed(lambda index: index["manifests"][0]["annotations"].update({"io.lm.manifest": "0"})),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_brings_nothing_in(store: Store, other: Store, name: str) -> None:
    members = files(written(store, put(store, "org/a:Q8_0", DATA)))
    HOSTILE[name](members)
    with pytest.raises(RegistryError) as caught:
        read(other, packed(members))
    assert str(caught.value)
    untouched(other)


def test_a_bundle_that_is_cut_off_or_has_more_behind_it_brings_nothing_in(store: Store, other: Store) -> None:
    data = written(store, put(store, "org/a:Q8_0", DATA))
    for length in (0, 1, 511, 512, 1000, len(DATA), len(data) - 10240, len(data) // 2):
        with pytest.raises(BadBundle):
            read(other, data[:length])
    for wrong in (data + b"x", data + data, b"\x1f\x8b" + data, data[1:]):
        with pytest.raises(BadBundle):
            read(other, wrong)
    untouched(other)


def test_weights_that_must_not_be_listed_are_not(store: Store, other: Store) -> None:
    data = written(store, put(store, "org/a:Q8_0", DATA))

    def inspect(path: Path, kind: str, name: str, said: object) -> None:
        assert path.read_bytes() == DATA and kind.endswith("image.model")
        raise BadBundle(f"`{name}` is bad")

    with pytest.raises(BadBundle, match="is bad"):
        read(other, data, inspect)
    untouched(other)


def test_no_bundle_with_wrong_bytes_ends_in_anything_but_an_error(store: Store, other: Store) -> None:
    data, chance = written(store, put(store, "org/a:Q8_0", DATA[:5000])), random.Random(3)
    for _ in range(300):
        wrong = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            wrong[chance.randrange(len(wrong))] = chance.randrange(256)
        try:
            found = read(other, bytes(wrong))
        except RegistryError:
            continue
        for model in found:  # padding, times and rights are nobody's concern
            assert model.blob.read_bytes() == DATA[:5000]
    for blob in (other.root / "blobs").iterdir():
        assert blob.name == f"sha256-{hashlib.sha256(blob.read_bytes()).hexdigest()}"


def test_a_disk_that_refuses_ends_the_import_and_leaves_nothing(store: Store, other: Store) -> None:
    data = written(store, put(store, "org/a:Q8_0", DATA))
    for step in range(1, 100):
        count = 0

        def refuse(when: str, operation: str, path: Path, step: int = step) -> None:
            nonlocal count
            count += when == "before"
            if when == "before" and count == step:
                raise OSError(28, "No space left on device")

        fsops.hook = refuse
        try:
            read(other, data)
            break
        except RegistryError:
            continue
        finally:
            fsops.hook = None
            assert not any(model.problem for model in other.models())
    assert step > 8 and other.resolve("org/a:Q8_0").blob.read_bytes() == DATA


def untouched(store: Store) -> None:
    store.collect(())
    assert not store.models() and not list((store.root / "ingest").iterdir())
    assert not list((store.root / "blobs").iterdir())
