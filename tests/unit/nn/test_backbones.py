"""Backbones: published sizes to the integer, insightface's names, clear refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from glint.errors import InputError, UsageError
from glint.nn.backbones import NAMES, create

# name, embedding -> parameters, of them trainable, multiply-adds of one image
PUBLISHED = {
    ("iresnet18", 512): (24_025_600, 24_025_088, 2_609_954_816),
    ("iresnet34", 512): (34_139_328, 34_138_816, 4_459_642_880),
    ("iresnet50", 512): (43_590_848, 43_590_336, 6_309_330_944),
    ("iresnet100", 512): (65_156_160, 65_155_648, 12_089_606_144),
    ("iresnet200", 512): (118_833_920, 118_833_408, 23_418_945_536),
    ("mobilefacenet", 128): (1_003_136, 1_003_136, 220_965_376),
    ("mobilefacenet", 512): (1_200_512, 1_200_512, 221_161_984),
    ("mbf", 512): (2_059_520, 2_059_520, 437_520_896),
    ("mbf_large", 512): (6_314_880, 6_314_880, 1_816_482_816),
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("name", "embedding"), PUBLISHED)
def test_published_parameters_and_macs(name: str, embedding: int) -> None:
    with torch.device("meta"):
        net = create(name, embedding).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            out = net(torch.empty(1, 3, 112, 112))
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert (count(net), trainable, counter.get_total_flops() // 2) == PUBLISHED[name, embedding]
    assert out.shape == (1, embedding)


def test_every_published_net_is_in_the_table() -> None:
    assert {name for name, _ in PUBLISHED} | {"iresnet"} == set(NAMES)


def test_parameters_of_each_part() -> None:
    with torch.device("meta"):
        r50, mbf = create("iresnet50"), create("mbf")
    parts = [count(part) for part in (r50.conv1, r50.layer1, r50.layer2, r50.layer3, r50.layer4)]
    assert parts == [1_728, 226_752, 1_117_824, 16_278_272, 13_118_464]
    assert count(r50.fc) == 12_845_568
    assert [count(layer) for layer in mbf.layers] == [
        3_840, 2_688, 34_944, 139_776, 102_656, 812_544, 270_336, 270_848,
    ]  # fmt: skip
    assert (count(mbf.conv_sep), count(mbf.features)) == (132_608, 289_280)


def norm(prefix: str) -> set[str]:
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{prefix}.{name}" for name in names}


def test_iresnet50_state_dict_has_insightface_names() -> None:
    expected = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    expected |= norm("bn1") | norm("bn2") | norm("features")
    for stage, blocks in enumerate((3, 4, 14, 3), start=1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            expected |= {f"{at}.conv1.weight", f"{at}.conv2.weight", f"{at}.prelu.weight"}
            expected |= norm(f"{at}.bn1") | norm(f"{at}.bn2") | norm(f"{at}.bn3")
        at = f"layer{stage}.0.downsample"
        expected |= {f"{at}.0.weight"} | norm(f"{at}.1")
    with torch.device("meta"):
        assert set(create("iresnet50").state_dict()) == expected
    assert len(expected) == 475


def test_mbf_state_dict_has_insightface_names() -> None:
    def conv(at: str, active: bool = True) -> set[str]:
        named = {f"{at}.layers.0.weight"} | norm(f"{at}.layers.1")
        return named | ({f"{at}.layers.2.weight"} if active else set())

    def depthwise(at: str) -> set[str]:
        return (
            conv(f"{at}.layers.0") | conv(f"{at}.layers.1") | conv(f"{at}.layers.2", active=False)
        )

    expected = conv("layers.0") | conv("layers.1") | conv("conv_sep")
    for layer in (2, 4, 6):
        expected |= depthwise(f"layers.{layer}")
    for layer, blocks in ((3, 4), (5, 6), (7, 2)):
        for block in range(blocks):
            expected |= depthwise(f"layers.{layer}.layers.{block}")
    expected |= conv("features.layers.0", active=False) | norm("features.layers.3")
    expected |= {"features.layers.2.weight"}
    with torch.device("meta"):
        assert set(create("mbf").state_dict()) == expected
    assert len(expected) == 333


TOYS = [
    ("iresnet", {"layers": [1, 1, 1, 1], "widths": [8, 16, 32, 64]}),
    ("mobilefacenet", {"width": 0.125}),
    ("mbf", {"width": 0.125}),
    ("mbf_large", {"width": 0.125}),
]


@pytest.mark.parametrize(("name", "options"), TOYS)
def test_toys_embed_and_learn_and_are_not_normalised(name: str, options: dict) -> None:
    torch.manual_seed(0)
    net = create(name, 32, **options)
    assert count(net) < 300_000
    image = torch.rand(4, 3, 112, 112) * 2 - 1
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    feature = net(image)
    assert feature.shape == (4, 32)
    assert feature.isfinite().all()
    assert not torch.allclose(feature.norm(dim=1), torch.ones(4))
    feature.square().sum().backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    optimizer.step()
    if name == "iresnet":
        assert (net.features.weight == 1).all()
        assert not net.features.weight.requires_grad


def test_first_weights_follow_the_published_rule() -> None:
    torch.manual_seed(0)
    r = create("iresnet", 32, layers=(1, 1, 1, 1), widths=(32, 32, 32, 32))
    assert abs(float(r.layer3[0].conv1.weight.detach().std()) - 0.1) < 0.005
    m = create("mobilefacenet", 128, width=0.5)
    weight = m.conv_sep.layers[0].weight.detach()  # fan out = channels out, for a 1x1 convolution
    assert abs(float(weight.std()) - (2 / weight.shape[0]) ** 0.5) < 0.005


@pytest.mark.parametrize(("name", "options"), TOYS)
def test_embedding_is_float32_under_autocast(name: str, options: dict) -> None:
    net = create(name, 16, **options).eval()
    image = torch.rand(2, 3, 112, 112)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        feature = net(image)
    assert feature.dtype == torch.float32
    with torch.no_grad():
        plain = net(image)
    assert nn.functional.cosine_similarity(feature, plain).min() > 0.99


@pytest.mark.parametrize("shape", [(1, 3, 128, 128), (1, 1, 112, 112), (3, 112, 112)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    net = create("mobilefacenet", 16, width=0.125).eval()
    with pytest.raises(InputError, match=r"GL0401.*\(n, 3, 112, 112\).*found") as caught:
        net(torch.zeros(shape))
    assert str(shape) in caught.value.what


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        create("irestnet50")
    assert caught.value.code == "GL0002"
    assert "did you mean iresnet50?" in caught.value.hint
    assert "mbf_large" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": (1, 2)}, "no option 'width'"),
        ({"layers": [1, 2, 3]}, "four whole numbers"),
        ({"layers": [1, 2, 3, 0]}, "four whole numbers"),
        ({"widths": "wide"}, "four whole numbers"),
        ({"embedding": 0}, "a whole number of at least 1, found 0"),
        ({"dropout": 1.0}, "from 0 to below 1"),
    ],
)
def test_bad_options_are_named(options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create("iresnet", **options)
