"""Drafts in the engine: texts are those without drafts, and the distribution of sampled tokens is the model's own."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import messages as m
from runtime.cache.pool import CellPool
from runtime.cache.spill import Spill
from runtime.defaults import DRAFT_ROWS
from runtime.engine import speculation
from runtime.engine.answering import Answering
from runtime.engine.draft_model import DraftModel, Guess
from runtime.engine.guessing import Guessing
from runtime.engine.pace import Pace
from runtime.engine.prompt import Prompt
from runtime.engine.schedule import Stretch
from runtime.engine.session import Session
from runtime.engine.speculation import Speculation
from runtime.llama.context import Context, ContextParams
from runtime.llama.model import LlamaModel
from runtime.options import Limits, Sampling
from runtime.text.stops import Stops
from tests.quant.support import DEMO
from tests.runtime.conftest import convert
from tests.runtime.speculating import PROMPTS, Engine, as_dict, assert_same, plain, submit


@pytest.fixture(scope="module")
def engine(exact: Path) -> Iterator[Engine]:
    made = Engine(exact)
    yield made
    made.close()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are computed whole, whether they pay or not."""

    def whole(chances: list[list[float]], plain: int, room: int, *_: Any) -> list[int]:
        return [min(9, room // len(chances), len(each)) for each in chances]

    monkeypatch.setattr(speculation, "best_lengths", whole)
    monkeypatch.setattr("runtime.drafts.payoff.Credit.affordable", lambda credit, length, *_: length)


def mutated(text: str, number: int) -> str:
    """`text` with every eighth word or so replaced."""
    chance = random.Random(number)
    return " ".join("otherwise" if chance.random() < 0.12 else word for word in text.split(" "))


@pytest.mark.usefixtures("eager")
def test_greedy_text_is_the_same_alone_and_in_company_with_true_and_false_drafts(engine: Engine) -> None:
    texts = [text for text, _ in plain(engine, *map(submit, PROMPTS))]
    predictions = [mutated(text, number) for number, text in enumerate(texts)]
    requests = [submit(p, prediction=q) for p, q in zip(PROMPTS, predictions, strict=True)]
    alone = [engine.ask(m.Submit(**as_dict(request)))[0] for request in requests]
    together = engine.ask(*requests, submit("In the year 1801", drafts=0))
    for number, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        assert_same(engine, prompt, text, alone[number][0])
        assert_same(engine, prompt, text, together[number][0])
    for _, end in [*alone, *together[:-1]]:
        assert 0 < end.accepted < end.drafted
        assert end.answer_tokens == 60
    assert together[-1][1].drafted == 0


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "options",
    [
        {"sampling": Sampling(temperature=0.9, seed=5)},
        {"sampling": Sampling(temperature=0.9, seed=5, repeat_penalty=1.3, dry_multiplier=0.8)},
        {"sampling": Sampling(temperature=0.0, seed=5, frequency_penalty=1.0)},
        {"sampling": Sampling(temperature=0.7, seed=3, mirostat=2)},
        {"logprobs": 2, "stop": ["the", "a man"]},
        {"grammar": m.Grammar("regex", "( [a-z]{2,9}){12}")},
        {
            "grammar": m.Grammar(
                "schema", json.dumps({"type": "object", "properties": {"a_long_key": {"type": "integer"}}})
            )
        },
        {"grammar": m.Grammar("regex", "(forced words|other) [a-z ]{30}"), "logprobs": 1},
    ],
    ids=["sampled", "penalties", "greedy penalty", "mirostat", "stops", "regex", "schema", "forced with logprobs"],
)
def test_samplers_grammars_and_limits_see_the_tokens_that_are_drawn(engine: Engine, options: dict[str, Any]) -> None:
    # Few tokens: where a token is drawn, rounding changes one in some thousands.
    request = submit(PROMPTS[1], 24, **options)
    ((text, end),) = plain(engine, request)
    ((drafted_text, drafted_end),) = engine.ask(m.Submit(**{**as_dict(request), "prediction": mutated(text, 3)}))
    assert drafted_text == text
    assert (drafted_end.reason, drafted_end.answer_tokens, drafted_end.stop) == (
        end.reason,
        end.answer_tokens,
        end.stop,
    )
    assert drafted_end.drafted > 0


@pytest.mark.usefixtures("eager")
def test_each_drafted_token_has_its_probability(engine: Engine) -> None:
    ((text, _),) = plain(engine, submit(PROMPTS[0], 20))
    rows = []
    for drafts in (0, DRAFT_ROWS):
        engine.ask(submit(PROMPTS[0], 20, drafts, logprobs=1, prediction=text))
        rows.append(list(engine.rows))
    assert [row.id for row in rows[0]] == [row.id for row in rows[1]] and len(rows[1]) == 20
    assert [row.logprob for row in rows[1]] == pytest.approx([row.logprob for row in rows[0]], abs=0.01)


@pytest.mark.usefixtures("eager")
def test_what_comes_after_a_cancelled_answer_is_not_disturbed_by_its_draft(engine: Engine) -> None:
    texts = [text for text, _ in plain(engine, *map(submit, PROMPTS[:3]))]
    requests = [submit(p, prediction=mutated(t, 1)) for p, t in zip(PROMPTS, texts, strict=False)]
    requests[0].limits.max_tokens = 800
    answers = engine.ask(*requests, cancel_first=True)
    assert answers[0][1].reason == "cancelled"
    assert [text for text, _ in answers[1:]] == texts[1:]
    # The sequence that was cancelled is continued: nothing of its draft is left in it.
    warm = submit(PROMPTS[0], sampling=Sampling(temperature=0.0))
    assert engine.ask(warm)[0][0] == texts[0]


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_a_context_that_is_full_ends_the_answer_at_the_same_token(engine: Engine) -> None:
    request = submit("the sea " * 200, 4000, sampling=Sampling(temperature=0.0, seed=2, ignore_eos=True))
    ((text, end),) = plain(engine, request)
    ((drafted_text, drafted_end),) = engine.ask(m.Submit(**{**as_dict(request), "prediction": text}))
    assert (drafted_end.reason, drafted_end.answer_tokens) == ("length", end.answer_tokens)
    assert drafted_text[:60] == text[:60]


EDITED = """<|im_start|>user
Repeat this list word for word, three times over:
def area(width, height): return width * height
def volume(width, height, depth): return width * height * depth
def surface(width, height, depth): return 2 * (width * height + width * depth + height * depth)<|im_end|>
<|im_start|>assistant
def area("""


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_greedy_text_of_a_real_model_is_that_without_prompt_lookup(smollm2: Path) -> None:
    """Its drafts come from the text alone. Its weights have few bits, so that inputs are rounded to eight as well: its
    logits change by 0.1 with the size of a step.
    """
    made = Engine(smollm2)
    prompts = [EDITED, "One two three one two", "The quick brown fox jumps"]
    texts = [text for text, _ in plain(made, *(submit(prompt, 80) for prompt in prompts))]
    alone = [made.ask(submit(prompt, 80))[0] for prompt in prompts]
    together = made.ask(*(submit(prompt, 80) for prompt in prompts))
    for prompt, text, (drafted, _) in zip([*prompts, *prompts], [*texts, *texts], [*alone, *together], strict=True):
        assert_same(made, prompt, text, drafted, 80, margin=0.15)
    made.close()
    assert alone[0][1].accepted > 40 and together[0][1].accepted > 40


def test_drafts_begin_by_themselves_where_they_pay(engine: Engine) -> None:
    """Steps of this model take hardly longer with more rows."""
    texts = [text for text, _ in plain(engine, *(submit(prompt, 120) for prompt in PROMPTS))]
    ends = [engine.ask(submit(p, 120, prediction=t))[0][1] for p, t in zip(PROMPTS, texts, strict=True)]
    assert sum(end.accepted for end in ends) > 0
    drafts = engine.engine.drafts
    assert drafts.accepted >= sum(end.accepted for end in ends) and "of" in drafts.reason


def test_an_answer_with_a_seed_has_drafts_only_where_they_are_asked_for(engine: Engine) -> None:
    seeded = submit(PROMPTS[0], 40, -1, prediction="It was a dark night")
    assert engine.ask(seeded)[0][1].drafted == 0


@pytest.mark.parametrize("switch", ["setting", "request"])
def test_drafts_are_switched_off(engine: Engine, exact: Path, switch: str) -> None:
    request = submit("one two three four one two three four one two", drafts=0 if switch == "request" else 9)
    if switch == "request":
        assert engine.ask(request)[0][1].drafted == 0
        return
    without = Engine(exact, speculation=False)
    assert without.ask(request)[0][1].drafted == 0
    assert without.engine.drafts.reason == "switched off by the setting `speculation`"
    without.close()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["the second likeliest", "a draft model"])
