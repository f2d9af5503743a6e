"""Backbones: published sizes to the integer, insightface's names, clear refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from glint.errors import InputError, UsageError
from glint.nn.backbones import NAMES, create, registry
from glint.nn.names import ONNX

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
    # the mask token of a ViT is not trained without masks: width numbers fewer
    ("vit_t", 512): (19_137_792, 19_137_792 - 256, 1_504_882_688),
    ("vit_s", 512): (76_023_296, 76_023_296 - 512, 5_746_548_736),
    ("vit_b", 512): (113_833_472, 113_833_472 - 512, 11_437_170_688),
    ("vit_l", 512): (255_684_352, 255_684_352 - 768, 25_337_794_560),
    ("vargfacenet", 512): (5_198_292, 5_198_292, 512_593_440),
    ("mixfacenet_xs", 512): (1_040_866, 1_040_354, 76_561_120),
    ("mixfacenet_s", 512): (3_073_110, 3_072_598, 218_141_424),
    ("mixfacenet_m", 512): (3_953_046, 3_952_534, 303_388_992),
    ("shufflemixfacenet_xs", 512): (1_040_866, 1_040_354, 76_561_120),
    ("shufflemixfacenet_s", 512): (3_073_110, 3_072_598, 218_141_424),
    ("shufflemixfacenet_m", 512): (3_953_046, 3_952_534, 303_388_992),
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def macs(net: nn.Module) -> int:
    """Multiply-adds of one image: convolutions, linear layers, attention; on the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, 3, 112, 112))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("name", "embedding"), PUBLISHED)
def test_published_parameters_and_macs(name: str, embedding: int) -> None:
    with torch.device("meta"):
        net = create(name, embedding).eval()
        out = net(torch.empty(1, 3, 112, 112))
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert (count(net), trainable, macs(net)) == PUBLISHED[name, embedding]
    assert out.shape == (1, embedding)


def test_vargfacenet_without_gates_has_insightface_s_size() -> None:
    with torch.device("meta"):
        net = create("vargfacenet", se=False)
    assert (count(net), macs(net)) == (4_957_512, 512_355_840)


def test_names_are_those_that_can_be_made() -> None:
    assert tuple(name for name in registry._NETS if name != ONNX) == NAMES


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


UNITS = {  # stem, units in order, last map, its places, embedding, norm
    "mixfacenet_xs": [240, 176, 1328, 1520, 8568, *[10140] * 3, 12854, *[24570] * 2, 30068]
    + [*[33568] * 2, 112944, *[191204] * 2, 54784, 26112, 262144, 1024],
    "mixfacenet_s": [480, 480, 3408, 2856, 17468, *[24580] * 3, 32010, *[87540] * 2, 102360]
    + [*[103260] * 2, 361900, *[655700] * 2, 207872, 52224, 524288, 1024],
    "mixfacenet_m": [720, 912, 8944, 4576, 28896, *[24580] * 3, 41610, *[79860] * 3, 141400]
    + [*[103260] * 3, 350380, *[655700] * 3, 207872, 52224, 524288, 1024],
}


@pytest.mark.parametrize("name", UNITS)
def test_parameters_of_each_unit_of_mixfacenet(name: str) -> None:
    with torch.device("meta"):
        for net in (create(name), create("shuffle" + name)):
            parts = [net.stem, *net.units, net.tail, net.places, net.fc, net.features]
            assert [count(part) for part in parts] == UNITS[name]


def test_parts_of_vargfacenet() -> None:
    with torch.device("meta"):
        net = create("vargfacenet").eval()
        weights = [conv.conv.weight.numel() for conv in net.neck] + [count(net.fc)]
        x = torch.empty(1, 3, 112, 112)
        shapes = []
        for part in (net.stem, net.head, *net.stages, net.neck):
            x = part(x)
            shapes.append(tuple(x.shape[1:]))
    assert weights == [327_680, 401_408, 524_288, 262_656]
    assert shapes == [
        (40, 112, 112), (40, 56, 56), (80, 28, 28), (160, 14, 14), (320, 7, 7), (512, 1, 1)
    ]  # fmt: skip
    assert [len(stage) for stage in net.stages] == [3, 7, 4]
    grouped = {m.in_channels // m.groups for m in net.modules() if getattr(m, "groups", 1) > 1}
    assert grouped == {8}


def test_shuffle_deals_even_channels_before_odd_ones() -> None:
    net = create("shufflemixfacenet_xs", 16).units[0]
    x = torch.rand(1, 8, 6, 6)
    plain = create("mixfacenet_xs", 16).units[0]
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x), plain.eval()(x)[:, [0, 2, 4, 6, 1, 3, 5, 7]])


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


def test_vit_state_dict_has_insightface_names() -> None:
    def pair(at: str) -> set[str]:
        return {f"{at}.weight", f"{at}.bias"}

    expected = {"pos_embed", "mask_token", "feature.0.weight", "feature.2.weight"}
    expected |= pair("patch_embed.proj") | pair("norm") | norm("feature.1") | norm("feature.3")
    for block in range(12):
        at = f"blocks.{block}"
        expected |= pair(f"{at}.norm1") | pair(f"{at}.norm2") | {f"{at}.attn.qkv.weight"}
        expected |= pair(f"{at}.attn.proj") | pair(f"{at}.mlp.fc1") | pair(f"{at}.mlp.fc2")
    with torch.device("meta"):
        assert set(create("vit_t").state_dict()) == expected
    assert len(expected) == 150


