"""Row rules: hand-computed steps, and dense_exact against torch.optim.SGD over the whole table."""

from __future__ import annotations

import pytest
import torch

from glint.errors import UsageError
from glint.nn.heads.storage import Store
from glint.nn.heads.updates import DenseExact, LazyAdamW, Table, apply, row_rule

F64 = torch.float64


def table(rule, rows=4, dim=1):
    return of(rule, torch.arange(1, rows * dim + 1, dtype=F64).reshape(rows, dim))


def of(rule, weight):
    return Table(weight, rule.state(weight), Store(weight.dtype))


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), rtol=0, atol=1e-15)


def test_none_by_hand():
    rule = row_rule("none", weight_decay=0.1)
    rows = table(rule)
    weight, state = rows.weight_cD, rows.state
    index, grad = torch.tensor([1, 3]), torch.tensor([[0.5], [-1.0]], dtype=F64)
    apply(rule, rows, index, grad, step=0, lr=0.2)
    # 2 - 0.2 (0.5 + 0.1 * 2) = 1.86; 4 - 0.2 (-1 + 0.1 * 4) = 4.12
    close(weight[:, 0], [1, 1.86, 3, 4.12])
    assert state == {}


def test_v1_stale_by_hand():
    rule = row_rule("v1_stale", momentum=0.5, weight_decay=0.1)
    rows = table(rule)
    weight, state = rows.weight_cD, rows.state
    one = torch.tensor([1])
    apply(rule, rows, one, torch.tensor([[1.0]], dtype=F64), step=0, lr=0.1)
    # v = 1 + 0.1 * 2 = 1.2; w = 2 - 0.12 = 1.88
    close(state["momentum"][1], [1.2])
    close(weight[1], [1.88])
    apply(rule, rows, one, torch.tensor([[-1.0]], dtype=F64), step=5, lr=0.1)
    # the momentum as it was left: v = 0.5 * 1.2 - 1 + 0.188 = -0.212; w = 1.88 + 0.0212
    close(state["momentum"][1], [-0.212])
    close(weight[:, 0], [1, 1.9012, 3, 4])


def test_lazy_decay_by_hand():
    rule = row_rule("lazy_decay", momentum=0.5, weight_decay=0.0)
    rows = table(rule)
    weight, state = rows.weight_cD, rows.state
    one = torch.tensor([1])
    apply(rule, rows, one, torch.tensor([[1.0]], dtype=F64), step=0, lr=0.1)
    close(weight[1], [1.9])
    apply(rule, rows, one, torch.tensor([[0.0]], dtype=F64), step=3, lr=0.1)
    # gap 2: v = 0.5 * (1 * 0.25) = 0.125; w = 1.9 - 0.0125
    close(state["momentum"][1], [0.125])
    close(weight[:, 0], [1, 1.8875, 3, 4])
    assert state["last"].tolist() == [-1, 3, -1, -1] and state["last"].dtype == torch.int32


def test_adamw_by_hand_and_against_torch():
    rule = LazyAdamW(weight_decay=0.1)
    rows = table(rule, rows=3, dim=2)
    weight = rows.weight_cD
    dense = weight.clone().requires_grad_()
    optimiser = torch.optim.AdamW([dense], lr=0.05, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        grad = torch.randn(3, 2, dtype=F64, generator=generator)
        dense.grad = grad.clone()
        optimiser.step()
        apply(rule, rows, None, grad, step=step, lr=0.05)
    torch.testing.assert_close(weight, dense.detach(), rtol=1e-13, atol=1e-13)
    before = weight.clone()
    apply(rule, rows, torch.tensor([0]), torch.ones(1, 2, dtype=F64), step=20, lr=0.05)
    assert torch.equal(weight[1:], before[1:]) and not torch.equal(weight[0], before[0])


def moving_lr(step):
    return 0.1 * (1 + step) / 20 if step < 20 else 0.1 * 0.995**step


@pytest.mark.parametrize("horizon", [4096, 50])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 2e-6)])
def test_dense_exact_equals_dense_sgd(dtype, tolerance, horizon):
    rows, dim, steps, rate = 300, 4, 400, 0.05
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(rows, dim, dtype=F64, generator=generator)
    goal = torch.randn(rows, dim, dtype=F64, generator=generator)
    dense = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([dense], lr=1.0, momentum=0.9, weight_decay=5e-3)
    rule = DenseExact(0.9, 5e-3, horizon)
    table = of(rule, start.to(dtype))
    weight, state = table.weight_cD, table.state
    longest = 0
    for step in range(steps):
        index = (torch.rand(rows, generator=generator) < rate).nonzero()[:, 0]
        dense.grad = torch.zeros_like(dense)
        dense.grad[index] = dense.detach()[index] - goal[index]
        for group in optimiser.param_groups:
            group["lr"] = moving_lr(step)
        optimiser.step()
        longest = max(longest, int((rule.now - state["last"]).max()))
        now = rule.current(table, index)
        apply(rule, table, index, now - goal[index].to(dtype), step=step, lr=moving_lr(step))
    assert longest > min(40, horizon - 1)
    rule.flush(table)
    momentum = optimiser.state[dense]["momentum_buffer"]
    for found, truth in ((weight, dense.detach()), (state["momentum"], momentum)):
        assert (found.to(F64) - truth).norm() / truth.norm() < tolerance
    assert int(state["last"].max()) == 0


@pytest.mark.parametrize("name", ["none", "v1_stale", "lazy_decay", "adamw"])
def test_rows_that_did_not_play_keep_every_bit(name):
    rule = row_rule(name)
    rows = of(rule, torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    weight, state = rows.weight_cD, rows.state
    index = torch.tensor([0, 7, 49])
    others = torch.ones(50, dtype=torch.bool)
    others[index] = False
    for step in range(3):
        before = weight.clone(), {key: value.clone() for key, value in state.items()}
        apply(rule, rows, index, torch.ones(3, 3), step=step, lr=0.1)
        assert torch.equal(weight[others], before[0][others])
        assert (weight[index] != before[0][index]).all()
        assert all(torch.equal(state[key][others], before[1][key][others]) for key in state)


@pytest.mark.parametrize("name", ["none", "v1_stale", "lazy_decay", "dense_exact", "adamw"])
def test_all_rows_at_once_equals_all_rows_by_index(name, monkeypatch):
    monkeypatch.setattr("glint.nn.heads.updates._BLOCK", {"cpu": 4})
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(10, 3, dtype=F64, generator=generator)
    ends = []
    for index in (None, torch.arange(10)):
        rule = row_rule(name)
        rows = of(rule, start.clone())
        generator.manual_seed(1)
        for step in range(4):
            grad = torch.randn(10, 3, dtype=F64, generator=generator)
            apply(rule, rows, index, grad, step=step, lr=0.1)
        ends.append(rows.weight_cD)
    assert torch.equal(*ends) and not torch.equal(ends[0], start)


def test_an_unknown_rule_is_named():
    with pytest.raises(UsageError, match=r"GL0002.*'sgd', expected one of none, v1_stale"):
        row_rule("sgd")
