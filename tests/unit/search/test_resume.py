"""A search goes on from the block rows that are kept, and from no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glint.errors import BusyError
from glint.files import atomic
from glint.search import pairs
from glint.search.resume import BlockPairs, FinishedRows

BLOCK = 16


class Stop(Exception):
    pass


@pytest.fixture
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((100, 8)) + rng.standard_normal(8)).astype(np.float32)


def search(x: np.ndarray, work: Path | None, threshold: float = 0.5, **more: object) -> pairs.Pairs:
    return pairs.pairs_above(x, threshold, **{"engine": "torch", "block": BLOCK, **more}, work=work)


def same(one: pairs.Pairs, two: pairs.Pairs) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(two, name)) for name in ("a", "b", "cosine")
    )


def rows_searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    work = pairs.search_row

    def spy(screen: object, first: int, *rest: object) -> BlockPairs:
        seen.append(first // BLOCK)
        return work(screen, first, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs, "search_row", spy)
    return seen


def test_a_stopped_search_goes_on(
    x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(x, None)
    assert len(whole.a) > 100
    seen = rows_searched(monkeypatch)
    shown: list[tuple[int, int, str]] = []

    def stop(done: int, total: int, note: str = "") -> None:
        shown.append((done, total, note))
        if len(shown) == 3:
            raise Stop

    with pytest.raises(Stop):
        pairs.pairs_above(x, 0.5, engine="torch", block=BLOCK, work=tmp_path, progress=stop)
    assert [(done, total) for done, total, _ in shown] == [(7, 28), (13, 28), (18, 28)]
    assert shown[2][2].endswith("pairs, 0 min left")
    again = search(x, tmp_path)
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    assert same(again, whole)
    assert same(search(x, tmp_path), whole) and len(seen) == 7


def test_damaged_rows_are_searched_again(
    x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(x, tmp_path)
    seen = rows_searched(monkeypatch)
    path = sorted(tmp_path.glob("*.pairs"))[2]
    good = path.read_bytes()
    head = good.index(b"\n") + 1
    other = sorted(tmp_path.glob("*.pairs"))[3].read_bytes()
    for bad in (b"", good[:-1], good[: head + 24], good[:10], good + b"\0" * 24, other,
                good[:-1] + bytes([good[-1] ^ 1]), good.replace(b'"row": 2', b'"row": 3'),
                good[:head].replace(b" ", b"") + good[head:]):  # fmt: skip
        path.write_bytes(bad)
        assert same(search(x, tmp_path), whole)
        assert path.read_bytes() == good
        assert seen.pop() == 2 and not seen


def test_rows_of_another_search_are_not_taken(
    x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(x, tmp_path)
    atomic.temporary_name(tmp_path / "0-000000.pairs").write_bytes(b"half of a row")
    moved = x.copy()
    moved[99, 7] += 1
    for rows, options in (
        (x, {"threshold": 0.6}),
        (x, {"block": 17}),
        (x.astype(np.float64), {}),
        (moved, {}),
    ):
        want = search(rows, None, **options)
        seen = rows_searched(monkeypatch)
        assert same(search(rows, tmp_path, **options), want)
        assert len(seen) == len(list(tmp_path.glob("*.pairs"))) >= 6
        assert len(list(tmp_path.iterdir())) == len(seen) + 1  # their order; nothing else is left


def test_another_engine_goes_on(
    x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block row is the same for all engines: its rows are in one order."""
    want = search(x, tmp_path)
    sorted(tmp_path.glob("*.pairs"))[3].unlink()
    seen = rows_searched(monkeypatch)
    assert same(search(x, tmp_path, engine="auto"), want) and seen == [3]


def test_another_order_is_another_search(
    x: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = search(x, tmp_path)
    (path,) = tmp_path.glob("*-order.npy")
    order = np.load(path)
    seen = rows_searched(monkeypatch)
    for bad, again in ((order[::-1], 7), (order[1:], 7), (order * 0, 0)):
        np.save(path, bad)  # the last two would miss pairs: the right one comes back
        assert same(search(x, tmp_path), want) and len(seen) == again
        seen.clear()


def test_an_empty_row_is_kept(tmp_path: Path) -> None:
    nothing = BlockPairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    kept = FinishedRows(tmp_path, "name", lambda found: np.arange(3))
    kept.save(5, nothing)
    found = kept.load(5)
    assert found is not None and len(found.a) == len(found.b) == len(found.cosine) == 0
    assert kept.load(4) is None


def test_a_linked_folder_of_rows_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    names = {"thesis.txt", "old-000001.pairs", "a.pairs"}
    for name in names:
        (other / name).touch()
    (tmp_path / "search").symlink_to(other)
    with pytest.raises(BusyError, match=r"GL0004.*a symbolic link"):
        FinishedRows(tmp_path / "search", "new", lambda found: np.arange(3))
    assert {path.name for path in other.iterdir()} == names
    FinishedRows(
        other, "new", lambda found: np.arange(3)
    )  # no link: what is not of its making stays all the same
    assert {path.name for path in other.iterdir()} == {
        *names - {"old-000001.pairs"}, "new-order.npy"
    }  # fmt: skip
