"""A stream in loops that are not glint's: DataLoader, torchdata, Fabric, accelerate."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from torch.utils.data import DataLoader, DistributedSampler

from glint.errors import MismatchError, UsageError
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream.loader import Batch, Order, Stream

N, BATCH = 50, 2  # 12 steps of two ranks: more than two workers have ahead


@pytest.fixture
def data(small: Dataset) -> Dataset:
    return small


def stream(
    data: Dataset, rank: int = 0, world: int = 2, batch: int = BATCH, **given: Any
) -> Stream:
    return Stream(data, batch=batch, rank=rank, world=world, seed=3, **given)


def ids(batches: Iterable[Batch]) -> list[list[int]]:
    return [np.asarray(one.row).tolist() for one in batches]


def truth(data: Dataset, epoch: int, rank: int = 0) -> list[list[int]]:
    """What the trainer reads: `batches`, which the older tests hold against the plan."""
    return ids(stream(data, rank).batches(epoch))


WAYS = ["iter", "threads", "workers", "loader", "loader2", "persistent"]


def way(data: Dataset, name: str, **given: Any) -> tuple[Stream, Any]:
    """Return a stream and what a loop goes over."""
    counts = {"threads": {"threads": 2}, "workers": {"workers": 2}}.get(name, {})
    made = stream(data, **counts, **given)
    if name.startswith("loader"):
        return made, made.loader(num_workers=2 if name == "loader2" else 0)
    if name == "persistent":
        return made, made.loader(num_workers=2, persistent_workers=True, prefetch_factor=3)
    return made, made


@pytest.mark.parametrize("name", WAYS)
def test_epochs_follow_one_another_and_the_state_is_what_was_handed_out(
    data: Dataset, name: str
) -> None:
    made, loop = way(data, name)
    assert len(loop) == len(made) == 12
    assert [ids(loop), ids(loop)] == [truth(data, 0), truth(data, 1)]
    assert made.epoch == 2
    seen, states = [], []
    for batch in loop:
        seen.append(np.asarray(batch.row).tolist())
        states.append(json.loads(json.dumps(made.state_dict())))
        if len(seen) == 5:
            break
    assert [one["position"] for one in states] == [4, 8, 12, 16, 20]
    assert ids(loop) == truth(data, 2)  # without a load an epoch begins anew
    for done in (1, 5):
        made, loop = way(data, name)
        loop.load_state_dict(states[done - 1])
        assert loop.state_dict() == states[done - 1]
        for epoch in (2, 3):
            made.set_epoch(epoch)  # as loops do; the one at hand goes on
            assert seen[:done] * (epoch == 2) + ids(loop) == truth(data, epoch)


def test_the_images_are_those_of_the_plain_iterator(data: Dataset) -> None:
    made = stream(data)
    held = list(made.loader(num_workers=2))  # all at once: no buffer is used twice
    for one, other in zip(held, stream(data).batches(0), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert np.array_equal(mine, theirs)


def test_the_last_step_of_an_epoch_is_the_first_of_the_next(data: Dataset) -> None:
    made = stream(data)
    for _ in made:
        at_the_end = made.state_dict()
    other = stream(data)
    other.load_state_dict(at_the_end)
    assert made.state_dict() == at_the_end and (at_the_end["epoch"], other.epoch) == (1, 1)
    assert ids(other) == truth(data, 1)


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("batch", [2, 6])
def test_it_goes_on_under_another_world_and_batch(data: Dataset, world: int, batch: int) -> None:
    begun = [iter(stream(data, rank)) for rank in range(2)]
    made = stream(data)
    seen = [row for one in begun for step in [next(one) for _ in range(3)] for row in step.row]
    loop = iter(made)
    for _ in range(3):
        next(loop)
    rest = []
    for rank in range(world):
        other = stream(data, rank, world, batch=batch, drop_last=False)
        other.load_state_dict(made.state_dict())
        rest += [row for one in other for row in one.row[: len(one.row) - one.repeats]]
    assert sorted(seen + rest) == list(range(N))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_view_in_torch_s_loader(data: Dataset, workers: int) -> None:
    for rank in range(2):
        view = stream(data, rank).view()
        loader: Any = DataLoader(
            view, batch_size=None, num_workers=workers, persistent_workers=workers > 0
        )
        for epoch in range(3):
            view.set_epoch(epoch)
            batches = list(loader)
            assert ids(batches) == truth(data, epoch, rank)
            assert {one.epoch for one in batches} == {epoch}
            assert isinstance(batches[0].row, torch.Tensor)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [1, 6])
def test_a_view_in_torchdata_s_loader(data: Dataset, workers: int, done: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader() -> Any:
        return stateful(stream(data).view(), batch_size=None, num_workers=workers)

    begun = loader()
    begun.dataset.set_epoch(4)
    seen = []
    for batch in begun:
        seen.append(batch.row.tolist())
        if len(seen) == done:
            break
    state = begun.state_dict()
    other = loader()
    other.load_state_dict(state)
    assert seen + ids(other) == truth(data, 4)
    other.dataset.set_epoch(5)
    assert ids(other) == truth(data, 5)


def test_blocks_are_read_alike_by_workers(data: Dataset) -> None:
    order = Order(block=8)
    expected = ids(stream(data, order=order).batches(0))
    made = stream(data, order=order)
    loop = made.loader(num_workers=2, persistent_workers=True)
    for batch in loop:
        if batch.step == 2:
            break
    state = made.state_dict()
    assert ids(loop) == expected
    made.load_state_dict(state)  # another step of each window is a worker's first
    assert ids(loop) == expected[3:]
    assert ids(loop) == ids(stream(data, order=order).batches(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_distributes_or_shuffles_is_an_error(data: Dataset, workers: int) -> None:
    view = stream(data).view()
    for sampler in (
        DistributedSampler(view, 2, 0, shuffle=False),
        DistributedSampler(view, 2, 1, shuffle=False),
        [*range(12)][::-1],
    ):
        loader = DataLoader(view, batch_size=None, sampler=sampler, num_workers=workers)
        # torch hands what a worker raised on as a RuntimeError with its text
        with pytest.raises((UsageError, RuntimeError), match="each is this rank's share already"):
            list(loader)
        view = stream(data).view()


def test_what_would_be_wrong_in_silence_is_named(
    data: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    made = stream(data)
    with pytest.raises(UsageError, match="its order is its own"):
        next(iter(DataLoader(made)))
    with pytest.raises(UsageError, match="shuffle: the stream orders"):
        made.loader(shuffle=True)
    with pytest.raises(UsageError, match="give both or none"):
        Stream(data, batch=2, rank=0)
    state = made.state_dict()
    with pytest.raises(MismatchError, match="seed was 3, is 4"):
        Stream(data, batch=2, seed=4).load_state_dict(state)
    with pytest.raises(MismatchError, match="position 51 of epoch 0"):
        made.load_state_dict({**state, "position": 51})
    loader: Any = DataLoader(made.view(), batch_size=None)
    logging.getLogger("glint").propagate = True
    with caplog.at_level(logging.WARNING, "glint"):
        assert ids(loader) == ids(loader)
    assert "epoch 0 begins again" in caplog.text


def test_accelerate_saves_the_place_too(data: Dataset, tmp_path: Path) -> None:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    made = stream(data)
    loader = accelerator.prepare(made.loader(num_workers=2))
    loop = iter(loader)
    begun = [np.asarray(next(loop).row).tolist() for _ in range(3)]
    accelerator.save_state(tmp_path / "state")
    assert begun + ids(loop) == truth(data, 0)
    made.set_epoch(5)
    accelerator.load_state(tmp_path / "state")
    assert made.epoch == 0 and begun + ids(loader) == truth(data, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gives_images_and_labels_in_force(
    make: Callable[..., Dataset], workers: int
) -> None:
    root = make([row % 5 for row in range(40)], per_shard=7).root
    none = np.empty((0, 2), np.int64)
    moved = {"row": np.array([3, 8]), "label": np.array([-1, 4])}  # one left out, one another's
    labels.apply(root, np.array([0, 0, -1, 1, 2]), none, {}, **moved)
    data = Dataset(root)
    expected = [[0, 0, -1, 1, 2][row % 5] for row in range(40)]
    expected[3], expected[8] = -1, 2
    rows = np.random.default_rng(0).permutation(40).tolist()
    loader: Any = DataLoader(data, batch_size=9, sampler=rows, num_workers=workers)
    image_N, label_N = (torch.cat(part) for part in zip(*loader))
    assert label_N.tolist() == [expected[row] for row in rows]
    assert data.target.tolist() == expected == [label for _, label in data]
    for row, image in zip(rows, image_N):
        assert np.array_equal(image, simplejpeg.decode_jpeg(data.read(row)))


RANK = """
import json, sys
import torch.distributed as dist
from glint.stream.loader import Stream
from glint.shards.dataset import Dataset
place, data, rank = sys.argv[1], Dataset(sys.argv[2]), int(sys.argv[3])
early = Stream(data, batch=2, seed=3)
dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
found = {}
found["early"] = []
for loop in (early, early.loader(), early.loader(1), early.view()):
    try:
        next(iter(loop))
    except Exception as error:
        found["early"].append(str(error))
