"""Limits of keys by clocks of our own: rates, quotas through restarts, wrong keys; clocks that jump change nothing."""

from __future__ import annotations

import time

import pytest

from server.access.limits import KeyLimits, limit_headers
from server.access.wrong import MOST_WRONG, WRONG_WITHIN, WrongKeys
from server.errors import QuotaUsed, RateLimited, StartFailed
from server.keys.record import Allowance, new_key


class Clocks:
    """A clock that nobody sets, and one on the wall."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1.8e9

    def limits(self, boot: str = "a") -> KeyLimits:
        return KeyLimits(lambda: self.now, lambda: self.wall, boot)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


@pytest.mark.parametrize(
    ("text", "count", "seconds"),
    [("60/m", 60, 60), ("1M/day", 1_000_000, 86400), ("1.5k/h", 1500, 3600), ("5/s", 5, 1), ("2g/d", 2 * 10**9, 86400)],
)
def test_allowances_are_read(text: str, count: int, seconds: int) -> None:
    assert Allowance.parse(text) == Allowance(count, seconds)
    assert Allowance.parse(str(Allowance.parse(text))) == Allowance(count, seconds)


@pytest.mark.parametrize(
    "text", ["", "60", "60/", "/m", "0/m", "-1/m", "60/year", "1e3/m", "9" * 13 + "/m", "60/m/m", "0.1/m"]
)
def test_what_is_no_allowance_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        Allowance.parse(text)


def test_a_rate_is_a_bucket_that_fills_up() -> None:
    clocks, (_, key) = Clocks(), new_key("infer", rate=Allowance(3, 60))
    limits = clocks.limits()
    for _ in range(3):
        limits.admit(key)
    with pytest.raises(RateLimited) as refused:
        limits.admit(key)
    assert refused.value.retry_after == pytest.approx(20)
    clocks.wait(20)
    limits.admit(key)
    assert limits.standings(key)[0].left == 0
    clocks.wait(1e6)
    assert limits.standings(key)[0].left == 3


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_wall_clock_that_is_set_gives_nobody_more(jump: float) -> None:
    clocks = Clocks()
    _, key = new_key("infer", rate=Allowance(1, 60), tokens=Allowance(10, 86400))
    limits = clocks.limits()
    limits.admit(key)
    limits.spend(key, 10)
    clocks.wall += jump
    with pytest.raises(QuotaUsed):
        limits.admit(key)
    # A restart of the daemon is no way around it either.
    after = clocks.limits()
    after.restore(limits.saved())
    with pytest.raises(QuotaUsed):
        after.admit(key)


def test_tokens_count_through_restarts_of_the_daemon_and_of_the_machine() -> None:
    clocks, (_, key) = Clocks(), new_key("infer", tokens=Allowance(100, 3600))
    limits = clocks.limits()
    limits.admit(key)
    limits.spend(key, 60)
    saved = limits.saved()
    clocks.wait(600)
    again = clocks.limits()
    again.restore(saved)
    assert again.standings(key)[0][2:] == (40, 3000.0)
    again.spend(key, 60)
    with pytest.raises(QuotaUsed) as refused:
        again.admit(key)
    assert refused.value.retry_after == pytest.approx(3000)
    saved = again.saved()
    clocks.now, clocks.wall = 5.0, clocks.wall + 1000  # the machine was off for that long
    booted = clocks.limits("b")
    booted.restore(saved)
    with pytest.raises(QuotaUsed) as refused:
        booted.admit(key)
    assert refused.value.retry_after == pytest.approx(2000)
    clocks.wall -= 1e6  # and then its clock was set back
    unsure = clocks.limits("c")
    unsure.restore(saved)
    with pytest.raises(QuotaUsed):
        unsure.admit(key)
    clocks.wait(3001)
    unsure.admit(key)


def test_a_rotated_key_has_no_new_quota() -> None:
    clocks, (_, key) = Clocks(), new_key("infer", tokens=Allowance(10, 3600))
    _, other = new_key("infer", tokens=Allowance(10, 3600))
    limits = clocks.limits()
    limits.spend(key, 10)
    rotated = new_key("infer", tokens=key.tokens)[1]
    object.__setattr__(rotated, "owner", key.owner)
    with pytest.raises(QuotaUsed):
        limits.admit(rotated)
    limits.admit(other)


@pytest.mark.parametrize("data", [b"", b"{}", b"nonsense", b'{"boot": 1}', b"\xff"])
def test_a_broken_count_is_told_by_name(data: bytes) -> None:
    with pytest.raises(StartFailed, match=r"usage\.json"):
        Clocks().limits().restore(data)


def test_each_dialect_gets_its_own_headers() -> None:
    clocks, (_, key) = Clocks(), new_key("infer", rate=Allowance(60, 60), tokens=Allowance(10, 86400))
    limits = clocks.limits()
    limits.admit(key)
    limits.spend(key, 4)
    standings = limits.standings(key)
    assert limit_headers(standings, "openai") == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "10",
        "x-ratelimit-remaining-tokens": "6",
        "x-ratelimit-reset-tokens": "24h0m0s",
    }
    told = limit_headers(standings, "anthropic")
    assert told["anthropic-ratelimit-tokens-remaining"] == "6"
    assert time.strptime(told["anthropic-ratelimit-tokens-reset"], "%Y-%m-%dT%H:%M:%SZ")


def test_twenty_wrong_keys_in_a_minute_are_the_last() -> None:
    clocks = Clocks()
    wrong = WrongKeys(lambda: clocks.now)
    waits = []
    for _ in range(MOST_WRONG):
        assert not wrong.blocked("192.0.2.1")
        waits.append(wrong.note("192.0.2.1"))
    assert waits == sorted(waits)
    assert wrong.blocked("192.0.2.1") == pytest.approx(WRONG_WITHIN)
    assert not wrong.blocked("192.0.2.2")
    clocks.wait(WRONG_WITHIN + 1)
    assert not wrong.blocked("192.0.2.1")


def test_a_machine_is_one_address_or_a_network_of_version_6() -> None:
    wrong = WrongKeys(lambda: 0.0)
    for number in range(MOST_WRONG):
        wrong.note(f"2001:db8::{number:x}")
    assert wrong.blocked("2001:db8::ffff:1%eth0")
    assert not wrong.blocked("2001:db8:0:1::1")
    for number in range(20_000):  # many machines take no memory
        wrong.note(f"10.0.{number // 256}.{number % 256}")
    assert len(wrong._sent) == len(wrong._due) == 10_000
