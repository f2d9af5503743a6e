from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from glint.dist import collectives
from glint.dist.span import span
from glint.errors import InputError, UsageError
from glint.nn.heads import batch
from glint.nn.heads.options import RULES, PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC, initial_centres
from glint.nn.margins import CosFace, margin

F64 = torch.float64


def head(classes=40, dim=6, *, dtype=F64, world=None, seed=0, masks=None, near=None, **options):
    return PartialFC(
        classes,
        dim,
        PartialFCOptions(**options),
        margin=CosFace(),
        dtype=dtype,
        world=world,
        seed=seed,
        masks=masks,
        neighbours=near,
    )


def data(n=7, classes=40, dim=6, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, dim, dtype=dtype, generator=generator),
        torch.randint(0, classes, (n,), generator=generator),
    )


def test_centres_are_a_buffer_and_no_parameter():
    assert not list(head().parameters())
    assert head().weight.shape == (40, 6)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_initial_centres_are_the_same_for_every_world(world):
    device = torch.device("cpu")
    whole = initial_centres(0, 2500, 4, seed=9, dtype=torch.float32, device=device)
    parts = [
        initial_centres(*span(2500, world, rank), 4, seed=9, dtype=torch.float32, device=device)
        for rank in range(world)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert abs(float(whole.mean())) < 5e-4 and abs(float(whole.std()) - 0.01) < 5e-4
    assert torch.unique(whole, dim=0).shape[0] == 2500  # no two classes start alike
    other = initial_centres(0, 2500, 4, seed=10, dtype=torch.float32, device=device)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("bad", [-1, 40, 10**12])
def test_a_label_out_of_range_is_named_and_nothing_moves(bad):
    feature, label = data()
    label[4] = bad
    model = head()
    with pytest.raises(
        InputError,
        match=rf"GL0222 bad-label: row 4 of the batch of rank 0: "
        rf"expected a label from 0 to 39, found {bad}",
    ):
        model(feature, label, step=0)
    assert not model._pending


@pytest.mark.parametrize("kind", ["cosface", "arcface", "adaface", "combined"])
@pytest.mark.parametrize("bad", [-3, 40])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_a_bad_label_that_nobody_looks_at_makes_the_loss_not_finite(monkeypatch, kind, bad, rate):
    """As on a GPU, where to look would wait for the device."""
    monkeypatch.setattr(batch, "_check_labels", lambda *_: None)
    feature, label = data()
    model = PartialFC(40, 6, PartialFCOptions(rate=rate), margin=margin(kind), dtype=F64)
    assert torch.isfinite(model(feature, label, step=0))
    label[4] = bad
    assert not torch.isfinite(model(feature, label, step=0))


@pytest.mark.parametrize("block", [8, 64])
def test_a_scale_beyond_float32s_exponents_is_right(block):
    """Logits from -300 to 300, all of a sample's negatives far below or far above zero."""
    model = head(dtype=torch.float32, scale=300.0, block=block)
    label = torch.arange(8)
    feature = (model.weight[20:28] * torch.tensor([1.0, -1.0]).repeat(4)[:, None]).requires_grad_()
    loss = model(feature, label, step=0)
    loss.backward()
    leaf = feature.detach().double().requires_grad_()
    cosine = F.linear(F.normalize(leaf), F.normalize(model.weight.double()))
    plain = F.cross_entropy(300 * (cosine - 0.4 * F.one_hot(label, 40)), label)
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    torch.testing.assert_close(feature.grad.double(), leaf.grad, rtol=1e-3, atol=1e-3)


def test_every_rank_hears_of_a_bad_label(ranks):
    def work(world):
        feature, label = data(2, seed=world.rank)
        if world.rank == 1:
            label[0] = 99
        with pytest.raises(InputError, match="row 0 of the batch of rank 1") as caught:
            head(world=world)(feature, label, step=0)
        return caught.value.exit_code

    assert ranks(3, work) == [3, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.5}, "rate is 1.5, expected 0 to 1"),
        ({"classes": 0}, "classes is 0"),
        ({"scale": 0.0}, "scale is 0.0, expected above 0"),
        ({"block": 0}, "block is 0"),
        ({"dtype": torch.float16}, "dtype is torch.float16"),
        ({"rule": "adam"}, "rule is 'adam'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        head(**options)


@pytest.mark.parametrize("pairs", [[[1, 1]], [[0, 40]], [[-1, 3]]])
def test_bad_masks_are_named(pairs):
    with pytest.raises(InputError, match=r"GL0304.*mask pair 0: expected two different labels"):
        head(masks=pairs)


def test_a_batch_of_one_and_labels_of_any_integer_type():
    feature, label = data(1)
    loss = head()(feature, label.to(torch.int32), step=0)
    assert loss.ndim == 0 and torch.isfinite(loss)


def test_a_feature_of_length_zero_gets_no_gradient_and_spoils_nothing():
    feature, label = data(3)
    feature[1] = 0
    feature.requires_grad_()
    head()(feature, label, step=0).backward()
    assert torch.isfinite(feature.grad).all()
    assert torch.count_nonzero(feature.grad[1]) == 0
    assert torch.count_nonzero(feature.grad[[0, 2]]) == 12


def test_a_feature_that_is_not_finite_makes_the_loss_not_finite():
    feature, label = data(3)
    feature[2, 0] = torch.nan
    assert not torch.isfinite(head()(feature, label, step=0))


def test_half_precision_features_get_half_precision_gradients():
    feature, label = data(dtype=torch.float32)
    feature = feature.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(dtype=torch.float32)(feature, label, step=0)
    loss.backward()
    exact = feature.detach().float().requires_grad_()
    truth = head(dtype=torch.float32)(exact, label, step=0)
    truth.backward()
    assert loss.dtype == torch.float32 and torch.equal(loss, truth)
    assert feature.grad.dtype == torch.bfloat16
    assert torch.equal(feature.grad, exact.grad.bfloat16())


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_accumulated_passes_equal_one_large_batch(rate):
    """Two half batches with divide=2 move centres as their union does (rate 1), or nearly so."""
    feature, label = data(8)
    one, two = head(rate=rate), head(rate=rate)
    two.passes = 2
    for half in (slice(0, 4), slice(4, 8)):
        two(feature[half], label[half], step=0).backward()
    two.update(step=0, lr=0.01, divide=2)
    if rate == 1:
        one(feature, label, step=0).backward()
        one.update(step=0, lr=0.01)
        torch.testing.assert_close(two.weight, one.weight, rtol=1e-12, atol=1e-14)
    else:  # by hand: the sum of both passes' row gradients
        start, total = one.weight.clone(), torch.zeros_like(one.weight)
        touched = torch.zeros(len(start), dtype=torch.bool)
        for half in (slice(0, 4), slice(4, 8)):
            one(feature[half], label[half], step=0).backward()
            index, grad = one.gradient()
            total[index] += grad / 2
            touched[index] = True
            one.drop()
        expected = start.clone()
        expected[touched] -= 0.01 * (total + 5e-4 * start)[touched]
        torch.testing.assert_close(two.weight, expected, rtol=1e-12, atol=1e-14)


def test_only_the_rows_that_played_move():
    feature, label = data()
    model = head(classes=500, rate=0.1)
    before = model.weight.clone()
    model(feature, label, step=3).backward()
    index, _ = model.gradient()
    model.update(step=3, lr=0.1)
    moved = (model.weight != before).any(1).nonzero()[:, 0]
    assert torch.equal(moved, index) and index.numel() == 50
    assert torch.isin(label, moved).all()


def test_a_loss_scale_is_taken_out_by_divide():
    feature, label = data()
    plain, scaled = head(), head()
    plain(feature, label, step=0).backward()
    (1024 * scaled(feature, label, step=0)).backward()
    plain.update(step=0, lr=0.1)
    scaled.update(step=0, lr=0.1, divide=1024)
    assert torch.equal(plain.weight, scaled.weight)


def test_a_look_without_gradients_leaves_no_trace():
    feature, label = data()
    model = head(rule="dense_exact", rate=0.3)
    with torch.no_grad():
        model(feature, label, step=0)
    model(feature, label, step=0)  # no backward
    before = model.weight.clone()
    model.update(step=0, lr=0.0)
    assert torch.equal(model.weight, before) and not model._pending


def test_ddp_mean_gives_the_backbone_the_exact_gradient(ranks):
    """The mean over ranks, which DDP takes, with equal and unequal batches."""
    feature, label = data(8)
    backbone = torch.nn.Linear(6, 6, dtype=F64)
    start = {key: value.clone() for key, value in backbone.state_dict().items()}
    head()(backbone(feature), label, step=0).backward()
    truth = backbone.weight.grad.clone()

    for counts in ([4, 4], [5, 3]):

        def work(world, counts=counts):
            net = torch.nn.Linear(6, 6, dtype=F64)
            net.load_state_dict(start)
            rows = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
            loss = head(world=world)(net(feature[rows]), label[rows], step=0, counts=counts)
            loss.backward()
            torch.distributed.all_reduce(net.weight.grad)
            return net.weight.grad / world.size  # what DDP does

        for found in ranks(2, work):
            torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-13)


