"""`lm config`: the settings, where each comes from, and changes of the file that holds them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli import console, daemon
from cli.auditing import auditing
from cli.client import settings
from cli.errors import Failure
from server.config import Config
from server.settings import IMMEDIATE, SECRETS, SETTINGS, BadSetting
from server.values import FOREVER


def complete_settings(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Names of settings."""
    return [CompletionItem(name) for name in SETTINGS if name.startswith(incomplete)]


@click.group()
def command() -> None:
    """Show and change settings. A flag goes before the environment, and that before `config.toml` in the home.

    A running daemon keeps the settings with which it was started.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of them as JSON.")
def list_settings(as_json: bool) -> None:
    """List all settings, with their values and where they come from."""
    rows = _rows(settings())
    if as_json:
        return console.as_json(rows)
    cells = [(row["name"], _text(row["value"]), row["origin"] or row["source"]) for row in rows]
    console.table(("SETTING", "VALUE", "FROM"), cells)
    return console.note("`lm config set NAME VALUE` changes one")


@command.command("get")
@click.argument("name", shell_complete=complete_settings)
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of it as JSON.")
def get_setting(name: str, as_json: bool) -> None:
    """Print the value of a setting, and say where it comes from."""
    row = next(row for row in _rows(settings()) if row["name"] == _known(name))
    if as_json:
        return console.as_json(row)
    console.out(_text(row["value"]))
    return console.note(f"from {row['origin'] or row['source']}; it wants {row['wants']}")


@command.command("set")
@click.argument("name", shell_complete=complete_settings)
@click.argument("value", required=False)
def set_setting(name: str, value: str | None) -> None:
    """Write a setting into `config.toml`, where its comments stay. Without VALUE it is read from stdin."""
    _known(name)
    _change(name, _asked(name) if value is None else value)


@command.command("unset")
@click.argument("name", shell_complete=complete_settings)
def unset_setting(name: str) -> None:
    """Take a setting out of `config.toml`, so that its default holds."""
    _change(_known(name), None)


def _known(name: str) -> str:
    from difflib import get_close_matches

    if name in SETTINGS:
        return name
    close = get_close_matches(name[:40], SETTINGS, 1)
    hint = f"did you mean `{close[0]}`?" if close else "`lm config list` shows them"
    raise Failure(f"there is no setting `{name[:40]}`", hint, "usage")


def _asked(name: str) -> str:
    """A value that no list of processes shows. Raises Failure."""
    if sys.stdin is not None and not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    return str(click.prompt(name, hide_input=name in SECRETS, err=True))


def _change(name: str, text: str | None) -> None:
    from server.settings_file import change

    if name == "home":
        raise Failure("`home` is where `config.toml` lies", "set LM_HOME, or give `lm serve --home FOLDER`", "usage")
    config = _settings_for_change()
    try:
        had = name in _table(config)
        with auditing(config, "config.set" if text is not None else "config.unset") as note:
            value = change(config.config_file, name, text)
            note(name, {} if name in SECRETS or text is None else {"value": _text(value)})
    except BadSetting as error:
        raise Failure(str(error), error.hint, error.code) from None
    if text is None and not had:
        return console.note(f"`{name}` was not set in `{config.config_file}`")
    shown = "***" if name in SECRETS else _text(value)
    console.note(f"`{name}` is {shown} in `{config.config_file}`" if text is not None else f"`{name}` is taken out")
    return _tell(config, name)


def _tell(config: Config, name: str) -> None:
    """Say when a change holds."""
    source, origin = settings().origins_of()[name]
    if source == "environment":
        console.note(f"warning: {origin} is set in this environment, and goes before the file", "yellow")
    if name in IMMEDIATE:
        return console.note("the next command has it")
    try:
        running = daemon.running_daemon(config) is not None
    except Failure:
        running = True
    restart = "the daemon that runs has it after `lm stop --daemon`; the next command starts one"
    return console.note(restart if running else "the next daemon has it")


def _settings_for_change() -> Config:
    """The settings; without the file where a setting in it is wrong, and is to be corrected."""
    try:
        return Config.load()
    except BadSetting:
        return settings(Path("/dev/null"))


def _table(config: Config) -> dict[str, Any]:
    from server.settings import read_toml

    return read_toml(config.config_file)


def _rows(config: Config) -> list[dict[str, Any]]:
    rows = []
    for name, (source, origin) in config.origins_of().items():
        value = getattr(config, name)
        if name in SECRETS and value:
            value = "***"
        rows.append(
            {
                "name": name,
                "value": list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value,
                "source": source,
                "origin": origin,
                "environment": list(SETTINGS[name].env),
                "wants": SETTINGS[name].wants,
                "restart": name not in IMMEDIATE,
            }
        )
    return rows


def _text(value: Any) -> str:
    """A value for people, as `lm config set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "-1" if value == FOREVER else f"{value:g}"
    return "" if value is None else ",".join(value) if isinstance(value, list) else str(value)
