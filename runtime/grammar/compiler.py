"""From a request's grammar to a matcher for its answers, within bounds of time and memory.

llguidance does the work. Its own limits count steps and states; a call that is made once here, before anything is
computed, shows what the first masks take. A grammar that passes and becomes too complex later ends its own request
(`runtime/grammar/matcher.py`).
"""

from __future__ import annotations

import json
import re
import time
from functools import cached_property
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from runtime.errors import BadRequest
from runtime.grammar.bounds import check_repeats, check_rules
from runtime.grammar.matcher import Matcher
from runtime.grammar.schema import prepare
from runtime.grammar.words import Words
from runtime.llama.vocabulary import Vocabulary
from runtime.messages import Grammar

# Seconds of processor time that a grammar may take before its first token.
_PATIENCE = 2.0
# JSON is written in one line, as Python's `json.dumps` does. So no answer is lost in white space, and all that stands
# between a property's name and its value is forced.
_LAYOUT: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
# Words of llguidance's errors that tell which keyword it could not keep, where they do not name it.
_BLAMED = {
    r"regex|lookaround": "pattern",
    r"Resource|Pointer": "$ref",
    r"multiple of": "multipleOf",
    r"min/maxProperties": "minProperties",
    r"patternProperty": "patternProperties",
}


class Compiler:
    """Compiles grammars for one vocabulary. llguidance's form of the vocabulary is made for the first one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return Words(self._vocabulary).tokenizer()

    @cached_property
    def _limits(self) -> LLParserLimits:
        return LLParserLimits(
            max_items_in_row=8_192,
            initial_lexer_fuel=500_000,
            step_lexer_fuel=50_000,
            step_max_items=20_000,
            max_lexer_states=50_000,
            verbose_errors=False,
        )

    def compile(self, grammar: Grammar) -> Matcher:
        """The matcher at its beginning. Raises BadRequest.

        Needs a thread with a large stack (`runtime/engine/compiling.py`).
        """
        started = time.thread_time()
        try:
            source = self._source(grammar)
        except (ValueError, IndexError) as error:
            raise _refusal(grammar, str(error)) from None
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())
        made = Matcher(matcher, self._vocabulary.size)
        trial = made.copy()
        trial.forced()
        if not trial.complete and not trial.allowed().any():
            raise BadRequest("no answer can satisfy this grammar", "correct it")
        if time.thread_time() - started > _PATIENCE:
            raise BadRequest("the grammar is too large", "make it simpler")
        return made

    def _source(self, grammar: Grammar) -> str:
        """The grammar in llguidance's own form."""
        text = grammar.text
        match grammar.kind:
            case "json":
                return str(LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_LAYOUT))
            case "schema":
                return str(LLMatcher.grammar_from_json_schema(json.dumps(prepare(text)), overrides=_LAYOUT))
            case "regex":
                check_repeats(text, "regex")
                return str(LLMatcher.grammar_from_regex(text))
            case "gbnf" | "lark":
                check_rules(text)
                return str(grammar_from(grammar.kind, text))


def _refusal(grammar: Grammar, reason: str) -> BadRequest:
    """The error about a grammar, from llguidance's words."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    shown = (lines[-1] if lines and "regex parse error" in reason else lines[0] if lines else "it is empty")[:300]
    if grammar.kind not in ("json", "schema"):
        return BadRequest(f"`grammar` is refused: {shown}", "correct it")
    named = [keyword for words, keyword in _BLAMED.items() if re.search(words, reason)]
    keyword = f"`{named[0]}`" if named else "the schema"
    return BadRequest(f"{keyword} cannot be kept: {shown}", "correct it or leave it out")
