"""Downloads over real HTTP, from a network that is as bad as networks are."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from registry.errors import AccessDenied, DigestMismatch, ModelNotFound, RegistryError, SourceUnavailable
from registry.net import dialing, transport
from registry.net import download as transfers
from registry.net import fetch as small
from registry.net import network as ways
from registry.net.address import HttpAddress
from registry.net.dialing import Link, Sockets, is_public
from registry.net.download import Download
from registry.net.locate import Remote
from registry.net.network import Limiter, Network
from registry.net.retries import DOWNLOADS
from registry.net.verify import Verified
from registry.sha256 import Sha256
from tests.daemon import allowed, wait_until
from tests.hub import Faults, Hub
from tests.registry.badnet import FAULTS, BadNet, Request, reply

PIECE = 64 * 1024
DATA = random.Random(1).randbytes(20 * PIECE + 12_345)
SHA = "sha256:" + hashlib.sha256(DATA).hexdigest()


# No long waits before another try.
HASTY = replace(DOWNLOADS, shortest=0.002, longest=0.01)
# Nor patience with slow connections.
IMPATIENT = replace(HASTY, slow=0.02, dead=0.1, smallest=1024)
Net = partial(Network, downloads=HASTY)


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not [thread.name for thread in set(threading.enumerate()) - before]


def fetch(net: BadNet, network: Network | None = None, start: int = 0, parallel: int = 4) -> bytes:
    with Download(net.remote, network or Net(timeout=5), start, parallel=parallel, piece=PIECE) as chunks:
        return b"".join(bytes(chunk) for chunk in chunks)


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("start", [0, 1, PIECE, len(DATA) - 1, len(DATA)])
def test_in_order_from_any_start(start: int, parallel: int) -> None:
    with BadNet(DATA) as net:
        assert fetch(net, start=start, parallel=parallel) == DATA[start:]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1])
@pytest.mark.parametrize("direct", [True, False])
def test_small_files(size: int, direct: bool) -> None:
    with BadNet(DATA[:size], direct=direct) as net:
        assert fetch(net) == DATA[:size]
        assert len(net.of("hub")) <= (2 if direct else 1)


def test_ranges_are_parallel_and_the_hub_is_asked_once() -> None:
    together = threading.Barrier(4, timeout=5)

    def script(request: Request) -> None:
        if 1 <= request.index <= 4:
            together.wait()

    with BadNet(DATA) as net:
        net.script = script
        assert fetch(net) == DATA
        assert len(net.of("hub")) == 1
        assert net.sent == len(DATA)


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"flip", "stall", "slow"}))
def test_a_fault_now_and_then_costs_nothing_but_time(fault: str) -> None:
    with BadNet(DATA) as net:
        net.script = lambda request: fault if request.index % 3 == 1 else None
        assert fetch(net) == DATA


def test_a_stall_is_ended() -> None:
    with BadNet(DATA) as net:
        net.script = lambda request: "stall" if request.index in (0, 5) else None
        assert fetch(net, Net(timeout=0.2)) == DATA


def take(reader: Verified, count: int) -> bytes:
    data = bytearray(count)
    reader.readinto(memoryview(data))
    return bytes(data)


@pytest.mark.parametrize("fault", ["slow", "stall"])
def test_one_bad_connection_holds_up_nobody(fault: str) -> None:
    """A piece at 10 kB/s would take 6 s, a silent one 30 s: others take its end over, or it is begun anew."""
    with BadNet(DATA) as net:
        net.script = lambda request: fault if request.index == 3 else None
        started = time.monotonic()
        assert fetch(net, Network(timeout=30, downloads=IMPATIENT)) == DATA
        assert time.monotonic() - started < allowed(3)


@pytest.mark.parametrize("seed", range(3))
def test_everything_at_once(seed: int) -> None:
    """5 % resets, 1.5 % of each other kind, and the transfer is stopped and resumed at random places."""
    rng = random.Random(seed)
    kinds = sorted(set(FAULTS) - {"flip", "stall", "reset", "slow"})
    draws = rng.choices([None, "reset", *kinds], [0.95 - 0.015 * len(kinds), 0.05] + [0.015] * len(kinds), k=1000)
    with BadNet(DATA, seed=seed) as net:
        net.script = lambda request: draws[request.index]
        seen, state = b"", b""
        while len(seen) < len(DATA):
            chunks = Download(net.remote, Net(timeout=2), len(seen), parallel=3, piece=PIECE)
            with closing(Verified(chunks, "m", len(DATA), SHA, len(seen), state)) as reader:
                for _ in range(rng.randrange(12)):
                    seen += take(reader, min(rng.randrange(1, PIECE), len(DATA) - len(seen)))
                    state = reader.state() or b""
        assert seen == DATA
        Verified([], "m", len(DATA), SHA, len(seen), state).finish()


@pytest.mark.parametrize("every", [1, 2])
def test_ranges_that_are_ignored_make_one_stream(every: int) -> None:
    with BadNet(DATA) as net:
        net.script = lambda request: "ignore" if request.index < 2 * every else None
        assert fetch(net, start=3 * PIECE + 5) == DATA[3 * PIECE + 5 :]


def test_ranges_always_ignored_and_the_one_stream_cut() -> None:
    def script(request: Request) -> str:
        return "ignore"

    with BadNet(DATA) as net:
        net.script = script
        with Download(net.remote, Net(), PIECE + 7, piece=PIECE) as chunks:
            seen = bytes(next(chunks))
            for sock in list(net.sockets):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            seen += b"".join(bytes(chunk) for chunk in chunks)
        assert seen == DATA[PIECE + 7 :]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("reset", "reset by peer|closed early"),
        ("shifted", "where bytes"),
        ("total", "/1323066"),
        ("longer", "sends 65546 bytes"),
        ("noheader", "without saying which"),
        ("garbage", "malformed"),
        ("unavailable", "answers 503"),
        ("gzip", "compresses"),
    ],
)
def test_lasting_trouble_is_told_in_a_sentence(fault: str, words: str) -> None:
    with BadNet(DATA) as net:
        net.script = lambda request: fault
        net.random.randrange = lambda size: 0  # type: ignore[method-assign]
        with pytest.raises(SourceUnavailable, match=words) as caught:
            fetch(net)
        assert "model.safetensors" in str(caught.value)
        assert "sig=" not in str(caught.value)
        assert caught.value.hint


def test_what_arrived_before_the_gap_is_delivered() -> None:
    with BadNet(DATA) as net:
        net.script = lambda request: "garbage" if request.span and request.span[1] > 5 * PIECE else None
        seen = b""
        with pytest.raises(SourceUnavailable), Download(net.remote, Net(), piece=PIECE) as chunks:
            for chunk in chunks:
                seen += bytes(chunk)
    assert seen == DATA[: 5 * PIECE]


@pytest.mark.parametrize(
    ("status", "token", "kind", "words"),
    [
        ("401 Unauthorized", None, AccessDenied, "wants a token"),
        ("403 Forbidden", "hf_x", AccessDenied, "does not let this token"),
        ("404 Not Found", None, ModelNotFound, "has no `model.safetensors`"),
        ("400 Bad Request", None, SourceUnavailable, "answers 400"),
    ],
)
def test_refusals(status: str, token: str | None, kind: type[RegistryError], words: str) -> None:
    with BadNet(DATA) as net:
        net.refuse = lambda request: reply(status, {"X-Error-Code": "Why"}, b"{}")
        with pytest.raises(kind, match=words) as caught:
            fetch(net, Net(token=token))
        assert caught.value.hint
        assert len(net.requests) == 1
        remote = replace(
            net.remote, refused=lambda status, headers: ModelNotFound(f"{status} {headers['X-Error-Code']}")
        )
        with pytest.raises(ModelNotFound, match="Why"), Download(remote, Net()) as chunks:
            next(chunks)


def test_the_token_stays_at_its_origin() -> None:
    with BadNet(DATA) as net:
        net.script = lambda request: "expired" if request.index == 7 else None
        assert fetch(net, Net(token="hf_secret")) == DATA
        assert {request.headers.get("authorization") for request in net.of("hub")} == {"Bearer hf_secret"}
        assert not any("hf_secret" in str(request) for request in net.of("cdn"))
    assert "hf_secret" not in repr(Net(token="hf_secret"))


@pytest.mark.parametrize("token", ["a b", "a\r\nX: y", "é", ""])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(AccessDenied):
        Net(token=token)


def test_an_expired_address_is_asked_for_again() -> None:
    with BadNet(DATA) as net:
        net.script = lambda request: "expired" if request.index == 2 else None
        assert fetch(net) == DATA
        assert len(net.of("hub")) == 2


def test_a_file_that_changes_is_refused() -> None:
    with BadNet(DATA) as net:

        def script(request: Request) -> str | None:
            if request.index == 2:
                net.linked = "0" * 64
                return "expired"
            return None

        net.script = script
        with pytest.raises(SourceUnavailable, match="changed at its source"):
            fetch(net)


def test_redirect_loops_end() -> None:
    with BadNet(DATA) as net:
        net.locations = ["/org/repo/resolve/abc/model.safetensors"] * 20
        with pytest.raises(SourceUnavailable, match="more than 5 times"):
            fetch(net)
        assert len(net.requests) == 6


@pytest.mark.parametrize("location", ["ftp://x/", "http://user:pass@127.0.0.1/", "http://[::1/", "http://h:99999/"])
def test_redirects_to_nowhere(location: str) -> None:
    with BadNet(DATA) as net:
        net.locations = [location] * 20
        with pytest.raises(SourceUnavailable, match="the source names an address"):
            fetch(net)


def test_a_public_hub_may_not_redirect_into_this_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's address is taken for a public one; the CDN's is what it is."""
    with BadNet(DATA) as net:
        dial = transport.dial

        def pretend(network: Network, sockets: Sockets, address: HttpAddress, public: bool) -> Link:
            link = dial(network, sockets, address, public)
            link.public = address.netloc in net.url
            return link

        monkeypatch.setattr(transport, "dial", pretend)
        with pytest.raises(SourceUnavailable, match="private address"):
            fetch(net)
        assert not net.of("cdn")


