"""Files that are complete or absent: atomic writes, an append-only journal, one lock per output."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import xxhash

from glint.errors import BusyError, GlintError, InputError, ResourceError
from glint.files import reads

BUFFER = 1 << 20  # bytes of a file held before they are written
# What `temporary_name` makes.
TEMPORARY = re.compile(r".+\.tmp\.[A-Za-z0-9-]{1,32}\.\d+-[0-9a-f]{6}")


def disk_error(error: OSError, path: str | os.PathLike[str]) -> GlintError:
    """Turn a failed write into the error that people read."""
    where = os.fspath(error.filename or path)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return reads.unread(error, path)
    if error.errno == errno.EIO:
        what = "the disk failed: Input/output error"
        return ResourceError("GL0007", what, where=where, hint="look at the disk, then try again")
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError("GL0007", f"cannot write: {error.strerror or error}", where=where)
    what, hint = "no space is left on the device", "free some space"
    if error.errno == errno.ENOSPC and _no_inodes(path):
        what = "no inodes are left on the device: it holds as many files as it can"
        hint = "remove files or take a larger --samples-per-shard"
    hint += "; the same command continues where it stopped"
    return ResourceError("GL0901", what, where=where, hint=hint)


def _no_inodes(path: str | os.PathLike[str]) -> bool:
    for place in (Path(path), *Path(path).parents):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        return found.f_files > 0 and found.f_favail == 0
    return False


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
    """Make every file of `folder` last, and of the folders in it."""
    for path in folder.iterdir():
        if path.is_dir():
            sync_files(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_dir(folder)


def _hashed(file: IO[bytes], hasher: Any) -> str:
    while block := file.read(BUFFER):
        hasher.update(block)
    return str(hasher.hexdigest())


def sha256(file: IO[bytes]) -> str:
    """Return the SHA-256 of the rest of an open file, in hex."""
    return _hashed(file, hashlib.sha256())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with reads.open_plain(path) as file:
        return sha256(file)


def xxh3_of(path: Path) -> str:
    """Return the xxh3-128 of a file, in hex."""
    with reads.open_plain(path) as file:
        return _hashed(file, xxhash.xxh3_128())


def make_dir(folder: Path) -> None:
    """Create `folder` and its parents, durably."""
    with writing(folder):
        missing = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_dir(made.parent)


def foreign(path: str | os.PathLike[str], expected: str) -> BusyError:
    """Return the error of something that glint did not make and will not write to."""
    found = "a symbolic link" if Path(path).is_symlink() else "something else"
    what = f"expected {expected} of glint's own, found {found}"
    hint = "take it away; to keep an output elsewhere, let its whole folder be the link"
    return BusyError("GL0004", what, where=os.fspath(path), hint=hint)


def own_dir(folder: Path) -> None:
    """Create a private folder, durably. Raises BusyError GL0004 where it is a link or no folder."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise foreign(folder, "a folder")
    make_dir(folder)


def open_own(path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> int:
    """Open a private file for writing, following no link; return its descriptor.

    Raises BusyError GL0004 for a link and for what is no plain file, ResourceError.
    """
    with writing(path):
        try:
            fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise foreign(path, "a file") from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise foreign(path, "a file")
    return fd


def sweep(folder: Path, name: str = "") -> None:
    """Remove half files of processes that were killed; whoever calls holds the output alone.

    name: only those of this file, which others may be writing: of processes of this machine that
    are gone.
    """
    with writing(folder):
        for path in folder.iterdir() if folder.is_dir() else ():
            mine = path.name.startswith(f"{name}.tmp.{_host()}.") and _gone(path.name)
            if TEMPORARY.fullmatch(path.name) and (not name or mine):
                path.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]


def _gone(name: str) -> bool:
    """Say whether the process that wrote a temporary file has ended."""
    try:
        os.kill(int(name.rpartition(".")[2].partition("-")[0]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):
        pass
    return False


def temporary_name(path: Path) -> Path:
    """Return NAME.tmp.HOST.PID-RANDOM beside `path`: no other process of any machine takes it."""
    return path.with_name(f"{path.name}.tmp.{_host()}.{os.getpid()}-{secrets.token_hex(3)}")


@contextmanager
def replacing(
    path: str | os.PathLike[str], check: Callable[[Path], None] | None = None
) -> Iterator[IO[bytes]]:
    """Yield a file that takes the name `path` when the block ends well, complete and durable.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder. `check` reads the
    temporary file before it is renamed. Where the block or `check` raises, the temporary file goes
    and `path` stays as it was. Raises ResourceError.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with writing(path):
        try:
            with open(temporary, "wb", buffering=BUFFER) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if check is not None:
                check(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_dir(path.parent)


class Hashed(io.BufferedIOBase):
    """A file to write: the bytes are hashed on their way, `digest` is their xxh3-128."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hasher = file, xxhash.xxh3_128()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any) -> int:
        self._hasher.update(data)
        return self._file.write(data)

    @property
    def digest(self) -> str:
        """The digest so far, in hex."""
        return self._hasher.hexdigest()


@contextmanager
def read_back(path: str | os.PathLike[str]) -> Iterator[Hashed]:
    """Do what `replacing` does; the file is read again and compared before it gets its name.

    Raises ResourceError GL0007 where it holds other bytes than were written.
    """

    def check(made: Path) -> None:
        if xxh3_of(made) != hashed.digest:
            raise unlike(path)

    with replacing(path, check) as file:
        hashed = Hashed(file)
        yield hashed


def unlike(path: str | os.PathLike[str], what: str = "") -> ResourceError:
    """Return the error of a file that holds other bytes than were written."""
    what = "cannot write: read back, the file is not what was written" + (what and f": {what}")
    hint = "nothing of it was kept: look at the disk and at the memory of this machine, "
    hint += "then give the same command again"
    return ResourceError("GL0007", what, where=os.fspath(path), hint=hint)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file atomically; it is read back before it gets its name."""
    with read_back(path) as file:
        file.write(data)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write one JSON value atomically, in the one form that glint uses."""
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=True).encode() + b"\n")


