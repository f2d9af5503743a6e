"""Image quality on real faces: which number knows a degraded image, and what discarding it gains.

    GLINT_SHARED=../shared python benchmarks/quality.py [--quick] [--out FILE]

Images of LFW people with two images or more (under GLINT_SHARED, not part of this project); of a
third of them, drawn at random, the resolution is cut to 14 to 40 pixels, in Pillow, and back. glint
shards, embeds and runs `glint quality` by the norm and by steadiness. Beside them stand two that
need no net: the variance of the Laplacian (the usual measure of blur) and the bytes of the JPEG.
For each: the share of (degraded, untouched) pairs that it orders rightly (AUC), and the pairs of
one person that are rejected at 0.1 % of strangers accepted once the worst tenth is discarded. One
JSON line a figure; exit 1 where one falls short. Nothing of the images is kept.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from figures import ROOT, floor, machine, told
from PIL import Image
from real_faces import SHARED, reader, run_glint

MODELS = {"y1": "mobilefacenet_y1_128d.onnx", "v3": "mobileface_v3_256d.onnx"}
Reals = npt.NDArray[np.float64]


def lay_out(folder: Path, most: int) -> None:
    """Write one folder per person; the names of degraded images end in _low."""
    rng = np.random.default_rng(0)
    lfw = SHARED / "data" / "lfw"
    image_of = reader(lfw)
    rows = list(csv.DictReader((lfw / "images.tsv").open(), delimiter="\t"))
    count: dict[str, int] = {}
    for row in rows:
        count[row["person"]] = count.get(row["person"], 0) + 1
    people = sorted(name for name, images in count.items() if images >= 2)
    taken = set(rng.permutation(people)[: max(2, most // 4)].tolist())
    for row in (row for row in rows if row["person"] in taken):
        data, low = image_of(row["key"]), rng.random() < 1 / 3
        side = int(rng.integers(14, 41))
        if low:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            small = image.resize((side, side), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            small.resize(image.size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
            data = file.getvalue()
        home = folder / row["person"]
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{Path(row['file']).stem}{'_low' if low else ''}.jpg").write_bytes(data)


def blur(data: bytes) -> float:
    """Give the variance of the Laplacian of the grey image: small where it is blurred."""
    grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float64)
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((edges - 4 * grey[1:-1, 1:-1]).var())


def auc(score_N: Reals, low_N: npt.NDArray[np.bool_]) -> float:
    """Give the share of (degraded, untouched) pairs in which the degraded one scores less."""
    rank = np.argsort(np.argsort(score_N))[~low_N] + 1
    clean, low = int((~low_N).sum()), int(low_N.sum())
    return float((rank.sum() - clean * (clean + 1) / 2) / (clean * low))


def main() -> int:
    """Make the material, score it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="200 images and one recogniser")
    parser.add_argument("--out", type=Path, help="write the figures, with the machine's name")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from glint.pipelines import quality
    from glint.shards.dataset import Dataset
    from glint.shards.embeddings import load

    if not (SHARED / "data" / "lfw").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    figures: list[dict[str, Any]] = []

    def say(figure: dict[str, Any]) -> None:
        figures.append(figure)
        print(json.dumps(figure), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        lay_out(place / "people", 200 if args.quick else 800)
        run_glint("shard", place / "people", place / "data")
        data = Dataset(place / "data")
        source = pq.read_table(data.root / "samples.parquet")["source"].to_pylist()
        low_N = np.array([name.endswith("_low.jpg") for name in source])
        say(told("images", data.n))
        say(told("of them degraded", int(low_N.sum())))
        plain = {
            "blur (Laplacian)": np.array([blur(data.read(i)) for i in range(data.n)]),
            "bytes of the JPEG": np.array([len(data.read(i)) for i in range(data.n)], np.float64),
        }
        for name, file in list(MODELS.items())[: 1 if args.quick else None]:
            model, emb = SHARED / "data" / "models" / file, place / f"emb {name}"
            run_glint("embed", data.root, "--model", model, "--out", emb)
            scores = dict(plain)
            for method, words in (("norm", []), ("steady", ["--model", model])):
                out = place / f"{name} {method}"
                run_glint("quality", data.root, "--embeddings", emb, "--out", out,
                          "--method", method, *words)  # fmt: skip
                scores[method] = quality.load(out, data).astype(np.float64)
            rows = load(emb, data.digest, images=data.n, classes=data.classes)
            left: dict[str, float] = {}
            for method, score_N in scores.items():
                say(told(f"{name}: AUC of {method}", auc(score_N, low_N)))
                found = quality.curve(rows.sample_ND, data.label, score_N.astype(np.float32))
                assert found is not None
                at = found["discarded"].index(0.1)
                left[method] = found["fnmr"][at] / found["fnmr"][0]
                say({**told(f"{name}: rejected without the worst tenth by {method}, of all",
                            left[method]), "curve": found["fnmr"],
                     "at_random": found["at_random"]})  # fmt: skip
            best = min(left[word] for word in plain)
            if not args.quick:
                for method in ("norm", "steady"):
                    say(floor(f"{name}: {method} rejects less than what needs no net, by",
                              best - left[method], 0.0))  # fmt: skip
    head = {"benchmark": "quality", "quick": args.quick, **machine("numpy", "onnxruntime")}
    if args.out:
        args.out.write_text("".join(json.dumps(line) + "\n" for line in [head, *figures]))
    return 1 if any(figure["holds"] is False for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
