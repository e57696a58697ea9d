"""A model of nothing but zeros with any tokenizer, converted and loaded as a real one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from quant.convert.planning import plan_model
from runtime.llama.model import LlamaModel
from tests.converting import write
from tests.quant.support import Folder, llama_shapes, safetensors

# How `tokenizer.json` writes an added token.
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def with_added(tokenizer: dict[str, Any], *tokens: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with more added tokens, each of a `content` and flags, numbered after those that are there."""
    ids = [*_ids(tokenizer)]
    first = max(ids) + 1
    more = [PLAIN | {"id": first + number} | token for number, token in enumerate(tokens)]
    return {**tokenizer, "added_tokens": [*tokenizer["added_tokens"], *more]}


def _ids(tokenizer: dict[str, Any]) -> list[int]:
    vocab = tokenizer["model"]["vocab"]
    ids = range(len(vocab)) if isinstance(vocab, list) else vocab.values()
    return [*ids, *(token["id"] for token in tokenizer["added_tokens"])]


def load(tokenizer: dict[str, Any], path: Path, **files: dict[str, Any]) -> LlamaModel:
    """The model at `path`; `files` are more of its JSON files, without `.json`."""
    size = max(_ids(tokenizer)) + 3
    shapes = llama_shapes(1, 32, 32, 1, 1, size)
    weights = {name: ("F32", shape, bytes(4 * math.prod(shape))) for name, shape in shapes.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": size,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
    }
    whole = {"config": config, "tokenizer": tokenizer, **files}
    contents = {f"{name}.json": json.dumps(content).encode() for name, content in whole.items()}
    source = Folder(contents={**contents, "model.safetensors": safetensors(weights)})
    write(plan_model(source), "F32", source.stream, path, threads=1)
    return LlamaModel(path)
