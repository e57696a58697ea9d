"""Room on the disk that a file keeps behind its end, so that a full disk still takes what is appended.

Linux alone allocates blocks without making the file longer (`fallocate(2)`, FALLOC_FL_KEEP_SIZE), and not on every file
system.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any

_KEEP_SIZE = 1
_NOT_OFFERED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@cache
def _fallocate() -> Any:
    """The system's function, None where it has none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def keep_room(descriptor: int, start: int, size: int) -> bool:
    """Allocate `size` bytes of a file from `start` on, without making it longer; False where that is not offered.

    Raises OSError, as where the disk is full.
    """
    function = _fallocate()
    if function is None:
        return False
    while function(descriptor, _KEEP_SIZE, start, size) != 0:
        number = ctypes.get_errno()
        if number in _NOT_OFFERED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
