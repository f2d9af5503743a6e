"""A picture that ends the decoder: the worker dies, and the error names the picture."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from glint.errors import LostError
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable
from glint.stream import reader, workers
from glint.stream.loader import Stream
from glint.stream.order import Order

BAD = 33


def ends(dataset: Dataset, how: Callable[[], object]) -> Callable[..., None]:
    """Return a decoder that one picture of the dataset puts an end to."""
    real, bad = reader.decode_into, dataset.read(BAD)

    def decode(data: bytes, out: object, where: str = "") -> None:
        if bytes(data) == bad:
            how()
        time.sleep(0.001)
        real(data, out, where)  # type: ignore[arg-type]

    return decode


def stream(dataset: Dataset, **options: Any) -> Stream:
    labels = LabelTable(0, np.arange(dataset.classes), dataset.classes, np.empty((0, 2), np.int64))
    return Stream(dataset, labels=labels, batch=5, workers=2, drop_last=False, **options)


@pytest.mark.parametrize(
    "options, signal_",
    [
        ({}, signal.SIGSEGV),
        ({"threads": 2}, signal.SIGABRT),
        ({"order": Order(block=4)}, signal.SIGSEGV),
    ],
    ids=str,
)
def test_the_picture_is_named(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], signal_: int
) -> None:
    def die() -> None:
        signal.pthread_kill(threading.get_ident(), signal_)  # as a fault in this thread would

    monkeypatch.setattr(reader, "decode_into", ends(small, die))
    with pytest.raises(LostError) as caught:
        for _ in stream(small, **options).batches(0):
            pass
    error = caught.value
    shard = small.shards[int(small.shard[BAD])]
    place = f"data/{shard} key {small.key[BAD]} @ 0x{int(small.offset[BAD]):x}"
    assert error.code == "GL0902" and f"was killed by {signal.Signals(signal_).name}" in error.what
    assert error.where.startswith("step ") and place in error.where.split(", reading ")[1]
    assert error.where.count(" key ") <= max(1, options.get("threads", 1))
    assert "leave it out of the source" in error.hint


def test_a_picture_that_hangs_is_named(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "DEADLINE", 0.5)
    monkeypatch.setattr("glint.stream.loader.DEADLINE", 0.5)
    monkeypatch.setattr(reader, "decode_into", ends(small, lambda: time.sleep(30)))
    with pytest.raises(LostError, match="no batch from worker") as caught:
        for _ in stream(small).batches(0):
            pass
    assert f"key {small.key[BAD]} @" in caught.value.where
