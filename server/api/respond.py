"""The answers to one request, streamed or whole, in the words of a dialect's writer.

A writer makes the objects of a stream, and joins the same objects to a whole answer, so that a dialect is written once.
An error before the first byte is raised; a later one is the last object of the stream.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from aiohttp import web

from registry.store.catalog import Model
from runtime.messages import CallDelta, Delta, Finished, Started, Submit
from server.access.trail import RECORDER, TRAIL, answer_event
from server.api.request import FAILED, LOG_NOTE, InUse, in_use, prompt_from, spend
from server.errors import INTERNAL
from server.http.problems import Dialect, Problem
from server.http.wire import Stream, StreamForm, reply
from server.loaded.wish import USUAL, LoadWish
from server.loaded.worker import Answer
from server.services import SERVICES
from server.watching.activity import ASKED

log = logging.getLogger("lm.requests")
# A stream that has begun is silent for so long at most, in seconds, where its dialect has a sign of life.
SILENT_SECONDS = 10.0
Json = dict[str, Any]
Frames = AsyncGenerator[tuple[int, Answer]]


@dataclass
class Generation:
    """The answers that one request asks for: each of `submits` is a prompt with one or more answers.

    `wish` says how the model should be loaded; the memory for adapters is added to it.
    """

    model: Model
    submits: list[Submit]
    stream: bool
    wish: LoadWish = USUAL


@dataclass
class Usage:
    """Tokens over all prompts and answers of a request: read, found in the cache, written, written of thinking.

    `drafted` ones were computed before they were drawn, and `accepted` of them are in the answers.
    """

    prompt: int = 0
    cached: int = 0
    answer: int = 0
    thinking: int = 0
    drafted: int = 0
    accepted: int = 0
    complete: bool = False
    """Whether every answer came to its end."""
    told: int = 0
    """Tokens of answers that have not ended, as their frames count them."""

    @property
    def spent(self) -> int:
        """All tokens so far, for the quota of a key: tokens of answers count as they come."""
        return self.prompt + max(self.answer, self.told)

    def count(self, frame: Answer) -> None:
        """Add the tokens that a frame counts."""
        if isinstance(frame, Started):
            self.prompt += frame.prompt_tokens
            self.cached += frame.cached
        elif isinstance(frame, Delta):
            self.told += frame.tokens
            self.thinking += frame.tokens if frame.kind == "thinking" else 0
        elif isinstance(frame, Finished):
            self.answer += frame.answer_tokens
            self.drafted += frame.drafted
            self.accepted += frame.accepted


def predicted(drafted: int, accepted: int) -> Json:
    """Drafted tokens by OpenAI's names for the tokens of a prediction."""
    return {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}


class AnswerWriter(ABC):
    """A dialect's objects for each step of a request. `index` counts the answers over all prompts."""

    dialect: Dialect
    form: StreamForm
    prompt_field = "prompt"
    """The field of the body that holds the prompt."""
    sign: Json | None = None
    """An object that says nothing but that the stream lives, for clients that give up on a silent one."""

    @abstractmethod
    def first(self, index: int, frame: Started) -> Iterable[Json]:
        """Objects for an answer whose prompt left the queue."""

    @abstractmethod
    def delta(self, index: int, frame: Delta) -> Iterable[Json]:
        """Objects for more text of an answer."""

    def call(self, index: int, frame: CallDelta) -> Iterable[Json]:
        """Objects for more of a call of a tool; requests without tools have none."""
        return []

    @abstractmethod
    def end(self, index: int, frame: Finished) -> Iterable[Json]:
        """Objects for an answer that is complete."""

    @abstractmethod
    async def last(self, model: InUse, usage: Usage) -> Iterable[Json]:
        """Objects at the end of the stream."""

    def failed(self, problem: Problem) -> list[Json]:
        """Objects about an error that came when the stream had begun."""
        return [problem.body(self.dialect)]

    @abstractmethod
    def whole(self, objects: list[Json], usage: Usage) -> Json | list[Json]:
        """The answer to a request that does not stream, joined from the objects of the stream.

        These come answer by answer, with the text of an answer in one or two deltas.
        """


async def respond(request: web.Request, generation: Generation, writer: AnswerWriter) -> web.StreamResponse:
    """Load the model, generate the answers, and send them. Raises as `in_use` and `Worker.answer`."""
    with prompt_from(writer.prompt_field):
        return await _respond(request, generation, writer)


async def unattended(request: web.Request, generation: Generation, writer: AnswerWriter) -> AsyncGenerator[Json]:
    """The objects of a stream that goes on without the connection of its request. Raises as `respond`."""
    usage = Usage()
    with prompt_from(writer.prompt_field):
        async with _in_use(request, generation) as model:
            frames = _spending(request, _frames(model, generation.submits, usage), usage)
            try:
                async with aclosing(_objects(writer, model, frames, usage)) as objects:
                    async for each in objects:
                        yield each
            finally:
                request.app[RECORDER].answered(answer_event(request, "200" if usage.complete else "gone"))


def _in_use(request: web.Request, generation: Generation) -> AbstractAsyncContextManager[InUse]:
    adapters = {each.path: each.size for submit in generation.submits for each in submit.adapters}
    wish = replace(generation.wish, beside=sum(adapters.values()))
    return in_use(request.app[SERVICES], generation.model, wish)


