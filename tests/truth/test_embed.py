"""`glint embed` against a second run of the same net: onnxruntime, `tarfile`, Pillow, simplejpeg.

Constants of the stage, and what these tests put against them: `embed.BLOCK` 2,048 rows a block
(20,010 rows: 10 blocks; 4,400: 3), `--batch` 64 (the oracle takes 333), 16,384 rows a step of the
centres (20,010), 1 MiB a read of the checksums (samples.npy 20 MB, centres.npy 5 MB).
"""

# n images, D embedding, C labels as sharded

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from glint.jobs.tasks import Task
from glint.models.recogniser import open_model
from glint.pipelines import embed
from glint.shards import embeddings, labels
from glint.shards.dataset import Dataset

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pillow = pytest.importorskip("PIL.Image")

D, CHUNK = 512, 333
HALF = 2.0**-11  # of a value: what float16 rounds


def make_net(path: Path, scales: bool) -> Path:
    """Write a net of one layer for 16x16 crops; `scales`: it takes 0..255, and its names say so."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(5).normal(size=(768, D)).astype(np.float32) / 28
    held, nodes, last = {"weight": weight}, [], "data"
    if scales:
        held |= {"mean": np.float32(127.5), "factor": np.float32(1 / 127.5)}
        nodes = [
            helper.make_node("Sub", [last, "mean"], ["centred"], name="Sub_0"),
            helper.make_node("Mul", ["centred", "factor"], ["scaled"], name="Mul_1"),
        ]
        last = "scaled"
    nodes += [
        helper.make_node("Flatten", [last], ["flat"], name="Flatten_2"),
        helper.make_node("MatMul", ["flat", "weight"], ["sum"], name="MatMul_3"),
        helper.make_node("LeakyRelu", ["sum"], ["embedding"], name="LeakyRelu_4", alpha=0.5),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", D])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


def by_pillow(data: bytes) -> np.ndarray:
    """Decode with another decoder than glint's."""
    return np.asarray(pillow.open(io.BytesIO(data)).convert("RGB"))


def truth(
    net: Path, images: list[bytes], *, scales: bool, flip: bool, decode: Callable[..., np.ndarray]
) -> np.ndarray:
    """Give raw float64 embeddings (n, D), NaN for an image of another size than 16x16."""
    session = runtime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    out_nD = np.full((len(images), D), np.nan)
    opened = [decode(data) for data in images]
    fit = [i for i, one in enumerate(opened) if one.shape == (16, 16, 3)]
    for at in range(0, len(fit), CHUNK):
        some = fit[at : at + CHUNK]
        pixel = np.stack([opened[i] for i in some]).astype(np.float32)
        for mirrored in (False, True) if flip else (False,):
            x = pixel[:, :, ::-1] if mirrored else pixel
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
            x = x if scales else (x - 127.5) / 127.5
            found = session.run(None, {"data": x})[0].astype(np.float64)
            out_nD[some] = found + (out_nD[some] if mirrored else 0)
    return out_nD


def mean_rows(row_nD: np.ndarray, label_n: np.ndarray, classes: int) -> np.ndarray:
    """Average the finite rows of every label in float64 and scale; NaN where there is none."""
    good_n = np.isfinite(row_nD[:, 0])
    sum_CD = np.zeros((classes, row_nD.shape[1]))
    np.add.at(sum_CD, label_n[good_n], row_nD[good_n].astype(np.float64))
    with np.errstate(invalid="ignore"):
        return sum_CD / np.linalg.norm(sum_CD, axis=1, keepdims=True)


