"""The caller of a request: the role, the models that exist for it, and the key whose objects and quotas it uses."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from registry.errors import BadName, ModelNotFound
from registry.names import parse
from registry.store.catalog import Model
from registry.store.finding import is_meant
from server.access.roles import Access, suffices
from server.errors import Forbidden
from server.keys.record import ApiKey
from server.values import Role


@dataclass(frozen=True)
class Caller:
    """Who asks. `key` is None for callers that need none: whoever runs the daemon, or anybody where no key is wanted.

    `title` says who that is, for messages.
    """

    role: Role
    title: str
    key: ApiKey | None = None

    @property
    def owner(self) -> str:
        """The owner of the objects that this caller makes; "" for the daemon's own user."""
        return self.key.owner if self.key else ""

    @property
    def limited(self) -> bool:
        """Whether only the models of a list exist for it."""
        return self.key is not None and bool(self.key.models)

    def may_touch(self, owner: str) -> bool:
        """Whether an object of this owner exists for the caller: its own do, and all do for an admin."""
        return self.role == "admin" or owner == self.owner

    def require(self, needed: Access) -> None:
        """Raise Forbidden where the role is too low; the message says which one is needed."""
        if not suffices(self.role, needed):
            raise Forbidden(
                f"{self.title} has the role `{self.role}`, and this takes `{needed}`",
                f"use a key that was made with `lm key create --role {needed}`",
            )

    def sees(self, model: Model) -> bool:
        """Whether a model exists for the caller."""
        return not self.limited or any(_means(name, model) for name in self._listed)

    def require_listed(self, name: str, models: list[Model]) -> None:
        """Raise ModelNotFound unless `name`, which means `models`, exists for the caller.

        A name that is not in the store has to be on the key's list itself.
        """
        listed = all(self.sees(model) for model in models) if models else self._lists(name)
        if self.limited and not listed:
            raise self.not_found(name)

    def not_found(self, name: str) -> ModelNotFound:
        """The error about a model that does not exist for the caller: the same, whether others have it or not."""
        listed = ", ".join(f"`{each}`" for each in self._listed)
        return ModelNotFound(f"there is no model `{name[:100]}` for this key", f"its list has {listed}")

    def _lists(self, text: str) -> bool:
        """Whether a name that a user typed is on the list, itself or without its level."""
        try:
            name = parse(text).name
        except BadName:
            return False
        return name.display in self._listed or name.tagged(None).display in self._listed

    @property
    def _listed(self) -> tuple[str, ...]:
        return self.key.models if self.key else ()


def _means(name: str, model: Model) -> bool:
    try:
        return is_meant(name, model)
    except BadName:
        return False


# Where no key is wanted, as in the daemon of one user.
ANYBODY = Caller("admin", "anybody")
# None for a caller that has not shown who it is.
CALLER = web.RequestKey("caller", Caller)


def caller_of(request: web.Request) -> Caller:
    """The caller of a request that was let in."""
    caller: Caller | None = request.get(CALLER)
    assert caller is not None
    return caller
