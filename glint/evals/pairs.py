"""Ten-fold verification of pairs, as the field reports it for LFW, CFP-FP and AgeDB-30."""

# n pairs, D embedding, f folds, t thresholds

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from glint.errors import InputError, UsageError
from glint.evals import rates
from glint.evals.packs import Pairs

FARS = ("1e-1", "1e-2", "1e-3", "1e-4")


@dataclass(frozen=True)
class Verification:
    """The outcome of a verification set; rates are shares, 0 to 1.

    accuracy, std: mean and deviation (ddof 0) of `folds`. threshold: mean over the folds of the
    squared distance chosen on the other folds. tar_at_far: by false accept rate, over all pairs.
    val, val_std, val_far: share of same pairs accepted at FAR 1e-3 of the other folds, and the
    FAR then met. cosine_same, cosine_different: mean cosines. None where pairs of a kind lack.
    """

    accuracy: float
    std: float
    folds: list[float]
    tar_at_far: dict[str, float | None]
    threshold: float
    val: float | None
    val_std: float | None
    val_far: float | None
    cosine_same: float | None
    cosine_different: float | None
    pairs: int
    same: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)


def ten_fold(
    a_nD: np.ndarray, b_nD: np.ndarray, same_n: np.ndarray, folds: np.ndarray | None = None
) -> Verification:
    """Verify pairs of embeddings of any length; each fold uses the threshold best on the others.

    Protocol of arcface_torch's verification: thresholds 0, 0.01, .. 3.99 on the squared distance,
    first best one wins; without `folds` (an integer per pair) ten runs of consecutive pairs.
    Raises InputError GL0802 for fewer than two pairs or shapes that differ, GL0402 for embeddings
    that are not finite.
    """
    same_n = rates.answers(same_n)
    if len(same_n) < 2:
        raise InputError("GL0802", f"expected at least two pairs, found {len(same_n)}")
    if a_nD.shape != b_nD.shape or len(a_nD) != len(same_n):
        raise InputError(
            "GL0802",
            f"expected {len(same_n)} embeddings on each side, found {a_nD.shape} and {b_nD.shape}",
        )
    distance_n = rates.squared_distance(a_nD, b_nD)
    wrong = int(np.count_nonzero(~np.isfinite(distance_n)))
    if wrong:
        raise InputError(
            "GL0402",
            f"{wrong} of {len(same_n)} pairs have an embedding that is not finite",
            hint="the model gives NaN or infinity: did its training diverge?",
        )
    fold_n, count = fold_numbers(len(same_n), folds)
    size_f = np.bincount(fold_n, minlength=count)
    same_f = np.bincount(fold_n[same_n], minlength=count)
    diff_f = size_f - same_f

    def hits(kind_n: np.ndarray, grid_t: np.ndarray) -> np.ndarray:
        return rates.accepted(distance_n[kind_n], fold_n[kind_n], count, grid_t)

    true_ft, false_ft = hits(same_n, rates.COARSE), hits(~same_n, rates.COARSE)
    correct_ft = true_ft + diff_f[:, None] - false_ft
    best_f = (correct_ft.sum(0) - correct_ft).argmax(1)
    accuracy_f = correct_ft[np.arange(count), best_f] / size_f

    false_ft = hits(~same_n, rates.FINE)
    others_ft = false_ft.sum(0) - false_ft
    limit_f = np.array(
        [
            rates.threshold_at(others_ft[f], int(diff_f.sum() - diff_f[f]), 1e-3, rates.FINE)
            for f in range(count)
        ]
    )
    accepted_n = distance_n < limit_f[fold_n]

    def share(kind_n: np.ndarray, size_f: np.ndarray) -> np.ndarray:
        some_f = size_f > 0
        accepted_f = np.bincount(fold_n[accepted_n & kind_n], minlength=count)
        result: np.ndarray = accepted_f[some_f] / size_f[some_f]
        return result

    val, far = share(same_n, same_f), share(~same_n, diff_f)
    return Verification(
        accuracy=float(accuracy_f.mean()),
        std=float(accuracy_f.std()),
        folds=[float(value) for value in accuracy_f],
        tar_at_far={far: rates.tar_at_far(distance_n, same_n, far) for far in FARS},
        threshold=float(rates.COARSE[best_f].mean()),
        val=float(np.mean(val)) if len(val) else None,
        val_std=float(np.std(val)) if len(val) else None,
        val_far=float(np.mean(far)) if len(far) else None,
        cosine_same=_cosine(distance_n[same_n]),
        cosine_different=_cosine(distance_n[~same_n]),
        pairs=len(same_n),
        same=int(same_n.sum()),
    )


