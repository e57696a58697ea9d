"""Folders of ONNX Runtime GenAI: codes are in the file, to the bit, floats as they are, and what cannot be is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quant import dequantize
from quant.convert.onnx import matrices
from quant.convert.onnx.folder import read_export
from quant.convert.onnx.rotation import Rotation, settings
from quant.convert.planning import plan_model
from quant.errors import MalformedFile, QuantError, UnsupportedModel
from quant.kernels.blocks import unpack
from quant.levels.budget import types_of
from quant.levels.taken import clauses
from quant.onnx import graph as reading
from quant.onnx import wire
from quant.safetensors import Entry
from quant.types import QuantType
from tests.converting import write
from tests.quant.onnx_folders import (
    DATA,
    GRAPH,
    HEAD,
    HEADS,
    INNER,
    KEYS,
    WIDTH,
    Decoder,
    field,
    message,
    node,
    outside,
    varint,
)
from tests.quant.packed_sources import written
from tests.quant.support import Folder

T = QuantType
QKV = {"attn_q": (0, HEADS), "attn_k": (HEADS, KEYS), "attn_v": (HEADS + KEYS, KEYS)}
PARTS = {
    "attn_output": "attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def in_pairs(name: str, matrix: np.ndarray) -> np.ndarray:
    """The rows as GGUF has them: those of queries and keys are in pairs."""
    if "attn_q" in name or "attn_k" in name:
        return matrix.reshape(-1, 2, HEAD // 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)
    return matrix


def each_matrix(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The matrices of the source by their names in the GGUF file, fused ones cut; `found` is by module."""
    out = {"output.weight": found["lm_head"]}
    for layer in range(2):
        whole = found[f"model.layers.{layer}.attn.qkv_proj"]
        for part, (first, count) in QKV.items():
            out[f"blk.{layer}.{part}.weight"] = whole[first * HEAD : (first + count) * HEAD]
        out |= {f"blk.{layer}.{part}.weight": found[f"model.layers.{layer}.{name}"] for part, name in PARTS.items()}
    return {name: in_pairs(name, matrix) for name, matrix in out.items()}


EXACT = [
    ("4-32", {"bits": 4, "block": 32}, T.Q4_0),
    ("4-64-asymmetric", {"bits": 4, "block": 64, "symmetric": False}, T.Q4_1),
    ("8-32", {"bits": 8, "block": 32}, T.Q8_0),
    ("2-64", {"bits": 2, "block": 64}, T.Q4_0),
    ("4-in-the-graph", {"bits": 4, "block": 32, "inside": True}, T.Q4_0),
]


@pytest.mark.parametrize(
    ("how", "type"),
    [pytest.param(*row[1:], id=row[0], marks=pytest.mark.slow if at > 1 else ()) for at, row in enumerate(EXACT)],
)
def test_codes_of_matmulnbits_are_taken_over_as_they_are(how: dict[str, int], type: QuantType, tmp_path: Path) -> None:
    source = Decoder(**how)
    plan, found = written(source.folder(), "Q8_0", tmp_path / "m.gguf")
    bits = how["bits"]
    assert clauses(plan, types_of(plan, "Q8_0")) == [
        f"the {bits}-bit codes of ONNX are taken over as they are ({type.name})"
    ]
    codes = each_matrix({name: packer.codes for name, packer in source.packers.items()})
    for name, wanted in codes.items():
        stored, blocks = found[name]
        assert stored is type
        columns = INNER if "ffn_down" in name else WIDTH
        levels = unpack(type, blocks.reshape(-1, type.block_bytes)).levels.reshape(len(wanted), columns)
        shift = 8 - (1 << (bits - 1)) if type is T.Q4_0 else 0
        levels = levels.view(np.int8).astype(np.int16) + 128 if type is T.Q8_0 else levels
        # Rows of 96 columns have half a block of 64 that counts for nothing.
        np.testing.assert_array_equal(levels, wanted[:, :columns].astype(np.int16) + shift)
    values = each_matrix({name: packer.values for name, packer in source.packers.items()})
    for name, wanted in values.items():
        columns = INNER if "ffn_down" in name else WIDTH
        rounded = np.abs(wanted).max() * 2**-10
        np.testing.assert_allclose(dequantize(found[name][1], type, columns), wanted[:, :columns], 1e-3, rounded)


def test_blocks_of_sixteen_become_their_values(tmp_path: Path) -> None:
    source = Decoder(block=16, symmetric=False)
    plan, found = written(source.folder(), "F32", tmp_path / "m.gguf")
    assert clauses(plan, types_of(plan, "F32")) == ["weights are made of 4-bit codes of ONNX"]
    for name, wanted in each_matrix({name: packer.values for name, packer in source.packers.items()}).items():
        np.testing.assert_array_equal(found[name][1], wanted.astype(np.float32))


