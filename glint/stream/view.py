"""The steps of a stream as torch's DataLoader knows data: a view of them, and a loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from glint.errors import UsageError
from glint.log import logger
from glint.stream.position import Batch, Place

Step = tuple[int, int, int]  # epoch, step, the position at which step 0 begins


class Steps(Protocol):
    """What is asked of a stream."""

    place: Place

    def __len__(self) -> int: ...
    def steps_from(self, origin: int) -> int: ...
    def batch_at(self, epoch: int, step: int, origin: int, stride: int) -> Batch: ...
    def fingerprint(self) -> dict[str, Any]: ...
    def require(self, fingerprint: dict[str, Any]) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class View(Dataset[Batch]):
    """The steps of one epoch as a map-style data set: item s is this rank's share of step s.

    For `DataLoader(view, batch_size=None, num_workers=k)`, and torchdata's StatefulDataLoader. A
    loader must take the steps in their order, and all of them on every rank: one that shuffles
    them, or gives each rank some, is an error. `set_epoch` reaches workers that live on.
    """

    def __init__(self, stream: Steps) -> None:
        self.stream = stream
        self._shared = torch.tensor([stream.place.epoch, -1])  # the epoch, the last one begun
        self._shared.share_memory_()  # type: ignore[no-untyped-call]
        self._last: int | None = None

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: int | Step) -> Batch:
        """Make one step: of the epoch at hand, or a tuple that says of which."""
        info = get_worker_info()
        worker, stride = (0, 1) if info is None else (info.id, info.num_workers)
        if not isinstance(index, int):
            return self.stream.batch_at(*index, stride)
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        if self._last is not None and index not in (worker, self._last + stride):
            raise UsageError(
                "GL0002",
                f"step {index} was asked for behind step {self._last}: the loader shuffles steps, "
                "or leaves some to other ranks; each is this rank's share already",
                where="view of a stream",
                hint="stream.loader() is left alone by accelerate and Fabric; "
                "else shuffle=False, and no DistributedSampler",
            )
        self._last = index
        epoch, begun = self._shared.tolist()
        if index == 0 and begun == epoch:
            logger.warning("epoch %d begins again: set_epoch chooses another", epoch)
        if index == 0:
            self._shared[1] = epoch
        return self.stream.batch_at(epoch, index, 0, stride)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose steps are items from now on."""
        self._shared[0] = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and of which samples; which steps are done its loader knows."""
        return {"epoch": int(self._shared[0]), "stream": self.stream.fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the epoch. Raises MismatchError (GL0702) for other samples."""
        self.stream.require(state_dict["stream"])
        self.set_epoch(state_dict["epoch"])


class Loader(DataLoader[Batch]):
    """torch's DataLoader over the steps of a stream; `Stream.loader` makes it.

    It yields the epoch that the stream stands at, then the stream stands at the next one. The place
    of the stream is that of the last batch handed out, whatever workers have read ahead; both have
    the same `state_dict`. accelerate takes it as prepared, Fabric as cut for its rank: both are so.
    It moves nothing to a device. num_workers are forked.
    """

    _is_accelerate_prepared = True
    use_stateful_dataloader = True  # so that accelerate's save_state asks for the state

    def __init__(self, stream: Steps, num_workers: int, **options: Any) -> None:
        own = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "in_order"}
        if wrong := own & {*options}:
            raise UsageError(
                "GL0002",
                f"{', '.join(sorted(wrong))}: the stream orders and batches",
                where="stream.loader",
            )
        view = View(stream)
        self._order = _Order(view)
        options.setdefault("collate_fn", _as_it_is)
        if num_workers:
            options.setdefault("multiprocessing_context", "fork")
        super().__init__(
            view, batch_size=None, sampler=self._order, num_workers=num_workers, **options
        )
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        epoch, step, origin = self.stream.place.begin()
        self._order.todo = [
            (epoch, number, origin) for number in range(step, self.stream.steps_from(origin))
        ]
        yield from self.stream.place.handing(super().__iter__(), epoch, origin)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.stream.place.to(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream."""
        return self.stream.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there. Raises MismatchError (GL0702) for other samples."""
        self.stream.load_state_dict(state_dict)


class _Order(DistributedSampler[Batch]):
    """Steps in their order; by its class loops see that nothing is left to distribute."""

    def __init__(self, view: View) -> None:
        super().__init__(view, num_replicas=1, rank=0, shuffle=False)
        self.todo: list[Step] = []

    def __len__(self) -> int:
        return len(self.todo)

    def __iter__(self) -> Iterator[Step]:  # type: ignore[override]
        return iter(self.todo)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: loops count from 0 also where a stream goes on in a later epoch."""


def _as_it_is(batch: Batch) -> Batch:
    return batch
