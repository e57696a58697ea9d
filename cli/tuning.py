"""A tune, carried out: levels are made, loaded, timed and measured by the daemon, in the order of a search."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cli import console
from cli.benching import Bench, BenchTrial
from cli.client import Client
from cli.errors import Failure
from cli.measuring import measure
from cli.pulling import show_lines
from server.tuning.goals import METRICS, Goals
from server.tuning.search import Move, Search, TuneLevel

_WINDOW = 512  # tokens
# Tokens read and written for a speed, and how often.
_READ, _WRITTEN, _RUNS = 256, 48, 3

_SOURCES = {name: metric.source for name, metric in METRICS.items()}


@dataclass(frozen=True)
class TuneWish:
    """The wish of a tune. `levels` are those to try, () for all that `lm fit` lists; `text` is the user's, or ""."""

    goals: Goals
    levels: tuple[str, ...]
    effort: str
    text: str
    windows: int | None
    seconds: float


class Tuning:
    """A tune of one model; `run` carries it out, and `finish` keeps the best."""

    def __init__(self, client: Client, name: str, wish: TuneWish) -> None:
        """Look at the model and at its levels. Raises Failure."""
        self._client, self._wish = client, wish
        self._ends = time.monotonic() + wish.seconds
        shown = client.ask("POST", "/api/show", {"model": name})
        if "completion" not in shown["capabilities"]:
            raise Failure(f"`{name}` writes no text", "`lm list` shows the models that are here", "usage")
        self.model: str = client.ask("POST", "/lm/default", {"model": name})["model"]
        if wish.text:
            self._check_text(name)
        self._here: dict[str, str] = {}
        self._efforts: dict[str, str] = {}
        self._made: list[str] = []
        self._look_around()
        recorded = client.ask("POST", "/lm/trials", {"model": name})["trials"]
        known = {level: row for key, row in recorded.items() if key == self._key(level := key.partition(" ")[0])}
        if wish.text:  # a divergence on another text is another figure
            known = {
                level: {name: row[name] for name in row if _SOURCES[name] != "quality"} for level, row in known.items()
            }
        self.search = Search(wish.goals, self._candidates(name), known)
        self.unfinished = ""

    def run(self, tell: Callable[[Move], None]) -> None:
        """Try levels until no other can be the best, or the time is over; `tell` hears each step. Raises Failure."""
        while move := self.search.next():
            if time.monotonic() > self._ends:
                self.unfinished = "the time is over"
                return
            tell(move)
            name = self._file(move.level)
            figures = self._speed(name) if move.act == "speed" else self._quality(name)
            self.search.add(move.level, figures)
            if not self._wish.text:
                body = {"model": self.model, "made": self._key(move.level), "figures": figures}
                self._client.ask("POST", "/lm/trials", body)

    def finish(self, keep: bool) -> str:
        """Let the bare name mean the best level, and remove what was made for the tune; the best one's name, or ""."""
        best = self.search.best
        name = self._file(best.candidate.level) if best else ""
        if name:
            self._client.ask("POST", "/lm/default", {"model": name})
        for other in [] if keep else self._made:
            if other != name:
                with suppress(Failure):  # somebody may use it meanwhile: then it stays
                    self._client.ask("DELETE", "/api/delete", {"model": other})
        return name

    def _key(self, level: str) -> str:
        """The name of a level in the records: how it was made, or would be."""
        return f"{level} {self._efforts.get(level, self._wish.effort)}"

    def _check_text(self, name: str) -> None:
        """Raise Failure for a text that is too short to measure by, before any work."""
        tokens = self._client.ask("POST", "/tokenize", {"model": name, "content": self._wish.text})["tokens"]
        if len(tokens) < _WINDOW:
            hint = "give a longer text; some ten windows are needed before it says much"
            raise Failure(f"the text has {len(tokens):,} tokens, and one window takes {_WINDOW}", hint)

    def _look_around(self) -> None:
        """Note the levels that are here and how they were made. They are taken as they are, and never made anew."""
        for row in self._client.ask("GET", "/api/tags")["models"]:
            if self._is_ours(row):
                own = self._client.ask("POST", "/api/show", {"model": row["name"]})["lm"]
                self._here[row["level"]] = row["name"]
                self._efforts[row["level"]] = str(own.get("effort") or "quick")

    def _is_ours(self, row: dict[str, Any]) -> bool:
        """Whether a row of `/api/tags` is a whole level of the model."""
        return "alias" not in row and not row["problem"] and row["name"].rpartition(":")[0] == self.model

    def _candidates(self, name: str) -> list[TuneLevel]:
        """The levels to try, as `lm fit` judges them. Raises Failure."""
        wanted = self._wish.levels
        advice = self._client.ask("POST", "/lm/advise", {"model": self.model, **self._client.hub()})
        rows = {row["level"]: row for row in advice["levels"]}
        for level in wanted:
            if level not in rows:
                body = {"model": self.model, "level": level, **self._client.hub()}
                advice = self._client.ask("POST", "/lm/advise", body)
                rows |= {row["level"]: row for row in advice["levels"] if row["level"] == advice["level"]}
        chosen = [
            row
            for row in rows.values()
            if (row["level"] in wanted if wanted else row["listed"] or row["level"] in self._here)
        ]
        fitting = [row for row in chosen if row["fits"] != "no"]
        # A judged level has the bytes of its weights; the files here tell how many the vocabulary and the notes take.
        sizes = {
            row["level"]: row["size"] for row in self._client.ask("GET", "/api/tags")["models"] if self._is_ours(row)
        }
        entries = max((size - rows[level]["file_bytes"] for level, size in sizes.items() if level in rows), default=0)
        if not fitting:
            raise Failure(f"no level of `{name}` can be tried here", f"`lm fit {name}` says why")
        return [
            TuneLevel(
                row["level"],
                {
                    "size": row["file_bytes"] + entries,
                    "memory": row["memory_bytes"],
                    "tokens/s": row["tokens_per_second"],
                },
            )
            for row in fitting
        ]

    def _file(self, level: str) -> str:
        """The name of a level that is here; it is made where it is not. Raises Failure."""
        if level not in self._here:
            body = {"model": self.model, "level": level, "effort": self._wish.effort, **self._client.hub()}
            before = {row["name"] for row in self._client.ask("GET", "/api/tags")["models"]}
            made = str(show_lines(self._client.stream("/lm/quantize", body))["name"])
            self._here[level] = made
            if made not in before:
                self._made.append(made)
        return self._here[level]

    def _speed(self, name: str) -> dict[str, float]:
        """The file's size, and the memory and the speed of the loaded model. Raises Failure."""
        size = next(row["size"] for row in self._client.ask("GET", "/api/tags")["models"] if row["name"] == name)
        bench = Bench(self._client, name, {"ctx": None, "kv_type": None})
        room = int(bench.facts["context_length"])
        read, written = min(_READ, room // 2), min(_WRITTEN, room // 4)
        rates = [bench.measure(BenchTrial(*sizes, 0), _RUNS)["rate"] for sizes in ((read, 0), (0, written))]
        row = next(row for row in self._client.ask("GET", "/api/ps")["models"] if row["name"] == name)
        measured = row["predicted_bytes"] - row["predicted_anonymous_bytes"] + row["measured_anonymous_bytes"]
        self._client.ask("POST", "/api/generate", {"model": name, "keep_alive": 0})
        if bench.busy:
            console.note(f"others asked `{name}` meanwhile: without them it is faster", "yellow")
        return {"size": size, "memory": measured, "prompt tokens/s": rates[0], "tokens/s": rates[1]}

    def _quality(self, name: str) -> dict[str, float]:
        """How far the file is from the original, from its card where it was measured before. Raises Failure."""
        card = self._client.ask("POST", "/api/show", {"model": name}).get("quality")
        wanted = self._wish.windows
        theirs = card and not str(card["text"]["name"]).startswith("lm's ")
        if not card or theirs or self._wish.text or card["windows"] < (wanted or 0):
            body = {"model": name, "text": self._wish.text, "keep": not self._wish.text, **self._client.hub()}
            card = measure(self._client, body | ({"windows": wanted} if wanted else {}))["card"]
        return {
            "kl": card["mean"]["value"],
            "kl99.9": card["p999"]["value"],
            "top1": card["top1"]["value"],
            "perplexity": card["ratio"]["value"],
        }
