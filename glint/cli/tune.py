"""`glint tune`: weights that are there, made better on people of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glint.cli import complete, console

if TYPE_CHECKING:
    from glint.recipes.load import Table
    from glint.results import models as results
    from glint.train.recipe import Recipe
    from glint.train.tune import Options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune")(tune)


def tune(
    weights: Path = typer.Argument(
        ..., parser=console.local, metavar="WEIGHTS",
        help="A run or checkpoint, or published weights: .pt, .safetensors, .onnx.",
    ),
    dataset: Path = typer.Argument(
        ..., parser=console.local, metavar="DATASET", autocompletion=complete.datasets,
        help="A dataset of people to tune on."
    ),
    out: Path = typer.Option(..., "--out", "-o", parser=console.local, help="A folder of its own."),
    backbone: str = typer.Option("", "--backbone", autocompletion=complete.nets,
        help="The net of a .pt; of ONNX: a student."),
    embedding: int = typer.Option(512, "--embedding", help="Of a .pt: numbers of an embedding."),
    generic: list[Path] = typer.Option(
        [], "--generic", metavar="PACK.bin",
        help="Pairs of other people on which the result may not be worse; repeatable.",
    ),
    margin: float = typer.Option(
        0.005, "--margin", min=0.0, help="Accuracy that may be lost on any pack: 0.005 is 0.5 %."
    ),
    blend: str = typer.Option(
        "auto", "--blend", metavar="SHARE",
        help="Of the tuned net in the mean with the one before; auto: as much as passes.",
    ),
    freeze: str = typer.Option(
        "none", "--freeze", metavar="STAGES",
        help="Stages that stay, from the image on: a number, none, or all but the last.",
    ),
    lora: int = typer.Option(0, "--lora", min=0, metavar="RANK", help="Train factors alone."),
    centres: str = typer.Option("trained", "--centres", help="trained or frozen."),
    norms: str = typer.Option(
        "auto", "--norms", help="Statistics of batch norm: frozen, moving, or auto by the images."
    ),
    replay: Path | None = typer.Option(
        None, "--replay", parser=console.local, help="A generic dataset to train on besides."
    ),
    replay_share: float = typer.Option(
        0.5, "--replay-share", min=0.0, max=0.95, help="Its share of each epoch."
    ),
    held_out: float = typer.Option(
        0.1, "--held-out", min=0.0, max=0.5, help="Share of people to verify on; 0 = none."
    ),
    lr: float = typer.Option(0.0, "--lr", min=0.0, help="Learning rate; 0 = look for one."),
    epochs: int = typer.Option(5, "--epochs", min=1, help="Passes over the people to tune on."),
    batch: int = typer.Option(64, "--batch", min=2, help="Images a step."),
    seed: int = typer.Option(0, "--seed", min=0, help="Of the split, the order, the factors."),
    change: list[str] = console.SET,
    recipe_only: bool = typer.Option(
        False, "--recipe-only", help="Make the recipe and all that it reads; do not train."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:  # fmt: skip
    """Tune weights on a dataset by a recipe; a result that forgot too much is refused."""

    def work() -> results.Tune:
        from glint.train.tune import Options, shares

        options = Options(
            freeze, lora, centres, norms, epochs, batch, seed, held_out, replay_share
        )  # fmt: skip
        job = Job(weights, dataset, out, backbone, embedding, replay, options, shares(blend))
        return job.run(generic, margin, lr, change, recipe_only, debug)

    console.run(work, as_json, debug=debug, say=_say)


class Job:
    """One tuning: its folder, and what becomes of WEIGHTS and DATASET there."""

    def __init__(
        self, weights: Path, dataset: Path, out: Path, backbone: str, embedding: int,
        replay: Path | None, options: Options, shares: tuple[float, ...],
    ) -> None:  # fmt: skip
        self.weights, self.dataset, self.out = weights, dataset.resolve(), out.resolve()
        self.backbone, self.embedding = backbone, embedding
        self.replay, self.options = replay, options
        # a student learns from the file; without one its own weights are trained
        self.taught = weights.is_file() and weights.suffix.lower() == ".onnx" and bool(backbone)
        self.shares = (1.0,) if self.taught and len(shares) > 1 else shares

    def run(
        self, generic: list[Path], margin: float, lr: float, change: list[str], recipe_only: bool,
        debug: bool,
    ) -> results.Tune:  # fmt: skip
        """Make the recipe where there is none, train it, and judge what came of it."""
        from glint.cli import train as training
        from glint.errors import UsageError
        from glint.evals import packs
        from glint.jobs.workspace import Workspace

        for path in generic:
            pairs = packs.read_bin(path)
            odd = packs.nonsense(pairs)
            if len(pairs) < 10:
                odd = odd or f"{len(pairs)} pairs are too few for ten folds"
            if odd:
                raise UsageError("GL0002", odd, where=str(path))
        self._check()
        space = Workspace(self.out, "tune", plan_name="tune.json")
        space.refuse_foreign()
        with space.held():
            space.take_up(self._plan(lr, change), "GL0701")
            path = self.out / "recipe.toml"
            if not path.exists():
                self._write(path, lr, change)
            if recipe_only:
                return self._result(path, [], margin, None)
            result = training.one_rank(str(path), [], self.out / "run", "", False, debug)
        judged, share = self._judged(Path(result.best or result.checkpoint), generic, margin)
        return self._result(path, judged, margin, result, share)

    def _check(self) -> None:
        """Refuse what does not go together. Raises UsageError."""
        from glint.errors import UsageError

        def wrong(what: str, where: str, hint: str = "") -> UsageError:
            return UsageError("GL0002", what, where=where, hint=hint)

        if not self.weights.exists():
            raise UsageError("GL0001", "no such weights", where=str(self.weights))
        words = {"--centres": (self.options.centres, ("trained", "frozen")),
                 "--norms": (self.options.norms, ("auto", "frozen", "moving"))}  # fmt: skip
        for name, (found, known) in words.items():
            if found not in known:
                raise wrong(f"expected {' or '.join(known)}, found {found!r}", name)
        if self.taught:
            if self.options.freeze != "none" or self.options.lora or self.options.norms == "frozen":
                what = "a student of an ONNX file starts from nothing: all of it must learn"
                raise wrong(what, "--freeze, --lora, --norms")
            if self.shares != (1.0,):
                what = "there are no weights before it that a student could be blended with"
                raise wrong(what, "--blend")
        elif self.weights.is_dir() and self.backbone:
            raise wrong("a checkpoint names its own net", "--backbone")

    def _plan(self, lr: float, change: list[str]) -> dict[str, Any]:
        from dataclasses import asdict

        from glint.models import checkpoint
        from glint.shards.dataset import Dataset

        file = self.weights
        if file.is_dir():
            file = checkpoint.find(file)
            file = file / checkpoint.judged_weights(file)
        return {
            "format": "glint/tune@1", "weights": checkpoint.sha256(file),
            "dataset": Dataset(self.dataset).digest,
            "replay": Dataset(self.replay).digest if self.replay else None,
            "backbone": self.backbone, "embedding": self.embedding, "lr": lr, "set": change,
            **asdict(self.options),
        }  # fmt: skip

    @property
    def start(self) -> Path:
        """Where the net before tuning is: a checkpoint, or the ONNX file."""
        from glint.models import checkpoint

        if self.taught:
            return self.weights.resolve()
        if self.weights.is_dir():
            return checkpoint.find(self.weights).resolve()
        return checkpoint.find(self.out / "start")

    def _write(self, path: Path, lr: float, change: list[str]) -> None:
        """Make all that the recipe reads, then look for a rate, then write it."""
        from glint.files import atomic
        from glint.models import checkpoint, import_weights
        from glint.nn import backbones
        from glint.train import tune as making

        if (
            not self.taught
            and self.weights.is_file()
            and not checkpoint.all_in(self.out / "start" / "checkpoints")
        ):
            import_weights.import_weights(
                self.weights, self.backbone, self.out / "start", embedding=self.embedding
            )
        made, frozen = {"name": self.backbone, "embedding": 0, "options": {}}, 0
        if not self.taught:
            made = checkpoint.read_state(self.start)["backbone"]
            import torch

            with torch.device("meta"):
                net = backbones.create(
                    made["name"], made["embedding"], **(made.get("options") or {})
                )
            frozen = making.frozen_stages(self.options.freeze, net)
        place, dim, images = self._material()
        made = {**made, "embedding": made["embedding"] or dim}

        def at(rate: float) -> Recipe:
            teacher = str(self.start) if self.taught else ""
            return making.recipe(made, place, images, frozen, self.options, teacher, rate, change)

        rate = lr or self._rate(at(0.0))
        atomic.write_bytes(path, self._text(at(rate), lr).encode())

    def _material(self) -> tuple[dict[str, str], int, int]:
        """Merge, embed, hold out; return the paths, the embeddings' length, images to train on."""
        from glint.models.recogniser import open_model
        from glint.pipelines import embed
        from glint.pipelines.dataset import merge
        from glint.shards import labels
        from glint.shards.dataset import Dataset
        from glint.train import tune as making

        options, own = self.options, Dataset(self.dataset).classes
        place = {"data": str(self.dataset), "embeddings": str(self.out / "embeddings")}
        if self.replay is not None:
            place["data"] = str(self.out / "data")
            with console.progress("merge") as progress:
                merge.merge(place["data"], [self.dataset, self.replay], progress=progress)
        data = Dataset(place["data"])
        table = labels.current(data.root, data.classes)
        with console.progress("embed") as progress:
            made = embed.embed(
                data, open_model(self.start, threads=0), Path(place["embeddings"]),
                progress=progress, opener=embed.Paths(place["data"], str(self.start)), table=table,
            )  # fmt: skip
        people = making.held_out(data, table, own, options.held_out, options.seed)
        if len(people):
            again = making.seen_again(data, table, people)
            if len(again):
                console.tell(f"{len(again)} other people have images of those held out: not "
                             "trained on either")  # fmt: skip
            held = {*people.tolist(), *again.tolist()}
            gone = [i for i, target in enumerate(table.target.tolist()) if target in held]
            place["held_out"] = str(self.out / "held_out.txt")
            place["pairs"] = str(self.out / "held_out.bin")
            Path(place["held_out"]).write_text("".join(f"{label}\n" for label in gone))
            making.write_pairs(Path(place["pairs"]), data, table, people, options.seed)
            table = table.without(gone)
        if self.replay is not None:
            path = self.out / "sampling.parquet"
            making.write_replay(path, data, table, own, options.replay_share)
            place["sampling"] = str(path)
        if not self.taught:
            place["start"] = str(self.start)
        return (
            place,
            int(getattr(made, "dim", 0)),
            int((table.sample_target(data.label) >= 0).sum()),
        )

    def _rate(self, recipe: Recipe) -> float:
        """Look for a learning rate; its page is there whatever comes of it."""
        from glint.cli import train as training
        from glint.train import lr_finder

        page = self.out / "rates.html"
        with training.built(recipe, self.out / "rates") as run, console.progress("lr") as progress:
            try:
                found = lr_finder.find(run, progress)
            except lr_finder.NoDescent as error:
                lr_finder.draw(page, error.found)
                error.where = str(page)
                raise
        lr_finder.draw(page, found)
        return float(f"{found.rate:.2g}")

    def _text(self, recipe: Table, lr: float) -> str:
        from glint.recipes.load import dump

        found = "given" if lr else "found by a range test: rates.html"
        return (
            f"# Made by glint tune of {self.weights.name} and {self.dataset.name}. It may be "
            "changed: the same command trains\n# what stands here, as does "
            "`glint train recipe.toml --out run`.\n"
            f"# optim.lr: {found}. tune.norms: {self.options.norms}. Centres are those of the "
            f"embeddings, {self.options.centres}.\n\n" + dump(recipe, given=True)
        )

    def _judged(
        self, tuned: Path, generic: list[Path], margin: float
    ) -> tuple[list[results.TuneSet], float]:
        """Verify the net before and after on each pack; return that, and its share in the mean.

        Of the shares the first that nothing forbids is taken, else the last. Raises nothing.
        """
        import shutil

        from glint.evals.packs import read_bin
        from glint.train import tune as making

        own, blends = self.out / "held_out.bin", self.out / "blends"
        packs = [(path, read_bin(path)) for path in ([own] if own.exists() else []) + generic]
        before = self._verified(self.start, [pairs for _, pairs in packs])
        for share in self.shares:
            net = tuned
            if share < 1:
                net = making.blended(self.start, tuned, share, blends / f"{share:g}")
            after = self._verified(net, [pairs for _, pairs in packs])
            sets = [
                _set(pairs, path == own, was, now, margin)
                for (path, pairs), was, now in zip(packs, before, after)
            ]
            if not any(one.worse for one in sets):
                break
        self._place(net, any(one.worse for one in sets))
        shutil.rmtree(blends, ignore_errors=True)
        return sets, share

    def _verified(self, net: Path, packs: list[Any]) -> list[float]:
        """Return the accuracy of a net on each pack."""
        from glint.evals.embed import verify
        from glint.models.recogniser import open_model

        model = open_model(net)
        with console.progress("verify") as progress:
            return [verify(model, pairs, progress=progress).accuracy for pairs in packs]

    def _place(self, tuned: Path, refused: bool) -> None:
        """Make the net the folder's `tuned`, or make sure that there is none."""
        import shutil

        from glint.models import checkpoint

        place = self.out / "tuned"
        if refused:
            shutil.rmtree(place, ignore_errors=True)
        else:
            checkpoint.keep_as(tuned, place)

    def _result(
        self, path: Path, sets: list[results.TuneSet], margin: float,
        trained: results.Train | None, share: float = 1.0,
    ) -> results.Tune:  # fmt: skip
        from glint.errors import BudgetError
        from glint.recipes.load import load
        from glint.results import models as results
        from glint.train.recipe import Recipe

        recipe, warnings = load(path, Recipe), []
        if trained and not any(one.kind == "generic" for one in sets):
            warnings.append("nothing guards against forgetting: give --generic PACK.bin")
        warnings += [
            f"{one.set}: not better than before"
            for one in sets
            if one.kind == "held-out" and one.after <= one.before
        ]
        refused = any(one.worse for one in sets)
        result = results.Tune(
            out=str(self.out), recipe=str(path), start=str(self.start),
            learning_rate=recipe.optim.lr, steps=trained.steps if trained else 0, sets=sets,
            margin=margin, refused=refused, warnings=warnings, share=share,
            tuned=str(self.out / "tuned") if trained and not refused else None,
        )  # fmt: skip
        if refused:
            lost = "; ".join(map(_line, sets))
            error = BudgetError(
                "GL0705", f"worse by more than {100 * margin:g} %: {lost}; there is no tuned net",
                where=str(self.out),
                hint="a lower --lr, --lora 8, --freeze, or --replay of a generic dataset",
            )  # fmt: skip
            error.result = result
            raise error
        return result


