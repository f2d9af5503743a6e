"""People under two ids whose halves are unlike: what glint finds, beside one line of numpy.

    GLINT_SHARED=../shared python benchmarks/unlike_halves.py [--quick] [--draws N] [--out FILE]

The sets of `unlike_sets` by both recognisers; none is drawn as glint calibrates. For each: recall
and precision of what `dedup-conflicts` merges, of centre cosine at one threshold for all sets of a
recogniser (what leaves precision 0.99 on random halves, draw 0), and the most that centre cosine
finds at precision 0.99 at a threshold chosen for that set with knowledge of the truth. Where the
fixed threshold is as precise, glint must not find 0.02 less. `--against` goes through the code of
that option and counts the people of a test set that are found. The judge was made looking at draw
0 of the sets of LFW by both and at the other collection; the cameras by y1, Bollywood and draws 1
and 2 were looked at when it stood.

--quick: y1, draw 0, without the cameras and Bollywood, whose images have to be embedded. One JSON
line a figure; exit 1 where a floor is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from figures import floor, machine, told
from planted import recall_at
from real_sets import SHARED
from unlike_sets import Case, sets

from glint.conflicts.chance import Compared
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import ConflictOptions, Judged, across, find
from glint.shards.embeddings import centres

FIXED = {"y1": 0.55, "v3": 0.62}
FLOORS = {  # recall by y1; 0.01 below what the issue that asked for this bench wants of "merged"
    "2-means halves": 0.90, "cross source, merged": 0.96, "cross source, --against": 0.97,
}  # fmt: skip
MANY = {"random halves": 0.97, "by source": 0.93}  # the same, two images or more on both sides
PRECISION = {"y1": 0.985, "v3": 0.97}
FREE = ("look-alikes", "LFW's own spellings", "Bollywood by cluster")  # few pairs, or wrong labels
NONE = np.empty((0, 2), np.int64)


def searched(case: Case) -> tuple[Judged, np.ndarray, np.ndarray]:
    """Run glint on a case; (what it found, labels a, labels b)."""
    parts = [(0, case.classes)]
    if case.there is not None:
        parts = [(0, case.there), (case.there, case.classes)]
    data = []
    for first, end in parts:
        rows = np.flatnonzero((case.label_N >= first) & (case.label_N < end))
        x_ND, label_N = case.x_ND[rows], case.label_N[rows] - first
        samples = Samples(x_ND, label_N, end - first)
        data.append((centres(x_ND, label_N, end - first), samples, np.arange(end - first)))
    found = find(*data[0], ConflictOptions())
    if case.there is None:
        return found, found.pairs.a, found.pairs.b
    both = across(found, *data[0], *data[1], ConflictOptions(), also=NONE)
    return both, both.pairs.a, both.pairs.b + case.there


def figures(case: Case, model: str, seed: int) -> list[dict[str, Any]]:
    """Judge a case; give and print its figures."""
    found, a, b = searched(case)
    right_K = np.array([pair in case.true for pair in zip(a.tolist(), b.tolist())], bool)
    people = np.sort(np.stack([case.who_C[a], case.who_C[b]], axis=1), axis=1)
    moot_K = np.array([tuple(pair) in case.moot for pair in people.tolist()], bool) & ~right_K
    merge_K, cosine_K = found.verdict == "merge", found.pairs.cosine
    planted = len(case.true)
    lines: list[dict[str, Any]] = []

    def say(line: dict[str, Any]) -> None:
        lines.append({**line, "figure": f"{model}, {case.name}, draw {seed}: {line['figure']}"})
        print(json.dumps(lines[-1]), flush=True)

    def share(mask_K: np.ndarray) -> tuple[float, float]:
        hits = float((mask_K & right_K).sum())
        return hits / max(planted, 1), hits / max(float((mask_K & ~moot_K).sum()), 1.0)

    recall, precision = share(merge_K)
    fixed, fixed_precision = share(cosine_K >= FIXED[model])
    best, cut = recall_at(cosine_K[~moot_K], right_K[~moot_K], 0.99, planted)
    say(told("true pairs", planted))
    least = FLOORS.get(case.name) if model == "y1" else None
    say(floor("recall", recall, least) if least else told("recall", recall))
    free = case.name in FREE
    say(told("precision", precision) if free else
        floor("precision", precision, PRECISION[model]))  # fmt: skip
    say(told(f"recall of cosine {FIXED[model]}", fixed))
    say(told(f"precision of cosine {FIXED[model]}", fixed_precision))
    say(told(f"recall of cosine at its best, {cut:.3f}", best))
    if fixed_precision >= max(precision, 0.985) and not free:
        say(floor("recall less that of the fixed cosine, as precise", recall - fixed, -0.02))
    say(told("merged or masked", share(found.verdict != "keep")[0]))
    count_C = np.bincount(case.label_N, minlength=case.classes)
    small_K = np.minimum(found.n_a, found.n_b)
    for words, some_K, low, high in (
        ("one image on a side", small_K == 1, 1, 1),
        ("two or more a side", small_K >= 2, 2, 10**9),
    ):
        base = sum(low <= min(count_C[list(pair)]) <= high for pair in case.true)
        value = float((merge_K & right_K & some_K).sum() / max(base, 1))
        asked = MANY.get(case.name) if high > 1 else 0.9 if case.name == "random halves" else None
        figure = f"recall, {words}, of {base}"
        say(floor(figure, value, asked) if asked and model == "y1" else told(figure, value))
    likeness = found.judge.likeness
    if likeness is not None:
        pairs = Compared(cosine_K[right_K], found.n_a[right_K], found.n_b[right_K])
        alike_K = pairs.alike(likeness.rho)
        if len(alike_K):
            low, middle = np.quantile(alike_K, [0.05, 0.5])
            say(told("likeness of the true pairs, median", float(middle)))
            say(told("likeness of the true pairs, lowest 5 %", float(low)))
        say(told("evidence fits the halves of one identity", float(likeness.fits == "halves")))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="y1, one draw, nothing is embedded")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=tuple(FIXED), default=list(FIXED))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    head = {"benchmark": "unlike_halves", "quick": args.quick, **machine("numpy", "scipy")}
    lines: list[dict[str, Any]] = [head]
    print(json.dumps(head), flush=True)
    if not (SHARED / "data" / "models").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 0
    for model in ("y1",) if args.quick else args.models:
        for seed in range(1 if args.quick else args.draws):
            for case in sets(model, seed, quick=args.quick):
                lines += figures(replace(case), model, seed)
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if all(line.get("holds") is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
