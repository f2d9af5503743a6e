"""`glint align` with a made detector: which faces become which samples, and what does not."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glint import schemas
from glint.errors import BudgetError, MismatchError, UsageError
from glint.jobs.tasks import Task
from glint.models.detector import Faces
from glint.pipelines.dataset import drop, merge, photos, reshard
from glint.pipelines.dataset.align import Align, Model, align, survey
from glint.results import datasets as results
from glint.shards import crops, pixels
from glint.shards.dataset import Dataset
from glint.shards.image import Rejected
from glint.shards.sources.rule import Rule
from glint.shards.verify import verify

Cell = tuple[int, int, int, int]  # row, column, red, blue: a face where no green is


def scene(*faces: Cell, seed: int = 0) -> np.ndarray:
    """Draw a picture of 160 x 160 of soft colours, with cells that the made detector finds."""
    coarse = np.random.default_rng(seed).integers(90, 160, (10, 10, 3), np.uint8)
    picture = np.asarray(
        Image.fromarray(coarse).resize((160, 160), Image.Resampling.BICUBIC)
    ).copy()
    for row, column, red, blue in faces:
        picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = red, 0, blue
    return picture


def encoded(picture: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


LARGE, MIDDLE, SMALL = (4, 4, 255, 255), (10, 10, 255, 128), (15, 4, 255, 0)
WEAK = (10, 10, 185, 255)


def write(folder: Path, **files: bytes) -> Path:
    for name, data in files.items():
        person, _, number = name.partition("_")
        (folder / person).mkdir(parents=True, exist_ok=True)
        (folder / person / f"{number}.jpg").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def heap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {}
    for i in range(24):
        faces = [LARGE, MIDDLE, SMALL][: i % 4]
        files[f"p{i // 4}_{i}"] = encoded(scene(*faces, seed=i), ("PNG", "JPEG", "WEBP")[i % 3])
    files["p0_98"], files["p0_99"] = b"", b"\xff\xd8\xff\xe0 nothing"
    return write(tmp_path_factory.mktemp("heap"), **files)


@pytest.fixture(scope="module")
def options(made_detector: Callable[..., Path]) -> Align:
    return Align(detector=Model(str(made_detector())), samples_per_shard=5, min_face=5)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "samples.parquet").to_pylist()
    return found


@pytest.mark.parametrize("faces", photos.FACES)
def test_which_faces_are_taken(heap: Path, options: Align, tmp_path: Path, faces: str) -> None:
    out = tmp_path / "out"
    made = align(heap, out, replace(options, faces=faces), max_bad=0.9)
    assert isinstance(made, results.Align)
    none, several = 6, 12  # photos without a face, with two or three
    crop_count = {"all": 6 * (1 + 2 + 3), "one": 6}.get(faces, 18)
    reasons = {"no-face": none, "empty": 1, "jpeg-truncated": 1}
    reasons |= {"several-faces": several} if faces == "one" else {}
    assert made.quarantine_reasons == reasons
    assert (made.read, made.written, made.quarantined) == (26, crop_count, sum(reasons.values()))
    assert made.further == (18 if faces == "all" else 0)
    if faces != "one":
        assert made.notes["several-faces"] == several
    assert verify(out, deep=True).ok
    data = Dataset(out)
    told = Counter((row["source"], row["face"]) for row in rows(out))
    assert max(told.values()) == 1
    for i, row in enumerate(rows(out)):
        person, _, number = row["source"].partition("/")
        assert row["source_label"] == person
        box = np.array(row["box"])
        middle = ((box[:2] + box[2:]) / 2).round(1).tolist()
        want = {0: [32, 32], 1: [80, 80], 2: [32, 120]}[row["face"] if faces == "all" else 0]
        if faces == "central" and int(number.removesuffix(".jpg")) % 4 > 1:
            want = [80, 80]
        assert middle == pytest.approx(want, abs=0.6)
        assert int(row["key"]) // (10 if faces == "all" else 1) < 26
        assert pixels.rgb(data.read(i)).shape == crops.SHAPE


def test_a_crop_is_what_the_points_say(heap: Path, options: Align, tmp_path: Path) -> None:
    """Held against OpenCV's warp of the photo as Pillow decodes it."""
    cv2 = pytest.importorskip("cv2")
    out = tmp_path / "out"
    align(heap, out, replace(options, quality=100))
    data = Dataset(out)
    assert len(rows(out)) == 18
    for i, row in enumerate(rows(out)):
        photo = np.asarray(Image.open(heap / row["source"]).convert("RGB"))
        matrix = crops.similarity(np.array(row["points"]).reshape(5, 2))
        wanted = cv2.warpAffine(photo, matrix, (112, 112), borderValue=0.0).astype(int)
        crop = pixels.rgb(data.read(i))
        assert np.abs(crop - wanted).mean() <= 1 and row["aligned"] is False
        assert row["interocular"] == pytest.approx(
            np.linalg.norm(matrix[0, :2]) ** -1 * 35.24, 0.01
        )
        assert row["brightness"] == pytest.approx(crops.brightness(crop), abs=0.5)
        assert row["blur"] == pytest.approx(crops.blur(wanted.astype(np.uint8)), rel=0.1)
        assert (row["photo_width"], row["photo_height"]) == (160, 160)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photo_turned_by_exif(options: Align, tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((160, 120, 3), np.uint8) + scene((4, 6, 255, 255))[:, :120]
    exif = Image.Exif()
    exif[0x0112] = orientation
    ways = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that undo it
    stored = np.asarray(Image.fromarray(upright).transpose(Image.Transpose(ways[orientation])))
    src = write(
        tmp_path / "src",
        a_1=encoded(stored, exif=exif),
        a_2=encoded(upright),
        a_3=encoded(stored, "WEBP", lossless=True, exif=exif),
    )
    made = align(src, tmp_path / "out", options)
    assert made.written == 3 and made.notes == {"turned": 2}
    data = Dataset(tmp_path / "out")
    assert len({data.read(i) for i in range(3)}) == 1
    assert {tuple(row["points"]) for row in rows(tmp_path / "out")} == {
        tuple(rows(tmp_path / "out")[0]["points"])
    }
    assert {(row["photo_width"], row["photo_height"]) for row in rows(tmp_path / "out")} == {
        (120, 160)
    }


def test_every_reason(options: Align, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glint.shards.image.MAX_PIXELS", 40_000)
    monkeypatch.setattr("glint.shards.pixels.MAX_PIXELS", 40_000)
    good = encoded(scene(LARGE))
    src = write(
        tmp_path / "src",
        good_1=good,
        no_1=encoded(scene()),
        weak_1=encoded(scene(WEAK)),
        small_1=encoded(scene(SMALL)),
        several_1=encoded(scene(LARGE, MIDDLE)),
        large_1=encoded(np.zeros((300, 300, 3), np.uint8)),
        broken_1=good[:60] + good[-60:],
        text_1=b"this is a text and no picture at all",
    )
    made = align(src, tmp_path / "out", replace(options, faces="one", min_face=12), max_bad=1.0)
    found = {
        row["source"].partition("/")[0]: (row["reason"], row["note"])
        for row in pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    }
    assert {name: reason for name, (reason, _) in found.items()} == {
        "no": "no-face",
        "weak": "low-score",
        "small": "small-face",
        "several": "several-faces",
        "large": "too-large",
        "broken": "undecodable",
        "text": "not-an-image",
    }
    assert (made.written, made.read) == (1, 8)
    assert found["small"][1] == "8.1 x 8.1 pixels" and found["several"][1] == "2 faces"
    assert 0.25 <= float(found["weak"][1]) < 0.5 and found["large"][1] == "300 x 300 pixels"
    with pytest.raises(BudgetError, match="7 of 8"):
        align(src, tmp_path / "out", replace(options, faces="one", min_face=12))


def test_faces_over_the_most_are_counted(options: Align, tmp_path: Path) -> None:
    src = write(tmp_path / "src", a_1=encoded(scene(LARGE, MIDDLE, SMALL)))
    chosen = replace(options, faces="all", max_faces=1)
    made = align(src, tmp_path / "out", chosen)
    assert made.written == 1 and made.notes == {"faces-over": 2, "several-faces": 1}
    chosen = replace(options, faces="all", min_face=12, unlabelled=True)
    made = align(src, tmp_path / "more", chosen, Rule())
    assert made.written == 2 and made.notes == {"small-faces": 1}
    assert [row["label"] for row in rows(tmp_path / "more")] == [0, 1]
    assert made.identities == 10 and made.further == 1


def test_the_same_bytes_however_it_ran(heap: Path, options: Align, tmp_path: Path) -> None:
    chosen = replace(options, faces="all")
    align(heap, tmp_path / "a", chosen)
    whole = files(tmp_path / "a")
    align(heap, tmp_path / "b", chosen, workers=2)
    assert files(tmp_path / "b") == whole
    share = align(heap, tmp_path / "c", chosen, task=Task(1, 2))
    assert isinstance(share, results.AlignShare) and share.left == 3
    align(heap, tmp_path / "c", chosen, task=Task(0, 2))
    assert files(tmp_path / "c") == whole
    again = align(heap, tmp_path / "a", chosen)
    assert again.resumed_shards == 6 and files(tmp_path / "a") == whole
    shutil.copytree(tmp_path / "a", tmp_path / "d")  # as if it had stopped before its end
    (tmp_path / "d" / "manifest.json").unlink()
    (tmp_path / "d" / "data" / "train-000002.tar").unlink()
    align(heap, tmp_path / "d", chosen)
    assert files(tmp_path / "d") == whole


def test_a_batch_changes_nothing(
    heap: Path, options: Align, made_detector: Callable[..., Path], tmp_path: Path
) -> None:
    """A file that takes many pictures at a time gives what the one for a single picture gives."""
    align(heap, tmp_path / "a", options)
    many = replace(options, detector=Model(str(made_detector(0)), size="160x160"))
    align(heap, tmp_path / "b", many)
    one, other = (rows(tmp_path / name) for name in "ab")
    assert [row["key"] for row in one] == [row["key"] for row in other]
    for a, b in zip(one, other):
        assert a["points"] == pytest.approx(b["points"], abs=1e-3)


def test_other_options_are_another_plan(
    heap: Path, options: Align, made_detector: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    align(heap, out, options)
    other = made_detector(192)
    for changed in (
        replace(options, quality=80),
        replace(options, faces="all"),
        replace(options, antialias=False),
        replace(options, detector=Model(str(other))),
    ):
        with pytest.raises(MismatchError, match="GL0006"):
            align(heap, out, changed)
    moved = tmp_path / "moved.onnx"
    shutil.copy(options.detector.file, moved)
    align(heap, out, replace(options, detector=Model(str(moved))))  # the same file elsewhere
    shutil.copy(other, moved)  # exchanged under a run: a worker looks again
    photos.forget()
    plan = replace(options, detector=Model(str(moved), digest="another"))
    with pytest.raises(MismatchError, match="detector has changed"):
        photos.pack(None, None, type("Plan", (), {"options": plan}), 0, Counter())  # type: ignore[arg-type]


def test_columns_go_with_the_crops(
    heap: Path, options: Align, jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    from glint.pipelines.dataset import shard as stage

    align(heap, tmp_path / "a", replace(options, faces="all"))
    reshard.reshard(tmp_path / "a", tmp_path / "b", 40)
    before, after = rows(tmp_path / "a"), rows(tmp_path / "b")
    for name in ("key", *schemas.CROPS.names):
        assert [row[name] for row in before] == [row[name] for row in after]
    write(tmp_path / "plain", x_1=jpeg(1), x_2=jpeg(2))
    stage.shard(tmp_path / "plain", tmp_path / "c")
    merge.merge(tmp_path / "d", [tmp_path / "a", tmp_path / "c"], samples_per_shard=7)
    by_key = {row["key"]: row for row in before}
    joined = rows(tmp_path / "d")
    assert len(joined) == len(before) + 2
    for row in joined:
        wanted = by_key[row["dataset_key"]] if row["dataset"] == "a" else {}
        assert all(row[name] == wanted.get(name) for name in schemas.CROPS.names)
    drop.drop(tmp_path / "a", ["p1"], "they asked", erase=tmp_path / "e")
    left = [row for row in before if row["source_label"] != "p1"]
    for name in ("key", *schemas.CROPS.names):
        assert [row[name] for row in left] == [row[name] for row in rows(tmp_path / "e")]
    assert len(before) - 6 <= len(left) < len(before)
    for name in "abcde":
        assert verify(tmp_path / name, deep=True).ok
    assert Dataset(tmp_path / "d").manifest["read"] == 26 + 2


def test_photos_hold_no_crops_and_a_card_says_how_they_were_cut(
    heap: Path, options: Align, tmp_path: Path
) -> None:
    from glint.pipelines.dataset.card import _commands
    from glint.shards.against import read_as

    align(heap, tmp_path / "a", replace(options, faces="all", antialias=False))
    with pytest.raises(UsageError, match="cut out of photographs"):
        read_as(tmp_path / "a", [heap], "")
    reshard.reshard(tmp_path / "a", tmp_path / "b", 40)
    assert read_as(tmp_path / "b", [tmp_path / "a"], "")[0].is_dataset
    lines = _commands(Dataset(tmp_path / "b").manifest, [])
    assert lines[0].startswith(f"glint align {heap.name} DATASET --detector made.onnx --faces all")
    assert lines[0].endswith("--no-antialias --samples-per-shard 5 --seed 0")
    assert lines[1] == "glint reshard OLD DATASET --samples-per-shard 40"


class Fixed:
    """A detector that finds one face, relative to the middle of what it sees."""

    batch = 1

    def __init__(self, points: np.ndarray, seen: Callable[[np.ndarray], bool]) -> None:
        self.points, self.seen = points, seen

    def find(self, pictures: list[np.ndarray], least: float) -> list[Faces]:
        found = []
        for picture in pictures:
            points = self.points + (picture.shape[0] - 112) / 2
            n = int(self.seen(picture))
            box = np.concatenate([points.min(0), points.max(0)])[None]
            found.append(
                Faces(
                    np.float32(box[:n]), np.full(n, 0.9, np.float32), np.float32(points[None][:n])
                )
            )
        return found


def test_a_crop_that_is_aligned_already_is_kept_byte_for_byte(jpeg: Callable[[int], bytes]) -> None:
    options, notes = Align(), Counter[str]()
    data = jpeg(3)
    tight = Fixed(crops.TEMPLATE + 1, lambda picture: picture.shape[0] > 112)  # needs a margin
    photo = photos.Photo(0, data, pixels.rgb(data))
    photos._find([photo], tight, options)  # type: ignore[arg-type]
    made = photos._crops(photo, options, notes)
    assert photo.aligned and made[0][0] == data and notes["already-aligned"] == 1
    assert made[0][1]["points"] == pytest.approx((crops.TEMPLATE + 1).ravel(), abs=1e-3)
    assert made[0][1]["aligned"] is True
    other = Fixed(0.5 * crops.TEMPLATE + 20, lambda picture: True)  # a small photo
    photo = photos.Photo(0, data, pixels.rgb(data))
    photos._find([photo], other, options)  # type: ignore[arg-type]
    made = photos._crops(photo, options, notes)
    assert not photo.aligned and made[0][0] != data and notes["already-aligned"] == 1
    assert made[0][1]["points"] == pytest.approx((0.5 * crops.TEMPLATE + 20).ravel(), abs=1e-3)


def test_points_that_coincide_are_no_face() -> None:
    photo = photos.Photo(0, b"", np.zeros((200, 200, 3), np.uint8))
    photos._find([photo], Fixed(np.full((5, 2), 50.0), lambda _: True), Align(min_face=0))  # type: ignore[arg-type]
    with pytest.raises(Rejected, match="coincide"):
        photos._crops(photo, Align(min_face=0), Counter())


def test_options_that_make_no_sense(heap: Path, options: Align) -> None:
    for wrong in (
        {"faces": "some"}, {"max_faces": 0}, {"min_score": 1.0}, {"min_face": -1},
        {"quality": 0}, {"subsampling": "411"}, {"detector": Model(size="640")},
    ):  # fmt: skip
        with pytest.raises(UsageError, match="GL0002"):
            replace(options, **wrong)
    made = survey(heap, options)
    assert (made.read, made.shards, made.dry_run) == (26, 6, True)
