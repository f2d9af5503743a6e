"""Archives and tables as sources: read where they lie, refused where they are hostile."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glint.errors import GlintError, InputError
from glint.pipelines.dataset import shard as stage
from glint.shards import plan
from glint.shards.image import Rejected
from glint.shards.sources import open_source, reopen
from glint.shards.sources.source import Source

Jpeg = Callable[[int], bytes]
SEED = 7
TREE = {"bob/b1.jpg": 0, "bob/b2.jpg": 1, "alice/a.jpg": 2}
WEBFACE = {
    f"{d}/{d}_{n}_{n:07d}/{n}_{k}.jpg": 10 * d + n + k
    for d in (0, 7)
    for n in (0, 3)
    for k in (0, 1)
}


def tar(path: Path, members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zip_(path: Path, members: dict[str, bytes], packed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else 0) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def found(source: Source) -> dict[str, tuple[str, bytes]]:
    """Give name -> (label, bytes) of all that can be read."""
    made = {}
    for i in range(source.n):
        try:
            label = int(source.label[i])
            made[source.name(i)] = (
                source.classes[label].as_py().decode() if label >= 0 else "",
                source.read(i),
            )
        except Rejected:
            continue
    return made


def reasons(source: Source) -> Counter[str]:
    counts: Counter[str] = Counter()
    for i in range(source.n):
        try:
            source.read(i)
        except Rejected as why:
            counts[why.reason] += 1
    return counts


def through_disk(source: Source, folder: Path, path: Path) -> Source:
    """Save a source and open it again: its records are in the order of a plan."""
    folder.mkdir()
    source.save(folder, plan.order(source.n, SEED))
    return reopen(source.kind, str(path), folder, 0, source.n)


@pytest.mark.parametrize(
    "make",
    [
        tar,
        zip_,
        lambda p, m: zip_(p, m, packed=True),
        lambda p, m: tar(p, m, tarfile.PAX_FORMAT),
        lambda p, m: tar(p, m, tarfile.USTAR_FORMAT),
    ],
)
@pytest.mark.parametrize("top", ["", "faces/"])
def test_archives_of_identity_folders(
    tmp_path: Path, jpeg: Jpeg, make: Callable[..., Path], top: str
) -> None:
    image = {top + name: jpeg(i) for name, i in TREE.items()}
    path = make(tmp_path / "faces.archive", image)
    source = open_source(path)
    assert source.describe()["layout"] == "archive" and source.describe()["identities"] == 2
    want = {name: (name[len(top) :].split("/")[0], data) for name, data in image.items()}
    assert found(source) == want
    again = through_disk(source, tmp_path / "plan", path)
    assert source.label.tolist() == [1, 1, 0] and found(again) == want
    order = plan.order(3, SEED).tolist()
    assert again.label.tolist() == [source.label[i] for i in order]
    part = reopen(source.kind, str(path), tmp_path / "plan", 1, 3)
    assert [part.name(i) for i in range(2)] == [source.name(i) for i in order[1:]]
    assert [part.offset(i) for i in range(2)] == [source.offset(i) for i in order[1:]]
    assert part.read(1) == source.read(order[2])
    assert not (tmp_path / "bob").exists()


@pytest.mark.parametrize("how", ["folder", "tar", "zip", "ten zips"])
def test_webface_s_ten_folders(tmp_path: Path, jpeg: Jpeg, how: str) -> None:
    src = tmp_path / "src"
    src.mkdir()
    image = {name: jpeg(i) for name, i in WEBFACE.items()}
    if how == "folder":
        for name, data in image.items():
            (src / name).parent.mkdir(parents=True, exist_ok=True)
            (src / name).write_bytes(data)
    elif how == "ten zips":
        for digit in "07":
            zip_(src / f"{digit}.zip", {n: d for n, d in image.items() if n[0] == digit})
    else:
        (tar if how == "tar" else zip_)(
            src / f"w.{how}", {f"WebFace/{n}": d for n, d in image.items()}
        )
    source = open_source(src)
    assert source.describe()["layout"].endswith("/webface")
    people = [b"0_0_0000000", b"0_3_0000003", b"7_0_0000000", b"7_3_0000003"]
    assert source.classes.to_pylist() == source.names.to_pylist() == people
    made = found(source)
    assert sorted(data for _, data in made.values()) == sorted(image.values())
    assert all(label in name for name, (label, _) in made.items())


def test_long_names_and_large_counts_in_a_tar(tmp_path: Path, jpeg: Jpeg) -> None:
    deep = "/".join(["x" * 90] * 3) + "/\u96ea.jpg"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        source = open_source(tar(tmp_path / f"{format}.tar", {deep: jpeg(1)}, format))
        assert found(source)[deep][1] == jpeg(1)


def test_members_that_are_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in (
            ("../up/a.jpg", b"0"),
            ("/etc/a.jpg", b"0"),
            ("a/../../b.jpg", b"0"),
            ("a/link.jpg", tarfile.SYMTYPE),
            ("a/hard.jpg", tarfile.LNKTYPE),
            ("a/dev.jpg", tarfile.CHRTYPE),
            ("a/pipe.jpg", tarfile.FIFOTYPE),
            ("a/sparse.jpg", tarfile.GNUTYPE_SPARSE),
            ("a/good.jpg", b"0"),
            ("a/bad\n.jpg", b"0"),
            ("a/good.jpg", b"0"),
            ("loose.jpg", b"0"),
            ("a/.hidden.jpg", b"0"),
            ("readme.txt", b"0"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(jpeg(1)) if kind == b"0" else 0
            archive.addfile(info, io.BytesIO(jpeg(1)) if kind == b"0" else None)
    source = open_source(path)
    assert reasons(source) == {
        "unsafe-member": 8,
        "bad-name": 1,
        "duplicate-name": 1,
        "no-identity": 1,
    }
    assert list(found(source)) == ["a/good.jpg"]
    assert any("8 members" in note for note in source.describe()["notes"])
    result = {row["source"] for row in _quarantined(path, tmp_path / "out")}
    assert {"../up/a.jpg", "/etc/a.jpg", "a/link.jpg", "a/sparse.jpg"} <= result
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.tar", "out"]


def _quarantined(src: Path, out: Path) -> list[dict[str, object]]:
    stage.shard(src, out, max_bad=1.0)
    rows: list[dict[str, object]] = pq.read_table(out / "quarantine.parquet").to_pylist()
    return rows


def test_zip_members_that_are_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/good.jpg", jpeg(1))
        for name in ("../up.jpg", "/abs/a.jpg", "C:\\x\\a.jpg", "a/..\\..\\b.jpg"):
            archive.writestr(name, b"x")
        link = zipfile.ZipInfo("a/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a/bomb.jpg", bytes(64 << 20))
        archive.writestr("a/lzma.jpg", b"x" * 99, zipfile.ZIP_LZMA)
        archive.writestr("a/flip.jpg", jpeg(2), zipfile.ZIP_STORED)
        archive.writestr("a/liar.jpg", bytes(1 << 20))
    data = bytearray(path.read_bytes())
    at = data.find(jpeg(2))
    data[at + 100] ^= 1
    entry = data.rfind(b"a/liar.jpg") - 46  # a bomb that declares 1000 bytes
    data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    source = open_source(path)
    assert reasons(source) == {
        "unsafe-member": 5,
        "too-large": 1,
        "unsupported-method": 1,
        "corrupt-record": 2,
    }
    assert list(found(source)) == ["a/good.jpg"]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_packed_tars_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "bomb.tar"
    with tarfile.open(path, mode) as archive:
        info = tarfile.TarInfo("a/b.jpg")
        info.size = 1 << 20
        archive.addfile(info, io.BytesIO(bytes(1 << 20)))
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert caught.value.code == "GL0201" and "unpack it first" in caught.value.hint


@pytest.mark.parametrize("make", [tar, zip_])
def test_an_archive_cut_anywhere_is_refused(tmp_path: Path, make: Callable[..., Path]) -> None:
    whole = make(tmp_path / "a.tar", {"a/1.jpg": b"x" * 700, "b/2.jpg": b"y" * 30}).read_bytes()
    source = open_source(tmp_path / "a.tar")
    assert source.n == 2
    end = 512 * 6 if make is tar else len(whole) - 1  # tar: one zero block is an end
    for cut in [*range(1, end, 97), *range(512, end, 512), end]:
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        if make is tar and cut >= 512 * 6:
            continue
        with pytest.raises(GlintError) as caught:
            open_source(path)
        assert caught.value.code in ("GL0214", "GL0201")
        assert str(path) in caught.value.where


def test_damaged_tars_are_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path / "a.tar", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    whole = path.read_bytes()
    second = whole.find(b"b/2.jpg")
    for at, value in (
        (second, b"c"),
        (second + 124, b"7"),
        (second + 124, b"\x80\xff"),
        (second + 148, b"9"),
    ):
        path.write_bytes(whole[:at] + value + whole[at + len(value) :])
        with pytest.raises(InputError, match=r"GL0214 .*0x[0-9a-f]+: a tar header is damaged"):
            open_source(path)
    path.write_bytes(whole + whole)
    with pytest.raises(InputError, match="something stands behind the end"):
        open_source(path)


def extended(kind: bytes, data: bytes) -> bytes:
    """Give a header for the next member."""
    info = tarfile.TarInfo("././@LongHeader")
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "kind, data, what",
    [
        (b"L", b"n" * 70_000, "a header of 70000 bytes, 65536 are let pass"),
        (b"x", b"9" * (1 << 21), "a header of 2097152 bytes, 1048576 are let pass"),
        (b"x", b"16 path=id/1.jpg\n", "a PAX header is damaged"),  # tarfile: the name is cut
        (b"x", b"p7 path=id/1.jpg\n", "a PAX header is damaged"),  # tarfile: no header
        (b"x", b"11 size=-1\n", "a PAX header gives a size of b'-1'"),
        (b"x", b"12 size=1e3\n", "a PAX header gives a size of b'1e3'"),  # tarfile: 0
        (b"x", b"15 size=999999\n", "a member claims 999999 bytes"),
        (b"g", b"18 path=all/1.jpg\n", "a global header names all members at once"),
    ],
)
def test_long_headers_that_are_refused(
    tmp_path: Path, jpeg: Jpeg, kind: bytes, data: bytes, what: str
) -> None:
    path = tar(tmp_path / "a.tar", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    path.write_bytes(extended(kind, data) + path.read_bytes())
    with pytest.raises(InputError, match=f"GL0214 .*{what}"):
        open_source(path)


def test_many_long_headers_of_one_member(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path / "a.tar", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    path.write_bytes(extended(b"L", b"c/3.jpg\0") * 3000 + path.read_bytes())  # no recursion
    assert list(found(open_source(path))) == ["c/3.jpg", "b/2.jpg"]


def test_times_in_a_header_of_gnu_tar_are_no_name(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path / "a.tar", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    data = bytearray(path.read_bytes())
    data[345:357] = b"15303321600\0"  # as tar --incremental writes it
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert [source_class.as_py() for source_class in open_source(path).classes] == [b"a", b"b"]


def test_damaged_zips_are_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    path = zip_(tmp_path / "a.zip", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    whole = path.read_bytes()
    last = whole.rfind(b"PK\1\2")
    end = len(whole) - 22
    for at, value, what in (
        (last, b"X", "the central directory of the zip is damaged"),
        (last + 28, b"\x09", "the central directory is damaged"),  # a longer name
        (last + 30, b"\x02", "the central directory is damaged"),
        (last + 42, b"\xff\xff\xff\xff", ""),  # elsewhere, by zip64 fields that are not there
        (end + 4, b"\x01", "the zip is one of several volumes"),
        (end + 8, b"\x01", "the zip is one of several volumes"),
        (end + 8, b"\x03\0\x03\0", "3 entries in .* claimed.*; 2 in .* found"),
        (end + 12, b"\x01", "damaged"),
        (end + 16, b"\0", "damaged"),
    ):
        path.write_bytes(whole[:at] + value + whole[at + len(value) :])
        if what:
            with pytest.raises(InputError, match=f"GL0214 .*{what}"):
                open_source(path)
        else:
            assert reasons(open_source(path)) == {"corrupt-record": 1}
    for bad in (whole + b"x", whole + whole, b"PK\3\4junk" + whole, whole[40:]):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"GL0214|GL0201"):
            open_source(path)


def test_existing_webdataset_tars(tmp_path: Path, jpeg: Jpeg) -> None:
    src = tmp_path / "w"
    src.mkdir()
    tar(
        src / "0.tar",
        {
            "a1.jpg": jpeg(1),
            "a1.cls": b"7",
            "a1.json": b"{}",
            "a2.jpeg": jpeg(2),
            "a2.json": b'{"label": 70}',
        },
    )
    tar(
        src / "1.tar",
        {
            "a1.jpg": jpeg(3),
            "a1.cls": b"7\n",
            "b.jpg": jpeg(4),
            "c.cls": b"7",
            "d.jpg": jpeg(5),
            "d.cls": b"-1",
            "e.jpg": jpeg(6),
            "e.png": jpeg(6),
            "e.cls": b"7",
            "f.jpg": jpeg(7),
            "f.json": b"[" * 100_000,
            "b.cls": b"7",
        },
    )
    source = open_source(src)
    assert source.describe()["layout"] == "webdataset"
    assert found(source) == {
        "0.tar/a1": ("7", jpeg(1)),
        "0.tar/a2": ("70", jpeg(2)),
        "1.tar/a1": ("7", jpeg(3)),
    }
    assert reasons(source) == {
        "no-label": 2,
        "no-image": 2,
        "label-not-integer": 1,
        "ambiguous-sample": 1,
    }
    again = through_disk(source, tmp_path / "plan", src)
    assert found(again) == found(source)


def test_a_key_that_stands_twice(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(
        tmp_path / "w.tar",
        {"a.jpg": jpeg(1), "a.cls": b"0", "b.jpg": jpeg(2), "b.cls": b"1", "./a.png": jpeg(3)},
    )
    with tarfile.open(path, "a") as archive:
        for name, data in (("a.jpg", jpeg(4)), ("a.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = open_source(path)
    assert reasons(source)["duplicate-name"] == 1
    assert [data for _, data in found(source).values()] == [jpeg(1), jpeg(2)]


@pytest.mark.parametrize("layout", ["struct", "binary", "names"])
def test_parquet_with_image_bytes(tmp_path: Path, jpeg: Jpeg, layout: str) -> None:
    src = tmp_path / "hf"
    (src / "data").mkdir(parents=True)
    label = [5, 2, 5, None, 9, -4]
    image: list[bytes | None] = [jpeg(i) for i in range(5)] + [b"x"]
    image[4] = None
    schema = {
        "info": {
            "features": {
                "label": {"names": ["z", "y", "x", "w", "v", "Eve"], "_type": "ClassLabel"}
            }
        }
    }
    for part in (0, 1):
        rows = [{"bytes": b, "path": "p.jpg"} for b in image] if layout == "struct" else image
        said = [None if v is None else f"p{v}" for v in label] if layout == "names" else label
        table = pa.table({"image": rows, "label": said})
        table = table.replace_schema_metadata({"huggingface": json.dumps(schema)})
        pq.write_table(table, src / "data" / f"train-{part}.parquet", row_group_size=2)
    source = open_source(src)
    assert source.describe()["layout"] == "parquet" and source.n == 12
    again = through_disk(source, tmp_path / "plan", src)
    for opened in (source, again):
        made = found(opened)
        names = ["p2", "p5", "p5"] if layout == "names" else ["2", "5", "5"]
        kept = 3 + (layout == "names")  # p-4 is a name like any other
        assert len(made) == 2 * kept
        assert sorted(label for label, _ in made.values() if "-" not in label) == sorted(names * 2)
        assert {made[f"data/train-1.parquet/{i}"][1] for i in range(3)} == set(image[:3])
        assert reasons(opened) == {"no-label": 2, "no-image": 2} | (
            {} if layout == "names" else {"label-not-integer": 2}
        )
    if layout != "names":
        assert source.names[source.classes.to_pylist().index(b"5")].as_py() == b"Eve"
    result = stage.shard(src, tmp_path / "out", stage.Options(samples_per_shard=2), workers=2)
    assert result.written == 6 and not (tmp_path / "out/_glint/plan").exists()


def test_damaged_parquet_is_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": [jpeg(i) for i in range(9)], "label": list(range(9))}),
        path,
        compression="none",
        write_page_checksum=True,
    )
    whole = path.read_bytes()
    for bad in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:4] + bytes(len(whole) - 8) + whole[-4:],
        whole.replace(jpeg(3), jpeg(3)[:-3] + b"abc"),
    ):
        path.write_bytes(bad)
        with pytest.raises(InputError, match="GL0214"):
            through_disk(open_source(path), tmp_path / f"plan{len(bad)}{bad[-9]}", path)
    pq.write_table(pa.table({"x": [1.0], "label": [1]}), path)
    with pytest.raises(InputError, match="expected one column of image bytes"):
        open_source(path)


def test_a_dataset_of_glint_s_own_is_no_source(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path / "a.tar", {name: jpeg(i) for name, i in TREE.items()})
    stage.shard(path, tmp_path / "out")
    with pytest.raises(InputError, match="a dataset of glint's own") as caught:
        open_source(tmp_path / "out")
    assert "reshard" in caught.value.hint
    source = open_source(tmp_path / "out" / "data")  # its tars are webdataset's
    assert source.describe()["layout"] == "webdataset" and len(found(source)) == 3


@pytest.mark.parametrize("make", [tar, zip_])
def test_an_archive_gives_the_bytes_that_its_folder_gives(
    tmp_path: Path, jpeg: Jpeg, make: Callable[..., Path]
) -> None:
    src = tmp_path / "tree"
    image = {name: jpeg(i) for name, i in sorted(TREE.items())}
    for name, data in image.items():
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(data)
    path = make(tmp_path / "a.tar", image)
    told = [stage.shard(s, tmp_path / f"out{i}").digest for i, s in enumerate((src, path))]
    assert told[0] == told[1]
