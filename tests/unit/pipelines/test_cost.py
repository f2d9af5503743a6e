"""`glint plan data`: its arithmetic against sums made by hand, and the bytes against real files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from glint.errors import UsageError
from glint.pipelines import cost
from glint.pipelines.cost import Dataset, Machines, plan

ROOT = Path(__file__).parents[3]
LARGE = Dataset(1e9, 1e7)


def stages(data: Dataset, machines: Machines) -> dict[str, Any]:
    return {one.name: one for one in plan(data, machines).stages}


def test_a_plan_is_units_times_drivers() -> None:
    units = cost.unit_costs()["stage"]
    found = stages(Dataset(42e6, 2e6, 256, 5000, 0.5), Machines(4, 8))
    rows = math.ceil(2e6 / 2048)
    search, unit = found["conflict search"], units["conflict search"]
    shared = unit["cpu"]["tile"] * rows * (rows + 1) / 2 / 2
    once = unit["once"]["centre"] * 2e6 * 256
    assert search.seconds == pytest.approx(shared / 32 + once)
    assert search.cpu_seconds == pytest.approx(shared + once)
    assert search.read == pytest.approx(5 * 2e6 * 256 * 4)  # by every machine
    assert search.traffic == pytest.approx((search.read + search.written) / 4, abs=1)
    assert found["balance"].seconds == pytest.approx(units["balance"]["cpu"]["image"] * 42e6)
    evidence, unit = found["conflict evidence"], units["conflict evidence"]["cpu"]
    wanted = {"pair": 1e6, "face": 1e6 * 42 / 2, "number": 42e6 * 256}
    assert evidence.seconds == pytest.approx(sum(unit[key] * wanted[key] for key in unit))


def test_more_machines_help_only_what_is_shared_out() -> None:
    one, many = stages(LARGE, Machines(1, 16)), stages(LARGE, Machines(64, 16))
    units = cost.unit_costs()["stage"]
    for name, stage in many.items():
        shared = units[name]["spread"] == "tasks"
        assert stage.machines == (64 if shared else 1)
        assert stage.memory == one[name].memory
        assert stage.cpu_seconds == pytest.approx(one[name].cpu_seconds)
        if not shared:
            assert stage == one[name]
        else:
            again = one[name].seconds - one[name].alone
            assert stage.seconds == pytest.approx(stage.alone + again / 64)
    assert {name for name, stage in many.items() if stage.machines == 64} == {
        "shard", "embed", "conflict search", "reshard",
    }  # fmt: skip


def test_the_first_wall_is_named() -> None:
    found = plan(LARGE, Machines(64, 64, memory=1e15))
    longest = max(found.stages, key=lambda one: one.seconds)
    assert found.fits and found.longest == longest.name
    assert found.wall.startswith(f"time of {longest.name} on ")
    need = {one.name: one.memory for one in found.stages}
    limit = sorted(need.values())[-2] - 1  # two stages do not fit
    first = next(name for name, size in need.items() if size > limit)
    found = plan(LARGE, Machines(64, 64, memory=limit))
    assert not found.fits and found.wall.startswith(f"memory of {first} on ")
    assert found.memory == max(need.values())


def test_without_labels_faces_are_clustered() -> None:
    found = stages(Dataset(1e8, 1e8, unlabelled=True), Machines(4, 16))
    assert "cluster graph" in found and not {*found} & {*cost.LABELLED}
    labelled = stages(Dataset(1e8, 1e8), Machines(4, 16))
    assert found["embed"].memory < labelled["embed"].memory / 2  # no centres of single images


def test_a_card_embeds_as_fast_as_is_said() -> None:
    cpu = stages(LARGE, Machines(2, 16))["embed"]
    card = stages(LARGE, Machines(2, 16, 8, milliseconds=4.0))["embed"]
    assert card.seconds - card.alone == pytest.approx(1e9 * 4e-3 / 16)
    assert card.cpu_seconds < cpu.cpu_seconds / 10  # decoding is left to the cores
    slow = stages(LARGE, Machines(2, 1, 8, milliseconds=0.001))["embed"]
    assert slow.seconds > 1e9 * 1e-6 / 16 * 10  # which then decide


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["--images", "0"], "--images: expected at least 1, found 0"),
        (["--images", "nan"], "--images: expected at least 1, found nan"),
        (["--images", "inf"], "--images: expected at least 1, found inf"),
        (["--identities", "2e9"], "--identities: expected from 1 to --images"),
        (["--machines", "0"], "--machines: expected at least 1"),
        (["--cores", "-1"], "--cores: expected at least 1"),
        (["--image-kb", "0"], "--image-kb: expected above 0"),
        (["--memory", "0"], "--memory: expected above 0"),
        (["--gpus", "8"], "--gpus: no GPU was measured"),
        (["--ms-per-image", "-1"], "--ms-per-image: expected at least 0"),
    ],
)
def test_mistakes_are_named(change: list[str], text: str) -> None:
    found = CliRunner().invoke(app(), ["plan", "data", *given(), *change])
    assert found.exit_code == 2 and "GL0002" in found.output and text in found.output


def given() -> list[str]:
    return ["--images", "1e9", "--identities", "1e7", "--machines", "64"]


def app() -> Any:
    import typer

    from glint.cli import commands

    made = typer.Typer()
    commands.register(made)
    return made


def test_the_command_prints_an_object_or_a_table() -> None:
    done = CliRunner().invoke(app(), ["plan", "data", *given(), "--json"])
    found = json.loads(done.stdout)
    assert found["schema"] == "glint/data-plan@1" and found["images"] == 10**9
    text = CliRunner().invoke(app(), ["plan", "data", *given()]).stdout
    assert f"First wall: {found['wall']}" in text
    for one in found["stages"]:
        assert f"\n  {one['name']} " in text
    assert "On one machine whatever is given" in text and "no GPU, network or disk" in text


def test_bytes_are_those_of_real_files(tmp_path: Path) -> None:
    from glint.pipelines.dataset import shard as stage
    from glint.shards import recordio

    size, n = 2000, 3000
    head = b"\xff\xd8\xff\xfe" + (size - 19).to_bytes(2, "big")
    tail = b"\xff\xc0\x00\x0b\x08\x00\x70\x00\x70\x01\x01\x11\x00\xff\xd9"
    with recordio.Writer(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
        for i in range(n):
            image = head + i.to_bytes(4, "big").replace(b"\xff", b"\xfe") * 494 + b"xxxxx" + tail
            writer.write(i + 1, recordio.pack(float(i // 10), i + 1, 0, image[: size - 15] + tail))
    stage.shard(tmp_path / "a.rec", tmp_path / "out", stage.Options())
    files = [one for one in (tmp_path / "out").rglob("*") if one.is_file()]
    unit = cost.unit_costs()["stage"]["shard"]
    by = cost.drivers(Dataset(n, n // 10, image_bytes=size))
    assert cost.dot(unit["write"], by) == pytest.approx(
        sum(one.stat().st_size for one in files), rel=0.1
    )
    whole = (tmp_path / "a.rec").stat().st_size + sum(
        one.stat().st_size for one in files if one.suffix == ".tar"
    )
    assert cost.dot(unit["read"], by) == pytest.approx(whole, rel=0.1)


def test_the_page_shows_what_the_command_says() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_plan
    finally:
        sys.path.pop(0)
    assert make_plan.page() == make_plan.PAGE.read_text(encoding="utf-8"), (
        "python docs/make_plan.py"
    )


def test_every_miss_of_a_size_that_was_not_fitted_is_kept() -> None:
    lines = (ROOT / "benchmarks" / "results" / "plan_data.jsonl").read_text().splitlines()
    found = {one["figure"]: one for one in map(json.loads, lines)}
    for name in cost.unit_costs()["stage"]:
        for what in ("CPU", "memory"):
            assert f"{name}: {what}, error of the plan" in found


def test_usage_errors_are_of_the_plan() -> None:
    with pytest.raises(UsageError, match=r"GL0002.*--pairs"):
        plan(Dataset(10, 10, pairs=-1), Machines())
