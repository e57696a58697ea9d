"""The gate: finds out who asks, checks role and limits, and ends answers whose key has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from aiohttp import web

from registry.store.fsops import replace
from server.access import wrong
from server.access.callers import ANYBODY, CALLER, Caller
from server.access.guard import AccessRules, sent_key
from server.access.limits import KeyLimits, clock, limit_headers
from server.access.peers import peer_of, peers_role
from server.access.roles import Access
from server.access.table import ADMIN, KeyTable
from server.access.wrong import WrongKeys
from server.config import Config
from server.errors import RateLimited, StartFailed, Unauthorized
from server.http.problems import Dialect
from server.keys.file import key_file
from server.keys.record import ApiKey

log = logging.getLogger("lm.access")
# How often the file of keys is looked at, and used tokens are saved, in seconds.
LOOK_SECONDS = 0.4
_USAGE = "usage.json"
# About the sent key of a stranger: how it has ended, "wrong" where it was never valid, "" for none.
_FAULT = web.RequestKey("fault", str)


class Gate:
    """Who may do what with one daemon."""

    def __init__(self, config: Config) -> None:
        """Read the keys, and the tokens that they have used. Raises BadKeyFile, StartFailed."""
        self.rules = AccessRules(config)
        self.keys = KeyTable(key_file(config), config.api_key)
        self.limits = KeyLimits()
        self._wrong = WrongKeys(clock)
        self._running: dict[asyncio.Task[Any], ApiKey] = {}
        self._ended: set[asyncio.Task[Any]] = set()
        self._usage = config.home / _USAGE
        self._config = config
        self._saves = True
        with contextlib.suppress(FileNotFoundError):
            try:
                self.limits.restore(self._usage.read_bytes())
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise
                raise StartFailed(f"`{self._usage}` cannot be read: {error.strerror}", "check the file") from None

    def identify(self, request: web.Request, *, changes: bool, tells_nothing: bool) -> None:
        """Find out who asks, and check Host and Origin; `changes` and `tells_nothing` as `AccessRules.admit` has them.

        Raises Forbidden, KeysUnreadable.
        """
        caller = self._caller(request)
        if caller is not None:
            request[CALLER] = caller
        known = caller is not None and caller is not ANYBODY
        self.rules.admit(request, known=known, changes=changes, tells_nothing=tells_nothing)

    async def enter(
        self, request: web.Request, needed: Access, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """The handler's answer, for a caller who may have it.

        Raises Unauthorized, Forbidden, RateLimited; Unauthorized also where the key ends before the answer.
        """
        caller: Caller | None = request.get(CALLER)
        if caller is None:
            if needed == "open":
                return await handler(request)
            await self._refuse(request)
        caller.require(needed)
        if caller.key is None:
            return await handler(request)
        self.limits.admit(caller.key)
        return await self._while_valid(caller.key, handler(request))

    def headers(self, request: web.Request, dialect: Dialect) -> dict[str, str]:
        """The headers about the limits of the caller's key, none where it has none."""
        caller: Caller | None = request.get(CALLER)
        if caller is None or caller.key is None or (caller.key.rate is None and caller.key.tokens is None):
            return {}
        return limit_headers(self.limits.standings(caller.key), dialect)

    async def watch(self) -> None:
        """Until cancelled: notice changes of the keys, end what an ended key began, save the tokens that were used."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await asyncio.to_thread(self.keys.refresh)
                self._end_invalid()
                await self.save()
            except Exception:
                log.exception("looking at the keys failed")

    async def save(self) -> None:
        """Write down the tokens that were used since the last time."""
        if not self.limits.changed:
            return
        data = self.limits.saved()
        try:
            await asyncio.to_thread(replace, self._usage, data)
            self._saves = True
        except OSError as error:
            self.limits.changed = True
            if self._saves:
                log.warning("used tokens are counted in memory only: %s: %s", self._usage, error.strerror)
            self._saves = False

    def _caller(self, request: web.Request) -> Caller | None:
        """Who asks, None for a stranger. Raises KeysUnreadable."""
        peer = peer_of(request)
        sent = sent_key(request)
        if sent:
            caller = self.keys.find(sent)
            # A person may have chosen LM_API_KEY, so whoever guesses is not told that it was right.
            if caller is not None and not (caller is ADMIN and self._wrong.blocked(peer.name)):
                return caller
        if peer.credentials is not None:
            return peers_role(self._config, peer.credentials)
        if not self.keys.wanted:
            return ANYBODY
        request[_FAULT] = (self.keys.ending(sent) or "wrong") if sent else ""
        return None

    async def _refuse(self, request: web.Request) -> NoReturn:
        """Raise Unauthorized for a stranger, after a while for a wrong key; RateLimited after too many of them."""
        fault = request.get(_FAULT)
        if fault == "wrong":
            name = peer_of(request).name
            if wait := self._wrong.blocked(name):
                message = f"{wrong.MOST_WRONG} wrong keys came from this address within a minute"
                raise RateLimited(message, "send the right one, later", retry_after=wait)
            await asyncio.sleep(self._wrong.note(name))
            raise Unauthorized("this API key is not valid", "compare it with the key that was made")
        if fault:
            raise Unauthorized(f"this API key is {fault}", "`lm key create` makes another, `lm key rotate` in time")
        if peer_of(request).credentials is not None:
            raise Unauthorized("this user has no role on this socket", "send a key as `Authorization: Bearer KEY`")
        raise Unauthorized("this daemon wants an API key", "send `Authorization: Bearer KEY` (LM_API_KEY)")

    async def _while_valid(self, key: ApiKey, answer: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        """The answer; its work is cancelled when the key ends, which is an Unauthorized then."""
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = key
        try:
            response = await answer
        except asyncio.CancelledError:
            if task not in self._ended or task.uncancel() > 0:
                raise
            raise Unauthorized("the key has ended while this was answered", "it has expired or was revoked") from None
        else:
            if task in self._ended:
                task.uncancel()  # the answer was whole before it noticed
            return response
        finally:
            del self._running[task]
            self._ended.discard(task)

    def end_with(self, key: ApiKey, task: asyncio.Task[None]) -> None:
        """Cancel a task, which goes on without its request, when the key ends."""
        self._running[task] = key
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._ended.discard(task)

    def _end_invalid(self) -> None:
        for task, key in list(self._running.items()):
            if task not in self._ended and not self.keys.valid(key):
                self._ended.add(task)
                task.cancel()


GATE = web.AppKey("gate", Gate)