def test_float_matrices_are_turned_and_split(tmp_path: Path) -> None:
    source = Decoder(bits=32)
    plan, found = written(source.folder(), "F32", tmp_path / "m.gguf")
    assert clauses(plan, types_of(plan, "F32")) == []
    for name, wanted in each_matrix(source.packers).items():  # type: ignore[arg-type]
        np.testing.assert_array_equal(found[name][1], wanted)
    assert sum(each.size for each in plan.tensors) < len(source.data)  # all but the tables of angles, and nothing twice


def test_large_matrices_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Decoder(symmetric=False).folder()
    write(plan_model(folder), "Q2_K", folder.stream, tmp_path / "whole.gguf")
    monkeypatch.setattr(matrices, "PIECE", 1000 * WIDTH)
    plan = plan_model(folder)
    write(plan, "Q2_K", folder.stream, tmp_path / "pieces.gguf")
    assert next(len(each.parts) for each in plan.tensors if each.name == "output.weight") == 5
    assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_settings_come_from_the_graph_where_no_file_has_them() -> None:
    plan = plan_model(Decoder().folder())
    entries = {key.removeprefix("llama."): value for key, value in plan.metadata.items()}
    assert entries["rope.freq_base"] == 10000.0
    assert entries["attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5, rel=1e-7)
    assert (entries["feed_forward_length"], entries["attention.head_count_kv"]) == (INNER, KEYS)
    assert plan.stops == (2,)
    assert plan.shards == (DATA, GRAPH)  # the graph is compared with its digest too


def test_tables_for_long_texts_become_longrope() -> None:
    plan = plan_model(Decoder(long=True).folder())
    entries = {key.removeprefix("llama.rope."): value for key, value in plan.metadata.items()}
    assert (entries["scaling.type"], entries["scaling.original_context_length"]) == ("longrope", 32)
    tables = {each.name: np.frombuffer(each.values, "<f4") for each in plan.tensors if each.values}
    np.testing.assert_allclose(tables["rope_factors_short.weight"], np.ones(HEAD // 2), 1e-5)
    np.testing.assert_allclose(tables["rope_factors_long.weight"], np.full(HEAD // 2, 2), 1e-5)


def broken(change: dict[str, object]) -> QuantError:
    """The error about a decoder whose `genai_config.json` is changed so."""
    folder = Decoder().folder()
    config = folder.json("genai_config.json")
    for path, value in change.items():
        *parts, last = path.split(".")
        place = config
        for part in parts:
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    with pytest.raises(QuantError) as caught:
        plan_model(folder.with_file("genai_config.json", json.dumps(config).encode()))
    return caught.value


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model.type": "whisper"}, "names the type `whisper`"),
        ({"model.decoder.head_size": None}, "has no `head_size`"),
        ({"model.vocab_size": -1}, "`vocab_size`"),
        ({"model.decoder.filename": "other.onnx"}, "`other.onnx` is missing"),
        ({"model.decoder.filename": "../m.onnx"}, "`../m.onnx` is missing"),
        ({"model.decoder.num_key_value_heads": 4}, "has 128 rows"),
        ({"model.vision": {"filename": "v.onnx"}}, "the part `vision`"),
    ],
    ids=["type", "missing-field", "negative", "missing-graph", "graph-outside", "heads", "vision"],
)
def test_a_wrong_genai_config_is_refused_by_its_field(change: dict[str, object], told: str) -> None:
    assert told in str(broken(change))


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../model.onnx.data", "a/../../b", "..\\b", "C:\\b", "", "a//b", "./model.onnx.data"]
)
def test_weights_outside_the_folder_are_refused(location: str) -> None:
    source = Decoder()
    source.place = lambda _, offset, length: outside(location, offset, length)
    source.weight("more", np.zeros(32, "<f4"))
    with pytest.raises(MalformedFile, match="is no file of its folder"):
        plan_model(source.folder())


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (lambda offset, length: outside("none.data", offset, length), "`none.data` is missing"),
        (lambda offset, length: outside(DATA, 1 << 40, length), "which has"),
        (lambda offset, length: outside(DATA, -8, length), "which has"),
        (lambda offset, length: outside(DATA, 0, length + 4), "which has"),
        (lambda offset, length: outside(DATA, 4, length), "lie in the same bytes"),
    ],
    ids=["missing", "behind-the-end", "negative", "length", "overlap"],
)
def test_weights_in_a_place_that_cannot_be_are_refused(place: object, told: str) -> None:
    source = Decoder()
    source.place = lambda _, offset, length: place(offset, length)  # type: ignore[operator]
    source.norm("/model/layers.0/attn/q_norm", "x")
    with pytest.raises(MalformedFile, match=told):
        plan_model(source.folder())


