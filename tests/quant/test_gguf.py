"""The header reader against gguf-py, against the refusals of llama.cpp's `test-gguf.cpp`, and against mutations."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import MalformedFile, QuantError, UnsupportedModel
from quant.gguf.architectures import KNOWN
from quant.gguf.check import check_model, check_reads, check_types
from quant.gguf.header import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    TOKEN_BYTE,
    TOKEN_CONTROL,
    TOKEN_NORMAL,
    TOKEN_UNKNOWN,
    TOKEN_UNUSED,
    TOKEN_USER,
    Header,
    read_file,
    read_header,
)
from quant.gguf.values import ARRAY, SCALARS, STRING
from quant.levels.recipes import LEVELS
from quant.types import QuantType
from tests.quant.sketch import Sketch, small_model

SIZE = 608
HUGE = (1 << 64) - 1


def parse(data: bytes) -> Header:
    return read_header(lambda offset, size: data[offset : offset + size], len(data), "test.gguf")


def test_a_right_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(small_model().body(SIZE))
    header = read_file(path)
    assert header.metadata["tokenizer.ggml.tokens"] == ["a", "b", "ab", "<s>"]
    assert header.kinds["tokenizer.ggml.token_type"] == "arr[i32]"
    assert [(t.name, t.shape, t.type, t.offset, t.nbytes) for t in header.tensors][2:] == [
        ("blk.0.ffn_up.weight", (256, 2), QuantType.Q4_K, 160, 288),
        ("blk.0.x", (5, 2, 3), QuantType.F16, 448, 60),
    ]
    oracle = gguf.GGUFReader(path)
    assert header.data_offset == oracle.data_offset
    for ours, theirs in zip(header.tensors, oracle.tensors, strict=True):
        assert (ours.name, list(ours.shape), ours.nbytes) == (theirs.name, list(theirs.shape), theirs.n_bytes)
        assert header.data_offset + ours.offset == theirs.data_offset


def one_tensor(shape: tuple[int, ...], **change: int) -> bytes:
    return Sketch().start(1, 0).tensor("x", shape, **change).body(4096)


def with_entry(entry: Sketch, entries: int = 1) -> bytes:
    return bytes(Sketch().start(0, entries).raw(bytes(entry.data)).body(64))


TWO = Sketch().start(2, 0)
# Names as in llama.cpp's list.
REFUSED = {
    "HEADER_BAD_MAGIC": Sketch().start(0, 0, magic=b"FUGG").body(64),
    "HEADER_BAD_VERSION_0": Sketch().start(0, 0, version=0).body(64),
    "HEADER_BAD_VERSION_1": Sketch().start(0, 0, version=1).body(64),
    "HEADER_BAD_VERSION_FUTURE": Sketch().start(0, 0, version=4).body(64),
    "HEADER_BAD_VERSION_BIG_ENDIAN": Sketch().start(0, 0, version=3 << 24).body(64),
    "HEADER_BAD_N_TENSORS": Sketch().start(HUGE, 0).body(64),
    "HEADER_BAD_N_KV": Sketch().start(0, HUGE).body(64),
    "KV_BAD_KEY_SIZE": with_entry(Sketch().string("key", HUGE).u32(4, 1)),
    "KV_EMPTY_KEY": with_entry(Sketch().number("", 1)),
    "KV_BAD_TYPE": with_entry(Sketch().number("key", 1, kind=13)),
    "KV_BAD_ARRAY_TYPE": with_entry(Sketch().string("key").u32(9, 13).u64(1, 1)),
    "KV_NESTED_ARRAY": with_entry(Sketch().string("key").u32(9, 9).u64(1).u32(4).u64(1).u32(1)),
    "KV_ARRAY_TOO_LONG": with_entry(Sketch().string("key").u32(9, 0).u64(1 << 40)),
    "KV_ARRAYS_TOO_LONG_TOGETHER": with_entry(
        Sketch().string("a").u32(9, 0).u64(3 << 20).raw(bytes(3 << 20)).string("b").u32(9, 0).u64(2 << 20), entries=2
    ),
    "KV_STRINGS_TOO_MANY": with_entry(Sketch().string("key").u32(9, 8).u64(1 << 20)),
    "KV_STRING_TOO_LONG": with_entry(Sketch().string("key").u32(8).string("x", 1 << 30)),
    "KV_DUPLICATE_KEY": with_entry(Sketch().number("key", 1).number("key", 2), entries=2),
    "KV_BAD_ALIGN_0": with_entry(Sketch().number("general.alignment", 0)),
    "KV_BAD_ALIGN_13": with_entry(Sketch().number("general.alignment", 13)),
    "KV_BAD_ALIGN_LARGE": with_entry(Sketch().number("general.alignment", 1 << 31)),
    "KV_WRONG_TYPE_ALIGN": with_entry(Sketch().number("general.alignment", 32, kind=5)),
    "KV_ALIGN_AS_TEXT": with_entry(Sketch().text("general.alignment", "32")),
    "TENSORS_BAD_NAME_SIZE": Sketch().start(1, 0).tensor("x" * 64, (8,)).body(4096),
    "TENSORS_EMPTY_NAME": Sketch().start(1, 0).tensor("", (8,)).body(4096),
    "TENSORS_BAD_N_DIMS_5": one_tensor((1, 1, 1, 1, 1)),
    "TENSORS_BAD_N_DIMS_0": one_tensor(()),
    "TENSORS_BAD_SHAPE": one_tensor((8, HUGE)),
    "TENSORS_ZERO_DIM": one_tensor((8, 0)),
    "TENSORS_NE_TOO_BIG": one_tensor((1 << 31, 1 << 31, 1 << 31)),
    "TENSORS_NBYTES_TOO_BIG": one_tensor((1 << 61, 1)),
    "TENSORS_NBYTES_PAD_WRAP": one_tensor((4, (1 << 30) - 1, (1 << 30) + 1)),
    "TENSORS_BAD_TYPE": one_tensor((8,), type=99),
    "TENSORS_REMOVED_TYPE": one_tensor((32,), type=4),
    "TENSORS_BROKEN_BLOCK": one_tensor((100,), type=12),
    "TENSORS_BAD_OFFSET": one_tensor((8,), offset=32),
    "TENSORS_UNALIGNED": one_tensor((8,), offset=1),
    "TENSORS_OVERLAP": Sketch().start(2, 0).tensor("a", (16,)).tensor("b", (16,), 32).body(4096),
    "TENSORS_HOLE": Sketch().start(2, 0).tensor("a", (8,)).tensor("b", (8,), 96).body(4096),
    "TENSORS_DUPLICATE_NAME": Sketch().start(2, 0).tensor("a", (8,)).tensor("a", (8,), 32).body(4096),
    "TENSORS_INCONSISTENT_ALIGN": Sketch()
    .start(2, 1)
    .number("general.alignment", 64)
    .tensor("a", (8,))
    .tensor("b", (8,), 32)
    .body(4096),
    "DATA_NOT_ENOUGH_DATA": Sketch().start(1, 0).tensor("a", (8,)).body(31),
    "DATA_NONE": bytes(Sketch().start(1, 0).tensor("a", (8,)).data),
    "DATA_MEM_SIZE_OVERFLOW": Sketch()
    .start(2, 0)
    .tensor("a", (0x7FFFFFFFFFFFFFC0,), type=24)
    .tensor("b", (0x7FFFFFFFFFFFFFC0,), 0x7FFFFFFFFFFFFFC0, type=24)
    .body(64),
    "EMPTY_FILE": b"",
    "ONLY_MAGIC": b"GGUF",
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_files_are_refused_in_one_sentence(case: str) -> None:
    with pytest.raises(MalformedFile, match=r"^`test.gguf` is not a valid GGUF file: .*[^.]$"):
        parse(bytes(REFUSED[case]))


ACCEPTED = {
    "HEADER_EMPTY": Sketch().start(0, 0).body(0),
    "VERSION_2": Sketch().start(0, 1, version=2).number("key", 1).body(0),
    "KV_SUCCESS": with_entry(Sketch().number("key", 1)),
    "KV_NOT_UTF8": with_entry(Sketch().string("key").u32(8).string(b"\xff\xfe")),
    "KV_BOOL_OF_2": with_entry(Sketch().string("key").u32(7).raw(b"\2")),
    "KV_LONG_STRING": with_entry(Sketch().text("key", "x" * (20 << 20))),
    "TENSORS_NAME_NOT_UTF8": Sketch().start(1, 0).tensor(b"\xff", (8,)).body(4096),
    "TENSORS_ALIGN_1": Sketch().start(1, 1).number("general.alignment", 1).tensor("a", (8,)).body(32, alignment=1),
    "EMPTY_STRING": with_entry(Sketch().text("key", "")),
    "EMPTY_ARRAY": with_entry(Sketch().texts("key", [])),
    "TENSORS_CUSTOM_ALIGN": Sketch()
    .start(2, 1)
    .number("general.alignment", 64)
    .tensor("a", (8,))
    .tensor("b", (8,), 64)
    .body(96, alignment=64),
    "DATA_SUCCESS": Sketch().start(1, 0).tensor("a", (8,)).body(32),
    "NAME_OF_63": Sketch().start(1, 0).tensor("x" * 63, (8,)).body(32),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_but_right_files_are_read(case: str) -> None:
    parse(bytes(ACCEPTED[case]))


def test_every_truncation_is_refused() -> None:
    whole = small_model().body(SIZE)
    last = parse(whole).tensors[-1]
    end = parse(whole).data_offset + last.offset + last.nbytes
    for length in range(end):
        with pytest.raises(MalformedFile):
            parse(whole[:length])
    parse(whole[:end])


def test_names_cannot_talk_to_the_terminal() -> None:
    with pytest.raises(MalformedFile) as caught:
        parse(Sketch().start(1, 0).tensor("\x1b[2J\n", (8,), offset=32).body(64))
    assert str(caught.value).isprintable()


def test_claims_cost_no_memory() -> None:
    tracemalloc.start()
    for case in ("KV_STRINGS_TOO_MANY", "KV_STRING_TOO_LONG", "KV_ARRAY_TOO_LONG", "HEADER_BAD_N_TENSORS"):
        with pytest.raises(MalformedFile):
            parse(bytes(REFUSED[case]))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_header_may_not_be_larger_than_64_mib() -> None:
    start = bytes(Sketch().start(0, 1).string("key").u32(9, 8).u64(30).data)
    element = struct.pack("<Q", 16 << 20) + bytes(16 << 20)

    def read(offset: int, size: int) -> bytes:
        within = (offset - len(start)) % len(element)
        return start + element[:size] if offset == 0 else (element[within:] + element)[:size]

    with pytest.raises(MalformedFile, match="64 MiB"):
        read_header(read, 1 << 40, "test.gguf")


VALUES = [0, 1, 2, 4, 31, 33, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, HUGE, HUGE - 31]
MODEL = small_model()
WHOLE = MODEL.body(SIZE)


def mutate(changes: list[tuple[int, int]], length: int) -> bytes:
    data = bytearray(WHOLE)
    for where, value in changes:
        offset, width = MODEL.numbers[where]
        old = int.from_bytes(data[offset : offset + width], "little")
        new = old + value if value in (-1, 1) else value
        data[offset : offset + width] = struct.pack("<Q", new & HUGE)[:width]
    return bytes(data[: len(data) - length])


@settings(max_examples=1500)
@given(
    st.lists(st.tuples(st.integers(0, len(MODEL.numbers) - 1), st.sampled_from([-1, *VALUES])), min_size=1, max_size=3),
    st.sampled_from([0, 0, 0, 1, 32, 200]),
)
def test_mutated_headers_raise_nothing_else(changes: list[tuple[int, int]], cut: int) -> None:
    data = mutate(changes, cut)
    try:
        check_model(parse(data))
    except QuantError:
        return
    assert data[:4] == b"GGUF"


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_noise_raises_nothing_else(noise: bytes) -> None:
    for data in (noise, b"GGUF" + noise, WHOLE[:24] + noise):
        with pytest.raises(MalformedFile):
            parse(data)


def test_what_is_accepted_is_read_alike_by_gguf_py(tmp_path: Path) -> None:
    path = tmp_path / "mutant.gguf"
    accepted = 0
    for where in range(len(MODEL.numbers)):
        for value in (0, 1, 2, 3, 33, 64):
            data = mutate([(where, value)], 0)
            try:
                header = parse(data)
            except MalformedFile:
                continue
            accepted += 1
            path.write_bytes(data + bytes(header.alignment))
            theirs = gguf.GGUFReader(path)
            assert [(t.name, t.nbytes) for t in header.tensors] == [(t.name, t.n_bytes) for t in theirs.tensors]
            assert [header.data_offset + t.offset for t in header.tensors] == [t.data_offset for t in theirs.tensors]
    assert accepted > 20


def model_header(**changes: object) -> Header:
    """A complete one-layer model's header with metadata entries replaced (None removes)."""
    facts = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 16,
        "llama.attention.head_count": 2,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<0x0A>", "a", "b"],
        "tokenizer.ggml.scores": [0.0, 0.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 6, 1, 1],
        "tokenizer.ggml.eos_token_id": 0,
    }
    facts |= {key.replace("__", "."): value for key, value in changes.items()}
    facts = {key: value for key, value in facts.items() if value is not None}
    names = [f"blk.0.{p}.weight" for p in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm")]
    names += [f"blk.0.{p}.weight" for p in ("ffn_gate", "ffn_up", "ffn_down")]
    sketch = Sketch().start(2 + len(names), len(facts))
    for key, value in facts.items():
        if isinstance(value, str):
            sketch.text(key, value)
        elif isinstance(value, int):
            sketch.number(key, value)
        elif isinstance(value, float):
            sketch.string(key).u32(6).raw(struct.pack("<f", value))
        elif value and isinstance(value[0], str):
            sketch.texts(key, value)
        elif value and isinstance(value[0], float):
            sketch.string(key).u32(9, 6).u64(len(value)).raw(struct.pack(f"<{len(value)}f", *value))
        else:
            sketch.integers(key, value)
    sketch.tensor("token_embd.weight", (8, 4)).tensor("output_norm.weight", (8,), 128)
    for position, name in enumerate(names):
        sketch.tensor(name, (8,), 160 + 32 * position)
    return parse(sketch.body(1024))


def test_a_complete_model_passes() -> None:
    check_model(model_header())
    check_model(model_header(llama__attention__head_count=[2], tokenizer__ggml__scores=None))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.eos_token_id": 4},
        {"tokenizer.ggml.eos_token_id": (1 << 32) - 1},
        {"tokenizer.ggml.scores": [0, 0, 0, 0]},
        {"tokenizer.ggml.token_type": [2, 6, 1, 1, 1]},
        {"tokenizer.ggml.tokens": ["", "<0x0a>", "a", "\0"]},
        {"tokenizer.ggml.tokens": ["<unk>", "<0x0A>", "\udcff", "\udcfe"]},
        {"llama.vocab_size": (1 << 32) - 1},
        {"tokenizer.chat_template": "x" * ((1 << 20) + 1)},
    ],
)
def test_what_llama_cpp_takes_passes(changes: dict[str, object]) -> None:
    check_model(model_header(**{key.replace(".", "__"): value for key, value in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general.architecture": None}, "general.architecture"),
        ({"llama.block_count": 0}, "block_count"),
        ({"llama.block_count": 513}, "block_count"),
        ({"llama.block_count": "1"}, "block_count"),
        ({"llama.block_count": 2}, r"9 tensors are missing.*blk\.1"),
        ({"llama.context_length": 0}, "context_length"),
        ({"llama.embedding_length": None}, "embedding_length"),
        ({"llama.embedding_length": 16}, "token_embd"),
        ({"llama.attention.head_count": 0}, "head_count"),
        ({"llama.attention.head_count": []}, "head_count"),
        ({"llama.attention.head_count": [0]}, "head_count"),
        ({"llama.attention.head_count_kv": 1 << 20}, "head_count_kv"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon` is nan"),
        ({"llama.attention.layer_norm_rms_epsilon": -1e-5}, "epsilon` is -"),
        ({"llama.pooling_type": 5}, "pooling_type"),
        ({"llama.pooling_type": (1 << 32) - 1}, "pooling_type"),
        ({"tokenizer.ggml.tokens": None}, "vocabulary"),
        ({"tokenizer.ggml.tokens": ["a", "a", "b", "c"]}, "different"),
        ({"tokenizer.ggml.tokens": ["a", "b", "c", "d", "e"]}, "scores|token_type"),
        ({"tokenizer.ggml.tokens": [1, 2, 3, 4]}, r"arr\[i32\] and must be arr\[str\]"),
        ({"tokenizer.ggml.tokens": ["a", "a\0b", "b", "c"]}, "different"),
        ({"tokenizer.ggml.scores": ["", "", "", ""]}, r"arr\[f32\]"),
        ({"tokenizer.ggml.token_type": [1, 1, 1]}, "token_type"),
        ({"tokenizer.ggml.token_type": [2, 6, 6, 1]}, "no byte"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(MalformedFile, match=reason):
        check_model(model_header(**{key.replace(".", "__"): value for key, value in changes.items()}))


@pytest.mark.parametrize("model", [None, "none", "no_vocab"])
def test_a_model_that_reads_no_text_is_refused(model: str | None) -> None:
    with pytest.raises(MalformedFile, match="vocabulary is missing"):
        check_reads(model_header(tokenizer__ggml__model=model))


@pytest.mark.parametrize("type", ["Q8_1", "Q8_K", "I16", "I32", "I64", "F64", "Q4_K", "F16"])
def test_types_that_llama_cpp_cannot_compute_with_are_refused(type: str) -> None:
    def model(name: str) -> Header:
        shape = (256, 1) if name.startswith("blk.0.attn_q") else (256,)
        return parse(Sketch().start(1, 0).tensor(name, shape, type=QuantType[type].id).body(4096))

    for name in ("output_norm.weight", "blk.0.attn_q_norm.weight", "blk.0.attn_q.bias"):
        with pytest.raises(MalformedFile, match=f"`{name}` is {type}, which llama.cpp cannot compute with"):
            check_types(model(name))
    if type in ("Q4_K", "F16"):
        check_types(model("blk.0.attn_q.weight"))
    else:
        with pytest.raises(MalformedFile, match="cannot compute"):
            check_types(model("blk.0.attn_q.weight"))
        check_types(model("d2t"))
        check_types(model("blk.0.ffn_gate_tid2eid.weight"))


def test_an_architecture_that_turns_by_sections_has_some() -> None:
    header = model_header()
    facts = {key.replace("llama.", "qwen2vl."): value for key, value in header.metadata.items()}
    for sections, fine in (([16, 24, 24, 0], True), ([0, 0, 0, 8], False), (None, False)):
        more = {"general.architecture": "qwen2vl", "qwen2vl.rope.dimension_sections": sections}
        changed = replace(header, metadata=facts | more)
        if fine:
            check_model(changed)
            continue
        with pytest.raises(MalformedFile, match="dimension_sections"):
            check_model(changed)


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="`gpt5`"):
        check_model(model_header(general__architecture="gpt5"))


def test_a_vocabulary_alone_is_no_model() -> None:
    data = Sketch().start(0, 1).text("general.architecture", "llama").body(0)
    with pytest.raises(MalformedFile, match="no tensors"):
        check_model(parse(data))


def test_the_architectures_are_those_that_gguf_py_knows_and_newer_ones() -> None:
    # `clip` is a projector, not a model that can be served alone.
    assert set(gguf.MODEL_ARCH_NAMES.values()) - {"clip"} <= KNOWN


def test_numbers_and_names_are_those_of_the_gguf_package() -> None:
    """Ours are tables of their own; the package may not know the newest yet."""
    theirs = {each.name.removeprefix("ALL_").removeprefix("MOSTLY_"): each.value for each in gguf.LlamaFileType}
    ours = {level.name: level.file_type for level in LEVELS.values()}
    assert theirs.items() >= {name: ours[name] for name in ours.keys() & theirs.keys()}.items()
    assert ours.keys() - theirs.keys() <= {"Q2_0"}
    sizes = {type.name: (type.value, *gguf.GGML_QUANT_SIZES[type]) for type in gguf.GGMLQuantizationType}
    other = {"Q8_1", "Q2_0"}  # with wider sums there than in ggml, and not there
    assert {type.name: type.value for type in QuantType if type.name not in other}.items() == (
        {name: size for name, size in sizes.items() if name not in other}.items()
    )
    numbers = {each.value for each in gguf.GGUFValueType} - {gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY}
    assert SCALARS.keys() == numbers
    assert (STRING, ARRAY) == (gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY)
    assert list(gguf.TokenType) == [TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE]
    assert int.from_bytes(MAGIC, "little") == gguf.GGUF_MAGIC
    assert DEFAULT_ALIGNMENT == gguf.GGUF_DEFAULT_ALIGNMENT
    assert set(gguf.MODEL_ARCH_NAMES.values()) - {"clip"} <= KNOWN  # images, which no engine runs alone
