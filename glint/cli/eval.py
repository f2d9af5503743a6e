"""`glint eval`: accuracy on pairs of faces, on all pairs, on IJB, among distractors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glint.cli import console as show

if TYPE_CHECKING:
    from glint.evals.packs import Pairs
    from glint.evals.templates import Faces


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    model: Path | None = typer.Option(
        None, "--model", "-m", help="ONNX recogniser, run directory or checkpoint directory."
    ),
    pairs: list[Path] = typer.Option(
        [], "--pairs", "-p", help="A verification .bin (repeatable), or PAIRS.tsv with --dataset."
    ),
    dataset: Path | None = typer.Option(
        None,
        "--dataset",
        "-d",
        help="Dataset whose samples PAIRS.tsv, or a list of IJB, names by their source.",
    ),
    all_pairs: Path | None = typer.Option(
        None, "--all-pairs", help="Every pair of this dataset, by --embeddings."
    ),
    ijb: Path | None = typer.Option(
        None, "--ijb", help="Folder of the lists of IJB-B or IJB-C, by --embeddings."
    ),
    identify: Path | None = typer.Option(
        None, "--identify", help="Dataset of probes, by --embeddings, among --distractors."
    ),
    embeddings: Path | None = typer.Option(
        None,
        "--embeddings",
        "--emb",
        help="From `glint embed`; for --ijb also a .npy, a raw row for each line of its list.",
    ),
    distractors: Path | None = typer.Option(None, "--distractors", help="Dataset of strangers."),
    distractor_embeddings: Path | None = typer.Option(
        None, "--distractor-embeddings", help="From `glint embed`, of --distractors."
    ),
    detector: bool = typer.Option(
        True, "--detector/--no-detector", help="Weigh images of --ijb by the detector's score."
    ),
    work: Path | None = typer.Option(
        None, "--work", help="Folder from which --all-pairs goes on after a stop."
    ),
    report: Path | None = typer.Option(None, "--report", help="Also write a page, REPORT.html."),
    flip: bool = typer.Option(True, "--flip/--no-flip", help="Add the mirrored image."),
    batch: int = typer.Option(32, "--batch", min=1, help="Images per call of the model."),
    threads: int = typer.Option(0, "--threads", min=0, help="Compute threads, 0 = as many as fit."),
    device: str | None = typer.Option(
        None, "--device", help="cpu or cuda; default: what is there."
    ),
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Verify pairs in ten folds as the field reports LFW, or all pairs, IJB, or identify."""
    kinds = [("--pairs", bool(pairs)), ("--all-pairs", all_pairs), ("--ijb", ijb),
             ("--identify", identify)]  # fmt: skip
    named = [name for name, value in kinds if value]
    if len(named) != 1:
        found = " and ".join(named) or "none"
        raise typer.BadParameter(
            f"expected one of --pairs, --all-pairs, --ijb and --identify, found {found}"
        )
    lacking = [
        name
        for name, value, wanted in (
            ("--model", model, bool(pairs)),
            ("--embeddings", embeddings, not pairs),
            ("--distractors", distractors, identify),
            ("--distractor-embeddings", distractor_embeddings, identify),
        )
        if wanted and value is None
    ]
    if lacking:
        raise typer.BadParameter(f"{named[0]} also needs {' and '.join(lacking)}")

    def work_pairs() -> dict[str, Any]:
        from glint.errors import UsageError
        from glint.evals.embed import embed_pairs
        from glint.evals.pairs import ten_fold
        from glint.models.recogniser import open_model

        assert model is not None
        _known(device)
        for path in pairs:
            if not path.is_file():
                raise UsageError("GL0001", "no such pairs file", where=str(path))
        opened = open_model(model, threads=threads or None, device=device)
        sets: list[dict[str, Any]] = []
        drawn: list[tuple[str, dict[str, Any]]] = []
        with show.progress("eval") as progress:
            for path in pairs:
                chosen = _read(path, dataset)
                a, b = embed_pairs(opened, chosen, flip=flip, batch=batch, progress=progress)
                found = ten_fold(a, b, chosen.same, chosen.folds)
                sets.append({"set": chosen.name, **found.as_dict()})
                if report is not None:
                    drawn.append((chosen.name, _rates(a, b, chosen.same, found.threshold)))
        about = {"model": str(model), "model_digest": opened.digest, "engine": opened.engine,
                 "dim": opened.dim, "flip": flip}  # fmt: skip
        if report is not None:
            _page(report, "Verification", drawn, about, [_folds(sets)])
        if len(sets) == 1:
            return {**sets[0], **about}
        mean = sum(float(found["accuracy"]) for found in sets) / len(sets)
        return {"accuracy": mean, "sets": sets, **about}

    def work_all_pairs() -> dict[str, Any]:
        from glint.evals.allpairs import all_pairs as count

        assert all_pairs is not None and embeddings is not None
        sample_nD, label_n, about = _embedded(all_pairs, embeddings)
        where = _place(threads, device)
        with show.progress("all pairs") as progress:
            found = count(sample_nD, label_n, work=work, device=where, progress=progress).as_dict()
        if report is not None:
            _page(report, "All pairs", [("all pairs", found)], about, [])
        return {**found, **about}

    def work_ijb() -> dict[str, Any]:
        import numpy as np

        from glint.evals import templates

        assert ijb is not None and embeddings is not None
        faces = templates.read_faces(ijb)
        feature_nD, about = _listed(embeddings, dataset, faces)
        weight_n = faces.score_n if detector else None
        with show.progress("ijb") as progress:
            pooled = templates.pool(feature_nD, faces.template_n, faces.media_n, weight_n)
            one = templates.verify(ijb, *pooled, progress=progress)
        many = templates.search(ijb, *pooled)
        about = {"images": len(feature_nD), "templates": len(pooled[0]),
                 "media": len(np.unique(np.stack([faces.template_n, faces.media_n]), axis=1)[0]),
                 "detector_score": weight_n is not None, **about}  # fmt: skip
        if report is not None:
            _page(report, ijb.resolve().name, [("1:1", one)], about, _ranks(many))
        return {"one_to_one": one, "one_to_many": many, **about}

    def work_identify() -> dict[str, Any]:
        from glint.evals import identify as identification

        assert identify is not None and embeddings is not None
        assert distractors is not None and distractor_embeddings is not None
        probe_nD, label_n, about = _embedded(identify, embeddings)
        other_nD, _, others = _embedded(distractors, distractor_embeddings)
        if others["model_digest"] != about["model_digest"]:
            from glint.errors import MismatchError

            raise MismatchError(
                "GL0402", "the embeddings of probes and distractors are of different models",
                where=str(distractor_embeddings), hint="embed both with one model",
            )  # fmt: skip
        known = label_n >= 0
        with show.progress("identify") as progress:
            found = identification.distractors(
                probe_nD[known], label_n[known], other_nD, progress=progress
            )
        about = {**about, "distractor_dataset": others["dataset"]}
        if report is not None:
            rank = found["rank1_by_distractors"].items()
            rows: list[tuple[str, ...]] = [(count, f"{100 * value:.3f} %") for count, value in rank]
            rows += [(f"TAR at FAR {far}", "-" if tar is None else f"{100 * tar:.3f} %")
                     for far, tar in found["tar_at_far"].items()]  # fmt: skip
            table: Rows = ("Rank 1 by distractors", ("distractors", "share"), rows)
            _page(report, "Identification", [], about, [table])
        return {**found, **about}

    if pairs:
        show.run(work_pairs, "glint/eval@1", as_json, debug=debug, say=_say)
    elif all_pairs is not None:
        show.run(work_all_pairs, "glint/eval-all-pairs@1", as_json, debug=debug, say=_say_rates)
    elif ijb is not None:
        show.run(work_ijb, "glint/eval-ijb@1", as_json, debug=debug, say=_say_ijb)
    else:
        show.run(work_identify, "glint/eval-identify@1", as_json, debug=debug, say=_say_identify)