def test_sampled_tokens_have_the_distribution_of_the_model_whatever_is_drafted(
    demo: Path, source: str, tmp_path: Path
) -> None:
    """Pairs of tokens, 100,000 of them, against the products of the model's own probabilities."""
    draws = 100_000
    model = LlamaModel(demo)
    params = ContextParams(256, 2, 8, 1)
    context = Context(model, params)
    pool = CellPool(context, context.tokens, 2, model.memory, Spill(context, 0))
    answering = Answering(model.vocabulary, context, lambda frame: None)
    guesser = DraftModel(LlamaModel(convert(DEMO, tmp_path / "d.gguf", "Q4_0")), params, "d", 4096, 3.5)
    guessing = Guessing(guesser, Pace(64, 3.5)) if source == "a draft model" else None
    spoken = Speculation(pool, Pace(64, 3.5), context, answering, "", guessing)
    prompt = model.vocabulary.tokenize("Once upon a", special=False, add=True)
    sampling = Sampling(temperature=1.0, top_k=6, top_p=1.0, seed=11)
    request = m.Submit(0, prompt="", sampling=sampling, drafts=8, limits=Limits(max_tokens=1 << 30))
    session = Session(request, 0, Prompt(prompt), Stops([]))
    spoken.begin([session], [])
    session.seq = pool.start(None, 0)
    answering.begin(session)
    assert session.seq and session.sampler and session.drafting
    context.put_prompt(0, memoryview(prompt), 0, session.seq.number, 1)
    assert context.decode(len(prompt)) == 0
    likely = top(context.logits(len(prompt) - 1), 6)
    if guessing:
        guess = Guess(session, session.drafting, 1, guesser.behind(session))
        guesser.guess([guess], lambda _: False)
        draft = guess.tokens
        session.drafting.offer(guess.confidences)
    else:  # both cases are frequent
        draft = array("i", [sorted(likely, key=likely.__getitem__)[-2]])
    context.cut(session.seq.number, len(prompt) - 1)
    context.put_prompt(0, memoryview(prompt[-1:] + draft), len(prompt) - 1, session.seq.number, 2)
    assert context.decode(2) == 0
    second = top(context.logits(1), 6)
    pool.grow(session.seq, prompt)
    stretch = Stretch(session, len(prompt) - 1, 1, 1, draft)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        spoken.draw(session, stretch, 0)
        drawn = tuple(session.tokens[len(prompt) :])
        counts[drawn] = counts.get(drawn, 0) + 1
        del session.tokens[len(prompt) :]
        pool.cut(session.seq, len(prompt))
    expected = {(token,): share for token, share in likely.items() if token != draft[0]}
    expected |= {(draft[0], token): likely[draft[0]] * share for token, share in second.items()}
    assert counts.keys() <= expected.keys()
    chi = sum((counts.get(pair, 0) - draws * share) ** 2 / (draws * share) for pair, share in expected.items())
    # The 0.999 quantile of chi-square with 10 degrees of freedom; there are 11 cases.
    assert len(expected) == 11 and chi < 29.59
    if guessing:
        assert (
            f"guessed {draws:,} of them, {draws - sum(n for drawn, n in counts.items() if len(drawn) == 1):,} acc"
            in (guessing.report)
        )
    context.free()


def top(logits: Any, count: int) -> dict[int, float]:
    """The softmax of the largest logits, by token."""
    order = np.argsort(-logits)[:count]
    shares = np.exp(logits[order].astype(np.float64) - logits.max())
    return dict(zip(order.tolist(), (shares / shares.sum()).tolist(), strict=True))
