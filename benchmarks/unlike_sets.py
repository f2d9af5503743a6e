"""People under two ids whose halves are unlike: sets of real faces, none drawn as glint calibrates.

Every set stands in the whole of LFW (5,749 people), but for those that say otherwise.
"""

# N images, C identities, D embedding

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import real_sets
from real_sets import Half, Ints, Set

from glint.search import pairs
from glint.shards.embeddings import centres

Pairs = set[tuple[int, int]]
Cut = Callable[[Ints, np.random.Generator], Ints]  # rows of a person -> those of the second id

CAME_WITH = 0.58  # untouched pairs of LFW by y1 from here on: one person, siblings, one photograph
VARIANT = 0.82  # likeness of two names, their parts sorted, that are spellings of one


@dataclass
class Case:
    """A dataset in which `true` pairs of labels are one person; those of `moot` are not counted.

    who_C: person of each label; moot: pairs of people. there: labels from here on are another
    dataset, and only pairs across the two count.
    """

    name: str
    x_ND: npt.NDArray[np.floating]
    label_N: Ints
    who_C: Ints
    true: Pairs
    moot: Pairs = field(default_factory=set)
    there: int | None = None

    @property
    def classes(self) -> int:
        return len(self.who_C)


def came_with(lfw: Set) -> tuple[Pairs, Pairs]:
    """Return LFW's own pairs that may be one person, by y1, and those by two spellings."""
    names = sorted(set(lfw.name))
    centre_CD = centres(real_sets.lfw("y1").x_ND, lfw.who_N, len(names))
    near = pairs.pairs_above(centre_CD, 0.4)
    tidy = [" ".join(sorted(re.split(r"[_-]", name.lower()))) for name in names]
    moot, variant = set(), set()
    for a, b, cosine in zip(near.a.tolist(), near.b.tolist(), near.cosine.tolist()):
        if difflib.SequenceMatcher(None, tidy[a], tidy[b]).ratio() >= VARIANT:
            variant.add((a, b))
        elif cosine >= CAME_WITH:
            moot.add((a, b))
    return moot, variant


def cut_in_two(
    name: str, base: Set, moot: Pairs, cut: Cut, seed: int, *, least: int = 2, most: int = 500,
    other_ND: Half | None = None, only: Ints | None = None,
) -> Case:  # fmt: skip
    """Give what `cut` picks of up to `most` people of `least` images a second label.

    other_ND: embeddings that the second label's images have instead. only: people to choose from.
    """
    rng = np.random.default_rng([seed, 7])
    count_C = np.bincount(base.who_N)
    many = np.flatnonzero(count_C >= least)
    many = many if only is None else np.intersect1d(many, only)
    chosen = np.sort(rng.choice(many, min(most, len(many)), replace=False))
    x_ND, label_N, true = base.x_ND.copy(), base.who_N.copy(), set()
    for new, who in enumerate(chosen.tolist(), len(count_C)):
        rows = cut(np.flatnonzero(base.who_N == who), rng)
        label_N[rows] = new
        if other_ND is not None:
            x_ND[rows] = other_ND[rows]
        true.add((who, new))
    return Case(name, x_ND, label_N, np.r_[np.arange(len(count_C)), chosen], true, moot)


def at_random(rows: Ints, rng: np.random.Generator) -> Ints:
    return rng.permutation(rows)[: int(rng.integers(1, len(rows)))]


