"""Whether this machine is idle: nobody asks, it is on mains power, and settings allow the hour."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import psutil

from server.config import Config
from server.loaded.pool import Pool
from server.pulls.jobs import Jobs
from server.values import minutes_of


def _now() -> datetime:
    return datetime.now().astimezone()


def on_battery() -> bool:
    """Whether this machine runs on its battery; False where it has none, or does not tell."""
    try:
        battery = psutil.sensors_battery()
    except (OSError, AttributeError, RuntimeError):  # not every system has it
        return False
    return battery is not None and battery.power_plugged is False


class Idleness:
    """When background work may go on by itself."""

    def __init__(self, config: Config, pool: Pool, jobs: Jobs, now: Callable[[], datetime] = _now) -> None:
        self._config, self._pool, self._jobs, self._now = config, pool, jobs, now
        self._touched = asyncio.get_running_loop().time()

    def touch(self) -> None:
        """Somebody asked just now."""
        self._touched = asyncio.get_running_loop().time()

    def why_not(self) -> str:
        """Why background work has to wait, a sentence; "" where it may go on."""
        config = self._config
        if config.improve == "off" or config.improve_after < 0:
            return "the setting `improve` is off" if config.improve == "off" else "`improve_after` says never"
        if self._pool.pending:
            return "somebody asks a model"
        if self._jobs.under_way():
            return "a model is brought in"
        quiet = asyncio.get_running_loop().time() - self._touched
        if quiet < config.improve_after:
            return (
                f"somebody asked {quiet:.0f} s ago, and it begins {config.improve_after:.0f} s after the last request"
            )
        if config.improve_hours and not within(config.improve_hours, self._now()):
            return f"the setting `improve_hours` allows {config.improve_hours} alone"
        return "this machine runs on its battery" if on_battery() else ""


def within(hours: str, now: datetime) -> bool:
    """Whether a time of day is in `hours`, such as `22:00-06:00`."""
    first, last = minutes_of(hours)
    minute = now.hour * 60 + now.minute
    return first <= minute < last if first < last else minute >= first or minute < last
