"""A model's vocabulary as llguidance reads it: the bytes of each token, and text to tokens."""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLTokenizer, TokenizerWrapper

from runtime.llama.vocabulary import Vocabulary

# llguidance takes a token whose bytes begin so for one that no text can spell.
_SPECIAL = b"\xff"
# Tokenizers of SentencePiece put a space before a text. After one of these a text begins in the middle of a line.
_GUARDS = ("", "\n", "a")


class Words:
    """The attributes that llguidance's wrapper asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        pieces = [vocabulary.piece(token) for token in range(vocabulary.size)]
        ends = [token for token in range(vocabulary.size) if vocabulary.ends(token)]
        # An end token ends the answer even where it has a text.
        self.special_token_ids = sorted({*(token for token, piece in enumerate(pieces) if not piece), *ends})
        self.tokens = pieces
        for token in self.special_token_ids:
            self.tokens[token] = _SPECIAL + f"{token}".encode()
        self.end_token_ids = ends
        self.eos_token_id = ends[0] if ends else 0
        self._greedy: LLTokenizer | None = None

    def tokenizer(self) -> LLTokenizer:
        """llguidance's own tokenizer, made of this one. It takes 0.2 s for 50,000 tokens."""
        made = LLTokenizer(TokenizerWrapper(self), eos_token=self.end_token_ids or None)
        self._greedy = made
        return made

    def __call__(self, data: bytes) -> Sequence[int]:
        """The tokens that the model's tokenizer makes of `data` (UTF-8) in the middle of a text.

        Where it changes the text, the longest tokens that spell it.
        """
        text = data.decode(errors="replace")
        for guard in _GUARDS:
            ids = self._vocabulary.tokenize(guard + text, special=False, add=False)
            start, length = 0, 0
            head = b"".join(self.tokens[token] for token in ids).find(data) if guard else 0
            while length < head and start < len(ids):
                length += len(self.tokens[ids[start]])
                start += 1
            rest = ids[start:]
            if length == head and b"".join(self.tokens[token] for token in rest) == data:
                return rest.tolist()
        return self._greedy.greedy_tokenize(text) if self._greedy else []
