"""F2C's pool against its equations written out, on one rank and on several."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F

from glint.dist.span import span
from glint.errors import InputError, MismatchError, UsageError
from glint.nn.heads.class_pool import ClassPool
from glint.nn.heads.options import ClassPoolOptions
from glint.nn.margins import CosFace

F64 = torch.float64
PEOPLE, DIM, SCALE, MARGIN = 60, 8, 16.0, 0.3


def pool(slots=14, singles=4, *, classes=PEOPLE, threshold=0.0, masks=None, world=None):
    options = ClassPoolOptions(slots=slots, scale=SCALE, block=5, threshold=threshold)
    rest = {"singles": singles, "masks": masks, "world": world, "dtype": F64}
    return ClassPool(classes, DIM, options, margin=CosFace(MARGIN), **rest)


def batch(step, pairs=4, singles=4, world=1, classes=PEOPLE):
    """Global (feature, gallery, label): pairs of one identity, then single images."""
    draw = torch.Generator().manual_seed(step)
    pairs, singles = pairs * world, singles * world
    name = torch.randint(0, classes, (pairs,), generator=draw).repeat_interleave(2)
    label = torch.cat([name, torch.randint(0, classes, (singles,), generator=draw)])
    feature = torch.randn(len(label), DIM, generator=draw, dtype=F64)
    return feature, torch.randn(len(label), DIM, generator=draw, dtype=F64), label


class Plain:
    """The equations, one sample at a time: `rows` is label -> [row 0, row 1, next row]."""

    def __init__(self, slots, nearest=3):
        self.slots, self.nearest, self.rows = slots, nearest, OrderedDict()

    def half(self, feature, label, gallery, names):
        hit = set()
        for g, name in zip(F.normalize(gallery, dim=1), names.tolist()):
            if name in self.rows:
                self.rows[name][self.rows[name][2]] = g
                self.rows[name][2] ^= 1
                hit.add(name)
            else:
                if len(self.rows) == self.slots:
                    self.rows.popitem(last=False)
                self.rows[name] = [g, None, 1]
            self.rows.move_to_end(name)
        first = {name: entry[0] for name, entry in self.rows.items()}
        newer = {name: entry[1 if name in hit else 0] for name, entry in self.rows.items()}
        loss = feature.new_zeros(())
        for table in (first, newer):
            order = list(table)
            weight = torch.stack([table[name] for name in order])
            cosine = F.normalize(feature, dim=1) @ weight.t()
            inside = [i for i, name in enumerate(label.tolist()) if name in table]
            outside = [i for i in range(len(label)) if i not in inside]
            if inside:
                target = torch.tensor([order.index(int(label[i])) for i in inside])
                logit = cosine[inside] - MARGIN * F.one_hot(target, len(order)).to(F64)
                loss = loss + F.cross_entropy(SCALE * logit, target)
            if outside:
                near = cosine[outside].clamp_min(0).topk(min(self.nearest, len(order)), 1).values
                loss = loss + near.mean(1).mean()
        return loss

    def step(self, feature, gallery, label):
        kept = OrderedDict((name, list(entry)) for name, entry in self.rows.items())
        loss = self.half(feature[0::2], label[0::2], gallery[1::2], label[1::2])
        self.rows = kept
        return loss + self.half(feature[1::2], label[1::2], gallery[0::2], label[0::2])


@pytest.mark.parametrize("slots", [8, 14, 60])
def test_losses_and_gradients_are_those_of_the_equations(slots):
    head, plain = pool(slots), Plain(slots)
    hits = []
    for step in range(25):
        feature, gallery, label = batch(step)
        mine, theirs = feature.clone().requires_grad_(), feature.clone().requires_grad_()
        loss, truth = (
            head(mine, label, step=step, gallery_nD=gallery),
            plain.step(theirs, gallery, label),
        )
        loss.backward()
        truth.backward()
        head.update(step=step, lr=0.1)
        torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-13)
        for name, (first, _, turn) in plain.rows.items():
            slot = head.directory.slot(name)
            assert torch.equal(head.weight[0, slot], first) and head.directory.turn[slot] == turn
        hits.append(head.statistics()["hits"])
        assert hits[-1] >= 8 / 12  # of a pair each finds the other
    assert len(head.directory) == min(slots, len(plain.rows)) and 8 / 12 <= min(hits) < 1


def test_a_dropped_step_leaves_no_trace():
    head = pool(8)
    for step in range(6):
        feature, gallery, label = batch(step)
        head(feature.requires_grad_(), label, step=step, gallery_nD=gallery).backward()
        head.update(step=step, lr=0.1)
    before = head.digest()
    for step in (6, 7):  # two passes of one step
        feature, gallery, label = batch(step)
        head(feature, label, step=step, gallery_nD=gallery)
        assert head.digest() != before
    head.drop()
    assert head.digest() == before and not head._written and not head.directory.done


def test_of_many_images_of_one_person_the_last_stays():
    head = pool(8, singles=0)
    feature, gallery, _ = batch(0, pairs=5, singles=0)
    label = torch.full((10,), 3)
    head(feature, label, step=0, gallery_nD=gallery)
    kept = F.normalize(gallery[0::2], dim=1)  # five writes: rows 0 1 0 1 0
    assert torch.equal(head.weight[0, 0], kept[4]) and torch.equal(head.weight[1, 0], kept[3])
    assert head.directory.turn[0] == 1 and len(head.directory) == 1


def test_a_pool_too_small_is_refused_and_not_written():
    head = pool(5)
    feature, gallery, label = batch(1)
    before = head.digest()
    with pytest.raises(UsageError, match=r"GL0002.*slots is 5, half a global batch has 6"):
        head(feature, label, step=0, gallery_nD=gallery)
    label[2] = PEOPLE
    with pytest.raises(InputError, match=r"GL0222.*from 0 to 59, found 60"):
        head(feature, label, step=0, gallery_nD=gallery)
    assert head.digest() == before
    with pytest.raises(UsageError, match="slots is 0, expected at least 1"):
        pool(0)


def share(world, x, pairs=4, singles=4):
    """One rank's rows of a global batch."""
    a, b = 2 * pairs, 2 * pairs * world.size
    r = world.rank
    return torch.cat([x[r * a : (r + 1) * a], x[b + r * singles : b + (r + 1) * singles]])


