"""`glint demo`: every step on a synthetic world, through the commands that a user types."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import models as results

RECIPE = "synth_tiny"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    folder: Path = typer.Argument(Path("demo"), metavar="OUT", help="The folder to write to."),
    identities: int = typer.Option(300, min=50, help="Identities to train on."),
    images: int = typer.Option(24, min=4, help="Mean number of images per identity."),
    conflicts: int = typer.Option(12, min=0, help="Identities planted under two labels."),
    lookalikes: int = typer.Option(12, min=0, help="Pairs of look-alikes that must not merge."),
    nproc: int = typer.Option(2, "--nproc", min=1, help="Training ranks."),
    seed: int = typer.Option(0, help="Of the world and of training."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Walk the whole road once, on a synthetic world; from `synth` to `export`."""
    console.run(
        lambda: _road(folder, identities, images, conflicts, lookalikes, nproc, seed),
        as_json,
        debug=debug,
        say=_table,
    )


MADE = {"world", "data", "runs", "embeddings", "conflicts", "model.onnx", "summary.json"}


class _Steps:
    """Runs commands, one after the other, and notes how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, title: str, *args: str | Path | int) -> dict[str, Any]:
        start = time.monotonic()
        result = _glint(title, [str(a) for a in args])
        self.seconds[title] = round(time.monotonic() - start, 1)
        return result


def _road(
    folder: Path, identities: int, images: int, conflicts: int, lookalikes: int, nproc: int,
    seed: int,
) -> results.Demo:  # fmt: skip
    from glint.results import models as results

    _clear(folder)
    began = time.monotonic()
    world, data, runs = folder / "world", folder / "data", folder / "runs"
    glint = _Steps()
    glint(
        "synth", "synth", world, "--identities", identities, "--images", images,
        "--conflicts", conflicts, "--lookalikes", lookalikes, "--seed", seed, "--workers", nproc,
    )  # fmt: skip
    truth = json.loads((world / "truth.json").read_text())
    shard = glint("shard", "shard", world, data, "--workers", nproc, "--seed", seed)
    common = ["--set", f"data.path={data}", "--set", f"run.val=['{world / 'pairs.bin'}']"]
    first = glint(
        "first model", "train", RECIPE, "--nproc", nproc, "--out", runs / "first", *common,
    )  # fmt: skip
    embed = glint(
        "embed", "embed", data, "--model", first["checkpoint"], "--out", folder / "embeddings"
    )
    found = glint(
        "dedup-conflicts", "dedup-conflicts", data, "--embeddings", folder / "embeddings",
        "--out", folder / "conflicts",
    )  # fmt: skip
    judged = _judge(data, folder / "conflicts", truth)
    applied = glint("apply", "dedup-conflicts", "apply", folder / "conflicts")
    balance = glint("balance", "balance", data)
    final = glint(
        "final model", "train", RECIPE, "--nproc", nproc, "--out", runs / "final", *common,
        "--set", f"run.finetune={first['checkpoint']}", "--set", "data.sampling=auto",
        "--set", "optim.lr=0.05", "--set", "schedule.epochs=2",
    )  # fmt: skip
    onnx = folder / "model.onnx"
    export = glint("export", "export", final["checkpoint"], onnx)
    checked = glint("eval", "eval", "pairs", world / "pairs.bin", "--model", onnx)
    summary = {
        "images_in": shard["read"],
        "images_written": shard["written"],
        "images_quarantined": shard["quarantined"],
        "quarantine_reasons": shard["quarantine_reasons"],
        "identities": shard["identities"],
        "identities_after_merge": applied["classes"],
        "conflicts_planted": len(truth["conflicts"]),
        **judged,
        "pairs_masked": found["mask"],
        "epoch_samples": balance["epoch_samples"],
        "accuracy_untrained": _untrained(runs / "first"),
        "accuracy_first": first["accuracy"],
        "accuracy_final": checked["accuracy"],
        "accuracy_final_std": checked["std"],
        "tar_at_far": checked["tar_at_far"],
        "embedded": embed["images"],
        "onnx_cosine_min": export["cosine_min"],
        "ranks": nproc,
        "seconds": glint.seconds,
        "seconds_total": round(time.monotonic() - began, 1),
        "paths": {
            "world": str(world),
            "dataset": str(data),
            "report": str(folder / "conflicts" / "report.html"),
            "run": str(runs / "final"),
            "checkpoint": final["checkpoint"],
            "onnx": str(onnx),
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return results.Demo(**summary)


def _clear(folder: Path) -> None:
    """Make the folder, empty. Raises BusyError GL0004 where it holds anything but a demo."""
    from glint.errors import BusyError

    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and ("summary.json" not in names or names - MADE):
        raise BusyError(
            "GL0004",
            "the folder is not empty and holds no finished demo",
            where=str(folder),
            hint="remove it, or name another folder: glint demo OTHER",
        )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _glint(title: str, args: list[str]) -> dict[str, Any]:
    console.tell(f"\n$ glint {' '.join(args)}")
    done = subprocess.run(
        [sys.executable, "-m", "glint", *args, "--json"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    if done.returncode:
        console.tell(f"the step {title!r} failed with exit code {done.returncode}")
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    shown = {k: v for k, v in result.items() if not isinstance(v, dict | list)}
    console.tell("  " + "  ".join(f"{k}={v}" for k, v in shown.items()))
    return result


def _judge(data: Path, conflicts: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """Compare the merge verdicts with what was planted."""
    import pyarrow.parquet as pq

    identities = pq.read_table(data / "identities.parquet").to_pydict()
    label_of = dict(zip(map(str, identities["source_label"]), identities["label"]))

    def pairs(name: str) -> set[tuple[int, int]]:
        found = set()
        for a, b in truth[name]:
            one, two = label_of[str(a)], label_of[str(b)]
            found.add((min(one, two), max(one, two)))
        return found

    rows = pq.read_table(conflicts / "pairs.parquet").to_pydict()
    merged = {
        (min(a, b), max(a, b))
        for a, b, verdict in zip(rows["a"], rows["b"], rows["verdict"])
        if verdict == "merge"
    }
    planted, alike = pairs("conflicts"), pairs("lookalikes")
    return {
        "conflicts_found": len(merged & planted),
        "conflicts_wrong": len(merged - planted),
        "lookalikes_planted": len(alike),
        "lookalikes_merged": len(merged & alike),
    }


def _untrained(run: Path) -> float:
    """Return the accuracy that the run logged before its first step."""
    for line in (run / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "verification" and entry["step"] == 0:
            return float(entry["accuracy"])
    raise AssertionError("no verification before the first step in the log")


def _table(s: results.Demo) -> str:
    rows = [
        ("images in", f"{s.images_in}"),
        ("images written / quarantined", f"{s.images_written} / {s.images_quarantined}"),
        ("identities as labelled", f"{s.identities}"),
        ("identities after merging", f"{s.identities_after_merge}"),
        (
            "conflicts planted / found / wrong",
            f"{s.conflicts_planted} / {s.conflicts_found} / {s.conflicts_wrong}",
        ),
        (
            "look-alikes planted / merged",
            f"{s.lookalikes_planted} / {s.lookalikes_merged}",
        ),
        ("accuracy, untrained net", f"{100 * s.accuracy_untrained:.2f} %"),
        ("accuracy, first model", f"{100 * s.accuracy_first:.2f} %"),
        (
            "accuracy, final model (ONNX)",
            f"{100 * s.accuracy_final:.2f} +- {100 * s.accuracy_final_std:.2f} %",
        ),
        ("training ranks", f"{s.ranks}"),
        ("wall time", f"{s.seconds_total:.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = ["", "Results, on identities the net has never seen:", ""]
    lines += [f"  {name:<{width}}  {value}" for name, value in rows]
    lines += ["", "Where things are:"]
    lines += [f"  {name:<{width}}  {path}" for name, path in s.paths.items()]
    lines += [
        "",
        "Next, on real data:",
        "  glint shard /data/glint360k/train.rec /data/g360k",
        "  glint train glint360k_r50_pfc01 --set data.path=/data/g360k --nproc 8 --out runs/r50",
    ]
    return "\n".join(lines)
