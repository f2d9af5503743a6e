"""`glint eval` on all pairs, on IJB's lists and among distractors, as scripts call it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from glint.cli import app as command_line
from glint.cli import commands
from glint.evals.allpairs import all_pairs
from glint.pipelines import embed
from glint.pipelines.dataset import drop
from glint.shards.dataset import Dataset
from glint.shards.embeddings import load

Call = Callable[..., Any]


class Colours:
    """A recogniser that sees a coarse picture."""

    dim, size, name, digest = 48, 112, "colours", "sha256:none"

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        part = image_nHWC.reshape(len(image_nHWC), 4, 28, 4, 28, 3).mean((2, 4))
        return (part.reshape(len(part), -1) - 127.5).astype(np.float32)


@pytest.fixture(scope="module")
def call() -> Call:
    if not command_line.app.registered_commands:
        commands.register(command_line.app)

    def invoke(*args: str | Path, code: int = 0) -> Any:
        result = CliRunner().invoke(command_line.app, ["eval", *map(str, args)])
        assert result.exit_code == code, result.output
        if code:
            return result.stderr
        return json.loads(result.stdout) if "--json" in args else result.stdout

    return invoke


@pytest.fixture(scope="module")
def emb(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emb") / "emb"
    embed.embed(Dataset(small.data), Colours(), out, dtype="float32", workers=1)
    return out


def test_all_pairs_of_a_dataset_and_their_page(
    call: Call, small: Any, emb: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    args = ("all-pairs", small.data, "--embeddings", emb, "--device", "cpu")
    told = call(*args, "--work", tmp_path / "work", "--report", page, "--json")
    data = Dataset(small.data)
    direct = all_pairs(np.load(emb / "samples.npy"), data.label)
    assert told["schema"] == "glint/eval-all-pairs@1"
    assert told["tar_at_far"] == direct.tar_at_far
    assert told["genuine"] + told["impostors"] == data.n * (data.n - 1) // 2
    assert told["label_version"] == 0
    text = page.read_text()
    assert "<svg" in text
    assert "<script" not in text
    assert f">{100 * told['tar_at_far']['1e-2']:.2f}<" in text
    words = call(*args, "--work", tmp_path / "work")
    assert f"{told['impostors']:,} of different people" in words


def test_ijb_lists_over_a_dataset_and_over_rows_agree(
    call: Call, small: Any, emb: Path, tmp_path: Path
) -> None:
    data = Dataset(small.data)
    names = [Path(source).name for source in data.source]
    assert len(set(names)) == data.n
    meta = tmp_path / "meta"
    meta.mkdir()
    first, template = {}, []
    for row, label in enumerate(data.label.tolist()):
        first.setdefault(label, row)
        template.append(100 + 2 * label + (row != first[label]))
    lines = [f"{name} {t} {row}\n" for row, (name, t) in enumerate(zip(names, template))]
    (meta / "ijbc_face_tid_mid.txt").write_text("".join(lines))
    people = [p for p in sorted(first) if 101 + 2 * p in template]
    (meta / "ijbc_template_pair_label.txt").write_text(
        "".join(f"{100 + 2 * a} {101 + 2 * b} {int(a == b)}\n" for a in people for b in people)
    )
    lists = {"gallery_G1": people[::2], "gallery_G2": people[1::2], "probe_mixed": people}
    for name, who in lists.items():
        side = 101 if name == "probe_mixed" else 100
        (meta / f"ijbc_1N_{name}.csv").write_text(
            "TEMPLATE_ID,SUBJECT_ID\n" + "".join(f"{side + 2 * p},{p}\n" for p in who)
        )
    given = ("ijb", tmp_path, "--report", tmp_path / "page.html", "--json")
    told = call(*given, "--dataset", small.data, "--embeddings", emb)
    assert told["one_to_one"]["genuine"] == len(people)
    assert told["one_to_one"]["impostors"] == len(people) * (len(people) - 1)
    assert 0 < told["one_to_many"]["field"]["rank"]["1"] <= 1
    assert "false alarms per probe" in (tmp_path / "page.html").read_text()
    raw = np.load(emb / "samples.npy")
    norm = load(emb, data.digest, images=data.n, classes=data.classes)
    assert norm.about["images"] == data.n
    from glint import schemas
    from glint.files import parquet

    length = parquet.read(emb / "samples.parquet", schemas.EMBEDDED, code="GL0402")["norm"]
    np.save(tmp_path / "rows.npy", raw * length.to_numpy()[:, None])
    same = call(*given, "--embeddings", tmp_path / "rows.npy")
    assert same["one_to_one"] == told["one_to_one"]
    assert same["one_to_many"] == told["one_to_many"]
    assert "1:N, %" in call("ijb", tmp_path, "--embeddings", tmp_path / "rows.npy")
    np.save(tmp_path / "few.npy", raw[:-1])
    err = call("ijb", tmp_path, "--embeddings", tmp_path / "few.npy", code=3)
    assert f"GL0402 bad-embeddings: {tmp_path / 'few.npy'}: expected {data.n} rows" in err


def test_probes_among_distractors(call: Call, small: Any, emb: Path, tmp_path: Path) -> None:
    given = ("identify", small.data, "--embeddings", emb, "--distractors", small.data,
             "--distractor-embeddings", emb)  # fmt: skip
    told = call(*given, "--report", tmp_path / "page.html", "--json")
    assert told["distractors"] == told["probes"] == Dataset(small.data).n
    # Each probe stands among the distractors too, and no mate is nearer than that.
    assert told["rank1_by_distractors"][str(told["probes"])] < 0.05
    assert "Rank 1 by distractors" in (tmp_path / "page.html").read_text()
    assert "TAR at FAR 1e-6" in call(*given)
    # Who was taken down, or left out, is no distractor.
    fewer = shutil.copytree(small.data, tmp_path / "fewer")
    gone = drop.drop(fewer, ["label:0"], "asked", keys=[str(Dataset(fewer).key[-1])])
    fewest = ("identify", small.data, "--embeddings", emb, "--distractors", fewer,
              "--distractor-embeddings", emb)  # fmt: skip
    assert call(*fewest, "--json")["distractors"] == told["distractors"] - gone.images


def test_options_that_do_not_fit(call: Call, small: Any) -> None:
    assert "found --pairs and --ijb" in call("--pairs", "x", "--ijb", "y", code=2)
    assert "needs --embeddings" in call("--all-pairs", small.data, code=2)
    assert "--distractors and --distractor-embeddings" in call(
        "--identify", small.data, "--embeddings", "x", code=2
    ).replace("\u2502 ", "")
