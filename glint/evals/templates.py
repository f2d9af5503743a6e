"""IJB-B and IJB-C: templates of many images, compared one to one and one to many.

A folder holds the field's lists in `meta/` (or directly), NAME being ijbb or ijbc:
NAME_face_tid_mid.txt (image template media), NAME_template_pair_label.txt (template template 0/1),
NAME_name_5pts_score.txt (image, ten coordinates, detector score; optional) and, for one to many,
NAME_1N_gallery_G1.csv and _G2.csv (S1 and S2 for IJB-B) and NAME_1N_probe_mixed.csv, whose first
columns are template and subject under one line of heads.
"""

# n images, D embedding, T templates, p pairs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from glint.errors import InputError, UsageError
from glint.evals import identify
from glint.evals.roc import FARS, accept_rates
from glint.log import Progress, silent

PAIRS = 8192  # scored at once
IMAGES = 1 << 15  # pooled at once, or one template where it has more


@dataclass(frozen=True)
class Faces:
    """The images of a folder in the order of its list, and the template and media of each."""

    path: Path
    name: Sequence[str]
    template_n: np.ndarray
    media_n: np.ndarray
    score_n: np.ndarray | None
    points_n52: np.ndarray | None = None  # five points of each in its photograph, x and y


def read_faces(folder: Path) -> Faces:
    """Read the list of images. Raises UsageError GL0001, InputError GL0802 with file and line."""
    path = _find(folder, "*_face_tid_mid.txt")
    table = _read(path, " ", {"image": pa.string(), "template": pa.int64(), "media": pa.int64()})
    names = table["image"].to_pylist()
    scores = _find(folder, "*_name_5pts_score.txt", optional=True)
    score_n = points_n52 = None
    if scores is not None:
        columns = {f"c{i}": pa.float64() for i in range(10)}
        faces = _read(scores, " ", {"image": pa.string(), **columns, "score": pa.float64()})
        others = faces["image"].to_pylist()
        if others != names:
            wrong = next(
                (i for i, (a, b) in enumerate(zip(names, others)) if a != b),
                min(len(names), len(others)),
            )
            found = others[wrong] if wrong < len(others) else "no line"
            expected = names[wrong] if wrong < len(names) else "no line"
            raise _bad(f"expected {expected}, as in {path.name}, found {found}", scores, wrong)
        score_n = faces["score"].to_numpy()
        points_n52 = np.stack([faces[name].to_numpy() for name in columns], 1).reshape(-1, 5, 2)
    template_n, media_n = table["template"].to_numpy(), table["media"].to_numpy()
    return Faces(path, names, template_n, media_n, score_n, points_n52)


