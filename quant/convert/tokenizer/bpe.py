"""Byte-pair vocabularies: of bytes, as GPT-2's, or of characters with bytes as a fallback, as SentencePiece's.

With bytes as a fallback, llama.cpp merges by the score of the merged token, while `tokenizer.json` ranks pairs. So
scores are computed from the ranks, where any scores give the same order. Elsewhere the vocabulary is for llama.cpp's
routine for Gemma 4, which merges by rank. It never puts a space in front, and merges line breaks with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quant.convert.tokenizer.added import AddedToken, ids_by_text, merge_added, note, read_step
from quant.convert.tokenizer.pretokenizer import check_name, recognise
from quant.convert.tokenizer.vocabulary import (
    VocabularyPlan,
    broken,
    framing,
    place_tokens,
    prefix_space,
    preparation,
    read_added,
    read_vocab,
    steps,
    unsupported,
)
from quant.errors import UnsupportedModel
from quant.gguf.header import TOKEN_BYTE, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_USER
from quant.notes import Space

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def read(tokenizer: dict[str, Any], size: int, decoder: Mapping[int, AddedToken], pre: str | None) -> VocabularyPlan:
    """The vocabulary of a `tokenizer.json` with a model of the type BPE."""
    model = tokenizer["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedModel("a tokenizer that marks the parts of words cannot be converted")
    vocab, merges = read_vocab(model), _merges(model)
    added = merge_added(read_added(tokenizer), decoder, vocab, size)
    tokens, types = place_tokens(vocab, added, size)
    first, last = framing(tokenizer)
    if model.get("byte_fallback"):
        prefix, preparing, space = _prefix_space(tokenizer, added)
        entries = _sentencepiece(tokenizer, vocab, tokens, types, prefix)
        try:
            entries |= _scored(vocab, merges, tokens, types)
        except UnsupportedModel:
            if entries["add_space_prefix"] or any(len(token.strip("\n")) not in (0, len(token)) for token in vocab):
                raise
            entries |= (
                {"model": "gemma4", "pre": "gemma4"} if first is not None else {"model": "gpt2", "pre": "sarvam-moe"}
            )
            entries["merges"] = [f"{left} {right}" for left, right in merges]
    else:
        ordinary = [text for text, id in vocab.items() if types[id] == TOKEN_NORMAL]
        name = check_name(pre) if pre else recognise(tokenizer, lambda: not unreached(vocab, merges, ordinary))
        entries = {"model": "gpt2", "pre": name, "tokens": tokens, "token_type": types}
        entries["merges"] = [f"{left} {right}" for left, right in merges]
        preparing, space = preparation(tokenizer.get("normalizer")), ""
    ids = ids_by_text(vocab, added)
    return VocabularyPlan(ids, entries, first, last, note(added, tokens, types, preparing, space))


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs to merge, best first, from pairs or from strings with a space; each must make a token out of tokens."""
    raw, vocab = model.get("merges"), model["vocab"]
    if not isinstance(raw, list):
        raise broken("`merges` is no list")
    merges = []
    for entry in raw:
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise broken(f"the merge {ascii(entry)[:60]} is no pair of tokens")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise broken(f"the merge {ascii(entry)[:60]} is not of tokens in `vocab`")
        merges.append((left, right))
    return merges


def unreached(vocab: dict[str, int], merges: list[tuple[str, str]], tokens: Iterable[str]) -> list[str]:
    """The `tokens` into which merging alone does not turn their text."""
    from tokenizers.models import BPE

    plain = BPE(vocab=vocab, merges=merges)
    return [text for text in tokens if [piece.id for piece in plain.tokenize(text)] != [vocab[text]]]


