"""A report under review: its decisions are applied, once, and kept from another search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import HTTPCookieProcessor, Request, build_opener

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint.conflicts import decisions
from glint.conflicts.verdicts import ConflictOptions
from glint.errors import BusyError, InputError, MismatchError, UsageError
from glint.pipelines import embed
from glint.pipelines.conflicts import apply, find, review
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import load


class Blocks:
    """A recogniser of the coloured blocks that the pictures show."""

    name, dim, size, digest = "blocks", 147, 112, "sha256:blocks"

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        x = image_nHWC.reshape(-1, 7, 16, 7, 16, 3).mean((2, 4)).reshape(len(image_nHWC), -1)
        return (x - 127.5).astype(np.float32)


@pytest.fixture
def dataset(make_dataset) -> Dataset:
    """Eight identities; 5 shows person 0, and 7 shows person 2."""
    return make_dataset([3, 2, 4, 2, 3, 3, 2, 4], same_as={5: 0, 7: 2})


@pytest.fixture
def folder(dataset: Dataset, tmp_path: Path) -> Path:
    embed.embed(dataset, Blocks(), tmp_path / "emb")
    emb = load(tmp_path / "emb", dataset.digest, images=dataset.n, classes=dataset.classes)
    out = tmp_path / "conf"
    find.run(dataset, emb, out, ConflictOptions(threshold=0.8, low=-1.0))
    found = pq.read_table(out / "pairs.parquet").to_pylist()
    assert [(p["a"], p["b"]) for p in found if p["verdict"] == "merge"] == [(0, 5), (2, 7)]
    return out


def say(path: Path, folder: Path, *lines: tuple[int, int, str, str]) -> Path:
    book = decisions.Book(path, decisions.report_id(folder))
    for a, b, verdict, by in lines:
        book.add(by, [(a, b, verdict)])
    book.close()
    return path


def targets(dataset: Dataset) -> list[int]:
    got: list[int] = labels.current(dataset.root, dataset.classes).target.tolist()
    return got


def test_decisions_are_applied_once_and_undone(dataset: Dataset, folder: Path) -> None:
    say(folder / decisions.NAME, folder, (0, 5, "keep", "alice"), (1, 3, "merge", "bob"))
    dry = apply.apply(folder, dry_run=True)
    assert (dry.applied, dry.decided, dry.classes) == (False, 2, 6)
    done = apply.apply(folder)
    assert (done.applied, done.decided, done.version) == (True, 2, 1)
    assert targets(dataset) == [0, 1, 2, 1, 3, 4, 5, 2]
    assert apply.apply(folder).already
    say(folder / decisions.NAME, folder, (0, 5, "keep", "bob"))  # says nothing new
    assert apply.apply(folder).already
    assert apply.stands(folder, dataset)

    say(folder / decisions.NAME, folder, (1, 3, "none", "bob"))
    with pytest.raises(MismatchError, match=r"GL0501.*is in force with other decisions") as told:
        apply.apply(folder)
    assert "dedup-conflicts undo" in told.value.hint
    say(folder / decisions.NAME, folder, (0, 5, "merge", "carol"))  # undo asks no reviewer
    assert apply.undo(folder).version == 0
    with pytest.raises(InputError, match=r"disagree about the identities 0 and 5: keep by alice"):
        apply.apply(folder)
    assert targets(dataset) == list(range(8))


def test_downloaded_files_count_too(dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    one = say(tmp_path / "one.jsonl", folder, (0, 5, "keep", "alice"))
    two = say(tmp_path / "two.jsonl", folder, (2, 7, "mask", "bob"))
    with pytest.raises(UsageError, match=r"GL0001.*absent"):
        apply.apply(folder, more=[tmp_path / "absent"])
    apply.apply(folder, more=[one, two])
    now = labels.current(dataset.root, dataset.classes)
    assert (now.target.tolist(), [2, 7] in now.masks.tolist()) == (list(range(8)), True)
    assert apply.apply(folder, more=[two, one, one]).already
    apply.undo(folder)
    two.write_text(two.read_text().replace("sha256:", "sha256:0"))
    with pytest.raises(InputError, match=r"GL0501.*two.jsonl: line 1: decided on the report"):
        apply.apply(folder, more=[two])


def test_no_search_replaces_a_report_with_decisions(
    dataset: Dataset, folder: Path, tmp_path: Path
) -> None:
    find.check_out(folder, dataset)
    (folder / decisions.NAME).write_text("")
    find.check_out(folder, dataset)  # opened, nothing decided
    say(folder / decisions.NAME, folder, (0, 5, "keep", "alice"))
    for overwrite in (False, True):
        with pytest.raises(BusyError, match=r"GL0004.*reviewers decided on this report"):
            find.check_out(folder, dataset, overwrite=overwrite)


def test_one_review_at_a_time_with_faces(dataset: Dataset, folder: Path) -> None:
    with review.opened(folder) as server:
        assert server.pairs >= {(0, 5), (2, 7)}
        assert list(server.faces(6)) == [dataset.read(int(row)) for row in dataset.rows_of(6)]
        assert list(server.faces(8)) == list(server.faces(-1)) == []
        assert [server.image(row) for row in (3, -1, dataset.n)] == [dataset.read(3), b"", b""]
        with pytest.raises(BusyError, match="GL0005"), review.opened(folder):
            pass
    with review.opened(folder) as server:
        assert server.book.decisions == []


def test_the_command_serves_until_it_is_interrupted(folder: Path) -> None:
    command = [sys.executable, "-m", "glint", "dedup-conflicts", "review", str(folder), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert process.stderr is not None
        link = process.stderr.readline().removeprefix("open ").strip()
        origin = link.split("/?")[0]
        browser = build_opener(HTTPCookieProcessor())
        assert b"biometric" in browser.open(link, timeout=20).read()
        body = json.dumps({"by": "alice", "decisions": [[0, 5, "keep"]]}).encode()
        asked = Request(f"{origin}/decide", body, {"Content-Type": "application/json"})
        assert browser.open(asked, timeout=20).status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    told = json.loads(out)
    assert (told["schema"], told["new"], told["reviewers"]) == (
        "glint/review-result@1",
        1,
        ["alice"],
    )
    assert link not in err.replace(link, "", 1)
    assert len((folder / decisions.NAME).read_text().splitlines()) == 1


def test_an_audit_is_served_without_verdicts_and_its_result_is_printed(
    dataset: Dataset, folder: Path, tmp_path: Path
) -> None:
    with review.opened(folder, drawn=1) as server:
        [(a, b)] = server.pairs
        assert (a, b) in {(0, 5), (2, 7)}
        shown = json.loads(server.page.decode().split('id="data">')[1].split("</script>")[0])
        assert (shown["a"], shown["b"], shown["drawn"], shown["merges"]) == ([a], [b], [0], 2)
        assert shown["blind"] and shown["cosine"] == shown["score"] == shown["need"] == [None]
        assert b'data-tab="groups"' not in server.page and b"<figure>" not in server.page
    with review.opened(folder, drawn=9) as server:
        assert server.pairs == {(0, 5), (2, 7)}
    say(folder / decisions.NAME, folder, (a, b, "merge", "ann"))
    more = say(tmp_path / "more.jsonl", folder, (0, 5, "keep", "bob"), (2, 7, "merge", "bob"))

    def printed(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "glint", "dedup-conflicts", "review", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    one = json.loads(printed("--audit", "1", "--no-serve", "--json"))
    assert (one["decisions"], one["new"], one["audit"]["kind"]) == (1, 0, "audit")
    assert one["audit"]["wrong_at_most"] == pytest.approx(0.95)
    text = printed("--audit", "2", "--no-serve")
    assert "audit: 1 of 2 drawn pairs decided; there is no bound before all are" in text
    text = printed("--audit", "2", "--no-serve", "--decisions", str(more))
    assert "of 2 drawn, 1 wrong: 50.0 % of the merges are wrong (all were reviewed)" in text
    assert "audit" not in json.loads(printed("--no-serve", "--json"))
    assert "GL0002" in printed("--audit", "2", "--decisions", str(more), code=2)
    printed("--audit", "0", "--no-serve", code=2)
    printed("--audit", "2", "--no-serve", "--decisions", str(tmp_path / "absent"), code=2)
    other = tmp_path / "other.jsonl"
    other.write_text(more.read_text().replace("sha256:", "sha256:0"))
    assert "GL0501" in printed("--audit", "2", "--no-serve", "--decisions", str(other), code=3)
