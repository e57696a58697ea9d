"""The list of all families, by the classes of their models; a new family is added here."""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family
from quant.convert.families import (
    bamba,
    classic,
    cohere,
    deepseek,
    encoder,
    gathered,
    gemma,
    gemma4,
    glm,
    gpt,
    gpt_oss,
    hybrid,
    internlm,
    jamba,
    latent,
    llama,
    llama4,
    moe,
    nemotron_h,
    olmo,
    phi,
    qwen,
    qwen_linear,
    ranking,
    recurrent,
    relatives,
    routed,
    slopes,
    sparse,
    step,
    twofold,
    unrotated,
    windowed,
)

_MODULES = (
    llama,
    qwen,
    qwen_linear,
    gemma,
    gemma4,
    phi,
    olmo,
    glm,
    cohere,
    gpt,
    gpt_oss,
    moe,
    deepseek,
    latent,
    routed,
    sparse,
    windowed,
    twofold,
    step,
    gathered,
    relatives,
    recurrent,
    hybrid,
    bamba,
    nemotron_h,
    jamba,
    internlm,
    unrotated,
    slopes,
    classic,
    llama4,
    encoder,
    ranking,
)
FAMILIES: dict[str, Family[Any]] = {
    name: family for module in _MODULES for family in module.FAMILIES for name in family.classes
}
"""Families by the name of a model's class, as `architectures` in `config.json` has it."""
