"""Language models that are parts of larger ones: taken out whole, by whatever names, and what stays behind is said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from quant.convert.families.table import FAMILIES
from quant.convert.planning import plan_model
from quant.convert.wrappers import CLASSES, REFUSED
from quant.errors import QuantError, UnsupportedModel
from quant.gguf.check import check_model
from quant.gguf.header import Header
from quant.safetensors import read_model
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
    with pytest.raises(UnsupportedModel, match="attend to nothing but images"):
        plan_model(demo.change("config.json", architectures=None, model_type="mllama"))
    for kind in ("t5", 5):
        settings = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": kind}}
        with pytest.raises(UnsupportedModel, match="its language model"):
            plan_model(demo.change("config.json", **settings))


@pytest.mark.parametrize(
    ("name", "architecture", "reason"),
    [
        ("T5ForConditionalGeneration", "t5", "an encoder reads the text"),
        ("MT5ForConditionalGeneration", "t5", "an encoder reads the text"),
        ("UMT5Model", "t5encoder", "an encoder reads the text"),
        ("LLaDAModelLM", "llada", "refines a whole text"),
        ("Qwen3TTSForConditionalGeneration", "qwen3tts", "makes sound"),
        ("Eagle3LlamaForCausalLM", "eagle3", "guesses tokens"),
    ],
)
def test_models_that_the_engine_cannot_run_are_refused_by_name(name: str, architecture: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        plan_model(demo.change("config.json", architectures=[name]))
    assert caught.value.hint
    header = Header("m.gguf", 3, {"general.architecture": architecture}, {}, (), 0, 32)
    with pytest.raises(UnsupportedModel, match=reason):
        check_model(header)


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


def renamed(folder: Folder, change: Callable[[str], str], **more: tuple[str, tuple[int, ...], bytes]) -> Folder:
    """The same weights by other names, with more tensors in front."""
    raw = folder.contents["model.safetensors"]
    tensors = {
        change(entry.name): (entry.dtype, entry.shape, raw[entry.offset : entry.offset + entry.size])
        for entry in read_model(folder)
    }
    return folder.with_file("model.safetensors", safetensors({**more, **tensors}))


NAMES: dict[str, Callable[[str], str]] = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled layers": lambda name: name.replace("self_attn.", "_orig_mod.self_attn."),
    "in parallel": lambda name: f"module.{name}",
    "with adapters merged": lambda name: f"base_model.model.{name}",
    "all of them": lambda name: f"module._orig_mod.base_model.model.{name}",
    "twice": lambda name: f"model.{name}",
    "without a head": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("names", NAMES)
def test_a_model_within_a_program_for_training_is_that_model(names: str) -> None:
    found, usual = plan_model(renamed(demo, NAMES[names])), plan_model(demo)
    assert found.metadata == usual.metadata
    assert [(t.name, t.shape, t.transform) for t in found.tensors] == [
        (t.name, t.shape, t.transform) for t in usual.tensors
    ]


def test_empty_tensors_and_buffers_are_passed_over() -> None:
    more = {
        "nothing": ("F32", (0, 4), b""),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (2,), bytes(8)),
        "model.rotary_emb.original_inv_freq": ("F32", (2,), bytes(8)),
        "model.embeddings.position_ids": ("I64", (1, 2), bytes(16)),
        "model.layers.0.self_attn.masked_bias": ("F32", (), bytes(4)),
    }
    found, usual = plan_model(renamed(demo, str, **more)), plan_model(demo)
    assert {t.name for t in found.tensors} == {t.name for t in usual.tensors}
    with pytest.raises(UnsupportedModel, match="no place for `odd`"):
        plan_model(renamed(demo, str, odd=("F32", (1,), bytes(4))))
    with pytest.raises(QuantError, match=r"lack .model\.norm|lack .norm"):
        plan_model(renamed(demo, lambda name: name.replace("model.norm.weight", "rotary_emb.inv_freq")))


@pytest.mark.parametrize("given", [None, []])
def test_a_model_without_the_name_of_its_class_goes_by_its_kind(given: list[str] | None) -> None:
    kind = demo.json("config.json")["model_type"]
    assert plan_model(demo.change("config.json", architectures=given)) == plan_model(demo)
    for other in (None, "unheard_of", 3):
        with pytest.raises(UnsupportedModel, match="no `architectures`") as caught:
            plan_model(demo.change("config.json", architectures=given, model_type=other))
        assert "`architectures`" in caught.value.hint
    assert kind


def test_a_model_that_sees_without_the_name_of_its_class_is_taken_out_too() -> None:
    usual = gemma_that_sees("model.language_model.", "model.")
    assert plan_model(usual.change("config.json", architectures=None, model_type="gemma3")) == plan_model(usual)


@pytest.mark.oracle
def test_kinds_have_the_classes_of_transformers() -> None:
    from transformers.models.auto import modeling_auto as auto

    theirs = {**auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    theirs["gemma4_unified_text"] = "Gemma4ForCausalLM"  # it computes as this one with its settings does
    for kind, name in CLASSES.items():
        assert name in {*FAMILIES, *REFUSED} or kind.startswith("qwen") or "Conditional" in name, kind
        if (
            kind in theirs
            and "Conditional" not in theirs[kind]
            and not name.endswith(("Model", "ConditionalGeneration"))
        ):
            assert theirs[kind] == name, kind
