"""An engine with drafts in the tests' own process, and what its answers are compared with."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runtime import messages as m
from runtime.defaults import DRAFT_ROWS
from runtime.engine.loop import LlamaEngine
from runtime.options import Limits, Sampling
from tests.runtime.ties import MARGIN, assert_same_but_for_ties

GREEDY = Sampling(temperature=0.0, seed=1)
PROMPTS = ["It was a dark night", "The old man said", "CHAPTER I.\n\n", "My dear Watson,", "Once", "The sea"]


class Engine:
    """An engine in this process."""

    def __init__(self, path: Path, **options: Any) -> None:
        self._frames: SimpleQueue[Any] = SimpleQueue()
        load = m.Load(str(path), m.CacheConfig(1024, 8, "F32"), threads=1, queue=64, **options)
        self.engine, _ = LlamaEngine.open(load, lambda *frames: [self._frames.put(frame) for frame in frames])
        self._thread = threading.Thread(target=self.engine.run, daemon=True)
        self._thread.start()
        self._last = 0
        self.rows: list[m.TokenLogprob] = []
        """Probabilities of the tokens of the last answers."""

    def ask(self, *requests: m.Submit, cancel_first: bool = False) -> list[tuple[str, Any]]:
        """The text and the last frame of each answer; `cancel_first` cancels the first one when its text begins."""
        texts: dict[tuple[int, int], str] = {}
        ends: dict[tuple[int, int], Any] = {}
        first = self._last + 1
        self.rows.clear()
        for request in requests:
            self._last += 1
            request.id = self._last
            self.engine.take(request)
        while len(ends) < sum(request.count for request in requests):
            frame = self._frames.get(timeout=120)
            assert not isinstance(frame, m.Failed), frame
            if isinstance(frame, m.Delta):
                key = frame.id, frame.index
                texts[key] = texts.get(key, "") + frame.text
                self.rows += frame.logprobs
                if cancel_first and frame.id == first:
                    self.engine.take(m.Cancel(first))
            elif isinstance(frame, m.Finished):
                ends[frame.id, frame.index] = frame
        return [(texts.get(key, ""), ends[key]) for key in sorted(ends)]

    def close(self) -> None:
        self.engine.take(m.Shutdown())
        self._thread.join(60)


def submit(prompt: str, tokens: int = 60, drafts: int = DRAFT_ROWS, **options: Any) -> m.Submit:
    limits = Limits(max_tokens=tokens, stop=options.pop("stop", []))
    return m.Submit(0, prompt=prompt, drafts=drafts, **{"sampling": GREEDY, "limits": limits, **options})


def plain(engine: Engine, *requests: m.Submit) -> list[tuple[str, Any]]:
    """The answers one by one and without drafts."""
    return [engine.ask(m.Submit(**{**as_dict(request), "drafts": 0}))[0] for request in requests]


def as_dict(request: m.Submit) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}


def assert_same(engine: Engine, prompt: str, text: str, drafted: str, tokens: int = 60, margin: float = MARGIN) -> None:
    """Greedy texts of `tokens` agree up to a token that is likelier than another by less than rounding changes."""
    if drafted != text:
        engine.ask(submit(prompt, tokens, 0, logprobs=5))
        assert_same_but_for_ties(engine.rows, drafted, margin)
