"""The models of the zoo, made by transformers, with attention that is peaked and logits that vary.

The weights come from NumPy's frozen generator and the tensor's name, so a model is the same wherever it is made.
"""

from __future__ import annotations

import json
import re
import zlib
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from tests.quant.support import DEMO
from tests.quant.zoo.row import Row

# The first tokens of the demo's tokenizer.
FIRST_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The number that keeps norms from dividing by zero: no family's default, and large enough to be noticed.
_EPSILON = 1e-2
_NAMES_OF_EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
# Kinds whose configuration alone is that of a larger model.
_WITH_TEXT_CONFIG = ("Gemma3", "Gemma3n", "Gemma4", "Llama4", "Qwen3_5", "Qwen3_5Moe")
# Buffers that are trained, as parameters are.
_TRAINED_BUFFERS = ("correction_bias", "expert_bias", "layer_scalar")
_HEAD_NORM = re.compile(r"(q|k|query|key)_(layer)?norm\.")


def weight(name: str, shape: tuple[int, ...], spread: float, heads: float = 1.0) -> np.ndarray:
    """float32 weights for the tensor of this name: norms around their middle, matrices by their inputs."""
    random = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) < 2:
        middle = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
        # Heads that are normalized attend to one token more than to others by these weights alone.
        middle = 2.0 * heads if _HEAD_NORM.search(name) else middle
        return (middle + 0.3 * random).astype(np.float32)
    if "moe_statics" in name:
        # With a preference larger than probabilities, experts would be chosen that have next to none, and llama.cpp
        # divides by no sum below 6e-5.
        spread *= 0.1
    if name.startswith("classifier") and shape[0] == 1:
        spread *= 4
    return (random * spread / shape[-1] ** 0.5).astype(np.float32)


def make(row: Row, path: Path) -> Path:
    """The model in a folder as its authors would publish it, in several shards, with the demo's tokenizer."""
    import torch
    import transformers

    text = "Text" if row.kind in _WITH_TEXT_CONFIG and not row.around else ""
    made = getattr(transformers, f"{row.kind}{text}Config")(
        **deepcopy(row.settings())
    )  # it writes into rotary settings
    own = made.get_text_config()
    for key in _NAMES_OF_EPSILON:
        if hasattr(own, key) and key not in row.config:
            setattr(own, key, _EPSILON)
    model = getattr(transformers, row.kind + row.task)(made)
    with torch.no_grad():
        learned = ((name, tensor) for name, tensor in model.named_buffers() if name.endswith(_TRAINED_BUFFERS))
        for name, tensor in (*model.named_parameters(), *learned):
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape), row.spread, row.heads)))
    model.save_pretrained(path, max_shard_size="1MB")
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    if row.ranks:
        tokenizer["post_processor"] = framed("<|endoftext|>", "<|im_end|>", 1 + (row.kind == "XLMRoberta"))
    else:
        (path / "tokenizer_config.json").write_bytes((DEMO / "tokenizer_config.json").read_bytes())
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert json.loads((path / "config.json").read_text())["architectures"] == [row.kind + row.task]
    return path


def framed(first: str, last: str, between: int) -> dict[str, Any]:
    """The step of a tokenizer that puts special tokens around a text, and `last` between two, once or twice."""
    special = {text: {"SpecialToken": {"id": text, "type_id": 0}} for text in (first, last)}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    numbers = {name: FIRST_TOKENS.index(name) for name in (first, last)}
    return {
        "type": "TemplateProcessing",
        "single": [special[first], one, special[last]],
        "pair": [special[first], one, *[special[last]] * between, two, special[last]],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]} for text, id in numbers.items()},
    }
