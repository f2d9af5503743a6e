"""What each stage of a dataset's way costs: CPU time, memory, disk and traffic, by unit costs.

The unit costs of `cost.toml` were fitted by `benchmarks/plan_data.py`; all here is arithmetic.
"""

# N images, C identities, D embedding, P pairs of identities that are proposed

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glint.errors import UsageError
from glint.results import models as results

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("cost.toml")
TILE = 2048  # rows and columns of a product of the pair search
FACES = 32  # of an identity that take part in evidence, at most
LABELLED = ("near duplicates", "conflict search", "conflict evidence", "balance")


@dataclass(frozen=True)
class Dataset:
    """What is planned for. image_bytes: of an image; pairs: proposed, an identity."""

    images: float
    identities: float
    dim: int = 512
    image_bytes: float = 6000.0
    pairs: float = 1.0
    unlabelled: bool = False


@dataclass(frozen=True)
class Machines:
    """What it runs on; memory: bytes of each; milliseconds: of a net for an image, 0 = measured."""

    count: int = 1
    cores: int = 1
    gpus: int = 0
    memory: float = 256e9
    milliseconds: float = 0.0


def drivers(data: Dataset, chance: float = 0.0) -> dict[str, float]:
    """Return the quantities that costs grow with; chance: that two faces share a key of hashes."""
    n, c, rows = data.images, data.identities, math.ceil(data.identities / TILE)
    scale = data.dim / 512
    return {
        "one": 1.0,
        "image": n,
        "image_log": n * math.log2(max(n, 2)),
        "byte": n * data.image_bytes,
        "number": n * data.dim,
        "identity": c,
        "centre": 0.0 if data.unlabelled else c * data.dim,
        "tile": rows * (rows + 1) / 2 * scale,
        "pair": data.pairs * c,
        "face": data.pairs * c * 2 * min(FACES, n / max(c, 1)) * scale,
        "hash": 35 * n * n / 2 * chance,  # 35 keys of three bands
    }


def unit_costs() -> dict[str, Any]:
    """Read the unit costs."""
    return dict(tomllib.loads(FILE.read_text(encoding="utf-8")))


def dot(unit: Mapping[str, float], by: Mapping[str, float]) -> float:
    """Add up units times drivers."""
    return sum(value * by[name] for name, value in unit.items())


def plan(data: Dataset, machines: Machines) -> results.DataPlan:
    """Plan a dataset's stages. Raises UsageError GL0002."""
    _check(data, machines)
    costs = unit_costs()
    by = drivers(data, costs["stage"]["near duplicates"]["chance"])
    left_out = LABELLED if data.unlabelled else ("cluster graph",)
    stages = [
        _stage(name, unit, data, machines, by)
        for name, unit in costs["stage"].items()
        if name not in left_out
    ]
    wall = next((one for one in stages if one.memory > machines.memory), None)
    longest = max(stages, key=lambda one: one.seconds)
    if wall is not None:
        where = "each machine" if wall.machines > 1 else "one machine"
        first = f"memory of {wall.name} on {where}: {_gb(wall.memory)}"
        first += f", of {_gb(machines.memory)}"
    else:
        where = f"{longest.machines} machines" if longest.machines > 1 else "one machine"
        first = f"time of {longest.name} on {where}: {duration(longest.seconds)}"
    return results.DataPlan(
        images=int(data.images), identities=int(data.identities), dim=data.dim,
        machines=machines.count, cores=machines.cores, gpus=machines.gpus,
        stages=stages, seconds=sum(one.seconds for one in stages),
        cpu_seconds=sum(one.cpu_seconds for one in stages),
        memory=max(one.memory for one in stages), wall=first, longest=longest.name,
        fits=wall is None, measured_on=costs["machine"]["name"],
    )  # fmt: skip


def _stage(
    name: str,
    unit: Mapping[str, Any],
    data: Dataset,
    machines: Machines,
    by: Mapping[str, float],
) -> results.DataStage:
    """Plan a stage: what is shared out goes to machines and cores, `once` is one core's."""
    count = machines.count if unit["spread"] == "tasks" else 1
    cores = 1 if unit["spread"] == "one" else min(machines.cores, unit.get("threads", 1 << 20))
    cpu, once = dot(unit["cpu"], by), dot(unit.get("once", {}), by)
    seconds = cpu / (count * cores)
    if name == "embed":
        net = data.images * (machines.milliseconds or unit["milliseconds"]) / 1000
        if machines.gpus:  # decoding and the net at the same time
            seconds = max(seconds, net / (count * machines.gpus))
        else:
            cpu += net
            seconds += net / (count * cores)
    processes = cores if unit.get("processes") else 1
    need = dot(unit["memory"], by) + (processes - 1) * unit["memory"]["one"]
    read, written = dot(unit["read"], by), dot(unit["write"], by)
    each = count if unit.get("reads_all") else 1  # every machine reads all of it
    return results.DataStage(
        name=name, machines=count, cores=cores, seconds=seconds + once, cpu_seconds=cpu + once,
        memory=int(need), read=int(read * each), written=int(written),
        traffic=int((read * each + written) / count), alone=once,
    )  # fmt: skip


def _check(data: Dataset, machines: Machines) -> None:
    for good, want, found, option in (
        (data.images >= 1, "at least 1", data.images, "images"),
        (1 <= data.identities <= data.images, "from 1 to --images", data.identities, "identities"),
        (data.dim >= 1, "at least 1", data.dim, "dim"),
        (0 < data.image_bytes < math.inf, "above 0", data.image_bytes / 1000, "image-kb"),
        (0 <= data.pairs < math.inf, "at least 0", data.pairs, "pairs"),
        (machines.count >= 1, "at least 1", machines.count, "machines"),
        (machines.cores >= 1, "at least 1", machines.cores, "cores"),
        (machines.gpus >= 0, "at least 0", machines.gpus, "gpus"),
        (0 < machines.memory < math.inf, "above 0", machines.memory / 1e9, "memory"),
        (0 <= machines.milliseconds < math.inf, "at least 0", machines.milliseconds,
         "ms-per-image"),
    ):  # fmt: skip
        if not (math.isfinite(found) and good):
            raise UsageError("GL0002", f"expected {want}, found {found:g}", where=f"--{option}")
    if machines.gpus and not machines.milliseconds:
        raise UsageError(
            "GL0002",
            "no GPU was measured",
            where="--gpus",
            hint="--ms-per-image says how long one of yours takes",
        )


def duration(seconds: float) -> str:
    """Say a time in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3g} GB" if size < 1e12 else f"{size / 1e9:,.0f} GB"
