"""Take-down: identities that must not be trained on any more, and images that must be gone."""

# C labels as sharded, m masked pairs

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from glint import log, schemas
from glint.errors import InputError, UsageError
from glint.files import atomic, parquet, seal, store
from glint.log import Progress
from glint.pipelines.dataset import rewrite
from glint.pipelines.dataset.erase import Lost, Names, alike, below, cleaned, search
from glint.pipelines.dataset.output import Execution, Output
from glint.pipelines.dataset.reshard import Reshard, Without
from glint.results import datasets as results
from glint.shards import labels, tombstones
from glint.shards.dataset import Dataset
from glint.shards.labels import LabelTable
from glint.shards.plan import key_name

Ints = npt.NDArray[np.int64]
STAGE = "drop"
KINDS = ("label", "name", "source-label")
PATIENCE = 60.0  # seconds that a take-down waits for another command to end changing labels


def find(dataset: Dataset, wanted: Sequence[str]) -> list[int]:
    """Return the labels as sharded that are meant by LABEL, NAME or a source label.

    A word that means several identities is refused; `label:17`, `name:Ann` and `source-label:n17`
    say which is meant. Raises UsageError GL0002.
    """
    table = dataset.identities()
    columns: dict[str, dict[str, list[int]]] = {}
    for kind, column in (("name", "name"), ("source-label", "source_label")):
        columns[kind] = {}
        for i, said in enumerate(table.column(column).to_pylist()):
            columns[kind].setdefault(said, []).append(i)
    found: list[int] = []
    for word in wanted:
        kind, _, rest = word.partition(":")
        kinds, text = ((kind,), rest) if kind in KINDS and rest else (KINDS, word)
        hits: dict[int, str] = {}
        for one in kinds:
            if one != "label":
                hits = {**dict.fromkeys(columns[one].get(text, ()), one), **hits}
            elif _is_number(text) and int(text) < dataset.classes:
                hits[int(text)] = one
        if not hits:
            hint = f"labels run from 0 to {dataset.classes - 1}; names and source labels are "
            hint += "those of identities.parquet"
            what = f"no identity is called {word!r}"
            raise UsageError("GL0002", what, where="--identity", hint=hint)
        if len(hits) > 1:
            some = ", ".join(f"label {i} by its {how}" for i, how in sorted(hits.items())[:5])
            what = f"{word!r} means {len(hits)} identities: {some}"
            hint = "write label:N for the one that is meant"
            raise UsageError("GL0002", what, where="--identity", hint=hint)
        found += hits
    return sorted(set(found))


def same_person(target_C: Ints, chosen: Sequence[int]) -> list[int]:
    """Return the labels that the labels in force merge with the chosen ones, and these."""
    target = np.unique(target_C[list(chosen)])
    also = np.flatnonzero(np.isin(target_C, target[target >= 0]))
    return sorted({*chosen, *also.tolist()})


