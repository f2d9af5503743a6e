"""Open a conflict report for review: its pairs, its faces, its decisions.jsonl, one server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glint import schemas
from glint.conflicts import audit, decisions
from glint.errors import GlintError
from glint.files import atomic, parquet
from glint.pipelines.conflicts import apply, exhibits
from glint.results import identities as results
from glint.review import report, server
from glint.review.report import Card, Page, Side
from glint.shards import labels
from glint.shards.dataset import Dataset

Ints = npt.NDArray[np.int64]
FACES = 6  # of an identity, evenly over its samples


class Pairs:
    """The pairs of a report: all, how many would merge, and those drawn of them for an audit."""

    def __init__(self, folder: Path, drawn: int = 0) -> None:
        columns = ["a", "b", "verdict"]
        table = parquet.read(
            folder / "pairs.parquet", schemas.PAIRS, columns=columns, code="GL0501"
        )
        self.report = decisions.report_id(folder)
        self.all = list(zip(table.column("a").to_pylist(), table.column("b").to_pylist()))
        merge = table.filter(table.column("verdict").to_numpy(zero_copy_only=False) == "merge")
        a, b = (merge.column(name).to_numpy() for name in ("a", "b"))
        self.merges = len(a)
        place = audit.draw(a, b, drawn, self.report)
        self.drawn = list(zip(a[place].tolist(), b[place].tolist()))


@contextmanager
def opened(folder: Path, *, port: int = 0, drawn: int = 0) -> Iterator[server.Review]:
    """Yield the server of a report, listening on 127.0.0.1; the folder is locked meanwhile.

    drawn: serve an audit of so many random merges instead, without what the judge said. Raises
    InputError GL0501 for what is no report, MismatchError for another dataset, BusyError GL0005
    where the report is under review or being written.
    """
    dataset = apply.read(folder, None).dataset
    rows = _rows(dataset)
    pairs = Pairs(folder, drawn)
    atomic.own_dir(folder / "_glint")
    with atomic.lock(folder / "_glint" / "lock"):
        if drawn:
            shown = server.allowed(report.html(_blind(dataset, rows, pairs)))
        else:
            shown = server.opened(folder / "report.html")
        book = decisions.Book(folder / decisions.NAME, pairs.report)
        try:
            with server.Review(
                shown,
                book,
                frozenset(pairs.drawn if drawn else pairs.all),
                lambda label: _faces(dataset, rows, label),
                image=lambda row: _image(dataset, row),
                images=dataset.n,
                classes=dataset.classes,
                port=port,
            ) as made:
                yield made
        finally:
            book.close()


def audited(folder: Path, drawn: int, more: Sequence[Path] = ()) -> results.Review:
    """Return what reviewers decided, and of `drawn` random merges how many are wrong at most.

    more: decisions.jsonl files beside the folder's own. Raises as `opened` does.
    """
    apply.read(folder, None)
    pairs = Pairs(folder, drawn)
    said = [
        one
        for path in (folder / decisions.NAME, *more)
        for one in decisions.read(path, pairs.report)
    ]
    found = audit.judge(pairs.drawn, decisions.standing(said), pairs.merges) if drawn else None
    return results.Review(
        decisions=len(said),
        new=0,
        reviewers=sorted({one.by for one in said}),
        file=str(folder / decisions.NAME),
        out=str(folder),
        audit=found,
    )


def _blind(dataset: Dataset, rows: Sequence[Ints], pairs: Pairs) -> Page:
    """Return a page of the drawn pairs: faces and names, no number and no verdict."""
    name, source = exhibits.names(dataset)
    none = float("nan")

    def side(label: int) -> Side:
        return Side(label, name[label], source[label], len(rows[label]))

    return Page(
        title="Audit: are these the same person?",
        facts=[],
        counts=[],
        charts=[],
        cards=[
            Card(side(a), side(b), none, none, none, none, none, none, "merge")
            for a, b in pairs.drawn
        ],
        review=report.Review(
            pairs.report,
            dataset.classes,
            pairs.merges,
            range(len(pairs.drawn)),
            f"Each pair was drawn at random from the {pairs.merges} that would merge.",
            True,
        ),
    )


def _rows(dataset: Dataset) -> Sequence[Ints]:
    """Return the rows of each identity of the labels in force, by its first label."""
    person_N = labels.current(dataset.root, dataset.classes).sample_person(dataset.label)
    order = np.argsort(person_N, kind="stable")
    return np.split(order, np.searchsorted(person_N[order], np.arange(dataset.classes)))[1:]


def _faces(dataset: Dataset, rows: Sequence[Ints], label: int) -> Sequence[bytes]:
    """Read a few images of an identity; none where it is not known, b"" for a damaged one."""
    if not 0 <= label < dataset.classes:
        return []
    mine = rows[label]
    count = min(FACES, len(mine))
    return [_image(dataset, int(mine[i * len(mine) // count])) for i in range(count)]


def _image(dataset: Dataset, row: int) -> bytes:
    """Read one image; b"" where it is damaged or there is none."""
    try:
        return dataset.read(row) if 0 <= row < dataset.n else b""
    except GlintError:
        return b""
