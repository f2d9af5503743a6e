"""A disk that once writes something else to a shard than it was given.

Python imports this at its start where its folder is on PYTHONPATH. GLINT_FAULT says which fault,
and names a file that is made once the fault has come: `KIND:FILE`. Whatever a program writes with,
the bytes of the file are changed behind its back; what it holds in memory stays right.
"""

import builtins
import io
import os
import random
import re
from pathlib import Path

KIND, _, MARK = os.environ["GLINT_FAULT"].partition(":")
SHARD = re.compile(r"/train-\d{6}\.tar[^/]*$")
READY = 3 << 20  # bytes of a shard that are written before
chance = random.Random(KIND)


def is_shard(file) -> bool:
    """Say whether a path or descriptor is that of a shard, under whatever temporary name."""
    try:
        path = Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else Path(file)
    except (OSError, TypeError):
        return False
    return bool(SHARD.search(str(path)))


def due(fd) -> bool:
    return not Path(MARK).exists() and is_shard(fd) and os.fstat(fd).st_size >= READY


def headers(data, end):
    """Give the places of the headers of members whose names end so."""
    found = re.finditer(rb"\d{9}\." + end + rb"\0", data)
    return [one.start() for one in found if one.start() % 512 == 0]


def damaged(data):
    """Return (place, other bytes) for a file that holds `data`."""
    at, block = chance.randrange(1 << 20, 2 << 20), 4096
    aligned = at // block * block
    if KIND == "flip":
        yield at, bytes([data[at] ^ 16])
    elif KIND == "lost":
        yield aligned, bytes(block)
    elif KIND == "repeat":
        yield aligned, data[aligned - (1 << 20) : aligned]
    elif KIND == "swap":
        other = aligned - 64 * block
        yield aligned, data[other : other + block]
        yield other, data[aligned : aligned + block]
    elif KIND == "label":
        place = chance.choice(headers(data, b"cls")[:-1]) + 512
        yield place, bytes([data[place] ^ 1])
    elif KIND == "name":
        place = chance.choice(headers(data, b"jpg")) + 8
        yield place, bytes([data[place] ^ 1])
    elif KIND == "padding":
        place = chance.choice(headers(data, b"cls")[:-1]) + 1023
        yield place, b"x"


def after(fd) -> None:
    """Do the damage where it is due."""
    if KIND == "drop" or not due(fd):
        return
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    data = os.pread(own, READY, 0)
    for place, wrong in list(damaged(data)):
        assert data[place : place + len(wrong)] != wrong
        real_pwrite(own, wrong, place)
    os.close(own)
    real_open(MARK, "w").close()


def cut(fd, data):
    """Return how many of the first bytes are dropped, and the others."""
    view = memoryview(data).cast("B")
    if KIND != "drop" or not due(fd):
        return 0, view
    real_open(MARK, "w").close()
    size = 4096 if len(view) > 4096 else len(view)
    return size, view[size:]


class Faulty(io.FileIO):
    """A file that is written as it says, but once."""

    def write(self, data):
        dropped, rest = cut(self.fileno(), data)
        done = super().write(rest)
        after(self.fileno())
        return dropped + done


def faulty_open(file, mode="r", buffering=-1, *args, **kwargs):
    if "b" not in mode or not set(mode) & set("wxa+") or not is_shard(file):
        return real_open(file, mode, buffering, *args, **kwargs)
    raw = Faulty(file, mode.replace("b", ""))
    if buffering == 0:
        return raw
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    return (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw, size)


def faulty_write(fd, data, *place):
    dropped, rest = cut(fd, data)
    done = (real_pwrite if place else real_write)(fd, rest, *place)
    after(fd)
    return dropped + done


real_open, real_write, real_pwrite = io.open, os.write, os.pwrite
builtins.open = io.open = faulty_open
os.write = os.pwrite = faulty_write
