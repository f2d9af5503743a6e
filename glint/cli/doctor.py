"""`glint doctor`: what this machine has, and what is missing for which command.

Every import is tried in a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import glint
from glint.cli import console
from glint.dist.host import ram

if TYPE_CHECKING:
    from glint.results import models as results


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(as_json: bool = console.JSON, debug: bool = console.DEBUG) -> None:
    """Print what is installed here, and what does not work."""
    found: list[results.Doctor] = []

    def look() -> results.Doctor:
        found.append(examine())
        return found[0]

    console.run(look, as_json, debug=debug, say=_say)
    if found and found[0].problems:
        raise SystemExit(6)


def _say(found: results.Doctor) -> str:
    ram, gib = found.ram, 2.0**30
    lines = [
        f"glint {found.glint}, Python {found.python}, {found.system}, "
        f"{found.cores} cores, {ram['available'] / gib:.1f} of {ram['total'] / gib:.1f} GiB "
        f"RAM free, {found.disk['free'] / gib:.1f} GiB free in {found.disk['path']}"
    ]
    for part in found.parts:
        state = f"{part.version:<14} ok" if part.works else f"{part.version or '-':<14} "
        if not part.works:
            state += "broken" if part.version else "absent"
        lines.append(f"  {part.name:<12} {state:<22} {part.note}".rstrip())
    for folder, packs in found.detectors.items():
        there = ", ".join(packs) or "none; glint align --detector takes an ONNX file anywhere"
        lines.append(f"  detectors    packs in {folder}: {there}")
    lines += [f"problem: {problem}" for problem in found.problems]
    return "\n".join([*lines, "No problems found."] if not found.problems else lines)


@dataclass(frozen=True)
class Part:
    """A dependency: import name, distributions that provide it, the extra, what needs it."""

    name: str
    distributions: tuple[str, ...]
    extra: str = ""  # "" = required
    use: str = ""


PARTS = (
    Part("numpy", ("numpy",)),
    Part("torch", ("torch",)),
    Part("webdataset", ("webdataset",)),
    Part("pyarrow", ("pyarrow",)),
    Part("simplejpeg", ("simplejpeg",)),
    Part("PIL", ("pillow",)),
    Part("xxhash", ("xxhash",)),
    Part("safetensors", ("safetensors",)),
    Part("scipy", ("scipy",)),
    Part("pydantic", ("pydantic",)),
    Part("jinja2", ("jinja2",)),
    Part(
        "faiss",
        ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"),
        "cpu",
        "without it dedup-conflicts searches with torch: same answers",
    ),
    Part(
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        "export",
        "align, embed and eval with an ONNX model, the check after export",
    ),
    Part("onnx", ("onnx",), "export", "glint export and align"),
    Part(
        "insightface",
        ("insightface",),
        "insightface",
        "embed and eval through insightface's model zoo",
    ),
    Part("tensorboard", ("tensorboard",), "tensorboard", "curves in TensorBoard"),
)

# Runs in a child, so that an import that aborts or prints is an answer and not an accident.
PROBE = """
import importlib, json, sys
name = sys.argv[1]
module = importlib.import_module(name)
note = ""
if name == "torch":
    cuda = module.cuda.is_available()
    cards = [module.cuda.get_device_name(i) for i in range(module.cuda.device_count())] * cuda
    note = ", ".join(cards) if cards else "no CUDA device: training uses gloo on the CPU"
if name == "faiss":
    gpus = getattr(module, "get_num_gpus", lambda: 0)()
    note = f"{gpus} GPUs" if gpus else "CPU"
print(json.dumps({"note": note}))
"""


def examine() -> results.Doctor:
    """Describe the machine and every dependency; `problems` says what does not work."""
    from concurrent.futures import ThreadPoolExecutor

    from glint.models.detector import PACKS, packs
    from glint.results import models as results

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(_part, PARTS))
    problems = [_problem(part, found) for part, found in zip(PARTS, parts)]
    here = Path.cwd()
    return results.Doctor(
        glint=glint.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        cores=cores(),
        ram=ram(),
        disk={"path": str(here), "free": shutil.disk_usage(here).free},
        parts=parts,
        detectors={str(PACKS.expanduser()): [one.name for one in packs()]},
        problems=[problem for problem in [*problems, _two_faiss()] if problem],
    )


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def probe(name: str, python: Sequence[str] = (sys.executable,)) -> tuple[bool, str]:
    """Import a module in a child process; return (whether it works, a note or the last error)."""
    try:
        done = subprocess.run(
            [*python, "-c", PROBE, name], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return False, "import took over 120 s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return False, lines[-1] if lines else f"import ended with code {done.returncode}"
    return True, str(json.loads(done.stdout.strip().splitlines()[-1])["note"])


def _part(part: Part) -> results.Dependency:
    from glint.results import models as results

    version = next((found for found in map(_version, part.distributions) if found), "")
    works, note = probe(part.name) if version else (False, "")
    if not version:
        note = f"{part.use}; pip install 'glint-faces[{part.extra}]'" if part.extra else "required"
    return results.Dependency(name=part.name, version=version, works=works, note=note)


def _problem(part: Part, found: results.Dependency) -> str:
    if found.works or (part.extra and not found.version):
        return ""
    if not found.version:
        return f"{part.name} is required and not installed"
    return f"{part.name} {found.version} is installed and cannot be imported: {found.note}"


def _two_faiss() -> str:
    both = [name for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12") if _version(name)]
    if len(both) < 2:
        return ""
    return f"{' and '.join(both)} share one folder: uninstall all of them, then install one"


def _version(distribution: str) -> str:
    import importlib.metadata  # slow, and only this command needs it

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
