"""The blocks of a plain USTAR file, as Python's `tarfile` writes them."""

from __future__ import annotations

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads its files to this

_OWNER = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
_MTIME = b"00000000000\0"
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # type, link, magic, version; then empty
# The checksum is taken with eight blanks in its own place.
_SUM = sum(_OWNER) + sum(_MTIME) + sum(_REST) + 8 * ord(" ")


def header(name: bytes, size: int) -> bytes:
    """Return the header of a regular file: mode 0644, mtime 0, no owner.

    Raises ValueError for a name of over 100 bytes or a size that eleven octal digits do not hold.
    """
    digits = b"%011o" % size
    if len(name) > 100 or len(digits) != 11:
        raise ValueError(f"USTAR holds no member {name!r} of {size} bytes")
    total = _SUM + sum(name) + sum(digits)
    return b"%b%b%b\0%b%06o\0 %b" % (name.ljust(100, b"\0"), _OWNER, digits, _MTIME, total, _REST)


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of `size` bytes."""
    return bytes(-size % BLOCK)


def end(size: int) -> bytes:
    """Return what ends an archive of `size` bytes: two blocks of zeros, filled up to a record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)
