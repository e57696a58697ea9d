"""SHA-256 with a state, against hashlib: both engines, any split, any place to stop."""

from __future__ import annotations

import hashlib
import random

import pytest

from registry import sha256
from registry.errors import StoreDamaged
from registry.sha256 import Sha256

LENGTHS = [0, 1, 55, 56, 63, 64, 65, 119, 127, 128, 1000, 8191, 100_003]
# After the bytes 0 … 99: version, the words that the first block leaves, the count, and the block that is unfinished.
GOLDEN = bytes.fromhex("01fc99a2df88f42a7a7bb9d18033cdc6a20256755f9d5b9a5044a9cc315abe84a70000000000000064") + bytes(
    range(64, 100)
)


@pytest.fixture(params=["libcrypto", "numba"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numba":
        monkeypatch.setattr(sha256, "_native", lambda: None)
    elif sha256.engine() != "libcrypto":
        pytest.skip("no libcrypto")
    return str(request.param)


def test_digests(engine: str) -> None:
    assert sha256.engine() == engine
    for length in LENGTHS:
        data = random.Random(length).randbytes(length)
        for buffer in (data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
            hasher = Sha256()
            hasher.update(buffer)
            assert hasher.hexdigest() == hashlib.sha256(data).hexdigest()
            assert hasher.length == length


def test_stopped_and_resumed_anywhere(engine: str) -> None:
    rng = random.Random(7)
    data = rng.randbytes(20_000)
    for _ in range(50):
        hasher, at = Sha256(), 0
        while at < len(data):
            step = rng.choice([1, 63, 64, 65, rng.randrange(5000)])
            hasher.update(memoryview(data)[at : at + step])
            at += step
            hasher = Sha256(hasher.state())
            assert hasher.hexdigest() == hashlib.sha256(data[:at]).hexdigest()


def test_the_state_does_not_depend_on_the_engine(engine: str) -> None:
    hasher = Sha256()
    hasher.update(bytes(range(100)))
    assert hasher.state() == GOLDEN
    resumed = Sha256(GOLDEN)
    resumed.update(b"end")
    assert resumed.hexdigest() == hashlib.sha256(bytes(range(100)) + b"end").hexdigest()


def test_lengths_beyond_32_bits_of_bits(engine: str) -> None:
    """The count of bits is two words in libcrypto's context; 2^29 bytes make the upper one count."""
    state = Sha256().state()
    words, count = state[:33], (1 << 40) + 64
    other = Sha256(words + count.to_bytes(8, "big"))
    other.update(b"x" * 5)
    assert other.state()[33:] == (count + 5).to_bytes(8, "big") + b"x" * 5


def test_wider_items_count_in_bytes(engine: str) -> None:
    hasher = Sha256()
    hasher.update(memoryview(bytearray(80)).cast("I"))
    assert hasher.length == 80
    assert hasher.hexdigest() == hashlib.sha256(bytes(80)).hexdigest()


@pytest.mark.parametrize("state", [b"", b"x", GOLDEN[:-1], GOLDEN + b"x", b"\x02" + GOLDEN[1:]])
def test_a_state_that_is_none_is_refused(state: bytes) -> None:
    with pytest.raises(StoreDamaged, match="malformed"):
        Sha256(state)
