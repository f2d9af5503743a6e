"""Images of LFW under the name of somebody else there: what is flagged, beside a plain rule.

    GLINT_SHARED=../shared python benchmarks/wrong_labels.py [--quick] [--draws 3] [--out FILE]

A share of the images, drawn at random, gets the label of a person drawn at random: of people with
two images or more, and of all of LFW. glint's outliers are those of `dedup-conflicts` (search,
judge and the look inside, on stored embeddings of both recognisers). Baseline: an image whose
cosine to another identity's centre is 0.5 or more, and 0.1 more than to the mean of its own other
images, three images or more. Recall is of all wrong images, precision of all that is flagged. glint
must not lose two points of recall to the baseline where that is as precise. One JSON line a figure;
exit 1 where a floor is missed. --quick: one recogniser, one draw, two shares.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import real_sets
from figures import floor, machine, told
from real_sets import SHARED

from glint.conflicts import outliers
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import ConflictOptions, find
from glint.pipelines.conflicts import outliers as stage
from glint.shards.embeddings import centres

SHARES = (0.0, 0.01, 0.02, 0.1, 0.2)
NEAR, MORE = 0.5, 0.1  # of the baseline


def world(model: str, share: float, least: int, seed: int) -> tuple[Any, Any, Any]:
    """Give embeddings, labels and who the images show, of people with `least` images or more."""
    lfw = real_sets.lfw(model)
    some = np.flatnonzero(np.bincount(lfw.who_N)[lfw.who_N] >= least)
    x_ND, who_N = (
        lfw.x_ND[some].astype(np.float32),
        np.unique(lfw.who_N[some], return_inverse=True)[1],
    )
    rng, label_N = np.random.default_rng(seed), who_N.copy()
    picked = rng.choice(len(who_N), round(share * len(who_N)), replace=False)
    label_N[picked] = rng.integers(0, who_N.max() + 1, len(picked))
    return x_ND, label_N, who_N


def flagged(x_ND: Any, label_N: Any, people: int) -> tuple[Any, Any]:
    """Return what glint flags as outliers, bool [N], and where `apply --flagged` moves them, or -1.

    Images of mixed identities are not in it.
    """
    samples, centre_CD = Samples(x_ND, label_N, people), centres(x_ND, label_N, people)
    found = find(centre_CD, samples, np.arange(people), ConflictOptions())
    emb: Any = SimpleNamespace(sample_ND=x_ND, centre_CD=centre_CD)

    def elsewhere(row_f: Any, cosine_f: Any) -> Any:
        return stage._elsewhere(emb, samples, label_N, found, row_f, cosine_f)

    prior = found.calibration.prior
    mixed = outliers.find_mixed(samples, prior)
    far = outliers.find_outliers(samples, prior, elsewhere=elsewhere, mixed=mixed)
    towards_f, _ = stage._towards(emb, label_N, far.row)
    out_N, to_N = np.zeros(len(label_N), bool), np.full(len(label_N), -1)
    out_N[far.row] = True
    to_N[far.row] = np.where(far.elsewhere, towards_f, -1)
    return out_N, to_N


def baseline(x_ND: Any, label_N: Any, people: int) -> Any:
    """Return what the plain rule flags, bool [N]."""
    sum_CD = np.zeros((people, x_ND.shape[1]), np.float32)
    np.add.at(sum_CD, label_N, x_ND)
    own_ND = sum_CD[label_N] - x_ND
    own_ND /= np.maximum(np.linalg.norm(own_ND, axis=1, keepdims=True), 1e-9)
    centre_CD = sum_CD / np.maximum(np.linalg.norm(sum_CD, axis=1, keepdims=True), 1e-9)
    out_N = np.zeros(len(label_N), bool)
    for at in range(0, len(label_N), 2048):
        rows = np.arange(at, min(at + 2048, len(label_N)))
        cosine_nC = x_ND[rows] @ centre_CD.T
        cosine_nC[np.arange(len(rows)), label_N[rows]] = -1
        best_n, own_n = cosine_nC.max(axis=1), (x_ND[rows] * own_ND[rows]).sum(axis=1)
        out_N[rows] = (best_n >= NEAR) & (best_n > own_n + MORE)
    return out_N & (np.bincount(label_N, minlength=people)[label_N] >= 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one recogniser, one draw, two shares")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines: list[dict[str, Any]] = [
        {"benchmark": "wrong_labels", "quick": args.quick, **machine("numpy", "scipy")}
    ]
    print(json.dumps(lines[0]), flush=True)
    if not (SHARED / "data" / "models").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 0

    def say(line: dict[str, Any]) -> None:
        lines.append(line)
        print(json.dumps(line), flush=True)

    cells = [(model, least, share, draw) for model in ("y1", "v3") for least in (2, 1)
             for share in SHARES for draw in range(args.draws)]  # fmt: skip
    if args.quick:
        cells = [("y1", 2, share, 0) for share in (0.0, 0.1)]
    for model, least, share, draw in cells:
        if draw and not share:
            continue
        x_ND, label_N, who_N = world(model, share, least, draw)
        wrong_N, people = label_N != who_N, int(who_N.max()) + 1
        name = f"{model}, people of {least} images or more, {share:.0%} wrong, draw {draw}"
        rates = {}
        ours_N, to_N = flagged(x_ND, label_N, people)
        if share:
            moved_N = to_N >= 0
            say(told(f"{name}: suggested moves, share of the flagged",
                     int(moved_N.sum()) / max(int(ours_N.sum()), 1)))  # fmt: skip
            say(told(f"{name}: of them to who it is", float((to_N == who_N)[moved_N].mean())))
        for kind, out_N in (("glint", ours_N), ("baseline", baseline(x_ND, label_N, people))):
            hits = int((out_N & wrong_N).sum())
            rates[kind] = hits / max(int(wrong_N.sum()), 1), hits / max(int(out_N.sum()), 1)
            say(told(f"{name}: {kind}, flagged of {len(label_N)}", int(out_N.sum())))
            if share:
                say(told(f"{name}: {kind}, recall", rates[kind][0]))
                say(told(f"{name}: {kind}, precision", rates[kind][1]))
        if share and rates["baseline"][1] >= rates["glint"][1]:
            say(floor(f"{name}: recall less the baseline's, as precise",
                      rates["glint"][0] - rates["baseline"][0], -0.02))  # fmt: skip
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if all(line.get("holds") is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
