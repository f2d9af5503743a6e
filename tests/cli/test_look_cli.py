"""`glint look`: what the catalogue answers is what a plain loop over the dataset finds."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glint.pipelines import look as stage
from glint.pipelines import quality
from glint.review import look as page
from glint.review.local import Refused
from glint.shards.dataset import Dataset


@pytest.fixture(scope="module")
def world(glint: Any, tmp_path_factory: pytest.TempPathFactory, jpeg_of: Any) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("look")
    rng = np.random.default_rng(0)
    number = 0
    for who in range(30):
        home = root / "people" / f"p{who:02d}"
        home.mkdir(parents=True)
        for i in range(int(rng.integers(1, 15))):
            (home / f"{i}.jpg").write_bytes(jpeg_of(number))
            number += 1
    (root / "people" / "p03" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    (root / "people" / "p04" / "<b>odd<b>.jpg").write_bytes(b"neither")
    glint("shard", root / "people", root / "data")
    return root / "people", root / "data"


@pytest.fixture(scope="module")
def jpeg_of() -> Any:
    import simplejpeg

    def make(number: int) -> bytes:
        rng = np.random.default_rng(number)
        few = rng.integers(0, 256, (7, 7, 3), np.uint8)
        return bytes(
            simplejpeg.encode_jpeg(few.repeat(16, 0).repeat(16, 1), quality=60 + number % 30)
        )

    return make


class Rows:
    """Embeddings in memory; one image failed."""

    def __init__(self, data: Dataset) -> None:
        rng = np.random.default_rng(1)
        raw = rng.standard_normal((data.classes, 16))[data.label]
        raw += rng.uniform(0.2, 1.5, (data.n, 1)) * rng.standard_normal((data.n, 16))
        self.sample_ND = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
        self.sample_ND[7] = np.nan


@pytest.fixture(scope="module")
def found(world: tuple[Path, Path]) -> stage.Catalogue:
    data = Dataset(world[1])
    return stage.Catalogue(data, Rows(data), None, world[0])  # type: ignore[arg-type]


def test_likeness_is_that_of_a_plain_loop(found: stage.Catalogue) -> None:
    x_ND = found_rows(found)
    label_N = found.dataset.label
    for row in range(found.dataset.n):
        mates = [i for i in np.flatnonzero(label_N == label_N[row]) if i not in (row, 7)]
        got = found.columns[0].value_N[row]
        if row == 7 or not mates:
            assert np.isnan(got)
            continue
        mean = x_ND[mates].astype(np.float64).sum(axis=0)
        assert got == pytest.approx(float(x_ND[row] @ mean / np.linalg.norm(mean)), abs=1e-5)


def found_rows(found: stage.Catalogue) -> Any:
    return Rows(found.dataset).sample_ND


def test_lists_are_sorted_filtered_and_cut(found: stage.Catalogue) -> None:
    label_N = found.dataset.label
    count_C = np.bincount(label_N)
    got = found.identities("images", True, "", 0, 100)
    assert [one["images"] for one in got["items"]] == sorted(count_C.tolist(), reverse=True)
    assert got["total"] == 30
    assert all(
        {label_N[face["row"]] for face in one["faces"]} == {one["who"]} for one in got["items"]
    )
    pieces = [found.identities("images", True, "", at, 7)["items"] for at in range(0, 30, 7)]
    assert [one for piece in pieces for one in piece] == got["items"]
    named = found.identities("images", False, "P1", 0, 100)
    assert sorted(one["label"] for one in named["items"]) == [f"p1{i}" for i in range(10)]

    like_N = found.columns[0].value_N
    lowest = {
        who: np.nanmin(like_N[label_N == who])
        for who in range(30)
        if np.isfinite(like_N[label_N == who]).any()
    }
    got = found.identities("likeness", False, "", 0, 100)
    assert [one["who"] for one in got["items"]] == sorted(lowest, key=lowest.__getitem__)
    first = got["items"][0]["faces"]
    assert first[0]["values"][0] == pytest.approx(lowest[got["items"][0]["who"]], abs=1e-4)

    size_N = np.array([len(found.dataset.read(row)) for row in range(found.dataset.n)])
    asked = page.Asked(sort="bytes", down=True, column="likeness", low=0.2, high=0.7, count=500)
    rows = [one["row"] for one in found.images(asked)["items"]]
    within = np.flatnonzero((like_N >= 0.2) & (like_N <= 0.7))
    assert sorted(rows) == within.tolist() and 0 < len(rows) < found.dataset.n
    assert (np.diff(size_N[rows]) <= 0).all()
    mine = found.images(page.Asked(who=3, count=500))["items"]
    assert [one["row"] for one in mine] == sorted(
        np.flatnonzero(label_N == 3), key=lambda row: (np.nan_to_num(like_N[row], nan=9), row)
    )
    for asked in (page.Asked(sort="nothing"), page.Asked(column="x"), page.Asked(who=99)):
        with pytest.raises(Refused):
            found.images(asked)


def test_labels_in_force_and_quality(
    glint: Any, found: stage.Catalogue, world: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(world[1], data)
    glint("drop", data, "--id", "p05", "--reason", "asked")
    less = stage.Catalogue(Dataset(data))
    assert less.identities("images", True, "", 0, 100)["total"] == 29
    gone = set(np.flatnonzero(found.dataset.label == 5).tolist())
    shown = {face["row"] for one in less.identities("images", True, "", 0, 100)["items"]
             for face in one["faces"]}  # fmt: skip
    assert gone and not gone & shown
    assert f"<b>{len(gone)}</b>" in less.page(served=True)
    table = pa.table({"key": [""] * less.dataset.n, "quality": np.arange(less.dataset.n) / 3})
    folder = tmp_path / "q"
    folder.mkdir()
    pq.write_table(table.cast(stage.schemas.QUALITY), folder / quality.TABLE)
    about = {"format": quality.FORMAT, "dataset": less.dataset.digest,
             "files": {quality.TABLE: quality.sha256(folder / quality.TABLE)}}  # fmt: skip
    (folder / "quality.json").write_text(json.dumps(about))
    scored = stage.Catalogue(less.dataset, None, folder)
    worst = scored.images(page.Asked(sort="quality", count=5))["items"]
    assert [one["row"] for one in worst] == [0, 1, 2, 3, 4]


def test_one_file_holds_what_it_shows_and_escapes(found: stage.Catalogue) -> None:
    text = found.page(served=False, sample=found.sample())
    held = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert held["meta"]["reasons"] == {"not-an-image": 1, "truncated": 1} or held["rejected"]
    assert "<b>odd<b>" not in text and any("odd" in one["source"] for one in held["rejected"])
    for one in held["images"]:
        assert held["faces"][str(one["row"])].startswith("data:image/jpeg;base64,")
    assert {face["row"] for one in held["identities"] for face in one["faces"]} <= {
        one["row"] for one in held["images"]
    }
    assert "connect-src" not in text


@pytest.fixture
def served(found: stage.Catalogue) -> Iterator[tuple[stage.Look, str]]:
    with stage.Look(found) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        token = server.invite().split("=", 1)[1]
        yield server, f"{server.cookie}={server.enter(token)}"
        server.shutdown()


def test_served_to_those_who_hold_a_link(found: stage.Catalogue, served: Any) -> None:
    server, cookie = served

    def get(path: str, cookie: str = cookie, **words: Any) -> tuple[int, str, bytes]:
        line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        line.request("GET", f"{path}?{urlencode(words)}", headers={"Cookie": cookie})
        answer = line.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()

    assert get("/", cookie="")[0] == get("/image", cookie="x=y", row=0)[0] == 403
    status, kind, body = get("/")
    assert status == 200 and "html" in kind and b"connect-src &#39;self&#39;" in body
    status, kind, body = get("/image", row=11)
    assert (status, kind, body) == (200, "image/jpeg", found.dataset.read(11))
    got = json.loads(get("/identities", sort="images", down=1, count=3)[2])
    assert got == found.identities("images", True, "", 0, 3)
    got = json.loads(get("/images", column="likeness", low=0.5, high="")[2])
    assert got["total"] == int((found.columns[0].value_N >= 0.5).sum())
    assert json.loads(get("/quarantine")[2])["total"] == 2
    assert get("/photograph", at=0)[0] == 404  # neither is a picture
    for words in ({"row": 10**9}, {"row": -1}):
        assert get("/image", **words)[0] == 404
    for path, words in (("/images", {"sort": "nothing"}), ("/images", {"low": "x"}),
                        ("/image", {}), ("/identities", {"sort": "nothing"})):  # fmt: skip
        assert get(path, **words)[0] == 400
    assert get("/../etc/passwd")[0] == 404
    assert found.photograph("../../../../etc/hostname") == b""


def test_from_the_command_line(glint: Any, world: Any, tmp_path: Path) -> None:
    file = tmp_path / "look.html"
    told = glint("look", world[1], "--photographs", world[0], "--out", file, "--json")
    assert told["images"] == told["shown"] and told["columns"] == ["bytes"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert "quality.json" in glint("look", world[1], "--quality", world[0], code=2)
