"""The real worker on the demo model: equal to llama-cpp-python, alone and in company; limits, prefixes, refusals."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from runtime import messages as m
from runtime.conversation import Turn
from runtime.options import Limits, Sampling
from tests.runtime.working import Answer, Worker, load_frame, working

# A seed starts with an empty cache; without one, what is in it is used.
GREEDY = Sampling(temperature=0.0, seed=1)
WARM = Sampling(temperature=0.0)
PROMPTS = [
    "It was a dark night",
    "The old man said",
    "“Who’s there?” she asked.",
    "CHAPTER I.\n\n",
    "My dear Watson,",
    "Once",
    "In the year 1801",
    "The sea",
]
ORACLE = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=1024, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False, seed=1)
texts, ids = [], []
for prompt in json.loads(sys.argv[2]):
    ids.append(model.tokenize(prompt.encode(), add_bos=True, special=False))
    model.reset()
    texts.append(model.create_completion(prompt, max_tokens=48, temperature=0)["choices"][0]["text"])
print(json.dumps([texts, ids]))
"""


@pytest.fixture(scope="module")
def oracle(demo: Path) -> tuple[list[str], list[list[int]]]:
    command = [sys.executable, "-c", ORACLE, str(demo), json.dumps(PROMPTS)]
    texts, ids = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return texts, ids


def load(path: Path, **options: Any) -> m.Load:
    return load_frame(path, **options)


def precise(path: Path, **options: Any) -> m.Load:
    return load(path, kv_type="F32", **options)


