"""`glint launch` prints jobs that a cluster would take; `--nnodes` joins machines."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glint.cli import launch
from glint.dist.launch import Nodes
from glint.errors import UsageError
from glint.models import stored


def test_a_slurm_job(glint: Callable[..., Any]) -> None:
    job = glint("launch", "slurm", "synth_tiny", "--nodes", "4", "--gpus", "2", "--out", "a b")
    assert job.startswith("#!/bin/bash\n#SBATCH --job-name=glint-synth-tiny\n")
    assert "--nodes=4" in job and "--ntasks-per-node=2" in job and "--requeue" in job
    step = "srun --kill-on-bad-exit=1 --cpus-per-task=8 glint train synth_tiny --out 'a b'"
    assert step in job
    done = subprocess.run(["bash", "-n"], input=job, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


# of sbatch's manual, version 23.11: the options a script of ours may hold
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time",
          "requeue", "open-mode", "signal", "partition", "account"}  # fmt: skip


def test_a_slurm_job_asks_for_what_a_cluster_wants_to_know() -> None:
    job = launch.slurm("glint-x", ["glint", "train", "r"], 2, 4, 6, time="1-0", partition="gpu",
                       account="faces", image="a/b:c d")  # fmt: skip
    options = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", job, re.MULTILINE)
    assert {name for name, _ in options} == SBATCH and len(options) == len(SBATCH)
    assert len(options) == job.count("#SBATCH")
    told = dict(options)
    assert told["partition"] == "gpu" and told["account"] == "faces"
    assert told["cpus-per-task"] == "6" and told["ntasks-per-node"] == told["gpus-per-node"] == "4"
    body = [line for line in job.splitlines() if line and not line.startswith("#")]
    assert body[0].startswith("srun ") and "--container-image=a/b:c d" in argv(
        body[0].replace("srun ", "run ", 1)
    )


def fields(known: dict[str, Any], need: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": known, "required": need, "additionalProperties": False}


def items(known: dict[str, Any], need: list[str]) -> dict[str, Any]:
    return {"type": "array", "items": fields(known, need), "minItems": 1}


# The fields of Kubernetes' API 1.31 that a job of ours may hold, and no other: a word that the API
# server does not know is dropped there without a sound, or refused.
TEXT, COUNT, NAME = {"type": "string"}, {"type": "integer", "minimum": 1}, {
    "type": "string", "pattern": "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"}  # fmt: skip
META = fields({"name": NAME}, ["name"])
SERVICE = fields(
    {"apiVersion": {"const": "v1"}, "kind": {"const": "Service"}, "metadata": META,
     "spec": fields({"clusterIP": {"const": "None"}, "selector": fields({"job-name": NAME}, [])},
                    ["clusterIP", "selector"])},
    ["apiVersion", "kind", "metadata", "spec"],
)  # fmt: skip
VOLUME = {
    "name": NAME,
    "persistentVolumeClaim": fields({"claimName": NAME}, ["claimName"]),
    "emptyDir": fields({"medium": {"const": "Memory"},
                        "sizeLimit": {"type": "string", "pattern": "^[0-9]+[KMGT]i$"}}, []),
}  # fmt: skip
BOX = {
    "name": NAME, "image": TEXT, "workingDir": TEXT,
    "command": {"type": "array", "items": TEXT}, "args": {"type": "array", "items": TEXT},
    "resources": fields({"requests": fields({"cpu": COUNT}, []),
                         "limits": fields({"nvidia.com/gpu": COUNT}, ["nvidia.com/gpu"])}, []),
    "volumeMounts": items({"name": NAME, "mountPath": TEXT}, ["name", "mountPath"]),
}  # fmt: skip
POD = fields(
    {"restartPolicy": {"const": "Never"}, "subdomain": NAME, "containers": items(BOX, ["name"]),
     "terminationGracePeriodSeconds": COUNT, "volumes": items(VOLUME, ["name"])},
    ["restartPolicy", "containers"],
)  # fmt: skip
RULE = {
    "action": {"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
    "onExitCodes": fields({"containerName": NAME, "operator": {"enum": ["In", "NotIn"]},
                           "values": {"type": "array", "items": COUNT, "uniqueItems": True}},
                          ["operator", "values"]),
}  # fmt: skip
JOB = fields(
    {"apiVersion": {"const": "batch/v1"}, "kind": {"const": "Job"}, "metadata": META,
     "spec": fields(
         {"completionMode": {"const": "Indexed"}, "completions": COUNT, "parallelism": COUNT,
          "backoffLimit": COUNT, "template": fields({"spec": POD}, ["spec"]),
          "podFailurePolicy": fields({"rules": items(RULE, ["action"])}, ["rules"])},
         ["template", "completions", "parallelism"])},
    ["apiVersion", "kind", "metadata", "spec"],
)  # fmt: skip


def test_a_kubernetes_job_has_fields_that_the_api_has() -> None:
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    text = launch.k8s("glint-x", ["glint", "train", "r"], 2, 4, 6, image="glint:1")
    service, job = yaml.safe_load_all(text)
    jsonschema.validate(service, SERVICE)
    jsonschema.validate(job, JOB)
    pod = job["spec"]["template"]["spec"]
    (box,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in box["volumeMounts"]}
    assert {one["name"] for one in pod["volumes"]} == {*mounts}
    # without them NCCL has 64 MB of shared memory, and checkpoints die with the pod
    assert mounts["shm"] == "/dev/shm" and box["workingDir"] == mounts["shared"] == "/shared"
    assert box["resources"]["requests"]["cpu"] == 24
    for wrong in ("imagePullPolice: Always", "workdir: /shared"):
        spoilt = yaml.safe_load(text.split("---")[1].replace("workingDir: /shared", wrong))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, JOB)


def test_what_a_job_is_made_of_is_quoted_or_refused(glint: Callable[..., Any]) -> None:
    job = glint("launch", "k8s", "synth_tiny", "--image", 'x"y: z')
    assert '        image: "x\\U00000022y: z"\n' in job
    for option in ("--time", "--partition", "--account"):
        assert "GL0002" in glint("launch", "slurm", "synth_tiny", option, "1; rm -rf /", code=2)


def test_a_slurm_job_is_requeued_when_the_run_stopped(
    glint: Callable[..., Any], tmp_path: Path
) -> None:
    job = glint("launch", "slurm", "synth_tiny")
    (tmp_path / "srun").write_text("#!/bin/bash\nexit $WITH\n")
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@"\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    for code, said in (("75", "requeue 7\n"), ("9", ""), ("0", "")):
        done = subprocess.run(
            ["bash"], input=job, text=True, capture_output=True, env={**env, "WITH": code}
        )
        assert (done.returncode, done.stdout) == (int(code), said)


def test_a_kubernetes_job(glint: Callable[..., Any]) -> None:
    yaml = pytest.importorskip("yaml")
    told = glint("launch", "k8s", "synth_tiny", "--nodes", "3", "--gpus", "2", "--json")
    assert told["schema"] == "glint/launch-result@1" and told["ranks"] == 6
    service, job = yaml.safe_load_all(told["job"])
    assert service["spec"]["clusterIP"] == "None"
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 3
    pod = spec["template"]["spec"]
    (said,) = pod["containers"][0]["args"]
    name = job["metadata"]["name"]
    assert f"--nproc 2 --nnodes 3 --node-rank $JOB_COMPLETION_INDEX --master {name}-0." in said
    assert pod["subdomain"] == service["metadata"]["name"]


def test_a_recipe_with_mistakes_makes_no_job(glint: Callable[..., Any]) -> None:
    err = glint("launch", "slurm", "synth_tiny", "--set", "optim.lrr=1", code=2)
    assert "did you mean optim.lr" in err


def test_where_machines_meet_is_read() -> None:
    assert Nodes.of(1, 0, "") == Nodes()
    assert Nodes.of(2, 1, "host:29400") == Nodes(2, 1, "host", 29400)
    assert Nodes.of(2, 1, "[::1]:29400").host == "::1"
    with pytest.raises(UsageError, match="expected 0 to 1, found 2"):
        Nodes.of(2, 2, "host:1")
    for master in ("", "host", "host:", ":1", "host:x", "host:70000"):
        with pytest.raises(UsageError, match="expected HOST:PORT"):
            Nodes.of(2, 0, master)


def left(run: Path) -> tuple[list[float], str]:
    """Give the losses of a run and the digest of its weights."""
    entries = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    losses = [entry["loss"] for entry in entries if entry["kind"] == "step"]
    assert len(losses) == 2
    return losses, stored.load(run).digest


@pytest.mark.slow
def test_two_launchers_of_one_rank_are_one_run_of_two(
    small: Any, tmp_path: Path, glint: Callable[..., Any]
) -> None:
    common = ["synth_tiny", "--set", f"data.path={small.data}", "--set", "schedule.max_steps=2"]
    common += ["--set", "data.batch=16", "--set", "run.log_every=1", "--json"]
    glint("train", *common, "--nproc", "2", "--out", tmp_path / "local")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    args = [sys.executable, "-m", "glint", "train", *common, "--nnodes", "2"]
    args += ["--master", f"127.0.0.1:{port}", "--out", str(tmp_path / "two")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    both = [
        subprocess.Popen([*args, "--node-rank", str(node)], stdout=subprocess.PIPE, env=env)
        for node in range(2)
    ]
    said = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert json.loads(said[0])["world"] == 2 and said[1] == b""
    assert left(tmp_path / "two") == left(tmp_path / "local")


WORDS = [
    "a #b", "key: value", "two\nlines", "$$ $(HOME) $HOME `id` \\", "'\"", "- x", "{a: [b]}",
    "%!&*|>@", "\x1b[5m\x85\u2028\ufeff", "\u738b\u5c0f\u660e \U0001f600", "",
    "tab\there", "--- \n...", "\udcff",
]  # fmt: skip


def argv(script: str) -> list[str]:
    """Give the words that bash makes of a command line."""
    code = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    line = f'run() {{ "{sys.executable}" -c "$CODE" "$@"; }}; {script}'
    env = {**os.environ, "CODE": code, "JOB_COMPLETION_INDEX": "1"}
    done = subprocess.run(
        ["bash", "-c", os.fsencode(line)], capture_output=True, check=True, env=env
    )
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")]


def by_kubernetes(text: str) -> str:
    """Expand as Kubernetes does: $$ is $, $(NAME) a variable, any other $ itself."""
    return re.sub(r"\$\$|\$\(\w*\)", lambda m: "$" if m[0] == "$$" else "EXPANDED", text)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_runs_the_words_that_were_given(nodes: int) -> None:
    yaml = pytest.importorskip("yaml")
    command = ["glint", "train", *WORDS]
    script = launch.slurm("glint-x", command, nodes, 2, 4, time="1:00")
    (line,) = [one for one in script.splitlines() if one.startswith("srun ")]
    assert argv(line.replace("srun --kill-on-bad-exit=1 --cpus-per-task=4", "run", 1)) == command
    assert line.isprintable()
    text = launch.k8s("glint-x", command, nodes, 2, 4, image="x\ny: $$ #z")
    assert all(one.isprintable() for one in text.splitlines())
    _, job = yaml.safe_load_all(text)
    (box,) = job["spec"]["template"]["spec"]["containers"]
    assert box["image"] == "x\ny: $$ #z"
    (said,) = map(by_kubernetes, box["args"])
    found = argv(said.replace("exec", "run", 1))
    assert found[: len(command) + 2] == [*command, "--nproc", "2"]
    assert len(found) == len(command) + (2 if nodes == 1 else 8)
    assert nodes == 1 or found[len(command) + 5] == "1"


def test_a_job_of_a_recipe_with_such_a_name(glint: Callable[..., Any], tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    recipe = tmp_path / "\u00e9 a: #b\n$$x.toml"
    recipe.write_text(glint("cat", "synth_tiny"))
    out = str(tmp_path / "run #1: a\nb")
    given = ["launch", "k8s", str(recipe), "--out", out, "--set", "data.path=a #b: $$c"]
    service, job = yaml.safe_load_all(glint(*given))
    name = service["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and job["metadata"]["name"] == name
    (box,) = job["spec"]["template"]["spec"]["containers"]
    (said,) = map(by_kubernetes, box["args"])
    wanted = ["glint", "train", str(recipe), "--out", out, "--set", "data.path=a #b: $$c"]
    assert argv(said.replace("exec", "run", 1)) == [*wanted, "--nproc", "8"]
