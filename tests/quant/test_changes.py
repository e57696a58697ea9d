"""Changed configs against transformers: a sample with each row and each key of `config.json` once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quant.changes import report
from tests.quant.changes.trial import Result, Trial
from tests.quant.changes.values import ABSENT, Change, sampled, values
from tests.quant.support import ROOT

pytestmark = pytest.mark.oracle


def test_a_sample_has_each_key_once() -> None:
    changes = [Change("nothing", (), {}), *(Change(f"a = {n}", ("a",), {"a": n}) for n in range(3))]
    assert [each.keys for each in sampled(changes, frozenset())] == [(), ("a",)]
    assert [each.keys for each in sampled(changes, frozenset({"a"}))] == [()]
    assert values("tie_word_embeddings", True, False) == [ABSENT, False]


def test_the_page_names_scalings_and_refused_keys() -> None:
    found = [
        Result("llama", "rope_parameters: linear", ("rope_parameters", "scaling: linear"), "right", ""),
        Result("llama", "is_causal = false", ("is_causal",), "refused", ""),
        Result("llama", "attention_bias = true", ("attention_bias",), "right", ""),
    ]
    assert report.table(found).endswith("| llama | linear | - | 3 | is_causal |\n")


FOUND = {
    "gemma2": {"attn_logit_softcapping": None},
    "starcoder2": {"partial_rotary_factor": 0.5},
    "chatglm": {"num_key_value_heads": ABSENT},
    "gpt2": {"num_attention_heads": 2},
    "gemma4": {"rope_theta": 1000.0, "rope_parameters": ABSENT},
    "gemma3": {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": ABSENT},
    "qwen2": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "gemma3, sees": {"final_logit_softcapping": 15.0},
    "llama, 3.1": {"sliding_window": 48},
    "qwen2, vl": {"rms_norm_eps": ABSENT},
    "deepseek2, v3": {"topk_group": 4},
    "minimax-m2": {"rotary_dim": 32, "partial_rotary_factor": 0.5, "rope_theta": 1000.0, "rope_parameters": ABSENT},
}
REFUSED = {
    "granite": ({"residual_multiplier": 0.0}, "residual_multiplier"),
    "deepseek2": ({"routed_scaling_factor": 0.0}, "routed_scaling_factor"),
    "deepseek2, yarn": ({"rms_norm_eps": 1.0}, "rms_norm_eps"),
    "nemotron_h": ({"time_step_min": 0.01}, "time_step_min"),
    "nemotron_h_moe": ({"layers_block_type": ["full_attention"] * 5}, "layers_block_type"),
    "modern-bert": ({"local_attention": 0}, "local_attention"),
    "cohere2": ({"attention_bias": True}, "attention_bias"),
    "command-r": ({"use_qk_norm": True}, "use_qk_norm"),
    "gemma": ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    "nemotron": ({"head_dim": 64}, "head_dim"),
    "smollm3": ({"is_causal": False}, "is_causal"),
    "llama, tied": ({"is_causal": None}, "is_causal"),
    "gemma2": ({"layer_types": ["full_attention"] * 2}, "layer_types"),
    "gemma-embedding": ({"sliding_window": 0}, "sliding_window"),
    "modern-bert, ranking": ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    "gpt-oss": ({"attention_bias": False}, "attention_bias"),
    "olmoe": ({"num_key_value_heads": 2}, "num_key_value_heads"),
    "lfm2moe": ({"conv_L_cache": 1}, "conv_L_cache"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("row", FOUND)
def test_a_config_that_was_once_converted_wrong_is_right(row: str, tmp_path: Path) -> None:
    result = Trial(row, tmp_path).run(Change("found", ("found",), FOUND[row]))
    assert result.kind == "right", result


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("row", REFUSED)
def test_a_config_that_llama_cpp_cannot_follow_is_refused_with_the_key(row: str, tmp_path: Path) -> None:
    change, key = REFUSED[row]
    result = Trial(row, tmp_path).run(Change("found", ("found",), change))
    assert result.kind == "refused", result
    assert f"`{key}`" in result.detail


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_changed_config_is_silently_wrong_or_cannot_be_loaded() -> None:
    command = [sys.executable, "-m", "tests.quant.changes", "--sample"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    assert "right" in found.stdout
