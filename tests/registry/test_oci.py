"""Models in registries: every byte as its digest says, or a plain refusal; credentials stay at home."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, RegistryError, SourceUnavailable
from registry.names import parse
from registry.net.authorize import Authorizer
from registry.net.hub import Hub
from registry.net.network import Network
from registry.net.retries import DOWNLOADS, FETCHES
from registry.sources import remote
from registry.sources.opening import Source, open_source
from tests.oci import DOCKER, INDEX, MODELPACK, OLLAMA, Registry, described, digest

Net = partial(
    Network,
    token="hf_x",
    fetches=replace(FETCHES, shortest=0.001, longest=0.01),
    downloads=replace(DOWNLOADS, shortest=0.001, longest=0.01),
)
WEIGHTS = b"GGUF" + bytes(range(256)) * 4000
PARAMS = {"stop": ["<|eot|>"], "temperature": 0.5}
PLAIN = [(OLLAMA + "model", WEIGHTS)]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        running.add("library/tale", "latest", PLAIN)
        yield running


def opened(registry: Registry, name: str = "ollama.com/library/tale", revision: str = "", **logins: str) -> Source:
    named = {host.replace("HERE", registry.host): pair for host, pair in logins.items()}
    network = Net().with_hub(Hub("", "hf_x", ollama=registry.url, logins=tuple(named.items())))
    return open_source(parse(name.replace("HERE", registry.host)), "", network, revision)


def content(source: Source, name: str = "model.gguf") -> bytes:
    """A whole file; the source is closed."""
    with closing(source), closing(source.open(name)) as reader:
        data = bytearray(source.size(name))
        reader.readinto(memoryview(data))
        reader.finish()
        return bytes(data)


TURNS = [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon"}]


def test_a_model_of_ollamas_registry_comes_with_its_settings(registry: Registry) -> None:
    layers = [
        *PLAIN,
        (OLLAMA + "params", json.dumps(PARAMS).encode()),
        (OLLAMA + "system", b"You are a tale."),
        (OLLAMA + "template", b"{{ .Prompt }}"),
        (OLLAMA + "license", b"Free\nto use"),
        (OLLAMA + "license", b"And more"),
        (OLLAMA + "messages", json.dumps(TURNS).encode()),
        (OLLAMA + "projector", b"P" * 99),
    ]
    pinned = registry.add("user/tale", "3b", layers)
    source = opened(registry, "ollama.com/user/tale:3b")
    assert (source.names(), source.title, source.revision) == (["model.gguf"], "ollama.com/user/tale:3b", pinned)
    beside = source.companions
    assert (beside.params, beside.system, beside.template) == (PARAMS, "You are a tale.", "{{ .Prompt }}")
    assert beside.licenses == ("Free\nto use", "And more")
    assert list(beside.messages) == TURNS
    assert beside.left_out == (("a projector", 99),)
    assert content(source) == WEIGHTS
    assert registry.paths("cdn") and not any(each.authorization for each in registry.asked)
    with closing(opened(registry, "ollama.com/user/tale:3b", revision=pinned)) as again:
        assert again.revision == pinned
    with pytest.raises(ModelNotFound, match="has no model"):
        opened(registry, "ollama.com/user/tale:7b")


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ([(DOCKER + "gguf.v3", WEIGHTS), (DOCKER + "license", b"L")], ["model.gguf"]),
        ([(MODELPACK + "weight.v1.raw", WEIGHTS, {"org.cncf.model.filepath": "a/x.gguf"})], ["x.gguf"]),
        ([(MODELPACK + "weight.v1.gguf", WEIGHTS)], ["model.gguf"]),
        (
            [
                (MODELPACK + "weight.v1.raw", WEIGHTS, {"org.cncf.model.filepath": "m/a.safetensors"}),
                (MODELPACK + "weight.config.v1.raw", b"{}", {"org.cncf.model.filepath": "m/config.json"}),
                (MODELPACK + "doc.v1.raw", b"#", {"org.cncf.model.filepath": "README.md"}),
            ],
            ["a.safetensors", "config.json"],
        ),
    ],
)
def test_the_kinds_of_layers_that_others_write(registry: Registry, layers: list[Any], names: list[str]) -> None:
    pinned = registry.add("ns/x", "v1", layers)
    for text in ("HERE/ns/x:v1", f"HERE/ns/x@{pinned}"):
        source = opened(registry, text)
        assert source.names() == names
        assert content(source, names[0]) == WEIGHTS


def test_adapters_lie_beside_the_weights_and_are_the_model_where_nothing_else_is(registry: Registry) -> None:
    adapters = [(OLLAMA + "adapter", b"GGUF first"), (OLLAMA + "adapter", b"GGUF second")]
    registry.add("ns/x", "both", [*PLAIN, *adapters])
    source = opened(registry, "HERE/ns/x:both")
    assert source.names() == ["model.gguf"]
    assert source.companions.adapters == ("adapter.gguf", "adapter-2.gguf")
    assert content(source, "adapter-2.gguf") == b"GGUF second"
    registry.add("ns/x", "alone", adapters[:1])
    source = opened(registry, "HERE/ns/x:alone")
    assert (source.names(), source.companions.adapters) == (["adapter.gguf"], ())
    assert content(source, "adapter.gguf") == b"GGUF first"


def test_an_index_leads_to_a_model_and_not_for_ever(registry: Registry) -> None:
    inner = registry.add("ns/x", "inner", PLAIN)
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": inner, "size": 1}
    registry.put("ns/x", "v1", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    assert content(opened(registry, "HERE/ns/x:v1")) == WEIGHTS
    nested = {"mediaType": INDEX, "digest": "", "size": 1}
    below = registry.put("ns/x", "deep", {"schemaVersion": 2, "manifests": []})
    for _ in range(20):
        below = registry.put("ns/x", "deep", {"schemaVersion": 2, "manifests": [nested | {"digest": below}] * 50})
    registry.asked.clear()
    with pytest.raises(SourceUnavailable, match="list of manifests"):
        opened(registry, "HERE/ns/x:deep")
    assert len(registry.paths()) <= 8


def tarred(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT, **more: Any) -> bytes:
    """A tar as others write it; `more` are fields of its last header."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for number, (name, data) in enumerate(files.items(), 1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in more.items() if number == len(files) else ():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_file_that_is_called_as_tars_are_here_is_one_of_the_tar(registry: Registry) -> None:
    files = {"archive.tar": b"other", "x.gguf": WEIGHTS}
    named = (MODELPACK + "weight.config.v1.raw", b"raw", {"org.cncf.model.filepath": "archive-2.tar"})
    registry.add("ns/x", "v1", [(DOCKER + "dir.tar", tarred(files)), named])
    with closing(opened(registry, "HERE/ns/x:v1")) as source:
        assert (source.read("archive.tar", 0, 5), source.read("archive-2.tar", 0, 3)) == (b"other", b"raw")
    assert content(opened(registry, "HERE/ns/x:v1"), "x.gguf") == WEIGHTS


