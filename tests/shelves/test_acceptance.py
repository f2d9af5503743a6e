"""docs/acceptance.md names tests that are there, and leaves no row out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tests_it_names_exist() -> None:
    text = (ROOT / "docs/acceptance.md").read_text()
    found = 0
    for line in text.splitlines():
        last = ""
        for file, name in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", line):
            last = file or last
            path = ROOT / "tests" / last
            if not last:
                continue
            assert path.is_file(), (last, line)
            if name:
                found += 1
                assert f"def {name}(" in path.read_text(), (last, name)
    assert found > 60


def test_no_row_is_left_out() -> None:
    rows = [
        int(n)
        for n in re.findall(
            r"^\| (\d+) \|", (ROOT / "docs/acceptance.md").read_text(), re.MULTILINE
        )
    ]
    assert rows == [*range(1, 52), *range(61, 69)]
