"""`glint train`: equal to the plain loop, to itself resumed, and clear when it cannot go on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from glint.cli.train import explain
from glint.dist.world import World
from glint.errors import (
    BusyError,
    DivergedError,
    MismatchError,
    ResourceError,
    Stopped,
    UsageError,
)
from glint.models import checkpoint
from glint.recipes.load import load
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.train import dry, loop, metrics
from glint.train.build import build
from glint.train.pace import Until
from glint.train.recipe import Recipe
from glint.train.restore import batch_for_world, claimed, resume

ROOT = Path(__file__).parents[2]
RECIPE = """
[data]
path = "{data}"
batch = {batch}
[backbone]
name = "iresnet"
embedding = 64
options = {{ layers = [1, 1, 1, 1], widths = [8, 16, 32, 64] }}
[head]
margin = "cosface"
m = 0.4
rate = 0.5
rule = "{rule}"
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


def recipe(small: Any, folder: Path, *, rule: str = "none", batch: int = 16) -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data, rule=rule, batch=batch))
    return path


def weights(run: Path) -> str:
    saved = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.tensors(saved, "backbone").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def losses(run: Path) -> list[float]:
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [e["loss"] for e in entries if e["kind"] == "step"]


def rows_of(run: Path, name: str = "weight") -> torch.Tensor:
    saved = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    parts = sorted(saved.path.glob("head-*.safetensors"))
    return torch.cat([load_file(p)[name] for p in parts])


def in_process(path: Path, out: Path, *changes: str) -> dict[str, Any]:
    return loop.train(build(load(path, Recipe, changes), World(), out))


def test_plain_loop_and_glint_train_agree_to_the_bit(
    small: Any, tmp_path: Path, glint: Callable[..., Any]
) -> None:
    path = recipe(small, tmp_path)
    run = tmp_path / "run"
    result = glint(
        "train", path, "--nproc", "2", "--out", run, "--set", "schedule.max_steps=6", "--json"
    )
    assert result["steps"] == 6 and result["world"] == 2
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         ROOT / "train" / "plain_loop.py", small.data, "--steps", "6", "--epochs", "3",
         "--batch", "16"],
        capture_output=True, text=True, check=True, timeout=110,
    )  # fmt: skip
    plain = json.loads(done.stdout)
    assert plain["losses"] == losses(run)
    assert len(plain["losses"]) == 6
    assert plain["weights"] == weights(run)


@pytest.mark.parametrize("rule", ["none", "lazy_decay", "dense_exact"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    small: Any, tmp_path: Path, rule: str
) -> None:
    path = recipe(small, tmp_path, rule=rule)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    in_process(path, whole, "run.save_every=4", "schedule.max_steps=10")
    in_process(path, parts, "run.save_every=4", "schedule.max_steps=4")
    result = in_process(path, parts, "run.save_every=4", "schedule.max_steps=10")
    assert result.resumed_from == 4
    assert losses(parts) == losses(whole)
    assert weights(parts) == weights(whole)
    assert torch.equal(rows_of(parts), rows_of(whole))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["2", "3"])
