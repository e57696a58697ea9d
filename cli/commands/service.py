"""`lm service`: the daemon under the system's service manager, systemd or launchd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from cli import console, daemon
from cli.client import settings
from cli.errors import Failure
from cli.units import LABEL, MARK, NAME, STATE, Service
from server.config import Config
from server.values import is_loopback

_SYSTEM_UNITS, _USER_UNITS = Path("/etc/systemd/system"), Path("~/.config/systemd/user")
_AGENTS = Path("~/Library/LaunchAgents")
# Folders that the hardened service of the system cannot look into.
_HIDDEN = ("/home", "/root", "/run/user", "/tmp")
_DEVICES = ("nvidia[0-9]*", "kfd", "dri/renderD*")
_of_system = click.option("--system", is_flag=True, help="The service of the whole machine, not the one of this user.")
_with_cards = click.option(
    "--cards/--no-cards", default=None, help="Whether it may use graphics cards; by default where there are any."
)


@click.group(invoke_without_command=True)
@click.option("--print", "printed", is_flag=True, help="Print the service file, and change nothing.")
@_of_system
@_with_cards
@click.pass_context
def command(ctx: click.Context, printed: bool, system: bool, cards: bool | None) -> None:
    """Run the daemon as a service: it starts with the machine or with your session, and again if it fails."""
    if printed:
        console.out(_text(_service(system, cards), system), end="")
    elif ctx.invoked_subcommand is None:
        console.out(ctx.get_help())


@command.command()
@_of_system
@_with_cards
def install(system: bool, cards: bool | None) -> None:
    """Write the service file, and start the service; an older one of lm's is replaced."""
    service, path = _service(system, cards), _file(system)
    _check_ours(path)
    if system:
        _check_system(service)
    control = _control(system)
    config = settings()
    _say_unkept(config, system)
    try:
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        if service.home is not None:
            (service.home / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(_text(service, system))
    except OSError as error:
        raise Failure(f"`{path}` cannot be written: {error.strerror}", _rights(system)) from None
    if _launchd():
        subprocess.run(["launchctl", "unload", str(path)], capture_output=True, check=False)
        _make_way(config, system)
        _run(["launchctl", "load", "-w", str(path)])
    else:
        try:
            _run([*control, "daemon-reload"])
            _run([*control, "enable", NAME])
        except Failure:
            # A manager that does not answer would not forget the service either: `uninstall` could not take it back.
            path.unlink() if before is None else path.write_bytes(before)
            raise
        _make_way(config, system)
        _run([*control, "restart", NAME])
    console.note(f"`{path}` is installed and the service runs; its home is {STATE if system else service.home}")
    if not system and not _launchd() and shutil.which("loginctl"):
        console.note("it ends with your last session, unless `loginctl enable-linger` lets it stay")


@command.command()
@_of_system
def status(system: bool) -> int:
    """Show whether the service runs; the exit code is 1 where it does not."""
    if not _file(system).exists():
        raise Failure(f"the service is not installed: there is no `{_file(system)}`", "`lm service install` does that")
    if _launchd():
        return int(subprocess.run(["launchctl", "list", LABEL], check=False).returncode != 0)
    done = subprocess.run([*_control(system), "status", "--no-pager", "--lines=0", NAME], check=False)
    return int(done.returncode != 0)


@command.command()
@_of_system
@click.option("-n", "lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
def logs(system: bool, lines: int, follow: bool) -> int:
    """Show the service's log."""
    if _launchd():
        words = ["tail", "-n", str(lines), *(["-f"] if follow else []), str(settings().log_file)]
    else:
        if shutil.which("journalctl") is None:
            raise Failure("there is no `journalctl` here", "the service writes into systemd's journal")
        scope = [] if system else ["--user"]
        words = ["journalctl", *scope, "--no-pager", "-u", NAME, "-n", str(lines), *(["-f"] if follow else [])]
    return subprocess.run(words, check=False).returncode


@command.command()
@_of_system
def uninstall(system: bool) -> None:
    """Stop the service and remove its file; models, settings and logs stay."""
    path, silent = _file(system), ""
    _check_ours(path)
    if not path.exists():
        raise Failure(f"the service is not installed: there is no `{path}`")
    if _launchd():
        _run(["launchctl", "unload", "-w", str(path)])
    else:
        silent = _disabled(system)
    try:
        if silent:
            _unlink(path)  # before the file: a link that leads nowhere is not found
        path.unlink()
    except OSError as error:
        raise Failure(f"`{path}` cannot be removed: {error.strerror}", _rights(system)) from None
    if silent:
        console.note(f"warning: the service manager was not told: {silent}", "yellow")
        if not system:
            daemon.end(settings())
    elif not _launchd():
        _run([*_control(system), "daemon-reload"])
    home = STATE if system else _home(settings())
    console.note(f"the service is removed; models, settings and logs stay in {home}")


def _make_way(config: Config, system: bool) -> None:
    """End the daemon that runs for the home of a user's service."""
    if not system and daemon.end(config):
        console.note("the daemon that ran for this home was ended: the service takes its place")


def _disabled(system: bool) -> str:
    """Have the manager stop the service and forget it; why it does not, "" where it does.

    A manager that is not there, or that this user cannot reach, keeps nobody from taking the service away.
    """
    try:
        _run([*_control(system), "disable", "--now", NAME])
    except Failure as failure:
        return str(failure)
    return ""


def _unlink(path: Path) -> None:
    """Remove the links by which a manager would start the service, as it would do itself. Raises OSError."""
    for link in path.parent.glob(f"*.wants/{NAME}"):
        link.unlink()


def _service(system: bool, cards: bool | None) -> Service:
    """The service as it is to be. Raises Failure where this kind is not known here."""
    if system and _launchd():
        raise Failure("on macOS lm runs as a user's agent", "leave `--system` out")
    there = any(next(Path("/dev").glob(pattern), None) for pattern in _DEVICES)
    cards = there if cards is None else cards
    config = settings(STATE / "config.toml") if system else settings()
    silent = system and config.offline and is_loopback(config.host)
    groups = tuple(name for name in ("video", "render") if _is_group(name)) if cards else ()
    home = None if system else _home(config)
    return Service(_program(), home, cards=cards, groups=groups, silent=silent)


def _program() -> tuple[str, ...]:
    """The daemon's command line; where `scripts/software/install` put lm, by way of the script that follows updates."""
    versions = Path(sys.prefix).parent
    script = versions.parent / "bin" / "lm"
    return (str(script), "serve") if versions.name == "versions" and script.is_file() else Service.program


def _text(service: Service, system: bool) -> str:
    if _launchd():
        return service.property_list()
    return service.system_unit() if system else service.user_unit()


def _home(config: Config) -> Path:
    return config.home.absolute()


def _file(system: bool) -> Path:
    if _launchd():
        return _AGENTS.expanduser() / f"{LABEL}.plist"
    return (_SYSTEM_UNITS if system else _USER_UNITS.expanduser()) / NAME


def _launchd() -> bool:
    return sys.platform == "darwin"


def _control(system: bool) -> list[str]:
    """The words before a verb of systemd's; raises Failure where there is no systemd."""
    if _launchd():
        return []
    if shutil.which("systemctl") is None:
        raise Failure("this system has no systemd", "`lm service --print` shows the service file for another manager")
    return ["systemctl"] if system else ["systemctl", "--user"]


def _run(words: list[str]) -> None:
    """Run a command of the service manager; raises Failure with its own last words."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        why = said[-1] if said else f"exit status {done.returncode}"
        hint = "`lm service logs` may say why" if "restart" in words else "is this a session of the service manager?"
        raise Failure(f"`{' '.join(words)}` failed: {why}", hint)


def _check_ours(path: Path) -> None:
    """Raise Failure for a service file that lm has not written."""
    try:
        ours = MARK in path.read_text(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Failure(f"`{path}` cannot be read: {error.strerror}") from None
    if not ours:
        raise Failure(f"`{path}` was not written by `lm service`", "move it away if lm is to have its place")


def _check_system(service: Service) -> None:
    """Raise Failure where the service of the system could not start: no right to install it, a Python out of sight."""
    if os.geteuid() != 0:
        raise Failure("the service of the whole machine is installed by root", _rights(system=True))
    for place in {service.program[0], str(Path(service.program[0]).resolve()), sys.prefix}:
        if any(place.startswith(f"{folder}/") for folder in _HIDDEN):
            why = f"the service runs as a user of its own, who cannot look into `{place}`"
            raise Failure(why, "install lm in an environment below /opt, or leave `--system` out")


def _rights(system: bool) -> str:
    return "run it with `sudo`, or leave `--system` out" if system else ""


def _say_unkept(config: Config, system: bool) -> None:
    """Say which settings of this environment the service will not have."""
    kept = ("home",)
    names = [name for name, (source, _) in config.origins_of().items() if source == "environment" and name not in kept]
    if names:
        file = STATE / "config.toml" if system else config.config_file
        console.note(f"note: the service has its settings from `{file}`, not from this environment: {', '.join(names)}")


def _is_group(name: str) -> bool:
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
