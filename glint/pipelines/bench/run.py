"""Run models over the tests of a folder: the figures of `glint eval`, with intervals and groups."""

# n images of a test, m pairs, D embedding

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from glint.errors import GlintError, InputError
from glint.evals import allpairs, identify, intervals, people, rates, roc, templates
from glint.evals.embed import embed_images, embed_jpegs
from glint.evals.intervals import Intervals
from glint.evals.lists import FolderImages, images_of
from glint.evals.packs import Pairs, nonsense
from glint.evals.pairs import FARS, SampleImages, Samples, fold_numbers, ten_fold
from glint.evals.sets import Look, Part
from glint.log import Progress, silent
from glint.models.recogniser import Recogniser
from glint.shards import labels, pixels
from glint.shards.crops import cut, similarity
from glint.shards.dataset import Dataset

WORST = 8  # pairs of each kind that are shown with faces


@dataclass(frozen=True)
class Options:
    """How tests are run, for all models alike."""

    flip: bool = True
    batch: int = 32
    draws: int = intervals.DRAWS
    seed: int = 0
    device: str = "cpu"
    faces: bool = False  # keep the worst pairs' images


@dataclass
class Timed:
    """A model that counts the seconds and images of its calls."""

    model: Recogniser
    seconds: float = 0.0
    images: int = 0

    def __post_init__(self) -> None:
        run = self.model._run

        def timed(image_nHWC: np.ndarray) -> np.ndarray:
            start = time.perf_counter()
            made = run(image_nHWC)
            self.seconds += time.perf_counter() - start
            self.images += len(image_nHWC)
            return made

        self.model = replace(self.model, _run=timed)


