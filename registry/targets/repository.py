"""A repository of a registry that is written to: requests with its authorization, repeated where trouble may pass.

    HEAD  {base}/v2/{name}/blobs/{digest}                         is it there?
    POST  {base}/v2/{name}/blobs/uploads/?mount={digest}&from={}  have it from another repository; else an upload begins
    GET   {upload}                                                how far is it?
    PATCH {upload}                                                the next bytes
    PUT   {upload}?digest={digest}                                done
    PUT   {base}/v2/{name}/manifests/{tag}

Source: the OCI distribution specification, https://github.com/opencontainers/distribution-spec/blob/main/spec.md.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from http.client import HTTPException
from typing import TypeVar

import msgspec

from registry.errors import AccessDenied, RegistryError, SourceUnavailable
from registry.names import OLLAMA, Name
from registry.net.address import HttpAddress
from registry.net.authorize import Authorizer
from registry.net.locate import HOPS
from registry.net.network import Network
from registry.net.reaching import base_url, toward
from registry.net.retries import Passing, Unreachable, again, requested_wait, retry_after, trouble
from registry.net.transport import HttpClient, Response

# A registry hashes a large blob before it says that it has it, or copies it from one disk to another.
_SECONDS = 60.0
_KEPT = (307, 308)
_PASSING = (408, 421, 425, 429)
_LONGEST_ANSWER = 1 << 16
# Seconds that a piece may take to arrive when nobody waits for it any more.
_LONGEST_PIECE = 5.0

Body = bytes | Callable[[], Iterable[bytes | memoryview]]
Result = TypeVar("Result")


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


class TargetRepository:
    """One repository, by the name of a model in it; for one thread. `abort` may be called from any."""

    def __init__(self, name: Name, network: Network) -> None:
        """Raises AccessDenied for Ollama's registry, and as `toward`."""
        if name.host == OLLAMA:
            raise AccessDenied(
                "Ollama's registry takes models from accounts of its own only, by a key that lm has not",
                "name another registry: `host/namespace/model:tag`",
            )
        self.name = name
        self.path = f"{name.namespace}/{name.model}"
        self.base = base_url(network, name.host)
        network = replace(toward(network, self.base), timeout=_SECONDS)
        self._home = HttpAddress.parse(self.base)
        self._login = Authorizer(network, self.base, f"repository:{self.path}:pull,push", network.logins)
        self._network = network.with_authorizer(self._login)
        self._client = HttpClient(self._network)
        self._ended, self._unbroken = threading.Event(), False
        self._patience = threading.Timer(_LONGEST_PIECE, self._client.abort)

    @property
    def host(self) -> str:
        """The registry's host, as messages name it."""
        return self._home.netloc

    @property
    def url(self) -> str:
        """The repository's URL."""
        return f"{self.base}/v2/{self.path}"

    def address(self, target: str) -> HttpAddress:
        """The address of a path below the repository's URL."""
        return self._home.join(f"/v2/{self.path}/{target}")

    def joined(self, location: str) -> HttpAddress:
        """The address that a registry gave, whole or as a path. Raises SourceUnavailable."""
        return self._home.join(location)

    def abort(self) -> None:
        """End whatever is waited for, at once; a piece that is being sent may still arrive, for some seconds."""
        again = self._ended.is_set()
        self._ended.set()
        if self._unbroken and not again:
            self._patience.start()
        else:
            self._client.abort()

    @contextlib.contextmanager
    def unbroken(self) -> Iterator[None]:
        """Bring what is begun within to its end, even if `abort` is called. Raises SourceUnavailable if it was.

        Docker's registry forgets all of an upload that breaks off within a piece.
        """
        self._unbroken = True
        try:
            self._check_ended()
            yield
        finally:
            self._unbroken = False

    def close(self) -> None:
        """Close the connections."""
        self._patience.cancel()
        self._client.close()

    def ask(
        self, method: str, address: HttpAddress, headers: Mapping[str, str] | None = None, body: Body | None = None
    ) -> Response:
        """One answer, body unread; redirects that keep the method are followed.

        Raises Passing, OSError and HTTPException for trouble that may pass, AccessDenied and SourceUnavailable for
        what will not.
        """
        public = False
        for _ in range(HOPS + 1):
            reply = self._send(method, address, headers or {}, body, public)
            if reply.status not in _KEPT:
                return self._checked(reply, address)
            public = public or reply.public
            reply.discard()
            following = address.join(reply.headers.get("Location") or "")
            if address.scheme == "https" and following.scheme != "https":
                raise SourceUnavailable(f"`{address.host}` redirects from `https` to `http`")
            address = following
        raise SourceUnavailable(f"`{self.host}` redirects more than {HOPS} times")

    def persist(self, work: Callable[[], Result], what: str, progress: Callable[[], int] = lambda: 0) -> Result:
        """The result of `work`, which is repeated while its trouble may pass and is not the same too often.

        `progress` is a number that grows with what has been reached: trouble behind it begins a new count. Raises
        AccessDenied, SourceUnavailable.
        """
        retries, failures, reached = self._network.downloads, 0, progress()
        while True:
            self._check_ended()
            try:
                return work()
            except (Passing, OSError, HTTPException) as problem:
                self._client.close()
                self._check_ended()
                failures, reached = (1, progress()) if progress() > reached else (failures + 1, reached)
                wait = requested_wait(problem)
                heard = self._network.answered.is_set()
                if failures >= retries.limit(problem, heard, begun=True) or wait > retries.patience:
                    raise self._given_up(what, problem, failures, wait) from problem
                self._network.notice(again(what, problem).replace("cannot be read now", "cannot be sent now"))
                self._ended.wait(max(wait, retries.pause(failures)))
            except RegistryError:
                self._client.close()
                raise

    def refused(self, reply: Response, doing: str) -> RegistryError:
        """The error of an answer that will not pass; with the registry's own words."""
        words = self._words(reply)
        if reply.status in (401, 403):
            if self._login.logged_in:
                return AccessDenied(f"`{self.host}` does not let this login {doing}{words}", "see its settings")
            return AccessDenied(f"`{self.host}` does not let everybody {doing}{words}", f"`lm login {self.host}`")
        hint = "is there a registry, and is it one that takes models?"
        return SourceUnavailable(f"`{self.host}` answers {reply.status} to the wish to {doing}{words}", hint)

    def _send(
        self, method: str, address: HttpAddress, headers: Mapping[str, str], body: Body | None, public: bool
    ) -> Response:
        public = public or not self._network.may_be_private(address, self._home)
        if address.origin != self._home.origin:
            return self._client.send(method, address, headers, _fresh(body), public=public)
        sent = self._login.header
        reply = self._client.send(method, address, {**headers, **_authorized(sent)}, _fresh(body), public=public)
        challenge = reply.headers.get("WWW-Authenticate") or ""
        if reply.status == 401 and challenge and self._login.renew(sent, challenge):
            reply.discard()
            renewed = _authorized(self._login.header)
            return self._client.send(method, address, {**headers, **renewed}, _fresh(body), public=public)
        return reply

    def _check_ended(self) -> None:
        if self._ended.is_set():
            raise SourceUnavailable(f"the push of `{self.name.display}` was ended") from None

    def _checked(self, reply: Response, address: HttpAddress) -> Response:
        """The answer, unless it says that the same request may do better later."""
        if reply.status in _PASSING or (reply.status >= 500 and reply.status != 501):
            wait = retry_after(reply.headers)
            status = reply.status
            reply.discard()
            raise Passing(f"`{address.host}` answers {status}", wait)
        if 300 <= reply.status < 400:
            raise SourceUnavailable(f"`{address.host}` answers {reply.status}, as no registry does")
        return reply

    def _words(self, reply: Response) -> str:
        """The registry's own words of an error, in brackets; "" where it has none."""
        data = bytearray(_LONGEST_ANSWER)
        count = reply.readinto(memoryview(data)) or 0
        reply.discard()
        try:
            errors = msgspec.json.decode(data[:count], type=_Errors).errors
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ""
        text = "; ".join(each.message or each.code for each in errors[:2])
        return f" ({ascii(text[:200])[1:-1]})" if text else ""

    def _given_up(self, what: str, problem: Exception, failures: int, wait: float) -> SourceUnavailable:
        if isinstance(problem, Unreachable):
            return SourceUnavailable(str(problem.strerror), "check the network, the registry's name and its port")
        if wait > self._network.downloads.patience:
            return SourceUnavailable(f"`{self.host}` wants to be left alone for {wait:,.0f} s", "push again then")
        return SourceUnavailable(
            f"{what} cannot be sent to `{self.host}`: {trouble(problem)}, {failures} times in a row",
            "push again: what has arrived is not sent twice",
        )


def _fresh(body: Body | None) -> bytes | Iterable[bytes | memoryview] | None:
    return body() if callable(body) else body


def _authorized(value: str) -> dict[str, str]:
    return {"Authorization": value} if value else {}
