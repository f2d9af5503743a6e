"""The bare form, the subcommands, and what they say about mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["embed", "dedup-conflicts", "balance"]


def glint(*args: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "glint", *args],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_names_the_subcommands() -> None:
    text = glint("dedup-conflicts", "--help").stdout
    for name in ("find", "apply", "undo", "dedup-conflicts DATASET"):
        assert name in text


@pytest.mark.parametrize(
    "args",
    [
        ["dedup-conflicts", "SET", "--embeddings", "e", "--out", "o"],
        ["dedup-conflicts", "find", "SET", "--embeddings", "e", "--out", "o"],
        ["dedup-conflicts", "--json", "SET", "--embeddings", "e", "--out", "o"],
        ["balance", "SET"],
    ],
)
def test_a_path_that_is_no_dataset(tmp_path: Path, args: list[str]) -> None:
    done = glint(*[str(tmp_path / a) if a in ("SET", "e", "o") else a for a in args], code=3)
    if "--json" in args:
        told = json.loads(done.stdout)
        assert (told["schema"], told["error"]) == ("glint/error@1", "GL0301")
        assert (told["slug"], told["exit"]) == ("not-a-dataset", 3)
        assert told["what"] == "expected a dataset, found no such folder"
        assert told["where"] == str(tmp_path / "SET")
        assert told["hint"]
    else:
        assert done.stdout == ""
    assert "error GL0301 not-a-dataset" in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.parametrize("verb", ["review", "apply", "undo"])
def test_apply_to_what_is_no_report(tmp_path: Path, verb: str) -> None:
    done = glint("dedup-conflicts", verb, str(tmp_path), "--json", code=3)
    assert "error GL0501 bad-decisions" in done.stderr


def test_usage_mistakes(tmp_path: Path) -> None:
    glint("dedup-conflicts", str(tmp_path), code=2)
    done = glint("balance", str(tmp_path), "--power", "2", code=2)
    assert "--power: expected from 0 to 1, found 2.0" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["embed", "SET", "--model", "m"],
        ["dedup-conflicts", "SET", "--embeddings", "e"],
        ["balance", "SET"],
    ],
)
def test_an_empty_out(args: list[str]) -> None:
    done = glint(*args, "--out", "", "--json", code=2)
    assert "error GL0002 bad-option: --out: expected a path, found an empty string" in done.stderr
    assert json.loads(done.stdout)["error"] == "GL0002"


def test_balance_elsewhere(small, tmp_path: Path) -> None:
    data = shutil.copytree(small.data, tmp_path / "data")
    out = tmp_path / "a table.parquet"
    text = glint("balance", str(data), "--out", str(out)).stdout
    assert f"Next: glint train RECIPE --set 'data.sampling={out}'" in text
    text = glint("balance", str(data), "--out", str(data / "sampling.parquet")).stdout
    assert "--set data.sampling=auto" in text
    done = glint("balance", str(data), "--out", str(data / "samples.parquet"), code=4)
    assert "error GL0004 output-exists" in done.stderr
    glint("balance", str(data), "--min", "1000", code=2)


def test_out_that_is_a_dataset_or_a_file(small, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = sorted(small.data.rglob("*"))
    for out, what in ((small.data, "this is a dataset"), (tmp_path / "file", "found a file")):
        for command in (["embed", "--model", "m"], ["dedup-conflicts", "--embeddings", "e"]):
            done = glint(*command, str(small.data), "--out", str(out), code=4)
            assert "error GL0004" in done.stderr
            assert what in done.stderr
    assert sorted(small.data.rglob("*")) == before


def test_importing_the_commands_is_light() -> None:
    code = (
        "import sys; from glint.cli import embed, conflicts, balance; "
        "bad = {'torch', 'faiss', 'numpy', 'pyarrow', 'scipy', 'jinja2'} & set(sys.modules); "
        "print(sorted(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


class Mean:
    """A recogniser that no test needs to be good: colours of 8 x 8 squares."""

    name, dim, size, digest = "mean", 192, 112, "sha256:mean"

    def embed(self, image_nHWC):
        small = image_nHWC.reshape(-1, 8, 14, 8, 14, 3).mean((2, 4)).reshape(len(image_nHWC), -1)
        return (small - small.mean(axis=0)).astype("float32")


def test_against_a_test_set(small, tmp_path: Path) -> None:
    from glint.pipelines.embed import embed
    from glint.shards.dataset import Dataset

    data = Dataset(small.data)
    embed(data, Mean(), tmp_path / "emb")
    done = glint(
        "dedup-conflicts", str(small.data), "--embeddings", str(tmp_path / "emb"),
        "--out", str(tmp_path / "conf"), "--no-thumbs", "--no-near", "--low", "0.9",
        "--against-test", str(small.data), "--against-embeddings", str(tmp_path / "emb"),
    )  # fmt: skip
    assert f"in {small.data.name} too: " in done.stdout
    assert f"{data.n} images in both: {data.classes} identities leak" in done.stdout
    assert "repeated images: 0 groups" in done.stdout
    told = json.loads((tmp_path / "conf/conflicts.json").read_text())
    assert told["counts"]["near_duplicates"] == 0
    assert told["against"][0]["digest"] == data.digest
