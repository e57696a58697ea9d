"""Models that llama.cpp would not load are refused from their headers, by its own reason, before a weight moves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant.convert.planning import plan_model
from quant.errors import UnknownLevel
from quant.plan import TensorPlan
from runtime.machine.choosing import Chooser, this_machine
from runtime.machine.rule import Wish
from runtime.messages import CacheConfig
from tests import publishing
from tests.cli.support import Cli
from tests.daemon import Daemon
from tests.hub import Hub
from tests.quant.support import DEMO, Folder

BIAS = "blk.{}.attn_output.bias"
# Fewer than the smallest matrix of the demo's layers has, more than its tokenizer.
NO_WEIGHTS = 500_000


def changed(path: Path, **config: Any) -> Path:
    """The demo with another configuration."""
    path.mkdir(parents=True)
    for name, data in Folder(DEMO).change("config.json", **config).contents.items():
        (path / name).write_bytes(data)
    return path


def gguf(path: Path, **more: str) -> Path:
    """The demo as a GGUF file with other entries."""
    whole = publishing.make(path.parent / "whole" / "m.gguf", "Q4_K_M")
    publishing.rewrite(whole, path / "m.gguf", **more)
    return path


def biased(path: Path) -> Path:
    """The demo as a GGUF file with biases behind its attention, for which its architecture has no place."""
    plan = plan_model(Folder(DEMO).change("config.json", architectures=["SmolLM3ForCausalLM"]))
    biases = (TensorPlan(BIAS.format(layer), (256,), "F32", values=bytes(4 * 256)) for layer in range(6))
    publishing.make(path / "m.gguf", "Q4_K_M", replace(plan, tensors=(*biases, *plan.tensors)))
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    place = tmp_path_factory.mktemp("hub")
    repos = {
        "org/biased": biased(place / "biased"),
        "org/rotated": publishing.make(place / "rotated" / "m.gguf", "Q4_K_M", publishing.half_rotated()).parent,
        "org/cut": gguf(place / "cut", tokenizer__ggml__pre="nobody-knows"),
    }
    with Hub(repos) as hub:
        yield hub


REASONS = {
    "org/rotated": "GGML_ASSERT(n_embd_head == n_rot) failed",
    "org/biased": f"llama.cpp's `smollm3` has no place for `{BIAS.format(0)}` and 5 more",
    "org/cut": "unknown pre-tokenizer type: 'nobody-knows'",
}


@pytest.mark.parametrize("name", REASONS)
def test_what_llama_cpp_refuses_is_refused_before_a_weight_moves(daemon: Daemon, hub: Hub, name: str) -> None:
    sent = hub.bytes_sent
    for answer in (
        daemon.post("/api/pull", {"model": name, "stream": False}),
        daemon.post("/lm/advise", {"model": name}),
    ):
        assert (answer.status, answer.json["code"]) == (400, "unsupported_model"), answer.json
        assert REASONS[name] in answer.json["error"]
        assert "llama.cpp" in answer.json["hint"] and "again" not in answer.json["hint"]
    ended = Cli.at(daemon.home, daemon.url.removeprefix("http://"))("run", name, "Hello")
    assert ended.code != 0 and REASONS[name] in ended.err
    assert hub.bytes_sent - sent < 3 * NO_WEIGHTS


def test_a_header_that_cannot_be_asked_about_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = this_machine(tmp_path)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    advice = Chooser(plan_model(Folder(DEMO)), machine).advise(Wish(CacheConfig(2048, 1)))
    assert advice.choice.level == "Q8_0"
    assert advice.model_size.reserved is None
    assert "cannot say what the model takes: the process that was asked died" in caplog.text


@pytest.mark.parametrize("kv_type", ["Q8_0", "F16"])
def test_a_cache_that_does_not_fit_the_heads_is_no_fault_of_the_model(tmp_path: Path, kv_type: str) -> None:
    narrow = changed(tmp_path / "narrow", num_attention_heads=16, num_key_value_heads=8, head_dim=16)
    plan = plan_model(Folder(narrow))
    advice = Chooser(plan, this_machine(tmp_path)).advise(Wish(CacheConfig(512, 1, kv_type)))
    assert (advice.model_size.reserved is None) is (kv_type == "Q8_0")


def test_a_context_that_nobody_chose_is_judged_as_it_will_be_loaded(tmp_path: Path) -> None:
    factors = {"rope_type": "longrope", "long_factor": [8.0] * 32, "short_factor": [1.0] * 32}
    plan = plan_model(
        Folder(DEMO).change("config.json", rope_scaling={**factors, "original_max_position_embeddings": 1024})
    )
    for asked, context in ((None, 1024), (2048, 2048)):
        advice = Chooser(plan, this_machine(tmp_path)).advise(Wish(CacheConfig.wanted(asked, 1)))
        assert advice.choice.context == context
        assert advice.model_size.reserved is not None
        assert f"cache for {context:,} tokens" in advice.choice.reason


def test_a_level_of_experts_is_refused_where_there_are_none(tmp_path: Path) -> None:
    chooser = Chooser(plan_model(Folder(DEMO)), this_machine(tmp_path))
    for ask in (chooser.choose, chooser.advise):
        with pytest.raises(UnknownLevel, match="MXFP4_MOE is a level for models with experts") as caught:
            ask(Wish(CacheConfig(2048, 1), "MXFP4_MOE"))
        assert "Q8_0" in caught.value.hint
    assert "MXFP4_MOE" not in [option.level for option in chooser.advise(Wish(CacheConfig(2048, 1))).options]
