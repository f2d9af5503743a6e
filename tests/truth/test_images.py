"""Single images that reviewers moved or left out: what training, balance and centres make of them.

Expected is a plain dictionary, made of the `.cls` members of the tars and of the decisions as they
were written by hand; what the stream gave is told by pixels. 20,010 images in three shards; the
index is kept in memory and mapped (`columns.SMALL` set to 1,000), windows of blocks of 64 (`order`
reads some five windows).
"""

# N samples, C labels as sharded, D embedding

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from glint.cli.eval import work
from glint.pipelines import balance, coreset, embed
from glint.pipelines.conflicts import apply
from glint.pipelines.dataset import drop, merge, reshard
from glint.shards import embeddings, labels
from glint.shards.dataset import Dataset
from glint.shards.verify import verify
from glint.stream import columns
from glint.stream.loader import Images, Stream
from glint.stream.order import Order

D = 24


@dataclass
class Reviewed:
    """A dataset with decisions in force; person: of each key, the first label of who it shows."""

    root: Path
    report: Path
    tar: list  # rows of the tars, in row order
    person: dict[str, int]
    emptied: int

    first: dict[int, int]  # label merged into another -> that one
    gone: set[int]  # labels dropped

    @property
    def target(self) -> dict[int, int]:
        """Number the persons densely, in the order of their first label; who has no image, none."""
        return {one: i for i, one in enumerate(sorted({*self.person.values()}))}


def by_hand(folder: Path, root: Path, version: int, pairs: list, lines: list[dict]) -> Path:
    """Write a report that merges pairs, and what reviewers decided on it."""
    folder.mkdir()
    a, b = np.array(pairs).T
    some = {name: pa.array([0.5] * len(a)) for name in
            ("cosine", "cross_mean", "cross_q10", "score", "probability")}  # fmt: skip
    some |= dict.fromkeys(("n_a", "n_b"), pa.array([1] * len(a), pa.int64()))
    words = pa.array(["merge"] * len(a))
    pq.write_table(pa.table({"a": a, "b": b, "verdict": words, "reason": words, **some}),
                   folder / "pairs.parquet")  # fmt: skip
    group = {"group": np.repeat(a, 2), "label": np.stack([a, b], 1).reshape(-1)}
    pq.write_table(pa.table(group), folder / "groups.parquet")
    said = json.loads((root / "manifest.json").read_text())
    named = {"path": "", "absolute": str(root), "label_version": version, "digest": said["digest"]}
    about = folder / "conflicts.json"
    about.write_text(json.dumps({"format": "glint/conflicts@1", "dataset": named}))
    import hashlib

    report = "sha256:" + hashlib.sha256(about.read_bytes()).hexdigest()
    text = "".join(
        json.dumps({"schema": "glint/image-decision@1", "report": report, "by": "ann", **line})
        + "\n"
        for line in lines
    )
    (folder / "decisions.jsonl").write_text(text)
    return folder


@pytest.fixture
def reviewed(world, rows, copied, tmp_path: Path) -> Reviewed:
    """Move 900 images, leave 500 out, take all from one identity; two are one person, 40 times."""
    root, tar = copied(world.root), rows(world.root)
    source = pq.read_table(root / "identities.parquet")["source_label"].to_pylist()
    odd = [i for i, name in enumerate(source) if name.startswith("odd")]
    drop.drop(root, [f"label:{i}" for i in odd], "no size of ours")
    rng = np.random.default_rng(9)
    count = Counter(row.label for row in tar)
    usual = [label for label in range(len(source)) if label not in odd]
    emptied = next(label for label in usual if count[label] == 5)
    usual.remove(emptied)
    pairs = np.sort(rng.permutation(usual)[:80].reshape(40, 2), axis=1).tolist()
    first = {b: a for a, b in pairs}
    label = [row.label for row in tar]
    free = [i for i, one in enumerate(label) if one in {*usual}]
    chosen = rng.permutation(free)[:1400].tolist()
    lines, own = [], {}
    for turn, row in enumerate(chosen):
        to = int(rng.choice(usual)) if turn < 900 else -1
        own[row] = to
    for row in [i for i, one in enumerate(label) if one == emptied]:
        own[row] = usual[3]
    for seq, (row, to) in enumerate(own.items()):
        what = {"action": "move", "to": to} if to >= 0 else {"action": "exclude"}
        lines.append({"image": row, **what, "seq": 10 + 2 * seq})
    for row in chosen[:50]:  # said before, and thought better of
        lines.append({"image": row, "action": "exclude", "seq": 3})
    others = sorted({*free} - {*own})
    for row in others[:50]:
        lines.append({"image": row, "action": "exclude", "seq": 3})
        lines.append({"image": row, "action": "none" if row % 2 else "keep", "seq": 4})
    lines = [lines[i] for i in rng.permutation(len(lines))]
    report = by_hand(tmp_path / "conf", root, 1, pairs, lines)
    told = apply.apply(report, dry_run=True)
    assert (told.images_left_out, told.images_moved) == (500, 905)
    done = apply.apply(report)
    person = {}
    for i, row in enumerate(tar):
        now = own.get(i, row.label)
        if now >= 0 and now not in odd:
            person[row.key] = first.get(now, now)
    assert emptied not in person.values()
    assert done.classes == told.classes == len({*person.values()}) < len(usual) - 40
    return Reviewed(root, report, tar, person, emptied, first, {*odd})