def test_three_collectives_a_step(ranks, monkeypatch):
    calls = []
    single = collectives._single

    def counted(name, older):
        calls.append(name)
        return single(name, older)

    monkeypatch.setattr(collectives, "_single", counted)
    monkeypatch.setattr(collectives.dist, "all_reduce", lambda *a, **k: calls.append("all_reduce"))

    def work(world):
        model = head(world=world, rate=0.5, rule="dense_exact")
        feature, label = data(3, seed=world.rank)
        for _ in range(2):
            model(feature.requires_grad_(), label).backward()
            model.update(lr=0.1)

    ranks(4, work)  # and one more at the first, by which ranks find that they are of one table
    assert sorted(calls) == ["all_gather_single"] * (4 + 2 * 8) + ["reduce_scatter_single"] * 8


class Largest(TorchDispatchMode):
    """Remember the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_the_logits_are_never_stored():
    n, classes, dim, block = 64, 4096, 8, 128
    model = head(
        classes=classes,
        dim=dim,
        block=block,
        dtype=torch.float32,
        threshold=0.5,
        masks=[[0, 1]],
        keep=0,
    )
    feature, label = data(n, classes, dim, dtype=torch.float32)
    with Largest() as seen:
        model(feature.requires_grad_(), label, step=0).backward()
        model.update(step=0, lr=0.1)
    assert seen.numel == n * block  # not n * classes, nor classes * dim


@pytest.mark.parametrize("gemm", ["float32", "bf16"])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_exponentials_kept_or_computed_again_give_the_same(rate, gemm):
    ends = []
    for keep in (0, 1 << 20):
        model = head(200, 16, rate=rate, dtype=torch.float32, block=32, keep=keep, gemm=gemm)
        feature, label = data(9, 200, 16, dtype=torch.float32)
        loss = model(feature.requires_grad_(), label, step=0)
        loss.backward()
        ends.append((loss.detach(), feature.grad, model.gradient()[1]))
    for one, other in zip(*ends):
        assert (one - other).norm() < (2e-2 if gemm == "bf16" else 1e-5) * other.norm()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("worlds", [(2, 3), (1, 4), (3, 1)])
def test_rows_load_at_another_world_and_training_goes_on(ranks, rule, worlds):
    classes, total = 11, 12

    def steps(model, world, first, last):
        for step in range(first, last):
            feature, label = data(total, classes, 6, seed=step)
            mine = slice(*span(total, world.size, world.rank))
            model(feature[mine], label[mine], step=step).backward()
            model.update(step=step, lr=0.01)

    def first(world):
        model = head(classes, world=world, rule=rule, rate=0.4)
        steps(model, world, 0, 4)
        start, stop, rows = model.state_rows()
        assert (start, stop) == tuple(span(classes, world.size, world.rank))
        return {name: value.clone() for name, value in rows.items()}

    saved = ranks(worlds[0], first)
    table = {name: torch.cat([rows[name] for rows in saved]) for name in saved[0]}
    assert all(len(value) == classes for value in table.values())

    def second(world):
        model = head(classes, world=world, rule=rule, rate=0.4, seed=0)
        model.load_rows(lambda name, start, stop: table[name][start:stop])
        assert torch.equal(model.weight, table["weight"][slice(*model.span)])
        steps(model, world, 4, 7)
        return model.state_rows()[2]["weight"]

    def never_stopped(world):
        model = head(classes, world=world, rule=rule, rate=0.4)
        steps(model, world, 0, 4)
        model.state_rows()
        steps(model, world, 4, 7)
        return model.state_rows()[2]["weight"]

    resumed = torch.cat(ranks(worlds[1], second))
    truth = torch.cat(ranks(1, never_stopped))
    torch.testing.assert_close(resumed, truth, rtol=1e-11, atol=1e-13)
    if worlds[0] == worlds[1] == 1:
        assert torch.equal(resumed, truth)


@pytest.mark.parametrize("rule", RULES)
def test_resumed_equals_never_stopped_to_the_bit(rule):
    def steps(model, first, last):
        for step in range(first, last):
            feature, label = data(6, seed=step, dtype=torch.float32)
            model(feature, label, step=step).backward()
            model.update(step=step, lr=0.01)

    whole = head(rule=rule, rate=0.2, dtype=torch.float32)
    steps(whole, 0, 5)
    saved = {name: value.clone() for name, value in whole.state_rows()[2].items()}
    steps(whole, 5, 9)
    resumed = head(rule=rule, rate=0.2, dtype=torch.float32)
    resumed.load_rows(lambda name, start, stop: saved[name][start:stop])
    steps(resumed, 5, 9)
    for name, value in whole.state_rows()[2].items():
        assert torch.equal(value, resumed.state_rows()[2][name])


def test_statistics_are_those_of_the_batch():
    feature, label = data(9)
    model = head()
    assert model.statistics() == {}
    model(feature, label, step=0)
    cosine = F.normalize(feature) @ F.normalize(model.weight).T
    own = cosine[torch.arange(9), label]
    others = cosine.clone()
    others[torch.arange(9), label] = -2
    assert model.statistics() == pytest.approx(
        {
            "positive_cosine": float(own.mean()),
            "hardest_negative": float(others.amax(1).mean()),
            "accuracy": float((own > others.amax(1)).double().mean()),
            "centre_norm": float(model.weight.norm(dim=1).mean()),
        }
    )


def test_a_rank_without_classes_says_so(ranks):
    def work(world):
        model = head(classes=2, world=world)
        feature, label = data(2, classes=2, seed=world.rank)
        loss = model(feature.requires_grad_(), label, step=0)
        loss.backward()
        model.update(step=0, lr=0.1)
        return model.weight.shape[0], loss.item(), set(model.statistics())

    sizes, losses, names = zip(*ranks(4, work))
    assert sizes == (1, 1, 0, 0) and len(set(losses)) == 1
    assert names[3] == {"positive_cosine", "hardest_negative", "accuracy"}


def test_learning_lowers_the_loss():
    """Features fixed, centres learn: every sample finds its class."""
    classes, dim = 200, 32
    feature, label = data(64, classes, dim, dtype=torch.float32)
    label = torch.arange(64)
    model = PartialFC(classes, dim, PartialFCOptions(rate=0.3, rule="none"), margin=CosFace(0.2))
    losses = []
    for step in range(40):
        loss = model(feature, label, step=step)
        loss.backward()
        model.update(step=step, lr=0.05)
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    cosine = F.normalize(feature) @ F.normalize(model.weight).T
    assert (cosine.argmax(1) == label).double().mean() > 0.95


@pytest.mark.parametrize("world_size", [2, 5])
def test_hard_negatives_are_the_same_for_every_world(ranks, world_size):
    classes, near = 23, torch.stack([(torch.arange(23) + far) % 23 for far in (1, 2)], 1).int()

    def work(world):
        model = head(
            classes,
            world=world,
            rate=0.6,
            near=near.clone(),
            hard_ratio=0.5,
            masks=[(3, 4), (8, 9)],
        )
        losses = []
        for step in range(4):
            feature, label = data(10, classes, seed=step)
            mine = slice(*span(10, world.size, world.rank))
            loss = model(feature[mine], label[mine], step=step)
            loss.backward()
            model.update(step=step, lr=0.1)
            losses.append(loss.item())
        return losses, model.weight

    ((truth, whole),) = ranks(1, work)
    found = ranks(world_size, work)
    assert all(losses == found[0][0] for losses, _ in found)
    assert found[0][0] == pytest.approx(truth, rel=1e-12)
    torch.testing.assert_close(torch.cat([w for _, w in found]), whole, rtol=1e-11, atol=1e-13)
    with pytest.raises(UsageError, match="table has 23 classes, expected 24"):
        head(24, near=near, hard_ratio=0.5, rate=0.5)
