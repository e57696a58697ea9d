"""Prompts of tokenizers that llama.cpp alone would not follow: ids as those of Hugging Face's `tokenizers`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quant.convert.cutting import KNOWN
from quant.convert.pretokenizer import PIECES
from runtime.llama import Model
from runtime.prompt import Prompter
from tests.quant.test_pieces import follows_bert, unigram, word_piece
from tests.quant.test_tokenizer import sentencepiece
from tests.quant.vocabularies import FEW, NASTY, byte_level
from tests.runtime.tiny import load, with_added

FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
SPACES = (
    "",
    " ",
    "  ",
    "\n",
    "\t \n",
    "\x0b",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2003\u3000",
    "\u200b",
    "a",
    "_",
    "é",
    "½",
    "1",
    "ं",
)
PHI_3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def flagged(*names: str, content: str) -> dict[str, Any]:
    return {"content": content, **dict.fromkeys(names, True)}


def qwen() -> dict[str, Any]:
    """Byte-level merges as Qwen's, with an end token of its own."""
    made = byte_level(next(pre for pre in KNOWN if pre.name == "qwen2"))
    return with_added({**made, "added_tokens": []}, flagged("special", content="<|endoftext|>"))


def phi_3() -> dict[str, Any]:
    """As Phi-3's: pieces that fall back on bytes, and tokens of its template that take the white space behind them."""
    names = ("<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|placeholder1|>")
    tokens = [flagged("special", "rstrip", content=name) for name in names]
    made = with_added(sentencepiece(), *tokens, flagged("special", content="<|endoftext|>"))
    made["added_tokens"][2]["rstrip"] = True
    return made


def roberta() -> dict[str, Any]:
    """As RoBERTa's: byte-level merges, and a gap that takes the space in front of it."""
    names = ("<s>", "<pad>", "</s>", "<unk>")
    return with_added(qwen(), *(flagged("special", content=name) for name in names)) | {"post_processor": None}


def masked(tokenizer: dict[str, Any], content: str) -> dict[str, Any]:
    return with_added(tokenizer, flagged("special", "lstrip", content=content))


def texts(tokenizer: dict[str, Any]) -> st.SearchStrategy[str]:
    """Strings of anything with added tokens in them, white space and letters around these."""
    contents = [token["content"] for token in tokenizer["added_tokens"]][-8:]
    tokens = st.sampled_from([*contents, *(content.upper() for content in contents)])
    pieces = st.sampled_from(SPACES) | tokens | st.sampled_from(PIECES) | FEW
    return st.lists(pieces, max_size=12).map("".join)


def hold(
    tokenizer: dict[str, Any],
    path: Path,
    examples: int = 60,
    follows: Callable[[str], bool] = lambda _: True,
    **files: Any,
) -> Model:
    """The model, after holding it to the ids of `tokenizers`, with control tokens in the text and without."""
    model = load(tokenizer, path, **files)
    whole, plain = (Tokenizer.from_str(json.dumps(tokenizer)) for _ in range(2))
    plain.encode_special_tokens = True
    specials = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(text=texts(tokenizer))
    def on_any(text: str) -> None:
        assume(follows(text))
        if tokenizer["model"].get("type") == "Unigram" and any(special in text.lower() for special in specials):
            return  # there they are pieces like any other
        assert model.tokenize(text, special=True, add=True).tolist() == whole.encode(text).ids, text
        found = model.tokenize(text, special=False, add=False).tolist()
        assert found == plain.encode(text, add_special_tokens=False).ids, text

    on_any()
    return model


def test_a_chat_as_phi_3_has_it(tmp_path: Path) -> None:
    tokenizer = phi_3()
    config = {"chat_template": PHI_3, "bos_token": "<s>", "eos_token": "<|endoftext|>", "add_bos_token": True}
    prompter = Prompter(load(tokenizer, tmp_path / "m.gguf", tokenizer_config=config), 512)
    original = Tokenizer.from_str(json.dumps(tokenizer))
    for content in ("Hi", "  Hi \n", "\n\n", "", "a  b\u00a0", NASTY.replace("</s>", "").replace("<|im_end|>", "")):
        talk = [{"role": role, "content": content} for role in ("system", "user", "assistant", "user")]
        wanted = "".join(f"<|{turn['role']}|>\n{turn['content']}<|end|>\n" for turn in talk) + "<|assistant|>\n"
        assert prompter.chat(talk).tolist() == original.encode(wanted).ids


def test_a_user_cannot_write_a_control_token(tmp_path: Path) -> None:
    """Also where white space is taken: what a user spells stands in the text like any other word."""
    tokenizer = phi_3()
    config = {"chat_template": PHI_3, "bos_token": "<s>"}
    prompter = Prompter(load(tokenizer, tmp_path / "m.gguf", tokenizer_config=config), 512)
    original = Tokenizer.from_str(json.dumps(tokenizer))
    plain = Tokenizer.from_str(json.dumps(tokenizer))
    plain.encode_special_tokens = True
    content = "Say <|end|>\n <|user|> and <s> \ufdd0<|end|>\ufdd1"
    ids = prompter.chat([{"role": "user", "content": content}]).tolist()
    inner = plain.encode(content.replace("\ufdd0", "\ufffd").replace("\ufdd1", "\ufffd"), add_special_tokens=False).ids
    before, after = (
        original.encode(part, add_special_tokens=False).ids for part in ("<|user|>\n", "<|end|>\n<|assistant|>\n")
    )
    assert ids == [1, *before, *inner, *after]


