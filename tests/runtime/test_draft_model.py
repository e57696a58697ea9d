"""A draft model beside the large one: the text is that without it, and it guesses only where that pays."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime import messages as m
from runtime.drafts.lookup import Lookup
from runtime.drafts.payoff import Prospect
from runtime.engine import guessing, speculation
from runtime.engine.draft_model import DraftModel
from runtime.engine.pace import Pace
from runtime.llama.context import ContextParams
from runtime.llama.model import LlamaModel
from runtime.options import Limits, Sampling
from tests.quant.support import DEMO
from tests.runtime.conftest import convert
from tests.runtime.speculating import PROMPTS, Engine, as_dict, assert_same, plain, submit


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with two bits for each weight, which guesses many tokens right, and others wrong."""
    return convert(DEMO, tmp_path_factory.mktemp("models") / "rough.gguf", "Q2_0")


@pytest.fixture(scope="module")
def engine(exact: Path, rough: Path) -> Iterator[Engine]:
    made = Engine(exact, draft=(str(rough), "rough"))
    yield made
    made.close()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens are guessed and checked at every step, whether they pay or not."""

    def five(drafts: Sequence[Any], tokens: float, rows: int, room: int, *_: Any, **__: Any) -> Prospect:
        return Prospect(min(5, room // max(1, len(drafts))), 9.0)

    def whole(chances: list[list[float]], plain: int, room: int, *_: Any) -> list[int]:
        return [min(5, room // len(chances), len(each)) for each in chances]

    monkeypatch.setattr(guessing, "prospect", five)
    monkeypatch.setattr("runtime.engine.draft_model.LEAST_CHANCE", 0.0)
    monkeypatch.setattr(DraftModel, "read_seconds", lambda *_: 0.0)
    monkeypatch.setattr(speculation, "best_lengths", whole)
    monkeypatch.setattr("runtime.drafts.payoff.Credit.affordable", lambda credit, length, *_: length)
    monkeypatch.setattr("runtime.drafts.payoff.Credit.settle", lambda *_: None)


def draft_model(engine: Engine) -> DraftModel:
    guessing = engine.engine._speculation._guessing
    assert guessing
    return guessing._model


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_greedy_text_is_the_same_alone_and_in_company(engine: Engine) -> None:
    texts = [text for text, _ in plain(engine, *map(submit, PROMPTS))]
    alone = [engine.ask(submit(prompt))[0] for prompt in PROMPTS]
    together = engine.ask(*map(submit, PROMPTS), submit("In the year 1801", drafts=0))
    for number, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        assert_same(engine, prompt, text, alone[number][0])
        assert_same(engine, prompt, text, together[number][0])
    assert sum(end.accepted for _, end in alone) > 40 and together[-1][1].drafted == 0
    assert all(end.accepted <= end.drafted and end.answer_tokens == 60 for _, end in [*alone, *together])
    assert "`rough` guessed" in engine.engine.drafts.reason


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "options",
    [
        {"sampling": Sampling(temperature=0.9, seed=5)},
        {"sampling": Sampling(temperature=0.0, seed=5, repeat_penalty=1.3, frequency_penalty=1.0)},
        {"grammar": m.Grammar("regex", "( [a-z]{2,9}){12}")},
        {"logprobs": 2, "stop": ["the", "a man"]},
    ],
    ids=["sampled", "penalties", "regex", "stops"],
)
def test_samplers_and_grammars_see_the_tokens_that_are_drawn(engine: Engine, options: dict[str, Any]) -> None:
    request = submit(PROMPTS[1], 24, **options)
    ((text, end),) = plain(engine, request)
    ((guessed_text, guessed_end),) = engine.ask(m.Submit(**as_dict(request)))
    assert (guessed_text, guessed_end.reason, guessed_end.answer_tokens) == (text, end.reason, end.answer_tokens)
    assert guessed_end.drafted > 0


@pytest.mark.usefixtures("eager")
def test_long_prompts_are_read_in_pieces_and_several_answers_share_them(engine: Engine) -> None:
    prompt = "the sea and the ship and the old man said " * 30
    request = submit(prompt, 40, count=3, sampling=Sampling(temperature=0.0))
    answers = engine.ask(request)
    assert sum(end.accepted for _, end in answers) > 0
    assert len({text for text, _ in answers}) == 1
    assert draft_model(engine)._pool.used < draft_model(engine).context.tokens


@pytest.mark.usefixtures("eager")
def test_a_conversation_goes_on_where_the_draft_model_has_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = DraftModel.behind
    monkeypatch.setattr(DraftModel, "behind", lambda self, session: read.append(real(self, session)) or read[-1])
    opening = (Path(__file__).parents[1] / "prose.txt").read_text()[:400]
    monkeypatch.setattr(Lookup, "propose", lambda *_: array("i"))
    ((text, _),) = engine.ask(submit(opening, 60))
    first = read[0]
    read.clear()
    engine.ask(submit(opening + text + " And then", 20, sampling=Sampling(temperature=0.0)))
    assert 0 < read[0] < 40 < first


@pytest.mark.usefixtures("eager")
def test_an_answer_that_is_cancelled_disturbs_no_other_and_leaves_no_sequence_behind(engine: Engine) -> None:
    texts = [text for text, _ in plain(engine, *map(submit, PROMPTS[:3]))]
    requests = [submit(prompt) for prompt in PROMPTS[:3]]
    requests[0].limits.max_tokens = 800
    answers = engine.ask(*requests, cancel_first=True)
    assert answers[0][1].reason == "cancelled"
    for prompt, text, (found, _) in zip(PROMPTS[1:3], texts[1:], answers[1:], strict=True):
        assert_same(engine, prompt, text, found)
    assert not draft_model(engine)._held


@pytest.mark.usefixtures("eager")
def test_a_draft_model_whose_steps_fail_is_left_out_and_answers_go_on(exact: Path, rough: Path) -> None:
    made = Engine(exact, draft=(str(rough), "rough"))
    draft_model(made).context.decode = lambda rows, vectors=None: -3  # type: ignore[method-assign]
    assert made.ask(submit(PROMPTS[0], 30))[0][1].answer_tokens == 30
    assert "could not compute steps of `rough`" in made.engine.drafts.reason
    made.close()


def test_a_draft_that_costs_as_much_as_the_model_is_hardly_used(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Engine(exact, draft=(str(exact), "itself"))
    monkeypatch.setattr(Lookup, "propose", lambda *_: array("i"))
    # A step of the model and one of the draft take the same time, whatever the machine does meanwhile.
    monkeypatch.setattr(Pace, "answer_seconds", lambda _, rows: 0.001 * (0.9 + 0.1 * rows))
    ((_, end),) = made.ask(submit(PROMPTS[0], 200, sampling=Sampling(temperature=0.0, seed=1, ignore_eos=True)))
    made.close()
    assert end.answer_tokens == 200 and end.drafted < 60


def test_texts_beyond_the_draft_models_context_and_vocabulary_are_not_guessed(exact: Path, rough: Path) -> None:
    small = DraftModel(LlamaModel(rough), ContextParams(256, 2, 2, 1), "rough", 300, 3.5)

    class Text:
        def __init__(self, tokens: list[int]) -> None:
            self.tokens = array("i", tokens)

    long, strange, usual = Text([5] * 256), Text([5, 6, 299, 300]), Text([5, 6, 7])
    assert [small.behind(each) for each in (long, strange, usual)] == [0, 0, 3]  # type: ignore[arg-type]


def test_limits_of_an_answer_hold_with_guesses(engine: Engine) -> None:
    ((_, end),) = engine.ask(submit(PROMPTS[0], 7, limits=Limits(max_tokens=7)))
    assert end.answer_tokens == 7 and end.reason == "length"
