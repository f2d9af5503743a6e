"""Every line of the table of layouts in docs/shard.md, made here and taken by its own command."""

from __future__ import annotations

import io
import json
import re
import shlex
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glint.pipelines.dataset import shard as stage
from glint.shards.dataset import Dataset
from glint.shards.sources import Rule

DOC = Path(__file__).parents[2] / "docs" / "shard.md"
ROW = re.compile(r"^\| ([a-z0-9 -]+) \| .* \| `(.*)` \| [^|]* \|$", re.MULTILINE)
COMMANDS = dict(ROW.findall(DOC.read_text(encoding="utf-8").partition("## What is read")[2]))
PEOPLE = ("ann", "bob")


def image(k: int, n: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (112, 112), (100 * k + 20, 60 * n + 10, 77)).save(out, kind)
    return out.getvalue()


EVERY = [(person, n, image(k, n)) for k, person in enumerate(PEOPLE) for n in range(2)]


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def folders(src: Path, form: str) -> None:
    for person, n, data in EVERY:
        put(src / form.format(p=person, n=n, split=("train", "val")[n]), data)


def listed(src: Path, form: str, head: str = "", name: str = "list.txt") -> None:
    lines = []
    for i, (person, n, data) in enumerate(EVERY):
        put(src / "imgs" / f"{i:06d}.jpg", data)
        k = PEOPLE.index(person)
        lines.append(form.format(f=f"{i:06d}.jpg", p=person, k=k, i=i, n=n))
    (src.parent / name).write_text(head + "\n".join(lines) + "\n")


def webdataset(src: Path, member: str, label: Callable[[str], Any], name: str = "0.tar") -> None:
    members = []
    for i, (person, _, data) in enumerate(EVERY):
        said = label(person)
        text = json.dumps(said) if isinstance(said, dict) else str(said)
        members += [(f"{i:04d}.jpg", data), (f"{i:04d}.{member}", text.encode())]
    tar(src / name, members)


def table(src: Path, name: str, **columns: Any) -> None:
    cells = {"image": [{"bytes": data, "path": None} for _, _, data in EVERY], **columns}
    (src / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(cells), src / name)


def links(src: Path) -> None:
    folders(src.parent / "all", "{p}/{n}.jpg")
    src.mkdir()
    for person in PEOPLE:
        (src / person).symlink_to(src.parent / "all" / person)


def windows_zip(src: Path) -> None:
    src.mkdir()
    with zipfile.ZipFile(src / "faces.zip", "w") as archive:
        for person, n, data in EVERY:
            info = zipfile.ZipInfo("x")
            info.filename = f"faces\\{person}\\{n}.jpg"
            archive.writestr(info, data)


def img2dataset(src: Path) -> None:
    webdataset(src, "json", lambda p: {"caption": "x", "identity": p}, "00000.tar")
    pq.write_table(pa.table({"url": ["x"], "caption": ["x"]}), src / "00000.parquet")
    (src / "00000_stats.json").write_text("{}")


