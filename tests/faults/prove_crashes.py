"""Power cuts: the part `crashes` of prove.py.

    python tests/faults/prove.py crashes [--quick] [--only apply train ...]

The calls of a stage that change files are written down with their bytes (calls.c). Then the disk
is made as a power cut could leave it after any of them: a change of a file lasts once the file was
synced, a name once its folder was; of all others any may be lost, in any order, and of a write the
first half only (`STATES` draws an instant at most; all where there are fewer). On every state
that differs a reader looks: it must see a version whole that is not older than what lasts. It may
refuse a dataset that is not finished (GL0301), and labels that hold whom a tombstone names (GL0308:
the same command goes on).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import prove
from prove import Figure, Given, figures
from prove_stages import Stage, preloaded, road, undisturbed

from glint.errors import GlintError
from glint.log import logger
from glint.models import checkpoint
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.verify import verify

STATES = 48  # disks made of one instant
WHOLE, HALF, LOST = 0, 1, 2


@dataclass
class Op:
    """A call that was made: what it did to which file or name."""

    kind: str
    path: str
    other: str
    at: int
    data: bytes


def journal(raw: bytes) -> list[Op]:
    """Read what calls.c wrote down."""
    ops, at = [], 0
    while at < len(raw):
        end = raw.index(b"\n", at)
        kind, path, other, place, size = raw[at:end].decode().split("\t")
        data = raw[end + 1 : end + 1 + int(size)]
        ops.append(Op(kind, path, other, int(place), data))
        at = end + 1 + len(data)
    return ops


@dataclass
class Node:
    """A file (its bytes) or a folder (its names)."""

    data: bytes = b""
    names: dict[str, Node] | None = None

    def copy(self, made: dict[int, Node]) -> Node:
        names = None if self.names is None else {k: n.copy(made) for k, n in self.names.items()}
        made[id(self)] = Node(self.data, names)
        return made[id(self)]


def read(root: Path) -> Node:
    if root.is_dir():
        return Node(names={path.name: read(path) for path in root.iterdir()})
    return Node(root.read_bytes())


def write(node: Node, path: Path) -> None:
    if node.names is None:
        path.write_bytes(node.data)
        return
    path.mkdir()
    for name, child in node.names.items():
        write(child, path / name)


def mark(node: Node) -> bytes:
    """Return what tells a state of the disk from another."""
    if node.names is None:
        return hashlib.sha256(node.data).digest()
    parts = (name.encode() + b"\0" + mark(child) for name, child in sorted(node.names.items()))
    return hashlib.sha256(b"dir" + b"".join(parts)).digest()


@dataclass
class Change:
    """One call as it changes nodes; `lasts`: the number of the call since which it does."""

    kind: str  # write, size, name, rename, remove
    node: Node  # the file, or what is named
    parent: Node | None = None
    name: str = ""
    source: tuple[Node, str] | None = None  # of a rename
    at: int = 0
    data: bytes = b""
    lasts: int = sys.maxsize

    def on(self, how: int, twin: Callable[[Node], Node]) -> None:
        """Make it on the twins of the nodes."""
        if how == LOST:
            return
        node = twin(self.node)
        if self.kind == "write":
            data = self.data[: len(self.data) // 2] if how == HALF else self.data
            old = node.data.ljust(self.at, b"\0")
            node.data = old[: self.at] + data + old[self.at + len(data) :]
        elif self.kind == "size":
            node.data = node.data[: self.at].ljust(self.at, b"\0")
        else:
            for place, name in filter(None, [self.source, (self.parent, self.name)]):
                assert place is not None
                names = twin(place).names
                assert names is not None
                if (place is not self.parent or self.kind == "remove" or name != self.name) and (
                    names.get(name) is node
                ):
                    del names[name]
            if self.kind != "remove":
                assert self.parent is not None
                names = twin(self.parent).names
                assert names is not None
                names[self.name] = node


class History:
    """The changes of a run, in order, from the disk as it was."""

    def __init__(self, ops: Sequence[Op], root: Path, before: Node) -> None:
        self.root, self.before, self.changes = root, before, list[Change | None]()
        self._live: dict[int, Node] = {}
        self._top = before.copy(self._live)
        self._old = {id(twin): key for key, twin in self._live.items()}
        self.ops = list[Op]()
        for op in ops:
            for one in (*self._unseen(op), op):
                made = self._change(one)
                if made is not None:
                    made.on(WHOLE, lambda node: node)
                self.changes.append(made)
                self.ops.append(one)
                if one.kind == "sync":
                    self._settle(self._node(one.path), len(self.ops) - 1)

    def _unseen(self, op: Op) -> list[Op]:
        """Return the rename that made a file's name: Rust makes some calls past the C library."""
        names = self._find(op.path)[0].names or {}
        name = Path(op.path).name
        new = [other for other in names if other.startswith(".tmp")]
        if op.kind not in ("write", "sync", "truncate") or name in names or len(new) != 1:
            return []
        return [Op("rename", op.path, op.path[: -len(name)] + new[0], 0, b"")]

    def _find(self, path: str) -> tuple[Node, str]:
        parts, node = Path(path).relative_to(self.root).parts, self._top
        for part in parts[:-1]:
            assert node.names is not None
            node = node.names[part]
        return node, parts[-1] if parts else ""

    def _node(self, path: str) -> Node:
        parent, name = self._find(path)
        assert parent.names is not None
        return parent.names[name] if name else parent

    def _change(self, op: Op) -> Change | None:
        if op.kind in ("create", "mkdir"):
            made = Node(names={} if op.kind == "mkdir" else None)
            return Change("name", made, *self._find(op.path))
        if op.kind == "rename":
            return Change("rename", self._node(op.other), *self._find(op.path),
                          source=self._find(op.other))  # fmt: skip
        if op.kind in ("unlink", "rmdir"):
            return Change("remove", self._node(op.path), *self._find(op.path))
        if op.kind == "write":
            return Change("write", self._node(op.path), at=op.at, data=op.data)
        if op.kind in ("truncate", "cut", "grow"):
            node = self._node(op.path)
            return Change("size", node, at=max(op.at, len(node.data) * (op.kind == "grow")))
        return None

    def _settle(self, node: Node, number: int) -> None:
        for one in self.changes:
            if one is not None and (one.node if one.parent is None else one.parent) is node:
                one.lasts = min(one.lasts, number)

    def loose(self, now: int) -> list[int]:
        """Return the numbers of the changes that a power cut behind call `now` may lose."""
        return [
            i
            for i, one in enumerate(self.changes[: now + 1])
            if one is not None and one.lasts > now
        ]

    def disk(self, now: int, lost: dict[int, int]) -> Node:
        """Return the disk behind call `now` without what is lost."""
        twins: dict[int, Node] = {}
        top = self.before.copy(twins)

        def twin(node: Node) -> Node:
            key = self._old.get(id(node), id(node))
            return twins.setdefault(key, Node(names=None if node.names is None else {}))

        for number, one in enumerate(self.changes[: now + 1]):
            if one is not None:
                one.on(lost.get(number, WHOLE), twin)
        return top


