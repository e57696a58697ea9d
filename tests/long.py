"""The long runs: `./scripts/long NAME`. A test belongs to one by its marker, `long(name=…)`; CI runs a fixed sample.

@pytest.mark.long(name="levels", sample=8)      # of these cases CI runs every eighth
pytest.param(100, marks=pytest.mark.long(name="kills"))     # CI runs the cases beside it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import pytest


class Run(NamedTuple):
    """A long run."""

    minutes: int  # on two cores
    proves: str


RUNS = {
    "levels": Run(15, "every level of every architecture is written, loads and answers (oracle)"),
    "kernels": Run(10, "llama.cpp runs a model in every block type, as close to the source as with ggml's quantizer"),
    "vocabularies": Run(6, "published vocabularies and every pre-tokenizer come back to the same tokens"),
    "kills": Run(4, "a hundred workers killed in mid answer, by both engines: told in a second, no process left"),
    "clients": Run(2, "200 clients that leave give their sequences back, and disturb nobody"),
    "mutants": Run(6, "400 damaged GGUF files: refused, or loaded by a process that does not crash"),
    "schemas": Run(
        15, "a thousand random schemas: every answer that ends by itself is valid, the others are refused or say length"
    ),
    "requests": Run(
        8, "five thousand random requests by the schemas of all routes: no failure, answers as they are told"
    ),
    "audit": Run(1, "a hundred writers of the audit log killed in mid write: the chain holds, one torn line at most"),
    "pulls": Run(8, "a hundred pulls and downloads killed or from a bad network: the same bytes or an error"),
    "improvements": Run(
        30, "an improvement killed at two hundred moments: nothing is lost, and no model is worse than it was"
    ),
    "image": Run(
        40,
        "the image is made, is no larger than it may be, and answers: by Docker, Podman or Buildah",
    ),
}


def sample(items: Iterable[pytest.Item]) -> None:
    """Mark as slow what CI runs of the long tests."""
    seen: Counter[str] = Counter()
    for item in items:
        if run := item.get_closest_marker("long"):
            if run.kwargs["name"] not in RUNS:
                raise pytest.UsageError(f"{item.nodeid}: tests/long.py has no run {run.kwargs['name']!r}")
            test = item.nodeid.partition("[")[0]
            if "sample" in run.kwargs and seen[test] % run.kwargs["sample"] == 0:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1
