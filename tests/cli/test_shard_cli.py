"""glint shard and glint info, as a person and as a script see them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Glint = Callable[..., Any]


@pytest.fixture
def faces(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    for k in range(12):
        folder = tmp_path / "faces" / f"person {k // 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(jpeg(k))
    (tmp_path / "faces" / "person 0" / "page.html").write_text("<html>")
    return tmp_path / "faces"


def test_a_folder_just_works(glint: Glint, faces: Path, tmp_path: Path) -> None:
    text = glint("shard", faces, tmp_path / "out")
    assert "recognised   folder: 13 images, 3 identities" in text
    assert "read         13 = 12 written + 1 quarantined" in text and "1 not-an-image" in text
    result = glint("shard", faces, tmp_path / "other", "--workers", "1", "--json")
    assert result["schema"] == "glint/shard-result@1"
    assert {
        k: result[k]
        for k in ("read", "written", "quarantined", "quarantine_reasons", "identities", "shards")
    } == {
        "read": 13,
        "written": 12,
        "quarantined": 1,
        "quarantine_reasons": {"not-an-image": 1},
        "identities": 3,
        "shards": 1,
    }
    assert result["digest"] in text
    info = glint("info", tmp_path / "out", "--json")
    assert (info["digest"], info["written"], info["label_version"]) == (result["digest"], 12, 0)
    assert info["images_per_identity"] == {"least": 4, "median": 4.0, "most": 4}
    assert "identities   3, 4 to 4 images each" in glint("info", tmp_path / "out")


def test_dry_run(glint: Glint, faces: Path, tmp_path: Path) -> None:
    assert glint("shard", faces, tmp_path / "out", "--dry-run", "--json")["read"] == 13
    assert "would write  at most 13 samples in 1 shard," in glint(
        "shard", faces, tmp_path / "out", "--dry-run"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, code, text",
    [
        (["nothing", "out"], 2, "GL0001 no-such-path: nothing"),
        (["faces", "out", "--seed", "-3"], 2, "GL0002"),
        (["faces", "out", "--formats", "gif"], 2, "expected some of jpg, png, webp, found gif"),
        (["faces", "faces/out"], 2, "the output lies in the source"),
        (["faces", ""], 2, "GL0002 bad-option: OUT: expected a path, found"),
        (["faces/person 0", "out"], 3, "if it holds one person, give the folder above"),
        (["faces", "."], 4, "GL0004 output-exists"),
        (["empty", "out"], 3, "GL0201 unknown-source"),
        (["bad.rec", "out"], 3, "GL0213 corrupt-record: bad.rec @ 0x0"),
    ],
)
def test_mistakes(
    glint: Glint,
    faces: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.rec").write_bytes(b"not a record file at all")
    said = glint("shard", *arguments, code=code)
    assert text in said
    assert not (tmp_path / "out").exists()


def test_info_of_something_else(glint: Glint, tmp_path: Path) -> None:
    assert "GL0301 not-a-dataset" in glint("info", tmp_path, code=3)


def test_an_unfinished_dataset(glint: Glint, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    glint("shard", faces, out, "--samples-per-shard", "4")
    (out / "manifest.json").unlink()
    (out / "data" / "train-000003.tar").unlink()
    for command in ("info", "verify"):
        said = glint(command, out, code=3)
        assert f"GL0301 not-a-dataset: {out}: unfinished: 3 of 4 shards are complete" in said
        assert "hint: run the same glint shard command to continue" in said


def test_the_floor_of_the_budget_is_told(glint: Glint) -> None:
    said = " ".join(glint("shard", "--help", env={"COLUMNS": "200"}).split())
    assert "Accepted share of bad records; at least 16 records, or half, unless 0." in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_cannot_be_written(glint: Glint, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "GL0007 not-writable" in glint("shard", faces, tmp_path / "locked" / "out", code=6)


def test_no_surroundings_reach_the_bytes(glint: Glint, faces: Path, tmp_path: Path) -> None:
    digests = {
        glint("shard", faces, tmp_path / str(i), "--json", env=env)["digest"]
        for i, env in enumerate(
            [
                {"LC_ALL": "C", "TZ": "UTC", "PYTHONHASHSEED": "1"},
                {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "2"},
            ]
        )
    }
    assert len(digests) == 1
