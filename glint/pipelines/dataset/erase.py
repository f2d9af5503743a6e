"""Whom an erasure takes out: her names in texts, her images by their bytes; and is she gone."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glint.errors import InputError
from glint.files import parquet, reads
from glint.shards.dataset import Dataset

WORD = "erased"  # what stands where a name stood
SHOWN = 100  # places that are named
TEXTS = ("source", "source_label", "note")  # of a row of the quarantine
ROWS = 1 << 16  # of a table, looked through at a time
EDGE = r"[^\pL\pN\pM]"  # what a name ends at: an underscore too, as in Ann_Lee_0001.jpg
ENDINGS = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "json", "jsonl", "cls"}
ENDINGS |= {"tar", "parquet", "idx", "rec"}  # of files: somebody may be called so


def below(dataset: Dataset, gone: Sequence[int]) -> list[int]:
    """Return the labels whose source label is a folder inside that of one of `gone`."""
    said = dataset.identities().column("source_label").to_pylist()
    tops = tuple(f"{said[label]}/" for label in gone if said[label])
    if not tops:
        return []
    return [i for i, name in enumerate(said) if name.startswith(tops) and i not in {*gone}]


class Words:
    """Words to find in texts: whole, and not inside longer ones that are kept.

    What stands behind the last dot of a text, as in 1.jpg, is no word where files end so.
    """

    def __init__(self, words: Iterable[str], kept: Iterable[str] = ()) -> None:
        self._words = frozenset(words)
        self._each = sorted({*self._words, *kept}, key=len, reverse=True)
        some = "|".join(map(re.escape, sorted(self._words)))
        self._pattern = f"(^|{EDGE})(?:{some})($|{EDGE})"
        self._begin = re.compile("|".join(map(re.escape, self._each)))

    def _at(self, text: str, start: int) -> str:
        """Return the longest whole word that begins there, or ''."""
        for word in self._each:
            end = start + len(word)
            before, behind = text[max(0, start - 1) : start], text[end : end + 1]
            if text.startswith(word, start) and not _inner(before) and not _inner(behind):
                ending = before == "." and not behind and word.lower() in ENDINGS
                return "" if ending else word
        return ""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where words stand that are not kept."""
        found, at = [], 0
        while some := self._begin.search(text, at):
            word = self._at(text, some.start())
            at = some.start() + max(1, len(word))
            found += [(some.start(), at)] if word in self._words else []
        return found

    def rows(self, column: pa.Array) -> Iterator[int]:
        """Give the numbers of the texts that hold one."""
        if self._words:
            some = pc.fill_null(pc.match_substring_regex(column, self._pattern), False)
            for row in np.flatnonzero(some.to_numpy(zero_copy_only=False)).tolist():
                if self.spans(column[row].as_py()):
                    yield row


def _inner(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char or "/")[0] == "M"


def fold(text: str) -> str:
    """Return a text as its spellings in other letter case and Unicode forms are alike."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def alike(dataset: Dataset, gone: Sequence[int]) -> list[int]:
    """Return other labels with a name that is one of `gone`'s, in whatever spelling."""
    table, mine = dataset.identities(), {*gone}
    columns = [table.column(name).to_pylist() for name in ("name", "source_label")]
    each = [{fold(cell) for cell in cells if cell and not cell.isdecimal()}
            for cells in zip(*columns)]  # fmt: skip
    hers: set[str] = set().union(*(each[i] for i in mine))
    return [i for i, names in enumerate(each) if i not in mine and names & hers]


def _folded(column: pa.Array) -> pa.Array:
    if pc.all(pc.string_is_ascii(column)).as_py() is not False:
        return pc.ascii_lower(column)
    texts = column.to_pylist()
    return pa.array([None if one is None else fold(one) for one in texts], pa.large_string())


class Names:
    """The names of identities, as words of a text.

    Those that nobody who stays bears may be written over, as they are spelled; all are looked for,
    in any spelling. Longer names of those who stay are theirs. A number is no name: it would be
    found everywhere.
    """

    def __init__(self, dataset: Dataset, gone: Sequence[int]) -> None:
        table, mine = dataset.identities(), {*gone}
        columns = [table.column(name).to_pylist() for name in ("name", "source_label")]
        each = [{cell for cell in cells if cell} for cells in zip(*columns)]
        hers = {name for i in mine for name in each[i] if len(name) > 1 and not name.isdecimal()}
        hers = {name for name in hers if name != WORD and not name.startswith(f"{WORD}:")}
        others = {name for i, names in enumerate(each) if i not in mine for name in names}
        there = pa.array(sorted(others - hers), pa.large_string())
        longer = there.take(pa.array(Words(map(fold, hers)).rows(_folded(there)), pa.int64()))
        kept = longer.to_pylist()
        self._own, self.exactly = Words(hers - others, kept), Words(hers, kept)
        self._folded = Words(map(fold, hers), map(fold, kept))

    def erased(self, column: pa.Array) -> pa.Array:
        """Return texts with her own names written over."""
        rows = list(self._own.rows(column))
        if not rows:
            return column
        texts = column.take(pa.array(rows)).to_pylist()
        for i, text in enumerate(texts):
            for start, end in reversed(self._own.spans(text)):
                texts[i] = texts[i][:start] + WORD + texts[i][end:]
        hers = np.zeros(len(column), bool)
        hers[rows] = True
        return pc.replace_with_mask(column, pa.array(hers), pa.array(texts, column.type))

    def first(self, column: pa.Array) -> int:
        """Return the place of the first text that holds a name of hers, -1 where none does."""
        return next(self._folded.rows(_folded(column)), -1)

    def within(self, texts: Iterable[str | None]) -> bool:
        """Say whether one of some texts holds a name of hers."""
        return self.first(pa.array(texts, pa.large_string())) >= 0

    def places(self, texts: Sequence[tuple[str, str]]) -> list[str]:
        """Return where of (where, text) a name of hers stands: asked for together, it is quick."""
        column = _folded(pa.array([text for _, text in texts], pa.large_string()))
        return list(dict.fromkeys(texts[at][0] for at in self._folded.rows(column)))


