"""Options of a request with their ranges, and limits: the one place that knows them.

The ranges are types (`msgspec.Meta`). The daemon reads them to check a body and to name the range in its error, and a
worker refuses a frame that breaks one while it decodes it, so that the two cannot disagree.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_STOP_LENGTH = 256
"""Characters of one stop string."""
MAX_LOGPROBS = 20
"""Alternatives reported for each token."""
MAX_ANSWERS = 128
"""Answers to one prompt."""
MAX_INPUTS = 2048
"""Texts of one request for vectors or scores."""
MAX_INPUT_LENGTH = 4 << 20
"""Characters, or token ids, of one such text."""
MAX_GRAMMAR = 1 << 20
"""Characters of a grammar or a schema."""
MAX_ADAPTERS = 16
"""Adapters of one request."""
MAX_ADAPTER_SCALE = 100
MAX_BIASES = 4096
MAX_BIAS = 100
MAX_LAST = 1 << 16
"""Tokens that a penalty may look back at."""
MAX_INT = 2**31 - 1

Share = Annotated[float, Meta(ge=0, le=1)]
Strength = Annotated[float, Meta(ge=0, le=100)]
Penalty = Annotated[float, Meta(ge=-100, le=100)]
LastTokens = Annotated[int, Meta(ge=-1, le=MAX_LAST)]
"""How many of the last tokens are looked at; -1 is the whole context."""
AdapterScale = Annotated[float, Meta(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE)]
Bias = Annotated[float, Meta(ge=-MAX_BIAS, le=MAX_BIAS)]
Stop = Annotated[str, Meta(max_length=MAX_STOP_LENGTH)]


class Sampling(msgspec.Struct, omit_defaults=True):
    """How the next token is drawn; defaults are Ollama's. `temperature` 0 is greedy, `seed` -1 is random.

    `logit_bias` maps token ids to numbers that are added to their logits.
    """

    temperature: Strength = 0.8
    top_k: Annotated[int, Meta(ge=-1, le=MAX_INT)] = 40
    top_p: Share = 0.9
    min_p: Share = 0.0
    typical_p: Share = 1.0
    top_n_sigma: Annotated[float, Meta(ge=-1, le=100)] = -1.0
    xtc_probability: Share = 0.0
    xtc_threshold: Share = 0.1
    repeat_last_n: LastTokens = 64
    repeat_penalty: Annotated[float, Meta(ge=0.001, le=100)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    dry_multiplier: Strength = 0.0
    dry_base: Strength = 1.75
    dry_allowed_length: Annotated[int, Meta(ge=0, le=MAX_LAST)] = 2
    dry_penalty_last_n: LastTokens = -1
    mirostat: Annotated[int, Meta(ge=0, le=2)] = 0
    mirostat_tau: Strength = 5.0
    mirostat_eta: Strength = 0.1
    logit_bias: Annotated[dict[int, Bias], Meta(max_length=MAX_BIASES)] = {}
    seed: Annotated[int, Meta(ge=-1, le=2**32 - 1)] = -1
    ignore_eos: bool = False


class Limits(msgspec.Struct, omit_defaults=True):
    """When an answer ends: `max_tokens` -1 is as far as the context allows; `seconds` 0 is no deadline."""

    max_tokens: Annotated[int, Meta(ge=-1, le=MAX_INT)] = -1
    stop: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] = []
    seconds: Annotated[float, Meta(ge=0)] = 0.0