def resolver(monkeypatch: pytest.MonkeyPatch, addresses: dict[str, str]) -> list[str]:
    """Resolve names by a table; the list has the addresses that were connected to, which may be loopback only."""
    connected: list[str] = []

    def find(host: str, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (addresses.get(host, host), port))]

    class Watched(socket.socket):
        def connect(self, place: Any) -> None:
            connected.append(place[0])
            assert place[0] == "127.0.0.1"
            super().connect(place)

    monkeypatch.setattr(dialing.socket, "getaddrinfo", find)
    monkeypatch.setattr(dialing.socket, "socket", Watched)
    return connected


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::1%2", "link-local"),
        ("10.0.0.8", "private address"),
        ("127.0.0.1", "private address"),
        ("0.0.0.0", "private address"),
    ],
)
def test_a_redirect_to_another_private_host_is_not_followed(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub itself is private, as its user wants it; the host that it names is not the user's choice."""
    with BadNet(DATA) as net:
        asked = resolver(monkeypatch, {"cdn.example": address})
        net.locations = [f"http://cdn.example:{net.cdn.rpartition(':')[2]}/blob"] * 20
        with pytest.raises(SourceUnavailable, match=said):
            fetch(net)
        assert not net.of("cdn") and set(asked) == {"127.0.0.1"}


def test_not_even_the_hub_may_be_link_local(monkeypatch: pytest.MonkeyPatch) -> None:
    with BadNet(DATA) as net:
        asked = resolver(monkeypatch, {"127.0.0.1": "169.254.169.254"})
        with pytest.raises(SourceUnavailable, match="link-local"):
            fetch(net)
        assert not asked


def test_the_whole_is_bounded_when_nobody_reads() -> None:
    with BadNet(DATA) as net, Download(net.remote, Net(), parallel=2, piece=PIECE) as chunks:
        first = bytes(next(chunks))
        wait_until(lambda: chunks.received >= 4 * PIECE, 5)
        with pytest.raises(AssertionError, match="not within"):
            wait_until(lambda: chunks.received > 4 * PIECE, 0.05)
        assert first + b"".join(bytes(chunk) for chunk in chunks) == DATA


@pytest.mark.parametrize("when", ["stalled", "retrying", "unread", "connecting"])
def test_closing_ends_everything_at_once(when: str) -> None:
    retries = replace(HASTY, shortest=20.0, longest=20.0) if when == "retrying" else HASTY
    with BadNet(DATA) as net:
        arrived = threading.Event()

        def script(request: Request) -> str | None:
            arrived.set()
            return {"stalled": "stall", "retrying": "reset"}.get(when)

        net.script = script
        if when == "connecting":
            net.refuse = lambda request: b"" if arrived.set() or net.closing.wait(5) else None
        chunks = Download(net.remote, Network(timeout=30, downloads=retries), piece=PIECE)
        assert arrived.wait(5)
        started = time.monotonic()
        chunks.close()
        net.closing.set()
        assert time.monotonic() - started < allowed(3)
        with pytest.raises(ValueError, match="closed"):
            next(chunks)


def test_a_cut_on_a_slow_link_keeps_what_came() -> None:
    """Eight connections share 1 MB/s; a reader gets nearly all that came before the cut, in order."""
    data = random.Random(3).randbytes(32 << 20)
    network = Network(timeout=5, limiter=Limiter(1e6))
    with BadNet(data) as net, Download(net.remote, network) as download:
        delivered = 0
        for chunk in download:
            delivered += len(chunk)
            if download.received > 3_000_000:
                break
        lost = download.received - delivered
    assert lost < 1_500_000, f"{lost:,} bytes of {download.received:,} came and are of no use"


def test_the_rate_is_limited_for_all_together() -> None:
    with BadNet(DATA) as net:
        started = time.monotonic()
        assert fetch(net, Net(limiter=Limiter(4_000_000))) == DATA
        assert 0.27 < time.monotonic() - started < allowed(3)


def test_a_flipped_bit_is_seen() -> None:
    with BadNet(DATA) as net:
        net.script = lambda request: "flip" if request.index == 4 else None
        chunks = Download(net.remote, Net(), piece=PIECE)
        with pytest.raises(DigestMismatch, match="model"), closing(Verified(chunks, "model", len(DATA), SHA)) as reader:
            reader.finish()


def test_a_bit_flipped_before_a_resume_is_seen() -> None:
    wrong = bytearray(DATA)
    wrong[100] ^= 1
    reader = Verified([bytes(wrong[:PIECE])], "model", len(DATA), SHA)
    take(reader, PIECE)
    state = reader.state() or b""
    with BadNet(DATA) as net, pytest.raises(DigestMismatch):
        chunks = Download(net.remote, Net(), PIECE, piece=PIECE)
        with closing(Verified(chunks, "model", len(DATA), SHA, PIECE, state)) as reader:
            reader.finish()


def test_a_state_goes_with_its_offset() -> None:
    for offset, state, digest in ((7, b"", SHA), (7, Sha256().state(), SHA), (7, b"", "git-sha1:" + "0" * 40)):
        with pytest.raises(ValueError, match="offset"):
            Verified([], "model", len(DATA), digest, offset, state)


def test_git_digests() -> None:
    data = b'{"a": 1}\n' * 1000
    digest = "git-sha1:" + hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    reader = Verified([data[:10], data[10:]], "config.json", len(data), digest)
    assert take(reader, len(data)) == data
    assert reader.state() is None
    reader.finish()
    with pytest.raises(DigestMismatch):
        Verified([data[:-1], b"x"], "config.json", len(data), digest).finish()


@pytest.mark.parametrize("length", [0, len(DATA) - 1, len(DATA) + 1])
def test_wrong_lengths_are_seen(length: int) -> None:
    with pytest.raises(DigestMismatch, match="bytes"):
        Verified([(DATA + b"x")[:length]], "model", len(DATA), SHA).finish()


def test_a_digest_of_another_kind() -> None:
    with pytest.raises(SourceUnavailable, match="kind"):
        Verified([], "model", 0, "md5:" + "0" * 32)


def test_plain_http_through_a_proxy() -> None:
    """An HTTP proxy sees whole URLs; ours answers them itself."""
    with BadNet(DATA, direct=True) as proxy:
        network = Net(token="t", proxies={"http": proxy.url.replace("//", "//me:p%40ss@"), "no": "other, .corp"})
        remote = Remote("http://hub.invalid/model", len(DATA), "model")
        with Download(remote, network, piece=PIECE) as chunks:
            assert b"".join(bytes(chunk) for chunk in chunks) == DATA
        assert {request.target for request in proxy.requests} == {"http://hub.invalid/model"}
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
        assert proxy.requests[0].headers["host"] == "hub.invalid"


@pytest.mark.parametrize(
    ("no", "direct"), [("", False), ("*", True), ("hub.corp", True), (".corp", True), ("corp:80", False), ("p", False)]
)
def test_hosts_without_proxy(no: str, direct: bool) -> None:
    network = Net(proxies={"https": "http://p:1", "no": no})
    assert (network.proxy(HttpAddress.parse("https://hub.corp/x")) is None) == direct
    assert network.proxy(HttpAddress.parse("https://localhost/x")) is None


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("10.0.0.1", False), ("169.254.169.254", False), ("::ffff:127.0.0.1", False),
     ("fe80::1%eth0", False), ("2606:4700::1", True), ("::1", False)],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS settings of a server for 127.0.0.1 and of a client that trusts it."""
    if not shutil.which("openssl"):
        pytest.skip("no `openssl` to make a certificate with")
    command = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test -keyout k -out c"
    )
    options = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:hub.test"]
    subprocess.run(["openssl", *command.split(), *options], cwd=tmp_path, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "c", tmp_path / "k")
    return server, ssl.create_default_context(cafile=str(tmp_path / "c"))


def tunnel(done: Callable[[bytes], None], listener: socket.socket) -> None:
    """A proxy that understands CONNECT, once."""
    inner, _ = listener.accept()
    with inner:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += inner.recv(1)
        done(head)
        port = head.split()[1].decode().rpartition(":")[2]
        with socket.create_connection(("127.0.0.1", int(port))) as outer:
            inner.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(outer, inner))
            back.start()
            pump(inner, outer)
            back.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_tls_and_a_tunnel(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, client = contexts
    with BadNet(DATA, tls=server) as net:
        net.script = lambda request: "reset" if request.index % 5 == 1 else None
        assert fetch(net, Net(context=client)) == DATA
    with BadNet(DATA[:1000], tls=server, direct=True) as net, socket.create_server(("127.0.0.1", 0)) as listener:
        heads: list[bytes] = []
        proxy = threading.Thread(target=tunnel, args=(heads.append, listener))
        proxy.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        away = net.url.replace("127.0.0.1", "hub.test")
        network = Net(context=client, proxies={"all": url, "no": "127.0.0.1"}, token="t")
        with Download(Remote(away, 1000, "m"), network) as chunks:
            assert b"".join(bytes(chunk) for chunk in chunks) == DATA[:1000]
        proxy.join()
        assert heads[0].startswith(f"CONNECT {away.removeprefix('https://')} HTTP/1.1".encode())
        assert b"Bearer" not in heads[0]


def test_a_certificate_that_nobody_vouches_for(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    with BadNet(DATA, tls=contexts[0]) as net, pytest.raises(SourceUnavailable, match="certificate"):
        fetch(net)


def test_no_redirect_from_https_to_http(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    with BadNet(DATA, tls=contexts[0]) as net:
        net.locations = [net.cdn.replace("https", "http") + "/blob?sig=1"]
        with pytest.raises(SourceUnavailable, match="from `https` to `http`"):
            fetch(net, Net(context=contexts[1]))


@pytest.mark.parametrize(("port", "words"), [(1, "refused"), (0, "refused|assign|invalid|unreachable")])
def test_nobody_there(port: int, words: str) -> None:
    remote = Remote(f"http://127.0.0.1:{port or 9}/x", 10, "x")
    with pytest.raises(SourceUnavailable, match=words), Download(remote, Net()) as chunks:
        next(chunks)


@pytest.mark.parametrize(
    "downloads", [pytest.param(10, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.long(name="pulls"))]
)
def test_downloads_from_a_bad_network(downloads: int) -> None:
    """5 % resets, 2 % flipped bits, 2 % of all else: the right bytes or a refusal, never wrong ones."""
    kinds = sorted(set(FAULTS) - {"flip", "reset"})
    weights = [0.93 - 0.02 * len(kinds), 0.05, 0.02] + [0.02] * len(kinds)
    whole = 0
    for seed in range(downloads):
        draws = random.Random(seed).choices([None, "reset", "flip", *kinds], weights, k=10_000)
        with BadNet(DATA, seed=seed) as net:
            net.script = lambda request, draws=draws: draws[request.index]
            chunks = Download(net.remote, Network(timeout=0.2, downloads=IMPATIENT), parallel=4, piece=PIECE)
            try:
                with closing(Verified(chunks, "model", len(DATA), SHA)) as reader:
                    seen = take(reader, len(DATA))
                    reader.finish()
            except RegistryError:
                continue
            assert seen == DATA
            whole += 1
    assert 0.2 * downloads < whole < 0.9 * downloads


def test_from_a_hub(tmp_path: Path) -> None:
    """A hub's routes: a large file by redirect to the CDN, a small one from the hub itself, each with its digest."""
    small = b'{"a": 1}'
    for name, data in (("model.safetensors", DATA), ("config.json", small)):
        (tmp_path / name).write_bytes(data)
    git = "git-sha1:" + hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest()
    with Hub({"org/repo": tmp_path}, token="hf_x") as hub:
        hub.faults = Faults(cut_after=40_000, cuts=5)
        for name, data, digest in (("model.safetensors", DATA, SHA), ("config.json", small, git)):
            remote = Remote(f"{hub.url}/org/repo/resolve/{hub.heads['org/repo']}/{name}", len(data), name)
            chunks = Download(remote, Net(token="hf_x"), piece=PIECE)
            with closing(Verified(chunks, name, len(data), digest)) as reader:
                assert take(reader, len(data)) == data
                reader.finish()
            assert len(hub.paths("cdn")) > 5 or data is small  # each cut costs a request
        assert not any("authorization" in request.headers for request in hub.requests if request.origin == "cdn")


