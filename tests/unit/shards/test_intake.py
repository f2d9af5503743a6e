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


def by_list(tmp_path: Path, jpeg: Jpeg, text: str | bytes, column: str = "") -> Source:
    """Open a flat folder WHO_N.jpg by a list."""
    for who, n, i in EVERY:
        put(tmp_path / "s" / f"{who}_{n}.jpg", jpeg(i))
    put(tmp_path / "list.txt", text if isinstance(text, bytes) else text.encode())
    rule = Rule(labels=str(tmp_path / "list.txt"), label_column=column)
    return open_source(tmp_path / "s", rule)


def lines(form: str, head: str = "") -> str:
    return head + "".join(
        form.format(f=f"{who}_{n}.jpg", w=who, n=n, k=k) + "\n"
        for k, (who, n, _) in enumerate(EVERY)
    )


@pytest.mark.parametrize(
    "text",
    [
        lines('{f}\t"{w} Lee').replace("bob", "bo").replace("bo_", "bob_"),  # quotes are text
        lines('"{f}"\t"{w}"'),
        lines("{f} {w}", "".join(f"gone_{n}.jpg nobody\n" for n in range(9000))),
        lines("{k}\t{w}\t{f}", "77\tgone\tgone.jpg\n"),
        lines("{k}\t{w}\t{n}\t0.{k}\t{f}"),  # several labels in a .lst
        lines("{f},{w},{n}", "file,who,gender\n"),
        lines('{{"path": "{f}", "label": "face", "identity": "{w}"}}'),
        lines('{{"path": "{f}", "identity": ["{w}"]}}', '{"path": "gone.jpg", "caption": "x"}\n'),
        lines("{f},{w}", "file,label\n").encode("utf-16"),
        json.dumps([{"file": f"{w}_{n}.jpg", "label": w} for w, n, _ in EVERY]),
        json.dumps({f"{w}_{n}.jpg": w for w, n, _ in EVERY}),
        lines("{f} {w} Lee").replace("bob Lee", "bob van der Lee"),
    ],
)
def test_lists_that_were_misread(tmp_path: Path, jpeg: Jpeg, text: str | bytes) -> None:
    assert groups(by_list(tmp_path, jpeg, text)) == truth(jpeg)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lines("{f},{k},{n}"), "which column holds the labels"),
        (lines("{k},{f},{w}", "id,filename,who\n"), "which column holds the labels"),
        (lines("{f},{f},{w}", "path,name,who\n"), "which column holds the labels"),
        (lines("{f},{n}", "path,gender\n"), "which column holds the labels"),
        (lines("{f},{n},{w}", "path,label,identity\n"), "which column holds the labels"),
        (lines('{f},"{w}'), "no sound CSV"),
        (lines('{{"path": "{f}", "label": {{"id": {k}}}}}'), "label is no number or text"),
    ],
)
def test_lists_that_do_not_say_it(tmp_path: Path, jpeg: Jpeg, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        by_list(tmp_path, jpeg, text)


def test_one_image_each_keeps_its_column(tmp_path: Path, jpeg: Jpeg) -> None:
    source = by_list(tmp_path, jpeg, lines("{f},w{k},{n}", "path,who,split\n"))
    assert len(source.classes) == len(EVERY)
    source = by_list(tmp_path, jpeg, lines("{k}\t{w}\t{f}", "77\tgone\tgone.jpg\n"), "2")
    assert groups(source) == truth(jpeg)


def test_a_list_of_another_tree_is_told(tmp_path: Path, jpeg: Jpeg) -> None:
    for who, n, i in EVERY:
        put(tmp_path / "s" / "train" / who / f"{n}.jpg", jpeg(i))
    for top, notes in (("val", 1), ("/data/s/train", 0), ("train", 0)):
        text = "".join(f"{top}/{who}/{n}.jpg {who}\n" for who, n, _ in EVERY)
        (tmp_path / "list.txt").write_text(text)
        source = open_source(tmp_path / "s", Rule(labels=str(tmp_path / "list.txt")))
        assert groups(source) == truth(jpeg)
        assert len(source.describe()["notes"]) == notes


def test_columns_of_tables_that_are_no_labels(tmp_path: Path, jpeg: Jpeg) -> None:
    who, part = [who for who, _, _ in EVERY], [n for _, n, _ in EVERY]
    for name, columns, said in (
        ("gender", {"gender": part}, "expected one column of labels"),
        ("other", {"emotions": part}, "expected one column of labels"),
        ("both", {"label": part, "identity": who}, "tell people apart in different ways"),
    ):
        with pytest.raises(InputError, match=said):
            open_source(table(tmp_path / f"{name}.parquet", jpeg, **columns))
    names = [1] * len(who)
    lone = pa.FixedSizeListArray.from_arrays(pa.array([WHO.index(one) for one in who]), 1)
    for number, columns in enumerate(
        (
            {"label": names, "identity": who},
            {"label": [WHO.index(one) for one in who], "identity_name": who},
            {"label": [one.encode() for one in who]},
            {"label": lone},
        )
    ):
        source = open_source(table(tmp_path / f"{number}.parquet", jpeg, **columns))
        assert groups(source) == truth(jpeg), columns


@pytest.mark.parametrize("label", ["null", '"face"', '""'])
def test_a_field_that_says_nothing(tmp_path: Path, jpeg: Jpeg, label: str) -> None:
    said = {who: f'{{"label": {label}, "identity": "{who}"}}'.encode() for who in WHO}
    source = open_source(tar(tmp_path / "w.tar", [*samples("json", said.__getitem__, jpeg)]))
    assert groups(source) == truth(jpeg)
    assert source.describe()["label"] == "identity in KEY.json"


def test_dots_in_the_names_of_a_flat_tar(tmp_path: Path, jpeg: Jpeg) -> None:
    path = tar(tmp_path / "t.tar", [(f"{who}.{n}.v2.JPG", jpeg(i)) for who, n, i in EVERY])
    assert groups(open_source(path, Rule(label_from="^([a-z]+)"))) == truth(jpeg)
    assert open_source(path, Rule(unlabelled=True)).row["flaw"].tolist() == [0] * 6
    (tmp_path / "l.txt").write_text("".join(f"{w}.{n}.v2.JPG {w}\n" for w, n, _ in EVERY))
    assert groups(open_source(path, Rule(labels=str(tmp_path / "l.txt")))) == truth(jpeg)


def test_what_systems_and_editors_leave(tmp_path: Path, jpeg: Jpeg) -> None:
    for who, n, i in EVERY:
        put(tmp_path / "s" / who / f"{n}.jpg", jpeg(i))
        for name in ("README", "Thumbs", "Thumbs.db:encryptable", "Icon\r"):
            put(tmp_path / "s" / who / name, b"x")
    source = open_source(tmp_path / "s")
    assert source.n == len(EVERY) and groups(source) == truth(jpeg)
    assert sum(source.describe()["left_out"].values()) == 3 * 4


def test_one_name_in_two_code_pages_of_zips(tmp_path: Path, jpeg: Jpeg) -> None:
    for part, name in enumerate(("Ren\u00e9e", "Ren#e")):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for who, n, i in EVERY:
                if n == part:
                    archive.writestr(f"{name} {who}/{n}.jpg", jpeg(i))
    old = (tmp_path / "1.zip").read_bytes()  # as old programs write it: no flag, one byte
    (tmp_path / "1.zip").write_bytes(old.replace(b"Ren#e", b"Ren\x82e"))
    assert len(open_source(tmp_path).classes) == 3


def test_a_container_for_each_person_is_guessed_at(tmp_path: Path, jpeg: Jpeg) -> None:
    for who in WHO:
        tar(
            tmp_path / f"{who}.tar", [(f"images/{n}.jpg", jpeg(i)) for w, n, i in EVERY if w == who]
        )
    (first, *_) = open_source(tmp_path).describe()["warnings"]
    assert r"--label-from '([^/]+)\.tar/'" in first
    assert groups(open_source(tmp_path, Rule(label_from=r"([^/]+)\.tar/"))) == truth(jpeg)


def test_info_names_all_sources(tmp_path: Path, jpeg: Jpeg) -> None:
    from glint.cli.shard import _info, _say_info

    for name in ("one", "two"):
        for who, n, i in EVERY:
            put(tmp_path / name / who / f"{n}.jpg", jpeg(i + 40 * (name == "two")))
    stage.shard([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert "from one + two (folder)" in _say_info(_info(str(tmp_path / "out"), False, None))
