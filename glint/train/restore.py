"""A run's folder: one run at a time in it, what its checkpoints hold, and how a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glint.dist.world import cpu_group
from glint.errors import GlintError, MismatchError, UsageError
from glint.jobs.workspace import Workspace
from glint.log import logger
from glint.models import checkpoint
from glint.nn import lora
from glint.shards import embeddings
from glint.train import optim
from glint.train.build import Run

# what the state.json of a run that goes on must have
FIELDS = {"step": int, "world": int, "global_batch": int, "averaged": int,
          "identity": dict, "scaler": dict}  # fmt: skip
BEST = "best"  # in a run's folder: the checkpoint that verified best
LATER = {"labels"}  # keys of an identity that checkpoints of old do not have


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder: a new or empty one becomes the run's, another run's is refused.

    Raises UsageError GL0002 for no name, BusyError GL0004 where the folder holds something else,
    BusyError GL0005 while another process trains in it.
    """
    if str(folder) in ("", "."):
        raise UsageError("GL0002", "--out is the current folder", hint="name a folder of its own")
    space = Workspace(folder, "run", plan_name="run.json")
    space.refuse_foreign()
    with space.held():
        space.begin({"format": "glint/run@1"})
        yield


def parts(run: Run, step: int) -> dict[str, Any]:
    """Return what `checkpoint.save` writes of this rank at `step` (steps done), uncopied.

    Every rank calls it: heads without a table compare theirs.
    """
    recipe, first = run.recipe.model_dump(mode="json"), run.world.rank == 0
    state = {
        "step": step,
        "epoch": step // run.steps_per_epoch,
        "position": step % run.steps_per_epoch * run.step_images,
        "global_batch": run.global_batch,
        "steps_per_epoch": run.steps_per_epoch,
        "world": run.world.size,
        "worlds": [*run.past.worlds, *({run.world.size} - {*run.past.worlds})],
        "best": run.past.best,
        "torch": torch.__version__,
        "scaler": run.scaler.state_dict(),
        "averaged": 0 if run.averaged is None else int(run.averaged.n_averaged),
        "identity": run.past.fingerprint,
        "backbone": recipe["backbone"],
        "recipe": recipe,
    }
    averaged = None if run.averaged is None else run.averaged.module.state_dict()
    return {
        "rank": run.world.rank,
        "backbone": run.backbone.state_dict() if first else {},
        "optimizer": optim.state_by_name(run.optimizer, run.backbone) if first else {},
        "averaged": averaged if first else None,
        "head": run.head.state_rows(),
        "state": state,
        "keep": run.recipe.run.keep,
    }


def resume(run: Run) -> int:
    """Load the newest valid checkpoint of the run into it; return the steps already done.

    Every rank calls it: they share the files to verify.
    Raises MismatchError GL0702 where the run was started with other data, recipe or batch, GL0701
    where the checkpoint matches its manifest and still is not one of this program.
    """
    if run.world.rank == 0:
        checkpoint.sweep(run.out / "checkpoints")
    saved = checkpoint.newest(run.out / "checkpoints", cpu_group(run.world))
    if saved is None:
        if run.recipe.run.finetune:
            weights = finetune_source(Path(run.recipe.run.finetune))
            _start_from(run, weights)
            if run.recipe.run.finetune_head:
                _centres_from(run, weights)
        if run.recipe.head.init:
            _centres_of(run, Path(run.recipe.head.init))
        return 0
    compare(_sound(saved), run)
    try:
        _load(saved, run)
    except GlintError:
        raise
    except Exception as error:  # a file can be wrong in any way
        line = (str(error).splitlines() or [""])[0]
        raise _unsound(saved, f"it does not load: {type(error).__name__}: {line[:200]}") from error
    step: int = saved.state["step"]
    run.past.worlds.extend(_worlds(saved))
    run.past.best.update(_best(saved, run))
    if saved.state["world"] != run.world.size:
        logger.info(
            "resuming %s on %d ranks (was %d): centres redistributed, sample order unchanged",
            saved.path.name, run.world.size, saved.state["world"],
        )  # fmt: skip
    else:
        logger.info("resuming %s", saved.path.name)
    return step


