"""Decode every image of a dataset: which give no picture, and of which a part is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from glint.errors import InputError
from glint.log import Progress
from glint.shards import pixels
from glint.shards.dataset import Dataset
from glint.shards.walk import Findings, Problem

CHUNK = 1024  # images handed out together


def check(dataset: Dataset, found: Findings, workers: int, progress: Progress) -> list[str]:
    """Note images without a picture in `found` (GL0303); return a note on those not whole.

    `progress` is in images. An image whose bytes are not those that were written is one, too.
    """
    part, lost = list[str](), 0
    with ThreadPoolExecutor(workers) as pool:
        for row, (why, warning) in enumerate(_looked(dataset, pool), 1):
            key = dataset.key[row - 1]
            if why:
                file = f"data/{dataset.shards[dataset.shard[row - 1]]}"
                at = int(dataset.offset[row - 1])
                what = (
                    f"it gives no picture: {why}; glint drop --key KEY --reason WHY leaves it out"
                )
                found.add(Problem("GL0303", what, file, key, at))
            lost += bool(warning)
            part += [f"{key} ({warning})"] if warning and len(part) < 5 else []
            if row % CHUNK == 0 or row == dataset.n:
                progress(row, dataset.n, "decode")
    some = ", ".join(part) + (", ..." if lost > len(part) else "")
    return [f"a part of {lost} images is lost, and grey: {some}"] if lost else []


def _looked(dataset: Dataset, pool: ThreadPoolExecutor) -> Iterator[tuple[str, str]]:
    def look(row: int) -> tuple[str, str]:
        try:
            return "", pixels.look(dataset.read(row))[1]
        except ValueError as error:
            return str(error), ""
        except InputError as error:
            return error.what, ""

    for at in range(0, dataset.n, CHUNK):
        yield from pool.map(look, range(at, min(at + CHUNK, dataset.n)))
