"""WordPiece and Unigram vocabularies: ids through llama.cpp against `tokenizers`, and what must be refused."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import struct
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, assume, given, settings
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from quant.convert.tokenizer.reading import read_vocabulary
from quant.convert.tokenizer.unigram import ROUNDED
from quant.errors import QuantError
from tests.quant.engine import Engine
from tests.quant.test_tokenizer import folder
from tests.quant.vocabularies import CORPUS, QUICK_TEXTS, vocabulary_file
from tests.quant.vocabularies import TEXTS as ANY_TEXTS

# What an encoder is asked to read; special tokens inside are left out, since both sides are told to look for them.
TEXTS = (
    "Hello, world!  A quick\tbrown fox\r\njumps over the lazy dog; it's 3.14159 o'clock…",
    "Ünïcödé naïve CAFÉ façade Привет мир Ελληνικά 日本語テスト 我想在apple工作 한국어 ไทย עברית العربية",
    "quantization quantizing unquantizable zzzzqqqq 12345",
    "   ",
    "",
    "a [MASK] b",
)


def word_piece(lowercase: bool = True) -> dict[str, Any]:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=1500, special_tokens=specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


def unigram() -> dict[str, Any]:
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


def framed(tokenizer: dict[str, Any], specials: tuple[int, int]) -> dict[str, Any]:
    """The GGUF entries of a tokenizer that puts `specials` around a text."""
    vocabulary = read_vocabulary(folder(tokenizer), len(tokenizer["model"]["vocab"]) + 3)
    assert (vocabulary.first, vocabulary.last) == specials
    numbers = {"bos_token_id": specials[0], "eos_token_id": specials[1], "add_bos_token": True, "add_eos_token": True}
    return vocabulary.entries | {f"tokenizer.ggml.{key}": value for key, value in numbers.items()}


def compare(tokenizer: dict[str, Any], texts: Iterable[str], path: Path, specials: tuple[int, int]) -> None:
    entries = framed(tokenizer, specials)
    original = Tokenizer.from_str(json.dumps(tokenizer))
    with Engine(vocabulary_file(path, entries), vocabulary_only=True) as engine:
        for text in texts:
            assert engine.tokenize(text, first=True, special=True) == original.encode(text).ids, text


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_pieces_are_those_of_tokenizers(tmp_path: Path, lowercase: bool) -> None:
    # With accents, llama.cpp leaves Korean syllables whole where the original takes them apart, whoever converts.
    texts = [text.replace("한국어", "") if lowercase else text for text in TEXTS]
    compare(word_piece(lowercase), texts, tmp_path / "v.gguf", (2, 3))


def test_unigram_pieces_are_those_of_tokenizers(tmp_path: Path) -> None:
    # Of a text of nothing but spaces llama.cpp leaves nothing, the original one space.
    compare(unigram(), [text for text in TEXTS if text.strip() or not text], tmp_path / "v.gguf", (0, 2))


def tied(*scores: float) -> dict[str, Any]:
    """A Unigram tokenizer of all texts of one to three times "a" or "b", with these scores in turn."""
    texts = ["".join(letters) for length in (1, 2, 3) for letters in itertools.product("ab", repeat=length)]
    pieces = [[text, scores[number % len(scores)]] for number, text in enumerate(["▁", *texts])]
    vocab = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], *pieces]
    return changed(unigram(), vocab=vocab, unk_id=3)


WORDS = ["".join(letters) for length in range(1, 9) for letters in itertools.product("ab", repeat=length)]


@pytest.mark.parametrize(
    "scores", [(-1.0,), (-1.0, -2.0, -3.0), (-0.25, -0.5), (-2.0, -2.0, -4.0, -6.0, -8.0)], ids=str
)
def test_of_equally_likely_pieces_the_same_are_taken(scores: tuple[float, ...], tmp_path: Path) -> None:
    tokenizer = tied(*scores)
    compare(tokenizer, WORDS, tmp_path / "v.gguf", (0, 2))
    assert read_vocabulary(folder(tokenizer), len(tokenizer["model"]["vocab"])).remarks == ()


def test_scores_that_are_rounded_are_said(tmp_path: Path) -> None:
    """0.1 + 0.2 is more than 0.3 in eight bytes, and not in four: which of two equal ways is taken turns round."""
    tokenizer = tied(-0.1, -0.2, -0.3)
    assert read_vocabulary(folder(tokenizer), len(tokenizer["model"]["vocab"])).remarks == (ROUNDED,)
    original = Tokenizer.from_str(json.dumps(tokenizer))
    with Engine(vocabulary_file(tmp_path / "v.gguf", framed(tokenizer, (0, 2))), vocabulary_only=True) as engine:
        found = {text: engine.tokenize(text, first=True) for text in WORDS}
    assert any(ids != original.encode(text).ids for text, ids in found.items())


def new_to_bert(character: str) -> bool:
    """Punctuation and marks that are younger than the tables of `tokenizers`' BERT steps."""
    young = unicodedata.ucd_3_2_0.category(character) == "Cn"
    return young and unicodedata.category(character)[0] in "PM"


