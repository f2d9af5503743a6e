"""`glint train` with a teacher: what it is asked, what is learnt, resumed and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glint.dist.world import World
from glint.errors import InputError, MismatchError, UsageError
from glint.models import checkpoint, recogniser, stored
from glint.models.export_onnx import export_onnx, random_crops
from glint.recipes.load import dump, load
from glint.stream.augment import to_input
from glint.train import dry, loop, report, restore
from glint.train.build import Run, build
from glint.train.recipe import Recipe, Teacher
from glint.train.teacher import Frozen

ROOT = Path(__file__).parents[2]
RECIPE = """
[data]
path = "{data}"
batch = 16
[backbone]
name = "iresnet"
embedding = 32
options = {{ layers = [1, 1, 1, 1], widths = [8, 8, 16, 16], stem_stride = 2 }}
[head]
margin = "arcface"
m = 0.5
rule = "dense_exact"
[optim]
lr = 0.05
[schedule]
epochs = 3
[run]
device = "cpu"
threads = 1
log_every = 1
tensorboard = false
"""


@pytest.fixture(scope="module")
def teacher(toy_run: Callable[..., Path]) -> Path:
    return toy_run("mobilefacenet", 32, width=0.25)


@pytest.fixture
def made(small: Any, tmp_path: Path) -> Callable[..., Run]:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data))
    return lambda out, *changes: build(load(path, Recipe, changes), World(), tmp_path / out)


def steps(run: Path) -> list[dict[str, Any]]:
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["kind"] == "step"]


def test_teachers_of_every_origin_are_asked_the_same(
    toy_run: Callable[..., Path], tmp_path: Path
) -> None:
    kept = toy_run("mobilefacenet", 32)
    export_onnx(kept, tmp_path / "net.onnx", crops=2)
    state = {f"module.{k}": v for k, v in stored.load(kept).net.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    crops = random_crops(3)
    image = to_input(torch.from_numpy(crops), flip=torch.tensor([True, False, True]))
    flipped = np.stack([crops[0][:, ::-1], crops[1], crops[2][:, ::-1]])
    expected = recogniser.open_model(kept, device="cpu").embed(np.ascontiguousarray(flipped))
    digests = set()
    for name, backbone in ((str(kept), ""), ("net.onnx", ""), ("net.pt", "mobilefacenet")):
        table = Teacher(model=str(tmp_path / name), backbone=backbone)
        asked = Frozen(table, 32, World(), threads=1)
        found = asked.embed(image)
        assert found.dtype == torch.float32 and not found.requires_grad
        assert torch.allclose(found, torch.from_numpy(expected), atol=2e-4), name
        digests.add(asked.digest)
    assert len(digests) == 3 and all(len(digest) == 64 for digest in digests)


@pytest.mark.parametrize("kind", ["partial_fc", "class_pool"])
def test_the_loss_is_the_margins_plus_seven_distances(
    made: Callable[..., Run], teacher: Path, tmp_path: Path, kind: str
) -> None:
    pool = ["head.kind=class_pool", "head.slots=16", "data.batch=12", "run.ema=0.9"]
    changes = ["schedule.max_steps=1", *(["head.rule=none", *pool] if kind != "partial_fc" else [])]
    alone = loop.train(made("alone", *changes))
    taught = loop.train(made("taught", *changes, f"teacher.model={teacher}"))
    (told,) = steps(tmp_path / "taught")
    assert 1 < told["distill"] < 3  # two nets that know nothing of each other
    assert taught.loss == pytest.approx(alone.loss + 7 * told["distill"], rel=1e-6)
    assert "distill" not in steps(tmp_path / "alone")[0]


def test_a_student_comes_near_a_teacher_that_stays_as_it_is(
    made: Callable[..., Run], teacher: Path, tmp_path: Path
) -> None:
    run = made("run", f"teacher.model={teacher}", "schedule.max_steps=18", "run.accumulate=2",
               "data.batch=8", "optim.lr=0.1")  # fmt: skip
    assert run.teacher is not None and run.teacher._net is not None
    before = {k: v.clone() for k, v in run.teacher._net.state_dict().items()}
    loop.train(run)
    after = run.teacher._net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in run.teacher._net.parameters())
    apart = [step["distill"] for step in steps(tmp_path / "run")]
    assert sum(apart[-3:]) < 0.9 * sum(apart[:3])
    drawn = report.page(tmp_path / "run")
    assert "Distance to the teacher" in str(drawn)


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(
    made: Callable[..., Run], teacher: Path, tmp_path: Path
) -> None:
    common = (f"teacher.model={teacher}", "run.save_every=3")
    loop.train(made("whole", *common, "schedule.max_steps=5"))
    loop.train(made("parts", *common, "schedule.max_steps=3"))
    assert loop.train(made("parts", *common, "schedule.max_steps=5")).resumed_from == 3
    whole, parts = (checkpoint.newest(tmp_path / n / "checkpoints") for n in ("whole", "parts"))
    assert whole is not None and parts is not None
    for name in ("backbone", "optimizer", "head-00000"):
        one, two = checkpoint.tensors(whole, name), checkpoint.tensors(parts, name)
        assert one.keys() == two.keys() and one
        assert all(torch.equal(one[key], two[key]) for key in one), name
    assert [s["distill"] for s in steps(tmp_path / "whole")] == [
        s["distill"] for s in steps(tmp_path / "parts")
    ]
    for other in ((f"teacher.model={teacher}", "teacher.weight=1"), ()):
        with pytest.raises(MismatchError, match=r"GL0702.*teacher"):
            loop.train(made("parts", "run.save_every=3", "schedule.max_steps=9", *other))


def test_the_next_generation_starts_from_the_last_students_net_and_centres(
    made: Callable[..., Run], teacher: Path, tmp_path: Path
) -> None:
    common = (f"teacher.model={teacher}", "run.save_every=9")
    loop.train(made("first", *common, "schedule.max_steps=3"))
    saved = checkpoint.newest(tmp_path / "first" / "checkpoints")
    assert saved is not None
    net, centres = (checkpoint.tensors(saved, name) for name in ("backbone", "head-00000"))
    next_ = (*common, f"run.finetune={tmp_path / 'first'}", "run.finetune_head=true")
    run = made("second", *next_)
    assert not torch.equal(run.head.state_rows()[2]["weight"], centres["weight"])
    assert restore.resume(run) == 0
    own = run.head.state_rows()[2]
    assert torch.equal(own["weight"], centres["weight"])
    assert all(torch.equal(v, net[name]) for name, v in run.backbone.state_dict().items())
    moving = [name for name in own if name != "weight"]
    assert moving and not any(own[name].any() for name in moving)
    assert any(centres[name].any() for name in moving) and not run.optimizer.state
    loop.train(made("second", *next_, "schedule.max_steps=1"))
    first, second = (steps(tmp_path / name)[-1]["distill"] for name in ("first", "second"))
    assert second < steps(tmp_path / "first")[0]["distill"] and abs(second - first) < 0.3


def test_centres_of_other_identities_are_refused(
    made: Callable[..., Run], teacher: Path, toy_run: Callable[..., Path]
) -> None:
    net = toy_run("iresnet", 32, layers=[1, 1, 1, 1], widths=[8, 8, 16, 16], stem_stride=2)
    with pytest.raises(MismatchError, match=r"run\.finetune_head: .* other identities: dataset"):
        loop.train(made("run", f"run.finetune={net}", "run.finetune_head=true"))


def test_what_does_not_fit_is_told_before_a_step(
    made: Callable[..., Run], teacher: Path, toy_run: Callable[..., Path], tmp_path: Path
) -> None:
    wide = toy_run("mobilefacenet", 48, width=0.25)
    with pytest.raises(
        UsageError, match=r"GL0002.* gives 48 numbers a face, expected backbone.embedding = 32"
    ):
        made("run", f"teacher.model={wide}")
    with pytest.raises(UsageError, match="GL0001"):
        made("run", "teacher.model=nowhere.onnx")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"GL0401.*not those of mobilefacenet with embedding 32"):
        made("run", f"teacher.model={tmp_path / 'other.pt'}", "teacher.backbone=mobilefacenet")
    with pytest.raises(UsageError, match=r"teacher\.modle: unknown key, did you mean teacher\.mod"):
        made("run", "teacher.modle=x")
    with pytest.raises(UsageError, match=r"teacher\.backbone: names the net that x\.pt holds"):
        made("run", "teacher.model=x.pt")
    with pytest.raises(UsageError, match=r"teacher\.backbone: only read with a model that is a"):
        made("run", "teacher.model=x.onnx", "teacher.backbone=r50")
    with pytest.raises(UsageError, match=r"run\.finetune_head: only read with finetune"):
        made("run", "run.finetune_head=true")


def test_a_dry_run_counts_the_teacher(small: Any, teacher: Path, tmp_path: Path) -> None:
    text = RECIPE.format(data=small.data)
    net = stored.load(teacher).net
    size = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    settings = load(text, Recipe, [f"teacher.model={teacher}"])
    assert load(dump(settings), Recipe) == settings
    found = dry.run(settings, 40, 1).memory
    assert found["teacher"] == size
    assert found["total"] == sum(v for k, v in found.items() if k != "total")
    torch.save(net.state_dict(), tmp_path / "net.pt")
    changes = [f"teacher.model={tmp_path / 'net.pt'}", "teacher.backbone=mobilefacenet"]
    assert dry.run(load(text, Recipe, changes), 40, 1).memory["teacher"] > size  # its full width
    (tmp_path / "net.onnx").write_bytes(b"1234")
    changes = [f"teacher.model={tmp_path / 'net.onnx'}"]
    assert dry.run(load(text, Recipe, changes), 40, 1).memory["teacher"] == 4
    assert "teacher" not in dry.run(load(text, Recipe), 40, 1).memory
    with pytest.raises(UsageError, match="GL0001"):
        dry.run(load(text, Recipe, ["teacher.model=nowhere"]), 40, 1)


@pytest.mark.slow
def test_two_ranks_stopped_and_resumed_equal_two_left_alone(
    small: Any, teacher: Path, tmp_path: Path, glint: Callable[..., Any]
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=small.data))
    common = ("train", path, "--nproc", "2", "--json", "--set", "run.save_every=3",
              "--set", f"teacher.model={teacher}", "--set")  # fmt: skip
    glint(*common, "schedule.max_steps=6", "--out", tmp_path / "whole")
    glint(*common, "schedule.max_steps=3", "--out", tmp_path / "parts")
    result = glint(*common, "schedule.max_steps=6", "--out", tmp_path / "parts")
    assert result["resumed_from"] == 3 and result["world"] == 2
    one, two = steps(tmp_path / "whole"), steps(tmp_path / "parts")
    assert [s["distill"] for s in one] == [s["distill"] for s in two] and len(one) == 6
    assert [s["loss"] for s in one] == [s["loss"] for s in two]
    whole, parts = (checkpoint.newest(tmp_path / n / "checkpoints") for n in ("whole", "parts"))
    assert whole is not None and parts is not None
    for name in ("backbone", "head-00000", "head-00001"):
        found = checkpoint.tensors(parts, name)
        assert all(torch.equal(v, found[k]) for k, v in checkpoint.tensors(whole, name).items())