FOLDER = {"m/config.json": b"{}", f"m/{'long' * 40}.safetensors": WEIGHTS, "m/tokenizer.json": b"[]"}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("media", [DOCKER + "dir.tar", MODELPACK + "weight.v1.tar", MODELPACK + "model.layer.v1.tar"])
@pytest.mark.parametrize("small", [0, 64 << 20])
def test_files_in_a_tar_are_read_where_they_lie_and_checked_by_its_digest(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, form: int, media: str, small: int
) -> None:
    monkeypatch.setattr(remote, "_SMALL", small)
    registry.add("ns/x", "v1", [(media, tarred(FOLDER, form))])
    names = [name.removeprefix("m/") for name in FOLDER]
    with closing(opened(registry, "HERE/ns/x:v1")) as source:
        assert (source.names(), source.read("config.json", 0, 2)) == (names, b"{}")
        stamp = source.stamp(names[1])
        with closing(source.open(names[1])) as reader:
            first = bytearray(999)
            reader.readinto(memoryview(first))
            state = reader.state()
        assert first == WEIGHTS[:999] and state
    with closing(opened(registry, "HERE/ns/x:v1")) as source, closing(source.open(names[1], 999, state)) as reader:
        rest = bytearray(len(WEIGHTS) - 999)
        reader.readinto(memoryview(rest))
        reader.finish()
        assert rest == WEIGHTS[999:] and source.stamp(names[1]) == stamp
    assert content(opened(registry, "HERE/ns/x:v1"), names[1]) == WEIGHTS
    if not small:
        registry.wrong = 9
        with pytest.raises(DigestMismatch):
            content(opened(registry, "HERE/ns/x:v1"), names[1])


