"""System calls that Python lacks: renameat2 and fallocate.

Each raises OSError as a call of the standard library would, with ENOSYS where the platform has no
such call.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

# include/uapi/linux/fs.h, include/uapi/linux/fcntl.h
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
# The names these calls have in C libraries, the best first.
_RENAME = ("renameat2",)
_ALLOCATE = ("fallocate64", "fallocate")

# What a file system or a sandbox answers to a call that it does not offer.
UNSUPPORTED = frozenset(
    {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EXDEV}
)


def rename_new(old: Path, new: Path) -> None:
    """Rename; FileExistsError where `new` exists."""
    _rename(old, new, _RENAME_NOREPLACE)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step; either may be a file or a directory."""
    _rename(one, other, _RENAME_EXCHANGE)


def allocate(fd: int, size: int) -> None:
    """Reserve the first `size` bytes of a file and extend it to them; what it holds stays.

    Not os.posix_fallocate: where the file system cannot, the C library writes into every block.
    """
    import ctypes

    _call(_ALLOCATE, fd, 0, ctypes.c_int64(0), ctypes.c_int64(size))


def _rename(old: Path, new: Path, flags: int) -> None:
    _call(_RENAME, _AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags)


def _call(names: tuple[str, ...], *arguments: object) -> None:
    """Call the first of `names` that the C library has."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    function = next((found for name in names if (found := getattr(library, name, None))), None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
