"""`glint coreset` against the rule of docs/coreset.md, tried on all pairs of every identity.

The oracle is O(n^2) in float64 and reads the embeddings with numpy alone. Constants, and what is
put against them: `nms.ROOM`, 2^23 numbers of a batch of rows (20,010 rows of 512: 10.2 million) and
of a block of cosines (3,000 faces of one identity: 9 million pairs); TRIES 32 thresholds a pass.
"""

# n samples, D embedding

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint.pipelines import coreset
from glint.search import nms
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import load

D, T, DEGREES, LEAST = 512, 0.75, 75.0, 2
ROUND = 1e-6  # more than float32 may be off: nothing that decides may be nearer to its edge


def vectors(name_n: list[str], seed: int) -> np.ndarray:
    """Draw float16 rows: of a person frames of a few shots, alike within one and not across.

    Three in a hundred show somebody else; two labels, merged, are all strangers; 40 rows are NaN.
    """
    rng = np.random.default_rng(seed)

    def ray(count: int) -> np.ndarray:
        x = rng.normal(size=(count, D))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    _, who_n, size_n = np.unique(name_n, return_inverse=True, return_counts=True)
    person, shot = ray(len(size_n)), ray(5000)
    shot_n = (who_n * 7919 + rng.integers(0, 1 + size_n[who_n] // 3)) % len(shot)
    row = person[who_n] + 0.8 * shot[shot_n]
    row = row / np.linalg.norm(row, axis=1, keepdims=True) + 0.35 * ray(len(who_n))
    wrong = (rng.random(len(who_n)) < 0.03) | np.isin(name_n, ["id0004", "id0005"])
    row[wrong] = ray(int(wrong.sum()))
    row[rng.permutation(len(row))[:40]] = np.nan
    return (row / np.linalg.norm(row, axis=1, keepdims=True)).astype(np.float16)


@dataclass
class Chosen:
    """What became of every sample: the columns of coreset.parquet."""

    reason: list[str]
    score_n: np.ndarray
    killer_n: np.ndarray
    similarity_n: np.ndarray
    edge: float  # how near anything that decides came to tipping over
    uncleaned: int
    tied: list[tuple[int, int]]  # two faces alone have one score: either may go first


def brute(row_nD: np.ndarray, target_n: np.ndarray, threshold: float) -> Chosen:
    """Outliers first, rank, suppress, restore: identity by identity, all pairs in float64."""
    n = len(row_nD)
    made = Chosen(["no-identity"] * n, *(np.full(n, np.nan) for _ in range(3)), np.inf, 0, [])
    for target in range(target_n.max() + 1):
        at = np.flatnonzero(target_n == target)
        x_nD = row_nD[at].astype(np.float64)
        for i in at[~np.isfinite(x_nD[:, 0])]:
            made.reason[i] = "no-embedding"
        at, x_nD = at[np.isfinite(x_nD[:, 0])], x_nD[np.isfinite(x_nD[:, 0])]
        if not len(at):
            continue
        x_nD /= np.linalg.norm(x_nD, axis=1, keepdims=True)
        mean_D = x_nD.sum(axis=0)
        angle = x_nD @ mean_D / np.linalg.norm(mean_D) - np.cos(np.radians(DEGREES))
        made.edge = min(made.edge, np.abs(angle).min())
        stay = angle >= 0
        if stay.sum() < LEAST:
            made.uncleaned += not stay.all()
            stay[:] = True
        for i in at[~stay]:
            made.reason[i] = "outlier"
        at, x_nD = at[stay], x_nD[stay]
        cosine = x_nD @ x_nD.T
        others = np.maximum(len(at) - 1, 1)
        score = -(cosine.sum(axis=1) - np.diag(cosine)) / others
        made.score_n[at] = score
        order = np.lexsort((at, -score))
        alike = cosine > threshold
        if len(at) == 2 and alike[0, 1]:
            made.tied.append((int(at[0]), int(at[1])))
        else:
            gap = np.abs(score[:, None] - score[None, :])[np.triu(alike, 1)]
            made.edge = min(made.edge, gap.min(initial=np.inf))
        made.edge = min(made.edge, np.abs(cosine - threshold).min())
        alive = np.ones(len(at), bool)
        killer = np.full(len(at), -1)
        for place, p in enumerate(order):
            if alive[p]:
                later = order[place + 1 :]
                hit = later[alive[later] & alike[p, later]]
                alive[hit], killer[hit] = False, p
        dead = [p for p in order if not alive[p]]
        back = set(dead[: max(0, LEAST - int(alive.sum()))])
        for p, i in enumerate(at):
            made.reason[i] = "kept" if alive[p] else "restored" if p in back else "similar"
            if not alive[p]:
                made.killer_n[i] = at[killer[p]]
                made.similarity_n[i] = cosine[p, killer[p]]
    return made


@pytest.fixture(scope="module")
def row_nD(world, rows) -> np.ndarray:
    return vectors([world.image[row.image][0] for row in rows(world.root)], seed=1)


def test_a_ratio_is_kept_to_the_image(world, rows, row_nD, embedded, tmp_path: Path) -> None:
    """Of all pairs of the kept, none is more alike than the threshold but those restored.

    Every image that was left out is more alike to its killer, which is kept; and the images of the
    sampling table are those kept, the rest of every identity standing in its `left_out`.
    """
    found, row_nD = rows(world.root), row_nD[:, :96]
    emb = embedded(world.root, [row.key for row in found], row_nD)
    dataset = Dataset(world.root)
    opened = load(emb, dataset.digest, images=dataset.n, classes=dataset.classes)
    told = coreset.run(dataset, opened, tmp_path / "core", coreset.Options(ratio=0.7))
    table = pq.read_table(tmp_path / "core/coreset.parquet")
    kept_n = table["kept"].to_numpy()
    assert kept_n.sum() == round(0.7 * len(found)) == told.kept
    reason_n = np.array(table["reason"].to_pylist())
    label_n = np.array([row.label for row in found])
    killer_n = table["killer"].to_numpy(zero_copy_only=False)
    unit_nD = row_nD / np.linalg.norm(row_nD.astype(np.float64), axis=1, keepdims=True)
    for label in range(dataset.classes):
        at = np.flatnonzero((label_n == label) & (reason_n == "kept"))
        cosine = unit_nD[at] @ unit_nD[at].T - 2 * np.eye(len(at))
        assert cosine.max(initial=-1) <= told.threshold + 2 * ROUND
    left = np.flatnonzero(reason_n == "similar")
    killer = killer_n[left].astype(int)
    assert (reason_n[killer] == "kept").all() and (label_n[killer] == label_n[left]).all()
    assert ((unit_nD[left] * unit_nD[killer]).sum(axis=1) > told.threshold - 2 * ROUND).all()
    sampling = pq.read_table(tmp_path / "core/sampling.parquet")
    out = sampling["left_out"].to_pylist()
    assert sampling["draws"].to_pylist() == np.bincount(label_n[kept_n]).tolist()
    assert sorted(row for some in out for row in some) == np.flatnonzero(~kept_n).tolist()
    assert all(label_n[row] == label for label, some in enumerate(out) for row in some)


def test_the_mask_is_that_of_all_pairs(
    world, rows, row_nD, copied, embedded, tmp_path: Path
) -> None:
    root, found = copied(world.root), rows(world.root)
    emb = embedded(root, [row.key for row in found], row_nD)
    classes = len(pq.read_table(root / "identities.parquet"))
    target_C = np.arange(classes) // 2  # pairs of labels merged, and two in a hundred dropped
    target_C[np.random.default_rng(1).random(classes) < 0.02] = -1
    target_C = np.unique(target_C, return_inverse=True)[1] - 1
    labels.apply(root, target_C, np.empty((0, 2), np.int64), {})
    dataset = Dataset(root)
    opened = load(emb, dataset.digest, images=dataset.n, classes=classes)
    target_n = target_C[[row.label for row in found]]
    assert row_nD.size > nms.ROOM and np.bincount(target_n + 1).max() ** 2 > nms.ROOM

    told = coreset.run(dataset, opened, tmp_path / "core", coreset.Options(threshold=T))
    want = brute(row_nD, target_n, T)
    assert want.edge > ROUND, f"something lies {want.edge} from an edge: draw with another seed"
    table = pq.read_table(tmp_path / "core/coreset.parquet")
    assert table["key"].to_pylist() == [row.key for row in found]
    assert table["target"].to_pylist() == target_n.tolist()
    for a, b in want.tied:
        if table["reason"][a].as_py() == "restored":
            want.reason[a], want.reason[b] = want.reason[b], want.reason[a]
            want.killer_n[[a, b]] = b, np.nan
            want.similarity_n[[a, b]] = want.similarity_n[[b, a]]
    assert table["reason"].to_pylist() == want.reason
    kept = [reason in ("kept", "restored") for reason in want.reason]
    assert table["kept"].to_pylist() == kept and told.kept == sum(kept)
    killer = table["killer"].to_numpy(zero_copy_only=False).astype(float)
    np.testing.assert_array_equal(killer, want.killer_n)
    for name, want_n in (("score", want.score_n), ("similarity", want.similarity_n)):
        got_n = table[name].to_numpy(zero_copy_only=False).astype(float)
        np.testing.assert_allclose(got_n, want_n, rtol=0, atol=ROUND)
    reasons = {*nms.REASONS} - {"low-quality"}  # tests/cli/test_quality_cli.py has that one
    assert {*want.reason} == reasons, "every reason has a case"
    assert told.identities_uncleaned == want.uncleaned > 0
