"""Whether one model can draft for another: both must mean the same by each token.

As llama.cpp's speculative decoding judges it (`common_speculative_are_compatible` in `common/speculative.cpp`): both
vocabularies are of one kind and nearly one size, and put the same tokens before and after a text. The texts of tokens
are the same, but for the first few.
"""

from __future__ import annotations

from quant.errors import UnsupportedModel
from quant.gguf.header import Header

# How many tokens one vocabulary may have more than the other, and the first tokens whose texts may differ
# (`SPEC_VOCAB_MAX_SIZE_DIFFERENCE`, `SPEC_VOCAB_CHECK_START_TOKEN_ID`).
MOST_MORE, FIRST_COMPARED = 128, 5
# Whether llama.cpp adds a token before and after texts where a file does not say (`llama_vocab::impl::load`).
_ADDED = {"llama": (True, False), "bert": (True, True), "t5": (False, True)}
_SHOWN = 40


def check_draft(draft: Header, base: Header, name: str, base_name: str) -> None:
    """Raise UnsupportedModel unless the model `draft`, called `name`, can draft for `base`, called `base_name`."""
    hint = "name a smaller model of the same family, with the same vocabulary"

    def refuse(reason: str) -> UnsupportedModel:
        return UnsupportedModel(f"`{name}` cannot draft for `{base_name}`: {reason}", hint)

    kinds = [str(header.metadata.get("tokenizer.ggml.model", "")) for header in (draft, base)]
    if kinds[0] != kinds[1]:
        raise refuse(f"their vocabularies are of two kinds, `{kinds[0][:_SHOWN]}` and `{kinds[1][:_SHOWN]}`")
    for number, which in enumerate(("bos", "eos")):
        if _frame(draft, which, number, kinds[0]) != _frame(base, which, number, kinds[0]):
            where = "before" if which == "bos" else "after"
            raise refuse(f"they do not put the same token {where} a text")
    texts, base_texts = (header.metadata.get("tokenizer.ggml.tokens") or [] for header in (draft, base))
    if not (isinstance(texts, list) and isinstance(base_texts, list) and texts and base_texts):
        raise refuse("one of them has no vocabulary")
    if abs(len(texts) - len(base_texts)) > MOST_MORE:
        raise refuse(f"their vocabularies have {len(texts):,} and {len(base_texts):,} tokens")
    for token in range(FIRST_COMPARED, min(len(texts), len(base_texts))):
        if texts[token] != base_texts[token]:
            mine, other = (_text(each[token]) for each in (texts, base_texts))
            raise refuse(f"token {token} is `{mine}` in one and `{other}` in the other")


def _frame(header: Header, which: str, number: int, kind: str) -> object:
    """The token that is added before or after a text; None where none is."""
    added = header.metadata.get(f"tokenizer.ggml.add_{which}_token", _ADDED.get(kind, (False, False))[number])
    return header.metadata.get(f"tokenizer.ggml.{which}_token_id") if added else None


def _text(value: object) -> str:
    return ascii(value)[1:-1][:_SHOWN]
