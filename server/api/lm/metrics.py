"""`GET /metrics`: the counters of each model for Prometheus, by our names, vLLM's and llama-server's.

Each number is counted once (`server/loaded/tally.py`) and shown under every name that dashboards know it by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from server.access.callers import caller_of
from server.access.trail import RECORDER
from server.audit.recorder import AuditCounts, Recorder
from server.config import VERSION
from server.loaded.pool import Pool
from server.loaded.tally import Histogram, Tally
from server.loaded.worker import Worker
from server.services import SERVICES

if TYPE_CHECKING:  # the first scrape imports it: a daemon starts faster without
    from prometheus_client import Metric
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

# The name of the label that says which model, by the beginning of a metric's name.
_LABELS = {"lm_": "model", "vllm:": "model_name", "llamacpp:": "model"}


class Shown(NamedTuple):
    """A number of a model, the names that it has, and what it is."""

    value: Callable[[Tally], float]
    names: tuple[str, ...]
    doc: str


def _rate(tokens: float, seconds: float) -> float:
    return tokens / seconds if seconds else 0.0


def _computed(tally: Tally) -> int:
    return tally.prompt_tokens - tally.cached_tokens


_COUNTERS = (
    Shown(
        lambda tally: tally.prompt_tokens,
        ("lm_prompt_tokens", "vllm:prompt_tokens", "vllm:prefix_cache_queries"),
        "Tokens of prompts, those from the cache too",
    ),
    Shown(_computed, ("lm_computed_tokens", "llamacpp:prompt_tokens"), "Tokens of prompts that were computed"),
    Shown(
        lambda tally: tally.cached_tokens,
        ("lm_cached_tokens", "vllm:prefix_cache_hits", "llamacpp:prompt_tokens_cached"),
        "Tokens of prompts that were in the cache",
    ),
    Shown(
        lambda tally: tally.answer_tokens,
        ("lm_answer_tokens", "vllm:generation_tokens", "llamacpp:tokens_predicted"),
        "Tokens of answers",
    ),
    Shown(
        lambda tally: tally.prompt_seconds,
        ("lm_prompt_seconds", "llamacpp:prompt_seconds"),
        "Time from a prompt's start to its answer's first token, in seconds",
    ),
    Shown(
        lambda tally: tally.answer_seconds,
        ("lm_answer_seconds", "llamacpp:tokens_predicted_seconds"),
        "Time from an answer's first token to its last, in seconds",
    ),
    Shown(
        lambda tally: tally.drafted,
        ("lm_drafted_tokens", "vllm:spec_decode_num_draft_tokens", "llamacpp:spec_decode_num_draft_tokens"),
        "Tokens of drafts",
    ),
    Shown(
        lambda tally: tally.accepted,
        ("lm_accepted_tokens", "vllm:spec_decode_num_accepted_tokens", "llamacpp:spec_decode_num_accepted_tokens"),
        "Tokens of drafts that were drawn then",
    ),
)
_GAUGES = (
    Shown(
        lambda tally: tally.running,
        ("lm_requests_running", "vllm:num_requests_running", "llamacpp:requests_processing"),
        "Requests that are being answered",
    ),
    Shown(
        lambda tally: tally.waiting,
        ("lm_requests_waiting", "vllm:num_requests_waiting", "llamacpp:requests_deferred"),
        "Requests that wait",
    ),
    Shown(
        lambda tally: _rate(_computed(tally), tally.prompt_seconds),
        ("llamacpp:prompt_tokens_seconds",),
        "Tokens of prompts computed in a second, on average",
    ),
    Shown(
        lambda tally: _rate(tally.answer_tokens, tally.answer_seconds),
        ("llamacpp:predicted_tokens_seconds",),
        "Tokens of an answer in a second, on average",
    ),
    Shown(
        lambda tally: tally.longest, ("lm_longest_tokens", "llamacpp:n_tokens_max"), "Longest prompt with its answer"
    ),
)
_HISTOGRAMS: tuple[tuple[Callable[[Tally], Histogram], tuple[str, ...], str], ...] = (
    (
        lambda tally: tally.first_text,
        ("lm_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
        "From the request to the first text",
    ),
    (
        lambda tally: tally.per_token,
        (
            "lm_time_per_output_token_seconds",
            "vllm:time_per_output_token_seconds",
            "vllm:request_time_per_output_token_seconds",
        ),
        "Between two tokens of an answer, on its average",
    ),
    (
        lambda tally: tally.requests,
        ("lm_request_seconds", "vllm:e2e_request_latency_seconds"),
        "From the request to its end",
    ),
    (
        lambda tally: tally.queued,
        ("lm_queue_seconds", "vllm:request_queue_time_seconds"),
        "From the request to its start",
    ),
)


@dataclass(eq=False)
class Shelf:
    """The counters that one scrape shows, as a collector of prometheus_client."""

    tallies: list[Tally]
    loaded: list[Worker]
    audit: AuditCounts | None
    """Counters of the audit log, None for a caller who sees some models only, or without a log."""

    def collect(self) -> Iterator[Metric]:
        """The metrics, name by name."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield from self._numbers(CounterMetricFamily, _COUNTERS)
        yield from self._numbers(GaugeMetricFamily, _GAUGES)
        yield from self._histograms()
        yield from self._ends()
        for name, doc, value in (
            ("lm_loaded_context_tokens", "Tokens that the KV cache of a loaded model holds", _context),
            ("lm_loaded_memory_bytes", "Memory that a loaded model is predicted to take", _memory),
        ):
            gauge = GaugeMetricFamily(name, doc, labels=["model"])
            for worker in self.loaded:
                gauge.add_metric([worker.model.name], value(worker))
            yield gauge
        if self.audit is not None:
            yield from _audit(self.audit)
        info = GaugeMetricFamily("lm_build_info", "The version that runs", labels=["version"])
        info.add_metric([VERSION], 1)
        yield info

    def _numbers(
        self, family: type[CounterMetricFamily] | type[GaugeMetricFamily], numbers: tuple[Shown, ...]
    ) -> Iterator[Metric]:
        for shown in numbers:
            for name in shown.names:
                metric = family(name, shown.doc, labels=[_label(name)])
                for tally in self.tallies:
                    metric.add_metric([tally.model.name], shown.value(tally))
                yield metric

    def _histograms(self) -> Iterator[Metric]:
        from prometheus_client.core import HistogramMetricFamily

        for histogram_of, names, doc in _HISTOGRAMS:
            for name in names:
                histogram = HistogramMetricFamily(name, doc, labels=[_label(name)])
                for tally in self.tallies:
                    found = histogram_of(tally)
                    histogram.add_metric([tally.model.name], found.buckets, found.sum)
                yield histogram

    def _ends(self) -> Iterator[Metric]:
        """The answers by the reason of their end, for which vLLM has other words."""
        from prometheus_client.core import CounterMetricFamily

        ours = CounterMetricFamily("lm_answers", "Answers by the reason of their end", labels=["model", "reason"])
        labels = ["model_name", "finished_reason"]
        theirs = CounterMetricFamily("vllm:request_success", "Answers by the reason of their end", labels=labels)
        for tally in self.tallies:
            for reason, count in sorted(tally.ends.items()):
                ours.add_metric([tally.model.name, reason], count)
                if reason != "failed":
                    theirs.add_metric([tally.model.name, "abort" if reason == "cancelled" else reason], count)
        yield ours
        yield theirs


