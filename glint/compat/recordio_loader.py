"""`MXFaceDataset` and `get_dataloader` of `arcface_torch`, without MXNet: the same samples.

Order is that of its DistributedSampler, which is torch's, and an image is flipped by the same draw
of the same worker's generator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from glint.dist.world import present
from glint.errors import InputError, UsageError
from glint.shards import pixels, recordio

_IMAGE = tuple[Tensor, Tensor]


class MXFaceDataset(Dataset[_IMAGE]):
    """The images of train.rec by train.idx: item i is (image (3, H, W) in [-1, 1], label int64).

    Where record 0 holds labels, its first is the end of the images' keys, which begin at 1;
    otherwise every record is an image. Half of the images are flipped. Raises InputError (GL0213)
    for a damaged record, (GL0216) for a bad .idx, (GL0303) for what is no picture, (GL0222) for a
    label that is no whole number.
    """

    def __init__(self, root_dir: str | os.PathLike[str], local_rank: int = 0) -> None:
        self.root_dir, self.local_rank = root_dir, local_rank
        self.rec = Path(root_dir) / "train.rec"
        key_r, at_r = recordio.read_idx(Path(root_dir) / "train.idx")
        self._fd: tuple[int, int] | None = None
        order_r = np.argsort(at_r)
        size = self.rec.stat().st_size
        span_r = np.empty_like(at_r)
        span_r[order_r] = np.diff(at_r[order_r], append=size)
        self.place = dict(zip(key_r.tolist(), zip(at_r.tolist(), span_r.tolist())))
        if len(self.place) < len(key_r):
            raise InputError("GL0216", "keys stand several times", where=f"{root_dir}/train.idx")
        self.imgidx = key_r
        header = self._read(0)[0] if 0 in self.place else None
        if header is not None and isinstance(header.label, tuple) and header.label:
            self.header0 = tuple(int(one) for one in header.label[:2])
            self.imgidx = np.arange(1, self.header0[0])
            absent = np.setdiff1d(self.imgidx, key_r)
            if len(absent):
                what = f"expected keys 1 to {self.header0[0] - 1}, {len(absent)} are not there"
                raise InputError("GL0216", what, where=str(Path(root_dir) / "train.idx"))

    def __getitem__(self, index: int) -> _IMAGE:
        key = int(self.imgidx[index])
        header, data = self._read(key)
        if header.first != int(header.first):
            what = f"expected a whole number as label, found {header.first}"
            raise InputError("GL0222", what, where=self._where(key))
        try:
            pixel_HW3 = pixels.rgb(data)
        except ValueError as error:
            raise InputError("GL0303", str(error), where=self._where(key)) from None
        if torch.rand(1) < 0.5:
            pixel_HW3 = pixel_HW3[:, ::-1]
        image = torch.from_numpy(np.ascontiguousarray(pixel_HW3.transpose(2, 0, 1)))
        image = image.to(torch.get_default_dtype()).div_(255).sub_(0.5).div_(0.5)
        return image, torch.tensor(int(header.first))

    def __len__(self) -> int:
        return len(self.imgidx)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fd": None}

    def _read(self, key: int) -> tuple[recordio.Header, bytes]:
        if self._fd is None or self._fd[0] != os.getpid():
            self._fd = os.getpid(), os.open(self.rec, os.O_RDONLY)
        at, span = self.place[key]
        header, data, whole = recordio.read_span(self._fd[1], at, span)
        if header is None or not whole:
            raise recordio.damaged("expected a whole record", str(self.rec), at)
        return header, data

    def _where(self, key: int) -> str:
        return f"{self.rec} key {key}"


class DataLoaderX(DataLoader[_IMAGE]):
    """A DataLoader whose batches lie where a rank computes."""

    def __init__(self, local_rank: int, **options: Any) -> None:
        super().__init__(**options)
        self.device = torch.device("cuda", local_rank) if torch.cuda.is_available() else None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            yield [part.to(self.device, non_blocking=True) for part in batch]


def get_dataloader(
    root_dir: str,
    local_rank: int,
    batch_size: int,
    dali: bool = False,
    dali_aug: bool = False,
    seed: int | None = 2048,
    num_workers: int = 2,
) -> DataLoaderX:
    """Return batches (images (n, 3, H, W), labels (n)) of this rank from RecordIO.

    Raises UsageError (GL0002) for dali=True, InputError (GL0201) where there is no train.rec.
    """
    if dali or dali_aug:
        raise UsageError(
            "GL0002",
            "DALI is not used here",
            where="get_dataloader",
            hint="dali = False, dali_aug = False",
        )
    absent = [one for one in ("train.rec", "train.idx") if not (Path(root_dir) / one).exists()]
    if absent:
        raise InputError("GL0201", f"no {' nor '.join(absent)}", where=str(root_dir))
    world = present()
    if seed is None:
        drawn = [int(np.random.default_rng().integers(2**31))]
        if world.size > 1:
            dist.broadcast_object_list(drawn, 0)
    dataset = MXFaceDataset(root_dir, local_rank)
    return DataLoaderX(
        local_rank,
        dataset=dataset,
        batch_size=batch_size,
        sampler=DistributedSampler(
            dataset, world.size, world.rank, seed=drawn[0] if seed is None else seed
        ),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
        worker_init_fn=None if seed is None else partial(_seed, num_workers, world.rank, seed),
    )


def _seed(workers: int, rank: int, seed: int, worker: int) -> None:
    """Seed a worker as `arcface_torch` does."""
    torch.manual_seed(workers * rank + worker + seed)
