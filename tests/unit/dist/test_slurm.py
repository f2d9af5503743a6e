"""Slurm's variables become everybody's."""

from __future__ import annotations

import pytest

from glint.dist import slurm
from glint.errors import UsageError

TASK = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "41007",
    "SLURM_JOB_NODELIST": "gpu[07-09,12],login1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2(x4)",
    "SLURM_NODEID": "2",
}


def test_a_task_knows_its_rank_and_where_ranks_meet() -> None:
    assert slurm.ranks(TASK) == {
        "RANK": "5",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "21007",
    }
    told = slurm.ranks({**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert told["MASTER_ADDR"] == "10.0.0.1" and told["MASTER_PORT"] == "1234"


@pytest.mark.parametrize(
    ("listed", "node", "here"),
    [("4(x2),2(x4)", "1", "4"), ("4(x2),2(x4)", "5", "2"), ("8", "0", "8"), ("8", "3", "1"),
     ("", "0", "1")],
)  # fmt: skip
def test_tasks_of_a_node(listed: str, node: str, here: str) -> None:
    job = {**TASK, "SLURM_STEP_TASKS_PER_NODE": listed, "SLURM_NODEID": node}
    assert slurm.ranks(job)["LOCAL_WORLD_SIZE"] == here


def test_elsewhere_nothing_is_set() -> None:
    assert slurm.ranks({}) == {}
    assert slurm.ranks({**TASK, "SLURM_NTASKS": "1"}) == {}
    assert slurm.ranks({**TASK, "RANK": "0"}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[01-04]", "node01"),
        ("a-b[7,9-11].local", "a-b7.local"),
    ],
)
def test_first_hosts(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


def test_no_host_is_told() -> None:
    with pytest.raises(UsageError, match="SLURM_JOB_NODELIST is ''"):
        slurm.first_host("")