def family(dataset: Dataset, target_C: Ints, chosen: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return all labels of the chosen persons, and which of them are folders inside others.

    As `same_person`, and those whose source label is a folder inside one of theirs.
    """
    gone, inside = same_person(target_C, chosen), list[int]()
    while more := below(dataset, gone):
        inside += more
        gone = same_person(target_C, [*gone, *more])
    return gone, sorted(inside)


def _hash(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _tombstone(
    dataset: Dataset, gone: Sequence[int], keys: Sequence[int], reason: str, op: str
) -> dict[str, Any]:
    """Return the line that outlives the names: hashes of them, labels, counts, reason, date.

    keys: single images, also those that labels in force count to identities that are gone.
    """
    table = dataset.identities()
    names, said = (table.column(c).to_pylist() for c in ("name", "source_label"))
    return {
        "op": op,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "reason": reason,
        "labels": list(gone),
        "keys": [key_name(key) for key in keys],
        "name_sha256": [_hash(names[i]) for i in gone],
        "source_label_sha256": [_hash(said[i]) for i in gone],
        "images": int(
            (np.isin(dataset.label, list(gone)) | np.isin(rewrite.keys(dataset), keys)).sum()
        ),
    }


def _put_in_force(
    root: Path, counts: tuple[int, int], gone: Sequence[int], reason: str, empty: Sequence[int] = ()
) -> int:
    """Put the absence of all that was taken down in force, where it is not yet; return the version.

    counts: labels and samples; empty: labels without an image since. The caller holds the labels.
    """
    now = labels.unchecked(root, counts[0])
    then = now.without(empty)
    if tombstones.bury(root, then).same(now):
        return now.version
    why = {"stage": STAGE, "labels": list(gone), "reason": reason}
    return labels.commit(root, then, why, based_on=now.version, counts=counts)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 20


def _keys(dataset: Dataset, wanted: Sequence[str]) -> list[int]:
    there = set(rewrite.keys(dataset).tolist()) if wanted else set()
    for word in wanted:
        if not _is_number(word) or int(word) not in there:
            raise UsageError("GL0002", f"no sample has the key {word!r}", where="--key")
    return sorted({int(word) for word in wanted})


def listed(path: Path) -> list[str]:
    """Read identities, a line each, as `find` takes them. Raises UsageError GL0001, GL0002."""
    if not path.is_file():
        raise UsageError("GL0001", "no such file", where=f"--ids-from {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError("GL0002", "expected a text", where=f"--ids-from {path}") from None
    if found := [line.strip() for line in lines if line.strip()]:
        return found
    raise UsageError("GL0002", "it names no identity", where=f"--ids-from {path}")


def failed_keys(root: str | os.PathLike[str], folder: Path) -> list[str]:
    """Return the keys of images that `embed` could not decode, or found of another size.

    Raises InputError GL0402 for embeddings of another dataset.
    """
    about = atomic.read_json(folder / "embeddings.json", "GL0402")
    if about.get("dataset") != Dataset(root).digest:
        what = "they are not of this dataset"
        raise InputError("GL0402", what, where=str(folder), hint="glint embed makes them")
    table = parquet.read(folder / "samples.parquet", schemas.EMBEDDED, code="GL0402")
    bad = pc.is_in(table.column("status"), pa.array(["damaged", "not-a-jpeg", "wrong-size"]))
    keys: list[str] = table.column("key").filter(bad).to_pylist()
    return keys


def _copies(dataset: Dataset, gone_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which samples that stay hold an image, byte for byte, of one that goes; bool [N]."""
    digests = dataset.column("digest")
    same = pc.is_in(digests, digests.filter(pa.array(gone_N)))
    return np.asarray(same.to_numpy()) & ~gone_N


def drop(
    root: str | os.PathLike[str],
    identities: Sequence[str],
    reason: str,
    *,
    keys: Sequence[str] = (),
    erase: str | os.PathLike[str] | None = None,
    copies: bool = False,
    workers: int = 1,
    dry_run: bool = False,
    progress: Progress = log.silent,
) -> results.Drop | results.Erase | results.ErasePlan:
    """Take identities out of the labels in force, or, with `erase`, out of the bytes.

    Whom the labels in force merge with a named identity is the same person and goes too, and so do
    images that they count to that identity, wherever these were sharded, and labels that are
    folders inside hers. Without `erase` no shard changes: a new label version without them, and a
    tombstone. With `erase` a new dataset lacks these images and names, and all that the tombstones
    of this one name, and is searched for them; this one stays as it is. copies: also images of
    others with the same bytes. Raises UsageError GL0002 and what `Rewrite.write` raises.
    """
    store.refuse(root)
    dataset = Dataset(root)
    if not reason.strip():
        raise UsageError("GL0002", "expected some words, found none", where="--reason")
    if not identities and not keys and not (erase is not None and tombstones.read(root)):
        raise UsageError("GL0002", "expected an identity or a key, found none", where="--identity")
    named, singly = find(dataset, identities), _keys(dataset, keys)
    chosen = _choose(dataset, named, singly, copies)
    if erase is not None:
        erasure = Erasure(dataset, chosen, reason, copies)
        lost = {
            "identities": erasure.everyone,
            "images": erasure.count,
            "copies": erasure.copies,
            "erased_to": str(erase),
        }
        if dry_run:
            return results.ErasePlan(**chosen.told | erasure.survey(erase) | lost)
        written = erasure.write(Output(Path(erase)), Execution(workers, progress))
        table = labels.current(erase, dataset.classes)
        left, count = search(Path(erase), erasure.called, erasure.lost)
        lost |= {"version": table.version, "classes": table.classes}
        lost |= {"left": left, "left_count": count}
        return results.Erase(**chosen.told | written | lost, dry_run=False)
    if dry_run:
        line = _tombstone(dataset, chosen.fresh, chosen.fresh_keys, reason, STAGE)
        then = labels.settled(root, chosen.table, more=[line])
        same = then.same(chosen.table)
        return results.Drop(
            **chosen.told,
            dry_run=True,
            version=chosen.table.version if same else labels.upcoming(root),
            erased_to=None,
            classes=then.classes,
        )
    atomic.own_dir(dataset.root / "_glint")
    with (
        atomic.lock(dataset.root / "_glint" / "lock"),
        labels.changing(dataset.root, PATIENCE),
    ):
        path = dataset.root / tombstones.FILE
        atomic.sweep(path.parent, path.name)
        chosen = _choose(dataset, named, singly, copies)  # of the labels that are in force now
        if chosen.fresh or chosen.fresh_keys:
            line = _tombstone(dataset, chosen.fresh, chosen.fresh_keys, reason, STAGE)
            seal.append(path, line, "GL0304")
        counts = dataset.classes, dataset.n
        version = _put_in_force(dataset.root, counts, chosen.gone, reason)
    return results.Drop(
        **chosen.told,
        dry_run=False,
        version=version,
        erased_to=None,
        classes=labels.unchecked(root, dataset.classes).classes,
    )


@dataclass(frozen=True)
class Chosen:
    """Who goes by the labels in force, and what a result tells of it.

    gone: labels; keys: images that were named singly or that the labels in force count to `gone`;
    fresh, fresh_keys: those of them that no tombstone names yet.
    """

    table: LabelTable
    gone: list[int]
    keys: list[int]
    fresh: list[int]
    fresh_keys: list[int]
    told: dict[str, Any]


def _choose(dataset: Dataset, named: list[int], singly: list[int], copies: bool) -> Chosen:
    """Find out whom the named identities and keys mean by the labels in force.

    copies: and the images of others that are theirs byte for byte.
    """
    table, old = labels.unchecked(dataset.root, dataset.classes), tombstones.read(dataset.root)
    gone, inside = family(dataset, table.target, named)
    key_N = rewrite.keys(dataset)
    moved_in = key_N[table.row[np.isin(table.label, gone)]]
    keys = {*singly, *moved_in.tolist()}
    images_N = np.isin(dataset.label, gone) | np.isin(key_N, sorted(keys))
    twin_N = _copies(dataset, images_N)
    if copies:
        keys |= {*key_N[twin_N].tolist()}
    done = {key for line in old for key in line.get("keys", ())}
    fresh = [label for label in gone if label not in tombstones.buried(old)]
    told = {
        "dataset": str(dataset.root),
        "identities": gone,
        "merged_with": sorted(set(gone) - set(named) - set(inside)),
        "below": inside,
        "images": int((images_N | (twin_N & copies)).sum()),
        "copies": int(twin_N.sum()),
        "copies_erased": copies,
        "already": sorted(set(gone) - set(fresh)),
        "alike": [i for i in alike(dataset, gone) if table.target[i] >= 0],
        "version_before": table.version,
    }
    fresh_keys = [key for key in sorted(keys) if key_name(key) not in done]
    return Chosen(table, gone, sorted(keys), fresh, fresh_keys, told)


class Erasure(Reshard):
    """The dataset without identities and keys, and without all that were taken down before."""

    def __init__(self, dataset: Dataset, chosen: Chosen, reason: str, copies: bool) -> None:
        lines = tombstones.read(dataset.root)
        everyone = sorted({*chosen.gone, *tombstones.buried(lines)})
        self.everyone = family(dataset, chosen.table.target, everyone)[0]
        before = {int(key) for line in lines for key in line.get("keys", ())}
        key_N = rewrite.keys(dataset)
        there = before & set(key_N.tolist()) if before else before
        self.reason = reason
        keys = {*chosen.keys, *there}
        without = Without(tuple(self.everyone), tuple(sorted(keys)), (reason,))
        twin_n = _copies(dataset, without.rows(dataset))
        self.copies = chosen.told["copies"] if copies else int(twin_n.sum())
        if copies:
            keys |= {*key_N[twin_n].tolist()}
            without = Without(tuple(self.everyone), tuple(sorted(keys)), (reason,))
        super().__init__(dataset, int(dataset.manifest["samples_per_shard"]), without=without)
        gone_N = self.gone.rows(dataset)
        self.count = int(gone_N.sum())
        target_N, target_C = chosen.table.sample_target(dataset.label), chosen.table.target
        lost = np.setdiff1d(target_N[gone_N], target_N[~gone_N])
        self.empty = np.flatnonzero(np.isin(target_C, lost[lost >= 0])).tolist()
        self.called = Names(dataset, self.everyone)

    @cached_property
    def lost(self) -> Lost:
        """The images that go, by their bytes: reads them."""
        return Lost(self.dataset, self.gone.rows(self.dataset))

    def clean(self, texts: pa.Array) -> pa.Array:
        """Write over her names, where samples that stay say where they came from."""
        return self.called.erased(texts)

    def quarantine(self) -> pa.Table:
        """Return the quarantine; rows of those who are gone keep their reason and no more."""
        said = self.dataset.identities().column("source_label").to_pylist()
        labels = {said[label] for label in self.gone.labels}
        return cleaned(super().quarantine(), self.called, labels, self.lost)

    def _carry(self, out: Path) -> None:
        """Bury those who are not buried yet, too, and put their absence in force."""
        super()._carry(out)
        lines = tombstones.read(out)
        fresh = [label for label in self.everyone if label not in tombstones.buried(lines)]
        done = {key for line in lines if line.get("op") == "erase" for key in line.get("keys", ())}
        keys = [key for key in self.gone.keys if key_name(key) not in done]
        if fresh or keys:
            line = _tombstone(self.dataset, fresh, keys, self.reason, "erase")
            seal.append(out / tombstones.FILE, line, "GL0304")
        if self.everyone or self.empty:
            with labels.changing(out):
                counts = self.dataset.classes, self.dataset.n - self.count
                _put_in_force(out, counts, self.everyone, self.reason, self.empty)
