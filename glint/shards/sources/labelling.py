"""What the label of an image is: its folder, a part of its path, what a list says of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from glint.shards.sources.listed import (
    Flaw,
    Labelled,
    Labels,
    base_names,
    count_note,
    number_classes,
    relabel,
    texts,
)
from glint.shards.sources.lists import by_list
from glint.shards.sources.rule import Rule
from glint.shards.sources.source import Rows, shown

_WEBFACE = re.compile(rb"(?:.*/)?([0-9])/(\1_[0-9]+_[0-9]+)|([0-9]_[0-9]+_[0-9]+)", re.DOTALL)
_CONTAINER = re.compile(r"\.\W*(?:tar|zip)\b")  # in a pattern: it asks for a container's name


def label(
    rule: Rule,
    row_n: Rows,
    paths: pa.Array,
    folders: Sequence[bytes],
    left: Counter[str],
    *,
    files: Sequence[bytes] = (),
    common: bool = False,
) -> Labelled | None:
    """Label records by what `rule` says, by their folders where it says nothing.

    row_n["label"]: place in `folders`. files: names of the containers, which stand before a path
    where there are several. None where all lie in no folder and nothing says what labels are.
    """
    if rule.unlabelled:
        row_n["label"] = -1
        row_n["flaw"][row_n["flaw"] == Flaw.no_identity] = Flaw.sound
        return Labelled(row_n, paths, [], [], "none: every image gets its own (--unlabelled)")
    if rule.labels:
        return by_list(rule, row_n, paths, left, files)
    if rule.label_from:
        return _by_pattern(rule.label_from, row_n, paths, files)
    if len(row_n) and not folders:
        return None
    if depth := rule.label_depth:
        return _by_depth(depth, row_n, paths, folders)
    webface, classes = label_by_folder(row_n, folders, common=common)
    how = f"the {'name of the ' * webface}folder that the image lies in"
    cut = max((one.count(b"/") for one in folders), default=0)
    cut -= max((one.count(b"/") for one in classes), default=0)
    notes = [] if webface else _tree_notes(classes, cut)
    tree = "/webface" if webface else ""
    return Labelled(row_n, paths, classes, base_names(classes), how, tree, notes)


def _by_pattern(text: str, row_n: Rows, paths: pa.Array, files: Sequence[bytes]) -> Labelled:
    """Label by what a pattern finds in a path: that inside the container.

    The container's name stands before it where the pattern names .tar or .zip, and where several
    have their names and nothing is found without them.
    """
    pattern, empty = re.compile(text), 0
    named = [1] if _CONTAINER.search(text) else [len(files) + 1, 2]
    for least in named:
        labels, empty = Labels(), 0
        for i, path in enumerate(texts(row_n, paths, files, least)):
            part = pattern.search(path.decode("utf-8", "surrogateescape"))
            said = part and (part[1] if pattern.groups else part[0])
            empty += bool(part and not said)
            code, flaw = labels.code(said and said.encode("utf-8", "surrogateescape"))
            relabel(row_n, i, code, flaw)
        if (row_n["label"] >= 0).any() or len(files) < 2:
            break
    classes = labels.settle(row_n)
    how = f"what --label-from {text!r} finds in the path of the image"
    how += ", after the name of its container" * (least < 3 and len(files) >= least)
    notes = count_note(
        empty, "paths match with nothing in the first group, which is the label: (?:...) is none"
    )
    return Labelled(row_n, paths, classes, classes, how, notes=notes)


def _by_depth(depth: int, row_n: Rows, paths: pa.Array, folders: Sequence[bytes]) -> Labelled:
    parts = [folder.split(b"/") for folder in folders]
    place = depth - 1 if depth > 0 else depth
    said = [p[place] if -len(p) <= place < len(p) else b"" for p in parts]
    row_n["label"][~np.isin(row_n["label"], [i for i, one in enumerate(said) if one])] = -1
    row_n["flaw"][(row_n["label"] < 0) & (row_n["flaw"] == Flaw.sound)] = Flaw.no_identity
    classes = number_classes(row_n, said, {one for one in said if one})
    where = f"folder {depth} below SRC" if depth > 0 else f"folder {-depth} above the image"
    above: dict[bytes, set[bytes]] = {}
    for one, p in zip(said, parts):
        above.setdefault(one, set()).add(b"/".join(p[:place]))
    several = [one for one in classes if len(above[one]) > 1]
    notes = []
    if several:
        some = ", ".join(
            shown(above_ + b"/" + several[0]) for above_ in sorted(above[several[0]])[:3]
        )
        notes = [f"{len(several)} names stand in several folders and are one identity each: {some}"]
    how = f"the name of {where} (--label-depth {depth})"
    return Labelled(row_n, paths, classes, classes, how, notes=notes)


def _tree_notes(labels: Sequence[bytes], cut: int = 0) -> list[str]:
    """Say where folders do not look as if each were an identity.

    cut: folders that all have in common, which labels are without and --label-depth counts.
    """
    known, notes = set(labels), []
    inner = [one for one in labels if one.rpartition(b"/")[0] in known]
    if inner:
        some, outer = shown(inner[0]), shown(inner[0].rpartition(b"/")[0])
        notes.append(
            f"{len(inner)} identities are folders inside others: {outer} and {some} are two; if "
            f"they are one person: --label-depth {outer.count('/') + 1 + cut}"
        )
    elif len(depths := sorted({one.count(b"/") + 1 for one in labels})) > 1:
        notes.append(f"images lie {depths[0]} to {depths[-1]} folders deep: look at the labels")
    first: dict[bytes, bytes] = {}
    deep = [one for one in labels if b"/" in one]
    twins = [one for one in deep if first.setdefault(one.rpartition(b"/")[2], one) != one]
    if twins and not inner:
        other = shown(twins[0])
        top, name = other.split("/")[0], other.rpartition("/")[2]
        one = shown(first[twins[0].rpartition(b"/")[2]])
        notes.append(
            f"a name in several folders is an identity in each ({one}, {other}): if {name} is one "
            f"person, --label-depth {other.count('/') + 1 + cut}; if {top} is one, "
            f"--label-depth {1 + cut}"
        )
    return notes


def label_by_folder(
    row_n: Rows, folders: Iterable[bytes], *, common: bool = False
) -> tuple[bool, list[bytes]]:
    """Make labels of the places in `folders`; return whether they are WebFace's, and the classes.

    A label is the path of a folder, without what all have in common where `common` is set; in
    WebFace's tree, D/D_N_NNNNNNN, its last part.
    """
    labels = list(folders)
    last = base_names(labels)
    webface = bool(labels) and len(set(last)) == len(last) and all(map(_WEBFACE.fullmatch, labels))
    if webface:
        labels = last
    elif common and labels:
        parts = [label.split(b"/") for label in labels]
        same, shallow = 0, min(map(len, parts)) - 1
        while same < shallow and len({p[same] for p in parts}) == 1:
            same += 1
        labels = [b"/".join(p[same:]) for p in parts]
    return webface, number_classes(row_n, labels)
