"""Turns `tokenizer.json` into the vocabulary of a GGUF file.

Two kinds are covered: byte-level BPE (GPT-2's alphabet of printable bytes; GGUF model `gpt2`), and BPE with byte
fallback as it was made from SentencePiece (spaces as `▁`; GGUF model `llama`). llama.cpp merges the latter by the score
of the result where tokenizer.json ranks pairs, so scores are worked out from the ranks, and only where both orders are
the same. Not covered: Unigram, WordPiece, `tokenizer.model` alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.convert.config import MAX_JSON, read_whole
from quant.convert.pretokenizer import check_name, listed, recognise
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf import TOKEN_BYTE, TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_UNUSED, TOKEN_USER
from quant.plan import Files
from quant.safetensors import load_json

FILE = "tokenizer.json"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
# Added tokens of this look steer the model even where they are not marked as special, as llama.cpp has it.
_STEERING = re.compile(r"<\|.*\|>|<｜.*｜>|<unused\d+>|<pad>|<mask>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens` by id, padded to the model's size, their GGUF `types`, ids by text, and the `tokenizer.ggml.*` entries.

    `first` and `last` are the ids that the tokenizer itself puts before and after a text, None for none.
    """

    ids: Mapping[str, int]
    entries: dict[str, Any]
    first: int | None = None
    last: int | None = None


def read_vocabulary(files: Files, size: int, pre: str | None = None) -> Vocabulary:
    """The vocabulary in `tokenizer.json` for a model of `size` embeddings; `pre` names the pre-tokenizer by hand.

    Raises MalformedFile for a file that contradicts itself or the model, UnsupportedModel for a kind of tokenizer that
    llama.cpp would not follow exactly.
    """
    if FILE not in files.names():
        hint = "save the tokenizer with transformers' `AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
        raise UnsupportedModel(f"there is no `{FILE}`", hint=hint)
    tokenizer = load_json(read_whole(files, FILE, MAX_JSON), FILE)
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise _broken("it has no `model`")
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedModel(f"a tokenizer of the type `{ascii(model['type'])[:40]}` cannot be converted yet")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedModel("a tokenizer that marks the parts of words cannot be converted")
    vocab, merges = _vocab(model), _merges(model)
    added = _added(tokenizer)
    tokens, types = _tokens(vocab, added, size)
    if model.get("byte_fallback"):
        entries = _sentencepiece(tokenizer, vocab, merges, tokens, types)
    else:
        name = check_name(pre) if pre else recognise(tokenizer, lambda: _merges_reach(vocab, merges, types))
        entries = {"model": "gpt2", "pre": name, "tokens": tokens, "token_type": types}
        entries["merges"] = [f"{left} {right}" for left, right in merges]
    if len(set(tokens)) != len(tokens):
        raise _broken("two tokens have the same text")
    first, last = _framing(tokenizer)
    ids = {**vocab, **{content: id for id, content, _ in added}}
    return Vocabulary(ids, {f"tokenizer.ggml.{key}": value for key, value in entries.items()}, first, last)


def _broken(rule: str) -> MalformedFile:
    return MalformedFile(f"`{FILE}` is not a valid tokenizer: {rule}")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 24


def _vocab(model: dict[str, Any]) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise _broken("`vocab` is no object from tokens to numbers")
    if not all(map(_is_id, vocab.values())):
        raise _broken("`vocab` has an entry whose number is none")
    if len(set(vocab.values())) != len(vocab):
        raise _broken("two tokens of `vocab` have the same number")
    return vocab


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs to merge, best first, from pairs or from strings with a space; each must make a token out of tokens."""
    raw, vocab = model.get("merges"), model["vocab"]
    if not isinstance(raw, list):
        raise _broken("`merges` is no list")
    merges = []
    for entry in raw:
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise _broken(f"the merge {ascii(entry)[:60]} is no pair of tokens")
        left, right = pair
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise _broken(f"the merge {ascii(entry)[:60]} is not of tokens in `vocab`")
        merges.append((left, right))
    return merges


def _added(tokenizer: dict[str, Any]) -> list[tuple[int, str, bool]]:
    """The added tokens: number, text, and whether it is special."""
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise _broken("`added_tokens` is no list of objects")
    entries = [(entry.get("id"), entry.get("content"), bool(entry.get("special"))) for entry in added]
    if not all(_is_id(id) and isinstance(content, str) and content for id, content, _ in entries):
        raise _broken("an added token has no text or no number")
    return entries


def _tokens(vocab: dict[str, int], added: list[tuple[int, str, bool]], size: int) -> tuple[list[str], list[int]]:
    """Texts and types by number. Numbers that nobody uses, up to the model's size, become tokens marked as unused."""
    texts = {id: text for text, id in vocab.items()}
    types = dict.fromkeys(texts, TOKEN_NORMAL)
    for id, content, special in added:
        if vocab.get(content, id) != id or texts.get(id, content) != content:
            raise _broken(f"the added token {ascii(content)[:60]} and `vocab` disagree about number {id}")
        texts[id] = content
        types[id] = TOKEN_CONTROL if special or _STEERING.fullmatch(content) else TOKEN_USER
    if max(texts) >= size:
        raise MalformedFile(f"`{FILE}` has token number {max(texts)}, and the model only {size} embeddings")
    taken = set(texts.values())
    for id in range(size):
        if id not in texts:
            name = f"[PAD{id}]"
            while name in taken:
                name += "_"
            texts[id], types[id] = name, TOKEN_UNUSED
    return [texts[id] for id in range(size)], [types[id] for id in range(size)]


