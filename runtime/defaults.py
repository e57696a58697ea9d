"""Defaults of settings that processes share. Imports nothing, because the command line reads settings at its start."""

from __future__ import annotations

# How many times as long as usual a step may take while prompts are read; measured figures: `runtime/engine/pace.py`.
GAP = 3.5

# Element types of the KV cache, the most exact first.
CACHE_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
CACHE_TYPE = "F16"
