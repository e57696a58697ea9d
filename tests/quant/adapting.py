"""Adapters for tests: made by PEFT on models of the zoo, with matrices that change much."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.quant.zoo.reference import computed
from tests.quant.zoo.row import Row

RANK = 4


def make_adapter(base: Path, row: Row, path: Path, **settings: Any) -> Path:
    """A folder with an adapter of PEFT for the model in `base`; its matrices come from NumPy's frozen generator."""
    import peft
    import torch

    settings = {"r": RANK, "lora_alpha": 6, "target_modules": "all-linear", **settings}
    model = peft.get_peft_model(_load(base, row), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                random = np.random.RandomState(zlib.crc32(f"{path.name} {name}".encode())).standard_normal(tensor.shape)
                tensor.copy_(torch.from_numpy((random * (0.6 / tensor.shape[-1] ** 0.5)).astype(np.float32)))
    model.save_pretrained(path)
    return path


def adapted(base: Path, row: Row, ids: list[int], *adapters: tuple[Path, float]) -> np.ndarray:
    """Logits `[len(ids), vocabulary]` of the model with the adapters merged into it, each with its scale, float32."""
    import peft

    model: Any = _load(base, row)
    for path, scale in adapters:
        model = peft.PeftModel.from_pretrained(model, str(path))
        for module in model.modules():
            if hasattr(module, "scaling") and isinstance(module.scaling, dict):
                module.scaling = {key: value * scale for key, value in module.scaling.items()}
        model = model.merge_and_unload()
    return computed(model, row, ids)


def _load(base: Path, row: Row) -> Any:
    import torch
    import transformers

    made = getattr(transformers, row.kind + row.task)
    return made.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
