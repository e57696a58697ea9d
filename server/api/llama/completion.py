"""llama-server's `/completion`: prompts go on as they are, without a template, as its README describes it."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from registry.store.catalog import Model
from runtime.messages import Grammar, Submit, Tokenize
from server.api import grammars, options
from server.api.adapters import AdapterFields, resolve_adapted
from server.api.drafts import add_draft
from server.api.grammars import GrammarField
from server.api.llama.bodies import COMPLETION, LONGEST_DRAFT, biases_of, count_of, drafts_of
from server.api.llama.writer import LlamaWriter
from server.api.options import Whole, with_sampling
from server.api.prompts import Prompts, prompts_of
from server.api.request import in_use, read, require, warning_of
from server.api.respond import Generation, respond
from server.loaded.wish import LoadWish
from server.services import SERVICES


class NativeFields(msgspec.Struct, kw_only=True):
    """The fields of `/completion`, without the sampling options."""

    prompt: Prompts
    model: str | None = None
    n_predict: Whole | None = None
    n_cmpl: Whole | None = None
    n: Whole | None = None
    stream: bool | None = None
    stop: str | list[str] | None = None
    n_probs: Whole | None = None
    return_tokens: bool | None = None
    response_fields: list[str] | None = None
    timings_per_token: bool | None = None
    grammar: str | GrammarField | None = None
    json_schema: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    adapters: AdapterFields = None
    draft: str | None = None
    draft_num_predict: Whole | None = None
    longest_draft: Whole | None = LONGEST_DRAFT

    @property
    def held_to(self) -> Grammar | None:
        """The grammar of the answers. Raises BadRequest."""
        schema = grammars.of_schema(self.json_schema, "json_schema") if bytes(self.json_schema) else None
        return grammars.only(grammar=grammars.of_field(self.grammar), json_schema=schema)


_SAMPLED = with_sampling(NativeFields)
# llama-server's forms of `logit_bias` are more than an object.
COMPLETION_BODY: type[Any] = msgspec.defstruct(
    "NativeBody", [("logit_bias", dict[str, Any] | list[Any] | None, None)], bases=(_SAMPLED,), kw_only=True
)


async def completion(request: web.Request) -> web.StreamResponse:
    """`POST /completion` and `/completions`."""
    body = await read(request, COMPLETION_BODY, COMPLETION)
    prompts = prompts_of(body.prompt)
    model, adapters = await resolve_adapted(request, body.model, body.adapters, able="completion")
    require(model, "completion")
    sampling = options.sampling_fields(body) | {"logit_bias": await _biases(request, model, body.logit_bias)}
    probabilities = options.alternatives(bool(body.n_probs), body.n_probs, "n_probs")
    submits = [
        Submit(
            id=0,
            prompt=prompt,
            parse_special=True,
            sampling=options.sampling(model.params, sampling),
            limits=options.limits(model.params, {"num_predict": body.n_predict, "stop": body.stop}),
            count=count_of(body.n_cmpl, "n_cmpl") if body.n is None else count_of(body.n, "n"),
            logprobs=probabilities,
            give_ids=True,
            grammar=body.held_to,
            adapters=adapters,
            drafts=drafts_of(model, body.draft_num_predict, body.longest_draft),
        )
        for prompt in prompts
    ]
    draft = await add_draft(request, model, body.draft, *submits)
    writer = LlamaWriter(
        model,
        submits,
        stream=bool(body.stream),
        ids=bool(body.return_tokens),
        fields=body.response_fields,
        timed=body.timings_per_token,
        warning=warning_of(request),
    )
    return await respond(request, Generation(model, submits, bool(body.stream), LoadWish(draft=draft)), writer)


async def _biases(request: web.Request, model: Model, given: Any) -> dict[str, float]:
    """The biases by token id; texts are taken apart into tokens by the model. Raises BadRequest."""
    biases, texts = biases_of(given)
    if texts:
        async with in_use(request.app[SERVICES], model) as used:
            for text, bias in texts.items():
                tokens = await used.worker.tokenize(Tokenize(0, text=text))
                biases |= {str(token): bias for token in tokens.ids}
    return biases
