"""`glint tune` from weights to a tuned net, or to none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from glint.cli import app as command_line
from glint.cli import commands
from glint.dist.world import World
from glint.evals import embed
from glint.evals.packs import read_bin, write_bin
from glint.models import checkpoint, stored
from glint.recipes.load import load
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.train import loop
from glint.train.build import build
from glint.train.recipe import Recipe

NET: dict[str, Any] = {"width": 0.125, "blocks": [1, 1, 1, 1]}
CPU = ("--set", "run.device=cpu", "--set", "run.threads=1", "--set", "data.workers=0")
FAST = ("--epochs", "1", "--batch", "16", "--lr", "0.001", *CPU)


@pytest.fixture(scope="module")
def call() -> Callable[..., Any]:
    if not command_line.app.registered_commands:
        commands.register(command_line.app)

    def invoke(*args: object, code: int = 0) -> Any:
        result = CliRunner().invoke(command_line.app, [*map(str, args), "--json"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        assert result.exit_code == code, (args, result.stdout, result.stderr)
        return json.loads(result.stdout)

    return invoke


@pytest.fixture(scope="module")
def start(toy_run: Callable[..., Path]) -> Path:
    return toy_run("mobilefacenet", 32, **NET)


@pytest.fixture(scope="module")
def tuned(call: Callable[..., Any], small: Any, start: Path, tmp_path_factory: Any) -> Any:
    out = tmp_path_factory.mktemp("tune") / "out"
    args = ("tune", start, small.data, "--out", out, "--generic", small.pairs, "--margin", 1)
    return call(*args, *FAST, "--lora", 4)


def test_a_tuned_net_its_recipe_and_its_figures(
    call: Callable[..., Any], small: Any, start: Path, tuned: Any
) -> None:
    assert not tuned["refused"] and tuned["learning_rate"] == 0.001
    own, other = tuned["sets"]
    assert (own["kind"], other["kind"]) == ("held-out", "generic")
    for one, pack in ((own, Path(tuned["out"], "held_out.bin")), (other, small.pairs)):
        for net, value in ((start, one["before"]), (tuned["tuned"], one["after"])):
            found = call("eval", "pairs", pack, "--model", net, "--device", "cpu")
            assert found["accuracy"] == value and found["pairs"] == one["pairs"]
    text = Path(tuned["recipe"]).read_text()
    assert text.startswith("# Made by glint tune") and "lora = 4" in text


def test_the_recipe_alone_gives_the_same_net(tuned: Any, tmp_path: Path) -> None:
    recipe = load(Path(tuned["recipe"]), Recipe)
    loop.train(build(recipe, World(), tmp_path / "again"))
    ours, theirs = stored.load(tmp_path / "again" / "best"), stored.load(tuned["tuned"])
    assert ours.digest == theirs.digest


def test_held_out_people_are_in_the_pack_and_in_no_batch(small: Any, tuned: Any) -> None:
    recipe = load(Path(tuned["recipe"]), Recipe)
    run = build(recipe, World(), Path(tuned["out"]) / "none")
    gone = {*map(int, Path(recipe.data.held_out).read_text().split())}
    label_N = run.data.dataset.label
    seen = np.concatenate([batch.row for batch in run.data.stream.batches(0)])
    assert len(gone) >= 2 and not gone & {*label_N[seen].tolist()}
    assert run.data.labels.classes == run.data.dataset.classes - len(gone)
    pairs = read_bin(Path(tuned["out"]) / "held_out.bin")
    who: dict[bytes, int] = {}
    for row in range(run.data.dataset.n):
        who[run.data.dataset.read(row)] = int(label_N[row])
    people = [who[image] for image in pairs.images]
    assert {*people} <= gone
    assert [a == b for a, b in zip(people[::2], people[1::2])] == pairs.same.tolist()
    assert pairs.same.sum() * 2 == len(pairs)


def test_the_same_command_changes_nothing_and_another_is_refused(
    call: Callable[..., Any], small: Any, start: Path, tuned: Any
) -> None:
    args = ("tune", start, small.data, "--out", tuned["out"], "--generic", small.pairs,
            "--margin", 1, *FAST)  # fmt: skip
    before = checkpoint.sha256(Path(tuned["tuned"], "backbone.safetensors"))
    assert call(*args, "--lora", 4) == tuned
    assert checkpoint.sha256(Path(tuned["tuned"], "backbone.safetensors")) == before
    assert call(*args, "--lora", 2, code=7)["error"] == "GL0006"


def test_a_worse_net_is_refused_with_the_numbers(
    call: Callable[..., Any], small: Any, start: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By figures given to the gate; benchmarks/tune.py has a net that forgets in earnest."""
    figures = iter([0.60, 0.90, 0.70, 0.88, 0.60, 0.90, 0.58, 0.95, 0.60, 0.90, 0.59, 0.89])

    def verify(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(accuracy=next(figures))

    monkeypatch.setattr(embed, "verify", verify)
    out = tmp_path / "out"
    args = ("tune", start, small.data, "--out", out, "--generic", small.pairs, *FAST, "--blend", 1)
    for worse in ("pairs", "held_out"):
        found = call(*args, "--margin", 0.015, code=5)
        assert found["refused"] and found["tuned"] is None and not (out / "tuned").exists()
        assert [one["set"] for one in found["sets"] if one["worse"]] == [worse]
        assert found["sets"][1]["before"] == 0.9
    found = call(*args, "--margin", 0.015)
    assert found["tuned"] == str(out / "tuned") and not found["refused"]
    assert found["warnings"] == ["held_out: not better than before"]
    figures = iter([0.60, 0.90, 0.70, 0.88])
    call(*args, "--margin", 0.015, code=5)
    assert not (out / "tuned").exists()  # what was there is gone
    assert checkpoint.all_in(out / "run" / "checkpoints")

    auto = (*args[:-1], "auto")  # three shares that forget too much, then all of them
    lost = [0.70, 0.88, 0.70, 0.884, 0.58, 0.90]
    figures = iter([0.60, 0.90, *lost, 0.65, 0.886])
    found = call(*auto, "--margin", 0.015)
    assert found["share"] == 0.25 and [one["after"] for one in found["sets"]] == [0.65, 0.886]
    halved = {
        name: value.double() for name, value in stored.load(out / "tuned").net.state_dict().items()
    }
    was, now = (stored.load(one).net.state_dict() for one in (start, out / "run" / "best"))
    for name, value in halved.items():
        if name.endswith("num_batches_tracked"):
            continue
        wanted = 0.75 * was[name].double() + 0.25 * now[name].double()
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)
    assert any(not torch.equal(was[name], now[name]) for name in was)
    figures = iter([0.60, 0.90, *lost, 0.65, 0.884])
    found = call(*auto, "--margin", 0.015, code=5)
    assert found["refused"] and not (out / "tuned").exists() and not (out / "blends").exists()


