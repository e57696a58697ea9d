"""Defaults of transformers for keys that `config.json` leaves out, by the model's class (`keys.json`)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from quant.convert.config import ModelConfig

# Sizes are not among them: a file without one is damaged rather than short.
_SWITCHES = (bool, float)
_COUNTS = ("sliding_window",)
# A file that does not say whether its output is tied is told by its tensors where it is part of something larger.
_LEFT_OUT = ("tie_word_embeddings",)
# Other names for the part of a head that is rotated.
_SHARES = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_dim")
# GPT-NeoX's names for the base and the share; a class that has these reads no others.
_OLD_BASE, _OLD_SHARE = "rotary_emb_base", "rotary_pct"


@cache
def table() -> dict[str, Any]:
    """The entries by the class's name; `tests/quant/make_keys.py` says what they hold."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("keys.json").read_text())["classes"]
    return found


def filled(config: ModelConfig, name: str) -> ModelConfig:
    """The config with the defaults of class `name` for switches, factors, windows and rotary settings that it lacks."""
    entry = table().get(name)
    if entry is None:
        return config
    defaults = {
        key: value
        for key, value in entry["defaults"].items()
        if (isinstance(value, _SWITCHES) or (key in _COUNTS and value is not None)) and key not in _LEFT_OUT
    }
    rope = entry["rope"] or {}
    rope = rope.get("full_attention", rope)
    if _OLD_BASE in entry["others"]:
        base, share = config.get(_OLD_BASE), config.get(_OLD_SHARE)
        config = config.changed(
            {
                "rope_theta": rope["rope_theta"] if base is None else base,
                "partial_rotary_factor": rope["partial_rotary_factor"] if share is None else share,
            }
        )
    told = any(config.get(key) is not None for key in _SHARES)
    wanted = ("rope_theta",) if told else ("rope_theta", "partial_rotary_factor")
    return config.filled(defaults | {key: rope[key] for key in wanted if key in rope})
