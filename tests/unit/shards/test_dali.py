"""The index for DALI says where tarfile finds the members, in every layout."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from glint.errors import InputError
from glint.pipelines.dataset import reshard
from glint.pipelines.dataset import shard as stage
from glint.shards.verify import verify

Jpeg = Callable[[int], bytes]


def as_tarfile_says(tar: Path) -> str:
    samples: dict[str, list[str]] = {}
    with tarfile.open(tar) as members:
        for member in members:
            stem, _, suffix = member.name.partition(".")
            found = f"{suffix} {member.offset_data} {member.size} {member.name}"
            samples.setdefault(stem, []).append(found)
    return f"v1.2 {len(samples)}\n" + "".join(" ".join(s) + "\n" for s in samples.values())


def check(out: Path, shards: int) -> None:
    tars = sorted((out / "data").glob("*.tar"))
    assert len(tars) == shards
    for tar in tars:
        assert tar.with_suffix(".idx").read_text() == as_tarfile_says(tar)
    assert verify(out).ok and verify(out, deep=True).ok


@pytest.fixture
def faces(tmp_path: Path, jpeg: Jpeg) -> Path:
    png = io.BytesIO()
    Image.new("RGB", (112, 112)).save(png, "PNG")
    for k in range(36):
        folder = tmp_path / "faces" / f"{k // 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(jpeg(k) if k % 5 else png.getvalue())
    return tmp_path / "faces"


@pytest.mark.parametrize(
    "options",
    [
        stage.Options(16),
        stage.Options(16, with_json=True, formats=("jpg", "png")),
        stage.Options(16, members="jpg", formats=("png", "jpg")),
        stage.Options(1, formats=("jpg", "png")),
        stage.Options(1),  # shards without a sample: the PNGs are quarantined
    ],
)
def test_every_member_is_listed(faces: Path, tmp_path: Path, options: stage.Options) -> None:
    stage.shard(faces, tmp_path / "out", options)
    check(tmp_path / "out", 36 if options.samples_per_shard == 1 else 3)


def test_after_resharding(faces: Path, tmp_path: Path) -> None:
    stage.shard(faces, tmp_path / "set", stage.Options(16, with_json=True, formats=("jpg", "png")))
    reshard.reshard(tmp_path / "set", tmp_path / "out", samples_per_shard=7)
    check(tmp_path / "out", 6)


def test_a_lost_or_changed_index_is_named(faces: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", stage.Options(16)
    stage.shard(faces, out, options)
    path = out / "data" / "train-000001.idx"
    good = path.read_bytes()
    path.unlink()
    for deep in (False, True):
        (problem,) = verify(out, deep=deep).problems
        assert (problem.code, problem.file) == ("GL0302", "data/train-000001.idx")
        assert problem.what == "the index for DALI is missing"
    with pytest.raises(InputError, match=r"GL0302.*train-000001.idx: the index for DALI is miss"):
        stage.shard(faces, out, options)
    path.write_bytes(good.replace(b"jpg 1", b"jpg 2", 1))
    (problem,) = verify(out).problems
    assert problem.what == "the index for DALI has changed"


def test_a_run_that_goes_on_writes_what_is_missing(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", stage.Options(16)
    with monkeypatch.context() as patch:
        patch.setattr(stage.Sharding, "join", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stage.shard(faces, out, options)
    (out / "data" / "train-000000.idx").unlink()
    (out / "data" / "train-000002.idx").write_bytes(b"v1.2 0\n")
    assert stage.shard(faces, out, options).resumed_shards == 1
    check(out, 3)
