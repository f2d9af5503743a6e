"""The directory of a pool against an OrderedDict, with undo."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict

import pytest

from glint.nn.heads.lru import Directory


class Reference:
    """The same by the standard library's ordered dictionary: label -> [slot, next row]."""

    def __init__(self, capacity):
        self.capacity, self.entries = capacity, OrderedDict()

    def put(self, label):
        hit = label in self.entries
        if not hit:
            slot = len(self.entries)
            if slot == self.capacity:
                _, (slot, _) = self.entries.popitem(last=False)
            self.entries[label] = [slot, 0]
        self.entries.move_to_end(label)
        slot, row = self.entries[label]
        self.entries[label][1] = 1 - row
        return slot, row, hit


def same(directory, reference):
    assert [directory.label[slot] for slot in directory.oldest()] == list(reference.entries)
    for label, (slot, row) in reference.entries.items():
        assert directory.slot(label) == slot and directory.turn[slot] == row
    assert len(directory) == len(reference.entries) <= directory.capacity
    assert sorted(directory.oldest()) == list(range(len(directory)))


@pytest.mark.parametrize("capacity", [1, 7, 64])
def test_ten_thousand_operations_and_undo(capacity):
    draw = random.Random(capacity)
    directory, reference = Directory(capacity), Reference(capacity)
    undone = 0
    for _ in range(1000):
        kept = copy.deepcopy(reference)
        done = directory.done
        for _ in range(10):
            label = int(draw.expovariate(1) * capacity)
            assert directory.put(label) == reference.put(label)
        if draw.random() < 0.4:
            directory.undo(done)
            reference, undone = kept, undone + 1
        elif draw.random() < 0.3:
            directory.forget()
        same(directory, reference)
    assert undone > 300 and len(directory) == capacity


def test_all_can_be_undone():
    directory = Directory(3)
    empty = vars(copy.deepcopy(directory))
    for label in (5, 6, 5, 7, 8, 6, 9):
        directory.put(label)
    directory.undo()
    assert len(directory) == 0 and list(directory.oldest()) == [] and directory.done == 0
    assert directory.label == empty["label"] and directory.turn == empty["turn"]


def test_a_loaded_state_goes_on_as_the_saved_one():
    one, two = Directory(4), Directory(4)
    for label in (1, 2, 3, 2, 4, 5, 3):
        one.put(label)
    age = [0] * 4
    for place, slot in enumerate(one.oldest()):
        age[slot] = place
    two.load(one.label, age, one.turn)
    for label in (9, 3, 1, 2, 9):
        assert one.put(label) == two.put(label)
    assert list(one.oldest()) == list(two.oldest()) and one.label == two.label
