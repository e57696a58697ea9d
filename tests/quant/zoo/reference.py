"""What transformers computes with a model of the zoo: logits, vectors, scores, and shares of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.quant.zoo.making import FIRST_TOKENS
from tests.quant.zoo.row import Row


def texts(ids: list[int]) -> list[list[int]]:
    """Texts of several lengths, for models that make one score of each."""
    return [ids[start : start + 8 + start // 4] for start in range(0, len(ids) - 64, 8)]


def _token_types(pair: list[int]) -> dict[str, Any]:
    """Which of two texts each token belongs to; the first one ends with its separator."""
    import torch

    first = pair.index(FIRST_TOKENS.index("<|im_end|>")) + 1
    return {"token_type_ids": torch.tensor([[0] * first + [1] * (len(pair) - first)])}


def reference(path: Path, row: Row, ids: list[int], pairs: list[list[int]] | None = None) -> np.ndarray:
    """What transformers computes, float32, GELU by the engine's formula: logits `[len(ids), vocabulary]`, of an encoder
    its vectors, and of a ranker the scores of `pairs` or `texts(ids)` (of Qwen 3: how probable "yes" is)."""
    import torch
    import transformers

    made = getattr(transformers, row.kind + row.task)
    return computed(made.from_pretrained(path, dtype=torch.float32, attn_implementation="eager"), row, ids, pairs)


def computed(model: Any, row: Row, ids: list[int], pairs: list[list[int]] | None = None) -> np.ndarray:
    """As `reference`, with a model of transformers in float32, whose GELU is changed."""
    import torch

    for module in list(model.eval().modules()):
        for name, part in module.named_children():
            if "GELU" in type(part).__name__:
                setattr(module, name, _tanh_gelu())
    with torch.no_grad():
        if row.ranks:
            asked = [(text, {}) for text in texts(ids)]
            if pairs:
                asked = [(text, _token_types(text) if row.kind == "Bert" else {}) for text in pairs]
            scores = torch.cat([model(torch.tensor([text]), **more).logits[0] for text, more in asked])
            return (scores.sigmoid() if row.kind == "Qwen3" else scores).float().numpy()
        found = model(torch.tensor([ids]))
        return (found.logits if hasattr(found, "logits") else found.last_hidden_state)[0].float().numpy()


def attention(path: Path, row: Row, ids: list[int]) -> list[float]:
    """How peaked each layer that attends is: the largest share that a token gets, on average over the later ones."""
    import torch
    import transformers

    made = getattr(transformers, row.kind + row.task)
    model = made.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        layers = getattr(model(torch.tensor([ids]), output_attentions=True), "attentions", None) or ()
    # MiniMax's lightning attention shows its states in place of shares.
    shown = [shares for shares in layers if shares is not None and shares.shape[-1] == len(ids)]
    return [float(shares[0, :, 16:].max(-1).values.mean()) for shares in shown]


def _tanh_gelu() -> Any:
    """The only GELU that llama.cpp has for these models."""
    import torch

    return torch.nn.GELU(approximate="tanh")
