"""arcface_torch's own train_v2.py, unmodified, on its PartialFC_V2 and loader, then on glint's.

    python benchmarks/drop_in.py --peer CHECKOUT/recognition/arcface_torch [--quick] [--out FILE]

Two parts. Losses: its script runs in float64 on the CPU over gloo, on one rank and two, once as it
is and once with `partial_fc_v2` and `dataset` replaced in sys.modules by
`glint.compat.arcface_torch`; both draw the same classes and images. A state file of each is then
resumed by the other. Written in a temporary folder, none of it in the checkout: a RecordIO set of
made images, and a runner that stands in for what is absent (CUDA calls, NCCL, MXNet's reader,
torchvision's transforms, easydict, scikit-learn, arguments that newer torch dropped) and for the
backbone, a small net, as the head is what is compared. Time: process CPU time of the head's part
of a step (sampling, forward, backward, the optimiser's step), medians on one thread in rounds that
alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import figures as shown
import head as head_benchmark

ROOT = Path(__file__).parents[1]
PEOPLE, IMAGES, BATCH, DIM = 400, 1600, 16, 64
RUNNER = """
import contextlib, importlib.machinery, json, runpy, struct, sys, types
import numpy as np, torch
import torch.distributed as dist
peer, kind, config, losses_to = sys.argv[1:]
glint_is_in, config = kind == "glint", json.loads(config)
torch.set_num_threads(1)
torch.set_default_dtype(getattr(torch, config.pop("dtype")))
sys.path.insert(0, peer)

def module(name, **names):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(names)
    sys.modules[name] = made
    return made

# ---- the device: what is asked of a GPU is done where the tensor is
begin, to = dist.init_process_group, torch.Tensor.to
dist.init_process_group = lambda backend=None, **more: begin("gloo", **more)
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *a, **k: self
def stay(self, *given, **more):
    if isinstance(more.get("device"), int):
        more.pop("device"); more.pop("non_blocking", None)
        return self
    return to(self, *given, **more)
torch.Tensor.to = stay
tensor = torch.tensor
torch.tensor = lambda *a, device=None, **k: tensor(*a, **k)
torch.cuda.set_device = lambda *a: None
torch.cuda.Stream = lambda *a: None
torch.cuda.stream = lambda *a: contextlib.nullcontext()
torch.cuda.current_stream = lambda *a: types.SimpleNamespace(wait_stream=lambda other: None)
ddp = torch.nn.parallel.DistributedDataParallel
torch.nn.parallel.DistributedDataParallel = lambda device_ids=None, **more: ddp(**more)
scheduler = torch.optim.lr_scheduler._LRScheduler
made = scheduler.__init__
def without_verbose(self, optimizer, last_epoch=-1, verbose=None):
    made(self, optimizer, last_epoch)
scheduler.__init__ = without_verbose

# ---- packages that are not there
class EasyDict(dict):
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__
module("easydict", EasyDict=EasyDict)
class Pack:
    def __init__(self, idx, rec, mode):
        self.at = dict(map(int, line.split()) for line in open(idx))
        self.keys, self.path = list(self.at), rec
    def read_idx(self, key):
        with open(self.path, "rb") as file:
            file.seek(self.at[key])
            magic, length = struct.unpack("<II", file.read(8))
            assert magic == 0xCED7230A and length < 1 << 29
            return file.read(length)
def unpack(data):
    flag, label, one, two = struct.unpack_from("<IfQQ", data)
    if flag:
        label = np.frombuffer(data, "<f4", flag, 24)
    return types.SimpleNamespace(flag=flag, label=label, id=one, id2=two), data[24 + 4 * flag:]
def imdecode(data):
    import cv2
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].copy()
    return types.SimpleNamespace(asnumpy=lambda: pixels)
module("mxnet", recordio=types.SimpleNamespace(MXIndexedRecordIO=Pack, unpack=unpack),
       image=types.SimpleNamespace(imdecode=imdecode), ndarray=None)
