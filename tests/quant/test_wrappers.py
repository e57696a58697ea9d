"""Language models that are parts of larger ones: taken out whole, by whatever names, and what stays behind is said."""

from __future__ import annotations

import json
import math

import pytest

from quant.convert.planning import plan_model
from quant.errors import UnsupportedModel
from tests.quant.support import DEMO, Folder, llama_shapes, safetensors

demo = Folder(DEMO)


def gemma_that_sees(inner: str, outer: str) -> Folder:
    """As its authors publish it: settings of the language model apart, without those that are defaults."""
    shapes = {"embed_tokens.weight": (4096, 64), "norm.weight": (64,)}
    at = "layers.0."
    shapes |= {
        at + f"self_attn.{name}_proj.weight": (rows, 64) for name, rows in (("q", 2048), ("k", 1024), ("v", 1024))
    }
    shapes |= {at + "self_attn.o_proj.weight": (64, 2048), at + "self_attn.q_norm.weight": (256,)}
    shapes |= {at + "self_attn.k_norm.weight": (256,), at + "mlp.down_proj.weight": (64, 96)}
    shapes |= {at + f"mlp.{name}_proj.weight": (96, 64) for name in ("gate", "up")}
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    shapes |= {at + f"{name}_layernorm.weight": (64,) for name in norms}
    tensors = {inner + name: shape for name, shape in shapes.items()}
    tensors |= {f"{outer}vision_tower.a.b": (3,), f"{outer}multi_modal_projector.c": (4, 2)}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 4096}
    settings = {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 2]}
    settings["text_config"] = {**sizes, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    zeros = {name: ("BF16", shape, bytes(2 * math.prod(shape))) for name, shape in tensors.items()}
    folder = demo.with_file("config.json", json.dumps(settings).encode())
    return folder.with_file("model.safetensors", safetensors(zeros))


# The names that language models have within larger ones, before transformers 5 and since.
@pytest.mark.parametrize("inner, outer", [("language_model.model.", ""), ("model.language_model.", "model.")])
def test_gemma_3_that_also_sees_leaves_out_what_is_usual(inner: str, outer: str) -> None:
    plan = plan_model(gemma_that_sees(inner, outer))
    facts = {key.removeprefix("gemma3."): value for key, value in plan.metadata.items()}
    assert (facts["attention.head_count"], facts["attention.head_count_kv"], facts["attention.key_length"]) == (
        8,
        4,
        256,
    )
    assert (facts["rope.freq_base"], facts["rope.freq_base_swa"], facts["rope.scaling.factor"]) == (1e6, 1e4, 8.0)
    assert (facts["attention.sliding_window"], facts["context_length"]) == (1024, 131072)
    assert len(plan.tensors) == 15
    assert plan.left_out == {"vision": 6, "a projector": 16}


def test_a_language_model_that_cannot_be_taken_out_is_refused_by_its_reason() -> None:
    with pytest.raises(UnsupportedModel, match="attend to nothing but images"):
        plan_model(demo.change("config.json", architectures=["MllamaForConditionalGeneration"]))
    for kind in ("t5", 5):
        settings = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": kind}}
        with pytest.raises(UnsupportedModel, match="its language model"):
            plan_model(demo.change("config.json", **settings))


def test_llava_leaves_out_settings_that_are_usual() -> None:
    """LLaVA 1.5 names four settings of its Llama, and nothing of an output that it shares or does not."""
    text = {"model_type": "llama", "vocab_size": 4096, "rms_norm_eps": 1e-5, "num_hidden_layers": 1}
    text |= {"hidden_size": 64, "num_attention_heads": 4}
    shapes = llama_shapes(1, 64, 11008, 4, 4, 4096)
    zeros = {f"language_model.{n}": ("BF16", shape, bytes(2 * math.prod(shape))) for n, shape in shapes.items()}
    settings = {"architectures": ["LlavaForConditionalGeneration"], "eos_token_id": 2, "text_config": text}
    folder = demo.with_file("config.json", json.dumps(settings).encode())
    plan = plan_model(folder.with_file("model.safetensors", safetensors(zeros)))
    assert plan.metadata["llama.feed_forward_length"] == 11008
    assert "output.weight" in {tensor.name for tensor in plan.tensors}
    del zeros["language_model.lm_head.weight"]
    plan = plan_model(folder.with_file("model.safetensors", safetensors(zeros)))
    assert "output.weight" not in {tensor.name for tensor in plan.tensors}
