"""Ranges of options: what the daemon lets through, a worker takes, and what it refuses, a worker would refuse too."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from runtime import messages as m
from runtime.errors import BadRequest
from runtime.options import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOPS, Limits, Sampling
from server.api import options

NUMBERS = sorted(set(options.RANGES) - {"seed"})


def daemon_accepts(asked: dict[str, Any]) -> bool:
    try:
        options.sampling({}, asked)
        options.limits({}, asked)
    except BadRequest:
        return False
    return True


def worker_accepts(sampling: Sampling | None = None, limits: Limits | None = None, logprobs: int = -1) -> bool:
    frame = m.Submit(
        1, prompt="x", sampling=sampling or Sampling(), limits=limits or Limits(), logprobs=logprobs
    )  # building one checks nothing: decoding does
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=m.ToWorker)
    except msgspec.ValidationError:
        return False
    return True


def test_every_number_has_a_range() -> None:
    defaults = msgspec.structs.asdict(Sampling())
    numbers = {name for name, value in defaults.items() if isinstance(value, int | float)} - {"ignore_eos"}
    assert set(options.RANGES) == numbers


@pytest.mark.parametrize("name", NUMBERS)
def test_daemon_and_worker_agree_on_a_range(name: str) -> None:
    allowed = options.RANGES[name]
    step = 1 if allowed.whole else 1e-6
    for value, fits in (
        (allowed.low, True),
        (allowed.high, True),
        (allowed.low - step, False),
        (allowed.high + step, False),
        (math.nan, False),
        (math.inf, False),
    ):
        assert daemon_accepts({name: value}) is fits, value
        assert worker_accepts(Sampling(**{name: value})) is fits, value


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**32, 2**64 - 1])
def test_a_seed_of_64_bits_becomes_one_that_a_worker_takes(seed: int) -> None:
    assert worker_accepts(options.sampling({}, {"seed": seed}))


@pytest.mark.parametrize(
    ("biases", "fits"),
    [({"5": -100}, True), ({"5": 100.5}, False), ({str(token): 1 for token in range(MAX_BIASES + 1)}, False)],
)
def test_daemon_and_worker_agree_on_biases(biases: dict[str, float], fits: bool) -> None:
    assert daemon_accepts({"logit_bias": biases}) is fits
    assert worker_accepts(Sampling(logit_bias={int(token): bias for token, bias in biases.items()})) is fits


@pytest.mark.parametrize(
    ("stop", "fits"),
    [
        (["x"] * MAX_STOPS, True),
        (["x" * MAX_STOP_LENGTH], True),
        (["x"] * (MAX_STOPS + 1), False),
        (["x" * (MAX_STOP_LENGTH + 1)], False),
    ],
)
def test_daemon_and_worker_agree_on_stop_strings(stop: list[str], fits: bool) -> None:
    assert daemon_accepts({"stop": stop}) is fits
    assert worker_accepts(limits=Limits(stop=stop)) is fits


def test_daemon_and_worker_agree_on_alternatives() -> None:
    assert worker_accepts(logprobs=options.alternatives(True, MAX_LOGPROBS))
    with pytest.raises(BadRequest):
        options.alternatives(True, MAX_LOGPROBS + 1)
    assert not worker_accepts(logprobs=MAX_LOGPROBS + 1)
