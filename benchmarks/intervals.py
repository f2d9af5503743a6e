"""Do 95 % intervals of `glint bench` hold the truth in 95 % of simulated sets?

Each set has its own people, and people differ: some are told apart badly. The truth is the
figure of a set of millions of pairs of the same law. Kinds of sets: laid out like LFW (pairs of two
people rarely share one), and crowded (few people, each in many pairs). `naive` draws pairs, as is
usual.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from figures import ceiling, floor, machine, told

from glint.evals.intervals import bootstrap
from glint.evals.pairs import ten_fold
from glint.evals.rates import tar_at_far

FAR = "1e-2"
DRAWS = 100  # enough for a variance
KINDS = {  # people, pairs of each kind, mean distance of same pairs
    "lfw": (4000, 3000, 1.00),
    "small": (400, 300, 1.00),
    "crowded": (120, 3000, 1.00),
    "near_perfect": (4000, 3000, 0.75),
}


def made(rng: np.random.Generator, people: int, pairs: int, mean: float) -> tuple[np.ndarray, ...]:
    """Simulate distances in ten folds of disjoint people: same pairs, then pairs of two."""
    person = rng.permutation(people).reshape(10, -1)
    hard_P, odd_P = rng.normal(0, 0.15, people), rng.normal(0, 0.1, people)
    per = pairs // 10
    a, b, same, fold = [], [], [], []
    for f, own in enumerate(person):
        one = rng.choice(own, per)
        two = rng.integers(0, len(own), (per, 2))
        two[:, 1] = (two[:, 0] + 1 + two[:, 1] % (len(own) - 1)) % len(own)
        a += [one, own[two[:, 0]]]
        b += [one, own[two[:, 1]]]
        same += [np.ones(per, bool), np.zeros(per, bool)]
        fold += [np.full(2 * per, f)]
    a_n, b_n = np.concatenate(a), np.concatenate(b)
    same_n, fold_n = np.concatenate(same), np.concatenate(fold)
    noise_n = rng.normal(0, 0.18, len(a_n))
    d_n = np.where(same_n, mean + hard_P[a_n], 1.8 + odd_P[a_n] + odd_P[b_n]) + noise_n
    return d_n.clip(0, 4), same_n, fold_n, a_n, b_n


def naive(d_n: np.ndarray, same_n: np.ndarray, fold_n: np.ndarray) -> Any:
    """The same with each pair its own people."""
    at = np.arange(len(d_n))
    return bootstrap(d_n, same_n, fold_n, at, at, draws=DRAWS)


def accuracy(d_n: np.ndarray, same_n: np.ndarray, fold_n: np.ndarray) -> float:
    """Verify by the tool's ten folds: unit vectors at the wanted distance."""
    angle = np.arccos(1 - d_n / 2)
    a = np.stack([np.ones_like(angle), np.zeros_like(angle)], axis=1)
    return ten_fold(a, np.stack([np.cos(angle), np.sin(angle)], axis=1), same_n, fold_n).accuracy


def figures(sets: int, draws: int) -> Iterator[dict[str, Any]]:
    for kind, (people, pairs, mean) in KINDS.items():
        rng = np.random.default_rng(1)
        big = made(rng, 2_000_000, 2_000_000, mean)
        truth, truth_tar = accuracy(*big[:3]), tar_at_far(big[0], big[1], FAR)
        held, held_tar, held_naive, width = [], [], [], []
        for number in range(sets):
            one = made(np.random.default_rng([7, number]), people, pairs, mean)
            found = bootstrap(*one, fars=(FAR,), draws=draws, seed=number)
            held.append(found.accuracy[0] <= truth <= found.accuracy[1])
            width.append(found.accuracy[1] - found.accuracy[0])
            if (tar := found.tar[FAR]) is not None:
                held_tar.append(tar[0] <= truth_tar <= tar[1])
            if number < 200:
                usual = naive(*one[:3]).accuracy
                held_naive.append(usual[0] <= truth <= usual[1])
        name = f"intervals_{kind}"
        yield told(f"{name}_truth", truth)
        yield told(f"{name}_width", float(np.mean(width)))
        yield floor(f"{name}_coverage", float(np.mean(held)), 0.9 if kind == "crowded" else 0.93)
        yield ceiling(f"{name}_coverage_at_most", float(np.mean(held)), 0.985)
        if held_tar:
            yield floor(f"{name}_tar_coverage", float(np.mean(held_tar)), 0.92)
        yield told(f"{name}_coverage_of_pairs_drawn", float(np.mean(held_naive)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    missed = 0
    for figure in figures(40 if chosen.quick else 1000, DRAWS):
        print(json.dumps({**figure, **machine("numpy", "scipy")}), flush=True)
        missed += figure["holds"] is False
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
