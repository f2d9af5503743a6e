"""`glint cluster`: identities of faces that nobody labelled; apply and undo them as labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from glint.cli import complete, console

if TYPE_CHECKING:
    from glint.results import identities as results

_FOLDER = typer.Argument(..., metavar="FOLDER", help="A folder that `glint cluster` wrote.")
_DATASET = typer.Argument(
    ...,
    metavar="DATASET",
    autocompletion=complete.datasets,
    help="The dataset of the embeddings: a folder.",
)


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(
        cls=console.Bare,
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Find identities among unlabelled faces; apply them as labels; undo. "
        "`glint cluster EMB --out DIR` is `find`.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.command("find")(find)
    group.command("apply")(apply)
    group.command("undo")(undo)
    app.add_typer(group, name="cluster")


def find(
    embeddings: list[Path] = typer.Argument(
        ..., metavar="EMB", help="Folders that `glint embed` wrote, in the order to cluster."
    ),
    out: str = typer.Option(
        ...,
        "--out",
        "-o",
        metavar="FOLDER",
        help="Folder for identities and state; continued if it exists.",
    ),
    method: str = typer.Option(
        "online", "--method", help="online: a stream; graph: all faces at once, for very many."
    ),
    join: float | None = typer.Option(
        None,
        "--join",
        help="Cosine at which a face joins a cluster (0.50); graph: mean cosine of the faces of "
        "two clusters that become one (0.45).",
    ),
    connect: float | None = typer.Option(
        None,
        "--connect",
        help="Cosine of means at which two clusters count as one identity (0.45).",
    ),
    extra: float | None = typer.Option(
        None,
        "--extra",
        help="Stricter for small clusters: EXTRA / sqrt(n) more for n faces (0.1; graph: 0.05).",
    ),
    merge: float | None = typer.Option(
        None, "--merge", help="online: cosine at which two clusters become one (0.75)."
    ),
    enough: int | None = typer.Option(
        None, "--enough", help="online: faces a cluster needs to be merged (5)."
    ),
    edge: float | None = typer.Option(
        None, "--edge", help="graph: cosine from which on two faces are near (0.40)."
    ),
    exact: int | None = typer.Option(
        None, "--exact", help="graph: up to so many faces, all near pairs are found (200,000)."
    ),
    recall: float | None = typer.Option(
        None, "--recall", help="graph: refuse to go on where fewer near pairs are found (0.9)."
    ),
    truth: Path | None = typer.Option(
        None, "--truth", metavar="TABLE", help="Parquet with key and label, to score the result."
    ),
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Cluster faces one by one, or by their graph; run it again to continue."""

    def work() -> results.Cluster:
        from glint.pipelines import cluster as stage
        from glint.pipelines import cluster_graph

        folder = console.path(out, "--out")
        given = {
            "join": join, "connect": connect, "extra": extra, "merge": merge, "enough": enough,
            "edge": edge, "exact": exact, "recall": recall,
        }  # fmt: skip
        options = cluster_graph.rules(method, {key: x for key, x in given.items() if x is not None})
        with console.progress("cluster") as progress:
            return stage.run(embeddings, folder, options, truth=truth, progress=progress)

    console.run(work, as_json, debug=debug, say=_say_found)


def apply(
    folder: Path = _FOLDER,
    dataset: Path = _DATASET,
    least: int = typer.Option(2, "--min", min=1, help="Leave out identities with fewer faces."),
    dry_run: bool = console.DRY_RUN,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Apply the identities as a new label version; no shard is rewritten."""

    def work() -> results.ClusterApply:
        from glint.pipelines import cluster as stage

        return stage.apply(folder, dataset, least=least, dry_run=dry_run)

    console.run(work, as_json, debug=debug, say=_say_applied)


def undo(
    folder: Path = _FOLDER,
    dataset: Path = _DATASET,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Restore the labels from before `apply`."""

    def work() -> results.ClusterUndo:
        from glint.pipelines import cluster as stage

        return stage.undo(folder, dataset)

    console.run(work, as_json, debug=debug, say=_say_undone)


def _say_found(r: results.Cluster) -> str:
    lines = [
        f"{console.count(r.faces, 'face')} in {console.count(r.clusters, 'cluster')}, "
        f"{console.count(r.edges, 'connection')} between them: "
        f"{console.count(r.identities, 'identity')}",
        f"  the largest has {console.count(r.largest, 'face')}; most clusters in one: "
        f"{r.largest_clusters}",
    ]
    if r.exact is False:
        share = "none" if r.recall is None else f"{r.recall:.4f} (a face: {r.recall_faces:.4f})"
        lines.append(f"  near pairs {r.pairs}, found of {r.recall_pairs} true ones: {share}")
    if r.without_embedding:
        lines.append(f"  {console.count(r.without_embedding, 'face')} without an embedding")
    if r.judged is not None:
        lines.append(
            f"  {r.judged} faces of known identity: pairwise F {r.pairwise_f:.4f} "
            f"(precision {r.pairwise_precision:.4f}, recall {r.pairwise_recall:.4f}), "
            f"BCubed F {r.bcubed_f:.4f}"
        )
    lines.append(f"Next: glint cluster apply {console.quoted(r.out)} DATASET --dry-run")
    return "\n".join(lines)


def _say_applied(r: results.ClusterApply) -> str:
    if r.already:
        return f"nothing to do: these identities are in force, as label version {r.version}"
    lines = [
        f"identities {r.classes_before} -> {r.classes} with {console.count(r.faces, 'face')};"
        f" {r.identities_dropped} too small, {r.faces_dropped} faces dropped; no shard "
        "rewritten"
    ]
    if r.dry_run:
        lines.append("--dry-run: nothing written")
        lines.append(
            f"Next: glint cluster apply {console.quoted(r.report)} {console.quoted(r.dataset)}"
        )
    else:
        lines.append(f"labels of {r.dataset} are now at version {r.version}")
        lines.append(f"Next: glint balance {console.quoted(r.dataset)}")
    return "\n".join(lines)


def _say_undone(r: results.ClusterUndo) -> str:
    return (
        f"identities {r.classes_before} -> {r.classes}; labels of {r.dataset} are now at "
        f"version {r.version} (was {r.version_before})"
    )
