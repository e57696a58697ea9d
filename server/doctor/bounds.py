"""The bounds that lm sets itself, as `lm doctor` shows them: offline, and the walls around workers."""

from __future__ import annotations

from runtime.confinement import SWITCHED_OFF, trial
from server.config import Config
from server.doctor.frames import OK, WARN, Finding


def bounds(config: Config) -> list[Finding]:
    """Findings about what the daemon and its workers deny themselves. The walls are tried here, in a thread."""
    return [*_offline(config), _sandbox(config)]


def _offline(config: Config) -> list[Finding]:
    if not config.offline:
        return []
    return [Finding("offline", OK, "lm connects to this machine alone: loopback, its own addresses, Unix sockets")]


def _sandbox(config: Config) -> Finding:
    if not config.sandbox:
        hint = "leave `sandbox` out of `config.toml`, and LM_SANDBOX unset"
        return Finding("sandbox", WARN, f"{SWITCHED_OFF}: a worker may do whatever you may", hint)
    walls = trial()
    if walls.missing:
        hint = "a newer kernel has it; a container may forbid it: see its seccomp profile"
        return Finding("sandbox", WARN, walls.sentence, hint)
    return Finding("sandbox", OK, walls.sentence)