VIT = {"width": 16, "depth": 2, "heads": 2}


def test_a_vit_does_not_see_the_last_four_rows_and_columns() -> None:
    net = create("vit_t", 16, **VIT).eval()
    image = torch.rand(1, 3, 112, 112)
    other = image.clone()
    other[:, :, 108:] = 0
    other[:, :, :, 108:] = 0
    assert torch.equal(net(image), net(other))
    other[0, 0, 107, 107] += 1
    assert not torch.equal(net(image), net(other))


def test_a_vit_keeps_the_share_of_patches_it_is_told() -> None:
    net = create("vit_t", 16, mask=0.25, **VIT)
    assert net.mask_token.requires_grad
    seen = []
    net.blocks[0].register_forward_hook(lambda module, given, out: seen.append(out))
    filled = []
    net.feature.register_forward_hook(lambda module, given, out: filled.append(given[0]))
    torch.manual_seed(1)
    net(torch.rand(2, 3, 112, 112)).sum().backward()
    assert seen[0].shape == (2, 108, 16)
    token = filled[0].view(2, 144, 16)
    masked = (token == net.mask_token.detach()).all(-1)
    assert masked.sum(1).tolist() == [36, 36]
    assert not torch.equal(masked[0], masked[1])  # each image has its own
    assert net.mask_token.grad is not None
    net.eval()(torch.rand(1, 3, 112, 112))
    assert seen[1].shape == (1, 144, 16)


def test_masked_patches_go_back_to_their_places() -> None:
    net = create("vit_t", 16, mask=0.5, **VIT)
    x = torch.randn(3, 144, 16)
    torch.manual_seed(2)
    kept, place = net._kept(x)
    back = net._filled(kept, place)
    hidden = torch.ones(3, 144, dtype=torch.bool).scatter(1, place, False)
    assert hidden.sum() == 3 * 72
    assert torch.equal(back[~hidden], x[~hidden])
    assert (back[hidden] == net.mask_token).all()


def test_drop_path_rises_over_the_blocks_and_keeps_the_mean() -> None:
    net = create("vit_t", 16, drop_path=0.3, **{**VIT, "depth": 4})
    assert [round(block.drop_path.share, 6) for block in net.blocks] == [0, 0.1, 0.2, 0.3]
    drop = net.blocks[3].drop_path
    torch.manual_seed(3)
    out = drop(torch.ones(4000, 2, 3))
    assert set(out.flatten().unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    assert torch.equal(out[:, 0, 0], out[:, 1, 2])  # an image as a whole
    assert abs(float(out.mean()) - 1) < 0.05
    assert torch.equal(drop.eval()(torch.ones(3, 2, 3)), torch.ones(3, 2, 3))


def test_recomputed_blocks_give_the_same_gradients() -> None:
    grads = []
    for again in (False, True):
        torch.manual_seed(4)
        net = create("vit_t", 16, drop_path=0.5, mask=0.5, checkpoint=again, **VIT)
        net(torch.rand(4, 3, 112, 112)).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_attention_in_float32_under_autocast_unless_told_otherwise() -> None:
    kinds = []
    real = nn.functional.scaled_dot_product_attention
    for low in (False, True):
        net = create("vit_t", 16, half_attention=low, **VIT).eval()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                nn.functional,
                "scaled_dot_product_attention",
                lambda q, k, v: kinds.append(q.dtype) or real(q, k, v),
            )
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                net(torch.rand(1, 3, 112, 112))
    assert kinds == [torch.float32] * 2 + [torch.bfloat16] * 2


TOYS = [
    ("iresnet", {"layers": [1, 1, 1, 1], "widths": [8, 16, 32, 64]}),
    ("mobilefacenet", {"width": 0.125}),
    ("mbf", {"width": 0.125}),
    ("mbf_large", {"width": 0.125}),
    ("vit_t", {"width": 32, "depth": 2, "heads": 4, "drop_path": 0.1, "mask": 0.1}),
    ("vit_s", {"width": 32, "depth": 1, "heads": 2, "checkpoint": True}),
    ("vargfacenet", {"width": 0.125, "blocks": [1, 2, 1]}),
    ("vargfacenet", {"width": 0.125, "se": False}),
    ("mixfacenet_xs", {"width": 0.25, "tail": 64}),
    ("mixfacenet_m", {"width": 0.125, "tail": 64}),
    ("shufflemixfacenet_s", {"width": 0.125, "tail": 64}),
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
    if name == "iresnet" or "mixfacenet" in name:
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
        ({"embedding": 0}, "a whole number from 1 to 65536, found 0"),
        ({"dropout": 1.0}, "from 0 to below 1"),
        ({"name": "vit_t", "checkpoint": 1}, "must be true or false, found 1"),
        ({"name": "vit_t", "mask": 1.0}, "from 0 to below 1"),
        ({"name": "vit_t", "width": 100}, "width 100 does not divide by 8 heads"),
        ({"name": "vargfacenet", "blocks": [2, 6, 3, 1]}, "three whole numbers"),
        ({"name": "mixfacenet_s", "table": "medium"}, "no option 'table'"),
    ],
)
def test_bad_options_are_named(options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create(**{"name": "iresnet", **options})
