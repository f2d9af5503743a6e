"""Does NVIDIA DALI find every sample by glint's `.idx`?

    python tests/peers/read_with_dali.py DATASET

Imports nothing of glint: runs in an environment of its own that has `nvidia-dali` (no GPU is
needed), `pyarrow` and `xxhash`. Holds every label and image against samples.parquet, in order.
For datasets of KEY.jpg and KEY.cls.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import xxhash
from nvidia.dali import fn, pipeline_def


@pipeline_def(batch_size=16, num_threads=1, device_id=None)
def samples(tars: list[str], idx: list[str]):  # type: ignore[no-untyped-def]
    """Read the stored bytes of images and labels."""
    image, label = fn.readers.webdataset(
        paths=tars, index_paths=idx, ext=["jpg", "cls"], name="reader", random_shuffle=False
    )
    return image, label


def main() -> int:
    root = Path(sys.argv[1])
    tars = sorted((root / "data").glob("*.tar"))
    idx = [str(path.with_suffix(".idx")) for path in tars]
    pipe = samples([str(path) for path in tars], idx)
    pipe.build()
    rows = pq.read_table(root / "samples.parquet").to_pylist()
    size, wrong, row = pipe.epoch_size("reader"), 0, 0
    while row < len(rows):
        image, label = pipe.run()
        for i in range(min(len(image), len(rows) - row)):
            digest = xxhash.xxh3_128_digest(bytes(image.at(i)))
            found = (digest, int(bytes(label.at(i))))
            wrong += found != (rows[row]["digest"], rows[row]["label"])
            row += 1
    failed = bool(wrong) or size != len(rows)
    print(f"{'FAIL' if failed else 'pass'} dali: {size} samples of {len(rows)}, {wrong} differ")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
