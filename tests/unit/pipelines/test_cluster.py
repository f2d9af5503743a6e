"""The stage `cluster`: continued to the bit, judged, put in force as labels and taken back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from glint import log, schemas
from glint.cli import cluster as command_line
from glint.errors import BusyError, InputError, MismatchError, UsageError
from glint.files import atomic, parquet
from glint.pipelines import cluster
from glint.pipelines.dataset import shard
from glint.search.online_clusters import ClusterRules, OnlineClusters
from glint.shards import embeddings, labels
from glint.shards.dataset import Dataset
from glint.shards.verify import verify
from glint.stream.loader import Stream

PEOPLE, DIM = 40, 96


def crowd(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Faces of some people, and who they are."""
    rng = np.random.default_rng(seed)
    person = rng.integers(0, PEOPLE, n)
    face = np.random.default_rng(9).normal(size=(PEOPLE, DIM))[person]
    face = face + 0.5 * rng.normal(size=face.shape)
    return face / np.linalg.norm(face, axis=1, keepdims=True), person


def written(root, dataset, face, model="sha256:m"):
    """Write embeddings as `glint embed` does."""
    root.mkdir()
    np.save(root / "samples.npy", face.astype(np.float16))
    np.save(root / "centres.npy", np.zeros((dataset.classes, face.shape[1]), np.float32))
    rows = [list(dataset.key), np.ones(len(face), np.float32), ["ok"] * len(face)]
    parquet.write(root / "samples.parquet", pa.table(rows, schema=schemas.EMBEDDED))
    about = {
        "format": embeddings.FORMAT, "dataset": dataset.digest, "model": model,
        "dim": face.shape[1], "images": dataset.n, "classes": dataset.classes,
        "files": {name: embeddings.checksum(root / name) for name in embeddings.ARRAYS},
    }  # fmt: skip
    atomic.write_json(root / "embeddings.json", about)
    return root


@pytest.fixture
def crawl(make_dataset, tmp_path):
    """700 images, each with a label of its own; their embeddings; who they are."""
    dataset = make_dataset([1] * 700, images=False)
    face, person = crowd(700)
    face[[3, 500]] = np.nan
    return dataset, written(tmp_path / "emb", dataset, face), person


