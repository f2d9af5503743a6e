"""Templates and their lists: pooling by hand, one to one, one to many, wrong lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glint.errors import GlintError, InputError, UsageError
from glint.evals import identify, templates
from glint.evals.roc import accept_rates

FACES = "1.jpg 7 1\n2.jpg 7 1\n3.jpg 7 2\n4.jpg 3 1\n5.jpg 9 5\n6.jpg 9 4\n"


def folder(root: Path, **files: str) -> Path:
    (root / "meta").mkdir(exist_ok=True)
    for name, text in {"ijbc_face_tid_mid.txt": FACES, **files}.items():
        (root / "meta" / name).write_text(text)
    return root


def test_pooling_is_mean_within_a_media_then_sum_then_length_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = templates.read_faces(folder(tmp_path))
    assert list(faces.name) == [f"{i}.jpg" for i in range(1, 7)]
    f = np.array([[4, 0], [0, 2], [3, 5], [0, -9], [1, 1], [2, 0]], np.float32)
    weight = np.array([1, 0.5, 1, 1, 1, 0.25])
    for images in (1, 4, 100):  # templates at once
        monkeypatch.setattr(templates, "IMAGES", images)
        ids, pooled = templates.pool(f, faces.template_n, faces.media_n)
        assert ids.tolist() == [3, 7, 9]
        # 7: (4,0)+(0,2) over 2 = (2,1), and (3,5): (5,6). 9: (1,1) and (2,0): (3,1).
        expected = np.array([[0, -1], [5 / 61**0.5, 6 / 61**0.5], [3 / 10**0.5, 1 / 10**0.5]])
        assert pooled == pytest.approx(expected, abs=1e-6)
        _, weighed = templates.pool(f, faces.template_n, faces.media_n, weight)
        assert weighed[1] == pytest.approx(np.array([5, 5.5]) / np.hypot(5, 5.5), abs=1e-6)
        with pytest.raises(InputError, match=r"GL0402.*1 templates.*the first is 3"):
            templates.pool(np.where(f == -9, 0, f), faces.template_n, faces.media_n)


def test_listed_pairs_are_compared(tmp_path: Path) -> None:
    root = folder(
        tmp_path,
        **{
            "ijbc_template_pair_label.txt": "3 7 0\n7 9 1\n3 9 0\n9 9 1\n",
            "ijbc_name_5pts_score.txt": "".join(
                f"{i}.jpg {' '.join('1.5' for _ in range(10))} 0.{i}\n" for i in range(1, 7)
            ),
        },
    )
    faces = templates.read_faces(root)
    assert faces.score_n is not None
    assert faces.score_n.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    ids = np.array([3, 7, 9])
    pooled = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    found = templates.verify(root, ids, pooled, fars=("1e-1",))
    assert found == accept_rates(
        np.array([np.float64(np.float32(0.8)), (pooled[2].astype(float) ** 2).sum()]),
        np.array([0, np.float64(np.float32(0.6))]),
        ("1e-1",),
    )


PAIR = "ijbc_template_pair_label.txt"
MISTAKES = [
    (PAIR, "3 7 0\n7 9\n", "line 2: expected 3 values.*found '7 9'"),
    (PAIR, "3 7 0\n7 9 1\n7 x 1\n", "line 3: expected 3 values.*found '7 x 1'"),
    (PAIR, "3 7 0\n\n7 9 1\n", "line 2: expected 3 values.*found ''"),
    (PAIR, "3 7 0\n7 9 2\n", "line 2: expected 0 or 1, found 2"),
    (PAIR, "3 7 0\n7 8 1\n", "line 2: template 8 has no image"),
    (PAIR, "", "_pair_label.txt"),
    ("ijbc_face_tid_mid.txt", "1.jpg 7 1\n2.jpg 7 1 4\n", "line 2: expected 3 values"),
    ("ijbc_name_5pts_score.txt", "1.jpg 1 2 3 4 5 6 7 8 9 10 1\n", "line 2: expected 2.jpg"),
    ("ijbc_1N_probe_mixed.csv", "TEMPLATE_ID,SUBJECT_ID\n3,1\n7\n", "line 3: expected 2 values"),
    ("ijbc_1N_probe_mixed.csv", "TEMPLATE_ID,SUBJECT_ID\n3,1\n8,1\n", "line 3: template 8"),
]


@pytest.mark.parametrize(("name", "text", "told"), MISTAKES)
def test_a_wrong_line_is_named(name: str, text: str, told: str, tmp_path: Path) -> None:
    lists = {PAIR: "3 7 0\n"} | {
        f"ijbc_1N_gallery_G{i}.csv": f"TEMPLATE_ID,SUBJECT_ID\n3,{i}\n" for i in (1, 2)
    }
    root = folder(tmp_path, **{**lists, name: text})
    ids, pooled = np.array([3, 7, 9]), np.eye(3, dtype=np.float32)
    with pytest.raises(InputError, match=f"(?s)GL0802.*{told}"):
        templates.read_faces(root)
        templates.verify(root, ids, pooled)
        templates.search(root, ids, pooled)


def test_missing_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"GL0001.*no \*_face_tid_mid.txt"):
        templates.read_faces(tmp_path)
    root = folder(tmp_path)
    assert templates.search(root, np.array([3]), np.eye(1)) is None
    (root / "meta" / "ijbb_face_tid_mid.txt").write_text(FACES)
    with pytest.raises(GlintError, match=r"GL0002.*ijbb_face_tid_mid.txt, ijbc"):
        templates.read_faces(root)


def test_one_to_many_both_ways(tmp_path: Path) -> None:
    heads = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
    root = folder(
        tmp_path,
        **{
            "ijbc_1N_gallery_G1.csv": heads + "10,1,a.jpg\n10,1,b.jpg\n11,2,c.jpg\n",
            "ijbc_1N_gallery_G2.csv": heads + "12,3,d.jpg\n",
            "ijbc_1N_probe_mixed.csv": heads + "20,1,e.jpg\n21,2,f.jpg\n22,3,g.jpg\n",
        },
    )
    ids = np.array([10, 11, 12, 20, 21, 22])
    pooled = np.zeros((6, 3), np.float32)
    pooled[:3] = np.eye(3)
    pooled[3:] = [[0.8, 0.6, 0], [0.8, 0.6, 0], [0, 0.28, 0.96]]
    found = templates.search(root, ids, pooled)
    assert found is not None
    # Probe 21 meets subject 1 (0.8) before its own mate (0.6).
    assert found["field"]["rank"] == {"1": 2 / 3, "5": 1.0, "10": 1.0}
    # ceil(0.1 * 3) = 1 false alarm: the greatest other cosine is 0.8, above it is only 0.96.
    assert found["field"]["recall_at_false_alarms"] == {"1e-2": 1 / 3, "1e-1": 1 / 3}
    one, two = found["galleries"]["G1"], found["galleries"]["G2"]
    assert (one["mated"], one["strangers"], two["mated"], two["strangers"]) == (2, 1, 1, 2)
    assert one["rank"]["1"] == 0.5
    # The stranger's best in G1 is 0.28: the mate of 20 passes and is first, that of 21 is second.
    assert one["tpir_at_fpir"] == {"1e-3": 0.5, "1e-2": 0.5, "1e-1": 0.5}
    assert two["tpir_at_fpir"]["1e-1"] == 1.0


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("block", [7, 1024])
def test_open_and_closed_sets_equal_their_definitions(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "BLOCK", block)
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(60, 12))
    who = rng.integers(0, 60, 200)
    probe = unit(centre[who] + 0.9 * rng.normal(size=(200, 12)))
    gallery = unit(centre + 0.5 * rng.normal(size=(60, 12)))
    found = identify.closed_set(probe, who, gallery, np.arange(60))
    score = probe.astype(np.float64) @ gallery.T.astype(np.float64)
    place = np.array([(score[i] >= score[i, w]).sum() for i, w in enumerate(who)])
    assert found["rank"] == {str(k): float(np.mean(place <= k)) for k in (1, 5, 10)}
    mate = score[np.arange(200), who]
    others = np.sort(np.delete(score.ravel(), np.arange(200) * 60 + who))[::-1]
    for far in (0.01, 0.1):
        told = found["recall_at_false_alarms"][f"1e-{1 if far == 0.1 else 2}"]
        assert told == np.mean(mate > others[int(np.ceil(far * 200)) - 1])

    part = identify.open_set(probe, who, gallery[:30], np.arange(30))
    mated, top = who < 30, score[:, :30].max(1)
    for far in ("1e-1", "1e-2"):
        best = max(
            np.mean((mate[mated] > t) & (mate[mated] == top[mated]))
            for t in [-1.0, *top]
            if np.mean(top[~mated] > t) <= float(far)
        )
        assert part["tpir_at_fpir"][far] == best
    with pytest.raises(InputError, match=r"GL0802.*is in no gallery"):
        identify.closed_set(probe, who, gallery[:30], np.arange(30))


def test_distractors_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "DISTRACTORS", 64)
    rng = np.random.default_rng(2)
    who = np.repeat(np.arange(12), 4)
    probe = rng.normal(size=(12, 16))[who] + 0.7 * rng.normal(size=(48, 16))
    other = rng.normal(size=(900, 16))
    other[13] = np.nan
    found = identify.distractors(probe, who, other, counts=(10, 200), fars=("1e-2", "1e-3"))
    assert found["distractors"] == 899
    assert found["dropped"] == 1
    order = np.random.default_rng(0).permutation(900)
    a, b = probe / np.linalg.norm(probe, axis=1, keepdims=True), other
    score = a @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    pairs = [(i, j) for i in range(48) for j in range(48) if i != j and who[i] == who[j]]
    genuine = np.array([a[i] @ a[j] for i, j in pairs])
    for count in (10, 200, 900):
        top = np.nanmax(score[:, order[:count]], axis=1)
        right = np.mean([g > top[i] for g, (i, _) in zip(genuine, pairs)])
        assert found["rank1_by_distractors"][str(count)] == right
    impostor = np.sort(score[np.isfinite(score)])[::-1]
    for far in ("1e-2", "1e-3"):
        limit = impostor[int(float(far) * len(impostor))]
        assert found["tar_at_far"][far] == np.mean(genuine > limit)
    assert found["rank1_by_distractors"]["10"] > found["rank1_by_distractors"]["900"]
    with pytest.raises(InputError, match=r"GL0402.*two probes of one person"):
        identify.distractors(probe, np.arange(48), other)
