"""One shard: a plain USTAR file whose bytes depend on nothing but its samples, and its rows."""

# n samples written together, b bytes of a tar block, k bytes of a digest

from __future__ import annotations

import hashlib
import json
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from glint.manifests import tables
from glint.shards import blocks, dali, disk
from glint.shards.blocks import BLOCK as BLOCK
from glint.shards.blocks import U8, Ints
from glint.shards.image import Rejected

RECORD = 20 * BLOCK  # tar pads its files to this
PENDING = 4 << 20  # bytes held before they are written
MEMBERS = ("jpg,cls", "jpg")  # of a sample; with one, its label stands in the name

_ZERO = 48  # ord("0")
_PAD = [b"\0" * (-n % BLOCK) for n in range(BLOCK)]  # by size modulo BLOCK


class Tar:
    """Append members KEY.jpg, KEY.cls (and KEY.json) to `file`; know where the bytes lie.

    mtime 0, uid and gid 0, mode 0644, no names of people: byte for byte what `tarfile` writes in
    USTAR format. `size` and `sha256` are those of the whole file once `close` was called.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.sink = disk.Sink(file)
        self._pending: list[bytes] = []
        self._held = 0
        self._templates: dict[str, tuple[bytes, int]] = {}

    def add(self, key: int, suffix: str, data: bytes) -> int:
        """Append one member and return the offset of `data` in the file."""
        made = self._templates.get(suffix)
        if made is None:
            made = self._templates[suffix] = blocks.template(suffix.encode("ascii"))
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
        if self._held:
            self.sink.room(self._held)[:] = np.frombuffer(b"".join(self._pending), np.uint8)
            self.sink.take(self._held)
        self._pending.clear()
        self._held = 0

    def close(self) -> None:
        """Write what is left and the end of the archive; the file itself stays open."""
        self._flush()
        end = 2 * BLOCK
        end += -(self.size + end) % RECORD
        self.sink.room(end)[:] = 0
        self.sink.take(end)
        self.sink.close()

    @property
    def size(self) -> int:
        """Return how many bytes were written, those that `add` holds back left out."""
        return self.sink.size

    @property
    def sha256(self) -> str:
        """SHA-256 of all that was written, in hex."""
        return self.sink.sha256


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
        self._columns: dict[str, list[Any]] = {name: [] for name in tables.SAMPLES.names}
        self._bad: list[dict[str, Any]] = []
        self._suffixes: list[npt.NDArray[np.str_]] = []
        self._json_sizes: list[Ints] = []
        self._given: U8 | None = None
        self._waiting: list[tuple[int, bytes, tuple[str, int, int], int, str, str]] = []
        self._held = 0

    @property
    def room(self) -> blocks.Room:
        """Where images should be laid: in the file's own next bytes, where that can be.

        Not kept: a cycle through it would hold a shard's memory until the next collection.
        """
        both = self.members == MEMBERS[0]
        return blocks.Room(None if self.with_json else self._give, 2 * BLOCK if both else 0)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.tar.sink.stop()

    def _give(self, size: int) -> U8:
        """Return the memory of the file's next bytes."""
        self._given = self.tar.sink.room(size)
        return self._given

    def add(
        self,
        key: int,
        data: bytes,
        seen: tuple[str, int, int],
        label: int,
        source_label: str,
        source: str,
    ) -> None:
        """Append a sample; `seen` is what `image.look` returned."""
        self._waiting.append((key, data, seen, label, source_label, source))
        self._held += len(data)
        if self._held >= PENDING:
            self._settle()

    def _settle(self) -> None:
        if self._waiting:
            key, data, seen, label, said, source = zip(*self._waiting)
            self._waiting, self._held = [], 0
            size_n = np.fromiter(map(len, data), np.int64, len(data))
            memory, start_n = self.room.lay(size_n)
            view = memory.data
            for image, at in zip(data, start_n.tolist()):
                view[at : at + len(image)] = image
            suffixes, width, height = zip(*seen)
            self.extend(
                np.array(key, np.int64),
                memory,
                start_n,
                start_n + size_n,
                np.array(suffixes),
                np.array(width, np.int32),
                np.array(height, np.int32),
                np.array(label, np.int64),
                pa.array(said, pa.string()),
                pa.array(source, pa.string()),
            )

    def extend(
        self,
        key_n: Ints,
        data: U8,
        begin_n: Ints,
        end_n: Ints,
        suffixes: npt.NDArray[np.str_],
        width_n: npt.NDArray[np.int32],
        height_n: npt.NDArray[np.int32],
        label_n: Ints,
        source_label: pa.Array,
        source: pa.Array,
    ) -> None:
        """Append samples, a few megabytes of them: images [begin, end) of `data`.

        Where `data` is the memory that `room` gave last, images stay where they are.
        """
        n = len(key_n)
        if not n:
            return
        if key_n.min() < 0 or key_n.max() >= 10**9:
            raise ValueError(f"a key has nine digits, got {key_n.min()} to {key_n.max()}")
        size_n = end_n - begin_n
        key_nd = blocks.decimal(key_n, 9)
        text_nd, length_n = blocks.plain(label_n)
        json_n = (
            self._json(width_n, height_n, label_n, source_label, source) if self.with_json else []
        )
        image_n = 1 + (size_n + BLOCK - 1) // BLOCK
        step_n = image_n + (2 if self.members == MEMBERS[0] else 0)
        if json_n:
            json_size_n = np.fromiter(map(len, json_n), np.int64, len(json_n))
            self._json_sizes.append(json_size_n)
            step_n = step_n + 1 + (json_size_n + BLOCK - 1) // BLOCK
        start_n = np.cumsum(step_n) - step_n
        total = int(start_n[-1] + step_n[-1])
        placed = data is self._given
        self._given = None
        memory = data if placed else self.tar.sink.room(total * BLOCK)
        block_b = memory[: total * BLOCK].reshape(-1, BLOCK)
        view, images, hashed = memory.data, data.data, xxhash.xxh3_128_digest
        at_n = (start_n + 1) * BLOCK
        stop_n = at_n + size_n
        move_n = np.flatnonzero(at_n != begin_n) if placed else np.arange(n)
        for at, stop, begin, end in zip(
            *(v[move_n].tolist() for v in (at_n, stop_n, begin_n, end_n))
        ):
            view[at:stop] = images[begin:end]
        digests = [hashed(view[at:stop]) for at, stop in zip(at_n.tolist(), stop_n.tolist())]
        blocks.pad(block_b, start_n + image_n - 1, size_n)
        tag_nt = None
        if self.members != MEMBERS[0]:
            tag_nt = np.concatenate([np.full((n, 1), ord("_"), np.uint8), text_nd], axis=1)
        self._suffixes.append(suffixes)
        alike = bool((suffixes == suffixes[0]).all())
        for suffix in [str(suffixes[0])] if alike else np.unique(suffixes).tolist():
            pick = slice(None) if alike else np.flatnonzero(suffixes == suffix)
            blocks.put(
                block_b,
                start_n[pick],
                blocks.headers(
                    key_nd[pick], suffix, size_n[pick], None if tag_nt is None else tag_nt[pick]
                ),
            )
        at_n = start_n + image_n  # blocks from here on
        if self.members == MEMBERS[0]:
            body_nb = np.zeros((n, BLOCK), np.uint8)
            body_nb[:, : text_nd.shape[1]] = text_nd
            blocks.put(block_b, at_n, blocks.headers(key_nd, "cls", length_n))
            blocks.put(block_b, at_n + 1, body_nb)
            at_n = at_n + 2
        if json_n:
            block_b[start_n + step_n - 1] = 0
            blocks.put(block_b, at_n, blocks.headers(key_nd, "json", json_size_n))
            for at, one in zip(((at_n + 1) * BLOCK).tolist(), json_n):
                view[at : at + len(one)] = one
        offset_n = self.tar.size + (start_n + 1) * BLOCK
        self.tar.sink.take(total * BLOCK)
        values = (
            key_nd,
            label_n,
            source_label,
            n,
            offset_n,
            size_n.astype(np.int32),
            b"".join(digests),
            source,
            width_n,
            height_n,
        )
        for column, value in zip(self._columns.values(), values):
            column.append(value)

    def _json(
        self,
        width_n: npt.NDArray[np.int32],
        height_n: npt.NDArray[np.int32],
        label_n: Ints,
        source_label: pa.Array,
        source: pa.Array,
    ) -> list[bytes]:
        return [
            json.dumps(
                {
                    "height": height,
                    "label": label,
                    "source": where,
                    "source_label": said,
                    "width": width,
                },
                sort_keys=True,
            ).encode()
            for width, height, label, said, where in zip(
                width_n.tolist(),
                height_n.tolist(),
                label_n.tolist(),
                source_label.to_pylist(),
                source.to_pylist(),
            )
        ]

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
        """Write what is left and the end of the archive; the file itself stays open."""
        self._settle()
        self.tar.close()

    def samples(self) -> pa.Table:
        """Return the rows of samples.parquet, in one chunk."""
        self._settle()
        n = sum(self._columns["shard"])
        columns: list[pa.Array] = []
        for field in tables.SAMPLES:
            parts = self._columns[field.name]
            if field.name == "key":
                columns.append(_strings(np.concatenate(parts) if n else _none(9)))
            elif field.name == "shard":
                columns.append(pa.array(np.full(n, self.number, np.int32)))
            elif field.name == "digest":
                columns.append(
                    pa.Array.from_buffers(field.type, n, [None, pa.py_buffer(b"".join(parts))])
                )
            elif field.type == pa.string():
                columns.append(pa.concat_arrays([pa.array([], pa.string()), *parts]))
            else:
                columns.append(pa.array(np.concatenate(parts) if n else (), field.type))
        return pa.table(columns, schema=tables.SAMPLES)

    def idx(self, rows: pa.Table) -> bytes:
        """Return the index for DALI; `rows` is what `samples` returned."""
        suffix_n = np.concatenate([np.empty(0, "U1"), *self._suffixes])
        json_n = np.concatenate(self._json_sizes) if self._json_sizes else None
        return dali.text(rows, suffix_n, self.members == MEMBERS[0], json_n)

    def quarantine(self) -> pa.Table:
        """Return the rows of quarantine.parquet."""
        return pa.Table.from_pylist(self._bad, schema=tables.QUARANTINE)

    def content(self) -> str:
        """Return a SHA-256 over all rows, whatever Parquet makes of them."""
        hasher = hashlib.sha256(repr([sorted(row.items()) for row in self._bad]).encode())
        for column in self.samples().columns:
            for part in _plain_parts(column.combine_chunks()):
                hasher.update(part)
        return hasher.hexdigest()


def _none(digits: int) -> U8:
    return np.empty((0, digits), np.uint8)


def _strings(text_nd: U8) -> pa.Array:
    """Return texts of one length as an Arrow column."""
    n, digits = text_nd.shape
    end_n = np.arange(n + 1, dtype=np.int32) * digits
    return pa.StringArray.from_buffers(n, pa.py_buffer(end_n), pa.py_buffer(text_nd.tobytes()))


def _plain_parts(column: pa.Array | pa.ChunkedArray) -> list[bytes]:
    """Return what a column without empty cells holds: lengths and text, or its values."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    n, at = len(column), column.offset
    buffers = column.buffers()
    if column.type == pa.string():
        if not n:
            return []
        end_n = np.frombuffer(buffers[1], np.int32)[at : at + n + 1]
        text = np.frombuffer(buffers[2] or b"", np.uint8)[end_n[0] : end_n[-1]]
        return [np.diff(end_n).tobytes(), text.tobytes()]
    width = (
        column.type.byte_width
        if hasattr(column.type, "byte_width")
        else (column.type.bit_width // 8)
    )
    return [bytes(buffers[1])[width * at : width * (at + n)]]
