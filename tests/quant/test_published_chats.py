"""How much pulled models sample, and which tokens end their answers, by what their small files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quant.convert.chat import read_defaults
from quant.convert.config import ModelConfig
from quant.convert.planning import plan_model
from quant.convert.tokenizer import specials
from quant.convert.tokenizer.vocabulary import VocabularyPlan
from quant.plan import ModelPlan
from tests.quant.engine import Engine
from tests.quant.published import PUBLISHED
from tests.quant.support import DEMO, Folder, llama_shapes, safetensors
from tests.quant.vocabularies import vocabulary_file
from tests.runtime.tiny import PLAIN

ENDINGS: dict[str, dict[str, Any]] = {name: facts["endings"] for name, facts in PUBLISHED.items() if "endings" in facts}
# Models with the same facts end in the same way.
KINDS = {json.dumps(facts, sort_keys=True): name for name, facts in ENDINGS.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_for_sampling_are_those_of_the_makers(name: str) -> None:
    generation = PUBLISHED[name]["generation"]
    ids = {"eos_token_id": [1, 2], "bos_token_id": 1, "do_sample": True, "transformers_version": "4.51.0"}
    found = read_defaults(ModelConfig("generation_config.json", {**ids, **generation}))
    names = {"repetition_penalty": "repeat_penalty"}
    assert found == {names.get(key, key): value for key, value in generation.items()}
    assert read_defaults(ModelConfig("generation_config.json", {**generation, "do_sample": False})) == {}


def listed(ids: int | list[int]) -> list[int]:
    return ids if isinstance(ids, list) else [ids]


@pytest.mark.parametrize("name", ENDINGS)
def test_all_endings_of_a_published_model_are_known(name: str) -> None:
    """Under the numbers that the tokens really have: those of `generation_config.json`, and the tokenizer's own."""
    facts = ENDINGS[name]
    ids = {text: int(id) for id, text in facts["tokens"].items()}
    tokens = [""] * (max(ids.values()) + 1)
    for text, id in ids.items():
        tokens[id] = text
    vocabulary = VocabularyPlan(ids, {"tokenizer.ggml.tokens": tokens})
    entries, stops = specials.describe(
        ModelConfig("config.json", {"eos_token_id": facts["config"]}),
        ModelConfig("generation_config.json", {"eos_token_id": facts["generation"]}),
        ModelConfig("tokenizer_config.json", {key: facts[key] for key in ("eos_token", "bos_token")}),
        vocabulary,
    )
    assert set(stops) == {ids[facts["eos_token"]], *listed(facts["generation"])}
    assert entries["tokenizer.ggml.eos_token_id"] == ids[facts["eos_token"]]
    begin = facts["bos_token"]
    assert entries.get("tokenizer.ggml.bos_token_id") == (None if begin is None else ids[begin])


def small(facts: dict[str, Any]) -> tuple[ModelPlan, dict[int, int]]:
    """A model of single characters and these special tokens, planned, and the new numbers of the tokens by the old."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    alphabet = [*(text for text in tokenizer["model"]["vocab"] if len(text) == 1), "ab"]
    tokenizer["model"] |= {"vocab": {text: id for id, text in enumerate(alphabet)}, "merges": ["a b"]}
    numbers = {int(old): len(alphabet) + at for at, old in enumerate(facts["tokens"])}
    tokenizer["added_tokens"] = [
        PLAIN | {"id": new, "content": facts["tokens"][str(old)]} for old, new in numbers.items()
    ]
    size = len(alphabet) + len(numbers)
    shapes = llama_shapes(1, 32, 32, 1, 1, size)
    zeros = {name: ("F32", shape, bytes(4 * shape[0] * (shape[1:] or (1,))[0])) for name, shape in shapes.items()}
    settings = {"architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 32, "vocab_size": size}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 64}
    files = {
        "config.json": settings | {"eos_token_id": [numbers[id] for id in listed(facts["config"])]},
        "generation_config.json": {"eos_token_id": [numbers[id] for id in listed(facts["generation"])]},
        "tokenizer_config.json": {key: facts[key] for key in ("eos_token", "bos_token")},
        "tokenizer.json": tokenizer,
    }
    contents = {name: json.dumps(content).encode() for name, content in files.items()}
    return plan_model(Folder(contents={**contents, "model.safetensors": safetensors(zeros)})), numbers


def test_llama_cpp_ends_where_the_makers_say_too(tmp_path: Path) -> None:
    """The entries alone are enough, so that other programs with the same file end there as well."""
    for name in KINDS.values():
        facts = ENDINGS[name]
        plan, numbers = small(facts)
        entries = {key: value for key, value in plan.metadata.items() if key.startswith("tokenizer.")}
        with Engine(vocabulary_file(tmp_path / "v.gguf", entries), vocabulary_only=True) as engine:
            for old in listed(facts["generation"]):
                assert numbers[old] in plan.stops, name
                assert engine.ends(numbers[old]), (name, facts["tokens"][str(old)])
