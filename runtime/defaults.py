"""Defaults of settings, and numbers of the KV cache, that processes share.

Imports nothing, because the command line reads settings at its start.
"""

from __future__ import annotations

# How many times as long as usual a step may take while prompts are read; measured figures: `runtime/engine/pace.py`.
GAP = 3.5

# Tokens that the KV cache of a model holds, and sequences that share it.
CONTEXT = 8192
SEQUENCES = 8
CONTEXT_RANGE = (64, 16 << 20)
SEQUENCES_RANGE = (1, 64)

# llama.cpp rounds the tokens of a KV cache up to a multiple of this.
CONTEXT_STEP = 256
# Rows of a batch at most.
BATCH = 512

# Rows of drafted tokens in a step at most.
DRAFT_ROWS = 32

# Tokens of a draft at most for a model with a state: it keeps as many more states of each sequence.
ROLLBACK = 3

# Bytes of a request's body at most.
MAX_BODY = 32 << 20

# Element types of the KV cache.
CACHE_TYPES = ("F16", "BF16", "F32", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
CACHE_TYPE = "F16"
