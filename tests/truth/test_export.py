"""`glint export` and `glint eval` against a net written out by hand and a dozen lines of numpy.

The net is torch.nn.functional over the checkpoint's tensors, read with `safetensors`: every tensor
must be used, and none may lack. Constants, and what is put against them: 32 crops that export
itself tries, 8 at a time (160 images); `--batch` 32 of eval (160); 512 pairs a block of distances
(640 pairs, the 600 of LFW's tenth fold).
"""

# n images, E embedding

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from glint.cli import app as command_line
from glint.cli import commands

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
OPTIONS: dict[str, Any] = {"layers": [1, 2, 1, 1], "widths": [8, 8, 16, 16], "stem_stride": 2}


class Read(dict[str, Tensor]):
    """Tensors in float64 that remember which of them were asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__({name: value.double() for name, value in load_file(path).items()})
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.asked.add(name)
        return super().__getitem__(name)


def iresnet(t: Read, x: Tensor) -> Tensor:
    """Run an IResNet (arXiv 1801.07698, insightface's variant) on (n, 3, 112, 112)."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = t[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = t[f"{name}.running_mean"], t[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, t[f"{name}.weight"], t[f"{name}.bias"], eps=1e-5)

    x = F.prelu(norm(conv(x, "conv1", OPTIONS["stem_stride"]), "bn1"), t["prelu.weight"])
    for stage in (1, 2, 3, 4):
        for block in range(OPTIONS["layers"][stage - 1]):
            at, stride = f"layer{stage}.{block}", 1 if block else 2
            y = F.prelu(norm(conv(norm(x, f"{at}.bn1"), f"{at}.conv1"), f"{at}.bn2"),
                        t[f"{at}.prelu.weight"])  # fmt: skip
            y = norm(conv(y, f"{at}.conv2", stride), f"{at}.bn3")
            if f"{at}.downsample.0.weight" in t:
                x = norm(conv(x, f"{at}.downsample.0", stride), f"{at}.downsample.1")
            x = x + y
    x = F.linear(norm(x, "bn2").flatten(1), t["fc.weight"], t["fc.bias"])
    return norm(x, "features")


def people(count: int, each: int) -> list[bytes]:
    """Encode `each` images of every person: coarse colours of theirs, moved by noise."""
    rng = np.random.default_rng(3)
    base = np.repeat(rng.integers(30, 226, (count, 7, 7, 3)), each, axis=0)
    cell = (base + rng.integers(-75, 76, base.shape)).clip(0, 255).astype(np.uint8)
    image = cell.repeat(16, axis=1).repeat(16, axis=2)
    return [simplejpeg.encode_jpeg(np.ascontiguousarray(one), quality=90) for one in image]


def decoded(images: list[bytes]) -> np.ndarray:
    return np.stack([simplejpeg.decode_jpeg(data) for data in images])


def embedded(net: Path, image_nHW3: np.ndarray, scaled: bool, step: int = 50) -> np.ndarray:
    """Run an ONNX net on images, `step` at a time: float64 (n, E)."""
    session = runtime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    name, out = session.get_inputs()[0].name, []
    for at in range(0, len(image_nHW3), step):
        x = image_nHW3[at : at + step].transpose(0, 3, 1, 2).astype(np.float32)
        x = np.ascontiguousarray((x - 127.5) / 127.5 if scaled else x)
        out.append(session.run(None, {name: x})[0].astype(np.float64))
    return np.concatenate(out)


def figures(a_nE: np.ndarray, b_nE: np.ndarray, same_n: np.ndarray) -> dict[str, Any]:
    """Verify in ten folds of consecutive pairs, as docs/eval.md states it."""
    a_nE, b_nE = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a_nE, b_nE))
    distance_n = ((a_nE - b_nE) ** 2).sum(axis=1)
    grid, folds, chosen = np.arange(0, 4, 0.01), [], []
    parts = np.array_split(np.arange(len(same_n)), 10)
    for part in parts:
        rest = np.setdiff1d(np.arange(len(same_n)), part)
        right = [((distance_n[rest] < t) == same_n[rest]).sum() for t in grid]
        chosen.append(grid[int(np.argmax(right))])
        folds.append(float(((distance_n[part] < chosen[-1]) == same_n[part]).mean()))
    other = np.sort(distance_n[~same_n])
    tar = {
        far: float((distance_n[same_n] < other[int(float(far) * len(other) + 1e-9)]).mean())
        for far in ("1e-1", "1e-2", "1e-3", "1e-4")
    }
    return {
        "accuracy": np.mean(folds), "std": np.std(folds), "folds": folds, "tar_at_far": tar,
        "threshold": np.mean(chosen), "cosine_same": 1 - distance_n[same_n].mean() / 2,
        "cosine_different": 1 - distance_n[~same_n].mean() / 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def glint() -> Callable[..., dict[str, Any]]:
    """Run a command here and give its JSON."""
    if not command_line.app.registered_commands:
        commands.register(command_line.app)

    def call(*args: object) -> dict[str, Any]:
        result = CliRunner().invoke(command_line.app, [*map(str, args), "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return call


def compare(told: dict[str, Any], want: dict[str, Any]) -> None:
    for name, value in want.items():
        assert told[name] == pytest.approx(value, abs=1e-6), name
    assert 0.6 < told["accuracy"] < 1, "accuracy that says something"


def test_the_file_is_the_net_and_its_accuracy_that_of_a_dozen_lines(
    glint: Callable[..., Any], toy_run: Callable[..., Path], tmp_path: Path
) -> None:
    run, net = toy_run("iresnet", 64, **OPTIONS), tmp_path / "net.onnx"
    told = glint("export", run, net)
    tensors = Read(run / "checkpoints/step-00000003/backbone.safetensors")
    images = people(40, 4)
    pixel = decoded(images)
    x = torch.from_numpy(pixel).permute(0, 3, 1, 2).double().sub(127.5).div(127.5)
    with torch.inference_mode():
        want = iresnet(tensors, x).numpy()
    assert {name for name in tensors if not name.endswith("tracked")} == tensors.asked
    found = embedded(net, pixel, scaled=True)
    assert len(found) == 160 > told["crops"] and found.shape == want.shape
    assert np.abs(found - want).max() < 1e-4 * np.abs(want).max()

    rng = np.random.default_rng(4)
    a = rng.integers(0, 160, 640)
    b = np.where(
        rng.random(640) < 0.5, a - a % 4 + rng.integers(0, 4, 640), rng.integers(0, 160, 640)
    )
    b = np.where(a == b, (b + 1) % 160, b)
    same_n = a // 4 == b // 4
    pair = [images[i] for two in zip(a, b) for i in two]
    (tmp_path / "faces.bin").write_bytes(pickle.dumps((pair, same_n.tolist())))
    both = found + embedded(net, pixel[:, :, ::-1], scaled=True)
    for model in (net, run):
        told = glint("eval", "--model", model, "--pairs", tmp_path / "faces.bin")
        assert (told["pairs"], told["same"]) == (640, int(same_n.sum()))
        compare(told, figures(both[a], both[b], same_n))


def test_insightface_reads_the_file_as_we_do(
    glint: Callable[..., Any], toy_run: Callable[..., Path], tmp_path: Path
) -> None:
    zoo = pytest.importorskip("insightface.model_zoo")
    net = tmp_path / "net.onnx"
    glint("export", toy_run("iresnet", 64, **OPTIONS), net)
    pixel = decoded(people(10, 4))
    model = zoo.get_model(str(net), providers=["CPUExecutionProvider"])
    theirs = model.get_feat([np.ascontiguousarray(one[:, :, ::-1]) for one in pixel])  # BGR
    np.testing.assert_allclose(theirs, embedded(net, pixel, scaled=True), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_faces_and_a_real_net(glint: Callable[..., Any], shared: Path) -> None:
    """The tenth fold of LFW, 600 pairs, by a net that takes pixels 0..255."""
    pack, net = shared / "data/lfw/lfw_fold10_600pairs.bin", shared / "data/models"
    net /= "mobilefacenet_y1_128d.onnx"
    if not (pack.is_file() and net.is_file()):
        pytest.skip(f"GLINT_SHARED: no {pack} or no {net}")
    images, same = pickle.load(io.BytesIO(pack.read_bytes()))
    pixel = decoded(images)
    row = embedded(net, pixel, scaled=False)
    told = glint("eval", "--model", net, "--pairs", pack, "--no-flip")
    compare(told, figures(row[::2], row[1::2], np.array(same)))
