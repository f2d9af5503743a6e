"""People planted under two ids: what is found, on real faces and among 100,000 made-up identities.

    GLINT_SHARED=../shared python benchmarks/planted.py [--quick] [--only PART] [--out FILE]

Real: every LFW crop of `data/lfw/train.rec` under GLINT_SHARED by the recognisers of `data/models`;
500 identities of two images or more are split in two at random. Made up: embeddings of 100,000
identities of which 5 % are split and 10 % look like another one. In both, `verdicts.find` merges
at its own setting, and its order is compared with the centre cosine's: recall where the best cut,
chosen with knowledge of the truth, leaves a precision of 0.99 or of 1. In the made-up world the
ceiling is the same figure for the rule of one who knows how that world was drawn (Bayes, up to the
Gaussian form of the noise); on real faces nobody does, and it is the best of the known cuts.

Inside identities: lone images of LFW put into other identities, and identities put together.

LFW itself holds people under two names. Pairs of the untouched set that are more likely one person
than not are left out of every figure but "all counted". One JSON line a figure; exit 1 where one
falls short.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from figures import ceiling, floor, machine, told

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from glint.conflicts import evidence, outliers  # noqa: E402
from glint.conflicts.chance import Compared  # noqa: E402
from glint.conflicts.evidence import Samples  # noqa: E402
from glint.conflicts.verdicts import ConflictOptions, Found, find  # noqa: E402
from glint.search.pairs import unit64  # noqa: E402
from glint.shards import recordio  # noqa: E402
from glint.shards.embeddings import centres  # noqa: E402

SHARED = Path(os.environ.get("GLINT_SHARED", ROOT.parent / "shared"))
MODELS = {"y1": "mobilefacenet_y1_128d.onnx", "v3": "mobileface_v3_256d.onnx"}
BLIND = 0.4  # the training filter of the field

Ints = npt.NDArray[np.int64]
Pairs = set[tuple[int, int]]

# N samples, C identities, K candidate pairs, D embedding


@dataclass
class World:
    """Embeddings under planted labels; truth_N: who they show; split: the pairs of ids planted."""

    x_ND: npt.NDArray[np.floating]
    label_N: Ints
    truth_N: Ints
    split: Pairs

    @property
    def classes(self) -> int:
        return int(self.label_N.max()) + 1

    def count_C(self) -> Ints:
        return np.bincount(self.label_N, minlength=self.classes)

    def search(self) -> tuple[Found, Samples]:
        samples = Samples(self.x_ND, self.label_N, self.classes)
        centre_CD = centres(self.x_ND, self.label_N, self.classes)
        return find(centre_CD, samples, np.arange(self.classes), ConflictOptions()), samples


def split(x_ND: npt.NDArray[np.floating], truth_N: Ints, wanted: int, seed: int) -> World:
    """Give a random part of the images of some identities a new id."""
    rng = np.random.default_rng(seed)
    count_C = np.bincount(truth_N)
    start_C = np.cumsum(count_C) - count_C
    order = np.argsort(truth_N, kind="stable")
    label_N = truth_N.copy()
    many = np.flatnonzero(count_C >= 2)
    pairs = set()
    for new, who in enumerate(np.sort(rng.choice(many, min(wanted, len(many)), replace=False))):
        rows = order[start_C[who] : start_C[who] + count_C[who]]
        cut = int(rng.integers(1, len(rows)))
        label_N[rng.permutation(rows)[:cut]] = len(count_C) + new
        pairs.add((int(who), len(count_C) + new))
    return World(x_ND, label_N, truth_N, pairs)


def made_up(people: int, rho: tuple[float, float], seed: int, dim: int = 128,
            images: tuple[float, int] = (0.12, 30)) -> World:  # fmt: skip
    """Draw identities; a tenth look 0.5 to 0.8 of the way like another one.

    images: of an identity, the parameter of their geometric distribution, and the most.
    """
    rng = np.random.default_rng(seed)

    def unit(n: int) -> npt.NDArray[np.float32]:
        x_nD = rng.standard_normal((n, dim), np.float32)
        return x_nD / np.linalg.norm(x_nD, axis=1, keepdims=True)

    middle_CD = unit(people)
    alike = people // 10
    t_n1 = rng.uniform(0.5, 0.8, (alike, 1)).astype(np.float32)
    middle_CD[-alike:] = t_n1 * middle_CD[:alike] + np.sqrt(1 - t_n1**2) * middle_CD[-alike:]
    middle_CD /= np.linalg.norm(middle_CD, axis=1, keepdims=True)
    count_C = np.clip(rng.geometric(images[0], people), 1, images[1])
    truth_N = np.repeat(np.arange(people), count_C)
    r_N1 = rng.uniform(*rho, people).astype(np.float32)[truth_N][:, None]
    x_ND = np.empty((len(truth_N), dim), np.float16)
    for at in range(0, len(truth_N), 65536):
        cut = slice(at, at + 65536)
        r_n1 = r_N1[cut]
        x_ND[cut] = np.sqrt(r_n1) * middle_CD[truth_N[cut]] + np.sqrt(1 - r_n1) * unit(len(r_n1))
    return split(x_ND, truth_N, people // 20, seed)


def world_rule(samples: Samples, a: Ints, b: Ints, rho: tuple[float, float], dim: int, splits: int,
               pairs: float) -> npt.NDArray[np.float64]:  # fmt: skip
    """Give the log odds of one person by the likelihood that `made_up` draws from.

    Of the cosines of all images of both sides only three sums count: within either, and across.
    """
    from scipy.special import logsumexp

    sum_CD = np.zeros((len(samples.count_C), dim))
    for label in np.union1d(a, b).tolist():
        sum_CD[label] = samples.unit(samples.rows(label, 10**6)).sum(axis=0, dtype=np.float64)
    n_K, m_K = samples.count_C[a].astype(float), samples.count_C[b].astype(float)
    within_K, other_K = ((sum_CD[side] ** 2).sum(axis=1) for side in (a, b))
    across_K = (sum_CD[a] * sum_CD[b]).sum(axis=1)

    def likelihood(r: float, q: float, t: float) -> npt.NDArray[np.float64]:
        one_K, two_K, off_K = 1 - r + n_K * r, 1 - q + m_K * q, t * np.sqrt(r * q * n_K * m_K)
        det_K = one_K * two_K - off_K**2
        square_K = (two_K * within_K / n_K + one_K * other_K / m_K
                    - 2 * off_K * across_K / np.sqrt(n_K * m_K)) / det_K  # fmt: skip
        rest_K = (n_K - within_K / n_K) / (1 - r) + (m_K - other_K / m_K) / (1 - q)
        logs_K = np.log(det_K) + (n_K - 1) * np.log(1 - r) + (m_K - 1) * np.log(1 - q)
        return -0.5 * dim * (logs_K + square_K + rest_K)

    def mean(parts: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        return logsumexp(np.stack(parts), axis=0) - np.log(len(parts))

    r_R = np.linspace(*rho, 13)[1::2].tolist()
    t_T = np.linspace(0.5, 0.8, 17)[1::2].tolist()
    same_K = mean([likelihood(r, r, 1.0) for r in r_R])
    random_K = mean([likelihood(r, q, 0.0) for r in r_R for q in r_R])
    alike_K = mean([likelihood(r, q, t) for r in r_R for q in r_R for t in t_T])
    two_K = np.logaddexp(random_K + np.log(pairs), alike_K + np.log(2.0 * splits))
    return same_K + np.log(splits) - two_K


def recall_at(value_K: npt.NDArray[np.float64], right_K: npt.NDArray[np.bool_], precision: float,
              planted: int) -> tuple[float, float]:  # fmt: skip
    """Return the most that a cut finds at this precision, and the cut."""
    order = np.argsort(-value_K, kind="stable")
    hits = np.cumsum(right_K[order])
    good = hits >= precision * np.arange(1, len(order) + 1)
    last = np.append(
        value_K[order][1:] != value_K[order][:-1], True
    )  # a cut takes equal values together
    best = np.flatnonzero(good & last & np.isfinite(value_K[order]))
    if not len(best):
        return 0.0, float("inf")
    return hits[best[-1]] / planted, float(value_K[order][best[-1]])


def judged(name: str, world: World, left_out: Pairs, targets: bool,
           rho: tuple[float, float] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """Search a world and say what was found. left_out: pairs of people that count for nothing.

    rho: of a world that is made up.
    """
    began = time.process_time()
    found, samples = world.search()
    seconds = time.process_time() - began
    a, b = found.pairs.a, found.pairs.b
    who_C = np.zeros(world.classes, np.int64)
    who_C[world.label_N] = world.truth_N
    both = list(zip(a.tolist(), b.tolist()))
    right_K = np.array([pair in world.split for pair in both], bool)
    people = np.sort(np.stack([who_C[a], who_C[b]], axis=1), axis=1)
    known_K = np.array([tuple(pair) in left_out for pair in people.tolist()], bool) & ~right_K
    merge_K = found.verdict == "merge"
    planted = len(world.split)
    lines = []

    def say(made: dict[str, Any]) -> None:
        lines.append({**made, "figure": f"{name}: {made['figure']}"})
        print(json.dumps(lines[-1]), flush=True)

    def precision_of(mask_K: npt.NDArray[np.bool_]) -> float:
        return float((mask_K & right_K).sum() / max(int((mask_K & ~known_K).sum()), 1))

    say(told("identities", world.classes))
    say(told("images", len(world.label_N)))
    say(told("planted", planted))
    recall = float((merge_K & right_K).sum() / planted)
    least = np.minimum(found.n_a, found.n_b)
    count_C = world.count_C()
    smaller = {pair: int(min(count_C[list(pair)])) for pair in world.split}
    for label, low, high in (("1 image", 1, 1), ("2", 2, 2), ("3 or more", 3, 10**9)):
        base = sum(low <= n <= high for n in smaller.values())
        part = merge_K & right_K & (least >= low) & (least <= high)
        say(told(f"merged, smaller side {label}, of {base}", float(part.sum()) / max(base, 1)))
    say(told("merged or masked", float(((found.verdict != "keep") & right_K).sum() / planted)))
    both_more = least >= 2
    base = sum(n >= 2 for n in smaller.values())
    good = (merge_K & right_K & both_more).sum() / max(base, 1)
    say(told(f"merged, both sides 2 images or more, of {base}", float(good)))
    if left_out:
        counted = (merge_K & right_K).sum() / max(int(merge_K.sum()), 1)
        say(told("precision of merges, all counted", float(counted)))
    blind = found.pairs.cosine >= BLIND
    say(told("blind 0.4: recall", float((blind & right_K).sum() / planted)))
    say(told("blind 0.4: precision", precision_of(blind)))

    # The same candidates in the order of the centre cosine, of the judge, and of one who knows.
    keep = ~known_K
    cosine_K, right_k = found.pairs.cosine[keep], right_K[keep]
    own_K = found.evidence.score
    if found.judge.likeness is not None:
        compared = Compared(found.pairs.cosine, found.n_a, found.n_b)
        own_K = found.judge.likeness.strength(compared)
    orders = {"centre cosine": cosine_K, "glint's order": own_K[keep]}
    if rho is not None:
        count = len(np.unique(world.label_N))
        rule = world_rule(samples, a[keep], b[keep], rho, world.x_ND.shape[1], planted,
                          count * (count - 1) / 2)  # fmt: skip
        orders["ceiling, who knows how the world was drawn"] = rule
    for precision in (0.99, 1.0):
        top = 0.0
        for order, value_k in orders.items():
            best, cut = recall_at(value_k, right_k, precision, planted)
            note = f" ({cut:.3f})" if order == "centre cosine" else ""
            say(told(f"recall at precision {precision:g}, cut known: {order}{note}", best))
            top = max(top, best)
        if precision < 1 and targets and rho is None:
            say(floor("recall at the auto-merge setting", recall, round(top - 0.02, 4)))
        elif precision < 1 and targets:
            say(told("recall at the auto-merge setting", recall))
    if targets:
        least = 0.99 if rho is None else 0.97  # one in ten looks like another one there
        say(floor("precision at the auto-merge setting", precision_of(merge_K), least))
    else:
        say(told("recall at the auto-merge setting", recall))
        say(told("precision at the auto-merge setting", precision_of(merge_K)))
    say(told("search and judge, CPU seconds", seconds))
    return lines


def faces(model: Path, most: int | None) -> tuple[npt.NDArray[np.float16], Ints]:
    """Embed LFW's crops; (unit embeddings, people)."""
    import simplejpeg

    from glint.models.recogniser import open_model

    lfw = SHARED / "data" / "lfw"
    rows = list(csv.DictReader((lfw / "images.tsv").open(), delimiter="\t"))[:most]
    key, at = recordio.read_idx(lfw / "train.idx")
    offset = dict(zip(key.tolist(), at.tolist()))
    recogniser = open_model(model, threads=1)
    parts, batch = [], []
    with (lfw / "train.rec").open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as rec:
        for number, row in enumerate(rows, 1):
            _, image = recordio.unpack(recordio.parse(rec, offset[int(row["key"])])[0])
            batch.append(simplejpeg.decode_jpeg(image))
            if len(batch) == 64 or number == len(rows):
                parts.append(recogniser.embed(np.stack(batch)))
                batch = []
    x_ND = unit64(np.concatenate(parts)).astype(np.float16)
    _, people = np.unique([row["person"] for row in rows], return_inverse=True)
    return x_ND, people.astype(np.int64)


