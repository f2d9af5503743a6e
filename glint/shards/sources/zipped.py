"""The members of a zip, found by its central directory: zip64 too; nothing is extracted."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from glint.files import reads
from glint.shards.sources.listed import Flaw
from glint.shards.sources.packed import DEFLATED, STORED, Member, damaged

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LENGTHS = struct.Struct("<3H")  # of name, extra fields and comment, in an entry
_PROTECTED = 0x2041  # flags: packed under a password, strongly, the directory too


def members(path: Path) -> Iterator[Member]:
    """Yield the members of a zip in the order of its directory, folders left out.

    Links, devices, members under a password and packings other than deflate come with their flaw.
    Raises InputError GL0214 for a damaged directory.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            archive = zipfile.ZipFile(file)
        except (
            NotImplementedError,
            OSError,
            ValueError,
            struct.error,
            zipfile.BadZipFile,
        ) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise  # EINVAL: Python 3.10 seeks a directory that claims to lie before the file
            what = f"the central directory of the zip is damaged, or the zip was cut: {error}"
            raise damaged(what, path, size) from None
        _check(archive, file.fileno(), size, path)
        for info in archive.infolist():
            name = _read(_name(info))
            if not name.endswith((b"/", b"\\")):
                method = STORED if info.compress_type == zipfile.ZIP_STORED else DEFLATED
                numbers = info.header_offset, info.file_size, info.compress_size
                yield Member(name, *numbers, _flaw(info), method, info.CRC)


def _name(info: zipfile.ZipInfo) -> bytes:
    """Return the name as it stands in the zip."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _read(name: bytes) -> bytes:
    """Return a name in UTF-8: without the flag it is that, or of code page 437."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437").encode()
    return name


def _flaw(info: zipfile.ZipInfo) -> int:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return Flaw.unsafe_member
    if info.flag_bits & _PROTECTED:
        return Flaw.encrypted
    good = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return Flaw.sound if good else Flaw.unsupported_method


def _check(archive: zipfile.ZipFile, fd: int, size: int, path: Path) -> None:
    """Compare the members with what the end of the zip says of them: `zipfile` does not.

    It reads the last of several joined zips, one of several volumes, and past a last entry that
    claims more bytes than are left.
    """
    stop = size - _END.size - len(archive.comment)
    end = _END.unpack(reads.pread(fd, _END.size, stop))
    mark, disk, first, here, count, length, offset, note = end
    if mark != b"PK\x05\x06" or note != len(archive.comment):
        raise damaged("something stands behind the end of the zip, or it was cut", path, stop)
    if stop >= 76 and reads.pread(fd, 4, stop - 20) == b"PK\x06\x07":
        stop -= 76  # a record of 56 bytes, and 20 that say where it is
        end64 = _END64.unpack(reads.pread(fd, _END64.size, stop))
        mark, *_, disk, first, here, count, length, offset = end64
        if mark != b"PK\x06\x06":
            what = "the end of the zip64 directory is not where it should be"
            raise damaged(what, path, stop)
    if disk or first or here != count:
        raise damaged("the zip is one of several volumes", path, stop, "join them first")
    infos = archive.infolist()
    found = sum(46 + sum(_lengths(info)) for info in infos)
    if offset + length != stop or (found, len(infos)) != (length, count):
        what = f"{count} entries in {length} bytes at {offset} claimed, to end at {stop}"
        what = f"the central directory is damaged: {what}; {len(infos)} in {found} bytes found"
        raise damaged(what, path, stop, "zips that were joined must be taken apart")
    last = sum(_lengths(infos[-1])) if infos else 0
    if infos and _LENGTHS.unpack(reads.pread(fd, 6, stop - last - 18)) != _lengths(infos[-1]):
        raise damaged("the central directory is damaged", path, stop - last - 46)
    if any(max(i.header_offset, i.file_size, i.compress_size) >= 1 << 62 for i in infos):
        raise damaged("a zip64 entry is damaged", path, offset)


def _lengths(info: zipfile.ZipInfo) -> tuple[int, int, int]:
    """Return what an entry takes beside its 46 bytes: name, extra fields, comment."""
    return len(_name(info)), len(info.extra), len(info.comment)
