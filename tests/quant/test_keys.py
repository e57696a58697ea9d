"""Keys that `config.json` leaves out: the defaults of the model's class in transformers, by a table of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quant.convert import keys
from quant.convert.config import ModelConfig
from quant.convert.planning import plan_model
from tests.converting import write
from tests.quant.support import Folder
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make

LEFT_OUT = {
    "deepseek2, v3": ("norm_topk_prob", "routed_scaling_factor", "rms_norm_eps", "rope_parameters"),
    "smollm3": ("rms_norm_eps", "rope_parameters"),
    "gptneox": ("layer_norm_eps", "rope_parameters", "use_parallel_residual"),
    "command-r": ("layer_norm_eps", "logit_scale", "rope_parameters"),
}


def test_a_key_that_is_given_stays() -> None:
    given = ModelConfig("config.json", {"norm_topk_prob": False, "rope_theta": 5.0, "sliding_window": None})
    filled = keys.filled(given, "DeepseekV3ForCausalLM")
    assert (filled.get("norm_topk_prob"), filled.get("rope_theta")) == (False, 5.0)
    assert filled.get("routed_scaling_factor") == 2.5
    assert keys.filled(given, "MistralForCausalLM").get("sliding_window") is None
    assert keys.filled(given, "UnknownForCausalLM") is given


def test_other_names_of_rotary_settings_count() -> None:
    given = ModelConfig("config.json", {"rotary_pct": 1.0, "rotary_emb_base": 500.0, "rope_theta": 7.0})
    filled = keys.filled(given, "GPTNeoXForCausalLM")
    assert (filled.get("partial_rotary_factor"), filled.get("rope_theta")) == (1.0, 500.0)


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("row", LEFT_OUT)
def test_keys_that_are_left_out_are_what_transformers_takes(row: str, tmp_path: Path) -> None:
    from tests.quant.test_zoo import IDS, TOLERANCE, compared
    from tests.quant.zoo.reference import reference

    path = make(ZOO[row], tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    for key in LEFT_OUT[row]:
        del config[key]
    (path / "config.json").write_text(json.dumps(config))
    folder = Folder(path)
    plan = plan_model(folder)
    write(plan, "F32", folder.stream, tmp_path / "m.gguf")
    assert compared(tmp_path / "m.gguf", plan, reference(path, ZOO[row], IDS))[0] <= TOLERANCE


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_table_is_what_the_source_of_transformers_says() -> None:
    import transformers

    from tests.quant import make_keys

    text = Path(keys.__file__).with_name("keys.json").read_text()
    if json.loads(text)["transformers"] != transformers.__version__:
        pytest.skip("another version of transformers: `python -m tests.quant.make_keys` writes the table of this one")
    assert make_keys.written(make_keys.table()) == text
