"""`glint cluster --method graph`: the same after a stop, over folders, refused where pairs lack."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from glint import schemas
from glint.cli import cluster as command_line
from glint.errors import InputError, MismatchError, UsageError
from glint.files import parquet
from glint.pipelines import cluster, cluster_graph
from glint.search import neighbours
from glint.search.graph_clusters import GraphRules
from glint.search.neighbours import NearPairs
from tests.unit.pipelines.test_cluster import PEOPLE, crowd, files, written

MOST = GraphRules(exact=0)


@pytest.fixture
def crawl(make_dataset, tmp_path):
    """700 images, each with a label of its own; their embeddings; who they are."""
    dataset = make_dataset([1] * 700, images=False)
    face, person = crowd(700)
    face[[3, 500]] = np.nan
    return dataset, written(tmp_path / "emb", dataset, face), person


@pytest.mark.parametrize("rules", [GraphRules(), MOST])
def test_people_are_found_and_put_in_force(crawl, tmp_path, rules) -> None:
    dataset, emb, person = crawl
    truth = tmp_path / "truth.parquet"
    import pyarrow as pa

    parquet.write(truth, pa.table({"key": list(dataset.key), "label": person}))
    got = cluster.run([emb], tmp_path / "ids", rules, truth=truth)
    assert (got.method, got.exact) == ("graph", rules.exact > 0)
    assert (got.faces, got.without_embedding, got.identities) == (698, 2, PEOPLE)
    assert got.pairwise_f == got.bcubed_f == 1.0 and got.judged == 698
    about = json.loads((tmp_path / "ids/identities.json").read_text())
    assert about["options"]["method"] == about["method"] == "graph"
    assert about["recall"] == got.recall and got.recall > 0.99
    if rules is MOST:
        assert about["recall_pairs"] == got.recall_pairs > 1000
    applied = cluster.apply(tmp_path / "ids", dataset.root, least=1)
    assert (applied.classes, applied.faces) == (PEOPLE, 698)
    assert cluster.undo(tmp_path / "ids", dataset.root).classes == 700


@pytest.mark.parametrize("rules", [GraphRules(), MOST])
def test_stopped_anywhere_it_ends_the_same(crawl, tmp_path, monkeypatch, rules) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 200)
    monkeypatch.setattr(neighbours, "CELLS", 9)
    _, emb, _ = crawl
    cluster.run([emb], tmp_path / "whole", rules)
    for stop in (1, 3, 6, 11):
        calls = 0

        def progress(done: int, total: int, note: str = "", stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt

        out = tmp_path / f"part{stop}"
        try:
            cluster.run([emb], out, rules, progress=progress)
        except KeyboardInterrupt:
            assert not (out / "identities.json").exists()
        cluster.run([emb], out, rules)
        assert files(out) == files(tmp_path / "whole")
    cluster.run([emb], out, rules)  # all is there
    assert files(out) == files(tmp_path / "whole")
    assert not list((out / "_glint/graph").glob("*.npy"))


def test_two_folders_are_one_graph(crawl, make_dataset, tmp_path) -> None:
    _, emb, person = crawl
    face, who = crowd(300, seed=1)
    second = written(tmp_path / "b", make_dataset([1] * 300, images=False, folder="more"), face)
    cluster.run([emb, second], tmp_path / "ids", GraphRules())
    table = parquet.read(tmp_path / "ids/faces.parquet", schemas.FACES)
    identity = table["identity"].to_numpy()
    both = np.concatenate([person, who])[identity >= 0]
    assert len({*zip(both.tolist(), identity[identity >= 0].tolist())}) == PEOPLE
    assert identity[3] == identity[500] == -1 and (identity[700:] >= 0).all()
    cluster.run([emb], tmp_path / "one", GraphRules())
    with pytest.raises(MismatchError, match=r"GL0006.*1 folders there, 2 now"):
        cluster.run([emb, second], tmp_path / "one", GraphRules())
    with pytest.raises(MismatchError, match="GL0006"):
        cluster.run([emb], tmp_path / "one", cluster_graph.rules("online", {}))
    with pytest.raises(MismatchError, match="GL0006"):
        cluster.run([emb], tmp_path / "one", GraphRules(edge=0.41))


def test_a_poor_graph_is_refused(crawl, tmp_path, monkeypatch) -> None:
    """A search that loses one pair in three says so, and nothing is written."""
    _, emb, _ = crawl
    whole = neighbours.nearly

    def poor(*args, **named):
        near = whole(*args, **named)
        keep = np.arange(len(near.a)) % 3 > 0
        return NearPairs(near.a[keep], near.b[keep], near.cosine[keep], near.good_N)

    monkeypatch.setattr(neighbours, "nearly", poor)
    with pytest.raises(InputError, match=r"GL0504.*found 0\.6.*expected 0\.9") as caught:
        cluster.run([emb], tmp_path / "ids", MOST)
    assert "--exact 700" in caught.value.hint
    assert not (tmp_path / "ids/identities.json").exists()
    got = cluster.run([emb], tmp_path / "low", GraphRules(exact=0, recall=0.5))
    assert 0.6 < got.recall < 0.73


def test_the_command(crawl, tmp_path) -> None:
    _, emb, _ = crawl
    app = typer.Typer()
    command_line.register(app)

    def call(*args: str):
        return CliRunner().invoke(
            app, ["cluster", "find", str(emb), "-o", str(tmp_path / "ids"), *args]
        )

    done = call("--method", "graph", "--edge", "0.35", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["identities"] == PEOPLE
    with pytest.raises(UsageError, match=r"GL0002.*--merge.*graph"):
        cluster_graph.rules("graph", {"merge": 0.8})
    with pytest.raises(UsageError, match=r"GL0002.*--edge.*online"):
        cluster_graph.rules("online", {"edge": 0.8})
    with pytest.raises(UsageError, match=r"GL0002.*'leaf'"):
        cluster_graph.rules("leaf", {})
