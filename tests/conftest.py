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
def made_detector(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make an ONNX file with SCRFD's nine outputs that finds cells of 8 x 8 red pixels.

    A cell at (8j, 8i) of what it sees is a face around that corner; half its side is 8 (0.5 + blue
    / 127.5) pixels, its points are the template's. side: of the input, 0 = any size and batch.
    """
    import numpy as np
    import onnx

    from glint.shards.crops import TEMPLATE

    helper, numbers = onnx.helper, onnx.numpy_helper.from_array

    def make(side: int = 160) -> Path:
        place = (TEMPLATE - 56) / 56  # of half a side
        shapes = {
            "score": np.zeros((2, 1)),
            "box": np.ones((2, 4)),
            "kps": np.tile(place.ravel(), (2, 1)),
        }
        nodes, given = [], [numbers(np.array([0, 0, 0]), "zero")]
        names = []
        for kind, value in shapes.items():
            for stride in (8, 16, 32):
                one = f"{kind}{stride}"
                flat = value.ravel()
                weight, bias = np.zeros((len(flat), 3, 1, 1)), 0.5 * flat + flat
                weight[:, 2, 0, 0] = flat  # of blue, -1..1
                if kind == "score":
                    weight[:, :2, 0, 0] = [20, -20]
                    bias = np.array([-30.0, -90.0]) if stride == 8 else np.full(2, -90.0)
                given += [
                    numbers(weight.astype(np.float32), f"{one}w"),
                    numbers(bias.astype(np.float32), f"{one}b"),
                    numbers(np.array([0, -1, value.shape[1]]), f"{one}s"),
                ]
                nodes += [
                    helper.make_node(
                        "AveragePool",
                        ["x"],
                        [f"{one}p"],
                        kernel_shape=[stride] * 2,
                        strides=[stride] * 2,
                    ),
                    helper.make_node("Conv", [f"{one}p", f"{one}w", f"{one}b"], [f"{one}c"]),
                    helper.make_node(
                        "Sigmoid" if kind == "score" else "Identity", [f"{one}c"], [f"{one}d"]
                    ),
                    helper.make_node("Transpose", [f"{one}d"], [f"{one}t"], perm=[0, 2, 3, 1]),
                    helper.make_node("Reshape", [f"{one}t", f"{one}s"], [one]),
                ]
                names.append((one, value.shape[1]))
        size = [1, 3, side, side] if side else ["b", 3, "h", "w"]
        tensor = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "made",
            [tensor("x", onnx.TensorProto.FLOAT, size)],
            [tensor(name, onnx.TensorProto.FLOAT, ["b", "n", k]) for name, k in names],
            given,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        path = tmp_path_factory.mktemp("detector") / "made.onnx"
        onnx.save(model, str(path))
        return path

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
