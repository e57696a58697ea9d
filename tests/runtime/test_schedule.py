"""Steps on a KV cache that is made of sets: phases of sessions, rows whose logits are wanted, full caches."""

from __future__ import annotations

from array import array

from runtime import messages as m
from runtime.cache.pool import Sequence
from runtime.engine.pace import PATIENCE, Pace
from runtime.engine.prompt import Prompt
from runtime.engine.schedule import Schedule, Step
from runtime.engine.session import Session
from runtime.text.stops import Stops
from tests.runtime.test_cell_pool import Cells, plain_pool

BATCH = 512


class Model:
    """Computes the steps of a schedule; every answer goes on for ever."""

    def __init__(self, cells: int) -> None:
        self.cache = Cells(16)
        self.pace = Pace(BATCH, 6.0)
        self.pool = plain_pool(self.cache, cells)
        self.gave_way = 0
        self.schedule = Schedule(self.pool, self.pace, 8, outputs=16, give_way=self.give_way)
        self.held: Sequence | None = None

    def give_way(self) -> bool:
        """What the embedder does: empty its sequence."""
        if self.held:
            self.pool.clear(self.held)
            self.held = None
            self.gave_way += 1
            return True
        return False

    def hold(self, cells: int) -> None:
        """A text that is being embedded."""
        self.held = self.pool.start(None, 0)
        assert self.held
        self.cache.add(self.held.number, cells)
        self.pool.grow(self.held, array("i", range(9000, 9000 + cells)))

    def ask(self, first: int, tokens: int, **options: bool) -> Session:
        prompt = Prompt(array("i", range(first, first + tokens)))
        session = Session(m.Submit(0, prompt="", **options), 0, prompt, Stops([]))
        self.schedule.waiting.append(session)
        self.schedule.admit()
        return session

    def step(self) -> Step:
        step = self.schedule.plan()
        for stretch in step.stretches:
            session = stretch.session
            assert session.seq
            self.cache.add(session.seq.number, stretch.size)
            self.schedule.computed(stretch)
            if stretch.wanted:
                session.add(0, b"a", None)
        return step

    def rows(self) -> list[tuple[int, int, int]]:
        """Start, size and wanted rows of each stretch of the next step."""
        return [stretch[1:4] for stretch in self.step().stretches]


def test_a_prompt_is_read_in_batches_and_only_its_last_row_gives_logits() -> None:
    model = Model(8192)
    session = model.ask(0, 1000)
    assert session.phase == "prefill"
    assert model.rows() == [(0, 512, 0)]
    assert session.phase == "prefill"
    assert model.rows() == [(512, 488, 1)]
    assert (session.phase, session.answer_tokens) == ("decode", 1)
    assert model.rows() == [(1000, 1, 1)]
    assert (session.phase, session.answer_tokens) == ("decode", 2)


def test_a_prompt_that_is_in_the_cache_needs_one_row() -> None:
    model = Model(8192)
    model.ask(0, 100)
    model.step()
    session = model.ask(0, 100)
    assert session.phase == "decode"
    assert model.rows() == [(100, 1, 1), (99, 1, 1)]


def test_who_begins_alike_waits_for_the_prompt_that_is_being_read() -> None:
    model = Model(8192)
    model.ask(0, 600)
    second = model.ask(0, 600)
    assert second.phase == "waiting"
    model.step()
    model.step()
    assert model.schedule.admit() == [second]
    assert second.phase == "decode"


def test_the_youngest_gives_way_when_the_cache_is_full_and_comes_back_first() -> None:
    model = Model(128)
    old, young = model.ask(0, 50), model.ask(1000, 50)
    later = model.ask(2000, 50)
    while young.phase != "waiting":
        model.step()
    assert old.phase == "decode"
    assert list(model.schedule.waiting) == [young, later]
    read = len(young.tokens)
    model.schedule.leave(old, 1)
    assert model.schedule.admit()[0] is young
    assert (young.phase, young.pending) == ("prefill", read)


def test_an_answer_that_fills_the_cache_alone_ends() -> None:
    model = Model(128)
    session = model.ask(0, 100)
    while not (step := model.step()).ending:
        pass
    assert step.ending == [session]
    assert not step.stretches
    assert len(session.tokens) == 129


def test_an_answer_that_may_shift_goes_on() -> None:
    model = Model(128)
    session = model.ask(0, 100, shift=True)
    for _ in range(300):
        assert not model.step().ending
    assert session.answer_tokens == 300


def test_only_answers_whose_text_is_flowing_hold_prompts_back() -> None:
    model = Model(8192)
    for _ in range(20):
        model.pace.note(1, 0, 0.032)
    answer = model.ask(0, 100)
    model.step()
    model.ask(100, 100)

    def rows_of_prompts(answer_tokens: int) -> int:
        answer.answer_tokens = answer_tokens
        return sum(stretch.size for stretch in model.schedule.plan().stretches[1:])

    # One token, or none: whoever waits for the second waits as those do who wait for their first.
    assert rows_of_prompts(0) == rows_of_prompts(1) == 100
    assert rows_of_prompts(2) == model.pace.budget(1, patience=PATIENCE) < 100


def test_a_text_being_embedded_gives_way_to_an_answer_that_would_end() -> None:
    model = Model(64)
    session = model.ask(0, 20)
    model.hold(30)
    for _ in range(30):
        assert not model.step().ending
    assert (session.answer_tokens, model.gave_way) == (30, 1)


def test_every_row_of_a_prompt_gives_logits_where_its_probabilities_are_asked_for() -> None:
    model = Model(8192)
    model.ask(0, 40)
    model.step()
    model.ask(0, 40, echo=True, logprobs=0)  # nothing of it comes from the cache
    assert model.rows() == [(40, 1, 1), (0, 15, 15)]
    others = [model.ask(5000 * n, 40, echo=True, logprobs=0) for n in range(2, 8)]
    assert sum(wanted for _, _, wanted in model.rows()) <= 16
    assert all(session.phase == "prefill" for session in others)


def test_a_request_for_many_answers_waits_as_one() -> None:
    model = Model(4096)
    prompt = Prompt(array("i", range(8)))
    for request in (1, 2):
        submit = m.Submit(request, prompt="", count=100)
        model.schedule.waiting.extend(Session(submit, index, prompt, Stops([])) for index in range(100))
    assert model.schedule.waiting_requests == 2