def losses(history: History, now: int, chance: random.Random) -> Iterator[dict[int, int]]:
    """Give what may be lost together: nothing, all, one, all but one, all behind one; draws."""
    loose = history.loose(now)
    yield {}
    yield dict.fromkeys(loose, LOST)
    if 3 ** len(loose) <= STATES:
        for how in itertools.product((WHOLE, HALF, LOST), repeat=len(loose)):
            yield dict(zip(loose, how))
        return
    some: list[dict[int, int]] = []
    for at, one in enumerate(loose):
        some += [{one: LOST}, {one: HALF}, dict.fromkeys(loose[at:], LOST)]
        some.append(dict.fromkeys((other for other in loose if other != one), LOST))
    chance.shuffle(some)
    yield from some[: STATES // 2]
    for _ in range(STATES // 2):
        yield {one: chance.choice((WHOLE, HALF, LOST)) for one in loose}


# What readers see


def of_labels(work: Path) -> str:
    """Return the labels in force."""
    dataset = Dataset(work / "data")
    return labels.current(dataset.root, dataset.classes).digest


def of_dataset(name: str) -> Callable[[Path], str]:
    """Return a reader of all of a dataset, its labels too."""

    def seen(work: Path) -> str:
        dataset = Dataset(work / name)
        found = verify(work / name, deep=True)
        if not found.ok:
            return f"damaged: {found.shown[0]}"
        return dataset.digest + labels.current(dataset.root, dataset.classes).digest

    return seen


def of_run(work: Path) -> str:
    """Return the newest checkpoint, and the bytes of all its tensors."""
    saved = checkpoint.newest(work / "run" / "checkpoints")
    if saved is None:
        return ""
    wrong = checkpoint.problem(saved.path)
    manifest = (saved.path / checkpoint.MANIFEST).read_bytes()
    return f"damaged: {wrong}" if wrong else hashlib.sha256(manifest).hexdigest()


READERS: dict[str, Callable[[Path], str]] = {
    "shard": of_dataset("data"),
    "train": of_run,
    "apply": of_labels,
    "undo": of_labels,
    "cluster apply": of_labels,
    "cluster undo": of_labels,
    "drop": of_labels,
    "drop --key": of_labels,
    "reshard": of_dataset("re"),
    "drop --erase": of_dataset("less"),
    "merge": of_dataset("both"),
}


@dataclass
class Looks:
    """What a reader saw of states, each once."""

    work: Path
    reader: Callable[[Path], str]
    seen: dict[bytes, str] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    def at(self, node: Node) -> str:
        """Return what is seen; "GLNNNN" for a refusal."""
        key = mark(node)
        if key not in self.seen:
            shutil.rmtree(self.work, ignore_errors=True)
            write(node, self.work)
            try:
                self.seen[key] = self.reader(self.work)
            except GlintError as error:
                self.seen[key] = error.code
                self.refused[error.code] += 1
            except Exception as error:
                self.seen[key] = f"damaged: {type(error).__name__}: {error}"
        return self.seen[key]


def replayed(stage: Stage, share: float, seed: int) -> Figure:
    """Look at every state of a stage."""
    undisturbed(stage)
    begin, log = time.monotonic(), stage.work.with_name("log")
    log.unlink(missing_ok=True)
    stage.fresh()
    before = read(stage.work)
    code, said = stage.ended(stage.run(log=log).go())
    if code != 0:
        raise RuntimeError(said)
    history = History(journal(log.read_bytes()), stage.work, before)
    ops = history.ops
    looks = Looks(stage.work, READERS[stage.name])
    if mark(history.disk(len(ops) - 1, {})) != mark(read(stage.work)):
        raise RuntimeError(f"{stage.name}: replayed, it is not what was written")
    chance, states, wrong = random.Random(seed), 0, list[str]()
    first = looks.at(before)
    versions = [] if first.startswith("GL") else [first]
    oldest, lasts = 0, bool(versions)  # the version that lasts
    step = max(1, round(1 / share))
    for now in range(len(ops)):
        alive = looks.at(history.disk(now, {}))
        if not alive.startswith("GL") and alive not in versions[-1:]:
            versions.append(alive)
        lasting = looks.at(history.disk(now, dict.fromkeys(history.loose(now), LOST)))
        if lasting in versions:
            oldest, lasts = max(oldest, versions.index(lasting)), True
        for lost in losses(history, now, chance) if now % step == 0 else ():
            states += 1
            found = looks.at(history.disk(now, lost))
            known = found == "GL0308" or (found == "GL0301" and not lasts)
            if not known and found not in versions[oldest:]:
                wrong.append(f"behind {ops[now].kind} {Path(ops[now].path).name} ({now}), "
                             f"{len(lost)} lost: {found[:120]}")  # fmt: skip
    figure = figures.ceiling(f"crashes, {stage.name}: states seen wrong", len(wrong), 0)
    return {
        **figure, "calls": len(ops), "states": states, "different": len(looks.seen),
        "versions": len(versions), "refused": dict(sorted(looks.refused.items())),
        **({"shown": wrong[:8]} if wrong else {}), "seconds": round(time.monotonic() - begin),
    }  # fmt: skip


def crashes(given: Given) -> Iterator[Figure]:
    """States that a power cut may leave of label versions, checkpoints and datasets."""
    yield from preloaded(Path(__file__), given, given.only or [*READERS])


def main() -> None:
    given = json.loads(sys.argv[1])
    prove.ready()
    logger.setLevel(logging.ERROR)  # damaged checkpoints are passed over by the hundred
    for stage in road(Path(given["place"]), given["only"]):
        print(json.dumps(replayed(stage, given["share"], given["seed"])), flush=True)


if __name__ == "__main__":
    main()