def stored(model: Path) -> tuple[npt.NDArray[np.float16], Ints]:
    """Read the embeddings of LFW by y1 that stand beside the crops, and check 64 of them."""
    folder = SHARED / "data" / "features"
    x_ND = np.load(folder / "lfw_y1_l2_f16.npy", allow_pickle=False)
    files = (folder / "lfw_files.txt").read_text().split()
    mine_nD, _ = faces(model, 64)
    place = {Path(name).name: row for row, name in enumerate(files)}
    with (SHARED / "data" / "lfw" / "images.tsv").open() as lines:
        first = [row["file"] for row, _ in zip(csv.DictReader(lines, delimiter="\t"), range(64))]
    rows = np.array([place[Path(name).name] for name in first])
    cosine = (unit64(mine_nD) * unit64(x_ND[rows])).sum(axis=1)
    if cosine.min() < 0.999:
        raise SystemExit(f"the stored embeddings are not this model's: {cosine.min():.4f}")
    _, people = np.unique([Path(name).parent.name for name in files], return_inverse=True)
    return x_ND, people.astype(np.int64)


def conflicts_it_came_with(x_ND: npt.NDArray[np.float16], people: Ints) -> Pairs:
    """Return the pairs of the untouched set that are more likely one person than not."""
    found, _ = World(x_ND, people, people, set()).search()
    likely = (found.probability >= 0.5) | (found.verdict == "merge")
    return set(zip(found.pairs.a[likely].tolist(), found.pairs.b[likely].tolist()))


