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

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]*")  # a partition or an account
TIME = re.compile(r"[0-9]+(:[0-9]+){0,2}|[0-9]+-[0-9]+(:[0-9]+){0,2}")  # as sbatch reads it


class Kind(str, Enum):
    """What a cluster takes."""

    slurm = "slurm"
    k8s = "k8s"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("launch")(launch)


def launch(
    kind: Kind = typer.Argument(
        ..., metavar="KIND", help="slurm: a script for sbatch; k8s: an indexed Job."
    ),
    recipe: str = console.RECIPE,
    nodes: int = typer.Option(1, "--nodes", min=1, help="Machines."),
    gpus: int = typer.Option(8, "--gpus", min=1, help="GPUs per machine, one rank each."),
    out: Path | None = typer.Option(
        None, "--out", help="The folder of the run, shared by all machines."
    ),
    change: list[str] = console.SET,
    time: str = typer.Option("24:00:00", "--time", help="Time limit for Slurm."),
    cpus: int = typer.Option(8, "--cpus", min=1, help="Cores per GPU: a rank's loaders."),
    partition: str = typer.Option("", "--partition", help="Partition for Slurm."),
    account: str = typer.Option("", "--account", help="Account for Slurm."),
    image: str = typer.Option(
        "", "--image", help="Container image: Kubernetes' (glint:latest), or Slurm's by pyxis."
    ),
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
        for name, word in (("--partition", partition), ("--account", account)):
            if word and not WORD.fullmatch(word):
                raise UsageError("GL0002", f"expected a name, found {word!r}", where=name)
        folder = out or Path("runs") / Path(recipe).stem
        command = ["glint", "train", recipe, "--out", str(folder)]
        for value in change:
            command += ["--set", value]
        name = "glint-" + "".join(
            c if c.isascii() and c.isalnum() else "-" for c in Path(recipe).stem.lower()
        ).strip("-")
        shape = name[:50].rstrip("-"), command, nodes, gpus, cpus
        if kind is Kind.slurm:
            job = slurm(*shape, time=time, partition=partition, account=account, image=image)
        else:
            job = k8s(*shape, image=image or "glint:latest")
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


def slurm(
    name: str, command: list[str], nodes: int, gpus: int, cpus: int, *, time: str,
    partition: str = "", account: str = "", image: str = "",
) -> str:  # fmt: skip
    """Return a script for sbatch: a task per GPU, requeued when the run exits with 75."""
    more = f"#SBATCH --partition={partition}\n" if partition else ""
    more += f"#SBATCH --account={account}\n" if account else ""
    # srun does not take the job's cores per task over
    step = f"srun --kill-on-bad-exit=1 --cpus-per-task={cpus}"
    if image:
        here = '--container-mounts="$PWD:$PWD" --container-workdir="$PWD"'
        step += f" {_shell([f'--container-image={image}'])} {here}"
    return f"""#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
{more}#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
# Five minutes before the limit, and on preemption, every rank gets a signal, saves and leaves with
# 75; the job is queued again and continues. The folder must be one that all machines see.
{step} {_shell(command)}
code=$?
if [ $code -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


def k8s(name: str, command: list[str], nodes: int, gpus: int, cpus: int, *, image: str) -> str:
    """Return an indexed Job and the headless service through which its pods connect.

    Pods work in the shared volume: a relative path, of a dataset or of the run, is there.

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
        workingDir: /shared
        command: ["/bin/bash", "-c"]
        args:
        - {_yaml(f"exec {inner}")}
        resources:
          requests:
            cpu: {cpus * gpus}
          limits:
            nvidia.com/gpu: {gpus}
        volumeMounts:
        - name: shared
          mountPath: /shared
        - name: shm
          mountPath: /dev/shm
      volumes:
      - name: shm               # NCCL's, between the GPUs of a machine; a pod has 64 MB otherwise
        emptyDir:
          medium: Memory
          sizeLimit: 16Gi
      - name: shared            # datasets and runs: a volume that all pods can write
        persistentVolumeClaim:
          claimName: shared
"""
