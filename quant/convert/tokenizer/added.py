"""Added tokens, and the note for our runtime with their properties for which GGUF has no entries.

The note (`quant/notes.py`) is written only where llama.cpp alone would tokenize some text otherwise than the original
tokenizer. `runtime/text/tokenizer.py` follows it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from quant.convert.config import ModelConfig
from quant.errors import MalformedFile
from quant.gguf.header import TOKEN_CONTROL, TOKEN_UNKNOWN, TOKEN_USER
from quant.notes import PLAIN_STEPS, TOKENIZER, NotedToken, Space, TokenizerNote
from quant.plan import Files

_CONFIG = "tokenizer_config.json"
# Put in front of the text of a token that llama.cpp must not find: a noncharacter, which no prompt has.
_HIDDEN = "\ufdd0"


class AddedToken(NamedTuple):
    """An added token, as `tokenizer.json` and the `added_tokens_decoder` of `tokenizer_config.json` describe it.

    `lstrip`, `rstrip`: it takes the white space to its left, to its right. `single_word`: it counts only as a word of
    its own. `normalized`: it is searched for after the normalizer, else before. `special`: it steers the model.
    """

    id: int
    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @classmethod
    def read(cls, id: Any, entry: Any, where: str) -> AddedToken:
        """From its object in a file; MalformedFile when it has no number or no text."""
        text = entry.get("content") if isinstance(entry, dict) else None
        if not is_id(id) or not isinstance(text, str) or not text:
            hint = "save the tokenizer anew with transformers, or take it from the makers of the model"
            raise MalformedFile(f"`{where}` is not valid: an added token has no text or no number", hint)
        return cls(id, text, *(bool(entry.get(name)) for name in cls._fields[2:]))

    def flags(self, type: int) -> str:
        """`NotedToken.flags` for a token of this GGUF type, without `h`, which `note` adds."""
        flags = (self.lstrip, self.rstrip, self.single_word, self.normalized, type in (TOKEN_CONTROL, TOKEN_UNKNOWN))
        return "".join(letter for letter, flag in zip("lrwns", flags, strict=True) if flag)


def is_id(value: Any) -> bool:
    """Whether this can be the number of a token."""
    return type(value) is int and 0 <= value < 1 << 24


def read_decoder(files: Files) -> dict[int, AddedToken]:
    """The added tokens of `tokenizer_config.json` by id. Raises MalformedFile for an entry without id or text."""
    decoder = ModelConfig.read(files, _CONFIG).part("added_tokens_decoder")
    entries = [
        (int(number) if number.isascii() and number.isdecimal() and len(number) < 9 else None, entry)
        for number, entry in decoder.values.items()
    ]
    return {token.id: token for id, entry in entries for token in [AddedToken.read(id, entry, decoder.name)]}


def within(added: Mapping[int, AddedToken], size: int) -> tuple[dict[int, AddedToken], tuple[str, ...]]:
    """The added tokens that have one of the `size` embeddings, and a remark on the others."""
    kept = {id: token for id, token in added.items() if id < size}
    texts = [f"`{ascii(token.text)[1:-1][:40]}`" for id, token in sorted(added.items()) if id >= size]
    if not texts:
        return kept, ()
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    what = "added token" if len(texts) == 1 else "added tokens"
    return kept, (f"no embedding for the {what} {', '.join(texts[:3])}{more}, left out",)


def ids_by_text(vocab: Mapping[str, int], added: Iterable[AddedToken]) -> dict[str, int]:
    """The numbers of all tokens, ordinary and added."""
    return {**vocab, **{token.text: token.id for token in added}}


def merge_added(
    added: Sequence[AddedToken], decoder: Mapping[int, AddedToken], vocab: Mapping[str, int], size: int
) -> list[AddedToken]:
    """The tokens `added` in `tokenizer.json`, changed and completed by the newer ones in `tokenizer_config.json`.

    transformers does so, too. A newer one is left out where its text has another id, its id another text, or where its
    id is not below `size`.
    """
    ids = ids_by_text(vocab, added)
    used_ids = set(ids.values())
    newer = {
        id: token
        for id, token in decoder.items()
        if ids.get(token.text) == id or (token.text not in ids and id not in used_ids and id < size)
    }
    return list(({token.id: token for token in added} | newer).values())


def read_step(step: Mapping[str, Any]) -> list[str] | None:
    """A normalizer of `tokenizer.json` as a step of the note, None where our runtime does not have it."""
    kind = step.get("type")
    if kind == "Prepend":
        arguments: list[Any] = [step.get("prepend")]
    elif kind == "Replace":
        pattern = step.get("pattern")
        arguments = [pattern.get("String") if isinstance(pattern, dict) else None, step.get("content")]
    else:
        arguments = [] if kind in PLAIN_STEPS else [None]
    if not all(isinstance(value, str) for value in arguments) or arguments[:1] == [""]:
        return None
    return [str(kind), *arguments]


def note(
    added: Iterable[AddedToken],
    tokens: list[str],
    types: Sequence[int],
    steps: Sequence[list[str]] = (),
    space: Space = "",
    end: tuple[int, str] | None = None,
    hidden: Container[int] = (),
) -> dict[str, str]:
    """The entry with the note, empty when llama.cpp needs none.

    Some added tokens get a text in `tokens` that no prompt has, so that llama.cpp does not find them. These are the
    `hidden` ones, and tokens that anybody may write and that llama.cpp would find where the original does not.
    """
    added = list(added)
    if not (steps or space or end or any(t.lstrip or t.rstrip or t.single_word or t.id in hidden for t in added)):
        return {}
    entries = []
    prepended = any(step[0] == "Prepend" for step in steps)
    for token in added:
        type = types[token.id]
        stray = type == TOKEN_USER and (token.single_word or (token.normalized and prepended))
        flags = token.flags(type)
        if stray or token.id in hidden:
            tokens[token.id] = _HIDDEN + token.text
            flags += "h"
        entries.append(NotedToken(token.id, token.text, flags))
    return {TOKENIZER: TokenizerNote(entries, list(steps), space, end).encode()}
