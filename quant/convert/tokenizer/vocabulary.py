"""The plan of a vocabulary, and the parts of `tokenizer.json` that all kinds share: ids, added tokens, steps."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quant.convert.tokenizer.added import AddedToken, is_id, read_step
from quant.convert.tokenizer.pretokenizer import list_in
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.header import TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNUSED, TOKEN_USER
from quant.notes import Space

FILE = "tokenizer.json"
# Added tokens of this form steer the model even where they are not marked as special; llama.cpp treats them so.
STEERING = re.compile(r"<\|.*\|>|<｜.*｜>|<unused\d+>|<pad>|<mask>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class VocabularyPlan:
    """A vocabulary as GGUF will have it.

    - `ids`: the ids of all tokens by their texts in the source.
    - `entries`: the entries `tokenizer.ggml.*`: tokens by id, padded to the model's size, their types, ….
    - `first`, `last`: the ids that the tokenizer itself puts before and after a text, None for none.
    - `end`: the id that ends a text whatever other files say; it stands before a text as well.
    - `note`: the entry `lm.tokenizer`, empty where llama.cpp needs none.
    - `remarks`: what was left out, as `ModelPlan.remarks` says it.
    """

    ids: Mapping[str, int]
    entries: dict[str, Any]
    first: int | None = None
    last: int | None = None
    note: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    end: int | None = None


def broken(rule: str) -> MalformedFile:
    """The error for a `tokenizer.json` that breaks a rule."""
    hint = "save the tokenizer anew with transformers, or take it from the makers of the model"
    return MalformedFile(f"`{FILE}` is not a valid tokenizer: {rule}", hint)


def too_many(name: str, id: int, size: int) -> MalformedFile:
    """The error for a file whose ordinary tokens go beyond the `size` embeddings, to number `id`."""
    hint = "the tokenizer may be another model's; take it from where the weights are from"
    return MalformedFile(f"`{name}` has token number {id}, and the model only {size} embeddings", hint=hint)


def read_vocab(model: dict[str, Any]) -> dict[str, int]:
    """The tokens of a model and their numbers."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise broken("`vocab` is no object from tokens to numbers")
    if not all(map(is_id, vocab.values())):
        raise broken("`vocab` has an id that is no number")
    if len(set(vocab.values())) != len(vocab):
        raise broken("two tokens of `vocab` have the same number")
    return vocab


def read_added(tokenizer: dict[str, Any]) -> list[AddedToken]:
    """The added tokens of a `tokenizer.json`."""
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise broken("`added_tokens` is no list of objects")
    return [AddedToken.read(entry.get("id"), entry, FILE) for entry in added]


def added_type(text: str, special: bool) -> int:
    """GGUF's type of an added token."""
    return TOKEN_CONTROL if special or STEERING.fullmatch(text) else TOKEN_USER


def unused_text(id: int, texts_in_use: Container[str]) -> str:
    """A text for an id that no token has: `[PAD7]` for 7, or longer where `texts_in_use` has it."""
    text = f"[PAD{id}]"
    while text in texts_in_use:
        text += "_"
    return text


def place_tokens(vocab: dict[str, int], added: Sequence[AddedToken], size: int) -> tuple[list[str], list[int]]:
    """The texts and the GGUF types of all tokens by id. Ids below `size` without a token get one of the type unused."""
    texts = {id: text for text, id in vocab.items()}
    types = dict.fromkeys(texts, TOKEN_NORMAL)
    for id, content, special, *_ in added:
        if vocab.get(content, id) != id or texts.get(id, content) != content:
            raise broken(f"the added token {ascii(content)[:60]} and `vocab` disagree about number {id}")
        texts[id] = content
        types[id] = added_type(content, special)
    if max(texts) >= size:
        raise too_many(FILE, max(texts), size)
    texts_in_use = set(texts.values())
    for id in range(size):
        if id not in texts:
            texts[id], types[id] = unused_text(id, texts_in_use), TOKEN_UNUSED
    return [texts[id] for id in range(size)], [types[id] for id in range(size)]


def steps(step: Any, inner: str) -> list[dict[str, Any]]:
    """A step of `tokenizer.json` as a flat list: the steps of a `Sequence`, under key `inner`, or the step itself."""
    if step is None:
        return []
    if not isinstance(step, dict):
        raise broken("a step is no object")
    if step.get("type") == "Sequence":
        return [part for entry in list_in(step, inner) for part in steps(entry, inner)]
    return [step]


def preparation(step: Any) -> list[list[str]]:
    """The steps of a normalizer as our runtime does them; UnsupportedModel where it cannot."""
    found = []
    for part in steps(step, "normalizers"):
        known = read_step(part)
        if known is None:
            raise unsupported(part)
        found.append(known)
    return found


def unsupported(step: Mapping[str, Any]) -> UnsupportedModel:
    """The error for a step that neither llama.cpp nor our runtime does."""
    return UnsupportedModel(f"its tokenizer has the step `{ascii(step.get('type'))[1:-1][:40]}`, which cannot be done")


def prefix_space(step: Mapping[str, Any]) -> Space:
    """The stretches of text that a `Metaspace` puts a space in front of: `each`, the `first`, or none (`never`)."""
    scheme = step.get("prepend_scheme", "always")
    if scheme not in ("always", "first", "never"):
        raise broken("`prepend_scheme` is neither `always`, `first` nor `never`")
    if not step.get("add_prefix_space", True):
        return "never"
    return "each" if scheme == "always" else "first" if scheme == "first" else "never"


def framing(tokenizer: dict[str, Any]) -> tuple[int | None, int | None]:
    """The special tokens that the post-processor puts before and after a single text."""
    for step in steps(tokenizer.get("post_processor"), "processors"):
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return _number(step.get("cls")), _number(step.get("sep"))
        if step.get("type") == "TemplateProcessing":
            parts = [next(iter(part.items())) for part in list_in(step, "single") if isinstance(part, dict) and part]
            kinds = [kind for kind, _ in parts]
            if "Sequence" in kinds:
                here = kinds.index("Sequence")
                return _special(step, parts[:here][:1]), _special(step, parts[here + 1 :][-1:])
    return None, None


def _number(pair: Any) -> int | None:
    """The number of a token given with its text."""
    return pair[1] if isinstance(pair, list) and len(pair) == 2 and is_id(pair[1]) else None


def _special(step: dict[str, Any], parts: list[tuple[str, Any]]) -> int | None:
    """The number of the special token that is the only one of `parts`, if it is one."""
    names = [value.get("id") for kind, value in parts if kind == "SpecialToken" and isinstance(value, dict)]
    known = step.get("special_tokens")
    token = known.get(str(names[0])) if names and isinstance(known, dict) else None
    ids = token.get("ids") if isinstance(token, dict) else None
    return ids[0] if isinstance(ids, list) and ids and is_id(ids[0]) else None