def _cosine(distance_n: np.ndarray) -> float | None:
    return float(1 - distance_n.mean() / 2) if len(distance_n) else None


def fold_numbers(pairs: int, folds: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Number the folds 0, 1, ..; one fold alone leaves nothing to train on, so it is cut anew."""
    if folds is not None:
        values, fold_n = np.unique(np.asarray(folds), return_inverse=True)
        if len(fold_n) != pairs:
            raise InputError("GL0802", f"expected {pairs} fold numbers, found {len(fold_n)}")
        if len(values) > 1:
            return fold_n.reshape(-1), len(values)
    count = min(10, pairs)
    size_f = np.full(count, pairs // count)
    size_f[: pairs % count] += 1
    return np.repeat(np.arange(count), size_f), count


class Samples(Protocol):
    """What a pairs table needs of a dataset: where a sample came from, and its bytes."""

    @property
    def source(self) -> Iterable[str]: ...

    def read(self, row: int) -> bytes: ...


class SampleImages(Sequence[bytes]):
    """Some rows of a dataset as encoded images, read when asked for."""

    def __init__(self, dataset: Samples, row_n: np.ndarray) -> None:
        self.dataset, self.row_n = dataset, row_n

    def __len__(self) -> int:
        return len(self.row_n)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> SampleImages: ...

    def __getitem__(self, index: int | slice) -> bytes | SampleImages:
        if isinstance(index, slice):
            return SampleImages(self.dataset, self.row_n[index])
        return self.dataset.read(int(self.row_n[index]))


_TRUTH = {"1": True, "true": True, "same": True, "0": False, "false": False, "different": False}


def read_table(path: str | Path, dataset: Samples) -> Pairs:
    """Read a tab-separated pairs table with the columns fold, a, b, same.

    a and b name samples by their `source`; each image is read and embedded once however often it
    is paired. Raises UsageError GL0001 where there is no such file, InputError GL0802 for missing
    columns, values that are no fold or truth, and sources that the dataset lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("GL0001", "no such file", where=str(path))
    names: list[tuple[str, str]] = []
    folds: list[int] = []
    same: list[bool] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            lacking = [c for c in ("fold", "a", "b", "same") if c not in (rows.fieldnames or [])]
            if lacking:
                raise InputError(
                    "GL0802", f"no column {', '.join(lacking)}", where=f"{path} line 1",
                    hint="the first line must be: fold, a, b, same, separated by tabs",
                )  # fmt: skip
            for row in rows:
                truth = _TRUTH.get((row["same"] or "").strip().lower())
                fold = (row["fold"] or "").strip()
                if truth is None or not fold.lstrip("-").isdigit() or not row["a"] or not row["b"]:
                    raise InputError(
                        "GL0802",
                        "expected a whole number, two sources and 0 or 1, found "
                        + repr("\t".join(str(row[c]) for c in ("fold", "a", "b", "same"))),
                        where=f"{path} line {rows.line_num}",
                    )
                names.append((row["a"], row["b"]))
                folds.append(int(fold))
                same.append(truth)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("GL0802", f"not a text table ({error})", where=str(path)) from None
    if not names:
        raise InputError("GL0802", "no pairs", where=str(path))
    wanted = dict.fromkeys(name for pair in names for name in pair)
    row_of = _rows(dataset, wanted)
    unknown = [name for name in wanted if name not in row_of]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise InputError(
            "GL0802",
            f"{len(unknown)} of {len(wanted)} sources are not in the dataset: "
            + ", ".join(unknown[:3])
            + more,
            where=str(path),
            hint="a and b are values of the column `source` of the dataset's samples.parquet",
        )
    place = {name: i for i, name in enumerate(wanted)}
    return Pairs(
        images=SampleImages(dataset, np.array([row_of[name] for name in wanted], np.int64)),
        same=np.array(same),
        first=np.array([place[a] for a, _ in names]),
        second=np.array([place[b] for _, b in names]),
        folds=np.array(folds),
        name=path.stem,
        labels=list(wanted),
    )


def _rows(dataset: Samples, wanted: dict[str, None]) -> dict[str, int]:
    """Find the row of each wanted source; the first one where a source stands twice."""
    found: dict[str, int] = {}
    for row, source in enumerate(dataset.source):
        if source in wanted:
            found.setdefault(source, row)
    return found
