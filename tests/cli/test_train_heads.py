"""`glint train` with heads that have no table of classes: they learn, resume and change ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glint.dist.world import World
from glint.errors import UsageError
from glint.models import checkpoint
from glint.recipes.load import load
from glint.train import loop
from glint.train.build import build, head
from glint.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
KINDS = {"f2c": 12, "dcq": 12, "attfc": 12}  # recipe of the shelf: images per step here


def changes(small: Any, kind: str, *more: str) -> list[str]:
    return [
        f"data.path={small.data}", f"data.batch={KINDS[kind]}", "backbone.embedding=32",
        "backbone.options.widths=[4, 8, 8, 16]", "head.slots=16", "schedule.epochs=2",
        "schedule.warmup=0", "run.ema=0.9", "run.log_every=1", "run.tensorboard=false", *more,
    ]  # fmt: skip


def train(small: Any, kind: str, out: Path, *more: str) -> dict[str, Any]:
    recipe = load(ROOT / "train" / f"synth_tiny_{kind}.toml", Recipe, changes(small, kind, *more))
    return loop.train(build(recipe, World(), out))


def steps(run: Path) -> list[dict[str, Any]]:
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["kind"] == "step"]


def state(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint; the head's over all ranks."""
    saved = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    parts = [load_file(path) for path in sorted(saved.path.glob("head-*.safetensors"))]
    found = {f"head/{name}": torch.cat([part[name] for part in parts]) for name in parts[0]}
    for file in ("backbone", "ema", "optimizer"):
        found |= {f"{file}/{name}": t for name, t in checkpoint.tensors(saved, file).items()}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    small: Any, tmp_path: Path, kind: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small, kind, whole, "schedule.max_steps=7", "run.save_every=4")
    train(small, kind, parts, "schedule.max_steps=4", "run.save_every=4")
    result = train(small, kind, parts, "schedule.max_steps=7", "run.save_every=4")
    assert result.resumed_from == 4
    assert [s["loss"] for s in steps(parts)] == [s["loss"] for s in steps(whole)]
    one, other = state(whole), state(parts)
    assert sorted(one) == sorted(other) and len(one) > 100
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_leaves_the_head_as_it_was(small: Any, tmp_path: Path, kind: str) -> None:
    recipe = load(
        ROOT / "train" / f"synth_tiny_{kind}.toml",
        Recipe,
        changes(small, kind, "schedule.max_steps=3", "run.on_nan=skip"),
    )
    run = build(recipe, World(), tmp_path / "run")
    real, seen = run.head.forward, []

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        before = run.head.digest()
        loss = real(*args, **kwargs)
        seen.append((before, run.head.digest()))
        return loss * (torch.nan if kwargs["step"] == 1 else 1)

    run.head.forward = forward  # type: ignore[method-assign]
    loop.train(run)
    assert [s["loss"] for s in steps(tmp_path / "run")][1] is None
    assert seen[1][0] == seen[2][0] != seen[0][0]  # what step 1 wrote was taken back


@pytest.mark.parametrize("kind", ["f2c", "dcq", pytest.param("attfc", marks=pytest.mark.slow)])
def test_it_learns(small: Any, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    train(small, kind, out, "schedule.max_steps=60", "schedule.epochs=10", "run.save_every=60")
    apart = [s["positive_cosine"] - s["hardest_negative"] for s in steps(out)[1:]]
    losses = [s["loss"] for s in steps(out)]
    full = 15  # the pool is full by then; of a queue the first step finds no row
    assert sum(apart[-full:]) / full > sum(apart[:full]) / full + 0.05
    assert sum(losses[-full:]) < 0.9 * sum(losses[full : 2 * full])


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_agree_and_another_number_of_them_goes_on(
    small: Any, tmp_path: Path, glint: Callable[..., Any], kind: str
) -> None:
    out = tmp_path / "run"
    settings = [word for change in changes(small, kind) for word in ("--set", change)]
    common = ("train", f"synth_tiny_{kind}", *settings, "--out", out, "--json")
    glint(*common, "--nproc", "2", "--set", "schedule.max_steps=3")
    before = state(out)
    result = glint(*common, "--set", "schedule.max_steps=5")
    assert result["resumed_from"] == 3 and result["world"] == 1
    assert sorted(state(out)) == sorted(before)
    assert not torch.equal(before["head/label"], state(out)["head/label"])


def test_what_does_not_fit_is_told(small: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"GL0002.*head.slots is 5, a step may write 6"):
        train(small, "f2c", tmp_path / "run", "head.slots=5")
    with pytest.raises(UsageError, match=r"GL0002.*head.slots is 3, a step may write 4"):
        train(small, "attfc", tmp_path / "run", "head.slots=3")


@pytest.mark.parametrize(("kind", "slots", "written"), [("f2c", 11, 6), ("attfc", 7, 4)])
def test_a_pool_of_little_more_than_a_batch_is_warned_of(
    small: Any, caplog: pytest.LogCaptureFixture, kind: str, slots: int, written: int
) -> None:
    def make(slots: int, classes: int) -> list[str]:
        caplog.clear()
        recipe = load(
            ROOT / "train" / f"synth_tiny_{kind}.toml",
            Recipe,
            changes(small, kind, f"head.slots={slots}"),
        )
        head(recipe.head, classes, 32, None, World(), recipe)
        return caplog.messages

    assert make(slots, 40) == [
        f"head.slots is {slots} and a step may write {written}: most negatives are of the same "
        "batch"
    ]
    assert make(2 * written, 40) == []
    assert make(written, written) == []  # everyone has a slot
