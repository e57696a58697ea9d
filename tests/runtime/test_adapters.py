"""Adapters in the engine: each answer is the one that it would be alone, and what they share is kept apart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime import messages as m
from runtime.engine.turns import Turns
from runtime.llama import adapters as loaded
from runtime.llama.adapters import Adapters
from runtime.llama.context import Context, ContextParams
from runtime.llama.model import LlamaModel
from runtime.options import Limits
from tests.loras import write_adapter
from tests.runtime.test_engine import GREEDY, WARM, ask, one_by_one, precise, with_worker
from tests.runtime.working import Answer, Worker

PROMPTS = ("It was a dark night", "The old man said", "The sea", "My dear Watson,")


@pytest.fixture(scope="module")
def files(exact: Path) -> list[m.Adapter]:
    """Two adapters in the folder of their model, as in the store: a worker may read no other."""
    folder = exact.parent / "adapters"
    folder.mkdir()
    made = [write_adapter(exact, folder / f"{seed}.gguf", seed, strength=1.0) for seed in (1, 2)]
    return [m.Adapter(str(path), 1.0, path.stat().st_size, path.stem) for path in made]


def asked(prompt: str, *adapters: m.Adapter, tokens: int = 24, **more: Any) -> m.Submit:
    options = {"sampling": GREEDY, "limits": Limits(max_tokens=tokens), **more}
    return m.Submit(0, prompt=prompt, adapters=list(adapters), **options)


def scaled(adapter: m.Adapter, scale: float) -> m.Adapter:
    return m.Adapter(adapter.path, scale, adapter.size, adapter.name)


def test_adapters_in_one_batch_give_each_answer_as_alone(exact: Path, files: list[m.Adapter]) -> None:
    one, two = files
    sets = [(), (one,), (two,), (one, two), (scaled(one, 0.5),), (scaled(one, -1.0),)]

    def requests() -> list[m.Submit]:
        return [asked(PROMPTS[number % 2], *each, sampling=WARM) for number, each in enumerate(sets)]

    alone = [answer.text for answer in one_by_one(precise(exact), *requests())]
    assert len(set(alone)) == len(sets)
    together = ask(precise(exact), *requests())
    assert [answer.text for answer in together] == alone


def test_a_scale_of_zero_is_the_model_itself(exact: Path, files: list[m.Adapter]) -> None:
    plain, zero, undone = ask(
        precise(exact),
        asked(PROMPTS[0]),
        asked(PROMPTS[0], scaled(files[0], 0.0)),
        asked(PROMPTS[0], files[0], scaled(files[0], -1.0)),
    )
    assert plain.text == zero.text == undone.text


def test_the_cache_is_kept_apart_by_adapter_and_scale(exact: Path, files: list[m.Adapter]) -> None:
    prompt = " ".join(PROMPTS * 6)

    async def talk(worker: Worker) -> list[Answer]:
        sets = [(), (), (files[0],), (files[0],), (scaled(files[0], 0.5),), (files[0],), ()]
        return [await worker.ask(asked(prompt, *each, sampling=WARM, tokens=4)) for each in sets]

    answers = with_worker(precise(exact, spill=64 << 20), talk)
    found = [answer.started.cached > 0 for answer in answers if answer.started]
    assert found == [False, True, False, True, False, True, True]
    assert answers[2].text == answers[3].text == answers[5].text
    assert answers[0].text == answers[6].text


def test_long_prompts_beside_answers_are_read_with_their_own_adapters(exact: Path, files: list[m.Adapter]) -> None:
    prompt = " ".join(PROMPTS * 20)
    wanted = ask(precise(exact), asked(prompt, files[1], tokens=8, sampling=WARM))[0].text

    async def talk(worker: Worker) -> list[Answer]:
        flowing = asyncio.create_task(worker.ask(asked(PROMPTS[0], files[0], tokens=160, sampling=WARM)))
        other = asyncio.create_task(worker.ask(asked(PROMPTS[1], tokens=160, sampling=WARM)))
        return [await worker.ask(asked(prompt, files[1], tokens=8, sampling=WARM)), await flowing, await other]

    assert with_worker(precise(exact), talk)[0].text == wanted


def test_a_file_that_is_no_adapter_of_the_model_fails_its_request_alone(
    exact: Path, files: list[m.Adapter], tmp_path: Path
) -> None:
    other = write_adapter(exact, Path(files[0].path).with_name("other.gguf"), 1, general__architecture="qwen2")
    bad = m.Adapter(str(other), 1.0, other.stat().st_size, "other")
    missing = m.Adapter(str(tmp_path / "none.gguf"), 1.0, 100, "none")
    huge = m.Adapter(files[0].path + "x", 1.0, 1 << 60, "huge")

    async def talk(worker: Worker) -> list[Answer]:
        return [await worker.ask(asked(PROMPTS[0], each, tokens=4)) for each in (bad, missing, huge, files[0])]

    *failed, fine = with_worker(precise(exact), talk)
    for answer, named in zip(failed, ("`other`: ", "`none`", "`huge` needs"), strict=True):
        assert isinstance(answer.end, m.Failed)
        assert named in answer.end.message
    assert isinstance(fine.end, m.Finished)


def test_adapters_that_nobody_uses_go_when_others_need_their_room(exact: Path, files: list[m.Adapter]) -> None:
    async def talk(worker: Worker) -> list[Answer]:
        return [await worker.ask(asked(PROMPTS[0], each, tokens=4)) for each in (files[0], files[1], files[0])]

    room = files[0].size + files[1].size // 2
    answers = with_worker(precise(exact, spill=room), talk)
    assert all(isinstance(answer.end, m.Finished) for answer in answers)
    assert answers[0].text == answers[2].text


def test_an_adapter_goes_that_nobody_has_wanted_for_a_while(
    exact: Path, files: list[m.Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaModel(exact)
    context, room = Context(model, ContextParams(512, 2, 2, 1)), [1 << 30]

    def lend(size: int) -> bool:
        room[0] -= size
        return True

    def take_back(size: int) -> None:
        room[0] += size

    adapters = Adapters(model, lend, take_back)
    adapters.load((files[0], files[1]), [], lambda: None)
    adapters.use(context, (files[0],))
    adapters.free_unused([], lambda: None)
    assert adapters.bytes == files[0].size + files[1].size
    monkeypatch.setattr(loaded, "UNUSED_SECONDS", 0.0)
    adapters.free_unused([(files[1],)], lambda: None)
    assert adapters.bytes == files[1].size
    assert room == [(1 << 30) - files[1].size]
    context.put_token(0, 5, 0, 0)
    assert context.decode(1) == 0  # the context is no longer set to the adapter that is gone
    context.free()


def test_turns_are_long_where_a_change_is_dear_and_short_where_it_is_cheap() -> None:
    one, two = ((m.Adapter(name),) for name in "ab")

    def steps_of(change: float) -> tuple[int, list[m.AdapterSet]]:
        turns, order, before = Turns(), [], ()
        for _ in range(400):
            now = turns.choose([one, two])
            noise = 5.0 * (len(order) % 3 == 0)  # a busy machine
            turns.note(1, 1.0 + change * (now != before) + noise)
            before = now
            order.append(now)
        return turns.steps, order

    assert steps_of(0.01)[0] == 2
    dear, order = steps_of(0.3)
    assert 5 <= dear <= 7
    assert abs(order.count(one) - order.count(two)) <= 2 * dear
    assert steps_of(100.0)[0] == 16
