"""Walls around a worker that knows its files: it gives up privileges, other files, the network, new processes.

There are three, each by itself. The first is that no program gives new privileges. Landlock lets it read the blobs of
the store and the files of Python and llama.cpp, and write nothing. A filter of system calls leaves out sockets,
programs and tracing. `Confinement` tells
which of them stand; on other systems than Linux there is none. Limits of resources are set everywhere.

Sources: landlock(7), seccomp(2), `linux/landlock.h`, `linux/seccomp.h`, and the tables of system calls of Linux 6.18
for x86-64 and for the architectures with generic numbers (aarch64).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import msgspec

SWITCHED_OFF = "the setting `sandbox` is off"
OPEN_FILES = 4096
# Bytes to which a file that is open already, the log, may grow.
LARGEST_FILE = 1 << 30

_PR_SET_NO_NEW_PRIVS = 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on all architectures
# Rights over files by the version of Landlock that knows them: the bits that each version added.
_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_WRITE_FILE, _READ_FILE, _READ_DIR, _IOCTL = 1 << 1, 1 << 2, 1 << 3, 1 << 15
_TCP = 0b11  # bind, connect; from version 4
_SCOPES = 0b11  # abstract Unix sockets and signals to processes outside; from version 6
# Folders of libraries, and files by which the system describes itself.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/opt", "/nix/store", "/gnu/store", "/run/opengl-driver", "/sys",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime", "/etc/alternatives", "/dev/null", "/dev/zero",
    "/dev/random", "/dev/urandom", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys",
    "/proc/filesystems", "/proc/version", "/proc/devices", "/proc/modules", "/proc/driver",
)  # fmt: skip
# Graphics cards: device files that a driver reads, writes and controls.
_CARDS = ("dev/nvidia*", "dev/nvidia-caps/*", "dev/dri/*", "dev/kfd")

# Calls that are refused, with their numbers on x86-64 and aarch64; -1 where there is none.
_REFUSED = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "execve": (59, 221), "execveat": (322, 281), "fork": (57, -1), "vfork": (58, -1),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "io_uring_setup": (425, 425),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "open_by_handle_at": (304, 265), "pidfd_getfd": (438, 438),
}  # fmt: skip
# The machine's name: its number of architecture (`AUDIT_ARCH_*`), the column above, `seccomp`, `clone`, `clone3`.
_MACHINES = {"x86_64": (0xC000003E, 0, 317, 56, 435), "aarch64": (0xC00000B7, 1, 277, 220, 435)}
_CLONE_THREAD = 0x10000
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1


class Confinement(msgspec.Struct, frozen=True):
    """The walls around a process: the version of Landlock, 0 without; whether calls are filtered; what is missing.

    Each line of `missing` names a wall and says why it does not stand.
    """

    landlock: int = 0
    seccomp: bool = False
    missing: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """All walls in one sentence: which stand, and why others are missing."""
        names = [f"Landlock {self.landlock}"] if self.landlock else []
        names += ["a filter of system calls"] if self.seccomp else []
        stands = " and ".join(names) or "nothing"
        return f"{stands} around each worker" + "".join(f"; {each}" for each in self.missing)


class _Denied(Exception):
    """A wall that cannot be built; the message says why."""


def cards_here() -> bool:
    """Whether this machine has device files of graphics cards, which a driver uses from inside a worker."""
    return any(next(Path("/").glob(pattern), None) for pattern in _CARDS)


def confine(read: Iterable[Path], *, cards: bool) -> Confinement:
    """Give up what this process does not need any more; call it before any thread is started.

    It may read the folders `read`, and what Python and libraries load. With `cards` it may use the files of graphics
    cards too, and `refuse_calls` is to follow once their driver has started; else system calls are filtered at once.
    Never raises: what cannot be had is named.
    """
    missing: list[str] = []
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_FSIZE, LARGEST_FILE)
    landlock = 0
    try:
        _no_new_privileges()
        landlock = _restrict_files([*read, *_interpreter()], cards)
    except _Denied as error:
        missing.append(f"no Landlock: {error}")
    made = Confinement(landlock, missing=tuple(missing))
    return made if cards else refuse_calls(made)


def refuse_calls(made: Confinement, *, everywhere: bool = True) -> Confinement:
    """Filter the system calls of all threads (of this one alone unless `everywhere`); `made` with what came of it."""
    try:
        _no_new_privileges()
        _filter_calls(everywhere)
    except _Denied as error:
        return Confinement(made.landlock, False, (*made.missing, f"no filter of system calls: {error}"))
    return Confinement(made.landlock, True, made.missing)


@cache
def trial() -> Confinement:
    """Which walls this system gives: tried in a thread, which ends behind them; this process stays as it is."""
    result = [Confinement(missing=("no walls: the trial of them failed",))]

    def attempt() -> None:
        missing: tuple[str, ...] = ()
        landlock = 0
        try:
            _no_new_privileges()
            landlock = _restrict_files([], cards=False)
        except _Denied as error:
            missing = (f"no Landlock: {error}",)
        result[0] = refuse_calls(Confinement(landlock, missing=missing), everywhere=False)

    thread = threading.Thread(target=attempt, name="confined")
    thread.start()
    thread.join()
    return result[0]


def _limit(kind: int, most: int) -> None:
    soft, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(kind, (most if soft == resource.RLIM_INFINITY else min(soft, most), most))


def _interpreter() -> list[Path]:
    """Folders and files from which Python imports. An editable installation of lm is in no folder of `sys.path`."""
    named = (sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(__file__).parents[1]), *sys.path)
    search = os.environ.get("LD_LIBRARY_PATH", "").split(":")  # noqa: TID251  the loader's own, no setting of lm
    return [Path(name) for name in (*named, *search, *_SYSTEM) if name]


def _library() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise _Denied(f"{platform.system() or 'this system'} has none")
    return ctypes.CDLL(None, use_errno=True)


def _failed(what: str) -> _Denied:
    return _Denied(f"{what}: {os.strerror(ctypes.get_errno())}")


def _no_new_privileges() -> None:
    """No program that this process may ever run gives it more rights than it has. Raises _Denied."""
    arguments = [ctypes.c_ulong(value) for value in (1, 0, 0, 0)]
    if _library().prctl(_PR_SET_NO_NEW_PRIVS, *arguments):
        raise _failed("the kernel does not forbid new privileges")


def _restrict_files(read: Sequence[Path], cards: bool) -> int:
    """Build the wall around files; returns Landlock's version. Raises _Denied."""
    libc = _library()
    version = libc.syscall(ctypes.c_long(_LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 1:
        raise _Denied("the kernel has none (Linux 5.13 has it, where it is not switched off)")
    handled = sum(bits for since, bits in _RIGHTS.items() if since <= version)
    attributes = struct.pack("<QQQ", handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(ctypes.c_long(_LANDLOCK_CREATE), attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    if rules < 0:
        raise _failed("its rules cannot be made")
    try:
        for path in read:
            _allow(libc, rules, path, _READ_FILE | _READ_DIR)
        _allow(libc, rules, Path("/dev/null"), _READ_FILE | _WRITE_FILE)
        if cards:
            for pattern in (*_CARDS, "dev/shm"):
                for path in Path("/").glob(pattern):
                    _allow(libc, rules, path, (_READ_FILE | _READ_DIR | _WRITE_FILE | _IOCTL) & handled)
        if libc.syscall(ctypes.c_long(_LANDLOCK_RESTRICT), ctypes.c_int(rules), ctypes.c_uint(0)):
            raise _failed("its rules are not taken")
    finally:
        os.close(rules)
    return int(version)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    """Add a rule for a folder and all below it, or for a file; a path that is not there needs none."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights &= ~_READ_DIR if not path.is_dir() else rights
        rule = struct.pack("<Qi", rights, descriptor)
        done = libc.syscall(ctypes.c_long(_LANDLOCK_ADD), ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint(0))
        if done:
            raise _failed(f"no rule for `{path}`")
    finally:
        os.close(descriptor)


def _filter_calls(everywhere: bool) -> None:
    """Build the filter of system calls. Raises _Denied."""
    libc = _library()
    machine = platform.machine()
    if machine not in _MACHINES or sys.maxsize < 2**32:
        raise _Denied(f"lm knows no numbers of system calls for {machine}")
    code = filter_program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))  # `struct sock_fprog`
    flags = _ALL_THREADS if everywhere else 0
    number = ctypes.c_long(_MACHINES[machine][2])
    done = libc.syscall(number, ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(flags), program)
    if done > 0:
        raise _Denied(f"the thread {done} has another one")
    if done:
        raise _failed("the kernel does not take it")


def filter_program(machine: str) -> bytes:
    """The filter in the kernel's own form: instructions of eight bytes (`struct sock_filter`).

    Calls of another architecture and the names in `_REFUSED` are refused. `clone` makes threads only; `clone3`,
    whose arguments a filter cannot read, is not there, and the C library then takes `clone`.
    """
    architecture, column, _, clone, clone3 = _MACHINES[machine]
    load, jump_equal, jump_least, jump_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, absent, allow = _ERRNO | _EPERM, _ERRNO | _ENOSYS, _ALLOW

    def line(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, value)

    lines = [line(load, 4), line(jump_equal, architecture, 1), line(give, refuse), line(load, 0)]
    if machine == "x86_64":  # the numbers of x32 begin there
        lines += [line(jump_least, 0x40000000, 0, 1), line(give, refuse)]
    for number in (numbers[column] for numbers in _REFUSED.values()):
        if number >= 0:
            lines += [line(jump_equal, number, 0, 1), line(give, refuse)]
    lines += [line(jump_equal, clone3, 0, 1), line(give, absent)]
    # The lower half of the first argument of `clone` are its flags, on machines of this byte order.
    lines += [line(jump_equal, clone, 0, 3), line(load, 16), line(jump_bits, _CLONE_THREAD, 1), line(give, refuse)]
    lines += [line(give, allow)]
    return b"".join(lines)
