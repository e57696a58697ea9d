"""A tune, carried out: levels are made, cut, loaded, timed and measured by the daemon, in the order of a search."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cli import console
from cli.benching import Bench, BenchTrial
from cli.client import Client
from cli.errors import Failure
from cli.measuring import measure
from cli.pulling import show_lines
from server.tuning.goals import METRICS, Goals
from server.tuning.search import Move, Search, TuneLevel

Line = dict[str, Any]
_WINDOW = 512  # tokens
# Tokens read and written for a speed, and how often.
_READ, _WRITTEN, _RUNS = 256, 48, 3
# The most bytes of a source that is read at F32 as the reference of a cut level.
_AT_F32 = 4 << 30
# Codes of refusals that are about one cut alone.
_UNFIT = ("unsupported_model", "bad_request", "bad_body")
_SOURCES = {name: metric.source for name, metric in METRICS.items()}


@dataclass(frozen=True)
class CutWay:
    """A way to leave parts of a model out: `parts` are fields of `/lm/cut`, `share` the share of bytes that goes.

    `exact` where the logits that remain are equal to the whole level's: then its divergence is known. `anew` where the
    level is made anew of whole weights, and not cut out of the level's file.
    """

    parts: Mapping[str, Any]
    share: float
    exact: bool = False
    anew: bool = False


@dataclass(frozen=True)
class TuneWish:
    """The wish of a tune. `levels` are those to try, () for all that `lm fit` lists; `text` is the user's, or "".

    `cuts` are ways to cut each level, by what goes.
    """

    goals: Goals
    levels: tuple[str, ...]
    effort: str
    text: str
    windows: int | None
    seconds: float
    cuts: Mapping[str, CutWay] = field(default_factory=dict)


class Tuning:
    """A tune of one model; `run` carries it out, and `finish` keeps the best."""

    def __init__(self, client: Client, name: str, wish: TuneWish) -> None:
        """Look at the model and at its levels. Raises Failure."""
        self._client, self._wish = client, wish
        self._ends = time.monotonic() + wish.seconds
        self.shown = client.ask("POST", "/api/show", {"model": name})
        if "completion" not in self.shown["capabilities"]:
            raise Failure(f"`{name}` writes no text", "`lm list` shows the models that are here", "usage")
        self.model: str = client.ask("POST", "/lm/default", {"model": name})["model"]
        if wish.text:
            self._check_text(name)
        self._here: dict[str, str] = {}
        self._efforts: dict[str, str] = {}
        self._made: list[str] = []
        self._chosen: dict[str, Line] = {}
        self._look_around()
        levels = self._levels(name)
        recorded = client.ask("POST", "/lm/trials", {"model": name})["trials"]
        known = {each.name: recorded[key] for each in levels if (key := self._key(each)) in recorded}
        if wish.text:  # a divergence on another text is another figure
            known = {each: {key: row[key] for key in row if _SOURCES[key] != "quality"} for each, row in known.items()}
        self.search = Search(wish.goals, levels, known)
        self.unfinished = ""

    def run(self, tell: Callable[[Move], None]) -> None:
        """Try levels until no other can be the best, or the time is over; `tell` hears each step. Raises Failure."""
        while move := self.search.next():
            if time.monotonic() > self._ends:
                self.unfinished = "the time is over"
                return
            tell(move)
            level = self.search.trials[move.name].candidate
            try:
                figures = self._speed(self._file(level)) if move.act == "speed" else self._quality(level)
            except Failure as error:
                if not level.cut or error.code not in _UNFIT:
                    raise
                self.search.give_up(move.name, str(error))
                continue
            self.search.add(move.name, figures)
            if not self._wish.text:
                body = {"model": self.model, "made": self._key(level), "figures": figures}
                self._client.ask("POST", "/lm/trials", body)

    def finish(self, keep: bool) -> str:
        """Let the bare name mean the best level, and remove what was made for the tune; the best one's name, or "".

        The bare name goes on meaning a whole model where the best one is cut.
        """
        best = self.search.best
        name = self._file(best.candidate) if best else ""
        if best and not best.cut:
            self._client.ask("POST", "/lm/default", {"model": name})
        for other in [] if keep else self._made:
            if other != name:
                with suppress(Failure):  # somebody may use it meanwhile: then it stays
                    self._client.ask("DELETE", "/api/delete", {"model": other})
        return name

    def _key(self, level: TuneLevel) -> str:
        """The name of a level in the records: how it was made, or would be."""
        return f"{level.name} {self._efforts.get(level.level, self._wish.effort)}"

    def _check_text(self, name: str) -> None:
        """Raise Failure for a text that is too short to measure by, before any work."""
        tokens = self._client.ask("POST", "/tokenize", {"model": name, "content": self._wish.text})["tokens"]
        if len(tokens) < _WINDOW:
            hint = "give a longer text; some ten windows are needed before it says much"
            raise Failure(f"the text has {len(tokens):,} tokens, and one window takes {_WINDOW}", hint)

    def _look_around(self) -> None:
        """Note the levels that are here and how they were made. They are taken as they are, and never made anew."""
        for row in self._rows():
            if self._is_ours(row):
                own = self._client.ask("POST", "/api/show", {"model": row["name"]})["lm"]
                self._here[row["level"]] = row["name"]
                self._efforts[row["level"]] = str(own.get("effort") or "quick")

    def _rows(self) -> list[Line]:
        rows: list[Line] = self._client.ask("GET", "/api/tags")["models"]
        return [row for row in rows if "alias" not in row]

    def _is_ours(self, row: Line) -> bool:
        """Whether a row of `/api/tags` is a whole level of the model."""
        return not row["problem"] and row["name"] == f"{self.model}:{row['level']}"

    def _levels(self, name: str) -> list[TuneLevel]:
        """The levels to try, as `lm fit` judges them, whole and cut. Raises Failure."""
        rows = [row for row in self._judged() if row["fits"] != "no"]
        if not rows:
            raise Failure(f"no level of `{name}` can be tried here", f"`lm fit {name}` says why")
        # A judged level has the bytes of its weights; the files here tell how many the vocabulary and the notes take.
        sizes = {row["level"]: row["size"] for row in self._rows() if self._is_ours(row)}
        entries = max((sizes[row["level"]] - row["file_bytes"] for row in rows if row["level"] in sizes), default=0)
        found = []
        for row in rows:
            size = row["file_bytes"] + entries
            more = {"memory": row["memory_bytes"], "tokens/s": row["tokens_per_second"]}
            found.append(TuneLevel(row["level"], {"size": size, **more}))
            for cut, way in self._wish.cuts.items():
                left = {
                    "size": size * (1 - way.share),
                    "memory": row["memory_bytes"] - size * way.share,
                    "tokens/s": row["tokens_per_second"] / (1 - way.share),
                }
                found.append(TuneLevel(row["level"], left, cut, size))
        return found

    def _judged(self) -> list[Line]:
        """The rows of `lm fit` for the levels to try."""
        body = {"model": self.model, **self._client.hub()}
        rows: dict[str, Line] = {row["level"]: row for row in self._client.ask("POST", "/lm/advise", body)["levels"]}
        wanted = self._wish.levels
        for level in wanted:
            if level not in rows:
                advice = self._client.ask("POST", "/lm/advise", body | {"level": level})
                rows |= {row["level"]: row for row in advice["levels"] if row["level"] == advice["level"]}
        if wanted:
            return [row for row in rows.values() if row["level"] in wanted]
        return [row for row in rows.values() if row["listed"] or row["level"] in self._here]

    def _file(self, level: TuneLevel) -> str:
        """The name of a level that is here; it is made where it is not. Raises Failure."""
        if level.name not in self._here:
            if level.cut and self._wish.cuts[level.cut].anew:
                body = {"model": self.model, "level": level.level, **self._parts(level.cut), **self._client.hub()}
                lines = self._client.stream("/lm/cut", body)
            elif level.cut:
                body = {"model": self._file(TuneLevel(level.level, {})), **self._parts(level.cut)}
                lines = self._client.stream("/lm/cut", body)
            else:
                body = {"model": self.model, "level": level.level, "effort": self._wish.effort, **self._client.hub()}
                lines = self._client.stream("/lm/quantize", body)
            before = {row["name"] for row in self._rows()}
            made = str(show_lines(lines)["name"])
            self._here[level.name] = made
            if level.cut:
                self._note_choice(level.cut, made)
            if made not in before:
                self._made.append(made)
        return self._here[level.name]

    def _parts(self, cut: str) -> Mapping[str, Any]:
        """The fields of a cut. Layers that were chosen for one level go from the others too, without a choice anew."""
        return self._chosen.get(cut) or self._wish.cuts[cut].parts

    def _note_choice(self, cut: str, made: str) -> None:
        info = self._client.ask("POST", "/api/show", {"model": made})["model_info"]
        layers = json.loads(info.get("lm.cut") or "{}").get("layers")
        if layers:
            self._chosen[cut] = {"layers": layers}

    def _speed(self, name: str) -> dict[str, float]:
        """The file's size, and the memory and the speed of the loaded model. Raises Failure."""
        size = next(row["size"] for row in self._rows() if row["name"] == name)
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

    def _quality(self, level: TuneLevel) -> dict[str, float]:
        """How far a level is from the original, from its card where it was measured before. Raises Failure."""
        against = ""
        if level.cut and self._wish.cuts[level.cut].exact:
            level = TuneLevel(level.level, {})
        elif level.cut:
            against = self._original()
        name = self._file(level)
        card = self._client.ask("POST", "/api/show", {"model": name}).get("quality")
        wanted = self._wish.windows
        theirs = card and not str(card["text"]["name"]).startswith("lm's ")
        if not card or theirs or self._wish.text or card["windows"] < (wanted or 0):
            body = {"model": name, "text": self._wish.text, "keep": not self._wish.text, **self._client.hub()}
            body |= {"windows": wanted} if wanted else {}
            card = measure(self._client, body | {"against": against})["card"]
        return {
            "kl": card["mean"]["value"],
            "kl99.9": card["p999"]["value"],
            "top1": card["top1"]["value"],
            "perplexity": card["ratio"]["value"],
        }

    def _original(self) -> str:
        """The source that a cut level is measured against, which is no longer its own. Raises Failure."""
        source = self.shown["lm"].get("source")
        if not source or self.shown["lm"].get("published"):
            raise Failure(
                f"nobody knows the weights that `{self.model}` was made of",
                "pull the model from its source, or at F16 or BF16",
            )
        whole = int(self.shown["lm"].get("parameters") or 0)
        return f"{source}:{'F32' if 4 * whole <= _AT_F32 else 'BF16'}"
