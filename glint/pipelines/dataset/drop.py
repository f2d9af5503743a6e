"""Take-down: identities that must not be trained on any more, and images that must be gone."""

# C labels as sharded, m masked pairs

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from glint import log
from glint.errors import UsageError
from glint.files import atomic, seal, store
from glint.log import Progress
from glint.pipelines.dataset import rewrite
from glint.pipelines.dataset.erase import Lost, Names, below, cleaned, search
from glint.pipelines.dataset.output import Execution, Output
from glint.pipelines.dataset.reshard import Reshard, Without
from glint.results import datasets as results
from glint.shards import labels
from glint.shards.dataset import TOMBSTONES, Dataset
from glint.shards.plan import key_name

Ints = npt.NDArray[np.int64]
STAGE = "drop"
KINDS = ("label", "name", "source-label")


def find(dataset: Dataset, wanted: Sequence[str]) -> list[int]:
    """Return the labels as sharded that are meant by LABEL, NAME or a source label.

    A word that means several identities is refused; `label:17`, `name:Ann` and `source-label:n17`
    say which is meant. Raises UsageError GL0002.
    """
    table = dataset.identities()
    columns = {
        "name": table.column("name").to_pylist(),
        "source-label": table.column("source_label").to_pylist(),
    }
    found: list[int] = []
    for word in wanted:
        kind, _, rest = word.partition(":")
        kinds, text = ((kind,), rest) if kind in KINDS and rest else (KINDS, word)
        hits: dict[int, str] = {}
        for one in kinds:
            if one != "label":
                named = (i for i, said in enumerate(columns[one]) if said == text)
                hits = {**dict.fromkeys(named, one), **hits}
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
    """Return all labels of the chosen persons: as `same_person`, and those whose source label is a
    folder inside one of theirs; and these alone."""
    gone, inside = same_person(target_C, chosen), list[int]()
    while more := below(dataset, gone):
        inside += more
        gone = same_person(target_C, [*gone, *more])
    return gone, sorted(inside)


def without(target_C: Ints, mask_m2: Ints, gone: Sequence[int]) -> tuple[Ints, Ints]:
    """Return targets and masks in which `gone` are dropped and the rest stays dense, in order."""
    target_C = target_C.copy()
    target_C[list(gone)] = -1
    kept = np.unique(target_C[target_C >= 0])
    new = np.full(int(target_C.max(initial=-1)) + 2, -1, np.int64)  # index -1 stays -1
    new[kept] = np.arange(len(kept))
    renewed_m2 = np.where(np.isin(mask_m2, kept), mask_m2, -1)
    renewed_m2 = new[renewed_m2].reshape(-1, 2)
    return new[target_C], renewed_m2[(renewed_m2 >= 0).all(axis=1)]


def _hash(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _tombstone(
    dataset: Dataset, gone: Sequence[int], keys: Sequence[int], reason: str, op: str
) -> dict[str, Any]:
    """Return the line that outlives the names: hashes of them, labels, counts, reason, date."""
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
        "images": int(np.isin(dataset.label, list(gone)).sum()) + len(keys),
    }