RECIPE = """
[data]
path = "{data}"
batch = 16
[backbone]
name = "mobilefacenet"
embedding = 32
options = {{ width = 0.125, blocks = [1, 1, 1, 1] }}
[head]
margin = "cosface"
rule = "adamw"
[optim]
kind = "adamw"
lr = 0.01
[schedule]
epochs = 5
[tune]
freeze = 2
[run]
finetune = "{start}"
device = "cpu"
threads = 1
tensorboard = false
"""


@pytest.mark.parametrize("lora", [0, 4])
def test_a_tuning_run_resumes_to_the_bit(
    small: Any, start: Path, tmp_path: Path, lora: int
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data, start=start))
    states = []
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            changes = [f"tune.lora={lora}", f"schedule.max_steps={stop}"]
            loop.train(build(load(path, Recipe, changes), World(), tmp_path / name))
        states.append(checkpoint.tensors(checkpoint.newest(tmp_path / name / "checkpoints"),  # type: ignore[arg-type]
                                         "backbone"))  # fmt: skip
    assert {*states[0]} == {*states[1]}
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    made, before = (stored.load(p).net.state_dict() for p in (tmp_path / "whole", start))
    moved = {name for name, value in made.items() if not value.equal(before[name])}
    assert not any(name.startswith(("layers.0.", "layers.1.")) for name in moved)
    assert not any("running" in name for name in moved)
    assert moved and (not lora or all(name.endswith(".weight") for name in moved))