class Compose:
    def __init__(self, steps): self.steps = steps
    def __call__(self, x):
        for step in self.steps: x = step(x)
        return x
def flip(p=0.5):
    return lambda x: x[:, ::-1] if torch.rand(1) < p else x
def to_tensor(x):
    return torch.from_numpy(x.transpose(2, 0, 1).copy()).to(torch.get_default_dtype()).div(255)
def normalize(mean, std):
    return lambda x: (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
transforms = module("torchvision.transforms", Compose=Compose, ToPILImage=lambda: lambda x: x,
                    RandomHorizontalFlip=flip, ToTensor=lambda: to_tensor, Normalize=normalize)
module("torchvision", transforms=transforms)
module("torchvision.datasets", ImageFolder=None)
module("sklearn")
module("sklearn.decomposition", PCA=None)
module("sklearn.model_selection", KFold=None)

# ---- the backbone, the configuration, whose head
def get_model(name, dropout, fp16, num_features):
    nn = torch.nn
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(147, 128), nn.BatchNorm1d(128),
                         nn.PReLU(), nn.Linear(128, num_features), nn.BatchNorm1d(num_features))
module("backbones", get_model=get_model)
module("configs.drop_in", config=config)
if glint_is_in:
    import glint.compat.arcface_torch as replaced
    sys.modules["partial_fc_v2"] = sys.modules["dataset"] = replaced

from utils.utils_logging import AverageMeter
losses, update = [], AverageMeter.update
def noted(self, value, n=1):
    losses.append(value)
    update(self, value, n)
AverageMeter.update = noted
sys.argv = ["train_v2.py", "configs/drop_in"]
runpy.run_path(peer + "/train_v2.py", run_name="__main__")
json.dump(losses, open(losses_to, "w"))
dist.destroy_process_group()
"""


def make_set(folder: Path) -> None:
    """Write train.rec and train.idx of made images: a pattern for each person, and noise."""
    import numpy as np
    import simplejpeg

    from glint.shards.recordio import Writer, pack

    draw = np.random.default_rng(0)
    pattern = draw.integers(0, 256, (PEOPLE, 7, 7, 3))
    folder.mkdir()
    with Writer(folder / "train.rec", folder / "train.idx") as out:
        out.write(0, pack([IMAGES + 1, IMAGES + 1], 0, 0, b""))
        for i in range(IMAGES):
            noisy = pattern[i % PEOPLE] + draw.normal(0, 60, (7, 7, 3))
            pixel = np.kron(noisy.clip(0, 255), np.ones((16, 16, 1))).astype(np.uint8)
            image = simplejpeg.encode_jpeg(pixel, 90, "RGB", "444")
            out.write(i + 1, pack(float(i % PEOPLE), i + 1, 0, image))


def train(work: Path, peer: Path, kind: str, ranks: int, name: str, **config: Any) -> list[Any]:
    """Run train_v2.py; return the losses of rank 0, or raise with the end of its output."""
    config = {
        "dtype": "float64",
        "network": "made",
        "rec": str(work / "set"),
        "output": str(work / name),
        "embedding_size": DIM,
        "num_classes": PEOPLE,
        "num_image": IMAGES,
        "batch_size": BATCH,
        "warmup_epoch": 0,
        "val_targets": [],
        "save_all_states": True,
        "margin_list": [1.0, 0.5, 0.0],
        **config,
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = []
    for rank in range(ranks):
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        given = [str(work / "runner.py"), str(peer), kind, json.dumps(config)]
        output = (work / f"{name}-{rank}.txt").open("w")
        losses = str(work / f"{name}-{rank}.json")
        runs.append(
            subprocess.Popen(
                [sys.executable, *given, losses], cwd=work, env=env, stdout=output, stderr=output
            )
        )
    codes = [run.wait() for run in runs]
    if any(codes):
        raise RuntimeError((work / f"{name}-0.txt").read_text()[-3000:])
    found = [json.loads((work / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]
    return found[0]


def furthest(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference of losses."""
    if len(found) != len(expected) or not expected:
        raise RuntimeError(f"{len(found)} losses beside {len(expected)}")
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected))