def drained(stream: Stream, keys: Callable[[bytes], str], epoch: int = 0) -> list[tuple[str, int]]:
    """Give of every picture of an epoch its key, by its pixels, and the label it came with."""
    return [
        (keys(pixel.tobytes()), label)
        for batch in stream.batches(epoch)
        for pixel, label, place in zip(
            batch.image.numpy(), batch.label.tolist(), batch.position.tolist()
        )
        if place < stream.epoch_samples
    ]


@pytest.fixture
def keys(reviewed: Reviewed) -> Callable[[bytes], str]:
    """Say the key of pixels."""
    found = {simplejpeg.decode_jpeg(row.image).tobytes(): row.key for row in reviewed.tar}
    assert len(found) == len(reviewed.tar)
    return found.__getitem__


def streams(root: Path, order: Order, world: int = 1) -> list[Stream]:
    dataset = Dataset(root)
    table = labels.current(dataset.root, dataset.classes)
    return [
        Stream(dataset, labels=table, batch=64, rank=rank, world=world, drop_last=False,
               order=order, images=Images(size=16))
        for rank in range(world)
    ]  # fmt: skip


@pytest.mark.parametrize(("order", "small"), [(Order(), 1 << 20), (Order(block=64), 1000)])
def test_training_gets_every_image_under_its_label_in_force(
    reviewed: Reviewed, keys, order: Order, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns.open_columns, "__defaults__", (small,))
    number = reviewed.target
    want = {key: number[person] for key, person in reviewed.person.items()}
    seen = [one for stream in streams(reviewed.root, order, 2) for one in drained(stream, keys)]
    assert len(seen) == len({*seen}) == len(want)
    assert dict(seen) == want
    assert (small == 1000) == any((reviewed.root / "_glint").glob("columns-*.bin"))
    if small == 1000:
        return
    apply.undo(reviewed.report)  # the labels of before, for every image
    usual = sorted({row.label for row in reviewed.tar} - reviewed.gone)
    plain = {
        row.key: usual.index(row.label) for row in reviewed.tar if row.label not in reviewed.gone
    }
    (stream,) = streams(reviewed.root, order)
    assert dict(drained(stream, keys)) == plain
    labels.redo(reviewed.root)
    (stream,) = streams(reviewed.root, order)
    assert dict(drained(stream, keys)) == want


def test_groups_of_one_identity(reviewed: Reviewed, keys) -> None:
    number = reviewed.target
    want = {key: number[person] for key, person in reviewed.person.items()}
    for order in (Order(positives=3), Order(each=4)):
        (stream,) = streams(reviewed.root, order)
        seen = drained(stream, keys)
        assert {(key, want[key]) for key, _ in seen} == {*seen}
        whole = len(seen) // 4 * 4
        groups = np.array([label for _, label in seen[:whole]]).reshape(-1, 4)
        assert (groups == groups[:, :1]).all()
        assert {*groups[:, 0].tolist()} == {*want.values()}
    assert len({key for key, _ in seen}) > 5000


def test_balance_counts_and_draws(reviewed: Reviewed, keys) -> None:
    number = reviewed.target
    count = Counter(number[person] for person in reviewed.person.values())
    dataset = Dataset(reviewed.root)
    told = balance.balance(dataset, balance.Options(power=0.5, most=2.0))
    assert (told.images, told.identities) == (len(reviewed.person), len(number))
    table = pq.read_table(reviewed.root / "sampling.parquet")
    assert dict(zip(table["label"].to_pylist(), table["count"].to_pylist())) == {
        one: count[one] for one in number.values()
    }
    (stream,) = streams(reviewed.root, Order(sampling=reviewed.root / "sampling.parquet"))
    seen = drained(stream, keys)
    want = {key: number[person] for key, person in reviewed.person.items()}
    assert all(want[key] == label for key, label in seen)
    drawn, draws = Counter(label for _, label in seen), table["draws"].to_pylist()
    assert all(abs(drawn[one] - draws[one]) < 1 for one in number.values() if one != max(number))
    own = defaultdict(list)
    for key, times in Counter(key for key, _ in seen).items():
        own[want[key]].append(times)
    assert all(max(times) - min(times) <= 1 for times in own.values())


class Net:
    """A recogniser that is one matrix."""

    dim, size, name, digest = D, 16, "a matrix", "sha256:by hand"
    weight = np.random.default_rng(4).normal(size=(16 * 16 * 3, D)).astype(np.float32)

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        return (image_nHWC.reshape(len(image_nHWC), -1) / 127.5 - 1).astype(
            np.float32
        ) @ self.weight


