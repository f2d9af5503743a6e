"""The head on one GPU: right first, then speed against floor and reference, memory, share.

    python benchmarks/gpu_suite.py [--peer CHECKOUT/recognition/arcface_torch] [--out FILE]
    python benchmarks/gpu_suite.py --dry          # small, on the CPU: shows that the code runs

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short or a
case failed. Without a CUDA device it says so and exits 0. Needs torch and Triton; steps of a toy
recipe, a save and a resume besides are left out where glint's other packages are not. Each case is
a process of its own, one after another; all end within --minutes, cases that no longer fit are
named and left out. Times are medians over steps between CUDA events, after warm-up; each step has
new features. Memory is what torch allocated at most above what it held before the head was made.
The floor is four matrix products per step (8 B S D operations: cosines twice, feature gradient,
centre gradient) at the rate of a large bf16 product measured first on the same card. The reference
is the peer's own partial_fc_v2.py with torch's SGD, or without `--peer` our dense code of its
semantics (benchmarks/head.py). Centres are drawn on the card here, which is not glint's rule for
initial values (that takes the host 4 s per million).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from figures import ceiling, floor, machine, told  # noqa: E402

SCALE, MARGIN, LR, MOMENTUM, DECAY = 64.0, 0.4, 0.05, 0.9, 5e-4

# n batch, C classes, k rows that play, D embedding


# ---- cases, each in a process of its own -------------------------------------------------------


def device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak() -> float:
    """Give the most bytes allocated since the last `held`."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def held() -> float:
    """Forget the peak; give the bytes held now."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    return peak()


def timed(step: Callable[[int], Any], warm: int, steps: int) -> list[float]:
    """Run steps; give the milliseconds of each after the warm-up."""
    import torch

    cuda = torch.cuda.is_available()
    times, marks = [], []
    for number in range(warm + steps):
        if cuda:
            marks.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            marks[-1][0].record()
        started = time.perf_counter()
        step(number)
        times.append(1000 * (time.perf_counter() - started))
        if cuda:
            marks[-1][1].record()
    if cuda:
        torch.cuda.synchronize()
        times = [begin.elapsed_time(end) for begin, end in marks]
    return times[warm:]


def ceilings(case: dict[str, Any]) -> dict[str, Any]:
    """Measure a large bf16 matrix product and a large copy."""
    import torch

    torch.manual_seed(0)
    side, bytes_ = case["side"], case["bytes"]
    left = torch.randn(side, side, device=device(), dtype=torch.bfloat16)
    right = torch.randn(side, side, device=device(), dtype=torch.bfloat16)
    product = statistics.median(timed(lambda number: left @ right, 3, 10))
    source = torch.randint(0, 255, (bytes_,), device=device(), dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = statistics.median(timed(lambda number: target.copy_(source), 3, 10))
    return {"tflops": 2 * side**3 / product / 1e9, "gbps": 2 * bytes_ / copy / 1e6}


def drawn(
    start: int, stop: int, dim: int, *, seed: int, dtype: Any, device: Any
) -> Any:  # the signature of glint's own
    """Draw centres on the device."""
    import torch

    rows_cD = torch.empty((stop - start, dim), dtype=dtype, device=device)
    for first in range(0, stop - start, 1 << 20):
        rows_cD[first : first + (1 << 20)].normal_(0, 0.01)
    return rows_cD


def made(case: dict[str, Any], dtype: Any = None, **options: Any) -> Any:
    """Make glint's head on the device."""
    import torch

    from glint.dist.world import World
    from glint.nn.heads import partial_fc
    from glint.nn.heads.options import PartialFCOptions
    from glint.nn.margins import CosFace

    partial_fc.initial_centres = drawn
    return partial_fc.PartialFC(
        case["classes"],
        case["dim"],
        PartialFCOptions(scale=SCALE, momentum=MOMENTUM, weight_decay=DECAY, **options),
        margin=CosFace(MARGIN),
        world=World(device=device()),
        dtype=dtype or torch.float32,
    )


