"""Figures as every benchmark prints them, and what they depend on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Behind a drawing of docs/img: the paper and its colours, light or dark as the reader's screen is.
PAPER = (
    "<style>text{fill:#1c2126}.s{font-size:11px;fill:#555}@media(prefers-color-scheme:dark)"
    '{text,.s{fill:#e6eaee}rect[width="100%"]{fill:#1e2429}[stroke="#e4e4e4"]{stroke:#39424a}'
    '[stroke="#1a5fb4"],[stroke="#1b6ca8"]{stroke:#6aa5f0}[fill="#1b6ca8"]{fill:#6aa5f0}}</style>'
    '<rect width="100%" height="100%" fill="#fff"/>'
)


def told(figure: str, value: float) -> dict[str, Any]:
    """A figure without a target."""
    return {"figure": figure, "value": round(value, 4), "target": None, "holds": None}


def floor(figure: str, value: float, least: float) -> dict[str, Any]:
    """A figure that must not be less."""
    return {
        "figure": figure,
        "value": round(value, 4),
        "target": f">= {least}",
        "holds": bool(value >= least),
    }


def ceiling(figure: str, value: float, most: float) -> dict[str, Any]:
    """A figure that must not be more."""
    return {
        "figure": figure,
        "value": round(value, 4),
        "target": f"<= {most}",
        "holds": bool(value <= most),
    }


def machine(*packages: str) -> dict[str, Any]:
    """Name what the figures depend on: processor, load, versions, commit, date."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "machine": next(names, platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(x, 1) for x in os.getloadavg()],
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def spent() -> float:
    """Give the CPU seconds of this process and of its living children."""
    tick = os.sysconf("SC_CLK_TCK")
    total = 0
    for pid in [os.getpid(), *children(os.getpid())]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / tick


def children(pid: int) -> list[int]:
    """Give the living descendants of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
