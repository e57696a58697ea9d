"""The type of the KV cache: by the settings, the model or the request; refused where llama.cpp makes none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.defaults import CACHE_TYPES
from server.errors import Unsupported
from server.loaded.cache_types import CacheChoice, Drafter, choose_cache_type
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model


def entries(heads: int, width: int, architecture: str = "llama", **more: int) -> dict[str, Any]:
    sizes = {"embedding_length": width, "attention.head_count": heads, **more}
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in sizes.items()}


def model(**params: Any) -> Any:
    return SimpleNamespace(name="tale", params=params)


def test_the_request_goes_before_the_model_and_the_model_before_the_settings() -> None:
    good = entries(4, 256)
    assert choose_cache_type(model(), good, None, "Q8_0") == CacheChoice("Q8_0")
    assert choose_cache_type(model(kv_type="q4_0"), good, None, "Q8_0") == CacheChoice("Q4_0")
    assert choose_cache_type(model(kv_type="q4_0"), good, "F32", "Q8_0") == CacheChoice("F32")
    assert choose_cache_type(model(kv_type="none of them"), good, None, "F16") == CacheChoice("F16")


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        (entries(4, 320), "whole blocks of 32 values, and its heads have 80"),
        (entries(4, 256, **{"attention.value_length": 72}), "its heads have 72"),
        (entries(4, 256, "grok"), "llama.cpp has none for this model"),
    ],
    ids=["heads", "values", "grok"],
)
def test_blocks_that_do_not_suit_are_refused_where_asked_for_and_else_left(metadata: dict[str, Any], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        choose_cache_type(model(), metadata, "Q8_0", "F16")
    with pytest.raises(Unsupported, match="cannot have a KV cache in Q4_0"):
        choose_cache_type(model(kv_type="Q4_0"), metadata, None, "F16")
    kv_type, reason = choose_cache_type(model(), metadata, None, "Q8_0")
    assert kv_type == "F16" and reason.startswith("the KV cache is in F16 and not in Q8_0: ") and why in reason
    for plain in ("F16", "BF16", "F32"):
        assert choose_cache_type(model(), metadata, plain, "Q8_0") == CacheChoice(plain)
    assert choose_cache_type(model(), entries(0, 320), None, "Q8_0") == CacheChoice("Q8_0")  # it has no heads at all


def test_a_draft_whose_heads_do_not_suit_the_type_is_named() -> None:
    good, odd = entries(4, 256), Drafter("small", entries(4, 320))
    with pytest.raises(Unsupported, match="its draft `small` cannot: flash attention reads whole blocks of 32 values"):
        choose_cache_type(model(), good, "Q8_0", "F16", odd)
    kv_type, reason = choose_cache_type(model(), good, None, "Q8_0", odd)
    assert kv_type == "F16" and "its draft `small` cannot" in reason
    assert choose_cache_type(model(), good, None, "BF16", odd) == CacheChoice("BF16")
    assert choose_cache_type(model(), good, "Q8_0", "F16", Drafter("small", good)) == CacheChoice("Q8_0")


def test_a_cache_type_from_the_settings_to_lm_ps(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script={}, env={"OLLAMA_KV_CACHE_TYPE": "q8_0"}) as daemon:
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")

        def loaded() -> tuple[str, int]:
            (row,) = daemon.get("/api/ps").json["models"]
            return row["kv_type"], row["pid"]

        def ask(**options: Any) -> Any:
            body = {"model": "tiny", "prompt": "hi", "stream": False, "options": options}
            return daemon.post("/api/generate", body)

        assert ask().status == 200
        kv_type, pid = loaded()
        assert kv_type == "Q8_0"
        assert ask(kv_type="q8_0").status == 200 and loaded() == ("Q8_0", pid)
        assert ask(kv_type="f16").status == 200
        kv_type, other = loaded()
        assert kv_type == "F16" and other != pid
        assert ask().status == 200 and loaded() == ("F16", other)  # whoever does not care takes what is there
        wrong = ask(kv_type="Q7_7")
        assert wrong.status == 400 and "Q7_7" in wrong.json["error"] and "Q5_1" in wrong.json["hint"]
        done = lm("load", "tiny", "--kv-type", "iq4_nl")
        assert done.code == 0 and "tokens of context in IQ4_NL" in done.err
        header, row = lm("ps").out.splitlines()
        assert "KV TYPE" in header and "IQ4_NL" in row
        assert daemon.advice("demo")["kv_type"] == "Q8_0" and daemon.advice("demo", kv_type="f32")["kv_type"] == "F32"


@pytest.mark.slow
def test_llama_cpp_answers_in_each_type(tmp_path: Path) -> None:
    """The sizes are llama.cpp's own; the text of a model this small, and where it ends, may change with the type."""
    sizes = {}
    with Daemon(tmp_path, runtime="llama") as daemon:
        daemon.pull("demo:Q8_0")
        for kv_type in CACHE_TYPES:
            body = {"model": "demo", "prompt": "Once upon a time", "raw": True, "stream": False}
            told = daemon.post("/api/generate", body | {"options": {"kv_type": kv_type, "num_predict": 8}})
            assert told.status == 200 and 1 <= told.json["eval_count"] <= 8, told.json
            (row,) = daemon.get("/api/ps").json["models"]
            assert row["kv_type"] == kv_type
            sizes[kv_type] = row["cache_bytes"]
    # Bytes of a block by its 32 values, against the two of F16; llama.cpp says them in MiB with two digits.
    shares = {
        "F32": 2.0,
        "BF16": 1.0,
        "Q8_0": 34 / 64,
        "Q5_1": 24 / 64,
        "Q5_0": 22 / 64,
        "Q4_1": 20 / 64,
        "Q4_0": 18 / 64,
    }
    for kv_type, share in shares.items():
        assert sizes[kv_type] == pytest.approx(share * sizes["F16"], rel=0.01), kv_type