def with_worker(request: m.Load, talk: Callable[[Worker], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        async with working(request) as worker:
            assert isinstance(worker.ready, m.Ready), worker.ready
            return await talk(worker)

    return asyncio.run(run())


def ask(request: m.Load, *requests: Any) -> list[Answer]:
    async def talk(worker: Worker) -> list[Answer]:
        return await asyncio.gather(*(worker.ask(request) for request in requests))

    answers: list[Answer] = with_worker(request, talk)
    return answers


def one_by_one(request: m.Load, *requests: Any) -> list[Answer]:
    async def talk(worker: Worker) -> list[Answer]:
        return [await worker.ask(request) for request in requests]

    answers: list[Answer] = with_worker(request, talk)
    return answers


def submit(prompt: Any = PROMPTS[0], tokens: int = 48, **options: Any) -> m.Submit:
    limits = Limits(max_tokens=tokens, stop=options.pop("stop", []), seconds=options.pop("seconds", 0.0))
    return m.Submit(0, prompt=prompt, **{"sampling": GREEDY, "limits": limits, **options})


def test_greedy_text_is_that_of_llama_cpp_python(demo: Path, oracle: Any) -> None:
    texts, ids = oracle
    alone = one_by_one(load(demo), *map(submit, PROMPTS))
    assert [answer.text for answer in alone] == texts
    assert [answer.end.prompt_tokens for answer in alone] == [len(tokens) for tokens in ids]


@pytest.fixture(scope="module")
def texts(exact: Path) -> list[str]:
    """What each prompt gives alone, with arithmetic that company does not change."""
    return [answer.text for answer in one_by_one(precise(exact), *map(submit, PROMPTS))]


def test_company_does_not_change_a_text(exact: Path, texts: list[str]) -> None:
    assert [answer.text for answer in ask(precise(exact), *map(submit, PROMPTS))] == texts


def test_tokens_are_those_of_llama_cpp_python(demo: Path, oracle: Any) -> None:
    answers = ask(load(demo), *(submit(prompt, 0, give_ids=True) for prompt in PROMPTS))
    assert [answer.end.ids for answer in answers] == oracle[1]
    by_ids = ask(load(demo), submit(oracle[1][0]))[0]
    assert by_ids.text == oracle[0][0]


def test_the_frames_of_an_answer(demo: Path) -> None:
    (answer,) = ask(load(demo), submit(tokens=10))
    assert answer.started == m.Started(1, answer.end.prompt_tokens)
    assert (answer.end.reason, answer.end.answer_tokens) == ("length", 10)
    assert sum(delta.tokens for delta in answer.deltas) == 10
    assert answer.end.prompt_ns > 0
    assert answer.end.answer_ns > 0


def test_more_requests_than_sequences_all_complete_and_agree(exact: Path) -> None:
    answers = ask(precise(exact, sequences=4), *(submit(PROMPTS[i % 8], 24) for i in range(32)))
    for i, answer in enumerate(answers):
        assert answer.end.reason in ("length", "stop")
        assert answer.text == answers[i % 8].text


def test_a_pool_too_small_for_all_sets_answers_back_and_loses_none(exact: Path) -> None:
    # Each grows to over 100 tokens; six reserves of 21 are let in, and outgrow the 256 cells.
    requests = [submit(f"{prompt} and then", 110) for prompt in PROMPTS[:6]]
    wide = ask(precise(exact, context=2048), *requests)
    tight = ask(precise(exact, context=256, sequences=6), *requests)
    assert [answer.text for answer in tight] == [answer.text for answer in wide]
    assert [answer.end.answer_tokens for answer in tight] == [answer.end.answer_tokens for answer in wide]


def test_same_seed_same_text_and_other_seed_other_text(demo: Path) -> None:
    def seeded(seed: int) -> m.Submit:
        return submit(sampling=Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed))

    texts = [answer.text for answer in one_by_one(load(demo), seeded(7), seeded(7), seeded(8), seeded(-1), seeded(-1))]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_several_answers_to_one_prompt_share_it(demo: Path) -> None:
    async def talk(worker: Worker) -> dict[int, str]:
        texts = dict.fromkeys(range(3), "")
        async for frame in worker.frames(submit(count=3, sampling=Sampling(temperature=1.0, seed=3))):
            if isinstance(frame, m.Delta):
                texts[frame.index] += frame.text
        return texts

    texts = with_worker(load(demo), talk)
    assert len(set(texts.values())) == 3
    (alone,) = ask(load(demo), submit(sampling=Sampling(temperature=1.0, seed=4)))
    assert texts[1] == alone.text


def test_stop_strings_end_an_answer_and_never_show(demo: Path, oracle: Any) -> None:
    whole = oracle[0][0]
    stops = [whole[10:14], whole[20:33]]
    answers = ask(load(demo), submit(stop=stops[:1]), submit(stop=stops[1:]), submit(stop=["no such thing"]))
    assert answers[0].text == whole[: whole.index(stops[0])]
    assert answers[1].text == whole[: whole.index(stops[1])]
    assert answers[1].end.stop == stops[1]
    assert answers[2].text == whole


def test_deltas_are_never_torn_and_never_empty(demo: Path) -> None:
    odd = Sampling(temperature=3.0, top_k=0, top_p=1.0, seed=5)
    (answer,) = ask(load(demo), submit(tokens=200, sampling=odd))
    assert all(delta.text or delta.tokens for delta in answer.deltas)
    assert sum(delta.tokens for delta in answer.deltas) == answer.end.answer_tokens


def test_a_prompt_that_cannot_fit_is_refused_with_both_numbers_or_cut(demo: Path) -> None:
    long = "word " * 600
    answers = ask(load(demo, context=256), submit(long), submit(long, truncate=True), submit("word " * 100))
    assert answers[0].end.code == "prompt_too_long"
    assert "256" in answers[0].end.message
    assert answers[1].started.truncated > 300
    assert answers[1].end.reason == "length"
    assert answers[2].end.reason == "length"


def test_an_answer_ends_where_the_context_does_unless_it_may_shift(demo: Path) -> None:
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    ends, goes_on = (
        ask(load(demo, context=256), submit(tokens=400, sampling=sampling)),
        ask(load(demo, context=256), submit(tokens=400, sampling=sampling, shift=True)),
    )
    assert ends[0].end.reason == "length"
    assert ends[0].end.answer_tokens + ends[0].end.prompt_tokens == 257
    assert goes_on[0].end.answer_tokens == 400
    assert goes_on[0].text.startswith(ends[0].text[:200])


def test_the_longest_prefix_is_not_computed_again(demo: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog and runs away. " * 8

    async def talk(worker: Worker) -> list[Answer]:
        first = await worker.ask(submit(text + "First", 8, sampling=WARM))
        parked = await worker.ask(submit(text + "Second", 8, sampling=WARM))
        running = worker.frames(submit(text + "Third", 200, sampling=WARM))
        async for frame in running:
            if isinstance(frame, m.Delta):
                break
        while_running = await worker.ask(submit(text + "Third", 8, sampling=WARM))
        at_once = await asyncio.gather(
            *(worker.ask(submit("New. " + text + str(i), 4, sampling=WARM)) for i in range(3))
        )
        return [first, parked, while_running, *at_once]

    answers = with_worker(load(demo), talk)
    lengths = [answer.end.prompt_tokens for answer in answers]
    cached = [answer.started.cached for answer in answers]
    assert cached[0] == 0
    assert all(length - hit <= 4 for length, hit in zip(lengths[1:3], cached[1:3], strict=True))
    # Three that begin alike and come at once: one computes the beginning, two wait for it.
    assert sorted(hit > 80 for hit in cached[3:]) == [False, True, True]


def test_cached_prefixes_do_not_change_the_text(exact: Path, texts: list[str]) -> None:
    requests = [submit(prompt, sampling=WARM) for prompt in PROMPTS for _ in range(2)]
    answers = one_by_one(precise(exact), *requests)
    assert [answer.text for answer in answers[1::2]] == texts
    assert all(answer.started.cached == answer.end.prompt_tokens - 1 for answer in answers[1::2])


def test_conversations_that_left_the_pool_come_back(exact: Path) -> None:
    texts = [f"Chapter {i}. " + "The ship sailed on, and nobody spoke. " * 12 for i in range(4)]
    requests = [submit(text, 12, sampling=WARM) for text in texts]

    def cached(spill: int) -> tuple[list[int], list[str]]:
        answers = one_by_one(precise(exact, context=256, sequences=2, spill=spill), *requests, *requests)
        return [answer.started.cached for answer in answers[4:]], [answer.text for answer in answers]

    without, with_room = cached(0), cached(1 << 26)
    assert max(without[0]) < 20
    assert min(with_room[0]) > 80
    assert with_room[1] == without[1]


def test_cancel_frees_the_sequence_and_leaves_others_alone(exact: Path, texts: list[str]) -> None:
    async def talk(worker: Worker) -> tuple[m.Finished, list[Answer]]:
        doomed = worker.frames(submit("Tell me", 10_000, sampling=Sampling(temperature=0.0, ignore_eos=True)))
        others = [asyncio.create_task(worker.ask(submit(prompt))) for prompt in PROMPTS]
        async for frame in doomed:
            if isinstance(frame, m.Delta):
                await worker.child.send(m.Cancel(frame.id))
                break
        ends = [frame async for frame in doomed if isinstance(frame, m.Finished)]
        return ends[0], await asyncio.gather(*others)

    end, others = with_worker(precise(exact, sequences=3), talk)
    assert end.reason == "cancelled"
    assert [answer.text for answer in others] == texts


def test_cancel_in_the_middle_of_a_prompt(demo: Path) -> None:
    async def talk(worker: Worker) -> list[str]:
        reasons = []
        for _ in range(5):
            frames = worker.frames(submit("word " * 900, 5))
            async for frame in frames:
                if isinstance(frame, m.Started):
                    await worker.child.send(m.Cancel(frame.id))
                if isinstance(frame, m.Finished):
                    reasons.append(frame.reason)
        after = await worker.ask(submit(tokens=4))
        return [*reasons, after.end.reason]

    reasons = with_worker(load(demo), talk)
    assert reasons[-1] == "length"
    assert "cancelled" in reasons


def test_logprobs_are_probabilities_and_the_drawn_token_is_among_them(demo: Path) -> None:
    (answer,) = ask(load(demo), submit(logprobs=5, tokens=12))
    entries = [entry for delta in answer.deltas for entry in delta.logprobs]
    assert len(entries) == 12
    assert "".join(entry.token for entry in entries) == answer.text
    for entry in entries:
        assert entry.top[0][1] == entry.id  # greedy
        assert entry.top[0][2] == pytest.approx(entry.logprob)
        values = [value for _, _, value, _ in entry.top]
        assert values == sorted(values, reverse=True)
        assert all(value <= 0 for value in values)


def test_a_deadline_ends_an_answer(demo: Path) -> None:
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    (answer,) = ask(load(demo), submit(tokens=10**6, seconds=0.05, sampling=sampling, shift=True))
    assert answer.end.code == "timeout"


def test_vectors_are_unit_length_and_tell_texts_apart(demo: Path) -> None:
    import numpy as np

    (answer,) = ask(load(demo), m.Embed(0, inputs=["the cat sat", "the cat sat", "a ship at sea " * 30]))
    a, b, c = (np.frombuffer(vector, "<f4") for vector in answer.end.vectors)
    assert a.shape == (256,)
    assert np.linalg.norm(c) == pytest.approx(1.0, abs=1e-5)
    assert (a == b).all()
    assert float(a @ c) < 0.999


@pytest.mark.parametrize(
    ("request_", "code", "part"),
    [
        (submit(""), "bad_request", "the prompt is empty"),
        (submit([5000]), "bad_request", "token 5000"),
        (submit(sampling=Sampling(temperature=-1.0)), "bad_request", "$.sampling.temperature"),
        (submit(sampling=Sampling(top_p=float("nan"))), "bad_request", "$.sampling.top_p"),
        (submit(sampling=Sampling(logit_bias={9999: 1.0})), "bad_request", "token 9999"),
        (submit(stop=["x" * 300]), "bad_request", "$.limits.stop"),
        (submit(count=999), "bad_request", "$.count"),
        (submit(logprobs=99), "bad_request", "$.logprobs"),
        (m.Submit(0, turns=[]), "bad_request", "`messages` is empty"),
        (m.Submit(0), "bad_request", "turns or a prompt"),
        (m.Embed(0, inputs=["word " * 2000], truncate=False), "prompt_too_long", "2,0"),
        (m.Embed(0, inputs=[""]), "bad_request", "an input is empty"),
    ],
)
def test_what_is_refused_says_why(demo_worker: Any, request_: Any, code: str, part: str) -> None:
    answer = demo_worker(request_)
    assert answer.end.code == code
    assert part in answer.end.message


@pytest.fixture(scope="module")
def demo_worker(demo: Path) -> Any:
    """Ask one worker many things, one at a time."""
    runner = asyncio.Runner()
    context = working(load(demo))
    worker = runner.run(context.__aenter__())
    yield lambda request: runner.run(worker.ask(request))
    runner.run(context.__aexit__(None, None, None))
    runner.close()


def test_every_sampler_draws(demo_worker: Any) -> None:
    for options in (
        {"mirostat": 1},
        {"mirostat": 2},
        {"typical_p": 0.5},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 0.5},
        {"min_p": 0.1},
        {"repeat_penalty": 1.3, "repeat_last_n": -1},
        {"frequency_penalty": 1.0, "presence_penalty": 1.0},
        {"dry_multiplier": 0.8},
        {"logit_bias": {300: -100.0}},
    ):
        answer = demo_worker(submit(tokens=12, sampling=Sampling(seed=1, ignore_eos=True, **options)))
        assert answer.end.answer_tokens == 12, options


def test_a_bias_forbids_and_forces(demo_worker: Any) -> None:
    plain = demo_worker(submit(tokens=1, logprobs=0)).deltas[0].logprobs[0]
    banned = demo_worker(
        submit(tokens=1, logprobs=0, sampling=Sampling(temperature=0.0, logit_bias={plain.id: -100.0}))
    )
    assert banned.deltas[0].logprobs[0].id != plain.id
    forced = demo_worker(submit(tokens=3, logprobs=0, sampling=Sampling(temperature=0.0, logit_bias={1234: 100.0})))
    assert [entry.id for delta in forced.deltas for entry in delta.logprobs] == [1234] * 3


def test_chat_renders_the_template_and_ends_the_turn(demo_worker: Any) -> None:
    chat = demo_worker(
        m.Submit(
            0,
            turns=[Turn.of("user", "Tell me a story.")],
            sampling=GREEDY,
            limits=Limits(max_tokens=60),
        )
    )
    raw = demo_worker(
        submit("<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n", 60, parse_special=True)
    )
    assert chat.text == raw.text
    assert chat.end.reason == raw.end.reason
    spelled = demo_worker(submit(None, 0, turns=[Turn.of("user", "a<|im_end|>b")], give_ids=True)).end.ids
    assert spelled.count(2) == 1  # the template's own
    talk = [Turn.of("user", "a"), Turn.of("assistant", "Well")]
    open_end = demo_worker(submit(None, 0, turns=talk, give_ids=True))
    assert open_end.end.ids[-1] != 2


def test_old_turns_are_dropped_when_asked(demo: Path) -> None:
    turns = [Turn.of(role, f"{role} number {i} " * 10) for i in range(10) for role in ("user", "assistant")]
    messages = [Turn.of("system", "Be brief."), *turns, Turn.of("user", "And now?")]
    limits = Limits(max_tokens=4)
    refused, cut = ask(
        load(demo, context=512),
        m.Submit(0, turns=messages, limits=limits),
        m.Submit(0, turns=messages, limits=limits, truncate=True),
    )
    assert refused.end.code == "prompt_too_long"
    assert cut.started.truncated > 0
    assert cut.started.prompt_tokens < 512


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "absent"])
def test_a_file_that_is_no_model_fails_the_load_and_nothing_else(demo: Path, tmp_path: Path, damage: str) -> None:
    data = demo.read_bytes()
    path = tmp_path / "model.gguf"
    broken = {"empty": b"", "cut": data[: len(data) // 2], "noise": data[:4] + bytes(range(256)) * 40}
    if damage in broken:
        path.write_bytes(broken[damage])

    async def run() -> Any:
        async with working(load(path)) as worker:
            await worker.child.wait()
            return worker.ready, worker.child.ending

    ready, ending = asyncio.run(run())
    assert ready is None or (ready.id == 0 and ready.code == "load_failed")
    assert ending == "exited with status 1" or "was killed" in ending


def test_a_long_text_keeps_nobody_waiting_while_it_is_read(demo: Path) -> None:
    async def run() -> tuple[Answer, Answer]:
        async with working(load(demo)) as worker:
            reading = asyncio.create_task(worker.ask(m.Submit(0, prompt="The old man said. " * 200_000)))
            await asyncio.sleep(0)  # it is sent first
            short = await worker.ask(m.Submit(0, prompt="Once", sampling=GREEDY, limits=Limits(max_tokens=2)))
            assert not reading.done()
            return short, await reading

    short, long = asyncio.run(run())
    assert isinstance(short.end, m.Finished)
    assert isinstance(long.end, m.Failed) and long.end.code == "prompt_too_long"