def test_ranks_stopped_and_resumed_equal_ranks_left_alone(
    small: Any, tmp_path: Path, glint: Callable[..., Any], ranks: str
) -> None:
    path = recipe(small, tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ("--nproc", ranks, "--json", "--set", "run.save_every=3")
    glint("train", path, *common, "--out", whole, "--set", "schedule.max_steps=5")
    glint("train", path, *common, "--out", parts, "--set", "schedule.max_steps=3")
    glint("train", path, *common, "--out", parts, "--set", "schedule.max_steps=5")
    assert losses(parts) == losses(whole)
    assert weights(parts) == weights(whole)
    assert torch.equal(rows_of(parts), rows_of(whole))


def test_another_number_of_ranks_continues_with_the_same_samples(
    small: Any, tmp_path: Path, glint: Callable[..., Any]
) -> None:
    path = recipe(small, tmp_path, batch=8)
    run = tmp_path / "run"
    glint("train", path, "--nproc", "2", "--out", run, "--set", "schedule.max_steps=3", "--json")
    before = rows_of(run)
    assert before.shape[0] == 43
    one = in_process(path, run, "schedule.max_steps=3", "data.batch=16")  # loads, nothing to do
    assert one.resumed_from == 3
    result = glint(
        "train", path, "--nproc", "3", "--out", run, "--set", "schedule.max_steps=5", "--json",
        code=7,
    )  # fmt: skip
    assert "does not divide over 3 ranks" in result and "[1, 2, 4, 8, 16]" in result
    result = glint("train", path, "--out", run, "--set", "schedule.max_steps=5", "--json")
    assert result["resumed_from"] == 3 and result["steps"] == 5
    assert result["images"] == 5 * 16


@pytest.mark.parametrize(
    ("batch", "world", "worlds", "each"),
    [(64, 2, [1], 32), (64, 2, [1, 2], 32), (64, 1, [1, 2], 64), (32, 2, [1, 2], 32),
     (32, 4, [1, 2], 16), (16, 4, [1, 2], 16), (16, 1, [1, 2], 16)],
)  # fmt: skip
def test_the_global_batch_is_the_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, world: int, worlds: list[int],
    each: int,
) -> None:  # fmt: skip
    """The last one fits no number of ranks before: it is left for `compare` to refuse."""
    state = {"step": 1, "world": worlds[-1], "worlds": worlds, "global_batch": 64, "averaged": 0,
             "identity": {}, "scaler": {}}  # fmt: skip
    saved = checkpoint.Saved(tmp_path, state)
    monkeypatch.setattr(checkpoint, "newest", lambda *_, **__: saved)
    assert batch_for_world(tmp_path, batch, world) == each


WITHOUT_BATCH_NORM = """
import sys
import torch
torch.nn.BatchNorm1d = lambda *_, **__: torch.nn.Identity()
from glint.cli.app import main
sys.argv[0] = "glint"
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_however_often_its_ranks_change(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command on 1, 2, 2, 1, 3, 3 ranks equals one that nothing stopped.

    Batch norm averages over one rank's images, so a net without it.
    """
    path = recipe(small, tmp_path, batch=12)
    whole, parts, script = (tmp_path / name for name in ("whole", "parts", "train.py"))
    script.write_text(WITHOUT_BATCH_NORM)
    net = ("backbone.name=vit_t", "backbone.options={depth=1,width=64,heads=2}",
           "run.precision=float64", "optim.lr=0.01")  # fmt: skip
    for stop, ranks in enumerate((1, 2, 2, 1, 3, 3), 1):
        changes = [w for c in (*net, f"schedule.max_steps={stop}") for w in ("--set", c)]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
             str(ranks), script, "train", path, "--out", parts, *changes],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(losses(parts)) == stop
    monkeypatch.setattr(torch.nn, "BatchNorm1d", lambda *_, **__: torch.nn.Identity())
    in_process(path, whole, *net, "schedule.max_steps=6")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)
    with pytest.raises(MismatchError, match="global batch: 12 -> 6"):
        in_process(path, parts, *net, "schedule.max_steps=7", "data.batch=6")


def test_other_labels_of_the_same_number_are_another_run(small: Any, tmp_path: Path) -> None:
    one, other = (shutil.copytree(small.data, tmp_path / name) for name in ("one", "other"))
    classes = Dataset(one).classes
    for root, pair in ((one, (0, 1)), (other, (4, 5))):
        target_C = np.arange(classes)
        target_C[pair[1]] = pair[0]
        target_C[target_C > pair[1]] -= 1
        labels.apply(root, target_C, np.empty((0, 2), np.int64), {})
    path, run = recipe(small, tmp_path), tmp_path / "run"
    in_process(path, run, f"data.path={one}", "schedule.max_steps=1")
    with pytest.raises(MismatchError, match=r"GL0702.*started differently: labels: 'sha256:"):
        in_process(path, run, f"data.path={other}", "schedule.max_steps=2")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
         r"GL0904.*data\.batch=16.*CUDA out of memory"),
        (RuntimeError("NCCL error: ncclInvalidUsage, Duplicate GPU detected"),
         r"GL0603.*Duplicate GPU"),
        (RuntimeError("NCCL error: ncclRemoteError: remote process exited"), ""),
        (RuntimeError("[Rank 1] NCCL communicator was aborted on rank 1"), ""),
        (RuntimeError("Connection closed by peer"), ""),
        (RuntimeError("shapes do not match"), ""),
    ],
)  # fmt: skip
def test_what_another_start_would_meet_again_is_no_lost_rank(
    small: Any, tmp_path: Path, error: RuntimeError, found: str
) -> None:
    settings = load(recipe(small, tmp_path), Recipe, ())
    if found:
        with pytest.raises(ResourceError, match=re.compile(found, re.DOTALL)):
            explain(error, settings)
    else:
        explain(error, settings)


