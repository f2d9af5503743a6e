"""Bugs of the GPU's side, planted one by one: the tests beside this one see each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LEAST = 0.9  # of the mutants
# file, what stands there, what is put in its place, where it must show: a test file and a name
MUTANTS = [
    ("nn/heads/updates.py", "torch.eye(2, device=gap_b.device)", "torch.eye(2)", "compiled launch"),
    ("nn/heads/sample.py", "math.ceil(missing)), device=device)", "math.ceil(missing)))",
     "head none"),
    ("nn/heads/softmax.py", "unit_ND.new_full((self.batch.size,), -torch.inf).index_copy_(",
     "torch.full((self.batch.size,), -torch.inf).index_copy_(", "head none"),
    ("nn/heads/masks.py", "dtype=torch.int64, device=device)", "dtype=torch.int64)", "head masks"),
    ("nn/heads/storage.py", "torch.arange(at.start, at.stop, device=rows_bD.device)",
     "torch.arange(at.start, at.stop)", "head table"),
    ("nn/heads/partial_fc.py", "torch.where(mine_N, row_N, -1)",
     "torch.where(mine_N, row_N, torch.full((len(row_N),), -1))", "head none"),
    ("nn/heads/class_queue.py", "torch.arange(count, device=device)", "torch.arange(count)",
     "train dcq"),
    ("nn/heads/class_pool.py", "[slots[place] for place in order]]).to(device)",
     "[slots[place] for place in order]])", "train f2c"),
    ("train/loop.py", "image = batch.image.to(device, non_blocking=True)", "image = batch.image",
     "train images"),
    ("train/loop.py", "stream.wait_event(copied)", "stream.priority = copied", "train images"),
    ("train/loop.py", "np.asarray(out.float().cpu())", "np.asarray(out.float())", "train saved"),
    ("train/teacher.py", ".requires_grad_(False).to(world.device)", ".requires_grad_(False)",
     "train saved"),
    ("stream/augment.py", "flip_n.to(image_nHWC.device, non_blocking=True)[:, None]",
     "flip_n[:, None]", "train float32"),
    # slow, not wrong
    ("train/loop.py", "torch.stack([one.double() for one in seen]).tolist()",
     "(float(one) for one in seen)", "train waits"),
    ("train/build.py", 'pinned=world.device.type == "cuda"', "pinned=False", "train waits"),
    ("stream/dual.py", ", out=self._buffers.take())", ")", "train waits"),
    # on one rank only, or given to the wrong group
    ("train/loop.py", "for flag in flags], device=run.world.device)", "for flag in flags])",
     "collectives ranks"),
    ("train/saving.py", "cpu_group(run.world) if self.asynchronous else run.world", "run.world",
     "collectives ranks"),
]  # fmt: skip


def seen(folder: Path, file: str, old: str, new: str, where: str) -> bool:
    """Plant a bug in a copy of glint; return whether the tests that it must show in fail."""
    for name in ("glint", "train"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "glint" / file
    text = path.read_text()
    assert text.count(old) == 1, (file, old)
    path.write_text(text.replace(old, new))
    test, name = where.split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0",
         f"--rootdir={ROOT}", f"--confcutdir={HERE}", str(HERE / f"test_{test}.py"), "-k", name],
        cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nine_planted_bugs_of_ten_are_seen(tmp_path: Path) -> None:
    missed = [one for number, one in enumerate(MUTANTS) if not seen(tmp_path / f"{number}", *one)]
    told = f"{len(MUTANTS) - len(missed)} of {len(MUTANTS)}; missed: {missed}"
    print(told)
    assert len(missed) <= (1 - LEAST) * len(MUTANTS), told
