"""What lies in a folder of test sets: each is told by its content, and each other file is named."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from glint.errors import GlintError, InputError
from glint.evals import lists, packs
from glint.evals.lists import FolderImages, Listed
from glint.evals.packs import Pairs
from glint.evals.pairs import Samples
from glint.shards.dataset import FORMAT, Dataset
from glint.shards.sources.rule import SYSTEM, is_image

TEXTS = {".txt", ".csv", ".tsv", ".lst", ".list", ".pairs", ""}
ABOUT = re.compile(r"^(read.?me|licen[cs]e|notice|copying|changelog|citation|makefile)", re.I)
RACES = ("african", "asian", "caucasian", "indian")  # RFW's
GROUP = {"group", "race", "ethnicity", "gender", "sex", "age_group", "skin", "skin_tone"}
NAME = {"name", "person", "image", "path", "file", "identity", "subject", "id"}
OTHERS = ("distractor", "megaface")  # in the name of a folder of distractors
MOST = 200  # folders beside a list that may each be a set of images
TWO_LINE_FOLDS = 20  # a list of two columns with more marks is one of images and labels


@dataclass(frozen=True)
class Part:
    """One test. words: what it is run as; error: why it cannot be; group: of whom, among `of`.

    load: gives the pairs of kinds `pack` and `pairs`; probes, gallery: folders of other kinds.
    """

    name: str
    kind: str  # pack, pairs, ijb, tinyface, distractors, all-pairs
    path: Path
    words: str
    load: Callable[[], Pairs] | None = None
    probes: Path | None = None
    gallery: tuple[Path, ...] = ()
    error: GlintError | None = None
    group: str = ""
    of: str = ""


@dataclass
class Look:
    """The tests of a folder, what else lies there with the reason, and tables of groups."""

    root: Path
    parts: list[Part] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    groups: list[tuple[Path, dict[str, str]]] = field(default_factory=list)
    datasets: list[Path] = field(default_factory=list)
    pictures: set[Path] = field(default_factory=set)  # folders that hold images
    used: set[Path] = field(default_factory=set)  # roots of images that a test reads
    sources: dict[Path, Samples] = field(default_factory=dict)


def look(root: Path) -> Look:
    """Look through a folder, folders inside it included. Nothing is embedded.

    Raises InputError GL0802 where it holds no test.
    """
    found = Look(root)
    texts: list[Path] = []
    for here, folders, files in _walk(root):
        if _whole_folder(found, here, folders, files):
            folders.clear()
            continue
        for name in files:
            path = here / name
            if is_image(os.fsencode(name)):
                found.pictures.add(here)
            elif name.lower().endswith(".bin"):
                _pack(found, path)
            elif path.suffix.lower() in TEXTS and not ABOUT.match(name):
                texts.append(path)
            else:
                found.skipped.append((path, _reason(path)))
    _lists(found, texts)
    _left_over(found)
    found.parts = _named(_grouped(found.parts), root)
    if not found.parts:
        seen = "; ".join(f"{path.name}: {why}" for path, why in found.skipped[:5]) or "no file"
        hint = "docs/bench.md lists the sets that are recognised"
        raise InputError("GL0802", f"no test set: {seen}", where=str(root), hint=hint)
    return found


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder in order of names, links followed once, system and hidden files left out."""
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(root, followlinks=True):
        about = Path(here).stat()
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        kept = [name for name in folders if not _hidden(name)]
        folders[:] = sorted(kept)
        yield Path(here), folders, sorted(name for name in files if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or os.fsencode(name.lower()) in SYSTEM


def _whole_folder(found: Look, here: Path, folders: list[str], files: list[str]) -> bool:
    """Take a folder that is one thing as a whole: a dataset, IJB, TinyFace, distractors."""
    lower = {name.lower(): name for name in folders}
    if "manifest.json" in files and FORMAT.encode() in (here / "manifest.json").read_bytes()[:4096]:
        found.datasets.append(here)
        return True
    if "embeddings.json" in files:
        found.skipped.append((here, "embeddings, of one model: tests are embedded anew"))
        return True
    meta = here / lower["meta"] if "meta" in lower else here
    if faces := sorted(meta.glob("*_face_tid_mid.txt")):
        many = " and 1:N" if any(meta.glob("*_1N_probe_mixed.csv")) else ""
        name = faces[0].name.removesuffix("_face_tid_mid.txt")
        found.parts.append(Part(name, "ijb", here, f"templates, 1:1{many}, as IJB-B and IJB-C"))
        return True
    if {"probe", "gallery_match"} <= lower.keys():
        gallery = tuple(
            here / lower[n] for n in ("gallery_match", "gallery_distractor") if n in lower
        )
        words = "TinyFace: probes in a gallery with distractors"
        name = "tinyface" if "tiny" in str(here.resolve()).lower() else here.resolve().name
        part = Part(name, "tinyface", here, words, probes=here / lower["probe"], gallery=gallery)
        found.parts.append(part)
        found.skipped += [(here / one, "in TinyFace's folder: people are read in images' names")
                          for one in files if not is_image(os.fsencode(one))]  # fmt: skip
        return True
    others = [name for name in folders if any(word in name.lower() for word in OTHERS)]
    probes = [name for name in folders if name not in others]
    if len(others) == 1 and probes and _holds_images(here / others[0]):
        probes = [name for name in probes if _holds_images(here / name)]
        if len(probes) == 1:
            words = f"identification: {probes[0]} among {others[0]}, as MegaFace"
            name = here.resolve().name
            part = Part(
                name, "distractors", here, words, None, here / probes[0], (here / others[0],)
            )
            found.parts.append(part)
            found.skipped += [(here / one, "beside galleries: not read") for one in files]
            return True
    return False


def _holds_images(place: Path) -> bool:
    if (place / "manifest.json").is_file():
        return True
    return any(is_image(os.fsencode(name)) for _, _, files in _walk(place) for name in files)


def _reason(path: Path) -> str:
    """Say why a file is no test."""
    suffix, text = path.suffix.lower(), "no test set"
    if ABOUT.match(path.name) or suffix in (".md", ".pdf", ".html"):
        return "a document"
    if suffix in (".rec", ".idx", ".tar", ".zip", ".gz", ".tgz", ".7z", ".rar", ".parquet"):
        return f"images packed away: glint shard {path.name} DATASET makes a dataset of them"
    return f"{text}: files of kind {suffix or 'without suffix'} are not read"


def _pack(found: Look, path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(2)
    if head[:1] not in (b"\x80", b"(", b"]") and head:
        found.skipped.append((path, "no verification pack: it does not begin as one"))
        return
    try:
        pairs = packs.read_bin(path)
        words = f"pack of {len(pairs)} pairs, {int(pairs.same.sum())} of one person"
        made = Part(path.stem, "pack", path, words, lambda: packs.read_bin(path))
    except GlintError as error:
        made = Part(path.stem, "pack", path, "a verification pack", error=error)
    found.parts.append(made)


def _lists(found: Look, texts: Sequence[Path]) -> None:
    """Sort text files into lists of pairs, tables of groups, and others."""
    taken: set[Path] = set()
    for path in texts:  # CFP's folders first: their lists are numbers, and none by themselves
        above = path.parent.parent
        if (
            path.name in ("same.txt", "diff.txt")
            and (above.parent.parent / "Pair_list_F.txt").is_file()
        ):
            if above not in taken:
                name = f"cfp_{above.name.lower()}"
                _matched(found, above, name, lambda above=above: lists.parse(above))  # type: ignore[misc]
            taken |= {path, above}
        elif re.fullmatch(r"Pair_list_[FP]\.txt", path.name) and (path.parent / "Split").is_dir():
            taken.add(path)
    for path in texts:
        if path in taken or (
            path.name.startswith("mismatch") and path.with_name(path.name[3:]) in texts
        ):
            continue
        if (table := group_table(path)) is not None:
            found.groups.append((path, table))
            found.skipped.append((path, f"a table of groups, used: {len(table)} names"))
            continue
        other = path.with_name(f"mis{path.name}")
        if other in texts:
            _matched(found, path, path.stem, lambda p=path, o=other: _both(p, o))  # type: ignore[misc]
            continue
        why = _not_pairs(path)
        name = path.stem
        if name.lower() in ("pairs", "list", "test"):  # says nothing: the folder's name does
            name = path.resolve().parent.name
        if why:
            found.skipped.append((path, why))
        else:
            _matched(found, path, name, lambda path=path: lists.parse(path))  # type: ignore[misc]


def _both(match: Path, mismatch: Path) -> list[Listed]:
    """Read LFW's two lists of view 1 as one: ten folds of either."""
    made = []
    for path in (match, mismatch):
        pairs = lists.parse(path)
        made += [pair._replace(fold=10 * i // len(pairs)) for i, pair in enumerate(pairs)]
    return made


def _not_pairs(path: Path) -> str:
    """Say why a text is no list of pairs; "" where it is one, be it damaged."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = [line for _, line in zip(range(200), file)]
    except UnicodeDecodeError:
        return "no text"
    rows = [re.split(r"[\t,; ]+", line.strip()) for line in head if line.strip()]
    if not rows:
        return "empty"
    named = "pair" in path.stem.lower()
    try:
        pairs = lists.parse(path)
    except GlintError as error:
        like = named and all(2 <= len(row) <= 5 for row in rows[1:3])
        return "" if like else f"no list of pairs: {error.what}"
    if all(len(row) == 2 for row in rows[1:]) and not named:
        marks = {row[1] for row in rows}
        if len({pair.same for pair in pairs}) < 2 or len(marks) > TWO_LINE_FOLDS:
            return "a list of images and labels, not of pairs"
    return ""


def group_table(path: Path) -> dict[str, str] | None:
    """Read a table of names and groups: its first line names the columns; None for other texts."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
        by = next((by for by in "\t,;" if by in first), " ")
        heads = [cell.strip().strip('"').lower() for cell in first.strip("\r\n").split(by)]
        names = [i for i, head in enumerate(heads) if head in NAME]
        groups = [i for i, head in enumerate(heads) if head in GROUP]
        if not names or len(groups) != 1:
            return None
        rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=by)]
    width = max(names[0], groups[0])
    return {row[names[0]]: row[groups[0]] for row in rows if len(row) > width}


def _matched(found: Look, path: Path, name: str, read: Callable[[], list[Listed]]) -> None:
    """Find the images of a list: in its own folder, those beside it, and those above, to the root.

    Several folders of equally named images (clear and masked ones) are a test each.
    """
    try:
        pairs = read()
    except GlintError as error:
        found.parts.append(Part(name, "pairs", path, "a list of pairs", error=error))
        return
    words = f"{len(pairs)} pairs, {sum(pair.same for pair in pairs)} of one person"
    first: GlintError | None = None
    for above in [p for p in path.parents if p == found.root or found.root in p.parents]:
        hits, why = _among(found, above, pairs, path)
        first = first or why
        for place, matched in hits:
            found.used.add(place if place in found.datasets else _folder_of(place, matched))
            title = name if len(hits) == 1 else f"{name} [{place.name}]"
            text = f"{words}, over {place if place != found.root else place.resolve().name}"
            made = replace(matched, name=title)
            found.parts.append(Part(title, "pairs", path, text, lambda made=made: made))  # type: ignore[misc]
        if hits:
            return
    first = first or InputError("GL0802", "there are no images", where=str(path))
    found.parts.append(Part(name, "pairs", path, f"{words}; their images", error=first))


def _among(
    found: Look, above: Path, pairs: Sequence[Listed], path: Path
) -> tuple[list[tuple[Path, Pairs]], GlintError | None]:
    """Match a list with the images below a folder: all together, and each dataset there."""
    inside = [p for p in found.datasets if p == above or above in p.parents]
    hits, error = [], None
    pictured = {p for p in found.pictures if p == above or above in p.parents}
    several = False
    for place in [*([above] if pictured else []), *inside]:
        try:
            hits.append((place, lists.matched(pairs, _samples(found, place), path)))
        except GlintError as failed:
            error = error or failed
            several = several or (place == above and "several images" in failed.what)
    below = {above / p.relative_to(above).parts[0] for p in pictured if p != above}
    for place in sorted(below) if several and len(below) <= MOST else ():
        try:
            hits.append((place, lists.matched(pairs, _samples(found, place), path)))
        except GlintError:
            continue
    words = set(re.split(r"[^a-z0-9]+", path.stem.lower())) - {"pairs", "test", "list", ""}
    alike = [hit for hit in hits if words & set(re.split(r"[^a-z0-9]+", hit[0].name.lower()))]
    return (alike if len(hits) > 1 and len(alike) == 1 else hits), error


def _samples(found: Look, place: Path) -> Samples:
    if place not in found.sources:
        found.sources[place] = Dataset(place) if place in found.datasets else FolderImages(place)
    return found.sources[place]


def _folder_of(place: Path, matched: Pairs) -> Path:
    """Return the folder that holds the images of a list, all of them."""
    return place / (os.path.commonpath([str(Path(n).parent) for n in names_of(matched) or [""]]))


def _left_over(found: Look) -> None:
    """Compare all pairs of what is labelled and that no list names."""
    for place in found.datasets:
        if place not in found.used:
            words = "all pairs of a dataset that no list names"
            found.parts.append(Part(place.name, "all-pairs", place, words, probes=place))
    left = {p for p in found.pictures if not any(p == u or u in p.parents for u in found.used)}
    tops = {p.relative_to(found.root).parts[:-1] for p in left if p != found.root}
    for top in sorted(tops):
        place = found.root.joinpath(*top)
        mine = [p for p in left if p.parent == place]
        if len(mine) >= 2 and any(
            sum(is_image(os.fsencode(n.name)) for n in p.iterdir()) > 1 for p in mine
        ):
            words = f"all pairs of {len(mine)} folders of people that no list names"
            found.parts.append(Part(place.resolve().name, "all-pairs", place, words, probes=place))
            left -= set(mine)
    found.skipped += [(p, "images that no list names") for p in sorted(left)]


def _grouped(parts: Sequence[Part]) -> list[Part]:
    """Say which tests are of one group of people each, as RFW's are."""

    def word(part: Part) -> str:
        text = part.path.stem.lower()
        return next((race for race in RACES if text.startswith(race)), "")

    made = [replace(p, group=word(p).title(), of="RFW") if word(p) else p for p in parts]
    return made if len({p.group for p in made if p.group}) > 1 else list(parts)


def _named(parts: Sequence[Part], root: Path) -> list[Part]:
    """Give equal names the folders that tell them apart."""
    names = [part.name for part in parts]
    made = []
    for part in parts:
        if names.count(part.name) > 1:
            place = os.path.relpath(part.path, root)
            part = replace(part, name=f"{part.name} ({place})")
        made.append(part)
    return sorted(made, key=lambda part: part.name.lower())


def names_of(pairs: Pairs) -> list[str] | None:
    """Return the path of each image of a list's pairs, None for a pack's."""
    images = pairs.images
    samples, row_n = getattr(images, "dataset", None), getattr(images, "row_n", np.empty(0))
    if samples is None:
        return None
    sources: Sequence[str] = list(samples.source)
    return [sources[row] for row in row_n.tolist()]
