"""Gemma 3n: layers that share keys, an embedding with more rows than the layers have, and numbers that are built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quant.convert import keys
from quant.convert.config import ModelConfig
from quant.convert.families.gemma3n import GEMMA3N
from quant.convert.planning import plan_model
from quant.errors import QuantError
from quant.levels.recipes import assign
from runtime.machine import fit
from runtime.machine.inspection import ask_reserved
from runtime.messages import CacheConfig
from tests.quant.support import Folder
from tests.quant.zoo import ZOO
from tests.quant.zoo.row import VOCABULARY
from tests.quant.zoo.settings import SLIDING_AND_FULL


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_gemma_3n_shares_the_keys_of_its_first_twenty_layers(tmp_path: Path) -> None:
    from tests.quant.test_zoo import IDS, difference
    from tests.quant.zoo.making import make
    from tests.quant.zoo.reference import reference

    row = ZOO["gemma3n"]
    config = {
        **row.config,
        "num_hidden_layers": 22,
        "num_kv_shared_layers": 2,
        "layer_types": [*SLIDING_AND_FULL * 10, "full_attention", "sliding_attention"],
        "activation_sparsity_pattern": None,
        "vocab_size_per_layer_input": VOCABULARY - 64,
        "intermediate_size": 4096,
    }
    # Even so the deviations of 4096 activations are a little larger in llama.cpp, in ten layers.
    path = make(row._replace(config=config, spread=0.7), tmp_path / "model")
    plan = plan_model(Folder(path))
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    assert shapes["token_embd.weight"] == (VOCABULARY - 64, 128)
    assert shapes["blk.21.attn_k.weight"] == (64, 128)
    wanted = reference(path, row, IDS)[..., : VOCABULARY - 64]
    said = ask_reserved(plan.metadata, plan.at(assign(plan, "F16")), CacheConfig(1024, 2))
    assert said is not None
    formula = fit.memory(fit.ModelSize.of(plan.metadata), 0, said.cache_config)
    assert formula.cache == pytest.approx(said.cache, rel=0.05)
    assert difference(plan, Folder(path), wanted, tmp_path / "m.gguf") <= 1e-2


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"num_kv_shared_layers": 1}, "19 of its layers"),
        ({"num_hidden_layers": 21, "num_kv_shared_layers": 0}, "21 of its layers"),
        ({"altup_num_inputs": 3}, "altup_num_inputs"),
        ({"laurel_rank": 32}, "laurel_rank"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping"),
        ({"intermediate_size": [128] * 19 + [256]}, "several widths"),
        ({"activation_sparsity_pattern": [0.95] * 9 + [0.0] * 11}, "activation_sparsity_pattern"),
        ({"vocab_size_per_layer_input": VOCABULARY + 1}, "more tokens"),
        ({"num_hidden_layers": 22, "num_kv_shared_layers": 2, "layer_types": ["full_attention"] * 22}, "layer_types"),
    ],
)
def test_a_gemma_3n_that_llama_cpp_computes_otherwise_is_refused(config: dict[str, Any], reason: str) -> None:
    usual = {**ZOO["gemma3n"].settings(), "num_hidden_layers": 20, "layer_types": None}
    usual |= {"activation_sparsity_pattern": None, **config}
    given = ModelConfig("config.json", keys.filled(ModelConfig("config.json", usual), "Gemma3nForCausalLM").values)
    with pytest.raises(QuantError, match=reason):
        GEMMA3N.describe(given, GEMMA3N.read_sizes(given))
