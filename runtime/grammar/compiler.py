"""From a request's grammar to a matcher for its answers, within bounds of time and memory.

llguidance does the work. Its own limits count steps and states; a call that is made once here, before anything is
computed, shows what the first masks take. A grammar that passes and becomes too complex later ends its own request
(`runtime/grammar/matcher.py`).
"""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict
from functools import cached_property
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from runtime.answers.forms import CallForm
from runtime.errors import BadRequest
from runtime.grammar.bounds import check_repeats, check_rules
from runtime.grammar.keys import KeyedMatcher, Quotes
from runtime.grammar.matcher import Matcher
from runtime.grammar.schema import prepare
from runtime.grammar.sections import LAYOUT, is_json, section_of
from runtime.grammar.words import Words
from runtime.llama.vocabulary import Vocabulary
from runtime.messages import Grammar

# Grammars that are kept: an app sends the same ones again and again.
_KEPT = 16
# Seconds of processor time that a grammar may take before its first token.
_PATIENCE = 2.0
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
        self._kept: OrderedDict[tuple[str, str], Matcher] = OrderedDict()

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return Words(self._vocabulary).tokenizer()

    @cached_property
    def _quotes(self) -> Quotes:
        return Quotes(self._vocabulary)

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

    def compile(self, grammar: Grammar, *, keyed: bool = False) -> Matcher:
        """The matcher at its beginning, to be copied for each answer. Raises BadRequest.

        No object has a key twice where the grammar is of JSON alone, or where calls are `keyed`.

        Needs a thread with a large stack (`runtime/engine/compiling.py`).
        """
        key = grammar.kind, grammar.text
        made = self._kept.pop(key, None) or self._compiled(grammar, keyed or grammar.kind in ("json", "schema"))
        self._kept[key] = made  # at the end: the first one is the one used longest ago
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return made

    def section(
        self, form: CallForm, tools: list[dict[str, Any]], *, several: bool = False, loose: bool = False
    ) -> Matcher:
        """The matcher of a section of calls by `section_of`. Raises BadRequest."""
        text = section_of(form, tools, self._spelled, several=several, loose=loose)
        return self.compile(Grammar("calls", text), keyed=is_json(form))

    def _spelled(self, text: str) -> str:
        """A text of a template as an expression of Lark: control tokens by their ids, up to one that ends the turn."""
        parts = []
        for part in self._control.split(text) if self._control else [text]:
            ids = self._control_ids.get(part)
            if ids is not None and self._vocabulary.ends(ids):
                break
            if part:
                parts.append(json.dumps(part, ensure_ascii=False) if ids is None else f"<[{ids}]>")
        return " ".join(parts)

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        """The control tokens by their texts."""
        vocabulary = self._vocabulary
        ids = {text: vocabulary.tokenize(text, special=True, add=False) for text in vocabulary.control_texts()}
        return {text: found[0] for text, found in ids.items() if len(found) == 1}

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        texts = sorted(self._control_ids, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts else None

    def _compiled(self, grammar: Grammar, keyed: bool) -> Matcher:
        started = time.thread_time()
        try:
            source = self._source(grammar)
        except (ValueError, IndexError) as error:
            raise _refusal(grammar, str(error)) from None
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())
        made = KeyedMatcher(matcher, self._quotes) if keyed else Matcher(matcher, self._vocabulary.size)
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
                return str(LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=LAYOUT))
            case "schema":
                return str(LLMatcher.grammar_from_json_schema(json.dumps(prepare(text)), overrides=LAYOUT))
            case "regex":
                check_repeats(text, "regex")
                return str(LLMatcher.grammar_from_regex(text))
            case "gbnf" | "lark":
                check_rules(text)
                return str(grammar_from(grammar.kind, text))
            case "calls":
                return str(grammar_from("lark", text))


def _refusal(grammar: Grammar, reason: str) -> BadRequest:
    """The error about a grammar, from llguidance's words."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    # About a regular expression the first line quotes it, and lines behind the reason show its place.
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    shown = next(iter(told or lines), "it is empty")[:300]
    if grammar.kind not in ("json", "schema", "calls"):
        return BadRequest(f"`grammar` is refused: {shown}", "correct it")
    if "Enable 'coerce_one_of'" in reason:  # the grammar of a call, which it may quote, has this option too
        return BadRequest("`oneOf` cannot be kept: its schemas may hold at once", "use `anyOf`")
    named = [keyword for words, keyword in _BLAMED.items() if re.search(words, reason)]
    keyword = f"`{named[0]}`" if named else "the schema"
    return BadRequest(f"{keyword} cannot be kept: {shown}", "correct it or leave it out")