def test_a_run_started_differently_is_refused_field_by_field(small: Any, tmp_path: Path) -> None:
    path = recipe(small, tmp_path)
    run = tmp_path / "run"
    in_process(path, run, "schedule.max_steps=2")
    with pytest.raises(MismatchError, match=r"optim\.lr: 0\.1 -> 0\.2.*seed: 0 -> 1"):
        in_process(path, run, "schedule.max_steps=2", "optim.lr=0.2", "run.seed=1")
    with pytest.raises(MismatchError, match="global batch: 16 -> 8"):
        in_process(path, run, "schedule.max_steps=2", "data.batch=8")


def test_divergence_stops_with_the_samples_named_and_the_checkpoint_kept(
    small: Any, tmp_path: Path
) -> None:
    path = recipe(small, tmp_path)
    run = tmp_path / "run"
    in_process(path, run, "schedule.max_steps=2", "run.save_every=2")
    kept = weights(run)
    broken = build(load(path, Recipe, ["schedule.max_steps=4"]), World(), run)
    real = broken.backbone.forward

    def poisoned(image: torch.Tensor) -> torch.Tensor:
        return real(image) * float("nan")

    broken.backbone.forward = poisoned  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match="step 3"):
        loop.train(broken)
    dumped = json.loads((run / "diverged-00000003-rank0.json").read_text())
    assert len(dumped["keys"]) == 16
    assert weights(run) == kept


def test_checkpoints_written_beside_training_are_those_written_between_steps(
    small: Any, tmp_path: Path
) -> None:
    path, files = recipe(small, tmp_path, rule="dense_exact"), []
    foretold = dry.run(load(path, Recipe, ["run.ema=0.9"]), 43, 1).checkpoint
    for kind in ("true", "false"):
        run = tmp_path / kind
        in_process(
            path, run, f"run.async_save={kind}", "run.save_every=1", "run.keep=9", "run.ema=0.9",
            "schedule.max_steps=4",
        )  # fmt: skip
        files.append({str(p.relative_to(run)): load_file(p) for p in run.rglob("*.safetensors")})
        entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        saves = [e for e in entries if e["kind"] == "save"]
        assert [e["step"] for e in saves] == [1, 2, 3, 4]
        assert {e["bytes"] for e in saves} == {foretold}
    assert sorted(files[0]) == sorted(files[1])
    assert len(files[0]) == 4 * 4  # backbone, optimizer, average, head at every step
    for name, held in files[0].items():
        other = files[1][name]
        assert sorted(held) == sorted(other) and held
        assert [key for key in held if not torch.equal(held[key], other[key])] == [], name


