"""Options of a run that change what a step does: averages, decay groups, skips, compilation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glint.dist.world import World
from glint.errors import DivergedError
from glint.models import checkpoint, stored
from glint.recipes.load import load
from glint.train import loop, metrics, report
from glint.train.build import Run, build
from glint.train.recipe import Recipe

RECIPE = """
[data]
path = "{data}"
batch = 16
[backbone]
name = "iresnet"
embedding = 32
options = {{ layers = [1, 1, 1, 1], widths = [8, 8, 16, 16] }}
[head]
margin = "cosface"
rate = 0.5
[optim]
lr = 0.1
[schedule]
epochs = 3
[run]
device = "cpu"
threads = 1
log_every = 1
tensorboard = false
"""


@pytest.fixture
def made(small: Any, tmp_path: Path) -> Any:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data))

    def make(out: Path, *changes: str) -> Run:
        return build(load(path, Recipe, changes), World(), out)

    return make


def losses(out: Path) -> list[float | None]:
    entries = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [e["loss"] for e in entries if e["kind"] == "step"]


def test_the_average_is_the_stated_one_and_is_what_is_judged(made: Any, tmp_path: Path) -> None:
    run = made(
        tmp_path / "run", "run.ema=0.75", "schedule.max_steps=3", "run.save_every=1", "run.keep=9"
    )
    loop.train(run)
    steps = [
        checkpoint.tensors(checkpoint.Saved(path, {}), "backbone")
        for path in checkpoint.all_in(tmp_path / "run" / "checkpoints")
    ]
    assert len(steps) == 3
    expected = {name: value.double() for name, value in steps[0].items()}
    for weights in steps[1:]:
        for name, value in weights.items():
            expected[name] = expected[name] * 0.75 + value.double() * 0.25
    judged = stored.load(tmp_path / "run").net.state_dict()
    moved = 0
    for name, value in judged.items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-6), name
            moved += int(not torch.equal(value, steps[-1][name].float()))
    assert moved > 10


def test_a_resumed_average_is_the_uninterrupted_one_to_the_bit(made: Any, tmp_path: Path) -> None:
    options = ("run.ema=0.9", "optim.no_decay=true", "optim.momentum=0.9", "run.save_every=2")
    loop.train(made(tmp_path / "whole", *options, "schedule.max_steps=4"))
    loop.train(made(tmp_path / "parts", *options, "schedule.max_steps=2"))
    loop.train(made(tmp_path / "parts", *options, "schedule.max_steps=4"))
    whole, parts = (checkpoint.newest(tmp_path / n / "checkpoints") for n in ("whole", "parts"))
    assert whole is not None and parts is not None
    for name in ("backbone", "ema", "optimizer"):
        one, two = checkpoint.tensors(whole, name), checkpoint.tensors(parts, name)
        assert one.keys() == two.keys() and len(one) > 10
        assert all(torch.equal(one[key], two[key]) for key in one), name
    page = report.page(tmp_path / "parts")
    assert [mark.words for mark in page.lines[0].marks] == ["resumed"]
    assert ("4 of 4", "steps") in page.counts and page.status.startswith("Finished.")


def test_vectors_are_spared_weight_decay_on_request(made: Any, tmp_path: Path) -> None:
    run = made(tmp_path / "run", "optim.no_decay=true", "optim.weight_decay=0.01")
    decayed, spared = run.optimizer.param_groups
    assert decayed["weight_decay"] == 0.01 and spared["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim <= 1 for p in spared["params"])
    trained = [p for p in run.backbone.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(spared["params"]) == len(trained)
    assert len(made(tmp_path / "run", "optim.weight_decay=0.01").optimizer.param_groups) == 1


def test_adamw_takes_momentum_for_its_first_beta(made: Any, tmp_path: Path) -> None:
    run = made(tmp_path / "run", "optim.kind=adamw", "head.rule=adamw", "optim.momentum=0.8")
    assert run.optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def poison(run: Run, steps: set[int]) -> None:
    """Make the features of some steps NaN."""
    real, count = run.backbone.forward, iter(range(1 << 30))

    def forward(image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = real(image)
        return out * float("nan") if next(count) in steps else out

    run.backbone.forward = forward  # type: ignore[method-assign]


def test_a_bad_step_is_skipped_on_request_and_moves_nothing(made: Any, tmp_path: Path) -> None:
    run = made(tmp_path / "run", "run.on_nan=skip", "schedule.max_steps=4", "run.save_every=9")
    poison(run, {2})
    updates: list[int] = []
    real = run.head.update

    def update(**given: Any) -> Any:
        updates.append(given["step"])
        return real(**given)

    run.head.update = update
    result = loop.train(run)
    assert result.steps == 4 and updates == [0, 1, 3]
    told = losses(tmp_path / "run")
    assert told[2] is None and all(isinstance(told[i], float) for i in (0, 1, 3))
    assert (tmp_path / "run" / "diverged-00000003-rank0.json").exists()
    weights = stored.load(tmp_path / "run").net.state_dict()
    assert all(value.isfinite().all() for name, value in weights.items() if "running" not in name)


def test_too_many_bad_steps_in_a_row_end_the_run(made: Any, tmp_path: Path) -> None:
    run = made(tmp_path / "run", "run.on_nan=skip", "run.max_skips=2")
    poison(run, {1, 2, 3, 4, 5})
    with pytest.raises(DivergedError, match="at step 4, 3 such steps in a row"):
        loop.train(run)
    page = (tmp_path / "run" / report.NAME).read_text()  # it waits for nothing
    assert "refresh" not in page and "Finished" not in page


@pytest.mark.slow
def test_the_share_that_plays_changes_with_the_epoch_and_for_a_resumed_run(
    made: Any, tmp_path: Path
) -> None:
    counts = {}
    for name, parts in (("whole", ["18"]), ("parts", ["7", "18"])):
        counts[name] = list[int]()
        for steps in parts:
            run = made(
                tmp_path / name, "head.rate=[[0, 0.1], [1, 1.0]]", f"schedule.max_steps={steps}",
                "data.batch=24", "head.rule=dense_exact", "run.accumulate=2",
            )  # fmt: skip
            real = run.head._targets

            def noted(label_N: Any, playing_k: Any, name: str = name, real: Any = real) -> Any:
                counts[name].append(-1 if playing_k is None else len(playing_k))
                return real(label_N, playing_k)

            run.head._targets = noted  # type: ignore[method-assign]
            loop.train(run)
    per_epoch = 2 * run.steps_per_epoch
    assert counts["parts"] == counts["whole"] and -1 not in counts["whole"][:per_epoch]
    assert {*counts["whole"][per_epoch:]} == {-1}  # all of them
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_compiled_net_has_the_same_losses(made: Any, tmp_path: Path) -> None:
    loop.train(made(tmp_path / "plain", "schedule.max_steps=2"))
    loop.train(made(tmp_path / "made", "schedule.max_steps=2", "run.compile=aot_eager"))
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "made")
    assert len(plain) == 2
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_a_log_goes_on_where_the_run_does(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"kind": "step", "step": step}) + "\n" for step in (1, 2, 3, 4)]
    path.write_text("".join(lines) + '{"kind": "st')
    metrics.cut(path, 2)
    assert path.read_text() == "".join(lines[:2])
    metrics.cut(path, 0)
    assert path.read_text() == ""


def test_the_page_of_a_run_is_kept_up_while_it_trains_and_never_ends_it(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, live = tmp_path / "run" / report.NAME, list[bool]()

    def look(done: int, total: int, note: str) -> None:
        live.append(page.exists() and 'http-equiv="refresh"' in page.read_text())

    clock = itertools.count(step=1e6)  # whatever a page takes, the next is due
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    loop.train(made(tmp_path / "run", "schedule.max_steps=4"), look)
    assert live == [False, True, True, True] and "refresh" not in page.read_text()

    def fail(*runs: Path, **how: Any) -> None:
        raise RuntimeError("no page")

    monkeypatch.setattr(report, "page", fail)
    loop.train(made(tmp_path / "other", "schedule.max_steps=4"))
    assert losses(tmp_path / "other") == losses(tmp_path / "run")
