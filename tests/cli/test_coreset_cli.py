"""`glint coreset` and `glint balance --coreset`: what they say, and how they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint.files import parquet
from glint.pipelines import embed
from glint.shards.dataset import Dataset


class Pixels:
    """Mean colours in place of a recogniser."""

    dim, size, name, digest = 147, 112, "pixels", "sha256:pixels"

    def embed(self, image_nHWC):
        few = image_nHWC.reshape(-1, 7, 16, 7, 16, 3).mean(axis=(2, 4))
        return (few.reshape(len(few), -1) - 128).astype(np.float32)


@pytest.fixture(scope="module")
def embedded(small, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("coreset") / "emb"
    embed.embed(Dataset(small.data), Pixels(), out)
    return out


def test_a_mask_from_the_command_line(glint, small, embedded, tmp_path) -> None:
    core = tmp_path / "core"
    told = ["--embeddings", embedded, "--out", core]
    text = glint("coreset", small.data, *told, "--threshold", "0.9")
    assert "kept " in text and f"data.sampling={core}/sampling.parquet" in text
    got = glint(
        "balance", small.data, "--coreset", core, "--cap", "3", "--out", tmp_path / "s", "--json"
    )
    table = parquet.read(core / "coreset.parquet")
    assert got["images"] == sum(table["kept"].to_pylist()) < table.num_rows
    told = glint("coreset", small.data, *told, "--keep-ratio", "0.01", "--dry-run", code=2)
    assert "GL0002" in told and "--keep-ratio: expected a ratio that keeps" in told


def test_outliers_left_out_for_all_commands(glint, small, embedded, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small.data, data)
    told = ["--embeddings", embedded, "--threshold", "1", "--outliers", "40", "--sub-centres", "2"]
    first = glint("coreset", data, *told, "--out", tmp_path / "core", "--apply", "--json")
    assert first["outlier"] > 0 and first["label_version"] == 1
    reason = pq.read_table(tmp_path / "core/coreset.parquet")["reason"].to_pylist()
    own = pq.read_table(data / "labels/v0001.images.parquet")
    assert own["row"].to_pylist() == [i for i, one in enumerate(reason) if one == "outlier"]
    assert {*own["label"].to_pylist()} == {-1}
    again = glint("coreset", data, *told, "--out", tmp_path / "again", "--apply", "--json")
    assert again | {"out": "", "sampling": ""} == first | {
        "out": "", "sampling": "", "label_version_before": 1
    }  # fmt: skip
    one, two = ((tmp_path / name / "sampling.parquet") for name in ("core", "again"))
    assert one.read_bytes() == two.read_bytes()
    got = glint("balance", data, "--json")
    assert (got["images"], got["label_version"]) == (len(reason) - first["outlier"], 1)

    text = glint("labels", data, "--undo")
    assert "coreset" in text and "* " in text
    back = glint("labels", data, "--json")
    assert (back["version"], [v["images_left_out"] for v in back["versions"]]) == (
        0, [0, first["outlier"]]
    )  # fmt: skip
    assert glint("balance", data, "--json")["images"] == len(reason)
    assert glint("labels", data, "--redo", "--json")["version"] == 1
    assert "GL0502" in glint("labels", data, "--redo", code=3)
    assert "GL0002" in glint("labels", data, "--redo", "--undo", code=2)
