"""The only door to faiss: an optional dependency (extras `cpu` and `gpu`)."""

# n rows of this block, N all rows, D embedding

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from glint.log import logger


@cache
def available() -> bool:
    """Return whether faiss can be imported; a broken install counts as absent and is logged."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    except Exception as error:  # faiss-cpu and faiss-gpu on top of each other raise RuntimeError
        logger.warning("faiss is installed but does not load (%s): using torch instead", error)
        return False
    return True


class FlatIndex:
    """Hold rows for exact inner-product range search.

    x_ND: float32, C-contiguous.
    """

    def __init__(self, x_ND: npt.NDArray[np.float32]) -> None:
        import faiss

        self._index: Any = faiss.IndexFlatIP(x_ND.shape[1])
        self._index.add(x_ND)

    def above(
        self, x_nD: npt.NDArray[np.float32], bound: float
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (query, row) of every inner product > `bound`, in no stated order."""
        limits, _, rows = self._index.range_search(x_nD, bound)
        ends = np.asarray(limits, dtype=np.int64)
        query = np.repeat(np.arange(len(x_nD), dtype=np.int64), ends[1:] - ends[:-1])
        return query, np.asarray(rows, dtype=np.int64)
