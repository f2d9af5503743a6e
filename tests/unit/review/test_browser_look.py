"""The page of `glint look` in a browser: served and alone it shows the same, and nothing runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.pipelines import look as stage
from glint.review.report import write_private

pytestmark = pytest.mark.slow


class Rows:
    """Embeddings of two directions for each identity."""

    def __init__(self, data: Any) -> None:
        rng = np.random.default_rng(0)
        raw = rng.standard_normal((data.classes, 8))[data.label]
        raw += 0.4 * rng.standard_normal((data.n, 8))
        self.sample_ND = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("served", [False, True])
def test_a_person_pages_sorts_and_enlarges(
    browser: Any, look_data: Any, tmp_path: Path, served: bool
) -> None:
    browser = browser()
    catalogue = stage.Catalogue(look_data, Rows(look_data))  # type: ignore[arg-type]
    with stage.Look(catalogue) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = tmp_path / "look.html"
        write_private(path, catalogue.page(served=False, sample=catalogue.sample()))
        browser.open(server.invite() if served else path.as_uri())

        def done(turn: int) -> None:
            browser.until(f"Number(document.body.dataset.ready) >= {turn}")

        done(1)
        assert browser.text("what").startswith("25 identities")
        names = "[...document.querySelectorAll('.person b')].map((one) => one.textContent)"
        assert len(browser.value(names)) == 20
        browser.press("j")
        done(2)
        assert len(browser.value(names)) == 5
        browser.choose("text", "x<i>")
        done(3)
        assert browser.value(names) == ["x<i>3"] and not browser.value(
            "!!document.querySelector('i')"
        )
        browser.click(".person .head button")
        done(4)
        assert "of x<i>3" in browser.text("what")
        likeness = catalogue.columns[0].value_N
        mine = np.flatnonzero([name.startswith("x<i>3/") for name in look_data.source])
        shown = "[...document.querySelectorAll('.tile')].map((one) => one.title)"
        wanted = [look_data.source[int(i)] for i in mine[np.argsort(likeness[mine])]]
        assert browser.value(shown) == wanted
        browser.click(".tile")
        browser.until("document.getElementById('large').open")
        assert look_data.key[int(mine[np.argsort(likeness[mine])][0])] in browser.text("large")
        browser.click("#large button")
        browser.press("2")
        done(5)
        browser.click("#down")
        browser.until("document.querySelector('.tile span').textContent.startsWith('likeness')")
        top = float(np.nanmax(likeness))
        first = "Number(document.querySelector('.tile span').textContent.slice(9))"
        browser.until(f"Math.abs({first} - {top}) < 2e-4")
        images = "[...document.querySelectorAll('.tile img')].slice(0, 4)"
        loaded = f"{images}.every((one) => one.naturalWidth === 112)"
        browser.until(loaded)
        server.shutdown()
    assert not [one for one in browser.errors if "favicon" not in one]
    if not served:
        assert all(not url.startswith("http") for url in browser.requests)


@pytest.fixture
def look_data(tmp_path: Path) -> Any:
    """25 identities of 2 to 6 images, one with a name that is markup."""
    import subprocess
    import sys

    import simplejpeg

    from glint.shards.dataset import Dataset

    for who in range(25):
        home = tmp_path / "people" / ("x<i>3" if who == 3 else f"p{who:02d}")
        home.mkdir(parents=True)
        for i in range(2 + who % 5):
            rng = np.random.default_rng([who, i])
            few = rng.integers(0, 256, (7, 7, 3), np.uint8)
            image = few.repeat(16, 0).repeat(16, 1)
            (home / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=85))
    command = [sys.executable, "-m", "glint", "shard", str(tmp_path / "people")]
    subprocess.run([*command, str(tmp_path / "data")], check=True, capture_output=True)
    return Dataset(tmp_path / "data")
