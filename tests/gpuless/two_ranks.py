"""One rank of two that train on a pretended card each; gloo does the work of NCCL.

Run by test_collectives.py: prints, by group, every collective with what it was given.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import card
import torch
import torch.distributed as dist
from test_train import run

from glint.dist import world as joining

NAMES = ("all_gather_single", "all_gather_into_tensor", "reduce_scatter_single",
         "reduce_scatter_tensor", "all_reduce", "broadcast")  # fmt: skip
groups: dict[int, str] = {}  # those that were opened beside the default one, and their backend
seen: dict[str, list[Any]] = defaultdict(list)


def checked(name: str) -> None:
    """Hold a collective's tensors against what its group's backend takes, and note it."""
    real = getattr(dist, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        backend = groups.get(id(kwargs.get("group")), "nccl")
        given = [one for one in args if isinstance(one, torch.Tensor)]
        at = card.where()
        for one in given:
            place = "the card" if card.on_card(one) else "the host"
            if (place == "the card") != (backend == "nccl") or not one.is_contiguous():
                raise card.Mismatch(f"{name} by {backend} of a tensor on {place} in {at}")
        shapes = [[str(one.dtype), *one.shape] for one in given]
        seen[backend].append([name, *shapes, str(kwargs.get("op", "")), at])
        with card._quiet():
            return real(*args, **kwargs)

    setattr(dist, name, call)


def main(data: str, pairs: str, out: str) -> None:
    init, new_group = dist.init_process_group, dist.new_group

    def started(backend: str, **options: Any) -> None:
        assert backend == "nccl"
        init("gloo", **options)

    def opened(*args: Any, **options: Any) -> Any:
        group = new_group(*args, **options)
        groups[id(group)] = options.get("backend", "nccl")
        return group

    dist.init_process_group, dist.new_group = started, opened  # type: ignore[assignment]
    for name in NAMES:
        if hasattr(dist, name):
            checked(name)

    class Made:
        pass

    Made.data, Made.pairs = data, pairs  # type: ignore[attr-defined]
    for case in ("float32", "f2c"):
        os.environ["GLINT_RENDEZVOUS"] = f"file://{out}/meeting-{case}"
        more = [f"run.val=['{pairs}']", "run.save_every=2", "data.batch=6"]
        with card.pretended():
            world = joining.join("cuda")
            run(Made, case, world, Path(out) / case, *more)
            joining.leave(world)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
