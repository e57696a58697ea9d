"""Folders and a real hub over HTTP, well and unwell: every byte as declared or a plain refusal, the token at home."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, RegistryError, SourceUnavailable
from registry.names import parse
from registry.net import transport
from registry.net.address import HttpAddress
from registry.net.dialing import Link, Sockets
from registry.net.network import Network
from registry.net.retries import DOWNLOADS, FETCHES
from registry.sources.opening import DEMO, Source, open_source
from tests.hub import Hub

# No long waits before another try.
Net = partial(
    Network,
    fetches=replace(FETCHES, shortest=0.001, longest=0.01),
    downloads=replace(DOWNLOADS, shortest=0.001, longest=0.01),
)
WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: several chunks
SMALL = {"config.json": b'{"a": 1}', "empty.txt": b"", "sub/note.md": b"# note", "odd name %20#?.txt": b"odd"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    for name, data in (SMALL | {"model.safetensors": WEIGHTS}).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub({"org/repo": folder}, renamed={"old/name": "org/repo"}) as running:
        yield running


def open_hub(hub: Hub, name: str = "org/repo", network: Network | None = None) -> Source:
    return open_source(parse(name), hub.url, network or Net())


def open_folder(path: Path) -> Source:
    return open_source(parse(str(path)), "http://127.0.0.1:1", Net())


def whole(source: Source, name: str) -> bytes:
    data = bytearray(source.size(name))
    try:
        with closing(source.open(name)) as reader:
            reader.readinto(memoryview(data))
            reader.finish()
    finally:
        source.close()
    return bytes(data)


# The hub


def test_a_repository_reads_as_its_folder(hub: Hub) -> None:
    source = open_hub(hub)
    assert (source.title, source.revision, source.url) == ("org/repo", hub.heads["org/repo"], f"{hub.url}/org/repo")
    assert sorted(source.names()) == sorted([*SMALL, "model.safetensors"])
    for name, data in SMALL.items():
        assert source.size(name) == len(data)
        assert source.digest(name) == f"git-sha1:{hashlib.sha1(b'blob %d' % len(data) + bytes(1) + data).hexdigest()}"
        assert source.read(name, 0, len(data)) == data
    assert source.digest("model.safetensors") == f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert source.read("model.safetensors", 1_000_003, 10) == WEIGHTS[1_000_003:1_000_013]
    assert whole(source, "model.safetensors") == WEIGHTS


def test_only_what_is_wanted_is_fetched(hub: Hub) -> None:
    source = open_hub(hub)
    source.read("model.safetensors", 0, 8)
    source.read("config.json", 0, 4)
    source.read("config.json", 4, 4)
    source.close()
    assert hub.bytes_sent == 8 + len(SMALL["config.json"])


def test_connections_are_used_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[int] = []
    dial = transport.dial

    def count(network: Network, sockets: Sockets, address: HttpAddress, public: bool) -> Link:
        connected.append(address.port)
        return dial(network, sockets, address, public)

    monkeypatch.setattr(transport, "dial", count)
    source = open_hub(hub)
    for place in range(5):
        source.read("model.safetensors", place, 8)
    source.close()
    assert len(connected) == 2


def test_the_revision_stays_pinned(hub: Hub, tmp_path: Path) -> None:
    source = open_hub(hub)
    (tmp_path / "config.json").write_bytes(b"new")
    hub.push("org/repo", tmp_path)
    assert source.read("config.json", 0, 8) == SMALL["config.json"]
    assert whole(source, "model.safetensors") == WEIGHTS
    newer = open_hub(hub)
    assert newer.names() == ["config.json"]
    newer.close()


def test_the_token_stays_at_home(folder: Path) -> None:
    with Hub({"org/repo": folder}, token="hf_secret") as hub:
        source = open_hub(hub, network=Net(token="hf_secret"))
        source.read("model.safetensors", 0, 8)
        assert whole(source, "model.safetensors") == WEIGHTS
    assert hub.paths("cdn")
    for request in hub.requests:
        assert request.headers.get("authorization") == ("Bearer hf_secret" if request.origin == "hub" else None)
        assert "hf_secret" not in request.path
        assert (request.origin == "hub") == ("hf_secret" in str(request.headers))


def test_a_renamed_repository_is_followed(hub: Hub) -> None:
    source = open_hub(hub, "old/name")
    assert source.title == "org/repo"
    assert whole(source, "model.safetensors") == WEIGHTS


@pytest.mark.parametrize(
    ("name", "token", "error", "hint"),
    [
        ("org/repo", "", ModelNotFound, "HF_TOKEN"),
        ("no/such", "", ModelNotFound, "spelling"),
        ("no/such", "right", ModelNotFound, "spelling"),
        ("org/repo", "wrong", AccessDenied, "valid"),
        ("org/repo", "white space", AccessDenied, "HF_TOKEN"),
        ("org/repo", "sch\u00e4dlich\n", AccessDenied, "HF_TOKEN"),
    ],
)
def test_refusals_say_what_to_do(folder: Path, name: str, token: str, error: type[RegistryError], hint: str) -> None:
    with Hub({"org/repo": folder}, token="right") as hub, pytest.raises(error) as caught:
        open_hub(hub, name, Net(token=token or None))
    assert hint in caught.value.hint
    assert not token or token not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("token", ["", "right"])
def test_gated_models_name_their_page(folder: Path, token: str) -> None:
    with Hub({"org/repo": folder}, gated=["org/repo"]) as hub:
        source = open_hub(hub, network=Net(token=token or None))
        with pytest.raises(AccessDenied) as caught:
            source.read("config.json", 0, 1)
        source.close()
    assert f"{hub.url}/org/repo" in caught.value.hint
    assert ("HF_TOKEN" in caught.value.hint) == (not token)


@pytest.mark.parametrize("cut", [0, 1, 1_500_000, len(WEIGHTS) - 1])
@pytest.mark.parametrize("ignore_ranges", [False, True])
def test_a_cut_stream_goes_on_where_it_was(hub: Hub, cut: int, ignore_ranges: bool) -> None:
    source = open_hub(hub)
    hub.faults.cut_after, hub.faults.cuts, hub.faults.ignore_ranges = cut, 2, ignore_ranges
    assert whole(source, "model.safetensors") == WEIGHTS
    if not ignore_ranges:
        assert hub.bytes_sent <= len(WEIGHTS) + (1 << 16)


def test_a_stream_that_is_cut_again_and_again_ends(hub: Hub) -> None:
    source = open_hub(hub)
    hub.faults.cut_after, hub.faults.cuts = 1000, 1 << 30
    with pytest.raises(SourceUnavailable) as caught:
        whole(source, "model.safetensors")
    assert "model.safetensors" in str(caught.value)
    # Each piece is asked for so often at most, and each of the eight connections has one piece.
    asked = Counter(request.headers["range"].rpartition("-")[2] for request in hub.requests if request.origin == "cdn")
    assert max(asked.values()) == DOWNLOADS.tries and len(asked) <= 8


def test_a_stream_that_gets_on_is_not_given_up(hub: Hub) -> None:
    source = open_hub(hub)
    hub.faults.cut_after, hub.faults.cuts = 1_100_000 // 2, 1 << 30
    assert whole(source, "model.safetensors") == WEIGHTS


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_no_wrong_bit_passes(hub: Hub, name: str) -> None:
    source = open_hub(hub)
    hub.faults.flip = 7
    with pytest.raises(DigestMismatch) as caught:
        source.open(name).finish()
    assert name in str(caught.value)
    hub.faults.flip = None
    source.close()


def test_a_wrong_header_is_found_out_by_the_stream(hub: Hub) -> None:
    source = open_hub(hub)
    hub.faults.flip, hub.faults.flips = 7, 1
    assert source.read("model.safetensors", 0, 8) != WEIGHTS[:8]
    with pytest.raises(DigestMismatch):
        whole(source, "model.safetensors")


def test_a_file_that_is_another_size_is_refused(hub: Hub, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(b"other" + WEIGHTS)
    hub.push("org/repo", tmp_path)
    source = open_hub(hub)
    copy.write_bytes(WEIGHTS)
    with pytest.raises((DigestMismatch, SourceUnavailable)):
        whole(source, "model.safetensors")


@pytest.mark.parametrize("statuses", [[503], [429, 500, 502], [504] * (FETCHES.tries - 1)])
def test_passing_trouble_is_waited_for(hub: Hub, statuses: list[int]) -> None:
    hub.faults.statuses = statuses
    hub.faults.retry_after = "0"
    assert whole(open_hub(hub), "model.safetensors") == WEIGHTS


def test_lasting_trouble_is_told(hub: Hub) -> None:
    hub.faults.statuses = [503] * FETCHES.tries
    with pytest.raises(SourceUnavailable, match="503"):
        open_hub(hub)


def test_a_stall_is_a_cut(hub: Hub) -> None:
    source = open_hub(hub, network=Net(timeout=0.2))
    hub.faults.stall_after = 2_000_000
    assert whole(source, "model.safetensors") == WEIGHTS


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(SourceUnavailable, match="refused"):
            open_source(parse("org/repo"), f"http://127.0.0.1:{port}", Net())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "this machine is offline: `hub.example`"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "this machine is offline: `hub.example`"),
        (socket.gaierror(socket.EAI_NONAME, "Name not known"), "^`hub.example` cannot be reached: its name is not"),
        (TimeoutError("timed out"), "^`hub.example` cannot be reached: nothing arrived"),
    ],
)
def test_who_never_answered_is_given_up_soon(error: OSError, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    heard: list[str] = []
    with pytest.raises(SourceUnavailable, match=told) as caught:
        open_source(parse("org/repo"), "https://hub.example", Net(notice=heard.append))
    assert asked == ["hub.example"] * 2 and len(heard) == 1 and heard[0].endswith("; trying again")
    assert "`demo` and folders" in caught.value.hint


def test_who_has_answered_before_is_asked_more_often(hub: Hub) -> None:
    heard: list[str] = []
    network = Net(notice=heard.append)
    with closing(open_hub(hub, network=network)) as source:
        hub.faults.statuses = [503] * 4
        assert source.read("config.json", 0, 3) == b'{"a'
    assert len(heard) == 4 and "answers 503; trying again" in heard[0]


BODY = '{"id":"org/repo","sha":"' + "a" * 40 + '","siblings":[{"rfilename":"x","size":1,"blobId":"' + "b" * 40 + '"}]}'


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "hub"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<!DOCTYPE", "hub"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000, "hub"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b" " * (17 << 20), "longer"),
        (f"HTTP/1.1 200 OK\r\n\r\n{BODY.replace('org/repo', '../../x')}".encode(), "hub"),
        (f"HTTP/1.1 200 OK\r\n\r\n{BODY.replace('a' * 40, 'main/../..')}".encode(), "hub"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "redirects"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "redirects more than 5 times"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", "address"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://u:p@127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "address"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[x/\r\nContent-Length: 0\r\n\r\n", "address"),
        (b"garbage\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "malformed"),
        (b"HTTP/1.1 418 \x1b[31m\r\nContent-Length: 0\r\n\r\n", "418"),
    ],
)  # fmt: skip
def test_whatever_a_server_says_it_ends_in_a_sentence(answer: bytes, told: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, answer))
        thread.start()
        try:
            with pytest.raises(RegistryError, match=told) as caught:
                open_source(parse("org/repo"), f"http://127.0.0.1:{listener.getsockname()[1]}", Net())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert str(caught.value).isprintable()


def serve(listener: socket.socket, answer: bytes, asked: list[bytes] | None = None) -> None:
    """Give the same answer to everybody until the listener is shut."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                request = connection.recv(65536)
                if asked is not None:
                    asked.append(request)
                connection.sendall(answer)
            except OSError:
                continue


