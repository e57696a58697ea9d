"""Which limits do control groups set us? Memory and processor time, by the kernel's files of version 2 and 1.

Every level counts, from our own group up to the root. A file that is not there sets no limit. A file that is there and
cannot be read sets an unknown one: it does not count, and is named in `ControlGroups.unknown`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# Version 1 says "no limit" with a number near 2^63, in pages.
_NO_LIMIT = 1 << 60
T = TypeVar("T")


@dataclass(frozen=True)
class MemoryGroup:
    """The limit of a group, and the bytes in use there (cached files not counted)."""

    limit: int
    used: int


class ControlGroups:
    """The groups that we are in: `own` is a process's list of them, `root` the folder that they are mounted in."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self._root = root
        self._own = own
        self.unknown: list[str] = []

    def memory(self) -> MemoryGroup | None:
        """The group whose limit leaves the least memory, None where no group has a limit."""
        groups = []
        for folder, (limit_name, used_name) in self._folders("memory"):
            limit = self._read(folder / limit_name, _number, None)
            if limit is None or limit >= _NO_LIMIT:
                continue
            cached = self._read(folder / "memory.stat", _cached, 0)
            used = self._read(folder / used_name, int, 0)
            groups.append(MemoryGroup(limit, max(0, used - cached)))
        return min(groups, key=lambda group: group.limit - group.used, default=None)

    def cpu_quota(self) -> float | None:
        """The number of processors whose time our groups allow us, None where no group has a limit."""
        quotas = [quota for folder, _ in self._folders("cpu") if (quota := self._quota(folder)) is not None]
        return min(quotas, default=None)

    def _quota(self, folder: Path) -> float | None:
        quota = self._read(folder / "cpu.max", _fraction, None)
        if quota is not None:
            return quota
        allowed = self._read(folder / "cpu.cfs_quota_us", _number, None) or 0
        period = self._read(folder / "cpu.cfs_period_us", _number, None) or 0
        return allowed / period if allowed > 0 and period > 0 else None

    def _folders(self, controller: str) -> list[tuple[Path, tuple[str, str]]]:
        """Our group's folders, from the innermost to the root, with the names of the memory files there.

        In a container the path in `own` is often the host's, and does not exist here: then the root is ours.
        """
        folders: list[tuple[Path, tuple[str, str]]] = []
        nothing: list[list[str]] = []
        for _, controllers, path in self._read(self._own, _lines, nothing):
            if controllers == "":
                names = ("memory.max", "memory.current")
                base = self._root / "unified" if (self._root / "unified").is_dir() else self._root
            elif controller in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
                whole = self._root / controllers
                base = whole if whole.is_dir() else self._root / controller
            else:
                continue
            inner = Path(path.lstrip("/"))
            folders += [(base / level, names) for level in (inner, *inner.parents) if (base / level).is_dir()]
        return folders

    def _read(self, path: Path, parse: Callable[[str], T], default: T) -> T:
        """The content of a file of the kernel; the default where there is no such file, or where it is unknown."""
        try:
            return parse(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return default
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self.unknown.append(f"{path} cannot be read ({why}), so a limit may be unknown")
            return default


def _number(text: str) -> int | None:
    return None if text.strip() == "max" else int(text)


def _fraction(text: str) -> float | None:
    """Version 2's quota and period, both in microseconds: `150000 100000`, or `max 100000`."""
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)


def _cached(text: str) -> int:
    """Bytes of cached files in a group."""
    pairs = (line.split() for line in text.splitlines())
    return sum(int(value) for key, value in pairs if key in ("inactive_file", "active_file"))


def _lines(text: str) -> list[list[str]]:
    """Lines of `/proc/self/cgroup`: a number, the controllers (none in version 2), our group's path."""
    lines = [line.split(":", 2) for line in text.splitlines()]
    if any(len(line) != 3 for line in lines):
        raise ValueError("not a list of groups")
    return lines
