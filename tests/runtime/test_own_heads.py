"""A model's own heads as a draft model: the text is that without them, and they guess what the block says."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.own_heads import planted
from quant.gguf.header import read_file
from runtime import messages as m
from runtime.defaults import ROLLBACK
from runtime.drafts.lookup import Lookup
from runtime.drafts.payoff import Prospect
from runtime.engine import guessing, speculation
from runtime.engine.own_heads import OwnHeads
from runtime.llama.context import OK, Context, ContextParams
from runtime.llama.heads import HeadsContext
from runtime.llama.library import LOG
from runtime.llama.model import LlamaModel
from runtime.llama.snapshots import Snapshots
from runtime.machine import fit
from runtime.machine.inspection import DraftMeans, ask_reserved
from runtime.options import Sampling
from tests.quant.zoo import sketched
from tests.runtime.conftest import convert
from tests.runtime.speculating import Engine, as_dict, assert_same, plain, submit

# Planted blocks guess the model's token; random ones hardly ever do, so that every step goes back.
KINDS = ("qwen35 planted", "qwen35moe planted", "qwen35 random", "glm4moe random")
PROMPTS: list[Any] = [np.random.default_rng(seed).integers(5, 4000, 12 + 9 * seed).tolist() for seed in range(4)]


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(model(request.param, tmp_path_factory.mktemp("model")), heads=True, rollback=ROLLBACK)
    yield made
    made.close()


def model(kind: str, folder: Path) -> Path:
    name, _, how = kind.partition(" ")
    path = convert(sketched.make(sketched.PREDICTING[f"{name}, heads"], folder / "source"), folder / "m.gguf", "F32")
    return planted(path, folder / "planted.gguf") if how == "planted" else path


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens are guessed and checked at every step, whether they pay or not; nothing else is drafted."""

    def three(drafts: Sequence[Any], tokens: float, rows: int, room: int, *_: Any, **__: Any) -> Prospect:
        return Prospect(min(ROLLBACK, room // max(1, len(drafts))), 9.0)

    def whole(chances: list[list[float]], plain: int, room: int, *_: Any) -> list[int]:
        return [min(ROLLBACK, room // len(chances), len(each)) for each in chances]

    monkeypatch.setattr(guessing, "prospect", three)
    monkeypatch.setattr("runtime.engine.own_heads.LEAST_CHANCE", 0.0)
    monkeypatch.setattr(speculation, "best_lengths", whole)
    monkeypatch.setattr("runtime.drafts.payoff.Credit.affordable", lambda credit, length, *_: length)
    monkeypatch.setattr("runtime.drafts.payoff.Credit.settle", lambda *_: None)
    monkeypatch.setattr(Lookup, "propose", lambda *_: array("i"))


def ask(prompt: Any, tokens: int = 30, **options: Any) -> m.Submit:
    return submit(prompt, tokens, sampling=Sampling(temperature=0.0, seed=1, ignore_eos=True), **options)


def heads_of(engine: Engine) -> OwnHeads:
    found = engine.engine._speculation._guessing
    assert found and isinstance(found._model, OwnHeads)
    return found._model


def test_greedy_text_is_the_same_alone_and_in_company(engine: Engine, request: pytest.FixtureRequest) -> None:
    texts = [text for text, _ in plain(engine, *map(ask, PROMPTS))]
    alone = [engine.ask(ask(prompt))[0] for prompt in PROMPTS]
    together = engine.ask(*map(ask, PROMPTS), ask(PROMPTS[0], drafts=0))
    for number, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        assert_same(engine, prompt, text, alone[number][0], 30)
        assert_same(engine, prompt, text, together[number][0], 30)
    drafted, accepted = sum(end.drafted for _, end in alone), sum(end.accepted for _, end in alone)
    assert drafted and together[-1][1].drafted == 0
    if "planted" in request.node.callspec.params["engine"]:
        assert accepted >= 0.95 * drafted
    assert "the model's own heads guessed" in engine.engine.drafts.reason


def test_a_conversation_goes_on_and_answers_share_a_prompt(engine: Engine) -> None:
    opening = PROMPTS[2]
    ((_, end),) = engine.ask(ask(opening, give_ids=True))
    longer = ask([*end.ids[: len(opening) + 20], *PROMPTS[1]], count=3)
    ((wanted, _),) = plain(engine, m.Submit(**{**as_dict(longer), "count": 1}))
    answers = engine.ask(longer)
    assert sum(end.drafted for _, end in answers) > 0
    for found, _ in answers:
        assert_same(engine, longer.prompt, wanted, found, 30)
    assert heads_of(engine)._free() >= 0


def test_guesses_are_what_the_block_says_of_the_whole_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[tuple[int, int]] = []
    real = OwnHeads._add

    def add(heads: OwnHeads, guess: Any, row: int) -> bool:
        goes_on = real(heads, guess, row)
        if len(guess.tokens) == 1:
            first.append((len(guess.session.tokens), guess.tokens[0]))
        return goes_on

    monkeypatch.setattr(OwnHeads, "_add", add)
    prompt = np.random.default_rng(99).integers(5, 4000, 50).tolist()
    ((_, end),) = engine.ask(ask(prompt, 40, give_ids=True))
    said = block_says(engine.engine._model, end.ids[: len(prompt) + 40])
    # Rounding may turn a guess where two tokens are almost equally likely.
    wrong = [place for place, token in first if said[place - 1] != token]
    assert len(first) >= 10 and len(wrong) <= len(first) // 10


def block_says(model: LlamaModel, tokens: list[int]) -> list[int]:
    """The token that the block says after each of `tokens`, by one pass of the model and one of the block."""
    params = ContextParams(256, 1, len(tokens), 1, "F32")
    large, text = Context(model, params), memoryview(array("i", tokens))
    heads = HeadsContext(model, ContextParams(256, 1, 1, 1, "F32"), large)
    large.put_prompt(0, text, 0, 0, 1)
    assert large.decode(len(tokens)) == OK
    states = np.vstack([np.zeros((1, model.n_embd), np.float32), large.hidden(len(tokens))[:-1]])
    said = []
    for row in range(len(tokens)):
        heads.put_prompt(0, text[row : row + 1], row, 0, 1)
        assert heads.decode(1, np.ascontiguousarray(states[row : row + 1])) == OK
        said.append(int(heads.logits(0).argmax()))
    heads.free()
    large.free()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen35 planted"])
def test_sampled_pairs_have_the_models_own_distribution(kind: str, tmp_path: Path) -> None:
    made = Engine(model(kind, tmp_path), heads=True, rollback=ROLLBACK)
    prompt, draws, heat = PROMPTS[0], 1600, 8.0

    def likely(tokens: list[int]) -> dict[int, float]:
        made.ask(ask(tokens, 1, drafts=0, logprobs=6))
        weights = {token: math.exp(logprob / heat) for _, token, logprob, _ in made.rows[0].top}
        return {token: weight / sum(weights.values()) for token, weight in weights.items()}

    expected = {
        (token, other): share * part
        for token, share in likely(prompt).items()
        for other, part in likely([*prompt, token]).items()
    }
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(draws // 8):
        sampling = Sampling(temperature=heat, top_k=6, top_p=1.0, min_p=0.0, seed=64 * seed, ignore_eos=True)
        answers = made.ask(submit(prompt, 4, count=8, sampling=sampling, give_ids=True))
        counts.update(tuple(end.ids[len(prompt) : len(prompt) + 2]) for _, end in answers)
    made.close()
    assert counts.keys() <= expected.keys() and len(expected) == 36
    chi = sum((counts[pair] - draws * share) ** 2 / (draws * share) for pair, share in expected.items())
    assert chi < 66.62  # the 0.999 quantile of chi-square with 35 degrees of freedom


def test_embeddings_of_a_model_with_heads_are_those_without(tmp_path: Path) -> None:
    path, found = model("qwen35 random", tmp_path), []
    for heads in (False, True):
        loaded = LlamaModel(path, heads=heads)
        context = Context(loaded, ContextParams(256, 2, 2, 1, "F32"))
        text = memoryview(array("i", PROMPTS[0]))
        context.put_prompt(0, text[:-1], 0, 0, 0)
        assert context.decode(len(text) - 1) == OK
        context.embed_mode(True)
        context.put_prompt(0, text[-1:], len(text) - 1, 0, 1)
        assert context.decode(1) == OK
        found.append(context.pooled(0).copy())
        context.free()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_heads_whose_steps_fail_are_left_out_and_answers_go_on(tmp_path: Path) -> None:
    made = Engine(model("qwen35 random", tmp_path), heads=True, rollback=ROLLBACK)
    heads_of(made).context.decode = lambda rows, vectors=None: -3  # type: ignore[method-assign]
    assert made.ask(ask(PROMPTS[3], 20))[0][1].answer_tokens == 20
    assert "could not compute steps of the model's own heads" in made.engine.drafts.reason
    made.close()


def test_a_model_without_its_heads_says_why(tmp_path: Path) -> None:
    made = Engine(model("qwen35 random", tmp_path), missing="there is no room")
    assert made.ask(ask(PROMPTS[0], 5))[0][1].drafted == 0
    reason = made.engine.drafts.reason
    assert "cannot go back" in reason and reason.endswith("its own heads are not used: there is no room")
    made.close()


@pytest.mark.parametrize("kind", ["qwen35 random", "qwen35moe random", "deepseek2 random"])
def test_memory_is_predicted_within_a_twentieth(kind: str, tmp_path: Path) -> None:
    path = model(kind, tmp_path)
    header = read_file(path)
    size = fit.ModelSize.of(header.metadata)
    assert size.has_heads and size.rollback == (ROLLBACK if "qwen" in kind else 0)
    means = DraftMeans(True, size.rollback)
    said = ask_reserved(header.metadata, header.tensors, m.CacheConfig(1024, 8, "F32"), means)
    assert said
    LOG.cache_bytes = 0
    made = Engine(path, heads=True, rollback=size.rollback)
    buffers, heads = made.engine._context.buffers, heads_of(made).buffers
    held = {name: buffers.get(name, 0) + heads.get(name, 0) for name in ("KV", "RS", "compute", "output")}
    made.close()
    assert said.cache == pytest.approx(held["KV"] + held["RS"], rel=0.05)
    assert said.compute + said.output == pytest.approx(held["compute"] + held["output"], rel=0.05)
    formula = fit.memory(size, path.stat().st_size, said.cache_config, means)
    assert formula.cache == pytest.approx(said.cache, rel=0.05)


@pytest.mark.slow
def test_qwen3_next_drafts_nothing_because_llama_cpp_cannot_take_its_state_back(tmp_path: Path) -> None:
    made = Engine(model("qwen3next random", tmp_path), heads=True, rollback=ROLLBACK)
    try:
        ((_, end),) = made.ask(submit(PROMPTS[0], tokens=4))
        assert made.engine._context.rollback == 0  # where this fails, its architecture belongs to GOING_BACK
        assert end.drafted == 0 and "cannot go back" in made.engine.drafts.reason
    finally:
        made.close()


def test_a_state_goes_back_once_and_no_further_than_its_last_step() -> None:
    states = Snapshots(3)
    states.put(0, 3)
    states.put(1, 3)
    states.computed(True)
    assert not states.go_back(0, 3) and states.go_back(1, 0)
    assert states.go_back(0, 2) and states.went_back(0) and not states.go_back(0, 1)
    states.put(0, 1)
    states.computed(True)
    assert not states.go_back(1, 1)  # another step may have moved its states
    states.put(0, 4)
    states.put(1, 1)
    states.computed(True)
    assert not states.go_back(0, 1)  # computed in parts
    states.put(0, 9)
    states.computed(True)
    assert not states.went_back(0) and not states.go_back(0, 4) and states.go_back(0, 3)
    states.put(0, 2)
    states.computed(False)
    assert not states.go_back(0, 1) and not states.go_back(0, 0)
    states.forget(0)
    assert states.go_back(0, 0)


def test_a_draft_model_drafts_for_a_model_with_a_state(tmp_path: Path) -> None:
    for kind in ("qwen35 random", "glm4moe random"):
        (tmp_path / kind[:4]).mkdir()
    base, draft = (model(kind, tmp_path / kind[:4]) for kind in ("qwen35 random", "glm4moe random"))
    made = Engine(base, draft=(str(draft), "small"), rollback=ROLLBACK)
    texts = [text for text, _ in plain(made, *map(ask, PROMPTS))]
    answers = [made.ask(ask(prompt))[0] for prompt in PROMPTS]
    for prompt, text, (found, end) in zip(PROMPTS, texts, answers, strict=True):
        assert_same(made, prompt, text, found, 30)
        assert end.drafted > 20
    made.close()