def saved(src: Path) -> None:
    src.mkdir()
    cells = pa.table({"image": [{"bytes": d, "path": None} for _, _, d in EVERY],
                      "label": [PEOPLE.index(p) for p, _, _ in EVERY]})  # fmt: skip
    with (
        pa.OSFile(str(src / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, cells.schema) as writer,
    ):
        writer.write_table(cells)
    (src / "state.json").write_text("{}")


def snapshot(src: Path) -> None:
    table(src.parent / "blobs", "abc", label=[p for p, _, _ in EVERY])
    (src / "data").mkdir(parents=True)
    (src / "data" / "train-00000-of-00001.parquet").symlink_to(src.parent / "blobs" / "abc")
    (src / "README.md").write_text("x")


def mixed_formats(src: Path) -> None:
    for k, person in enumerate(PEOPLE):
        for n, kind in enumerate(("TIFF", "PNG")):
            put(src / person / f"{n}.{kind.lower()}", image(k, n, kind))


def tar_each(src: Path) -> None:
    for person in PEOPLE:
        tar(src / f"{person}.tar", [(f"{n}.jpg", d) for p, n, d in EVERY if p == person])


def split_tars(src: Path) -> None:
    for split in range(2):
        members = []
        for i, (person, n, data) in enumerate(EVERY):
            if n == split:
                members += [(f"{i}.jpg", data), (f"{i}.cls", person.encode())]
        tar(src / ("train", "val")[split] / "0.tar", members)


def who(person: str) -> dict[str, str]:
    return {"who": person}


MAKERS: dict[str, Callable[[Path], None]] = {
    "folders": lambda src: folders(src, "{p}/{n}.jpg"),
    "folders inside": lambda src: folders(src, "{p}/video{n}/{n}.jpg"),
    "splits": lambda src: folders(src, "{split}/{p}/{n}.jpg"),
    "splits apart": lambda src: folders(src, "{split}/{p}/{n}.jpg"),
    "webface": lambda src: [
        put(src / f"{k}/{k}_{k}_000000{k}/{n}.jpg", image(k, n)) for k in (0, 1) for n in (0, 1)
    ],  # type: ignore[list-item, return-value]
    "links": links,
    "names": lambda src: folders(src, "{p}_{n}.jpg"),
    "list": lambda src: listed(src, "{f} {k}", name="identity_CelebA.txt"),
    "csv": lambda src: listed(src, "{f},{p},x", "file_name,label,other\n", "metadata.csv"),
    "json lines": lambda src: listed(
        src, '{{"file_name": "{f}", "label": "{p}"}}', name="metadata.jsonl"
    ),
    "lst": lambda src: listed(src, "{i}\t{k}.000000\timgs/{f}", name="train.lst"),
    "tar": lambda src: tar(src / "f.tar", [(f"lfw/{p}/{n}.jpg", d) for p, n, d in EVERY]),
    "zip": windows_zip,
    "webdataset": lambda src: webdataset(src, "cls", str),
    "webdataset json": lambda src: webdataset(src, "json", lambda p: {"label": p}),
    "webdataset txt": lambda src: webdataset(src, "txt", PEOPLE.index),
    "webdataset other": lambda src: webdataset(src, "meta.json", who),
    "img2dataset": img2dataset,
    "tars of people": tar_each,
    "tars apart": split_tars,
    "flat tar": lambda src: [
        listed(src.parent / "x", "{f} {p}"),
        tar(src / "f.tar", [(f"{i:06d}.jpg", d) for i, (_, _, d) in enumerate(EVERY)]),
        (src.parent / "list.txt").write_text((src.parent / "list.txt").read_text()),
    ],  # type: ignore[list-item, return-value]
    "parquet": lambda src: table(src, "data/train.parquet", label=[p for p, _, _ in EVERY]),
    "parquet other": lambda src: table(
        src, "t.parquet", gender=[n for _, n, _ in EVERY], who=[p for p, _, _ in EVERY]
    ),
    "parquet names": lambda src: table(
        src, "t.parquet", file_name=[f"{p}/{n}.jpg" for p, n, _ in EVERY]
    ),
    "snapshot": snapshot,
    "arrow": saved,
    "other formats": mixed_formats,
    "unlabelled": lambda src: folders(src, "{p}_{n}.jpg"),
}
RECORDS = {"recordio identity", "recordio plain"}  # tests/unit/shards/test_sources.py makes these


def test_the_table_and_the_makers_are_the_same() -> None:
    assert {*COMMANDS} == {*MAKERS} | RECORDS


@pytest.mark.parametrize("name", MAKERS)
def test_a_layout_is_taken_by_its_command(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path / "SRC")
    words = shlex.split(COMMANDS[name])
    sources = [tmp_path / word for word in words if word.startswith("SRC")]
    rule: dict[str, Any] = {}
    options = stage.Options(to_jpeg=95 if "--to-jpeg" in words else 0)
    for word, value in zip(words, [*words[1:], ""]):
        if word == "--label-depth":
            rule["label_depth"] = int(value)
        elif word == "--labels":
            rule["labels"] = str(tmp_path / value)
        elif word == "--unlabelled":
            options = stage.Options(unlabelled=True)
        elif word == "--follow-links":
            rule["follow_links"] = True
        elif word.startswith("--label-"):
            rule[word[2:].replace("-", "_")] = value
    result = stage.shard(sources, tmp_path / "out", options, Rule(**rule))
    assert (result.written, result.quarantined) == (4, 0)
    data = Dataset(tmp_path / "out")
    if name == "unlabelled":
        assert data.classes == 4
        return
    kept = Counter((int(data.label[i]), data.read(i)[:4] == b"\xff\xd8\xff\xe0") for i in range(4))
    assert {*kept.values()} == {2} and data.classes == 2
    if name not in ("other formats", "webface"):
        person = {image: p for p, _, image in EVERY}
        assert len({(int(data.label[i]), person[data.read(i)]) for i in range(4)}) == 2
    assert result.recognised["label"] and result.recognised["examples"]
