"""`glint bench` on LFW against the field's own procedure, to the last digit.

    GLINT_SHARED=../shared python benchmarks/lfw_protocol.py --peer VERIFICATION.py

LFW's 6,000 pairs are given to `glint bench` as a pack, as its `pairs.txt` over folders, and as the
same list over a glint dataset. Beside it stand a loop over onnxruntime that shares nothing with
glint, and `calculate_roc` of arcface_torch's verification.py (not part of this project; of what it
imports, mxnet and scikit-learn are stood in for where they are not installed). Accuracy and its
deviation must be equal. One JSON line a figure; exit 1 where one differs.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from figures import ROOT, machine, told
from PIL import Image
from real_faces import SHARED, reader, run_glint

NETS = {"y1": "mobilefacenet_y1_128d.onnx", "v3": "mobileface_v3_256d.onnx"}


def rows(quick: bool) -> list[dict[str, str]]:
    """Give the pairs, those of a fold together."""
    lines = list(csv.DictReader((SHARED / "data/lfw/pairs.tsv").open(), delimiter="\t"))
    return [row for row in lines if not quick or int(row["fold"]) < 2]


def sets(place: Path, pairs: list[dict[str, str]]) -> dict[str, Path]:
    """Write the pairs as a pack, as LFW's list over folders, and over a dataset."""
    from glint.evals.packs import write_bin

    lfw = SHARED / "data/lfw"
    image_of = reader(lfw)
    lines = csv.DictReader((lfw / "images.tsv").open(), delimiter="\t")
    key_of = {row["file"]: row["key"] for row in lines}
    sides = [row[side] for row in pairs for side in "ab"]
    folders = {name: place / name for name in ("pack", "list", "dataset")}
    for folder in folders.values():
        folder.mkdir()
    write_bin(folders["pack"] / "lfw.bin", [image_of(key_of[name]) for name in sides],
              [row["same"] == "1" for row in pairs])  # fmt: skip
    for name in {*sides}:
        path = folders["list"] / "lfw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_of(key_of[name]))
    folds = len({row["fold"] for row in pairs})
    each = sum(row["fold"] == pairs[0]["fold"] for row in pairs) // 2
    text = [f"{folds}\t{each}"]
    for row in pairs:
        (a, i), (b, j) = ((Path(row[side]).parent.name, int(row[side][-8:-4])) for side in "ab")
        text.append(f"{a}\t{i}\t{j}" if row["same"] == "1" else f"{a}\t{i}\t{b}\t{j}")
    for kind in ("list", "dataset"):
        (folders[kind] / "pairs.txt").write_text("\n".join(text) + "\n")
    run_glint("shard", folders["list"] / "lfw", folders["dataset"] / "lfw")
    return folders


def bench(folder: Path, nets: list[str]) -> dict[str, dict[str, Any]]:
    """Run `glint bench`; give each net's row."""
    models = [str(SHARED / "data/models" / NETS[net]) for net in nets]
    done = subprocess.run(
        [sys.executable, "-m", "glint", "bench", *models, "--sets", str(folder), "--json",
         "--draws", "20"], capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(done.stdout)["rows"]
    if len(found) != len(nets):
        raise SystemExit(f"expected {len(nets)} rows, found {[row['set'] for row in found]}")
    return {net: row["figures"] for net, row in zip(nets, found)}


def field(net: str, place: Path, pairs: list[dict[str, str]]) -> np.ndarray:
    """Embed as the field does, twice an image: (2 n, E), unit rows."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(SHARED / "data/models" / NETS[net]),
                                           providers=["CPUExecutionProvider"])  # fmt: skip
    name = session.get_inputs()[0].name
    known: dict[str, np.ndarray] = {}
    for side in sorted({row[side] for row in pairs for side in "ab"}):
        data = (place / "list" / "lfw" / side).read_bytes()
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)
        both = np.stack([image, image[:, ::-1]]).transpose(0, 3, 1, 2)
        made = [session.run(None, {name: np.ascontiguousarray(one[None])})[0][0] for one in both]
        known[side] = made[0].astype(np.float64) + made[1]
    sums = np.stack([known[row[side]] for row in pairs for side in "ab"])
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    return sums


def judged(sums: np.ndarray, pairs: list[dict[str, str]], folds: int, verification: Any) -> Any:
    """Give the accuracy of each fold by the field's script."""
    same = np.array([row["same"] == "1" for row in pairs])
    thresholds = np.arange(0, 4, 0.01)  # as in `evaluate`, whose TAR today's scipy refuses
    return verification.calculate_roc(thresholds, sums[0::2], sums[1::2], same, folds)[2]


def verification_of(path: Path) -> Any:
    """Load the peer's script; stand in for packages that its `calculate_roc` hardly uses."""

    class KFold:
        """Parts that follow one another, as scikit-learn's without shuffling."""

        def __init__(self, n_splits: int, shuffle: bool) -> None:
            assert not shuffle
            self.count = n_splits

        def split(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for part in np.array_split(indices, self.count):
                yield np.setdiff1d(indices, part), part

    parts = {
        "mxnet": {"ndarray": SimpleNamespace()}, "sklearn": {},
        "sklearn.decomposition": {"PCA": None}, "sklearn.model_selection": {"KFold": KFold},
    }  # fmt: skip
    absent = {one for one in ("mxnet", "sklearn") if importlib.util.find_spec(one) is None}
    for name, names in parts.items():
        if name.split(".")[0] in absent:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__dict__.update(names)
    spec = importlib.util.spec_from_file_location("verification", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def main() -> int:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=Path, required=True, help="arcface_torch's verification.py")
    parser.add_argument("--quick", action="store_true", help="two folds, the small net")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if not (SHARED / "data" / "lfw").is_dir():
        print(f"no real faces under {SHARED}: set GLINT_SHARED", file=sys.stderr)
        return 2
    verification, pairs = verification_of(args.peer), rows(args.quick)
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folders = sets(place, pairs)
        truth = {net: field(net, place, pairs)
                 for net in NETS if not args.quick or net == "v3"}  # fmt: skip
        for kind, folder in folders.items():
            # the list and the dataset hold the same images: one net says what there is to say
            nets = [net for net in truth if kind == "pack" or net == "v3"]
            folds = 10 if kind == "pack" else len({row["fold"] for row in pairs})  # packs say none
            for net, row in bench(folder, nets).items():
                fold_accuracy = judged(truth[net], pairs, folds, verification)
                words = f"{net} on LFW, {len(pairs)} pairs, by {kind}"
                for what, ours, theirs in (
                    ("accuracy", row["accuracy"], float(np.mean(fold_accuracy))),
                    ("deviation", row["std"], float(np.std(fold_accuracy))),
                ):
                    figures.append(
                        {"figure": f"{words}: {what}", "value": ours, "target": theirs,
                         "holds": abs(ours - theirs) < 1e-12}
                    )  # fmt: skip
                    print(json.dumps(figures[-1]), flush=True)
    if args.out:
        lines = [told("machine", 0) | {"value": machine("onnxruntime", "numpy")}, *figures]
        args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0 if all(one["holds"] for one in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
