"""Reading files: what may pass is waited for, and what is no plain file is not opened."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeVar

from glint.errors import ResourceError

Read = TypeVar("Read")
# What these say of a path, it says the next time as well; others say nothing of what lies there.
_SETTLED = (
    None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM,
    errno.EINVAL,
)  # fmt: skip
_PAUSES = (0.05, 0.2, 0.6)  # seconds before a read is tried again


def passing(error: BaseException) -> bool:
    """Say whether a failed read says nothing of what was to be read: EMFILE, EIO, ESTALE..."""
    return isinstance(error, OSError) and error.errno not in _SETTLED


def patient(read: Callable[[], Read]) -> Read:
    """Return what `read` returns; what may pass, also a file that is away, is tried again."""
    for pause in _PAUSES:
        try:
            return read()
        except OSError as error:
            if not passing(error) and error.errno != errno.ENOENT:
                raise
            time.sleep(pause)
    return read()


def unread(error: OSError, path: str | os.PathLike[str]) -> ResourceError:
    """Return the error of a read that failed, whatever lies there."""
    what = f"cannot be read: {error.strerror or error}"
    hint = "look at the disk, the network and the limit of open files (ulimit -n)"
    return ResourceError("GL0903", what, where=os.fspath(error.filename or path), hint=hint)


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise ResourceError GL0903 instead of OSError while `path` is read."""
    try:
        yield
    except OSError as error:
        raise unread(error, path) from error


def open_plain(path: str | os.PathLike[str], buffering: int = -1) -> IO[bytes]:
    """Open a plain file for reading. Raises OSError: EINVAL for what may never end, as a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(mode := os.fstat(fd).st_mode):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "no plain file", os.fspath(path))
    return os.fdopen(fd, "rb", buffering=buffering)


def whole(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a plain file. Raises OSError."""
    with open_plain(path) as file:
        return file.read()


def stand_in(path: str | os.PathLike[str]) -> str:
    """Say what stands in place of a file: a pointer, a web page, nothing; "" for the file."""
    with open_plain(path) as file:
        head = file.read(512).lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: the file itself was not fetched (git lfs pull)"
    if head[:1] == b"<" and b"html" in head.lower():
        return "a web page: the download stopped at a warning or a login; open the address yourself"
    return "" if head else "an empty file"


def pread(fd: int, size: int, offset: int) -> bytes:
    """Return `size` bytes at an offset of an open file, less only where it ends."""
    data = os.pread(fd, size, offset)
    while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
        data += more
    return data
