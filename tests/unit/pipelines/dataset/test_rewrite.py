"""glint reshard, merge and drop: the same samples elsewhere, nothing lost but what must be."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint.errors import BusyError, InputError, MismatchError, UsageError
from glint.files import atomic
from glint.pipelines.dataset import drop as taking
from glint.pipelines.dataset import merge as joining
from glint.pipelines.dataset import shard as stage
from glint.pipelines.dataset.output import Output
from glint.pipelines.dataset.reshard import content, reshard
from glint.pipelines.dataset.write import write_shard
from glint.shards import labels, tombstones
from glint.shards.dataset import Dataset
from glint.shards.verify import verify

Jpeg = Callable[[int], bytes]


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and "_glint" not in p.parts
    }


def good(root: Path) -> dict[str, Any]:
    result = verify(root, deep=True, workers=2)
    assert result.ok, result.shown
    return result


def images(root: Path) -> dict[str, tuple[bytes, int]]:
    data = Dataset(root)
    return {data.key[row]: (data.read(row), int(data.label[row])) for row in range(data.n)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, jpeg: Jpeg) -> Path:
    """Give two folders of identities: 5 people, one record damaged; 3 people, 2 images shared."""
    root = tmp_path_factory.mktemp("rewrite")
    for i in range(25):
        path = root / "one" / f"person-{i // 5}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i) if i != 7 else b"<html>")
    for i in range(9):
        path = root / "two" / f"person-{i // 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(100 + i) if i not in (1, 2) else jpeg(20))
    stage.shard(root / "one", root / "a", stage.Options(8))
    stage.shard(root / "two", root / "b", stage.Options(4, with_json=True))
    return root


@pytest.fixture
def a(sources: Path, tmp_path: Path) -> Path:
    """Give a dataset of its own, in three shards, one record of 25 quarantined."""
    stage.shard(sources / "one", tmp_path / "a", stage.Options(8))
    return tmp_path / "a"


class TestReshard:
    @pytest.mark.parametrize("per_shard", [1, 5, 10_000])
    def test_as_if_sharded_so_at_once(self, sources: Path, tmp_path: Path, per_shard: int) -> None:
        for name, folder, with_json in (("one", "a", False), ("two", "b", True)):
            out, fresh = tmp_path / f"{name}-out", tmp_path / f"{name}-fresh"
            result = reshard(sources / folder, out, per_shard)
            stage.shard(sources / name, fresh, stage.Options(per_shard, with_json=with_json))
            had, have = files(fresh), files(out)
            assert {k for k in had if k.startswith("data/")} <= set(have)
            for file in had:
                if file != "manifest.json":
                    assert have[file] == had[file], file
            assert result.content == content(Dataset(sources / folder)) == content(Dataset(fresh))
            manifest = good(out)
            if name == "two":  # nothing quarantined: the whole digest is that of sharding
                assert manifest.digest == Dataset(fresh).digest

    def test_labels_and_takedowns_are_carried(self, a: Path, tmp_path: Path) -> None:
        labels.apply(a, np.array([0, 0, 1, 2, 3]), np.array([[1, 2]]), {"by": "test"})
        taking.drop(a, ["3"], "asked to")
        result = reshard(a, tmp_path / "out", 6)
        assert result.quarantined == 1 and result.read == 25
        old, new = labels.current(a, 5), labels.current(tmp_path / "out", 5)
        assert (
            (new.version, new.target.tolist())
            == (2, [0, 0, 1, -1, 2])
            == (old.version, old.target.tolist())
        )
        assert labels.history(tmp_path / "out") == labels.history(a)
        assert tombstones.read(tmp_path / "out") == tombstones.read(a) != []
        assert good(tmp_path / "out").label_version == 2

    def test_dropping_the_quarantine(self, a: Path, tmp_path: Path) -> None:
        result = reshard(a, tmp_path / "out", 6, drop_quarantine=True)
        assert (result.read, result.written, result.quarantined) == (24, 24, 0)
        assert pq.read_table(tmp_path / "out/quarantine.parquet").num_rows == 0
        good(tmp_path / "out")
        assert reshard(tmp_path / "out", tmp_path / "back", 8).content == content(Dataset(a))

    def test_stopped_and_continued(
        self, a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reshard(a, tmp_path / "whole", 4)
        real, calls = write_shard, []

        def once(plan: stage.Plan, shard: int) -> dict[str, Any]:
            calls.append(shard)
            if len(calls) == 4:
                raise RuntimeError("killed")
            return real(plan, shard)

        monkeypatch.setattr(Output, "work", staticmethod(once))
        with pytest.raises(RuntimeError):
            reshard(a, tmp_path / "out", 4)
        assert not (tmp_path / "out/manifest.json").exists()
        with pytest.raises(MismatchError, match="samples_per_shard was 4, is 5"):
            reshard(a, tmp_path / "out", 5)
        result = reshard(a, tmp_path / "out", 4)
        assert result.resumed_shards == 3 and calls == [0, 1, 2, 3, 3, 4, 5, 6]
        assert files(tmp_path / "out") == files(tmp_path / "whole")
        assert reshard(a, tmp_path / "out", 4).resumed_shards == 7
        assert sorted(p.name for p in (tmp_path / "out/_glint").iterdir()) == ["lock", "plan.json"]

    def test_two_processes_write_the_same(self, a: Path, tmp_path: Path) -> None:
        reshard(a, tmp_path / "one", 4)
        reshard(a, tmp_path / "two", 4, workers=2)
        assert files(tmp_path / "one") == files(tmp_path / "two")

    def test_damage_does_not_travel(self, a: Path, tmp_path: Path) -> None:
        data = Dataset(a)
        raw = bytearray(data.shard_path(1).read_bytes())
        row = int(np.flatnonzero(data.shard == 1)[2])
        raw[int(data.offset[row]) + 9] ^= 4
        data.shard_path(1).write_bytes(raw)
        with pytest.raises(InputError, match="GL0303 sample-damaged") as caught:
            reshard(a, tmp_path / "out", 4)
        assert f"train-000001.tar @ 0x{int(data.offset[row]):x}" in str(caught.value)
        assert f"glint verify {a.absolute()} --deep" in caught.value.hint
        data.shard_path(1).unlink()
        with pytest.raises(InputError, match="GL0302 shard-damaged"):
            reshard(a, tmp_path / "out", 4)

    def test_wrong_places_and_options(self, a: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="the output lies in the source"):
            reshard(a, a / "data" / "out", 4)
        with pytest.raises(BusyError, match="GL0004"):
            reshard(a, tmp_path, 4)
        with pytest.raises(UsageError, match="--samples-per-shard"):
            reshard(a, tmp_path / "out", 0)
        with pytest.raises(UsageError, match="--workers"):
            reshard(a, tmp_path / "out", 4, workers=0)
        survey = reshard(a, tmp_path / "out", 4, dry_run=True)
        assert (survey.written, survey.shards) == (24, 7)
        assert not (tmp_path / "out").exists()

    def test_a_tool_reads_it(self, sources: Path, tmp_path: Path) -> None:
        reshard(sources / "b", tmp_path / "out", 5)
        with tarfile.open(tmp_path / "out/data/train-000000.tar") as tar:
            assert [m.name.split(".")[1] for m in tar] == ["jpg", "cls", "json"] * 5


class TestMerge:
    def test_every_sample_is_there_and_says_whence(self, sources: Path, tmp_path: Path) -> None:
        a, b, out = sources / "a", sources / "b", tmp_path / "out"
        result = joining.merge(out, [a, b], samples_per_shard=7, seed=5)
        assert (result.written, result.quarantined, result.read) == (33, 1, 34)
        assert [one.first_label for one in result.from_] == [0, 5]
        assert (result.duplicate_images, result.duplicate_samples) == (1, 3)
        good(out)
        merged, table = Dataset(out), pq.read_table(out / "samples.parquet")
        old = {"a": images(a), "b": images(b)}
        seen = set()
        for row in range(merged.n):
            name, key = (table.column(c)[row].as_py() for c in ("dataset", "dataset_key"))
            data, label = old[name][key]
            assert merged.read(row) == data
            assert merged.label[row] == label + (5 if name == "b" else 0)
            seen.add((name, key))
        assert len(seen) == merged.n == 33
        assert merged.key[:] == [f"{i:09d}" for i in range(33)]
        assert table.column("dataset").to_pylist() != sorted(table.column("dataset").to_pylist())
        people = pq.read_table(out / "identities.parquet")
        assert people.column("source_label").to_pylist() == [
            f"person-{i}" for i in (0, 1, 2, 3, 4, 0, 1, 2)
        ]
        assert people.column("dataset").to_pylist() == ["a"] * 5 + ["b"] * 3
        assert pq.read_table(out / "merge.parquet").to_pylist() == [
            {"dataset": "a", "old": i, "new": i} for i in range(5)
        ] + [{"dataset": "b", "old": i, "new": i + 5} for i in range(3)]
        twins = pq.read_table(out / "duplicates.parquet").to_pylist()
        assert sorted((t["dataset"], t["label"]) for t in twins) == [("a", 4), ("b", 5), ("b", 5)]
        for twin in twins:
            assert old[twin["dataset"]][twin["dataset_key"]][0] == images(out)[twin["key"]][0]
        assert merged.manifest["derived"][0]["from"][1]["digest"] == Dataset(b).digest
        assert Dataset(out).identities().column("count").to_pylist() == [5, 4, 5, 5, 5, 3, 3, 3]

    def test_label_versions_and_takedowns(self, a: Path, sources: Path, tmp_path: Path) -> None:
        labels.apply(a, np.array([0, 1, 0, 2, 3]), np.array([[1, 3]]), {"by": "test"})
        taking.drop(a, ["label:1"], "asked to")
        out = tmp_path / "out"
        result = joining.merge(out, [sources / "b", a], samples_per_shard=100)
        table = labels.current(out, 8)
        assert result.label_version == table.version == 1
        assert table.target.tolist() == [0, 1, 2, 3, -1, 3, 4, 5]
        assert table.masks.tolist() == []
        (line,) = tombstones.read(out)
        assert (line["labels"], line["dataset"], line["reason"]) == ([4], "a", "asked to")
        good(out)
        assert joining.merge(out, [sources / "b", a], samples_per_shard=100).label_version == 1
        assert len(labels.history(out)) == 1

    def test_masks_move_with_their_labels(self, a: Path, sources: Path, tmp_path: Path) -> None:
        labels.apply(a, np.arange(5), np.array([[1, 3]]), {})
        joining.merge(tmp_path / "out", [sources / "b", a])
        assert labels.current(tmp_path / "out", 8).masks.tolist() == [[4, 6]]

    def test_killed_behind_its_manifest_it_has_its_labels(
        self, a: Path, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        labels.apply(a, np.array([0, 0, 1, 2, 3]), np.empty((0, 2), np.int64), {})
        with monkeypatch.context() as patch:

            def killed(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(Output, "publish", killed)
            with pytest.raises(KeyboardInterrupt):
                joining.merge(tmp_path / "out", [sources / "b", a])
        assert (tmp_path / "out/manifest.json").exists()
        assert labels.current(tmp_path / "out", 8).target.tolist() == [0, 1, 2, 3, 3, 4, 5, 6]
        joining.merge(tmp_path / "out", [sources / "b", a])
        assert len(labels.history(tmp_path / "out")) == 1 and good(tmp_path / "out")

    def test_merged_again_and_resharded(self, sources: Path, tmp_path: Path) -> None:
        a, b = sources / "a", sources / "b"
        joining.merge(tmp_path / "ab", [a, b])
        told = taking.drop(tmp_path / "ab", ["label:5"], "x", erase=tmp_path / "less")
        assert told.copies == 1  # of its images, under another identity
        assert pq.read_table(tmp_path / "less/duplicates.parquet").num_rows == 1
        good(tmp_path / "less")
        result = reshard(tmp_path / "ab", tmp_path / "re", 3)
        table = pq.read_table(tmp_path / "re/samples.parquet")
        assert (
            table.column("dataset").to_pylist()
            == pq.read_table(tmp_path / "ab/samples.parquet").column("dataset").to_pylist()
        )
        assert result.shards == 11 and good(tmp_path / "re")
        joining.merge(tmp_path / "abb", [tmp_path / "re", b])
        names = set(pq.read_table(tmp_path / "abb/samples.parquet").column("dataset").to_pylist())
        assert names == {"re/a", "re/b", "b"}

    def test_names_and_refusals(self, sources: Path, tmp_path: Path) -> None:
        assert joining.name_all(["x/a", "y/a", "z/a", "b"]) == ["a", "a-2", "a-3", "b"]
        with pytest.raises(UsageError, match="two datasets or more, found 1"):
            joining.merge(tmp_path / "out", [sources / "a"])
        with pytest.raises(UsageError, match="named twice"):
            joining.merge(tmp_path / "out", [sources / "a", sources / "b", sources / "a"])
        with pytest.raises(InputError, match="GL0301"):
            joining.merge(tmp_path / "out", [sources / "a", sources / "one"])
        said = joining.merge(tmp_path / "out", [sources / "a", sources / "b"], dry_run=True)
        assert (said.duplicate_images, said.written, said.shards) == (1, 33, 1)
        assert not (tmp_path / "out").exists()


class TestDrop:
    def test_an_identity_and_whom_it_was_merged_with(self, a: Path) -> None:
        labels.apply(a, np.array([0, 1, 2, 1, 3]), np.array([[0, 2], [1, 2], [2, 3]]), {})
        before = files(a)
        said = taking.drop(a, ["person-1"], "asked to", dry_run=True)
        assert said.dry_run and files(a) == before
        assert not (a / "_glint/tombstones.jsonl").exists()
        result = taking.drop(a, ["person-1"], "asked to")
        assert (result.identities, result.merged_with) == ([1, 3], [3])
        assert (result.images, result.version_before, result.version) == (9, 1, 2)
        assert (said.version_before, said.version) == (1, 2)
        assert result.classes == said.classes == 3
        table = labels.current(a, 5)
        assert table.target.tolist() == [0, -1, 1, -1, 2]
        assert table.masks.tolist() == [[0, 1], [1, 2]]
        (line,) = tombstones.read(a)
        told = hashlib.sha256(b"person-1").hexdigest()
        assert line["source_label_sha256"][0] == told and line["labels"] == [1, 3]
        assert (line["reason"], line["images"], line["op"]) == ("asked to", 9, "drop")
        assert "person-1" not in (a / "_glint/tombstones.jsonl").read_text()
        assert {k: v for k, v in files(a).items() if k.startswith("data")} == {
            k: v for k, v in before.items() if k.startswith("data")
        }
        good(a)

    def test_again_changes_nothing(self, a: Path) -> None:
        taking.drop(a, ["2"], "asked to")
        before = files(a)
        assert taking.drop(a, ["2"], "asked again", dry_run=True).version == 1
        result = taking.drop(a, ["2"], "asked again")
        assert (result.already, result.version) == ([2], 1)
        assert files(a) == before and len(tombstones.read(a)) == 1

    @pytest.mark.parametrize("erase", [False, True])
    def test_all_images_of_an_identity_one_by_one(
        self, a: Path, tmp_path: Path, erase: bool
    ) -> None:
        """It is no class any more, and a dry run says so."""
        data, none = Dataset(a), np.empty((0, 2), np.int64)
        own, other = data.rows_of(2), data.rows_of(4)
        moved = {"row": other[:1], "label": np.array([2])}  # one more that is 2's by now
        labels.apply(a, np.array([0, 0, 1, 2, 3]), none, {}, **moved)
        keys = [data.key[int(row)] for row in [*own, other[0]]]
        some = taking.drop(a, [], "asked", keys=keys[:-1], dry_run=True)
        assert (some.classes, some.version, some.images) == (4, 2, len(own))
        plan = taking.drop(a, [], "asked", keys=keys, dry_run=True)
        out = tmp_path / "out" if erase else a
        done = taking.drop(a, [], "asked", keys=keys, erase=out if erase else None)
        assert (plan.classes, plan.version, plan.images) == (3, 2, len(own) + 1)
        assert (done.classes, done.version, done.images) == (3, 2, len(own) + 1)
        assert labels.current(out, 5).target.tolist() == [0, 0, -1, 1, 2] and good(out)
        before = files(out)
        again = taking.drop(a, [], "asked", keys=keys, erase=out if erase else None)
        assert again.classes == 3 and files(out) == before

    def test_a_dry_run_knows_whose_images_lie_elsewhere(self, a: Path) -> None:
        """All images of 2 are 1's by now, and one of 1 is 2's: who goes takes hers along."""
        data, none = Dataset(a), np.empty((0, 2), np.int64)
        row = np.sort(np.concatenate([data.rows_of(2), data.rows_of(1)[:1]]))
        label = np.where(data.label[row] == 2, 1, 2)
        labels.apply(a, np.arange(5), none, {}, row=row, label=label)
        for word in ("label:1", "label:2", "label:3"):
            plan = taking.drop(a, [word], "asked", dry_run=True)
            done = taking.drop(a, [word], "asked")
            assert (plan.classes, plan.version) == (done.classes, done.version)
            labels.apply(a, np.arange(5), none, {})

    def test_a_kill_between_tombstone_and_labels(
        self, a: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(labels, "commit", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                taking.drop(a, ["2"], "asked to")
        assert "identity 2 was taken down and is in the labels" in verify(a).shown[0]
        assert taking.drop(a, ["2"], "asked to").version == 1
        assert len(tombstones.read(a)) == 1 and good(a)

    @pytest.mark.parametrize("erase_first", [False, True])
    def test_erased_bytes_are_gone(
        self, a: Path, tmp_path: Path, jpeg: Jpeg, erase_first: bool
    ) -> None:
        if not erase_first:
            taking.drop(a, ["person-1"], "asked to")
        data = Dataset(a)
        key = data.key[int(data.rows_of(4)[0])]
        lone = data.read(int(data.rows_of(4)[0]))
        result = taking.drop(
            a, ["person-1"] if erase_first else [], "asked to", keys=[key], erase=tmp_path / "out"
        )
        assert (result.written, result.images, result.identities) == (19, 5, [1])
        manifest = Dataset(tmp_path / "out").manifest
        assert (
            manifest["read"],
            manifest["written"],
            manifest["quarantined"],
            manifest["erased"],
        ) == (25, 19, 1, 5)
        good(tmp_path / "out")
        whole = b"".join(
            path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()
        )
        for i in (5, 6, 8, 9):
            assert jpeg(i)[-90:-2] not in whole
        assert lone[-90:-2] not in whole
        kept = images(tmp_path / "out")
        assert kept == {k: v for k, v in images(a).items() if v[1] != 1 and k != key}
        people = Dataset(tmp_path / "out").identities().to_pylist()
        assert people[1] == {"label": 1, "source_label": "erased:1", "name": None, "count": 0}
        for name in ("identities", "quarantine", "samples"):
            text = str(pq.read_table(tmp_path / f"out/{name}.parquet").to_pylist())
            assert "person-1" not in text and "person-2" in text + "person-2" * (
                name == "quarantine"
            )
        assert labels.current(tmp_path / "out", 5).target.tolist() == [0, -1, 1, 2, 3]
        again = taking.drop(
            a, ["person-1"] if erase_first else [], "asked to", keys=[key], erase=tmp_path / "out"
        )
        assert again.digest == result.digest
        assert len(tombstones.read(tmp_path / "out")) == 2 - erase_first

    def test_what_is_refused(self, a: Path, tmp_path: Path) -> None:
        for who, keys, reason, text in (
            (["5"], [], "x", "no identity is called '5'"),
            (["nobody"], [], "x", "no identity is called 'nobody'"),
            ([], [], "x", "expected an identity or a key"),
            (["1"], [], "  ", "expected some words"),
        ):
            with pytest.raises(UsageError, match=f"GL0002 bad-option.*{text}"):
                taking.drop(a, who, reason, keys=keys)
        with pytest.raises(UsageError, match="no sample has the key '000000099'"):
            taking.drop(a, [], "x", keys=["000000099"], erase=tmp_path / "out")
        with pytest.raises(UsageError, match="expected an identity or a key"):
            taking.drop(a, [], "x", erase=tmp_path / "out")
        path = a / "_glint/tombstones.jsonl"
        taking.drop(a, ["1"], "x")
        path.write_bytes(path.read_bytes().replace(b'"images": 4', b'"images": 5'))
        with pytest.raises(InputError, match="damage at byte 0"):
            taking.drop(a, ["2"], "x")

    def test_a_single_image_leaves_the_labels_and_stays_out(self, a: Path, tmp_path: Path) -> None:
        dataset = Dataset(a)
        label = dataset.label
        mine = [dataset.key[int(row)] for row in np.flatnonzero(label == 1)]
        first = taking.drop(a, [], "asked to", keys=mine[:1])
        assert (first.images, first.identities, first.version) == (1, [], 1)
        table = labels.current(a, 5)
        row = np.flatnonzero(label == 1)[0]
        assert (table.row.tolist(), table.label.tolist()) == ([row], [-1])
        labels.apply(a, np.arange(5), np.empty((0, 2), np.int64), {})  # says nothing of images
        assert labels.current(a, 5).row.tolist() == [row]
        labels.apply(a, np.arange(5), np.empty((0, 2), np.int64), {}, row=[row], label=[3])
        assert labels.current(a, 5).label.tolist() == [-1]
        assert taking.drop(a, [], "asked to", keys=mine[1:]).version == 4
        assert labels.current(a, 5).target.tolist() == [0, -1, 1, 2, 3]  # no image is left
        assert verify(a).ok and len(tombstones.read(a)) == 2
        result = taking.drop(a, [], "asked to", erase=tmp_path / "out")
        assert result.written == 24 - len(mine) == good(tmp_path / "out").samples
        assert not {*mine} & {*Dataset(tmp_path / "out").key}

    def test_a_word_for_two_people(self, sources: Path, tmp_path: Path) -> None:
        joining.merge(tmp_path / "ab", [sources / "a", sources / "b"])
        data = Dataset(tmp_path / "ab")
        with pytest.raises(UsageError, match="'person-0' means 2 identities: label 0 by its"):
            taking.find(data, ["person-0"])
        assert taking.find(data, ["label:5", "person-4", "source-label:person-3", "2"]) == [
            2,
            3,
            4,
            5,
        ]

    def test_without_is_dense_and_ordered(self) -> None:
        table = labels.LabelTable(
            7, np.array([3, -1, 0, 2, 1, 3]), 4, np.array([[0, 1], [2, 3], [0, 3]])
        ).without([3])
        assert table.target.tolist() == [2, -1, 0, -1, 1, 2] and table.classes == 3
        assert table.masks.tolist() == [[0, 1], [0, 2]]
        none = labels.LabelTable(7, np.array([0, 0]), 1, np.empty((0, 2), np.int64))
        none = none.without([0, 1])
        assert none.target.tolist() == [-1, -1] and none.masks.shape == (0, 2)
        assert none.classes == 0


def test_content_does_not_depend_on_shards_and_does_on_samples(a: Path) -> None:
    before = content(Dataset(a))
    table = pq.read_table(a / "samples.parquet")
    pq.write_table(table, a / "samples.parquet", row_group_size=3)
    assert content(Dataset(a)) == before
    place = table.schema.get_field_index("source")
    told = table.column("source").to_pylist()
    told[0], told[1] = told[1], told[0]
    pq.write_table(table.set_column(place, "source", [told]), a / "samples.parquet")
    assert content(Dataset(a)) != before
    assert atomic.read_json(a / "manifest.json")["written"] == 24


def test_what_datasets_call_by_one_label_is_one_identity(
    tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    """Ann and Bo stand in both; whose images stand under whom is counted by their own bytes."""
    people = {"one": ["Ann", "Bo"], "two": ["Bo", "Cy", "Ann"]}
    who: dict[bytes, str] = {}
    for number, (name, names) in enumerate(people.items()):
        for k, person in enumerate(names):
            for n in range(2):
                data = jpeg(100 * number + 10 * k + n)
                who[data] = person
                path = tmp_path / f"src-{name}" / person / f"{n}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        stage.shard(tmp_path / f"src-{name}", tmp_path / name)
    roots = [tmp_path / name for name in people]
    result = joining.merge(tmp_path / "all", roots, same_labels=True)
    assert (result.identities, result.same_labels, result.label_version) == (5, 2, 1)
    data = Dataset(tmp_path / "all")
    target_n = labels.current(data.root, data.classes).sample_target(data.label)
    found: dict[int, set[str]] = {}
    for row, target in enumerate(target_n.tolist()):
        found.setdefault(target, set()).add(who[data.read(row)])
    assert sorted(map(sorted, found.values())) == [["Ann"], ["Bo"], ["Cy"]]
    with pytest.raises(MismatchError, match="GL0006"):
        joining.merge(tmp_path / "all", roots)
    (tmp_path / "src-three" / "Di").mkdir(parents=True)
    (tmp_path / "src-three" / "Di" / "1.jpg").write_bytes(jpeg(7))
    stage.shard(tmp_path / "src-three", tmp_path / "three")
    with pytest.raises(UsageError, match="no label of one dataset stands in another"):
        joining.merge(tmp_path / "no", [roots[0], tmp_path / "three"], same_labels=True)


def test_no_name_stays_in_what_was_recognised(tmp_path: Path, jpeg: Jpeg) -> None:
    for k, person in enumerate(("ann", "bob", "cyd")):
        for n in range(2):
            path = tmp_path / "src" / person / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(10 * k + n))
    stage.shard(tmp_path / "src", tmp_path / "data")
    assert "ann" in (tmp_path / "data" / "manifest.json").read_text()  # an example of a label
    result = taking.drop(tmp_path / "data", ["ann"], "asked", erase=tmp_path / "out")
    assert result.left_count == 0, result.left
    assert "ann" not in (tmp_path / "out" / "manifest.json").read_text()
    assert reshard(tmp_path / "data", tmp_path / "same", samples_per_shard=2).read == 6
    assert "ann" in (tmp_path / "same" / "manifest.json").read_text()
