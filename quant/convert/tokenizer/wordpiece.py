"""WordPiece vocabularies as BERT's: words cut at spaces and punctuation, then from the left into the longest pieces.

llama.cpp marks beginnings of words (`▁`) where `tokenizer.json` marks the rest (`##`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quant.convert.tokenizer.added import AddedToken, ids_by_text, merge_added, note
from quant.convert.tokenizer.vocabulary import VocabularyPlan, broken, framing, place_tokens, read_added, read_vocab
from quant.errors import UnsupportedModel
from quant.gguf.header import TOKEN_CONTROL, TOKEN_UNKNOWN, TOKEN_USER

_PREFIX = "##"


def read(tokenizer: dict[str, Any], size: int, decoder: Mapping[int, AddedToken]) -> VocabularyPlan:
    """The vocabulary of a `tokenizer.json` with a model of the type WordPiece."""
    model = tokenizer["model"]
    if model.get("continuing_subword_prefix", _PREFIX) != _PREFIX:
        raise UnsupportedModel("a tokenizer that marks the parts of words otherwise than by `##` cannot be converted")
    vocab = read_vocab(model)
    added = merge_added(read_added(tokenizer), decoder, vocab, size)
    tokens, types = place_tokens(vocab, added, size)
    unknown = vocab.get(str(model.get("unk_token")))
    if unknown is None:
        raise broken("`unk_token` is not in `vocab`")
    first, last = framing(tokenizer)
    if first is None or last is None:
        raise UnsupportedModel("its tokenizer puts nothing before and after a text, and llama.cpp always does")
    types[unknown] = TOKEN_UNKNOWN
    normalizer = _normalizer(tokenizer)
    # Without its mark, the rest of a word may look like an added token, and the other way round.
    hidden = {token.id for token in added if types[token.id] == TOKEN_USER or token.text.isalnum()}
    noted = note(added, tokens, types, _steps(normalizer, added), hidden=hidden)
    entries: dict[str, Any] = {
        "model": "bert",
        "pre": "default",
        "tokens": [_marked(token, type) for token, type in zip(tokens, types, strict=True)],
        "token_type": types,
        "unknown_token_id": unknown,
        "seperator_token_id": last,
        "cls_token_id": first,
        **normalizer,
    }
    if "[MASK]" in vocab:
        entries["mask_token_id"] = vocab["[MASK]"]
    ids = ids_by_text(vocab, added)
    return VocabularyPlan(ids, entries, first, last, noted)


def _marked(token: str, type: int) -> str:
    if type in (TOKEN_CONTROL, TOKEN_UNKNOWN, TOKEN_USER):
        return token
    rest = token.startswith(_PREFIX) and len(token) > len(_PREFIX)
    return token[len(_PREFIX) :] if rest else "▁" + token


def _steps(normalizer: Mapping[str, Any], added: Sequence[AddedToken]) -> list[list[str]]:
    """The steps after which `normalized` added tokens are looked for; none where there are no such tokens."""
    if not any(token.normalized for token in added):
        return []
    wanted = {"BertAccents": "normalizer.strip_accents", "Lowercase": "normalizer.lowercase"}
    return [["BertClean"], *([name] for name, entry in wanted.items() if normalizer[entry])]


def _normalizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Lower case and accents; all else that BERT's normalizer does, llama.cpp does too."""
    step, cutting = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if not isinstance(step, dict) or step.get("type") != "BertNormalizer":
        raise UnsupportedModel("its tokenizer prepares text in another way than BERT's")
    if not isinstance(cutting, dict) or cutting.get("type") != "BertPreTokenizer":
        raise UnsupportedModel("its tokenizer cuts text in another way than BERT's")
    if not step.get("clean_text", True) or not step.get("handle_chinese_chars", True):
        raise UnsupportedModel("its tokenizer leaves control characters or Chinese words as they are")
    lowercase = bool(step.get("lowercase", True))
    accents = step.get("strip_accents")
    strip = lowercase if accents is None else bool(accents)
    return {"normalizer.lowercase": lowercase, "normalizer.strip_accents": strip}
