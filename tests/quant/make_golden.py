"""Writes `data/demo-logits.npz`: what transformers computes in float32 for the demo model.

python -m tests.quant.make_golden
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.quant.support import DEMO

GOLDEN = Path(__file__).parent / "data" / "demo-logits.npz"
TEXT = (
    "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\nIt was a dark night, and the old man who had "
    'come up from the village stood at the door; he said, "Sir, I\'ve walked 14 miles."\n'
)
# Rows kept: the first, the last, and some between.
ROWS = (0, 7, 19, 33, -2, -1)


def reference_logits(folder: Path, ids: list[int], dtype: str = "float32") -> np.ndarray:
    """float32[len(ids), vocabulary] by transformers."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def main() -> None:
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(TEXT).ids
    logits = reference_logits(DEMO, ids)
    answer = list(ids)
    for _ in range(16):
        answer.append(int(reference_logits(DEMO, answer)[-1].argmax()))
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, ids=np.array(ids), logits=logits[list(ROWS)], answer=np.array(answer[len(ids) :]))


if __name__ == "__main__":
    main()