def files(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_stopped_anywhere_it_ends_the_same(crawl, tmp_path) -> None:
    _, emb, _ = crawl
    got = cluster.run([emb], tmp_path / "whole", ClusterRules())
    assert (got.faces, got.without_embedding, got.identities) == (698, 2, PEOPLE)

    def stop(done: int, total: int, note: str = "") -> None:
        if done == 512:
            raise KeyboardInterrupt

    for save in (0.0, 1e9):  # stopped with and without a state saved on the way
        out = tmp_path / f"part{save}"
        with pytest.raises(KeyboardInterrupt):
            cluster.run([emb], out, ClusterRules(), save=save, progress=stop)
        assert not (out / "identities.json").exists()
        cluster.run([emb], out, ClusterRules())
        assert files(out) == files(tmp_path / "whole")
    cluster.run([emb], tmp_path / "whole", ClusterRules())  # nothing left to do
    assert files(out) == files(tmp_path / "whole")


def test_a_second_folder_goes_on_where_the_first_ended(crawl, make_dataset, tmp_path) -> None:
    dataset, emb, person = crawl
    face, who = crowd(300, seed=1)
    more = make_dataset([1] * 300, images=False, folder="more")
    second = written(tmp_path / "emb2", more, face)
    cluster.run([emb], tmp_path / "ids", ClusterRules())
    cluster.run([emb, second], tmp_path / "ids", ClusterRules())
    cluster.run([emb, second], tmp_path / "once", ClusterRules())
    assert files(tmp_path / "ids") == files(tmp_path / "once")
    table = parquet.read(tmp_path / "ids/faces.parquet", schemas.FACES)
    assert np.bincount(table["source"].to_numpy()).tolist() == [700, 300]
    assert table["key"].to_pylist() == [*dataset.key, *more.key]
    identity = table["identity"].to_numpy()
    both = np.concatenate([person, who])[identity >= 0]
    assert len({*zip(both.tolist(), identity[identity >= 0].tolist())}) == PEOPLE
    for root, n in ((dataset.root, 698), (more.root, 300)):
        assert cluster.apply(tmp_path / "ids", root, least=1).faces == n
    with pytest.raises(MismatchError, match=r"GL0006.*2 folders there, with which these 1 do not"):
        cluster.run([emb], tmp_path / "ids", ClusterRules())
    with pytest.raises(MismatchError, match="GL0006"):
        cluster.run([emb, second], tmp_path / "ids", ClusterRules(join=0.6))


def test_labels_that_training_reads(crawl, tmp_path) -> None:
    dataset, emb, person = crawl
    cluster.run([emb], tmp_path / "ids", ClusterRules())
    dry = cluster.apply(tmp_path / "ids", dataset.root, least=15, dry_run=True)
    assert not (dataset.root / "labels").exists()
    got = cluster.apply(tmp_path / "ids", dataset.root, least=15)
    assert (got.classes, got.faces) == (dry.classes, dry.faces)
    table = labels.current(dataset.root, dataset.classes)
    count = np.bincount(np.delete(person, [3, 500]), minlength=PEOPLE)
    assert (table.version, table.classes) == (1, int((count >= 15).sum()))
    assert 0 < got.identities_dropped == int((count < 15).sum())
    stream = Stream(dataset, labels=table, batch=10)
    assert stream.epoch_samples == got.faces == count[count >= 15].sum()
    target_n = table.target[dataset.label]
    for c in range(table.classes):
        assert len(set(person[target_n == c].tolist())) == 1
    assert cluster.apply(tmp_path / "ids", dataset.root, least=15).already
    assert cluster.apply(tmp_path / "ids", dataset.root).version == 2  # another --min
    assert cluster.undo(tmp_path / "ids", dataset.root).version == 1
    assert cluster.undo(tmp_path / "ids", dataset.root).classes == 700
    with pytest.raises(InputError, match=r"GL0502.*not in force \(the labels stand at version 0"):
        cluster.undo(tmp_path / "ids", dataset.root)


def test_labels_of_several_people_are_refused(make_dataset, tmp_path) -> None:
    dataset = make_dataset([3, 3], images=False)
    face = np.eye(DIM)[[0, 0, 1, 2, 2, 2]]
    emb = written(tmp_path / "emb", dataset, face)
    cluster.run([emb], tmp_path / "ids", ClusterRules())
    with pytest.raises(InputError, match=r"GL0501.*label 0 has faces of the identities 0 and 1"):
        cluster.apply(tmp_path / "ids", dataset.root)
    other = make_dataset([2], images=False, folder="other")
    with pytest.raises(MismatchError, match=r"GL0501.*made from datasets"):
        cluster.apply(tmp_path / "ids", other.root)
    with pytest.raises(InputError, match=r"GL0501.*no identities\.json"):
        cluster.apply(tmp_path, dataset.root)


def test_judged_by_a_table_of_keys(crawl, tmp_path) -> None:
    dataset, emb, person = crawl
    known = np.arange(0, 700, 2)
    table = pa.table({"key": [dataset.key[int(i)] for i in known], "label": person[known]})
    parquet.write(tmp_path / "truth.parquet", table)
    got = cluster.run([emb], tmp_path / "ids", ClusterRules(), truth=tmp_path / "truth.parquet")
    assert got.judged == 349 and got.pairwise_f == got.bcubed_f == 1.0
    about = json.loads((tmp_path / "ids/identities.json").read_text())
    assert about["pairwise_f"] == 1.0 and about["sources"][0]["dataset"] == dataset.digest
    with pytest.raises(UsageError, match="GL0001"):
        cluster.run([emb], tmp_path / "ids", ClusterRules(), truth=tmp_path / "none")
    parquet.write(tmp_path / "odd.parquet", table.rename_columns(["key", "who"]))
    with pytest.raises(InputError, match=r"GL0402.*expected columns key and label"):
        cluster.run([emb], tmp_path / "ids", ClusterRules(), truth=tmp_path / "odd.parquet")


def test_what_cannot_be_used(crawl, make_dataset, tmp_path) -> None:
    _, emb, _ = crawl
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(BusyError, match="GL0004"):
        cluster.run([emb], tmp_path / "mine", ClusterRules())
    with pytest.raises(InputError, match="GL0402"):
        cluster.run([tmp_path], tmp_path / "ids", ClusterRules())
    more = make_dataset([1] * 9, images=False, folder="more")
    other = written(tmp_path / "emb2", more, crowd(9)[0], model="sha256:other")
    with pytest.raises(UsageError, match="different models cannot be compared"):
        cluster.run([emb, other], tmp_path / "ids", ClusterRules())
    with pytest.raises(UsageError, match="the same embeddings twice"):
        cluster.run([emb, emb], tmp_path / "ids", ClusterRules())
    cluster.run([emb], tmp_path / "ids", ClusterRules())
    state = tmp_path / "ids/_glint/state.npz"
    state.write_bytes(state.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"GL0501.*the state of the clusters cannot be read"):
        cluster.run([emb], tmp_path / "ids", ClusterRules())


def test_a_crawl_is_sharded_without_labels(make_dataset, tmp_path) -> None:
    made = make_dataset([2, 3])  # for its pictures
    for row in range(made.n):
        home = tmp_path / "src" / f"site{row % 2}"
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{row}.jpg").write_bytes(made.read(row))
    (tmp_path / "src/site0/bad.jpg").write_bytes(b"no image")
    got = shard.shard(tmp_path / "src", tmp_path / "out", shard.Options(unlabelled=True))
    data = Dataset(tmp_path / "out")
    assert (got.written, got.quarantined, data.classes) == (5, 1, 6)
    assert data.label.tolist() == [int(key) for key in data.key]
    assert list(data.source_label) == list(data.key)
    assert {path.split("/")[0] for path in data.source} == {"site0", "site1"}
    assert verify(tmp_path / "out", deep=True).ok
    with pytest.raises(MismatchError, match=r"GL0006.*unlabelled"):
        shard.shard(tmp_path / "src", tmp_path / "out", shard.Options())


def call(*words: object, code: int = 0) -> dict | str:
    """Run `glint cluster WORDS`; give its JSON, or its text and what it says on stderr."""
    app = typer.Typer()
    command_line.register(app)
    app.callback()(lambda: None)
    kept = log.logger.handlers[:], log.logger.propagate, log.logger.level
    result = CliRunner().invoke(app, ["cluster", *map(str, words)])
    log.logger.handlers[:], log.logger.propagate, log.logger.level = kept  # as other tests need it
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if "--json" in words else result.output


def labels_of(out: Path) -> list[int]:
    return parquet.read(out / "faces.parquet", schemas.FACES)["identity"].to_pylist()


def test_the_command_goes_on_from_what_was_saved(crawl, make_dataset, tmp_path) -> None:
    _, emb, _ = crawl
    more = make_dataset([1] * 300, images=False, folder="more")
    second = written(tmp_path / "emb2", more, crowd(300, seed=1)[0])
    got = call(emb, second, "--out", tmp_path / "once", "--json")
    assert got["schema"] == "glint/cluster-result@1"
    assert (got["faces"], got["identities"]) == (998, PEOPLE)
    call("find", emb, "--out", tmp_path / "ids", "--json")  # the group's bare form is `find`
    said = call(emb, second, "--out", tmp_path / "ids")
    assert f"998 faces in {got['clusters']} clusters" in said and "40 identities" in said
    assert labels_of(tmp_path / "ids") == labels_of(tmp_path / "once")
    assert files(tmp_path / "ids") == files(tmp_path / "once")


KILLED = """
import os, signal, sys
import typer
from glint import log
from glint.cli import cluster as command_line
from glint.pipelines import cluster
from glint.search.online_clusters import OnlineClusters

cluster.run.__kwdefaults__["save"] = 0.0  # a state after every block
plain = OnlineClusters.insert

def insert(stream, face_nD):
    if stream.faces == 512:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(stream, face_nD)

OnlineClusters.insert = insert
app = typer.Typer()
command_line.register(app)
app.callback()(lambda: None)
app(["cluster", *sys.argv[1:]])
"""


def test_a_command_killed_half_way_ends_with_the_same_labels(crawl, tmp_path, monkeypatch) -> None:
    _, emb, _ = crawl
    call(emb, "--out", tmp_path / "whole")
    out = tmp_path / "ids"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, emb, "--out", out], capture_output=True, check=False
    )
    assert done.returncode == -9, done.stderr.decode()
    assert not (out / "identities.json").exists()
    with np.load(out / "_glint/state.npz") as state:
        assert len(state["faces"]) == 512
    begun, plain = [], OnlineClusters.insert

    def insert(stream: OnlineClusters, face_nD: np.ndarray) -> np.ndarray:
        begun.append(stream.faces)
        return plain(stream, face_nD)

    monkeypatch.setattr(OnlineClusters, "insert", insert)
    call(emb, "--out", out)
    assert begun == [512]  # what was saved is not done again
    assert files(out) == files(tmp_path / "whole")


