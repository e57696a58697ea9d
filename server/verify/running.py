"""The logits of one text: by our file in llama.cpp, and by the original weights in transformers."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

# Prose, a list, code and numbers: about 120 tokens.
TEXT = (
    "The lighthouse keeper climbed the stairs every evening, and lit the lamp before the fog came in from the sea. "
    "One night in March the lamp would not burn.\n\n1. Check the oil.\n2. Clean the glass.\n3. Call the harbour: "
    "+44 20 7946 0958.\n\ndef light(hours):\n    return sum(h for h in hours if h > 17)\n\nEt pourtant, elle tourne."
)


def our_logits(path: Path, text: str) -> tuple[list[int], Any]:
    """The tokens of `text`, and float32 `(tokens, vocabulary)`. Raises LoadFailed."""
    import numpy as np

    from runtime.errors import LoadFailed
    from runtime.llama.context import OK, Context, ContextParams
    from runtime.llama.library import usable_threads
    from runtime.llama.model import LlamaModel

    model = LlamaModel(path, gpu_layers=0)
    ids: array[int] = model.vocabulary.tokenize(text, special=False, add=True)
    ids = ids[: max(2, model.n_ctx_train - 1)]
    context = Context(model, ContextParams(len(ids) + 1, 1, len(ids), usable_threads(), "F32"))
    context.put_prompt(0, memoryview(ids), 0, 0, len(ids))
    if (status := context.decode(len(ids))) != OK:
        raise LoadFailed(f"llama.cpp cannot read a text with this model (status {status})", "pull the model again")
    return ids.tolist(), np.stack([context.logits(row).copy() for row in range(len(ids))])


def original_logits(folder: Path, ids: list[int]) -> Any:
    """float32 `(tokens, vocabulary)` of the weights in `folder`; no code of the folder is run, nothing is fetched."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()
