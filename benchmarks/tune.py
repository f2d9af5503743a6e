"""What does `glint tune` do to a net: on people of one's own, and on everybody else?

    GLINT_SHARED=../shared python benchmarks/tune.py [--quick] [--seeds 1] [--parts ...]

The start is a published net that is weak, `data/models/mobileface_v3_256d.onnx`. It is tuned on
film stars (`data/bollywood`, at most 30 images each), a tenth of whom are held out, and judged on
pairs of these and on the 1,000 pairs of LFW's DevTest, other people. Beside `glint tune` as it
comes, for as many epochs at a fixed rate and with the gate off: LoRA, the embedding layer alone (a
linear head), full fine-tuning with random centres and moving statistics, and people of LFW's
DevTrain list replayed. Then: a run made to forget, whose result must be refused; 4,000 made people
of two images each; int8 of a published net. One JSON line a figure; exit 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from figures import ROOT, ceiling, floor, machine, told
from real_faces import SHARED, run_glint
from real_training import lay_out, spent_below, write_pairs

FEW = 30  # images of a film star
PARTS = ("methods", "forget", "many", "int8")
START = SHARED / "data/models/mobileface_v3_256d.onnx"
EPOCHS, RATE = 3, 1e-4
MARGIN = 0.01  # of the gate: 1,000 pairs have a standard error of 0.7 of a point
CPU = ("--set", "run.device=cpu", "--set", "run.threads=1")


def glint(*args: Any, code: int = 0) -> Any:
    """Run a command and give its JSON; its exit code must be `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "glint", *map(str, args), "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if done.returncode != code:
        raise SystemExit(f"glint {args[0]}: exit {done.returncode}, expected {code}\n{done.stderr}")
    return json.loads(done.stdout)


def material(place: Path, quick: bool) -> None:
    """Lay out two datasets, film stars and people of DevTrain, and the generic pairs."""
    everyone = place / "everyone"
    lay_out(everyone, 0)
    seen: Counter[str] = Counter()
    for path in sorted(everyone.rglob("*.jpg")):
        whose = "lfw" if path.parent.name.startswith("lfw_") else "stars"
        seen[path.parent.name] += 1
        if seen[path.parent.name] <= (4 if quick else FEW):
            home = place / whose / path.parent.name
            home.mkdir(parents=True, exist_ok=True)
            path.rename(home / path.name)
    write_pairs(place / "generic.bin")
    for name in ("stars", "lfw"):
        run_glint("shard", place / name, place / f"data-{name}")


def accuracies(words: str, ways: dict[str, Any]) -> list[dict[str, Any]]:
    """Give accuracies before and after of several ways, on held-out people and on DevTest."""
    found = []
    for at, name in enumerate(("held-out people", "DevTest")):
        first = next(iter(ways.values()))["sets"][at]
        found.append(told(f"{words}: accuracy on {name}, before", first["before"]))
        found += [told(f"{words}: accuracy on {name}, {way}", one["sets"][at]["after"])
                  for way, one in ways.items()]  # fmt: skip
    return found


def methods(place: Path, seed: int) -> list[dict[str, Any]]:
    """Tune in several ways, as long; give accuracies before and after."""
    common = (START, place / "data-stars", "--generic", place / "generic.bin", "--epochs", EPOCHS,
              "--seed", seed, *CPU)  # fmt: skip
    first, began = place / f"tune{seed}", spent_below()
    ways = {"glint tune": glint("tune", *common, "--out", first, "--margin", MARGIN)}
    cpu = spent_below() - began
    plain = ("--margin", 1, "--blend", 1, "--lr", RATE)
    more: dict[str, tuple[Any, ...]] = {
        "LoRA of rank 8": ("--lora", 8, "--centres", "frozen"),
        "the embedding layer alone": ("--freeze", "all"),
        "full fine-tuning, random centres": ("--norms", "moving", "--set", "head.init="),
        "DevTrain replayed": ("--replay", place / "data-lfw"),
    }  # fmt: skip
    if seed:  # once is enough of these
        del more["LoRA of rank 8"], more["DevTrain replayed"]
    for number, (way, options) in enumerate(more.items()):
        out = place / f"tune{seed}-{number}"
        ways[way] = glint("tune", *common, "--out", out, *plain, *options)
    words, (own, other) = f"tune, seed {seed}", ways["glint tune"]["sets"]
    return [
        *accuracies(words, ways),
        told(
            f"{words}: learning rate found, millionths", 1e6 * ways["glint tune"]["learning_rate"]
        ),
        told(f"{words}: share of the tuned net", ways["glint tune"]["share"]),
        ceiling(f"{words}: CPU minutes", cpu / 60, 15),
        floor(f"{words}: gained on held-out people", own["after"] - own["before"], 0.0),
        ceiling(f"{words}: lost on DevTest", other["before"] - other["after"], MARGIN),
    ]


def forget(place: Path) -> list[dict[str, Any]]:
    """Tune at a rate far too high: the result must be refused."""
    out = place / "forgot"
    result = glint("tune", START, place / "data-stars", "--out", out, "--generic",
                   place / "generic.bin", "--margin", MARGIN, "--lr", 0.1, "--epochs", 1,
                   "--batch", 32, "--norms", "moving", *CPU, code=5)  # fmt: skip
    one = result["sets"][-1]
    refused = bool(result["refused"]) and not (out / "tuned").exists()
    return [
        told("a run made to forget: accuracy on DevTest, before", one["before"]),
        told("a run made to forget: accuracy on DevTest, after", one["after"]),
        {"figure": "a run made to forget: refused", "value": refused, "target": True,
         "holds": refused},
    ]  # fmt: skip


def many(place: Path, people: int) -> list[dict[str, Any]]:
    """Tune on made people of two images each."""
    world, data, out = place / "world", place / "data-many", place / "many"
    run_glint("synth", world, "--identities", people, "--images", 2, "--conflicts", 0)
    run_glint("shard", world, data)
    result = glint("tune", START, data, "--out", out, "--generic", place / "generic.bin",
                   "--margin", MARGIN, "--epochs", 1, *CPU)  # fmt: skip
    own, other = result["sets"]
    words = f"{people:,} made people, two images each:"
    return [
        told(f"{words} accuracy on held-out people, before", own["before"]),
        floor(f"{words} gained on held-out people", own["after"] - own["before"], 0.0),
        ceiling(f"{words} lost on DevTest", other["before"] - other["after"], MARGIN),
    ]


def int8(place: Path) -> list[dict[str, Any]]:
    """Quantise a published net, its ranges seen on other people than those of the pairs."""
    result = glint("export", SHARED / "data/models/mobilefacenet_y1_128d.onnx", place / "y1.onnx",
                   "--int8", "--calibrate", place / "data-lfw", "--limit", 1.0, "--pairs",
                   SHARED / "data/lfw/lfw_fold10_600pairs.bin")  # fmt: skip
    lost = 100 * (result["accuracy_before"] - result["accuracy"])
    return [
        told("int8 of y1: accuracy on 600 pairs of LFW, before", result["accuracy_before"]),
        told("int8 of y1: accuracy on 600 pairs of LFW", result["accuracy"]),
        ceiling("int8 of y1: points lost", lost, 0.5),
        told("int8 of y1: MB before", result["bytes_before"] / 1e6),
        told("int8 of y1: MB", result["bytes"] / 1e6),
        told("int8 of y1: ms an image before, one thread", result["ms_before"]),
        told("int8 of y1: ms an image, one thread", result["ms"]),
    ]


def main() -> int:
    """Make the material, tune, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, one part: a minute")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--place", type=Path, help="keep the material here, to go on with")
    parser.add_argument("--out", type=Path, help="write the figures, with the machine's name")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if not (SHARED / "data" / "lfw").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    os.environ.update(OMP_WAIT_POLICY="passive", OMP_NUM_THREADS="1")
    parts = ("forget",) if args.quick else args.parts
    short = False
    with tempfile.TemporaryDirectory() as temporary:
        place = args.place or Path(temporary)
        if not (place / "data-stars").exists():
            material(place, args.quick)
        todo: dict[str, list[Callable[[], list[dict[str, Any]]]]] = {
            "methods": [partial(methods, place, seed) for seed in range(args.seeds)],
            "forget": [partial(forget, place)],
            "many": [partial(many, place, 4000)],
            "int8": [partial(int8, place)],
        }
        for figures in (work() for part in parts for work in todo[part]):
            for figure in figures:
                print(json.dumps(figure), flush=True)
                short |= figure["holds"] is False
            if args.out:
                with args.out.open("a") as file:
                    where = machine("torch", "onnxruntime")
                    file.writelines(json.dumps({**one, **where}) + "\n" for one in figures)
    print(json.dumps(told("CPU seconds in all", spent_below())), flush=True)
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
