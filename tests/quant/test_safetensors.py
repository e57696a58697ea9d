from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from quant.errors import MalformedFile, QuantError, UnsupportedModel
from quant.safetensors import INDEX, Entry, read_header, read_model
from tests.quant.support import DEMO, Folder, safetensors


def parse(data: bytes) -> tuple[Entry, ...]:
    return read_header(lambda offset, size: data[offset : offset + size], len(data), "x.safetensors")


def raw(header: Any, body: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_file_of_the_reference_library_is_read() -> None:
    import numpy as np

    data = save({"b": np.ones((3, 2), np.float32), "a": np.ones(5, np.float16)}, metadata={"format": "pt"})
    begin = 8 + int.from_bytes(data[:8], "little")
    entries = parse(data)
    assert {e.name: (e.dtype, e.shape, e.size) for e in entries} == {"b": ("F32", (3, 2), 24), "a": ("F16", (5,), 10)}
    assert entries[0].offset == begin and entries[1].offset == begin + entries[0].size


REFUSED = {
    "empty": b"",
    "seven bytes": bytes(7),
    "header bomb": struct.pack("<Q", 1 << 62) + b"{}",
    "header over the limit": struct.pack("<Q", 101 << 20) + bytes(64),
    "header longer than the file": struct.pack("<Q", 100) + b"{}",
    "not JSON": raw(b"{nonsense}"),
    "a list": raw([]),
    "spaces first": raw(b" {}"),
    "nested deeply": raw(b'{"a":' + b"[" * 200_000),
    "a key twice": raw(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    "no object": raw({"a": 1}),
    "a field missing": raw({"a": {"dtype": "F32", "shape": [1]}}, 4),
    "a field too many": raw({"a": {**entry(), "more": 1}}, 16),
    "unknown type": raw({"a": entry("F99")}, 16),
    "type no text": raw({"a": entry(3)}, 16),
    "shape no list": raw({"a": entry(shape=4)}, 16),
    "shape negative": raw({"a": entry(shape=[-2, -2])}, 16),
    "shape of fractions": raw({"a": entry(shape=[2.0, 2])}, 16),
    "shape true": raw({"a": entry(shape=[True, 4])}, 16),
    "shape overflows": raw({"a": entry(shape=[1 << 62, 1 << 62, 0])}, 16),
    "nine dimensions": raw({"a": entry(shape=[1] * 8 + [4])}, 16),
    "offsets backwards": raw({"a": entry(offsets=[16, 0])}, 16),
    "offsets negative": raw({"a": entry(offsets=[-16, 0])}, 16),
    "three offsets": raw({"a": entry(offsets=[0, 16, 16])}, 16),
    "size other than shape": raw({"a": entry(offsets=[0, 12])}, 12),
    "overlap": raw({"a": entry(), "b": entry(offsets=[8, 24])}, 24),
    "the same place twice": raw({"a": entry(), "b": entry()}, 16),
    "hole": raw({"a": entry(), "b": entry(offsets=[20, 36])}, 36),
    "hole at the beginning": raw({"a": entry(offsets=[4, 20])}, 20),
    "bytes after the end": raw({"a": entry()}, 17),
    "truncated": raw({"a": entry()}, 15),
    "offset far away": raw({"a": entry(offsets=[1 << 60, (1 << 60) + 16])}, 16),
    "name that moves the cursor": raw({"\x1b[2J": entry("F99")}, 16),
    "name of half a surrogate": raw(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    "number of 5000 digits": raw(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', 1),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_files_are_refused_in_one_sentence(case: str) -> None:
    with pytest.raises(MalformedFile, match=r"^`x\.safetensors` .*[^.]$"):
        parse(REFUSED[case])


RIGHT = safetensors({"a": ("F32", (2, 2), bytes(16)), "b": ("BF16", (3,), bytes(6))})


@settings(max_examples=500)
@given(st.integers(0, len(RIGHT) - 1), st.binary(min_size=1, max_size=4), st.integers(0, 3))
def test_mutations_raise_nothing_else(where: int, patch: bytes, cut: int) -> None:
    data = (RIGHT[:where] + patch + RIGHT[where + len(patch) :])[: len(RIGHT) - cut]
    try:
        entries = parse(data)
    except QuantError:
        return
    assert sum(e.size for e in entries) == len(data) - 8 - int.from_bytes(data[:8], "little")


PART = {name: safetensors({name: ("F32", (2,), bytes(8))}) for name in ("a", "b")}


def shards(where: Any, **files: bytes) -> Folder:
    index = json.dumps({"metadata": {}, "weight_map": where}).encode()
    return Folder(contents={INDEX: index, **{f"{name}.safetensors": data for name, data in files.items()}})


def test_shards_are_read_in_the_order_of_their_names() -> None:
    folder = shards({"b": "2.safetensors", "a": "1.safetensors"}, **{"1": PART["a"], "2": PART["b"]})
    assert [(e.shard, e.name) for e in read_model(folder)] == [("1.safetensors", "a"), ("2.safetensors", "b")]


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (shards({"a": "1.safetensors"}), "missing"),
        (shards({"a": "../1.safetensors"}), "cannot be a file"),
        (shards({"a": "/etc/passwd"}), "cannot be a file"),
        (shards({"a": "x\\1.safetensors"}), "cannot be a file"),
        (shards({"a": "1.bin"}, **{"1": PART["a"]}), "cannot be a file"),
        (shards({"a": 1}), "weight_map"),
        (shards({}), "weight_map"),
        (shards([]), "weight_map"),
        (shards({"c": "1.safetensors"}, **{"1": PART["a"]}), "`c`"),
        (shards({"a": "1.safetensors", "b": "2.safetensors"}, **{"1": PART["a"], "2": PART["a"]}), "`a` is in"),
    ],
)
def test_an_index_that_lies_is_refused(folder: Folder, reason: str) -> None:
    with pytest.raises(MalformedFile, match=reason):
        read_model(folder)


def test_pickles_are_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedModel, match=r"`pytorch_model\.bin`, a pickle, which can run any code"):
        read_model(Folder(contents={"pytorch_model.bin": b"", "config.json": b"{}"}))


def test_no_weights_at_all() -> None:
    with pytest.raises(UnsupportedModel, match=r"neither `model\.safetensors` nor"):
        read_model(Folder(DEMO).with_file("model.safetensors", None))
