"""The commands that walk a dataset's road, one per stage."""

from __future__ import annotations

from glint.pipelines.recipe import Recipe


def commands(recipe: Recipe) -> list[list[str]]:
    """Return the command line of every stage in order, as argument lists."""
    shard, embed, conflicts, balance = recipe.shard, recipe.embed, recipe.conflicts, recipe.balance
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
