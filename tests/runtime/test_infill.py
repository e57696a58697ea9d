"""Filling in, by tokens: llama-server's order of them, its bounds, and vocabularies with few of the tokens or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import messages as m
from runtime.engine.prompt import Prompter
from runtime.errors import BadRequest, PromptTooLong
from runtime.infilling import File, Infill
from runtime.llama.model import LlamaModel
from tests.runtime.test_tokenizer import phi_3, qwen
from tests.runtime.tiny import PLAIN, load, with_added

TEXTS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
MORE = ("<|repo_name|>", "<|file_sep|>")


def made(path: Path, tokenizer: dict[str, Any], texts: tuple[str, ...], **files: Any) -> LlamaModel:
    added = [{**PLAIN, "content": text, "special": True} for text in texts]
    return load(with_added(tokenizer, *added), path / "m.gguf", **files)


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    return made(tmp_path_factory.mktemp("able"), qwen(), TEXTS + MORE)


def spelled(model: LlamaModel, text: str) -> list[int]:
    return model.vocabulary.tokenize(text, special=False, add=False).tolist()


def marks(model: LlamaModel, names: str) -> list[int]:
    found = [model.vocabulary.infill(name) for name in names.split()]
    assert None not in found
    return [token for token in found if token is not None]


def asked(prefix: str, infill: Infill, **more: Any) -> m.Submit:
    return m.Submit(0, prompt=prefix, infill=infill, **more)


def test_the_middle_is_asked_for_after_both_sides(able: LlamaModel) -> None:
    pre, suf, mid = marks(able, "pre suf mid")
    ids = Prompter(able, 512).prompt(asked("def f(", Infill("):\n  pass"))).ids.tolist()
    assert ids == [pre, *spelled(able, "def f("), suf, *spelled(able, "):\n  pass"), mid]


def test_other_files_stand_before_it_as_in_llama_server(able: LlamaModel) -> None:
    files = [File("a.py", "A = 1"), File("b.py", "B = 2")]
    ids = Prompter(able, 4096).prompt(asked("x", Infill("y", "begun", files))).ids.tolist()
    pre, suf, mid, rep, sep = marks(able, "pre suf mid rep sep")

    def say(text: str) -> list[int]:
        return spelled(able, text)

    head = [rep, *say("myproject\n"), sep, *say("a.py\n"), *say("A = 1"), sep, *say("b.py\n"), *say("B = 2")]
    assert ids == [*head, sep, *say("filename\n"), pre, *say("x"), *say("begun"), suf, *say("y"), mid]


def test_what_is_too_long_loses_what_llama_server_leaves_out(able: LlamaModel) -> None:
    """Three quarters of 2,048 for the end of the text before, a quarter for the beginning of the one after."""
    before, after = (" ".join(f"{side}{n}" for n in range(3000)) for side in "pq")
    begun = spelled(able, "so")
    prompt = Prompter(able, 4000).prompt(asked(before, Infill(after, "so", [File("f", "old " * 4000)])))
    pre, suf, mid = marks(able, "pre suf mid")
    hole = [*spelled(able, before)[-1536:], *begun, suf, *spelled(able, after)[: 512 - 2 - len(begun)], mid]
    ids = prompt.ids.tolist()
    assert ids[ids.index(pre) + 1 :] == hole
    assert ids.index(pre) == 4000 - 2048 - 3
    assert prompt.dropped > 4000


def test_a_suffix_alone_is_kept_whole_or_cut_only_where_the_request_lets_it(able: LlamaModel) -> None:
    long = " ".join(f"p{n}" for n in range(400))
    prompter = Prompter(able, 256)
    with pytest.raises(PromptTooLong):
        prompter.prompt(asked(long, Infill("end")))
    cut = prompter.prompt(asked(long, Infill("end"), truncate=True))
    assert len(cut.ids) < 256
    assert cut.dropped
    suf, mid = marks(able, "suf mid")
    assert cut.ids.tolist()[-2 - len(spelled(able, "end")) :] == [suf, *spelled(able, "end"), mid]


def test_a_vocabulary_without_tokens_for_files_and_one_with_a_bos_token(tmp_path: Path) -> None:
    texts = ("<PRE>", "<SUF>", "<MID>")
    config = {"add_bos_token": True, "bos_token": "<s>"}
    model = made(tmp_path, phi_3(), texts, tokenizer_config=config)
    ids = Prompter(model, 4096).prompt(asked("x", Infill("y", "", [File("a", "A")]))).ids.tolist()
    pre, suf, mid = marks(model, "pre suf mid")
    snip = spelled(model, "\n\n--- snip ---\n\n")
    bos = model.vocabulary.added("bos").tolist()
    assert ids == [*snip, *spelled(model, "A"), *bos, pre, *spelled(model, "x"), suf, *spelled(model, "y"), mid]


@pytest.mark.parametrize("tokenizer", [qwen, phi_3])
def test_a_model_without_the_tokens_says_so(tmp_path: Path, tokenizer: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(BadRequest, match="no tokens for filling in"):
        Prompter(made(tmp_path, tokenizer(), ()), 512).prompt(asked("x", Infill("y")))
