"""Mixtures of layouts as users have them, against an oracle that shares no code with glint.

The world is drawn first: who is on which image, and where it lies. So what is right is known
without looking at a file: the same (image, person) pairs, or a refusal by name. None may end well
with another dataset.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from glint.errors import GlintError
from glint.pipelines.dataset import shard as stage
from glint.shards.sources import Rule

LAYOUTS = ("folder", "tar of folders", "zip of folders", "webdataset", "parquet", "flat and list")
NAMES = ["Ann", "Bo Li", "n000001", "n000002", "007", "7", "Zo\u00eb", "a.b", "x-1", "3.0x"]
SYSTEM = ["@eaDir/{}/SYNOPHOTO_THUMB_M.jpg", ".thumbs/{}", "#recycle/{}", "__MACOSX/._{}"]
BESIDE = ["Thumbs.db", "desktop.ini", ".DS_Store", "info.json", "README.txt", "landmarks.csv"]


def jpeg(number: int) -> bytes:
    colour = (number * 37 % 256, number * 91 % 256, number % 256)
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "JPEG", comment=b"%d" % number)
    return out.getvalue()


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    """Draw people, images, a layout, and what is strewn among them."""
    people = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
    return {
        "people": people,
        "counts": [draw(st.integers(1, 3)) for _ in people],
        "layout": draw(st.sampled_from(LAYOUTS)),
        "splits": draw(st.sampled_from([[], ["train"], ["train", "val"]])),
        "inner": draw(st.sampled_from(["", "aligned", "some"])),  # a folder below each person
        "system": draw(st.lists(st.sampled_from(SYSTEM), max_size=2, unique=True)),
        "beside": draw(st.lists(st.sampled_from(BESIDE), max_size=2, unique=True)),
        "links": draw(st.sampled_from(["", "folders", "files"])),
        "label": draw(st.sampled_from(["name", "number", "quoted", "float"])),
        "member": draw(st.sampled_from(["cls", "json", "txt"])),
        "told": draw(st.booleans()),  # whether the user says what differs from the defaults
    }


class World:
    """The world on disk; `truth` counts (image, person), `rule` is what a user says of it."""

    def __init__(self, drawn: dict[str, Any], root: Path) -> None:
        self.drawn, self.root = drawn, root
        self.src, self.rule = root / "src", dict[str, Any]()
        self.truth: Counter[tuple[bytes, str]] = Counter()
        self.src.mkdir()
        self.files: list[tuple[str, bytes, str]] = []  # path, image, person
        number = 0
        for person, count in zip(drawn["people"], drawn["counts"]):
            for n in range(count):
                for split in drawn["splits"] or [""]:
                    inner = drawn["inner"] if drawn["inner"] != "some" or n else ""
                    parts = [split, person, inner.replace("some", "more"), f"{number}.jpg"]
                    self.files.append(("/".join(filter(None, parts)), jpeg(number), person))
                    number += 1
        self.truth.update((data, person) for _, data, person in self.files)
        getattr(self, "_" + drawn["layout"].replace(" ", "_"))()

    def put(self, path: str, data: bytes) -> None:
        place = self.src / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def strewn(self) -> list[tuple[str, bytes]]:
        """What lies among the images and is none of them."""
        where = self.files[0][0].rpartition("/")[0]
        made = [(f"{where}/{one.format('0.jpg')}", jpeg(999)) for one in self.drawn["system"]]
        return made + [
            (f"{where}/{one}", b"\xd0\xcf\x11\xe0 no image") for one in self.drawn["beside"]
        ]

    def by_folder(self, common: bool = True) -> None:
        """Without a word each folder is somebody; a user says at which depth the people are.

        common: what all folders have in common is no part of a label.
        """
        if self.drawn["told"]:
            self.rule["label_depth"] = 2 if self.drawn["splits"] else 1
            return
        folders = {path: path.split("/")[:-1] for path, _, _ in self.files}
        same = 0
        while common and len({f[same] for f in folders.values()}) == 1:
            if any(len(f) == same + 1 for f in folders.values()):
                break
            same += 1
        self.truth = Counter((data, "/".join(folders[p][same:])) for p, data, _ in self.files)

    def _folder(self) -> None:
        self.by_folder(common=False)
        links = self.drawn["links"]
        if links:
            self.rule["follow_links"] = True
        elsewhere = self.root / "elsewhere"
        for number, (path, data, _) in enumerate(self.files):
            if links == "files" and number % 2 == 0:
                elsewhere.mkdir(exist_ok=True)
                (elsewhere / str(number)).write_bytes(data)
                (self.src / path).parent.mkdir(parents=True, exist_ok=True)
                (self.src / path).symlink_to(elsewhere / str(number))
            else:
                self.put(path, data)
        for path, data in self.strewn():
            self.put(path, data)
        if links == "folders":
            top = self.files[0][0].split("/")[0]
            (self.src / top).rename(elsewhere)
            (self.src / top).symlink_to(elsewhere)

    def _tar_of_folders(self) -> None:
        self.by_folder()
        with tarfile.open(self.src / "faces.tar", "w") as archive:
            for path, data in [*((p, d) for p, d, _ in self.files), *self.strewn()]:
                info = tarfile.TarInfo(path)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))

    def _zip_of_folders(self) -> None:
        self.by_folder()
        with zipfile.ZipFile(self.src / "faces.zip", "w") as archive:
            for path, data in [*((p, d) for p, d, _ in self.files), *self.strewn()]:
                archive.writestr(path, data)

    def said(self, person: str) -> object:
        """Write a label as the drawn kind of writer does."""
        number = self.drawn["people"].index(person)
        kinds = {"name": person, "number": number, "quoted": str(number), "float": float(number)}
        return kinds[self.drawn["label"]]

    def _numbered(self) -> None:
        if self.drawn["label"] != "name":
            people = self.drawn["people"]
            self.truth = Counter({(d, str(people.index(p))): n for (d, p), n in self.truth.items()})

    def _webdataset(self) -> None:
        self._numbered()
        member = self.drawn["member"]
        if member == "txt" and self.drawn["told"]:
            self.rule["label_member"] = "txt"
        tars: dict[str, list[tuple[str, bytes]]] = {}
        for number, (path, data, person) in enumerate(self.files):
            split = path.split("/")[0] if self.drawn["splits"] else ""
            text = str(self.said(person)).encode()
            if member == "json":
                text = json.dumps({"caption": "x", "identity": self.said(person)}).encode()
            tars.setdefault(split, []).extend(
                [(f"{number:06d}.jpg", data), (f"{number:06d}.{member}", text)]
            )
        for split, members in tars.items():
            (self.src / split).mkdir(exist_ok=True)
            with tarfile.open(self.src / split / "000000.tar", "w") as archive:
                for name, data in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))

    def _parquet(self) -> None:
        self._numbered()
        for split in self.drawn["splits"] or ["train"]:
            mine = [one for one in self.files if one[0].startswith(split)
                    or not self.drawn["splits"]]  # fmt: skip
            column = pa.array([self.said(person) for _, _, person in mine])
            if self.drawn["inner"]:
                column = column.dictionary_encode()
            image = pa.array([{"bytes": data, "path": path} for path, data, _ in mine])
            table = pa.table({"id": range(len(mine)), "image": image, "person": column})
            (self.src / "data").mkdir(exist_ok=True)
            pq.write_table(table, self.src / "data" / f"{split}-00000-of-00001.parquet")

    def _flat_and_list(self) -> None:
        rows = []
        for path, data, person in self.files:
            self.put("images/" + path.rpartition("/")[2], data)
            rows.append((path.rpartition("/")[2], person))
        form = self.drawn["member"]
        place = self.root / f"labels.{'csv' if form == 'cls' else form}"
        with place.open("w", newline="", encoding="utf-8") as file:
            if form == "cls":
                csv.writer(file).writerows([("file_name", "label"), *rows])
            elif form == "json":
                file.writelines(json.dumps({"file_name": a, "label": b}) + "\n" for a, b in rows)
            else:
                file.writelines(f"{a}\t{b}\n" for a, b in rows)
        if self.drawn["told"]:
            self.rule["labels"] = str(place)
        else:  # one identity, and a warning
            self.truth = Counter((data, "images") for _, data, _ in self.files)


def found(out: Path) -> Counter[tuple[bytes, str]]:
    """Read a dataset by tarfile and pyarrow alone: its images with their source labels."""
    said = pq.read_table(out / "identities.parquet").column("source_label").to_pylist()
    made: Counter[tuple[bytes, str]] = Counter()
    for path in sorted((out / "data").glob("*.tar")):
        with tarfile.open(path) as archive:
            data = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
        for name, image in data.items():
            if name.endswith(".jpg"):
                made[image, said[int(data[name[:-4] + ".cls"])]] += 1
    return made


def walk(drawn: dict[str, Any]) -> str:
    """Shard one world; return refused or right. Fails where it ends well and is another."""
    with tempfile.TemporaryDirectory() as place:
        world = World(drawn, Path(place))
        try:
            result = stage.shard(
                world.src, Path(place) / "out", stage.Options(size="16x16"), Rule(**world.rule)
            )
        except GlintError as error:
            assert error.what and error.hint, error  # named, with what to do
            return "refused"
        assert result.quarantined == 0
        assert found(Path(place) / "out") == world.truth
        return "right"


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(worlds())
def test_twenty_mixtures(drawn: dict[str, Any]) -> None:
    walk(drawn)


@pytest.mark.slow
def test_two_hundred_mixtures() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(worlds())
    def run(drawn: dict[str, Any]) -> None:
        seen[walk(drawn)] += 1

    run()
    assert seen["right"] >= 60, seen
    assert sum(seen.values()) >= 200
