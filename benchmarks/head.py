"""The head against the reference Partial FC: step time, GEMM floor, peak memory, bf16's error.

    python benchmarks/head.py --quick
    python benchmarks/head.py --peer CHECKOUT/recognition/arcface_torch
    python benchmarks/head.py --ten-million [--classes N]

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short. The
reference is the peer's own partial_fc_v2.py with `--peer` (moved to the CPU in memory: `.cuda()`
and autocast taken out), otherwise our dense code of its semantics: dense gradient, torch's SGD over
the whole table, materialised logits. Each case is a process of its own, one after another, in
rounds that alternate; times are medians of process CPU time on one thread. The floor is the three
matrix products of a step (cosines, feature gradient, centre gradient) in the same precision on a
block of rows in cache, timed between the steps of the same process.
Memory is the peak resident size above that before the head is made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BATCH, DIM, SCALE, MARGIN = 128, 512, 64.0, 0.4
LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4

# n batch, C classes, k rows that play, D embedding


# ---- cases, each in a process of its own -------------------------------------------------------


def memory(field: str) -> float:
    """Read a field of /proc/self/status in MiB: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field}")


def ported(folder: Path, name: str) -> types.ModuleType:
    """Load a module of the peer with its GPU calls taken out."""
    text = (folder / f"{name}.py").read_text()
    text = text.replace(".cuda()", "").replace(
        "torch.cuda.amp.autocast(self.fp16)", "__import__('contextlib').nullcontext()"
    )
    module = types.ModuleType(name)
    exec(compile(text, str(folder / f"{name}.py"), "exec"), module.__dict__)
    return module


