"""A model wholly on a graphics card writes what it writes on the processors; skipped where there is no card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime import messages as m
from runtime.llama.library import library
from tests.runtime.test_engine import PROMPTS, load, one_by_one, submit


@pytest.fixture(scope="module")
def card() -> None:
    if not library().llama_supports_gpu_offload():
        pytest.skip("llama-cpp-python was built for processors alone")
    from runtime.machine.inspection import Examine, Examined, ask

    examined = ask(Examine(), 30)
    if not isinstance(examined, Examined) or not any(each.kind in ("gpu", "igpu") for each in examined.devices):
        pytest.skip("this machine has no graphics card that llama.cpp can use")


@pytest.mark.usefixtures("card")
def test_all_layers_on_the_card_write_the_same_text(exact: Path) -> None:
    def texts(layers: int) -> list[str]:
        request: Any = load(exact, kv_type="F32", gpu_layers=layers)
        return [answer.text for answer in one_by_one(request, *(submit(prompt, 24) for prompt in PROMPTS))]

    processors, everything = texts(0), texts(-1)
    # Sums are rounded otherwise there; a text may turn where two tokens are all but equally likely.
    same = sum(a == b for a, b in zip(processors, everything, strict=True))
    assert same >= len(PROMPTS) - 1, list(zip(processors, everything, strict=True))


@pytest.mark.usefixtures("card")
def test_embeddings_on_the_card_are_the_same(exact: Path) -> None:
    import numpy as np

    found = []
    for layers in (0, -1):
        (answer,) = one_by_one(load(exact, kv_type="F32", gpu_layers=layers), m.Embed(0, inputs=[PROMPTS[0]]))
        found.append(np.frombuffer(answer.end.vectors[0], "<f4"))
    assert float(found[0] @ found[1]) > 0.999