def test_a_checkpoint_that_cannot_be_written_ends_the_run_by_name(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, real = recipe(small, tmp_path), tmp_path / "run", checkpoint._write

    def write(file: Path, *rest: Any) -> None:
        if "step-00000004" in str(file):
            raise OSError(28, "No space left on device")
        real(file, *rest)

    monkeypatch.setattr(checkpoint, "_write", write)
    with pytest.raises(ResourceError, match=r"GL0901.*step-00000004.*No space left"):
        in_process(path, run, "run.save_every=2", "schedule.epochs=300")
    assert 4 <= len(losses(run)) <= 6  # told at the latest by the next save
    saved = checkpoint.newest(run / "checkpoints")
    assert saved is not None and saved.state["step"] == 2


def test_sigterm_saves_and_exits_75_and_the_same_command_continues(
    small: Any, tmp_path: Path, glint: Callable[..., Any]
) -> None:
    path = recipe(small, tmp_path)
    run = tmp_path / "run"
    args = [sys.executable, "-m", "glint", "train", str(path), "--out", str(run)]
    args += ["--set", "schedule.epochs=200", "--json"]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    deadline = time.monotonic() + 60
    while not ((run / "log.jsonl").exists() and len(losses(run)) > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert "GL0704 stopped" in err and "same command" in err
    done = len(losses(run))
    saved = checkpoint.newest(run / "checkpoints")
    assert saved is not None and saved.state["step"] == done
    result = glint(
        "train", path, "--out", run, "--set", "schedule.epochs=200", "--set",
        f"schedule.max_steps={done + 1}", "--json",
    )  # fmt: skip
    assert result["resumed_from"] == done


def test_a_stop_while_ranks_start_is_no_lost_rank(small: Any, tmp_path: Path) -> None:
    args = [sys.executable, "-m", "glint", "train", str(recipe(small, tmp_path))]
    args += ["--nproc", "2", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    time.sleep(2.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM, 75), err
    assert "GL0601" not in err


def test_folders_of_others_and_of_running_runs_are_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "recipe.toml").write_text("mine")
    with pytest.raises(BusyError, match="holds no run"), claimed(foreign):
        pass
    assert [p.name for p in foreign.iterdir()] == ["recipe.toml"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BusyError, match="found a file"), claimed(tmp_path / "file"):
        pass
    run = tmp_path / "run"
    with claimed(run), pytest.raises(BusyError, match="held by process"), claimed(run):
        pass
    with claimed(run):  # the same run again
        pass
    with pytest.raises(UsageError, match="current folder"), claimed(Path()):
        pass


def test_merged_labels_are_trained_as_one_class(small: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small.data, data)
    classes = Dataset(data).classes
    target = np.arange(classes)
    target[1:] -= 1  # labels 0 and 1 become one
    labels.apply(data, target, np.zeros((0, 2), np.int64), {"test": "merge"})
    path = recipe(small, tmp_path)
    run = build(load(path, Recipe, [f"data.path={data}"]), World(), tmp_path / "run")
    assert run.head.classes == classes - 1
    batch = next(run.data.stream.batches(0))
    assert int(batch.label.max()) < classes - 1
    result = loop.train(
        build(
            load(path, Recipe, [f"data.path={data}", "schedule.max_steps=1"]),
            World(),
            tmp_path / "run",
        )
    )
    assert result.classes == classes - 1


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ("data.path=/nowhere", 3, "/nowhere"),
        ("optim.lrr=0.1", 2, "did you mean optim.lr"),
        ("run.val=['/no/such.bin']", 2, "/no/such.bin"),
        ("backbone.name=iresnet5", 2, "iresnet50"),
        ("data.batch=100000", 2, "a smaller data.batch"),
    ],
)
def test_mistakes_give_one_clear_error(
    small: Any, tmp_path: Path, glint: Callable[..., Any], change: str, code: int, text: str
) -> None:
    err = glint(
        "train", recipe(small, tmp_path), "--out", tmp_path / "run", "--set", change, code=code
    )
    assert text in err
    assert err.count("error GL") == 1


def test_until_saves_stops_and_goes_on(
    glint: Callable[..., Any], small: Any, tmp_path: Path
) -> None:
    path, parts = recipe(small, tmp_path), tmp_path / "parts"
    common = ("train", path, "--nproc", "2", "--out", parts, "--set", "schedule.max_steps=5",
              "--set", "data.batch=8")  # fmt: skip
    said = glint(*common, "--until", "3", code=75)
    assert "stopped on --until at step 3 of 5; saved" in said
    assert len(losses(parts)) == 3
    said = glint(*common, "--until", "3", code=75)
    assert "--until is past: the run stands at step 3 of 5" in said
    assert "give a later --until, or none" in said
    run = build(load(path, Recipe, ("schedule.max_steps=5", "data.batch=16")), World(), parts)
    with pytest.raises(Stopped, match=r"--until is past: .* at step 3 of 5"):
        loop.train(run, until=Until(time=time.time() - 1))
    assert len(losses(parts)) == 3
    assert in_process(path, parts, "schedule.max_steps=5").resumed_from == 3
    assert len(losses(parts)) == 5