def _known(device: str | None) -> None:
    from glint.errors import UsageError

    if device not in (None, "cpu", "cuda"):
        raise UsageError("GL0002", f"--device must be cpu or cuda, found {device!r}")


def _place(threads: int, device: str | None) -> str:
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
    return emb.sample_ND, table.target[data.label], about


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
    from glint import schemas as tables
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
    norms = parquet.read(embeddings / "samples.parquet", tables.EMBEDDED, code="GL0402")
    norm_n = norms.column("norm").to_numpy()[row_n]
    feature_nD = sample_ND[row_n].astype(np.float32) * norm_n[:, None]
    failed_n = ~np.isfinite(feature_nD).all(1)
    feature_nD[failed_n] = 0
    return feature_nD, {**about, "failed": int(failed_n.sum())}


def _rates(a_nD: Any, b_nD: Any, same_n: Any, threshold: float) -> dict[str, Any]:
    from glint.evals import pairs, rates, roc

    cosine_n = 1 - rates.squared_distance(a_nD, b_nD) / 2
    told = roc.accept_rates(cosine_n[same_n], cosine_n[~same_n], pairs.FARS)
    return {**told, "cuts": [(1 - threshold / 2, "threshold")]}


Rows = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, heads, rows


def _page(
    path: Path,
    title: str,
    results: list[tuple[str, dict[str, Any]]],
    about: dict[str, Any],
    tables: list[Rows],
) -> None:
    from glint.review.accepts import write_page
    from glint.review.plots import Table

    facts = [(name.replace("_", " "), str(value)) for name, value in about.items()]
    write_page(path, title, results, facts=facts, tables=[Table(*rows) for rows in tables])


