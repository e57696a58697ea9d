"""Reads the vocabulary of a model from its tokenizer's files; one module for each kind of model (`bpe.py`, …)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.config import MAX_JSON, read_whole
from quant.convert.tokenizer import bpe, ranks, sentencepiece, unigram, wordpiece, world
from quant.convert.tokenizer.added import AddedToken, read_decoder, within
from quant.convert.tokenizer.vocabulary import FILE, VocabularyPlan, broken, read_added
from quant.errors import UnsupportedModel
from quant.plan import Files
from quant.safetensors import load_json


def read_vocabulary(files: Files, size: int, pre: str | None = None) -> VocabularyPlan:
    """The vocabulary in `tokenizer.json`, else in a list of ranks, else in `tokenizer.model`, of `size` embeddings.

    `pre` names the pre-tokenizer by hand.
    Raises MalformedFile for a file that contradicts itself or the model, UnsupportedModel for a kind of tokenizer that
    llama.cpp would not follow exactly.
    """
    names = files.names()
    list_of_ranks = "" if FILE in names else ranks.find(files)
    if list_of_ranks:
        return _prefixed(ranks.read(files, list_of_ranks, size, pre))
    list_of_tokens = "" if FILE in names else world.find(files)
    if list_of_tokens:
        return _prefixed(world.read(files, list_of_tokens, size))
    if FILE not in names and sentencepiece.FILE in names:
        return _prefixed(sentencepiece.read(files, size))
    if FILE not in names:
        hint = "save the tokenizer with transformers' `AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
        raise UnsupportedModel(f"there is no `{FILE}`", hint=hint)
    tokenizer = load_json(read_whole(files, FILE, MAX_JSON), FILE)
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise broken("it has no `model`")
    tokenizer, decoder, beyond = _within(tokenizer, read_decoder(files), size)
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else "BPE")
    if kind == "BPE":
        vocabulary = bpe.read(tokenizer, size, decoder, pre)
    elif kind == "WordPiece":
        vocabulary = wordpiece.read(tokenizer, size, decoder)
    elif kind == "Unigram":
        vocabulary = unigram.read(tokenizer, size, decoder)
    else:
        raise UnsupportedModel(f"a tokenizer of the type `{ascii(kind)[:40]}` cannot be converted yet")
    first, last = (None if id is None or id >= size else id for id in (vocabulary.first, vocabulary.last))
    return _prefixed(replace(vocabulary, first=first, last=last, remarks=(*beyond, *vocabulary.remarks)))


def _within(
    tokenizer: dict[str, Any], decoder: dict[int, AddedToken], size: int
) -> tuple[dict[str, Any], dict[int, AddedToken], tuple[str, ...]]:
    """The same files without the added tokens that have no embedding, and a remark on these."""
    added = {token.id: token for token in read_added(tokenizer)}
    _, beyond = within({**added, **decoder}, size)
    if not beyond:
        return tokenizer, decoder, ()
    model, vocab = tokenizer["model"], tokenizer["model"].get("vocab")
    if isinstance(vocab, dict):
        gone = {token.text for token in added.values() if token.id >= size and vocab.get(token.text) == token.id}
        model = {**model, "vocab": {text: id for text, id in vocab.items() if text not in gone}}
    kept = [entry for entry in tokenizer.get("added_tokens") or [] if entry["id"] < size]
    return {**tokenizer, "model": model, "added_tokens": kept}, within(decoder, size)[0], beyond


def _prefixed(vocabulary: VocabularyPlan) -> VocabularyPlan:
    """The vocabulary with `tokenizer.ggml.` in front of its keys, and the note among its entries."""
    tokens = vocabulary.entries["tokens"]
    if len(set(tokens)) != len(tokens):
        raise broken("two tokens have the same text")
    entries = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.entries.items()}
    return replace(vocabulary, entries={**entries, **vocabulary.note})
