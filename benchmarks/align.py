"""`glint align` against insightface's `FaceAnalysis.get` and `norm_crop`, and a known truth.

    python benchmarks/align.py --quick
    python benchmarks/align.py --out benchmarks/results/align.jsonl

One JSON line a figure: {"figure", "value", "target", "holds"}; exit 1 where one falls short.
GLINT_SHARED names the folder of real photographs and models (data/lfw, data/models); insightface
must be installed. Both use the same SCRFD file.

same: 120 real photographs of 250 x 250: the same faces, their points, the crops before JPEG and as
stored (quality 95, 4:4:4).
accuracy: the y1 recogniser on both kinds of crops, all pairs of the photographs, mean of the rates
of pairs of one person and of two, at the threshold that is best for insightface's crops.
shrinking: the same photographs at four times the size with grain of 12 grey levels, cut with and
without averaging: similarity to the crop of the photograph as it was.
bed: crops of LFW put by known similarities into made pictures of 900 x 700: no face to four, sides
of 20 to 400 pixels, turned up to 60 degrees; some grey, some PNG, some turned by Exif. Truth of a
face's points: what the detector finds in the crop itself, moved by the similarity. A face is found
where points lie within a quarter of its side; what is near none is wrong. insightface judged so,
too, on the same pictures.
wide: photographs put into pictures of 1600 x 1067 at x = 1200; truth: their points alone.
speed: photographs a CPU second, all threads and processes; imports do not count, opening the
detector does. insightface: cv2.imread, get, norm_crop, cv2.imwrite.
workers: wall time of one worker over that of two, where the machine is idle before; on any, the CPU
time of one over what the parent and each of two take: what the wall times of idle cores would be.
memory: the largest resident set of a process that aligns photographs of 24 megapixels.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from figures import ceiling, floor, machine, told

Figure = dict[str, Any]
ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("GLINT_SHARED", ROOT.parent / "shared")) / "data"
DETECTOR = SHARED / "models" / "scrfd_500m_kps.onnx"
MEMORY = """
import re, sys
from pathlib import Path
from glint.pipelines.dataset.align import Align, Model, align
made = align(Path(sys.argv[1]), Path(sys.argv[2]), Align(detector=Model(sys.argv[3])))
assert made.written == made.read, made
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def peer(work: Path, threads: int = 0) -> Any:
    """Open insightface's FaceAnalysis with the detector, of its own threads or of `threads`."""
    import onnxruntime
    from insightface.app import FaceAnalysis

    folder = work / "home" / "models" / "one"
    if not folder.exists():
        folder.mkdir(parents=True)
        shutil.copy(DETECTOR, folder / "det.onnx")
    more: dict[str, Any] = {}
    if threads:
        more["sess_options"] = onnxruntime.SessionOptions()
        more["sess_options"].intra_op_num_threads = threads
    app = FaceAnalysis(
        "one", root=str(work / "home"), allowed_modules=["detection"],
        providers=["CPUExecutionProvider"], **more,
    )  # fmt: skip
    app.prepare(ctx_id=-1, det_size=(640, 640))
    return app


def aligned(src: Path, out: Path, workers: int = 1, **options: Any) -> Any:
    """Align photographs; return the result."""
    from glint.pipelines.dataset.align import Align, Model, align
    from glint.shards.sources.rule import Rule

    given = Align(detector=Model(str(DETECTOR)), **{"samples_per_shard": 60, **options})
    return align(src, out, given, Rule(), workers=workers, max_bad=1.0)