def _folds(sets: list[dict[str, Any]]) -> Rows:
    heads = ("set", "pairs", "accuracy", "deviation", "threshold, cosine")
    return (
        "Ten folds",
        heads,
        [
            (one["set"], str(one["pairs"]), f"{100 * one['accuracy']:.3f} %",
             f"{100 * one['std']:.3f} %", f"{1 - one['threshold'] / 2:.4f}")
            for one in sets
        ],
    )  # fmt: skip


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3f}"


def _ranks(many: dict[str, Any] | None) -> list[Rows]:
    """Table one to many: a row for the field's definition, a row for each gallery."""
    if many is None:
        return []
    field = many["field"]
    alarms = field["recall_at_false_alarms"]
    made = [("both galleries, recall at false alarms per probe", field["rank"], alarms)]
    for name, one in many["galleries"].items():
        made.append((f"gallery {name}, TPIR at FPIR", one["rank"], one["tpir_at_fpir"]))
    rows = [
        (words, *(_share((rank or {}).get(k)) for k in ("1", "5", "10")),
         *(_share(at.get(far)) for far in ("1e-3", "1e-2", "1e-1")))
        for words, rank, at in made
    ]  # fmt: skip
    heads = ("1:N, %", "rank 1", "rank 5", "rank 10", "1e-3", "1e-2", "1e-1")
    return [("One to many", heads, rows)]


def _say_rates(result: dict[str, Any]) -> str:
    lines = [f"{'FAR':>6s} {'TAR %':>9s} {'threshold':>10s}"]
    for far, tar in result["tar_at_far"].items():
        cut = result["threshold_at_far"][far]
        near = result.get("tar_at_most", result["tar_at_far"])[far]
        more = "" if tar == near else f"  at most {_share(near)}"
        lines.append(
            f"{far:>6s} {_share(tar):>9s} {'-' if cut is None else f'{cut:.6f}':>10s}{more}"
        )
    lines.append(
        f"{result['genuine']:,} pairs of the same person, "
        f"{result['impostors']:,} of different people"
    )
    if result.get("pairs_per_second"):
        lines.append(f"{result['pairs_per_second']:.3g} pairs/s in a pass")
    return "\n".join(lines)


def _say_ijb(result: dict[str, Any]) -> str:
    lines = [_say_rates(result["one_to_one"])]
    for _, heads, rows in _ranks(result["one_to_many"]):
        for words, *cells in (heads, *rows):
            lines.append(f"{words:50s}" + "".join(f" {cell:>8s}" for cell in cells))
    return "\n".join(lines)


def _say_identify(result: dict[str, Any]) -> str:
    lines = [f"{'distractors':>12s} {'rank 1 %':>9s}"]
    lines += [f"{k:>12s} {_share(v):>9s}" for k, v in result["rank1_by_distractors"].items()]
    lines += [f"TAR at FAR {far}: {_share(tar)} %" for far, tar in result["tar_at_far"].items()]
    return "\n".join(lines)


def _read(path: Path, dataset: Path | None) -> Pairs:
    from glint.errors import UsageError
    from glint.evals.packs import read_bin
    from glint.evals.pairs import read_table
    from glint.shards.dataset import Dataset

    if dataset is not None:
        return read_table(path, Dataset(dataset))
    if path.suffix == ".tsv":
        raise UsageError(
            "GL0002", f"{path.name} names samples of a dataset",
            hint="add --dataset DATASET, the folder that `glint shard` wrote",
        )  # fmt: skip
    return read_bin(path)


def _say(result: dict[str, Any]) -> str:
    lines = [f"{'set':20s} {'pairs':>7s} {'accuracy %':>16s} {'TAR@FAR 1e-3':>13s} {'1e-4':>7s}"]
    for found in result.get("sets", [result]):
        tar = [found["tar_at_far"][far] for far in ("1e-3", "1e-4")]
        three, four = ("-" if value is None else f"{100 * value:.2f}" for value in tar)
        lines.append(
            f"{found['set'][:20]:20s} {found['pairs']:7d} {100 * found['accuracy']:8.2f} "
            f"+- {100 * found['std']:4.2f} {three:>13s} {four:>7s}"
        )
    flipped = "mirrored image added" if result["flip"] else "no mirrored image"
    lines.append(
        f"{result['model']} through {result['engine']}, {result['dim']} numbers, {flipped}"
    )
    return "\n".join(lines)
