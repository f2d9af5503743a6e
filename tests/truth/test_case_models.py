"""Recognisers and weights as users have them, from the shared generators; read as test_cases is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glint.errors import GlintError, UsageError
from glint.models.import_weights import import_weights
from glint.models.onnx_file import Reading
from glint.models.recogniser import open_model

CASES = Path(os.environ.get("GLINT_SHARED", "/nowhere")) / "cases"
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="GLINT_SHARED does not name a folder with cases/ in it"
)


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return generated(tmp_path_factory.mktemp("onnx"), "onnx_files") / "onnx"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("weights"), "weights") / "pt"


def generated(folder: Path, name: str) -> Path:
    env = {**os.environ, "CASES": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    env["PYTHONPATH"] = f"{CASES}{os.pathsep}{ROOT}"
    command = [sys.executable, str(CASES / f"{name}.py")]
    subprocess.run(command, env=env, check=True, capture_output=True)
    return folder


def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)


def by_numpy(onnx_file: Path, scaled: bool = True) -> np.ndarray:
    """The net of all cases, from its own weights: mean of 7 x 7 fields, times a matrix."""
    import onnx

    graph = onnx.load(str(onnx_file)).graph
    weight = next(onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == "W")
    pixel = crops().transpose(0, 3, 1, 2).astype(np.float64)
    pixel = (pixel - 127.5) / 127.5 if scaled else pixel
    field = pixel.reshape(3, 3, 7, 16, 7, 16).mean((3, 5)).reshape(3, -1)
    return field @ weight.astype(np.float64)


SOUND = ["plain", "dynamic", "allnone", "fp16", "fp16inside", "nhwc", "out4", "batch1", "batch64"]
SOUND += ["external", "ingraph_subdiv", "ingraph_named", "ingraph_noname"]


@pytest.mark.parametrize("name", SOUND)
def test_a_recogniser_gives_what_its_weights_say(onnx_files: Path, name: str) -> None:
    path = onnx_files / f"{name}.onnx"
    found = open_model(path, threads=1, device="cpu").embed(crops())
    assert np.abs(found - by_numpy(path)).max() < (0.05 if "fp16" in name else 1e-3)


def test_bytes_are_given_as_they_are(onnx_files: Path) -> None:
    path = onnx_files / "uint8.onnx"
    found = open_model(path, threads=1, device="cpu").embed(crops())
    assert np.abs(found - by_numpy(path, scaled=False)).max() < 1


def test_what_a_file_says_is_overruled(onnx_files: Path) -> None:
    plain, two = onnx_files / "plain.onnx", onnx_files / "twoouts.onnx"
    with pytest.raises(UsageError, match="2 outputs; the model has emb, norm"):
        open_model(two)
    one = open_model(two, device="cpu", reading=Reading(output="emb"))
    assert np.abs(one.embed(crops()) - by_numpy(two)).max() < 1e-3
    raw = open_model(plain, device="cpu", reading=Reading(mean=0.0, std=1.0))
    assert np.abs(raw.embed(crops()) - by_numpy(plain, scaled=False)).max() < 1
    turned = open_model(plain, device="cpu", reading=Reading(bgr=True))
    usual = open_model(plain, device="cpu")
    assert np.array_equal(turned.embed(crops()[..., ::-1]), usual.embed(crops()))
    assert len({raw.digest, turned.digest, usual.digest}) == 3  # old embeddings are not kept


def test_weights_beside_a_file_are_part_of_its_digest(onnx_files: Path) -> None:
    beside = onnx_files / "external.onnx.data"
    before, data = (
        open_model(onnx_files / "external.onnx", device="cpu").digest,
        beside.read_bytes(),
    )
    try:
        beside.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert open_model(onnx_files / "external.onnx", device="cpu").digest != before
        beside.unlink()
        with pytest.raises(GlintError, match=r"its weights lie in external\.onnx\.data beside it"):
            open_model(onnx_files / "external.onnx", device="cpu")
    finally:
        beside.write_bytes(data)


def test_a_package_is_read_as_its_manifest_says(onnx_files: Path, tmp_path: Path) -> None:
    (tmp_path / "r.onnx").write_bytes((onnx_files / "plain.onnx").read_bytes())
    task = {"file": "r.onnx", "preprocessing": {"mean": 0.0, "std": 1.0}}
    told = {"manifest_version": 2, "model_id": "x", "license": "l", "tasks": {"recognition": task}}
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    model = open_model(tmp_path, device="cpu")
    assert (model.mean, model.std, model.dim) == (0.0, 1.0, 64)
    task["file"] = "../r.onnx"
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(GlintError, match="is not in the package"):
        open_model(tmp_path, device="cpu")


REFUSED = {
    "lfs.onnx": "a Git LFS pointer",
    "newir.onnx": "it was written for IR 20",
    "opset99.onnx": "operators onnx 99",
    "external.onnx.data": "expected an ONNX recogniser",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_none_is_named(onnx_files: Path, name: str) -> None:
    with pytest.raises(GlintError) as caught:
        open_model(onnx_files / name, device="cpu")
    assert REFUSED[name] in str(caught.value)


TAKEN = ["plain.pth", "module.pth", "backbone_prefix.pth", "model_prefix_head.ckpt", "compiled.pth"]
TAKEN += ["module_compiled.pth", "checkpoint_gpu_0.pt", "net_key.pth", "extra_head.pth", "args.pth"]
TAKEN += ["npscalar.pth", "ema.pth", "half.pth", "legacy.pth", "cuda_like.pth", "m.safetensors"]
TAKEN += ["prefix.safetensors"]


@pytest.mark.parametrize("name", TAKEN)
def test_published_weights(weights: Path, tmp_path: Path, name: str) -> None:
    import torch
    from safetensors.torch import load_file

    made = import_weights(weights / name, "mobilefacenet", tmp_path / "out", embedding=128)
    plain = torch.load(weights / "plain.pth", weights_only=True)
    found = load_file(Path(made.checkpoint) / "backbone.safetensors")
    assert set(found) == set(plain)
    for one, value in plain.items():
        if value.is_floating_point():
            value = value.half().float() if name == "half.pth" else value
        assert torch.equal(found[one], value), one


WRONG = {
    "script.pt": "a TorchScript program, whose code is not run here",
    "lfs.pth": "a Git LFS pointer",
    "html.pth": "a web page",
    "list.pth": "expected tensors by name, found list",
    "zipped.zip": "a zip that holds plain.pth",
    "whole_module.pth": "expected tensors and their names, found",
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_no_weights_are_named(weights: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(GlintError) as caught:
        import_weights(weights / name, "mobilefacenet", tmp_path / "out", embedding=128)
    assert WRONG[name] in str(caught.value)
