"""`lm key`: who may use this daemon; works on the home's file of keys, whether the daemon runs or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from cli import console
from cli.auditing import auditing
from cli.client import settings
from cli.daemon import other_home
from cli.errors import Failure
from registry.errors import BadName
from registry.names import LATEST, parse
from server.keys.file import change_keys, key_file, read_keys
from server.keys.record import LONGEST_NAME, PREFIX, Allowance, ApiKey, is_name, new_key
from server.settings import BadSetting
from server.values import FOREVER, Role, duration

Value = TypeVar("Value")
_ROLES = ("infer", "operator", "admin")


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """An option that a function reads; a wrong one is told by what it should be."""

    def __init__(self, parse: Callable[[str], Any], wants: str) -> None:
        self.name = "text"
        self._parse = parse
        self._wants = wants

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that the text means."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except (ValueError, OverflowError):
            self.fail(f"{value[:60]!r} is not {self._wants}", param, ctx)


def _positive(text: str) -> float:
    """A duration; below zero, which is for ever elsewhere, is a slip here. Raises ValueError."""
    if text.strip().startswith("-"):
        raise ValueError("below zero")
    return duration(text)


def _lasting(text: str) -> float:
    seconds = _positive(text)
    if seconds != FOREVER and seconds < 1:
        raise ValueError("no time at all")
    return seconds


DURATION = Parsed(_positive, "a duration such as `12h` or `30d`")
LIFE = Parsed(_lasting, "a duration such as `12h` or `30d`")
ALLOWANCE = Parsed(Allowance.parse, "an amount within a time such as `60/m` or `1M/day`")


@click.group()
def command() -> None:
    """Make, list and revoke keys. A key is shown once; only its hash is kept.

    Changes hold for a running daemon within a second. From the first key on, the daemon wants one from everybody but
    the user that runs it.
    """


@command.command()
@click.option(
    "--role",
    type=click.Choice(_ROLES),
    required=True,
    help="infer: ask models. operator: bring them in and remove them too. admin: everything.",
)
@click.option("--name", default="", metavar="TEXT", help="A name to know it by.")
@click.option("--models", metavar="NAME,…", help="Only these models exist for it.")
@click.option("--expires", type=LIFE, metavar="TIME", help="It ends after this time, such as 30d.")
@click.option("--rate", type=ALLOWANCE, metavar="N/TIME", help="Requests, such as 60/m.")
@click.option("--tokens", type=ALLOWANCE, metavar="N/TIME", help="Tokens read and written, such as 1M/day.")
@click.option("--json", "as_json", is_flag=True, help="Print the key and all about it as JSON.")
def create(role: Role, name: str, models: str | None, expires: float | None, as_json: bool, **limits: Any) -> None:
    """Make a key and print it, for the only time."""
    if not is_name(name):
        raise Failure("the name has control characters, or is too long", f"use up to {LONGEST_NAME} letters", "usage")
    names = tuple(_model(part.strip()) for part in (models or "").split(",") if part.strip())
    if models is not None and not names:
        raise Failure("`--models` names no model", "leave it out, and all models exist for the key", "usage")
    secret, key = new_key(role, name=name, models=names, **limits)
    if expires not in (None, FOREVER):
        key = replace(key, expires=key.created + (expires or 0.0))
    _change(lambda keys: [*keys, key], "key.create", lambda: [key])
    _show_new(secret, key, as_json)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON.")
def list_keys(as_json: bool) -> None:
    """List the keys, without the keys themselves."""
    now = time.time()
    try:
        keys = read_keys(_path()) or []
    except BadSetting as error:
        raise Failure(str(error), error.hint, error.code) from None
    if as_json:
        console.as_json([_public(key) | {"state": key.state(now)} for key in keys])
        return
    rows = [
        (
            key.id,
            key.name,
            key.role,
            key.state(now),
            _until(key, now),
            ", ".join(str(limit) for limit in (key.rate, key.tokens and f"{key.tokens} tokens") if limit),
            ", ".join(key.models) or "all",
        )
        for key in keys
    ]
    console.table(("ID", "NAME", "ROLE", "STATE", "EXPIRES", "LIMITS", "MODELS"), rows)
    if not keys:
        console.note("there are no keys yet; `lm key create --role infer` makes one")


@command.command()
@click.argument("names", metavar="ID…", nargs=-1, required=True)
def revoke(names: tuple[str, ...]) -> None:
    """End keys, named by their ids; a name ends all keys that have it by rotation. Answers under way end too."""
    ended: list[ApiKey] = []

    def revoked(keys: list[ApiKey]) -> list[ApiKey]:
        meant = {key.id for name in names for key in _meant(keys, name)}
        now = time.time()
        ended.extend(key for key in keys if key.id in meant and not key.revoked)
        return [replace(key, revoked=now) if key.id in meant and not key.revoked else key for key in keys]

    _change(revoked, "key.revoke", lambda: ended)
    for key in ended:
        console.note(f"revoked {_called(key)}")
    if not ended:
        console.note("it was revoked already")


@command.command()
@click.argument("name", metavar="ID")
@click.option("--grace", type=DURATION, default="1d", show_default=True, help="How long the old key is still valid.")
@click.option("--json", "as_json", is_flag=True, help="Print the key and all about it as JSON.")
def rotate(name: str, grace: float, as_json: bool) -> None:
    """Make a key in the place of another one: with its role, limits, quota and objects."""
    made: list[tuple[str, ApiKey]] = []

    def rotated(keys: list[ApiKey]) -> list[ApiKey]:
        now = time.time()
        valid = [key for key in _meant(keys, name) if not key.ended(now)]
        if not valid:
            raise Failure(f"the key `{name}` has ended", "`lm key create` makes another")
        old = valid[-1]
        secret, new = new_key(old.role)
        expires = None if old.expires is None else new.created + old.expires - old.created
        new = replace(old, id=new.id, hash=new.hash, created=new.created, expires=expires)
        made[:] = [(secret, new)]
        end = now + grace if grace >= 0 else None
        ends = [moment for moment in (old.expires, end) if moment is not None]
        return [replace(key, expires=min(ends, default=None)) if key is old else key for key in keys] + [new]

    _change(rotated, "key.rotate", lambda: [made[0][1]])
    _show_new(*made[0], as_json)
    if not as_json:
        console.note("the old one is valid no more" if grace == 0 else f"the old one ends in {console.span(grace)}")


def _model(text: str) -> str:
    """The name of a model as the daemon shows it."""
    try:
        name = parse(text).name
    except BadName as error:
        raise Failure(str(error), error.hint, "usage") from None
    return (name.tagged(None) if (name.tag or "").lower() == LATEST else name).display


def _path() -> Path:
    return key_file(settings())


def _change(
    change: Callable[[list[ApiKey]], list[ApiKey]], action: str, changed: Callable[[], Iterable[ApiKey]]
) -> None:
    """Change the file of keys, with an entry in the audit log for each key that was `changed`. Raises Failure."""
    path = _path()
    with auditing(settings(), action) as note:
        try:
            change_keys(path, change)
        except BadSetting as error:
            raise Failure(str(error), error.hint, error.code) from None
        for key in changed():
            more = {"role": key.role, "owner": key.owner, "expires": key.expires, "models": list(key.models)}
            note(_called(key), {name: value for name, value in more.items() if value})
    if url := other_home(settings()):
        console.note(
            f"warning: the daemon at {url} has another home than `{path.parent}`, and does not read these keys; run "
            "this on its machine, with LM_HOME as it has it",
            "yellow",
        )


def _meant(keys: list[ApiKey], name: str) -> list[ApiKey]:
    """The keys of an id, or of a name. Raises Failure where there are none, or where a name has several owners."""
    if name.startswith(PREFIX) and len(name) > len(PREFIX) + 8:
        raise Failure("that is a key itself, which a list of processes shows", "name its id: `lm key list`", "usage")
    named, now = [key for key in keys if key.name and key.name == name], time.time()
    found = [key for key in keys if key.id == name] or [key for key in named if not key.ended(now)] or named
    if not found:
        raise Failure(f"there is no key `{name[:LONGEST_NAME]}`", "`lm key list` shows their ids")
    if len({key.owner for key in found}) > 1:
        ids = ", ".join(f"`{key.id}`" for key in found)
        raise Failure(f"`{name}` is the name of several keys", f"give an id: {ids}", "usage")
    return found


def _show_new(secret: str, key: ApiKey, as_json: bool) -> None:
    if as_json:
        console.as_json({"key": secret} | _public(key))
        return
    console.out(secret)
    console.note(f"{_called(key)}, role {key.role}. It is shown this once: clients send it as `Authorization: Bearer`.")


def _called(key: ApiKey) -> str:
    return f"{key.id} ({key.name})" if key.name else key.id


def _public(key: ApiKey) -> dict[str, Any]:
    """All about a key but its hash."""
    limits = {name: str(limit) for name, limit in (("rate", key.rate), ("tokens", key.tokens)) if limit}
    return {name: value for name, value in key.as_json().items() if name != "hash"} | limits


def _until(key: ApiKey, now: float) -> str:
    if key.revoked is not None:
        return ""
    if key.expires is None:
        return "never"
    if key.expires > now:
        return f"in {console.span(key.expires - now)}"
    return datetime.fromtimestamp(key.expires, UTC).date().isoformat()
