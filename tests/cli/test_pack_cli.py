"""`glint pack`: a list of pairs and a folder become a pack."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_pack(tmp_path: Path, glint: Callable[..., Any]) -> None:
    for name, count in (("Al_Bo", 3), ("Cy", 2)):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for n in range(1, count + 1):
            (tmp_path / "faces" / name / f"{name}_{n:04d}.jpg").write_bytes(f"{name} {n}".encode())
    (tmp_path / "pairs.txt").write_text("1\t1\nAl_Bo\t1\t3\nAl_Bo\t2\tCy\t1\n")
    arguments = ("pack", tmp_path / "faces", tmp_path / "pairs.txt", tmp_path / "out.bin")
    made = glint(*arguments, "--json")
    assert (made["pairs"], made["same"], made["images"], made["warnings"]) == (2, 1, 4, [])
    images, same = pickle.loads((tmp_path / "out.bin").read_bytes())
    assert same == [True, False]
    assert images == [b"Al_Bo 1", b"Al_Bo 3", b"Al_Bo 2", b"Cy 1"]
    assert "GL0004" in glint(*arguments, code=4)
