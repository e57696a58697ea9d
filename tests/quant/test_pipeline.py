"""The streaming pass: the same bytes however the source is cut, bounded memory, and errors that name the tensor."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

import quant.stream.pipeline
from quant.convert.planning import plan_model
from quant.errors import BadValues, MalformedFile
from quant.gguf.check import check_model
from quant.gguf.header import read_file
from quant.levels.recipes import assign, weights_bytes
from quant.stream.ahead import ahead
from tests.converting import write
from tests.quant.support import DEMO, Folder, bf16, llama_shapes, safetensors

SMALL = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 4096}


def small_model(dtype: str = "BF16", biases: bool = False) -> Folder:
    """Two layers of random weights, untied, with a tensor that no engine needs."""
    rng = np.random.default_rng(7)
    shapes = llama_shapes(2, 256, 512, heads=4, shared=2, vocabulary=4096)
    if biases:
        for at in ("model.layers.0.self_attn.", "model.layers.1.self_attn."):
            shapes |= {at + "q_proj.bias": (256,), at + "k_proj.bias": (128,), at + "v_proj.bias": (128,)}
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32) * np.float32(0.05)
        packed = {"BF16": bf16, "F32": np.float32, "F16": np.float16, "F64": np.float64}[dtype](values)
        tensors[name] = (dtype, shape, packed.tobytes())
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", (32,), bytes(128))
    changed = Folder(DEMO).change("config.json", **SMALL, tie_word_embeddings=False)
    return changed.with_file("model.safetensors", safetensors(tensors))


def test_what_is_written_is_what_was_planned(tmp_path: Path) -> None:
    folder = small_model()
    plan = plan_model(folder)
    path = tmp_path / "m.gguf"
    extra = {"general.name": "Small", "lm.source": "test", "lm.flag": True, "lm.share": 0.5, "lm.list": [1.5, 2.5]}
    written = write(plan, "Q4_K_M", folder.stream, path, metadata=extra)
    assert (written.sha256, written.size) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    header = read_file(path)
    check_model(header)
    assert {**header.metadata, **extra} == header.metadata
    assert next(iter(header.metadata)) == "general.architecture"
    assert {t.name: t.type for t in header.tensors} == assign(plan, "Q4_K_M")
    assert [t.name for t in header.tensors] == [t.name for t in plan.tensors]
    assert sum(t.nbytes for t in header.tensors) == weights_bytes(plan, "Q4_K_M")
    assert len(gguf.GGUFReader(path).tensors) == len(plan.tensors)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16", "F64"])
def test_values_arrive_in_their_places(tmp_path: Path, dtype: str) -> None:
    folder = small_model(dtype, biases=True)
    path = tmp_path / "m.gguf"
    write(plan_model(folder), "F32", folder.stream, path)
    ours = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}

    def source(name: str) -> np.ndarray:
        entry = next(e for e in quant.safetensors.read_model(folder) if e.name == name)
        numpy = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
        raw = np.frombuffer(folder.read(entry.shard, entry.offset, entry.size), numpy[dtype])
        wide = (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else raw.astype(np.float32)
        return wide.reshape(entry.shape)

    at = "model.layers.0."
    assert (ours["blk.0.ffn_down.weight"] == source(at + "mlp.down_proj.weight")).all()
    assert (ours["blk.0.attn_v.bias"] == source(at + "self_attn.v_proj.bias")).all()
    # Rows 0 and 32 of a head of 64 rotate together there; they are neighbours here.
    keys = source(at + "self_attn.k_proj.weight").reshape(2, 2, 32, 256)
    assert (ours["blk.0.attn_k.weight"].reshape(2, 32, 2, 256) == keys.swapaxes(1, 2)).all()
    bias = source(at + "self_attn.q_proj.bias").reshape(4, 2, 32)
    assert (ours["blk.0.attn_q.bias"].reshape(4, 32, 2) == bias.swapaxes(1, 2)).all()


@pytest.mark.parametrize("piece", [997, 4096, 1 << 24])
def test_bytes_depend_neither_on_pieces_nor_on_threads_nor_on_slabs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    folder = small_model()
    plan = plan_model(folder)
    reference = write(plan, "Q4_K_M", folder.stream, tmp_path / "a", threads=1)
    monkeypatch.setattr(quant.stream.pipeline, "SLAB", 50_000)
    other = write(plan, "Q4_K_M", lambda name: folder.stream(name, piece), tmp_path / "b", threads=3)
    assert other == reference


def test_shards_are_read_once_each_to_their_end(tmp_path: Path) -> None:
    import json

    whole = small_model()
    entries = quant.safetensors.read_model(whole)
    half = len(entries) // 2
    parts = {"model-1.safetensors": entries[:half], "model-2.safetensors": entries[half:]}
    files = {
        shard: safetensors({e.name: (e.dtype, e.shape, whole.read(e.shard, e.offset, e.size)) for e in part})
        for shard, part in parts.items()
    }
    index = {"weight_map": {e.name: shard for shard, part in parts.items() for e in part}}
    folder = Folder(contents={**whole.contents, **files, "model.safetensors.index.json": json.dumps(index).encode()})
    finished = []

    def stream(name: str) -> Iterator[bytes]:
        yield from folder.stream(name, 10_000)
        finished.append(name)

    one = write(plan_model(whole), "Q8_0", whole.stream, tmp_path / "one")
    assert write(plan_model(folder), "Q8_0", stream, tmp_path / "two") == one
    assert finished == list(parts)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    folder = small_model()
    plan = plan_model(folder)
    heard: list[tuple[int, int]] = []
    write(plan, "Q8_0", folder.stream, tmp_path / "m", progress=lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    assert heard[-1] == (plan.source_bytes, plan.source_bytes)


def spoiled(name: str, value: bytes, dtype: str = "BF16") -> Folder:
    """The small model with a value in the middle of a tensor replaced."""
    folder = small_model(dtype)
    entry = next(e for e in quant.safetensors.read_model(folder) if e.name == name)
    data = bytearray(folder.contents["model.safetensors"])
    middle = entry.offset + entry.size // 4 * 2
    data[middle : middle + len(value)] = value
    return folder.with_file("model.safetensors", bytes(data))


@pytest.mark.parametrize("level", ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q4_K_M"])
@pytest.mark.parametrize("value", [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"], ids=["NaN", "inf", "-inf"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_values_that_are_not_finite_name_their_tensor(tmp_path: Path, level: str, value: bytes, name: str) -> None:
    folder = spoiled(name, value)
    with pytest.raises(BadValues, match=f"`{name}`"):
        write(plan_model(folder), level, folder.stream, tmp_path / "m")


def test_a_source_that_ends_early_is_an_error(tmp_path: Path) -> None:
    folder = small_model()
    whole = folder.contents["model.safetensors"]
    with pytest.raises(MalformedFile, match=r"ends at byte 1000000, before its last tensor"):
        write(plan_model(folder), "Q8_0", lambda name: [whole[:1_000_000]], tmp_path / "m")


def test_what_the_source_raises_comes_through_and_no_thread_stays(tmp_path: Path) -> None:
    folder = small_model()
    closed = threading.Event()

    def stream(name: str) -> Iterator[bytes]:
        try:
            yield folder.contents[name][:2_000_000]
            raise ConnectionResetError("gone")
        finally:
            closed.set()

    before = threading.active_count()
    with pytest.raises(ConnectionResetError, match="gone"):
        write(plan_model(folder), "Q8_0", stream, tmp_path / "m")
    assert closed.is_set() and threading.active_count() == before


def test_a_full_disk_stops_the_source(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    folder = small_model()
    before = threading.active_count()
    with pytest.raises(OSError, match="No space"):
        write(plan_model(folder), "Q8_0", folder.stream, Path("/dev/full"))
    assert threading.active_count() == before


def test_memory_is_a_few_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_model()
    plan = plan_model(folder)
    write(plan, "Q8_0", folder.stream, tmp_path / "warm")
    monkeypatch.setattr(quant.stream.pipeline, "SLAB", 100_000)
    tracemalloc.start()
    write(plan, "Q8_0", lambda name: folder.stream(name, 50_000), tmp_path / "m", threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 5.5 million weights in 11 MB; the header with its vocabulary takes most of this.
    assert peak < 4_000_000


def test_ahead_is_bounded_and_in_order() -> None:
    produced: list[int] = []
    taken = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(100):
            produced.append(number)
            if number == 4:
                taken.set()
            yield number

    with ahead(numbers(), 3) as items:
        assert next(items) == 0
        assert taken.wait(5)
        assert len(produced) <= 6
        assert list(items) == list(range(1, 100))


def test_ahead_stops_when_left_early() -> None:
    closed = threading.Event()

    def forever() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with ahead(forever(), 2) as items:
        next(items)
    assert closed.is_set()


@pytest.mark.parametrize("value", [2.0**18, -65536.0])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_weight_that_f16_cannot_hold_is_refused_by_name_and_value(tmp_path: Path, dtype: str, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    raw = bf16(np.array([value])).tobytes() if dtype == "BF16" else np.array([value], "<f4").tobytes()
    source = spoiled(name, raw, dtype)
    with pytest.raises(BadValues, match=rf"`{name}` holds a weight of {abs(value):g}, and F16 ends at 65504") as caught:
        write(plan_model(source), "F16", source.stream, tmp_path / "m.gguf")
    assert "BF16" in caught.value.hint
    for level in ("BF16", "F32", "Q8_0"):
        write(plan_model(source), level, source.stream, tmp_path / "m.gguf")


def test_scales_of_blocks_have_an_end_too(tmp_path: Path) -> None:
    source = spoiled("model.layers.1.mlp.up_proj.weight", bf16(np.array([2.0**100])).tobytes())
    with pytest.raises(BadValues, match=r"holds a weight of 1\.26765e\+30, and Q8_0 ends at"):
        write(plan_model(source), "Q8_0", source.stream, tmp_path / "m.gguf")
