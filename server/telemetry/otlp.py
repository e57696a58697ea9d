"""Metrics as OTLP's JSON: one object `ResourceMetrics` for each sample, as OpenTelemetry's collectors take them.

Source of the format: opentelemetry-proto, `metrics.proto`, in proto3's JSON form (64-bit integers are texts). It needs
no library and no compression, lines of it can be put together to a request, and most collectors take it at
`/v1/metrics`; Prometheus' remote write would be protobuf and snappy.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from server.config import VERSION

if TYPE_CHECKING:  # a daemon that keeps no samples starts faster without
    from prometheus_client import Metric
    from prometheus_client.samples import Sample

# AGGREGATION_TEMPORALITY_CUMULATIVE: a counter counts from the daemon's start.
_CUMULATIVE = 2
# lm's own names; others say the same numbers again.
_OURS = "lm_"
Json = dict[str, Any]


class When(NamedTuple):
    """When counters began to count, and when they were looked at: nanoseconds since 1970, UTC."""

    start: int
    now: int


def line_of(metrics: Iterable[Metric], when: When) -> bytes:
    """A sample as one line, without its end; metrics that have no numbers are left out."""
    shown = [found for metric in metrics if metric.name.startswith(_OURS) and (found := _metric(metric, when))]
    about = {"service.name": "lm", "service.version": VERSION, "host.name": platform.node()}
    sample = {
        "resource": {"attributes": _attributes(about)},
        "scopeMetrics": [{"scope": {"name": "lm", "version": VERSION}, "metrics": shown}],
    }
    return json.dumps(sample, separators=(",", ":")).encode()


def request_of(lines: Iterable[bytes]) -> bytes:
    """The body of one request with these samples (`ExportMetricsServiceRequest`)."""
    return b'{"resourceMetrics":[' + b",".join(lines) + b"]}"


def _metric(metric: Metric, when: When) -> Json | None:
    base = {"name": metric.name, "description": metric.documentation}
    if metric.type == "histogram":
        histograms = list(_histograms(metric.samples, when))
        return base | {"histogram": _cumulative(histograms)} if histograms else None
    counts = metric.type == "counter"
    points = [
        _point(sample.labels, when, since_start=counts) | {"asDouble": float(sample.value)}
        for sample in metric.samples
        if sample.name == (f"{metric.name}_total" if counts else metric.name)
    ]
    if not points:
        return None
    return base | (
        {"sum": _cumulative(points) | {"isMonotonic": True}} if counts else {"gauge": {"dataPoints": points}}
    )


def _cumulative(points: list[Json]) -> Json:
    return {"dataPoints": points, "aggregationTemporality": _CUMULATIVE}


def _histograms(samples: Iterable[Sample], when: When) -> Iterator[Json]:
    """A point for each set of labels. Prometheus adds the count of a bucket to all above it, OTLP does not."""
    found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for sample in samples:
        labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        parts = found.setdefault(labels, {"buckets": []})
        kind = sample.name.rpartition("_")[2]
        if kind == "bucket":
            parts["buckets"].append((float(sample.labels["le"]), int(sample.value)))
        else:
            parts[kind] = sample.value
    for labels, parts in found.items():
        buckets = sorted(parts["buckets"])
        below = [0, *(count for _, count in buckets)]
        yield (
            _point(dict(labels), when, since_start=True)
            | {
                "count": str(int(parts["count"])),
                "sum": float(parts["sum"]),
                "explicitBounds": [bound for bound, _ in buckets[:-1]],  # the last has no bound
                "bucketCounts": [str(count - before) for before, count in pairwise(below)],
            }
        )


def _point(labels: Mapping[str, str], when: When, *, since_start: bool) -> Json:
    start = {"startTimeUnixNano": str(when.start)} if since_start else {}
    return {"attributes": _attributes(labels), **start, "timeUnixNano": str(when.now)}


def _attributes(pairs: Mapping[str, str]) -> list[Json]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in pairs.items()]
