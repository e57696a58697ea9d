"""One model in several spellings: whatever transformers takes for the same model, we convert to the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.errors import UnsupportedModel
from tests.converting import write
from tests.quant.engine import Engine
from tests.quant.support import DEMO, Folder
from tests.quant.zoo.decoders import GEMMA_4
from tests.quant.zoo.making import make
from tests.quant.zoo.reference import reference
from tests.quant.zoo.row import Row

IDS = np.random.default_rng(2).integers(3, 4096, 60).tolist()
# A full layer behind every sixth, as in the published ones.
MANY_LAYERS = {
    **GEMMA_4,
    "num_hidden_layers": 12,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 2,
}


def distance(folder: Folder, row: Row, path: Path) -> float:
    """The largest difference between our logits and those of transformers, in their standard deviations."""
    (path / "source").mkdir()
    for name, data in folder.contents.items():
        (path / "source" / name).write_bytes(data)
    wanted = reference(path / "source", row, IDS)
    plan = plan_model(folder)
    write(plan, "F32", folder.stream, path / "m.gguf")
    with Engine(path / "m.gguf", exact=True) as engine:
        return float(np.abs(engine.logits(IDS) - wanted).max() / wanted.std())


@pytest.mark.oracle
def test_gemma_4_may_have_the_numbers_of_its_layers_padded(tmp_path: Path) -> None:
    row = Row("Gemma4", MANY_LAYERS, spread=1.05, heads=0.2)
    folder = Folder(make(row, tmp_path / "made"))
    assert folder.json("config.json")["per_layer_config"].keys() == {"05", "11"}
    assert distance(folder, row, tmp_path) < 1e-3


def test_a_layer_of_gemma_4_that_differs_by_more_is_refused(tmp_path: Path) -> None:
    config = {**MANY_LAYERS, "architectures": ["Gemma4ForCausalLM"], "hidden_size": 64, "intermediate_size": 96}
    config |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4096,
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    for layers in ({"05": {"head_dim": 64}, "11": {"head_dim": 32}}, {"04": {"head_dim": 64}}, {"x": {"head_dim": 1}}):
        with pytest.raises(UnsupportedModel, match="layers differ"):
            plan_model(Folder(DEMO).change("config.json", **config, per_layer_config=layers))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kind", "key", "names"),
    [
        ("Llama", "hidden_act", ["swish"]),
        ("Starcoder2", "hidden_act", ["gelu_new", "gelu_fast", "gelu_python_tanh", "gelu_accurate"]),
        ("Phi", "hidden_act", ["gelu_pytorch_tanh", "gelu_fast"]),
        ("Gemma2", "hidden_activation", ["gelu_new"]),
    ],
)
def test_an_activation_may_have_any_of_its_names(kind: str, key: str, names: list[str], tmp_path: Path) -> None:
    extra: dict[str, Any] = {
        "Phi": {"num_key_value_heads": 4},
        "Gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    }.get(kind, {})
    row = Row(kind, {"num_hidden_layers": 1, **extra}, spread=1.2)
    folder = Folder(make(row, tmp_path / "made"))
    for name in names:
        (tmp_path / name).mkdir()
        assert distance(folder.change("config.json", **{key: name}), row, tmp_path / name) < 1e-3, name


@pytest.mark.oracle
def test_names_of_one_activation_are_those_of_transformers() -> None:
    """All names that compute the same, and none that does not."""
    import torch
    from transformers.activations import ACT2FN

    from quant.convert.planning import SAME_ACTIVATIONS

    x = torch.linspace(-20, 20, 8001)
    values = {name: ACT2FN[name](x) for name in ACT2FN if name not in ("prelu", "xielu")}
    mains = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")
    same = {
        name: main
        for main in mains
        for name, found in values.items()
        if name != main and torch.allclose(found, values[main], atol=1e-5)
    }
    assert same == SAME_ACTIVATIONS


@pytest.mark.parametrize("name", ["quick_gelu", "relu", "gelu", 3, ["silu"]])
def test_another_activation_is_refused(name: Any) -> None:
    with pytest.raises(UnsupportedModel, match="the activation"):
        plan_model(Folder(DEMO).change("config.json", hidden_act=name))