def rows(out: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield the rows of a dataset with their crops, decoded."""
    import pyarrow.parquet as pq

    from glint.shards import pixels
    from glint.shards.dataset import Dataset

    data = Dataset(out)
    for i, row in enumerate(pq.read_table(out / "samples.parquet").to_pylist()):
        yield row, pixels.rgb(data.read(i))


def by_photo(out: Path) -> dict[str, list[tuple[dict[str, Any], np.ndarray]]]:
    """Group the rows of a dataset by photograph, faces in their order."""
    found: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = defaultdict(list)
    for row, crop in rows(out):
        found[row["source"]].append((row, crop))
    return found


# ---- the same as the peer ----------------------------------------------------------------------


def same(work: Path) -> list[Figure]:
    """Hold faces, points and crops against insightface's, and both under a recogniser."""
    import cv2
    from insightface.utils.face_align import norm_crop

    from glint.models.recogniser import open_model
    from glint.shards import crops

    app, src = peer(work), work / "raw"
    aligned(src, work / "all", faces="all")
    found = by_photo(work / "all")
    differ = faces = 0
    apart, before, after = list[float](), list[float](), list[float]()
    ours, theirs, people = list[np.ndarray](), list[np.ndarray](), list[str]()
    for path in sorted(src.rglob("*.jpg")):
        photo = cv2.imread(str(path))
        told_of = found.get(str(path.relative_to(src)), [])
        known = sorted(app.get(photo), key=lambda f: -np.prod(f.bbox[2:] - f.bbox[:2]))
        differ += abs(len(known) - len(told_of))
        faces += len(known)
        for face, (row, crop) in zip(known, told_of):
            points = np.array(row["points"]).reshape(5, 2)
            apart.append(float(np.hypot(*(points - face.kps).T).max()))
            wanted = norm_crop(photo, face.kps)[..., ::-1]
            plain = crops.cut(np.ascontiguousarray(photo[..., ::-1]), crops.similarity(points))
            before.append(float(np.abs(plain.astype(int) - wanted).mean()))
            after.append(float(np.abs(crop.astype(int) - wanted).mean()))
            if row["face"] == 0:
                ours.append(crop)
                theirs.append(wanted)
                people.append(path.parent.name)
    model = open_model(SHARED / "models" / "mobilefacenet_y1_128d.onnx", threads=1)
    figures = [
        told("same: faces that insightface finds", faces),
        ceiling("same: faces that one of both lacks", differ, 0),
        ceiling("same: points apart, pixels, the most", max(apart), 0.5),
        ceiling("same: crops apart before JPEG, grey levels, mean of the worst", max(before), 2),
        ceiling("same: crops apart as stored, grey levels, mean of the worst", max(after), 2),
        told("same: crops apart as stored, grey levels, mean", float(np.mean(after))),
    ]
    return figures + accuracy(model, np.stack(ours), np.stack(theirs), np.array(people))


def unit(model: Any, crop_n: np.ndarray) -> np.ndarray:
    """Embed crops to unit length."""
    feature = model.embed(np.ascontiguousarray(crop_n))
    return np.asarray(feature / np.linalg.norm(feature, axis=1, keepdims=True))


def accuracy(model: Any, ours: np.ndarray, theirs: np.ndarray, people: np.ndarray) -> list[Figure]:
    """Compare a recogniser's accuracy on two kinds of crops of the same faces."""
    upper = np.triu_indices(len(people), 1)
    one = (people[:, None] == people)[upper]
    cosine = {}
    for name, crop_n in (("ours", ours), ("theirs", theirs)):
        feature = unit(model, crop_n)
        cosine[name] = (feature @ feature.T)[upper]

    def right(score: np.ndarray, threshold: float) -> float:
        return 50 * float((score[one] > threshold).mean() + (score[~one] <= threshold).mean())

    best = max(np.linspace(0, 0.8, 161), key=lambda t: right(cosine["theirs"], t))
    on = {name: right(score, best) for name, score in cosine.items()}
    moved = np.abs(cosine["ours"] - cosine["theirs"])
    return [
        told("accuracy: pairs of one person", int(one.sum())),
        told("accuracy: on insightface's crops, %", on["theirs"]),
        told("accuracy: on glint's crops, %", on["ours"]),
        ceiling("accuracy: apart, points", abs(on["ours"] - on["theirs"]), 0.2),
        told("accuracy: change of a pair's cosine, mean", float(moved.mean())),
    ]


def shrinking(work: Path, most: int) -> list[Figure]:
    """Cut crops of enlarged, grainy photographs with and without averaging."""
    from PIL import Image

    from glint.models.recogniser import open_model

    src, draw = work / "raw", np.random.default_rng(1)
    for path in sorted(src.rglob("*.jpg"))[:most]:
        image = Image.open(path)
        large = np.asarray(image.resize((1000, 1000), Image.Resampling.LANCZOS)).astype(np.float32)
        large += draw.normal(0, 12, large.shape)
        place = work / "large" / path.relative_to(src)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(place, quality=95)
    aligned(src, work / "small")
    model = open_model(SHARED / "models" / "mobilefacenet_y1_128d.onnx", threads=1)
    small = by_photo(work / "small")
    figures, likeness = list[Figure](), dict[bool, float]()
    for averaged in (True, False):
        out = work / f"large-{averaged}"
        aligned(work / "large", out, antialias=averaged)
        pairs = [(small[row["source"]][0][1], crop) for row, crop in rows(out)]
        a, b = (unit(model, np.stack(some)) for some in zip(*pairs))
        likeness[averaged] = float((a * b).sum(1).mean())
        name = "averaged" if averaged else "as the field does"
        figures.append(
            told(f"shrinking: cosine to the crop without grain, {name}", likeness[averaged])
        )
    gain = likeness[True] - likeness[False]
    return [*figures, floor("shrinking: gain in cosine by averaging", gain, 0)]


# ---- a bed with known truth --------------------------------------------------------------------


def placed(draw: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray | None:
    """Draw a similarity (2, 3) from a crop into a picture of 900 x 700, away from the others."""
    for _ in range(30):
        side, angle = 20 * 20 ** draw.random(), np.radians(draw.uniform(-60, 60))
        scale, half = side / 112, side * 0.72
        middle = draw.uniform([half, half], [900 - half, 700 - half]) if half < 350 else [450, 350]
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if all(np.hypot(*(middle - m[:2])) > half + m[2] for m in taken):
            taken.append(np.array([*middle, half]))
            return np.column_stack([turn, middle - turn @ [56, 56]])
    return None


def bed(work: Path, pictures: int) -> list[Figure]:
    """Find faces whose places are known."""
    from PIL import Image

    from glint.models.detector import open_detector
    from glint.shards import pixels
    from glint.shards.sources import open_source

    source, draw = open_source(SHARED / "lfw" / "train.rec"), np.random.default_rng(0)
    detector = open_detector(DETECTOR, threads=1)
    truth: dict[str, list[tuple[np.ndarray, float, float]]] = {}
    (work / "bed" / "x").mkdir(parents=True)
    y, x = np.mgrid[:112, :112]
    soft = np.clip(np.minimum(np.minimum(x, y), np.minimum(111 - x, 111 - y)) / 8, 0, 1)
    for n in range(pictures):
        coarse = draw.integers(70, 180, (8, 10, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((900, 700), Image.Resampling.BICUBIC)
        faces, taken = [], list[np.ndarray]()
        for _ in range(n % 5):
            crop = pixels.rgb(source.read(int(draw.integers(source.n))))
            seen = detector.find([np.pad(crop, ((37, 37), (37, 37), (0, 0)))], 0.5)[0].moved(-37)
            matrix = placed(draw, taken)
            if matrix is None or not len(seen.score):
                continue
            back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
            k = max(1, int(np.hypot(*back[0, :2])))  # small ones are averaged, not sampled
            layers = []
            for one in (crop, np.repeat((soft[..., None] * 255).astype(np.uint8), 3, 2)):
                image = Image.fromarray(one)
                shift = back.copy()
                if k > 1:
                    image = image.reduce(k)
                    shift = np.vstack([shift[:2] / k, [0, 0, 1]])
                    shift[:2, 2] += 0.5 / k - 0.5
                # Pillow's coordinates are of corners: half a pixel on both sides
                data = shift[:2].copy()
                data[:, 2] += 0.5 - 0.5 * data[:, :2].sum(1)
                how = Image.Transform.AFFINE, data.ravel().tolist(), Image.Resampling.BICUBIC
                layers.append(image.transform((900, 700), *how))
            picture = Image.composite(layers[0], picture, layers[1].convert("L"))
            points = seen.points[0] @ matrix[:, :2].T + matrix[:, 2]
            angle = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
            faces.append((points, float(112 * np.hypot(*matrix[:, 0])), float(angle)))
        name, options = f"{n}.jpg", {"quality": 92}
        if n % 3 == 1:
            name, options = f"{n}.png", {}
        if n % 7 == 2:
            picture = picture.convert("L")
        if n % 7 == 5 and name.endswith("jpg"):
            exif = Image.Exif()
            exif[0x0112] = 6  # stored turned by a quarter
            picture, options = (
                picture.transpose(Image.Transpose.ROTATE_90),
                {**options, "exif": exif},
            )
        picture.save(work / "bed" / "x" / name, **options)
        truth[f"x/{name}"] = faces
    made = aligned(work / "bed", work / "bed-out", faces="all", unlabelled=True, max_faces=20)
    ours = {
        name: [np.array(row["points"]).reshape(5, 2) for row, _ in faces]
        for name, faces in by_photo(work / "bed-out").items()
    }
    import cv2

    app, theirs = peer(work), dict[str, list[np.ndarray]]()
    for name in truth:
        theirs[name] = [face.kps for face in app.get(cv2.imread(str(work / "bed" / name)))]
    figures = [told("bed: photos quarantined", made.quarantined)]
    figures += [*judged("glint", truth, ours), *judged("insightface", truth, theirs)]
    all_ = {f["figure"].split(",")[0]: f["value"] for f in figures if ", found, all" in f["figure"]}
    apart = abs(all_["bed: glint"] - all_["bed: insightface"])
    return [
        *figures,
        ceiling("bed: share of found faces, apart from insightface's, points", apart, 1),
    ]


def judged(who: str, truth: dict[str, Any], found: dict[str, Any]) -> list[Figure]:
    """Count found, missed and wrong faces by size and angle, and how far points are from truth."""
    count: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    errors: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    wrong = 0
    for name, faces in truth.items():
        left = list(found.get(name, []))
        for points, side, angle in faces:
            apart = [float(np.hypot(*(one - points).T).mean()) for one in left]
            best = int(np.argmin(apart)) if apart else -1
            hit = best >= 0 and apart[best] < 0.25 * side
            size = next(f"side {a} to {b}" for a, b in SIDES if side < b)
            turned = next(f"turned {a} to {b}" for a, b in ANGLES if abs(angle) <= b)
            for group in ("all", size, turned if side >= 40 else "tiny"):
                count[group][0] += hit
                count[group][1] += 1
            if hit:
                left.pop(best)
                for group in ("all", size):
                    errors[group].append(apart[best])
                    shares[group].append(100 * apart[best] / side)
        wrong += len(left)
    figures = [told(f"bed: {who}, wrong", wrong)]
    for group in ("all", *(f"side {a} to {b}" for a, b in SIDES)):
        share = 100 * count[group][0] / max(count[group][1], 1)
        figures.append(told(f"bed: {who}, found, {group} ({count[group][1]} faces), %", share))
        for unit_, off in (("pixels", errors[group]), ("% of the side", shares[group])):
            value = float(np.median(off)) if off else 0.0
            figures.append(told(f"bed: {who}, points off, {group}, {unit_}, median", value))
    for a, b in ANGLES:
        hit, all_ = count[f"turned {a} to {b}"]
        name = f"bed: {who}, found, side 40 and more, turned {a} to {b} ({all_} faces), %"
        figures.append(told(name, 100 * hit / max(all_, 1)))
    return figures


SIDES = ((20, 40), (40, 80), (80, 160), (160, 401))
ANGLES = ((0, 15), (15, 30), (30, 60))


def wide(work: Path, most: int) -> list[Figure]:
    """Find faces at known places of pictures of 1600 x 1067, whose sides round down apart."""
    import cv2

    from glint.models.detector import open_detector

    app, detector = peer(work), open_detector(DETECTOR, threads=1)
    off: dict[str, list[float]] = defaultdict(list)
    for path in sorted((work / "raw").rglob("*.jpg"))[:most]:
        photo = cv2.imread(str(path))
        alone = detector.find([np.ascontiguousarray(photo[..., ::-1])], 0.5)[0].points[0]
        picture = np.full((1067, 1600, 3), 110, np.uint8)
        picture[400:650, 1200:1450] = photo
        ours = detector.find([np.ascontiguousarray(picture[..., ::-1])], 0.5)[0]
        theirs = app.get(picture)
        if len(ours.score) and theirs:
            off["glint"].append(float((ours.points[0] - alone)[:, 0].mean()) - 1200)
            off["insightface"].append(float((theirs[0].kps - alone)[:, 0].mean()) - 1200)
    name = "wide: points off to the right at x = 1200 of 1600, pixels, mean"
    return [
        told(f"{name}, insightface", float(np.mean(off["insightface"]))),
        ceiling(f"{name}, glint", abs(float(np.mean(off["glint"]))), 0.75),
    ]


# ---- cost --------------------------------------------------------------------------------------


def speed(work: Path, copies: int) -> list[Figure]:
    """Compare CPU time with insightface's loop, and two workers with one."""
    import cv2
    from insightface.utils.face_align import norm_crop

    photos = sorted((work / "raw").rglob("*.jpg"))
    heap = work / "heap"
    for copy in range(copies):
        shutil.copytree(work / "raw", heap / str(copy))
    paths = sorted(heap.rglob("*.jpg"))

    def spent(call: Any) -> tuple[float, float, float]:
        """Return the CPU seconds of this process and of its children, and the wall time."""
        before, began = os.times(), time.monotonic()
        call()
        after = os.times()
        own, theirs = (sum(after[i : i + 2]) - sum(before[i : i + 2]) for i in (0, 2))
        return own, theirs, time.monotonic() - began

    def loop(app: Any) -> None:
        for path in photos:
            photo = cv2.imread(str(path))
            faces = app.get(photo)
            if faces:
                face = max(faces, key=lambda f: np.prod(f.bbox[2:] - f.bbox[:2]))
                quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
                cv2.imwrite(str(work / "crop.jpg"), norm_crop(photo, face.kps), quality)

    apps = {name: peer(work, threads) for name, threads in (("as it comes", 0), ("one thread", 1))}
    idle = os.getloadavg()[0] < 0.5
    took: dict[str, list[float]] = defaultdict(list)
    for name, app in apps.items():
        took[name] = [sum(spent(lambda app=app: loop(app))[:2]) / len(photos) for _ in range(3)]
    told_of = {}
    for workers in (1, 2):
        out = work / f"speed-{workers}"
        told_of[workers] = spent(lambda w=workers: aligned(heap, out, w, samples_per_shard=30))  # noqa: B023
        took[f"glint, {workers}"].append(sum(told_of[workers][:2]) / len(paths))
    per = {name: 1 / float(np.median(values)) for name, values in took.items()}
    figures = [told(f"speed: photos a CPU second, {name}", value) for name, value in per.items()]
    wall = told_of[1][2] / told_of[2][2]
    name = "workers: two against one, wall time"
    figures += [floor(name, wall, 1.7) if idle else told(f"{name}, the machine was busy", wall)]
    parent, both = told_of[2][:2]
    even = sum(told_of[1][:2]) / (parent + both / 2)
    return [
        *figures,
        floor(f"workers: two against one, CPU time, {len(paths)} photos", even, 1.7),
        floor("speed: times insightface as it comes", per["glint, 1"] / per["as it comes"], 1.5),
        told("speed: times insightface, one thread", per["glint, 1"] / per["one thread"]),
    ]


def memory(work: Path) -> list[Figure]:
    """Align photographs of 24 megapixels in a fresh process."""
    from PIL import Image

    (work / "huge" / "x").mkdir(parents=True)
    paths = sorted((work / "raw").rglob("*.jpg"))
    for n, (path, options) in enumerate(
        [(paths[0], {"quality": 92}), (paths[3], {"quality": 92}), (paths[6], {})]
    ):
        photo = Image.open(path).resize((4000, 6000), Image.Resampling.BICUBIC)
        if n == 1:
            exif = Image.Exif()
            exif[0x0112] = 6
            photo, options = photo.transpose(Image.Transpose.ROTATE_90), {**options, "exif": exif}
        photo.save(work / "huge" / "x" / f"{n}.{'jpg' if options else 'png'}", **options)
    if (work / "huge" / "x" / "2.png").stat().st_size > 16 << 20:  # more than glint reads
        (work / "huge" / "x" / "2.png").unlink()
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(work / "huge"), str(work / "huge-out"), str(DETECTOR)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ceiling("memory: at 24 megapixels, MiB", int(done.stdout) / 1024, 1024)]


def main() -> None:
    """Run the parts and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="same, shrinking, bed, wide, speed, memory")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with tarfile.open(SHARED / "lfw" / "raw_sample_250.tar") as file:
            file.extractall(work / "tar", filter="data")
        next((work / "tar").iterdir()).rename(work / "raw")
        parts = {
            "same": lambda: same(work),
            "shrinking": lambda: shrinking(work, 20 if chosen.quick else 120),
            "bed": lambda: bed(work, 40 if chosen.quick else 200),
            "wide": lambda: wide(work, 20 if chosen.quick else 60),
            "speed": lambda: speed(work, 2 if chosen.quick else 8),
            "memory": lambda: memory(work),
        }
        for name, part in parts.items():
            if not chosen.only or name in chosen.only.split(","):
                made = part()
                figures += made
                for figure in made:
                    print(json.dumps(figure), flush=True)
    if chosen.out:
        about = machine("insightface", "onnxruntime", "opencv-python", "numpy", "pillow")
        with chosen.out.open("a") as file:
            for figure in figures:
                file.write(json.dumps({**figure, **about}) + "\n")
    sys.exit(any(figure["holds"] is False for figure in figures))


if __name__ == "__main__":
    main()
