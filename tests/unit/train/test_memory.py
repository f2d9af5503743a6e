"""The plan's formulas against what a head really allocates, and its arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import typer
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from glint.cli import plan as command
from glint.errors import UsageError
from glint.nn.heads.class_pool import ClassPool
from glint.nn.heads.class_queue import ClassQueue
from glint.nn.heads.options import (
    RULES,
    ClassPoolOptions,
    ClassQueueOptions,
    PartialFCOptions,
)
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import CosFace
from glint.train import memory
from glint.train.memory import Head, largest, plan

RATES = {"tflops": 1.0, "gbps": 100.0, "link": 10.0}


def most_alive(found: profile) -> int:
    """Give the most bytes that a profile saw alive at once."""
    alive = most = 0
    events = found.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


def measured(head: Head, steps=2):
    """Give (bytes of the tables, most bytes alive at once) of a head and its steps."""
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        model = PartialFC(head.classes, head.dim, head.options, margin=CosFace())
        for step in range(steps):
            feature = torch.randn(head.batch, head.dim, requires_grad=True)
            label = torch.randint(0, head.classes, (head.batch,))
            model(feature, label, step=step).backward()
            model.update(step=step, lr=0.1)
    tables = sum(
        buffer.numel() * buffer.element_size() for buffer in model.state_rows()[2].values()
    )
    return tables, most_alive(found)


@pytest.mark.parametrize(
    "head",
    [
        Head(PartialFCOptions(rate=0.1), 20_000, 64, 1, 32),
        Head(PartialFCOptions(rate=0.1, rule="dense_exact", keep=0), 20_000, 64, 1, 32),
        Head(PartialFCOptions(rate=0.5, rule="v1_stale"), 20_000, 64, 1, 256),
        Head(
            PartialFCOptions(rate=0.3, rule="adamw", storage="bf16", gemm="bf16"), 20_000, 64, 1, 64
        ),
        Head(PartialFCOptions(rule="lazy_decay", block=256, keep=0), 20_000, 64, 1, 128),
    ],
    ids=str,
)
def test_the_formulas_agree_with_what_is_allocated(head):
    tables, most = measured(head)
    need = memory.memory(head)
    assert need["weights"] + need["state"] == tables
    above, planned = most - tables, need["total"] - tables
    assert 0.7 * planned < above < 1.3 * planned, (above, planned, need)
    assert abs(most / need["total"] - 1) < 0.1, (most, need)


def test_every_rule_is_counted():
    assert set(memory.STATE) == set(RULES)


def test_the_largest_head_fits_and_one_more_does_not():
    values = {"rate": 0.1, "rule": "dense_exact"}
    head = memory.head(values, 1, world=8)
    most = largest(head, 7e9)
    for classes, fits in ((most, True), (most + 8, False)):
        found = plan(values, classes, world=8, card=7.0, **RATES)
        assert found.fits is fits
    assert largest(head, 10) == 0


def test_ten_million_by_count():
    found = plan({"rate": 0.1}, 10_000_000, batch=1024, card=141.0, **RATES)
    assert found.memory["weights"] == 20_480_000_000
    assert found.playing == 1_000_000 and found.reference_memory == 81_920_000_000
    assert found.flop == 2 * 4 * 1024 * 1_000_000 * 512
    assert found.communication == {"received": 0, "collectives": 0}
    eight = plan({"rate": 0.1}, 10_000_000, world=8, batch=128, **RATES)
    assert eight.communication["collectives"] == 3
    assert eight.communication["received"] == 7 * 128 * 4 * (512 + 3 + 3 + 512)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classes": 0}, "classes is 0"),
        ({"rate": 2.0}, "rate is 2.0"),
        ({"rule": "sgd"}, "rule is 'sgd', expected none or v1_stale"),
        ({"storage": "fp8"}, "storage is 'fp8'"),
    ],
)
def test_mistakes_are_named(change, text):
    with pytest.raises(UsageError, match=f"GL0002.*plan: {text}"):
        plan(change, change.pop("classes", 10), **RATES)


def test_the_command_prints_one_object():
    app = typer.Typer()
    command.register(app)
    done = CliRunner().invoke(
        app,
        ["plan", "--classes", "29000000", "--world", "8", "--card", "7", "--storage", "bf16"]
        + ["--json"],
    )
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["schema"] == "glint/plan-result@1" and found["rows"] == 3_625_000
    assert found["fits"] is True and found["largest"] > 29_000_000
    assert found["on"].startswith("H100 by its data sheet: tflops 67, gbps 3350")


def test_the_step_is_of_a_named_gpu_or_of_what_was_measured():
    found = {gpu: plan({"gemm": "bf16"}, 10_000_000, gpu=gpu, world=8) for gpu in memory.GPUS}
    assert "H200 by its data sheet: tflops 989" in found["h200"].on
    assert found["h200"].seconds["total"] < found["a100"].seconds["total"]
    measured = plan({}, 1000, **RATES)
    assert measured.on == "tflops 1, gbps 100, link 10"
    with pytest.raises(UsageError, match="gpu is 'k80', expected a100 or h100"):
        plan({}, 1000, gpu="k80")
    text = command._say(plan({}, 1000, gpu="h200"))
    assert "(H200 by its data sheet: tflops 67, gbps 4800, link 450; no launches, no waits)" in text


def full(head: Head):
    """Make a pool or a queue whose slots are all in use."""
    slots, common = head.options.slots, {"margin": CosFace()}
    if isinstance(head.options, ClassQueueOptions):
        queue = ClassQueue(head.classes, head.dim, head.options, **common)
        queue.label.random_(head.classes)
        queue.used = slots
        return queue
    pool = ClassPool(head.classes, head.dim, head.options, singles=head.batch // 3, **common)
    pool.directory.load(range(slots), range(slots), [1] * slots)
    return pool


def measured_pool(head: Head, steps=3):
    """Give (bytes of the tables, most bytes alive at once) of a full pool and its steps."""
    torch.manual_seed(0)
    singles = head.batch // 3
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        model = full(head)
        for step in range(steps):
            label = torch.randint(0, head.classes, (head.batch,))
            if isinstance(head.options, ClassPoolOptions):
                label[1 : head.batch - singles : 2] = label[0 : head.batch - singles : 2]
            label, other = model.parts(label)[0], torch.randn(head.batch, head.dim)
            feature, other = model.parts(other)
            feature = feature.clone().requires_grad_()
            model(feature, label, step=step, gallery_nD=other).backward()
            model.update(step=step, lr=0.1)
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return tables, most_alive(found)


@pytest.mark.parametrize(
    "head",
    [
        Head(ClassPoolOptions(slots=4000), 50_000, 128, 1, 48),
        Head(ClassPoolOptions(slots=600, block=256), 50_000, 64, 1, 384),
        Head(ClassQueueOptions(slots=4000), 50_000, 128, 1, 48),
        Head(ClassQueueOptions(slots=600, block=256), 50_000, 64, 1, 384),
        Head(ClassQueueOptions(slots=600, gallery=2), 50_000, 64, 1, 384),
    ],
)
def test_a_pool_takes_what_is_planned(head):
    tables, most = measured_pool(head)
    need = memory.memory(head)
    kept = need["weights"] + need["state"]
    assert kept == tables
    assert most - tables == pytest.approx(need["total"] - kept, rel=0.4), (most - tables, need)
    assert need["total"] == pytest.approx(most, rel=0.2)


def test_a_pool_does_not_grow_with_the_classes():
    values = {"kind": "class_pool", "slots": 10_000}
    small, large = (plan(values, n, card=1.0, **RATES) for n in (10**4, 10**8))
    assert replace(small, head={}, reference_memory=0) == replace(
        large, head={}, reference_memory=0
    )
    found = small.largest
    fits, over = (Head(ClassPoolOptions(slots=slots), 1) for slots in (found, found + 1))
    assert memory.memory(fits)["total"] <= 1e9 < memory.memory(over)["total"]
    with pytest.raises(UsageError, match="slots is 0, expected at least 1"):
        memory.head({"kind": "class_pool"}, 10)
    with pytest.raises(UsageError, match="gallery is 2, expected at least 1, more for a class_q"):
        memory.head({"kind": "class_pool", "slots": 5, "gallery": 2}, 10)
    queue = [plan({"kind": "class_queue", "slots": 9}, n, **RATES) for n in (10**4, 10**8)]
    assert queue[0].memory == queue[1].memory and queue[0].flop == queue[1].flop
    twice = Head(ClassQueueOptions(slots=9, gallery=2), 9, world=3, batch=12)
    assert memory.communication(twice)["received"] == 2 * (4 * (512 * 4 + 8) + 4)