def people(case: dict[str, Any]) -> tuple[Callable[[], Any], Any]:
    """Give what draws a batch of features of the same people, and their labels."""
    import torch

    n, dim = case["batch"], case["dim"]
    face_nD = torch.randn(n, dim, device=device())
    label_n = torch.randint(0, case["classes"], (n,), device=device())
    return lambda: face_nD + 0.3 * torch.randn_like(face_nD), label_n


def head(case: dict[str, Any]) -> dict[str, Any]:
    """Take steps of glint's head."""
    import torch

    torch.manual_seed(0)
    before = held()
    module = made(case, rate=case["rate"], **case["options"])
    table = sum(
        buffer.numel() * buffer.element_size() for buffer in module.state_rows()[2].values()
    )
    draw, label_n = people(case)
    losses = []

    def step(number: int) -> None:
        loss = module(draw().requires_grad_(), label_n, step=number)
        loss.backward()
        module.update(step=number, lr=LR)
        losses.append(loss.detach())

    times = timed(step, case["warm"], case["steps"])
    return {
        "ms": times,
        "peak": peak() - before,
        "table": table,
        "losses": [float(loss) for loss in losses],
        "by": module.pass_type.__name__,
    }


def ported(folder: Path, name: str) -> types.ModuleType:
    """Load a module of the peer as it is (on the CPU: with its GPU calls taken out)."""
    text = (folder / f"{name}.py").read_text()
    if device().type == "cpu":
        text = text.replace(".cuda()", "").replace(
            "torch.cuda.amp.autocast(self.fp16)", "__import__('contextlib').nullcontext()"
        )
    module = types.ModuleType(name)
    exec(compile(text, str(folder / f"{name}.py"), "exec"), module.__dict__)
    return module


