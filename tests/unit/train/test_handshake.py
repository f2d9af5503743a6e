"""Ranks that read other files than the first are not trained with."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from glint.dist.world import World
from glint.errors import MismatchError
from glint.train.build import handshake


@pytest.mark.parametrize("other", ["labels", "recipe", ""])
def test_ranks_that_read_other_labels(ranks: Callable[..., list[Any]], other: str) -> None:
    """As where labels change while ranks start: as many classes, and other ones."""

    def work(world: World) -> str:
        mine = other if world.rank == 2 else ""
        run: Any = SimpleNamespace(
            world=world,
            past=SimpleNamespace(
                fingerprint={"classes": 9, "labels": f"sha256:{mine == 'labels'}"}
            ),
            recipe=SimpleNamespace(model_dump=lambda mode: {"lr": 1 + (mine == "recipe")}),
        )
        if not other:
            handshake(run)
            return ""
        with pytest.raises(MismatchError, match=r"GL0602.*rank 2 was started with another") as told:
            handshake(run)
        return told.value.code

    assert ranks(3, work) == ["GL0602" if other else ""] * 3
