"""The service files of lm: systemd's units for the system and for one user, launchd's, Podman's."""

from __future__ import annotations

import plistlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "lm.service"
LABEL = "lm.daemon"
# The first line of each file, by which lm knows its own again.
MARK = "Written by `lm service`; `lm service install` writes it anew."
# Where systemd keeps the state of the system's service; the home of models, logs and settings.
STATE = Path("/var/lib/lm")

# Programs and privileges that a daemon without root needs in no case; they work in a user's unit, too.
_BY_ANYONE = """\
NoNewPrivileges=yes
LimitCORE=0
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# Workers limit and confine themselves further; pullers step back behind answers.
SystemCallFilter=setrlimit prlimit64 setpriority sched_setaffinity
SystemCallFilter=landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp
# MemoryDenyWriteExecute is left out: kernels are compiled on this machine."""
# Only the system's manager can give these without rights of root to the user.
_BY_SYSTEM = """\
CapabilityBoundingSet=
AmbientCapabilities=
KeyringMode=private
PrivateIPC=yes
PrivateTmp=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes"""
_CARDS = """\
PrivateDevices=no
DevicePolicy=closed
DeviceAllow=char-drm rw
DeviceAllow=char-nvidia-frontend rw
DeviceAllow=char-nvidia rw
DeviceAllow=char-nvidia-uvm rw
DeviceAllow=char-nvidia-caps rw
DeviceAllow=/dev/kfd rw"""
_SILENT = """\
IPAddressDeny=any
IPAddressAllow=localhost"""


@dataclass(frozen=True)
class Service:
    """The daemon as a service: the program with its arguments, and its home, None for the system's own.

    `cards`: graphics cards may be used, by way of `groups`, which own their device files. `silent`: no packet leaves or
    enters the machine on its behalf.
    """

    program: tuple[str, ...] = (sys.executable, "-P", "-m", "server")
    home: Path | None = None
    cards: bool = False
    groups: tuple[str, ...] = ()
    silent: bool = False

    def system_unit(self) -> str:
        """A unit for systemd's system manager: a user of its own without rights, its state in `STATE`."""
        own = ["DynamicUser=yes", "User=lm", "StateDirectory=lm", "StateDirectoryMode=0700"]
        own += ["Environment=LM_HOME=%S/lm"]
        devices = _CARDS if self.cards else "PrivateDevices=yes"
        if self.cards and self.groups:
            devices += f"\nSupplementaryGroups={' '.join(self.groups)}"
        parts = [_BY_ANYONE, _BY_SYSTEM, devices, *([_SILENT] if self.silent else [])]
        return self._unit(own, parts, "multi-user.target")

    def user_unit(self) -> str:
        """A unit for a user's own manager (`systemctl --user`)."""
        own = [] if self.home is None else [f"Environment={_word(f'LM_HOME={self.home}')}"]
        return self._unit(own, [_BY_ANYONE], "default.target")

    def property_list(self) -> str:
        """An agent for launchd, as XML."""
        assert self.home is not None
        log = str(self.home / "logs" / "daemon.log")
        agent = {
            "Label": LABEL,
            "ProgramArguments": list(self.program),
            "EnvironmentVariables": {"LM_HOME": str(self.home)},
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ProcessType": "Interactive",
            "Umask": 0o077,
            "ExitTimeOut": 30,
            "HardResourceLimits": {"Core": 0},
            "StandardErrorPath": log,
            "StandardOutPath": log,
        }
        head, _, body = plistlib.dumps(agent).decode().partition("<plist")
        return f"{head}<!-- {MARK} -->\n<plist{body}"

    def _unit(self, own: Iterable[str], parts: Sequence[str], target: str) -> str:
        service = [
            "Type=notify",
            "NotifyAccess=main",
            f"ExecStart={' '.join(map(_word, self.program))}",
            "ExecReload=/bin/kill -HUP $MAINPID",
            "Restart=on-failure",
            "RestartSec=2",
            "WatchdogSec=60",
            "TimeoutStopSec=30",
            "OOMPolicy=continue",
            "UMask=0077",
            *own,
        ]
        lines = [
            f"# {MARK}",
            "[Unit]",
            "Description=lm, a local model server",
            "After=network.target",
            "StartLimitIntervalSec=300",
            "StartLimitBurst=5",
            "",
            "[Service]",
            *service,
            "",
            *parts,
            "",
            "[Install]",
            f"WantedBy={target}",
        ]
        return "\n".join(lines) + "\n"


def _word(text: str) -> str:
    """A word of a unit: `%` and `$` mean nothing in it, and spaces do not end it (systemd.service(5))."""
    plain = text.replace("%", "%%").replace("$", "$$")
    if plain and not set(plain) & set(" \t\"'\\;"):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
