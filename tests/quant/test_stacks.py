"""Experts that the source sends one by one: stacked in the order of their numbers, whatever the order they come in."""

from __future__ import annotations

import io
import json
from pathlib import Path

import gguf
import numpy as np
import pytest

import quant.stream.pipeline
from quant.convert.planning import plan_model
from quant.errors import MalformedFile, UnsupportedModel
from quant.stream.pipeline import Conversion
from quant.stream.streams import Mark
from tests.converting import Out, Pieces
from tests.quant.support import DEMO, Folder, safetensors

EXPERTS, LAYERS, WIDTH, WIDE = 12, 2, 64, 96
MOE = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "hidden_size": WIDTH,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "head_dim": 16,
}


def weights() -> dict[str, np.ndarray]:
    """In the order of their names, as safetensors are saved: expert 10 comes before expert 2, others between."""
    shapes = {"model.embed_tokens.weight": (4096, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm.weight": (WIDTH,), at + "post_attention_layernorm.weight": (WIDTH,)}
        shapes |= {at + "block_sparse_moe.gate.weight": (EXPERTS, WIDTH)}
        for name, rows in (("q", 64), ("k", 32), ("v", 32), ("o", WIDTH)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, WIDTH)
        for expert in range(EXPERTS):
            for name, shape in (("w1", (WIDE, WIDTH)), ("w2", (WIDTH, WIDE)), ("w3", (WIDE, WIDTH))):
                shapes[f"{at}block_sparse_moe.experts.{expert}.{name}.weight"] = shape
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal(shapes[name], np.float32) for name in sorted(shapes)}


def folder(tensors: dict[str, np.ndarray], shards: int = 3) -> Folder:
    names = list(tensors)
    where: dict[str, str] = {}
    found = Folder(DEMO).change("config.json", **MOE).with_file("model.safetensors", None)
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        where |= dict.fromkeys(part, shard)
        found = found.with_file(shard, safetensors({n: ("F32", tensors[n].shape, tensors[n].tobytes()) for n in part}))
    return found.with_file("model.safetensors.index.json", json.dumps({"weight_map": where}).encode())


def convert(source: Folder, start: Mark | None = None, before: bytes = b"") -> tuple[bytes, Out]:
    out = Out(io.BytesIO(before))
    out.file.seek(0, io.SEEK_END)
    Conversion(plan_model(source), "F32").write(
        lambda shard, offset, state: Pieces(shard, source.stream(shard), offset), out, start=start, threads=2
    )
    assert isinstance(out.file, io.BytesIO)
    return out.file.getvalue(), out


def test_experts_are_stacked_by_their_numbers(tmp_path: Path) -> None:
    tensors = weights()
    path = tmp_path / "m.gguf"
    path.write_bytes(convert(folder(tensors))[0])
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    for layer in range(LAYERS):
        for theirs, ours in (("w1", "ffn_gate"), ("w2", "ffn_down"), ("w3", "ffn_up")):
            at = f"model.layers.{layer}.block_sparse_moe.experts."
            wanted = np.stack([tensors[f"{at}{expert}.{theirs}.weight"] for expert in range(EXPERTS)])
            assert np.array_equal(found[f"blk.{layer}.{ours}_exps.weight"], wanted)
        name = f"model.layers.{layer}.self_attn.v_proj.weight"
        assert np.array_equal(found[f"blk.{layer}.attn_v.weight"], tensors[name])


def test_the_order_of_the_source_and_its_shards_change_only_the_order_of_the_tensors() -> None:
    tensors = weights()
    backwards = dict(reversed(tensors.items()))
    names = [{t.name: t.shape for t in plan_model(folder(of)).tensors} for of in (tensors, backwards)]
    assert names[0] == names[1]
    assert len({convert(folder(tensors, shards))[0] for shards in (1, 2, 5)}) == 1


@pytest.mark.slow
def test_the_pass_goes_on_from_every_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant.stream.pipeline, "SLAB", 8192)
    source = folder(weights())
    whole, out = convert(source)
    plan = plan_model(source)
    assert len(out.marks) > 20
    for mark, length in out.marks:
        resumed, _ = convert(source, mark, whole[:length])
        assert resumed == whole
    # No mark lies within a stack: what is held back then would be lost.
    stacks = {number for number, tensor in enumerate(plan.tensors) if tensor.parts}
    assert not [mark for mark, _ in out.marks if mark.tensor in stacks and mark.row]


def test_an_expert_that_is_missing_is_named() -> None:
    tensors = weights()
    del tensors["model.layers.1.block_sparse_moe.experts.7.w2.weight"]
    with pytest.raises(MalformedFile, match=r"experts\.7\.w2"):
        plan_model(folder(tensors))


def test_experts_of_different_types_are_refused() -> None:
    source = folder(weights(), shards=1)
    tensors = {name: ("F32", value.shape, value.tobytes()) for name, value in weights().items()}
    odd = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    tensors[odd] = ("BF16", (WIDE, WIDTH), bytes(WIDE * WIDTH * 2))
    shard = "model-00001-of-00001.safetensors"
    with pytest.raises(UnsupportedModel, match="different types"):
        plan_model(source.with_file(shard, safetensors(tensors)))


def test_more_answers_than_experts_are_refused() -> None:
    with pytest.raises(MalformedFile, match="13 of 12"):
        plan_model(folder(weights()).change("config.json", num_experts_per_tok=13))