def test_the_best_checkpoint_is_kept_and_survives_a_resume(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = recipe(small, tmp_path), tmp_path / "run"
    accuracy = iter([0.6, 0.8, 0.7, 0.75, 0.9, 0.9])
    monkeypatch.setattr(loop, "evaluate", lambda _: {"a": SimpleNamespace(accuracy=next(accuracy))})
    monkeypatch.setattr(metrics.Log, "verification", lambda *_: None)

    def on(*changes: str) -> Any:
        built = build(load(path, Recipe, ("run.eval_every=1", *changes)), World(), run)
        built.data.val["a"] = None  # type: ignore[assignment]
        return loop.train(built)

    best = run / "best"
    on("schedule.max_steps=3", "run.save_epochs=false")  # before the first step: 0.6
    assert checkpoint.read_state(best)["step"] == 1
    assert checkpoint.problem(best) == "" and checkpoint.find(best) == best
    assert checkpoint.read_state(best)["best"] == {"step": 1, "accuracy": 0.8, "packs": ["a"]}
    result = on("schedule.max_steps=4", "run.save_epochs=false")
    assert checkpoint.read_state(best)["step"] == 4 and result.best == str(best)
    assert [p.name for p in run.iterdir() if p.name.startswith("best")] == ["best"]
    shutil.rmtree(best)  # as if the run had been killed before it kept step 4
    assert on("schedule.max_steps=4").best == str(best)
    assert checkpoint.read_state(best)["step"] == 4
    weights = build(load(path, Recipe, (f"run.finetune={best}",)), World(), tmp_path / "next")
    assert resume(weights) == 0
    spoilt = best / checkpoint.WEIGHTS
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    with pytest.raises(MismatchError, match=rf"GL0701.*{checkpoint.WEIGHTS}"):
        resume(weights)


def test_what_verified_best_on_other_packs_is_not_the_best(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = recipe(small, tmp_path), tmp_path / "run"
    accuracy = iter([0.6, 0.9, 0.5, 0.4])
    monkeypatch.setattr(
        loop,
        "evaluate",
        lambda run: {n: SimpleNamespace(accuracy=next(accuracy)) for n in run.data.val},
    )
    monkeypatch.setattr(metrics.Log, "verification", lambda *_: None)
    for pack, steps in (("a", 1), ("b", 2)):
        built = build(load(path, Recipe, (f"schedule.max_steps={steps}",)), World(), run)
        built.data.val[pack] = None  # type: ignore[assignment]
        loop.train(built)
        assert checkpoint.read_state(run / "best")["step"] == steps


def test_a_finished_run_is_left_as_it_is(glint: Any, small: Any, tmp_path: Path) -> None:
    path, run = recipe(small, tmp_path), tmp_path / "run"
    words = ("train", path, "--out", run, "--set", "schedule.max_steps=4")
    glint(*words, "--json")
    record = (run / "recipe.toml").read_bytes()
    there = run / "checkpoints"
    shutil.copytree(there / "step-00000004", there / "step-00000001")  # a kill left it no time
    said = glint(
        "train", path, "--out", run, "--set", "schedule.max_steps=2", "--set", "head.block=7",
        "--set", "run.keep=1", "--json",
    )  # fmt: skip
    assert [one.name for one in there.iterdir()] == ["step-00000004"]
    assert (said["steps"], said["images"], said["resumed_from"]) == (4, 64, 4)
    assert (run / "recipe.toml").read_bytes() == record
    said = glint(*words, "--set", "data.block=60", "--set", "data.flip=false", code=7)
    assert "GL0702" in said and "data.block: 0 -> 60" in said and "data.flip" in said
