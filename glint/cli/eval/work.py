"""The work of `glint eval`: from files to results and pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glint.cli import console
from glint.cli.eval import text
from glint.results import models as results

if TYPE_CHECKING:
    from glint.evals.packs import Pairs
    from glint.evals.templates import Faces
    from glint.models.onnx_file import Reading


def pairs(
    files: list[Path],
    model: Path,
    dataset: Path | None,
    flip: bool,
    batch: int,
    threads: int,
    device: str | None,
    report: Path | None,
    reading: Reading,
) -> results.EvalPairs | results.EvalSets:
    """Verify pairs in ten folds."""
    from glint.errors import UsageError
    from glint.evals.embed import embed_pairs
    from glint.evals.pairs import ten_fold
    from glint.models.recogniser import open_model

    _known(device)
    for path in files:
        if not path.exists():
            raise UsageError("GL0001", "no such pairs file", where=str(path))
    opened = open_model(model, threads=threads or None, device=device, reading=reading)
    sets: list[results.PairSet] = []
    drawn: list[tuple[str, dict[str, Any]]] = []
    with console.progress("eval") as progress:
        for path in files:
            chosen = _read(path, dataset)
            a, b = embed_pairs(opened, chosen, flip=flip, batch=batch, progress=progress)
            found = ten_fold(a, b, chosen.same, chosen.folds)
            sets.append(results.PairSet(set=chosen.name, **found.as_dict()))
            if report is not None:
                drawn.append((chosen.name, _rates(a, b, chosen.same, found.threshold)))
    about: dict[str, Any] = {"model": str(model), "model_digest": opened.digest,
                             "engine": opened.engine, "dim": opened.dim, "flip": flip}  # fmt: skip
    if report is not None:
        accuracy = [(f"{100 * one.accuracy:.2f} %", f"accuracy on {one.set}") for one in sets[:4]]
        _page(report, "Verification", drawn, about, [text.folds(sets)], accuracy)
    if len(sets) == 1:
        return results.EvalPairs(**vars(sets[0]), **about)
    mean = sum(one.accuracy for one in sets) / len(sets)
    return results.EvalSets(accuracy=mean, sets=sets, **about)


def all_pairs(
    dataset: Path,
    embeddings: Path,
    work: Path | None,
    threads: int,
    device: str | None,
    report: Path | None,
) -> results.EvalAllPairs:
    """Compare every pair of images of a dataset."""
    from glint.evals import allpairs

    sample_nD, label_n, about = _embedded(dataset, embeddings)
    where = place(threads, device)
    with console.progress("all pairs") as progress:
        made = allpairs.all_pairs(sample_nD, label_n, work=work, device=where, progress=progress)
    found = made.as_dict()
    if report is not None:
        _page(report, "All pairs", [("all pairs", found)], about, [])
    return results.EvalAllPairs(**found, **about)


def ijb(
    folder: Path, embeddings: Path, dataset: Path | None, detector: bool, report: Path | None
) -> results.EvalIjb:
    """Run the protocols of IJB."""
    import numpy as np

    from glint.evals import templates

    faces = templates.read_faces(folder)
    feature_nD, about = _listed(embeddings, dataset, faces)
    weight_n = faces.score_n if detector else None
    with console.progress("ijb") as progress:
        pooled = templates.pool(feature_nD, faces.template_n, faces.media_n, weight_n)
        one = templates.verify(folder, *pooled, progress=progress)
    many = templates.search(folder, *pooled)
    about = {"images": len(feature_nD), "templates": len(pooled[0]),
             "media": len(np.unique(np.stack([faces.template_n, faces.media_n]), axis=1)[0]),
             "detector_score": weight_n is not None, **about}  # fmt: skip
    if report is not None:
        _page(report, folder.resolve().name, [("1:1", one)], about, text.ranks(many))
    return results.EvalIjb(one_to_one=one, one_to_many=many, **about)


def identify(
    probes: Path,
    embeddings: Path,
    distractors: Path,
    distractor_embeddings: Path,
    report: Path | None,
) -> results.EvalIdentify:
    """Identify probes among distractors."""
    from glint.evals import identify as identification

    probe_nD, label_n, about = _embedded(probes, embeddings)
    other_nD, theirs, others = _embedded(distractors, distractor_embeddings)
    other_nD = other_nD[theirs >= 0]  # who was taken down is no distractor
    if others["model_digest"] != about["model_digest"]:
        from glint.errors import MismatchError

        raise MismatchError(
            "GL0402", "the embeddings of probes and distractors are of different models",
            where=str(distractor_embeddings), hint="embed both with one model",
        )  # fmt: skip
    known = label_n >= 0
    with console.progress("identify") as progress:
        found = identification.distractors(
            probe_nD[known], label_n[known], other_nD, progress=progress
        )
    about = {**about, "distractor_dataset": others["dataset"]}
    if report is not None:
        rank = found["rank1_by_distractors"].items()
        rows: list[tuple[str, ...]] = [(count, f"{100 * value:.3f} %") for count, value in rank]
        rows += [(f"TAR at FAR {far}", "-" if tar is None else f"{100 * tar:.3f} %")
                 for far, tar in found["tar_at_far"].items()]  # fmt: skip
        table: text.Rows = ("Rank 1 by distractors", ("distractors", "share"), rows)
        first = [(f"{100 * value:.2f} %", f"rank 1 among {count}") for count, value in rank][-1:]
        _page(report, "Identification", [], about, [table], first)
    return results.EvalIdentify(**found, **about)


def _known(device: str | None) -> None:
    from glint.errors import UsageError

    if device not in (None, "cpu", "cuda"):
        raise UsageError("GL0002", f"--device must be cpu or cuda, found {device!r}")


def place(threads: int, device: str | None) -> str:
    """Say where to multiply, and with how many threads."""
    import torch

    from glint.errors import UsageError

    _known(device)
    if threads:
        torch.set_num_threads(threads)
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UsageError("GL0002", "this torch has no cuda", hint="use --device cpu")
    return device or ("cuda" if there else "cpu")


def _embedded(root: Path, embeddings: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Open the embeddings of a dataset: rows, the identity of each as the labels are now."""
    from glint.shards import labels
    from glint.shards.dataset import Dataset
    from glint.shards.embeddings import load

    data = Dataset(root)
    emb = load(embeddings, data.digest, images=data.n, classes=data.classes)
    table = labels.current(data.root, data.classes)
    about = {"dataset": data.name, "dataset_digest": data.digest, "label_version": table.version,
             "model": emb.about.get("name"), "model_digest": emb.about.get("model")}  # fmt: skip
    return emb.sample_ND, table.sample_target(data.label), about