def small(found: float) -> dict[str, Any]:
    """Return a difference unrounded, and whether it is small enough."""
    return {"value": found, "holds": found <= 1e-6}


def compare_losses(show: Any, peer: Path, work: Path, quick: bool) -> None:
    """Compare losses over steps, and state files given to the other."""
    make_set(work / "set")
    (work / "runner.py").write_text(RUNNER)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("rate 1", {"sample_rate": 1.0}),
        ("rate 0.1", {"sample_rate": 0.1}),
        ("rate 0.1 filtered at 0.2", {"sample_rate": 0.1, "interclass_filtering_threshold": 0.2}),
        ("rate 0.1 adamw", {"sample_rate": 0.1, "optimizer": "adamw", "lr": 1e-3}),
    ]
    for ranks in (1, 2):
        epochs = ranks if not quick else 1
        for name, config in cases[: 2 if quick else None if ranks == 1 else 3]:
            both = [
                train(work, peer, kind, ranks, f"{kind}-{name}-{ranks}".replace(" ", "_"),
                      num_epoch=epochs, **config)
                for kind in ("original", "glint")
            ]  # fmt: skip
            show(
                shown.ceiling(f"{name}, {ranks} rank(s), {len(both[0])} steps: largest relative "
                              "difference of a loss", 0.0, 1e-6)
                | small(furthest(both[1], both[0])) | {"first": both[0][0], "last": both[0][-1]}
            )  # fmt: skip
        resumed = {}
        whose = ("original", "original"), ("glint", "original"), ("original", "glint")
        for kind, states in whose:
            held = f"{states}-rate_0.1-{ranks}"
            folder = work / f"{kind}-from-{states}-{ranks}"
            folder.mkdir()
            for rank in range(ranks):
                state = f"checkpoint_gpu_{rank}.pt"
                (folder / state).write_bytes((work / held / state).read_bytes())
            resumed[kind, states] = train(
                work, peer, kind, ranks, folder.name,
                num_epoch=epochs + 1, resume=True, sample_rate=0.1,
            )  # fmt: skip
        expected = resumed.pop(("original", "original"))
        for (kind, states), losses in resumed.items():
            show(
                shown.ceiling(f"rate 0.1, {ranks} rank(s): {kind} resumed from checkpoint_gpu_*.pt "
                              f"of {states}, {len(losses)} steps", 0.0, 1e-6)
                | small(furthest(losses, expected))
            )  # fmt: skip
    # what float32 can tell: the original against itself, its rate one part in 1e7 larger
    other = {"glint": ("glint", 0.1), "itself, lr 1e-7 larger": ("original", 0.10000001)}
    for name, (kind, lr) in other.items() if not quick else ():
        both = [
            train(work, peer, k, 1, f"single-{name[:5]}-{k}-{number}", num_epoch=1,
                  sample_rate=0.1, dtype="float32", lr=rate)
            for number, (k, rate) in enumerate((("original", 0.1), (kind, lr)))
        ]  # fmt: skip
        figure = (
            f"float32, rate 0.1: original against {name}, largest relative difference of a loss"
        )
        show(shown.told(figure, 0) | {"value": furthest(both[1], both[0])})


# ---- time ----------------------------------------------------------------------------------------