async def _respond(request: web.Request, generation: Generation, writer: AnswerWriter) -> web.StreamResponse:
    usage = Usage()
    async with _in_use(request, generation) as model:
        frames = _spending(request, _frames(model, generation.submits, usage), usage)
        if generation.stream:
            response = await _streamed(request, _objects(writer, model, frames, usage), writer)
        else:
            response = reply(await _whole(writer, model, frames, usage))
    if usage.complete:
        request[LOG_NOTE] += f" {usage.prompt}+{usage.answer} tokens"
    return response


async def _streamed(request: web.Request, objects: AsyncGenerator[Json], writer: AnswerWriter) -> web.StreamResponse:
    stream = Stream(request, writer.form)
    async with aclosing(objects), aclosing(_with_signs(objects, stream, writer.sign)) as signed:
        try:
            async for each in signed:
                await stream.send(each)
            return await stream.end()
        except Exception as error:
            if not stream.started or isinstance(error, ConnectionError):
                raise
            problem = Problem.of(error)
            request[FAILED] = str(problem.status(writer.dialect))
            request[LOG_NOTE] += f" {problem.code}"
            if asked := request.get(ASKED):
                asked.code = problem.code
            if problem.code == INTERNAL[0]:
                log.exception("the stream of request %s failed", request["id"])
            *before, last = writer.failed(problem)
            for each in before:
                await stream.send(each)
            return await stream.fail(last)


async def _with_signs(objects: AsyncGenerator[Json], stream: Stream, sign: Json | None) -> AsyncGenerator[Json]:
    """The objects, with a sign of life between them wherever none came for `SILENT_SECONDS`."""
    if sign is None:
        async for each in objects:
            yield each
        return
    coming: asyncio.Task[Json] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(objects))
            await asyncio.wait([coming], timeout=SILENT_SECONDS)
            if coming.done():
                arrived, coming = coming, None
                try:
                    yield arrived.result()
                except StopAsyncIteration:
                    return
            elif stream.started:
                yield sign
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])


async def _objects(writer: AnswerWriter, model: InUse, frames: Frames, usage: Usage) -> AsyncGenerator[Json]:
    """The objects of a stream, each as soon as its frame is there."""
    async with aclosing(frames):
        async for index, frame in frames:
            for each in _written(writer, index, frame):
                yield each
    for each in await writer.last(model, usage):
        yield each


async def _whole(writer: AnswerWriter, model: InUse, frames: Frames, usage: Usage) -> Json | list[Json]:
    answers: defaultdict[int, list[Answer]] = defaultdict(list)
    async with aclosing(frames):
        async for index, frame in frames:
            answers[index].append(frame)
    objects: list[Json] = []
    for index in sorted(answers):
        await asyncio.sleep(0)  # a hundred answers are a while's work: others have their turn in between
        for frame in _merged(answers[index]):
            objects += _written(writer, index, frame)
    return writer.whole([*objects, *await writer.last(model, usage)], usage)


async def _frames(model: InUse, submits: list[Submit], usage: Usage) -> Frames:
    """The frames of all answers, each with the index of its answer; the prompts are read one after the other."""
    for number, submit in enumerate(submits):
        first = number * submit.count
        async with model.frames(submit) as frames:
            async for frame in frames:
                usage.count(frame)
                if isinstance(frame, Started):
                    for index in range(first, first + submit.count):
                        yield index, frame
                else:
                    yield first + frame.index, frame
    usage.complete = True


async def _spending(request: web.Request, frames: Frames, usage: Usage) -> Frames:
    """The frames, whose tokens count against the quota of the caller's key at once: an answer may never end."""
    before = answered = 0
    asked = request.get(ASKED)
    async with aclosing(frames):
        async for index, frame in frames:
            written = usage.spent - usage.prompt
            spend(request, usage.spent - before, written - answered)
            before, answered = usage.spent, written
            if asked:
                asked.cached_tokens = usage.cached
                if isinstance(frame, Delta | CallDelta):
                    asked.text_came()
            if isinstance(frame, Delta) and request.app[RECORDER].text:
                request[TRAIL].answer.append(frame.text)
            yield index, frame


def _written(writer: AnswerWriter, index: int, frame: Answer) -> Iterable[Json]:
    match frame:
        case Started():
            return writer.first(index, frame)
        case Delta():
            return writer.delta(index, frame)
        case CallDelta():
            return writer.call(index, frame)
        case Finished():
            return writer.end(index, frame)


def _merged(frames: list[Answer]) -> list[Answer]:
    """The frames of one answer, with neighbouring deltas of one kind joined."""
    merged: list[Answer] = []
    for kind, group in groupby(frames, key=lambda frame: frame.kind if isinstance(frame, Delta) else None):
        alike = list(group)
        merged += alike if kind is None else [_joined([frame for frame in alike if isinstance(frame, Delta)])]
    return merged


def _joined(deltas: list[Delta]) -> Delta:
    rows = [row for delta in deltas for row in delta.logprobs]
    text = "".join(delta.text for delta in deltas)
    ids = [id for delta in deltas for id in delta.ids]
    first = deltas[0]
    return Delta(first.id, text, sum(delta.tokens for delta in deltas), first.index, rows, first.kind, ids)
