"""Files that are complete or absent: atomic writes, an append-only journal, one lock per output."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from glint.errors import BusyError, GlintError, InputError, ResourceError


def disk_error(error: OSError, path: str | os.PathLike[str]) -> GlintError:
    """Turn a failed write into the error that people read."""
    where = os.fspath(error.filename or path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            "GL0901",
            "no space is left on the device",
            where=where,
            hint="free some space; the same command continues where it stopped",
        )
    return ResourceError("GL0007", f"cannot write: {error.strerror or error}", where=where)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise ResourceError instead of OSError while `path` is being written."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def sync_dir(folder: str | os.PathLike[str]) -> None:
    """Make the names in `folder` last through a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_files(folder: Path) -> None:
    """Make every file of `folder` last."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_dir(folder)


def sha256(file: IO[bytes]) -> str:
    """Return the SHA-256 of the rest of an open file, in hex."""
    hasher = hashlib.sha256()
    while block := file.read(4 << 20):
        hasher.update(block)
    return hasher.hexdigest()


def make_dir(folder: Path) -> None:
    """Create `folder` and its parents, durably."""
    with writing(folder):
        missing = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_dir(made.parent)


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a file that takes the name `path` when the block ends well, complete and durable.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder. Where the block
    raises, the temporary file goes and `path` stays as it was. Raises ResourceError.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_dir(path.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic(path) as file:
        file.write(data)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write one JSON value atomically, in the one form that glint uses."""
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=True).encode() + b"\n")


def read_json(path: str | os.PathLike[str], code: str = "GL0301") -> dict[str, Any]:
    """Read a JSON object. Raises InputError `code` where it is not one."""
    try:
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(code, f"cannot be read: {error}", where=os.fspath(path)) from None
    if not isinstance(value, dict):
        raise InputError(code, "expected a JSON object", where=os.fspath(path))
    return value


class Journal:
    """Lines of JSON, each framed by its CRC-32 and fsynced; a torn last line is dropped."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.lines, good = self._read()
        with writing(self.path):
            fresh = not self.path.exists()
            self._file = open(self.path, "ab")  # noqa: SIM115
            if good < self._file.tell():
                self._file.truncate(good)
            if fresh:
                sync_dir(self.path.parent)

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        lines: list[dict[str, Any]] = []
        good = 0
        if not self.path.exists():
            return lines, good
        for raw in self.path.read_bytes().splitlines(keepends=True):
            crc, _, body = raw.rstrip(b"\n").partition(b" ")
            if not raw.endswith(b"\n") or crc != b"%08x" % zlib.crc32(body):
                break
            lines.append(json.loads(body))
            good += len(raw)
        return lines, good

    def append(self, entry: dict[str, Any]) -> None:
        """Add one line; it lasts when this returns."""
        body = json.dumps(entry, sort_keys=True).encode()
        with writing(self.path):
            self._file.write(b"%08x %b\n" % (zlib.crc32(body), body))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.lines.append(entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the one lock of an output. Raises BusyError GL0005 naming who holds it."""
    with writing(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode("ascii", "replace").strip() or "another process"
            raise BusyError(
                "GL0005",
                f"held by {holder}",
                where=os.fspath(path),
                hint="wait for it to end, or choose another output",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)
