"""Models by path: runs, checkpoints, ONNX through either engine, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glint.errors import InputError, UsageError
from glint.evals.embed import embed_jpegs, verify
from glint.evals.packs import read_bin
from glint.models import checkpoint, recogniser
from glint.models.export_onnx import export_onnx
from glint.models.recogniser import open_model
from glint.nn import backbones

Toy = Callable[..., Path]


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 112, 112, 3), np.uint8)


@pytest.fixture(scope="module")
def run(toy_run: Toy) -> Path:
    return toy_run(width=0.125)


def test_a_run_its_checkpoint_and_torch_agree(run: Path) -> None:
    model = open_model(run, threads=1, device="cpu")
    assert (model.dim, model.size, model.engine) == (32, 112, "torch")
    assert model.name == f"{run.name}/step-00000003"
    assert len(model.digest) == 64
    folder = run / "checkpoints" / "step-00000003"
    same = open_model(folder, device="cpu")
    assert same.digest == model.digest
    net = backbones.create("mobilefacenet", 32, width=0.125).eval()
    net.load_state_dict(load_file(folder / "backbone.safetensors"))
    image = crops(5)
    pixels = torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = net(pixels.contiguous()).numpy()
    out = model.embed(image)
    assert out.dtype == np.float32
    assert np.abs(out - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.array_equal(out, same.embed(image))
    assert model.embed(image[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match=r"expected uint8 \(n, 112, 112, 3\), found float64"):
        model.embed(image / 255.0)


def test_weights_beside_an_onnx_file_are_part_of_who_it_is(run: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    whole, split = tmp_path / "whole.onnx", tmp_path / "split.onnx"
    export_onnx(run, whole, crops=2)
    assert open_model(whole, device="cpu").digest == checkpoint.sha256(whole)
    name = "weights-with-a-name-" + 120 * "x" + ".data"  # its length takes two bytes
    onnx.save(onnx.load(str(whole)), str(split), save_as_external_data=True, location=name,
              size_threshold=0)  # fmt: skip
    before = open_model(split, device="cpu").digest
    assert before != checkpoint.sha256(split)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    assert open_model(split, device="cpu").digest != before


def test_the_newest_valid_checkpoint_of_a_run_counts(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    later = copy / "checkpoints" / "step-00000009"
    shutil.copytree(copy / "checkpoints" / "step-00000003", later)
    assert checkpoint.find(copy) == later
    weights = later / "backbone.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert checkpoint.find(copy).name == "step-00000003"
    with pytest.raises(InputError, match=r"GL0701.*backbone.safetensors does not match its sha256"):
        open_model(later)
    shutil.rmtree(copy / "checkpoints" / "step-00000003")
    with pytest.raises(InputError, match=r"GL0701.*1 checkpoints here and none is valid"):
        open_model(copy)
    (later / "MANIFEST.json").unlink()
    with pytest.raises(InputError, match=r"GL0701.*MANIFEST.json is missing"):
        open_model(later)


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"GL0701.*no checkpoint here"):
        open_model(tmp_path)
    with pytest.raises(UsageError, match=r"GL0001.*no such model"):
        open_model(tmp_path / "none.onnx")


def test_weights_of_another_net_are_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000003"
    shutil.copytree(run / "checkpoints" / "step-00000003", folder)
    save_file({"other": torch.zeros(2)}, folder / "backbone.safetensors")
    manifest = (folder / "MANIFEST.json").read_text()
    size = (folder / "backbone.safetensors").stat().st_size
    files = json.loads(manifest)
    files["files"]["backbone.safetensors"] = {
        "bytes": size, "sha256": checkpoint.sha256(folder / "backbone.safetensors")
    }  # fmt: skip
    (folder / "MANIFEST.json").write_text(json.dumps(files))
    with pytest.raises(InputError, match=r"GL0701.*does not fit backbone mobilefacenet"):
        open_model(folder)


def test_onnx_through_insightface_and_without_it(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    path = shared / "data" / "models" / "mobileface_v3_256d.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(recogniser, "has_insightface", lambda: False)
        alone = open_model(path, threads=1)
    assert (alone.engine, alone.dim, alone.mean, alone.std) == ("onnxruntime", 256, 0.0, 1.0)
    image = crops(3)
    one_by_one = np.concatenate([alone.embed(image[i : i + 1]) for i in range(3)])
    assert np.allclose(alone.embed(image), one_by_one, atol=1e-3)
    pytest.importorskip("insightface")
    zoo = open_model(path, threads=1)
    assert (zoo.engine, zoo.dim, zoo.mean, zoo.std) == ("insightface", 256, 0.0, 1.0)
    assert np.array_equal(zoo.embed(image), alone.embed(image))
    assert zoo.digest == alone.digest == checkpoint.sha256(path)


def test_our_input_is_what_insightface_feeds_itself(shared: Path) -> None:
    pytest.importorskip("insightface")
    path = shared / "data" / "models" / "mobileface_v3_256d.onnx"
    model = recogniser.zoo_model(path)
    image = crops(2)
    theirs = model.get_feat([np.ascontiguousarray(one[:, :, ::-1]) for one in image])  # BGR
    ours = open_model(path).embed(image)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def tiny_onnx(path: Path, shape: list[int | str], inputs: int = 1, name: str = "Pool") -> Path:
    """Write a net that averages colours; every input is used."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    made = [
        helper.make_tensor_value_info(f"in{i}", TensorProto.FLOAT, shape) for i in range(inputs)
    ]
    nodes = [helper.make_node("Sum", [i.name for i in made], ["sum"], name=name)]
    nodes.append(helper.make_node("GlobalAveragePool", ["sum"], ["pool"], name="Sub_like"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["out"], name="Mul_like"))
    out = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [shape[0], shape[1]])]
    graph = helper.make_graph(nodes, "tiny", made, out)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("zoo", [True, False])
