"""`glint coreset` and `glint balance --coreset`: what they say, and how they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
    table = embed.parquet.read(core / "coreset.parquet")
    assert got["images"] == sum(table["kept"].to_pylist()) < table.num_rows
    told = glint("coreset", small.data, *told, "--keep-ratio", "0.01", "--dry-run", code=2)
    assert "GL0002" in told and "--keep-ratio: expected a ratio that keeps" in told
