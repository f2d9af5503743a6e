"""A checkpoint is whole or it is not one; its rows load at any world size."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from glint.errors import MismatchError, ResourceError
from glint.files import atomic, reads
from glint.models import checkpoint
from glint.models.checkpoint import problem


def write(folder: Path, step: int, classes: int, ranks: int, keep: int = 2) -> torch.Tensor:
    """Save a checkpoint as `ranks` ranks would, one after the other; give the global rows."""
    rows = torch.arange(classes * 3, dtype=torch.float32).reshape(classes, 3) + step
    cuts = [min(classes, -(-classes // ranks) * r) for r in range(ranks + 1)]
    common: dict[str, Any] = {
        "backbone": {"w": torch.full((2,), float(step))},
        "optimizer": {"w/momentum_buffer": torch.zeros(2)},
        "state": {"world": ranks, "identity": {}},
        "keep": keep,
    }
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    calls = 0

    def meet(problem: str) -> str:  # rank 0 arrives first; the others write while it waits
        nonlocal calls
        calls += 1
        if calls == 1:
            for r in range(1, ranks):
                a, b = cuts[r], cuts[r + 1]
                if b > a:
                    checkpoint._write(
                        partial / f"head-{r:05d}.safetensors",
                        {"weight": rows[a:b]},
                        {"start": str(a), "stop": str(b)},
                    )
        return problem

    head = (0, cuts[1], {"weight": rows[: cuts[1]]})
    checkpoint.save(folder, step, meet=meet, head=head, **common)
    return rows


@pytest.mark.parametrize("classes", [1003, 9, 3, 1])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_rows_saved_at_four_load_at_any_world(tmp_path: Path, classes: int, world: int) -> None:
    rows = write(tmp_path, 7, classes, ranks=4)
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    fetch = checkpoint.head_fetch(saved)
    size = -(-classes // world)
    got = []
    for r in range(world):
        a, b = min(classes, size * r), min(classes, size * (r + 1))
        part = fetch("weight", a, b)
        assert part.shape == (b - a, 3)
        got.append(part)
    assert torch.equal(torch.cat(got), rows)


def test_unknown_tensor_and_missing_rows_are_named(tmp_path: Path) -> None:
    write(tmp_path, 1, 10, ranks=2)
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    fetch = checkpoint.head_fetch(saved)
    with pytest.raises(MismatchError, match="no 'momentum'"):
        fetch("momentum", 0, 5)
    with pytest.raises(MismatchError, match="rows 8 to 12"):
        fetch("weight", 8, 12)


def test_a_half_removed_checkpoint_has_its_name_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, 4, ranks=1, keep=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(path: Path, **_: object) -> None:
            (path / checkpoint.MANIFEST).unlink()
            raise KeyboardInterrupt

        patch.setattr(checkpoint.shutil, "rmtree", killed)
        write(tmp_path, 2, 4, ranks=1, keep=1)
    assert [p.name for p in checkpoint.all_in(tmp_path)] == ["step-00000002"]
    checkpoint.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    """The library orders metadata by chance: one of six orders each time."""
    made = []
    for number in range(8):
        write(tmp_path / str(number), 1, 9, ranks=2)
        files = sorted((tmp_path / str(number) / "step-00000001").iterdir())
        made.append([(path.name, path.read_bytes()) for path in files])
    assert len(made[0]) == 6 and all(one == made[0] for one in made)
    assert checkpoint.problem(tmp_path / "0/step-00000001") == ""


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, 4, ranks=1, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "manifest", "no manifest", "traverse"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, harm: str) -> None:
    write(tmp_path, 1, 4, ranks=1)
    write(tmp_path, 2, 4, ranks=1)
    bad = tmp_path / "step-00000002"
    victim = bad / "head-00000.safetensors"
    data = victim.read_bytes()
    if harm == "flip":
        victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "cut":
        victim.write_bytes(data[:-1])
    elif harm == "missing":
        victim.unlink()
    elif harm == "manifest":
        (bad / "MANIFEST.json").write_text("{")
    elif harm == "no manifest":
        (bad / "MANIFEST.json").unlink()
    else:
        manifest = json.loads((bad / "MANIFEST.json").read_text())
        manifest["files"]["../step-00000001/state.json"] = {"bytes": 1, "sha256": ""}
        (bad / "MANIFEST.json").write_text(json.dumps(manifest))
    assert problem(bad)
    saved = checkpoint.newest(tmp_path)
    assert saved is not None and saved.path.name == "step-00000001"
    (tmp_path / "step-00000001" / "MANIFEST.json").unlink()
    with pytest.raises(MismatchError, match="none is valid"):
        checkpoint.newest(tmp_path)


def test_an_unfinished_save_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1, 4, ranks=1)
    (tmp_path / ".step-00000002.partial").mkdir()
    saved = checkpoint.newest(tmp_path)
    assert saved is not None and saved.path.name == "step-00000001"
    assert checkpoint.newest(tmp_path / "none") is None


def spoil(path: Path) -> None:
    raw = bytearray((path / "backbone.safetensors").read_bytes())
    raw[-1] ^= 1
    (path / "backbone.safetensors").write_bytes(raw)


@pytest.mark.parametrize("keep", [1, 2])
def test_only_checkpoints_that_verify_count_as_kept(tmp_path: Path, keep: int) -> None:
    """A run whose newest is damaged goes on from the one before, and saves in between."""
    for step in (100, 200):
        write(tmp_path, step, 10, ranks=1, keep=5)
    spoil(tmp_path / "step-00000200")
    saved = checkpoint.newest(tmp_path)
    assert saved is not None and saved.path.name == "step-00000100"
    write(tmp_path, 150, 10, ranks=1, keep=keep)
    names = [path.name for path in checkpoint.all_in(tmp_path)]
    good = ["step-00000100", "step-00000150"][-keep:]
    assert names == [*good, "step-00000200"]
    saved = checkpoint.newest(tmp_path)
    assert saved is not None and saved.path.name == "step-00000150"
    spoil(tmp_path / "step-00000150")
    write(tmp_path, 300, 10, ranks=1, keep=keep)
    sound = [p.name for p in checkpoint.all_in(tmp_path) if not problem(p)]
    assert sound == ["step-00000100", "step-00000300"][-keep:]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_checkpoint_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Nor does it count as damaged where old ones are removed."""
    for step in (100, 200):
        write(tmp_path, step, 10, ranks=1)
    real = atomic.sha256_of

    def fail(path: Path) -> str:
        if "00000200" in str(path):
            raise OSError(code, os.strerror(code))
        return real(path)

    monkeypatch.setattr(reads, "_PAUSES", (), raising=False)
    monkeypatch.setattr(atomic, "sha256_of", fail)
    for look in (checkpoint.newest, checkpoint.find):
        with pytest.raises(ResourceError, match="GL0903") as caught:
            look(tmp_path)
        assert os.strerror(code) in caught.value.what
    write(tmp_path, 300, 10, ranks=1, keep=2)
    monkeypatch.undo()
    names = [path.name for path in checkpoint.all_in(tmp_path)]
    assert names == ["step-00000100", "step-00000200", "step-00000300"]


def test_checkpoints_behind_a_link_are_left_alone(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path / "other", step, 10, ranks=1, keep=5)
    (tmp_path / "checkpoints").symlink_to(tmp_path / "other")
    with pytest.raises(ResourceError, match="a symbolic link"):
        write(tmp_path / "checkpoints", 4, 10, ranks=1, keep=1)
    assert len(checkpoint.all_in(tmp_path / "other")) == 3
