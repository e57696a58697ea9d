"""`POST /infill`: the text between two others, as llama-server answers its clients in editors."""

from __future__ import annotations

import msgspec
from aiohttp import web

from runtime.infilling import File, Infill
from runtime.messages import Submit
from server.api import options
from server.api.adapters import AdapterFields, resolve_adapted
from server.api.drafts import add_draft
from server.api.llama.bodies import INFILL, LONGEST_DRAFT, drafts_of
from server.api.llama.writer import LlamaWriter
from server.api.options import Whole, with_sampling
from server.api.request import read, require, warning_of
from server.api.respond import Generation, respond
from server.loaded.wish import LoadWish


class ExtraFile(msgspec.Struct):
    """A file of `input_extra`."""

    text: str
    filename: str = "tmp"


class InfillFields(msgspec.Struct, kw_only=True):
    """The fields of `/infill`, without the sampling options."""

    model: str | None = None
    input_prefix: str
    input_suffix: str
    input_extra: list[ExtraFile] | None = None
    prompt: str | None = None
    n_predict: Whole | None = None
    stream: bool | None = None
    stop: str | list[str] | None = None
    n_probs: Whole | None = None
    return_tokens: bool | None = None
    response_fields: list[str] | None = None
    timings_per_token: bool | None = None
    adapters: AdapterFields = None
    draft: str | None = None
    draft_num_predict: Whole | None = None
    longest_draft: Whole | None = LONGEST_DRAFT


BODY = with_sampling(InfillFields)


class InfillWriter(LlamaWriter):
    """The same objects, for a prompt that comes by another field."""

    prompt_field = "input_prefix"


async def infill(request: web.Request) -> web.StreamResponse:
    """`POST /infill`."""
    body = await read(request, BODY, INFILL)
    model, adapters = await resolve_adapted(request, body.model, body.adapters, able="insert")
    require(model, "insert")
    files = [File(each.filename, each.text) for each in body.input_extra or []]
    submit = Submit(
        id=0,
        prompt=body.input_prefix,
        infill=Infill(body.input_suffix, body.prompt or "", files),
        adapters=adapters,
        sampling=options.sampling(model.params, options.sampling_fields(body)),
        limits=options.limits(model.params, {"num_predict": body.n_predict, "stop": body.stop}),
        logprobs=options.alternatives(bool(body.n_probs), body.n_probs, "n_probs"),
        give_ids=True,
        drafts=drafts_of(model, body.draft_num_predict, body.longest_draft),
    )
    draft = await add_draft(request, model, body.draft, submit)
    writer = InfillWriter(
        model,
        [submit],
        stream=bool(body.stream),
        ids=bool(body.return_tokens),
        fields=body.response_fields,
        timed=body.timings_per_token,
        warning=warning_of(request),
    )
    return await respond(request, Generation(model, [submit], bool(body.stream), LoadWish(draft=draft)), writer)
