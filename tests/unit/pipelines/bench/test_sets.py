"""Folders laid out as users have them: what each test is run as, and what its figures are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError
from glint.evals.embed import embed_pairs, verify
from glint.evals.lists import FolderImages, read_list
from glint.evals.packs import write_bin
from glint.evals.sets import look
from glint.models.recogniser import Recogniser
from glint.pipelines.bench.run import Options, aligned, pooled, run

OPTIONS = Options(flip=False, draws=50)


def cfp(root: Path, folk: Any, people: int = 20) -> None:
    """Lay out CFP: numbers of images in a folder for each fold, poses as folders of images."""
    lists: dict[str, list[str]] = {"F": [], "P": []}
    for person in range(people):
        for pose, kind, count in (("frontal", "F", 2), ("profile", "P", 1)):
            for n in range(1, count + 1):
                place = f"Data/Images/{person + 1:03d}/{pose}/{n:02d}.jpg"
                folk.write(root / place, person, n + 10 * (kind == "P"))
                lists[kind].append(f"{len(lists[kind]) + 1} ../{place}")
    protocol = root / "Protocol"
    for split, step in (("FP", 1), ("FF", 2)):
        for fold in range(2):
            place = protocol / "Split" / split / f"{fold + 1:02d}"
            place.mkdir(parents=True)
            own = range(fold * people // 2, (fold + 1) * people // 2)
            other = [*own[1:], own[0]]
            to = [2 * p + 2 for p in own] if step == 2 else [p + 1 for p in own]
            away = [2 * p + 2 for p in other] if step == 2 else [p + 1 for p in other]
            for name, there in (("same.txt", to), ("diff.txt", away)):
                text = "".join(f"{2 * p + 1},{t}\n" for p, t in zip(own, there))
                (place / name).write_text(text)
    for kind, rows in lists.items():
        (protocol / f"Pair_list_{kind}.txt").write_text("\n".join(rows) + "\n")
    (protocol / "readme.txt").write_text("read me\n")


def test_lfw_with_its_list_inside_and_beside_its_images(
    tmp_path: Path, folk: Any, model: Recogniser
) -> None:
    folk.lfw(tmp_path / "one", range(24))
    folk.lfw(tmp_path / "two", range(24), "lists/lfw_pairs.txt", "lfw_112")
    for root, name in ((tmp_path / "one", "one"), (tmp_path / "two", "lfw_pairs")):
        found = look(root)
        (part,) = found.parts
        assert (part.name, part.kind, part.error) == (name, "pairs", None)
        assert not found.skipped
        ran = run(part, model, found, OPTIONS)
        direct = verify(model, read_list(part.path, FolderImages(root)), flip=False)
        assert ran.figures == direct.as_dict()  # the very figures of `glint eval pairs`
        assert ran.intervals is not None and ran.intervals.people == 24
        assert ran.people == "folder 1 above the image"
        assert ran.figures["pairs"] == 48 and ran.figures["accuracy"] > 0.9


def test_cfp_is_two_tests_and_its_people_are_not_its_poses(
    tmp_path: Path, folk: Any, model: Recogniser
) -> None:
    cfp(tmp_path, folk)
    found = look(tmp_path)
    assert [part.name for part in found.parts] == ["cfp_ff", "cfp_fp"]
    for part in found.parts:
        ran = run(part, model, found, OPTIONS)
        assert ran.error is None and ran.figures["pairs"] == 40
        assert len(ran.figures["folds"]) == 2 and ran.figures["accuracy"] > 0.9
        assert ran.people == "folder 2 above the image" and ran.intervals.people == 20  # type: ignore[union-attr]
    assert [path.name for path, _ in found.skipped] == ["readme.txt"]


def test_two_folders_of_equal_names_are_two_tests(
    tmp_path: Path, folk: Any, model: Recogniser
) -> None:
    folk.lfw(tmp_path, range(20), images="clear")
    for image in sorted((tmp_path / "clear").rglob("*.jpg")):
        person = int(image.parent.name[1:])
        folk.write(tmp_path / "masked" / image.relative_to(tmp_path / "clear"), person, 9, 90.0)
    found = look(tmp_path)
    name = tmp_path.name
    assert [part.name for part in found.parts] == [f"{name} [clear]", f"{name} [masked]"]
    clear, masked = (run(part, model, found, OPTIONS).figures for part in found.parts)
    assert clear["cosine_different"] != masked["cosine_different"]
    (tmp_path / "pairs.txt").rename(tmp_path / "masked_pairs.txt")
    parts = {part.name: part for part in look(tmp_path).parts}  # by its name, the other by itself
    assert {name: part.kind for name, part in parts.items()} == {
        "masked_pairs": "pairs", "clear": "all-pairs",
    }  # fmt: skip
    assert str(tmp_path / "masked") in parts["masked_pairs"].words
    assert run(parts["clear"], model, found, OPTIONS).figures["genuine"] == 20


def test_rfw_has_groups_at_one_threshold(tmp_path: Path, folk: Any, model: Recogniser) -> None:
    for k, race in enumerate(("African", "Asian", "Caucasian", "Indian")):
        people = range(100 * k, 100 * k + 20)
        folk.lfw(tmp_path, people, f"txts/{race}/{race}_pairs.txt", f"data/{race}")
        rows = [f"P{p}_0001.jpg\t{p}" for p in people]
        (tmp_path / "txts" / race / f"{race}_images.txt").write_text("\n".join(rows) + "\n")
    found = look(tmp_path)
    assert [part.group for part in found.parts] == ["African", "Asian", "Caucasian", "Indian"]
    assert len(found.skipped) == 4 and all("list" in why for _, why in found.skipped)
    rows_ = pooled([run(part, model, found, OPTIONS) for part in found.parts])
    assert [row["group"] for row in rows_] == ["African", "Asian", "Caucasian", "Indian"]
    assert all(row["pairs"] == 40 and row["same"] == 20 for row in rows_)


def test_a_table_of_groups(tmp_path: Path, folk: Any, model: Recogniser) -> None:
    folk.lfw(tmp_path, range(20))
    text = "".join(f"P{p},{'a' if p < 10 else 'b'}\n" for p in range(19))
    (tmp_path / "groups.csv").write_text("name,group\n" + text)
    found = look(tmp_path)
    (part,) = found.parts
    rows = {row["group"]: row["pairs"] for row in run(part, model, found, OPTIONS).groups}
    assert rows == {"a": 20, "b": 17, "none": 3}


def test_tinyface_identities_and_distractors(tmp_path: Path, folk: Any, model: Recogniser) -> None:
    tiny = tmp_path / "tinyface" / "Testing_Set"
    for person in range(12):
        folk.write(tiny / "Probe" / f"{person}_1.jpg", person, 1)
        for number in (2, 3):
            folk.write(tiny / "Gallery_Match" / f"{person}_{number}.jpg", person, number)
    for other in range(50, 70):
        folk.write(tiny / "Gallery_Distractor" / f"{other}.jpg", other, 1)
    (tiny / "probe_img_ID_pairs.mat").write_bytes(b"MATLAB")
    mega = tmp_path / "mine"
    for person in range(12):
        for number in (1, 2):
            folk.write(mega / "gallery" / f"P{person}" / f"{number}.jpg", person, number)
    for other in range(50, 70):
        folk.write(mega / "distractors" / f"{other}.jpg", other, 1)
    found = look(tmp_path)
    assert [(part.name, part.kind) for part in found.parts] == [
        ("mine", "distractors"), ("tinyface", "tinyface"),
    ]  # fmt: skip
    mine, tinyface = (run(part, model, found, OPTIONS).figures for part in found.parts)
    assert mine["rank1_by_distractors"] == {"10": 1.0, "20": 1.0} and mine["pairs"] == 24
    assert tinyface["rank"]["1"] == 1.0
    assert (tinyface["probes"], tinyface["gallery"], tinyface["distractors"]) == (12, 44, 20)
    folk.write(tiny / "Gallery_Match" / "40_1.jpg", 0, 1)  # a wrong name: nearer than the mate
    worse = run(found.parts[1], model, found, OPTIONS).figures["rank"]
    assert worse["1"] == pytest.approx(11 / 12) and worse["5"] == 1.0


def test_ijb_of_aligned_crops(tmp_path: Path, folk: Any, model: Recogniser) -> None:
    meta = tmp_path / "IJBC" / "meta"
    meta.mkdir(parents=True)
    faces, scores, row = [], [], 0
    for person in range(10):
        for template in (2 * person, 2 * person + 1):
            row += 1
            folk.write(tmp_path / "IJBC" / "loose_crop" / f"{row}.jpg", person, row)
            faces.append(f"{row}.jpg {template} {row}")
            scores.append(f"{row}.jpg " + " ".join(["1"] * 10) + " 0.9")
    pairs = [f"{2 * p} {2 * q + 1} {int(p == q)}" for p in range(10) for q in range(10)]
    (meta / "ijbc_face_tid_mid.txt").write_text("\n".join(faces) + "\n")
    (meta / "ijbc_name_5pts_score.txt").write_text("\n".join(scores) + "\n")
    (meta / "ijbc_template_pair_label.txt").write_text("\n".join(pairs) + "\n")
    found = look(tmp_path)
    (part,) = found.parts
    assert (part.name, part.kind) == ("ijbc", "ijb")
    ran = run(part, model, found, OPTIONS)
    assert ran.error is None and ran.figures["one_to_one"]["genuine"] == 10
    assert ran.figures["one_to_one"]["tar_at_far"]["1e-1"] == 1.0
    assert ran.warnings == []  # crops as they are


def test_a_photograph_is_aligned_as_opencv_aligns_it() -> None:
    cv2 = pytest.importorskip("cv2")
    skimage = pytest.importorskip("skimage.transform")
    import io

    import simplejpeg
    from PIL import Image

    from glint.shards.crops import TEMPLATE

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (12, 15, 3), dtype=np.uint8)
    photo = np.ascontiguousarray(cv2.resize(coarse, (250, 200), interpolation=cv2.INTER_CUBIC))
    data = bytes(simplejpeg.encode_jpeg(photo, quality=100, colorsubsampling="444"))
    turn = 0.9 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    points = TEMPLATE @ turn.T + [60, 20] + rng.normal(0, 1.5, (5, 2))
    guess = skimage.SimilarityTransform()
    guess.estimate(points, TEMPLATE)
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    want = cv2.warpAffine(shown, guess.params[:2], (112, 112), borderValue=0.0).astype(float)
    found = np.asarray(Image.open(io.BytesIO(aligned(data, points)))).astype(float)
    assert np.abs(found - want)[2:-2, 2:-2].mean() < 1.0
    shifted = np.abs(np.roll(found, 1, 1) - want)[2:-2, 2:-2].mean()
    assert shifted > 2.0  # a pixel off would show
    with pytest.raises(InputError, match="the five points coincide"):
        aligned(data, np.zeros((5, 2)))


def test_what_cannot_be_run_is_an_error_and_what_is_no_test_has_a_reason(
    tmp_path: Path, folk: Any, model: Recogniser
) -> None:
    images = [folk.picture(p, n) for p in range(20) for n in (1, 2)]
    write_bin(tmp_path / "good.bin", images, [True] * 20)
    whole = (tmp_path / "good.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04zip")
    (tmp_path / "lost_pairs.txt").write_text("1\t1\nA\t1\t2\nA\t1\tB\t2\n")
    (tmp_path / "damaged_pairs.txt").write_text("1\t1\nA\t1\t2\nA\t1\tB\t2\n?\t!\n")
    (tmp_path / "people.csv").write_text("name,images\nA,2\nB,1\n")
    (tmp_path / "notes.docx").write_bytes(b"PK")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "train.rec").write_bytes(b"")
    found = look(tmp_path)
    reasons = {path.name: why for path, why in found.skipped}
    assert {*reasons} == {"pytorch_model.bin", "people.csv", "notes.docx", "README.md", "train.rec"}
    assert "glint shard" in reasons["train.rec"] and all(reasons.values())
    rans = {part.name: run(part, model, found, OPTIONS) for part in found.parts}
    assert {*rans} == {"good", "cut", "lost_pairs", "damaged_pairs"}
    assert [name for name, ran in rans.items() if ran.error] == [
        "cut",
        "damaged_pairs",
        "lost_pairs",
    ]
    assert rans["good"].warnings  # all of one person
    with pytest.raises(InputError, match="no test set"):
        (tmp_path / "empty").mkdir()
        look(tmp_path / "empty")


def test_people_of_a_pack_are_told_by_its_pairs(
    tmp_path: Path, folk: Any, model: Recogniser
) -> None:
    images, same = [], []
    for p in range(20):
        images += [
            folk.picture(p, 1),
            folk.picture(p, 2),
            folk.picture(p, 1),
            folk.picture((p + 1) % 20, 1),
        ]
        same += [True, False]
    write_bin(tmp_path / "t.bin", images, same)
    found = look(tmp_path)
    ran = run(found.parts[0], model, found, OPTIONS)
    assert ran.intervals is not None and ran.intervals.people == 20
    a, b = embed_pairs(model, found.parts[0].load(), flip=False)  # type: ignore[misc]
    assert a.shape == b.shape == (40, 48)
