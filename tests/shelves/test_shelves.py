"""Every file of the shelves is right, and none is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glint.manifests import card
from glint.nn.heads.softmax import STEEPEST, WIDEST
from glint.pipelines.recipe import Recipe as Road
from glint.pipelines.recipe import commands
from glint.recipes import shelf
from glint.recipes.load import dump, load
from glint.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
FILES = sorted(path for one in shelf.SHELVES for path in (ROOT / one).rglob("*.toml"))
COUNT = {"train": 48, "pipelines": 4, "manifests": 7}


def test_the_count_of_every_shelf() -> None:
    assert {one: len(shelf.entries(one)) for one in shelf.SHELVES} == COUNT
    assert [entry.path for entry in shelf.entries()] != []
    assert sorted(entry.path for entry in shelf.entries()) == FILES  # none in a subfolder


@pytest.mark.parametrize(
    "path", sorted((ROOT / "train").glob("*.toml")), ids=lambda path: path.stem
)
def test_training_runs(path: Path) -> None:
    recipe = load(path, Recipe)
    assert load(dump(recipe), Recipe) == recipe
    head = path.read_text().split("\n\n")[0]
    assert "\n# Hardware: " in head
    assert "\n# Expected" in head
    if not path.stem.startswith("synth_tiny"):
        assert "Not yet run by us." in head
        gpus = re.search(r"Hardware: (\d+) GPU", head)
        total = re.search(r"global\s(?:#\s)?batch\s(?:#\s)?([\d,]+)", head)
        assert gpus and total
        batch = int(gpus[1]) * recipe.data.batch * recipe.run.accumulate
        assert batch == int(total[1].replace(",", ""))
        # what kernels = "auto" asks for before it takes the kernels, and few launches without them
        assert recipe.head.gemm == "bf16" and recipe.head.block >= 8192
        assert recipe.head.scale <= STEEPEST and recipe.backbone.embedding <= WIDEST


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.toml")), ids=lambda p: p.stem)
def test_roads(path: Path) -> None:
    road = commands(load(path, Road))
    if path.stem == "photos":
        stages = ["align", "embed", "quality", "cluster", "cluster", "dedup-conflicts", "balance"]
        assert [one[1] for one in road] == [*stages, "look", "train", "export", "eval"]
        return
    assert [one[1] for one in road] == ["shard", "embed", "dedup-conflicts", "balance"]


@pytest.mark.parametrize("path", sorted((ROOT / "manifests").glob("*.toml")), ids=lambda p: p.stem)
def test_cards(path: Path) -> None:
    read = card.read(path)
    first = path.read_text().splitlines()[0]
    assert first == f"# {read.title}: {read.identities:,} identities, {read.images:,} images"


def test_every_backbone_can_be_built() -> None:
    import torch

    from glint.nn.backbones import create

    tables = [load(path, Recipe).backbone for path in (ROOT / "train").glob("*.toml")]
    with torch.device("meta"):
        for table in {str(table): table for table in tables}.values():
            create(table.name, table.embedding, **table.options)


def test_the_roads_use_options_that_the_commands_have() -> None:
    import typer

    from glint.cli import commands as modules

    app = typer.Typer()
    modules.register(app)
    every = typer.main.get_command(app)
    text = (
        '[shard]\nsource="a"\nout="b"\nsamples_per_shard=1\nworkers=1\nseed=1\n[embed]\nmodel="m"\n'
    )
    text += 'out="e"\n[conflicts]\nout="c"\nthreshold=0.5\n[balance]\ncap=2\nmin=1\npower=1.0\n'
    for line in commands(load(text, Road)):
        command = every.commands[line[1]]  # type: ignore[attr-defined]
        have = {option for parameter in command.params for option in parameter.opts}
        have |= {
            option
            for sub in getattr(command, "commands", {}).values()
            for parameter in sub.params
            for option in parameter.opts
        }
        assert {word for word in line if word.startswith("--")} <= have, line