def child(case: dict[str, Any]) -> None:
    """Time the head's part of steps and print CPU seconds, losses and memory."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    peer = Path(case["peer"])
    margin = head_benchmark.ported(peer, "losses").CombinedMarginLoss(64, 1.0, 0.0, 0.4)
    if case["kind"] == "glint":
        from glint.compat.arcface_torch import PartialFC_V2 as Head
    else:
        Head = head_benchmark.ported(peer, "partial_fc_v2").PartialFC_V2
    before = head_benchmark.memory("VmRSS")
    head = Head(margin, 512, case["classes"], case["rate"])
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    cpu, losses = [], []
    for _ in range(case["steps"] + 2):
        feature_nD = torch.randn(case["batch"], 512).requires_grad_()
        label_n = torch.randint(0, case["classes"], (case["batch"],))
        begun = time.process_time()
        loss = head(feature_nD, label_n)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        cpu.append(time.process_time() - begun)
        losses.append(loss.item())
    mib = head_benchmark.memory("VmHWM") - before
    print(json.dumps({"cpu": cpu[2:], "losses": losses, "mib": mib}))


def compare_time(show: Any, peer: Path, quick: bool) -> None:
    """Time both heads in turns."""
    cases = [(100_000, 0.1, 64, 4.0), (100_000, 0.1, 128, 4.0), (100_000, 1.0, 64, 0.0)]
    cases += [(1_000_000, 0.1, 64, 4.0), (1_000_000, 0.1, 128, 4.0), (1_000_000, 1.0, 64, 0.0)]
    for classes, rate, batch, least in [(20_000, 0.1, 64, 0.0)] if quick else cases:
        free = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()
                    if line.startswith("MemAvailable")) >> 20  # fmt: skip
        needed = classes * (10 if rate < 1 else 17) / 1e6  # GiB of the original
        if free < needed:
            name = f"{classes} classes, rate {rate}, batch {batch}: left out, GiB of memory free"
            show(shown.told(name, free))
            continue
        cpu: dict[str, list[float]] = {"original": [], "glint": []}
        mib, losses = dict.fromkeys(cpu, 0.0), {}
        for _ in range(2 if classes > 100_000 or quick else 4):
            for kind in cpu:
                case = {"kind": kind, "classes": classes, "rate": rate, "batch": batch,
                        "peer": str(peer), "steps": 4 if classes > 100_000 else 8}  # fmt: skip
                done = subprocess.run(
                    [sys.executable, __file__, "--child", json.dumps(case)],
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    check=True,
                )
                found = json.loads(done.stdout.splitlines()[-1])
                cpu[kind] += found["cpu"]
                mib[kind], losses[kind] = max(mib[kind], found["mib"]), found["losses"]
        if furthest(losses["glint"], losses["original"]) > 1e-4:
            raise RuntimeError(f"other losses: {losses}")
        middle = {kind: statistics.median(times) for kind, times in cpu.items()}
        name = f"{classes} classes, rate {rate}, batch {batch}: times less CPU for the head's part"
        ratio = middle["original"] / middle["glint"]
        show(
            (shown.floor(name, ratio, least) if least else shown.told(name, ratio))
            | {
                "cpu_ms": round(1000 * middle["glint"], 1),
                "original_cpu_ms": round(1000 * middle["original"], 1),
                "mib": round(mib["glint"]),
                "original_mib": round(mib["original"]),
            }
        )


def main() -> None:
    """Make all figures; exit 1 where one falls short."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a checkout of recognition/arcface_torch")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("losses", "time"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(json.loads(options.child))
    if options.peer is None:
        parser.error("--peer CHECKOUT/recognition/arcface_torch: it is compared with that")
    lines: list[dict[str, Any]] = []

    def show(line: dict[str, Any]) -> None:
        if isinstance(line.get("value"), float) and 0 < line["value"] < 1e-3:
            line["value"] = float(f"{line['value']:.2g}")
        lines.append(line)
        print(json.dumps(line), flush=True)
        if options.out:
            options.out.write_text("".join(json.dumps(one) + "\n" for one in lines))

    show({"benchmark": "drop_in", **shown.machine("torch")})
    peer = options.peer.resolve()
    if options.only != "time":
        with tempfile.TemporaryDirectory() as work:
            compare_losses(show, peer, Path(work), options.quick)
    if options.only != "losses":
        compare_time(show, peer, options.quick)
    sys.exit(any(line.get("holds") is False for line in lines))


if __name__ == "__main__":
    main()
