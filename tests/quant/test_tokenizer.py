"""Vocabularies: token ids through llama.cpp against the `tokenizers` library, and what must be refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from quant.convert.planning import plan_model
from quant.convert.tokenizer import pretokenizer as table
from quant.convert.tokenizer.reading import read_vocabulary
from quant.errors import MalformedFile, QuantError, UnsupportedModel
from tests.quant.engine import Engine
from tests.quant.support import DEMO, Folder
from tests.quant.vocabularies import CORPUS, NASTY, PLAIN, QUICK_TEXTS, vocabulary_file

TOKENIZER = json.loads((DEMO / "tokenizer.json").read_text())


def with_pretokenizer(rules: tuple[str, ...], ignore_merges: bool = False) -> dict[str, Any]:
    """The demo's tokenizer, cutting text by other rules."""
    steps: list[dict[str, Any]] = []
    for rule in rules:
        if rule == "gpt2":
            steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True})
        elif rule == "digit":
            steps.append({"type": "Digits", "individual_digits": True})
        else:
            steps.append({"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False})
    if "gpt2" not in rules:
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    changed = copy.deepcopy(TOKENIZER)
    changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    changed["model"]["ignore_merges"] = ignore_merges
    return changed


def folder(tokenizer: dict[str, Any]) -> Folder:
    return Folder(contents={"tokenizer.json": json.dumps(tokenizer).encode()})


def test_demo_tokens_are_those_of_tokenizers(tmp_path: Path) -> None:
    plan = plan_model(Folder(DEMO))
    entries = {key: value for key, value in plan.metadata.items() if key.startswith("tokenizer.")}
    original = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    text = "<|im_start|>user\n" + NASTY + "<|im_end|>\n<|im_start|>assistant\n"
    with Engine(vocabulary_file(tmp_path / "v.gguf", entries), vocabulary_only=True) as engine:
        assert engine.tokenize(text, first=True, special=True) == original.encode(text).ids
        assert [engine.ends(token) for token in (0, 1, 2, 3)] == [True, False, True, False]


def sentencepiece() -> dict[str, Any]:
    """A tokenizer of Llama 2's kind: the demo's words, with spaces as `▁` and bytes to fall back on."""
    letters = [chr(code) for code in range(32, 127)]
    plain = {word.replace("Ġ", "▁"): rank for word, rank in TOKENIZER["model"]["vocab"].items() if word.isprintable()}
    words = [w for w in plain if len(w) > 1 and all(c == "▁" or " " < c <= "~" for c in w) and "<" not in w]
    vocab: dict[str, int] = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for text in [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters[1:], *words]:
        vocab.setdefault(text, len(vocab))
    rank = {word: position for position, word in enumerate(words)}
    merges = [
        [word[:cut], word[cut:]]
        for word in sorted(words, key=rank.__getitem__)
        for cut in range(1, len(word))
        if word[:cut] in vocab and word[cut:] in vocab
    ]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": id, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False}
            for id, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


def test_byte_fallback_tokens_are_those_of_tokenizers(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    vocabulary = read_vocabulary(folder(tokenizer), len(tokenizer["model"]["vocab"]) + 5)
    assert (vocabulary.first, vocabulary.last) == (1, None)
    entries = vocabulary.entries | {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    original = Tokenizer.from_str(json.dumps(tokenizer))
    with Engine(vocabulary_file(tmp_path / "v.gguf", entries), vocabulary_only=True) as engine:
        for text in (PLAIN, NASTY, "a", " a", "", "<s>hello</s> there"):
            assert engine.tokenize(text, first=True, special=True) == original.encode(text).ids


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Tokenizer]]:
    tokenizer = sentencepiece()
    entries = read_vocabulary(folder(tokenizer), len(tokenizer["model"]["vocab"])).entries
    entries |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    with Engine(vocabulary_file(tmp_path_factory.mktemp("v") / "v.gguf", entries), vocabulary_only=True) as engine:
        yield engine, Tokenizer.from_str(json.dumps(tokenizer))


def test_a_space_in_front_is_only_put_where_the_original_does(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    tokenizer["normalizer"] = None
    for scheme, wanted in (("never", False), ("first", True), ("always", True)):
        step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        tokenizer["pre_tokenizer"] = step
        entries = read_vocabulary(folder(tokenizer), 5000).entries
        assert entries["tokenizer.ggml.add_space_prefix"] is wanted


def test_merges_that_no_score_can_order_are_refused() -> None:
    tokenizer = sentencepiece()
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][1::2]
    with pytest.raises(UnsupportedModel, match="scores"):
        read_vocabulary(folder(tokenizer), 5000)
    tokenizer = sentencepiece()
    merges = tokenizer["model"]["merges"]
    several = next(i for i in range(len(merges)) if "".join(merges[i]) == "".join(merges[i + 1]))
    merges.append(merges.pop(several))
    with pytest.raises(UnsupportedModel, match="scores"):
        read_vocabulary(folder(tokenizer), 5000)


def ranked() -> dict[str, Any]:
    """A tokenizer of Gemma 4's kind: merges that no scores can order, over text with `▁` for spaces."""
    named = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=1500, special_tokens=named))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made: dict[str, Any] = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:3]
    return made


