"""`glint quality`: the number of each image, what it leaves out, and the curve of errors."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint.models import quality as nets
from glint.pipelines import embed
from glint.pipelines import quality as stage
from glint.shards import pixels
from glint.shards.dataset import Dataset


class Pixels:
    """Mean colours in place of a recogniser."""

    dim, size, name, digest = 147, 112, "pixels", "sha256:pixels"

    def embed(self, image_nHWC):
        few = image_nHWC.reshape(-1, 7, 16, 7, 16, 3).mean(axis=(2, 4))
        return (few.reshape(len(few), -1) - 128).astype(np.float32)


@pytest.fixture(scope="module")
def embedded(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("quality") / "emb"
    embed.embed(Dataset(small.data), Pixels(), out)
    return out


@pytest.fixture(scope="module")
def brightness(tmp_path_factory) -> Path:
    """A net whose score is the mean of its input, pixels from 0 to 255."""
    onnx = pytest.importorskip("onnx")
    info = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["pool"]),
        onnx.helper.make_node("ReduceMean", ["pool"], ["flat"], axes=[2, 3], keepdims=0),
        onnx.helper.make_node("ReduceMean", ["flat"], ["score"], axes=[1], keepdims=1),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", 1, ["n", 3, 112, 112])], [info("score", 1, ["n", 1])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    model.ir_version = 8
    path = tmp_path_factory.mktemp("net") / "brightness.onnx"
    onnx.save(model, str(path))
    return path


def test_the_norm_and_what_it_leaves_out(glint, small, embedded, tmp_path) -> None:
    out = tmp_path / "quality"
    got = glint("quality", small.data, "--embeddings", embedded, "--out", out, "--json")
    norm_N = pq.read_table(embedded / "samples.parquet")["norm"].to_numpy()
    table = pq.read_table(out / "quality.parquet")
    assert np.array_equal(table["quality"].to_numpy(), norm_N)
    assert table["key"].to_pylist() == [str(k) for k in Dataset(small.data).key]
    assert got["scored"] == got["images"] == len(norm_N)
    assert "<svg" in (out / "quality.html").read_text()
    assert (out / "quality.html").stat().st_mode & 0o077 == 0

    worst_N = norm_N < np.quantile(norm_N.astype(np.float64), 0.2)
    assert 0 < worst_N.sum() < len(norm_N)
    told = ["--quality", out, "--min-quality"]
    file = tmp_path / "sampling.parquet"
    balanced = glint("balance", small.data, *told, "20%", "--out", file, "--json")
    assert balanced["images"] == len(norm_N) - worst_N.sum()
    left = [row for rows in pq.read_table(file)["left_out"].to_pylist() for row in rows]
    assert sorted(left) == np.flatnonzero(worst_N).tolist()

    least = f"{float(np.sort(norm_N)[10]):.9g}"  # as float32 it is that image's own: it stays
    balanced = glint("balance", small.data, *told, least, "--out", file, "--json")
    assert balanced["images"] == len(norm_N) - 10
    core = tmp_path / "core"
    chosen = glint(
        "coreset", small.data, "--embeddings", embedded, "--out", core, "--threshold", "1",
        "--outliers", "180", *told, "20%", "--json",
    )  # fmt: skip
    assert chosen["low-quality"] == worst_N.sum()
    reason = np.array(pq.read_table(core / "coreset.parquet")["reason"].to_pylist())
    assert np.array_equal(reason == "low-quality", worst_N)
    drawn = pq.read_table(core / "sampling.parquet")["left_out"].to_pylist()
    assert {r for rows in drawn for r in rows} >= set(np.flatnonzero(worst_N).tolist())


def test_a_quality_net_and_tasks(glint, small, brightness, embedded, tmp_path) -> None:
    told = ["--method", "net", "--model", brightness, "--mean", "0", "--std", "1"]
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    got = glint("quality", small.data, *told, "--embeddings", embedded, "--out", whole, "--json")
    data = Dataset(small.data)
    mean_N = [pixels.rgb(data.read(row)).astype(np.float64).mean() for row in range(data.n)]
    found_N = pq.read_table(whole / "quality.parquet")["quality"].to_numpy()
    assert np.allclose(found_N, mean_N, rtol=1e-5)
    assert got["method"] == "net" and got["curve"]["pairs"] > 0
    for task in ("0/2", "1/2"):
        glint("quality", small.data, *told, "--embeddings", embedded, "--out", shared,
              "--task", task)  # fmt: skip
    names = ("quality.parquet", "quality.json", "quality.html")
    assert all((whole / n).read_bytes() == (shared / n).read_bytes() for n in names)
    again = glint("quality", small.data, *told, "--out", whole, code=7)
    assert "GL0006" in again and "embeddings" in again


def test_steadiness_is_the_mean_of_all_pairs(small) -> None:
    data = Dataset(small.data)
    image_nHWC = np.stack([pixels.rgb(data.read(row)) for row in range(5)])
    unit = []
    for view_nHWC in nets.views(image_nHWC):
        assert view_nHWC.shape == image_nHWC.shape and view_nHWC.dtype == np.uint8
        raw_nD = Pixels().embed(view_nHWC).astype(np.float64)
        unit.append(raw_nD / np.linalg.norm(raw_nD, axis=1, keepdims=True))
    assert len(unit) == 4 and len({view.tobytes() for view in nets.views(image_nHWC)}) == 4
    pairs = [(a * b).sum(axis=1) for a, b in itertools.combinations(unit, 2)]
    found_n2 = nets.Quality(Pixels(), steady=True).embed(image_nHWC)
    assert np.allclose(found_n2[:, 0], np.mean(pairs, axis=0), atol=1e-6)
    assert np.all(found_n2[:, 1] == 1)


def test_sharpness_is_scipys_laplacian(glint, small, tmp_path) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    out = tmp_path / "sharp"
    got = glint("quality", small.data, "--method", "sharpness", "--out", out, "--json")
    assert got["method"] == "sharpness" and got["curve"] is None
    data, kernel = Dataset(small.data), np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    grey = [pixels.rgb(data.read(row)) @ np.array([0.299, 0.587, 0.114]) for row in range(20)]
    edges = [ndimage.convolve(one, kernel, mode="mirror") for one in grey]
    wanted = [np.log1p(one.var()) for one in edges]
    found_N = pq.read_table(out / "quality.parquet")["quality"].to_numpy()
    assert np.allclose(found_N[:20], wanted, rtol=1e-4)


def test_the_curve_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    target_N = np.repeat(np.arange(40), 6)
    target_N[::17] = -1
    noise_N = rng.uniform(0.1, 1.5, len(target_N))
    raw_ND = rng.standard_normal((40, 16))[target_N] + noise_N[:, None] * rng.standard_normal(
        (len(target_N), 16)
    )
    sample_ND = (raw_ND / np.linalg.norm(raw_ND, axis=1, keepdims=True)).astype(np.float32)
    score_N = (-noise_N).astype(np.float32)
    score_N[5], sample_ND[9] = np.nan, np.nan
    found = stage.curve(sample_ND, target_N, score_N)
    assert found is not None
    rows = [i for i in range(len(target_N)) if target_N[i] >= 0 and i not in (5, 9)]
    pairs = [(a, b) for a, b in itertools.combinations(rows, 2) if target_N[a] == target_N[b]]
    assert found["pairs"] == len(pairs)
    for share, fnmr in zip(found["discarded"], found["fnmr"]):
        cut = np.quantile(score_N[rows].astype(np.float64), share)
        kept = [p for p in pairs if min(score_N[p[0]], score_N[p[1]]) >= cut]
        missed = [float(sample_ND[a] @ sample_ND[b]) < found["threshold"] for a, b in kept]
        assert fnmr == pytest.approx(np.mean(missed), abs=1e-9)
    strangers = [
        float(sample_ND[a] @ sample_ND[b])
        for a, b in itertools.combinations(rows, 2) if target_N[a] != target_N[b]
    ]  # fmt: skip
    assert np.mean(np.array(strangers) > found["threshold"]) == pytest.approx(1e-3, abs=3e-4)
    assert found["fnmr"][-1] < 0.8 * found["fnmr"][0] < found["at_random"][-1]
    assert stage.curve(sample_ND, np.arange(len(target_N)), score_N) is None
    assert stage.curve(sample_ND, np.zeros(len(target_N), np.int64), score_N) is None


def test_mistakes(glint, small, embedded, tmp_path) -> None:
    out = tmp_path / "quality"
    glint("quality", small.data, "--embeddings", embedded, "--out", out)
    balance = ["balance", small.data, "--out", tmp_path / "s", "--quality", out]
    for words, part in (
        ([*balance], "--quality: goes with --min-quality"),
        ([*balance[:4], "--min-quality", "3"], "--min-quality: goes with --quality"),
        ([*balance, "--min-quality", "five"], "found 'five'"),
        ([*balance, "--min-quality", "1e9"], "hint: lower --min-quality"),
        ([*balance, "--min-quality", "1.2.3"], "found '1.2.3'"),
        ([*balance, "--min-quality", "100%"], "found '100%'"),
        (["quality", small.data, "--out", out], "--method norm needs --embeddings"),
        (["quality", small.data, "--out", out, "--method", "best"], "norm, sharpness, steady, net"),
        (["quality", small.data, "--out", out, "--method", "net"], "needs --model"),
    ):
        told = glint(*words, code=2)
        assert "GL0002" in told and part in told
    assert "GL0004" in glint(
        "quality", small.data, "--embeddings", embedded, "--out", small.data, code=4
    )
    table = out / "quality.parquet"
    was = table.read_bytes()
    worse = pq.read_table(table)
    pq.write_table(worse.slice(0, worse.num_rows - 1), table)
    assert "GL0305" in glint(*balance, "--min-quality", "5%", code=3)
    table.write_bytes(was)
    other = tmp_path / "other"
    shutil.copytree(out, other)
    text = (other / "quality.json").read_text()
    (other / "quality.json").write_text(text.replace(Dataset(small.data).digest, "sha256:other"))
    assert "made for dataset" in glint(*balance[:-1], other, "--min-quality", "5%", code=7)
