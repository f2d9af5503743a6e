"""Batches in threads: the rows of one thread, in order, whatever the batch and the threads."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError
from glint.pipelines import batches
from glint.pipelines.batches import Pace
from tests.unit.pipelines.test_embed import Faces, Projector


class Counting(Projector):
    """A projector that sees how many call it at once, and takes longer for early batches."""

    def __init__(self, concurrent: bool) -> None:
        super().__init__()
        self.concurrent, self.now, self.most = concurrent, 0, 0
        self.lock = threading.Lock()

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02 if self.calls % 2 == 0 else 0.001)
        found = super().embed(image_nHWC)
        with self.lock:
            self.now -= 1
        return found


def rows(pace: Pace, concurrent: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Embed rows 3 to 69 and return them as they came, and how many called at once."""
    model, at = Counting(concurrent), 3
    parts = []
    for part, *found in batches.embedded(Faces(), model, slice(3, 69), pace, False):  # type: ignore
        assert part.start == at and part.stop - part.start == len(found[0])
        at = part.stop
        parts.append(found)
    assert at == 69
    row, norm, status = (np.concatenate(some) for some in zip(*parts))
    return row, norm, status, model.most


@pytest.mark.parametrize("pace", [Pace(1, 3), Pace(8, 2), Pace(7, 5), Pace(64, 2), Pace(200, 4)])
@pytest.mark.parametrize("concurrent", [True, False])
def test_rows_do_not_depend_on_batch_or_threads(pace: Pace, concurrent: bool) -> None:
    want, got = rows(Pace(66, 1)), rows(pace, concurrent)
    for one, other in zip(want[:3], got[:3]):
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    assert got[3] <= (pace.workers if concurrent else 1)
    if concurrent and pace == Pace(1, 3):
        assert got[3] > 1


def test_an_error_of_a_thread_ends_it() -> None:
    class Gone(Faces):
        def read(self, row: int) -> bytes:
            if row == 40:
                raise InputError("GL0302", "the shard is gone", where="train-000000.tar")
            return super().read(row)

    with pytest.raises(InputError, match="GL0302"):
        list(batches.embedded(Gone(), Counting(True), slice(0, 70), Pace(4, 3), False))  # type: ignore
    assert not [one for one in threading.enumerate() if one.name.startswith("glint-embed")]


class Timed(Projector):
    """A net of a batch that costs least at 16; `odd` batches give another last bit."""

    concurrent = True

    def __init__(self, odd: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.odd = odd

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        found: Any = np.array(super().embed(image_nHWC))
        return np.nextafter(found, np.inf) if len(image_nHWC) in self.odd else found


@pytest.mark.parametrize(("odd", "best"), [((), 16), ((16,), 4), ((4, 16, 32), 8)])
def test_the_trial_takes_the_cheapest_that_gives_the_same_bits(
    odd: tuple[int, ...], best: int, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    clock, cost = [0.0], {4: 0.002, 8: 0.003, 16: 0.001, 32: 0.0025}
    model = Timed(odd)
    real = model.embed

    def embed(image_nHWC: np.ndarray) -> np.ndarray:
        clock[0] += cost[len(image_nHWC)] * len(image_nHWC)
        return real(image_nHWC)

    monkeypatch.setattr(model, "embed", embed)
    monkeypatch.setattr(batches.time, "thread_time", lambda: clock[0])
    monkeypatch.setattr(batches.logger, "propagate", True)
    with caplog.at_level("INFO", "glint"):
        found = batches.settle(model, 10_000, 0, 3)  # type: ignore[arg-type]
    assert found == Pace(best, 3)
    want = f"embedding in batches of {best} with 3 threads: {1000 * cost[best]:.1f} ms of CPU"
    assert want in caplog.text


def test_what_is_given_is_not_tried() -> None:
    model = Timed()
    assert batches.settle(model, 10**6, 24, 5) == Pace(24, 5)  # type: ignore[arg-type]
    assert batches.settle(model, 9_999, 0, 1) == Pace(8, 1)  # type: ignore[arg-type]
    assert batches.settle(Projector(), 10**6, 0, 2) == Pace(64, 2)  # type: ignore[arg-type]
    assert model.calls == 0


def test_a_session_on_one_thread_says_so(tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from glint.models.recogniser import open_model

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shapes = [("x", ["n", 3, 112, 112]), ("y", ["n", 3])]
    taken, given = (helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "net", [taken], [given])
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(net, tmp_path / "net.onnx")
    found = {n: open_model(tmp_path / "net.onnx", threads=n, device="cpu") for n in (0, 1, 2)}
    assert [one.concurrent for one in found.values()] == [True, True, False]
    image = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3)).astype(np.uint8)
    assert np.array_equal(found[0].embed(image), replace(found[2], name="x").embed(image))
