"""Several Ray nodes, processes of this machine joined by address; one is killed on the way."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from glint.jobs.ray import Ray
from glint.pipelines.conflicts import share
from glint.search import pairs

pytest.importorskip("ray", reason="ray is not installed: pip install 'glint-faces[ray]'")
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def test_a_node_is_killed(tmp_path: Path) -> None:
    """The pairs are those of one process; the pieces of the dead node are done by the other."""
    import ray
    from ray.cluster_utils import Cluster

    x_ND = np.random.default_rng(0).standard_normal((6000, 64)).astype(np.float32)
    x_ND[3000:] += 2 * x_ND[:3000]
    np.save(tmp_path / "x.npy", x_ND)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    begun = pairs.begin(mapped, 0.4, tmp_path / "work", block=50)
    sizes = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**sizes, "include_dashboard": False})
    try:
        node = cluster.add_node(**sizes)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        assert ray.cluster_resources()["CPU"] == 2
        shown: list[int] = []

        def progress(done: int, total: int, note: str = "") -> None:
            shown.append(done)
            if len(shown) == 20:
                cluster.remove_node(node, allow_graceful=False)  # SIGKILL to all of its processes

        how = share.How(engine=Ray(cluster.address))
        began = time.monotonic()
        share.search(begun, how, "auto", progress=progress)
        assert time.monotonic() - began < 120 and shown[-1] == 120 * 121 // 2
        assert ray.cluster_resources()["CPU"] == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert begun.missing() == []
    got, want = (
        pairs.pairs_above(x_ND, 0.4, block=50, work=work) for work in (tmp_path / "work", None)
    )
    assert len(want.a) > 1000
    for name in ("a", "b", "cosine"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