def test_circles_and_loops_are_refused() -> None:
    source = Decoder()
    source.nodes.append(node("Mul", "/a", ["q", "logits"], ["p"]))
    source.nodes.append(node("Mul", "/b", ["p", "logits"], ["q"]))
    with pytest.raises(MalformedFile, match="needs `q`, which no node before it makes"):
        plan_model(source.folder())
    source = Decoder()
    source.nodes.append(node("Loop", "/model/loop/Loop", ["logits"], ["p"]))
    with pytest.raises(UnsupportedModel, match=r"`/model/loop/Loop` \(Loop\)"):
        plan_model(source.folder())


def test_weights_that_no_rule_knows_are_refused() -> None:
    source = Decoder()
    source.weight("model.layers.0.extra", np.ones((8, 8), "<f4"))
    with pytest.raises(UnsupportedModel, match=r"in places of its own, such as `model.layers.0.extra`"):
        plan_model(source.folder())
    source = Decoder()
    source.product("/model/layers.0/mlp/gate_2_proj", INNER, WIDTH, "x")
    with pytest.raises(UnsupportedModel, match="gate_2_proj"):
        plan_model(source.folder())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 40,
        b"\xff" * 40,
        b"\x3a\xff\xff\xff\xff\x07",
        field(7, message(field(1, field(3, b"\xff\xfe")))),
        field(7, message(field(5, field(1, 1 << 60)))),
        field(7, message(field(1, field(5, field(6, field(1, field(5, field(6, field(1, b"x" * 9))))))))),
        field(7, b"") + field(7, b""),
    ],
    ids=["empty", "zeros", "ones", "too-long", "not-utf-8", "huge-tensor", "nested", "no-graph"],
)
def test_files_that_are_no_graph_are_refused(raw: bytes) -> None:
    with pytest.raises((MalformedFile, UnsupportedModel)):
        plan_model(Decoder().folder().with_file(GRAPH, raw))


def test_every_cut_graph_is_refused_in_a_sentence() -> None:
    whole = Decoder(inside=False).graph()
    folder = Decoder().folder()
    for length in range(1, len(whole), 211):
        with pytest.raises(QuantError):
            plan_model(folder.with_file(GRAPH, whole[:length]))


def test_the_reader_bounds_what_it_counts_and_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Decoder().folder()
    for module, name, bound in ((reading, "MAX_NODES", 8), (reading, "MAX_TENSORS", 8), (wire, "MAX_FIELDS", 99)):
        with monkeypatch.context() as patch, pytest.raises(MalformedFile, match="has more than"):
            patch.setattr(module, name, bound)
            plan_model(folder)
    with monkeypatch.context() as patch, pytest.raises(MalformedFile, match="names and numbers"):
        patch.setattr(wire, "MAX_FETCHED", 1000)
        plan_model(folder)
    with pytest.raises(MalformedFile, match="at most 4,096"):
        plan_model(folder.with_file(GRAPH, field(7, field(1, field(3, b"x" * 5000)))))


def test_two_gigabytes_of_text_are_never_read() -> None:
    """Of a graph whose only node has a name of 2 GB, the beginning alone is read."""
    length = varint((2 << 30) - 64)
    begin = b"\x3a" + varint((2 << 30) - 32) + b"\x0a" + varint((2 << 30) - 48) + b"\x1a" + length

    class Hole(Folder):
        def size(self, name: str) -> int:
            return 2 << 30

        def read(self, name: str, offset: int, size: int) -> bytes:
            assert size <= 2 << 20
            return (begin[offset:] + b"x" * size)[:size]

    with pytest.raises(MalformedFile, match="at most 4,096"):
        reading.read_graph(Hole(contents={GRAPH: b""}), GRAPH)


def test_shapes_and_layouts_that_do_not_fit_are_refused() -> None:
    source = Decoder()
    source.nodes[-1] = source.nodes[-1].replace(b"\x0a\x01N\x18\xc0\x20", b"\x0a\x01N\x18\xc1\x20")
    with pytest.raises(MalformedFile, match="do not fit each other"):
        plan_model(source.folder())
    source = Decoder()
    last = [source.weight("c", np.zeros((1, 2, 16), np.uint8)), source.weight("d", np.zeros((1, 2), "<f4"))]
    numbers = {"K": 64, "N": 1, "bits": 4, "block_size": 32, "weight_prepacked": 1}
    source.nodes.append(node("MatMulNBits", "/model/x/MatMul", ["logits", *last], ["y"], **numbers))
    with pytest.raises(UnsupportedModel, match="laid out for one kind of GPU"):
        plan_model(source.folder())