@dataclass
class Ran:
    """What a model makes of a test. figures: as `glint eval --json` has them.

    people: how persons are told; groups: rows by group; rates: with curve and histogram; worst:
    (cosine, same, both images). clean: the figures without people of a training set.
    """

    part: Part
    figures: dict[str, Any] = field(default_factory=dict)
    intervals: Intervals | None = None
    people: str = ""
    groups: list[dict[str, Any]] = field(default_factory=list)
    rates: dict[str, Any] | None = None
    worst: list[tuple[float, bool, bytes, bytes]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    contamination: dict[str, Any] | None = None
    error: GlintError | None = None
    distance_m: np.ndarray | None = None
    same_m: np.ndarray | None = None


# pairs, raw embeddings of their images, persons -> of each image, whether a training set has it
Known = Callable[[Part, Pairs, np.ndarray, np.ndarray], dict[str, Any]]


def run(
    part: Part, model: Recogniser, look: Look, options: Options,
    *, known: Known | None = None, progress: Progress = silent,
) -> Ran:  # fmt: skip
    """Run one test with one model. A mistake in the test's files is in the answer's `error`."""
    if part.error is not None:
        return Ran(part, error=part.error)
    kinds = {"pack": _pairs, "pairs": _pairs, "ijb": _ijb, "tinyface": _tinyface,
             "distractors": _distractors, "all-pairs": _all_pairs}  # fmt: skip
    try:
        return kinds[part.kind](part, model, look, options, known, progress)
    except GlintError as error:
        return Ran(part, error=error)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        return Ran(part, error=InputError("GL0903", what, where=str(error.filename or part.path)))


def _pairs(
    part: Part, model: Recogniser, look: Look, options: Options,
    known: Known | None, progress: Progress,
) -> Ran:  # fmt: skip
    assert part.load is not None
    pairs = part.load()
    x_nD = embed_images(model, pairs, flip=options.flip, batch=options.batch, progress=progress)
    a_mD, b_mD = x_nD[pairs.first], x_nD[pairs.second]
    found = ten_fold(a_mD, b_mD, pairs.same, pairs.folds)
    ran = Ran(part, found.as_dict())
    ran.warnings += [why] if (why := nonsense(pairs)) else []
    distance_m = rates.squared_distance(a_mD, b_mD)
    ran.distance_m, ran.same_m = distance_m, pairs.same
    fold_m = fold_numbers(len(pairs), pairs.folds)[0]
    person_n, ran.people, names = people.people(pairs)
    a_m, b_m = person_n[pairs.first], person_n[pairs.second]

    def spread(keep_m: np.ndarray) -> Intervals:
        return intervals.bootstrap(
            distance_m[keep_m], pairs.same[keep_m], fold_m[keep_m], a_m[keep_m], b_m[keep_m],
            fars=FARS, draws=options.draws, seed=options.seed,
        )  # fmt: skip

    ran.intervals = spread(np.ones(len(pairs), bool))
    cosine_m = 1 - distance_m / 2
    ran.rates = roc.accept_rates(cosine_m[pairs.same], cosine_m[~pairs.same], FARS)
    ran.rates["cuts"] = [(1 - found.threshold / 2, "threshold")]
    for path, table in look.groups:
        if path.parent in (part.path.parent, *part.path.parents):
            group_n = people.group_of(pairs, table, person_n, names)
            ran.groups = by_group(
                distance_m, pairs.same, group_n[pairs.first], group_n[pairs.second], found.threshold
            )
    if options.faces:
        ran.worst = _worst(pairs, distance_m)
    if known is not None:
        told = known(part, pairs, x_nD, person_n)
        ran.contamination = _apart(told, pairs, a_mD, b_mD, fold_m, spread)
    return ran


def _apart(
    told: dict[str, Any], pairs: Pairs, a_mD: np.ndarray, b_mD: np.ndarray, fold_m: np.ndarray,
    spread: Callable[[np.ndarray], Intervals],
) -> dict[str, Any]:  # fmt: skip
    """Verify again without pairs of people, or of images, that a training set holds."""
    made = {name: value for name, value in told.items() if not isinstance(value, np.ndarray)}
    for kind in ("people", "images"):
        held_n = told[kind]
        keep_m = ~(held_n[pairs.first] | held_n[pairs.second])
        same = int(pairs.same[keep_m].sum())
        row: dict[str, Any] = {"pairs": int(keep_m.sum()), "same": same}
        if same and same < keep_m.sum():
            found = ten_fold(a_mD[keep_m], b_mD[keep_m], pairs.same[keep_m], fold_m[keep_m])
            row |= {"accuracy": found.accuracy, "tar_at_far": found.tar_at_far}
            folds = np.unique(fold_m[keep_m])
            row["accuracy_interval"] = list(spread(keep_m).accuracy) if len(folds) > 1 else None
        made[f"without_{kind}"] = row
    return made


def by_group(
    distance_m: np.ndarray, same_m: np.ndarray, a_m: np.ndarray, b_m: np.ndarray, threshold: float
) -> list[dict[str, Any]]:
    """Count errors of each group at the one threshold of the whole test.

    A pair of two groups stands under `across`; one of which a side is in no group under `none`.
    """
    both_m = np.where(a_m == b_m, a_m, "across")
    both_m = np.where((a_m == "") | (b_m == ""), "none", both_m)
    rows = []
    for group in np.unique(both_m).tolist():
        mine = both_m == group
        near, same = distance_m[mine] < threshold, same_m[mine]
        rows.append({
            "group": group, "pairs": int(mine.sum()), "same": int(same.sum()),
            "accuracy": float(np.mean(near == same)),
            "refused_same": float(np.mean(~near[same])) if same.any() else None,
            "accepted_different": float(np.mean(near[~same])) if (~same).any() else None,
        })  # fmt: skip
    return rows


def pooled(rans: Sequence[Ran]) -> list[dict[str, Any]]:
    """Hold tests of one group each to one threshold, the best of all together."""
    mine = [ran for ran in rans if ran.part.of and ran.distance_m is not None]
    if len(mine) < 2:
        return []
    distance_m = np.concatenate([ran.distance_m for ran in mine])
    same_m = np.concatenate([ran.same_m for ran in mine])
    group_m = np.concatenate([np.full(len(ran.same_m), ran.part.group) for ran in mine])  # type: ignore[arg-type]
    return by_group(
        distance_m, same_m, group_m, group_m, intervals.best_threshold(distance_m, same_m)
    )


def _worst(pairs: Pairs, distance_m: np.ndarray) -> list[tuple[float, bool, bytes, bytes]]:
    found = []
    for same in (True, False):
        rows = np.flatnonzero(pairs.same == same)
        order = np.argsort(distance_m[rows], kind="stable")
        for row in rows[order[::-1] if same else order][:WORST].tolist():
            a, b = (pairs.images[int(side[row])] for side in (pairs.first, pairs.second))
            found.append((1 - float(distance_m[row]) / 2, same, a, b))
    return found


def _listed(place: Path) -> tuple[Samples, list[str], np.ndarray | None]:
    """Open a folder or dataset: its samples, the path of each, and labels where it has any."""
    samples = images_of(place)
    label = None
    if isinstance(samples, Dataset):
        table = labels.current(samples.root, samples.classes)
        label = table.sample_target(samples.label)
    return samples, list(samples.source), label


def _embedded(
    place: Path, model: Recogniser, options: Options, progress: Progress
) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    samples, names, label_n = _listed(place)
    images = SampleImages(samples, np.arange(len(names)))
    x_nD = embed_jpegs(
        model, images, flip=options.flip, batch=options.batch, progress=progress,
        name=str(place), labels=names,
    )  # fmt: skip
    return x_nD, names, label_n


def _persons(place: Path, names: Sequence[str], label_n: np.ndarray | None) -> np.ndarray:
    """Return the person of each image: its label, or its folder."""
    if label_n is not None:
        return label_n
    folders = [str(Path(name).parent) for name in names]
    if len(set(folders)) < 2:
        raise InputError(
            "GL0802", "expected a folder for each person, found images in one", where=str(place)
        )
    return np.unique(folders, return_inverse=True)[1].reshape(-1)


def _all_pairs(
    part: Part, model: Recogniser, look: Look, options: Options,
    known: Known | None, progress: Progress,
) -> Ran:  # fmt: skip
    assert part.probes is not None
    x_nD, names, label_n = _embedded(part.probes, model, options, progress)
    person_n = _persons(part.probes, names, label_n)
    made = allpairs.all_pairs(x_nD, person_n, device=options.device, progress=progress).as_dict()
    return Ran(part, made, rates=made, people="labels" if label_n is not None else "folders")


def _distractors(
    part: Part, model: Recogniser, look: Look, options: Options,
    known: Known | None, progress: Progress,
) -> Ran:  # fmt: skip
    assert part.probes is not None
    x_pD, names, label_p = _embedded(part.probes, model, options, progress)
    other_dD, _, label_d = _embedded(part.gallery[0], model, options, progress)
    person_p = _persons(part.probes, names, label_p)
    other_dD = other_dD if label_d is None else other_dD[label_d >= 0]
    keep = person_p >= 0
    made = identify.distractors(x_pD[keep], person_p[keep], other_dD, progress=progress)
    return Ran(part, made, people="labels" if label_p is not None else "folders")


def _tinyface(
    part: Part, model: Recogniser, look: Look, options: Options,
    known: Known | None, progress: Progress,
) -> Ran:  # fmt: skip
    """Look TinyFace's probes up; a file is called PERSON_NUMBER, a distractor has no person."""
    assert part.probes is not None

    def one(place: Path, other: bool) -> tuple[np.ndarray, np.ndarray]:
        x_nD, names, _ = _embedded(place, model, options, progress)
        said = [re.match(r"(\d+)_", Path(name).name) for name in names]
        if not other and (odd := [name for name, hit in zip(names, said) if hit is None]):
            what = f"expected names of images such as 12_3.jpg, PERSON_NUMBER, found {odd[0]}"
            raise InputError("GL0802", what, where=str(place))
        return x_nD, np.array([-1 if other or hit is None else int(hit[1]) for hit in said])

    probe_pD, probe_p = one(part.probes, False)
    gallery = [one(place, k > 0) for k, place in enumerate(part.gallery)]
    gallery_gD = np.concatenate([x for x, _ in gallery])
    subject_g = np.concatenate([person for _, person in gallery])
    made = identify.many_mates(probe_pD, probe_p, gallery_gD, subject_g, where=str(part.path))
    return Ran(part, made, people="numbers in images' names")


def _ijb(
    part: Part, model: Recogniser, look: Look, options: Options,
    known: Known | None, progress: Progress,
) -> Ran:  # fmt: skip
    faces = templates.read_faces(part.path)
    root, name = part.path, str(faces.name[0])
    places = [p for p in (root, root.parent, *sorted(root.iterdir())) if (p / name).is_file()]
    if not places:
        what = f"its images are not there: no folder here holds {name}"
        raise InputError("GL0802", what, where=str(root))
    crops = _Crops(FolderImages(places[0]), faces)
    x_nD = embed_jpegs(
        model, crops, flip=options.flip, batch=options.batch, progress=progress,
        name=part.name, labels=list(faces.name),
    )  # fmt: skip
    pooled = templates.pool(x_nD, faces.template_n, faces.media_n, faces.score_n)
    made = templates.verify(part.path, *pooled, progress=progress)
    figures = {"one_to_one": made, "one_to_many": templates.search(part.path, *pooled)}
    told = f"{crops.warped} of {len(crops)} images aligned by the list's five points"
    return Ran(part, figures, rates=made, people="templates", warnings=[told] * bool(crops.warped))


class _Crops(SampleImages):
    """The images of a list of IJB, aligned by its five points unless they are crops already."""

    def __init__(self, images: FolderImages, faces: templates.Faces) -> None:
        row = {name: i for i, name in enumerate(images.source)}
        if lost := [name for name in faces.name if name not in row]:
            what = f"{len(lost)} of {len(faces.name)} images are not there: {lost[0]}"
            raise InputError("GL0802", what, where=str(images.root))
        super().__init__(images, np.array([row[name] for name in faces.name], np.int64))
        self.points, self.warped = faces.points_n52, 0

    def __getitem__(self, index: Any) -> Any:
        data = super().__getitem__(index)
        if isinstance(index, slice) or self.points is None or pixels.size(data) == (112, 112):
            return data
        self.warped += 1
        return aligned(data, self.points[int(index)])


def aligned(data: bytes, point_52: np.ndarray) -> bytes:
    """Cut a crop of 112 pixels by five points as `glint align` does, not averaged: PNG.

    Raises InputError GL0802 where the points coincide.
    """
    import io

    from PIL import Image

    try:
        matrix_23 = similarity(np.asarray(point_52, np.float64))
    except ValueError as error:
        raise InputError("GL0802", f"{error}: {np.asarray(point_52).tolist()}") from None
    crop_HW3 = cut(pixels.rgb(data), matrix_23, antialias=False)
    out = io.BytesIO()
    Image.fromarray(crop_HW3).save(out, "PNG", compress_level=1)
    return out.getvalue()
