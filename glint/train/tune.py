"""A recipe that tunes weights on a dataset, and what it reads: who is held out, what is drawn."""

# N samples, T identities in force, p pairs

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from glint import schemas
from glint.errors import UsageError
from glint.evals.packs import write_bin
from glint.files import parquet
from glint.models import checkpoint
from glint.nn import lora
from glint.nn.stages import stages
from glint.recipes import load
from glint.shards.dataset import Dataset
from glint.shards.label_table import LabelTable
from glint.train.recipe import Recipe

SHARES = (1.0, 0.75, 0.5, 0.25)  # of the tuned net, tried in turn until one forgets little enough
SMALL = 500_000  # images below which running statistics stay as they are
PAIRS = 1000  # of one person, about, in the pack of held-out people
LEAST = 4  # people with two images that a split needs

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """What a person chooses of a tuning; see `glint tune --help`."""

    freeze: str = "none"
    lora: int = 0
    centres: str = "trained"
    norms: str = "auto"
    epochs: int = 5
    batch: int = 64
    seed: int = 0
    held_out: float = 0.1
    replay_share: float = 0.5
    patience: int = 3


def held_out(dataset: Dataset, table: LabelTable, own: int, share: float, seed: int) -> Ints:
    """Choose people to hold out: their targets, ascending; none for a share of 0.

    own: people are of labels below it. Only who has two images is chosen. Raises UsageError GL0002
    where too few have.
    """
    if not share:
        return np.empty(0, np.int64)
    target_N = table.sample_target(dataset.label)
    count_T = np.bincount(target_N[target_N >= 0], minlength=table.classes)
    mine = np.unique(table.target[:own])
    able = mine[(mine >= 0) & (count_T[mine] >= 2)]
    if len(able) < LEAST:
        raise UsageError(
            "GL0002", f"{len(able)} people have two images, a split needs {LEAST}",
            where="--held-out", hint="--held-out 0 trains on all and stops by --epochs alone",
        )  # fmt: skip
    count = min(max(2, round(share * len(able))), len(able) - 2)
    return np.sort(np.random.default_rng([seed, 1]).permutation(able)[:count])


def seen_again(dataset: Dataset, table: LabelTable, people: Ints) -> Ints:
    """Return other people, targets ascending, with an image that held-out people have too.

    Their other images may be of the same persons: they are held out as well.
    """
    target_N = table.sample_target(dataset.label)
    width = dataset.digests.shape[1] * dataset.digests.dtype.itemsize
    digest_N = np.ascontiguousarray(dataset.digests).view(f"V{width}").reshape(-1)
    held_N = np.isin(target_N, people)
    same_N = np.isin(digest_N, digest_N[held_N]) & ~held_N & (target_N >= 0)
    return np.unique(target_N[same_N])