def pool(
    feature_nD: np.ndarray, template_n: np.ndarray, media_n: np.ndarray,
    weight_n: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Pool images to templates: the mean within each media, their sum, then length 1.

    feature_nD: raw embeddings, whose length counts; read a block of templates at a time. weight_n:
    what each is multiplied with first (the detector's score). Returns the templates, ascending,
    and float32 (T, D). Raises InputError GL0402 for a template that is not finite or zero.
    """
    order = np.lexsort((media_n, template_n))
    by_n, media_n = template_n[order], media_n[order]
    start_T = np.flatnonzero(np.diff(by_n, prepend=by_n[:1] - 1))
    stop_T = np.append(start_T[1:], len(by_n))
    pooled_TD = np.empty((len(start_T), feature_nD.shape[1]), np.float32)
    first = 0
    while first < len(start_T):
        last = int(np.searchsorted(stop_T, start_T[first] + IMAGES, side="right"))
        last = max(first + 1, last)
        span = slice(int(start_T[first]), int(stop_T[last - 1]))
        part_nD = np.asarray(feature_nD[order[span]], np.float64)
        if weight_n is not None:
            part_nD *= weight_n[order[span], None]
        new_n = (np.diff(by_n[span], prepend=-1) != 0) | (np.diff(media_n[span], prepend=-1) != 0)
        new_n[0] = True
        at_m = np.flatnonzero(new_n)
        mean_mD = np.add.reduceat(part_nD, at_m, axis=0)
        mean_mD /= np.diff(np.append(at_m, len(part_nD)))[:, None]
        media_T = np.searchsorted(at_m, start_T[first:last] - span.start)
        sum_TD = np.add.reduceat(mean_mD, media_T, axis=0)
        length_T = np.sqrt(np.square(sum_TD).sum(1))
        bad_T = np.flatnonzero(~(np.isfinite(length_T) & (length_T > 0)))
        if len(bad_T):
            raise InputError(
                "GL0402",
                f"{len(bad_T)} templates have no finite embedding, the first is "
                f"{by_n[start_T[first + bad_T[0]]]}",
                hint="an image without a face needs a row of zeros, not of NaN",
            )
        pooled_TD[first:last] = sum_TD / length_T[:, None]
        first = last
    return by_n[start_T], pooled_TD


def verify(
    folder: Path, template_T: np.ndarray, pooled_TD: np.ndarray,
    *, fars: Sequence[str] = FARS, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Compare the listed pairs of templates: `roc.accept_rates` of their cosines.

    Raises UsageError GL0001, InputError GL0802 with file and line.
    """
    path = _find(folder, "*_template_pair_label.txt")
    table = _read(path, " ", {"first": pa.int64(), "second": pa.int64(), "same": pa.int8()})
    same_p = table["same"].to_numpy()
    wrong = np.flatnonzero((same_p != 0) & (same_p != 1))
    if len(wrong):
        raise _bad(f"expected 0 or 1, found {same_p[wrong[0]]}", path, int(wrong[0]))
    a_p, b_p = (_places(table[side].to_numpy(), template_T, path) for side in ("first", "second"))
    score_p = np.empty(len(a_p))
    for at in range(0, len(a_p), PAIRS):
        part = slice(at, at + PAIRS)
        a_kD, b_kD = (pooled_TD[side[part]].astype(np.float64) for side in (a_p, b_p))
        score_p[part] = np.einsum("kd,kd->k", a_kD, b_kD)
        progress(min(at + PAIRS, len(a_p)), len(a_p), "pairs of templates")
    return accept_rates(score_p[same_p == 1], score_p[same_p == 0], fars)


def search(folder: Path, template_T: np.ndarray, pooled_TD: np.ndarray) -> dict[str, Any] | None:
    """Look the probes up in the galleries; None where the folder has no such lists.

    `field`: both galleries as one, as the field's script does (`identify.closed_set`). `galleries`:
    each by itself, with probes that are not in it (`identify.open_set`), by the file's last word.
    Raises UsageError GL0001 where a list is missing, InputError GL0802 with file and line.
    """
    probes = _find(folder, "*_1N_probe_mixed.csv", optional=True)
    if probes is None:
        return None
    paths = [
        _find(folder, f"*_1N_gallery_[GS]{number}.csv") for number in (1, 2)
    ]  # G1 and G2 of IJB-C, S1 and S2 of IJB-B

    def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
        table = _read(path, ",", {"template": pa.int64(), "subject": pa.int64()}, heads=True)
        place_n = _places(table["template"].to_numpy(), template_T, path, heads=True)
        subject_n = table["subject"].to_numpy()
        # A list may have a line for each image of a template.
        _, first_n = np.unique(place_n, return_index=True)
        first_n.sort()
        return pooled_TD[place_n[first_n]], subject_n[first_n]

    probe_pD, probe_p = load(probes)
    gallery = [load(path) for path in paths]
    for path, (_, subject_g) in zip(paths, gallery):
        values, counts = np.unique(subject_g, return_counts=True)
        if (counts > 1).any():
            raise _bad(f"subject {values[counts > 1][0]} has several templates, expected one", path)
    both_gD = np.concatenate([feature_gD for feature_gD, _ in gallery])
    both_g = np.concatenate([subject_g for _, subject_g in gallery])
    return {
        "probes": len(probe_p),
        "field": identify.closed_set(probe_pD, probe_p, both_gD, both_g, where=str(probes)),
        "galleries": {
            path.stem.rpartition("_")[2]: identify.open_set(probe_pD, probe_p, *part)
            for path, part in zip(paths, gallery)
        },
    }


def _find(folder: Path, pattern: str, optional: bool = False) -> Any:
    for place in (folder / "meta", folder):
        found = sorted(place.glob(pattern)) if place.is_dir() else []
        if len(found) > 1:
            raise UsageError(
                "GL0002", f"expected one {pattern}, found {', '.join(p.name for p in found)}",
                where=str(place), hint="keep each set in a folder of its own",
            )  # fmt: skip
        if found:
            return found[0]
    if optional:
        return None
    raise UsageError(
        "GL0001", f"no {pattern} here or in meta/", where=str(folder),
        hint="name the folder that holds the lists of IJB-B or IJB-C",
    )  # fmt: skip


def _bad(what: str, path: Path, row: int | None = None, heads: bool = False) -> InputError:
    line = "" if row is None else f" line {row + 1 + heads}"
    return InputError("GL0802", what, where=f"{path}{line}")


def _read(
    path: Path, delimiter: str, columns: dict[str, pa.DataType], heads: bool = False
) -> pa.Table:
    """Read a list of whole lines; further columns are left out under heads, else wrong."""
    names = list(columns)
    try:
        raw = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=None if heads else names, use_threads=False),
            parse_options=csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if heads else False, ignore_empty_lines=False
            ),
            convert_options=csv.ConvertOptions(
                column_types={} if heads else columns, strings_can_be_null=False, null_values=[]
            ),
        )
        if heads and len(raw.column_names) >= len(names):
            raw = raw.select(list(range(len(names)))).rename_columns(names)
            raw = raw.cast(pa.schema(list(columns.items())))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _where(path, delimiter, columns, heads, str(error)) from None
    if raw.column_names != names or any(column.null_count for column in raw.columns):
        raise _where(path, delimiter, columns, heads, "a value is missing")
    if not len(raw):
        raise _bad("no lines", path)
    return raw