def test_centres_are_those_of_the_embeddings_and_may_stay(
    call: Callable[..., Any], small: Any, start: Path, tmp_path: Path
) -> None:
    call("embed", small.data, "--model", start, "--out", tmp_path / "emb", "--dtype", "float32")
    (tmp_path / "gone.txt").write_text("3\n7\n")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data, start=start))
    changes = [f"head.init={tmp_path / 'emb'}", "head.lr_scale=0.0", "schedule.max_steps=3",
               f"data.held_out={tmp_path / 'gone.txt'}"]  # fmt: skip
    run = build(load(path, Recipe, changes), World(), tmp_path / "run")
    loop.train(run)
    dataset = Dataset(small.data)
    row_ND = np.load(tmp_path / "emb" / "samples.npy").astype(np.float64)
    kept = [one for one in range(dataset.classes) if one not in (3, 7)]
    assert labels.current(dataset.root, dataset.classes).classes == dataset.classes
    for row, label in enumerate(kept):
        mean_D = row_ND[dataset.label == label].mean(0)
        mean_D /= np.linalg.norm(mean_D)
        np.testing.assert_allclose(run.head.weight[row].numpy(), mean_D, 0, 1e-6)


def test_a_run_without_hope_ends_and_stays_so(small: Any, start: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data, start=start))
    changes = ["optim.lr=1e-12", "tune.patience=2", f"run.val=['{small.pairs}']",
               "run.eval_every=2"]  # fmt: skip
    for resumed in (0, 6):
        result = loop.train(build(load(path, Recipe, changes), World(), tmp_path / "run"))
        assert (result.steps, result.resumed_from) == (6, resumed)  # best at 2, two more
    state = checkpoint.read_state(checkpoint.all_in(tmp_path / "run" / "checkpoints")[-1])
    assert state["step"] == 6 and state["best"]["step"] == 2


def test_mistakes(call: Callable[..., Any], small: Any, start: Path, tmp_path: Path) -> None:
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(b"net")
    few, pack = tmp_path / "few.bin", read_bin(small.pairs)
    order = [*np.flatnonzero(pack.same)[:1], *np.flatnonzero(~pack.same)[:2]]
    images = [pack.images[int(side[i])] for i in order for side in (pack.first, pack.second)]
    write_bin(few, images, [True, False, False])
    out = ("--out", tmp_path / "out", *FAST)
    cases: list[tuple[str, tuple[object, ...], str]] = [
        ("GL0001", (tmp_path / "none", small.data, *out), ""),
        ("GL0002", (start, small.data, *out, "--blend", "0"), "expected auto or a number above 0"),
        ("GL0002", (onnx, small.data, *out, "--backbone", "mbf", "--blend", 0.5), "no weights"),
        ("GL0002", (start, small.data, *out, "--generic", few), "3 pairs are too few"),
        ("GL0002", (onnx, small.data, *out, "--backbone", "mbf", "--lora", 2), "all of it must"),
        ("GL0002", (start, small.data, *out, "--backbone", "mbf"), "names its own net"),
        ("GL0002", (start, small.data, *out, "--centres", "cold"), "trained or frozen"),
        ("GL0002", (start, small.data, *out, "--freeze", 10), "stages up to 9"),
    ]
    for code, args, words in cases:
        found = call("tune", *args, code=2)
        assert found["error"] == code and words in found["what"], found
    changes = (["tune.norms='frozen'", "run.finetune=''"], ["tune.freeze=10"])
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data, start=start))
    from glint.errors import UsageError

    with pytest.raises(UsageError, match=r"keeps what run\.finetune does not give"):
        load(path, Recipe, changes[0])
    with pytest.raises(UsageError, match="leaves nothing of the net to learn"):
        build(load(path, Recipe, changes[1]), World(), tmp_path / "x")