def write_pairs(
    path: Path, dataset: Dataset, table: LabelTable, people: Ints, seed: int
) -> tuple[int, int]:
    """Write pairs of held-out people as a pack: as many of one person as of two, in turn.

    Each person has as many pairs; equal images are no pair. Returns how many pairs, and images.
    Raises UsageError GL0002 where no pair is left.
    """
    rng = np.random.default_rng([seed, 2])
    target_N = table.sample_target(dataset.label)
    rows = [np.flatnonzero(target_N == one) for one in people]
    digest_N = dataset.digests
    same: list[tuple[int, int]] = []
    for row in rows:
        a, b = np.triu_indices(len(row), 1)
        chosen = rng.permutation(len(a))[: -(-PAIRS // len(rows))]
        same += [(int(row[a[i]]), int(row[b[i]])) for i in chosen]
    same = [(a, b) for a, b in same if (digest_N[a] != digest_N[b]).any()]
    other: list[tuple[int, int]] = []
    for _ in range(20 * len(same)):
        if len(other) == len(same):
            break
        first, second = rng.choice(len(rows), 2, replace=False)
        pair = int(rng.choice(rows[first])), int(rng.choice(rows[second]))
        other += [pair] if (digest_N[pair[0]] != digest_N[pair[1]]).any() else []
    count = min(len(same), len(other))
    if not count:
        raise UsageError("GL0002", "held-out people have no two different images",
                         where="--held-out")  # fmt: skip
    same = [same[i] for i in rng.permutation(len(same))[:count]]
    drawn = [row for pair in zip(same, other) for one in pair for row in one]
    write_bin(path, [dataset.read(row) for row in drawn], [True, False] * count)
    return 2 * count, len({*drawn})


def write_replay(
    path: Path, dataset: Dataset, table: LabelTable, own: int, share: float
) -> tuple[int, int]:
    """Write how often each identity is drawn where `share` of an epoch replays a generic set.

    own: labels below it are the people to tune on; each of their images is drawn once an epoch, and
    images of the others as evenly as they are there. table: without who is held out. Returns the
    draws of an epoch: of people to tune on, of the others.
    """
    target_N = table.sample_target(dataset.label)
    count_T = np.bincount(target_N[target_N >= 0], minlength=table.classes).astype(np.int64)
    mine_T = np.zeros(table.classes, bool)
    kept = table.target[:own]
    mine_T[kept[kept >= 0]] = True
    here, there = int(count_T[mine_T].sum()), int(count_T[~mine_T].sum())
    repeat = here * share / (1 - share) / max(1, there)
    draw_T = np.where(mine_T, count_T, count_T * repeat).astype(np.float64)
    about = {"dataset": dataset.digest, "label_version": str(table.version),
             "labels": table.digest, "each": "0"}  # fmt: skip
    columns = [np.arange(table.classes), count_T, draw_T, np.where(mine_T, 1.0, repeat), draw_T]
    schema = schemas.SAMPLING.with_metadata(about)
    parquet.write(path, pa.table([pa.array(one) for one in columns], schema=schema))
    return here, round(there * repeat)


def shares(text: str) -> tuple[float, ...]:
    """Turn --blend into shares of the tuned net, to be tried in turn. Raises UsageError GL0002."""
    if text == "auto":
        return SHARES
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        what = f"expected auto or a number above 0, at most 1, found {text!r}"
        raise UsageError("GL0002", what, where="--blend")
    return (share,)


def blended(before: Path, after: Path, share: float, place: Path) -> Path:
    """Write before + share * (after - before) of two checkpoints' nets as one without a head.

    Weights and statistics of norms alike, as in WiSE-FT (arXiv 2109.01903). Returns its folder.
    """
    was, now = (lora.merged(checkpoint.read_tensors(one / checkpoint.judged_weights(one)))
                for one in (before, after))  # fmt: skip
    state = {
        name: torch.lerp(was[name].double(), value.double(), share).to(value.dtype)
        if value.is_floating_point() else value
        for name, value in now.items()
    }  # fmt: skip
    about = {"backbone": checkpoint.read_state(after)["backbone"], "blend": share}
    return checkpoint.save(place, 0, backbone=state, optimizer={}, head=(0, 0, {}),
                           state=about, keep=1)  # fmt: skip


def frozen_stages(text: str, net: Any) -> int:
    """Turn --freeze into a count of stages. Raises UsageError GL0002."""
    most = len(stages(net)) - 1
    if text == "all" and not most:
        what = "the net has one stage, and that makes the embedding: nothing of it can stay"
        raise UsageError("GL0002", what, where="--freeze", hint="--lora, or none")
    if text in ("none", "all"):
        return most if text == "all" else 0
    if text.isascii() and text.isdigit() and int(text) <= most:
        return int(text)
    raise UsageError(
        "GL0002", f"expected none, all or a number of stages up to {most}, found {text!r}",
        where="--freeze", hint=f"the net has {most + 1}; the last one makes the embedding",
    )  # fmt: skip


def recipe(
    made: dict[str, Any], place: dict[str, str], images: int, frozen: int, options: Options,
    teacher: str, rate: float, changes: list[str],
) -> Recipe:  # fmt: skip
    """Make the recipe. images: to train on; rate: 0 where it is not known yet.

    made: the backbone as a recipe has it. place: paths of data, embeddings and, where there are
    such, start, held_out, pairs, sampling. Raises what `load` raises for `changes`.
    """
    norms = options.norms
    if norms == "auto":
        norms = "moving" if teacher or images >= SMALL else "frozen"
    batch = min(options.batch, max(2, images // 4))
    tables: dict[str, Any] = {
        "data": {"path": place["data"], "batch": batch, "workers": 1},
        "backbone": {key: value for key, value in made.items() if value != {}},
        "head": {
            "margin": "cosface", "m": 0.35, "scale": 64.0 if made["embedding"] >= 256 else 32.0,
            "rule": "adamw", "init": place["embeddings"],
            "lr_scale": 0.0 if options.centres == "frozen" else 1.0,
        },
        "optim": {"kind": "adamw", "lr": rate or 1e-3, "weight_decay": 0.01, "no_decay": True},
        "schedule": {"kind": "cosine", "epochs": options.epochs, "warmup": 0.1 * options.epochs},
        "tune": {"freeze": frozen, "norms": norms},
        "run": {"seed": options.seed, "tensorboard": False},
    }  # fmt: skip
    if options.lora:
        tables["tune"]["lora"] = options.lora
    for key in ("held_out", "sampling"):
        if key in place:
            tables["data"][key] = place[key]
    if "pairs" in place:
        tables["run"]["val"] = [place["pairs"]]
        tables["tune"]["patience"] = options.patience
    if "start" in place:
        tables["run"]["finetune"] = place["start"]
    if teacher:
        tables["teacher"] = {"model": teacher}
    return load.load(load.toml(tables), Recipe, changes)