def taken_down(root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the tombstones of a dataset. Raises InputError GL0304 for a damaged file."""
    return seal.sound_lines(Path(root) / TOMBSTONES)


def _buried(lines: Sequence[dict[str, Any]]) -> set[int]:
    return {int(label) for line in lines for label in line.get("labels", ())}


def _put_in_force(root: Path, classes: int, gone: Sequence[int], reason: str) -> int:
    """Drop labels in the version in force, where they are not dropped yet; return the version."""
    now = labels.current(root, classes)
    if (now.target[list(gone)] < 0).all():
        return now.version
    target_C, mask_m2 = without(now.target, now.masks, gone)
    return labels.apply(
        root, target_C, mask_m2, {"stage": STAGE, "labels": list(gone), "reason": reason}
    )


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 20


def _keys(dataset: Dataset, wanted: Sequence[str]) -> list[int]:
    there = set(rewrite.keys(dataset).tolist()) if wanted else set()
    for word in wanted:
        if not _is_number(word) or int(word) not in there:
            raise UsageError("GL0002", f"no sample has the key {word!r}", where="--key")
    return sorted({int(word) for word in wanted})


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

    Whom the labels in force merge with a named identity goes too, and labels that are folders
    inside hers. Without `erase` no shard changes: a new label version with target -1, a tombstone.
    With it a new dataset lacks these images and names, and all that tombstones name, and is
    searched for them; copies: also images of others with the same bytes. Raises UsageError GL0002.
    """
    store.refuse(root)
    dataset = Dataset(root)
    if not reason.strip():
        raise UsageError("GL0002", "expected some words, found none", where="--reason")
    if (keys or copies) and erase is None:
        what = "labels cannot leave out a single image"
        hint = "write a new dataset without it: add --erase OUT"
        raise UsageError("GL0002", what, where="--key" if keys else "--copies", hint=hint)
    old = taken_down(root)
    if not identities and not keys and not (erase is not None and old):
        raise UsageError("GL0002", "expected an identity or a key, found none", where="--identity")
    table = labels.current(root, dataset.classes)
    named = find(dataset, identities)
    gone, inside = family(dataset, table.target, named)
    gone_keys = _keys(dataset, keys)
    fresh = [label for label in gone if label not in _buried(old)]
    images = np.isin(dataset.label, gone)
    result: dict[str, Any] = {
        "dataset": str(root),
        "identities": gone,
        "merged_with": sorted(set(gone) - set(named) - set(inside)),
        "below": inside,
        "images": int(images.sum()),
        "copies": int(_copies(dataset, images | np.isin(rewrite.keys(dataset), gone_keys)).sum()),
        "already": sorted(set(gone) - set(fresh)),
        "version_before": table.version,
    }
    if erase is not None:
        erasure = Erasure(dataset, gone, gone_keys, reason, copies)
        result |= {
            "identities": erasure.everyone,
            "copies": erasure.copies,
            "copies_erased": copies,
            "erased_to": str(erase),
        }
        if dry_run:
            return results.ErasePlan(**result | erasure.survey(erase) | {"images": erasure.count})
        return _erase(erasure, Path(erase), Execution(workers, progress), result)
    if dry_run:
        fall = bool((table.target[gone] >= 0).any())
        return results.Drop(
            **result,
            dry_run=True,
            version=labels.upcoming(root) if fall else table.version,
            erased_to=None,
            classes=without(table.target, table.masks, gone)[0].max(initial=-1).item() + 1,
        )
    atomic.own_dir(dataset.root / "_glint")
    with atomic.lock(dataset.root / "_glint" / "lock"):
        if fresh:
            line = _tombstone(dataset, fresh, (), reason, STAGE)
            seal.append(dataset.root / TOMBSTONES, line, "GL0304")
        version = _put_in_force(dataset.root, dataset.classes, gone, reason)
    return results.Drop(
        **result,
        dry_run=False,
        version=version,
        erased_to=None,
        classes=labels.current(root, dataset.classes).classes,
    )


def _erase(erasure: Erasure, out: Path, how: Execution, result: dict[str, Any]) -> results.Erase:
    """Write the new dataset and search it for what it must not hold."""
    written = erasure.write(Output(out), how)
    table = labels.current(out, erasure.dataset.classes)
    left, count = search(out, erasure.called, erasure.lost)
    told = {"version": table.version, "classes": table.classes, "images": erasure.count}
    return results.Erase(
        **result | written | {**told, "identities": erasure.everyone},
        left=left, left_count=count, dry_run=False,
    )  # fmt: skip


class Erasure(Reshard):
    """The dataset without identities and keys, and without all that were taken down before."""

    def __init__(
        self, dataset: Dataset, gone: list[int], keys: list[int], reason: str, copies: bool
    ) -> None:
        buried = _buried(taken_down(dataset.root))
        target_C = labels.current(dataset.root, dataset.classes).target
        self.everyone = family(dataset, target_C, [*gone, *buried])[0]
        self.reason = reason
        without = Without(tuple(self.everyone), tuple(keys), (reason,))
        twin_n = _copies(dataset, without.rows(dataset))
        self.copies = int(twin_n.sum())
        if copies:
            keys = sorted({*keys, *rewrite.keys(dataset)[twin_n].tolist()})
            without = Without(tuple(self.everyone), tuple(keys), (reason,))
        super().__init__(dataset, int(dataset.manifest["samples_per_shard"]), without=without)
        self.count = int(self.gone.rows(dataset).sum())
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

    def after(self, folder: Path) -> None:
        """Bury those who are not buried yet, and put their absence in force."""
        lines = taken_down(folder)
        fresh = [label for label in self.everyone if label not in _buried(lines)]
        done = {key for line in lines for key in line.get("keys", ())}
        keys = [key for key in self.gone.keys if key_name(key) not in done]
        if fresh or keys:
            line = _tombstone(self.dataset, fresh, keys, self.reason, "erase")
            seal.append(folder / TOMBSTONES, line, "GL0304")
        if self.everyone:
            _put_in_force(folder, self.dataset.classes, self.everyone, self.reason)
