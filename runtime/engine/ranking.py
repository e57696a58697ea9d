"""The inputs of a ranking model: a query and a document in its own template, or with special tokens between them.

As `format_prompt_rerank` of llama-server, except that control tokens which a user spells are not parsed.
"""

from __future__ import annotations

import re
from array import array
from typing import Any

from runtime.errors import BadRequest, PromptTooLong
from runtime.llama.context import POOLING_RANK
from runtime.llama.model import LlamaModel

_PLACEHOLDERS = re.compile(r"(\{query\}|\{document\})")


class Ranker:
    """Makes the inputs of one model. Safe to call from any thread."""

    def __init__(self, model: LlamaModel, pooling: int, limit: int) -> None:
        """An input has at most `limit` tokens; `pooling` is the context's."""
        self._model = model
        self._vocabulary = model.vocabulary
        self._ranks = pooling == POOLING_RANK
        self._limit = limit
        template = model.rerank_template if self._ranks else None
        self._parts = _PLACEHOLDERS.split(template) if template else []
        controls = sorted(model.vocabulary.control_texts(), key=len, reverse=True) if self._parts else []
        self._token_types = self._read_token_types() if self._ranks and model.encoder else None
        self._control = re.compile("(" + "|".join(map(re.escape, filter(None, controls))) + ")") if controls else None

    def inputs(self, query: str, documents: list[str]) -> list[array[int]]:
        """The token ids of the query with each document; a document that is too long is cut.

        Raises BadRequest where the model does not rank, PromptTooLong where the query alone fills the context.
        """
        if not self._ranks:
            raise BadRequest("this model does not rank texts", "ask one whose capabilities include `rerank`")
        return [self._input(query, document) for document in documents]

    def vectors(self, inputs: list[array[int]], query: str) -> Any:
        """float32 `(tokens, width)`: embeddings of the tokens of `inputs`; None where token ids are enough."""
        if self._token_types is None:
            return None
        import numpy as np  # a worker that only writes starts faster without

        second = len(self._paired(query, "")[0])
        return np.concatenate([self._token_types.vectors(ids, second) for ids in inputs])

    def _read_token_types(self) -> Any:
        from runtime.llama.token_types import TokenTypes  # NumPy, as above

        return TokenTypes.of(self._model)

    def _input(self, query: str, document: str) -> array[int]:
        before, text, after = self._templated(query, document) if self._parts else self._paired(query, document)
        room = self._limit - len(before) - len(after)
        if room < 1:
            raise PromptTooLong(f"the query fills the {self._limit:,} tokens that the model reads", "shorten it")
        return before + text[:room] + after

    def _paired(self, query: str, document: str) -> tuple[array[int], array[int], array[int]]:
        """Query and document with special tokens around them, as three parts of which the middle one may be cut.

        An example is `<s> query </s></s> document </s>` of XLM-RoBERTa.
        """
        vocabulary = self._vocabulary
        first, second = (vocabulary.tokenize(text, special=False, add=False) for text in (query, document))
        bos, eos, sep = (vocabulary.added(which) for which in ("bos", "eos", "sep"))
        return bos + first + eos + sep, second, eos

    def _templated(self, query: str, document: str) -> tuple[array[int], array[int], array[int]]:
        """The template around query and document, as three parts of which the middle one may be cut.

        A tokenizer may join letters across their borders. So the whole is tokenized at once, and the document alone
        only when it has to be cut.
        """
        whole = self._ids(self._filled(query, document))
        if len(whole) <= self._limit:
            return whole[:-1], whole[-1:], array("i")
        middle = self._parts.index("{document}")
        before = self._ids(self._filled(query, "", self._parts[:middle]))
        after = self._ids(self._filled(query, "", self._parts[middle + 1 :]))
        return before, self._vocabulary.tokenize(document, special=False, add=False), after

    def _filled(self, query: str, document: str, parts: list[str] | None = None) -> list[tuple[str, bool]]:
        """The filled template, cut into texts, each with whether control tokens are parsed in it.

        They are parsed everywhere but in control tokens that a user has spelled. All other text stays in one piece with
        the template's, so that it is tokenized together.
        """
        values = {"{query}": query, "{document}": document}
        texts = [("", True)]
        for part in self._parts if parts is None else parts:
            for number, text in enumerate(self._split(values[part]) if part in values else [part]):
                if number % 2:  # `re.split` with a group gives texts and control tokens in turn
                    texts += [(text, False), ("", True)]
                else:
                    texts[-1] = (texts[-1][0] + text, True)
        return texts

    def _split(self, text: str) -> list[str]:
        return self._control.split(text) if self._control else [text]

    def _ids(self, texts: list[tuple[str, bool]]) -> array[int]:
        return self._vocabulary.tokenize_parts([text for text in texts if text[0]])
