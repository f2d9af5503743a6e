"""Fixtures that every room's tests may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def ranks() -> Iterator[Callable[..., list[Any]]]:
    """Run `work(world)` on W ranks, each a thread of this process; give the results in rank order.

    `ranks(3, work)` joins three ranks through torch's threaded process group (a private module of
    torch, used here and nowhere else). The first exception of a rank is raised again.
    """
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed import multi_threaded_pg as threaded

    from glint.dist.world import World

    # torch >= 2.7 keeps a registry of groups per process unless told that threads are ranks
    isolate = getattr(torch._C._distributed_c10d, "_set_thread_isolation_mode", lambda on: None)

    def run(size: int, work: Callable[[World], Any]) -> list[Any]:
        if size == 1:
            return [work(World())]
        isolate(True)
        threaded._install_threaded_pg()
        threaded.ProcessLocalGroup.reset()
        store = dist.HashStore()
        results: list[Any] = [None] * size
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            try:
                dist.init_process_group("threaded", rank=rank, world_size=size, store=store)
                try:
                    results[rank] = work(World(rank, size))
                finally:
                    dist.destroy_process_group()
            except SystemExit:  # another rank failed and ended the collective
                pass
            except BaseException as error:
                errors.append(error)
                threaded.ProcessLocalGroup.exception_handle(error)

        try:
            threads = [
                threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        finally:
            threaded._uninstall_threaded_pg()
            isolate(False)
        if errors:
            raise errors[0]
        assert not any(thread.is_alive() for thread in threads), "a rank hangs"
        return results

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the folder of real files that tests may read and never copy; skip where it is absent."""
    root = Path(__file__).parents[1]
    path = Path(os.environ.get("GLINT_SHARED", root.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"GLINT_SHARED: no folder {path}; this test needs real files")
    return path


@pytest.fixture(scope="session")
def jpeg() -> Callable[[int], bytes]:
    """Give the i-th of many different 112x112 JPEGs."""
    import numpy as np
    import simplejpeg

    def make(i: int, side: int = 112) -> bytes:
        corner = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
        pixel = np.kron(corner, np.ones((side // 4, side // 4, 1), np.uint8))
        data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixel), quality=90)
        return data

    return make


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a run folder with one checkpoint, at step 3, of a small net with lived-in norms."""
    import torch

    from glint.models import checkpoint
    from glint.nn import backbones

    def make(name: str = "mobilefacenet", embedding: int = 32, **options: Any) -> Path:
        run = tmp_path_factory.mktemp("run")
        torch.manual_seed(7)
        net = backbones.create(name, embedding, **options)
        with torch.no_grad():
            net(torch.rand(8, 3, 112, 112) * 2 - 1)  # moves the running statistics
        made = {"name": name, "embedding": embedding, "options": options}
        checkpoint.save(
            run / "checkpoints", 3, backbone=net.state_dict(), optimizer={},
            head=(0, 1, {"weight": torch.zeros(1, embedding)}),
            state={"backbone": made}, keep=2,
        )  # fmt: skip
        return run

    return make
