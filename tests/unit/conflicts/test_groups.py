"""Groups are connected components that pass two guards, whatever the order of the pairs."""

from __future__ import annotations

import numpy as np

from glint.conflicts.groups import components, guarded


def pairs(*links: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    both = np.array(links, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def always(value: float):
    return lambda a, b: (np.full(len(a), value), np.full(len(a), 0.5))


def test_components() -> None:
    got = components(*pairs((5, 9), (1, 2), (2, 7), (9, 11)))
    assert [piece.tolist() for piece in got] == [[1, 2, 7], [5, 9, 11]]
    assert components(*pairs()) == []


def test_a_chain_is_refused_whole() -> None:
    """1~2~3 with 1 and 3 unlike: nothing of it merges; 8~9 is untouched by it."""

    def strength(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.where((a == 1) & (b == 3), 0.2, 0.9), np.full(len(a), 0.5)

    got = guarded(*pairs((1, 2), (2, 3), (8, 9)), strength, cap=10)
    assert [piece.tolist() for piece in got.merged] == [[8, 9]]
    [(piece, why)] = got.refused
    assert piece.tolist() == [1, 2, 3]
    assert why == "a chain: 1 and 3 show 0.200, expected at least 0.500"


def test_an_unknown_pair_counts_as_unlike() -> None:
    got = guarded(*pairs((1, 2), (2, 3)), always(np.nan), cap=10)
    assert got.merged == []
    assert "nan" in got.refused[0][1]


def test_size_cap() -> None:
    links = pairs(*[(i, i + 1) for i in range(5)])
    got = guarded(*links, always(1.0), cap=5)
    assert got.merged == []
    assert got.refused[0][1] == "6 identities in one group, more than 5"
    assert len(guarded(*links, always(1.0), cap=6).merged) == 1


def test_order_of_pairs_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 60, 50), rng.integers(60, 120, 50)
    value = rng.random((120, 120))

    def strength(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return value[np.minimum(a, b), np.maximum(a, b)], np.full(len(a), 0.1)

    want = guarded(a, b, strength, cap=6)
    for _ in range(5):
        order = rng.permutation(50)
        got = guarded(b[order], a[order], strength, cap=6)
        assert [m.tolist() for m in got.merged] == [m.tolist() for m in want.merged]
        assert [(m.tolist(), w) for m, w in got.refused] == [
            (m.tolist(), w) for m, w in want.refused
        ]