def _merges_reach(vocab: dict[str, int], merges: list[tuple[str, str]], types: list[int]) -> bool:
    """Whether merging alone turns the text of every ordinary token back into that token."""
    from tokenizers.models import BPE

    plain = BPE(vocab=vocab, merges=merges)
    ordinary = (item for item in vocab.items() if types[item[1]] == TOKEN_NORMAL)
    return all([piece.id for piece in plain.tokenize(text)] == [id] for text, id in ordinary)


def _sentencepiece(
    tokenizer: dict[str, Any],
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    tokens: list[str],
    types: list[int],
) -> dict[str, Any]:
    """The entries of a vocabulary that falls back on bytes; marks these in `types`, and the unknown token."""
    unknown = tokenizer["model"].get("unk_token")
    if unknown is not None and (not isinstance(unknown, str) or unknown not in vocab):
        raise _broken("`unk_token` is not in `vocab`")
    if any(f"<0x{byte:02X}>" not in vocab for byte in range(256)):
        raise _broken("it falls back on bytes, and not all 256 are in `vocab`")
    entries: dict[str, Any] = {"model": "llama", "pre": "default", "tokens": tokens}
    for id, token in enumerate(tokens):
        if token == unknown:
            types[id] = TOKEN_UNKNOWN
            entries["unknown_token_id"] = id
        elif types[id] == TOKEN_NORMAL and _BYTE.fullmatch(token):
            types[id] = TOKEN_BYTE
        elif types[id] == TOKEN_USER:
            tokens[id] = token.replace("▁", " ")
    ordinary = [token for token, type in zip(tokens, types, strict=True) if type == TOKEN_NORMAL]
    scores = _scores(vocab, merges, ordinary)
    entries["scores"] = [scores.get(token, 0.0) for token in tokens]
    return {**entries, "token_type": types, "add_space_prefix": _prefix_space(tokenizer)}


def _scores(vocab: dict[str, int], merges: list[tuple[str, str]], ordinary: list[str]) -> dict[str, float]:
    """Scores by which merging goes in the order of `merges`.

    That works where every way to put a token together is a merge, and all those ways have ranks next to each other, as
    in the tokenizers that were made from SentencePiece's; UnsupportedModel elsewhere.
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


def _prefix_space(tokenizer: dict[str, Any]) -> bool:
    """Whether text gets a space in front; UnsupportedModel unless spaces become `▁` and nothing else happens."""
    steps = _steps(tokenizer.get("normalizer"), "normalizers") + _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    prefix = replaced = False
    for step in steps:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == "▁":
            prefix = True
        elif kind == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == "▁":
            replaced = True
        elif kind == "Metaspace" and step.get("replacement") == "▁" and not step.get("split", False):
            replaced = True
            prefix = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
        elif kind != "Split" or step.get("pattern") != {"String": " "}:
            raise UnsupportedModel(f"its tokenizer has the step `{ascii(kind)[:40]}`, which llama.cpp does not know")
    if not replaced:
        raise UnsupportedModel("its tokenizer keeps spaces, and llama.cpp needs them replaced by `▁`")
    return bool(prefix)


def _steps(step: Any, inner: str) -> list[dict[str, Any]]:
    """A step and those inside of it, flat; `inner` is the key under which a sequence has them."""
    if step is None:
        return []
    if not isinstance(step, dict):
        raise _broken("a step is no object")
    if step.get("type") == "Sequence":
        return [part for entry in listed(step, inner) for part in _steps(entry, inner)]
    return [step]


def _framing(tokenizer: dict[str, Any]) -> tuple[int | None, int | None]:
    """The special tokens that the post-processor puts before and after a single text."""
    for step in _steps(tokenizer.get("post_processor"), "processors"):
        if step.get("type") == "TemplateProcessing":
            parts = [next(iter(part.items())) for part in listed(step, "single") if isinstance(part, dict) and part]
            kinds = [kind for kind, _ in parts]
            if "Sequence" in kinds:
                here = kinds.index("Sequence")
                return _special(step, parts[:here][:1]), _special(step, parts[here + 1 :][-1:])
    return None, None


def _special(step: dict[str, Any], parts: list[tuple[str, Any]]) -> int | None:
    """The number of the special token that is the only one of `parts`, if it is one."""
    names = [value.get("id") for kind, value in parts if kind == "SpecialToken" and isinstance(value, dict)]
    known = step.get("special_tokens")
    token = known.get(str(names[0])) if names and isinstance(known, dict) else None
    ids = token.get("ids") if isinstance(token, dict) else None
    return ids[0] if isinstance(ids, list) and ids and _is_id(ids[0]) else None
