"""An audit of the merges: a random sample for reviewers, and what it says of all of them."""

# K merges, n of them drawn

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from glint import rng
from glint.results import identities as results

CONFIDENCE = 0.95

Ints = npt.NDArray[np.int64]


def draw(a_K: Ints, b_K: Ints, most: int, report: str) -> Ints:
    """Return the places of at most `most` pairs: uniform, without replacement, in random order.

    The digest that names the report is the seed: the order of its pairs does not matter, and a
    longer draw begins with the shorter one, so decisions on one count for the other.
    """
    key = rng.key_of(*(int(word, 16) for word in (report[-32:-16], report[-16:])))
    pair_K = (a_K.astype(np.uint64) << np.uint64(32)) | b_K.astype(np.uint64)
    return np.argsort(rng.hash_at(key, pair_K), kind="stable")[:most].astype(np.int64)


def wrong_at_most(wrong: int, drawn: int, total: int) -> float:
    """Return the largest share of `total` merges that is wrong, at CONFIDENCE.

    wrong of the drawn are. Where all were drawn it is their share; else the upper one-sided bound
    of Clopper and Pearson (Biometrika 1934), which is wider than need be for a small total.
    """
    if drawn >= total:
        return wrong / total if total else 0.0
    if wrong >= drawn:
        return 1.0
    from scipy.special import betaincinv

    return float(betaincinv(wrong + 1, drawn - wrong, CONFIDENCE))


def judge(
    pairs: Sequence[tuple[int, int]],
    verdicts: Mapping[tuple[int, int], Mapping[str, str]],
    total: int,
) -> results.Audit:
    """Count what reviewers said of the drawn pairs (a < b), of `total` merges.

    verdicts: those that stand, by pair and reviewer. One reviewer is enough to call a merge
    wrong; a masked pair may be one person, and counts as wrong.
    """
    said = [set(verdicts.get(pair, {}).values()) for pair in pairs]
    wrong = sum("keep" in one for one in said)
    unsure = sum("mask" in one and "keep" not in one for one in said)
    decided = sum(bool(one) for one in said)
    done = bool(pairs) and decided == len(pairs)
    return results.Audit(
        merges=total,
        drawn=len(pairs),
        decided=decided,
        wrong=wrong,
        unsure=unsure,
        wrong_at_most=wrong_at_most(wrong + unsure, len(pairs), total) if done else None,
        confidence=CONFIDENCE,
        kind="audit" if done else "estimate",
    )


def sentence(audit: results.Audit) -> str:
    """Say what an audit found, or what it lacks."""
    if not audit.drawn:
        return "no pair would merge: there is nothing to audit"
    if audit.wrong_at_most is None:
        return (
            f"audit: {audit.decided} of {audit.drawn} drawn pairs decided; there is no bound "
            "before all are"
        )
    unsure = f", {audit.unsure} unsure (counted as wrong)" if audit.unsure else ""
    found = f"of {audit.drawn} drawn, {audit.wrong} wrong{unsure}"
    share = f"{100 * audit.wrong_at_most:.1f} %"
    if audit.drawn == audit.merges:
        return f"{found}: {share} of the merges are wrong (all were reviewed)"
    sure = f"{100 * audit.confidence:.0f} %"
    return f"{found}: at most {share} of the merges are wrong, at {sure} confidence"
