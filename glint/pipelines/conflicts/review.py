"""Open a conflict report for review: its pairs, its faces, its decisions.jsonl, one server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint import schemas
from glint.conflicts import decisions
from glint.errors import GlintError
from glint.files import atomic, parquet
from glint.pipelines.conflicts import apply
from glint.review.server import Review
from glint.shards import labels
from glint.shards.dataset import Dataset

Ints = npt.NDArray[np.int64]
FACES = 6  # of an identity, evenly over its samples


@contextmanager
def opened(folder: Path, *, port: int = 0) -> Iterator[Review]:
    """Yield the server of a report, listening on 127.0.0.1; the folder is locked meanwhile.

    Raises InputError GL0501 for what is no report, MismatchError for another dataset, BusyError
    GL0005 where the report is under review or being written.
    """
    dataset = apply.read(folder, None).dataset
    table = labels.current(dataset.root, dataset.classes)
    person_N = table.sample_person(dataset.label)
    order = np.argsort(person_N, kind="stable")
    rows = np.split(order, np.searchsorted(person_N[order], np.arange(dataset.classes)))[1:]
    table = parquet.read(folder / "pairs.parquet", schemas.PAIRS, columns=["a", "b"], code="GL0501")
    pairs = frozenset(zip(table.column("a").to_pylist(), table.column("b").to_pylist()))
    atomic.own_dir(folder / "_glint")
    with atomic.lock(folder / "_glint" / "lock"):
        book = decisions.Book(folder / decisions.NAME, decisions.report_id(folder))
        try:
            with Review(
                folder / "report.html",
                book,
                pairs,
                lambda label: _faces(dataset, rows, label),
                images=dataset.n,
                classes=dataset.classes,
                port=port,
            ) as server:
                yield server
        finally:
            book.close()


def _faces(dataset: Dataset, mine: Sequence[Ints], label: int) -> Sequence[bytes]:
    """Read a few images of an identity; none where it is not known, b"" for a damaged one.

    mine: the rows of each identity, by its first label.
    """
    if not 0 <= label < dataset.classes:
        return []
    rows = mine[label]
    count = min(FACES, len(rows))
    images = []
    for row in rows[[i * len(rows) // count for i in range(count)]] if count else ():
        try:
            images.append(dataset.read(int(row)))
        except GlintError:
            images.append(b"")
    return images
