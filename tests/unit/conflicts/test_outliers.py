"""Planted strangers and planted second people are found inside identities, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glint.conflicts import evidence, outliers
from glint.conflicts.calibrate import calibrate
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import ConflictOptions, find
from glint.pipelines.conflicts import outliers as stage
from glint.search import pairs
from glint.shards.embeddings import centres


class World:
    """Identities of 1 to 20 images; some images and some halves show somebody else."""

    def __init__(self, seed: int, *, people: int = 120, dim: int = 64, low: float = 0.5) -> None:
        rng = np.random.default_rng(seed)
        middle = pairs.unit64(rng.standard_normal((2 * people, dim)))
        rows, label = [], []
        self.strangers, self.mixed, at = set(), {}, 0
        for who in range(people):
            n = int(rng.integers(1, 21)) if who >= 12 else 12
            r = rng.uniform(low, 0.8)
            shown = np.full(n, who)
            if who < 6:
                shown[: 3 + who % 3] = people + who
                self.mixed[who] = set(range(at, at + 3 + who % 3))
            elif who < 12:
                shown[4] = people + who
                self.strangers.add(at + 4)
            noise = pairs.unit64(rng.standard_normal((n, dim)))
            rows.append(np.sqrt(r) * middle[shown] + np.sqrt(1 - r) * noise)
            label += [who] * n
            at += n
        self.x = pairs.unit64(np.concatenate(rows)).astype(np.float16)
        self.samples = Samples(self.x, np.array(label), people)
        self.prior = evidence.prior_rho(self.samples)


@pytest.mark.parametrize("seed", range(3))
def test_strangers_and_second_people(seed: int) -> None:
    world = World(seed)
    far = outliers.find_outliers(world.samples, world.prior)
    assert {row for row in far.row.tolist() if row >= 6 * 12} == world.strangers
    assert (np.diff(far.z) <= 0).all() and far.z.min() >= outliers.SPREADS
    assert (np.abs(far.score) < 0.6).all()
    found = outliers.find_mixed(world.samples, world.prior)
    assert {one.label: set(one.two.tolist()) for one in found} == world.mixed
    for one in found:
        assert len(one.one) >= len(one.two) >= outliers.LEAST
        assert one.cosine < one.within


def test_a_hard_photograph_is_no_outlier() -> None:
    """Far from its own by the dataset's measure, but nearer than a stranger."""
    world = World(5)
    label = 12 + int(world.samples.count_C[12:].argmax())
    hard, *rest = world.samples.rows(label).tolist()
    others = world.samples.unit(np.array(rest)).mean(axis=0)
    noise = pairs.unit64(np.random.default_rng(1).standard_normal((1, 64)))[0]
    half = 0.6 * others / np.linalg.norm(others) + 0.8 * noise
    world.x[hard] = half / np.linalg.norm(half)
    assert hard not in outliers.find_outliers(world.samples, world.prior).row


def test_too_few_identities_say_nothing() -> None:
    world = World(0, people=12)
    assert len(outliers.find_outliers(world.samples, world.prior).row) == 0
    assert outliers.find_mixed(world.samples, world.prior) == []
    none = Samples(np.empty((0, 8), np.float16), np.empty(0, np.int64), 3)
    assert len(outliers.find_outliers(none, 1.0).row) == 0
    assert outliers.find_mixed(none, 1.0) == []


def test_identities_of_few_images_are_left_out() -> None:
    world = World(1)
    prior = calibrate(world.samples).prior
    small = np.flatnonzero(world.samples.count_C < outliers.LEAST)
    rows = {int(row) for label in small for row in world.samples.rows(int(label))}
    assert rows and not rows & set(outliers.find_outliers(world.samples, prior).row.tolist())


def photographs(seed: int, heavy: float) -> tuple[Samples, float]:
    """Draw 800 identities with no wrong image; `heavy` of the images are hard ones."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(800), rng.integers(3, 16, 800))
    r = rng.uniform(0.5, 0.7, len(label))
    hard = rng.random(len(label)) < heavy
    r[hard] = rng.beta(2, 2, hard.sum()) * 0.5
    r = r[:, None]
    middle = pairs.unit64(rng.standard_normal((800, 64)))
    noise = pairs.unit64(rng.standard_normal((len(label), 64)))
    x = (np.sqrt(r) * middle[label] + np.sqrt(1 - r) * noise).astype(np.float32)
    samples = Samples(x, label, 800)
    return samples, evidence.prior_rho(samples)


@pytest.mark.parametrize("heavy", [0.0, 0.15])
def test_of_right_images_the_stated_share_is_told(heavy: float) -> None:
    """A fifth of a hundred hard ones looks like a stranger by itself; the cut heeds the others."""
    samples, prior = photographs(0, heavy)
    told = len(outliers.find_outliers(samples, prior).row)
    assert told <= 3 * outliers.FALSE_FLAGS * samples.count_C.sum() + 3
    assert len(outliers.find_mixed(samples, prior)) <= 3 * outliers.FALSE_FLAGS * 800 + 3


def test_the_cut_lies_between_the_right_and_the_wrong() -> None:
    rng = np.random.default_rng(0)
    for right in (rng.standard_normal(100_000), rng.standard_exponential(100_000)):
        cut = outliers.far_from(right)
        assert (right >= cut).mean() <= outliers.FALSE_FLAGS
        wrong = rng.normal(14, 1.5, 3000)
        cut = outliers.far_from(np.r_[right, wrong])
        assert (wrong >= cut).mean() > 0.95
        assert (right >= cut).sum() < 0.06 * 3000


@pytest.mark.parametrize(("share", "least"), [(0.02, 0.9), (0.1, 0.9), (0.25, 0.8)])
def test_images_under_the_name_of_somebody_else(share: float, least: float) -> None:
    """However many they are: by one line of numpy, an image nearer to another identity."""
    rng = np.random.default_rng(3)
    people, each = 300, 6
    who = np.repeat(np.arange(people), each)
    face = pairs.unit64(rng.standard_normal((people, 128)))[who]
    x_ND = pairs.unit64(face + 0.8 / np.sqrt(128) * rng.standard_normal(face.shape))
    label = who.copy()
    picked = rng.choice(len(who), round(share * len(who)), replace=False)
    label[picked] = rng.integers(0, people, len(picked))
    wrong = set(np.flatnonzero(label != who).tolist())
    centre_CD = centres(x_ND, label, people)
    samples = Samples(x_ND.astype(np.float32), label, people)
    found = find(centre_CD, samples, np.arange(people), ConflictOptions())
    emb = SimpleNamespace(sample_ND=x_ND.astype(np.float32), centre_CD=centre_CD)

    def elsewhere(row_f: Any, cosine_f: Any) -> Any:
        seen = stage._elsewhere(emb, samples, label, found, row_f, cosine_f)  # type: ignore[arg-type]
        cosine_fC = x_ND[row_f] @ centre_CD.T  # and as a loop sees it
        cosine_fC[np.arange(len(row_f)), label[row_f]] = -1
        cut_C = found.judge.rare_cosine(1, samples.count_C)
        more = np.maximum(cut_C, cosine_f[:, None] + outliers.MORE)
        assert np.array_equal(seen, (cosine_fC >= more).any(axis=1))
        return seen

    prior = found.calibration.prior
    rows = outliers.find_outliers(samples, prior, elsewhere=elsewhere).row.tolist()
    assert len(wrong & {*rows}) >= least * len(wrong)
    assert len(wrong & {*rows}) >= 0.95 * len(rows)