def means(unit_ND: np.ndarray, of: list[int], classes: int) -> np.ndarray:
    """Average rows per label in float64, each alone; NaN where there is none."""
    out = np.full((classes, D), np.nan)
    rows = defaultdict(list)
    for i, label in enumerate(of):
        if label >= 0 and np.isfinite(unit_ND[i]).all():
            rows[label].append(unit_ND[i].astype(np.float64))
    for label, mine in rows.items():
        mean = np.mean(mine, axis=0)
        out[label] = mean / np.linalg.norm(mean)
    return out


def test_centres_and_what_is_made_of_embeddings(reviewed: Reviewed, tmp_path: Path) -> None:
    dataset, out = Dataset(reviewed.root), tmp_path / "emb"
    table = labels.current(dataset.root, dataset.classes)
    embed.embed(dataset, Net(), out, dtype="float32", table=table)
    about = json.loads((out / "embeddings.json").read_text())["labels"]
    assert about == {"version": 2, "images": table.images}
    emb = embeddings.load(out, dataset.digest, images=dataset.n, classes=dataset.classes)
    # On disk: of the images in force, label by label as sharded.
    decided = pq.read_table(reviewed.root / "labels/v0002.images.parquet")
    own = dict(zip(decided["row"].to_pylist(), decided["label"].to_pylist()))
    sharded = [own.get(i, row.label) for i, row in enumerate(reviewed.tar)]
    want = means(emb.sample_ND, sharded, dataset.classes)
    np.testing.assert_allclose(np.load(out / "centres.npy"), want, atol=2e-6)
    assert np.isnan(want[reviewed.emptied]).all()
    # As they are used: a centre a person.
    person = [reviewed.person.get(row.key, -1) for row in reviewed.tar]
    used = emb.under(table, dataset.label)
    np.testing.assert_allclose(
        used.centre_CD, means(emb.sample_ND, person, dataset.classes), atol=2e-6
    )
    # Under other labels the centres on disk are not believed.
    apply.undo(reviewed.report)
    before = labels.current(dataset.root, dataset.classes)
    plain = [-1 if row.label in reviewed.gone else row.label for row in reviewed.tar]
    np.testing.assert_allclose(
        emb.under(before, dataset.label).centre_CD,
        means(emb.sample_ND, plain, dataset.classes),
        atol=2e-6,
    )
    nothing = labels.LabelTable(0, np.arange(dataset.classes), dataset.classes, before.masks)
    np.testing.assert_allclose(
        emb.under(nothing, dataset.label).centre_CD,
        means(emb.sample_ND, [row.label for row in reviewed.tar], dataset.classes),
        atol=2e-6,
    )
    labels.redo(dataset.root)
    number = reviewed.target
    target = [number[one] if one >= 0 else -1 for one in person]
    coreset.run(dataset, emb, tmp_path / "core", coreset.Options(ratio=0.7))
    core = pq.read_table(tmp_path / "core/coreset.parquet")
    assert core["target"].to_pylist() == target
    _, judged, about = work._embedded(reviewed.root, out)
    assert (judged.tolist(), about["label_version"]) == (target, 2)


def test_other_shards_and_other_datasets_carry_it(
    reviewed: Reviewed, world, tmp_path: Path
) -> None:
    number = reviewed.target
    want = {key: number[person] for key, person in reviewed.person.items()}

    def said(root: Path) -> dict[bytes, int]:
        dataset = Dataset(root)
        table = labels.current(root, dataset.classes)
        target = table.sample_target(dataset.label).tolist()
        return {key: one for key, one in zip(dataset.key, target) if one >= 0}

    assert said(reviewed.root) == want
    assert verify(reviewed.root, deep=True).ok
    reshard.reshard(reviewed.root, tmp_path / "out", 3000)
    assert said(tmp_path / "out") == want
    # Erased: rows move up; whose images were moved to the person go, too.
    who = reviewed.person[reviewed.tar[7].key]
    told = drop.drop(reviewed.root, [f"label:{who}"], "asked to", erase=tmp_path / "gone")
    labels_of = {who} | {label for label, one in reviewed.first.items() if one == who}
    left = {
        row.key
        for row in reviewed.tar
        if row.label not in labels_of | reviewed.gone and reviewed.person.get(row.key) != who
    }
    assert told.written == len(left)
    gone = said(tmp_path / "gone")
    keep = sorted({*want.values()} - {number[who]})
    assert gone == {key: keep.index(one) for key, one in want.items() if key in left}
    assert verify(tmp_path / "gone", deep=True).ok
    # Merged behind another dataset: keys are new, bytes are not.
    merge.merge(tmp_path / "both", [world.root, reviewed.root])
    both = Dataset(tmp_path / "both")
    table = labels.current(both.root, both.classes)
    found = Counter(zip(
        [bytes(d) for d in both.digests],
        table.sample_target(both.label).tolist(),
    ))  # fmt: skip
    classes, digest = Dataset(world.root).classes, Dataset(world.root).digests
    expected: Counter = Counter()
    for i, row in enumerate(reviewed.tar):
        expected[bytes(digest[i]), row.label] += 1
        expected[bytes(digest[i]), want[row.key] + classes if row.key in want else -1] += 1
    assert found == expected
    assert verify(tmp_path / "both").ok
