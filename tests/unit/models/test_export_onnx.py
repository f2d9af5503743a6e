"""ONNX export: the file is the net, insightface takes it, and nothing bad gets the name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glint.errors import BusyError, InputError, UsageError
from glint.models import checkpoint, recogniser, stored
from glint.models import export_onnx as export
from glint.models.export_onnx import export_onnx, random_crops
from glint.models.recogniser import open_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Toy = Callable[..., Path]
NETS: list[tuple[str, dict[str, Any]]] = [
    ("iresnet", {"layers": [1, 1, 1, 1], "widths": [8, 8, 8, 8]}),
    ("mobilefacenet", {"width": 0.125}),
    ("mbf_large", {"width": 0.125, "blocks": [2, 1, 1, 1]}),
]


@pytest.fixture(scope="module")
def run(toy_run: Toy) -> Path:
    return toy_run(width=0.125)


@pytest.mark.parametrize(("name", "options"), NETS)
def test_the_file_is_the_net(
    toy_run: Toy, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    run = toy_run(name, 24, **options)
    found = export_onnx(run, tmp_path / "net.onnx", crops=8)
    path = tmp_path / "net.onnx"
    assert found.onnx == str(path)
    assert found.bytes == path.stat().st_size
    assert found.sha256 == checkpoint.sha256(path)
    assert 0.99999 <= found.cosine_min <= 1.0000001
    assert (found.dim, found.backbone, found.opset) == (24, name, 17)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    (data,), (out,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in data.type.tensor_type.shape.dim] == [
        "n", 3, 112, 112,
    ]  # fmt: skip
    assert (data.name, out.name) == ("data", "embedding")
    assert model.opset_import[0].version == 17
    assert not any(n.name.startswith(("Sub", "Mul", "_minus", "_mul")) for n in model.graph.node)
    assert not {n.op_type for n in model.graph.node} & {"Dropout", "Loop", "If"}
    about = {p.key: p.value for p in model.metadata_props}
    assert about["glint.weights_sha256"] == open_model(run, device="cpu").digest
    assert list(tmp_path.iterdir()) == [path]


def test_every_batch_gives_what_torch_gives(run: Path, tmp_path: Path) -> None:
    export_onnx(run, tmp_path / "net.onnx", crops=2)
    ours, theirs = open_model(run, device="cpu"), open_model(tmp_path / "net.onnx", device="cpu")
    image = random_crops(5, seed=3)
    for count in (1, 2, 5):
        expected, found = ours.embed(image[:count]), theirs.embed(image[:count])
        assert np.abs(expected - found).max() < 1e-4 * np.abs(expected).max()


def test_insightface_takes_it_for_an_arcface_model(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("insightface")
    found = export_onnx(run, tmp_path / "net.onnx", crops=2)
    assert found.insightface is True
    model = recogniser.zoo_model(tmp_path / "net.onnx")
    assert type(model).__name__ == "ArcFaceONNX"
    assert (model.taskname, model.input_mean, model.input_std) == ("recognition", 127.5, 127.5)
    assert model.input_size == (112, 112)
    image = random_crops(2)
    theirs = model.get_feat([np.ascontiguousarray(one[:, :, ::-1]) for one in image])
    ours = open_model(run, device="cpu").embed(image)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() >= 0.99999


def test_without_insightface_it_is_still_checked(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recogniser, "has_insightface", lambda: False)
    found = export_onnx(run, tmp_path / "net.onnx", crops=2)
    assert found.insightface is False
    assert found.cosine_min >= 0.99999


def test_twice_the_same_bytes_and_our_own_file_is_replaced(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export_onnx(run, path, crops=2)
    first = path.read_bytes()
    export_onnx(run, path, crops=2)
    assert path.read_bytes() == first


def test_a_file_of_others_stays_unless_told(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(BusyError, match=r"GL0004.*a file is here that glint export did not make"):
        export_onnx(run, path)
    assert path.read_bytes() == b"precious"
    export_onnx(run, path, crops=2, overwrite=True)
    assert path.stat().st_size > 1000


def rewrite(run: Path, copy: Path, name: str, value: float) -> Path:
    """Copy a run with one number of one tensor changed and a manifest that fits."""
    shutil.copytree(run, copy)
    folder = copy / "checkpoints" / "step-00000003"
    tensors = load_file(folder / "backbone.safetensors")
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "backbone.safetensors")
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    entry = manifest["files"]["backbone.safetensors"]
    entry["sha256"] = checkpoint.sha256(folder / "backbone.safetensors")
    entry["bytes"] = (folder / "backbone.safetensors").stat().st_size
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["conv_sep.layers.0.weight", "features.layers.3.running_var"])
def test_weights_that_are_not_finite_are_refused(
    run: Path, tmp_path: Path, name: str, value: float
) -> None:
    bad = rewrite(run, tmp_path / "bad", name, value)
    with pytest.raises(InputError) as caught:
        export_onnx(bad, tmp_path / "net.onnx")
    assert caught.value.code == "GL0401"
    assert f"hold NaN or infinity, first {name}" in caught.value.what
    assert not (tmp_path / "net.onnx").exists()


def test_a_file_that_disagrees_never_gets_the_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = rewrite(run, tmp_path / "other", "features.layers.2.weight", 30.0)
    wrong = export._model(stored.load(other), 17)
    monkeypatch.setattr(export, "_model", lambda net, opset: wrong)
    with pytest.raises(
        InputError, match=r"GL0401.*least cosine with torch 0\..*nothing was written"
    ):
        export_onnx(run, tmp_path / "net.onnx", crops=2)
    assert not (tmp_path / "net.onnx").exists()


def test_a_net_that_scales_its_pixels_itself_is_not_taken_for_one(
    toy_run: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leading nodes whose names insightface would misread are renamed, so it still scales."""
    run = toy_run(width=0.125)
    plain = torch.onnx.export

    def misnamed(*args: Any, **options: Any) -> None:
        plain(*args, **options)
        model = onnx.load_from_string(args[2].getvalue())
        model.graph.node[0].name, model.graph.node[1].name = "Sub_1", "Mul_2"
        args[2].seek(0)
        args[2].truncate()
        args[2].write(model.SerializeToString())

    monkeypatch.setattr(torch.onnx, "export", misnamed)
    export_onnx(run, tmp_path / "net.onnx", crops=2)
    names = [node.name for node in onnx.load(str(tmp_path / "net.onnx")).graph.node[:2]]
    assert names == ["net/Sub_1", "net/Mul_2"]
    model = open_model(tmp_path / "net.onnx", device="cpu")
    assert (model.mean, model.std) == (127.5, 127.5)


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("net.pt", {}, "expected a name ending in .onnx, found net.pt"),
        ("net.onnx", {"opset": 9}, "--opset must be 11 to 20, found 9"),
    ],
)
def test_wrong_options(
    run: Path, tmp_path: Path, out: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        export_onnx(run, tmp_path / out, **options)
    assert caught.value.what == said


@pytest.mark.parametrize("opset", [11, 20])
def test_other_opsets(run: Path, tmp_path: Path, opset: int) -> None:
    assert export_onnx(run, tmp_path / "net.onnx", opset=opset, crops=2).opset == opset
    assert onnx.load(str(tmp_path / "net.onnx")).opset_import[0].version == opset
