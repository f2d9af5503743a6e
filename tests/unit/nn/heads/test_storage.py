"""bf16 storage: right on average, the same for every world and order of blocks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from glint.nn.heads.options import RULES, PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.heads.storage import Store, noise
from glint.nn.margins import CosFace


def rounded(value, rows, step=0):
    store = Store(torch.float32, seed=3)
    table = torch.zeros(rows, 8, dtype=torch.bfloat16)
    store.put(table, slice(0, rows), torch.full((rows, 8), value), salt=0, step=step)
    return table.double()


@pytest.mark.parametrize("value", [1.001, -1.001, 3.1415926, -0.0123, 1e-30])
def test_rounding_is_right_on_average_and_never_beyond_the_neighbours(value):
    rows = 20_000
    got = rounded(value, rows)
    kinds = torch.unique(got)
    assert kinds.numel() == 2
    low, high = kinds.tolist()
    assert low < value < high
    assert float((got.flatten()[0]).to(torch.bfloat16)) in (low, high)
    error = (high - low) / 2 / math.sqrt(rows * 8)
    assert abs(float(got.mean()) - value) < 5 * error


def test_what_bf16_can_hold_stays():
    for value in (0.0, 1.0, -0.5, 32000.0):
        assert (rounded(value, 100) == value).all()


def test_not_finite_stays_not_finite():
    store, table = Store(torch.float32), torch.zeros(1, 3, dtype=torch.bfloat16)
    store.put(
        table, slice(0, 1), torch.tensor([[torch.inf, -torch.inf, torch.nan]]), salt=0, step=0
    )
    assert not torch.isfinite(table).any()


def test_noise_is_uniform_and_of_class_column_and_key():
    draw = noise(torch.arange(4000), 33, 77)
    assert draw.dtype == torch.int16 and draw.shape == (4000, 33)
    assert torch.equal(noise(torch.arange(1000, 1010), 33, 77), draw[1000:1010])
    count = torch.bincount((draw.to(torch.int64) + 32768).flatten() // 4096, minlength=16).double()
    expected = draw.numel() / 16
    assert float(((count - expected) ** 2 / expected).sum()) < 15 + 5 * math.sqrt(30)
    for other in (
        noise(torch.arange(4000), 33, 78),
        draw.roll(1, 0),
        draw.roll(1, 1),
        draw.roll(2, 1),
    ):
        apart = torch.corrcoef(torch.stack([draw.double().flatten(), other.double().flatten()]))
        assert abs(float(apart[0, 1])) < 5 / math.sqrt(draw.numel())


@pytest.mark.parametrize("rule", RULES)
def test_worlds_and_blocks_agree_to_the_bit_where_gradients_do(rule):
    """Rows written in other blocks, or from another first class, are rounded alike."""
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    whole, parts = Store(torch.float32, seed=1), Store(torch.float32, seed=1, first=16)
    draw = {"salt": RULES.index(rule), "step": 4}
    table, part = torch.zeros(40, 6).bfloat16(), torch.zeros(24, 6).bfloat16()
    whole.put(table, slice(0, 40), rows, **draw)
    parts.put(part, torch.tensor([0, 3, 23]), rows[[16, 19, 39]], **draw)
    assert torch.equal(part[[0, 3, 23]], table[[16, 19, 39]])


def steps(model, first, last, lr=0.05):
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        label = torch.randint(0, 50, (24,), generator=generator)
        faces = F.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(99)))
        loss = model(
            faces[label] + 0.05 * torch.randn(24, 16, generator=generator), label, step=step
        )
        loss.backward()
        model.update(step=step, lr=lr)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("rule", RULES)
def test_bf16_learns_as_float32_does_and_resumes_to_the_bit(rule):
    lr = 0.005 if rule == "adamw" else 0.02

    def made(storage):
        options = PartialFCOptions(scale=16.0, rate=0.4, rule=rule, storage=storage)
        return PartialFC(120, 16, options, margin=CosFace(0.2))

    whole = made("bf16")
    tables = [name for name, value in whole.state_rows()[2].items() if value.is_floating_point()]
    assert all(getattr(whole, name).dtype == torch.bfloat16 for name in tables)
    losses = steps(whole, 0, 30, lr)
    saved = {name: value.clone() for name, value in whole.state_rows()[2].items()}
    losses += steps(whole, 30, 60, lr)
    resumed = made("bf16")
    resumed.load_rows(lambda name, start, stop: saved[name][start:stop])
    steps(resumed, 30, 60, lr)
    for name, value in whole.state_rows()[2].items():
        assert torch.equal(value, resumed.state_rows()[2][name])
    exact = steps(made("float32"), 0, 60, lr)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert abs(sum(losses[-10:]) / sum(exact[-10:]) - 1) < 0.1


def test_small_updates_are_not_lost():
    """An update of 1/2000 of a weight, 400 times: to nearest, bf16 would never move."""
    store = Store(torch.float32)
    table = torch.ones(500, 4, dtype=torch.bfloat16)
    nearest = table.clone()
    for step in range(400):
        rows = store.take(table, slice(0, 500)) * (1 - 1 / 2000)
        store.put(table, slice(0, 500), rows, salt=0, step=step)
        nearest = (nearest.float() * (1 - 1 / 2000)).bfloat16()
    assert (nearest == 1).all()
    assert abs(float(table.double().mean()) - (1 - 1 / 2000) ** 400) < 2e-3
