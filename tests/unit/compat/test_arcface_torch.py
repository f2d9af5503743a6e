"""`glint.compat.arcface_torch` against plain dense code in float64, on one rank and two."""

from __future__ import annotations

import copy
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from glint.compat.arcface_torch import MXFaceDataset, PartialFC_V2, get_dataloader
from glint.errors import InputError, UsageError
from glint.shards.recordio import Writer, pack

CLASSES, DIM, BATCH, STEPS = 90, 12, 8, 40


class Margin:
    """arcface_torch's CombinedMarginLoss by its documentation, out of place."""

    def __init__(
        self, m2: float = 0.5, m3: float = 0.0, threshold: float = 0.0, s: float = 64.0
    ) -> None:
        self.s, self.m1, self.m2, self.m3 = s, 1.0, m2, m3
        self.interclass_filtering_threshold = threshold

    def __call__(self, cosine: Tensor, label: Tensor) -> Tensor:
        row = torch.where(label[:, 0] >= 0)[0]
        own = torch.zeros_like(cosine, dtype=torch.bool)
        own[row, label[row, 0]] = True
        if self.interclass_filtering_threshold:
            keep = (cosine <= self.interclass_filtering_threshold) | own
            cosine = cosine * keep
        if self.m3:
            moved = cosine - self.m3
        else:  # the gradient passes straight through
            moved = cosine + (torch.cos(torch.arccos(cosine.detach()) + self.m2) - cosine.detach())
        return torch.where(own, moved, cosine) * self.s


class Oracle(torch.nn.Module):
    """Partial FC in dense code on one process that holds all ranks' rows, drawn as they draw."""

    def __init__(self, margin: Any, ranks: int, rate: float) -> None:
        super().__init__()
        self.margin, self.rate = margin, rate
        sizes = [CLASSES // ranks + (r < CLASSES % ranks) for r in range(ranks)]
        self.first = [sum(sizes[:r]) for r in range(ranks + 1)]
        # every rank draws its rows, and later its classes, from the same state of the generator
        state = torch.get_rng_state()
        rows = []
        for size in sizes:
            torch.set_rng_state(state)
            rows.append(torch.normal(0, 0.01, (size, DIM)))
        self.weight = torch.nn.Parameter(torch.cat(rows))
        self.states = []
        for size in sizes:
            torch.set_rng_state(state)
            torch.normal(0, 0.01, (size, DIM))
            self.states.append(torch.get_rng_state())

    def forward(self, feature: Tensor, label: Tensor) -> Tensor:
        playing = []
        for r, (first, stop) in enumerate(zip(self.first, self.first[1:])):
            mine = torch.unique(label[(label >= first) & (label < stop)]) - first
            wanted = int(self.rate * (stop - first))
            if self.rate == 1:
                playing.append(torch.arange(first, stop))
            elif wanted < len(mine):
                playing.append(mine + first)
            else:
                torch.set_rng_state(self.states[r])
                chance = torch.rand(stop - first)
                self.states[r] = torch.get_rng_state()
                chance[mine] = 2
                playing.append(chance.argsort(descending=True)[:wanted].sort()[0] + first)
        index = torch.cat(playing)
        cosine = F.normalize(feature) @ F.normalize(self.weight[index]).T
        target = torch.searchsorted(index, label)
        logit = self.margin(cosine.clamp(-1, 1), target[:, None])
        own = F.cross_entropy(logit, target, reduction="none")
        return own.mean() + (own.detach().clamp_max(-math.log(1e-30)) - own.detach()).mean()


def optimiser(kind: str, net: Any, head: Any) -> torch.optim.Optimizer:
    groups = [{"params": net.parameters()}, {"params": head.parameters()}]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-3)


