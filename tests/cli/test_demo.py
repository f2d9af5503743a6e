"""`glint demo` on a world too small to learn much from: every step runs and the sums add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_walks_the_whole_road(tmp_path: Path, glint: Callable[..., Any]) -> None:
    got = glint(
        "demo", tmp_path / "demo", "--identities", "60", "--images", "6", "--conflicts", "3",
        "--lookalikes", "2", "--json",
    )  # fmt: skip
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert {k: v for k, v in got.items() if k != "schema"} == summary
    assert summary["images_in"] == summary["images_written"] + summary["images_quarantined"]
    assert summary["images_quarantined"] == 3
    assert summary["identities"] == 63 and summary["conflicts_planted"] == 3
    assert 0 <= summary["accuracy_untrained"] <= 1 and 0 <= summary["accuracy_final"] <= 1
    for path in summary["paths"].values():
        assert Path(path).exists()
    html = Path(summary["paths"]["report"]).read_text()
    assert "http://" not in html and "https://" not in html


def test_a_folder_that_is_no_demo_stays(tmp_path: Path) -> None:
    from glint.cli.demo import _clear
    from glint.errors import BusyError

    for name in ("summary.json", "thesis.txt"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(BusyError, match="GL0004"):
        _clear(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