def follows_bert(text: str, lowercase: bool) -> bool:
    """Whether llama.cpp does as the original on this text: without accents, it leaves "한" whole, and keeps no "া".

    Form feeds and their like are spaces to it, and nothing to the original.
    """
    if any(c in "\x0b\x0c\x1c\x1d\x1e\x1f\x85" or new_to_bert(c) for c in text):
        return False
    return not lowercase or not any("가" <= c <= "힣" or unicodedata.category(c) == "Mc" for c in text)


MADE: dict[str, tuple[Callable[[], dict[str, Any]], tuple[int, int], Callable[[str], bool]]] = {
    "words": (lambda: word_piece(), (2, 3), lambda text: follows_bert(text, True)),
    "words with case": (lambda: word_piece(False), (2, 3), lambda text: follows_bert(text, False)),
    # Spaces at the ends of a text: llama.cpp leaves nothing of them.
    "unigram": (unigram, (0, 2), lambda text: text == text.strip()),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("examples", [50, pytest.param(1500, marks=pytest.mark.slow)])
def test_pieces_of_any_string_are_those_of_tokenizers(name: str, examples: int, tmp_path: Path) -> None:
    make, specials, follows = MADE[name]
    tokenizer = make()
    original, entries = Tokenizer.from_str(json.dumps(tokenizer)), framed(tokenizer, specials)
    with Engine(vocabulary_file(tmp_path / "v.gguf", entries), vocabulary_only=True) as engine:

        @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
        @given(text=QUICK_TEXTS if examples < 100 else ANY_TEXTS)
        def on_any(text: str) -> None:
            assume(follows(text))
            assert engine.tokenize(text, first=True, special=True) == original.encode(text).ids

        on_any()


def charsmap(size: int, rest: bytes = b"a\0") -> str:
    return base64.b64encode(struct.pack("<I", size) + bytes(size if size < 1000 else 8) + rest).decode()


def changed(tokenizer: dict[str, Any], **values: Any) -> dict[str, Any]:
    found = copy.deepcopy(tokenizer)
    for key, value in values.items():
        found["model" if key in found["model"] else key] = (
            {**found["model"], key: value} if key in found["model"] else value
        )
    return found


def precompiled(text: Any) -> dict[str, Any]:
    return changed(unigram(), normalizer={"type": "Precompiled", "precompiled_charsmap": text})


def test_the_table_of_replacements_is_kept_as_bytes(tmp_path: Path) -> None:
    entries = read_vocabulary(folder(precompiled(charsmap(8))), 700).entries
    path = vocabulary_file(tmp_path / "v.gguf", entries)
    field = gguf.GGUFReader(path).fields["tokenizer.ggml.precompiled_charsmap"]
    assert bytes(field.contents()) == base64.b64decode(charsmap(8))


REFUSED: dict[str, tuple[Any, str]] = {
    "other mark": (lambda: changed(word_piece(), continuing_subword_prefix="@@"), "`##`"),
    "unknown token unknown": (lambda: changed(word_piece(), unk_token="<none>"), "`unk_token`"),
    "other normalizer": (lambda: changed(word_piece(), normalizer={"type": "NFC"}), "another way"),
    "other cutting": (lambda: changed(word_piece(), pre_tokenizer={"type": "Whitespace"}), "another way"),
    "nothing around": (lambda: changed(word_piece(), post_processor=None), "before and after"),
    "no pieces": (lambda: changed(unigram(), vocab=[]), "`vocab`"),
    "score no number": (lambda: changed(unigram(), vocab=[["a", None]]), "`vocab`"),
    "score not finite": (lambda: changed(unigram(), vocab=[["a", float("nan")]]), "`vocab`"),
    "piece twice": (lambda: changed(unigram(), vocab=[["a", 0.0], ["a", 0.0]]), "the same"),
    "unknown outside": (lambda: changed(unigram(), unk_id=100_000), "`unk_id`"),
    "bytes": (lambda: changed(unigram(), byte_fallback=True), "bytes"),
    "spaces kept": (lambda: changed(unigram(), pre_tokenizer=None), "spaces"),
    "other step": (lambda: changed(unigram(), normalizer={"type": "ByteLevel"}), "ByteLevel"),
    "table no text": (lambda: precompiled(3), "precompiled_charsmap"),
    "table no base64": (lambda: precompiled("%%%"), "precompiled_charsmap"),
    "table too long": (lambda: precompiled(charsmap(4096)), "precompiled_charsmap"),
    "table odd": (lambda: precompiled(charsmap(7)), "precompiled_charsmap"),
    "table without end": (lambda: precompiled(charsmap(8, b"a")), "precompiled_charsmap"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_not_follow_is_refused(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(QuantError, match=reason):
        read_vocabulary(folder(make()), 5000)
