"""Gram matrices of inputs, collected inside llama.cpp: those of transformers; a file that is made with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.feedback.matrix import Feedback
from quant.gguf.header import read_file
from runtime.meter import passages
from runtime.meter.inputs import InputGrams
from tests.converting import write
from tests.quant.support import DEMO, Folder

WINDOW, COUNT = 64, 3


def grams(file: Path, budget: int) -> InputGrams:
    names = [tensor.name for tensor in read_file(file).tensors]
    return InputGrams(file, passages.own("calibration"), names, WINDOW, COUNT, 1, budget)


@pytest.mark.oracle
def test_gram_matrices_are_those_of_transformers_whatever_the_budget(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from runtime.meter.windows import WindowReader
    from tests.quant.zoo import ZOO
    from tests.quant.zoo.making import make

    path = make(ZOO["llama"], tmp_path / "model")
    folder, file = Folder(path), tmp_path / "model.gguf"
    write(plan_model(folder), "F32", folder.stream, file)
    whole, small = grams(file, 1 << 30), grams(file, 1)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    seen: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(
                lambda _, given, name=name: seen.setdefault(name, []).append(given[0].reshape(-1, given[0].shape[-1]))
            )
    with torch.no_grad():
        for tokens in WindowReader(file, WINDOW, 1).windows(passages.own("calibration"), COUNT).values():
            model(torch.tensor(tokens[None].astype(np.int64)))
    ends = {
        "attn_q": "q_proj",
        "attn_v": "v_proj",
        "attn_output": "o_proj",
        "ffn_up": "up_proj",
        "ffn_down": "down_proj",
    }
    asked = [tensor.name.split(".") for tensor in read_file(file).tensors if tensor.role in ends]  # as the pass asks
    for _, layer, ours, _ in asked:
        (x,) = (torch.cat(each) for name, each in seen.items() if f".{layer}." in name and name.endswith(ends[ours]))
        wanted = (x.T @ x).numpy()
        for each in (whole, small):
            found = each.gram(f"blk.{layer}.{ours}.weight")
            # llama.cpp keeps keys and values in half precision.
            assert found is not None and abs(found - wanted).max() < 5e-3 * wanted.diagonal().max()
    assert whole.gram("output_norm.weight") is None and whole.factor("token_embd.weight") is None
    assert whole.passes == 1 < small.passes


@pytest.mark.slow
def test_a_file_made_with_feedback_is_of_the_level_and_says_so(tmp_path: Path) -> None:
    folder, whole = Folder(DEMO), tmp_path / "whole.gguf"
    plan = plan_model(folder)
    write(plan, "F32", folder.stream, whole)
    feedback: Feedback = grams(whole, 1 << 30)
    plain, fed = tmp_path / "plain.gguf", tmp_path / "fed.gguf"
    write(plan, "Q4_K_M", folder.stream, plain)
    first = write(plan, "Q4_K_M", folder.stream, fed, feedback=feedback, threads=2)
    assert write(plan, "Q4_K_M", folder.stream, fed, feedback=feedback, threads=1) == first
    before, after = read_file(plain), read_file(fed)
    assert [(each.name, each.type) for each in before.tensors] == [(each.name, each.type) for each in after.tensors]
    assert after.metadata["lm.feedback"] and "lm.feedback" not in before.metadata