def test_a_scale_that_is_no_number_stops_the_pass(tmp_path: Path) -> None:
    source = Decoder()
    place = source.data.index(source.packers["lm_head"].scales.astype("<f4").tobytes())
    source.data[place : place + 4] = np.float32(np.inf).tobytes()
    with pytest.raises(QuantError, match="a scale is no number"):
        written(source.folder(), "Q8_0", tmp_path / "m.gguf")


def test_typed_lists_are_read_as_numbers() -> None:
    source = Decoder()
    value = message(field(2, 7), field(7, 5))  # one whole number, as a list
    source.nodes.insert(0, node("Constant", "/c", [], ["five"], value=value))
    folder = source.folder()
    graph = reading.read_graph(folder, GRAPH)
    assert graph.values(folder, "five").tolist() == [5]  # type: ignore[union-attr]


def test_a_repository_with_folders_is_made_of_the_largest() -> None:
    """As Microsoft's repositories have one for each kind of machine; the pass reads by whole names."""
    folder = Decoder().folder()
    contents = {f"cpu/int4/{name}": data for name, data in folder.contents.items()}
    contents |= {f"cuda/{name}": data for name, data in folder.contents.items() if name != DATA}
    plan = plan_model(Folder(contents={**contents, "README.md": b"#"}))
    assert plan.shards == (f"cpu/int4/{DATA}", f"cpu/int4/{GRAPH}")
    assert plan.remarks == ("made of its folder `cpu/int4`, the largest of 2",)
    assert {part.shard for each in plan.tensors for some in each.companions for part in some} == {plan.shards[0]}


def angles(frequencies: np.ndarray, dtype: str, factor: float = 1.0) -> Rotation:
    """The rotation that is read from tables of these angles at 4096 positions."""
    turned = np.arange(4096)[:, None] * frequencies
    tables = {name: (each(turned) * factor).astype(dtype) for name, each in (("cos", np.cos), ("sin", np.sin))}
    entries = [
        Entry(name, {"<f4": "F32", "<f2": "F16"}[dtype], table.shape, name, 0, table.nbytes)
        for name, table in tables.items()
    ]
    return Rotation(Folder(contents={name: table.tobytes() for name, table in tables.items()}), *entries)


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
@pytest.mark.parametrize("base", [1e4, 5e5, 1e6, 150000.0])
def test_the_base_is_found_in_tables_of_angles(base: float, dtype: str) -> None:
    found = settings(angles(base ** (-np.arange(32) / 32), dtype), None, 1)
    assert found == {"rope_theta": base, "rope_scaling": None}
    found = settings(angles(base ** (-np.arange(32) / 32) / 4, dtype), None, 1)
    assert found == {"rope_theta": base, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}


def test_any_angles_become_divisors() -> None:
    """Llama 3.1 divides slow pairs by 8; LongRoPE has a table for long texts, and a factor of all lengths."""
    plain = 5e5 ** (-np.arange(32) / 32)
    divisors = np.where(np.arange(32) > 16, 8.0, 1.0)
    found = settings(angles(plain / divisors, "<f4"), None, 1)
    assert (found["rope_theta"], found["rope_scaling"]["rope_type"]) == (5e5, "longrope")
    np.testing.assert_allclose(found["rope_scaling"]["short_factor"], divisors, 1e-5)
    long = 1 + np.arange(32) / 4
    near, far = angles(plain, "<f4", 1.2), angles(plain / long, "<f4", 1.2)
    scaling = settings(near, far, 4096)["rope_scaling"]
    np.testing.assert_allclose(scaling["short_factor"], np.ones(32), 1e-5)
    np.testing.assert_allclose(scaling["long_factor"], long, 1e-5)
    assert scaling["original_max_position_embeddings"] == 4096
    assert scaling["attention_factor"] == pytest.approx(1.2, rel=1e-6)


def test_tables_that_are_no_angles_are_refused() -> None:
    entry = Entry("x", "F32", (64, 8), "x", 0, 2048)
    with pytest.raises(MalformedFile, match="is no table of cosines"):
        Rotation(Folder(contents={"x": bytes(2048)}), entry, entry)


def test_gemma_has_one_matrix_for_embedding_and_output() -> None:
    """Older exports have the embedding in floats and the same matrix once more in codes."""
    export = read_export(Decoder().folder(type="gemma"))
    assert "lm_head.weight" not in {each.name for each in export.entries}
    assert export.config.values["tie_word_embeddings"] is True
    assert export.remarks == ("its output is made of its embedding, which is the same matrix, rounded less",)