def read_json(path: str | os.PathLike[str], code: str = "GL0301") -> dict[str, Any]:
    """Read a JSON object.

    Raises InputError `code` where it is not one, ResourceError GL0903 where that cannot be said.
    """
    try:
        value = json.loads(reads.whole(path))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and reads.passing(error):
            raise reads.unread(error, path) from error
        raise InputError(code, f"cannot be read: {error}", where=os.fspath(path)) from None
    if not isinstance(value, dict):
        raise InputError(code, "expected a JSON object", where=os.fspath(path))
    return value


def journal_lines(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines of a journal, which may be growing, and how many bytes they are."""
    lines: list[dict[str, Any]] = []
    good = 0
    if not Path(path).exists():
        return lines, good
    for raw in reads.whole(path).splitlines(keepends=True):
        crc, _, body = raw.rstrip(b"\n").partition(b" ")
        if not raw.endswith(b"\n") or crc != b"%08x" % zlib.crc32(body):
            break
        lines.append(json.loads(body))
        good += len(raw)
    return lines, good


class Journal:
    """Lines of JSON, each framed by its CRC-32 and fsynced; a torn last line is dropped."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_symlink():
            raise foreign(self.path, "a file")
        self.lines, good = journal_lines(self.path)
        with writing(self.path):
            fresh = not self.path.exists()
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._file = os.fdopen(open_own(self.path, flags), "ab")
            if good < self._file.tell():
                self._file.truncate(good)
            if fresh:
                sync_dir(self.path.parent)

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
        with suppress(OSError):  # of a line that `append` could not write, and said so
            self._file.close()


class Held:
    """A lock that this process holds on a file."""

    def __init__(self, path: str | os.PathLike[str], shared: bool) -> None:
        self.path, self.shared, self._taken = os.fspath(path), shared, False
        self._process = os.getpid()
        self._fd = open_own(path, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, wait: float) -> None:
        """Take the lock, within `wait` seconds. Raises BusyError GL0005, ResourceError GL0007."""
        deadline = time.monotonic() + wait
        while not self._try(fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                said = os.pread(self._fd, 200, 0).decode("ascii", "replace").strip()
                what = f"held by {said or 'another process'}"
                hint = "wait for it to end, or choose another output"
                raise BusyError("GL0005", what, where=self.path, hint=hint)
            time.sleep(min(0.1, max(wait, 0.0)))
        self._taken = True
        with writing(self.path):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _try(self, how: int) -> bool:
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            what = f"cannot be locked: {error.strerror or error}"
            hint = "the file system has to know flock (Lustre: mount it with -o flock)"
            raise ResourceError("GL0007", what, where=self.path, hint=hint) from None
        return True

    def alone(self) -> bool:
        """Say whether nobody else holds the lock, and keep them out; else it may be lost."""
        if self.shared and not self._try(fcntl.LOCK_EX):
            return False
        self.shared = False
        return True

    def release(self) -> None:
        """Give the lock up. Does nothing the second time.

        Unlocked by name: a process forked meanwhile has the descriptor too, and would keep it.
        """
        if self._fd >= 0:
            if self._taken and self._process == os.getpid():
                if not self.shared:
                    with suppress(OSError):  # who held it is only said for people
                        os.ftruncate(self._fd, 0)
                with suppress(OSError):
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1


@contextmanager
def lock(
    path: str | os.PathLike[str], *, shared: bool = False, wait: float = 0.0
) -> Iterator[Held]:
    """Hold the lock of an output, alone or with others who share it.

    Waits up to `wait` seconds for it. Raises BusyError GL0005 naming who holds it.
    """
    held = Held(path, shared)
    try:
        held.take(wait)
        yield held
    finally:
        held.release()
