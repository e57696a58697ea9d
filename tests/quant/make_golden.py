"""Writes `data/*-logits.npz`: what transformers computes in float32 for the demo model and for some of the zoo.

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


FAMILIES = {"gemma3": "gemma3", "gpt2": "gpt2", "phi3": "phi3, long rope"}
# Of the logits of a random model, every seventeenth tells as much as all.
EVERY = 17


def family_golden(name: str) -> Path:
    return GOLDEN.with_name(f"{name}-logits.npz")


def make_families() -> None:
    import json
    import tempfile

    from quant.safetensors import read_model
    from tests.quant.support import Folder
    from tests.quant.zoo import ZOO
    from tests.quant.zoo.making import make
    from tests.quant.zoo.reference import reference

    ids = np.random.default_rng(1).integers(3, 4096, 200)
    for name, row in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = make(ZOO[row], Path(folder))
            shapes = {entry.name: entry.shape for entry in read_model(Folder(path))}
            logits = reference(path, ZOO[row], ids.tolist())[list(ROWS), ::EVERY]
            config = (path / "config.json").read_text()
        np.savez_compressed(
            family_golden(name),
            config=config,
            shapes=json.dumps(shapes),
            ids=ids,
            logits=logits,
            spread=ZOO[row].spread,
        )


if __name__ == "__main__":
    main()
    make_families()