class Lost:
    """The images that are taken out: `sha256` and `digests` (xxh3-128) of their bytes."""

    def __init__(self, dataset: Dataset, gone_n: npt.NDArray[np.bool_]) -> None:
        self.digests = {one.tobytes() for one in dataset.digests[gone_n]}
        self.sha256 = set[str]()
        for row in np.flatnonzero(gone_n).tolist():
            try:
                data = dataset.read(row, verify=False)
            except InputError as error:
                if error.code != "GL0302":  # a shard that is lost or cut is searched for no more
                    raise
                continue
            self.sha256.add(hashlib.sha256(data).hexdigest())


def cleaned(table: pa.Table, names: Names, labels: set[str], lost: Lost) -> pa.Table:
    """Return a quarantine in which the rows of persons keep their reason and no more.

    labels: source labels of those who are gone.
    """
    tops = tuple(f"{label}/" for label in labels)
    rows = table.to_pylist()
    texts = pa.array([row[name] for row in rows for name in TEXTS], pa.large_string())
    named = {at // len(TEXTS) for at in names.exactly.rows(texts)}
    for i, row in enumerate(rows):
        said = row["source_label"]
        hers = said is not None and (said in labels or said.startswith(tops))
        if hers or row["sha256"] in lost.sha256 or i in named:
            row.update(source=WORD, source_label=None, note=None, sha256=None, head=None)
    return pa.Table.from_pylist(rows, schema=table.schema)


def search(folder: Path, names: Names, lost: Lost) -> tuple[list[str], int]:
    """Look for what was taken out in every file of a dataset; return the places, and how many.

    By bytes: the SHA-256 of every member of every tar, the digests of every table. By name: every
    text of every table, of every JSON and of the members that are JSON. Only the first places are
    named. Raises InputError GL0302 for a tar that cannot be read.
    """
    found, count = list[str](), 0
    for place in _places(folder, names, lost):
        count += 1
        if len(found) < SHOWN:
            found.append(place)
    return found, count


def _places(folder: Path, names: Names, lost: Lost) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder).as_posix()
        if not path.is_file():
            continue
        if names.within([where]):
            yield f"{where}: a name, in the file's own"
        if path.suffix == ".tar":
            yield from _in_tar(path, where, names, lost)
        elif path.suffix == ".parquet":
            yield from _in_table(path, where, names, lost)
        elif path.suffix != ".lock":
            lines = reads.whole(path).decode(errors="replace")
            each = enumerate(lines.splitlines() if "jsonl" in where else [lines], 1)
            texts = [
                (f"{where} line {i}: a name", text) for i, line in each for text in _texts(line)
            ]
            yield from names.places(texts)


def _in_tar(path: Path, where: str, names: Names, lost: Lost) -> Iterator[str]:
    said = list[tuple[str, str]]()
    try:
        with reads.open_plain(path) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                held = archive.extractfile(member)
                data = b"" if held is None else held.read()
                if hashlib.sha256(data).hexdigest() in lost.sha256:
                    yield f"{where} {member.name}: an image"
                texts = _texts(data.decode(errors="replace")) if member.name[-5:] == ".json" else []
                said += [(f"{where} {member.name}: a name", one) for one in (member.name, *texts)]
    except (tarfile.TarError, OSError) as error:
        raise InputError("GL0302", f"cannot be searched: {error}", where=str(path)) from None
    yield from names.places(said)


def _in_table(path: Path, where: str, names: Names, lost: Lost) -> Iterator[str]:
    found = parquet.names(path)
    for number, name in enumerate(found):
        with reads.open_plain(path) as file:
            table = pq.ParquetFile(file, **parquet.READING)
            kind, row = table.schema_arrow.field(number).type, 0
            for batch in table.iter_batches(ROWS, columns=[name], use_threads=False):
                cells = batch.column(0)
                if pa.types.is_string(kind) and (at := names.first(cells)) >= 0:
                    yield f"{where} {name}, row {row + at}: a name"
                if kind == pa.binary(16) and lost.digests:
                    twins = pc.is_in(cells, pa.array(sorted(lost.digests), kind))
                    for at in np.flatnonzero(twins.to_numpy(zero_copy_only=False)).tolist():
                        yield f"{where} {name}, row {row + at}: the digest of an image"
                row += len(cells)


def _texts(text: str) -> list[str]:
    """Return the texts of a JSON, or a text that is none as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    left, texts = [value], []
    while left:
        one = left.pop()
        if isinstance(one, str):
            texts.append(one)
        elif isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
    return texts