def check(out: Path, raw_nD: np.ndarray, keys: list[str], label_n: np.ndarray, C: int) -> None:
    """Hold a folder against raw embeddings: rows, their order, norms, statuses, centres."""
    row_nD = np.load(out / "samples.npy")
    norm_n = np.linalg.norm(raw_nD, axis=1)
    want_nD = raw_nD / norm_n[:, None]
    assert row_nD.dtype == np.float16 and row_nD.shape == want_nD.shape
    np.testing.assert_allclose(row_nD.astype(np.float64), want_nD, rtol=HALF, atol=3e-6)
    table = pq.read_table(out / "samples.parquet")
    assert table["key"].to_pylist() == keys
    assert table["status"].to_pylist() == [
        "ok" if one else "wrong-size" for one in np.isfinite(norm_n).tolist()
    ]
    np.testing.assert_allclose(table["norm"].to_numpy(), norm_n, rtol=1e-5)
    want_CD = mean_rows(row_nD, label_n, C)
    about = json.loads((out / "embeddings.json").read_text())
    if len(label_n) == C:  # every image an identity of its own
        assert about["centres"] is False and not (out / "centres.npy").exists()
    else:
        centre_CD = np.load(out / "centres.npy")
        assert centre_CD.dtype == np.float32 and centre_CD.shape == (C, D)
        np.testing.assert_allclose(centre_CD, want_CD, rtol=0, atol=2e-6)
    assert about["images"] == len(keys) and about["failed"] == int(np.isnan(norm_n).sum())
    assert about["empty_classes"] == int(np.isnan(want_CD[:, 0]).sum())


def test_rows_and_centres_are_those_of_a_second_runtime(world, rows, tmp_path: Path) -> None:
    """20,010 rows in 10 blocks of the true size, ten of them of another size than the net's."""
    found = rows(world.root)
    net = make_net(tmp_path / "net.onnx", scales=False)
    embed.embed(Dataset(world.root), open_model(net, threads=1), tmp_path / "emb")
    source = pq.read_table(world.root / "identities.parquet")["source_label"].to_pylist()
    assert [source[row.label] for row in found] == [world.image[row.image][0] for row in found]
    label_n = np.array([row.label for row in found])
    images = [row.image for row in found]
    raw_nD = truth(net, images, scales=False, flip=False, decode=simplejpeg.decode_jpeg)
    assert int(np.isnan(raw_nD[:, 0]).sum()) == len(world.odd)
    check(tmp_path / "emb", raw_nD, [row.key for row in found], label_n, len(source))


def test_flip_tasks_and_a_label_version(crawl, rows, copied, tmp_path: Path) -> None:
    """4,400 rows in three blocks by two tasks, one of which has two; mirrored images added.

    Centres are of labels as sharded, each of one image: a label version in force makes none.
    """
    root, found = copied(crawl.root), rows(crawl.root)
    target = np.arange(4400) // 2
    labels.apply(root, target, np.empty((0, 2), np.int64), {})
    net = make_net(tmp_path / "net.onnx", scales=True)
    model = open_model(net, threads=1)
    told = [
        embed.embed(Dataset(root), model, tmp_path / "emb", flip=True, batch=100, task=Task(i, 2))
        for i in (1, 0)
    ]
    assert [one.left for one in told] == [2, 0]
    images = [row.image for row in found]
    raw_nD = truth(net, images, scales=True, flip=True, decode=by_pillow)
    label_n = np.array([row.label for row in found])
    check(tmp_path / "emb", raw_nD, [row.key for row in found], label_n, 4400)


def test_trimmed_centres_of_more_rows_than_one_step() -> None:
    """`--trim` over 40,000 rows (steps of 16,384) whose identities lie on both sides of a seam."""
    rng = np.random.default_rng(6)
    label_n = rng.integers(0, 700, 40_000)
    who_CD = rng.normal(size=(701, 64))
    row_nD = who_CD[label_n] + rng.normal(size=(40_000, 64)) * rng.choice([0.5, 6], (40_000, 1))
    row_nD = (row_nD / np.linalg.norm(row_nD, axis=1, keepdims=True)).astype(np.float16)
    row_nD[rng.integers(0, 40_000, 50)] = np.nan
    first_CD = mean_rows(row_nD, label_n, 701)
    cosine_n = (row_nD.astype(np.float64) * first_CD[label_n]).sum(axis=1)
    near = np.abs(cosine_n - np.cos(np.radians(75)))
    assert np.nanmin(near) > 1e-6, "a row lies on the edge of 75 degrees: draw with another seed"
    kept_nD = np.where((cosine_n >= np.cos(np.radians(75)))[:, None], row_nD, np.nan)
    want_CD = mean_rows(kept_nD, label_n, 701)
    got_CD = embeddings.centres(row_nD, label_n, 701, trim=True)
    np.testing.assert_allclose(got_CD, want_CD, rtol=0, atol=2e-6)
    assert np.abs(want_CD - first_CD)[:700].max() > 1e-3 and np.isnan(got_CD[700]).all()
