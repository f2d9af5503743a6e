"""Two ranks on pretended cards: every collective has its group's tensors, in one order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.mark.timeout(240)
def test_two_ranks_call_the_same_collectives_with_the_right_tensors(
    made: Any, tmp_path: Path
) -> None:
    common = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0",
              "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}  # fmt: skip
    words = [sys.executable, str(SCRIPT), str(made.data), str(made.pairs), str(tmp_path)]
    ranks = [
        subprocess.Popen(
            words, env={**common, "RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        done = [rank.communicate(timeout=200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], done[0][1][-3000:] + done[1][1][-3000:]
    one, other = (json.loads(out.splitlines()[-1]) for out, _ in done)
    assert one == other and {*one} == {"nccl", "gloo"}
    nccl, gloo = one["nccl"], one["gloo"]
    assert len(nccl) > 40 and len(gloo) > 8  # gloo: of the threads that write checkpoints
    assert {call[-1].split(":")[0] for call in gloo} <= {"dist/collectives.py"}
