"""Prompts of tokenizers that llama.cpp alone would not follow: ids as those of Hugging Face's `tokenizers`."""

from __future__ import annotations

import base64
import itertools
import json
import re
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quant.convert.tokenizer.cutting import KNOWN, Pre
from quant.convert.tokenizer.pretokenizer import PIECES
from quant.notes import ARGUMENTS
from runtime import messages as m
from runtime.conversation import Turn
from runtime.engine.prompt import Prompter
from runtime.errors import LoadFailed
from runtime.llama.model import LlamaModel
from runtime.text.notes import read_note
from runtime.text.tokenizer import STEPS
from runtime.text.tokenizer import Tokenizer as TextReader
from tests.quant.engine import Engine
from tests.quant.test_pieces import follows_bert, unigram, word_piece
from tests.quant.test_tokenizer import sentencepiece
from tests.quant.vocabularies import FEW, LIMITS, NASTY, byte_level
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
) -> LlamaModel:
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
        assert model.vocabulary.tokenize(text, special=True, add=True).tolist() == whole.encode(text).ids, text
        found = model.vocabulary.tokenize(text, special=False, add=False).tolist()
        assert found == plain.encode(text, add_special_tokens=False).ids, text

    on_any()
    return model


def test_a_chat_as_phi_3_has_it(tmp_path: Path) -> None:
    tokenizer = phi_3()
    config = {"chat_template": PHI_3, "bos_token": "<s>", "eos_token": "<|endoftext|>", "add_bos_token": True}
    prompter = Prompter(load(tokenizer, tmp_path / "m.gguf", tokenizer_config=config), 512)
    original = Tokenizer.from_str(json.dumps(tokenizer))
    for content in ("Hi", "  Hi \n", "\n\n", "", "a  b\u00a0", NASTY.replace("</s>", "").replace("<|im_end|>", "")):
        talk = [Turn.of(role, content) for role in ("system", "user", "assistant", "user")]
        wanted = "".join(f"<|{turn.role}|>\n{turn.text}<|end|>\n" for turn in talk) + "<|assistant|>\n"
        assert prompter.chat(talk).tolist() == original.encode(wanted).ids


