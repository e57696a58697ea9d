"""The daemon's life: take the home, listen, say that it is ready, serve, and go without leaving anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial

from aiohttp import web

from registry.errors import DiskFull, StoreFailed, StoreLocked
from registry.store.catalog import Model
from registry.store.fsops import plainly
from registry.store.store import Store
from runtime.machine.hardware import detect
from runtime.small_files import replace_file
from server import app
from server.access.connections import HEADER_SECONDS, Connections
from server.access.gate import Gate
from server.access.trail import ACTOR
from server.api.lm.metrics import all_metrics
from server.api.openai.batches.runner import BatchRunner
from server.api.openai.batches.store import BATCHES
from server.api.openai.files.store import FILES
from server.audit.line import AuditEvent
from server.audit.log import audit_log
from server.audit.recorder import Recorder
from server.config import VERSION, Config, host_variable, service_manager
from server.creates.create import Creates
from server.doctor.frames import OK
from server.doctor.governance import governance
from server.errors import StartFailed
from server.improving.improver import Improver
from server.inward import Inward
from server.library import Library
from server.loaded.pool import Pool, Runtime
from server.locked import with_address
from server.manager import Manager
from server.policy.rules import read_policy
from server.pulls.jobs import Jobs
from server.services import Services
from server.sockets import closing_socket, reloading, tls_context, unix_listener
from server.telemetry.sampler import MetricsKeeper
from server.values import is_loopback, socket_path

log = logging.getLogger("lm")
DRAIN_SECONDS = 10.0
CLEANUP_SECONDS = 2.0
KEEPALIVE_SECONDS = 75.0
BACKLOG = 256
Start = Callable[[Connections], Awaitable[asyncio.Server]]


async def serve(config: Config, runtime: Runtime, ready: Callable[[Config], None]) -> None:
    """Run until told to stop; `ready` is called, with the true port, once requests are answered.

    Raises StartFailed, StoreLocked, StoreDamaged and others of the registry when it cannot start.
    """
    gate = Gate(config)
    _check_exposure(config, gate)
    with plainly(config.home):
        config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = _open_store(config)
    try:
        context = tls_context(config)
        listener, chosen = _bind(config), config.port
        if listener.family != socket.AF_UNIX:
            config = replace(config, port=listener.getsockname()[1])
        stop = asyncio.Event()
        with _signals(stop), reloading(config, context), closing_socket(config, listener):
            async with _listening(config, store, runtime, gate, partial(_start, listener, context), stop):
                _write_daemon_file(config, gate.keys.token, findable=bool(chosen))
                log.info("lm %s is ready on %s, home %s, process %d", VERSION, config.url, config.home, os.getpid())
                ready(config)
                async with Manager(*service_manager()).watched(f"answers on {config.url}"):
                    await stop.wait()
                with contextlib.suppress(OSError):
                    config.daemon_file.unlink(missing_ok=True)
                log.info("stopping")
    finally:
        store.close()
    log.info("stopped")


@asynccontextmanager
async def _listening(
    config: Config, store: Store, runtime: Runtime, gate: Gate, start: Start, stop: asyncio.Event
) -> AsyncGenerator[None]:
    """All parts of the daemon, taken down in the order that lets running answers end."""
    library = Library(store, read_policy(config))
    # Admission needs memory and processors only: the probe of the bandwidth is left out.
    pool = Pool(config, library, partial(detect, bandwidth=1.0), runtime)
    jobs = Jobs(config, library, pool.open_blobs, pool.retire, check=runtime.name == "llama")
    recorder = await asyncio.to_thread(_recorder, config)
    store.observe, pool.observe = partial(_listed, recorder), partial(_loaded, recorder)
    creates = Creates(config, library, pool.open_blobs, pool.retire, check=runtime.name == "llama")
    improver = Improver(config, library, pool, jobs)
    services = Services(config, library, pool, jobs, creates, improver)
    application = app.build(services, gate, recorder, stop.set)
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,  # `server/http/bodies.py` unpacks bodies, within a bound
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=CLEANUP_SECONDS,
    )
    await runner.setup()
    assert runner.server is not None
    server = await start(Connections(runner.server))
    inward = Inward(runner.server, gate)
    batches = BatchRunner(application[BATCHES], application[FILES], inward.ask, lambda: pool.pending, config.sequences)
    working = asyncio.create_task(batches.run())
    resuming = asyncio.create_task(services.jobs.resume())
    watching = asyncio.create_task(gate.watch())
    writing = asyncio.create_task(recorder.keep_writing())
    sampling = asyncio.create_task(MetricsKeeper(config, partial(all_metrics, services.pool, recorder)).run())
    improving = asyncio.create_task(improver.watch())
    try:
        yield
    finally:
        server.close()
        working.cancel()
        improving.cancel()
        await asyncio.wait([resuming, working, improving])
        await improver.stop()
        await asyncio.gather(services.jobs.stop(), services.pool.drain(DRAIN_SECONDS))
        await runner.cleanup()
        watching.cancel()
        writing.cancel()
        sampling.cancel()
        await asyncio.wait([watching, writing, sampling])
        await gate.save()
        await recorder.stop()


def _listed(recorder: Recorder, action: str, model: Model) -> None:
    """Record that a model came into the store's list, or left it, in the name of whoever asked for that."""
    source = str(model.own.get("source", ""))
    more = {"digest": model.digest, "blob": model.blob_digest} | ({"source": source} if source else {})
    recorder.act_now(AuditEvent(ACTOR.get(), action, model.name, more=more))


