"""Entries in the audit log by commands that work without the daemon, such as `lm key`."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cli import console
from cli.errors import Failure
from server.audit.line import AuditEvent
from server.audit.log import FREEING, AuditFailed, audit_log
from server.config import Config


@contextmanager
def auditing(config: Config, action: str) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Do something that the audit log tells of: the block calls what it gets with each target, and further members.

    Where the log cannot be written, the block does not begin, unless it ends something or makes room: then a warning
    says that it is not recorded. Raises Failure.
    """
    if config.audit == "off":
        yield lambda target, more: None
        return
    log, events = audit_log(config), list[AuditEvent]()
    try:
        if action not in FREEING:
            log.require_room()
        yield lambda target, more: events.append(AuditEvent(f"user {_user()}", action, target, more=more))
        try:
            if events:
                log.append(events)
        except AuditFailed as failure:
            console.note(f"warning: {failure}, so it is not recorded", "yellow")
    except AuditFailed as failure:
        raise Failure(str(failure), failure.hint, failure.code) from None
    finally:
        log.close()


def _user() -> str:
    """The name of this process's user, or the number where the system has no name for it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