def _listed(embeddings: Path, dataset: Path | None, faces: Faces) -> tuple[Any, dict[str, Any]]:
    """Give raw embeddings in the order of a list of images, zeros for those that failed."""
    import numpy as np

    from glint.errors import InputError, UsageError

    if dataset is None:
        if not embeddings.is_file():
            raise UsageError(
                "GL0001", "no such .npy file", where=str(embeddings),
                hint="a folder of `glint embed` needs --dataset, the dataset that it is of",
            )  # fmt: skip
        try:
            feature_nD = np.load(embeddings, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            what = f"expected a .npy of numbers, found {error}"
            raise InputError("GL0402", what, where=str(embeddings)) from None
        shape = tuple(getattr(feature_nD, "shape", ()))  # an archive of arrays has none
        if len(shape) != 2 or shape[0] != len(faces.name):
            what = f"expected {len(faces.name)} rows, found the shape {shape}"
            raise InputError("GL0402", what, where=str(embeddings))
        return feature_nD, {"embeddings": str(embeddings)}
    from glint import schemas
    from glint.files import parquet
    from glint.shards.dataset import Dataset

    sample_ND, _, about = _embedded(dataset, embeddings)
    row_of: dict[str, int] = {}
    for row, name in enumerate(Dataset(dataset).source):
        if row_of.setdefault(Path(name).name, row) != row:
            raise InputError(
                "GL0802", f"several images are called {Path(name).name}", where=str(dataset),
                hint="shard the folder of the set alone",
            )  # fmt: skip
    lacking = [name for name in faces.name if name not in row_of]
    if lacking:
        raise InputError(
            "GL0802",
            f"{len(lacking)} of {len(faces.name)} images are not in the dataset, the first is "
            f"{lacking[0]}",
            where=str(faces.path),
            hint="the dataset names an image by its source, the path below the source folder",
        )
    row_n = np.array([row_of[name] for name in faces.name])
    norms = parquet.read(embeddings / "samples.parquet", schemas.EMBEDDED, code="GL0402")
    norm_n = norms.column("norm").to_numpy()[row_n]
    feature_nD = sample_ND[row_n].astype(np.float32) * norm_n[:, None]
    failed_n = ~np.isfinite(feature_nD).all(1)
    feature_nD[failed_n] = 0
    return feature_nD, {**about, "failed": int(failed_n.sum())}


def _read(path: Path, dataset: Path | None) -> Pairs:
    from glint.errors import UsageError
    from glint.evals.lists import images_of, read_list
    from glint.evals.packs import read_bin

    if dataset is not None:
        return read_list(path, images_of(dataset))
    if path.suffix == ".tsv":
        raise UsageError(
            "GL0002", f"{path.name} names samples of a dataset",
            hint="add --dataset DATASET, the folder that `glint shard` wrote, or one of images",
        )  # fmt: skip
    return read_bin(path)


def _rates(a_nD: Any, b_nD: Any, same_n: Any, threshold: float) -> dict[str, Any]:
    from glint.evals import pairs, rates, roc

    cosine_n = 1 - rates.squared_distance(a_nD, b_nD) / 2
    told = roc.accept_rates(cosine_n[same_n], cosine_n[~same_n], pairs.FARS)
    return {**told, "cuts": [(1 - threshold / 2, "threshold")]}


def _page(
    path: Path,
    title: str,
    drawn: list[tuple[str, dict[str, Any]]],
    about: dict[str, Any],
    tables: list[text.Rows],
    headline: Sequence[tuple[str, str]] = (),
) -> None:
    from glint.review.accepts import write_page
    from glint.review.plots import Table

    facts = [(name.replace("_", " "), str(value)) for name, value in about.items()]
    rows = [Table(*one) for one in tables]
    write_page(path, title, drawn, facts=facts, tables=rows, headline=headline)
