"""The speeds of a loaded model: prompts read and answers written, one request after the other."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from cli import console
from cli.client import Client
from cli.errors import Failure
from runtime.units import size_text
from server.config import VERSION

# Ordinary words: their tokens are drawn at random, so that no run finds the beginning of another in the cache.
_WORDS = (
    "the of and to in is that it was for on are with as his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over"
)


class BenchTrial(NamedTuple):
    """One thing to measure: `prompt` tokens read or `answer` tokens written behind `depth` tokens."""

    prompt: int
    answer: int
    depth: int

    @property
    def title(self) -> str:
        """Its name as llama-bench has it."""
        what = f"pp{self.prompt}" if self.prompt else f"tg{self.answer}"
        return f"{what} @ d{self.depth}" if self.depth else what


class Bench:
    """A loaded model, and the settings of its figures."""

    def __init__(self, client: Client, model: str, load: dict[str, Any]) -> None:
        """Load it. Raises Failure, also where the model writes no text."""
        self._client, self._model = client, model
        shown = client.ask("POST", "/api/show", {"model": model})
        if "completion" not in shown["capabilities"]:
            raise Failure(f"`{model}` writes no text", "`lm list` shows the models that are here", "usage")
        options = {
            key: value for key, value in (("num_ctx", load["ctx"]), ("kv_type", load["kv_type"])) if value is not None
        }
        with console.status(f"loading {model}"):
            client.ask("POST", "/api/generate", {"model": model, "stream": False, "options": options})
        self._digest = shown["digest"]
        row = self._row()
        self.busy = 0
        self.facts = {
            "model": row["name"],
            "level": row["details"]["quantization_level"],
            "size": row["size"],
            "gpu_share": round(row["size_vram"] / (row["size"] or 1), 3),
            "context_length": row["context_length"],
            "kv_type": row["kv_type"],
            "sequences": row["sequences"],
            "version": VERSION,
        }
        self._ids: list[int] = client.ask("POST", "/tokenize", {"model": model, "content": _WORDS})["tokens"]

    @property
    def setting(self) -> str:
        """The model and the settings of the figures, in a sentence."""
        facts = self.facts
        where = {0.0: "the processor", 1.0: "graphics cards"}.get(facts["gpu_share"], "processor and graphics cards")
        return (
            f"{facts['model']}, {size_text(facts['size'])} on {where}; context {facts['context_length']:,} in "
            f"{facts['kv_type']} for {facts['sequences']} conversations; lm {facts['version']}"
        )

    def measure(self, trial: BenchTrial, repeat: int) -> dict[str, Any]:
        """The row of a trial; `rate` is None where its tokens are more than the context. Raises Failure."""
        row = {"test": trial.title, **trial._asdict(), "rate": None, "deviation": None, "runs": [], "reason": ""}
        needed, room = trial.depth + trial.prompt + trial.answer + 1, self.facts["context_length"]
        if needed > room:
            return row | {"reason": f"{needed:,} tokens are more than the context of {room:,}; `--ctx` makes it larger"}
        with console.status(trial.title):
            runs = [self._run(trial) for _ in range(repeat)]
        deviation = statistics.stdev(runs) if len(runs) > 1 else 0.0
        return row | {"rate": round(statistics.mean(runs), 3), "deviation": round(deviation, 3), "runs": runs}

    def _run(self, trial: BenchTrial) -> float:
        """Tokens a second of one run."""
        self.busy += bool(self._row()["active"])
        tokens = self._tokens(trial.depth + max(1, trial.prompt))
        if trial.depth:  # read before, and then found in the cache
            self._ask(tokens[: trial.depth], 1)
        timings = self._ask(tokens, trial.answer or 1)
        rate = timings["prompt_per_second" if trial.prompt else "predicted_per_second"]
        return round(float(rate or 0.0), 3)

    def _ask(self, prompt: list[int], answer: int) -> dict[str, Any]:
        body = {"model": self._model, "prompt": prompt, "n_predict": answer, "ignore_eos": True, "temperature": 0}
        timings: dict[str, Any] = self._client.ask("POST", "/completion", body)["timings"]
        return timings

    def _tokens(self, count: int) -> list[int]:
        return [random.choice(self._ids) for _ in range(count)]

    def _row(self) -> dict[str, Any]:
        """The model's row of `/api/ps`. Raises Failure where it was unloaded meanwhile."""
        rows: Iterator[dict[str, Any]] = (row for row in self._client.ask("GET", "/api/ps")["models"])
        found = next((row for row in rows if row["digest"] == self._digest), None)
        if found is None:
            raise Failure(f"`{self._model}` was unloaded meanwhile", "try again when there is room for it")
        return found
