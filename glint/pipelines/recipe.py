"""A dataset's road from download to training set: `pipelines/*.toml`, and its commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from glint.recipes.load import Table

# A value left out is the command's own default.
Text = Annotated[str, Field(min_length=1)]
AtLeastOne = Annotated[int, Field(ge=1)] | None
Count = Annotated[int, Field(ge=0)] | None


class Shard(Table):
    """`glint shard SOURCE OUT`."""

    source: Text
    out: Text
    samples_per_shard: AtLeastOne = None
    workers: Count = None
    seed: Count = None


class Embed(Table):
    """`glint embed DATASET`: `model` is an ONNX recogniser or a glint checkpoint."""

    model: Text
    out: Text


class Conflicts(Table):
    """`glint dedup-conflicts DATASET`, and `apply` after it only where a person has said so."""

    out: Text
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    apply: bool = False


class Balance(Table):
    """`glint balance DATASET`: images per identity and epoch at most `cap`, at least `min`."""

    cap: AtLeastOne = None
    min: Count = None
    power: Annotated[float, Field(ge=0, le=1)] | None = None

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield bounds that cross."""
        if self.cap is not None and self.min is not None and self.min > self.cap:
            yield "min", f"must not exceed cap = {self.cap}, found {self.min}"


class Recipe(Table):
    """One road: its stages in order; a stage left out is not walked."""

    shard: Shard
    embed: Embed | None = None
    conflicts: Conflicts | None = None
    balance: Balance | None = None

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield stages whose input no other stage makes, and outputs that collide."""
        if self.conflicts is not None and self.embed is None:
            yield "conflicts", "needs the embeddings that a table [embed] makes"
        outs = {"shard.out": self.shard.out}
        outs |= {"embed.out": self.embed.out} if self.embed else {}
        outs |= {"conflicts.out": self.conflicts.out} if self.conflicts else {}
        for field, out in outs.items():
            first = next(name for name, other in outs.items() if other == out)
            if first != field:
                yield field, f"is the same folder as {first}: {out}"


def commands(recipe: Recipe) -> list[list[str]]:
    """Return the command line of every stage of a road, in order, as argument lists."""
    shard, embed = recipe.shard, recipe.embed
    conflicts, balance = recipe.conflicts, recipe.balance
    dataset = shard.out
    road = [["glint", "shard", shard.source, dataset]]
    road[0] += _option("--samples-per-shard", shard.samples_per_shard)
    road[0] += _option("--workers", shard.workers) + _option("--seed", shard.seed)
    if embed is not None:
        road.append(["glint", "embed", dataset, "--model", embed.model, "--out", embed.out])
    if conflicts is not None and embed is not None:
        find = ["glint", "dedup-conflicts", dataset, "--embeddings", embed.out]
        road.append(find + ["--out", conflicts.out] + _option("--threshold", conflicts.threshold))
        if conflicts.apply:
            road.append(["glint", "dedup-conflicts", "apply", conflicts.out])
    if balance is not None:
        sample = ["glint", "balance", dataset, *_option("--cap", balance.cap)]
        road.append(sample + _option("--min", balance.min) + _option("--power", balance.power))
    return road


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]