@pytest.mark.parametrize("strip", [True, False])
def test_a_user_cannot_write_a_control_token(strip: bool, tmp_path: Path) -> None:
    """What a user spells stands in the text like any other word, also where white space is taken."""
    tokenizer = phi_3()
    if not strip:
        tokenizer["added_tokens"] = [token | {"rstrip": False} for token in tokenizer["added_tokens"]]
    config = {"chat_template": PHI_3, "bos_token": "<s>"}
    model = load(tokenizer, tmp_path / "m.gguf", tokenizer_config=config)
    assert (model.metadata("lm.tokenizer") is not None) == strip
    prompter = Prompter(model, 512)
    original = Tokenizer.from_str(json.dumps(tokenizer))
    plain = Tokenizer.from_str(json.dumps(tokenizer))
    plain.encode_special_tokens = True
    content = "Say <|end|>\n <|user|> and <s> \ufdd0<|end|>\ufdd1"
    ids = prompter.chat([Turn.of("user", content)]).tolist()
    content = content if strip else f"\n{content}"
    inner = plain.encode(content.replace("\ufdd0", "\ufffd").replace("\ufdd1", "\ufffd"), add_special_tokens=False).ids
    before, after = (
        original.encode(part, add_special_tokens=False).ids for part in ("<|user|>", "<|end|>\n<|assistant|>\n")
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
    "bytes Nmt": (lambda: normalizing(qwen(), "Nmt", "NFKC"), old),
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
    hold(every_flag(make()), tmp_path / "m.gguf", 80 if name in FEWER else 400, follows)


@pytest.mark.slow
@pytest.mark.parametrize("pre", [pre for pre in KNOWN if pre.name not in LIMITS], ids=lambda pre: pre.name)
def test_every_flag_with_every_routine(pre: Pre, tmp_path: Path) -> None:
    made = every_flag(normalizing({**byte_level(pre), "added_tokens": []}, "NFC"))
    hold(made, tmp_path / "m.gguf", 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_none_of_them(name: str, tmp_path: Path) -> None:
    """Where no added token needs anything, the preparation of texts and their spaces are still the original's."""
    make, follows = KINDS[name]
    hold(make(), tmp_path / "m.gguf", 400, follows)


def replacing(pairs: dict[str, str]) -> str:
    """A table of replacements as SentencePiece compiles it: a double array over single bytes, then the texts."""
    nodes, rest = [0] * 1024, b""
    for number, (old, new) in enumerate(pairs.items()):
        (byte,) = old.encode()
        nodes[byte] = byte | 1 << 8 | (256 + number * 2 ^ byte) << 10
        nodes[256 + number * 2] = 1 << 31 | len(rest)
        rest += new.encode() + b"\0"
    table = struct.pack("<I1024I", 4096, *nodes) + rest
    return base64.b64encode(table).decode()


@pytest.mark.parametrize("steps", [(RUNS,), (RIGHT, RUNS)], ids=["runs", "right"])
def test_spaces_of_a_table_of_replacements(steps: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    """Line breaks become spaces there, of which one at the end is a token, or none."""
    table = {"type": "Precompiled", "precompiled_charsmap": replacing({"\n": " ", "\t": " ", "A": "a"})}
    tokenizer = spaced(unigram(), table, *steps)
    original, model = Tokenizer.from_str(json.dumps(tokenizer)), load(tokenizer, tmp_path / "m.gguf")
    for text in ("a b", "a\n", "a \n\t b\n", "\n", " ", "", "A cAt  </s>\n the end \t", "a\u3000", "a</s>\u3000"):
        assert model.vocabulary.tokenize(text, special=True, add=True).tolist() == original.encode(text).ids, text


def test_newer_flags_and_tokens_are_those_of_the_tokenizers_configuration(tmp_path: Path) -> None:
    """As transformers has it: what `tokenizer_config.json` says is added to what `tokenizer.json` says, and wins."""
    tokenizer = with_added(qwen(), flagged("special", content="<x>"), flagged(content="<y>"))
    ids = [token["id"] for token in tokenizer["added_tokens"][-2:]]
    newer = with_added(tokenizer, flagged("special", "lstrip", content="<z>"))
    newer["added_tokens"][-3]["rstrip"] = True
    decoder = {str(token["id"]): token for token in newer["added_tokens"] if token["id"] >= ids[0]}
    config = {"tokenizer_config": {"added_tokens_decoder": decoder}}
    original, model = Tokenizer.from_str(json.dumps(newer)), load(tokenizer, tmp_path / "m.gguf", **config)
    for text in ("a <x> b", "a <z> b", "a <y> b <x>\n<z>"):
        assert model.vocabulary.tokenize(text, special=True, add=True).tolist() == original.encode(text).ids


@pytest.mark.oracle
def test_transformers_has_them_from_there(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = with_added(qwen(), flagged("special", content="<x>"))
    newer = {**tokenizer["added_tokens"][-1], "rstrip": True, "special": False}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {str(newer["id"]): newer}}
    for name, content in {
        "tokenizer": tokenizer,
        "tokenizer_config": config,
        "config": {"model_type": "llama"},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = AutoTokenizer.from_pretrained(tmp_path)
    model = load(tokenizer, tmp_path / "m.gguf", tokenizer_config=config)
    for text in ("a <x> b", "<x>\n\n<x> ", "é e\u0301"):
        assert model.vocabulary.tokenize(text, special=True, add=False).tolist() == found.encode(
            text, add_special_tokens=False
        )


def test_an_added_token_beside_the_rest_of_a_word(tmp_path: Path) -> None:
    """Without their marks the two look the same."""
    tokenizer = word_piece(False)
    rest = next(text[2:] for text in tokenizer["model"]["vocab"] if text.startswith("##") and len(text) > 4)
    tokenizer = with_added(tokenizer, flagged(content=rest), flagged("special", content="steer"))
    hold(tokenizer, tmp_path / "m.gguf", 20, lambda text: follows_bert(text, False))


def test_a_tokenizer_that_needs_nothing_is_left_to_llama_cpp(tmp_path: Path) -> None:
    tokenizer = qwen()
    model = load(tokenizer, tmp_path / "m.gguf")
    assert model.metadata("lm.tokenizer") is None
    with Engine(tmp_path / "m.gguf", vocabulary_only=True) as engine:
        assert model.vocabulary.tokenize(NASTY, special=True, add=False).tolist() == engine.tokenize(
            NASTY, special=True
        )


def test_bos_and_eos_of_older_post_processors(tmp_path: Path) -> None:
    step = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True}
    hold(unigram() | {"post_processor": step | {"add_prefix_space": False}}, tmp_path / "m.gguf", 10)
    step = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    model = load(word_piece() | {"post_processor": step}, tmp_path / "w.gguf")
    assert [ids.tolist() for ids in model.vocabulary.frame] == [[2], [3]]


@pytest.mark.parametrize("kind", ["prompt", "embed"])
def test_every_way_to_ask_reads_alike(kind: str, tmp_path: Path) -> None:
    """Raw prompts with control tokens in them, and texts to embed."""
    tokenizer = with_added(normalizing(qwen(), "NFC"), flagged("lstrip", "rstrip", content="<tool>"))
    model = load(tokenizer, tmp_path / "m.gguf")
    original, plain = (Tokenizer.from_str(json.dumps(tokenizer)) for _ in range(2))
    plain.encode_special_tokens = True
    prompter, text = Prompter(model, 512), "e\u0301  <tool>\n<|endoftext|> and"
    if kind == "prompt":
        asked = m.Submit(0, prompt=text, parse_special=True)
        assert prompter.prompt(asked).ids.tolist() == original.encode(text).ids
    else:
        assert model.vocabulary.tokenize(text, special=False, add=True).tolist() == plain.encode(text).ids


@pytest.mark.parametrize(
    "text", ["", "[]", '{"steps": [["Evil"]]}', '{"steps": [[]]}', '{"added": [[-1, "a", ""]]}', '{"space": 3}']
)
def test_a_broken_note_is_told(text: str) -> None:
    with pytest.raises(LoadFailed, match="note on the tokenizer"):
        TextReader(read_note(text.encode()), 10, lambda _: array("i"))


def test_the_runtime_does_every_step_that_the_converter_can_note() -> None:
    assert STEPS.keys() == ARGUMENTS.keys()
    texts = {name: apply("a  b", *["x"] * ARGUMENTS[name]) for name, apply in STEPS.items()}
    assert all(isinstance(text, str) for text in texts.values())