def half(rows: Ints, rng: np.random.Generator) -> Ints:
    return rng.permutation(rows)[: len(rows) // 2]


def newest(rows: Ints, rng: np.random.Generator) -> Ints:
    return rows[len(rows) // 2 :]


def one_image(rows: Ints, rng: np.random.Generator) -> Ints:
    return rng.permutation(rows)[:1]


def two_means(x_ND: Half) -> Cut:
    """Cut by Lloyd's algorithm on the unit sphere, from the two images farthest apart."""

    def cut(rows: Ints, rng: np.random.Generator) -> Ints:
        x_nD = x_ND[rows].astype(np.float32)
        cosine_nn = x_nD @ x_nD.T
        first = np.array(np.unravel_index(np.argmin(cosine_nn), cosine_nn.shape))
        middle_2D = x_nD[first]
        for _ in range(20):
            second = x_nD @ middle_2D[1] > x_nD @ middle_2D[0]
            second[first] = False, True
            middle_2D = np.stack([x_nD[~second].mean(axis=0), x_nD[second].mean(axis=0)])
            middle_2D /= np.linalg.norm(middle_2D, axis=1, keepdims=True)
        return rows[second]

    return cut


def joined(name: str, one: Case, x_ND: Half, who_N: Ints, true: Pairs, *, across: bool) -> Case:
    """Put another collection behind one. true: pairs of (label of `one`, person of the other)."""
    count = int(who_N.max()) + 1
    return Case(
        name, np.concatenate([one.x_ND, x_ND]), np.r_[one.label_N, who_N + one.classes],
        np.r_[one.who_C, one.who_C.max() + 1 + np.arange(count)],
        {(a, b + one.classes) for a, b in true}, one.moot, one.classes if across else None,
    )  # fmt: skip


def look_alikes(base: Set, moot: Pairs, seed: int) -> Case:
    """Keep the 1,500 people of LFW who are most like another one; split a tenth by file order."""
    count = int(base.who_N.max()) + 1
    centre_CD = centres(base.x_ND, base.who_N, count)
    cosine_CC = centre_CD @ centre_CD.T
    np.fill_diagonal(cosine_CC, -1)
    kept = np.sort(np.argsort(-cosine_CC.max(axis=1), kind="stable")[:1500])
    rows = np.flatnonzero(np.isin(base.who_N, kept))
    some = Set(base.x_ND[rows], np.searchsorted(kept, base.who_N[rows]), [], [])
    place = {int(who): k for k, who in enumerate(kept)}
    both = {(place[a], place[b]) for a, b in moot if a in place and b in place}
    return cut_in_two("look-alikes", some, both, newest, seed, most=150)


def sets(model: str, seed: int, *, quick: bool = False) -> Iterator[Case]:
    """Yield every set of a recogniser, one draw of it. quick: those that need no embedding."""
    lfw = real_sets.lfw(model)
    close, variant = came_with(lfw)
    moot = close | variant
    count = int(lfw.who_N.max()) + 1
    plain = Case("LFW", lfw.x_ND, lfw.who_N, np.arange(count), set(), moot)
    yield cut_in_two("random halves", lfw, moot, at_random, seed)
    yield cut_in_two("2-means halves", lfw, moot, two_means(lfw.x_ND), seed, least=4)
    yield cut_in_two("file order", lfw, moot, newest, seed)
    yield cut_in_two("one against many", lfw, moot, one_image, seed, least=5)
    yield look_alikes(lfw, moot, seed)
    if not quick:
        elsewhere_ND = real_sets.lfw_elsewhere(model)
        yield cut_in_two("by source", lfw, moot, half, seed, other_ND=elsewhere_ND)
        bolly = real_sets.bollywood(model)
        both = joined("", plain, bolly.x_ND, bolly.who_N, set(), across=False)
        many = Set(both.x_ND, both.label_N, [], [])
        yield cut_in_two("Bollywood by cluster", many, moot, two_means(both.x_ND), seed,
                         only=np.arange(count, both.classes))  # fmt: skip
    if seed == 0:  # these are not drawn
        yield Case("LFW's own spellings", lfw.x_ND, lfw.who_N, np.arange(count), variant, close)
        if model == "y1":
            yield from cross_source(plain)


def cross_source(plain: Case) -> Iterator[Case]:
    """Yield the sets of the other collection: against LFW, and frontal against profile."""
    x_ND, who_N, profile_N, same = real_sets.cross_source()
    names = sorted(set(real_sets.lfw("y1").name))
    true = {(names.index(name), person) for person, name in same.items()}
    front_ND, front_N = x_ND[~profile_N], who_N[~profile_N]
    people = int(who_N.max()) + 1
    yield joined("cross source, merged", plain, front_ND, front_N, true, across=False)
    yield joined("cross source, --against", plain, front_ND, front_N, true, across=True)
    alone = Case("", front_ND, front_N, np.arange(people), set())
    facing = {(person, person) for person in range(people)}
    for name, base in (("frontal against profile", alone), ("the same in LFW", None)):
        if base is None:
            base = joined("", plain, front_ND, front_N, set(), across=False)
            facing = {(plain.classes + person, person) for person in range(people)}
        made = joined(name, base, x_ND[profile_N], who_N[profile_N], facing, across=False)
        shift = base.classes - people
        made.who_C[base.classes :] = made.who_C[shift : base.classes]
        made.moot = made.moot | {(names.index(n), made.who_C[shift + p]) for p, n in same.items()}
        yield made