@pytest.mark.parametrize("size", [2, 3])
def test_many_ranks_are_one(ranks, size):
    saved = {}

    def work(world):
        singles = 4 if world.size == size else 4 * size
        pairs = 4 if world.size == size else 4 * size
        head = pool(20 * size, singles, world=world)
        losses, grads = [], []
        for step in range(8):
            rows = [share(world, x, pairs, singles) for x in batch(step, 4, 4, size)]
            feature = rows[0].requires_grad_()
            loss = head(feature, rows[2], step=step, gallery_nD=rows[1])
            loss.backward()
            head.update(step=step, lr=0.1)
            losses.append(float(loss.detach()))
            grads.append(feature.grad / world.size)
        start, stop, rows = head.state_rows()
        saved[world.size, world.rank] = start, stop, {k: v.clone() for k, v in rows.items()}
        return losses, grads, head.digest()

    one = ranks(1, work)[0]
    many = ranks(size, work)
    assert all(rank[0] == many[0][0] and rank[2] == one[2] for rank in many)
    assert many[0][0] == pytest.approx(one[0], rel=1e-12)
    pairs = torch.cat([rank[1][-1][:8] for rank in many])
    singles = torch.cat([rank[1][-1][8:] for rank in many])
    torch.testing.assert_close(torch.cat([pairs, singles]), one[1][-1], rtol=1e-10, atol=1e-13)

    def fetch(name, start, stop):
        parts = [saved[size, rank][2][name] for rank in range(size)]
        return torch.cat(parts)[start:stop]

    assert [saved[size, r][:2] for r in range(size)] == [
        span(20 * size, size, r) for r in range(size)
    ]
    fresh = pool(20 * size, 4)
    fresh.load_rows(fetch)
    assert fresh.digest() == one[2]


def test_a_loaded_pool_goes_on_to_the_bit():
    def run(head, steps):
        losses = []
        for step in steps:
            feature, gallery, label = batch(step)
            losses.append(float(head(feature, label, step=step, gallery_nD=gallery)))
            head.update(step=step, lr=0.1)
        return losses

    whole, first, second = pool(), pool(), pool()
    expected = run(whole, range(12))[6:]
    run(first, range(6))
    rows = first.state_rows()[2]
    second.load_rows(lambda name, start, stop: rows[name][start:stop])
    assert run(second, range(6, 12)) == expected and second.digest() == whole.digest()


