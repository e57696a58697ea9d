"""The keys that the running daemon knows: `LM_API_KEY`, and the keys of the file, read anew when it changes."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from pathlib import Path

from server.access.callers import Caller
from server.errors import KeysUnreadable
from server.keys.file import BadKeyFile, read_keys
from server.keys.record import ApiKey, hash_of

log = logging.getLogger("lm.access")
# A longer one is none: no work is done for it.
LONGEST_KEY = 512
ADMIN = Caller("admin", "the key LM_API_KEY")
OWNER = Caller("admin", "the user who runs the daemon")


class KeyTable:
    """Keys by their hashes. `refresh` may be called from a thread, all else from the event loop.

    `token` is the key of whoever can read the daemon's own file in its home: `lm` needs no other on this machine.
    """

    def __init__(self, path: Path, api_key: str) -> None:
        """Read the file. Raises BadKeyFile."""
        self._path = path
        self._stamp = self._stamped()
        self._problem = ""
        self.token = secrets.token_urlsafe(32)
        self._fixed = {hash_of(self.token): OWNER}
        self._own = {hash_of(api_key): ADMIN} if api_key else {}
        # Tokens for work that goes on in the name of a key, which nobody but the daemon has: by hashes, and by owners.
        self._lent: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        self._keys = read_keys(path)
        self._callers = _callers(self._keys or [])
        self._forget_own()

    @property
    def wanted(self) -> bool:
        """Whether callers need a key: there was one since the daemon started."""
        return bool(self._own) or self._keys is not None

    @property
    def can_open(self) -> bool:
        """Whether a key lets anybody in now."""
        now = time.time()
        return bool(self._own) or any(not key.ended(now) for key in self._keys or [])

    def find(self, sent: str) -> Caller | None:
        """The caller with this key, None where there is none, or where it has ended.

        The time of a look-up tells nothing of a key: hashes are compared, in constant time at last. Raises
        KeysUnreadable while the file cannot be read, because a key that it limits may be LM_API_KEY too.
        """
        if len(sent) > LONGEST_KEY:
            return None
        digest = hash_of(sent)
        fixed = self._fixed.get(digest)
        if fixed is not None:
            return fixed
        if self._problem:
            raise KeysUnreadable("the daemon cannot read its keys", "`lm doctor` on its machine says why")
        if digest in self._lent:
            return self._acting(self._lent[digest])
        caller = self._callers.get(digest)
        if caller is None:
            return self._own.get(digest)
        assert caller.key is not None
        known = hmac.compare_digest(caller.key.hash, digest)
        return caller if known and not caller.key.ended(time.time()) else None

    def lend(self, owner: str) -> str | None:
        """A token by which the daemon itself asks in the name of an owner, "" for its own user.

        None where no key of this owner is valid any more.
        """
        if not owner:
            return self.token
        if self._acting(owner) is None:
            return None
        token = self._tokens.setdefault(owner, secrets.token_urlsafe(32))
        self._lent[hash_of(token)] = owner
        return token

    def _acting(self, owner: str) -> Caller | None:
        """The caller with the newest valid key of an owner."""
        now = time.time()
        valid = [key for caller in self._callers.values() if (key := caller.key) and not key.ended(now)]
        newest = max((key for key in valid if key.owner == owner), key=lambda key: key.created, default=None)
        return self._callers[newest.hash] if newest else None

    def ending(self, sent: str) -> str:
        """How a key has ended that was valid once: `revoked` or `expired`; "" for one that never was."""
        caller = self._callers.get(hash_of(sent)) if len(sent) <= LONGEST_KEY else None
        return caller.key.state(time.time()) if caller and caller.key else ""

    def valid(self, key: ApiKey) -> bool:
        """Whether a request that was let in with this key may go on; while the file cannot be read, it may."""
        if self._problem:
            return not key.ended(time.time())
        caller = self._callers.get(key.hash)
        now = caller.key if caller else None
        return now is not None and not now.ended(time.time()) and now.role == key.role and now.models == key.models

    def refresh(self) -> bool:
        """Read the file anew if it has changed; whether it had. A file that cannot be used lets nobody in."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return False
        try:
            keys = read_keys(self._path)
            callers = _callers(keys or [])
        except BadKeyFile as error:
            self._problem = str(error)
            log.error("nobody is let in by a key: %s (%s)", error, error.hint)
        else:
            # Keys stay wanted when the file goes away, so that nobody gets in by its loss.
            self._keys = keys if keys is not None or self._keys is None else []
            self._callers, self._problem = callers, ""
            self._forget_own()
            log.info("read %d keys", len(callers))
        self._stamp = stamp
        return True

    def _forget_own(self) -> None:
        """Where LM_API_KEY is a key of the file too, the file says what it may, even after it is gone from there."""
        self._own = {digest: caller for digest, caller in self._own.items() if digest not in self._callers}

    def _stamped(self) -> tuple[int, ...]:
        try:
            status = self._path.stat(follow_symlinks=False)
        except OSError as error:
            return (-1, error.errno or 0)
        return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _callers(keys: list[ApiKey]) -> dict[str, Caller]:
    return {key.hash: Caller(key.role, f"the key `{key.name or key.id}`", key) for key in keys}
