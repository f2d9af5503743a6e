"""Ranks that Slurm started: its variables under the names that everybody else uses."""

from __future__ import annotations

import re
from collections.abc import Mapping

from glint.errors import UsageError

PORT = 20_000  # first of the ports a job's ranks meet at; the job's number is added


def ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a task.

    Started by `srun`.

    Empty outside Slurm, for a job of one task, and where RANK is set already (torchrun). Raises
    UsageError GL0002 for a node list that has no first host.
    """
    size = environment.get("SLURM_NTASKS", "1")
    if "RANK" in environment or "SLURM_PROCID" not in environment or size in ("", "1"):
        return {}
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    job = int(environment.get("SLURM_JOB_ID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(_tasks_here(environment)),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(nodes),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(PORT + job % 20_000),
    }


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Return the tasks of this node, from a list such as `8(x2),4`, the node's number being 2."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get(
        "SLURM_TASKS_PER_NODE", ""
    )
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        tasks += [int(count)] * int(times or 1)
    number = int(environment.get("SLURM_NODEID", "0"))
    return tasks[number] if number < len(tasks) else 1


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list, as in `gpu[07-09,12],login1` -> gpu07."""
    found = re.match(r"([^\[\],]+)(?:\[(\d+)[^\]]*\])?([^\[\],]*)", nodes)
    if not found:
        raise UsageError(
            "GL0002", f"SLURM_JOB_NODELIST is {nodes!r}, expected hosts", where="environment",
            hint="set MASTER_ADDR to the host of the first task",
        )  # fmt: skip
    name, number, rest = found.groups()
    return name + (number or "") + rest