def batches(ranks: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    label = torch.randint(0, CLASSES, (STEPS, ranks * BATCH), generator=draw)
    label[::3, : ranks * 4] //= 9  # few people: some ranks have none
    direction = torch.randn(CLASSES, DIM, generator=draw)
    noise = torch.randn(STEPS, ranks * BATCH, DIM, generator=draw)
    return [(direction[label[i]] + noise[i] / 2, label[i]) for i in range(STEPS)]


def train(
    head: Any, kind: str, ranks: int, rank: int | None, passes: int = 1
) -> tuple[list[float], Any, Any]:
    drawn = torch.get_rng_state()
    net = torch.nn.Linear(DIM, DIM, bias=False)
    torch.set_rng_state(drawn)
    with torch.no_grad():
        net.weight.copy_(torch.eye(DIM))
    steps = optimiser(kind, net, head)
    falling = torch.optim.lr_scheduler.LambdaLR(steps, lambda step: 1 - step / (STEPS + 5))
    losses = []
    for number, (feature, label) in enumerate(batches(ranks)):
        mine = slice(None) if rank is None else slice(rank * BATCH, (rank + 1) * BATCH)
        loss = head(net(feature[mine]), label[mine].clone())
        loss.backward()
        if (number + 1) % passes == 0:
            if rank is not None and ranks > 1:  # as DDP does
                dist.all_reduce(net.weight.grad)
                net.weight.grad /= ranks
            steps.step()
            steps.zero_grad()
        falling.step()
        losses.append(loss.item())
    return losses, net.weight.detach(), steps


@pytest.fixture
def doubles() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


CASES = [
    (1.0, "sgd", Margin()),
    (0.3, "sgd", Margin()),
    (0.3, "sgd", Margin(m2=0.0, m3=0.4)),
    (0.3, "sgd", Margin(threshold=0.1)),
    (0.3, "sgd", Margin(threshold=0.1, s=96.0)),  # logits are passed over twice
    (0.02, "sgd", Margin()),
    (0.3, "adamw", Margin()),
]


@pytest.mark.parametrize("rate, kind, margin", CASES)
def test_steps_are_those_of_dense_code(
    rate: float, kind: str, margin: Margin, doubles: None
) -> None:
    torch.manual_seed(1)
    expected, net, dense = train(oracle := Oracle(margin, 1, rate), kind, 1, None)
    torch.manual_seed(1)
    losses, found, steps = train(head := PartialFC_V2(margin, DIM, CLASSES, rate), kind, 1, 0)
    assert losses == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(found, net, atol=1e-9)
    assert list(head.state_dict()) == ["weight"]
    assert torch.allclose(head.state_dict()["weight"], oracle.weight, atol=1e-9)
    kept, wanted = (one.state_dict()["state"] for one in (steps, dense))
    assert sorted(kept) == sorted(wanted) == [0, 1]
    for name in wanted[1]:
        assert torch.allclose(kept[1][name], wanted[1][name], atol=1e-9)


def _rank(rank: int, place: str, results: Any) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    found = []
    for rate, kind, margin in CASES:
        torch.manual_seed(1)
        head = PartialFC_V2(margin, DIM, CLASSES, rate)
        losses, net, _ = train(head, kind, 2, rank)
        found.append((losses, net.tolist(), head.state_dict()["weight"].tolist()))
    results.put((rank, found))
    dist.destroy_process_group()


def test_two_ranks_take_the_steps_of_dense_code(tmp_path: Path, doubles: None) -> None:
    import torch.multiprocessing as mp

    context = mp.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, tmp_path / "meet", results)) for r in (0, 1)]
    for one in ranks:
        one.start()
    found = dict(results.get(timeout=60) for _ in ranks)
    for one in ranks:
        one.join()
    for number, (rate, kind, margin) in enumerate(CASES):
        torch.manual_seed(1)
        expected, net, _ = train(oracle := Oracle(margin, 2, rate), kind, 2, None)
        for rank in (0, 1):
            losses, mine, _ = found[rank][number]
            assert losses == pytest.approx(expected, rel=1e-9), (rank, rate, kind)
            assert torch.allclose(torch.tensor(mine), net, atol=1e-9)
        rows = torch.tensor(found[0][number][2] + found[1][number][2])
        assert torch.allclose(rows, oracle.weight, atol=1e-9)


def test_passes_add_up_and_a_scale_is_taken_out(doubles: None) -> None:
    torch.manual_seed(1)
    expected, _, _ = train(oracle := Oracle(Margin(), 1, 0.3), "sgd", 1, None, passes=2)
    torch.manual_seed(1)
    losses, _, _ = train(head := PartialFC_V2(Margin(), DIM, CLASSES, 0.3), "sgd", 1, 0, passes=2)
    assert losses == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(head.weight, oracle.weight, atol=1e-9)
    feature, label = batches(1)[0]
    before = head.weight.detach().clone()
    steps = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    (head(feature, label) * 1024).backward()
    head.weight.grad._values().div_(1024)  # as GradScaler.unscale_ does
    steps.step()
    assert head.weight.grad.is_sparse  # until zero_grad, as ever
    again = torch.nn.Parameter(before)
    again.grad = head.weight.grad.to_dense()
    torch.optim.SGD([again], lr=0.1, momentum=0.9).step()
    assert torch.allclose(head.weight, again, atol=1e-12)