@pytest.mark.parametrize(("framed", "name"), [(True, "gemma4"), (False, "sarvam-moe")])
def test_merges_that_no_score_can_order_go_by_rank(framed: bool, name: str, tmp_path: Path) -> None:
    tokenizer = ranked() | ({"post_processor": sentencepiece()["post_processor"]} if framed else {})
    vocabulary = read_vocabulary(folder(tokenizer), len(tokenizer["model"]["vocab"]))
    assert vocabulary.entries["tokenizer.ggml.pre"] == name
    numbers = {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": framed}
    entries = vocabulary.entries | {f"tokenizer.ggml.{key}": value for key, value in numbers.items()}
    original = Tokenizer.from_str(json.dumps(tokenizer))
    with Engine(vocabulary_file(tmp_path / "v.gguf", entries), vocabulary_only=True) as engine:

        @settings(max_examples=60)
        @given(text=QUICK_TEXTS)
        @example(PLAIN)
        @example(NASTY)
        def on_any(text: str) -> None:
            assert engine.tokenize(text, first=True, special=True) == original.encode(text).ids

        on_any()


@settings(max_examples=60)
@given(text=QUICK_TEXTS)
def test_byte_fallback_tokens_are_those_of_tokenizers_on_any_string(text: str, fallback: tuple[Engine, Any]) -> None:
    engine, original = fallback
    assert engine.tokenize(text, first=True, special=True) == original.encode(text).ids


def test_merges_may_be_pairs_or_text() -> None:
    pairs = copy.deepcopy(TOKENIZER)
    pairs["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in TOKENIZER["model"]["merges"]]
    texts = copy.deepcopy(TOKENIZER)
    texts["model"]["merges"] = [" ".join(pair) for pair in pairs["model"]["merges"]]
    assert read_vocabulary(folder(pairs), 4096) == read_vocabulary(folder(texts), 4096)


def test_a_padded_vocabulary_gets_unused_tokens() -> None:
    entries = read_vocabulary(folder(TOKENIZER), 4100).entries
    assert entries["tokenizer.ggml.tokens"][4095:] == [
        entries["tokenizer.ggml.tokens"][4095],
        *(f"[PAD{n}]" for n in range(4096, 4100)),
    ]
    assert entries["tokenizer.ggml.token_type"][4096:] == [5] * 4


def test_padding_does_not_repeat_a_token_that_is_there() -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer["model"]["vocab"]["[PAD4097]"] = 4096
    tokens = read_vocabulary(folder(tokenizer), 4100).entries["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == 4100


def test_added_tokens_have_their_types() -> None:
    tokenizer = copy.deepcopy(TOKENIZER)
    for content, special in (("<tool>", False), ("<|tool|>", False), ("<sys>", True)):
        tokenizer["added_tokens"].append({"id": 4093 + len(tokenizer["added_tokens"]), "content": content})
        tokenizer["added_tokens"][-1]["special"] = special
    entries = read_vocabulary(folder(tokenizer), 4100).entries
    assert entries["tokenizer.ggml.token_type"][4096:4099] == [4, 3, 3]
    assert entries["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]


def test_an_unknown_pretokenizer_asks_for_its_name() -> None:
    tokenizer = with_pretokenizer((r"\p{L}+",))
    with pytest.raises(UnsupportedModel) as caught:
        read_vocabulary(folder(tokenizer), 4096)
    assert "--pre`" in caught.value.hint
    assert read_vocabulary(folder(tokenizer), 4096, pre="qwen2").entries["tokenizer.ggml.pre"] == "qwen2"
    with pytest.raises(UnsupportedModel, match="`nonsense`"):
        read_vocabulary(folder(tokenizer), 4096, pre="nonsense")


@pytest.mark.slow
def test_rules_that_are_spelled_otherwise_are_known_by_what_they_do() -> None:
    contractions = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    for pre in table.KNOWN:
        rules = tuple(rule.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", contractions) for rule in pre.rules)
        rules = tuple(r"\p{N}" if rule == "digit" else f"(?:{rule})" if rule != "gpt2" else rule for rule in rules)
        found = read_vocabulary(folder(with_pretokenizer(rules, pre.ignore_merges)), 4096)
        # These two take whole runs of line breaks, one by asking for them, the other since nothing else is left.
        assert found.entries["tokenizer.ggml.pre"] == {"bailingmoe": "qwen2"}.get(pre.name, pre.name)


def test_ignoring_merges_matters_only_where_it_shows() -> None:
    # Every token of the demo can be reached by merges, so skipping them is the same.
    rules = next(pre.rules for pre in table.KNOWN if pre.name == "qwen2")
    tokenizer = with_pretokenizer(rules, ignore_merges=True)
    assert read_vocabulary(folder(tokenizer), 4096).entries["tokenizer.ggml.pre"] == "qwen2"
    tokenizer["model"]["vocab"]["unreachable"] = 4096
    with pytest.raises(UnsupportedModel, match="ignore_merges"):
        read_vocabulary(folder(tokenizer), 4097)


def change(**model: Any) -> dict[str, Any]:
    changed = copy.deepcopy(TOKENIZER)
    changed["model"] |= model
    return changed


VOCAB = TOKENIZER["model"]["vocab"]
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({}, "no `model`"),
    "other type": (change(type="WordLevel"), "WordLevel"),
    "vocab a list": (change(vocab=[1]), "`vocab`"),
    "vocab empty": (change(vocab={}), "`vocab`"),
    "number no number": (change(vocab={**VOCAB, "zzz": "1"}), "`vocab`"),
    "number negative": (change(vocab={**VOCAB, "zzz": -1}), "`vocab`"),
    "number twice": (change(vocab={**VOCAB, "zzzzzz": 5}), "same number"),
    "half a surrogate": (change(vocab={**VOCAB, "\ud800": 4096}), "not UTF-8"),
    "merges missing": (change(merges=None), "`merges`"),
    "merge of three": (change(merges=["a b c"]), "no pair"),
    "merge of numbers": (change(merges=[[1, 2]]), "no pair"),
    "merge of strangers": (change(merges=["qqq zzz"]), "not of tokens"),
    "marked parts": (change(continuing_subword_prefix="##"), "parts of words"),
    "added no list": ({**TOKENIZER, "added_tokens": {"a": 1}}, "added_tokens"),
    "added without number": ({**TOKENIZER, "added_tokens": [{"content": "x"}]}, "added token"),
    "added elsewhere": ({**TOKENIZER, "added_tokens": [{"id": 9, "content": "<|im_end|>"}]}, "disagree"),
    "other normalizer": ({**TOKENIZER, "normalizer": {"type": "ByteLevel"}}, "`ByteLevel`"),
    "no cutting": ({**TOKENIZER, "pre_tokenizer": None}, "no object"),
    "space in front": ({**TOKENIZER, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "way that is"),
    "cutting a number": ({**TOKENIZER, "pre_tokenizer": 3}, "no object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tokenizers_are_refused(case: str) -> None:
    tokenizer, reason = BROKEN[case]
    with pytest.raises(QuantError, match=reason):
        read_vocabulary(folder(tokenizer), 4096)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}', b"1" * 5000])
def test_a_file_that_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedFile, match=r"`tokenizer\.json`"):
        read_vocabulary(Folder(contents={"tokenizer.json": raw}), 4096)


def test_without_tokenizer_json_it_says_how_to_make_one() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        read_vocabulary(Folder(contents={"vocab.txt": b""}), 4096)
    assert "save_pretrained" in caught.value.hint