def test_a_replayed_set(call: Callable[..., Any], small: Any, start: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    call("shard", small.world, other, "--seed", 5)
    result = call(
        "tune", start, small.data, "--out", tmp_path / "out", "--replay", other,
        "--replay-share", 0.75, *FAST, "--recipe-only",
    )  # fmt: skip
    assert result["tuned"] is None and result["steps"] == 0
    run = build(load(Path(result["recipe"]), Recipe), World(), tmp_path / "run")
    rows = np.concatenate([batch.row for batch in run.data.stream.batches(0)])
    own = run.data.dataset.label[rows] < Dataset(small.data).classes
    assert 0.22 < own.mean() < 0.28
    assert len(np.unique(rows[own])) == own.sum()  # each of them once


def test_who_has_images_of_held_out_people_is_held_out_too(
    call: Callable[..., Any], small: Any, start: Path, tmp_path: Path
) -> None:
    """The replayed set is the same people's: nothing that the pack shows may be trained on."""
    other = tmp_path / "other"
    call("shard", small.world, other, "--seed", 5)
    result = call(
        "tune", start, small.data, "--out", tmp_path / "out", "--replay", other, *FAST,
        "--recipe-only",
    )  # fmt: skip
    run = build(load(Path(result["recipe"]), Recipe), World(), tmp_path / "run")
    dataset = run.data.dataset
    shown = {*read_bin(tmp_path / "out" / "held_out.bin").images}
    rows = np.concatenate([batch.row for batch in run.data.stream.batches(0)])
    assert shown and len({*rows.tolist()}) > 50
    assert not shown & {dataset.read(int(row)) for row in rows}


@pytest.mark.slow
def test_a_published_file(call: Callable[..., Any], small: Any, tmp_path: Path) -> None:
    from glint.nn.backbones import create

    torch.manual_seed(0)
    net = create("mobilefacenet", 32)
    with torch.no_grad():
        net(torch.rand(4, 3, 112, 112))
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "net.pt")
    result = call("tune", tmp_path / "net.pt", small.data, "--out", tmp_path / "out", *FAST)
    assert "nothing guards against forgetting" in result["warnings"][0]
    assert result["start"].startswith(str(tmp_path / "out" / "start"))


def test_a_student_of_an_onnx_file(
    call: Callable[..., Any], small: Any, start: Path, tmp_path: Path
) -> None:
    call("export", start, tmp_path / "net.onnx", "--crops", 2)
    options = "backbone.options={width=0.125, blocks=[1, 1, 1, 1]}"
    result = call(
        "tune", tmp_path / "net.onnx", small.data, "--out", tmp_path / "out", "--backbone",
        "mobilefacenet", "--margin", 1, "--set", options, *FAST,
    )  # fmt: skip
    recipe = load(Path(result["recipe"]), Recipe)
    assert recipe.teacher is not None and recipe.teacher.model == str(tmp_path / "net.onnx")
    assert recipe.backbone.embedding == 32 and not recipe.run.finetune
    assert recipe.tune is not None and recipe.tune.norms == "moving"
    whole = call("eval", "pairs", tmp_path / "out" / "held_out.bin", "--model",
                 tmp_path / "net.onnx", "--device", "cpu")  # fmt: skip
    assert result["sets"][0]["before"] == whole["accuracy"]
    net = stored.load(result["tuned"])
    assert (net.name, net.embedding) == ("mobilefacenet", 32)


def test_the_weights_of_an_onnx_file(
    call: Callable[..., Any], small: Any, start: Path, tmp_path: Path
) -> None:
    call("export", start, tmp_path / "net.onnx", "--crops", 2)
    result = call(
        "tune", tmp_path / "net.onnx", small.data, "--out", tmp_path / "out", "--margin", 1,
        "--freeze", "all", *FAST,
    )  # fmt: skip
    net, was = stored.load(result["tuned"]).net, stored.load(result["start"])
    assert was.name == "onnx"
    moved = {name.split(".")[1] for name, value in net.state_dict().items()
             if not torch.equal(value, was.net.state_dict()[name])}  # fmt: skip
    assert moved == {str(len(was.net.units) - 1)}  # type: ignore[arg-type]
    onnx = call("eval", "pairs", small.pairs, "--model", tmp_path / "net.onnx", "--device", "cpu")
    ours = call("eval", "pairs", small.pairs, "--model", result["start"], "--device", "cpu")
    assert onnx["accuracy"] == ours["accuracy"]
    assert call("export", result["tuned"], tmp_path / "tuned.onnx", "--crops", 2)["dim"] == 32


def test_a_rate_is_found_on_one_batch(small: Any, start: Path, tmp_path: Path) -> None:
    from glint.train import lr_finder

    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data, start=start))
    run = build(load(path, Recipe, ["tune.freeze=0"]), World(), tmp_path / "run")
    found = lr_finder.find(run)
    assert 1e-5 < found.rate < 0.1
    first = found.loss_S[: lr_finder.FIRST]
    assert first.std() < 0.02 * first.mean()  # batches differ by more
    assert not (tmp_path / "run").exists()