def inside_figures(name: str, x_ND: npt.NDArray[np.floating], people: Ints) -> list[dict[str, Any]]:
    """Put lone images into other identities and pairs of identities under one label."""
    rng = np.random.default_rng(0)
    count_C = np.bincount(people)
    alone, many = np.flatnonzero(count_C[people] == 1), np.flatnonzero(count_C >= 3)
    guest = rng.choice(alone, len(many) // 9, replace=False)
    pairs = rng.permutation(many)[: 2 * (len(many) // 18)].reshape(-1, 2)
    hosts = np.setdiff1d(many, pairs)
    label_N = people.copy()
    label_N[guest] = rng.choice(hosts, len(guest))
    for one, other in pairs:
        label_N[label_N == other] = one
    told_before, told_now, wanted = set(), set(), set(pairs[:, 0].tolist())
    for label, rows in ((people, told_before), (label_N, told_now)):
        samples = Samples(x_ND, label, len(count_C))
        prior = evidence.prior_rho(samples)
        found = outliers.find_mixed(samples, prior)
        mixed = {one.label for one in found}
        rows.update(outliers.find_outliers(samples, prior, mixed=found).row.tolist())
    lines = [
        told("images that stand far off on the untouched set", len(told_before)),
        told("planted strangers", len(guest)),
        floor("planted strangers found", len(told_now & set(guest.tolist())) / len(guest), 0.95),
        ceiling("other images told that were not before",
                len(told_now - told_before - set(guest.tolist())), round(0.05 * len(guest), 2)),
        told("planted labels of two people", len(wanted)),
        floor("planted labels of two people found", len(mixed & wanted) / len(wanted), 0.9),
        ceiling("other labels told", len(mixed - wanted), round(0.05 * len(wanted), 2)),
    ]  # fmt: skip
    lines = [{**line, "figure": f"{name}, inside: {line['figure']}"} for line in lines]
    for line in lines:
        print(json.dumps(line), flush=True)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2,500 crops, 5,000 identities")
    parser.add_argument("--fresh", action="store_true", help="embed every crop, no stored rows")
    parser.add_argument("--no-weak", action="store_true", help="real faces by y1 alone")
    parser.add_argument("--only", choices=("faces", "made-up"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    head = {"benchmark": "planted", "quick": args.quick, **machine("numpy", "scipy", "torch")}
    lines: list[dict[str, Any]] = [head]
    print(json.dumps(head), flush=True)
    if args.only == "made-up":
        pass
    elif (SHARED / "data" / "models").is_dir():
        for name, file in MODELS.items():
            if (args.quick or args.no_weak) and name != "y1":
                continue
            model = SHARED / "data" / "models" / file
            there = name == "y1" and (SHARED / "data" / "features").is_dir() and not args.fresh
            x_ND, people = stored(model) if there else faces(model, 2500 if args.quick else None)
            if args.quick:
                x_ND, people = x_ND[:2500], people[:2500]
            if name == "y1":
                lines += inside_figures(f"LFW, {name}", x_ND, people)
            own = conflicts_it_came_with(x_ND, people)
            for seed in range(1 if args.quick else 2):
                world = split(x_ND, people, 500 if not args.quick else 100, seed)
                lines += judged(f"LFW, {name}, draw {seed}", world, own, name == "y1")
            lines.append(
                told(
                    f"LFW, {name}: pairs left out, likely one person on the untouched set", len(own)
                )
            )
            print(json.dumps(lines[-1]), flush=True)
    else:
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
    people = 5000 if args.quick else 100_000
    worlds = (("clear", (0.55, 0.8)), ("weak", (0.3, 0.5))) if args.only != "faces" else ()
    for name, rho in worlds:
        lines += judged(f"made up, {name} embedder", made_up(people, rho, 0), set(), True, rho)
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if all(line.get("holds") is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