def test_odd_file_names_are_not_listed() -> None:
    blob = "b" * 40
    names = ["/etc/passwd", "../x", "a/../../x", "a//b", "", ".", "a\\b", "a\\u0000b", "good/one.txt"]
    listed = ",".join(f'{{"rfilename":"{name}","size":1,"blobId":"{blob}"}}'.replace("\\b", "\\\\b") for name in names)
    body = (
        f'{{"id":"org/repo","sha":"{"a" * 40}","siblings":[{listed},{{"rfilename":"x","size":-1,"blobId":"{blob}"}}]}}'
    )
    answer = f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}".encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener, answer))
        thread.start()
        source = open_source(parse("org/repo"), f"http://127.0.0.1:{listener.getsockname()[1]}", Net())
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert source.names() == ["good/one.txt"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_is_used_for_other_machines_only(hub: Hub, scheme: str) -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        thread = threading.Thread(target=serve, args=(listener, refusal, asked))
        thread.start()
        try:
            open_hub(hub, network=Net(proxies={"all": proxy})).close()
            assert not asked
            with pytest.raises(RegistryError):
                network = Net("hf_x", {"all": proxy})
                open_source(parse("org/repo"), f"{scheme}://hub.example", network)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    wanted = b"GET http://hub.example/api/models/org/repo/" if scheme == "http" else b"CONNECT hub.example:443 "
    assert asked[0].startswith(wanted)
    assert (b"hf_x" in asked[0]) == (scheme == "http")


def test_a_bare_word_says_no_place() -> None:
    with pytest.raises(ModelNotFound) as caught:
        open_source(parse("llama3.2:3b"), "http://127.0.0.1:1", Net())
    assert "org/repo" in caught.value.hint


# Folders


def test_a_folder_reads_in_place(folder: Path) -> None:
    source = open_folder(folder)
    assert source.names() == ["config.json", "empty.txt", "model.safetensors", "odd name %20#?.txt"]
    assert (source.title, source.url, source.revision) == (str(folder), str(folder), "")
    assert source.digest("config.json") is None
    assert source.read("model.safetensors", 255, 2) == b"\xff\x00"
    assert source.size("model.safetensors") == len(WEIGHTS)
    assert whole(source, "model.safetensors") == WEIGHTS


@pytest.mark.parametrize("ending", ["gguf", "GGUF"])
def test_one_part_of_a_split_file_stands_for_all(tmp_path: Path, ending: str) -> None:
    parts = [f"m-{number:05}-of-00003.{ending}" for number in (1, 2, 3)]
    for name in (*parts, f"other-00001-of-00003.{ending}", f"m-00001-of-00002.{ending}"):
        (tmp_path / name).write_bytes(b"GGUF")
    with closing(open_folder(tmp_path / parts[0])) as source:
        assert source.names() == parts


def test_demo_comes_with_the_package() -> None:
    source = open_source(parse("demo"), "http://127.0.0.1:1", Net())
    assert "config.json" in source.names()
    assert (
        hashlib.sha256(whole(source, "config.json")).digest()
        == hashlib.sha256((DEMO / "config.json").read_bytes()).digest()
    )


def test_links_to_files_are_files_and_nothing_else_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    source = open_folder(tmp_path)
    assert source.names() == ["model.safetensors"]
    assert whole(source, "model.safetensors") == WEIGHTS
    for name in ("pipe", "zero", "folder", "../x", "/etc/passwd"):
        with pytest.raises(SourceUnavailable):
            source.size(name)


@pytest.mark.parametrize("below", ["1_Pooling", "lost+found"])
def test_a_folder_below_that_cannot_be_read_is_named(
    folder: Path, tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a model would be made that averages where it should not; only root's own folder is passed over."""
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / below).mkdir()
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if os.fspath(path) == str(tmp_path / below):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    if below == "lost+found":
        assert open_folder(tmp_path).names() == ["config.json"]
    else:
        with pytest.raises(AccessDenied, match=f"{tmp_path}/{below}"):
            open_folder(tmp_path)


def test_a_pipe_put_in_place_later_does_not_block(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    source = open_folder(tmp_path)
    (tmp_path / "x").unlink()
    os.mkfifo(tmp_path / "x")
    with pytest.raises(SourceUnavailable, match="regular"):
        source.read("x", 0, 1)


def test_a_file_that_changes_is_not_half_used(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)
    source = open_folder(tmp_path)
    stream = source.open("model.safetensors")
    stream.readinto(memoryview(bytearray(1000)))
    with path.open("r+b") as file:
        file.truncate(2_000_000)
    with pytest.raises(SourceUnavailable):
        stream.readinto(memoryview(bytearray(3_000_000)))
    path.write_bytes(WEIGHTS)
    stream = source.open("model.safetensors")
    stream.readinto(memoryview(bytearray(1000)))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceUnavailable, match="changed"):
        stream.finish()
    source.close()


def test_no_such_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ModelNotFound, match=path.name):
            open_folder(path)
