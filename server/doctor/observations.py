"""Everything that `lm doctor` looks at, gathered once, without a judgement.

llama.cpp is loaded in a process of its own (`runtime/machine/inspector.py`), so that a build that crashes is a finding
too. The only connection goes to the daemon's address.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from registry.errors import StoreFailed
from registry.store.catalog import Catalog
from registry.store.reading import entries
from runtime.machine.hardware import Hardware, amd_cards, detect
from runtime.machine.inspection import EXAMINE_SECONDS, Examine, Examined, Probed, Refused, ask
from runtime.machine.rates import Rates
from runtime.processor import instruction_sets, processor_name
from server.config import Config, default_home
from server.doctor.owner import who_listens
from server.values import is_loopback, on_this_machine, socket_path


@dataclass(frozen=True)
class Home:
    """The folder of models, logs and settings, or the nearest one above it that is there."""

    folder: Path
    error: str = ""
    """Why nothing can be written there, "" where it can."""
    writable_by_others: bool = False


@dataclass(frozen=True)
class Address:
    """The daemon's address: `daemon` describes a daemon of this home, `other` whoever else listens there.

    `silent` says why a machine that the settings name does not answer.
    """

    daemon: str = ""
    other: str = ""
    silent: str = ""


@dataclass(frozen=True)
class Observations:
    """The state of the machine and of the installation."""

    hardware: Hardware
    llama: Examined | Refused
    processor: str
    """Its name."""
    hardware_threads: int
    instructions: frozenset[str] | None
    """Instruction sets by Linux's names, None where they cannot be found out."""
    amd_cards: tuple[str, ...]
    swap: bool
    disk_free: int | None
    """Bytes free for models, None where that cannot be found out."""
    home: Home
    store_error: StoreFailed | None
    """The first folder of the store that cannot be read, None where all can."""
    rates: Probed | None
    """Measured speeds; None where there are none yet."""
    address: Address


def observe(config: Config) -> Observations:
    """Look at this machine, at llama.cpp, and at the daemon's home and address. Takes about a second."""
    hardware = detect()
    answer = ask(Examine(), EXAMINE_SECONDS)
    return Observations(
        hardware=hardware,
        llama=answer if isinstance(answer, Examined | Refused) else Refused("it cannot be asked"),
        processor=processor_name(),
        hardware_threads=psutil.cpu_count() or hardware.cpus,
        instructions=instruction_sets(),
        amd_cards=amd_cards(),
        swap=bool(psutil.swap_memory().total),
        disk_free=_disk_free(config.store),
        home=_home(config.home),
        store_error=_store_error(config.store),
        rates=Rates(config.cache, hardware.cpus).known(),
        address=_address(config),
    )


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that we can see."""
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))  # noqa: PTH110 (never raises)


def _disk_free(store: Path) -> int | None:
    try:
        return psutil.disk_usage(str(_existing(store))).free
    except OSError:
        return None


def _home(home: Path) -> Home:
    folder = _existing(home)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        return Home(folder, writable_by_others=folder == home and bool(home.stat().st_mode & 0o022))
    except OSError as error:
        return Home(folder, error.strerror or str(error))


def _store_error(store: Path) -> StoreFailed | None:
    try:
        for folder in ("", "blobs", "ingest"):
            entries(store / folder)
        list(Catalog(store).names())
    except StoreFailed as error:
        return error
    return None


def _address(config: Config) -> Address:
    """As a command would find the daemon: at the address of the settings, or where this home's own says that it is."""
    default = (config.host, config.port) == (Config.host, Config.port)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(config.daemon_file.read_bytes())
        named = config.port == 0 or default or record["url"] == config.url
        if named and psutil.pid_exists(int(record["pid"])):
            return Address(daemon=f"lm {record['version']} on {record['url']}, process {record['pid']}")
    if config.port == 0 or socket_path(config.host):
        return Address()
    if config.offline and not on_this_machine(config.client_host):
        return Address(silent="`offline` is set, so no other machine is asked")
    try:
        socket.create_connection((config.client_host, config.port), timeout=1).close()
    except OSError as error:
        elsewhere = not (is_loopback(config.host) or config.host in ("0.0.0.0", "::", ""))
        return Address(silent=error.strerror or str(error) or "no answer") if elsewhere else Address()
    who, mark = who_listens(config)
    ours = mark == config.home_mark or (mark and config.home == default_home()) or not is_loopback(config.host)
    return Address(daemon=f"{who} on {config.url}") if mark and ours else Address(other=who)
