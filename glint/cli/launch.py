"""`glint launch`: a job script for many machines, printed."""

from __future__ import annotations

import os
import re
import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import console

if TYPE_CHECKING:
    from glint.results import models as results

TIME = re.compile(r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}")  # as sbatch reads it


class Kind(str, Enum):
    """What a cluster takes."""

    slurm = "slurm"
    k8s = "k8s"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("launch")(launch)


def launch(
    kind: Kind = typer.Argument(..., help="slurm: a script for sbatch; k8s: an indexed Job."),
    recipe: str = typer.Argument(..., help="A recipe: a .toml file or a name from `glint ls`."),
    nodes: int = typer.Option(1, "--nodes", min=1, help="Machines."),
    gpus: int = typer.Option(8, "--gpus", min=1, help="GPUs per machine, one rank each."),
    out: Path | None = typer.Option(
        None, "--out", help="The folder of the run, shared by all machines."
    ),
    change: list[str] = console.SET,
    time: str = typer.Option("24:00:00", "--time", help="Time limit for Slurm."),
    image: str = typer.Option("glint:latest", "--image", help="Container image for Kubernetes."),
    print_: bool = typer.Option(True, "--print", help="Print the job (it is never submitted)."),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Print a multi-node job for a recipe; it saves when preempted and resumes when requeued."""

    def work() -> results.Launch:
        from glint.errors import UsageError
        from glint.recipes import shelf
        from glint.recipes.load import load
        from glint.results import models as results
        from glint.train.recipe import Recipe

        load(shelf.find("train", recipe), Recipe, change)
        if not TIME.fullmatch(time):
            raise UsageError(
                "GL0002",
                f"expected a time such as 24:00:00 or 2-12, found {time!r}",
                where="--time",
            )
        folder = out or Path("runs") / Path(recipe).stem
        command = ["glint", "train", recipe, "--out", str(folder)]
        for value in change:
            command += ["--set", value]
        name = "glint-" + "".join(
            c if c.isascii() and c.isalnum() else "-" for c in Path(recipe).stem.lower()
        ).strip("-")
        made = slurm if kind is Kind.slurm else k8s
        job = made(name[:50].rstrip("-"), command, nodes, gpus, time if made is slurm else image)
        return results.Launch(kind=kind.value, ranks=nodes * gpus, job=job)

    console.run(
        work,
        as_json,
        debug=debug,
        say=lambda result: str(result.job).rstrip() if print_ else "",
    )


def _shell(command: list[str]) -> str:
    """Write a command as bash takes it back, whatever is in its words; all of it printable."""
    return " ".join(shlex.quote(word) if word.isprintable() else _ansi(word) for word in command)


def _ansi(word: str) -> str:
    plain = (
        chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(word)
    )
    return f"$'{''.join(plain)}'"


def _yaml(text: str) -> str:
    """Write a text as YAML takes it back: in double quotes, with what is not printable escaped."""
    safe = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(safe)}"'


def slurm(name: str, command: list[str], nodes: int, gpus: int, time: str) -> str:
    """Return a script for sbatch: a task per GPU, requeued when the run exits with 75."""
    return f"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
# Five minutes before the limit, and on preemption, every rank gets a signal, saves and leaves with
# 75; the job is queued again and continues. The folder must be one that all machines see.
srun --kill-on-bad-exit=1 {_shell(command)}
code=$?
if [ $code -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


def k8s(name: str, command: list[str], nodes: int, gpus: int, image: str) -> str:
    """Return an indexed Job and the headless service through which its pods connect.

    Kubernetes itself reads `$(NAME)` and `$$` in arguments: a dollar of the command is doubled.
    """
    inner = _shell(command).replace("$", "$$") + f" --nproc {gpus}"
    if nodes > 1:
        inner += (
            f" --nnodes {nodes} --node-rank $JOB_COMPLETION_INDEX --master {name}-0.{name}:29400"
        )
    return f"""apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None
  selector:
    job-name: {name}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {nodes}
  parallelism: {nodes}
  backoffLimit: {10 * nodes}
  podFailurePolicy:
    rules:
    - action: Ignore            # stopped with its state saved: starts again, and goes on
      onExitCodes:
        containerName: train
        operator: In
        values: [75]
    - action: FailJob           # mistakes that another try would repeat
      onExitCodes:
        containerName: train
        operator: In
        values: [2, 3, 7, 8, 9]
  template:
    spec:
      restartPolicy: Never
      subdomain: {name}
      terminationGracePeriodSeconds: 300
      containers:
      - name: train
        image: {_yaml(image)}
        command: ["/bin/bash", "-c"]
        args:
        - {_yaml(f"exec {inner}")}
        resources:
          limits:
            nvidia.com/gpu: {gpus}
        volumeMounts:
        - name: shared
          mountPath: /shared
      volumes:
      - name: shared            # datasets and runs: a volume that all pods can write
        persistentVolumeClaim:
          claimName: shared
"""