def test_a_state_of_other_faces_is_refused(crawl, make_dataset, tmp_path) -> None:
    _, emb, _ = crawl
    narrow = make_dataset([1] * 300, images=False, folder="narrow")
    other = written(tmp_path / "emb2", narrow, crowd(300)[0][:, :32])
    said = call(emb, other, "--out", tmp_path / "ids", code=3)
    assert "error GL0402" in said
    assert "expected 96 numbers a face as in the first folder, found 32" in said
    assert not (tmp_path / "ids").exists()
    call(emb, "--out", tmp_path / "ids")
    call(other, "--out", tmp_path / "other")
    before = files(tmp_path / "other")
    state = tmp_path / "other/_glint/state.npz"
    kept = state.read_bytes()
    for bad, what in (
        ((tmp_path / "ids/_glint/state.npz").read_bytes(), "700 faces of 96 numbers, where"),
        (b"no state", "cannot be read"),
        (kept[: len(kept) // 2], "cannot be read"),
    ):
        state.write_bytes(bad)
        said = call(other, "--out", tmp_path / "other", code=3)
        assert "error GL0501" in said and what in said
        assert "hint: delete this folder and run glint cluster again" in said
        assert files(tmp_path / "other") == before
    state.write_bytes(kept)
    call(other, "--out", tmp_path / "other")
    assert files(tmp_path / "other") == before


def test_the_command_refuses_what_it_cannot_use(crawl, tmp_path) -> None:
    dataset, emb, _ = crawl
    out = tmp_path / "ids"
    assert "GL0402" in call(tmp_path / "none", "--out", out, code=3)
    said = call(emb, "--out", out, "--join", 1.5, code=2)
    assert "--join: expected above 0, at most 1, found 1.5" in said and not out.exists()
    call(emb, "--out", out)
    said = call(emb, "--out", out, "--join", 0.6, code=7)
    assert "error GL0006" in said and "'join': 0.5" in said and "'join': 0.6" in said
    got = call("apply", out, dataset.root, "--json")
    assert (got["classes"], got["applied"]) == (PEOPLE, True)
    assert "nothing to do" in call("apply", out, dataset.root)
    assert call("undo", out, dataset.root, "--json")["version"] == 0
    said = call("undo", out, dataset.root, code=3)
    assert "error GL0502" in said and "not in force" in said
    said = call("apply", tmp_path / "emb", dataset.root, code=3)
    assert "error GL0501" in said and "no identities.json" in said