def peer_step(case: dict[str, Any]) -> Any:
    """Give a step of the peer's head and its optimiser."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    folder = Path(case["peer"])
    loss = ported(folder, "losses").CombinedMarginLoss(SCALE, 1.0, 0.0, MARGIN)
    head = ported(folder, "partial_fc_v2").PartialFC_V2(loss, DIM, case["classes"], case["rate"])
    optimiser = torch.optim.SGD(head.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    head.train()

    def step(feature_nD: Any, label_n: Any, number: int) -> None:
        head(feature_nD, label_n).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def dense_step(case: dict[str, Any]) -> Any:
    """Give a step of the peer's semantics in our own plain code."""
    import torch
    import torch.nn.functional as F

    weight_CD = torch.nn.Parameter(torch.normal(0, 0.01, (case["classes"], DIM)))
    optimiser = torch.optim.SGD([weight_CD], lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    k = int(case["rate"] * case["classes"])

    def step(feature_nD: Any, label_n: Any, number: int) -> None:
        with torch.no_grad():
            score_C = torch.rand(case["classes"])
            score_C[label_n] = 2.0
            index_k = torch.topk(score_C, k)[1].sort()[0]
            target_n = torch.searchsorted(index_k, label_n)
        cosine_nk = F.linear(F.normalize(feature_nD), F.normalize(weight_CD[index_k])).clamp(-1, 1)
        margin_nk = torch.zeros_like(cosine_nk).scatter_(1, target_n[:, None], MARGIN)
        F.cross_entropy(SCALE * (cosine_nk - margin_nk), target_n).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def glint_step(case: dict[str, Any]) -> Any:
    """Give a step of glint's head."""
    from glint.nn.heads.options import PartialFCOptions
    from glint.nn.heads.partial_fc import PartialFC
    from glint.nn.margins import CosFace

    head = PartialFC(
        case["classes"],
        DIM,
        PartialFCOptions(
            scale=SCALE,
            rate=case["rate"],
            momentum=MOMENTUM,
            weight_decay=DECAY,
            **case["options"],
        ),
        margin=CosFace(MARGIN),
    )

    def step(feature_nD: Any, label_n: Any, number: int) -> None:
        head(feature_nD, label_n, step=number).backward()
        head.update(step=number, lr=LR)

    return step


def floor_step(case: dict[str, Any]) -> Any:
    """Give the three matrix products of a step, on rows that are in cache."""
    import torch

    kind = torch.bfloat16 if case["options"].get("gemm") == "bf16" else torch.float32
    k, block = int(case["rate"] * case["classes"]), 2048
    centre_bD, grad_bD = torch.randn(block, DIM).to(kind), torch.empty(block, DIM, dtype=kind)
    cosine_nb = torch.empty(BATCH, block, dtype=kind)
    unit_nD, pull_nD = torch.randn(BATCH, DIM).to(kind), torch.empty(BATCH, DIM, dtype=kind)

    def step() -> float:
        started = time.process_time()
        for _ in range(8):
            torch.mm(unit_nD, centre_bD.t(), out=cosine_nb)
            torch.mm(cosine_nb, centre_bD, out=pull_nD)
            torch.mm(cosine_nb.t(), unit_nD, out=grad_bD)
        return (time.process_time() - started) * k / (8 * block)

    return step


STEPS = {"peer": peer_step, "dense": dense_step, "glint": glint_step}


def child(case: dict[str, Any]) -> None:
    """Run one case and print its times and memory."""
    import torch

    torch.set_num_threads(case.get("threads", 1))
    torch.manual_seed(0)
    n = case.get("batch", BATCH)
    warm_nD = torch.randn(n, DIM, requires_grad=True)
    (warm_nD @ warm_nD.t()).sum().backward()  # loads what any step loads
    before = memory("VmRSS")
    step = STEPS[case["kind"]](case)
    cpu, wall, floor = [], [], []
    products = floor_step(case) if case["kind"] == "glint" else None
    for number in range(case["warm"] + case["steps"]):
        feature_nD = torch.randn(n, DIM).requires_grad_()
        label_n = torch.randint(0, case["classes"], (n,))
        at = time.process_time(), time.perf_counter()
        step(feature_nD, label_n, number)
        cpu.append(time.process_time() - at[0])
        wall.append(time.perf_counter() - at[1])
        if products is not None:
            floor.append(products())
    print(
        json.dumps(
            {
                "cpu": cpu[case["warm"] :],
                "wall": wall[case["warm"] :],
                "floor": floor,
                "memory": memory("VmHWM") - before,
                "base": before,
            }
        )
    )


def error_child(case: dict[str, Any]) -> None:
    """Print the relative error of loss and gradients against float64, per precision."""
    import torch

    from glint.nn.heads.options import PartialFCOptions
    from glint.nn.heads.partial_fc import PartialFC
    from glint.nn.margins import CosFace

    torch.set_num_threads(1)
    torch.manual_seed(0)
    label_n = torch.randint(0, case["classes"], (BATCH,))
    start = PartialFC(case["classes"], DIM, margin=CosFace(MARGIN), dtype=torch.float64)
    # features near their centres, as in the middle of training: cosines to them of about 0.6
    feature_nD = torch.nn.functional.normalize(start.weight[label_n]) + (
        1.3 * torch.nn.functional.normalize(torch.randn(BATCH, DIM, dtype=torch.float64))
    )
    found = {}
    for name, dtype, gemm in (
        ("float64", torch.float64, "float32"),
        ("float32", torch.float32, "float32"),
        ("bf16", torch.float32, "bf16"),
    ):
        head = PartialFC(
            case["classes"],
            DIM,
            PartialFCOptions(scale=SCALE, gemm=gemm),
            margin=CosFace(MARGIN),
            dtype=dtype,
        )
        leaf_nD = feature_nD.to(dtype).clone().requires_grad_()
        loss = head(leaf_nD, label_n, step=0)
        loss.backward()
        found[name] = [x.double() for x in (loss.detach(), leaf_nD.grad, head.gradient()[1])]
    print(
        json.dumps(
            {
                name: [
                    float((a - b).norm() / b.norm()) for a, b in zip(found[name], found["float64"])
                ]
                for name in ("float32", "bf16")
            }
        )
    )


def ten_million(case: dict[str, Any]) -> None:
    """Take real steps over a table of `classes` centres; the features' layer learns too."""
    import torch

    from glint.nn.heads.options import PartialFCOptions
    from glint.nn.heads.partial_fc import PartialFC
    from glint.nn.margins import CosFace

    torch.manual_seed(0)
    people, steps = 256, case["steps"]
    face_pD = torch.randn(people, DIM)
    label_p = torch.randint(0, case["classes"], (people,))
    started = time.perf_counter()
    head = PartialFC(
        case["classes"],
        DIM,
        PartialFCOptions(
            scale=SCALE,
            rate=case["rate"],
            rule=case["rule"],
            storage=case["storage"],
            gemm=case["gemm"],
        ),
        margin=CosFace(MARGIN),
    )
    made = time.perf_counter() - started
    layer = torch.nn.Linear(DIM, DIM, bias=False)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=MOMENTUM)
    losses, wall = [], []
    for number in range(steps):
        rows_n = torch.arange(number * BATCH, (number + 1) * BATCH) % people
        started = time.perf_counter()
        image_nD = face_pD[rows_n] + 0.5 * torch.randn(BATCH, DIM)
        loss = head(layer(image_nD), label_p[rows_n], step=number)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        head.update(step=number, lr=0.05)
        losses.append(loss.item())
        wall.append(time.perf_counter() - started)
        print(
            f"rate {case['rate']} step {number} loss {losses[-1]:.4f} {wall[-1]:.2f} s",
            file=sys.stderr,
        )
    print(json.dumps({"losses": losses, "wall": wall, "made": made, "peak": memory("VmHWM")}))