def test_a_hub_that_takes_requests_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life after a while (5 s), the end after two tries of `timeout` (30 s)."""
    monkeypatch.setattr(ways, "LONG_SECONDS", 0.05)
    notices: list[str] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        closing(small.Fetcher(Network(timeout=0.2, notice=notices.append))) as fetcher,
    ):
        url = f"http://127.0.0.1:{server.getsockname()[1]}/api/models/org/repo"
        began = time.monotonic()
        with pytest.raises(SourceUnavailable, match="2 times in a row"):
            fetcher.document(url, "org/repo", 1000, lambda status, headers: SourceUnavailable(""))
        assert time.monotonic() - began < allowed(2)
    assert "`127.0.0.1` has not answered yet: waiting for `org/repo`" in notices
    assert 2 * Network().timeout == 60


def test_a_hub_that_takes_the_request_for_weights_and_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfers, "LONG_SECONDS", 0.05)
    notices: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        remote = Remote(f"http://127.0.0.1:{server.getsockname()[1]}/weights", len(DATA), "weights")
        chunks = Download(remote, Net(timeout=0.2, notice=notices.append), piece=PIECE)
        with chunks, pytest.raises(SourceUnavailable, match="2 times in a row"):
            next(chunks)
    assert "`127.0.0.1` has not answered yet: waiting for `weights`" in notices


def test_a_transfer_that_stalls_says_so_once_and_is_tried_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "LONG_SECONDS", 0.02)
    notices: list[str] = []
    with BadNet(DATA) as net:
        net.script = lambda request: "stall" if request.origin == "cdn" and 1 <= request.index < 5 else None
        assert fetch(net, Net(timeout=0.2, notice=notices.append), parallel=1) == DATA
    assert len([text for text in notices if text.endswith("waiting for `model.safetensors`")]) >= 1
