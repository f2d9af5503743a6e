"""Every file of examples/ runs, and what it prints is right."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from glint.evals.packs import write_bin

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*.py"))
LOOPS = {"fabric_loop": "lightning_fabric", "accelerate_loop": "accelerate"}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("examples")
    for words in (
        ["synth", out / "world", "--identities", "24", "--images", "8"],
        ["shard", out / "world", out / "data"],
    ):
        run(["-m", "glint", *map(str, words)])
    return out / "data"


def run(words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(name: str, data: Path, steps: int, *more: str, ranks: int = 2) -> list[float]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    asked = ["--steps", str(steps), "--epochs", "3", "--batch", "16", *more]
    found: list[float] = json.loads(run([*launch, name, str(data), *asked]))["losses"]
    return found


def test_examples_are_short() -> None:
    assert [path.stem for path in FILES] == [
        "accelerate_loop", "ddp_loop", "evaluate_model", "fabric_loop", "fsdp2_loop",
        "read_shards", "search_numpy",
    ]  # fmt: skip
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 80, path.name


@pytest.fixture(scope="session")
def plain(data: Path) -> list[float]:
    """The losses of the plain program over two epochs, which `glint train` has to the bit."""
    return losses("train/plain_loop.py", data, 10)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_others_have_the_losses_of_the_plain_program(
    name: str, data: Path, plain: list[float]
) -> None:
    if find_spec(LOOPS[name]) is None:
        pytest.skip(f"needs {LOOPS[name]}: pip install 'glint-faces[loops]'")
    assert len(plain) == 10
    assert losses(f"examples/{name}.py", data, 10) == plain


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_loop_of_ones_own_has_them_and_goes_on(
    data: Path, plain: list[float], tmp_path: Path
) -> None:
    state = ["--state", str(tmp_path / "state")]
    begun = losses("examples/ddp_loop.py", data, 3, *state)
    assert begun + losses("examples/ddp_loop.py", data, 10, *state) == plain


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_under_fsdp2_it_goes_on_to_the_bit(data: Path, plain: list[float], tmp_path: Path) -> None:
    """FSDP's clipping adds squares up in another order; training lets the difference grow."""
    whole = losses("examples/fsdp2_loop.py", data, 6)
    assert whole[:3] == pytest.approx(plain[:3], rel=1e-6)
    assert whole == pytest.approx(plain[:6], rel=1e-3)
    state = ["--state", str(tmp_path / "state")]
    begun = losses("examples/fsdp2_loop.py", data, 3, *state)
    assert begun + losses("examples/fsdp2_loop.py", data, 6, *state) == whole


def test_the_pair_search_finds_what_brute_force_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2500, 16))  # more than a block of 2048
    rows[7] = 0
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    out = tmp_path / "pairs.npz"
    said = run(
        ["examples/search_numpy.py", str(tmp_path / "rows.npy"), "--threshold", "0.8",
         "--out", str(out)]
    )  # fmt: skip
    wide = rows.astype(np.float32).astype(np.float64)
    wide[7] = np.nan
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    a, b = np.nonzero(np.triu(wide @ wide.T >= 0.8, 1))
    found = np.load(out)
    assert len(a) > 100 and np.array_equal(found["a"], a) and np.array_equal(found["b"], b)
    assert said == f"{len(a)} pairs of 2500 rows, 1 without direction\n"


def test_the_evaluation_of_a_model_is_that_of_a_plain_one(
    jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images, same = [], []
    for pair in range(60):
        same.append(pair % 2 == 0)
        one = rng.integers(0, 256, (8, 8, 3))
        other = one if same[-1] else rng.integers(0, 256, (8, 8, 3))
        other = other + rng.normal(0, 90, (8, 8, 3))
        for picture in (one, other):
            large = np.kron(np.clip(picture, 0, 255).astype(np.uint8), np.ones((14, 14, 1)))
            images.append(simplejpeg.encode_jpeg(large.astype(np.uint8), 95))
    write_bin(tmp_path / "pack.bin", images, same)
    found = json.loads(run(["examples/evaluate_model.py", str(tmp_path / "pack.bin")]))

    def embed(data: bytes) -> np.ndarray:
        image = simplejpeg.decode_jpeg(data).astype(np.float64)
        both = sum(one.reshape(8, 14, 8, 14, 3).mean((1, 3)) for one in (image, image[:, ::-1]))
        flat: np.ndarray = both.ravel() - 255.0
        return flat / np.linalg.norm(flat)

    unit = np.array([embed(one) for one in images])
    distance, truth = ((unit[::2] - unit[1::2]) ** 2).sum(1), np.array(same)
    right = []
    for fold in np.split(np.arange(60), 10):
        rest = np.setdiff1d(np.arange(60), fold)
        scores = [((distance[rest] < t) == truth[rest]).mean() for t in np.arange(0, 4, 0.01)]
        best = np.arange(0, 4, 0.01)[int(np.argmax(scores))]
        right.append(((distance[fold] < best) == truth[fold]).mean())
    assert found["accuracy"] == pytest.approx(np.mean(right), abs=1e-12)
    assert 0.6 < found["accuracy"] < 1


def test_the_reader_reads_what_is_in_the_tars(data: Path) -> None:
    found = json.loads(run(["examples/read_shards.py", str(data)]))
    images, classes, total = 0, set(), 0
    for path in sorted((data / "data").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stored = tar.extractfile(member)
                assert stored is not None
                if member.name.endswith(".jpg"):
                    images += 1
                    total += int(simplejpeg.decode_jpeg(stored.read()).sum(dtype=np.int64))
                elif member.name.endswith(".cls"):
                    classes.add(stored.read())
    assert images > 64  # more than a batch
    assert found == {"images": images, "classes": len(classes), "sum": total}
