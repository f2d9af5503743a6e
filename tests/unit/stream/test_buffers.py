"""Memory comes back when nobody holds it, and never sooner."""

from __future__ import annotations

import gc

import torch

from glint.stream.buffers import IDLE, Arena, Buffers


def test_memory_is_used_again_once_the_last_view_is_gone():
    buffers = Buffers((4, 8, 8, 3))
    first = buffers.take().fill_(7)
    place, view = first.data_ptr(), first[1:2].permute(0, 3, 1, 2)
    array = first.numpy()[2]
    del first
    gc.collect()
    second = buffers.take().fill_(9)
    assert second.data_ptr() != place and bool((view == 7).all()) and (array == 7).all()
    del view
    assert buffers.take().data_ptr() != place
    del array
    gc.collect()
    assert buffers.take().data_ptr() == place


def test_held_batches_all_differ():
    buffers = Buffers((2, 3))
    held = [buffers.take().fill_(i) for i in range(3 * IDLE)]
    assert all(bool((x == i).all()) for i, x in enumerate(held))
    assert len({x.data_ptr() for x in held}) == len(held)
    del held
    gc.collect()
    assert len(buffers._arena._idle) == IDLE


def test_an_arena_gives_the_size_asked_for():
    arena = Arena(2)
    for size in (10, 3 << 20, 5, 0):
        piece = arena.take(size)
        assert piece.nbytes == size
        piece[:] = 1
        del piece


def test_pinned_memory_is_torchs_own():
    if not torch.cuda.is_available():
        assert not Buffers((2, 2)).take().is_pinned()
        return
    assert Buffers((2, 2), pinned=True).take().is_pinned()