# ---- the parent: no torch, so that it holds no memory ------------------------------------------


def spawn(case: dict[str, Any], work: str = "case") -> dict[str, Any]:
    """Run a case in a child process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    if case.get("threads", 1) == 1:
        env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", work, json.dumps(case)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Figures:
    """Print figures, remember whether all hold, write them down."""

    def __init__(self, out: str, about: dict[str, Any]) -> None:
        self.out, self.lines, self.good = out, [about], True
        self.show(about)

    def add(self, figure: str, value: float, target: str, holds: bool | None, **more: Any) -> None:
        """Add a figure; holds None: there is no target."""
        line = {
            "figure": figure,
            "value": float(f"{value:.4g}"),
            "target": target,
            "holds": holds,
            **more,
        }
        self.good = self.good and holds is not False
        self.lines.append(line)
        self.show(line)

    def show(self, line: dict[str, Any]) -> None:
        """Print a line and keep the file as far as it is."""
        print(json.dumps(line), flush=True)
        if self.out:
            Path(self.out).write_text("".join(json.dumps(one) + "\n" for one in self.lines))


def compare(
    figures: Figures,
    name: str,
    classes: int,
    rate: float,
    peer: str,
    cases: dict[str, Any],
    targets: dict[str, tuple[float, float]],
    rounds: int,
    steps: int,
) -> None:
    """Time reference and glint in turns, then give ratios and memory.

    targets: case -> (least speed-up over the reference, most multiples of the floor), 0 = none.
    """
    shape = {"classes": classes, "rate": rate, "warm": 2, "steps": steps}
    runs: dict[str, dict[str, Any]] = {
        "reference": {**shape, "kind": "peer" if peer else "dense", "peer": peer}
    }
    for label, options in cases.items():
        runs[label] = {**shape, "kind": "glint", "options": options}
    cpu: dict[str, list[float]] = {label: [] for label in runs}
    wall: dict[str, list[float]] = {label: [] for label in runs}
    products: dict[str, list[float]] = {label: [] for label in runs}
    peak: dict[str, float] = {}
    for _ in range(rounds):
        for label, case in runs.items():
            result = spawn(case)
            cpu[label] += result["cpu"]
            wall[label] += result["wall"]
            products[label] += result["floor"]
            peak[label] = max(peak.get(label, 0.0), result["memory"])
    middle = {label: 1000 * statistics.median(times) for label, times in cpu.items()}
    clock = {label: 1000 * statistics.median(times) for label, times in wall.items()}
    for label, options in cases.items():
        gemm = options.get("gemm", "float32")
        faster, above = targets.get(label, (0, 0))
        ratio = middle["reference"] / middle[label]
        figures.add(
            f"{name} {label}: times as fast as the reference",
            ratio,
            f">= {faster}" if faster else "",
            ratio >= faster if faster else None,
            cpu_ms=round(middle[label], 1),
            reference_cpu_ms=round(middle["reference"], 1),
            wall_ratio=round(clock["reference"] / clock[label], 3),
        )
        floor = 1000 * statistics.median(products[label])
        figures.add(
            f"{name} {label}: times the {gemm} GEMM floor",
            middle[label] / floor,
            f"<= {above}" if above else "",
            middle[label] <= above * floor if above else None,
            floor_cpu_ms=round(floor, 1),
        )
        most = (0.3 if options["rule"] == "none" else 0.5) if faster else 0
        share = peak[label] / peak["reference"]
        figures.add(
            f"{name} {label}: peak memory over the reference's",
            share,
            f"<= {most}" if most else "",
            share <= most if most else None,
            mib=round(peak[label]),
            reference_mib=round(peak["reference"]),
        )


def about(peer: str) -> dict[str, Any]:
    """Say where and with what the figures were measured."""
    from importlib.metadata import version

    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    head = ""
    if peer:
        import hashlib

        head = hashlib.sha256((Path(peer) / "partial_fc_v2.py").read_bytes()).hexdigest()
    return {
        "benchmark": "head",
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": commit,
        "reference": "partial_fc_v2.py " + head[:16] if peer else "own dense code",
        "blas_settings": {k: v for k, v in os.environ.items() if "BLAS" in k or "MKL" in k},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peer", default="", help="a checkout of recognition/arcface_torch")
    parser.add_argument("--quick", action="store_true", help="a tenth of the classes, under 60 s")
    parser.add_argument("--ten-million", action="store_true", help="only real steps at 10,000,000")
    parser.add_argument("--classes", type=int, default=10_000_000, help="with --ten-million")
    parser.add_argument("--storage", default="float32", help="with --ten-million")
    parser.add_argument("--gemm", default="bf16", help="with --ten-million")
    parser.add_argument("--rule", default="none", help="with --ten-million")
    parser.add_argument("--steps", type=int, default=12, help="with --ten-million")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", default="", help="write the lines to this file too")
    options = parser.parse_args()
    if options.child:
        work = {"case": child, "error": error_child, "ten": ten_million}[options.child[0]]
        work(json.loads(options.child[1]))
        return
    peer = str(Path(options.peer).resolve()) if options.peer else ""
    figures = Figures(options.out, about(peer))
    if options.ten_million:
        real_steps(figures, options)
    else:
        ratios(figures, peer, options)
    raise SystemExit(0 if figures.good else 1)


def real_steps(figures: Figures, options: argparse.Namespace) -> None:
    """Take real steps at rates 0.1 and 0.01: the sampled loss must fall."""
    for rate in (0.1, 0.01):
        case = {
            "classes": options.classes,
            "rate": rate,
            "rule": options.rule,
            "storage": options.storage,
            "gemm": options.gemm,
            "steps": options.steps,
            "threads": 2,
        }
        result = spawn(case, "ten")
        first, last = result["losses"][0], result["losses"][-1]
        figures.add(
            f"{options.classes} classes, rate {rate}: last loss over first",
            last / first,
            "< 1",
            last < first,
            losses=[round(loss, 3) for loss in result["losses"]],
            step_wall_s=round(statistics.median(result["wall"]), 3),
            peak_rss_gib=round(result["peak"] / 1024, 2),
            made_in_s=round(result["made"]),
            rule=options.rule,
            storage=options.storage,
            gemm=options.gemm,
        )


def ratios(figures: Figures, peer: str, options: argparse.Namespace) -> None:
    """Compare with the reference, then memory of the full softmax and the error of bf16."""
    scale, rounds, steps = (10, 1, 5) if options.quick else (1, options.rounds, 5)
    exact, none = {"rule": "dense_exact"}, {"rule": "none"}
    half = {"gemm": "bf16"}
    cases = {
        "dense_exact": exact,
        "none": none,
        "dense_exact bf16": {**exact, **half},
        "none bf16": {**none, **half},
    }
    targets = {
        "dense_exact": (3, 1.5),
        "none": (3, 1.5),
        "dense_exact bf16": (5, 1.5),
        "none bf16": (5, 1.5),
    }
    if not options.quick:
        cases["v1_stale"] = {"rule": "v1_stale"}
        cases["v1_stale bf16 kept in bf16"] = {"rule": "v1_stale", "storage": "bf16", **half}
        compare(
            figures,
            f"{500_000 // scale} r=0.1",
            500_000 // scale,
            0.1,
            peer,
            cases,
            targets,
            rounds,
            steps,
        )
    compare(
        figures,
        f"{1_000_000 // scale} r=0.1",
        1_000_000 // scale,
        0.1,
        peer,
        cases,
        targets,
        rounds,
        steps,
    )
    compare(
        figures,
        f"{1_000_000 // scale} r=0.02",
        1_000_000 // scale,
        0.02,
        peer,
        {"dense_exact": exact, "none": none},
        {"dense_exact": (10, 0), "none": (10, 0)},
        rounds,
        steps,
    )
    classes, batch = 1_000_000 // scale, 1024
    result = spawn(
        {
            "kind": "glint",
            "classes": classes,
            "rate": 1.0,
            "batch": batch,
            "warm": 0,
            "steps": 1,
            "threads": 2,
            "options": {**none, **half},
        }
    )
    above = result["memory"] / 1024 - classes * DIM * 4 / 2**30
    figures.add(
        f"full softmax, {classes} classes, batch {batch}: GiB above the weights",
        above,
        f"< {3 / scale:g}",
        above < 3 / scale,
        wall_s=round(result["wall"][0], 1),
        stored_logits_gib_by_count=round(3 * classes * batch * 4 / 2**30, 2),
    )
    wrong = spawn({"classes": 20_000}, "error")
    for name, most in (("float32", 1e-5), ("bf16", 2e-2)):
        for part, error in zip(("loss", "feature gradient", "centre gradient"), wrong[name]):
            figures.add(
                f"{name} products: relative error of the {part} against float64",
                error,
                f"<= {most}",
                error <= most,
            )


if __name__ == "__main__":
    main()