def _set(pairs: Any, own: bool, was: float, now: float, margin: float) -> results.TuneSet:
    """Return a pack's line."""
    from glint.results import models as results

    return results.TuneSet(
        set=pairs.name, kind="held-out" if own else "generic", pairs=len(pairs), before=was,
        after=now, worse=now < was - margin,
    )  # fmt: skip


def _say(result: results.Tune) -> str:
    if not result.sets and result.tuned is None:
        return (
            f"recipe {result.recipe}, learning rate {result.learning_rate:g}\n"
            f"Next: the same command without --recipe-only, or glint train "
            f"{console.quoted(result.recipe)} --out {console.quoted(Path(result.out) / 'run')}"
        )
    lines = [
        f"{console.count(result.steps, 'step')} at a learning rate of {result.learning_rate:g}"
    ]
    if result.share < 1:
        lines.append(f"the mean of weights before and after, {result.share:g} of it after:")
    lines += [f"  {_line(one)}" for one in result.sets]
    lines += [f"  warning: {one}" for one in result.warnings]
    lines.append(f"tuned {result.tuned}")
    lines.append(f"Next: glint export {console.quoted(result.tuned or '')} NET.onnx")
    return "\n".join(lines)


def _line(one: results.TuneSet) -> str:
    before, after = 100 * one.before, 100 * one.after
    about = f"{one.set} ({one.kind}, {console.count(one.pairs, 'pair')})"
    return f"{about} {before:.2f} % before, {after:.2f} % after"
