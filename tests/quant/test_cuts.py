"""Cuts of models: the same tokens and values as before, by llama.cpp and by transformers; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.gguf.source import plan_gguf
from quant.cuts.cut import cut
from quant.cuts.layers import without_layers
from quant.cuts.scripts import Scripts, script_of
from quant.cuts.vocabulary import WholeVocabulary
from quant.cuts.wish import Cut
from quant.errors import UnsupportedModel
from quant.gguf.header import read_file
from quant.notes import CUT
from quant.plan import ModelPlan
from quant.stream.copying import FileCopy
from tests.converting import Out, Pieces
from tests.publishing import make
from tests.quant.engine import Engine
from tests.quant.support import DEMO, ROOT, Folder
from tests.quant.vocabularies import NASTY, PLAIN

PROSE = (ROOT / "tests" / "prose.txt").read_text()
BEGIN = PROSE[:600].rpartition(" ")[0]
LATIN = f"{PLAIN} naïve façade Ünïcödé Straße Łódź đặc biệt “x” — … ² → 🏳️‍🌈 👩‍👩‍👧 e\u0301\n\n\t\tx  y"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("whole") / "demo.gguf", "Q8_0")


def planned(path: Path) -> ModelPlan:
    plan = plan_gguf(Folder(path.parent), finished=True)
    return plan if plan.level else replace(plan, level="F32")


def written(path: Path, wish: Cut, target: Path) -> Path:
    made, source = cut(planned(path), wish), Folder(path.parent)
    with target.open("wb") as file:
        FileCopy(made.plan, 0).write(
            lambda shard, offset, state: Pieces(shard, source.stream(shard), offset), Out(file)
        )
    return target


def test_a_text_keeps_its_tokens_and_every_logit_of_them(whole: Path, tmp_path: Path) -> None:
    with Engine(whole) as before:
        ids = before.tokenize(BEGIN)
        wish = Cut(tokens=sorted(set(before.tokenize(PROSE))), words="prose")
        with Engine(written(whole, wish, tmp_path / "cut.gguf")) as after:
            old, new = (read_file(path).metadata["tokenizer.ggml.tokens"] for path in (whole, tmp_path / "cut.gguf"))
            assert len(new) < len(old) / 1.5
            assert [new[id] for id in after.tokenize(PROSE)] == [old[id] for id in before.tokenize(PROSE)]
            assert after.tokenize(NASTY), "a text of other letters still has tokens"
            kept = [old.index(token) for token in new]
            found = after.logits(after.tokenize(BEGIN))
            np.testing.assert_array_equal(found, before.logits(ids)[:, kept])


def test_what_is_cut_is_noted_and_ids_are_counted_anew(whole: Path, tmp_path: Path) -> None:
    path = written(whole, Cut(tokens=[300, 301], words="two tokens"), tmp_path / "cut.gguf")
    before, after = read_file(whole).metadata, read_file(path).metadata
    tokens = after["tokenizer.ggml.tokens"]
    for key in ("eos", "padding"):
        name = f"tokenizer.ggml.{key}_token_id"
        assert tokens[after[name]] == before["tokenizer.ggml.tokens"][before[name]]
    assert [tokens[id] for id in after["lm.stop_token_ids"]] == [
        before["tokenizer.ggml.tokens"][id] for id in before["lm.stop_token_ids"]
    ]
    assert json.loads(after[CUT])["vocabulary"] == {"kept": len(tokens), "of": 4096, "by": "two tokens"}
    assert path.stat().st_size < whole.stat().st_size


@pytest.mark.slow
def test_scripts_know_their_letters_in_text_and_in_bytes() -> None:
    latin, cyrillic = Scripts(["latin"]), Scripts(["cyrillic"])
    assert latin.has(LATIN) and not latin.has("Привет") and not latin.has("日本") and not latin.has("हिन्दी")
    assert cyrillic.has("Привет, world 1!") and not cyrillic.has("façade")
    assert script_of("DE") == "latin" and script_of("ja") == "japanese" and script_of("klingon") is None
    for text, scripts in ((LATIN, latin), ("Привет 🚀", cyrillic)):
        data = text.encode()
        pieces = [data[start:end] for start in range(len(data)) for end in range(start + 1, min(start + 9, len(data)))]
        assert all(map(scripts.has_bytes, pieces))
    foreign = "日".encode()
    assert not any(map(latin.has_bytes, (foreign, foreign[:2], b"a" + foreign[:2], b"\xff")))


def test_layers_are_numbered_anew_and_lists_follow(whole: Path) -> None:
    plan = planned(whole)
    lists = {"llama.attention.head_count_kv": [1, 2, 3, 4, 5, 6], "llama.rope.dimension_sections": [1, 2, 3, 4]}
    found = without_layers(replace(plan, metadata={**plan.metadata, **lists}), [1, 4])
    assert found.metadata["llama.block_count"] == 4
    assert found.metadata["llama.attention.head_count_kv"] == [1, 3, 4, 6]
    assert found.metadata["llama.rope.dimension_sections"] == [1, 2, 3, 4]
    sources = {tensor.name: tensor.source for tensor in found.tensors}
    assert sources["blk.1.attn_q.weight"] == "blk.2.attn_q.weight" and "blk.4.attn_q.weight" not in sources


@pytest.mark.parametrize(
    ("wish", "change", "said"),
    [
        (Cut(layers=(6,)), {}, "there is no layer 6"),
        (Cut(layers=(-1,)), {}, "there is no layer -1"),
        (Cut(layers=tuple(range(6))), {}, "no layer would stay"),
        (Cut(layers=(2,)), {"general.architecture": "gemma3"}, "depends on its number"),
        (Cut(layers=(2,)), {"llama.leading_dense_block_count": 3}, "counts layers"),
        (Cut(tokens=[9999]), {}, "token 9999 is none"),
        (Cut(tokens=list(range(4096))), {}, "every token"),
        (Cut(tokens=[5]), {"tokenizer.ggml.model": "bert"}, "`bert` tokenizer cannot be cut"),
        (Cut(tokens=[5]), {"tokenizer.ggml.odd": [1, 2]}, "`tokenizer.ggml.odd` is not known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_cut_is_refused(whole: Path, wish: Cut, change: dict[str, Any], said: str) -> None:
    plan = planned(whole)
    architecture = change.get("general.architecture", plan.architecture)
    plan = replace(plan, architecture=architecture, metadata={**plan.metadata, **change})
    if architecture != "llama":
        plan = replace(plan, metadata={**plan.metadata, f"{architecture}.block_count": 6})
    with pytest.raises(UnsupportedModel, match=said):
        cut(plan, wish)


def test_weights_that_would_be_quantized_are_not_cut(whole: Path) -> None:
    with pytest.raises(UnsupportedModel, match="only a model that is here"):
        cut(replace(planned(whole), level=""), Cut(layers=(1,)))


def test_a_tensor_with_a_row_for_each_token_that_nobody_knows_is_refused(whole: Path) -> None:
    plan = planned(whole)
    odd = replace(plan.tensors[0], name="odd.weight", shape=(4096, 8))
    with pytest.raises(UnsupportedModel, match=r"`odd\.weight` may have a row for each token"):
        WholeVocabulary(plan).cut(replace(plan, tensors=(*plan.tensors, odd)), [1, 2])


@pytest.mark.oracle
@pytest.mark.parametrize("dropped", [(2,), (1, 4)], ids=["one", "two"])
def test_a_model_without_layers_computes_what_transformers_does(dropped: tuple[int, ...], tmp_path: Path) -> None:
    logits = _logits_of_transformers(partial(_drop, dropped=dropped))
    _compare(logits, Cut(layers=dropped), tmp_path)


@pytest.mark.oracle
def test_a_model_with_fewer_tokens_computes_what_transformers_does(tmp_path: Path) -> None:
    kept = WholeVocabulary(planned(make(tmp_path / "f32" / "demo.gguf", "F32"))).wanted(range(0, 4096, 3))
    logits = _logits_of_transformers(partial(_select, kept=kept))
    _compare(logits, Cut(tokens=list(range(0, 4096, 3)), words="thirds"), tmp_path)


IDS = list(range(40, 120))


def _logits_of_transformers(surgery: Callable[[Any], None]) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager")
    surgery(model)
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([IDS]), use_cache=False).logits[0].double().numpy()
    return found


def _drop(model: Any, dropped: tuple[int, ...]) -> None:
    layers = model.model.layers
    model.model.layers = type(layers)(layer for number, layer in enumerate(layers) if number not in dropped)


def _select(model: Any, kept: list[int]) -> None:
    import torch

    for matrix in (model.model.embed_tokens, model.lm_head):
        matrix.weight = torch.nn.Parameter(matrix.weight.detach()[kept])


def _compare(theirs: np.ndarray, wish: Cut, folder: Path) -> None:
    """The mean KL divergence of llama.cpp's probabilities from theirs is at most 1e-6."""
    path = written(make(folder / "whole" / "demo.gguf", "F32"), wish, folder / "cut.gguf")
    with Engine(path) as engine:
        ours = engine.logits(IDS).astype(float)
    assert ours.shape == theirs.shape
    p, q = (values - np.logaddexp.reduce(values, axis=1, keepdims=True) for values in (theirs, ours))
    assert (np.exp(p) * (p - q)).sum(axis=1).mean() <= 1e-6
