"""`head.optimizer`: what loops, schedulers and GradScaler do to it is what `head.update` does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau

from glint.errors import DivergedError, MismatchError, UsageError
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import CosFace

C, D = 3000, 8  # more than two blocks of 1024 rows


def head(rule: str = "v1_stale", rate: float = 0.5) -> PartialFC:
    options = PartialFCOptions(rate=rate, rule=rule, scale=16.0)
    return PartialFC(C, D, options, margin=CosFace(0.2))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    feature = torch.randn(6, D, generator=generator)
    return feature.requires_grad_(), torch.randint(0, C, (6,), generator=generator)


def by_update(rates: list[float], rule: str = "v1_stale") -> torch.Tensor:
    plain = head(rule)
    for step, lr in enumerate(rates):
        plain(*batch(step)).backward()
        plain.update(lr=lr)
    return plain.state_dict()["weight"]


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], object]] = {
    "lambda": lambda one: LambdaLR(one, lambda step: 1 - step / 9),
    "cosine": lambda one: CosineAnnealingLR(one, 8),
    "cycle": lambda one: OneCycleLR(one, 0.5, total_steps=9, cycle_momentum=False),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("rule", ["dense_exact", "adamw"])
def test_a_scheduler_moves_its_rate_as_that_of_sgd(name: str, rule: str) -> None:
    ours = head(rule)
    optimizer = ours.optimizer(lr=0.5)
    schedule = SCHEDULES[name](optimizer)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    other, rates = SCHEDULES[name](sgd), []
    for step in range(8):
        optimizer.zero_grad()
        ours(*batch(step)).backward()
        optimizer.step()
        sgd.step()
        rates.append(sgd.param_groups[0]["lr"])
        schedule.step()  # type: ignore[attr-defined]
        other.step()  # type: ignore[attr-defined]
    assert len({*rates}) > 5
    assert torch.equal(ours.state_dict()["weight"], by_update(rates, rule))


def test_a_rate_on_a_plateau_and_a_closure() -> None:
    ours = head()
    optimizer = ours.optimizer(lr=0.5)
    plateau = ReduceLROnPlateau(optimizer, patience=0)

    def closure(step: int) -> torch.Tensor:
        loss = ours(*batch(step))
        loss.backward()
        return loss

    for step in range(3):
        loss = optimizer.step(lambda step=step: closure(step))
        assert loss.item() > 0
        plateau.step(1.0)
    assert torch.equal(ours.weight, by_update([0.5, 0.5, 0.05]))


def test_its_state_and_the_head_s_go_on_together() -> None:
    whole = head()
    optimizer = whole.optimizer(lr=0.5)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / 9)

    def go(model: PartialFC, opt: torch.optim.Optimizer, sched: LambdaLR, steps: range) -> None:
        for step in steps:
            model(*batch(step)).backward()
            opt.step()
            sched.step()

    go(whole, optimizer, schedule, range(4))
    state = copy.deepcopy([whole.state_dict(), optimizer.state_dict(), schedule.state_dict()])
    go(whole, optimizer, schedule, range(4, 8))
    assert state[1]["param_groups"][0]["step"] == 4
    other = head()
    optimizer = other.optimizer(lr=9.0)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / 9)
    optimizer.load_state_dict(state[1])
    schedule.load_state_dict(state[2])
    other(*batch(4)).backward()
    with pytest.raises(MismatchError, match="its state is of step 4, the head stands at 0"):
        optimizer.step()
    other.load_state_dict(state[0])
    go(other, optimizer, schedule, range(4, 8))
    assert torch.equal(other.weight, whole.weight)


def test_a_scaler_changes_no_bit_and_skips_what_is_not_finite() -> None:
    ours, plain = head(), head()
    optimizer = ours.optimizer(lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2)
    net = torch.nn.Linear(D, D, bias=False)
    sgd = torch.optim.SGD(net.parameters(), lr=0.0)
    for step in range(6):
        x, label = batch(step)
        bad = step == 3
        loss = ours(net(x * torch.nan if bad else x), label)
        scaler.scale(loss).backward()
        scaler.unscale_(sgd)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for one in (sgd, optimizer):
            scaler.step(one)
        scaler.update()
        for one in (sgd, optimizer):
            one.zero_grad()
        if not bad:
            feature = net(x).detach().requires_grad_()
            plain(feature, label).backward()
            plain.update(lr=0.5)
    assert ours.steps == 5 and bool(torch.isfinite(ours.weight).all())
    assert torch.equal(ours.weight, plain.weight)


def test_passes_add_up_as_the_mean_over_them() -> None:
    ours, plain = head(), head()
    ours.passes = plain.passes = 4
    optimizer = ours.optimizer(lr=0.5)
    for number in range(8):
        (ours(*batch(number)) / 4).backward()
        plain(*batch(number)).backward()
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
            plain.update(lr=0.5, divide=4)
    assert torch.allclose(ours.weight, plain.weight, rtol=1e-6, atol=1e-9)
    assert ours.steps == 2


@pytest.mark.parametrize("how", ["norm", "norm_far", "value", "together", "foreach"])
def test_a_clipped_centre_gradient_is_an_error(how: str) -> None:
    ours = head()
    optimizer = ours.optimizer(lr=0.5)
    before = ours.weight.clone()
    ours(*batch(0)).backward()
    mine = [p for group in optimizer.param_groups for p in group["params"]]
    if how == "value":
        torch.nn.utils.clip_grad_value_(mine, 1.0)
    elif how == "together":
        net = torch.nn.Linear(2, 2)
        net(torch.ones(1, 2)).sum().backward()
        torch.nn.utils.clip_grad_norm_([*net.parameters(), *mine], 1.0)
    else:
        most = 1e6 if how == "norm_far" else 1.0
        torch.nn.utils.clip_grad_norm_(mine, most, foreach=how == "foreach")
    with pytest.raises(UsageError, match="were multiplied by"):
        optimizer.step()
    assert torch.equal(ours.weight, before)


def test_what_else_would_be_wrong_in_silence_is_named() -> None:
    ours = head()
    optimizer = ours.optimizer(lr=0.5)
    optimizer.step()  # nothing to do, as torch's own do without gradients
    assert ours.steps == 0
    with pytest.raises(UsageError, match="centres are its only group"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.raises(UsageError, match="lr is -1"):
        ours.optimizer(lr=-1.0)
    x, label = batch(0)
    ours(x * torch.nan, label).backward()
    with pytest.raises(DivergedError, match="not finite"):
        optimizer.step()
    optimizer.zero_grad()
    ours(*batch(0)).backward()
    optimizer.step()
    assert torch.equal(ours.weight, by_update([0.5]))
    ours(*batch(1)).backward()
    with pytest.raises(UsageError, match="no update came"):
        ours(*batch(1))