def _recorder(config: Config) -> Recorder:
    """The recorder of this daemon, whose start is recorded; the log is told what is wrong with rules and records."""
    recorder = Recorder(audit_log(config), config.audit, text=config.audit_text)
    for finding in governance(config):
        if finding.state != OK:
            log.warning("%s: %s (%s)", finding.check, finding.found, finding.hint)
    recorder.start(config.lasting, VERSION)
    return recorder


def _loaded(recorder: Recorder, model: Model, context: int) -> None:
    recorder.noted(AuditEvent(ACTOR.get(), "load", model.name, more={"digest": model.blob_digest, "context": context}))


def _check_exposure(config: Config, gate: Gate) -> None:
    if not is_loopback(config.host) and not gate.keys.can_open and not config.no_auth:
        variable = host_variable(config.host)
        source = f" (`{variable}` in the environment)" if variable else ""
        less = f", or `LM_HOST=127.0.0.1` for this machine alone, which goes before `{variable}`" if variable else ""
        raise StartFailed(
            f"listening on `{config.host}`{source} lets other machines in, and there is no key",
            "make one with `lm key create`, set LM_API_KEY, or LM_NO_AUTH=1 (`lm serve --no-auth`) if that is "
            f"meant{less}",
        )


def _open_store(config: Config) -> Store:
    try:
        return Store.open(config.store)
    except StoreLocked as error:
        raise with_address(config, error) from None


async def _start(listener: socket.socket, context: ssl.SSLContext | None, connections: Connections) -> asyncio.Server:
    """Answer on a socket that is bound."""
    loop = asyncio.get_running_loop()
    if listener.family == socket.AF_UNIX:
        return await loop.create_unix_server(connections, sock=listener, backlog=BACKLOG)
    seconds = HEADER_SECONDS if context else None
    return await loop.create_server(
        connections, sock=listener, backlog=BACKLOG, ssl=context, ssl_handshake_timeout=seconds
    )


def _bind(config: Config) -> socket.socket:
    """A socket on the configured address; raises StartFailed, which says whose the port is."""
    if socket_path(config.host):
        return unix_listener(config)
    try:
        return _listener(config)
    except socket.gaierror as error:
        raise StartFailed(f"`{config.host}` is no address of this machine ({error.strerror})", "see `--host`") from None
    except OSError as error:
        raise _refused(config, error) from None


def _listener(config: Config) -> socket.socket:
    """A socket on the configured address; raises OSError."""
    flags = socket.AI_PASSIVE
    if config.offline and not is_loopback(config.host):
        flags |= socket.AI_NUMERICHOST  # a name server may be another machine
    addresses = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=flags)
    family, kind, protocol, _, address = addresses[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _refused(config: Config, error: OSError) -> StartFailed:
    place = config.url.removeprefix("http://")
    if error.errno != errno.EADDRINUSE:
        return StartFailed(f"cannot listen on {place} ({error.strerror})", "choose another with `--host` and `--port`")
    from server.doctor.owner import who_listens

    free = _free_port(config)
    way = f"port {free} is free: set LM_PORT={free} for all commands, or run `lm serve --port {free}`"
    return StartFailed(f"{place} is taken by {who_listens(config)[0]}", way if free else "set LM_PORT to another port")


def _free_port(config: Config) -> int:
    """The next port above the configured one that can be listened on, 0 where none near it can."""
    for port in range(config.port + 1, min(config.port + 100, 65536)):
        with contextlib.suppress(OSError):
            _listener(replace(config, port=port)).close()
            return port
    return 0


def _write_daemon_file(config: Config, token: str, findable: bool) -> None:
    """Tell commands of the same user about this daemon, with the token by which it knows them.

    Where the file cannot be written, raise StartFailed unless the daemon is `findable` by the configured port.
    """
    record = {"pid": os.getpid(), "url": config.url, "version": VERSION, "settings": config.lasting, "token": token}
    record |= {"tls_cert": str(config.tls_cert)} if config.tls_cert else {}
    try:
        with plainly(config.home):
            replace_file(config.daemon_file, (json.dumps(record) + "\n").encode())
    except (DiskFull, StoreFailed) as error:  # a full disk is the moment when `lm rm` is needed
        if not findable:
            why = f"nobody would find a daemon on any free port: {error}"
            raise StartFailed(why, "set LM_PORT to the number of a port, then `lm rm` works and makes room") from None
        log.warning("commands find this daemon by LM_HOST and LM_PORT only: %s", error)


@contextmanager
def _signals(stop: asyncio.Event) -> Generator[None]:
    """The first SIGTERM or SIGINT begins a graceful end, the second one does not wait for it."""

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)  # the children see our end and follow
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    yield
