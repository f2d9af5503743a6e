"""Stage `look`: a dataset to page through: identities and images by any column, and quarantine."""

# N images of the dataset, C identities in force that have an image, n some images

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glint import schemas
from glint.errors import GlintError, InputError
from glint.files import parquet
from glint.pipelines import quality
from glint.pipelines.conflicts import exhibits
from glint.review import chart, look
from glint.review.local import HTML, Local, Query, Refused, number
from glint.shards import labels, pixels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import Embeddings

OWN = {"key", "label", "source_label", "shard", "offset", "digest", "source"}  # not sorted by
FACES = 8  # of an identity, in the list
PAGE = 200  # most that one request gets
THUMB = 160  # pixels of a photograph in quarantine
SAMPLE = 60  # identities of each kind, and images of each kind, in a page that is one file
BYTES = 20 << 20  # of images in it
Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """What images can be sorted and filtered by; NaN for an image without a value."""

    name: str
    value_N: Reals


class Catalogue:
    """A dataset under the labels in force, ready to be asked for pages of it.

    emb: adds the column `likeness`, the cosine of an image to the mean of its identity's others.
    folder: of `glint quality`, adds that. photographs: the folder that the dataset was made from,
    for pictures of what was quarantined.
    """

    def __init__(
        self,
        dataset: Dataset,
        emb: Embeddings | None = None,
        folder: Path | None = None,
        photographs: Path | None = None,
    ) -> None:
        self.dataset, self.photographs = dataset, photographs
        self.version = labels.current(dataset.root, dataset.classes)
        self.target_N = self.version.sample_target(dataset.label)
        order_N = np.argsort(self.target_N, kind="stable")
        self.row_m = order_N[np.searchsorted(self.target_N[order_N], 0) :]  # by identity
        who_m = self.target_N[self.row_m]
        self.first_C = np.flatnonzero(np.r_[True, who_m[1:] != who_m[:-1]][: len(who_m)])
        self.count_C = np.diff(np.r_[self.first_C, len(who_m)])
        self.place = {int(who): at for at, who in enumerate(who_m[self.first_C])}
        self.columns: list[Column] = []
        if emb is not None:
            self.columns.append(Column("likeness", self._likeness(emb)))
        if folder is not None:
            value_N = quality.load(folder, dataset).astype(np.float64)
            self.columns.append(Column("quality", value_N))
        self.columns += self._indexed()
        self._sorted: dict[tuple[str, str], Ints] = {}

    def _likeness(self, emb: Embeddings) -> Reals:
        """Return the cosine of each image to the mean of its identity's other images."""
        found_N = np.full(self.dataset.n, np.nan)
        at = 0
        while at < len(self.first_C):  # whole identities, about so many images at once
            start = int(self.first_C[at])
            stop_at = max(at + 1, int(np.searchsorted(self.first_C, start + 65536)))
            stop = int(self.first_C[stop_at]) if stop_at < len(self.first_C) else len(self.row_m)
            row_n = self.row_m[start:stop]
            unit_nD = np.asarray(emb.sample_ND[row_n], np.float32)
            sound_n = np.isfinite(unit_nD).all(axis=1)
            unit_nD[~sound_n] = 0
            first_c = self.first_C[at:stop_at] - start
            sum_cD = np.add.reduceat(unit_nD, first_c, axis=0)
            rest_nD = np.repeat(sum_cD, self.count_C[at:stop_at], axis=0) - unit_nD
            length_n = np.linalg.norm(rest_nD, axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                cosine_n = (rest_nD * unit_nD).sum(axis=1) / length_n
            cosine_n[~sound_n | (length_n < 1e-4)] = np.nan  # the only image of its identity
            found_N[row_n] = cosine_n
            at = stop_at
        return found_N

    def _indexed(self) -> list[Column]:
        """Read every number of samples.parquet that tells images apart."""
        path = self.dataset.root / "samples.parquet"
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError("GL0301", f"cannot be read: {error}", where=str(path)) from None
        found = []
        for field in schema:
            kind = field.type
            if field.name in OWN or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                continue
            table = parquet.read(path, pa.schema([field]), columns=[field.name])
            column = table.column(0).cast(pa.float64(), safe=False)
            value_N = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
            if len(value_N) and np.nanmin(value_N) < np.nanmax(value_N):
                found.append(Column("bytes" if field.name == "size" else field.name, value_N))
        return found

    @cached_property
    def names(self) -> pa.Table:
        """Name and source label of every identity that has an image."""
        name, source = exhibits.names(self.dataset)
        label_C = self.dataset.label[self.row_m[self.first_C]]
        return pa.table({
            "name": pa.array([name[i] for i in label_C], pa.string()),
            "label": pa.array([source[i] for i in label_C], pa.string()),
        })  # fmt: skip

    @cached_property
    def quarantine(self) -> pa.Table:
        """The records that were rejected."""
        return parquet.read(self.dataset.root / "quarantine.parquet", schemas.QUARANTINE)

    def column(self, name: str) -> Column:
        """Return a column by its name. Raises Refused."""
        for one in self.columns:
            if one.name == name:
                return one
        raise Refused(400, f"no column {name[:80]}")

    def _order(self, kind: str, name: str) -> Ints:
        """Return images, or identities, in ascending order of a column; NaN is left out."""
        if (kind, name) not in self._sorted:
            if kind == "images":
                value = self.column(name).value_N
            elif name == "images":
                value = self.count_C.astype(np.float64)
            else:
                value_m = self.column(name).value_N[self.row_m]
                lowest = np.fmin.reduceat(value_m, self.first_C) if len(value_m) else value_m
                value = lowest
            order = np.argsort(value, kind="stable")
            self._sorted[kind, name] = order[: int(np.isfinite(value).sum())]
        return self._sorted[kind, name]

    def identities(self, sort: str, down: bool, text: str, start: int, count: int) -> look.Answer:
        """List identities by their number of images or by the lowest of a column."""
        at_C = self._order("identities", sort)
        if text:
            found = [
                pc.match_substring(self.names.column(name), text, ignore_case=True)
                for name in ("name", "label")
            ]
            at_C = at_C[pc.or_(*found).to_numpy(zero_copy_only=False)[at_C]]
        at_C = at_C[::-1] if down else at_C
        return {
            "total": len(at_C),
            "items": [self._identity(int(at)) for at in at_C[start : start + count]],
        }

    def _identity(self, at: int) -> dict[str, Any]:
        rows = self.faces(at)[:FACES]
        return {
            "who": int(self.target_N[self.row_m[self.first_C[at]]]),
            "name": self.names.column("name")[at].as_py(),
            "label": self.names.column("label")[at].as_py(),
            "images": int(self.count_C[at]),
            "faces": [self.image(int(row)) for row in rows],
        }

    def faces(self, at: int) -> Ints:
        """Return the images of an identity, those least like the others first."""
        first = int(self.first_C[at])
        row_n = self.row_m[first : first + int(self.count_C[at])]
        if self.columns and self.columns[0].name == "likeness":
            row_n = row_n[np.argsort(self.columns[0].value_N[row_n], kind="stable")]
        return row_n

    def images(self, query: look.Asked) -> look.Answer:
        """List images by a column, of one identity and within limits of a column where asked."""
        if query.who is not None:
            if query.who not in self.place:
                raise Refused(400, f"no identity {query.who}")
            row_n = self.faces(self.place[query.who])
            if query.sort:
                value_n = self.column(query.sort).value_N[row_n]
                order_n = np.argsort(value_n, kind="stable")
                row_n = row_n[order_n[: int(np.isfinite(value_n).sum())]]
        elif query.sort:
            row_n = self._order("images", query.sort)
        else:
            row_n = np.arange(self.dataset.n)
        if query.column:
            value_n = self.column(query.column).value_N[row_n]
            row_n = row_n[(value_n >= query.low) & (value_n <= query.high)]
        row_n = row_n[::-1] if query.down else row_n
        some_n = row_n[query.start : query.start + query.count]
        return {"total": len(row_n), "items": [self.image(int(row)) for row in some_n]}

    def image(self, row: int) -> dict[str, Any]:
        """Return what is known of an image."""
        value = [float(one.value_N[row]) for one in self.columns]
        return {
            "row": row,
            "who": int(self.target_N[row]),
            "key": self.dataset.key[row],
            "source": self.dataset.source[row],
            "values": [None if np.isnan(v) else round(v, 4) for v in value],
        }

    def rejected(self, reason: str, start: int, count: int) -> look.Answer:
        """List what was quarantined, for one reason or for all."""
        table = self.quarantine
        if reason:
            table = table.filter(pc.equal(table.column("reason"), reason))
        names = ("source", "source_label", "reason", "note", "size")
        items = table.slice(start, count).select(names).to_pylist()
        for at, item in enumerate(items):
            item["at"] = start + at
        return {"total": table.num_rows, "items": items}

    def read(self, row: int) -> bytes:
        """Return the bytes of an image, b"" for a damaged one or none."""
        try:
            return self.dataset.read(row) if 0 <= row < self.dataset.n else b""
        except GlintError:
            return b""

    def photograph(self, source: str) -> bytes:
        """Return a small JPEG of a file of the folder of photographs, b"" where that fails."""
        if self.photographs is None:
            return b""
        root = self.photographs.resolve()
        path = (root / source).resolve()
        if root not in path.parents or not path.is_file() or path.stat().st_size > look.PHOTO:
            return b""
        try:
            return pixels.thumbnail(path.read_bytes(), THUMB)
        except (OSError, ValueError):
            return b""

    def meta(self, served: bool) -> dict[str, Any]:
        """Return what the page knows before it asks for anything."""
        reasons = self.quarantine.column("reason").to_pylist()
        return {
            "served": served,
            "columns": [one.name for one in self.columns],
            "images": self.dataset.n,
            "identities": len(self.count_C),
            "reasons": {name: reasons.count(name) for name in sorted(set(reasons))},
            "photographs": self.photographs is not None,
        }

    def page(self, served: bool, sample: look.Sample | None = None) -> str:
        """Return the page as HTML."""
        left_out = int((self.target_N < 0).sum())
        counts = [
            (f"{self.dataset.n:,}", "images"), (f"{len(self.count_C):,}", "identities"),
            (f"{self.quarantine.num_rows:,}", "quarantined"), (f"{left_out:,}", "left out"),
        ]  # fmt: skip
        facts = [("dataset", self.dataset.name), ("digest", self.dataset.digest),
                 ("label version", str(self.version.version))]  # fmt: skip
        charts = [_sizes(self.count_C), *(_chart(one) for one in self.columns)]
        return look.html(f"A look at {Path(self.dataset.name).name}", counts, facts, charts,
                         self.meta(served), sample)  # fmt: skip

    def sample(self, seed: int = 0) -> look.Sample:
        """Choose what a page that is one file shows: ends of every order, and a random part."""
        rng = np.random.default_rng(seed)
        at_all = self._order("identities", "images")
        kinds: list[Ints] = [at_all[::-1][:SAMPLE], at_all[:SAMPLE]]
        kinds += [self._order("identities", one.name)[:SAMPLE] for one in self.columns[:2]]
        some = min(2 * SAMPLE, len(at_all))
        kinds.append(np.sort(rng.choice(at_all, some, replace=False)))
        chosen = list(dict.fromkeys(int(at) for kind in kinds for at in kind))
        rows: dict[int, None] = {}
        for one in self.columns:
            order = self._order("images", one.name)
            rows |= dict.fromkeys([*order[:SAMPLE].tolist(), *order[-SAMPLE // 4 :].tolist()])
        identities = []
        for at in chosen:
            rows |= dict.fromkeys(int(row) for row in self.faces(at)[: 2 * FACES])
            identities.append(self._identity(at))
        faces: dict[int, bytes] = {}
        room = BYTES
        for row in rows:
            data = self.read(row)
            room -= len(data)
            if room < 0:
                break
            faces[row] = data
        identities = [
            {**one, "faces": shown}
            for one in identities
            if (shown := [face for face in one["faces"] if face["row"] in faces])
        ]
        rejected = self.rejected("", 0, 500)["items"]
        photos = {item["at"]: self.photograph(item["source"]) for item in rejected[:PAGE]}
        images = [self.image(row) for row in sorted(faces)]
        return look.Sample(identities, images, rejected, faces, photos)


class Look(Local):
    """A catalogue served to this machine."""

    def __init__(self, catalogue: Catalogue, port: int = 0) -> None:
        self.catalogue = catalogue
        self.shown = look.opened(catalogue.page(served=True))
        super().__init__(port)

    def get(self, path: str, query: Query) -> tuple[str, bytes] | object:
        """Answer the page, a list, or an image. Raises Refused."""
        asked, catalogue = look.Asked.of(query, PAGE), self.catalogue
        if path == "/":
            return HTML, self.shown
        if path == "/image":
            return _picture(catalogue.read(number(query, "row")))
        if path == "/identities":
            with self.writing:
                return catalogue.identities(
                    asked.sort or "images", asked.down, asked.text, asked.start, asked.count
                )
        if path == "/images":
            with self.writing:
                return catalogue.images(asked)
        if path == "/quarantine":
            return catalogue.rejected(asked.text, asked.start, asked.count)
        if path == "/photograph":
            table, at = catalogue.quarantine, number(query, "at")
            if asked.text:
                table = table.filter(pc.equal(table.column("reason"), asked.text))
            if not 0 <= at < table.num_rows:
                raise Refused(404, "no such record")
            return _picture(catalogue.photograph(table.column("source")[at].as_py() or ""))
        raise Refused(404, "no such page")


def _picture(data: bytes) -> tuple[str, bytes]:
    if not data:
        raise Refused(404, "this image cannot be read")
    return look.kind(data), data


def _sizes(count_C: Ints) -> chart.Chart:
    top = max(2.0, float(np.quantile(count_C, 0.99)) if len(count_C) else 2.0)
    values = [("pairs", "identities", count_C.astype(np.float64), True)]
    return chart.chart(
        "Images of an identity", "images", values, [], start=0, stop=top, step=max(1.0, top / 80),
        note="How many identities have so many images; the largest hundredth stands in the last "
        "bar.",
    )  # fmt: skip


def _chart(column: Column) -> chart.Chart:
    value_n = column.value_N[np.isfinite(column.value_N)]
    ends = np.quantile(value_n, [0.001, 0.999]) if len(value_n) else np.array([0.0, 1.0])
    start, stop = float(ends[0]), float(max(ends[1], ends[0] + 1e-6))
    return chart.chart(
        column.name, column.name, [("pairs", "images", value_n, True)], [], start=start, stop=stop,
        step=(stop - start) / 80,
        note=f"How many images have each {column.name}; the rarest stand in the outermost bars.",
    )  # fmt: skip
