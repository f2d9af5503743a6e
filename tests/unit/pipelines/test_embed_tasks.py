"""Embedding by tasks: the same arrays as one process makes, whoever does which block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from glint.errors import BusyError, InputError
from glint.jobs import tasks
from glint.jobs.tasks import Task
from glint.pipelines import embed as stage
from glint.shards.embeddings import load


class Faces:
    """Seventy 112x112 JPEGs of nine identities, one of them damaged."""

    n, classes, digest = 70, 9, "sha256:faces"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.label = rng.integers(0, 8, self.n).astype(np.int64)
        self.key = [f"{i:09d}" for i in range(self.n)]
        self.shade = rng.integers(0, 256, (self.n, 7, 7, 3), np.uint8)

    def read(self, row: int) -> bytes:
        if row == 11:
            raise InputError("GL0303", "checksum differs", where="train-000000.tar")
        image = np.repeat(np.repeat(self.shade[row], 16, 0), 16, 1)
        data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=95)
        return data


class Projector:
    """A recogniser that projects mean colours of image quarters, and counts images."""

    name, dim, size, digest = "projector", 6, 112, "sha256:one"

    def __init__(self) -> None:
        self.images = 0
        self.weight = np.random.default_rng(1).standard_normal((12, 6)).astype(np.float32)

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        self.images += len(image_nHWC)
        x = image_nHWC.reshape(-1, 2, 56, 2, 56, 3).mean((2, 4)).reshape(len(image_nHWC), 12)
        return (x.astype(np.float32) - 127.5) @ self.weight


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def embed(out: Path, task: str = "", model: Projector | None = None) -> dict:
    return stage.embed(Faces(), model or Projector(), out, batch=7, block=16, task=Task.parse(task))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "emb"
    embed(out)
    return out


def test_tasks_write_what_one_process_writes(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "emb"
    told = [embed(out, f"{i}/3") for i in (2, 0)]
    assert [t.left for t in told] == [4, 2] and told[0].blocks == 5
    assert not (out / "samples.npy").exists()
    with pytest.raises(InputError, match=r"GL0402 .*no embeddings\.json"):
        load(out, "sha256:faces", images=70, classes=9)
    model = Projector()
    last = embed(out, "1/3", model)
    assert last.left == 0 and last.failed == 1 and model.images == 16 + 6
    assert files(out) == files(whole)
    assert embed(out, "0/3").left == 0 and files(out) == files(whole)


def test_a_damaged_piece_is_made_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "emb"
    embed(out, "0/2")
    piece = out / "_glint" / "pieces" / "000002.npz"
    data = bytearray(piece.read_bytes())
    data[300] ^= 1
    piece.write_bytes(data)
    model = Projector()
    embed(out, "1/2", model)
    assert model.images == 32 + 16  # blocks 1 and 3, and block 2 again
    assert files(out) == files(whole)


def test_a_plain_run_and_tasks_take_turns(whole: Path, tmp_path: Path) -> None:
    class Stops(Projector):
        def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
            if self.images > 20:
                raise KeyboardInterrupt
            return super().embed(image_nHWC)

    out = tmp_path / "emb"
    with pytest.raises(KeyboardInterrupt):
        embed(out, model=Stops())
    assert embed(out, "1/2").left == 2  # 0 was there, 1 and 3 are this task's
    model = Projector()
    assert embed(out, model=model).left is None and model.images == 16 + 6
    assert files(out) == files(whole)


def test_one_of_each_name(tmp_path: Path) -> None:
    out = tmp_path / "emb"
    embed(out, "0/2")
    with tasks.claim(out / "_glint", Task(1, 2)), pytest.raises(BusyError, match="GL0005"):
        embed(out, "1/2")
