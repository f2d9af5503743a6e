"""Prove that MXNet reads back what glint writes. Run by hand, not by pytest:

    python tests/peers/write_for_mxnet.py write FOLDER      with glint's Python
    python tests/peers/write_for_mxnet.py check FOLDER      with a Python that has mxnet

MXNet 1.9.1 wants its own environment: Python 3.8 to 3.11, `pip install mxnet==1.9.1 'numpy<1.24'`.
`check` reads every record by its key with mxnet.recordio and in file order without the .idx,
compares header, labels and payload with what `write` noted, decodes every image, and lets MXNet
write the same records again: those files must have the same bytes as glint's.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

COUNT = 300
MAGIC = bytes.fromhex("0a23d7ce")


def write(folder: Path) -> None:
    """Write records of every shape with glint, and beside them what they should be read as."""
    import numpy as np
    import simplejpeg

    from glint.shards import recordio

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    rows = []
    with recordio.Writer(folder / "glint.rec", folder / "glint.idx") as writer:
        for key in range(1, COUNT + 1):
            kind = rng.choice(["jpeg", "jpeg", "magic", "bytes", "empty"])
            if kind == "jpeg":
                tile = np.random.default_rng(key).integers(0, 256, (7, 7, 3), np.uint8)
                image = simplejpeg.encode_jpeg(np.kron(tile, np.ones((16, 16, 1), np.uint8)))
            elif kind == "magic":
                image = b"".join(
                    rng.choice([MAGIC, b"abc", b"abcd", b"x"]) for _ in range(rng.randrange(1, 12))
                )
            else:
                image = rng.randbytes(rng.randrange(1, 5000)) if kind == "bytes" else b""
            label = rng.choice(
                [float(key), 16777216.0, [float(key), 1.0], [0.5, -2.0, 3e30], [7.0]]
            )
            id_, id2 = rng.choice([key, 2**63 + key, 0]), rng.choice([0, 1])
            writer.write(key, recordio.pack(label, id_, id2, image))
            flat = label if isinstance(label, list) else [label]
            rows.append(
                {
                    "key": key,
                    "kind": kind,
                    "flag": len(flat) * isinstance(label, list),
                    "label": [float(np.float32(v)) for v in flat],
                    "id": id_,
                    "id2": id2,
                    "sha256": hashlib.sha256(image).hexdigest(),
                }
            )
        writer.write(0, recordio.pack([COUNT + 1, COUNT + 1], 0, 1, b""))
    (folder / "expected.json").write_text(json.dumps(rows))
    print(f"glint wrote {len(rows)} records and a header to {folder}")


def check(folder: Path) -> None:
    """Read with MXNet, compare, decode, and write again."""
    import mxnet as mx
    import numpy as np

    rows = json.loads((folder / "expected.json").read_text())
    reader = mx.recordio.MXIndexedRecordIO(
        str(folder / "glint.idx"), str(folder / "glint.rec"), "r"
    )
    assert sorted(reader.keys) == list(range(COUNT + 1)), "keys"
    plain = mx.recordio.MXRecordIO(str(folder / "glint.rec"), "r")
    again = mx.recordio.MXIndexedRecordIO(str(folder / "mxnet.idx"), str(folder / "mxnet.rec"), "w")
    decoded = 0
    for row in rows:
        record = reader.read_idx(row["key"])
        assert record == plain.read(), f"key {row['key']}: in file order"
        header, image = mx.recordio.unpack(record)
        label = np.atleast_1d(header.label).astype(np.float64).tolist()
        assert (header.flag, label, header.id, header.id2) == (
            row["flag"],
            row["label"],
            row["id"],
            row["id2"],
        ), f"key {row['key']}: {header}"
        assert hashlib.sha256(image).hexdigest() == row["sha256"], f"key {row['key']}: image"
        if row["kind"] == "jpeg":
            assert mx.image.imdecode(image).shape == (112, 112, 3)
            decoded += 1
        again.write_idx(row["key"], mx.recordio.pack(header, image))
    header, image = mx.recordio.unpack(reader.read_idx(0))
    assert header.label.tolist() == [COUNT + 1, COUNT + 1] and image == b""
    again.write_idx(0, mx.recordio.pack(header, image))
    again.close()
    for kind in ("rec", "idx"):
        ours, theirs = ((folder / f"{who}.{kind}").read_bytes() for who in ("glint", "mxnet"))
        assert ours == theirs, f"mxnet writes another .{kind}"
    print(
        f"mxnet {mx.__version__} read {len(rows)} of {len(rows)} records as glint wrote them, "
        f"decoded {decoded} images, and wrote the same .rec and .idx bytes"
    )


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
