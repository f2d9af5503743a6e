"""`glint cluster`: identities of faces that nobody labelled; apply and undo them as labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from glint.cli import console as show

_FOLDER = typer.Argument(..., help="A folder that `glint cluster` wrote.")
_DATASET = typer.Argument(..., help="The dataset of the embeddings: a folder.")


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(
        cls=show.Bare,
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Find identities among unlabelled faces (`glint cluster EMB --out DIR` is `find`); "
        "apply them as labels; undo.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.command("find")(find)
    group.command("apply")(apply)
    group.command("undo")(undo)
    app.add_typer(group, name="cluster")


def find(
    embeddings: list[Path] = typer.Argument(
        ..., metavar="EMB...", help="From `glint embed`, in the order of the stream."
    ),
    out: str = typer.Option(
        ..., "--out", "-o", metavar="FOLDER", help="Identities and state; continued if there."
    ),
    join: float = typer.Option(0.50, "--join", help="Cosine at which a face joins a cluster."),
    connect: float = typer.Option(
        0.45, "--connect", help="Cosine of means at which large clusters are one identity."
    ),
    extra: float = typer.Option(
        0.1, "--extra", help="For clusters of n faces, so much / sqrt(n) more."
    ),
    merge: float = typer.Option(0.75, "--merge", help="Cosine at which two clusters become one."),
    enough: int = typer.Option(5, "--enough", help="Faces that clusters need for that."),
    truth: Path | None = typer.Option(
        None, "--truth", metavar="TABLE", help="Parquet with key and label, to judge by."
    ),
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Cluster faces one after the other; the same command, also with more folders, continues."""

    def work() -> dict[str, Any]:
        from glint.pipelines import cluster as stage
        from glint.search.online_clusters import ClusterRules

        folder = show.path(out, "--out")
        options = ClusterRules(join=join, connect=connect, extra=extra, merge=merge, enough=enough)
        with show.progress("cluster") as progress:
            return stage.run(embeddings, folder, options, truth=truth, progress=progress)

    show.run(work, "glint/cluster-result@1", as_json, debug=debug, say=_say_found)


def apply(
    folder: Path = _FOLDER,
    dataset: Path = _DATASET,
    least: int = typer.Option(2, "--min", min=1, help="Leave out identities with fewer faces."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would change."),
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Put the identities in force as a new label version; no shard is rewritten."""

    def work() -> dict[str, Any]:
        from glint.pipelines import cluster as stage

        return stage.apply(folder, dataset, least=least, dry_run=dry_run)

    show.run(work, "glint/cluster-apply-result@1", as_json, debug=debug, say=_say_applied)


def undo(
    folder: Path = _FOLDER,
    dataset: Path = _DATASET,
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Put the labels from before `apply` back in force."""

    def work() -> dict[str, Any]:
        from glint.pipelines import cluster as stage

        return stage.undo(folder, dataset)

    show.run(work, "glint/cluster-undo-result@1", as_json, debug=debug, say=_say_undone)


def _say_found(r: dict[str, Any]) -> str:
    lines = [
        f"{show.count(r['faces'], 'face')} in {show.count(r['clusters'], 'cluster')}, "
        f"{show.count(r['edges'], 'connection')} between them: "
        f"{show.count(r['identities'], 'identity')}",
        f"  the largest has {show.count(r['largest'], 'face')}; of the most clusters: "
        f"{r['largest_clusters']}",
    ]
    if r["without_embedding"]:
        lines.append(f"  {show.count(r['without_embedding'], 'face')} without an embedding")
    if "judged" in r:
        lines.append(
            f"  {r['judged']} faces of known identity: pairwise F {r['pairwise_f']:.4f} "
            f"(precision {r['pairwise_precision']:.4f}, recall {r['pairwise_recall']:.4f}), "
            f"BCubed F {r['bcubed_f']:.4f}"
        )
    lines.append(f"Next: glint cluster apply {show.quoted(r['out'])} DATASET --dry-run")
    return "\n".join(lines)


def _say_applied(r: dict[str, Any]) -> str:
    if r["already"]:
        return f"nothing to do: these identities are in force, as label version {r['version']}"
    lines = [
        f"identities {r['classes_before']} -> {r['classes']} with {show.count(r['faces'], 'face')};"
        f" {r['identities_dropped']} too small, {r['faces_dropped']} faces dropped; no shard "
        "rewritten"
    ]
    if r["dry_run"]:
        lines.append("--dry-run: nothing written")
        lines.append(
            f"Next: glint cluster apply {show.quoted(r['report'])} {show.quoted(r['dataset'])}"
        )
    else:
        lines.append(f"labels of {r['dataset']} are now at version {r['version']}")
        lines.append(f"Next: glint balance {show.quoted(r['dataset'])}")
    return "\n".join(lines)


def _say_undone(r: dict[str, Any]) -> str:
    return (
        f"identities {r['classes_before']} -> {r['classes']}; labels of {r['dataset']} are now at "
        f"version {r['version']} (was {r['version_before']})"
    )
