"""Who is who when labels, containers and lists are written in ways that mislead."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glint.errors import InputError, UsageError
from glint.pipelines.dataset import merge as joining
from glint.pipelines.dataset import shard as stage
from glint.shards.image import Rejected
from glint.shards.sources import Rule, Source, open_source

Jpeg = Callable[[int], bytes]
WHO = ("ann", "bob", "cat")
EVERY = [(who, n, 10 * k + n) for k, who in enumerate(WHO) for n in range(2)]


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def table(path: Path, jpeg: Jpeg, names: list[str] | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table({"image": [jpeg(i) for _, _, i in EVERY], **columns})
    if names:
        told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(made, path)
    return path


def samples(suffix: str, said: Callable[[str], bytes], jpeg: Jpeg, form: str = "{n:04d}"):
    """Give the members of a webdataset, two for each image."""
    for who, n, i in EVERY:
        key = form.format(n=i, who=who, part=n)
        yield from ((f"{key}.jpg", jpeg(i)), (f"{key}.{suffix}", said(who)))


def groups(source: Source) -> Counter[tuple[bytes, ...]]:
    """Give the images that stand under one label, for each label."""
    of: dict[int, list[bytes]] = {}
    for i in range(source.n):
        try:
            of.setdefault(int(source.label[i]), []).append(source.read(i))
        except Rejected:
            continue
    return Counter(tuple(sorted(images)) for images in of.values())


def truth(jpeg: Jpeg) -> Counter[tuple[bytes, ...]]:
    return Counter(tuple(sorted(jpeg(i) for who, _, i in EVERY if who == one)) for one in WHO)


HEX = {"ann": "01e3", "bob": "1000", "cat": "02e1"}


def test_text_with_an_exponent_is_a_name(tmp_path: Path, jpeg: Jpeg) -> None:
    wds = tar(tmp_path / "w.tar", [*samples("cls", lambda who: HEX[who].encode(), jpeg)])
    column = table(tmp_path / "p" / "a.parquet", jpeg, label=[HEX[who] for who, _, _ in EVERY])
    for who, n, i in EVERY:
        put(tmp_path / "f" / f"{HEX[who]}_{n}.jpg", jpeg(i))
    (tmp_path / "l.txt").write_text("".join(f"{HEX[w]}_{n}.jpg {HEX[w]}\n" for w, n, _ in EVERY))
    for source in (
        open_source(wds),
        open_source(column),
        open_source(tmp_path / "f", Rule(label_from="^([0-9a-f]+)_")),
        open_source(tmp_path / "f", Rule(labels=str(tmp_path / "l.txt"))),
    ):
        assert groups(source) == truth(jpeg), source.kind
        assert set(source.classes.to_pylist()) == {one.encode() for one in HEX.values()}


def test_nan_is_a_name_among_names_only(tmp_path: Path, jpeg: Jpeg) -> None:
    name = {"ann": b"nan", "bob": b"inf", "cat": b"cat"}
    wds = tar(tmp_path / "w.tar", [*samples("cls", name.__getitem__, jpeg)])
    assert groups(open_source(wds)) == truth(jpeg)
    name = {"ann": b"nan", "bob": b"7", "cat": b"8"}
    source = open_source(tar(tmp_path / "n.tar", [*samples("cls", name.__getitem__, jpeg)]))
    assert source.classes.to_pylist() == [b"7", b"8"]
    with pytest.raises(Rejected, match="label-not-integer"):
        source.read(0)


def test_numbers_that_mean_others_elsewhere_are_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    number = [WHO.index(who) for who, _, _ in EVERY]
    one = table(tmp_path / "a" / "t.parquet", jpeg, list(WHO), label=number)
    two = table(tmp_path / "b" / "t.parquet", jpeg, ["dan", "eve", "fay"], label=number)
    new = table(
        tmp_path / "c" / "t.parquet", jpeg, ["x", "y", "z", *WHO], label=[n + 3 for n in number]
    )
    for other, said in ((two, "0 is ann and dan"), (new, "3 is ann, who is 0 elsewhere")):
        with pytest.raises(InputError, match=said) as caught:
            open_source([one, other])
        assert "--same-labels" in caught.value.hint
    again = table(tmp_path / "d" / "t.parquet", jpeg, list(WHO), label=number)
    source = open_source([one, again])
    assert source.names.to_pylist() == [b"ann", b"bob", b"cat"]
    bare = table(tmp_path / "e" / "t.parquet", jpeg, label=number)
    assert open_source([one, bare]).names.to_pylist() == [b"ann", b"bob", b"cat"]


def test_zeros_before_a_number_make_no_other_of_it(tmp_path: Path, jpeg: Jpeg) -> None:
    zero = {who: f"{k:04d}" for k, who in enumerate(WHO)}
    for who, n, i in EVERY:
        put(tmp_path / "f" / zero[who] / f"{n}.jpg", jpeg(i))
    wds = tar(tmp_path / "w.tar", [*samples("cls", lambda who: zero[who].encode(), jpeg)])
    column = table(tmp_path / "t.parquet", jpeg, label=[WHO.index(who) for who, _, _ in EVERY])
    for other in (wds, column):
        source = open_source([tmp_path / "f", other])
        assert source.classes.to_pylist() == [b"0", b"1", b"2"]
        assert source.label.tolist() == [0, 0, 1, 1, 2, 2] * 2
    put(tmp_path / "f" / "0" / "1.jpg", jpeg(9))  # 0 and 0000 in one source: apart
    source = open_source([tmp_path / "f", column])
    assert len(source.classes) == 6
    assert any("zeros before them" in one for one in source.describe()["warnings"])


def test_keys_are_no_labels_to_merge_by(tmp_path: Path, jpeg: Jpeg) -> None:
    for who, n, i in EVERY:
        put(tmp_path / "a" / who / f"{n}.jpg", jpeg(i))
        put(tmp_path / "b" / who / f"{n}.jpg", jpeg(50 + i))
    roots = [tmp_path / "x", tmp_path / "y"]
    for root, name in zip(roots, "ab"):
        stage.shard(tmp_path / name, root, stage.Options(unlabelled=True))
    with pytest.raises(UsageError, match="x was sharded with --unlabelled"):
        joining.merge(tmp_path / "m", roots, same_labels=True)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_pattern_looks_inside_the_container_first(tmp_path: Path, jpeg: Jpeg, kind: str) -> None:
    for part in (0, 1):
        inside = [(f"{who}_{n}.jpg", jpeg(i)) for who, n, i in EVERY if n == part]
        path = tmp_path / "s" / f"{part}.{kind}"
        tar(path, inside)
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in inside:
                    archive.writestr(name, data)
    rule = Rule(label_from="^([^_]+)_")
    assert groups(open_source(tmp_path / "s", rule)) == truth(jpeg)
    source = open_source(tmp_path / "s", Rule(label_from=rf"([^/]+)\.{kind}/"))
    assert source.classes.to_pylist() == [b"0", b"1"]
    (tmp_path / "s" / f"1.{kind}").unlink()  # and where there is but one
    source = open_source(tmp_path / "s", Rule(label_from=r"([^/]+)\.(?:tar|zip)/"))
    assert source.classes.to_pylist() == [b"0"]


def test_a_group_that_found_nothing_is_said(tmp_path: Path, jpeg: Jpeg) -> None:
    for who, n, i in EVERY:
        put(tmp_path / "f" / f"{who}_{n}.jpg", jpeg(i))
    source = open_source(tmp_path / "f", Rule(label_from="(x)?([a-z]+)_"))
    assert "6 paths match with nothing in the first group" in source.describe()["notes"][0]


@pytest.mark.parametrize("suffix", ["json", "txt"])
def test_keys_in_folders_with_labels_beside(tmp_path: Path, jpeg: Jpeg, suffix: str) -> None:
    said = {who: str(k).encode() for k, who in enumerate(WHO)}
    if suffix == "json":
        said = {who: b'{"label": %s}' % one for who, one in said.items()}
    form = "part{part}/{n:04d}"
    source = open_source(tar(tmp_path / "w.tar", [*samples(suffix, said.__getitem__, jpeg, form)]))
    assert source.kind == "webdataset" and groups(source) == truth(jpeg)
    said = dict.fromkeys(WHO, b'{"label": "face"}')  # says nothing: folders are people
    form = "{who}/{n:04d}"
    source = open_source(tar(tmp_path / "a.tar", [*samples("json", said.__getitem__, jpeg, form)]))
    assert source.kind == "archive" and groups(source) == truth(jpeg)


def test_labels_far_from_their_images(tmp_path: Path, jpeg: Jpeg) -> None:
    members = [(f"p/{n:03d}.jpg", jpeg(n)) for n in range(70)]
    members += [(f"p/{n:03d}.cls", b"%d" % (n % 3)) for n in range(70)]
    with pytest.raises(InputError, match="do not stand beside their images"):
        open_source(tar(tmp_path / "w.tar", members))


def test_caches_beside_arrow_are_no_data(tmp_path: Path, jpeg: Jpeg) -> None:
    made = pa.table({"image": [jpeg(i) for _, _, i in EVERY], "label": [w for w, _, _ in EVERY]})
    for name in ("data-00000-of-00001", "cache-12ab", "other"):
        put(tmp_path / "d" / f"{name}.arrow", b"")
        with pa.ipc.new_stream(tmp_path / "d" / f"{name}.arrow", made.schema) as writer:
            writer.write_table(made)
    state: dict[str, Any] = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    put(tmp_path / "d" / "state.json", json.dumps(state).encode())
    source = open_source(tmp_path / "d")
    assert groups(source) == truth(jpeg)
    assert source.describe()["left_out"]["Arrow files of a cache"] == 2
    state["_indices_files"] = [{"filename": "indices.arrow"}]
    put(tmp_path / "d" / "state.json", json.dumps(state).encode())
    with pytest.raises(InputError, match="a selection of rows") as caught:
        open_source(tmp_path / "d")
    assert "flatten_indices" in caught.value.hint
    for name in ("state.json", "other.arrow"):
        (tmp_path / "d" / name).unlink()
    assert groups(open_source(tmp_path / "d")) == truth(jpeg)


def test_a_name_written_in_two_ways_stands_twice(tmp_path: Path, jpeg: Jpeg) -> None:
    members = [(f"{who}/{n}.jpg", jpeg(i)) for who, n, i in EVERY]
    again = [(form.format(name), data) for name, data in members for form in ("./{}", ".//./{}")]
    source = open_source(tar(tmp_path / "t.tar", members + again))
    assert source.n == 18 and groups(source) == truth(jpeg)


def test_names_apart_by_case_or_blanks_are_told(tmp_path: Path, jpeg: Jpeg) -> None:
    for k, name in enumerate(("Ann", "ann", "bob", "bob ", "cat")):
        put(tmp_path / "s" / name / "1.jpg", jpeg(k))
    source = open_source(tmp_path / "s")
    assert len(source.classes) == 5
    assert source.describe()["notes"][0].startswith("4 identities are apart only by case, blanks")


def test_a_depth_counts_the_folders_that_all_share(tmp_path: Path, jpeg: Jpeg) -> None:
    members = [(f"C/{who}/{'v/' * n}{n}.jpg", jpeg(i)) for who, n, i in EVERY]
    path = tar(tmp_path / "t.tar", members)
    assert "--label-depth 2" in open_source(path).describe()["notes"][0]
    assert groups(open_source(path, Rule(label_depth=2))) == truth(jpeg)
