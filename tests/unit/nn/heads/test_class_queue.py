"""DCQ's queue and AttFC's class rows against their equations written out, on one rank and more."""

from __future__ import annotations

from collections import deque

import pytest
import torch
import torch.nn.functional as F

from glint.dist.span import span
from glint.errors import InputError, MismatchError, UsageError
from glint.nn.heads.class_queue import ClassQueue
from glint.nn.heads.options import ClassQueueOptions
from glint.nn.margins import ArcFace, CosFace

F64 = torch.float64
PEOPLE, DIM, SCALE, MARGIN = 12, 8, 16.0, 0.3


def queue(slots=14, *, classes=PEOPLE, images=1, threshold=0.0, **rest):
    options = ClassQueueOptions(
        slots=slots, gallery=images, scale=SCALE, block=5, threshold=threshold
    )
    return ClassQueue(classes, DIM, options, **{"margin": CosFace(MARGIN), "dtype": F64, **rest})


def batch(step, n=4, images=1, classes=PEOPLE):
    """Global (feature, gallery, label)."""
    draw = torch.Generator().manual_seed(step)
    label = torch.randint(0, classes, (n,), generator=draw)
    feature = torch.randn(n, DIM, generator=draw, dtype=F64)
    return feature, torch.randn(n * images, DIM, generator=draw, dtype=F64), label


def go(head, step, **options):
    feature, gallery, label = batch(step, images=head.options.gallery, **options)
    loss = head(feature.requires_grad_(), label, step=step, gallery_nD=gallery)
    loss.backward()
    head.update(step=step, lr=0.1)
    return float(loss.detach()), feature.grad


class Plain:
    """The equations, one sample at a time: a deque of (label, row)."""

    def __init__(self, slots, images):
        self.rows, self.images = deque(maxlen=slots), images

    def step(self, feature, gallery, label):
        losses, new = [], []
        for i, (f, name) in enumerate(zip(F.normalize(feature, dim=1), label.tolist())):
            own = gallery[i * self.images : (i + 1) * self.images]
            attention = torch.tensor([f.detach() @ g / g.norm() for g in own], dtype=F64)
            attention = attention.exp() / attention.exp().sum()
            w = sum(a * g for a, g in zip(attention, own))
            w = w / w.norm()
            negatives = [f @ row for other, row in self.rows if other != name]
            logits = SCALE * torch.stack([f @ w - MARGIN, *negatives])
            losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
            new.append((name, w))
        self.rows.extend(new)
        return torch.stack(losses).mean()


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("slots", [4, 14])
def test_losses_and_gradients_are_those_of_the_equations(slots, images):
    head, plain = queue(slots, images=images), Plain(slots, images)
    masked = 0
    for step in range(12):
        feature, gallery, label = batch(step, images=images)
        masked += sum(name in label.tolist() for name, _ in plain.rows)
        theirs = feature.clone().requires_grad_()
        truth = plain.step(theirs, gallery, label)
        truth.backward()
        loss, grad = go(head, step)
        assert loss == pytest.approx(float(truth.detach()), rel=1e-12, abs=1e-12)
        torch.testing.assert_close(grad, theirs.grad, rtol=1e-10, atol=1e-13)
        assert sorted(head.label[: head.used].tolist()) == sorted(name for name, _ in plain.rows)
        assert (loss == 0) == (step == 0)  # the first batch finds no negative
    assert masked > 10


def test_the_place_to_write_goes_round():
    head = queue(6)
    for step in range(3):
        go(head, step)
    label = torch.cat([batch(step)[2] for step in range(3)])  # 12 rows in 6 slots
    assert head.label.tolist() == label[6:].tolist() and (head.used, head.next) == (6, 0)
    go(head, 3)
    newest = F.normalize(batch(3)[1], dim=1)
    torch.testing.assert_close(head.weight[:4], newest, rtol=1e-12, atol=0)
    assert head.label.tolist() == [*batch(3)[2].tolist(), *label[10:].tolist()] and head.next == 4