def _best(saved: checkpoint.Saved, run: Run) -> dict[str, Any]:
    """Return what verified best so far, where `RUN/best` is it and the packs are the same.

    A run that was killed before it kept its best one keeps it now.
    """
    best, place = saved.state.get("best"), run.out / BEST
    if not isinstance(best, dict) or best.get("packs") != sorted(run.data.val):
        return {}
    if best.get("step") == saved.state["step"]:
        if run.world.rank == 0:
            checkpoint.keep_as(saved.path, place)
        return best
    names = (checkpoint.STATE,)
    there = (place / checkpoint.STATE).is_file() and not checkpoint.problem(place, names)
    return best if there and checkpoint.read_state(place)["step"] == best.get("step") else {}


def _load(saved: checkpoint.Saved, run: Run) -> None:
    run.backbone.load_state_dict(checkpoint.tensors(saved, "backbone"))
    optim.load_by_name(run.optimizer, run.backbone, checkpoint.tensors(saved, "optimizer"))
    if run.averaged is not None:
        run.averaged.module.load_state_dict(checkpoint.tensors(saved, "ema"))
        run.averaged.n_averaged.fill_(saved.state["averaged"])
    run.head.load_rows(checkpoint.head_fetch(saved))
    run.scaler.load_state_dict(saved.state["scaler"])


def _unsound(saved: checkpoint.Saved, what: str) -> MismatchError:
    return MismatchError(
        "GL0701", what, where=str(saved.path),
        hint="take it away: the checkpoint before it is the newest then",
    )  # fmt: skip


def _sound(saved: checkpoint.Saved) -> checkpoint.Saved:
    """Return a checkpoint if its `state.json` has what a run goes on from. Raises GL0701."""
    for name, kind in FIELDS.items():
        value = saved.state.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            found = type(value).__name__ if kind is dict else repr(value)[:40]
            raise _unsound(saved, f"state.json: expected {name}, a {kind.__name__}, found {found}")
    return saved


def _start_from(run: Run, weights: checkpoint.Saved) -> None:
    """Put the weights of another run, averaged ones where it has them, into the backbone."""
    name = "ema" if (weights.path / checkpoint.AVERAGED).exists() else "backbone"
    try:
        state = lora.merged(checkpoint.tensors(weights, name))
        run.backbone.load_state_dict(lora.spread(state, run.backbone))
    except (RuntimeError, ValueError) as error:
        made = weights.state.get("backbone") or {}
        lines = [line.strip() for line in (str(error).splitlines()[1:3] or [str(error)])]
        raise MismatchError(
            "GL0702",
            f"run.finetune: its weights do not fit backbone {run.recipe.backbone.name}: "
            + " ".join(lines)[:400],
            where=str(weights.path),
            hint=f"they are those of {made.get('name')}, embedding {made.get('embedding')}",
        ) from None
    logger.info("backbone from %s", weights.path)


def _centres_from(run: Run, weights: checkpoint.Saved) -> None:
    """Put the centres of another run into the head; its momentum and counters start anew.

    Raises MismatchError GL0702 where a row there is not the same identity here.
    """
    head, before, now = run.head, weights.state.get("identity"), run.past.fingerprint
    before = before if isinstance(before, dict) else {}
    table = before.get("head")
    lines = [
        f"{key}: {before.get(key)!r} -> {now[key]!r}"
        for key in ("dataset", "labels" if {*before} >= LATER else "label_version", "classes")
        if before.get(key) != now[key]
    ]
    if lines or not isinstance(table, dict) or table.get("kind") != "partial_fc":
        raise MismatchError(
            "GL0702",
            "run.finetune_head: its centres are of other identities: "
            + ("; ".join(lines) or "it has no table of them"),
            where=str(weights.path),
            hint="run.finetune_head = false starts with centres of its own",
        )
    fetch = checkpoint.head_fetch(weights)
    own = head.state_rows()[2]
    head.load_rows(lambda name, a, b: fetch(name, a, b) if name == "weight" else own[name].clone())
    logger.info("centres from %s", weights.path)


