"""Plans: what is read from a folder's small files, and what is refused before a weight moves."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.errors import MalformedFile, QuantError, UnsupportedModel
from quant.plan import ModelPlan
from quant.safetensors import read_model
from tests.quant.support import DEMO, Folder, safetensors

demo = Folder(DEMO)


def test_the_demo_is_planned_from_its_files() -> None:
    plan = plan_model(demo)
    assert plan.architecture == "llama"
    assert plan.parameters == 5_770_496
    assert plan.source_bytes == 2 * plan.parameters
    assert plan.shards == ("model.safetensors",)
    assert plan.stops == (2, 0)
    assert plan.defaults == {"temperature": 0.8, "top_p": 0.95}
    assert plan.capabilities == ("completion",)
    facts = {key: value for key, value in plan.metadata.items() if key.startswith(("general.", "llama."))}
    assert facts == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.size_label": "5.8M",
        "llama.vocab_size": 4096,
        "llama.context_length": 2048,
        "llama.embedding_length": 256,
        "llama.block_count": 6,
        "llama.feed_forward_length": 768,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 10000.0,
    }


def test_tensors_stand_in_the_order_of_the_source() -> None:
    plan = plan_model(demo)
    assert [tensor.source for tensor in plan.tensors] == [entry.name for entry in read_model(demo)]
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    assert by_name["blk.5.ffn_down.weight"].shape == (256, 768)
    assert by_name["blk.5.ffn_down.weight"].source == "model.layers.5.mlp.down_proj.weight"
    assert by_name["blk.0.attn_q.weight"].transform and not by_name["blk.0.attn_v.weight"].transform


def planned(name: str, **values: Any) -> ModelPlan:
    return plan_model(demo.change(name, **values))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"rope_theta": 500000}, {"freq_base": 500000.0}),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, {"scaling.type": "linear", "scaling.factor": 4.0}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"freq_base": 1e6}),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}},
            {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 256},
        ),
    ],
)
def test_rotary_embedding_is_described(changes: dict[str, Any], wanted: dict[str, Any]) -> None:
    metadata = planned("config.json", **changes).metadata
    assert {key: metadata[f"llama.rope.{key}"] for key in wanted} == wanted


def test_llama_3_scaling_becomes_a_tensor_before_the_others() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    plan = planned("config.json", rope_scaling={**scaling, "original_max_position_embeddings": 512})
    first = plan.tensors[0]
    assert (first.name, first.shape, len(first.values)) == ("rope_freqs.weight", (32,), 128)
    assert plan.parameters == plan_model(demo).parameters


def test_a_sliding_window_bounds_the_context() -> None:
    """In a Mistral; a Llama reads no such key."""
    settings = {"architectures": ["MistralForCausalLM"], "sliding_window": 512}
    assert planned("config.json", **settings).metadata["llama.context_length"] == 512
    assert planned("config.json", sliding_window=512).metadata["llama.context_length"] == 2048


def test_a_tied_model_has_an_output_where_that_differs_from_the_embedding() -> None:
    whole = {e.name: (e.dtype, e.shape, demo.read(e.shard, e.offset, e.size)) for e in read_model(demo)}
    embedding = whole["model.embed_tokens.weight"]
    as_f32 = np.frombuffer(embedding[2], "<u2").astype("<u4") << 16
    other = embedding[2][:-2] + b"\0\x40"
    for head, kept in (
        (embedding, False),
        (("F32", embedding[1], as_f32.tobytes()), False),
        (("BF16", embedding[1], other), True),
    ):
        folder = demo.with_file("model.safetensors", safetensors({**whole, "lm_head.weight": head}))
        assert ("output.weight" in [tensor.name for tensor in plan_model(folder).tensors]) is kept
        untied = folder.change("config.json", tie_word_embeddings=False)
        assert "output.weight" in [tensor.name for tensor in plan_model(untied).tensors]
    del whole["model.embed_tokens.weight"]
    alone = demo.with_file("model.safetensors", safetensors({**whole, "lm_head.weight": embedding}))
    names = {tensor.name: tensor.source for tensor in plan_model(alone).tensors}
    assert names["token_embd.weight"] == "lm_head.weight"
    assert "output.weight" not in names


TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.mark.parametrize(
    "folder",
    [
        demo.change("tokenizer_config.json", chat_template=TEMPLATE),
        demo.change("tokenizer_config.json", chat_template=[{"name": "default", "template": TEMPLATE}]),
        demo.with_file("chat_template.jinja", TEMPLATE.encode()),
        demo.with_file("chat_template.json", json.dumps({"chat_template": TEMPLATE}).encode()),
    ],
    ids=["text", "list", "jinja", "json"],
)
def test_chat_templates_are_found_in_every_form(folder: Folder) -> None:
    assert plan_model(folder).metadata["tokenizer.chat_template"] == TEMPLATE


def test_named_templates_are_kept_and_tell_what_the_model_can() -> None:
    tools = "{% for tool in tools %}{{ tool }}{% endfor %}<think></think>"
    templates = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": tools}]
    plan = planned("tokenizer_config.json", chat_template=templates)
    assert plan.metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert plan.metadata["tokenizer.chat_template.tool_use"] == tools
    assert plan.capabilities == ("completion", "tools", "thinking")


def test_without_a_template_there_is_none() -> None:
    assert "tokenizer.chat_template" not in planned("tokenizer_config.json", chat_template=None).metadata


def special(metadata: Any, key: str) -> Any:
    return metadata.get(f"tokenizer.ggml.{key}")


def test_ends_of_an_answer_come_from_every_file() -> None:
    plan = plan_model(demo.change("generation_config.json", eos_token_id=[0, 5, 6, 7]))
    assert plan.stops == (2, 0, 5, 6, 7)
    assert plan.metadata["lm.stop_token_ids"] == [2, 0, 5, 6, 7]
    # 0 is `<|endoftext|>`, which llama.cpp knows by its text; the next two it must be told.
    keys = ("eos_token_id", "eot_token_id", "eom_token_id", "padding_token_id", "bos_token_id")
    assert [special(plan.metadata, key) for key in keys] == [2, 5, 6, 0, None]


def test_the_end_is_found_without_a_generation_config() -> None:
    bare = demo.with_file("generation_config.json", None).with_file("tokenizer_config.json", None)
    assert plan_model(bare).stops == (2,)
    with pytest.raises(MalformedFile, match="eos_token_id"):
        plan_model(bare.change("config.json", eos_token_id=None))


def test_a_beginning_is_put_where_the_tokenizer_puts_it() -> None:
    step = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    begins = demo.change("tokenizer.json", post_processor={"type": "Sequence", "processors": [step]})
    begins = begins.change("tokenizer_config.json", bos_token={"content": "<|im_start|>"}, add_bos_token=None)
    assert special(plan_model(begins).metadata, "add_bos_token") is True
    assert special(plan_model(begins).metadata, "bos_token_id") == 1
    never = begins.change("tokenizer_config.json", add_bos_token=False)
    assert special(plan_model(never).metadata, "add_bos_token") is False


def test_the_model_card_names_licence_and_base() -> None:
    card = (
        "---\nlicense: apache-2.0\nlicense_link: 'https://x.org/l'\nbase_model:\n- org/base-1B\ntags: [a]\n---\n# Hi\n"
    )
    metadata = plan_model(demo.with_file("README.md", card.encode())).metadata
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.license.link"] == "https://x.org/l"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/org/base-1B"
    assert "general.license" not in plan_model(demo.with_file("README.md", b"\xff\xfe no front matter")).metadata


def config(**values: Any) -> Folder:
    return demo.change("config.json", **values)


REFUSED: dict[str, tuple[Folder, str]] = {
    "no config": (demo.with_file("config.json", None), r"no `config\.json`"),
    "config no JSON": (demo.with_file("config.json", b"{"), r"`config\.json` is not valid JSON"),
    "config a list": (demo.with_file("config.json", b"[]"), r"`config\.json` does not hold"),
    "no architecture": (config(architectures=None, model_type=None), "`architectures`"),
    "architecture no list": (config(architectures="Llama"), "`architectures`"),
    "unknown architecture": (config(architectures=["Gpt9ForCausalLM"]), "`Gpt9ForCausalLM` cannot be converted"),
    "already quantized": (config(quantization_config={"quant_method": "aqlm"}), "already quantized .*aqlm"),
    "no width": (config(hidden_size=None), r"no `hidden_size`"),
    "width a text": (config(hidden_size="256"), "`hidden_size`"),
    "width negative": (config(hidden_size=-256), "`hidden_size`"),
    "width true": (config(hidden_size=True), "`hidden_size`"),
    "other width": (config(hidden_size=512, head_dim=64), r"is \[4096, 256\] and `config.json` asks for \[4096, 512\]"),
    "layers without end": (config(num_hidden_layers=1 << 30), "at most 512"),
    "a layer too many": (config(num_hidden_layers=7), r"lack .*layers\.6.* and 4 more"),
    "a layer too few": (config(num_hidden_layers=5), r"no place for `model\.layers\.5.*and 4 more"),
    "untied without head": (config(tie_word_embeddings=False), r"lack `lm_head"),
    "odd heads": (config(head_dim=63), "pairs"),
    "heads that cannot share": (config(num_key_value_heads=3), "share"),
    "other activation": (config(hidden_act="gelu"), "gelu"),
    "unknown rotary scaling": (config(rope_scaling={"rope_type": "spiral"}), "`spiral`"),
    "rotary factors missing": (config(rope_scaling={"rope_type": "longrope"}), "`long_factor`"),
    "rotary scaling a text": (config(rope_scaling="linear"), "`rope_scaling`"),
    "rotary factor missing": (config(rope_scaling={"type": "linear"}), "`factor`"),
    "rotary base infinite": (config(rope_theta=1e300), "`rope_theta`"),
    "fewer embeddings than tokens": (config(vocab_size=4000), "4096, 256"),
    "stop a text": (demo.change("generation_config.json", eos_token_id="2"), "`eos_token_id`"),
    "template a number": (demo.change("tokenizer_config.json", chat_template=3), "`chat_template`"),
    "template unnamed": (demo.change("tokenizer_config.json", chat_template=[{"template": "x"}]), "`chat_template`"),
    "template too long": (demo.change("tokenizer_config.json", chat_template="x" * (1 << 20) + "x"), "1 MiB"),
    "template not UTF-8": (demo.with_file("chat_template.jinja", b"\xff"), "not UTF-8"),
    "no tokenizer": (demo.with_file("tokenizer.json", None), r"no `tokenizer\.json`"),
    "only pickles": (demo.with_file("model.safetensors", None).with_file("pytorch_model.bin", b""), "pickle"),
    "weights cut": (demo.with_file("model.safetensors", demo.contents["model.safetensors"][:-5]), "end at byte"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_folders_are_refused_in_one_sentence(case: str) -> None:
    folder, reason = REFUSED[case]
    with pytest.raises(QuantError, match=reason) as caught:
        plan_model(folder)
    assert str(caught.value).isprintable() and not str(caught.value).endswith(".")


def with_tensor(name: str, dtype: str, size: int) -> Folder:
    whole = {e.name: (e.dtype, e.shape, demo.read(e.shard, e.offset, e.size)) for e in read_model(demo)}
    whole[name] = (dtype, (size,), bytes(size * (1 if dtype == "F8_E4M3" else 2)))
    return demo.with_file("model.safetensors", safetensors(whole))


def test_a_tensor_without_a_place_is_named() -> None:
    with pytest.raises(UnsupportedModel, match=r"no place for `model\.layers\.0\.self_attn\.q_norm\.weight`$"):
        plan_model(with_tensor("model.layers.0.self_attn.q_norm.weight", "BF16", 64))


def test_weights_in_eight_bits_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"`model\.norm\.weight` is stored as F8_E4M3"):
        plan_model(with_tensor("model.norm.weight", "F8_E4M3", 256))


ODD = [
    None,
    0,
    -1,
    1.5,
    1 << 70,
    1e308,
    True,
    "",
    "x",
    "\ud800",
    [],
    {},
    [None],
    [[]],
    {"type": "x"},
    {"type": None},
    [{}],
]
# Few enough tokens that a thousand plans are quick.
TOKENIZER = demo.json("tokenizer.json")
SMALL_MODEL = {
    **TOKENIZER["model"],
    "vocab": dict(list(TOKENIZER["model"]["vocab"].items())[:259]) | {"ab": 259, "abc": 260},
    "merges": [["a", "b"], "ab c"],
}
TEXTS = [*list(SMALL_MODEL["vocab"])[:3], *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "c", "ab", "abc"]
BYTES = {text: number for number, text in enumerate(TEXTS)}
MUTABLE = {
    "config.json": demo.json("config.json") | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "generation_config.json": demo.json("generation_config.json"),
    "tokenizer_config.json": demo.json("tokenizer_config.json")
    | {"chat_template": [{"name": "default", "template": ""}]},
    "tokenizer.json": TOKENIZER
    | {
        "model": SMALL_MODEL,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<|im_start|>": {"ids": [1]}},
        },
    },
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to the nodes of a JSON value; of long lists and objects only the first few."""
    found = [path]
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items[:12]:
        found += places(inner, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replaced(value[path[0]], path[1:], new)
    return copied


@pytest.mark.parametrize("name", MUTABLE)
@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("every", [pytest.param(11, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_odd_values_anywhere_raise_nothing_else(name: str, byte_fallback: bool, every: int) -> None:
    values = dict(MUTABLE)
    if byte_fallback:
        values["tokenizer.json"] = values["tokenizer.json"] | {
            "model": {**SMALL_MODEL, "byte_fallback": True, "unk_token": "a", "vocab": BYTES},
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
        }
    base = Folder(contents={**demo.contents, **{file: json.dumps(value).encode() for file, value in values.items()}})
    plan_model(base)
    refused = 0
    for path, odd in list(itertools.product(places(values[name]), ODD))[::every]:
        mutant = base.with_file(name, json.dumps(replaced(values[name], path, odd)).encode())
        try:
            plan_model(mutant)
        except QuantError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused
