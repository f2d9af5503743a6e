"""One shard: a plain USTAR file whose bytes depend on nothing but its samples, and its rows.

A member is a header, its bytes, and zeros to a whole block of 512. Mode 0644, no owner, no time:
byte for byte what `tarfile` writes for such a member.
"""

# n samples, k bytes of a digest

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import xxhash

from glint import schemas
from glint.files import atomic
from glint.shards import dali
from glint.shards.image import Rejected

BLOCK = 512
RECORD = 20 * BLOCK  # the length of a tar is a multiple of this
PIECE = 1 << 19  # bytes read back together, or a sample
_OFFSET, _SIZE, _DIGEST = map(schemas.SAMPLES.names.index, ("offset", "size", "digest"))
MEMBERS = ("jpg,cls", "jpg")  # of a sample; with one, its label stands in the name

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


class Tar:
    """Append members to `file`, hashing as it goes; know where their bytes lie.

    `size` and `digest` (xxh3-128) are those of all that was appended.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hasher = file, xxhash.xxh3_128()
        self.size = 0

    def add(self, *members: tuple[str, bytes]) -> list[int]:
        """Append members (name, data); return the offsets of their data in the file."""
        blocks: list[bytes] = []
        offsets, at = [], self.size
        for name, data in members:
            size = len(data)
            blocks += (header(name.encode(), size), data, padding(size))
            offsets.append(at + BLOCK)
            at += BLOCK + size + -size % BLOCK
        self._append(b"".join(blocks))
        return offsets

    def close(self) -> None:
        """Append the end of the archive; the file itself stays open."""
        self._append(end(self.size))

    def _append(self, blocks: bytes) -> None:
        self._file.write(blocks)
        self._hasher.update(blocks)
        self.size += len(blocks)

    @property
    def digest(self) -> bytes:
        """xxh3-128 of all that was appended."""
        return self._hasher.digest()


class Shard:
    """Write one shard and collect its rows of the index and of the quarantine.

    Keys are positions of the plan. With `members` "jpg" a sample is one member KEY_LABEL.jpg; with
    "jpg,cls" it is KEY.jpg and KEY.cls, and `with_json` adds KEY.json.
    """

    def __init__(
        self, file: IO[bytes], number: int, *, with_json: bool = False, members: str = MEMBERS[0]
    ) -> None:
        self.tar = Tar(file)
        self.number, self.with_json, self.members = number, with_json, members
        self._rows: list[tuple[Any, ...]] = []
        self._bad: list[dict[str, Any]] = []
        self._idx: list[str] = []

    def add(
        self,
        key: int,
        data: bytes,
        digest: bytes,
        seen: tuple[str, int, int],
        label: int,
        source_label: str,
        source: str,
    ) -> None:
        """Append a sample.

        digest: xxh3-128 of `data`, taken where it came from. seen: format, width, height.
        """
        if not 0 <= key < 10**9:
            raise ValueError(f"a key has nine digits, got {key}")
        suffix, width, height = seen
        name = f"{key:09d}"
        stem = name if self.members == MEMBERS[0] else f"{name}_{label}"
        members = [(f"{stem}.{suffix}", data)]
        if self.members == MEMBERS[0]:
            members.append((f"{name}.cls", b"%d" % label))
        if self.with_json:
            facts = {
                "height": height,
                "label": label,
                "source": source,
                "source_label": source_label,
                "width": width,
            }
            members.append((f"{name}.json", json.dumps(facts, sort_keys=True).encode()))
        offsets = self.tar.add(*members)
        self._idx.append(dali.line(members, offsets))
        offset = offsets[0]
        size = len(data)
        row = (name, label, source_label, self.number, offset, size, digest, source, width, height)
        self._rows.append(row)

    def reject(
        self, why: Rejected, data: bytes, source_label: str | None, source: str, offset: int | None
    ) -> None:
        """Note a record that is not written; `data` is what there is of it."""
        self._bad.append(
            {
                "source": source,
                "offset": offset,
                "source_label": source_label,
                "reason": why.reason,
                "note": why.note,
                "size": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "head": data[:64],
            }
        )

    def close(self) -> None:
        """Append the end of the archive; the file itself stays open."""
        self.tar.close()

    def read_back(self, path: Path) -> str:
        """Read the finished file again and return its SHA-256 in hex.

        Each image is held against the digest that was taken where it came from, all bytes against
        those that were appended. Raises ResourceError GL0007 where they differ.
        """
        whole, sha256, wrong, first = xxhash.xxh3_128(), hashlib.sha256(), "", 0
        starts = [row[_OFFSET] - BLOCK for row in self._rows] or [0]
        starts.append(self.tar.size)
        with path.open("rb") as file:
            while first < len(starts):  # some samples at a time; behind the end is nothing
                begin = starts[first]
                last = max(bisect_right(starts, begin + PIECE) - 1, first + 1)
                stop = starts[last] if last < len(starts) else begin + 1
                block = file.read(stop - begin)
                whole.update(block)
                sha256.update(block)
                view = memoryview(block)
                for row in self._rows[first:last]:
                    at = row[_OFFSET] - begin
                    if xxhash.xxh3_128_digest(view[at : at + row[_SIZE]]) != row[_DIGEST]:
                        wrong = (
                            wrong or f"the image of key {row[0]} @ 0x{row[_OFFSET]:x} is another"
                        )
                first = last
        if not wrong and whole.digest() != self.tar.digest:
            wrong = "a byte beside the images is another"
        if wrong:
            raise atomic.unlike(path, wrong)
        return sha256.hexdigest()

    def samples(self) -> pa.Table:
        """Return the rows of samples.parquet, in one chunk."""
        columns = list(zip(*self._rows)) or [()] * len(schemas.SAMPLES)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schemas.SAMPLES)]
        return pa.table(arrays, schema=schemas.SAMPLES)

    def quarantine(self) -> pa.Table:
        """Return the rows of quarantine.parquet."""
        return pa.Table.from_pylist(self._bad, schema=schemas.QUARANTINE)

    def idx(self) -> bytes:
        """Return the index for DALI."""
        return dali.text(self._idx)

    def content(self, samples: pa.Table) -> str:
        """Return a SHA-256 over all rows, whatever Parquet makes of them."""
        hasher = hashlib.sha256(repr([sorted(row.items()) for row in self._bad]).encode())
        for column in samples.select(schemas.SAMPLES.names).columns if samples.num_rows else ():
            array = column.chunk(0)  # as `samples` made it: one, from its beginning
            if array.type == pa.string():
                end_n = np.frombuffer(array.buffers()[1], np.int32)[: len(array) + 1]
                hasher.update(np.diff(end_n).tobytes())
                hasher.update((array.buffers()[2] or b"")[: int(end_n[-1])])
            elif array.type == pa.binary(16):
                hasher.update(array.buffers()[1][: 16 * len(array)])
            else:
                hasher.update(array.to_numpy(zero_copy_only=False).tobytes())
        return hasher.hexdigest()
