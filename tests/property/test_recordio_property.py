"""RecordIO for any bytes: what is written is read; what is damaged gives a GlintError."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.errors import GlintError, InputError
from glint.shards import recordio
from glint.shards.image import Rejected
from glint.shards.sources import open_source

PIECE = st.one_of(st.just(recordio.MAGIC_BYTES), st.binary(max_size=9), st.just(b"\x0a\x23"))
IMAGE = st.lists(PIECE, max_size=8).map(b"".join)
NUMBER = st.floats(width=32, allow_nan=False)
LABEL = st.one_of(NUMBER, st.lists(NUMBER, min_size=1, max_size=4))
WORD = st.integers(0, 2**64 - 1)


def reference(payload: bytes) -> bytes:
    """Write one record as dmlc-core does: word by word."""
    out, start = b"", 0
    for at in range(0, len(payload) // 4 * 4, 4):
        if payload[at : at + 4] == recordio.MAGIC_BYTES:
            out += struct.pack("<II", recordio.MAGIC, (1 if start == 0 else 2) << 29 | at - start)
            out += payload[start:at]
            start = at + 4
    rest = payload[start:]
    out += struct.pack("<II", recordio.MAGIC, (3 if start else 0) << 29 | len(rest)) + rest
    return out + b"\0" * (-len(out) % 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LABEL, WORD, WORD, IMAGE), max_size=6))
def test_records_round_trip(records: list[tuple[float | list[float], int, int, bytes]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.rec"
        payloads = [recordio.pack(*record) for record in records]
        with recordio.Writer(path, path.with_suffix(".idx")) as writer:
            offsets = [writer.write(k, payload) for k, payload in enumerate(payloads)]
        assert path.read_bytes() == b"".join(map(reference, payloads))
        assert recordio.scan_offsets(path).tolist() == offsets
        assert recordio.read_idx(path.with_suffix(".idx"))[1].tolist() == offsets
        whole = path.read_bytes()
        for offset, payload, (label, id_, id2, image) in zip(offsets, payloads, records):
            assert recordio.parse(whole, offset)[0] == payload
            header, data = recordio.unpack(payload)
            assert (header.id, header.id2, data) == (id_, id2, image)
            labels = label if isinstance(label, list) else [label]
            assert header.first == labels[0]
            assert header.flag == (len(labels) if isinstance(label, list) else 0)
        try:
            source = open_source(path)
        except InputError as error:  # a header alone, or nothing at all
            assert len(records) < 2 and error.code == "GL0201"
            return
        structure = source.describe().get("identity_records", -1) + 1
        assert source.n + structure == len(records)


def mutate(data: bytes, rng: random.Random) -> bytes:
    block = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(block))
        how = rng.randrange(5)
        if how == 0:
            block[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del block[at : at + rng.randint(1, 40)]
        elif how == 2:
            block[at:at] = rng.randbytes(rng.randint(1, 40))
        elif how == 3:
            at = at // 4 * 4
            block[at : at + 4] = rng.choice([recordio.MAGIC_BYTES, b"\xff" * 4, b"\0" * 4])
        else:
            block = block[: at + 1]
        if not block:
            return b""
    return bytes(block)


@pytest.mark.parametrize(
    "seed, count",
    [(1, 1000), pytest.param(2, 20_000, marks=[pytest.mark.faults, pytest.mark.timeout(600)])],
)
def test_mutated_files_give_only_glint_errors(tmp_path: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    with recordio.Writer(rec, idx) as writer:
        for key in range(1, 9):
            image = b"\xff\xd8\xff" + bytes([key]) * rng.randint(0, 30)
            image += recordio.MAGIC_BYTES * (key % 3)
            writer.write(key, recordio.pack(float(key // 3), key, 0, image))
        for key in (9, 10):
            writer.write(key, recordio.pack([1, 4], key, 0, b""))
        writer.write(0, recordio.pack([9, 11], 0, 1, b""))
    good = {rec: rec.read_bytes(), idx: idx.read_bytes()}
    outcome = {"error": 0, "read": 0}
    for _ in range(count):
        for path, data in good.items():
            path.write_bytes(mutate(data, rng) if rng.random() < 0.6 else data)
        if rng.random() < 0.3:
            idx.unlink()
        try:
            source = open_source(rec)
            for i in range(source.n):
                try:
                    source.read(i)
                except Rejected as why:
                    assert why.reason
            outcome["read"] += 1
        except GlintError as error:
            assert error.where and error.what
            outcome["error"] += 1
    assert min(outcome.values()) > 100
