"""How a source is to be understood: the options of `glint shard`, and what is said of it."""

from __future__ import annotations

from typing import Any

import typer

from glint.cli import console

LABEL_DEPTH: int = typer.Option(
    0,
    help="The label is the name of the Nth folder below SRC; -1: of the folder an image lies in.",
    show_default="its path",
)
LABEL_FROM: str = typer.Option(
    "", metavar="REGEX", help="The label is what this finds in an image's path: its first group."
)
LABELS: str = typer.Option(
    "",
    metavar="FILE",
    help="Labels from a list: lines of path and label, CSV with a header, JSON lines, .lst; "
    "images that it does not name are left out.",
)
LABEL_COLUMN: str = typer.Option(
    "", metavar="NAME", help="Column of labels, of a table or of --labels."
)
IMAGE_COLUMN: str = typer.Option("", metavar="NAME", help="Tables: column of image bytes.")
LABEL_MEMBER: str = typer.Option(
    "", metavar="MEMBER", help="Webdataset tars: what holds labels: cls, txt, json:FIELD."
)
EXCLUDE: list[str] = typer.Option(
    [],
    metavar="GLOB",
    help="Leave out files and folders of this name, or path where it has a slash; may be "
    "repeated. Hidden and system files always are.",
)
FOLLOW_LINKS: bool = typer.Option(
    False, "--follow-links", help="Follow links to folders, and read links to files elsewhere."
)
UNLABELLED: bool = typer.Option(
    False,
    "--unlabelled",
    help="Look for no labels: every image gets its own, for `glint cluster`.",
)
DECODE: bool = typer.Option(
    False, "--decode", help="Decode every image and quarantine those that give no picture."
)
TO_JPEG: int = typer.Option(
    0,
    min=0,
    max=100,
    metavar="QUALITY",
    help="Encode what is no JPEG (PNG, WebP, TIFF, BMP, GIF) as one of this quality.",
    show_default="off",
)
REBUILD_IDX: bool = typer.Option(
    False,
    "--rebuild-idx",
    help="RecordIO: rebuild the .idx first; the old one is kept as .idx.old.",
)


KINDS = {  # reasons for leaving out, in full
    "system": "files and folders of servers and systems",
    "no images": "files that are no images by their suffix",
}


def say(facts: dict[str, Any]) -> list[str]:
    """Return what was found in a source, which rule makes labels, and what was left out."""
    lines = [
        f"recognised   {facts['layout']}: {console.count(facts['images'], 'image')}, "
        f"{console.count(facts['identities'], 'identity')}"
    ]
    if "idx" in facts:
        lines.append(
            f"             {facts['source']} with {facts['records']} records, .idx {facts['idx']}"
        )
    for one in facts.get("sources", ()):
        people = console.count(one["identities"], "identity")
        images = console.count(one["images"], "image")
        lines.append(f"             {one['source']}: {one['layout']}, {images}, {people}")
    if "label" in facts:
        column = f"; image: column {facts['image_column']}" if "image_column" in facts else ""
        lines.append(f"label        {facts['label']}{column}")
    lines += [f"             {name} -> {label}" for name, label in facts.get("examples", ())]
    groups: dict[str, dict[str, int]] = {}
    for why, count in facts.get("left_out", {}).items():
        kind, _, one = why.partition(": ")
        groups.setdefault(KINDS.get(kind, kind), {})[one] = count
    for kind, each in groups.items():
        names = ", ".join(f"{one} {count}" for one, count in each.items() if one)
        lines.append(f"left out     {sum(each.values())} {kind}" + (f" ({names})" if names else ""))
    lines += [f"note         {note}" for note in facts.get("notes", ())]
    return lines + [f"warning      {one}" for one in facts.get("warnings", ())]
