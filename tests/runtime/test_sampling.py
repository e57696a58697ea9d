"""Each sampler against its formula in NumPy, on the logits that llama-cpp-python computes: what may be drawn, and is.

Formulas from the papers: top-p (1904.09751), typical (2202.00666), mirostat (2007.14966), min-p (2407.01082),
top-n-sigma (2411.07641); XTC and DRY from their authors' descriptions (text-generation-webui #6335, #5677).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import messages as m
from runtime.conversation import Turn
from runtime.options import MAX_ANSWERS, Limits, Sampling
from tests.runtime.test_engine import PROMPTS, ask, load, one_by_one, submit, with_worker
from tests.runtime.working import Worker

PROMPT = "The old man said that the old man said that the old man"
DRAWS = 64
ORACLE = """
import sys
import numpy as np
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=256, n_threads=1, n_threads_batch=1, flash_attn=True, logits_all=True, verbose=False)
ids = model.tokenize(sys.argv[2].encode(), add_bos=True, special=False)
model.eval(ids)
np.savez(sys.argv[3], ids=ids, logits=model.scores[len(ids) - 1])
"""
Logits = np.ndarray


@pytest.fixture(scope="module")
def known(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], Logits]:
    out = tmp_path_factory.mktemp("logits") / "logits.npz"
    subprocess.run([sys.executable, "-c", ORACLE, str(exact), PROMPT, str(out)], capture_output=True, check=True)
    with np.load(out) as found:
        return found["ids"].tolist(), found["logits"].astype(np.float64)


@pytest.fixture(scope="module")
def draw(exact: Path) -> Any:
    """Token ids that a request draws first, with so many seeds."""
    from tests.runtime.working import working

    runner = asyncio.Runner()
    context = working(load(exact, kv_type="F32"))
    worker: Worker = runner.run(context.__aenter__())

    async def all_of(options: dict[str, Any], count: int) -> list[int]:
        found = []
        for seed in range(0, count, MAX_ANSWERS):
            sampling = Sampling(**{"top_k": 0, "top_p": 1.0, "temperature": 1.0, "seed": seed, **options})
            size = min(MAX_ANSWERS, count - seed)
            request = m.Submit(0, prompt=PROMPT, sampling=sampling, limits=Limits(max_tokens=1), count=size, logprobs=0)
            async for frame in worker.frames(request):
                if isinstance(frame, m.Delta):
                    found += [entry.id for entry in frame.logprobs]
        return found

    known: dict[str, list[int]] = {}

    def cached(options: dict[str, Any], count: int = DRAWS) -> list[int]:
        key = f"{options} {count}"
        known[key] = known.get(key) or runner.run(all_of(options, count))
        return known[key]

    yield cached
    runner.run(context.__aexit__(None, None, None))
    runner.close()


def chances(logits: Logits) -> np.ndarray:
    values = np.exp(logits - logits.max())
    return values / values.sum()


def most(order: np.ndarray, weights: np.ndarray, share: float) -> set[int]:
    """The first of `order` whose weights sum up to `share`."""
    return set(order[: int(np.searchsorted(np.cumsum(weights[order]), share)) + 1].tolist())


def top_p(logits: Logits) -> set[int]:
    return most(np.argsort(-logits), chances(logits), 0.3)


def typical(logits: Logits) -> set[int]:
    p = chances(logits)
    surprise = -np.log(p)
    return most(np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable"), p, 0.3)


def xtc(logits: Logits) -> set[int]:
    p = chances(logits)
    above = [token for token in np.argsort(-p) if p[token] >= 0.02]
    return set(range(len(p))) - {int(token) for token in above[:-1]}


def mirostat_1(logits: Logits) -> set[int]:
    """The first token, when the target is 3 bits and nothing was learnt yet: top-k by the slope of the first 100."""
    p = np.sort(chances(logits))[::-1]
    ranks = np.arange(2, 101)
    steps, drops = np.log(ranks / (ranks - 1)), np.log(p[:99] / p[1:100])
    slope = (steps * drops).sum() / (steps * steps).sum()
    excess = slope - 1
    k = (excess * 2.0**6 / (1 - len(p) ** -excess)) ** (1 / slope)
    return set(np.argsort(-logits)[: max(int(k), 1)].tolist())


QUICK = ("top-k", "xtc")
SETS: dict[str, tuple[dict[str, Any], Callable[[Logits], set[int]]]] = {
    "top-k": ({"top_k": 3}, lambda logits: set(np.argsort(-logits)[:3].tolist())),
    "top-p": ({"top_p": 0.3}, top_p),
    "min-p": ({"min_p": 0.2}, lambda logits: set(np.nonzero(chances(logits) >= 0.2 * chances(logits).max())[0])),
    "typical": ({"typical_p": 0.3}, typical),
    "top-n-sigma": (
        {"top_n_sigma": 1.0},
        lambda logits: set(np.nonzero(logits >= logits.max() - logits.std())[0]),
    ),
    "xtc": ({"xtc_probability": 1.0, "xtc_threshold": 0.02}, xtc),
    "mirostat 1": ({"mirostat": 1, "mirostat_tau": 3.0}, mirostat_1),
    "mirostat 2": (
        {"mirostat": 2, "mirostat_tau": 1.5},
        lambda logits: set(np.nonzero(-np.log2(chances(logits)) <= 3.0)[0]),
    ),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SETS])
def test_what_may_be_drawn_is_drawn_and_nothing_else(known: Any, draw: Any, name: str) -> None:
    options, allowed = SETS[name]
    logits = known[1]
    permitted = allowed(logits)
    found = Counter(draw(options))
    assert set(found) <= permitted
    # Without the sampler others would have come up.
    assert not set(draw({})) <= permitted
    # What is left is drawn by its probability: of 64 draws of a chance of 1/4, 0 to 33 but for one case in a million.
    p = chances(logits) * np.isin(np.arange(len(logits)), list(permitted))
    p /= p.sum()
    for token in np.argsort(-p)[:3]:
        assert abs(found[int(token)] / DRAWS - p[token]) < 5 * (p[token] * (1 - p[token]) / DRAWS) ** 0.5 + 1e-9


@pytest.mark.slow
def test_temperature_flattens(known: Any, draw: Any) -> None:
    for temperature in (0.5, 2.0):
        p = chances(known[1] / temperature)
        best = int(p.argmax())
        share = Counter(draw({"temperature": temperature}))[best] / DRAWS
        assert abs(share - p[best]) < 5 * (p[best] * (1 - p[best]) / DRAWS) ** 0.5


def penalized(ids: list[int], logits: Logits, last: int, repeat: float, frequency: float, presence: float) -> Logits:
    changed = logits.copy()
    for token, count in Counter(ids[-last:]).items():
        changed[token] = changed[token] / repeat if changed[token] > 0 else changed[token] * repeat
        changed[token] -= count * frequency + presence
    return changed


def dry(ids: list[int], logits: Logits, strength: float, base: float, allowed: int) -> Logits:
    """Each token that would make the end of the text longer like something before it pays for the length of that."""
    changed = logits.copy()
    longest: Counter[int] = Counter()
    for at in range(1, len(ids)):
        length = 0
        while length < at and ids[at - 1 - length] == ids[-1 - length]:
            length += 1
        longest[ids[at]] = max(longest[ids[at]], length)
    for token, length in longest.items():
        if length >= allowed:
            changed[token] -= strength * base ** (length - allowed)
    return changed


def test_penalties_change_what_comes_first(known: Any, draw: Any) -> None:
    ids, logits = known
    # The word that came each time after these is made the likeliest; biases are added before penalties.
    again = int(dry(ids, np.zeros_like(logits), 1.0, 2.0, 2).argmin())
    bias = float(logits.max() - logits[again] + 0.5)
    logits = logits.copy()
    logits[again] += bias
    options = {"temperature": 0.0, "logit_bias": {again: bias}}
    assert draw(options, 1) == [again]
    for more, changed in (
        ({"repeat_penalty": 3.0, "repeat_last_n": 64}, penalized(ids, logits, 64, 3.0, 0.0, 0.0)),
        ({"frequency_penalty": 1.0, "repeat_last_n": -1}, penalized(ids, logits, 64, 1.0, 1.0, 0.0)),
        ({"presence_penalty": 20.0, "repeat_last_n": 4}, penalized(ids, logits, 4, 1.0, 0.0, 20.0)),
        ({"presence_penalty": 20.0}, penalized(ids, logits, 64, 1.0, 0.0, 20.0)),
        ({"dry_multiplier": 2.0, "dry_base": 1.75}, dry(ids, logits, 2.0, 1.75, 2)),
        ({"dry_multiplier": 2.0, "dry_allowed_length": 50}, dry(ids, logits, 2.0, 1.75, 50)),
    ):
        first = int(changed.argmax())
        assert draw(options | more, 1) == [first], more
        assert (first == again) == ("dry_allowed_length" in more or more.get("repeat_last_n") == 4), more


def test_an_end_that_is_ignored_does_not_come(exact: Path) -> None:
    turns = [Turn.of("user", "Tell me a story.")]

    async def talk(worker: Worker) -> list[Any]:
        ends = []
        for ignore in (False, True):
            sampling = Sampling(seed=1, ignore_eos=ignore, logit_bias={2: 30.0})  # <|im_end|>, very likely
            ends.append(
                (await worker.ask(m.Submit(0, turns=turns, sampling=sampling, limits=Limits(max_tokens=30)))).end
            )
        return ends

    plain, ignored = with_worker(load(exact), talk)
    assert (plain.reason, plain.answer_tokens < 30) == ("stop", True)
    assert (ignored.reason, ignored.answer_tokens) == ("length", 30)


def test_a_seed_gives_the_same_text_alone_and_in_company(exact: Path) -> None:
    requests = [submit(prompt, 24, sampling=Sampling(seed=5, temperature=1.0)) for prompt in PROMPTS]
    alone = one_by_one(load(exact, kv_type="F32"), *requests)
    together = ask(load(exact, kv_type="F32"), *requests)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
