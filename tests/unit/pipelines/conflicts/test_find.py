"""From a dataset and its embeddings to tables and a page, and on to labels."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from glint.conflicts.verdicts import ConflictOptions
from glint.errors import BusyError, UsageError
from glint.files import atomic
from glint.pipelines import embed
from glint.pipelines.conflicts import apply, find
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings, load
from tests.unit.pipelines.conftest import picture


class Blocks:
    """A recogniser of the coloured blocks that the pictures show."""

    name, dim, size, digest = "blocks", 147, 112, "sha256:blocks"

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        x = image_nHWC.reshape(-1, 7, 16, 7, 16, 3).mean((2, 4)).reshape(len(image_nHWC), -1)
        return (x - 127.5).astype(np.float32)


COUNTS = [4, 3, 5, 6, 2, 4, 0, 3] * 4
NAMES = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'] + [
    f"person {i}" for i in range(2, 32)
]


@pytest.fixture
def dataset(make_dataset) -> Dataset:
    """Thirty-two identities; 20 shows person 3, and 29 shows person 0."""
    return make_dataset(COUNTS, NAMES, same_as={20: 3, 29: 0})


@pytest.fixture
def emb(dataset: Dataset, tmp_path: Path) -> Embeddings:
    embed.embed(dataset, Blocks(), tmp_path / "emb")
    return load(tmp_path / "emb", dataset.digest, images=dataset.n, classes=dataset.classes)


def files(root: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.tar")}


def test_the_road(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    out = tmp_path / "conf"
    shards = files(dataset.root)
    got = find.run(dataset, emb, out, ConflictOptions(), command="glint dedup-conflicts x")
    assert got.merge == 2
    assert (got.groups, got.largest_group, got.groups_refused) == (2, 2, 0)
    assert (got.identities, got.identities_after, got.calibrated) == (32, 30, True)
    assert got.pairs == got.merge + got.mask + got.keep
    assert got.classes_excluded == 4  # identities without an image

    pairs = pq.read_table(out / "pairs.parquet").to_pylist()
    merged = [p for p in pairs if p["verdict"] == "merge"]
    assert [(p["a"], p["b"]) for p in merged] == [(0, 29), (3, 20)]
    for p in merged:
        assert p["cross_q10"] <= p["cross_mean"] < p["cosine"] <= 1
        assert p["score"] == pytest.approx(1, abs=0.15)
        assert (p["n_a"], p["n_b"]) == (COUNTS[p["a"]], COUNTS[p["b"]])
    groups = pq.read_table(out / "groups.parquet").to_pydict()
    assert groups == {"group": [0, 0, 1, 1], "label": [0, 29, 3, 20]}
    about = json.loads((out / "conflicts.json").read_text())
    assert about["dataset"]["digest"] == dataset.digest
    assert about["embeddings"]["model"] == "sha256:blocks"

    assert about["likeness"]["kind"] == "estimate"
    assert about["calibration"]["merge_from"].keys() == about["calibration"]["mask_from"].keys()

    result = apply.apply(out)
    assert result.classes == 30
    assert files(dataset.root) == shards
    target = labels.current(dataset.root, 32).target
    assert target[29] == target[0]
    assert target[20] == target[3]

    rest = find.run(dataset, emb, tmp_path / "again", ConflictOptions())
    assert rest.merge == 0  # what is merged does not come back
    apply.undo(out)


@pytest.mark.parametrize("fits", ["unlike", "mixed", "few"])
def test_the_page_and_the_report_say_that_the_evidence_does_not_fit(
    dataset: Dataset, emb: Embeddings, tmp_path: Path, monkeypatch, fits: str
) -> None:
    from glint.conflicts import chance

    monkeypatch.setattr(chance, "_fits", lambda *_: (fits, 0.0))
    got = find.run(dataset, emb, tmp_path / "conf", ConflictOptions(), thumbs=False)
    about = json.loads((tmp_path / "conf" / "conflicts.json").read_text())
    assert got.note == about["likeness"]["note"] == chance.NOTES[fits] != ""
    assert chance.NOTES[fits] in (tmp_path / "conf" / "report.html").read_text()


def test_merged_pairs_stand_beyond_the_line_that_the_page_draws(
    dataset: Dataset, emb: Embeddings, tmp_path: Path
) -> None:
    find.run(dataset, emb, tmp_path / "conf", ConflictOptions(), thumbs=False)
    cut = json.loads((tmp_path / "conf" / "conflicts.json").read_text())["likeness"]["cut"]
    page = (tmp_path / "conf" / "report.html").read_text()
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])
    strength = {v: [] for v in ("merge", "mask", "keep")}
    for verdict, value in zip(shown["verdict"], shown["strength"]):
        strength[verdict].append(value / 1e4)
    assert min(strength["merge"]) >= cut - 1e-4 > max(strength["keep"], default=0)
    for verdict, cosine, need in zip(shown["verdict"], shown["cosine"], shown["need"]):
        assert verdict != "merge" or cosine >= need - 1
    assert f"merge from {cut:.2f}" in page and "Strength is the centre cosine" in page
    merges = {k for k, verdict in enumerate(shown["verdict"]) if verdict == "merge"}
    assert set(shown["drawn"]) == merges and shown["merges"] == len(merges) > 0
    assert f"of the {len(merges)} merges are expected to be wrong, at most" in page


def test_two_runs_write_the_same_tables(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    for name in ("a", "b"):
        find.run(dataset, emb, tmp_path / name, ConflictOptions())
    find.run(dataset, emb, tmp_path / "b", ConflictOptions())  # over its own output
    for name in ("pairs.parquet", "groups.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_page_holds_original_faces_and_is_private(
    dataset: Dataset, emb: Embeddings, tmp_path: Path
) -> None:
    import base64

    out = tmp_path / "conf"
    find.run(dataset, emb, out, ConflictOptions())
    page = (out / "report.html").read_text()
    assert stat.S_IMODE((out / "report.html").stat().st_mode) == 0o600
    for row in dataset.rows_of(0):
        assert base64.b64encode(dataset.read(int(row))).decode() in page
    assert "<script>alert(1)" not in page
    assert "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e" in page
    assert "biometric" in page

    find.run(dataset, emb, out, ConflictOptions(), thumbs=False)
    bare = (out / "report.html").read_text()
    assert "data:image" not in bare
    assert "no faces" in bare
    assert simplejpeg.is_jpeg(dataset.read(0))


def test_threshold_low_and_cap(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    got = find.run(dataset, emb, tmp_path / "t", ConflictOptions(threshold=-1.0), thumbs=False)
    assert got.expected_wrong_merges is None  # the law's estimate is of its own cut
    assert got.low == -1.0
    assert got.pairs == 28 * 27 / 2
    assert got.merge == 0  # one group of 28 is over the cap: masked
    assert got.groups_refused == 1
    reasons = set(pq.read_table(tmp_path / "t/pairs.parquet")["reason"].to_pylist())
    assert reasons == {"28 identities in one group, more than 8"}


def test_foreign_folder_is_left_alone(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    (tmp_path / "begun/_glint").mkdir(parents=True)
    (tmp_path / "begun/_glint/plan.json").write_text('{"kind": "shard"}')
    before = sorted(tmp_path.rglob("*"))
    for name, what in {
        "mine": "not empty and holds no conflicts",
        "begun": "not empty and holds no conflicts",
        "emb": "not empty and holds no conflicts",
        "set": "this is a dataset",
        "file": "expected a folder, found a file",
    }.items():
        with pytest.raises(BusyError, match=f"GL0004.*{what}"):
            find.run(dataset, emb, tmp_path / name, ConflictOptions())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_in_force_is_kept(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    out = tmp_path / "conf"
    find.run(dataset, emb, out, ConflictOptions(), thumbs=False)
    apply.apply(out)
    labels.apply(dataset.root, np.arange(32), np.empty((0, 2), np.int64), {"stage": "other"})
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    with pytest.raises(BusyError, match=r"GL0004.*this report is applied") as caught:
        find.run(dataset, emb, out, ConflictOptions(), thumbs=False)
    assert "dedup-conflicts undo" in caught.value.hint
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    labels.undo(dataset.root)
    apply.undo(out)
    find.run(dataset, emb, out, ConflictOptions(), thumbs=False)  # no longer in force
    apply.apply(out)
    find.run(dataset, emb, out, ConflictOptions(), thumbs=False, overwrite=True)
    assert json.loads((out / "conflicts.json").read_text())["dataset"]["label_version"] > 0


def test_an_edited_report_is_kept(dataset: Dataset, emb: Embeddings, tmp_path: Path) -> None:
    out = tmp_path / "conf"
    find.run(dataset, emb, out, ConflictOptions(), thumbs=False)
    found = (out / "pairs.parquet").read_bytes()
    pq.write_table(pq.read_table(out / "pairs.parquet").slice(1), out / "pairs.parquet")
    edited = (out / "pairs.parquet").read_bytes()
    with pytest.raises(BusyError, match=r"GL0004.*pairs.parquet: was edited"):
        find.run(dataset, emb, out, ConflictOptions(), thumbs=False)
    assert (out / "pairs.parquet").read_bytes() == edited
    find.run(dataset, emb, out, ConflictOptions(), thumbs=False, overwrite=True)
    assert (out / "pairs.parquet").read_bytes() == found


def test_a_run_that_stopped_half_way_goes_on(
    dataset: Dataset, emb: Embeddings, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "conf"
    for options in (
        ConflictOptions(),
        ConflictOptions(threshold=0.9),
    ):  # the second over a finished report
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write_json", _stop_at("conflicts.json", atomic.write_json))
            with pytest.raises(KeyboardInterrupt):
                find.run(dataset, emb, out, options, thumbs=False)
        find.run(dataset, emb, out, options, thumbs=False)
        assert [p.name for p in (out / "_glint").iterdir()] == ["lock"]


def _stop_at(name: str, real):
    def write_json(path: Path, value: object) -> None:
        if path.name == name:
            raise KeyboardInterrupt
        real(path, value)

    return write_json


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ({"threshold": 1.5}, "--threshold: expected a cosine, from -1 to 1, found 1.5"),
        ({"low": float("nan")}, "--low: expected a cosine"),
        ({"cap": 1}, "--cap: expected at least 2, found 1"),
    ],
)
def test_bad_options(option: dict, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ConflictOptions(**option)


def test_a_stopped_search_goes_on(
    dataset: Dataset,
    emb: Embeddings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is searched is kept until the report stands, then goes."""
    from glint.search import pairs

    monkeypatch.setattr(pairs.pairs_above, "__kwdefaults__", {
        **pairs.pairs_above.__kwdefaults__, "block": 4})  # fmt: skip
    find.run(dataset, emb, tmp_path / "whole", ConflictOptions())

    def stop(done: int, total: int, note: str = "") -> None:
        if done == 13:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        find.run(dataset, emb, out, ConflictOptions(), progress=stop)
    assert len(list((out / "_glint/search").glob("*.pairs"))) == 2
    searched: list[int] = []
    search = pairs.search_row
    monkeypatch.setattr(pairs, "search_row", lambda s, first, *a: searched.append(first)
                        or search(s, first, *a))  # fmt: skip
    find.run(dataset, emb, out, ConflictOptions())
    assert searched == [8, 12, 16, 20, 24]
    assert not (out / "_glint/search").exists()
    for name in ("pairs.parquet", "groups.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_labels_that_change_meanwhile(
    dataset: Dataset, emb: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, none = find.outliers.look_inside, np.empty((0, 2), np.int64)

    def late(*args, **kwargs):
        monkeypatch.undo()
        labels.apply(dataset.root, np.arange(32), none, {"stage": "other"})
        return real(*args, **kwargs)

    monkeypatch.setattr(find.outliers, "look_inside", late)
    out = tmp_path / "conf"
    with pytest.raises(BusyError, match=r"GL0309.*of version 0, in force is 1"):
        find.run(dataset, emb, out, ConflictOptions(), thumbs=False)
    assert not (out / "conflicts.json").exists()
    find.run(dataset, emb, out, ConflictOptions(), thumbs=False)
    assert json.loads((out / "conflicts.json").read_text())["dataset"]["label_version"] == 1


def test_identities_in_force_are_judged_after_cluster_apply(make_dataset, tmp_path: Path) -> None:
    """A crawl whose labels are single images: of 26 clusters the last two show the first two."""
    person = np.repeat(np.arange(26), 6)
    images = {(i, 0): picture(int(p) % 24, i) for i, p in enumerate(person)}
    dataset = make_dataset([1] * len(person), shows=images)
    embed.embed(dataset, Blocks(), tmp_path / "emb")
    emb = load(tmp_path / "emb", dataset.digest, images=dataset.n, classes=dataset.classes)
    masks = np.empty((0, 2), np.int64)
    labels.apply(dataset.root, person, masks, {"stage": "cluster"})
    told = find.run(dataset, emb, tmp_path / "conf", ConflictOptions(), thumbs=False)
    assert (told.identities, told.merge, told.identities_after) == (26, 2, 24)
    assert told.classes_excluded == 0
    pairs = pq.read_table(tmp_path / "conf/pairs.parquet").to_pylist()
    merged = [(p["a"], p["b"], p["n_a"], p["n_b"]) for p in pairs if p["verdict"] == "merge"]
    assert merged == [(0, 24 * 6, 6, 6), (6, 25 * 6, 6, 6)]
    apply.apply(tmp_path / "conf")
    table = labels.current(dataset.root, dataset.classes)
    assert table.sample_target(dataset.label).tolist() == (person % 24).tolist()
