"""Ten thousand single flipped bits, drawn over all bytes of a dataset: verify finds each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError
from glint.pipelines.dataset import shard
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.verify import verify

FLIPS = int(os.environ.get("GLINT_FLIPS", "10000"))


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "options",
    [{"with_json": True}, {}, {"members": "jpg"}],
    ids=["KEY.json", "two members", "one member"],
)
def test_every_flip_is_found(
    tmp_path: Path, jpeg: Callable[[int], bytes], options: dict[str, Any]
) -> None:
    """Half of the flips fall anywhere by size, half are dealt to the files alike.

    Of those inside an image, the reader that training uses must find all as well.
    """
    for i in range(30):
        path = tmp_path / "src" / f"id{i // 5}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i) if i != 3 else b"no image")
    data = tmp_path / "set"
    shard.shard(tmp_path / "src", data, shard.Options(8, **options))
    labels.apply(data, np.array([0, 0, 1, 2, 3, 4]), np.array([[0, 1]]), {})
    assert verify(data, deep=True).ok
    files = [
        p for p in sorted(data.rglob("*")) if p.is_file() and p.name not in ("lock", "plan.json")
    ]
    size = np.array([p.stat().st_size for p in files])
    rng = np.random.default_rng(20)
    images = missed = 0
    whole = Dataset(data)
    place = {whole.shards[s]: np.flatnonzero(whole.shard == s) for s in range(len(whole.shards))}
    for turn in range(FLIPS):
        number = int(rng.choice(len(files), p=size / size.sum() if turn % 2 else None))
        bit = int(rng.integers(8 * size[number]))
        path = files[number]
        with path.open("r+b") as file:
            file.seek(bit // 8)
            byte = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))
        missed += verify(data, deep=True).ok
        for row in place.get(path.name, ()):
            if 0 <= bit // 8 - whole.offset[row] < whole.size[row]:
                images += 1
                with pytest.raises(InputError, match="GL0303"):
                    Dataset(data).read(int(row))
        with path.open("r+b") as file:
            file.seek(bit // 8)
            file.write(bytes([byte]))
    assert missed == 0 and images > FLIPS // 20
    assert verify(data, deep=True).ok