@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_any_batch_through_a_net_of_fixed_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int | str, zoo: bool
) -> None:
    path = tiny_onnx(tmp_path / "tiny.onnx", [batch, 3, 112, 112])
    if not zoo:
        monkeypatch.setattr(recogniser, "has_insightface", lambda: False)
    model = open_model(path, threads=1)
    assert (model.mean, model.std) == (127.5, 127.5)  # whatever its nodes are called
    image = crops(6)
    assert np.allclose(model.embed(image), image.mean((1, 2)) / 127.5 - 1, atol=1e-3)
    assert model.embed(image[:1]).shape == (1, 3)


@pytest.mark.parametrize(
    ("shape", "inputs"),
    [(["n", 1, 112, 112], 1), (["n", 3, 112, 96], 1), (["n", 3, 112, 112], 2), (["n", 3], 1)],
)
def test_nets_that_are_no_recognisers(tmp_path: Path, shape: list[int | str], inputs: int) -> None:
    path = tmp_path / "tiny.onnx"
    if len(shape) == 4:
        tiny_onnx(path, shape, inputs)
    else:
        onnx = pytest.importorskip("onnx")
        value = onnx.helper.make_tensor_value_info("in0", onnx.TensorProto.FLOAT, shape)
        out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, shape)
        node = onnx.helper.make_node("Relu", ["in0"], ["out"])
        graph = onnx.helper.make_graph([node], "flat", [value], [out])
        onnx.save(onnx.helper.make_model(graph, ir_version=8), str(path))
    with pytest.raises(InputError) as caught:
        open_model(path)
    assert caught.value.code == "GL0401"
    assert "expected" in caught.value.what
    assert caught.value.where == str(path)


@pytest.mark.parametrize("content", [b"", b"not an onnx file", b"\x80\x04N."])
@pytest.mark.parametrize("suffix", [".onnx", ".bin"])
def test_files_that_are_no_onnx(tmp_path: Path, content: bytes, suffix: str) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"GL0401.*expected an ONNX recogniser, found"):
        open_model(path)


@pytest.mark.slow
def test_real_faces_with_a_real_recogniser(shared: Path) -> None:
    data = shared / "data"
    pairs = read_bin(data / "lfw" / "lfw_fold10_600pairs.bin")
    found = verify(open_model(data / "models" / "mobilefacenet_y1_128d.onnx"), pairs, flip=False)
    assert found.accuracy == pytest.approx(0.992, abs=0.005)


def test_a_few_real_faces(shared: Path) -> None:
    """Same people are nearer than others, with the smallest recogniser there is."""
    pytest.importorskip("onnxruntime")
    pairs = read_bin(shared / "data" / "lfw" / "lfw_fold10_600pairs.bin")
    chosen = np.concatenate([np.flatnonzero(kind)[:12] for kind in (pairs.same, ~pairs.same)])
    images = [pairs.images[j] for i in chosen for j in (2 * int(i), 2 * int(i) + 1)]
    model = open_model(shared / "data" / "models" / "mobileface_v3_256d.onnx", threads=1)
    out = embed_jpegs(model, images)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    cosine = (out[0::2] * out[1::2]).sum(1)
    assert cosine[:12].mean() > 0.4
    assert abs(cosine[12:].mean()) < 0.2
