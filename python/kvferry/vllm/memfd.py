"""Memory that the daemon can map: a memfd whose size is final, so that no mapping of it can fault for having shrunk."""

from __future__ import annotations

import ctypes
import fcntl
import os

# From linux/memfd.h and linux/fcntl.h. Pythons built against an old libc, uv's among them, lack these names.
_MFD_CLOEXEC = 1
_MFD_ALLOW_SEALING = 2
_F_ADD_SEALS = 1033
_SEALS = 1 | 2 | 4  # No more seals, no shrinking, no growing.


def sealed_memfd(name: str, size: int) -> int:
    """A new memfd of ``size`` bytes, which read as zeros.

    Raises:
        OSError: the system has no room or no memfds.
        AttributeError: nor has its libc.
    """
    fd = _memfd(name, _MFD_CLOEXEC | _MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _memfd(name: str, flags: int) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, flags)
    # The libc that runs may have what the one that Python was built against had not.
    fd = int(ctypes.CDLL(None, use_errno=True).memfd_create(name.encode(), flags))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd
