"""What this machine has."""

from __future__ import annotations

import os
from pathlib import Path


def ram() -> dict[str, int]:
    """Bytes of memory, total and available, within the control group's limit if there is one."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = (_lines(group / name) for name in ("memory.max", "memory.current"))
    if limit and used and limit[0].isdigit():
        total = min(total, int(limit[0]))
        available = min(available, max(0, int(limit[0]) - int(used[0])))
    return {"total": total, "available": available}


def local_ranks(world: int) -> int:
    """Return the ranks on this machine, of `world`: all of them, where no launcher said."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
