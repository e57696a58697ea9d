"""One text, read by our file in llama.cpp and by the original weights in transformers."""

from __future__ import annotations

from array import array
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from quant.gguf.header import read_file
from runtime.errors import LoadFailed
from server.verify.layers import Comparison, Original, Stage, Values, stage_of, watch_original

if TYPE_CHECKING:
    from runtime.llama.model import LlamaModel
    from runtime.llama.watching import Watcher

# Prose, a list, code and numbers: about 120 tokens.
TEXT = (
    "The lighthouse keeper climbed the stairs every evening, and lit the lamp before the fog came in from the sea. "
    "One night in March the lamp would not burn.\n\n1. Check the oil.\n2. Clean the glass.\n3. Call the harbour: "
    "+44 20 7946 0958.\n\ndef light(hours):\n    return sum(h for h in hours if h > 17)\n\nEt pourtant, elle tourne."
)


def run(path: Path, folder: Path, text: str = TEXT) -> tuple[Values, Values, list[Stage]]:
    """The logits `(tokens, vocabulary)` of the original in `folder` and of the file at `path`, and all stages compared.

    Raises LoadFailed where llama.cpp does not read the file, and what transformers raises.
    """
    from runtime.llama.model import LlamaModel

    model = LlamaModel(path, gpu_layers=0, empty=True)
    layers = int(model.metadata("block_count") or 0)
    ids: array[int] = model.vocabulary.tokenize(text, special=False, add=True)
    ids = ids[: max(2, model.n_ctx_train - 1)]
    with TemporaryDirectory() as place:
        original = Original(Path(place))
        theirs = _original(folder, ids, layers, original)
        comparison = Comparison(original)
        model = LlamaModel(path, gpu_layers=0)
        ours = _ours(model, ids, comparison.free)
        comparison.head(theirs, _ours(model, ids, comparison.led))
    return theirs, ours, comparison.stages(layers, read_file(path).tensors)


def _ours(model: LlamaModel, ids: array[int], watcher: Watcher) -> Values:
    import numpy as np

    from runtime.llama.context import OK, Context, ContextParams
    from runtime.llama.library import usable_threads
    from runtime.llama.watching import Watch

    watch = Watch(lambda name: stage_of(name) is not None, watcher)
    size = len(ids)
    context = Context(model, ContextParams(size + 1, 1, size, usable_threads(), "F32", watch=watch.callback))
    try:
        context.put_prompt(0, memoryview(ids), 0, 0, size)
        status = context.decode(size)
        if watch.error:
            raise watch.error
        if status != OK:
            raise LoadFailed(f"llama.cpp cannot read a text with this model (status {status})", "pull the model again")
        return np.stack([context.logits(row).copy() for row in range(size)])
    finally:
        context.free()


def _original(folder: Path, ids: array[int], layers: int, original: Original) -> Values:
    """The logits of the weights in `folder`; no code of the folder is run, nothing is fetched."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    watch_original(model, layers, original.keep)
    with torch.no_grad():
        logits: Values = model(torch.tensor([ids.tolist()]), use_cache=False).logits[0].float().numpy()
    return logits
