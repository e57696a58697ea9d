"""Turns requests into work for the loop: checks them, renders templates, tokenizes, compiles grammars.

A request that is refused here costs the running answers nothing. The loop does only the work that needs the context.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from runtime import messages as m
from runtime.answers.parser import AnswerForm
from runtime.engine.prompt import Prompt, Prompter
from runtime.engine.session import Session
from runtime.engine.speculation import Speculation
from runtime.errors import BadRequest, PromptTooLong
from runtime.llama.context import POOLING_RANK, Context
from runtime.llama.model import LlamaModel
from runtime.llama.sampling import check_biases
from runtime.text.stops import Stops

if TYPE_CHECKING:
    from runtime.grammar.compiler import Compiler
    from runtime.grammar.matcher import Matcher
    from runtime.llama.masking import Rules

# Token ids in one frame to the daemon, whose size has a limit.
_MOST_IDS = 1 << 20


class Intake:
    """Makes sessions for one model. Safe to call from any thread."""

    def __init__(self, model: LlamaModel, context: Context, speculation: Speculation) -> None:
        """Requests are for `model`, and computed in `context`."""
        self._speculation = speculation
        self._vocabulary = model.vocabulary
        self._encoder = model.encoder
        self._ranks = context.pooling == POOLING_RANK
        self._prompter = Prompter(model, context.tokens)

    def sessions(self, request: m.Submit) -> list[Session]:
        """The sessions of a request, one for each answer; raises BadRequest, PromptTooLong."""
        if self._ranks:
            raise BadRequest("this model ranks texts and cannot write", "ask it to rank (`/v1/rerank`)")
        if self._encoder:
            raise BadRequest("this model makes embeddings and cannot write", "ask for embeddings")
        check_biases(request.sampling, self._vocabulary.size)
        if request.turns is None and request.prompt is None:
            raise BadRequest("a request has turns or a prompt")
        prompt = self._prompter.prompt(request)
        stops = Stops([*request.limits.stop, *self._prompter.stops(request)])
        sessions = [
            Session(request, index, prompt, stops, held)
            for index, held in enumerate(self._held(request, prompt) for _ in range(request.count))
        ]
        prediction = self._vocabulary.tokenize(request.prediction, special=False, add=False)
        self._speculation.begin(sessions, prediction)
        return sessions

    def _held(self, request: m.Submit, prompt: Prompt) -> Rules | None:
        """The rules of an answer, or of parts of it; None for an answer that is free. Raises BadRequest."""
        try:
            grammar, section = self._grammars(request, prompt)
        except BadRequest as error:
            error.field = request.grammar.field if request.grammar else "tools"
            raise
        form, budget = prompt.form or AnswerForm(), request.think_tokens
        if form.opened and request.think is False:
            budget = 0
        lead = "" if request.forced else prompt.lead
        if not (section or (form.thinking and (grammar or budget >= 0)) or (grammar and lead)):
            return grammar
        from runtime.grammar.course import Course  # NumPy: a worker starts faster without

        thinks = request.think is not False
        return Course(self._vocabulary, form, thinks=thinks, budget=budget, grammar=grammar, section=section, lead=lead)

    def _grammars(self, request: m.Submit, prompt: Prompt) -> tuple[Matcher | None, Matcher | None]:
        """The grammar of a whole answer, and the grammar of calls in a free one; at most one of them."""
        calls = prompt.form.calls[0] if prompt.form and prompt.form.calls else None
        if request.grammar:
            return self._compiler.compile(request.grammar).copy(), None
        if request.forced and calls:
            demanded = [tool for tool in request.tools if tool["function"]["name"] in request.forced]
            return self._compiler.section(calls, demanded, several=prompt.several).copy(), None
        if request.strict and calls:
            return None, self._compiler.section(calls, request.tools, several=prompt.several, loose=True)
        return None, None

    @cached_property
    def _compiler(self) -> Compiler:
        from runtime.grammar.compiler import Compiler  # a worker starts faster without llguidance

        return Compiler(self._vocabulary)

    def tokens(self, request: m.Tokenize) -> m.Tokens:
        """The token ids of a text, or of a request's prompt; raises BadRequest, PromptTooLong for very many."""
        if request.submit:
            ids, text = self._prompter.preview(request.submit, _MOST_IDS)
        else:
            ids, text = self._prompter.mixed(request.text, special=request.special), ""
            if request.add and not (isinstance(request.text, list) and isinstance(next(iter(request.text), 0), int)):
                before, after = self._vocabulary.frame
                ids = before + ids + after
        if len(ids) > _MOST_IDS:
            raise PromptTooLong(f"a text has {len(ids):,} tokens and {_MOST_IDS:,} are possible", "send it in parts")
        pieces = list(map(self._vocabulary.marked_piece, ids)) if request.pieces else []
        return m.Tokens(request.id, ids.tolist(), pieces, text)
