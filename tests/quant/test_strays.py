"""Tokens and ids of tokens that a model does not have are left out, and that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quant.convert.planning import plan_model, sketch_model
from quant.errors import MalformedFile
from runtime.machine.choosing import Chooser, this_machine
from runtime.machine.rule import Wish
from tests.converting import write
from tests.quant.engine import Engine
from tests.quant.support import DEMO, Folder

demo = Folder(DEMO)
SIZE = len(plan_model(demo).metadata["tokenizer.ggml.tokens"])


def with_added(*tokens: tuple[int, str], also_in_vocab: bool = False) -> Folder:
    tokenizer: dict[str, Any] = demo.json("tokenizer.json")
    tokenizer["added_tokens"] += [{"id": id, "content": text, "special": True} for id, text in tokens]
    if also_in_vocab:
        tokenizer["model"]["vocab"] |= {text: id for id, text in tokens}
    return demo.with_file("tokenizer.json", json.dumps(tokenizer).encode())


@pytest.mark.parametrize("also_in_vocab", [False, True])
def test_an_added_token_without_an_embedding_is_left_out(tmp_path: Path, also_in_vocab: bool) -> None:
    folder = with_added((SIZE, "<image>"), also_in_vocab=also_in_vocab)
    plan, usual = plan_model(folder), plan_model(demo)
    assert plan.remarks == ("no embedding for the added token `<image>`, left out",)
    assert (plan.metadata, usual.remarks) == (usual.metadata, ())
    write(plan, "Q8_0", folder.stream, tmp_path / "m.gguf")
    with Engine(tmp_path / "m.gguf", vocabulary_only=True) as engine:
        assert len(engine.tokenize("<image>", special=True)) > 1
    several = plan_model(with_added(*((SIZE + number, f"<{number}>") for number in range(5))))
    assert several.remarks == ("no embedding for the added tokens `<0>`, `<1>`, `<2>` and 2 more, left out",)


def test_an_ordinary_token_without_an_embedding_is_another_models() -> None:
    tokenizer = demo.json("tokenizer.json")
    tokenizer["model"]["vocab"]["zzzz"] = SIZE
    with pytest.raises(MalformedFile, match="embeddings") as caught:
        plan_model(demo.with_file("tokenizer.json", json.dumps(tokenizer).encode()))
    assert "another model" in caught.value.hint and "damaged" not in caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("stray", [-1, SIZE, 1 << 40, [2, SIZE], [-1]])
def test_ids_that_no_token_has_do_not_count(name: str, stray: Any) -> None:
    usual = plan_model(demo)
    for key in ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id"):
        plan = plan_model(demo.change(name, **{key: stray}))
        assert plan.metadata["tokenizer.ggml.eos_token_id"] == usual.metadata["tokenizer.ggml.eos_token_id"]
        said = key in ("eos_token_id", "bos_token_id")
        ids = [id for id in (stray if isinstance(stray, list) else [stray]) if not 0 <= id < SIZE]
        assert plan.remarks == tuple(
            f"`{key}` {id} in `{name}` is none of the {SIZE} tokens, left out" for id in ids if said
        )


def test_the_reason_for_a_level_says_so(tmp_path: Path) -> None:
    folder = demo.change("config.json", eos_token_id=[-1, 2])
    assert sketch_model(folder).remarks == ()
    choice = Chooser(plan_model(folder), this_machine(tmp_path)).choose(Wish())
    assert choice.reason.endswith(f"; `eos_token_id` -1 in `config.json` is none of the {SIZE} tokens, left out")
