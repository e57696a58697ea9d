"""The parts of a running daemon that requests are answered with."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from server.config import Config
from server.creates.create import Creates
from server.improving.improver import Improver
from server.library import Library
from server.loaded.pool import Pool
from server.pulls.jobs import Jobs


@dataclass(frozen=True)
class Services:
    """Settings, models in the store, models in memory, pulls, models that are made here, and their improvement."""

    config: Config
    library: Library
    pool: Pool
    jobs: Jobs
    creates: Creates
    improver: Improver


SERVICES = web.AppKey("services", Services)
