"""Images under a wrong name: found, moved or left out as a reviewer would, and trained on again.

    GLINT_SHARED=../shared python benchmarks/image_labels.py [--quick] [--seeds 3] [--out FILE]

People of LFW's DevTrain list with two images or more and `data/bollywood` (not part of this
project); a tenth of the images is put under the name of somebody else, drawn at random. glint's
own commands shard, embed (a published 1 M-parameter recogniser) and search; `apply --flagged` moves
and leaves out as the report suggests, what a reviewer does who believes the page.
A narrow net is trained on the labels as they came, as decided, and as they were, with the same
steps; DevTest's 1,000 pairs of people never seen are verified. `undo` must give the labels back.
One JSON line a figure; exit 1 where one falls short. Nothing of the images is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from figures import floor, machine, told
from real_faces import SHARED, run_glint
from real_training import lay_out, write_pairs, write_recipe

MODEL = "mobilefacenet_y1_128d.onnx"
SHARE = 0.1  # of the images, under another name
STEPS = 200  # of 32 images


def misfile(people: Path, rng: np.random.Generator) -> dict[str, str]:
    """Put a share of the images into the folders of others; give where each came from."""
    homes = sorted(people.iterdir())
    files = [file for home in homes for file in sorted(home.iterdir())]
    came: dict[str, str] = {}
    for i in np.sort(rng.choice(len(files), round(SHARE * len(files)), replace=False)).tolist():
        file = files[i]
        other = homes[int(rng.integers(len(homes)))]
        if other == file.parent or len(list(file.parent.iterdir())) <= 2:
            continue
        new = other / f"{file.parent.name}__{file.name}"
        file.rename(new)
        came[f"{other.name}/{new.name}"] = file.parent.name
    return came


def suggested(report: Path, data: Path) -> dict[int, int]:
    """Give what the report suggests: row -> label, -1 = left out."""
    row_of = {
        key: i for i, key in enumerate(pq.read_table(data / "samples.parquet")["key"].to_pylist())
    }
    return {
        row_of[one["key"]]: one["towards"] if one["suggested"] == "move" else -1
        for one in pq.read_table(report / "inside.parquet").to_pylist()
        if one["kind"] == "outlier"
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2,500 images, 20 steps, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not (SHARED / "data" / "models" / MODEL).exists():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    lines: list[dict[str, Any]] = [
        {"benchmark": "image_labels", "quick": args.quick, **machine("numpy", "torch")}
    ]

    def say(line: dict[str, Any]) -> None:
        lines.append(line)
        print(json.dumps(line), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        lay_out(place / "people", 2500 if args.quick else 0)
        write_pairs(place / "pairs.bin")
        run_glint("shard", place / "people", place / "true")
        came = misfile(place / "people", np.random.default_rng(0))
        data, emb, report = (place / name for name in ("data", "emb", "report"))
        run_glint("shard", place / "people", data)
        run_glint("embed", data, "--model", SHARED / "data" / "models" / MODEL, "--out", emb)
        run_glint(
            "dedup-conflicts",
            data,
            "--embeddings",
            emb,
            "--out",
            report,
            "--no-near",
            "--no-thumbs",
        )
        samples = pq.read_table(data / "samples.parquet", columns=["source", "label"])
        source = ["/".join(Path(one).parts[-2:]) for one in samples["source"].to_pylist()]
        said = pq.read_table(data / "identities.parquet")["source_label"].to_pylist()
        wrong = {i for i, one in enumerate(source) if one in came}
        decided = suggested(report, data)
        found = wrong & decided.keys()
        home = {i for i in found if decided[i] >= 0 and said[decided[i]] == came[source[i]]}
        moved = [i for i in decided if decided[i] >= 0]
        say(told("images", len(source)))
        say(told("under a wrong name", len(wrong)))
        say(told("flagged", len(decided)))
        say(floor("of the wrong ones, flagged", len(found) / max(len(wrong), 1), 0.8))
        say(floor("of the flagged, wrong", len(found) / max(len(decided), 1), 0.9))
        say(told("moved", len(moved)))
        say(floor("of the moved, to who it is (or was right before)",
                  len(home) / max(len(moved), 1), 0.9))  # fmt: skip
        before = run_glint("info", data)["label_version"]
        applied = run_glint("dedup-conflicts", "apply", report, "--flagged")
        say(told("label version", applied["version"]))
        scores: dict[str, list[float]] = {"as they came": [], "as decided": [], "as they were": []}
        steps = 20 if args.quick else STEPS

        def train(name: str, root: Path, seed: int) -> None:
            path = write_recipe(place / "recipe.toml", place, data=root, epochs=100, threads=2,
                                every=10**6)  # fmt: skip
            got = run_glint(
                "train", path, "--out", place / f"{name} {seed}", "--set", f"run.seed={seed}",
                "--set", f"schedule.max_steps={steps}", "--set", "run.save_epochs=false",
            )  # fmt: skip
            scores[name].append(got["accuracy"])

        seeds = 1 if args.quick else args.seeds
        for seed in range(seeds):
            train("as decided", data, seed)
        run_glint("dedup-conflicts", "undo", report)
        after = run_glint("info", data)["label_version"]
        say(floor("labels are those before after undo", float(after == before), 1.0))
        for seed in range(seeds):
            train("as they came", data, seed)
            train("as they were", place / "true", seed)
        for name, values in scores.items():
            say(told(f"accuracy on people never seen, labels {name}, mean", float(np.mean(values))))
            spread = (
                float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
            )
            say(told(f"the same, standard error of {len(values)} seeds", spread))
        gain = float(np.mean(scores["as decided"]) - np.mean(scores["as they came"]))
        say(told("gain", gain) if args.quick else floor("gain of the decisions", gain, 0.0))
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if all(line.get("holds") is not False for line in lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
