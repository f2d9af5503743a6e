"""USTAR as glint writes it: members of a header, their bytes, and zeros to a whole block of 512.

Mode 0644, no owner, no time: byte for byte what `tarfile` writes for such a member.
"""

from __future__ import annotations

BLOCK = 512
RECORD = 20 * BLOCK  # the length of a tar is a multiple of this

# Mode, uid, gid; size; time; checksum; type.
_NUMBERS = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" + b"00000000000\0" + b"%06o\0 " + b"0"
_REST = b"\0" * 100 + b"ustar\00000" + b"\0" * 247  # link, magic, owner's names, device, prefix
# The sum of all that does not change, with eight blanks for the checksum, as tar has it.
_SAME = sum(b"0000644\0" + b"0000000\0" * 2 + b"00000000000\0" + b" " * 8 + b"0" + _REST)


def header(name: bytes, size: int) -> bytes:
    """Return the header of a plain file. Raises ValueError where it does not fit one."""
    if not 0 < len(name) <= 100 or not 0 <= size < 8**11:
        raise ValueError(f"no USTAR header for {size} bytes named {name!r}")
    total = _SAME + sum(name + b"%011o" % size)
    return name.ljust(100, b"\0") + _NUMBERS % (size, total) + _REST


def padding(size: int) -> bytes:
    """Return the zeros that follow a member of this size."""
    return bytes(-size % BLOCK)


def end(size: int) -> bytes:
    """Return the zeros that end a tar whose members take `size` bytes: two blocks or more."""
    size += 2 * BLOCK
    return bytes(2 * BLOCK + -size % RECORD)