def test_pools_that_differ_are_told_on_every_rank(ranks):
    def work(world):
        head = pool(world=world)
        if world.rank == 1:
            head.weight[0, 0, 0] = 1
        with pytest.raises(MismatchError, match=r"GL0602.*rank 1 holds other class rows"):
            head.state_rows()
        return True

    assert ranks(3, work) == [True] * 3


def test_memory_and_work_do_not_depend_on_the_classes(counted):
    found = []
    for classes in (10_000, 1_000_000):
        head = pool(classes=classes)
        with counted() as count:
            for step in range(3):
                feature, gallery, label = batch(step)
                label = label * (classes // PEOPLE)
                head(feature.requires_grad_(), label, step=step, gallery_nD=gallery).backward()
                head.update(step=step, lr=0.1)
        bytes_kept = sum(buffer.numel() * buffer.element_size() for buffer in head.buffers())
        found.append((bytes_kept, count.calls, count.numbers))
    assert found[0] == found[1] and found[0][0] == 2 * 14 * DIM * 8 and found[0][1] > 100


@pytest.mark.parametrize("way", ["masks", "threshold"])
def test_known_pairs_and_close_ones_do_not_repel(way):
    def grad(**options):
        head = pool(8, singles=0, **options)
        label = torch.tensor([1, 1, 2, 2])
        gallery = torch.eye(DIM, dtype=F64)[[0, 0, 1, 1]]
        feature = (gallery + 0.6 * gallery.flip(0)).requires_grad_()
        loss = head(feature, label, step=0, gallery_nD=gallery)
        loss.backward()
        return float(loss), feature.grad

    plain = grad()
    apart = grad(masks=[[1, 2]]) if way == "masks" else grad(threshold=0.3)
    assert plain[0] > 0.05 and float(plain[1].abs().max()) > 0.01
    assert apart[0] == 0 and torch.count_nonzero(apart[1]) == 0


def test_an_unknown_person_is_pushed_only_from_the_nearest():
    head = pool(40, singles=0)
    feature, gallery, _ = batch(3, pairs=10, singles=0)
    label = torch.arange(10).repeat_interleave(2)
    head(feature, label, step=0, gallery_nD=gallery)
    head.update(step=0, lr=0.1)
    used = head.weight[0, :10]
    label = torch.arange(20, 40)  # no two alike: each half sees only its own other half
    probe = feature.clone().requires_grad_()
    loss = head(probe, label, step=1, gallery_nD=gallery)
    loss.backward()
    rows = torch.cat([used, F.normalize(gallery[1::2], dim=1)])
    cosine = F.normalize(probe[0::2], dim=1) @ rows.t()
    half = 2 * cosine.clamp_min(0).topk(3, 1).values.mean()
    expected = torch.autograd.grad(half, probe)[0][0::2]
    torch.testing.assert_close(probe.grad[0::2], expected, rtol=1e-10, atol=1e-13)
    assert head.statistics()["hits"] == 0 and "positive_cosine" not in head.statistics()


def test_a_half_that_does_not_count_leaves_no_trace():
    head = pool(8)
    for step in range(6):
        feature, gallery, label = batch(step)
        head(feature, label, step=step, gallery_nD=gallery)
        head.update(step=step, lr=0.1)
    _, gallery, label = batch(6)
    before, done = head.digest(), head.directory.done
    written = head._write(F.normalize(gallery[1::2], dim=1), label[1::2].tolist())
    assert head.digest() != before
    head._restore(written)
    head.directory.undo(done)
    assert head.digest() == before


def test_a_single_image_finds_its_identity_as_often_as_the_pool_holds_one():
    """With slots for a quarter of the people, a quarter of the single images, to four sigma."""
    head = pool(PEOPLE // 4)
    paired, single, steps = 8, 4, 110
    found = 0
    for step in range(steps):
        feature, gallery, label = batch(step)
        head(feature, label, step=step, gallery_nD=gallery)
        head.update(step=step, lr=0.1)
        if step >= 10:  # full by then
            found += round(head.statistics()["hits"] * (paired + single)) - paired
    drawn = (steps - 10) * single
    assert abs(found / drawn - 0.25) < 4 * (0.25 * 0.75 / drawn) ** 0.5
