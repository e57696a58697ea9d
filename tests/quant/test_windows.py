"""Sliding windows, and which way a text is read, in every form that files have: as transformers does it, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert import keys
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, ranking
from quant.convert.families.table import FAMILIES
from quant.errors import MalformedFile, UnsupportedModel
from quant.safetensors import read_model
from tests.quant.support import Folder, safetensors

FULL, SLIDING = "full_attention", "sliding_attention"
# The sizes of the rows, for families whose planning needs no weights here.
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "vocab_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


def entries(name: str, **settings: Any) -> dict[str, Any]:
    """The entries that a class makes of a config, without the architecture in front."""
    config = keys.filled(ModelConfig("config.json", SIZES | settings), name)
    return FAMILIES[name].describe(config, FAMILIES[name].read_sizes(config))


@pytest.mark.parametrize("value", [None, 0, -1])
@pytest.mark.parametrize("name", ["MistralForCausalLM", "Phi3ForCausalLM", "Starcoder2ForCausalLM", "Qwen2ForCausalLM"])
def test_a_window_of_nothing_is_none(name: str, value: int | None) -> None:
    assert entries(name, sliding_window=value, use_sliding_window=True)["context_length"] == 512
    if name != "Qwen2ForCausalLM":
        assert entries(name, sliding_window=48)["context_length"] == 48


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "LlamaModel", "LlamaBidirectionalModel", "InternLM3ForCausalLM"])
def test_a_stray_window_of_a_llama_does_not_cut_its_context(name: str) -> None:
    assert entries(name, sliding_window=48)["context_length"] == 512
    assert entries(name, sliding_window=48, use_sliding_window=True, layer_types=[SLIDING] * 4)["context_length"] == 512


@pytest.mark.parametrize("value", [None, 0, -1])
@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM", "GptOssForCausalLM", "Olmo3ForCausalLM"])
def test_a_window_of_nothing_reaches_as_far_as_the_model(name: str, value: int | None) -> None:
    more = {"num_hidden_layers": 6, "query_pre_attn_scalar": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
    found = entries(name, sliding_window=value, **more)
    assert found["attention.sliding_window"] == 512
    assert entries(name, sliding_window=48, **more)["attention.sliding_window"] == 48


@pytest.mark.parametrize(
    ("settings", "context"),
    [
        ({"use_sliding_window": False, "sliding_window": 48, "max_window_layers": 0}, 512),
        ({"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 0}, 48),
        ({"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 3}, 48),
        ({"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 4}, 512),
        ({"use_sliding_window": True, "sliding_window": 48}, 512),
        ({"use_sliding_window": True, "sliding_window": 48, "layer_types": [FULL] * 3 + [SLIDING]}, 48),
        ({"use_sliding_window": True, "sliding_window": 48, "layer_types": [FULL] * 4, "max_window_layers": 0}, 512),
    ],
)
def test_a_qwen_is_bounded_by_windows_that_some_layer_has(settings: dict[str, Any], context: int) -> None:
    for name in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert entries(name, **settings)["context_length"] == context


def test_layers_without_windows_alone_do_not_end_the_process() -> None:
    with pytest.raises(UnsupportedModel, match="none of its layers has a window"):
        entries("Gemma2ForCausalLM", layer_types=[FULL] * 4, query_pre_attn_scalar=32)
    assert "attention.sliding_window" not in entries("Olmo3ForCausalLM", layer_types=[FULL] * 4)


@pytest.mark.parametrize("types", [3, 1e-30, True, "x", {"a": 1}, [[]], [None]])
def test_kinds_of_layers_that_are_none_are_an_error_that_helps(types: Any) -> None:
    sizes = ("moe_intermediate_size", "n_shared_experts", "n_routed_experts", "num_experts_per_tok")
    more = {"num_key_value_heads": 4, "first_k_dense_replace": 0, **dict.fromkeys(sizes, 2)}
    assert entries("Dots1ForCausalLM", layer_types=[FULL] * 4, **more)["expert_count"] == 2
    with pytest.raises((MalformedFile, UnsupportedModel), match=r"layer_types|sliding window") as caught:
        entries("Dots1ForCausalLM", layer_types=types, **more)
    assert caught.value.hint


def test_rotation_is_left_out_by_a_list_or_by_a_number() -> None:
    def fourth(layers: int, **settings: Any) -> bool:
        return decoder.every_fourth_unrotated(ModelConfig("config.json", settings), layers)

    assert fourth(5, no_rope_layers=[1, 1, 1, 0, 1])
    assert fourth(5, no_rope_layers=[True, True, True, False, True, True], no_rope_layer_interval=2)
    assert fourth(3, no_rope_layer_interval=7)
    assert fourth(5, no_rope_layers=None)
    assert not fourth(5, no_rope_layers=[1, 1, 0, 1, 1])
    assert not fourth(8, no_rope_layer_interval=2)
    assert not fourth(5, no_rope_layers=[1] * 5)


# A row of the zoo and settings with which transformers and llama.cpp still agree.
AGREED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2, no layer slides": ("qwen2", {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 28}),
    "gemma2, other layers": ("gemma2", {"layer_types": [FULL, SLIDING]}),
    "gemma3, no windows": ("gemma3", {"layer_types": [FULL, FULL]}),
    "gemma3, other layers": ("gemma3", {"layer_types": [FULL, SLIDING]}),
    "olmo2, a key of others": ("olmo2", {"sliding_window": 48, "layer_types": None}),
    "modern-bert, other layers": ("modern-bert", {"layer_types": [SLIDING, FULL, FULL, SLIDING]}),
    "smollm3, other numbers": ("smollm3", {"no_rope_layers": [1, 1, 1, 0, 1, 0, 0], "no_rope_layer_interval": 3}),
}


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", AGREED)
def test_layers_with_windows_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    from tests.quant.test_zoo import check_logits
    from tests.quant.zoo import ZOO
    from tests.quant.zoo.making import make

    row, settings = AGREED[name]
    path = make(ZOO[row], tmp_path / "model")
    config = json.loads((path / "config.json").read_text()) | settings
    (path / "config.json").write_text(json.dumps(config))
    check_logits(path, ZOO[row], tmp_path / "m.gguf")


def test_texts_that_begin_with_their_padding_are_refused() -> None:
    encoder = {"type_vocab_size": 1}
    for bos, pad in ((0, 0), (1, 1), (1, None)):
        with pytest.raises(UnsupportedModel, match="padding token"):
            entries("XLMRobertaModel", bos_token_id=bos, pad_token_id=pad, **encoder)
    for bos, pad, context in ((0, 1, 510), (1, 0, 511), (None, 1, 510)):
        assert entries("XLMRobertaModel", bos_token_id=bos, pad_token_id=pad, **encoder)["context_length"] == context


@pytest.mark.parametrize("tied", [True, False])
def test_a_reranker_with_an_output_of_its_own_ranks_by_it(tied: bool) -> None:
    rows = np.arange(8 * 4, dtype="<f4").reshape(8, 4)
    files = {
        "model.safetensors": safetensors(
            {
                "model.embed_tokens.weight": ("F32", (8, 4), (rows + 100).tobytes()),
                "lm_head.weight": ("F32", (8, 4), rows.tobytes()),
            }
        ),
        "tokenizer.json": json.dumps({"model": {"vocab": {"yes": 3, "no": 5}}}).encode(),
    }
    folder, config = Folder(contents=files), ModelConfig("config.json", {"tie_word_embeddings": tied})
    (head,) = ranking.QWEN3.picked(folder, read_model(folder), config)
    assert np.frombuffer(head.values, "<f4").tolist() == rows[[3, 5]].ravel().tolist()
