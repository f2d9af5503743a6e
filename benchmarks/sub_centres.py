"""Wrong images found by their angle to the identity's mean and to its dominant sub-centre.

    python benchmarks/sub_centres.py [--quick] [--out FILE]

Vectors, not pictures: 512 numbers, people's centres drawn at random, faces at 35 to 65 degrees of
them. Worlds: a share of the images of every identity are of other people, one of each; or the share
is all of one other person. Cleaned at 75 degrees, with 1 centre (the mean) and with 3. One JSON
line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from figures import ROOT, floor, machine, told

sys.path.insert(0, str(ROOT))

from glint.search import nms

DIM, EACH, DEGREES = 512, 20, 75.0
SHARES = (0.1, 0.3, 0.45)
KINDS = ("strangers", "one other person")


def world(kind: str, share: float, people: int, seed: int) -> tuple[np.ndarray, ...]:
    """Give faces (n, DIM), their labels, and which are wrong."""
    draw = np.random.default_rng(seed)
    label_n = np.repeat(np.arange(people), EACH)
    within_n = np.tile(np.arange(EACH), people)
    wrong_n = within_n < round(share * EACH)
    away_n = draw.integers(1, people, len(label_n))
    if kind != "strangers":
        away_n = away_n.reshape(people, EACH)[:, 0].repeat(EACH)
    who_n = np.where(wrong_n, (label_n + away_n) % people, label_n)
    centre = unit(draw.normal(size=(people, DIM)))[who_n]
    aside = draw.normal(size=(len(label_n), DIM))
    aside = unit(aside - (aside * centre).sum(1, keepdims=True) * centre)
    angle = np.radians(draw.uniform(35, 65, len(label_n)))[:, None]
    return (np.cos(angle) * centre + np.sin(angle) * aside).astype(np.float32), label_n, wrong_n


def unit(rows: np.ndarray) -> np.ndarray:
    """Give rows their length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def figures(people: int) -> list[dict[str, Any]]:
    """Clean every world; targets are of three sub-centres."""
    lines = []
    for kind in KINDS:
        for share in SHARES:
            face, label_n, wrong_n = world(kind, share, people, 5)
            for centres in (1, 3):
                ranking = nms.rank(face, label_n, people, degrees=DEGREES, centres=centres)
                found_n = ranking.reason_N == nms.OUTLIER
                hits = int((found_n & wrong_n).sum())
                what = f"sub-centres: {kind}, {share:.0%} of the images, {centres} centres"
                pair = (
                    (f"{what}: recall", hits / int(wrong_n.sum())),
                    (f"{what}: precision", hits / max(1, int(found_n.sum()))),
                )
                for figure, value in pair:
                    gate = centres > 1 and people > 100
                    lines.append(floor(figure, value, 0.95) if gate else told(figure, value))
    return lines


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few people, no gate")
    parser.add_argument("--out", type=Path, help="write the figures here")
    args = parser.parse_args()
    lines = figures(30 if args.quick else 2000)
    where = machine("numpy")
    for line in lines:
        print(json.dumps(line))
    if args.out is not None:
        args.out.write_text("".join(json.dumps({**line, **where}) + "\n" for line in lines))
    return int(any(line["holds"] is False for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