def test_it_goes_on_where_it_was_left_in_whatever_way(doubles: None) -> None:
    """A state dict, a copy, torch.save: all go on as a head that was never left."""

    def go_on(take: Callable[[Any, Any], tuple[Any, Any]]) -> list[float]:
        torch.manual_seed(1)
        head: Any = PartialFC_V2(Margin(), DIM, CLASSES, 0.3)
        steps = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
        losses = []
        for number, (feature, label) in enumerate(batches(1)):
            if number == 20:
                head, steps = take(head, steps)
            loss = head(feature, label)
            loss.backward()
            steps.step()
            steps.zero_grad()
            losses.append(loss.item())
        return losses

    def new(head: Any) -> torch.optim.SGD:
        return torch.optim.SGD(head.parameters(), lr=0.7, momentum=0.9)

    def by_state(head: Any, steps: Any) -> tuple[Any, Any]:
        drawn = torch.get_rng_state()
        other = PartialFC_V2(Margin(), DIM, CLASSES, 0.3)
        torch.set_rng_state(drawn)
        moved = new(other)
        other.load_state_dict(head.state_dict())
        moved.load_state_dict(steps.state_dict())
        return other, moved

    def by_copy(head: Any, steps: Any) -> tuple[Any, Any]:
        other = copy.deepcopy(head)
        moved = new(other)
        moved.load_state_dict(steps.state_dict())
        return other, moved

    def by_file(head: Any, steps: Any) -> tuple[Any, Any]:
        torch.save(head, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
        moved = new(other)
        moved.load_state_dict(steps.state_dict())
        return other, moved

    expected = go_on(lambda head, steps: (head, steps))
    for take in (by_state, by_copy, by_file):
        assert go_on(take) == pytest.approx(expected, rel=1e-9), take.__name__


def test_what_it_cannot_do_it_refuses() -> None:
    class Other(Margin):
        def __call__(self, cosine: Tensor, label: Tensor) -> Tensor:
            return super().__call__(cosine, label) * 1.001

    with pytest.raises(UsageError, match="acts like none of"):
        PartialFC_V2(Other(), DIM, CLASSES)
    head = PartialFC_V2(margin := Margin(), DIM, CLASSES, 0.5)
    feature, label = (one[:4] for one in batches(1)[0])
    before = head(feature, label)
    with pytest.raises(UsageError, match="3 samples, expected 4"):
        head(feature[:3], label[:3])
    with pytest.raises(InputError, match="GL0222"):
        head(feature, label + CLASSES)
    margin.m2 = 0.1  # changed while it runs: followed
    torch.manual_seed(0)
    assert head(feature, label).item() < before.item() - 5
    steps = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(UsageError, match="closure"):
        steps.step(lambda: head(feature, label))


@pytest.fixture
def rec(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    with Writer(tmp_path / "train.rec", tmp_path / "train.idx") as out:
        out.write(0, pack([31.0, 33.0], 0, 0, b""))
        for i in range(30):
            label = float(i % 7)
            out.write(i + 1, pack([label, 0.0] if i % 2 else label, i + 1, 0, jpeg(i)))
        out.write(31, pack([1.0, 5.0], 31, 0, b""))  # identities come after the images
    return tmp_path


def test_images_labels_and_order_are_the_records(rec: Path, jpeg: Callable[[int], bytes]) -> None:
    import simplejpeg

    data = MXFaceDataset(str(rec), 0)
    assert len(data) == 30
    torch.manual_seed(3)
    flips = 0
    for i in range(30):
        drawn = torch.get_rng_state()
        image, label = data[i]
        after = torch.get_rng_state()
        torch.set_rng_state(drawn)
        flipped = bool(torch.rand(1) < 0.5)
        assert torch.equal(torch.get_rng_state(), after)
        pixel = simplejpeg.decode_jpeg(jpeg(i), "RGB")[:, :: -1 if flipped else 1]
        expected = (pixel.transpose(2, 0, 1) / 255 - 0.5) / 0.5
        assert np.allclose(image.numpy(), expected, atol=1e-6)
        assert image.dtype == torch.float32 and (int(label), label.dtype) == (i % 7, torch.int64)
        flips += flipped
    assert 5 < flips < 25
    loader = get_dataloader(str(rec), 0, 4, seed=9, num_workers=0)
    loader.sampler.set_epoch(2)
    found = [label for _, batch in loader for label in batch.tolist()]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(11)).tolist()
    assert found == [i % 7 for i in order[:28]]


def test_a_bad_set_is_named(rec: Path) -> None:
    with pytest.raises(UsageError, match="DALI"):
        get_dataloader(str(rec), 0, 4, dali=True)
    whole = (rec / "train.rec").read_bytes()
    (rec / "train.rec").write_bytes(whole[:-200])
    data = MXFaceDataset(str(rec), 0)
    with pytest.raises(InputError, match="GL0213"):
        for i in range(30):
            data[i]
    (rec / "train.idx").write_text("0\t0\n1\t48\n1\t96\n")
    with pytest.raises(InputError, match="GL0216"):
        MXFaceDataset(str(rec), 0)
    (rec / "train.idx").unlink()
    with pytest.raises(InputError, match=r"no train\.idx"):
        get_dataloader(str(rec), 0, 4)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("GLINT_PEER"), reason="GLINT_PEER: a checkout")
def test_the_reference_itself(tmp_path: Path) -> None:
    import subprocess

    root = Path(__file__).parents[3]
    given = ["--peer", os.environ["GLINT_PEER"], "--quick", "--only", "losses"]
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "drop_in.py"), *given],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
