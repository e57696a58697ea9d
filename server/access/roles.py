"""Roles: who may do what. A role may do all that the roles before it may."""

from __future__ import annotations

from typing import Literal, get_args

from server.values import Role

# The least that a route takes: `open` takes callers without a key, any other word a key of this role or a higher one.
Access = Literal["open", "infer", "operator", "admin"]
ACCESSES: tuple[Access, ...] = get_args(Access)
_RANKS: dict[Access, int] = {access: rank for rank, access in enumerate(ACCESSES)}


def suffices(role: Role, needed: Access) -> bool:
    """Whether a caller of this role may use a route that takes `needed`."""
    return _RANKS[role] >= _RANKS[needed]