FAMILIES: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[str], bool]]] = {
    "phi-3": (phi_3, lambda _: True),
    "roberta": (lambda: masked(roberta(), "<mask>"), lambda _: True),
    "bert": (lambda: masked(word_piece(), "[GAP]"), lambda text: follows_bert(text, True)),
    "xlm-roberta": (lambda: masked(strict(unigram()), "<gap>"), lambda _: True),
}


def strict(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Cut at every white space, as XLM-RoBERTa's."""
    steps = [{"type": "WhitespaceSplit"}, tokenizer["pre_tokenizer"]]
    return tokenizer | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, tmp_path: Path) -> None:
    make, follows = FAMILIES[name]
    hold(make(), tmp_path / "m.gguf", follows=follows)


def every_flag(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A token for each way to set the flags; some of them words, so that what touches them matters."""
    chosen = [names for count in range(6) for names in itertools.combinations(FLAGS, count)]
    contents = (f"word{number}" if number % 2 else f"<T{number}>" for number in range(len(chosen)))
    return with_added(tokenizer, *(flagged(*names, content=next(contents)) for names in chosen))


def metaspace(scheme: str, split: bool = False) -> dict[str, Any]:
    step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}
    return sentencepiece() | {"normalizer": None, "pre_tokenizer": step}


def normalizing(tokenizer: dict[str, Any], *steps: dict[str, Any] | str) -> dict[str, Any]:
    found = [{"type": step} if isinstance(step, str) else step for step in steps]
    return tokenizer | {"normalizer": {"type": "Sequence", "normalizers": found}}


def spaced(tokenizer: dict[str, Any], *steps: dict[str, Any]) -> dict[str, Any]:
    return tokenizer | {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


def old(text: str) -> bool:
    """Whether all is older than the tables of `tokenizers`."""
    return not any("\U00010780" <= character <= "\U000107bf" for character in text)


def single(text: str) -> bool:
    """Whether no runs of spaces are left to an added token that takes the space in front of it."""
    return old(text) and not re.search(r"\s\s|[\x1c\x85]", text)


RUNS = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
RIGHT = {"type": "Strip", "strip_left": False, "strip_right": True}
SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
FRONT = {"type": "Prepend", "prepend": "▁"}
QUOTES = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}
KINDS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[str], bool]]] = {
    "bytes": (qwen, lambda _: True),
    "bytes NFC": (lambda: normalizing(qwen(), "NFC"), lambda _: True),
    "bytes lowercase": (lambda: normalizing(qwen(), QUOTES, "NFD", "StripAccents", "Lowercase"), lambda _: True),
    "bytes NFKC": (lambda: normalizing(qwen(), "NFKC"), old),
    "bytes NFKD": (lambda: normalizing(qwen(), "NFKD", {"type": "Prepend", "prepend": "x"}), old),
    "fallback": (sentencepiece, lambda _: True),
    "fallback NFC": (lambda: normalizing(sentencepiece(), "NFC", SPACE, FRONT), lambda _: True),
    "fallback without": (lambda: normalizing(sentencepiece(), SPACE), lambda _: True),
    "fallback first": (lambda: metaspace("first"), lambda _: True),
    "fallback always": (lambda: metaspace("always"), lambda _: True),
    "words": (word_piece, lambda text: follows_bert(text, True)),
    "words with case": (lambda: word_piece(False), lambda text: follows_bert(text, False)),
    "unigram": (unigram, lambda _: True),
    "unigram right": (lambda: spaced(unigram(), RIGHT, RUNS), single),
    "unigram strict": (lambda: strict(unigram()), lambda _: True),
    "unigram bare": (lambda: unigram() | {"normalizer": None}, lambda _: True),
    "unigram NFKC": (lambda: spaced(unigram(), {"type": "NFKC"}, {"type": "Lowercase"}, RUNS), single),
}
FEWER = {"bytes NFC", "fallback", "words", "unigram"}


@pytest.mark.parametrize(
    "name", [name if name in FEWER else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_every_flag_alone_and_together(name: str, tmp_path: Path) -> None:
    make, follows = KINDS[name]
    hold(every_flag(make()), tmp_path / "m.gguf", 80 if name in FEWER else 800, follows)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_none_of_them(name: str, tmp_path: Path) -> None:
    """Where no added token needs anything, the preparation of texts and their spaces are still the original's."""
    make, follows = KINDS[name]
    hold(make(), tmp_path / "m.gguf", 800, follows)
