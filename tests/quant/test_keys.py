"""Keys that `config.json` leaves out: the defaults of the model's class in transformers, by a table of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

from quant.convert import keys
from quant.convert.config import ModelConfig
from quant.convert.planning import plan_model
from quant.errors import UnsupportedModel
from quant.notes import IGNORED
from tests.quant.support import DEMO, Folder, llama_shapes, safetensors
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make


def smollm3(more: Mapping[str, tuple[str, tuple[int, ...], bytes]] | None = None, **config: Any) -> Folder:
    """A small model whose class reads more keys than Llama's, without its values."""
    shapes = llama_shapes(2, 64, 96, 4, 2, 4096)
    tensors = {name: ("BF16", shape, bytes(2 * prod(shape))) for name, shape in shapes.items()}
    usual = {
        "architectures": ["SmolLM3ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    files = {
        "model.safetensors": safetensors({**tensors, **(more or {})}),
        "config.json": json.dumps(usual | config).encode(),
        "tokenizer.json": (DEMO / "tokenizer.json").read_bytes(),
    }
    return Folder(contents=files)


LEFT_OUT = {
    "deepseek2, v3": ("norm_topk_prob", "routed_scaling_factor", "rms_norm_eps", "rope_parameters"),
    "smollm3": ("rms_norm_eps", "rope_parameters"),
    "gptneox": ("layer_norm_eps", "rope_parameters", "use_parallel_residual"),
    "command-r": ("layer_norm_eps", "logit_scale", "rope_parameters"),
}


def test_a_key_that_is_given_stays() -> None:
    given = ModelConfig("config.json", {"norm_topk_prob": False, "rope_theta": 5.0, "sliding_window": None})
    filled = keys.filled(given, "DeepseekV3ForCausalLM")
    assert (filled.get("norm_topk_prob"), filled.get("rope_theta")) == (False, 5.0)
    assert filled.get("routed_scaling_factor") == 2.5
    assert keys.filled(given, "MistralForCausalLM").get("sliding_window") is None
    assert keys.filled(given, "UnknownForCausalLM") is given


def test_other_names_of_rotary_settings_count() -> None:
    given = ModelConfig("config.json", {"rotary_pct": 1.0, "rotary_emb_base": 500.0, "rope_theta": 7.0})
    filled = keys.filled(given, "GPTNeoXForCausalLM")
    assert (filled.get("partial_rotary_factor"), filled.get("rope_theta")) == (1.0, 500.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("logit_scale", 0.5), ("no_rope_layers", [1, 0]), ("time_step_limit", [0.0, 1.0])],
)
def test_a_key_of_another_class_is_passed_over(key: str, value: Any) -> None:
    """Trainers and tools add many keys; only those that the class reads count."""
    plan = plan_model(Folder(DEMO).change("config.json", **{key: value}))
    assert plan.remarks == ()


def test_a_key_that_the_class_reads_and_nobody_else_stops_the_conversion() -> None:
    with pytest.raises(UnsupportedModel, match=r"`is_causal` in `config.json` is False") as caught:
        plan_model(smollm3(is_causal=False))
    assert "True" in caught.value.hint
    assert plan_model(smollm3(is_causal=True, attention_dropout=0.5, my_trainer="x")).remarks == ()


def test_a_bias_without_a_place_is_refused_with_its_key() -> None:
    bias = ("BF16", (64,), bytes(128))
    with pytest.raises(UnsupportedModel, match="attention_bias"):
        plan_model(smollm3({"model.layers.0.self_attn.o_proj.bias": bias}, attention_bias=True))


def test_an_unknown_key_of_an_unknown_class_is_accepted_on_demand() -> None:
    folder = smollm3(architectures=["InternLM3ForCausalLM"], sparse_config={"block": 64}, my_cache=None)
    with pytest.raises(UnsupportedModel, match=r"`sparse_config`.*`InternLM3ForCausalLM`") as caught:
        plan_model(folder)
    assert "--accept-unknown-keys" in caught.value.hint
    plan = plan_model(folder, accept_unknown_keys=True)
    assert plan.metadata[IGNORED] == ["sparse_config"]
    assert plan.remarks == ("`sparse_config` in `config.json` is not known, left out",)
    assert IGNORED not in plan_model(smollm3()).metadata


def test_rotary_settings_that_the_class_has_by_kinds_of_layers_are_read_so() -> None:
    old = ModelConfig("config.json", {"rope_theta": 7.0, "rope_local_base_freq": 3.0, "rope_scaling": {"factor": 2.0}})
    found = keys.filled(old, "Gemma3ForCausalLM").part("rope_parameters").values
    assert (found["full_attention"]["rope_theta"], found["full_attention"]["factor"]) == (7.0, 2.0)
    assert found["sliding_attention"] == {"rope_type": "default", "rope_theta": 3.0}
    # OLMo 3 takes the base of its class where it has windows, whatever the file says of the other layers.
    found = keys.filled(ModelConfig("config.json", {"rope_theta": 7.0}), "Olmo3ForCausalLM").part("rope_parameters")
    assert found.part("sliding_attention").get("rope_theta") == 500000.0
    with pytest.raises(UnsupportedModel, match="kinds of layers"):
        keys.filled(ModelConfig("config.json", {"rope_parameters": {"rope_theta": 7.0}}), "Gemma3ForCausalLM")


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("row", LEFT_OUT)
def test_keys_that_are_left_out_are_what_transformers_takes(row: str, tmp_path: Path) -> None:
    from tests.quant.test_zoo import check_logits

    path = make(ZOO[row], tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    for key in LEFT_OUT[row]:
        del config[key]
    (path / "config.json").write_text(json.dumps(config))
    check_logits(path, ZOO[row], tmp_path / "m.gguf")


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_table_is_what_the_source_of_transformers_says() -> None:
    import transformers

    from tests.quant import make_keys

    text = Path(keys.__file__).with_name("keys.json").read_text()
    if json.loads(text)["transformers"] != transformers.__version__:
        pytest.skip("another version of transformers: `python -m tests.quant.make_keys` writes the table of this one")
    assert make_keys.written(make_keys.table()) == text