def test_labels_are_compared_as_whole_numbers():
    """Two labels that are one number in float32."""
    low = 2**24
    assert float(torch.tensor(low, dtype=torch.float32)) == torch.tensor(low + 1).float()
    head = queue(classes=2**25, dtype=torch.float32)
    row = torch.eye(DIM)[:1]
    head(row, torch.tensor([low]), step=0, gallery_nD=row)
    other = head(row, torch.tensor([low + 1]), step=1, gallery_nD=row)
    assert float(other.detach()) == pytest.approx(SCALE * MARGIN, rel=0.01)  # against the first
    third = head(row, torch.tensor([low]), step=2, gallery_nD=-row)
    assert float(third.detach()) > 2 * SCALE  # its negative is the second
    assert head.label[:3].tolist() == [low, low + 1, low]


def test_no_gradient_goes_to_the_class_rows():
    head = queue(images=2)
    for step in range(3):
        feature, gallery, label = batch(step, images=2)
        gallery.requires_grad_()
        loss = head(feature.requires_grad_(), label, step=step, gallery_nD=gallery)
        loss.backward()
        assert gallery.grad is None and not head.weight.requires_grad
        assert bool((feature.grad != 0).any()) == (step > 0)


def test_attention_prefers_the_image_that_is_like_the_sample():
    head = queue(images=2)
    feature = torch.eye(DIM, dtype=F64)[:1]
    gallery = torch.stack([2 * torch.eye(DIM, dtype=F64)[0], torch.eye(DIM, dtype=F64)[1]])
    e = torch.tensor([1.0, 0.0], dtype=F64).exp()
    raw = torch.tensor([2.0, 1.0], dtype=F64) * e / e.sum()  # raw features, lengths and all
    found = head.centres(feature, gallery)[0]
    torch.testing.assert_close(found[:2], raw / raw.norm(), rtol=1e-12, atol=1e-12)
    assert torch.count_nonzero(found[2:]) == 0
    one = queue().centres(feature, gallery[1:])  # with a single image: that image, to the bit
    assert torch.equal(one, gallery[1:])


def test_a_dropped_step_leaves_no_trace():
    head = queue(6)
    for step in range(5):
        go(head, step)
        before = head.digest()
        for again in (10, 11):  # two passes of one step
            feature, gallery, label = batch(again)
            head(feature, label, step=again, gallery_nD=gallery)
            assert head.digest() != before
        head.drop()
        assert head.digest() == before and not head._written


def test_what_does_not_fit_is_refused_and_not_written():
    head = queue(5)
    before = head.digest()
    feature, gallery, label = batch(1, n=6)
    with pytest.raises(UsageError, match=r"GL0002.*slots is 5, a global batch has 6 samples"):
        head(feature, label, step=0, gallery_nD=gallery)
    label[2] = PEOPLE
    with pytest.raises(InputError, match=r"GL0222.*from 0 to 11, found 12"):
        head(feature, label, step=0, gallery_nD=gallery)
    assert head.digest() == before
    with pytest.raises(UsageError, match="gallery is 0, expected at least 1"):
        queue(images=0)


def test_a_batch_is_groups():
    sample, other = queue(images=2).parts(torch.arange(12))
    assert sample.tolist() == [0, 3, 6, 9] and other.tolist() == [1, 2, 4, 5, 7, 8, 10, 11]
    image = torch.arange(24.0).reshape(12, 2)
    sample, other = queue().parts(image)
    assert torch.equal(sample, image[0::2]) and torch.equal(other, image[1::2])


@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_are_one(ranks, size):
    saved = {}

    def work(world):
        head = queue(21, images=2, world=world, masks=[[1, 2], [3, 4]])
        n, losses, grads = 8 // world.size, [], []
        for step in range(6):
            feature, gallery, label = batch(step, n=8, images=2)
            mine = slice(world.rank * n, (world.rank + 1) * n)
            two = slice(2 * world.rank * n, 2 * (world.rank + 1) * n)
            feature = feature[mine].clone().requires_grad_()
            loss = head(feature, label[mine], step=step, gallery_nD=gallery[two])
            loss.backward()
            head.update(step=step, lr=0.1)
            losses.append(float(loss.detach()))
            grads.append(feature.grad / world.size)
        start, stop, rows = head.state_rows()
        saved[world.size, world.rank] = start, stop, {k: v.clone() for k, v in rows.items()}
        return losses, torch.stack(grads), head.digest()

    one = ranks(1, work)[0]
    many = ranks(size, work)
    assert all(rank[0] == many[0][0] and rank[2] == one[2] for rank in many)
    assert many[0][0] == pytest.approx(one[0], rel=1e-12)
    grads = torch.cat([rank[1] for rank in many], 1)
    torch.testing.assert_close(grads, one[1], rtol=1e-10, atol=1e-13)
    assert [saved[size, r][:2] for r in range(size)] == [span(21, size, r) for r in range(size)]
    fresh = queue(21, images=2)
    fresh.load_rows(
        lambda name, start, stop: torch.cat([saved[size, r][2][name] for r in range(size)])[
            start:stop
        ]
    )
    assert fresh.digest() == one[2]