HOSTILE = [
    tarred({"x.gguf": b"GGUF", "y.gguf": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    tarred({"x.gguf": b"GGUF", "y.gguf": b""}, type=tarfile.LNKTYPE, linkname="x.gguf"),
    tarred({"x.gguf": b"GGUF", "y.gguf": b""}, type=tarfile.CHRTYPE),
    tarred({"x.gguf": b"GGUF", "y.gguf": b""}, type=tarfile.GNUTYPE_SPARSE),
    tarred({"x.gguf": b"GGUF"}, pax_headers={"GNU.sparse.major": "1"}),
    tarred({"../x.gguf": b"GGUF"}),
    tarred({"/x.gguf": b"GGUF"}),
    tarred({"a/../../x.gguf": b"GGUF"}),
    tarred({"x\n.gguf": b"GGUF"}),
    tarred({"x.gguf": b"GGUF", "./x.gguf": b"GGUF"}),
    tarred({"x.gguf": b"GGUF" * 999})[:2048],
    tarred({"x.gguf": b"GGUF"}, pax_headers={"size": "-5"}),
    tarred({"x.gguf": b"GGUF"}, pax_headers={"size": "x"}),
    tarred({"x.gguf": b"GGUF"}, pax_headers={"size": "9" * 40}),
    tarred({"x.gguf": b"GGUF"}, pax_headers={"comment": "x" * 99_999}),
    tarred({f"{number}.gguf": b"" for number in range(5000)}),
    tarred({"README.md": b"#"}),
    b"GGUF" * 999,
    b"",
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_a_tar_that_is_no_plain_one_is_refused_before_the_download(registry: Registry, data: bytes) -> None:
    registry.add("ns/x", "v1", [(MODELPACK + "weight.v1.tar", data)])
    with pytest.raises(SourceUnavailable) as caught:
        opened(registry, "HERE/ns/x:v1")
    assert caught.value.hint


LAYER = described(OLLAMA + "model", WEIGHTS)
TITLED = {"org.cncf.model.filepath": "../../etc/x.gguf"}
BROKEN: list[tuple[str, Any]] = [
    ("no digest by SHA-256", [LAYER | {"digest": "sha512:" + "0" * 128}]),
    ("no digest by SHA-256", [LAYER | {"digest": "sha256:../../etc/passwd"}]),
    ("of -1 bytes", [LAYER | {"size": -1}]),
    ("bytes", [LAYER | {"size": 1 << 60}]),
    ("no media type", [LAYER | {"mediaType": "../x"}]),
    ("two different sizes", [LAYER, LAYER | {"size": 7}]),
    ("two files `m.gguf`", [
        described(MODELPACK + "weight.v1.raw", data, {"org.cncf.model.filepath": "m.gguf"}) for data in (b"1", b"2")
    ]),
    ("no name of one", [described(MODELPACK + "weight.v1.raw", WEIGHTS, TITLED)]),
    ("no weights that can be read", [described("application/vnd.oci.image.layer.v1.tar+gzip", b"x")]),
    ("no weights that can be read", []),
    ("layers, more than", [LAYER] * 2000),
    ("for MLX", [described(OLLAMA + "tensor", b"A")]),
    ("in a way that lm does not know", [described(MODELPACK + "weight.v1.tar+xz", b"A")]),
]  # fmt: skip


@pytest.mark.parametrize(("said", "layers"), BROKEN, ids=range(len(BROKEN)))
def test_a_manifest_that_lies_is_refused_by_what_is_wrong(registry: Registry, said: str, layers: Any) -> None:
    registry.put("ns/x", "v1", {"schemaVersion": 2, "mediaType": "m", "layers": layers})
    with pytest.raises(RegistryError, match=said):
        opened(registry, "HERE/ns/x:v1")


@pytest.mark.parametrize(
    "body", [b"<html>sign in</html>", b"[]", b"{}", b"\xff", b'{"schemaVersion":2,"layers":3}', b"[" * 100_000]
)
def test_an_answer_that_is_no_manifest_is_no_traceback(registry: Registry, body: bytes) -> None:
    registry.answers["/v2/ns/x/manifests/v1"] = body
    with pytest.raises(SourceUnavailable, match="does not answer as a registry does"):
        opened(registry, "HERE/ns/x:v1")


def test_a_manifest_without_end_is_not_read(registry: Registry) -> None:
    registry.answers["/v2/ns/x/manifests/v1"] = b" " * (5 << 20)
    with pytest.raises(SourceUnavailable, match="longer than it may be"):
        opened(registry, "HERE/ns/x:v1")


def test_wrong_bytes_never_pass_under_a_digest(registry: Registry) -> None:
    registry.wrong = 1
    with pytest.raises(DigestMismatch):
        content(opened(registry))
    assert content(opened(registry)) == WEIGHTS
    other = digest(b"other")
    registry.answers[f"/v2/ns/x/manifests/{other}"] = json.dumps({"schemaVersion": 2, "layers": [LAYER]}).encode()
    with pytest.raises(DigestMismatch, match="manifest"):
        opened(registry, f"HERE/ns/x@{other}")


def test_ranges_that_are_ignored_and_refusals_for_a_while(registry: Registry) -> None:
    registry.ignore_ranges = True
    assert content(opened(registry)) == WEIGHTS
    registry.statuses, registry.retry_after = [429, 503], "0"
    assert content(opened(registry)) == WEIGHTS


def test_a_layer_that_is_listed_twice_is_one(registry: Registry) -> None:
    adapter = (OLLAMA + "adapter", b"GGUF")
    registry.add("ns/x", "v1", [*PLAIN, *PLAIN, adapter, adapter])
    with closing(opened(registry, "HERE/ns/x:v1")) as source:
        assert source.names() == ["model.gguf"]
        assert source.companions.adapters == ("adapter.gguf",)


def test_a_source_that_wants_no_requests_for_long_is_not_waited_for(registry: Registry) -> None:
    registry.statuses, registry.retry_after = [429], "99999"
    with pytest.raises(SourceUnavailable, match="wants no requests for 99,999 s"):
        opened(registry)


@pytest.mark.parametrize("letters", ["a" * 60_000, 'a="' * 20_000, "a " * 30_000], ids=range(3))
def test_a_challenge_without_sense_costs_no_time(letters: str) -> None:
    authorizer, began = Authorizer(Network(), "https://registry.lan", "x", {}), time.process_time()
    assert not authorizer.renew("", f"Bearer {letters}")
    assert time.process_time() - began < 5  # read from each letter it would be minutes


def test_basic_and_token_logins(registry: Registry) -> None:
    registry.login = "me:secret"
    for registry.tokens in (False, True):
        with pytest.raises(AccessDenied) as caught:
            opened(registry)
        assert f"lm login {registry.host}" in caught.value.hint or "lm login" in caught.value.hint
        assert content(opened(registry, HERE="me:secret")) == WEIGHTS
        with pytest.raises(AccessDenied):
            opened(registry, HERE="me:wrong")
    # A token that expires is renewed while blobs are fetched.
    registry.lifetime = 3
    assert content(opened(registry, HERE="me:secret")) == WEIGHTS
    assert not any(each.authorization for each in registry.asked if each.origin == "cdn")


def test_a_realm_elsewhere_gets_no_credentials(registry: Registry) -> None:
    registry.login, registry.tokens = "me:secret", True
    with Registry() as stranger:
        registry.realm = f"{stranger.url}/token"
        with pytest.raises(SourceUnavailable, match="without TLS"):
            opened(registry, HERE="me:secret")
        registry.realm = f"https://{stranger.host}/token"
        with pytest.raises(RegistryError):
            opened(registry, HERE="me:secret")
        assert not any(each.authorization for each in stranger.asked)
    registry.realm = "https://10.0.0.8/token"
    with pytest.raises(SourceUnavailable, match="private address"):
        opened(registry, HERE="me:secret")
