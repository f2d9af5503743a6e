from __future__ import annotations

from pathlib import Path

import pytest

from glint.errors import BusyError, ResourceError, UsageError
from glint.recipes import shelf

ROOT = Path(__file__).parents[3]


def test_by_name_by_shelf_and_by_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = ROOT / "train" / "glint360k_r50.toml"
    for name in ("glint360k_r50", "glint360k_r50.toml", "train/glint360k_r50", str(there)):
        entry = shelf.locate(name)
        assert (entry.shelf, entry.name) == ("train", "glint360k_r50")
        assert entry.path.samefile(there)
    assert shelf.find("train", "glint360k_r50").samefile(there)
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "glint360k_r50"
    own.write_text("mine = true\n")
    assert shelf.locate("glint360k_r50") == shelf.Entry("", "glint360k_r50", Path("glint360k_r50"))


def test_a_name_on_two_shelves() -> None:
    with pytest.raises(UsageError, match="several shelves: pipelines/glint360k, manif") as caught:
        shelf.locate("glint360k")
    assert caught.value.hint == "name one of them, as in pipelines/glint360k"
    assert shelf.locate("glint360k", "manifests").shelf == "manifests"


def test_no_such_recipe_tells_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        shelf.find("train", "glint360k_r5")
    assert caught.value.code == "GL0103"
    assert "did you mean glint360k_r50?" in caught.value.what
    with pytest.raises(UsageError, match="did you mean train"):
        shelf.entries("trian")


def test_copy(tmp_path: Path) -> None:
    there = shelf.find("train", "ms1mv3_r50")
    assert shelf.copy("ms1mv3_r50", tmp_path) == tmp_path / "ms1mv3_r50.toml"
    mine = shelf.copy("ms1mv3_r50", tmp_path / "mine.toml")
    assert mine.read_bytes() == there.read_bytes()
    mine.write_text("edited\n")
    with pytest.raises(BusyError) as caught:
        shelf.copy("ms1mv3_r50", mine)
    assert caught.value.code == "GL0004"
    assert mine.read_text() == "edited\n"
    shelf.copy("ms1mv3_r50", mine, overwrite=True)
    assert mine.read_bytes() == there.read_bytes()
    with pytest.raises(UsageError) as missing:
        shelf.copy("ms1mv3_r50", tmp_path / "no" / "mine.toml")
    assert missing.value.code == "GL0001"


def test_copy_into_a_place_that_cannot_be_written() -> None:
    with pytest.raises(ResourceError) as caught:
        shelf.copy("ms1mv3_r50", Path("/proc/mine.toml"))
    assert caught.value.code == "GL0007"


def test_titles() -> None:
    for entry in shelf.entries():
        assert shelf.title(entry), entry.name
