"""What of a net moves while it is tuned: stages, factors, statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glint.nn import lora, stages
from glint.nn.backbones import create

SMALL = {"width": 0.125, "blocks": [1, 1, 1, 1]}
NETS = ("iresnet18", "mobilefacenet", "mbf_large", "vit_t", "vargfacenet", "mixfacenet_xs")


def small() -> nn.Module:
    torch.manual_seed(0)
    net = create("mobilefacenet", 32, **SMALL)
    with torch.no_grad():
        net(torch.rand(8, 3, 112, 112) * 2 - 1)
    return net


@pytest.mark.parametrize("name", NETS)
def test_stages_follow_the_image_and_hold_every_weight_once(name: str) -> None:
    with torch.device("meta"):
        net = create(name, 64)
    made = stages.stages(net)
    stage_of: dict[nn.Module, int] = {}
    for number, stage in enumerate(made):
        for place in stage:
            for module in net.get_submodule(place).modules():
                assert module not in stage_of
                stage_of[module] = number
    held = [p for m in stage_of for p in m.parameters(recurse=False)]
    own = [*net.parameters(recurse=False)]
    assert {*map(id, held)} | {*map(id, own)} == {*map(id, net.parameters())}
    order: list[int] = []
    for module in stage_of:
        if not [*module.children()] and [*module.parameters()]:
            module.register_forward_hook(lambda m, *_: order.append(stage_of[m]))
    net.eval()(torch.empty(2, 3, 112, 112, device="meta"))
    assert order == sorted(order) and {*order} == {*range(len(made))}


def test_a_frozen_stage_keeps_weights_and_statistics() -> None:
    net = small()
    stages.freeze(net, 3)
    stages.train(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    out = net(torch.rand(8, 3, 112, 112))
    (out * torch.randn(out.shape)).sum().backward()
    optimizer.step()
    moved = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    first = tuple(place + "." for stage in stages.stages(net)[:3] for place in stage)
    assert not any(name.startswith(first) for name in moved)
    assert any(name.endswith("running_mean") for name in moved)
    learns = {name for name, p in net.named_parameters() if p.grad is not None}
    assert learns == {name for name, _ in net.named_parameters() if not name.startswith(first)}


def test_held_norms_compute_with_their_statistics_and_learn() -> None:
    net = small()
    stages.hold_norms(net)
    stages.train(net)
    image = torch.rand(4, 3, 112, 112)
    before = {name: value.clone() for name, value in net.named_buffers()}
    out = net(image)
    assert all(value.equal(before[name]) for name, value in net.named_buffers())
    assert net.training and out.equal(net.eval()(image))
    assert all(p.requires_grad for p in net.parameters())


def test_factors_begin_as_nothing_and_alone_learn() -> None:
    net, image = small().eval(), torch.rand(2, 3, 112, 112)
    before = net(image)
    adapted = stages.adapt(net, 4, 8.0)
    assert net(image).equal(before)
    learns = {name for name, p in net.named_parameters() if p.requires_grad}
    assert len(learns) == 2 * adapted and all(".weight.0." in name for name in learns)
    wide = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert wide and not any(hasattr(m, "parametrizations") for m in wide)


def lived_in() -> nn.Module:
    net = small().eval()
    stages.adapt(net, 4, 8.0)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.normal_(0, 0.1)
    return net


def test_merged_weights_are_the_sum_by_numpy_and_the_same_net() -> None:
    net, image = lived_in(), torch.rand(2, 3, 112, 112)
    state = net.state_dict()
    plain = lora.merged(state)
    at = "features.layers.2.parametrizations.weight."
    w, down, up = (state[at + name].double().numpy() for name in ("original", "0.down", "0.up"))
    np.testing.assert_allclose(plain["features.layers.2.weight"], w + 8 / 4 * (up @ down), 0, 1e-6)
    other = small()
    assert {*plain} == {*other.state_dict()}
    other.load_state_dict(plain)
    assert other.eval()(image).equal(net(image))


def test_a_plain_state_goes_under_the_factors() -> None:
    net, plain = lived_in(), small().state_dict()
    factors = {n: v.clone() for n, v in net.state_dict().items() if ".weight.0." in n}
    net.load_state_dict(lora.spread(plain, net))
    state = net.state_dict()
    assert factors and all(state[name].equal(value) for name, value in factors.items())
    first = state["features.layers.2.parametrizations.weight.original"]
    assert first.equal(plain["features.layers.2.weight"])
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(lora.spread({k: plain[k] for k in [*plain][1:]}, net))


@pytest.mark.parametrize("part", lora.PARTS)
def test_a_lost_factor_is_an_error(part: str) -> None:
    state: dict[str, Tensor] = lived_in().state_dict()
    del state[f"features.layers.2.parametrizations.weight.0.{part}"]
    with pytest.raises(ValueError, match=r"factors of features\.layers\.2"):
        lora.merged(state)


def test_a_state_without_factors_is_as_it_was() -> None:
    state = small().state_dict()
    made = lora.merged(state)
    assert {*made} == {*state} and all(made[name] is value for name, value in state.items())
