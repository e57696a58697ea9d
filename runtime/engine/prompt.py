"""From messages or text to the tokens that the engine reads, cut to fit where the request allows it.

Safe to call from any thread: it touches the vocabulary alone.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

from runtime import messages as m
from runtime.answers.forms import CallForm, JsonCall
from runtime.answers.parser import AnswerForm
from runtime.cache.spill import common_prefix
from runtime.conversation import Turn
from runtime.engine.infill import WINDOW, fill_in
from runtime.errors import BadRequest, PromptTooLong
from runtime.infilling import Infill
from runtime.llama.model import LlamaModel
from runtime.text.talk import messages_of, thinking_variables, tool_variables, with_told_tools, without_tools
from runtime.text.template import ChatTemplate, PromptPart


class Prompt(NamedTuple):
    """The tokens of a prompt; `dropped` others were left out to make it fit.

    The conversation's next prompt will begin with the first `stable` tokens of this one, whatever the answer is. An
    example in ChatML: all tokens before the last `<|im_start|>assistant`, because a template may render a finished
    answer otherwise than the one being written. 0 where that is not known, or not needed, because the model's cells
    can be cut at any position. `form` is the form by which the answer is told apart, None where it is text alone.
    `lead` is what the model writes before the answer's own text, beside its thinking. `several` tells that an answer
    may have more than one call, and `schemas` has the parameters' schemas by the tools' names.
    """

    ids: array[int]
    dropped: int = 0
    stable: int = 0
    form: AnswerForm | None = None
    lead: str = ""
    several: bool = False
    schemas: Mapping[str, Any] = {}


# Templates of requests that are kept.
_WRITTEN = 8
# A call that a request demands, of any model: a JSON object that a grammar holds it to.
FORCED = (CallForm(JsonCall("name", "arguments")),)


class Prompter:
    """Makes prompts for one model whose KV cache has `context` tokens."""

    def __init__(self, model: LlamaModel, context: int) -> None:
        """A chat template that is broken is said in the log, and another one stands in."""
        self._model = model
        self._vocabulary = model.vocabulary
        self._context = context
        self._bos = model.vocabulary.special_text("bos")
        self.template = self._made(model.chat_template)
        self._written: dict[str, ChatTemplate] = {}
        if self.template.fault:
            sys.stderr.write(f"{model.path.name}: {self.template.remark}\n")
            sys.stderr.flush()

    def _made(self, source: str | None, *, go: bool = False) -> ChatTemplate:
        eos, control = self._vocabulary.special_text("eos"), self._vocabulary.control_texts()
        return ChatTemplate(source, bos=self._bos, eos=eos, control=control, go=go)

    def stops(self, request: m.Submit) -> tuple[str, ...]:
        """Strings that end a turn where no control token does; none for a prompt that is no conversation."""
        return () if request.turns is None else self._template_of(request).stops

    @cached_property
    def _tool_template(self) -> ChatTemplate:
        """The template for requests with tools, of which some models have one of their own."""
        source = self._model.tool_template
        return self._made(source) if source else self.template

    def prompt(self, request: m.Submit, limit: int | None = None) -> Prompt:
        """The tokens of a request, at most `limit`: by default the context without one cell for the answer.

        Raises PromptTooLong when they do not fit and may not be cut, BadRequest when there is nothing to read.
        """
        prompt = self._prompt(request, self._context - 1 if limit is None else limit)
        # llama.cpp computes no logits for a prompt of no tokens: a token would be drawn from another answer's, or from
        # an address that is none.
        if not prompt.ids:
            raise BadRequest(
                "the model's chat template writes nothing for these messages",
                "add a message of the role `user`",
                "messages",
            )
        return prompt

    def _prompt(self, request: m.Submit, limit: int) -> Prompt:
        if request.turns is not None:
            return self._chat(request, request.turns, limit)
        if request.infill is not None:
            return self._filled(request, request.infill, limit)
        ids = self._raw(request)
        if len(ids) <= limit:
            return Prompt(ids)
        if not request.truncate:
            raise self._too_long(len(ids))
        keep = self._room(request)
        head, rest = self._without_bos(ids)
        return Prompt(head + rest[len(ids) - keep :], len(ids) - keep)

    def chat(self, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None) -> array[int]:
        """The tokens of a conversation as the chat template renders it, however many; BadRequest for no turns."""
        return self._ids(self._parts(m.Submit(0), turns, variables))

    def _parts(
        self,
        request: m.Submit,
        turns: Sequence[Turn],
        variables: Mapping[str, Any] | None,
        *,
        answering: bool = True,
    ) -> list[PromptPart]:
        if not turns:
            raise BadRequest("`messages` is empty", "send at least one message", "messages")
        template = self._template_of(request, tools="tools" in (variables or {}))
        called = any(turn.calls or turn.role == "tool" for turn in turns)
        try:
            messages = messages_of(turns, template.answers if called else None)
            parts = template.render(messages, variables, answering=answering)
            return self._begun(template, parts, request.prompt) if answering and request.prompt else parts
        except BadRequest as error:
            error.field = "messages"
            raise

    @staticmethod
    def _begun(template: ChatTemplate, parts: list[PromptPart], begun: str | list[int | str]) -> list[PromptPart]:
        """The prompt with the beginning of the answer's own text, after the end of a thinking and the text's mark."""
        form = template.form(parts, tools=False) or AnswerForm()
        if not isinstance(begun, str):
            raise BadRequest("an answer begins with a text, not with token ids", "send a text")
        marks = form.thinking.close if form.opened and form.thinking else ""
        lead = form.content.open.strip() if form.content else ""
        end = "".join(part.text for part in parts[-8:] if part.special).rstrip() + marks
        marks += lead if not end.endswith(lead) else "\n\n" if marks and not lead else ""
        return [*parts, *([PromptPart(marks, True)] if marks else []), PromptPart(begun, False)]

    def _filled(self, request: m.Submit, infill: Infill, limit: int) -> Prompt:
        if not isinstance(request.prompt, str):
            raise BadRequest("a text with a hole is no token ids", "send texts")
        if request.template and (template := self._template_of(request)).fills:
            ids = self._ids(template.fill(request.prompt, infill.suffix))
            if len(ids) > limit:
                raise self._too_long(len(ids))
            return Prompt(ids)
        whole, room = limit << 2, 0
        if infill.files is not None:
            wanted = max(0, request.limits.max_tokens)
            # Beside the window there are the token for the middle and BOS, which llama-server leaves out of the sum.
            whole, room = min(WINDOW, self._room(request)), limit - WINDOW - 2 - 2 * wanted
        filled = fill_in(self._vocabulary, request.prompt, infill, whole, room)
        if len(filled.ids) > limit and request.truncate:
            filled = fill_in(self._vocabulary, request.prompt, infill, self._room(request), 0)
        if len(filled.ids) > limit:
            raise self._too_long(len(filled.ids))
        return Prompt(filled.ids, filled.dropped)

    def _raw(self, request: m.Submit) -> array[int]:
        prompt = request.prompt
        if isinstance(prompt, str):
            parts = [PromptPart(prompt, request.parse_special)]
            ids = self._ids(parts) if prompt else self._vocabulary.tokenize("", special=False, add=True)
        else:
            ids = self.mixed(prompt or [], special=request.parse_special)
            if prompt and isinstance(prompt[0], str):
                ids = self._vocabulary.frame[0] + ids
        if not ids:
            raise BadRequest("the prompt is empty", "send some text", "prompt")
        return ids

    def mixed(self, prompt: str | Sequence[int | str], *, special: bool) -> array[int]:
        """The ids of a text, or of token ids with texts between them. Raises BadRequest for an id that is none."""
        if isinstance(prompt, str):
            return self._vocabulary.tokenize(prompt, special=special, add=False)
        ids = array("i")
        for kind, parts in groupby(prompt, type):
            if kind is int:
                ids.extend(self._checked([part for part in parts if isinstance(part, int)]))
            else:
                for text in parts:
                    ids.extend(self._vocabulary.tokenize(str(text), special=special, add=False))
        return ids

    def preview(self, request: m.Submit, limit: int) -> tuple[array[int], str]:
        """The tokens of a request's prompt, and its text, for turns as the chat template writes it.

        Raises BadRequest, PromptTooLong for more than `limit` tokens.
        """
        if request.turns is None or request.earlier:
            ids = self.prompt(request, limit).ids
            return ids, b"".join(map(self._vocabulary.marked_piece, ids)).decode(errors="replace")
        parts = self._parts(request, *self._told(request, request.turns))
        return self._ids(parts), "".join(part.text for part in parts)

    def _told(self, request: m.Submit, turns: list[Turn]) -> tuple[list[Turn], dict[str, Any]]:
        """The turns and the variables for the template; a model without a form for calls is told of its tools.

        Raises BadRequest.
        """
        variables = {**thinking_variables(request.think), **tool_variables(request.tools), **request.variables}
        template = self._checked_template(request)
        own = template.answers.form.calls if request.tools else ()
        if request.forced and not own:
            return with_told_tools(turns, request.tools), without_tools(variables)
        return turns, variables

    def _checked(self, ids: Sequence[int]) -> array[int]:
        for token in ids:
            if not 0 <= token < self._vocabulary.size:
                raise BadRequest(
                    f"the prompt has token {token}, and the vocabulary ends at {self._vocabulary.size - 1}",
                    "send token ids of this model, not of another one",
                    "prompt",
                )
        return array("i", ids)

    def _chat(self, request: m.Submit, turns: list[Turn], limit: int) -> Prompt:
        turns, variables = self._told(request, turns)
        parts = self._parts(request, turns, variables)
        prompt = self._formed(request, parts)
        ids = self._ids(parts)
        if request.earlier:
            continued = self._continued(request, self._checked(request.earlier), ids, limit)
            return prompt._replace(ids=continued.ids, dropped=continued.dropped)
        if len(ids) <= limit:
            return prompt._replace(ids=ids, stable=self._stable(request, turns, ids, variables))
        if not request.truncate:
            raise self._too_long(len(ids))
        return self._shortened(request, prompt, turns, variables, len(ids))

    def _formed(self, request: m.Submit, parts: list[PromptPart]) -> Prompt:
        """The form of the answer, in a prompt without its tokens."""
        template = self._template_of(request)
        called = bool(request.tools) and not request.grammar
        form = template.form(parts, tools=called)
        if request.forced and not (form and form.calls and form.calls[0].body.forceable):
            form = replace(form or AnswerForm(), calls=FORCED)
        if request.prompt:  # the thinking is over, and the text has begun
            ended = (form.content.close,) if form and form.content and form.content.close.strip() else ()
            form = AnswerForm(calls=form.calls, noise=(*form.noise, *ended)) if form else None
        lead = form.content.open.strip() if form and form.content else ""
        end = "".join(part.text for part in parts[-8:] if part.special).rstrip()
        several = called and not request.single and template.answers.parallel
        schemas = {str(tool["function"]["name"]): tool["function"].get("parameters") for tool in request.tools}
        lead = "" if end.endswith(lead) else lead
        return Prompt(array("i"), form=form, lead=lead, several=several, schemas=schemas)

    def _shortened(
        self, request: m.Submit, prompt: Prompt, turns: list[Turn], variables: Mapping[str, Any], length: int
    ) -> Prompt:
        """The prompt of a conversation whose first turns are left out; its whole has `length` tokens."""
        # A shortened conversation may begin at any turn of the user. A binary search finds the earliest that fits.
        starts = [i for i, turn in enumerate(turns) if turn.role == "user"][1:]
        system = [turn for turn in turns if turn.role == "system"]
        keep = self._room(request)
        best: Prompt | None = None
        shortened: list[Turn] = []
        low, high = 0, len(starts)
        while low < high:
            middle = (low + high) // 2
            rest = [turn for turn in turns[starts[middle] :] if turn.role != "system"]
            shorter = self._ids(self._parts(request, system + rest, variables))
            if len(shorter) <= keep:
                best, high = prompt._replace(ids=shorter, dropped=length - len(shorter)), middle
                shortened = system + rest
            else:
                low = middle + 1
        if best is None:
            raise self._too_long(length)
        return best._replace(stable=self._stable(request, shortened, best.ids, variables))

    def _continued(self, request: m.Submit, earlier: array[int], ids: array[int], limit: int) -> Prompt:
        """The tokens of an `earlier` conversation with `ids` behind them; BOS stands in front only.

        Where they do not fit, the oldest of `earlier` are left out, and never one of `ids`.
        """
        (bos, rest), (first, past) = self._without_bos(ids), self._without_bos(earlier)
        head = first or bos
        whole = len(head) + len(past) + len(rest)
        if whole > limit and (not request.truncate or len(head) + len(rest) > limit):
            raise self._too_long(whole)
        dropped = min(len(past), whole - self._room(request)) if whole > limit else 0
        return Prompt(head + past[dropped:] + rest, dropped)

    def _without_bos(self, ids: array[int]) -> tuple[array[int], array[int]]:
        """The start of `ids` up to a BOS token with nothing but white space before it, and the rest."""
        bos = self._vocabulary.tokenize(self._bos, special=True, add=False) if self._bos else array("i")
        for size, token in enumerate(ids, 1):
            if bos and token == bos[0]:
                return ids[:size], ids[size:]
            if self._vocabulary.piece(token).strip():
                break
        return ids[:0], ids

    def _template_of(self, request: m.Submit, *, tools: bool | None = None) -> ChatTemplate:
        """The template of a request: its own, or the model's, of which some have one for `tools`.

        None for `tools` goes by the request. Raises BadRequest for a template that cannot be read.
        """
        if not request.template:
            return self._tool_template if (request.tools if tools is None else tools) else self.template
        template = self._written.pop(request.template, None) or self._made(request.template, go=True)
        if template.fault:
            message = f"the chat template cannot be read: {template.fault}"
            raise BadRequest(message, "correct it, or leave it out", "template")
        self._written[request.template] = template  # at the end: the first one was used longest ago
        while len(self._written) > _WRITTEN:
            self._written.pop(next(iter(self._written), ""), None)
        return template

    def _checked_template(self, request: m.Submit) -> ChatTemplate:
        """The template of a request; raises BadRequest for tools, or thinking, that it does not know."""
        template = self._template_of(request)
        if request.tools and not request.forced and not template.answers.form.calls:
            raise BadRequest("this model's chat template does not support tools", "choose a model that does", "tools")
        if request.think and template.answers.form.thinking is None:
            raise BadRequest("this model's chat template does not support thinking", "leave out `think`", "think")
        return template

    def _stable(self, request: m.Submit, turns: list[Turn], ids: array[int], variables: Mapping[str, Any]) -> int:
        """`Prompt.stable` of `ids`: how many of them come before the template asks for the answer."""
        if not self._model.recurrent or turns[-1].role == "assistant":
            return 0
        return common_prefix(self._ids(self._parts(request, turns, variables, answering=False)), ids)

    def _room(self, request: m.Submit) -> int:
        """Tokens that a prompt may have after it was cut: an eighth of the context or less is left for the answer."""
        wanted = request.limits.max_tokens if request.limits.max_tokens >= 0 else self._context
        return max(1, self._context - 1 - min(wanted, self._context // 8))

    def _ids(self, parts: list[PromptPart]) -> array[int]:
        ids = self._vocabulary.tokenize_parts(parts)
        # Some templates write white space before the BOS token, which is tokenized with them as in transformers.
        start = parts[0].text.lstrip() if parts and parts[0].special else ""
        has_bos = bool(self._bos) and start.startswith(self._bos)
        return ids if has_bos else self._vocabulary.frame[0] + ids  # no end token: the answer follows

    def _too_long(self, length: int) -> PromptTooLong:
        message = f"the prompt has {length:,} tokens and the context holds {self._context:,}"
        trained = self._model.n_ctx_train
        more = f"the model was trained for no more than {trained:,} tokens"
        if self._context < trained:
            more = f"a larger context (`num_ctx`, `LM_CONTEXT`) may have up to {trained:,} tokens, where memory allows"
        return PromptTooLong(message, f"shorten it; {more}")
