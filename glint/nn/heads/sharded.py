"""A head's table in pieces that any number of ranks loads, as torch's checkpoints have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from glint.dist.world import World
from glint.errors import MismatchError

if TYPE_CHECKING:  # over a second to import, sympy with it
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


class Table(Protocol):
    """What is asked of a head."""

    classes: int
    dim: int
    steps: int
    world: World

    def state_rows(self) -> tuple[int, int, dict[str, Tensor]]: ...
    def load_rows(self, fetch: Callable[[str, int, int], Tensor]) -> None: ...


class Sharded:
    """The state of a head for `torch.distributed.checkpoint` (DCP).

    `dcp.save({"head": head.sharded()}, checkpoint_id=folder)`, and `dcp.load` alike, on any number
    of ranks: rows are DTensors over the whole table, split by its first dimension. DCP would take
    the plain tensors of `state_dict` for copies of one another and keep those of one rank.
    """

    def __init__(self, head: Table) -> None:
        self.head = head

    def state_dict(self) -> dict[str, Any]:
        """Return rows as DTensors (C, ...) that share their memory, and (classes, dim, steps)."""
        head = self.head
        _, _, rows = head.state_rows()
        about = torch.tensor([head.classes, head.dim, head.steps])
        if head.world.size == 1:
            return {**rows, "about": about}
        from torch.distributed.device_mesh import DeviceMesh

        group = head.world.group or dist.group.WORLD
        mesh = DeviceMesh.from_group(group, head.world.device.type)  # type: ignore[arg-type]
        pieces = {name: self._piece(local, mesh) for name, local in rows.items()}
        return {**pieces, "about": about}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take rows of this rank, as `state_dict` gives them; the head goes on from there.

        Raises MismatchError (GL0702) for another table.
        """
        from torch.distributed.tensor import DTensor

        head = self.head
        classes, dim, steps = state["about"].tolist()
        if (classes, dim) != (head.classes, head.dim):
            raise MismatchError(
                "GL0702",
                f"expected {head.classes} classes of {head.dim} numbers, found {classes} of {dim}",
                where="state of the head",
            )
        local = {k: v.to_local() if isinstance(v, DTensor) else v for k, v in state.items()}
        head.load_rows(lambda name, start, stop: local[name])
        head.steps = steps

    def _piece(self, local: Tensor, mesh: DeviceMesh) -> DTensor:
        from torch.distributed.tensor import DTensor, Shard

        shape = torch.Size([self.head.classes, *local.shape[1:]])
        stride = (local.shape[1], 1) if local.ndim == 2 else (1,)
        return DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )
