"""ONNX files as nets that train: what onnxruntime computes, layer by layer, or a refusal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from glint.errors import GlintError, InputError, UsageError
from glint.models import import_onnx, import_weights, stored
from glint.models.export_onnx import random_crops
from glint.models.recogniser import open_model
from glint.nn import lora, stages
from glint.nn.backbones import create
from glint.nn.backbones.graph import Graph

WIDE = 32


def published(path: Path, *, scaled: bool = True, **change: Any) -> Path:
    """Write a small recogniser by hand, as mxnet's converter does: scale and norms inside."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:], initial=1))).astype("f4")

    def norm(dim: int) -> list[np.ndarray]:
        return [draw(dim) + 1, draw(dim), draw(dim), draw(dim) ** 2 + 1]

    held = {"w1": draw(8, 3, 3, 3), "s1": draw(8, 1, 1), "w2": draw(8, 1, 3, 3),
            "w3": draw(8, 8, 1, 1), "b3": draw(8), "fc": draw(WIDE, 8 * 28 * 28), "fb": draw(WIDE),
            "c": np.float32([127.5]), "k": np.float32([1 / 128]),
            **{f"{n}{i}": v for n, dim in (("p", 8), ("q", WIDE))
               for i, v in enumerate(norm(dim))}}  # fmt: skip
    held |= change.get("held", {})
    pads = change.get("pads", [1, 1, 1, 1])
    nodes = [
        *([helper.make_node("Sub", ["data", "c"], ["x0"], "_minusscalar0"),
           helper.make_node("Mul", ["x0", "k"], ["x1"], "_mulscalar0")] if scaled else []),
        helper.make_node("Conv", ["x1" if scaled else "data", "w1"], ["x2"], "conv1",
                         strides=[2, 2], pads=pads, kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["x2", "p0", "p1", "p2", "p3"], ["x3"], "bn1",
                         epsilon=1e-3),
        helper.make_node("PRelu", ["x3", "s1"], ["x4"], "prelu1"),
        helper.make_node("Conv", ["x4", "w2"], ["x5"], "conv2", group=8, pads=[1, 1, 1, 1]),
        helper.make_node(change.get("act", "Relu"), ["x5"], ["x6"], "act"),
        helper.make_node("Conv", ["x6", "w3", "b3"], ["x7"], "conv3"),
        helper.make_node("Add", ["x7", "x4"], ["x8"], "plus"),
        helper.make_node("Conv", ["x8", change.get("last", "w4")], ["x9"], "conv4", group=8,
                         strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["x9"], ["x10"], "flat"),
        helper.make_node("Gemm", ["x10", "fc", "fb"], ["x11"], "fc1", transB=1),
        helper.make_node("BatchNormalization", ["x11", "q0", "q1", "q2", "q3"], ["out"], "bn2"),
    ]  # fmt: skip
    held.setdefault("w4", draw(8, 1, 3, 3))
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", WIDE])],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("scaled", [True, False])
def test_what_is_imported_is_what_the_file_computes(tmp_path: Path, scaled: bool) -> None:
    path = published(tmp_path / "net.onnx", scaled=scaled)
    made = import_weights.import_weights(path, "", tmp_path / "out")
    assert (made.name, made.embedding, made.layout) == ("onnx", WIDE, "ONNX")
    image = random_crops(5, seed=7)
    theirs, ours = open_model(path, device="cpu"), open_model(tmp_path / "out", device="cpu")
    assert (theirs.mean, theirs.std) == ((0.0, 1.0) if scaled else (127.5, 127.5))
    np.testing.assert_allclose(ours.embed(image), theirs.embed(image), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iresnet", {"widths": (8, 8, 16, 16)}),
        ("mobilefacenet", {"width": 0.25, "blocks": (1, 1, 1, 1)}),
    ],
)
def test_a_net_exported_comes_back_and_learns(
    toy_run: Any, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    from glint.models.export_onnx import export_onnx

    run = toy_run(name, 16, **options)
    export_onnx(run, tmp_path / "net.onnx", crops=2)
    import_weights.import_weights(tmp_path / "net.onnx", "", tmp_path / "out")
    image = random_crops(4, seed=3)
    before, after = (open_model(p, device="cpu").embed(image) for p in (run, tmp_path / "out"))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    net = stored.load(tmp_path / "out").net.requires_grad_(True).train()
    assert len(stages.stages(net)) > 4
    face_nCHW = torch.randn(4, 3, 112, 112)
    target_nE = torch.nn.functional.normalize(torch.randn(4, 16))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = -(torch.nn.functional.normalize(net(face_nCHW)) * target_nE).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1, losses


def test_copies_factors_and_synchronised_norms_are_used(tmp_path: Path) -> None:
    made, state = import_onnx.read(published(tmp_path / "net.onnx"))
    net = create(made["name"], made["embedding"], **made["options"])
    net.load_state_dict(state)
    face_nCHW = torch.randn(2, 3, 112, 112)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(0)
    assert not other.eval()(face_nCHW).any()
    before = net.eval()(face_nCHW)
    assert before.any()
    for layer in lora.layers(net):
        lora.adapt(layer, 2, 2.0)
        torch.nn.init.ones_(layer.parametrizations["weight"][0].up)  # type: ignore[index, union-attr, arg-type]
    assert not torch.equal(net(face_nCHW), before)
    convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
    synced = convert(net)
    assert torch.allclose(synced.eval()(face_nCHW), net(face_nCHW))
    with torch.no_grad():
        for module in synced.modules():
            if isinstance(module, torch.nn.SyncBatchNorm):
                module.weight.zero_()
                module.bias.zero_()
    assert not synced(face_nCHW).any()


def test_stages_end_where_one_value_goes_on(tmp_path: Path) -> None:
    made, _ = import_onnx.read(published(tmp_path / "net.onnx"))
    net = create(made["name"], made["embedding"], **made["options"])
    found = [[*net.get_submodule(name).state_dict()] for (name,) in stages.stages(net)]
    # the image's scale, the first convolution with its norm and slopes; the block with its sum;
    # what stands before the embedding; the embedding
    assert [{key.split(".")[0] for key in part} for part in found] == [
        {"1", "2", "3", "4"}, {"5", "7"}, {"9"}, {"11", "12"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"act": "Erf"}, "a layer of the kind Erf is not trained here"),
        ({"pads": [1, 1, 0, 0]}, "pads [1, 1, 0, 0]"),
        ({"last": "w2"}, "shares w2"),
    ],
)
def test_layers_that_are_none_of_ours(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = published(tmp_path / "net.onnx", **change) if "pads" not in change else None
    if path is None:
        path = published(tmp_path / "net.onnx")
        model = onnx.load(path)
        next(a for a in model.graph.node[2].attribute if a.name == "pads").ints[:] = change["pads"]
        onnx.save(model, path)
    with pytest.raises(InputError) as error:
        import_weights.import_weights(path, "", tmp_path / "out")
    assert error.value.code == "GL0401" and said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_layers_misread_are_found_by_running_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is made to forget what a norm adds to a variance: as by a wrong default."""
    path = published(tmp_path / "net.onnx", held={"q3": np.full(WIDE, 1e-6, np.float32)})
    usual = import_onnx._Reader._batchnormalization

    def wrong(self: Any, node: Any, where: str, at: Any, fixed: Any, has: Any) -> None:
        usual(self, node, where, at, fixed, {"epsilon": 1e-2})

    monkeypatch.setattr(import_onnx._Reader, "_batchnormalization", wrong)
    with pytest.raises(InputError, match="do not compute what it does"):
        import_weights.import_weights(path, "", tmp_path / "out")


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ("", "layer 1"),
        ("blur 0", "'blur' is none of"),
        ("conv 0 in=3 out=99999 k=1x1 s=1x1 p=0x0 d=1x1 g=1 bias=0", "out is 99999"),
        ("conv 0 in=3", "conv has in, expected"),
        ("relu 1", "expected 0 to 0"),
        ("add 0", "add takes 1"),
        ("flatten 0; linear 1 in=x out=4 bias=0", "invalid literal"),
        ("flatten 0; linear 1 in=1000000 out=1000000 bias=0", "numbers in one weight"),
        ("flatten 0; linear 1 in=37632 out=8 bias=0", "embedding = 4"),
        (";".join(["relu 0"] * 5000), "there are 5000 layers"),
    ],
)
def test_a_text_that_is_no_net(graph: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        create("onnx", 4, graph=graph)
    assert said in str(error.value) and error.value.code == "GL0002"
    with pytest.raises(GlintError):
        create("onnx", 4, graph=3)


def test_values_are_let_go_when_nothing_takes_them_any_more() -> None:
    net = Graph(
        4, "relu 0; add 1,0; sigmoid 2; mul 3,1; pool 4; flatten 5; linear 6 in=3 out=4 bias=1"
    )
    assert net._gone == [[], [], [0], [2], [1, 3], [4], [5], [6]]
    face = torch.randn(2, 3, 112, 112)
    one = face.relu()
    expected = net.units[0]["7"](((one + face).sigmoid() * one).mean((2, 3)))  # type: ignore[index]
    assert torch.allclose(net(face), expected, atol=1e-6)


def headed(path: Path, kind: str, *names: str) -> Path:
    """Write a net of a flattened image and layers on what is flat. kind: of its numbers."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: (rng.standard_normal(shape) / 20).astype(kind)  # noqa: E731
    held = {"w": draw(3 * 28 * 28, 8), "b": draw(8), "k": draw(3, 1, 4, 4), "s": draw(8),
            "g": draw(8) + np.dtype(kind).type(1), "o": draw(8), "m": draw(8), "v": draw(8) ** 2,
            "h": np.array([0.5], kind)}  # fmt: skip
    made = {
        "conv": ("Conv", ["k"], {"group": 3, "strides": [4, 4]}), "flatten": ("Flatten", [], {}),
        "matmul": ("MatMul", ["w"], {}), "bias": ("Add", ["b"], {}), "relu": ("Relu", [], {}),
        "slopes": ("PRelu", ["s"], {}), "half": ("Mul", ["h"], {}),
        "norm": ("BatchNormalization", ["g", "o", "m", "v"], {}), "function": ("Linear", [], {}),
    }  # fmt: skip
    nodes, last = [], "data"
    for i, name in enumerate(names):
        op, inputs, attributes = made[name]
        nodes.append(helper.make_node(op, [last, *inputs], [f"x{i}"], f"{name}{i}", **attributes))
        last = f"x{i}"
    nodes[-1].output[0] = "out"
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    used = {one for node in nodes for one in node.input}
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("data", number, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("out", number, ["n", 8])],
        [numpy_helper.from_array(v, n) for n, v in held.items() if n in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ("conv", "flatten", "matmul", "bias", "relu", "norm"),
        ("conv", "flatten", "matmul", "slopes", "half", "norm"),
    ],
)
def test_layers_on_what_is_flat(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = headed(tmp_path / "net.onnx", "float32", *names)
    import_weights.import_weights(path, "", tmp_path / "out")
    image = random_crops(3, seed=5)
    ours, theirs = (open_model(p, device="cpu").embed(image) for p in (tmp_path / "out", path))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_half_precision_is_refused(tmp_path: Path) -> None:
    path = headed(tmp_path / "net.onnx", "float16", "conv", "flatten", "matmul", "norm")
    with pytest.raises(InputError, match="float16, expected float32"):
        import_weights.import_weights(path, "", tmp_path / "out")
