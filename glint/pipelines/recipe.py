"""A dataset's road from download to training set: `pipelines/*.toml`, and its commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

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


class Align(Table):
    """`glint align SOURCE OUT`: photographs; `unlabelled` where nobody said who is who."""

    source: Text
    out: Text
    detector: Text
    faces: Literal["largest", "central", "all", "one"] | None = None
    min_face: Annotated[float, Field(ge=0)] | None = None
    unlabelled: bool = False
    samples_per_shard: AtLeastOne = None
    workers: Count = None
    seed: Count = None


class Embed(Table):
    """`glint embed DATASET`: `model` is an ONNX recogniser or a glint checkpoint."""

    model: Text
    out: Text


class Quality(Table):
    """`glint quality DATASET`, by the norm of [embed] unless `model` is scored."""

    out: Text
    method: Literal["norm", "sharpness", "steady", "net"] | None = None
    model: Text | None = None
    least: Text | None = None  # for [balance]: a number, or a share as in "5%"

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield a method and a model that do not go together."""
        if (self.method in (None, "norm", "sharpness")) != (self.model is None):
            yield "model", 'goes with method = "steady" or "net"'


class Cluster(Table):
    """`glint cluster` and `apply`: who is who among faces without names."""

    out: Text
    method: Literal["online", "graph"] | None = None
    join: Annotated[float, Field(ge=-1, le=1)] | None = None
    connect: Annotated[float, Field(ge=-1, le=1)] | None = None
    min: Count = None


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


class Look(Table):
    """`glint look DATASET`: a page with a sample of what there is."""

    out: Text


class Train(Table):
    """`glint train RECIPE` on the dataset; `set` as in --set."""

    recipe: Text
    out: Text
    nproc: AtLeastOne = None
    set: list[Text] = Field(default_factory=list)


class Export(Table):
    """`glint export RUN OUT`."""

    out: Text


class Evaluate(Table):
    """`glint eval pairs`, of the exported net or of the run."""

    pairs: list[Text] = Field(min_length=1)


class Recipe(Table):
    """One road: its stages in order; a stage left out is not walked."""

    shard: Shard | None = None
    align: Align | None = None
    embed: Embed | None = None
    quality: Quality | None = None
    cluster: Cluster | None = None
    conflicts: Conflicts | None = None
    balance: Balance | None = None
    look: Look | None = None
    train: Train | None = None
    export: Export | None = None
    eval: Evaluate | None = None

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield stages whose input no other stage makes, and outputs that collide."""
        if (self.shard is None) == (self.align is None):
            yield "shard", "expected one of the tables [shard] and [align]"
            return
        if self.embed is None:
            for name in ("conflicts", "cluster", "quality"):
                if getattr(self, name) is not None:
                    yield name, "needs the embeddings that a table [embed] makes"
        for name in ("export", "eval"):
            if getattr(self, name) is not None and self.train is None:
                yield name, "needs the run that a table [train] makes"
        if self.align is not None and self.align.unlabelled and self.train and not self.cluster:
            yield "train", "needs names: a table [cluster] finds who is who"
        if self.quality is not None and self.quality.least and self.balance is None:
            yield "quality.least", "is for a table [balance]"
        tables = ("shard", "align", "embed", "quality", "cluster", "conflicts", "look", "train",
                  "export")  # fmt: skip
        found = {f"{name}.out": getattr(self, name) for name in tables}
        outs = {field: table.out for field, table in found.items() if table is not None}
        for field, out in outs.items():
            first = next(name for name, other in outs.items() if other == out)
            if first != field:
                yield field, f"is the same folder as {first}: {out}"


def commands(recipe: Recipe) -> list[list[str]]:
    """Return the command line of every stage of a road, in order, as argument lists."""
    shard, align, embed = recipe.shard, recipe.align, recipe.embed
    if shard is not None:
        dataset = shard.out
        first = ["glint", "shard", shard.source, dataset]
        first += _option("--samples-per-shard", shard.samples_per_shard)
        first += _option("--workers", shard.workers) + _option("--seed", shard.seed)
    else:
        assert align is not None
        dataset = align.out
        first = ["glint", "align", align.source, dataset, "--detector", align.detector]
        first += _option("--faces", align.faces) + _option("--min-face", align.min_face)
        first += ["--unlabelled"] * align.unlabelled
        first += _option("--samples-per-shard", align.samples_per_shard)
        first += _option("--workers", align.workers) + _option("--seed", align.seed)
    road = [first]
    rows: list[str] = []
    if embed is not None:
        road.append(["glint", "embed", dataset, "--model", embed.model, "--out", embed.out])
        rows = ["--embeddings", embed.out]
    quality = recipe.quality
    score = [] if quality is None else ["--quality", quality.out]
    if quality is not None:
        how = _option("--method", quality.method) + _option("--model", quality.model)
        road.append(["glint", "quality", dataset, *rows, *how, "--out", quality.out])
    if recipe.cluster is not None and embed is not None:
        cluster = recipe.cluster
        find = ["glint", "cluster", embed.out, "--out", cluster.out]
        find += _option("--method", cluster.method)
        road.append(find + _option("--join", cluster.join) + _option("--connect", cluster.connect))
        apply = ["glint", "cluster", "apply", cluster.out, dataset]
        road.append(apply + _option("--min", cluster.min))
    if recipe.conflicts is not None:
        conflicts = recipe.conflicts
        find = ["glint", "dedup-conflicts", dataset, *rows, "--out", conflicts.out]
        road.append(find + _option("--threshold", conflicts.threshold))
        if conflicts.apply:
            road.append(["glint", "dedup-conflicts", "apply", conflicts.out])
    if recipe.balance is not None:
        balance = recipe.balance
        sample = ["glint", "balance", dataset, *_option("--cap", balance.cap)]
        sample += _option("--min", balance.min) + _option("--power", balance.power)
        if quality is not None and quality.least is not None:
            sample += [*score, "--min-quality", quality.least]
        road.append(sample)
    if recipe.look is not None:
        road.append(["glint", "look", dataset, *rows, *score, "--out", recipe.look.out])
    return road + training_commands(recipe, dataset)


def training_commands(recipe: Recipe, dataset: str) -> list[list[str]]:
    """Return the command lines of the stages that train and measure."""
    train, road = recipe.train, []
    if train is not None:
        sets = [f"data.path={dataset}", *(["data.sampling=auto"] if recipe.balance else [])]
        words = [word for one in [*sets, *train.set] for word in ("--set", one)]
        line = ["glint", "train", train.recipe, "--out", train.out]
        road.append(line + _option("--nproc", train.nproc) + words)
        export = recipe.export
        evaluate = recipe.eval
        if export is not None:
            road.append(["glint", "export", train.out, export.out])
        net = export.out if export else train.out
        for pairs in [] if evaluate is None else evaluate.pairs:
            road.append(["glint", "eval", "pairs", pairs, "--model", net])
    return road


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]