def _audit(counts: AuditCounts) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    yield CounterMetricFamily("lm_audit_lines", "Lines written into the audit log", value=counts.written)
    yield CounterMetricFamily("lm_audit_lost", "Entries that did not get into the audit log", value=counts.lost)
    yield CounterMetricFamily("lm_audit_refused", "Acts refused because they would lack an entry", value=counts.refused)


def _context(worker: Worker) -> float:
    return worker.context


def _memory(worker: Worker) -> float:
    return worker.need.total + worker.spilled


def _label(name: str) -> str:
    return next(label for beginning, label in _LABELS.items() if name.startswith(beginning))


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`: the counters of the models that the caller may see, in Prometheus' text form or OpenMetrics'."""
    pool, caller, recorder = request.app[SERVICES].pool, caller_of(request), request.app[RECORDER]
    sees = caller.sees
    tallies = [tally for tally in pool.tallies() if sees(tally.model)]
    loaded = [worker for worker, _ in pool.loaded() if sees(worker.model)]
    shelf = Shelf(tallies, loaded, recorder.counts if recorder.on and not caller.limited else None)
    body, media = await asyncio.to_thread(_written, shelf, request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": media})


def all_metrics(pool: Pool, recorder: Recorder) -> Callable[[], Iterator[Metric]]:
    """The metrics of all models as they are now, made by calling what this returns, in any thread."""
    loaded = [worker for worker, _ in pool.loaded()]
    return Shelf(list(pool.tallies()), loaded, recorder.counts if recorder.on else None).collect


def _written(shelf: Shelf, accepted: str) -> tuple[bytes, str]:
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(shelf)
    encode, media = choose_encoder(accepted)
    return encode(registry), media
