"""Record files with damage: what is read past it, what is lost, and that the two add up."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint.errors import GlintError, InputError, UsageError
from glint.pipelines.dataset import shard as stage
from glint.shards import recordio
from glint.shards.image import Rejected
from glint.shards.recordio import scan_past_damage
from glint.shards.sources import open_source, rebuild_idx

Jpeg = Callable[[int], bytes]


def write(path: Path, jpeg: Jpeg, n: int = 8) -> list[int]:
    """Write records with ids; the fifth holds the magic and has two parts. Give the offsets."""
    with recordio.Writer(path, path.with_suffix(".idx")) as writer:
        return [
            writer.write(
                k,
                recordio.pack(
                    float(k % 3),
                    k,
                    0,
                    jpeg(k)
                    + (
                        b"\0" * (-len(jpeg(k)) & 3) + recordio.MAGIC_BYTES + b"\xff\xd9"
                        if k == 4
                        else b""
                    ),
                ),
            )
            for k in range(n)
        ]


def zero(data: bytearray, at: int) -> None:
    data[at : at + 4] = bytes(4)


def longer(data: bytearray, at: int) -> None:
    struct.pack_into("<I", data, at + 4, struct.unpack_from("<I", data, at + 4)[0] + 5000)


def shorter(data: bytearray, at: int) -> None:
    struct.pack_into("<I", data, at + 4, struct.unpack_from("<I", data, at + 4)[0] - 600)


def beyond(data: bytearray, at: int) -> None:
    struct.pack_into("<I", data, at + 4, (1 << 29) - 1)


def out_of_place(data: bytearray, at: int) -> None:
    data[at + 7] |= 3 << 5


@pytest.mark.parametrize("idx", [True, False])
@pytest.mark.parametrize("harm", [zero, longer, beyond, out_of_place])
@pytest.mark.parametrize("record", [0, 3, 4, 7])
def test_one_damaged_record_costs_one(
    tmp_path: Path, jpeg: Jpeg, idx: bool, record: int, harm: Callable[[bytearray, int], None]
) -> None:
    path = tmp_path / "a.rec"
    offsets = write(path, jpeg)
    data = bytearray(path.read_bytes())
    harm(data, offsets[record])
    path.write_bytes(data)
    if not idx:
        path.with_suffix(".idx").unlink()
        with pytest.raises(InputError, match="GL0213"):
            open_source(path)
    source = open_source(path, resync=True)
    good = {source.name(i): source.read(i) for i in range(source.n - 1)}
    assert {int(name) for name in good} == set(range(8)) - {record}
    assert all(data.startswith(jpeg(int(name))) for name, data in good.items())
    lost = source.n - 1
    with pytest.raises(Rejected) as caught:
        source.read(lost)
    stop = [*offsets, len(data)][record + 1]
    assert caught.value.reason == "lost-bytes"
    assert caught.value.note.startswith(
        f"{stop - offsets[record]} bytes from 0x{offsets[record]:x}"
    )
    assert source.offset(lost) == offsets[record] and source.label[lost] == -1
    assert any("1 stretches" in note for note in source.describe()["notes"])


def test_lost_bytes_are_quarantined_with_offset_and_length(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "a.rec"
    offsets = write(path, jpeg)
    data = bytearray(path.read_bytes())
    data[offsets[2] + 40 : offsets[5] + 3] = random.Random(1).randbytes(
        offsets[5] - offsets[2] - 37
    )
    path.write_bytes(data)
    result = stage.shard(path, tmp_path / "out", resync=True)
    assert result.written == 4  # the third is as long as it says, and damaged
    assert result.quarantine_reasons == {"jpeg-truncated": 1, "lost-bytes": 1}
    row = next(
        row
        for row in pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
        if row["reason"] == "lost-bytes"
    )
    assert row["offset"] == offsets[3] and f"{offsets[6] - offsets[3]} bytes" in row["note"]
    with pytest.raises(GlintError, match="GL0006"):  # not the same plan without it
        stage.shard(path, tmp_path / "out")


def test_a_shorter_length_is_not_believed(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "a.rec"
    offsets = write(path, jpeg)
    data = bytearray(path.read_bytes())
    shorter(data, offsets[3])
    path.write_bytes(data)
    source = open_source(path, resync=True)
    # The record is taken as far as its length goes; the image's own end then tells.
    assert source.bytes() == len(data) and (source.row["flaw"] == 4).sum() == 1


def test_records_and_losses_cover_every_byte(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "a.rec"
    write(path, lambda k: jpeg(k)[: 60 + k], 12)
    path.with_suffix(".idx").unlink()
    whole, chance = path.read_bytes(), random.Random(7)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.choice((0, 1, 4, 30))] = chance.randbytes(
                chance.choice((0, 1, 4))
            )
        path.write_bytes(data)
        start, lost = scan_past_damage(path)
        assert start[0] == 0 and (np.diff(start) > 0).all() and start[-1] < len(data)
        assert not (lost[1:] & lost[:-1]).any()
        for at in start[~lost].tolist():
            recordio.parse(bytes(data), at)


def test_an_intact_file_is_read_the_same(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "a.rec"
    write(path, jpeg)
    plain = open_source(path)
    again = open_source(path, resync=True)
    assert again.fingerprint() == {**plain.fingerprint(), "resync": True}
    for name in ("key", "at", "span", "flaw", "label"):
        assert (plain.row[name] == again.row[name]).all()


def test_a_rebuilt_idx(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "a.rec"
    offsets = write(path, jpeg)
    idx = path.with_suffix(".idx")
    right = idx.read_bytes()
    idx.write_bytes(b"0\t0\n1\t12345\n")
    with pytest.raises(InputError, match="GL0216"):
        open_source(path)
    result = rebuild_idx(path)
    assert result["records"] == 8 and idx.read_bytes() == right
    assert path.with_name("a.idx.old").read_bytes() == b"0\t0\n1\t12345\n"
    assert open_source(path).n == 8
    data = bytearray(path.read_bytes())
    zero(data, offsets[3])
    path.write_bytes(data)
    with pytest.raises(InputError, match="GL0213"):
        rebuild_idx(path)
    assert idx.read_bytes() == right
    assert rebuild_idx(path, resync=True)["lost_stretches"] == 1
    assert idx.read_bytes() == b"".join(
        b"%d\t%d\n" % (k, at) for k, at in enumerate(offsets) if k != 3
    )
    with pytest.raises(UsageError, match="GL0002"):
        rebuild_idx(tmp_path)


def test_records_of_the_idx_behind_the_end_are_not_lost_in_silence(
    tmp_path: Path, jpeg: Jpeg
) -> None:
    path = tmp_path / "a.rec"
    offsets = write(path, jpeg)
    path.write_bytes(path.read_bytes()[: offsets[5] + 40])
    with pytest.raises(InputError, match=r"GL0213.* 2 of the 8 records of a\.idx lie behind it"):
        open_source(path, resync=True)
    path.with_suffix(".idx").unlink()
    assert open_source(path, resync=True).n == 6  # five whole ones, and the stretch that is lost
