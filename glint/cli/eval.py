"""`glint eval`: verification accuracy of a model on pairs of faces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glint.cli import out as show

if TYPE_CHECKING:
    from glint.evals.bins import Pairs


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    model: Path = typer.Option(
        ..., "--model", "-m", help="ONNX recogniser, run directory or checkpoint directory."
    ),
    pairs: list[Path] = typer.Option(
        ..., "--pairs", "-p", help="A verification .bin (repeatable), or PAIRS.tsv with --dataset."
    ),
    dataset: Path | None = typer.Option(
        None, "--dataset", "-d", help="Dataset whose samples PAIRS.tsv names by their source."
    ),
    flip: bool = typer.Option(True, "--flip/--no-flip", help="Add the mirrored image."),
    batch: int = typer.Option(32, "--batch", min=1, help="Images per call of the model."),
    threads: int = typer.Option(0, "--threads", min=0, help="Compute threads, 0 = as many as fit."),
    device: str | None = typer.Option(
        None, "--device", help="cpu or cuda; default: what is there."
    ),
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Verify pairs in ten folds, as the field reports LFW, CFP-FP and AgeDB-30."""

    def work() -> dict[str, Any]:
        from glint.errors import UsageError
        from glint.evals.recogniser import open_model
        from glint.evals.verify import verify

        if device not in (None, "cpu", "cuda"):
            raise UsageError("GL0002", f"--device must be cpu or cuda, found {device!r}")
        for path in pairs:
            if not path.is_file():
                raise UsageError("GL0001", "no such pairs file", where=str(path))
        opened = open_model(model, threads=threads or None, device=device)
        sets: list[dict[str, Any]] = []
        with show.progress("eval") as progress:
            for path in pairs:
                chosen = _read(path, dataset)
                found = verify(opened, chosen, flip=flip, batch=batch, progress=progress)
                sets.append({"set": chosen.name, **found.as_dict()})
        about = {"model": str(model), "model_digest": opened.digest, "engine": opened.engine,
                 "dim": opened.dim, "flip": flip}  # fmt: skip
        if len(sets) == 1:
            return {**sets[0], **about}
        mean = sum(float(found["accuracy"]) for found in sets) / len(sets)
        return {"accuracy": mean, "sets": sets, **about}

    show.run(work, "glint/eval@1", as_json, debug=debug, say=_say)


def _read(path: Path, dataset: Path | None) -> Pairs:
    from glint.errors import UsageError
    from glint.evals.bins import read_bin
    from glint.evals.pairs import read_table
    from glint.shards.index import Dataset

    if dataset is not None:
        return read_table(path, Dataset(dataset))
    if path.suffix == ".tsv":
        raise UsageError(
            "GL0002", f"{path.name} names samples of a dataset",
            hint="add --dataset DATASET, the folder that `glint shard` wrote",
        )  # fmt: skip
    return read_bin(path)


def _say(result: dict[str, Any]) -> str:
    lines = [f"{'set':20s} {'pairs':>7s} {'accuracy %':>16s} {'TAR@FAR 1e-3':>13s} {'1e-4':>7s}"]
    for found in result.get("sets", [result]):
        tar = [found["tar_at_far"][far] for far in ("1e-3", "1e-4")]
        three, four = ("-" if value is None else f"{100 * value:.2f}" for value in tar)
        lines.append(
            f"{found['set'][:20]:20s} {found['pairs']:7d} {100 * found['accuracy']:8.2f} "
            f"+- {100 * found['std']:4.2f} {three:>13s} {four:>7s}"
        )
    flipped = "mirrored image added" if result["flip"] else "no mirrored image"
    lines.append(
        f"{result['model']} through {result['engine']}, {result['dim']} numbers, {flipped}"
    )
    return "\n".join(lines)