def _where(
    path: Path, delimiter: str, columns: dict[str, pa.DataType], heads: bool, error: str
) -> InputError:
    """Find the first line that is not as it should be."""
    words = f"expected {len(columns)} values ({', '.join(columns)}) between {delimiter!r}"
    with path.open(encoding="utf-8", errors="replace") as file:
        for row, line in enumerate(file):
            if heads and row == 0:
                continue
            parts = line.rstrip("\r\n").split(delimiter)
            enough = len(parts) >= len(columns) if heads else len(parts) == len(columns)
            if not enough or not all(_fits(p, t) for p, t in zip(parts, columns.values())):
                return _bad(f"{words}, found {line[:100].rstrip()!r}", path, row)
    return _bad(f"{words}: {error.splitlines()[0][:200]}", path)


def _fits(text: str, kind: pa.DataType) -> bool:
    try:
        pa.scalar(text).cast(kind)
    except pa.ArrowInvalid:
        return False
    return text != ""


def _places(
    wanted_p: np.ndarray, template_T: np.ndarray, path: Path, heads: bool = False
) -> np.ndarray:
    """Return the row of each template. Raises InputError GL0802 for one without an image."""
    place_p = np.minimum(np.searchsorted(template_T, wanted_p), len(template_T) - 1)
    lacking = np.flatnonzero(template_T[place_p] != wanted_p)
    if len(lacking):
        what = f"template {wanted_p[lacking[0]]} has no image in the list of faces"
        raise _bad(what, path, int(lacking[0]), heads)
    return np.asarray(place_p)
