"""`glint shard --resync` and `--rebuild-idx`: the same mistakes with and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from glint.shards import recordio

Glint = Callable[..., Any]


def test_damage_is_passed_and_an_idx_is_rebuilt(
    glint: Glint, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    rec, out = tmp_path / "a.rec", tmp_path / "out"
    with recordio.Writer(rec) as writer:
        at = [writer.write(k, recordio.pack(0.0, k, 0, jpeg(k))) for k in range(5)]
    data = bytearray(rec.read_bytes())
    data[at[2]] ^= 255
    rec.write_bytes(data)
    failed = glint("shard", rec, out, code=3)
    assert "GL0213" in failed and "--resync" in failed
    assert "GL0213" in glint("shard", rec, out, "--rebuild-idx", code=3)
    assert not out.exists() and not rec.with_suffix(".idx").exists()
    result = glint("shard", rec, out, "--resync", "--rebuild-idx", "--json", "--workers", "1")
    assert result["written"] == 4
    assert result["quarantine_reasons"] == {"lost-bytes": 1}
    assert rec.with_suffix(".idx").read_bytes() == b"".join(
        b"%d\t%d\n" % (k, at[k]) for k in (0, 1, 3, 4)
    )
