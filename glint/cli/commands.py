"""The list of commands. Adding one is a module in this folder, and its lines here."""

from __future__ import annotations

import importlib

import typer

# Each module has `register(app)`, and imports nothing heavy at its top.
MODULES: tuple[str, ...] = (
    "demo", "doctor", "run", "shard", "align", "synth", "look", "verify", "reshard", "merge",
    "drop", "labels", "embed", "conflicts", "cluster", "quality", "coreset", "balance", "recipes",
    "plan", "train", "tune", "launch", "report", "eval", "bench", "split", "pack", "export",
    "import_", "card", "hub",
)  # fmt: skip

# The headings of `glint --help`, and the commands below each.
HEADINGS: dict[str, tuple[str, ...]] = {
    "Start": ("demo", "doctor", "run"),
    "Data": (
        "shard", "align", "synth", "info", "look", "verify", "reshard", "merge", "drop", "labels",
    ),
    "Clean": ("embed", "dedup-conflicts", "cluster", "quality", "coreset", "balance"),
    "Train": ("ls", "cp", "cat", "validate", "plan", "train", "tune", "launch", "report"),
    "Measure": ("eval", "bench", "split", "pack"),
    "Share": ("export", "import", "card", "push", "pull"),
}  # fmt: skip

# The example at the end of each command's help.
EXAMPLES: dict[str, str] = {
    "demo": "glint demo demo --seed 1",
    "doctor": "glint doctor",
    "run": "glint run photos.toml",
    "shard": "glint shard faces_emore/train.rec data",
    "align": "glint align photographs data --detector scrfd.onnx",
    "synth": "glint synth world --identities 300 --conflicts 12 --seed 1",
    "info": "glint info data --duplicates",
    "look": "glint look data",
    "verify": "glint verify data --deep",
    "reshard": "glint reshard data coarse --samples-per-shard 50000",
    "merge": "glint merge faces_a faces_b both",
    "drop": "glint drop data --id label:17 --reason 'asked to be taken out'",
    "labels": "glint labels data --undo",
    "embed": "glint embed data --model r50.onnx --out emb",
    "dedup-conflicts": "glint dedup-conflicts data --embeddings emb --out conflicts",
    "dedup-conflicts find": "glint dedup-conflicts find data --embeddings emb --out conflicts",
    "dedup-conflicts review": "glint dedup-conflicts review conflicts",
    "dedup-conflicts apply": "glint dedup-conflicts apply conflicts --dry-run",
    "dedup-conflicts undo": "glint dedup-conflicts undo conflicts",
    "cluster": "glint cluster emb --out clusters",
    "cluster find": "glint cluster find emb --out clusters",
    "cluster apply": "glint cluster apply clusters data",
    "cluster undo": "glint cluster undo clusters data",
    "quality": "glint quality data --embeddings emb --out quality",
    "coreset": "glint coreset data --embeddings emb --out coreset --keep-ratio 0.7",
    "balance": "glint balance data --out balanced --cap 200",
    "ls": "glint ls train",
    "cp": "glint cp glint360k_r50_pfc01 my.toml",
    "cat": "glint cat glint360k_r50_pfc01",
    "validate": "glint validate my.toml --set optim.lr=0.05",
    "plan": "glint plan --classes 10000000 --world 8 --rate 0.1",
    "plan head": "glint plan head --classes 10000000 --world 8 --rate 0.1",
    "plan data": "glint plan data --images 42e6 --identities 2e6 --machines 4",
    "train": "glint train my.toml --set data.path=data --nproc 8 --out runs/r50",
    "tune": "glint tune weights.pt data --backbone r50 --out tuned",
    "launch": "glint launch slurm my.toml --nodes 4 --out runs/r50 > job.sh",
    "report": "glint report runs/r50",
    "eval": "glint eval pairs lfw.bin --model runs/r50",
    "eval pairs": "glint eval pairs lfw.bin cfp_fp.bin --model r50.onnx",
    "eval all-pairs": "glint eval all-pairs data --embeddings emb",
    "eval ijb": "glint eval ijb IJBC --embeddings rows.npy",
    "eval identify": "glint eval identify probes --embeddings emb \\\n"
    "      --distractors others --distractor-embeddings emb_others",
    "bench": "glint bench r50.onnx runs/r50 --sets tests",
    "split": "glint split data heldout --people 500",
    "pack": "glint pack lfw pairs.txt lfw.bin",
    "export": "glint export runs/r50 r50.onnx",
    "import": "glint import backbone.pt imported --backbone r50",
    "card": "glint card data",
    "push": "glint push r50.onnx owner/r50",
    "pull": "glint pull owner/r50 r50",
}


def register(app: typer.Typer) -> None:
    """Add every command to `app`, with its example."""
    for name in MODULES:
        importlib.import_module(f"glint.cli.{name}").register(app)
    _show_examples(app, "")


def _show_examples(app: typer.Typer, before: str) -> None:
    for one in app.registered_commands:
        one.epilog = _epilog(f"{before}{one.name}")
    for group in app.registered_groups:
        group.epilog = _epilog(str(group.name))
        if group.typer_instance is not None:
            _show_examples(group.typer_instance, f"{group.name} ")


def _epilog(name: str) -> str | None:
    return f"\b\nExample:\n  {EXAMPLES[name]}" if name in EXAMPLES else None