def _sentencepiece(
    tokenizer: dict[str, Any], vocab: dict[str, int], tokens: list[str], types: list[int], prefix: bool
) -> dict[str, Any]:
    """The entries of a vocabulary that falls back on bytes; marks these in `types`, and the unknown token."""
    unknown = tokenizer["model"].get("unk_token")
    if unknown is not None and (not isinstance(unknown, str) or unknown not in vocab):
        raise broken("`unk_token` is not in `vocab`")
    if any(f"<0x{byte:02X}>" not in vocab for byte in range(256)):
        raise broken("it falls back on bytes, and not all 256 are in `vocab`")
    entries: dict[str, Any] = {"model": "", "pre": "", "tokens": tokens}
    for id, token in enumerate(tokens):
        if token == unknown:
            types[id] = TOKEN_UNKNOWN
            entries["unknown_token_id"] = id
        elif types[id] == TOKEN_NORMAL and _BYTE.fullmatch(token):
            types[id] = TOKEN_BYTE
        elif types[id] == TOKEN_USER:
            tokens[id] = token.replace("▁", " ")
    return {**entries, "token_type": types, "add_space_prefix": prefix}


def _scored(
    vocab: dict[str, int], merges: list[tuple[str, str]], tokens: list[str], types: list[int]
) -> dict[str, Any]:
    """The entries of a vocabulary that merges by scores; UnsupportedModel where none give the order of `merges`."""
    ordinary = [token for token, type in zip(tokens, types, strict=True) if type == TOKEN_NORMAL]
    scores = _scores(vocab, merges, ordinary)
    return {"model": "llama", "pre": "default", "scores": [scores.get(token, 0.0) for token in tokens]}


def _scores(vocab: dict[str, int], merges: list[tuple[str, str]], ordinary: list[str]) -> dict[str, float]:
    """Scores by which merging goes in the order of `merges`.

    There are such scores where every way to put a token together is a merge, and where all ways to the same token have
    ranks next to each other, as in tokenizers made from SentencePiece's. Raises UnsupportedModel elsewhere.
    """
    scores: dict[str, float] = {}
    previous = ""
    for left, right in merges:
        token = left + right
        if token != previous and token in scores:
            raise _no_scores()
        scores.setdefault(token, -float(len(scores) + 1))
        previous = token
    pairs = set(merges)
    for token in ordinary:
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if any(a in vocab and b in vocab and (a, b) not in pairs for a, b in splits):
            raise _no_scores()
    return scores


def _no_scores() -> UnsupportedModel:
    return UnsupportedModel("its merges are in an order that no scores of tokens can express, as llama.cpp needs them")


def _prefix_space(tokenizer: dict[str, Any], added: Sequence[AddedToken]) -> tuple[bool, list[list[str]], Space]:
    """Whether a text gets a space in front; the steps for our runtime, and the stretches to which it adds the space.

    llama.cpp puts a space in front of each stretch of text, whatever it begins with, and does no steps. Raises
    UnsupportedModel where spaces do not become `▁`, and for steps that neither does.
    """
    found: list[list[str]] = []
    prefix = replaced = own = False
    space: Space = ""
    for step in steps(tokenizer.get("normalizer"), "normalizers"):
        known = read_step(step)
        if known is None:
            raise unsupported(step)
        prefix |= known == ["Prepend", "▁"]
        replaced |= known == ["Replace", " ", "▁"]
        own |= known not in (["Prepend", "▁"], ["Replace", " ", "▁"])
        found.append(known)
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("replacement") == "▁" and _stays_whole(step, tokenizer):
            replaced, space = True, prefix_space(step)
            prefix |= space != "never"
        elif step.get("type") != "Split" or step.get("pattern") != {"String": " "}:
            raise unsupported(step)
    if not replaced:
        raise UnsupportedModel("its tokenizer keeps spaces, and llama.cpp needs them replaced by `▁`")
    prepared = bool(found) and [token for token in added if token.normalized]
    own |= any(prefix or token.lstrip or token.rstrip or token.single_word for token in prepared or ())
    if own:
        return prefix, found, space or "never"
    return prefix, [], space if prefix and space else ""


def _stays_whole(metaspace: dict[str, Any], tokenizer: dict[str, Any]) -> bool:
    """Whether a text is not cut at spaces, or cutting makes no difference, since tokens have spaces only in front."""
    return not metaspace.get("split", True) or not any("▁" in token[1:] for token in tokenizer["model"]["vocab"])
