"""Adapters of PEFT as GGUF files: the same numbers as PEFT's own, and what cannot be held is refused by its name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.adapters.planning import BaseShape, plan_adapter
from quant.convert.adapters.turning import of_columns, of_rows, scaled
from quant.convert.planning import plan_model
from quant.convert.reordering import TakeBlocks, TakePaired, TileColumns, TileRows
from quant.convert.transforms import EverySecondRow, PairRotaryHalves, Scale, ScaleBlocks, TakeRows, Transpose, Ungroup
from quant.errors import BadValues, QuantError
from quant.gguf.adapter import check_adapter, check_base
from quant.gguf.header import Header, read_file
from quant.plan import Transform
from tests.converting import write
from tests.quant.support import DEMO, Folder, safetensors

IDS = np.random.default_rng(1).integers(3, 4096, 100).tolist()
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
CONFIG = json.loads((DEMO / "config.json").read_text())
WIDTH, WIDE = CONFIG["hidden_size"], CONFIG["intermediate_size"]


def matrix(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((rows, columns)).astype("<f4")


def pair(module: str, outputs: int, inputs: int, rank: int = 4) -> dict[str, np.ndarray]:
    at = f"base_model.model.{module}."
    return {at + "lora_A.weight": matrix(rank, inputs), at + "lora_B.weight": matrix(outputs, rank, 2)}


def folder(tensors: dict[str, np.ndarray] | None = None, **settings: Any) -> Folder:
    """An adapter for the demo, in memory; without `tensors`, of one matrix."""
    tensors = pair(Q, WIDTH, WIDTH) if tensors is None else tensors
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base", **settings}
    weights = safetensors({name: ("F32", value.shape, value.tobytes()) for name, value in tensors.items()})
    config = {key: value for key, value in config.items() if value is not None}
    return Folder(contents={"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": weights})


def converted(adapter: Folder, path: Path) -> tuple[float, dict[str, np.ndarray]]:
    """The alpha and the matrices of the GGUF file, rows first."""
    write(plan_adapter(adapter, BaseShape.of(Folder(DEMO))), "F32", adapter.stream, path)
    header, data = read_file(path), path.read_bytes()
    check_base(check_adapter(header), "llama", shapes_of(read_demo(path.parent)), "demo")
    found = {}
    for tensor in header.tensors:
        start = header.data_offset + tensor.offset
        found[tensor.name] = np.frombuffer(data[start : start + tensor.nbytes], "<f4").reshape(tensor.shape[::-1])
    return check_adapter(header).alpha, found


def read_demo(path: Path) -> Header:
    base = path / "demo.gguf"
    if not base.exists():
        write(plan_model(Folder(DEMO)), "F16", Folder(DEMO).stream, base)
    return read_file(base)


TRANSFORMS: list[tuple[Transform, int]] = [
    (PairRotaryHalves(8), 32),
    (EverySecondRow(1), 32),
    (Ungroup(2, 4), 24),
    (Scale(0.25), 24),
    (ScaleBlocks((8, 16), (2.0, 3.0)), 24),
    (TakeRows(12, 8, 2, 4), 24),
    (TakePaired(TakeRows(12, 8, 0, 4), 4), 24),
    (TileRows(2, 2, 4, 8), 24),
    (TakeBlocks(12, 8, ((4, 4), (0, 2))), 24),
]


@pytest.mark.parametrize("transform,rows", TRANSFORMS, ids=lambda value: type(value).__name__)
def test_a_transform_of_the_weight_does_the_same_to_the_product(transform: Transform, rows: int) -> None:
    down, up = matrix(3, 12), matrix(rows, 3, 2)
    turned = scaled(of_rows(transform, 3), 0.5)
    assert turned
    whole = transform.apply((up @ down).reshape(-1, 12) if transform.rows else (up @ down).reshape(1, -1))
    mine = turned.apply(up if transform.rows else up.reshape(1, -1)) @ down
    np.testing.assert_allclose(mine, whole * np.float32(0.5), rtol=1e-4, atol=1e-5)


def test_columns_of_the_weight_are_columns_of_the_first_matrix() -> None:
    turn, down, up = TileColumns(2, 3, 2), matrix(3, 12), matrix(8, 3, 2)
    turned = of_columns(turn)
    assert turned
    np.testing.assert_allclose(up @ turned.apply(down), turn.apply(up @ down), rtol=1e-4, atol=1e-5)
    assert of_rows(turn, 3) is None
    assert of_columns(PairRotaryHalves(8)) is None


def test_a_transposed_weight_leaves_both_matrices_alone_and_others_are_refused() -> None:
    assert of_rows(Transpose(4, 8), 2) is None
    with pytest.raises(LookupError):
        of_rows(TakeRows(12, 8, 2, 4, turned=True), 2)


@pytest.mark.parametrize(
    "settings,scale",
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {r".*\.mlp\..*": 2}}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"layers.0.self_attn.q_proj": 2}}, 1.0),
    ],
    ids=["plain", "rooted", "pattern", "another pattern", "rooted pattern"],
)
def test_the_scale_is_the_one_of_peft(tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    tensors = pair(Q, WIDTH, WIDTH) | pair(DOWN, WIDTH, WIDE) | pair(DOWN.replace("1", "0"), WIDTH, WIDE)
    alpha, found = converted(folder(tensors, **settings), tmp_path / "a.gguf")
    up = found["blk.0.attn_q.weight.lora_b"]
    head = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    expected = PairRotaryHalves(head).apply(tensors[f"base_model.model.{Q}.lora_B.weight"])
    np.testing.assert_allclose(alpha / 4 * up, scale * expected, rtol=1e-6)


def test_ranks_may_differ_from_module_to_module(tmp_path: Path) -> None:
    tensors = pair(Q, WIDTH, WIDTH, 2) | pair(DOWN, WIDTH, WIDE, 8)
    alpha, found = converted(folder(tensors, rank_pattern={"q_proj": 2, "down_proj": 8}), tmp_path / "a.gguf")
    assert alpha == 8  # llama.cpp divides it by the rank of each
    assert found["blk.0.attn_q.weight.lora_a"].shape == (2, WIDTH)
    np.testing.assert_array_equal(
        found["blk.1.ffn_down.weight.lora_b"], tensors[f"base_model.model.{DOWN}.lora_B.weight"]
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora"),
    ({"lora_bias": True}, "lora_bias"),
    ({"bias": "all"}, "bias"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"peft_type": "IA3"}, "IA3"),
    ({"peft_type": None}, "unknown"),
    ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    ({"r": 0}, "`r`"),
    ({"lora_alpha": None}, "lora_alpha"),
    ({"lora_alpha": 0}, "lora_alpha"),
    ({"lora_alpha": 1e300}, "lora_alpha"),
    ({"alpha_pattern": {"(a+)+": 1}}, "pattern"),
    ({"alpha_pattern": {"(": 1}}, "regular expression"),
    ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    ({"use_something_new": True}, "use_something_new"),
]


@pytest.mark.parametrize("settings,named", REFUSED, ids=[named for _, named in REFUSED])
def test_settings_that_cannot_be_held_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(QuantError, match=named.replace("(", r"\(")):
        plan_adapter(folder(**settings), BaseShape.of(Folder(DEMO)))


DEEPSEEK = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
}
AT = f"base_model.model.{Q}."
ODD: list[tuple[dict[str, np.ndarray], str]] = [
    ({AT + "lora_A.weight": matrix(4, WIDTH)}, "no matrix B"),
    ({AT + "lora_A.weight": matrix(4, WIDTH), AT + "lora_B.weight": matrix(WIDTH, 5)}, "do not fit together"),
    ({AT + "lora_A.weight": matrix(0, WIDTH), AT + "lora_B.weight": matrix(WIDTH, 0)}, "rank 0"),
    (pair(Q, WIDTH, WIDTH + 64), "another base"),
    (pair("model.layers.77.mlp.up_proj", WIDE, WIDTH), "does not have"),
    (pair("model.layers.0.mlp.experts.base_layer", WIDE, WIDTH), "all experts"),
    (pair(Q, WIDTH, WIDTH) | {AT + "lora_magnitude_vector": matrix(1, 4)}, "DoRA"),
    (pair(Q, WIDTH, WIDTH) | {"base_model.model.lm_head.weight": matrix(4, 4)}, "whole embedding or output"),
    (pair(Q, WIDTH, WIDTH) | {"base_model.model.model.norm.weight": matrix(4, 4)}, "whole norm"),
    (pair("model.layers.0.input_layernorm", WIDTH, WIDTH), "no matrix"),
    ({}, "no tensors"),
]


@pytest.mark.parametrize("tensors,named", ODD, ids=[named for _, named in ODD])
def test_tensors_that_are_no_adapter_of_the_base_are_refused(tensors: dict[str, np.ndarray], named: str) -> None:
    with pytest.raises(QuantError, match=named):
        plan_adapter(folder(tensors), BaseShape.of(Folder(DEMO)))


def test_a_square_matrix_of_fused_experts_needs_another_that_tells_its_sides() -> None:
    published = json.loads((Path(__file__).parent / "published" / "gpt-oss-20b.json").read_text())
    base = BaseShape.of(Folder(contents={"config.json": json.dumps(published["config"]).encode()}))
    down = pair("model.layers.0.mlp.experts", 2880, 2880, rank=32)
    with pytest.raises(QuantError, match=r"experts\.down_proj` alone, whose inputs and outputs are alike"):
        plan_adapter(folder(down), base)
    both = down | pair("model.layers.0.mlp.experts.base_layer", 5760, 2880, rank=32)
    shapes = {tensor.name: tensor.shape for tensor in plan_adapter(folder(both), base).tensors}
    assert shapes["blk.0.ffn_up_exps.weight.lora_a"] == (32, 1, 2880)
    assert shapes["blk.0.ffn_up_exps.weight.lora_b"] == shapes["blk.0.ffn_down_exps.weight.lora_b"] == (32, 2880, 1)
    with pytest.raises(QuantError, match="in shapes that `gpt-oss` does not have"):
        plan_adapter(folder(pair("model.layers.0.mlp.experts", 2880, 99, rank=32)), base)


def test_a_pickle_is_never_loaded() -> None:
    adapter = folder().with_file("adapter_model.safetensors", None).with_file("adapter_model.bin", b"\x80\x02.")
    with pytest.raises(QuantError, match="pickle, which can run any code"):
        plan_adapter(adapter, BaseShape.of(Folder(DEMO)))


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    tensors = pair(Q, WIDTH, WIDTH)
    tensors[AT + "lora_B.weight"][3, 1] = math.nan
    with pytest.raises(BadValues, match=r"q_proj\.lora_B"):
        converted(folder(tensors), tmp_path / "a.gguf")


def test_an_adapter_is_checked_against_the_base_it_is_asked_for(tmp_path: Path) -> None:
    converted(folder(), tmp_path / "a.gguf")
    adapter, shapes = check_adapter(read_file(tmp_path / "a.gguf")), shapes_of(read_demo(tmp_path))
    assert (adapter.ranks, adapter.roles) == ([4], ["attn_q"])
    with pytest.raises(QuantError, match="one of `qwen2`"):
        check_base(adapter, "qwen2", shapes, "other")
    with pytest.raises(QuantError, match="does not have"):
        check_base(adapter, "llama", {"output.weight": (8, 8)}, "other")
    with pytest.raises(QuantError, match=r"as \[256, 256\], and in `other` it is \[128, 256\]"):
        check_base(adapter, "llama", shapes | {"blk.0.attn_q.weight": (128, 256)}, "other")


def shapes_of(header: Header) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in header.tensors}


def test_a_base_in_four_bits_still_tells_its_shape() -> None:
    base = Folder(DEMO).change("config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert plan_adapter(folder(), BaseShape.of(base)).architecture == "llama"


# The families whose converters do different things to their weights.
ROWS = (
    "llama",
    "llama, biases",
    "qwen2",
    "phi3",
    "gpt2",
    "gptneox",
    "gemma2",
    "starcoder2",
    "granitemoe",
    "qwen3moe",
    "llama, mixtral",
    "qwen35",
    "lfm2",
)
# Others of the zoo with which PEFT's `all-linear` works.
MORE = (
    "arcee",
    "chatglm",
    "cohere2",
    "command-r",
    "dots1",
    "ernie4_5",
    "ernie4_5-moe",
    "exaone4",
    "exaone4, windows",
    "gemma",
    "gemma3",
    "gemma4",
    "gemma4, experts",
    "glm4",
    "glm4moe",
    "gpt-oss",
    "gpt-oss, yarn",
    "gptneox, serial",
    "granite",
    "granitehybrid",
    "granitehybrid, attention alone",
    "granitehybrid, no rotation",
    "granitemoe, shared",
    "hunyuan-dense",
    "hunyuan-moe",
    "lfm2moe",
    "llama, 3.1",
    "llama, linear",
    "llama, mistral",
    "llama, tied",
    "llama, wide rotation",
    "llama, yarn",
    "llama4",
    "llama4, maverick",
    "mistral3",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo2, windows",
    "olmoe",
    "phi2",
    "phi3, partial rotation",
    "qwen2, tied",
    "qwen2moe",
    "qwen3",
    "qwen35moe",
    "qwen3next",
    "seed_oss",
    "smollm3",
    "stablelm",
    "stablelm, head norms",
    "stablelm, parallel",
)


def test_an_embedding_that_is_the_output_as_well_cannot_be_changed_alone() -> None:
    at = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors = {at + "A": matrix(4, CONFIG["vocab_size"]), at + "B": matrix(WIDTH, 4)}
    with pytest.raises(QuantError, match="the output as well"):
        plan_adapter(folder(tensors), BaseShape.of(Folder(DEMO)))
    with pytest.raises(QuantError, match="the output is the embedding"):
        plan_adapter(folder(pair("lm_head", CONFIG["vocab_size"], WIDTH)), BaseShape.of(Folder(DEMO)))
    untied = BaseShape.of(Folder(DEMO).change("config.json", tie_word_embeddings=False))
    down, up = plan_adapter(folder(tensors), untied).tensors
    assert (down.name, down.shape) == ("token_embd.weight.lora_a", (CONFIG["vocab_size"], 4))
    assert (up.name, up.shape) == ("token_embd.weight.lora_b", (WIDTH, 4))


def test_a_change_that_llama_cpp_would_pass_over_is_refused() -> None:
    config = {**CONFIG, **DEEPSEEK}
    base = Folder(contents={"config.json": json.dumps(config).encode()})
    query = pair("model.layers.0.self_attn.q_proj", 4 * 96, WIDTH)
    with pytest.raises(QuantError, match="passes over changes of it"):
        plan_adapter(folder(query), BaseShape.of(base))


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["gpt-oss", "llama4", "llama, mixtral"])
def test_fused_experts_give_the_logits_of_peft(tmp_path: Path, name: str) -> None:
    """Stored one by one, or as (experts, inputs, outputs), where PEFT takes the inputs of Llama 4 for outputs."""
    pytest.importorskip("peft")
    from tests.quant.adapting import adapted, make_adapter
    from tests.quant.engine import Engine
    from tests.quant.zoo import ZOO
    from tests.quant.zoo.making import make

    row = ZOO[name]
    base = make(row, tmp_path / "base")
    write(plan_model(Folder(base)), "F32", Folder(base).stream, tmp_path / "base.gguf")
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    made = make_adapter(base, row, tmp_path / "adapter", r=2, target_modules=[], target_parameters=parameters)
    plan = plan_adapter(Folder(made), BaseShape.of(Folder(base)))
    assert {tensor.name.split(".")[2] for tensor in plan.tensors} == {f"ffn_{it}_exps" for it in ("gate", "up", "down")}
    write(plan, "F32", Folder(made).stream, made / "a.gguf")
    wanted = adapted(base, row, IDS, (made, 1.0))
    with Engine(tmp_path / "base.gguf", exact=True) as engine:
        plain = engine.logits(IDS)
        engine.adapt((made / "a.gguf", 1.0))
        found = engine.logits(IDS)
    assert np.abs(found - wanted).max() <= 1e-3 * wanted.std()
    assert np.abs(plain - wanted).max() > 0.3 * wanted.std()


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [*ROWS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_the_logits_are_those_of_peft(tmp_path: Path, name: str) -> None:
    pytest.importorskip("peft")
    from tests.quant.adapting import adapted, make_adapter
    from tests.quant.engine import Engine
    from tests.quant.zoo import ZOO
    from tests.quant.zoo.making import make

    row = ZOO[name]
    base = make(row, tmp_path / "base")
    write(plan_model(Folder(base)), "F32", Folder(base).stream, tmp_path / "base.gguf")
    settings: list[dict[str, Any]] = [{}, {"r": 8, "use_rslora": True, "rank_pattern": {r".*\.0\..*": 2}}]
    if name == "llama":
        settings[1]["target_modules"] = ["embed_tokens", "q_proj", "down_proj", "lm_head"]
    files = []
    for number, each in enumerate(settings):
        made = make_adapter(base, row, tmp_path / f"adapter{number}", **each)
        write(plan_adapter(Folder(made), BaseShape.of(Folder(base))), "F32", Folder(made).stream, made / "a.gguf")
        files.append(made)
    with Engine(tmp_path / "base.gguf", exact=True) as engine:
        plain = engine.logits(IDS)
        for used in ([(files[0], 1.0)], [(files[1], 0.5)], [(files[0], 1.0), (files[1], -0.25)]):
            wanted = adapted(base, row, IDS, *used)
            engine.adapt(*((path / "a.gguf", scale) for path, scale in used))
            found = engine.logits(IDS)
            assert np.abs(found - wanted).max() <= 1e-3 * wanted.std()
            second, best = np.sort(wanted, axis=-1)[:, -2:].T
            clear = best - second > 2e-3 * wanted.std()
            np.testing.assert_array_equal(found.argmax(-1)[clear], wanted.argmax(-1)[clear])
            assert np.abs(plain - wanted).max() > 0.3 * wanted.std()
        engine.adapt((files[0] / "a.gguf", 0.0))
        np.testing.assert_array_equal(engine.logits(IDS), plain)
