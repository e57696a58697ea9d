"""Squares of inputs that are collected inside llama.cpp, against those of transformers: dense matrices and experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.gguf.header import read_file
from runtime.meter import passages
from tests.converting import write
from tests.quant.support import Folder

pytestmark = pytest.mark.oracle
USED = 2  # experts for each token


def test_squares_of_inputs_are_those_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from runtime.meter.collecting import SquareCollector
    from runtime.meter.windows import WindowReader
    from tests.quant.zoo import ZOO
    from tests.quant.zoo.making import make

    path = make(ZOO["llama, mixtral"], tmp_path / "model")
    folder, file = Folder(path), tmp_path / "model.gguf"
    write(plan_model(folder), "F32", folder.stream, file)
    collector = SquareCollector(read_file(file).tensors)
    reader = WindowReader(file, 64, 1, collector)
    windows = reader.windows(passages.own("calibration"), 3)
    for tokens in windows.values():
        reader.collect(tokens)
        collector.settle()
    found = collector.importance("a text", len(windows), 64)

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    inputs: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "o_proj", ".gate")):
            module.register_forward_pre_hook(
                lambda _, given, name=name: inputs.setdefault(name, []).append(given[0].reshape(-1, given[0].shape[-1]))
            )
    with torch.no_grad():
        for tokens in windows.values():
            model(torch.tensor(tokens[None].astype(np.int64)))
        layers = len(model.model.layers)
        for layer in range(layers):
            # Rounding sends a token in some hundreds to another expert, and what comes behind that differs for it.
            off = 1e-3 if layer == 0 else 0.05
            for ours, end in (("attn_q", "q_proj"), ("attn_v", "q_proj"), ("attn_output", "o_proj")):
                (x,) = (torch.cat(each) for name, each in inputs.items() if f".{layer}." in name and name.endswith(end))
                check(found.squares[f"blk.{layer}.{ours}.weight"], (x**2).sum(0)[None].numpy(), [len(x)], off)
            ((name, parts),) = [
                pair for pair in inputs.items() if f".{layer}." in pair[0] and pair[0].endswith(".gate")
            ]
            x = torch.cat(parts)
            chosen = (x @ model.get_submodule(name).weight.T).topk(USED).indices
            experts = len(model.get_submodule(name).weight)
            sums = torch.stack([(x[(chosen == each).any(1)] ** 2).sum(0) for each in range(experts)]).numpy()
            counts = [int((chosen == each).sum()) for each in range(experts)]
            for ours in ("ffn_gate_exps", "ffn_up_exps"):
                stack = found.squares[f"blk.{layer}.{ours}.weight"]
                assert (
                    np.abs(stack.counts - counts).sum()
                    <= (0.02 + off) * stack.counts.sum()
                    == (0.02 + off) * USED * len(x)
                )
                assert np.abs(stack.sums - sums).sum() <= (0.02 + off) * sums.sum()
                assert np.abs(stack.sums.sum(0) - sums.sum(0)).sum() <= off * sums.sum()
            down = found.squares[f"blk.{layer}.ffn_down_exps.weight"]
            assert (
                down.counts.tolist() == stack.counts.tolist() and down.sums.all(axis=1).sum() == (down.counts > 0).sum()
            )
    assert found.unrouted().keys() <= set(found.squares)


def check(found: Any, sums: np.ndarray, counts: list[int], off: float) -> None:
    """The same sums but for this share of them, and the same counts."""
    assert found.counts.tolist() == counts
    assert np.abs(found.sums - sums).sum() <= off * sums.sum()
