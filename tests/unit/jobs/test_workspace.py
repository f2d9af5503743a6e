"""The output folder of a stage: who holds it, who knows it again, from which plan it was begun."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from glint.errors import BusyError, MismatchError
from glint.files import atomic
from glint.jobs.tasks import Task
from glint.jobs.workspace import Workspace, sha256

PLAN = {"format": "glint/faces@1", "seed": 1}


def test_one_holds_it_or_tasks_share_it(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "out", "faces")
    with space.held(), pytest.raises(BusyError, match="GL0005"), space.held():
        pass
    with space.held(Task(0, 2)) as held, space.held(Task(1, 2)):
        assert not held.alone()
    space.refuse_foreign()  # a lock alone is nobody's


def test_another_plan_is_refused(tmp_path: Path) -> None:
    space = Workspace(tmp_path, "faces")
    with space.held():
        space.take_up(PLAN, "GL0402")
    space.take_up(PLAN, "GL0402")
    space.refuse_foreign()
    with pytest.raises(MismatchError, match=r"GL0006.*\(seed: 1 there, 2 now\)"):
        space.take_up({**PLAN, "seed": 2}, "GL0402")
    with pytest.raises(BusyError, match=r"GL0004.*holds no rows"):
        Workspace(tmp_path, "rows").refuse_foreign()


def test_the_end_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"abc")
    space = Workspace(tmp_path, "faces")
    about = space.finish(PLAN, ["a.parquet", "b.parquet"])
    assert about == {**PLAN, "files": {"a.parquet": sha256(tmp_path / "a.parquet")}}
    assert json.loads((tmp_path / "faces.json").read_text()) == about
    space.refuse_foreign()


@pytest.mark.parametrize("name", ["", "lock", "search", "state.npz"])
def test_a_link_in_the_private_folder_is_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    space = Workspace(out, "faces")
    with space.held():
        space.begin(PLAN)
    if not name:
        space.work.rename(tmp_path / "other")
    else:
        (space.work / name).unlink(missing_ok=True)
    (space.work / name).symlink_to(tmp_path / "other")
    with pytest.raises(BusyError, match=r"GL0004.*a symbolic link"):
        space.refuse_foreign()
    if name in ("", "lock"):
        with pytest.raises(BusyError, match=r"GL0004.*a symbolic link"), space.held():
            pass


def test_half_files_of_killed_runs_go(tmp_path: Path) -> None:
    space = Workspace(tmp_path, "faces")
    with space.held():
        space.begin(PLAN)
    for path in (tmp_path / "faces.parquet", space.work / "state.npz"):
        atomic.temporary_name(path).touch()
    (tmp_path / "mine.tmp.txt").touch()
    with space.held():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"_glint", "mine.tmp.txt"}
    assert {path.name for path in space.work.iterdir()} == {"lock", "plan.json"}


def test_what_is_biometric_is_its_owner_s(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for contents, mode in (("embeddings", 0o600), ("conflicts", 0o600), ("run", 0o644)):
            space = Workspace(tmp_path / contents, contents)
            with space.held():
                space.begin(PLAN)
                atomic.write_bytes(tmp_path / contents / "faces.parquet", b"faces")
            found = (tmp_path / contents / "faces.parquet").stat().st_mode & 0o777
            assert (found, space.plan.stat().st_mode & 0o777) == (mode, mode)
            assert bool((tmp_path / contents).stat().st_mode & 0o077) == (contents == "run")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