ids = lambda loop: [one.row.tolist() for one in loop]
found["iter"] = ids(Stream(data, batch=2, seed=3))
found["loader"] = ids(Stream(data, batch=2, seed=3).loader(2))
import os
os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
                  MASTER_PORT="29777")
try:
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(Stream(data, batch=2, seed=3).loader(2))
    found["accelerate"] = [accelerator.num_processes, ids(loader)]
except ImportError:
    pass
try:
    from lightning_fabric import Fabric
    from torch.utils.data import DataLoader
    from lightning_fabric.plugins.environments import TorchElasticEnvironment
    os.environ["TORCHELASTIC_RUN_ID"] = "1"
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    loader = fabric.setup_dataloaders(Stream(data, batch=2, seed=3).loader(2))
    found["fabric"] = [fabric.world_size, ids(loader)]
    view = DataLoader(Stream(data, batch=2, seed=3).view(), batch_size=None)
    try:
        ids(fabric.setup_dataloaders(view))
    except Exception as error:
        found["view"] = str(error)
    found["left"] = ids(fabric.setup_dataloaders(view, use_distributed_sampler=False))
except ImportError:
    pass
print(json.dumps(found))
"""


def test_on_two_ranks_nothing_is_cut_again_or_read_twice(data: Dataset, tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "meet"), str(data.root), str(rank)],
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for rank, one in enumerate(started):
        found = json.loads(one.communicate(timeout=100)[0])
        expected = truth(data, 0, rank)
        early = found.pop("early")
        assert len(early) == 4 and all("made before the process group" in one for one in early)
        assert found["iter"] == found["loader"] == expected
        assert found.get("accelerate", [2, expected]) == [2, expected]
        assert found.get("fabric", [2, expected]) == [2, expected]
        assert "share already" in found.get("view", "share already")
        assert found.get("left", expected) == expected
        if {"accelerate", "fabric"} - {*found}:
            pytest.skip("half done: pip install 'glint-faces[loops]' for accelerate and Fabric")


def test_a_loop_left_early_is_told_that_its_epoch_begins_again(
    data: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    made = stream(data)
    next(iter(made))
    assert not caplog.records
    assert next(iter(made)).step == 0
    assert "epoch 0 begins again: set_epoch chooses another" in caplog.text
    with pytest.raises(MismatchError, match="GL0702"):
        made.load_state_dict({})