def _centres_of(run: Run, folder: Path) -> None:
    """Put the centres of embeddings, of length 1, into the head; who has none keeps a random one.

    Raises UsageError GL0002 where they are not of the net's length, what `embeddings.load` raises.
    """
    dataset, table, head = run.data.dataset, run.data.labels, run.head
    found = embeddings.load(folder, dataset.digest, images=dataset.n, classes=dataset.classes)
    wanted, dim = run.recipe.backbone.embedding, found.sample_ND.shape[1]
    if dim != wanted:
        what = f"head.init has centres of {dim} numbers, expected {wanted}: backbone.embedding"
        raise UsageError("GL0002", what, where=str(folder))
    some = np.flatnonzero(table.target >= 0)
    first_T = some[np.unique(table.target[some], return_index=True)[1]]
    centre_TD = torch.from_numpy(found.under(table, dataset.label).centre_CD[first_T])
    own = head.state_rows()[2]
    known_T = centre_TD.isfinite().all(1)

    def fetch(name: str, a: int, b: int) -> torch.Tensor:
        rows = own[name].clone()
        if name == "weight":
            rows[known_T[a:b]] = centre_TD[a:b][known_T[a:b]].to(rows)
        return rows

    head.load_rows(fetch)
    if lost := int((~known_T).sum()):
        logger.warning("%d identities have no centre in %s: random ones", lost, folder)
    logger.info("centres of %d identities from %s", int(known_T.sum()), folder)


def finetune_source(path: Path) -> checkpoint.Saved:
    """Find the checkpoint that `run.finetune` names: its directory, or a run's newest."""
    if (path / checkpoint.STATE).is_file() or (path / checkpoint.MANIFEST).is_file():
        if wrong := checkpoint.problem(path):
            raise MismatchError("GL0701", wrong, where=str(path))
        return checkpoint.Saved(path, checkpoint.read_state(path))
    folder = path / "checkpoints"
    saved = checkpoint.newest(folder) if folder.is_dir() else None
    if saved is None:
        raise UsageError("GL0001", f"run.finetune: no checkpoint at {path}")
    return saved


def compare(saved: checkpoint.Saved, run: Run) -> None:
    """Refuse to continue a run that was started differently, field by field."""
    before, now = saved.state["identity"], run.past.fingerprint
    lines = []
    skipped = {"label_version"} if {*before} >= LATER else LATER
    for key in sorted({*before, *now} - skipped):
        if isinstance(now.get(key), dict) and isinstance(before.get(key), dict):
            for field in sorted({*before[key], *now[key]}):
                a, b = before[key].get(field), now[key].get(field)
                if a != b:
                    lines.append(f"{key}.{field}: {a!r} -> {b!r}")
        elif before.get(key) != now.get(key):
            lines.append(f"{key}: {before.get(key)!r} -> {now.get(key)!r}")
    batch = saved.state["global_batch"]
    if batch != run.global_batch:
        lines.append(f"global batch: {batch} -> {run.global_batch}")
    if lines:
        raise MismatchError(
            "GL0702",
            "this run was started differently: " + "; ".join(lines),
            where=str(saved.path),
            hint="another --out for a new run; run.finetune starts one from these weights",
        )


def batch_for_world(out: Path, batch: int, world: int) -> int:
    """Return the per-rank batch with which a run goes on: its global batch never changes.

    batch: the recipe's, for this number of ranks or any that the run was trained on before.
    Raises MismatchError GL0702 where it gives another global batch, or that does not divide.
    """
    saved = checkpoint.newest(out / "checkpoints", names=(checkpoint.STATE,))
    if saved is None:
        return batch
    total = int(_sound(saved).state["global_batch"])
    worlds = {world, *_worlds(saved)}
    if all(batch * ranks != total for ranks in worlds):
        return batch  # `compare` names every difference
    if total % world:
        raise MismatchError(
            "GL0702",
            f"the run's global batch of {total} does not divide over {world} ranks",
            where=str(saved.path),
            hint=f"use one of {[w for w in range(1, 65) if total % w == 0]} ranks",
        )
    return total // world


def _worlds(saved: checkpoint.Saved) -> list[int]:
    """Return the numbers of ranks that a run was trained on, the first one first."""
    worlds = saved.state.get("worlds")
    if isinstance(worlds, list) and worlds and all(type(one) is int for one in worlds):
        return worlds
    return [int(saved.state["world"])]
