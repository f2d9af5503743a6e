"""Is at most the stated share of merges wrong? A thousand made-up worlds, centres alone.

    python benchmarks/made_worlds.py [--quick] [--worlds N] [--out FILE]

Each world is drawn from one of the families below: identities of unequal size, some under two ids,
the second one seen by the same camera or by others (1 - |N(0, .15)| of the way, which is what
`data/cross_source` shows), embedded by a good, weak or half-trained net. No image is drawn: the
centre of n images is the person's direction and noise that shrinks with n. `chance.fit` judges at
its own setting. A world breaks the stated rate where more than that share of its merges is wrong.
Twins of likeness 0.9 are one person to any rule on centres, so their worlds are counted by
themselves. An audit of 100 merges, drawn as `review --audit 100` draws them and judged by the
truth, must bound the wrong ones in all worlds. Beside the recall stands the most that a cut finds
that leaves the stated share wrong, chosen with knowledge of the truth, on the cosine or an
allowance for counts. One JSON line a figure; exit 1 where a floor is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from figures import ceiling, floor, machine, told

from glint.conflicts import audit, chance
from glint.conflicts.chance import Compared, Ints

RATE = 0.01
DRAWN = 100  # merges of an audit
LOW = 0.4

# C identities, K pairs, D embedding


@dataclass(frozen=True)
class Family:
    """How worlds are drawn. conflicts: share of people under two ids; elsewhere: share of those
    whose second id is another source's; twins: share of people who are 0.9 like another one;
    alone: share of ids of one image; rho: own images' mean cosine; spectrum: how unequal the
    directions of the embedding are.
    """

    conflicts: float = 0.05
    elsewhere: float = 0.0
    twins: float = 0.0
    alone: float = 0.3
    rho: tuple[float, float] = (0.5, 0.8)
    spectrum: float = 0.0


FAMILIES = {
    "plain": Family(),
    "weak net": Family(rho=(0.3, 0.5)),
    "half-trained net": Family(spectrum=0.7, rho=(0.5, 0.8)),
    "tails of one image": Family(alone=0.8),
    "0 conflicts": Family(conflicts=0.0),
    "50 % conflicts": Family(conflicts=0.5),
    "cross source": Family(elsewhere=1.0),
    "half cross source": Family(elsewhere=0.5, conflicts=0.1),
    "twins at .9": Family(twins=0.002, conflicts=0.1),
    "half-trained, 0 conflicts": Family(spectrum=0.7, conflicts=0.0),
}


def unit(x_CD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(x_CD / np.linalg.norm(x_CD, axis=1, keepdims=True), np.float32)


Floats = npt.NDArray[np.float32]


def draw(family: Family, seed: int) -> tuple[Floats, Ints, float, Ints]:
    """Draw centres, images of each, rho, and who each id is."""
    rng = np.random.default_rng([seed, 11])
    people = int(np.exp(rng.uniform(np.log(300), np.log(2000))))
    dim = int(rng.choice([64, 128, 256]))
    scale_D = (np.arange(1, dim + 1) ** -family.spectrum).astype(np.float32)

    def some(n: int) -> npt.NDArray[np.float32]:
        return unit(rng.standard_normal((n, dim)).astype(np.float32) * scale_D)

    person_CD = some(people)
    twins = round(family.twins * people)
    own = rng.permutation(people)
    a, b = own[:twins], own[twins : 2 * twins]
    person_CD[b] = unit(0.9 * person_CD[a] + np.sqrt(1 - 0.81) * person_CD[b])
    split = own[: round(family.conflicts * people)]
    who_C = np.r_[np.arange(people), split]
    t_C = np.ones(len(who_C), np.float32)
    away = rng.random(len(split)) < family.elsewhere
    t_C[people:][away] = np.maximum(1 - np.abs(rng.normal(0, 0.15, int(away.sum()))), 0.3)
    seen_CD = t_C[:, None] * person_CD[who_C] + np.sqrt(1 - t_C**2)[:, None] * some(len(who_C))
    count_C = np.where(rng.random(len(who_C)) < family.alone, 1,
                       1 + np.minimum(rng.geometric(0.12, len(who_C)), 30))  # fmt: skip
    r_C = rng.uniform(*family.rho, people).astype(np.float32)[who_C]
    noise_CD = unit(rng.standard_normal(seen_CD.shape).astype(np.float32))
    x_CD = np.sqrt(r_C)[:, None] * unit(seen_CD) + np.sqrt((1 - r_C) / count_C)[:, None] * noise_CD
    return unit(x_CD), count_C, float(np.median(r_C)), who_C


def judged(family: Family, seed: int) -> dict[str, float]:
    """Judge one world."""
    centre_CD, count_C, rho, who_C = draw(family, seed)
    a, b = np.triu_indices(len(who_C), 1)
    cosine_K = (centre_CD @ centre_CD.T)[a, b].astype(np.float64)
    near = cosine_K >= LOW
    a, b, cosine_K = a[near], b[near], cosine_K[near]
    right_K = who_C[a] == who_C[b]
    planted = len(who_C) - int(who_C.max()) - 1
    pairs = Compared(cosine_K, count_C[a], count_C[b])
    seen = chance.sample(centre_CD, count_C, seed=seed)
    likeness = chance.fit(pairs, LOW, seen, rho, len(who_C), RATE)
    merge_K = likeness.merges(pairs)
    wrong = int((merge_K & ~right_K).sum())
    best = 0
    for power in (0.0, 0.25, 0.5, 1.0):
        order = np.argsort(-pairs.strength(rho, power), kind="stable")
        hits = np.cumsum(right_K[order])
        count = np.arange(1, len(order) + 1)
        good = np.flatnonzero(count - hits <= RATE * count)
        best = max(best, int(hits[good[-1]]) if len(good) else 0)
    merges = int(merge_K.sum())
    drawn = audit.draw(a[merge_K], b[merge_K], DRAWN, hashlib.sha256(b"%d" % seed).hexdigest())
    found = int((~right_K[merge_K][drawn]).sum())
    bound = audit.wrong_at_most(found, len(drawn), merges)
    return {
        "merged": merges, "wrong": wrong, "planted": planted,
        "unbound": float(wrong > bound * merges + 1e-9),
        "broken": float(wrong > RATE * merge_K.sum()),
        "recall": float((merge_K & right_K).sum() / max(planted, 1)),
        "best": best / max(planted, 1), "twins": family.twins,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="60 worlds")
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    each = (60 if args.quick else args.worlds) // len(FAMILIES)
    lines = [{"benchmark": "made_worlds", "quick": args.quick, **machine("numpy", "scipy")}]
    print(json.dumps(lines[0]), flush=True)

    def say(line: dict[str, object]) -> None:
        lines.append(line)
        print(json.dumps(line), flush=True)

    everything: list[dict[str, float]] = []
    for name, family in FAMILIES.items():
        rows = [judged(replace(family), seed) for seed in range(each)]
        everything += rows

        def mean(key: str, rows: list[dict[str, float]] = rows) -> float:
            return float(np.mean([row[key] for row in rows]))

        say(told(f"{name}: worlds of {each} that broke the stated rate", mean("broken")))
        say(told(f"{name}: merges, wrong of them", mean("merged")))
        say(told(f"{name}: wrong merges in all worlds", sum(row["wrong"] for row in rows)))
        if family.conflicts:
            say(told(f"{name}: recall", mean("recall")))
            say(told(f"{name}: recall of the best known cut", mean("best")))
    share = float(np.mean([row["broken"] for row in everything]))
    say(told(f"share of {len(everything)} worlds that broke the stated rate", share))
    some = [row for row in everything if not row["twins"]]
    share = float(np.mean([row["broken"] for row in some]))
    # 3 of 54 quick ones are no news
    say(ceiling(f"the same of {len(some)} without twins", share, 0.1 if args.quick else 0.05))
    some = [row for row in everything if row["planted"]]
    gap = float(np.mean([row["best"] - row["recall"] for row in some]))
    say(floor("recall over that of the best known cut, mean", 1 - gap, 0.8))
    share = float(np.mean([row["unbound"] for row in everything if row["merged"]]))
    say(ceiling(f"worlds, twins too, whose audit of {DRAWN} merges promised too much", share, 0.05))
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if all(line.get("holds") is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
