from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glint.dist.span import span


@given(st.integers(0, 3000), st.integers(1, 70))
def test_is_torch_chunk_and_covers_every_class_once(classes, world):
    spans = [span(classes, world, rank) for rank in range(world)]
    chunks = torch.arange(classes).chunk(world) if classes else ()
    assert [s.size for s in spans if s.size] == [len(chunk) for chunk in chunks]
    assert [c for s in spans for c in range(s.start, s.stop)] == list(range(classes))


def test_later_ranks_may_be_empty():
    assert [tuple(span(9, 8, rank)) for rank in range(8)] == [
        (0, 2),
        (2, 4),
        (4, 6),
        (6, 8),
        (8, 9),
        (9, 9),
        (9, 9),
        (9, 9),
    ]


@pytest.mark.parametrize("wrong", [(5, 0, 0), (5, 2, 2), (5, 2, -1), (-1, 1, 0)])
def test_no_such_rank(wrong):
    with pytest.raises(ValueError, match="no rank"):
        span(*wrong)
