"""`lm bench`: how fast a model reads prompts and writes answers here, at several sizes."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from cli import console
from cli.asking import installed
from cli.client import Client
from cli.completing import complete_names
from cli.errors import Failure
from cli.naming import reference
from runtime.defaults import CACHE_TYPES
from runtime.units import size_text
from server.config import VERSION

# Ordinary words: their tokens are drawn at random, so that no run finds the beginning of another in the cache.
_WORDS = (
    "the of and to in is that it was for on are with as his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over"
)


class Counts(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers, separated by commas."""

    name = "N,…"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        try:
            numbers = tuple(int(part) for part in value.split(",") if part.strip())
        except ValueError:
            numbers = (-1,)
        if not all(self._least <= number <= 1 << 24 for number in numbers):
            self.fail(f"{value[:60]!r} is not numbers of tokens, separated by commas", param, ctx)
        return tuple(dict.fromkeys(numbers))


class Trial(NamedTuple):
    """One thing to measure: `prompt` tokens read or `answer` tokens written behind `depth` tokens."""

    prompt: int
    answer: int
    depth: int

    @property
    def title(self) -> str:
        """Its name as llama-bench has it."""
        what = f"pp{self.prompt}" if self.prompt else f"tg{self.answer}"
        return f"{what} @ d{self.depth}" if self.depth else what


@click.command()
@click.argument("name", shell_complete=complete_names)
@click.option("--prompt", "prompts", type=Counts(1), default="128,512", show_default=True, help="Tokens to read.")
@click.option("--gen", "answers", type=Counts(1), default="32,128", show_default=True, help="Tokens to write.")
@click.option(
    "--depth", "depths", type=Counts(0), default="0", show_default=True, help="Tokens that stand before them."
)
@click.option(
    "--repeat", type=click.IntRange(1, 100), default=3, show_default=True, metavar="N", help="Runs of each size."
)
@click.option("--ctx", type=click.IntRange(min=1), metavar="TOKENS", help="The context to load it with.")
@click.option(
    "--kv-type", type=click.Choice(CACHE_TYPES, case_sensitive=False), metavar="TYPE", help="Type of the KV cache."
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def command(
    name: str,
    *,
    prompts: tuple[int, ...],
    answers: tuple[int, ...],
    depths: tuple[int, ...],
    repeat: int,
    as_json: bool,
    **load: Any,
) -> None:
    """Measure how many tokens a second a model reads (pp) and writes (tg), one request after the other.

    It asks the daemon as everybody does, and unloads nothing: the requests of others go on, and slow the figures down.
    """
    client = Client()
    client.note_settings()
    bench = Bench(client, installed(client, reference(name), name), load)
    trials = [Trial(*size, depth) for depth in depths for size in [(p, 0) for p in prompts] + [(0, a) for a in answers]]
    if not as_json:
        console.note(bench.setting)
        console.out(f"{'TEST':<16}{'TOKENS/S':>10}{'+/-':>8}")
    rows = []
    for trial in trials:
        row = bench.measure(trial, repeat)
        rows.append(row)
        if not as_json and row["rate"] is not None:
            console.out(f"{row['test']:<16}{row['rate']:>10.1f}{row['deviation']:>8.1f}")
        elif row["rate"] is None:
            console.note(f"{row['test']} is left out: {row['reason']}", "yellow")
    if as_json:
        console.as_json(bench.facts | {"tests": rows, "busy": bench.busy})
    if bench.busy:
        console.note(f"others asked this model before {bench.busy} of the runs: without them it is faster", "yellow")


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

    def measure(self, trial: Trial, repeat: int) -> dict[str, Any]:
        """The row of a trial; `rate` is None where its tokens are more than the context. Raises Failure."""
        row = {"test": trial.title, **trial._asdict(), "rate": None, "deviation": None, "runs": [], "reason": ""}
        needed, room = trial.depth + trial.prompt + trial.answer + 1, self.facts["context_length"]
        if needed > room:
            return row | {"reason": f"{needed:,} tokens are more than the context of {room:,}; `--ctx` makes it larger"}
        with console.status(trial.title):
            runs = [self._run(trial) for _ in range(repeat)]
        deviation = statistics.stdev(runs) if len(runs) > 1 else 0.0
        return row | {"rate": round(statistics.mean(runs), 3), "deviation": round(deviation, 3), "runs": runs}

    def _run(self, trial: Trial) -> float:
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
