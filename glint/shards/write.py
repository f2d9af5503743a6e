"""One shard: a plain USTAR file whose bytes depend on nothing but its samples, and its rows."""

from __future__ import annotations

import hashlib
import json
from typing import IO, Any

import pyarrow as pa
import xxhash

from glint.manifests import tables
from glint.shards.image import Rejected

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads its files to this
PENDING = 4 << 20  # bytes held before they are written


def _member(suffix: bytes) -> tuple[bytes, int]:
    """Return the header of KEY.suffix as a %-template of (key, size, checksum), and its sum."""
    name = b"%09d." + suffix
    shape = (name + b"\0" * (100 - 9 - 1 - len(suffix))  # name
             + b"0000644\0" + b"0000000\0" + b"0000000\0"  # mode, uid, gid
             + b"%011o\0" + b"00000000000\0"  # size, mtime
             + b"%06o\0 " + b"0" + b"\0" * 100  # checksum, type, link
             + b"ustar\00000" + b"\0" * 64  # magic, version, user and group name
             + b"\0" * 183)  # device, prefix, padding
    # The checksum is taken with eight blanks in its own place.
    return shape, sum(shape % (0, 0, 0)) - sum(b"000000\0 ") + sum(b" " * 8)


_ZERO = 48  # ord("0")
_PAD = [b"\0" * (-n % BLOCK) for n in range(BLOCK)]  # by size modulo BLOCK


class Tar:
    """Append members KEY.jpg, KEY.cls (and KEY.json) to `file`; know where the bytes lie.

    mtime 0, uid and gid 0, mode 0644, no names of people: byte for byte what `tarfile` writes in
    USTAR format. `size` and `sha256` are those of the whole file once `close` was called.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._pending: list[bytes] = []
        self._held = 0
        self._templates: dict[str, tuple[bytes, int]] = {}
        self.size = 0

    def add(self, key: int, suffix: str, data: bytes) -> int:
        """Append one member and return the offset of `data` in the file."""
        made = self._templates.get(suffix)
        if made is None:
            made = self._templates[suffix] = _member(suffix.encode("ascii"))
        template, base = made
        size = len(data)
        if not 0 <= key < 10**9:
            raise ValueError(f"a key has nine digits, got {key}")
        digits = sum(b"%09d%011o" % (key, size)) - 20 * _ZERO
        pad = _PAD[size % BLOCK]
        self._pending += (template % (key, size, base + digits), data, pad)
        offset = self.size + self._held + BLOCK
        self._held += BLOCK + size + len(pad)
        if self._held >= PENDING:
            self._flush()
        return offset

    def _flush(self) -> None:
        block = b"".join(self._pending)
        self._pending.clear()
        self._file.write(block)
        self._sha256.update(block)
        self.size += len(block)
        self._held = 0

    def close(self) -> None:
        """Write what is left and the end of the archive; the file itself stays open."""
        self._flush()
        end = 2 * BLOCK
        self._pending.append(b"\0" * (end + -(self.size + end) % RECORD))
        self._flush()

    @property
    def sha256(self) -> str:
        """SHA-256 of all that was written, in hex."""
        return self._sha256.hexdigest()


class Shard:
    """Write one shard and collect its rows of the index and of the quarantine.

    `add` and `reject` take positions of the plan, which are the keys.
    """

    def __init__(self, file: IO[bytes], number: int, *, with_json: bool = False) -> None:
        self.tar = Tar(file)
        self.number, self.with_json = number, with_json
        self._rows: list[tuple[Any, ...]] = []
        self._bad: list[dict[str, Any]] = []

    def add(self, key: int, data: bytes, seen: tuple[str, int, int], label: int,
            source_label: str, source: str) -> None:
        """Append a sample; `seen` is what `image.look` returned."""
        suffix, width, height = seen
        offset = self.tar.add(key, suffix, data)
        self.tar.add(key, "cls", b"%d" % label)
        if self.with_json:
            value = {"height": height, "label": label, "source": source,
                     "source_label": source_label, "width": width}
            self.tar.add(key, "json", json.dumps(value, sort_keys=True).encode())
        self._rows.append((key, label, source_label, offset, len(data),
                           xxhash.xxh3_128_digest(data), source, width, height))

    def reject(self, why: Rejected, data: bytes, source_label: str | None, source: str,
               offset: int | None) -> None:
        """Note a record that is not written; `data` is what there is of it."""
        self._bad.append({
            "source": source, "offset": offset, "source_label": source_label,
            "reason": why.reason, "note": why.note, "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(), "head": data[:64]})

    def samples(self) -> pa.Table:
        """Return the rows of samples.parquet."""
        columns = list(zip(*self._rows)) or [()] * 9
        key = [f"{k:09d}" for k in columns[0]]
        shard = [self.number] * len(key)
        values = [key, columns[1], columns[2], shard, *columns[3:]]
        return pa.table([pa.array(value, field.type) for value, field
                         in zip(values, tables.SAMPLES)], schema=tables.SAMPLES)

    def quarantine(self) -> pa.Table:
        """Return the rows of quarantine.parquet."""
        return pa.Table.from_pylist(self._bad, schema=tables.QUARANTINE)

    def content(self) -> str:
        """Return a SHA-256 over all rows, whatever Parquet makes of them."""
        bad = [sorted(row.items()) for row in self._bad]
        return hashlib.sha256(repr((self._rows, bad)).encode()).hexdigest()
