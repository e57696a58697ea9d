"""A GGUF file at a URL: pinned by what the server says of it, checked by the digest that the user gave."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, SourceUnavailable
from registry.names import parse
from registry.net.hub import Hub as Settings
from registry.net.network import Network
from registry.net.retries import DOWNLOADS, FETCHES
from registry.sources.opening import Source, open_source
from tests.hub import Hub

Net = partial(
    Network,
    fetches=replace(FETCHES, shortest=0.001, longest=0.01),
    downloads=replace(DOWNLOADS, shortest=0.001, longest=0.01),
)
DATA = b"GGUF" + bytes(range(256)) * 9000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "x.gguf").write_bytes(DATA)
    with Hub({"org/repo": tmp_path}) as running:
        yield running


def opened(hub: Hub, suffix: str = "", revision: str = "") -> Source:
    url = f"{hub.url}/org/repo/resolve/main/x.gguf"
    return open_source(parse(url + suffix), "http://127.0.0.1:1", Net(token="secret"), revision)


def content(source: Source) -> bytes:
    """The whole file; the source is closed."""
    with closing(source), closing(source.open("x.gguf")) as reader:
        data = bytearray(source.size("x.gguf"))
        reader.readinto(memoryview(data))
        reader.finish()
        return bytes(data)


@pytest.mark.parametrize("suffix", ["", f"#sha256={SHA256}", "?signature=s", ":Q8_0"])
@pytest.mark.parametrize("ignored", [False, True])
def test_the_file_comes_whole_and_the_hubs_token_stays_here(hub: Hub, suffix: str, ignored: bool) -> None:
    hub.faults.ignore_ranges = ignored
    source = opened(hub, suffix)
    assert (source.names(), source.size("x.gguf"), source.read("x.gguf", 0, 4)) == (["x.gguf"], len(DATA), b"GGUF")
    assert content(source) == DATA
    assert "signature" not in source.url + source.title
    assert not any("authorization" in request.headers for request in hub.requests)


def test_another_digest_than_the_users_is_refused(hub: Hub) -> None:
    with pytest.raises(DigestMismatch):
        content(opened(hub, f"#sha256={'0' * 64}"))
    hub.faults.flip, hub.faults.flips = 5000, 1
    with pytest.raises(DigestMismatch):
        content(opened(hub, f"#sha256={SHA256}"))
    assert content(opened(hub, f"#sha256={SHA256}")) == DATA


def test_a_header_that_was_not_the_files_is_noticed_without_a_digest(hub: Hub) -> None:
    source = opened(hub)
    hub.faults.flip, hub.faults.flips = 100, 1
    source.read("x.gguf", 0, 1000)
    with pytest.raises(DigestMismatch, match="header"):
        content(source)


def test_a_pull_that_goes_on_does_so_with_the_same_file_only(hub: Hub) -> None:
    with closing(opened(hub)) as before:
        assert before.revision
    rest = bytearray(len(DATA) - 1000)
    with closing(opened(hub, revision=before.revision)) as again, closing(again.open("x.gguf", 1000)) as reader:
        assert again.stamp("x.gguf") == before.stamp("x.gguf")
        reader.readinto(memoryview(rest))
    assert rest == DATA[1000:]
    with pytest.raises(ModelNotFound, match="has changed"):
        opened(hub, revision="other")


@pytest.mark.parametrize(("status", "error"), [(404, ModelNotFound), (401, AccessDenied), (403, AccessDenied)])
def test_refusals_are_said_as_they_are(hub: Hub, status: int, error: type[Exception]) -> None:
    hub.faults.statuses = [status]
    with pytest.raises(error, match=r"127\.0\.0\.1"):
        opened(hub)


def test_plain_http_and_private_hosts_are_for_those_who_named_them(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = parse("http://box.example/x.gguf")
    with pytest.raises(AccessDenied) as caught:
        open_source(reference, "", Net())
    assert "LM_REGISTRIES=http://box.example" in caught.value.hint
    reached = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.8", 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: reached)
    with pytest.raises(SourceUnavailable, match="private address") as private:
        open_source(parse("https://box.example/x.gguf"), "", Net())
    assert "LM_REGISTRIES" in private.value.hint
    asked: list[object] = []

    def connect(self: socket.socket, place: object) -> None:
        asked.append(place)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(socket.socket, "connect", connect)
    named = Net().with_hub(Settings("", registries=("box.example",)))
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        open_source(
            parse("https://box.example/x.gguf"), "", replace(named, fetches=replace(FETCHES, tries=1, unheard=1))
        )
    assert asked == [("10.0.0.8", 443)]
