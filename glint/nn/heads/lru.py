"""A directory of identities in a pool of slots, least recently used first out, with undo.

Every operation takes constant time and is noted, so that a step which is not to count can be taken
back. What it does depends on the order of labels alone: the same on every rank that gets the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_FREE = -1


class Directory:
    """Which slot holds which label, which was used last, and which of two rows is written next.

    Slots are given out in order, so those in use are always [0, len(directory)).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._clear()

    def __len__(self) -> int:
        return len(self._slot)

    @property
    def done(self) -> int:
        """Count the operations that can be undone: what `undo` takes."""
        return len(self._log)

    def slot(self, label: int) -> int:
        """Return a label's slot, -1 where it has none; this is no use of it."""
        return self._slot.get(label, -1)

    def put(self, label: int) -> tuple[int, int, bool]:
        """Use a label: (its slot, the row to write there, whether it was there before).

        One that is new gets a free slot, or that of the label used longest ago, and starts at row
        0; from then on its rows take turns.
        """
        slot = self._slot.get(label, _FREE)
        hit = slot != _FREE
        if not hit:
            slot = len(self) if len(self) < self.capacity else self._after[self.capacity]
        old, place = self.label[slot], self._before[slot]
        row = self.turn[slot] if hit else 0
        self._log.append((slot, old, place, self.turn[slot]))
        if old != _FREE:
            self._unlink(slot)
        self._name(slot, label)
        self._link(slot, self._before[self.capacity])
        self.turn[slot] = 1 - row
        return slot, row, hit

    def undo(self, done: int = 0) -> None:
        """Take back all operations but the first `done` since the last `forget`."""
        while len(self._log) > done:
            slot, old, place, turn = self._log.pop()
            self._unlink(slot)
            self._name(slot, old)
            self.turn[slot] = turn
            if old == _FREE:
                self._before[slot] = _FREE
            else:
                self._link(slot, place)

    def forget(self) -> None:
        """Let what was done stand: it can no longer be undone."""
        self._log.clear()

    def oldest(self) -> Iterator[int]:
        """Go over the slots in use, the one used longest ago first."""
        slot = self._after[self.capacity]
        while slot != self.capacity:
            yield slot
            slot = self._after[slot]

    def load(self, label: Sequence[int], age: Sequence[int], turn: Sequence[int]) -> None:
        """Take over a state: of each slot its label (-1: free), place in `oldest`, next row."""
        self._clear()
        used = sorted((place, slot) for slot, place in enumerate(age) if label[slot] != _FREE)
        for _, slot in used:
            self._name(slot, int(label[slot]))
            self._link(slot, self._before[self.capacity])
            self.turn[slot] = int(turn[slot])

    def _clear(self) -> None:
        end = self.capacity  # before it stands the newest slot, after it the oldest
        self.label, self.turn = [_FREE] * end, [0] * end
        self._slot: dict[int, int] = {}
        self._before, self._after = [_FREE] * end + [end], [_FREE] * end + [end]
        self._log: list[tuple[int, int, int, int]] = []

    def _name(self, slot: int, label: int) -> None:
        if self.label[slot] != _FREE:
            del self._slot[self.label[slot]]
        if label != _FREE:
            self._slot[label] = slot
        self.label[slot] = label

    def _link(self, slot: int, place: int) -> None:
        follower = self._after[place]
        self._before[slot], self._after[slot] = place, follower
        self._after[place] = self._before[follower] = slot

    def _unlink(self, slot: int) -> None:
        before, after = self._before[slot], self._after[slot]
        self._after[before], self._before[after] = after, before