def reference(case: dict[str, Any]) -> dict[str, Any]:
    """Take steps of the peer's head, or of our dense code of its semantics, with torch's SGD."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F

    torch.manual_seed(0)
    before = held()
    with device():  # so that it draws its centres there too
        if case["peer"]:
            kind = "nccl" if device().type == "cuda" else "gloo"
            dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
            folder = Path(case["peer"])
            loss = ported(folder, "losses").CombinedMarginLoss(SCALE, 1.0, 0.0, MARGIN)
            kind = ported(folder, "partial_fc_v2").PartialFC_V2
            module = kind(loss, case["dim"], case["classes"], case["rate"]).train()
            weight_CD = module.weight
        else:
            weight_CD = torch.nn.Parameter(torch.normal(0, 0.01, (case["classes"], case["dim"])))
    optimiser = torch.optim.SGD([weight_CD], lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    k = int(case["rate"] * case["classes"])
    draw, label_n = people(case)

    def dense(feature_nD: Any, label_n: Any) -> Any:
        with torch.no_grad():
            score_C = torch.rand(case["classes"]).to(device())
            score_C[label_n] = 2.0
            index_k = torch.topk(score_C, k)[1].sort()[0]
            target_n = torch.searchsorted(index_k, label_n)
        cosine_nk = F.linear(F.normalize(feature_nD), F.normalize(weight_CD[index_k])).clamp(-1, 1)
        margin_nk = torch.zeros_like(cosine_nk).scatter_(1, target_n[:, None], MARGIN)
        return F.cross_entropy(SCALE * (cosine_nk - margin_nk), target_n)

    work = module if case["peer"] else dense

    def step(number: int) -> None:
        work(draw().requires_grad_(), label_n.clone()).backward()
        optimiser.step()
        optimiser.zero_grad()

    times = timed(step, case["warm"], case["steps"])
    if case["peer"]:
        dist.destroy_process_group()
    return {"ms": times, "peak": peak() - before}


def error(case: dict[str, Any]) -> dict[str, Any]:
    """Compare loss and gradients with float64 on the same device."""
    import torch

    torch.manual_seed(0)
    truth = made(case, dtype=torch.float64)
    label_n = torch.randint(0, case["classes"], (case["batch"],), device=device())
    # features near their centres, as in the middle of training: cosines to them of about 0.6
    feature_nD = torch.nn.functional.normalize(truth.weight[label_n]) + (
        1.3 * torch.nn.functional.normalize(torch.randn_like(truth.weight[label_n]))
    )
    found = []
    for module in (truth, made(case, **case["options"])):
        if module is not truth:
            truth.weight.copy_(truth.weight.float())
            module.weight.copy_(truth.weight)
        leaf_nD = feature_nD.to(module.weight.dtype).clone().requires_grad_()
        loss = module(leaf_nD, label_n, step=0)
        loss.backward()
        found.append([x.double() for x in (loss.detach(), leaf_nD.grad, module.gradient()[1])])
    parts = ("loss", "feature gradient", "centre gradient")
    return {
        "errors": {name: float((b - a).norm() / a.norm()) for name, a, b in zip(parts, *found)},
        "by": module.pass_type.__name__,
    }


def trunk(case: dict[str, Any]) -> dict[str, Any]:
    """Train a backbone in bf16 with the head and without it."""
    import torch

    from glint.nn import backbones

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    net = backbones.create(case["net"], embedding=case["dim"])
    net = net.to(device(), memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=MOMENTUM, weight_decay=DECAY)
    module = made(case, rate=case["rate"], **case["options"])
    n = case["batch"]
    image = torch.randn(n, 3, 112, 112, device=device())
    image = image.contiguous(memory_format=torch.channels_last)
    label_n = torch.randint(0, case["classes"], (n,), device=device())

    def step(number: int, whole: bool) -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=torch.cuda.is_available()):
            feature_nD = net(image)
        optimiser.zero_grad()
        if whole:
            module(feature_nD.float(), label_n, step=number).backward()
            module.update(step=number, lr=LR)
        else:
            feature_nD.float().square().mean().backward()
        optimiser.step()

    alone = timed(lambda number: step(number, False), case["warm"], case["steps"])
    return {
        "with": timed(lambda number: step(number, True), case["warm"], case["steps"]),
        "alone": alone,
        "peak": peak(),
    }


def toy(case: dict[str, Any]) -> dict[str, Any]:
    """Train a toy recipe on the device, on the CPU, and on the device with a stop in between."""
    import tempfile

    import torch

    from glint.dist.world import World
    from glint.pipelines.dataset import shard
    from glint.recipes.load import load
    from glint.synth import world as synth
    from glint.train import loop
    from glint.train.build import build
    from glint.train.recipe import Recipe

    root, steps = Path(tempfile.mkdtemp()), case["steps"]
    people = synth.World(identities=40, images=4, conflicts=0, lookalikes=0, damaged=0, pairs=0)
    synth.make(people, root / "world")
    shard.shard(root / "world", root / "data", shard.Options(100))

    def losses(place: Any, name: str, *stops: int) -> list[float]:
        for stop in stops:
            sets = [
                f"data.path={root}/data", "data.batch=16", "run.device=cuda", "run.log_every=1",
                "run.tensorboard=false", "head.rule=dense_exact", "backbone.embedding=32",
                "backbone.options.widths=[4, 8, 8, 16]", f"schedule.max_steps={stop}",
            ]  # fmt: skip
            recipe = load(ROOT / "train" / "synth_tiny.toml", Recipe, sets)
            loop.train(build(recipe, World(device=place), root / name))
        lines = map(json.loads, (root / name / "log.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["kind"] == "step"]

    card, host = losses(device(), "card", steps), losses(torch.device("cpu"), "cpu", steps)
    parts = losses(device(), "parts", steps // 2, steps)

    def apart(one: list[float], other: list[float]) -> float:
        assert len(one) == len(other) == steps
        return max(abs(a - b) / b for a, b in zip(one, other))

    return {"cpu": apart(card, host), "resumed": apart(parts, card)}


WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ceilings": ceilings,
    "head": head,
    "reference": reference,
    "error": error,
    "trunk": trunk,
    "toy": toy,
}


# ---- the parent ----------------------------------------------------------------------------------


class Suite:
    """Runs cases one after another and shows figures."""

    def __init__(self, options: argparse.Namespace, about: dict[str, Any]) -> None:
        self.options, self.good, self.lines = options, True, []
        self.end = time.monotonic() + 60 * options.minutes
        self.show(about)

    def show(self, line: dict[str, Any]) -> None:
        """Print a line and keep the file as far as it is."""
        self.lines.append(line)
        self.good = self.good and line.get("holds") is not False
        print(json.dumps(line), flush=True)
        if self.options.out:
            Path(self.options.out).write_text("".join(json.dumps(x) + "\n" for x in self.lines))

    def figure(self, line: dict[str, Any], **more: Any) -> None:
        """Show a figure; a dry run judges nothing."""
        line["value"] = float(f"{line['value']:.4g}")
        if self.options.dry:
            line["holds"] = None
        self.show({**line, **more})

    def run(self, kind: str, **case: Any) -> dict[str, Any] | None:
        """Run a case; where it fails or no longer fits into the time, say so and give None."""
        name = f"{kind} {json.dumps(case, sort_keys=True)}"
        if self.options.dry:
            return WORK[kind](case)
        left = self.end - time.monotonic()
        if left < 25:
            self.show({"left_out": name, "why": f"{self.options.minutes:g} minutes are over"})
            return None
        try:
            done = subprocess.run(
                [sys.executable, __file__, "--child", kind, json.dumps(case)],
                capture_output=True,
                text=True,
                timeout=min(left - 5, 150),
            )
        except subprocess.TimeoutExpired as late:
            self.show({"failed": name, "why": f"not done in {late.timeout:.0f} s", "holds": False})
            return None
        if done.returncode:
            self.show({"failed": name, "why": done.stderr[-1500:], "holds": False})
            return None
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


def suite(options: argparse.Namespace) -> bool:
    """Run all cases; say whether every figure holds."""
    import torch

    dry = options.dry
    small = 5000 if dry else 1  # a dry run divides classes by this
    dim, batch = (16, 12) if dry else (512, 1024)
    warm, steps = (1, 1) if dry else (5, 12)
    about = {"benchmark": "gpu_suite", "dry": dry, **machine("torch", "triton")}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        about |= {"card": card.name, "card_gib": round(card.total_memory / 2**30, 1)}
    about["reference"] = "partial_fc_v2.py" if options.peer else "own dense code"
    run = Suite(options, about)
    kernels = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "auto"
    half = {"gemm": "bf16", "kernels": kernels}
    shape = {"dim": dim, "batch": batch, "warm": warm, "steps": steps}

    top = run.run("ceilings", side=64 if dry else 8192, bytes=1 << (16 if dry else 32))
    if top is not None:
        run.figure(told("bf16 matrix product, TFLOP/s", top["tflops"]))
        run.figure(told("copy, GB/s read and written", top["gbps"]))

    wrong = run.run("error", classes=20_000 // small + 30, dim=dim, batch=batch // 4, options=half)
    for part, value in wrong["errors"].items() if wrong else ():
        name = f"bf16 products: relative error of the {part} against float64"
        run.figure(ceiling(name, value, 2e-2), by=wrong["by"])

    needs = [name for name in ("pyarrow", "simplejpeg", "pydantic") if find_spec(name) is None]
    if needs:
        run.show({"left_out": "toy", "why": f"not installed: {', '.join(needs)}"})
    elif (found := run.run("toy", steps=2 if dry else 20)) is not None:
        name = "toy recipe: largest relative difference of a loss"
        run.figure(ceiling(f"{name} to the CPU's", found["cpu"], 5e-2))
        run.figure(ceiling(f"{name} after a save and a resume", found["resumed"], 5e-2))

    classes, rate = 10_000_000 // small, 0.1
    ten = {**shape, "classes": classes, "rate": rate}
    plain = run.run("reference", peer=options.peer, **ten)
    if plain is not None:
        run.figure(told(f"{classes} r={rate} reference: ms a step", middle(plain["ms"])))
        run.figure(told(f"{classes} r={rate} reference: peak GB", plain["peak"] / 1e9))
    for label, chosen in (
        ("none", {"rule": "none", **half}),
        ("dense_exact", {"rule": "dense_exact", **half}),
        ("none, torch's operations", {"rule": "none", **half, "kernels": "torch"}),
    ):
        found = run.run("head", options=chosen, **ten)
        if found is None:
            continue
        name, judged = f"{classes} r={rate} {label}", chosen["kernels"] != "torch"
        ms, by = middle(found["ms"]), found["by"]
        line = ceiling(f"{name}: ms a step", ms, 10.6) if judged else told(f"{name}: ms a step", ms)
        run.figure(line, by=by, spread=[round(min(found["ms"]), 3), round(max(found["ms"]), 3)])
        if plain is not None:
            faster = middle(plain["ms"]) / ms
            line = floor(f"{name}: times as fast as the reference", faster, 14)
            run.figure(line if judged else told(line["figure"], faster))
        if top is not None:
            work = 8 * batch * max(int(rate * classes), 1) * dim / (ms * 1e9)
            line = floor(f"{name}: share of the bf16 product's rate", work / top["tflops"], 0.55)
            run.figure(line if judged else told(line["figure"], work / top["tflops"]))
        memory(run, name, found, judged)

    for many, label, chosen in (
        (30_000_000, "float32, dense_exact", {"rule": "dense_exact", **half}),
        (60_000_000, "bf16, dense_exact", {"rule": "dense_exact", "storage": "bf16", **half}),
        (100_000_000, "bf16, none", {"rule": "none", "storage": "bf16", **half}),
    ):
        many //= small
        found = run.run(
            "head",
            options=chosen,
            **{**shape, "classes": many, "rate": rate, "warm": 2, "steps": 2 if dry else 6},
        )
        if found is None:
            continue
        name, losses = f"{many} {label} r={rate}", found["losses"]
        fell = losses[-1] / losses[0] if all(map(math.isfinite, losses)) else math.inf
        run.figure(
            ceiling(f"{name}: last loss over first", fell, 0.95),
            losses=[round(loss, 3) for loss in losses],
            ms=round(middle(found["ms"]), 3),
        )
        memory(run, name, found, True)

    nets = [(net, many // small) for net in ("r50", "r100") for many in (360_232, 2_059_906)]
    for net, many in [("mbf", nets[0][1])] if dry else nets:
        case = {
            "net": net,
            "classes": many,
            "dim": dim,
            "batch": 2 if dry else 512,
            "rate": rate,
            "warm": 1 if dry else 4,
            "steps": 1 if dry else 8,
        }
        found = run.run("trunk", options=half, **case)
        if found is not None:
            both, alone = middle(found["with"]), middle(found["alone"])
            name = f"{net} bf16, {many} classes r={rate}"
            peak_gb = round(found["peak"] / 1e9, 2)
            run.figure(told(f"{name}: images/s", 1000 * case["batch"] / both), peak_gb=peak_gb)
            run.figure(told(f"{name}: share of the head", max(0.0, 1 - alone / both)))
    return run.good


def middle(times: list[float]) -> float:
    return statistics.median(times)


def memory(run: Suite, name: str, found: dict[str, Any], judged: bool) -> None:
    """Show the head's peak against 1.05 (weights + state) + 256 MB."""
    most = 1.05 * found["table"] + 256e6
    line = ceiling(f"{name}: peak over 1.05 (weights + state) + 256 MB", found["peak"] / most, 1.0)
    gb = {"peak_gb": round(found["peak"] / 1e9, 3), "table_gb": round(found["table"] / 1e9, 3)}
    run.figure(line if judged else told(line["figure"], found["peak"] / most), **gb)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peer", default="", help="a checkout of recognition/arcface_torch")
    parser.add_argument("--dry", action="store_true", help="small sizes on the CPU, nothing judged")
    parser.add_argument("--minutes", type=float, default=8.5, help="time for everything")
    parser.add_argument("--out", default="", help="write the lines to this file too")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(WORK[options.child[0]](json.loads(options.child[1]))))
        return
    options.peer = str(Path(options.peer).resolve()) if options.peer else ""
    import torch

    if not torch.cuda.is_available() and not options.dry:
        print(json.dumps({"benchmark": "gpu_suite", "skipped": "no CUDA device"}))
        return
    raise SystemExit(0 if suite(options) else 1)


if __name__ == "__main__":
    main()
