"""Hold identities of a dataset out as a test: pair lists, packs, and who to drop from training."""

# n images of the people held out, D embedding

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glint.errors import BusyError, InputError, UsageError
from glint.evals import packs
from glint.evals.people import keys_of
from glint.files import atomic
from glint.results import bench as results
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import load

FOLDS = 10
MOST = 64  # images of a person among which pairs are made


@dataclass(frozen=True)
class _Held:
    """Who is held out. rows: by person, the rows of images; fold, group: of each person."""

    rows: list[np.ndarray]
    fold: np.ndarray
    group: list[str]


Row = tuple[int, int, int, bool]  # fold, rows of both images, whether of one person


def split(
    root: Path, out: Path, people: int, *,
    pairs: int = 6000, embeddings: Path | None = None, groups: dict[str, str] | None = None,
    seed: int = 0,
) -> results.Split:  # fmt: skip
    """Choose people with two images or more and write OUT: ids.txt, lists and packs of pairs.

    Half of the pairs are of one person; all of a fold are of its own people. `easy` is drawn at
    random; `hard`, with embeddings, has each fold's least alike pairs of one person and most alike
    of two; `balanced`, with groups, as many pairs of every group, both people of it. The dataset
    does not change. Raises UsageError GL0002 for too few people, BusyError GL0004.
    """
    if out.exists():
        raise BusyError("GL0004", "it is there already", where=str(out), hint="name a new folder")
    data = Dataset(root)
    table = labels.current(data.root, data.classes)
    person_N = table.sample_person(data.label)
    rng = np.random.default_rng(seed)
    held = _chosen(data, person_N, people, groups, rng)
    made = {"easy": _drawn(held, pairs, rng)}
    if embeddings is not None:
        emb = load(embeddings, data.digest, images=data.n, classes=data.classes)
        made["hard"] = _hard(held, pairs, emb.sample_ND)
    if groups is not None:
        names = sorted({*held.group})
        each = [_drawn(_only(held, name), pairs // len(names), rng) for name in names]
        least = min(sum(row[3] for row in part) for part in each)
        made["balanced"] = [row for part in each for row in _even(part, least)]
    source = list(data.source)
    if len({*source}) < len(source):
        what = "several images have one source name: lists by name cannot tell them apart"
        raise InputError("GL0301", what, where=str(root), hint="split before `glint merge`")
    out.mkdir(parents=True)
    chosen = np.array([int(person_N[rows[0]]) for rows in held.rows])
    atomic.write_bytes(out / "ids.txt", "".join(f"label:{i}\n" for i in chosen.tolist()).encode())
    if groups is not None:
        text = "".join(f"{source[int(row)]}\t{group}\n"
                       for rows, group in zip(held.rows, held.group) for row in rows)  # fmt: skip
        atomic.write_bytes(out / "groups.tsv", f"image\tgroup\n{text}".encode())
    for name, rows in made.items():
        rows.sort(key=lambda row: (row[0], not row[3]))
        text = "".join(f"{f}\t{source[a]}\t{source[b]}\t{int(s)}\n" for f, a, b, s in rows)
        atomic.write_bytes(out / f"{name}.tsv", f"fold\ta\tb\tsame\n{text}".encode())
        images = [data.read(row) for _, a, b, _ in rows for row in (a, b)]
        packs.write_bin(out / f"{name}.bin", images, [row[3] for row in rows])
    return results.Split(
        out=str(out), ids=str(out / "ids.txt"), people=len(held.rows),
        images=sum(len(rows) for rows in held.rows),
        lists={name: len(rows) for name, rows in made.items()},
        packs=[str(out / f"{name}.bin") for name in made],
        groups={name: held.group.count(name) for name in sorted({*held.group} - {""})},
    )  # fmt: skip


def _chosen(
    data: Dataset, person_N: np.ndarray, people: int, groups: dict[str, str] | None,
    rng: np.random.Generator,
) -> _Held:  # fmt: skip
    """Choose people with two images, as many of each group where there are groups."""
    order = np.argsort(person_N, kind="stable")
    order = order[person_N[order] >= 0]
    value, first = np.unique(person_N[order], return_index=True)
    rows = {int(v): part for v, part in zip(value, np.split(order, first[1:]))}
    open_ = [v for v, part in rows.items() if len(part) > 1]
    group = dict.fromkeys(open_, "")
    if groups is not None:
        name_C = data.identities().column("name").to_pylist()
        said_C = data.identities().column("source_label").to_pylist()
        for v in open_:
            keys = [name_C[v], said_C[v], *keys_of(data.source[int(rows[v][0])])]
            group[v] = next((groups[key] for key in keys if key and key in groups), "")
        open_ = [v for v in open_ if group[v]]
    names = sorted({group[v] for v in open_})
    share = [people // len(names) + (k < people % len(names)) for k in range(len(names))]
    picked: list[int] = []
    for name, count in zip(names, share):
        mine = [v for v in open_ if group[v] == name]
        if count > len(mine) or count < 2 * FOLDS:
            of = f" of group {name}" if name else ""
            what = f"{count} people{of} are asked for, {len(mine)} have two images"
            hint = f"at least {2 * FOLDS} are needed of each group: two for a fold"
            raise UsageError("GL0002", what, where="--people", hint=hint)
        picked += rng.permutation(mine)[:count].tolist()
    if not picked:
        what = "no identity has two images" + (" and a group" if groups is not None else "")
        raise UsageError("GL0002", what, where="--people")
    fold = np.concatenate([np.arange(count) % FOLDS for count in share])
    return _Held([rows[v] for v in picked], fold, [group[v] for v in picked])


def _only(held: _Held, group: str) -> _Held:
    mine = [k for k, name in enumerate(held.group) if name == group]
    return _Held([held.rows[k] for k in mine], held.fold[mine], [group] * len(mine))


def _even(rows: list[Row], each: int) -> list[Row]:
    """Keep as many pairs of either kind."""
    return [row for kind in (True, False) for row in [r for r in rows if r[3] == kind][:each]]


def _same(rows: Sequence[np.ndarray], need: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw pairs of one person: a round of one pair for each person after the other."""
    every = []
    for mine in rows:
        some = rng.permutation(mine)[:MOST]
        i, j = np.triu_indices(len(some), 1)
        kept = rng.permutation(len(i))[:need]
        every.append(list(zip(some[i[kept]].tolist(), some[j[kept]].tolist())))
    made: list[tuple[int, int]] = []
    for turn in range(max(map(len, every))):
        made += [every[k][turn] for k in rng.permutation(len(every)) if turn < len(every[k])]
        if len(made) >= need:
            break
    return made[:need]


def _drawn(held: _Held, pairs: int, rng: np.random.Generator) -> list[Row]:
    """Draw pairs at random in each fold, as many of two people as of one."""
    made: list[Row] = []
    for fold in range(FOLDS):
        rows = [held.rows[k] for k in np.flatnonzero(held.fold == fold)]
        same = _same(rows, pairs // (2 * FOLDS), rng)
        other: set[tuple[int, int]] = set()
        for _ in range(50 * len(same)):
            if len(other) == len(same):
                break
            one, two = rng.choice(len(rows), 2, replace=False)
            other.add((int(rng.choice(rows[one])), int(rng.choice(rows[two]))))
        least = min(len(same), len(other))
        made += [(fold, a, b, True) for a, b in same[:least]]
        made += [(fold, a, b, False) for a, b in sorted(other)[:least]]
    return made


def _hard(held: _Held, pairs: int, sample_ND: np.ndarray) -> list[Row]:
    """Take each fold's least alike pairs of one person and most alike of two.

    A person gives at most four times its even share of either, lest one wrong label be the test.
    """
    made: list[Row] = []
    for fold in range(FOLDS):
        rows = [held.rows[k][:MOST] for k in np.flatnonzero(held.fold == fold)]
        row_n = np.concatenate(rows)
        person_n = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
        x_nD = np.asarray(sample_ND[row_n], np.float32)
        sound_n = np.isfinite(x_nD).all(1)
        row_n, person_n, x_nD = row_n[sound_n], person_n[sound_n], x_nD[sound_n]
        cosine_nn = x_nD @ x_nD.T
        i, j = np.triu_indices(len(row_n), 1)
        same = person_n[i] == person_n[j]
        found: dict[bool, list[tuple[int, int]]] = {}
        for kind in (True, False):
            at = np.flatnonzero(same == kind)
            order = at[np.argsort((1 if kind else -1) * cosine_nn[i[at], j[at]], kind="stable")]
            need = pairs // (2 * FOLDS)
            most, used = max(1, 4 * need // len(rows)), np.zeros(len(rows), np.int64)
            found[kind] = []
            for k in order.tolist():
                a, b = person_n[i[k]], person_n[j[k]]
                if len(found[kind]) == need:
                    break
                if max(used[a], used[b]) < most:
                    used[[a, b]] += 1
                    found[kind].append((int(row_n[i[k]]), int(row_n[j[k]])))
        least = min(map(len, found.values()))
        made += [(fold, a, b, kind) for kind, some in found.items() for a, b in some[:least]]
    return made
