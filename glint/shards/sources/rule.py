"""What a user says of a source: where its labels are, and what is left out."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from glint.errors import UsageError
from glint.files import atomic

# What file servers, operating systems and viewers leave among images: names in lower case.
SYSTEM = frozenset(
    b"@eadir @tmp @recycle #recycle #snapshot $recycle.bin recycler __macosx lost+found "
    b"@__thumb @appstore @database @sharebin @synoresource __pycache__ thumbs.db ehthumbs.db "
    b"ehthumbs_vista.db desktop.ini picasa.ini zbthumbnail.info pspbrwse.jbf folder.htt".split()
) | {b"system volume information", b"network trash folder", b"temporary items", b"icon\r"}
SYSTEM_ENDINGS = (b"@synoeastream", b"@synoresource", b":zone.identifier", b":encryptable")
IMAGES = tuple(
    b".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .heic .heif .avif .jp2 .ppm".split()
)
# Files that lie beside images and are none: left out and counted, not held for damaged images.
OTHERS = frozenset(
    b"json jsonl txt csv tsv xml yaml yml toml ini cfg md rst pdf doc docx xls xlsx log "
    b"db sqlite lst idx npy npz mat pts landmarks h5 hdf5 pkl pickle pt pth bin onnx py ipynb sh "
    b"bat mp4 avi mov mkv webm wav mp3 m4a flac srt lnk url torrent part crdownload tmp bak "
    b"xmp aae thm svg ithmb mdb exe dll mod def m md5 sha1 sha256 sha512 license".split()
)
PLAIN = frozenset(b"readme license licence copying changelog makefile thumbs".split())
CONTAINERS = (b".tar", b".zip", b".parquet", b".arrow", b".rec")
PACKED = tuple(b".tar.gz .tgz .tar.bz2 .tar.xz .tar.zst .7z .rar .gz .bz2 .xz .zst".split())
# Columns of labels by their names: those that say what they are, and those that may number rows.
_SURE = ("label", "labels", "identity", "identity_id", "cls", "class", "class_id", "person_id")
SURE = (
    *_SURE,
    "celeb_id",
    "subject_id",
    "person",
    "subject",
    "pid",
    "identity_name",
    "person_name",
)
UNSURE = ("celebrity", "name", "target", "id", "y", "folder")
# The kinds of source for which an option has a meaning.
_FITS = {
    "label_depth": ("folder", "archive", "webdataset"),
    "label_from": ("folder", "archive", "webdataset", "parquet"),
    "labels": ("folder", "archive", "webdataset"),
    "label_column": ("folder", "archive", "webdataset", "parquet"),  # of --labels, too
    "image_column": ("parquet",),
    "label_member": ("webdataset",),
    "exclude": ("folder", "archive", "webdataset", "parquet"),
    "follow_links": ("folder", "archive", "webdataset", "parquet"),
}


@dataclass(frozen=True)
class Rule:
    """How labels are found, and what is left out. Raises UsageError GL0002, GL0001.

    label_depth: the label is the name of the nth folder below the source, or, below 0, of the nth
    above the image. label_from: what this pattern finds in a name. labels: a file that lists names
    and labels. label_column: of that file or of a table; label_member: MEMBER or json:FIELD.
    """

    label_depth: int = 0
    label_from: str = ""
    labels: str = ""
    label_column: str = ""
    image_column: str = ""
    label_member: str = ""
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    unlabelled: bool = False  # labels are not looked for

    def __post_init__(self) -> None:
        given = [n for n in ("label_depth", "label_from", "labels") if getattr(self, n)]
        given += ["label_member"] if self.label_member else []
        given += ["unlabelled"] if self.unlabelled else []
        if len(given) > 1:
            what = f"{' and '.join(map(_option, given))} each say what a label is"
            raise UsageError("GL0002", what, where=_option(given[0]), hint="give one of them")
        if self.labels and not Path(self.labels).is_file():
            raise UsageError("GL0001", "no such file of labels", where=f"--labels {self.labels}")
        try:
            re.compile(self.label_from)
        except re.error as error:
            what = f"not a regular expression: {error}"
            raise UsageError(
                "GL0002", what, where="--label-from", hint="such as '^([0-9]+)_'"
            ) from None

    def check(self, kind: str) -> None:
        """Raise UsageError GL0002 for an option that means nothing for this kind of source."""
        for name, kinds in _FITS.items():
            if getattr(self, name) and kind not in kinds:
                what = f"means nothing for a source of kind {kind}, only for {', '.join(kinds)}"
                raise UsageError("GL0002", what, where=_option(name))

    def facts(self) -> dict[str, Any]:
        """Return what is not as by default, for the manifest; a list by its name and digest."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        told = {k: list(v) if isinstance(v, tuple) else v for k, v in told.items() if v}
        if self.labels:
            path = Path(self.labels)
            told["labels"] = {"name": path.name, "xxh3": atomic.xxh3_of(path)}
        return told

    @classmethod
    def of(cls, told: Any, labels: str = "") -> Rule:
        """Return the rule that a manifest tells; `labels`: where its list lies now."""
        told = dict(told) if isinstance(told, dict) else {}
        known = {f.name for f in fields(cls)}
        if "labels" in told:
            expected, told["labels"] = told["labels"], labels
            if not labels:
                name = expected["name"]
                what = f"the labels came from a list, {name}"
                raise UsageError("GL0002", what, where="--labels", hint=f"give --labels {name}")
            if atomic.xxh3_of(Path(labels)) != expected["xxh3"]:
                what = "not the list that the dataset was made with"
                raise UsageError("GL0002", what, where=f"--labels {labels}")
        told["exclude"] = tuple(told.get("exclude", ()))
        return cls(**{k: v for k, v in told.items() if k in known})

    @cached_property
    def _patterns(self) -> list[tuple[str, bool, Callable[[bytes], object]]]:
        return [
            (glob, "/" in glob.strip("/"), re.compile(fnmatch.translate(glob.strip("/")).encode(
                "utf-8", "surrogateescape")).match)
            for glob in self.exclude
        ]  # fmt: skip

    def left_out(self, path: bytes, name: bytes) -> str:
        """Say why a file or folder is left out, "" where it is not."""
        if name[:1] == b".":
            return "hidden files and folders"
        low = name.lower()
        if low in SYSTEM or low.endswith(SYSTEM_ENDINGS):
            return f"system: {os.fsdecode(name).strip()}"
        for glob, whole, match in self._patterns:
            if match(path if whole else name):
                return f"--exclude {glob}"
        return ""


def beside(name: bytes) -> str:
    """Return the suffix of a file that lies beside images and is none; "" for any other."""
    if name.lower() in PLAIN:
        return name.lower().decode()
    last = name.rpartition(b".")
    return f".{last[2].lower().decode()}" if last[1] and last[2].lower() in OTHERS else ""


def is_image(name: bytes) -> bool:
    """Say whether a name ends as one of an image does."""
    return name.lower().endswith(IMAGES)


def parts_of(name: str) -> list[bytes]:
    """Cut a path, of whatever system, into its parts."""
    parts = name.replace("\\", "/").encode("utf-8", "surrogateescape").split(b"/")
    return [part for part in parts if part not in (b"", b".")]


def tail(parts: Sequence[bytes], count: int, stem: bool) -> bytes:
    """Return the last parts of a path, by which lists name images; stem: without the suffix."""
    name = b"/".join(parts[-count:])
    return name[: name.rfind(b".")] if stem and is_image(name) else name


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
