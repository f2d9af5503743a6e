"""Every backbone learns in float32 and bf16 and leaves as an ONNX file that is the net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glint.models import checkpoint
from glint.models.export_onnx import export_onnx
from glint.nn.backbones import NAMES, create

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Toy = Callable[..., Path]
TOYS: list[tuple[str, dict[str, Any]]] = [
    ("vit_t", {"width": 16, "depth": 2, "heads": 2, "mask": 0.1, "drop_path": 0.1}),
    ("vit_b", {"width": 16, "depth": 2, "heads": 4, "checkpoint": True}),
    ("vargfacenet", {"width": 0.125, "blocks": [1, 1, 1]}),
    ("vargfacenet", {"width": 0.125, "blocks": [1, 1, 1], "se": False}),
    ("mixfacenet_xs", {"width": 0.125, "tail": 32}),
    ("shufflemixfacenet_xs", {"width": 0.25, "tail": 32}),
]
FULL = [name for name in NAMES if name != "iresnet"]


@pytest.mark.parametrize(("name", "options"), TOYS)
def test_the_file_is_the_net(
    toy_run: Toy, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    run = toy_run(name, 24, **options)
    found = export_onnx(run, tmp_path / "net.onnx", crops=4)
    assert 0.99999 <= found.cosine_min <= 1.0000001
    model = onnx.load(str(tmp_path / "net.onnx"))
    assert not {n.op_type for n in model.graph.node} & {"Dropout", "Loop", "If", "RandomUniform"}


@pytest.mark.parametrize(("name", "options"), [TOYS[0], TOYS[5]])
def test_the_oldest_operator_set_will_do(
    toy_run: Toy, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    found = export_onnx(toy_run(name, 24, **options), tmp_path / "net.onnx", crops=2, opset=11)
    assert found.cosine_min >= 0.99999


def learn(net: nn.Module, batch: int) -> None:
    """Go forward and back in float32 and bf16; every weight gets a finite gradient, not all 0."""
    image = torch.rand(batch, 3, 112, 112) * 2 - 1
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            feature = net(image)
        assert feature.dtype == torch.float32
        nn.functional.normalize(feature)[:, 0].sum().backward()
        learnt = {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
        assert [n for n, g in learnt.items() if g is None or not bool(g.isfinite().all())] == []
        assert [n for n, g in learnt.items() if g is None or not bool(g.any())] == [], mixed
        net.zero_grad()


@pytest.mark.parametrize(("name", "options"), TOYS)
def test_toys_learn_in_both_precisions(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    learn(create(name, 24, **options), batch=6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FULL)
def test_published_sizes_learn_and_export(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    net = create(name)
    learn(net, batch=4)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0  # one pass settles it; half-settled, iresnet200 overflows
    with torch.no_grad():
        net.train()(torch.rand(4, 3, 112, 112) * 2 - 1)
    made = {"name": name, "embedding": 512, "options": {}}
    checkpoint.save(
        tmp_path / "run" / "checkpoints", 0, backbone=net.state_dict(),
        optimizer={}, head=(0, 0, {}), state={"backbone": made}, keep=1,
    )  # fmt: skip
    found = export_onnx(tmp_path / "run", tmp_path / "net.onnx", crops=2)
    assert 0.99999 <= found.cosine_min <= 1.0000001
    for path in (*tmp_path.rglob("*.onnx"), *tmp_path.rglob("*.safetensors")):
        path.unlink()  # up to a gigabyte each