@pytest.mark.parametrize("done", [0, 2, 3, 7])  # empty, half full, full, gone round
def test_a_loaded_queue_goes_on_to_the_bit(done):
    whole, second = queue(), queue()
    for step in range(done):
        go(whole, step)
    rows = {name: value.clone() for name, value in whole.state_rows()[2].items()}
    second.load_rows(lambda name, start, stop: rows[name][start:stop])
    assert second.digest() == whole.digest()
    for step in range(done, done + 5):
        a, b = go(whole, step), go(second, step)
        assert a[0] == b[0] and torch.equal(a[1], b[1])
    assert second.digest() == whole.digest()


def test_queues_that_differ_are_told_on_every_rank(ranks):
    def work(world):
        head = queue(world=world)
        head.next = int(world.rank == 1)
        with pytest.raises(MismatchError, match=r"GL0602.*rank 1 holds other class rows"):
            head.state_rows()
        return True

    assert ranks(3, work) == [True] * 3


def test_memory_and_work_do_not_depend_on_the_classes(counted):
    found = []
    for classes in (10_000, 1_000_000):
        head = queue(classes=classes, images=2)
        with counted() as count:
            for step in range(4):
                feature, gallery, label = batch(step, images=2)
                label = label * (classes // PEOPLE)
                head(feature.requires_grad_(), label, step=step, gallery_nD=gallery).backward()
                head.update(step=step, lr=0.1)
        bytes_kept = sum(buffer.numel() * buffer.element_size() for buffer in head.buffers())
        found.append((bytes_kept, count.calls, count.numbers))
    assert found[0] == found[1] and found[0][0] == 14 * (DIM * 8 + 8) and found[0][1] > 100


@pytest.mark.parametrize("way", ["masks", "threshold"])
def test_known_pairs_and_close_ones_do_not_repel(way):
    def second(**options):
        head = queue(**options)
        row = torch.eye(DIM, dtype=F64)[:1]
        head(row, torch.tensor([1]), step=0, gallery_nD=row)
        feature = (row + 0.5 * row.roll(1, 1)).requires_grad_()
        loss = head(feature, torch.tensor([2]), step=1, gallery_nD=row.roll(1, 1))
        loss.backward()
        return float(loss.detach()), feature.grad

    plain = second()
    apart = second(masks=[[1, 2]]) if way == "masks" else second(threshold=0.3)
    assert plain[0] > 0.05 and float(plain[1].abs().max()) > 0.01
    assert apart[0] == 0 and torch.count_nonzero(apart[1]) == 0
    assert second(masks=[[2, 3]])[0] == plain[0]


def test_every_margin_and_the_figures_of_a_batch():
    head = queue(margin=ArcFace(0.5))
    assert head.statistics() == {"slots_used": 0.0}
    feature, gallery, label = batch(0)
    head(feature, label, step=0, gallery_nD=gallery)
    assert sorted(head.statistics()) == ["positive_cosine", "slots_used"]
    before = head.weight[:4].clone()
    feature, gallery, label = batch(1)
    loss = head(feature, label, step=1, gallery_nD=gallery)
    unit, own = F.normalize(feature, dim=1), F.normalize(gallery, dim=1)
    positive, negative = (unit * own).sum(1), unit @ before.t()
    negative[label[:, None] == batch(0)[2]] = -torch.inf
    target = torch.cos(torch.arccos(positive) + 0.5)
    logits = SCALE * torch.cat([target[:, None], negative], 1)
    truth = F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=0)
    found = head.statistics()
    assert found["slots_used"] == 8 / 14
    assert found["positive_cosine"] == pytest.approx(float(positive.mean()))
    assert found["hardest_negative"] == pytest.approx(float(negative.amax(1).mean()))
    assert found["accuracy"] == float((positive > negative.amax(1)).double().mean())
