"""Sources: which layout, which labels, what is wrong with a record."""

from __future__ import annotations

import os
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError, UsageError
from glint.shards import plan, recordio
from glint.shards.image import Rejected
from glint.shards.sources import Rule, open_source, reopen
from glint.shards.sources.source import Source

Jpeg = Callable[[int], bytes]


def write(folder: Path, records: Sequence[tuple[int, bytes]]) -> Path:
    folder.mkdir(exist_ok=True)
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key, payload in records:
            writer.write(key, payload)
    return folder


def identity_layout(
    jpeg: Jpeg, sizes: Sequence[int], *, shift: int = 0, ids: bool = True, vector: bool = False
) -> list[tuple[int, bytes]]:
    """Give records as InsightFace's builder orders them; `shift` moves all keys up."""
    records: list[tuple[int, bytes]] = []
    ranges, key = [], 1 + shift
    for label, size in enumerate(sizes):
        ranges.append((key, key + size))
        for _ in range(size):
            value = [label, 1] if vector else float(label)
            records.append((key, recordio.pack(value, key if ids else 0, 0, jpeg(key % 100))))
            key += 1
    first = key
    for a, b in ranges:
        records.append((key, recordio.pack([a, b], key if ids else 0, 0, b"")))
        key += 1
    return [*records, (0, recordio.pack([first, key], 0, 1, b""))]


def reasons(source: Source) -> Counter[str]:
    found: Counter[str] = Counter()
    for i in range(source.n):
        try:
            source.read(i)
        except Rejected as why:
            found[why.reason] += 1
    return found


def labels(source: Source) -> list[str]:
    return [source.classes[int(k)].as_py().decode() if k >= 0 else "" for k in source.label]


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("idx, ids", [(True, True), (True, False), (False, True), (False, False)])
def test_identity_layout(tmp_path: Path, jpeg: Jpeg, idx: bool, ids: bool, vector: bool) -> None:
    folder = write(tmp_path / "s", identity_layout(jpeg, [3, 1, 2], ids=ids, vector=vector))
    if not idx:
        (folder / "train.idx").unlink()
    source = open_source(folder)
    facts = source.describe()
    assert (facts["layout"], facts["images"], facts["identities"]) == ("recordio/identity", 6, 3)
    assert facts["identity_records"] == 3 and facts["notes"] == []
    assert labels(source) == ["0", "0", "0", "1", "2", "2"]
    assert [source.name(i) for i in range(6)] == ["1", "2", "3", "4", "5", "6"]
    assert [source.read(i) for i in range(6)] == [jpeg(i + 1) for i in range(6)]


def test_a_source_opens_again_from_its_arrays(tmp_path: Path, jpeg: Jpeg) -> None:
    folder = write(tmp_path / "s", identity_layout(jpeg, [2, 2]))
    for path in (folder, folder / "train.rec"):
        source = open_source(path)
        saved = tmp_path / f"saved-{path.name}"
        saved.mkdir()
        source.save(saved, plan.order(4, 3))
        order = plan.order(4, 3).tolist()
        again = reopen("recordio", str(folder / "train.rec"), saved, 0, 4)
        assert [again.read(i) for i in range(4)] == [source.read(i) for i in order]
        assert again.classes.to_pylist() == [b"0", b"1"] and again.names.to_pylist() == [b"", b""]
        assert again.label.tolist() == [[0, 0, 1, 1][i] for i in order]
        part = reopen("recordio", str(folder / "train.rec"), saved, 1, 3)
        assert [part.name(i) for i in range(part.n)] == [source.name(i) for i in order[1:3]]
        assert [part.offset(i) for i in range(part.n)] == [source.offset(i) for i in order[1:3]]


def test_keys_above_two_to_the_24(tmp_path: Path, jpeg: Jpeg) -> None:
    """The header's range is rounded down: the last image stands where identities should begin."""
    shift = 2 * (1 << 24) - 4
    for sizes in ([3, 2], [3, 3], [2, 2], [4, 5]):
        folder = write(tmp_path / "s", identity_layout(jpeg, sizes, shift=shift))
        source = open_source(folder)
        facts = source.describe()
        assert (facts["images"], facts["identity_records"]) == (sum(sizes), len(sizes))
        assert not reasons(source)
        assert Counter(labels(source)) == {"0": sizes[0], "1": sizes[1]}
        assert "past 2^24" in facts["notes"][0]


def test_several_identity_records_for_one_label(tmp_path: Path, jpeg: Jpeg) -> None:
    records = [
        (1, recordio.pack(7.0, 1, 0, jpeg(1))),
        (2, recordio.pack(9.0, 2, 0, jpeg(2))),
        (3, recordio.pack(7.0, 3, 0, jpeg(3))),
    ]
    records += [(k, recordio.pack([k - 3, k - 2], k, 0, b"")) for k in (4, 5, 6)]
    records.append((0, recordio.pack([4, 7], 0, 1, b"")))
    source = open_source(write(tmp_path / "s", records))
    assert labels(source) == ["7", "9", "7"] and source.label.tolist() == [0, 1, 0]
    assert source.describe()["identity_records"] == 3 and source.describe()["notes"] == []


def test_identity_records_are_compared_with_the_images(tmp_path: Path, jpeg: Jpeg) -> None:
    records = dict(identity_layout(jpeg, [3, 3, 2]))
    records[9] = recordio.pack([1, 6], 9, 0, b"")  # overlaps the next, holds two labels
    records[11] = recordio.pack([float("nan"), 3], 11, 0, b"")
    source = open_source(write(tmp_path / "s", list(records.items())))
    notes = " | ".join(source.describe()["notes"])
    assert "1 identity records hold no range" in notes and "1 identity records overlap" in notes
    assert "1 identity records hold images of several labels" in notes
    assert not reasons(source) and source.n == 8


def test_labels_that_are_no_class(tmp_path: Path, jpeg: Jpeg) -> None:
    values = [0.0, 1.5, float("nan"), -1.0, float("inf"), 4.0]
    source = open_source(
        write(tmp_path / "s", [(k, recordio.pack(v, k, 0, jpeg(k))) for k, v in enumerate(values)])
    )
    assert source.label.tolist() == [0, -1, -1, -1, -1, 1]
    assert reasons(source) == {"label-not-integer": 4}


def test_images_behind_the_identities_are_not_dropped(tmp_path: Path, jpeg: Jpeg) -> None:
    records = [*identity_layout(jpeg, [2, 2]), (50, recordio.pack(1.0, 50, 0, jpeg(9)))]
    source = open_source(write(tmp_path / "s", records))
    assert source.n == 5 and reasons(source) == {"identity-range": 1}


@pytest.mark.parametrize("spoil", ["magic", "length", "short"])
@pytest.mark.parametrize("which", [0, 2, 5])
def test_a_damaged_record_costs_one_record(
    tmp_path: Path, jpeg: Jpeg, spoil: str, which: int
) -> None:
    folder = write(tmp_path / "s", identity_layout(jpeg, [3, 3]))
    data = bytearray((folder / "train.rec").read_bytes())
    at = int(recordio.read_idx(folder / "train.idx")[1][which])
    if spoil == "magic":
        data[at : at + 4] = b"\0\0\0\0"
    elif spoil == "length":
        struct.pack_into("<I", data, at + 4, (1 << 29) - 1)
    else:
        struct.pack_into("<I", data, at + 4, 30)
    (folder / "train.rec").write_bytes(data)
    source = open_source(folder)
    assert source.n == 6 and reasons(source) == {"corrupt-record": 1}
    assert source.label.tolist() == [-1 if i == which else i // 3 for i in range(6)]
    (folder / "train.idx").unlink()
    with pytest.raises(InputError, match=r"GL0213 corrupt-record: train\.rec @ 0x"):
        open_source(folder)


def plain(jpeg: Jpeg, n: int = 8) -> list[tuple[int, bytes]]:
    return [(k, recordio.pack(float(k // 2), k, 0, jpeg(k) + b"x" * k)) for k in range(n)]


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda k, o: (k, o + 4), "key 0 @ 4"),
        (lambda k, o: (k, o + 1), "key 0 @ 1"),
        (lambda k, o: (np.zeros_like(k), o), "key 0 stands 8 times"),
        (lambda k, o: (k, np.where(k == 3, o[2], o)), "stands 2 times"),
        (lambda k, o: (k[k != 3], o[k != 3]), "is not listed"),
        (lambda k, o: (k[:0], o[:0]), "it lists no record"),
        (lambda k, o: (k[:-1], o[:-1]), "is not listed"),
        (lambda k, o: (k[1:], o[1:]), "is not listed"),
        (lambda k, o: (k, np.where(k == 3, o + 8, o)), "key 3 @"),
    ],
)
def test_an_idx_of_another_file(
    tmp_path: Path, jpeg: Jpeg, change: Callable[..., object], text: str
) -> None:
    folder = write(tmp_path / "s", plain(jpeg))
    key_r, offset_r = recordio.read_idx(folder / "train.idx")
    key_r, offset_r = change(key_r, offset_r)  # type: ignore[misc]
    lines = "".join(f"{k}\t{o}\n" for k, o in zip(key_r.tolist(), offset_r.tolist()))
    (folder / "train.idx").write_text(lines)
    with pytest.raises(InputError, match=r"GL0216 idx-mismatch: train\.idx: ") as caught:
        open_source(folder)
    assert text in str(caught.value)
    (folder / "train.idx").unlink()
    assert open_source(folder).n == 8


def test_an_idx_in_another_order_is_fine(tmp_path: Path, jpeg: Jpeg) -> None:
    folder = write(tmp_path / "s", plain(jpeg))
    lines = (folder / "train.idx").read_text().splitlines()
    (folder / "train.idx").write_text("\r\n".join(reversed(lines)))
    assert labels(open_source(folder)) == ["0", "0", "1", "1", "2", "2", "3", "3"]


def test_every_cut_of_a_file_is_told(tmp_path: Path) -> None:
    records = [(k, recordio.pack(float(k), k, 0, bytes([k]) * (9 + k))) for k in range(3)]
    folder = write(tmp_path / "s", records)
    data = (folder / "train.rec").read_bytes()
    for size in range(1, len(data)):
        (folder / "train.rec").write_bytes(data[:size])
        if len(data) - size <= -(24 + 11) % 4 and size % 4:
            assert open_source(folder).n == 3  # only padding is missing
            continue
        with pytest.raises(InputError, match="GL0213") as caught:
            open_source(folder)
        assert "bytes are missing" in str(caught.value), size


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GL0001"):
        open_source(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"GL0201 .*no image was found"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"GL0201 .*a file of kind \.txt"):
        open_source(tmp_path / "a.txt")
    for name in ("a.rec", "b.rec"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"several \.rec files: a\.rec, b\.rec"):
        open_source(tmp_path)
    with pytest.raises(InputError, match="no image was found"):
        open_source(tmp_path / "a.rec")


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_identity_folders(tmp_path: Path, jpeg: Jpeg) -> None:
    source = open_source(
        tree(
            tmp_path / "s",
            {
                "Bo/2.jpg": jpeg(2),
                "Bo/10.JPEG": jpeg(1),
                "Al Ice/x.jpg": jpeg(3),
                "Bo/.hidden": b"x",
                "deep/er/y.jpg": jpeg(4),
                "loose.jpg": jpeg(5),
                "README.txt": b"x",
                "Bo/page.html": b"<a>",
                "\u4eba/z.jpg": jpeg(6),
                "Bo/new\nline.jpg": jpeg(7),
            },
        )
    )
    assert [n.decode() for n in source.classes.to_pylist()] == ["Al Ice", "Bo", "deep/er", "\u4eba"]
    assert [n.decode() for n in source.names.to_pylist()] == ["Al Ice", "Bo", "er", "\u4eba"]
    assert [source.name(i) for i in range(source.n)] == [
        "loose.jpg",
        "Al Ice/x.jpg",
        "Bo/10.JPEG",
        "Bo/2.jpg",
        "Bo/new\nline.jpg",
        "Bo/page.html",
        "deep/er/y.jpg",
        "\u4eba/z.jpg",
    ]
    assert source.label.tolist() == [-1, 0, 1, 1, 1, 1, 2, 3]
    assert reasons(source) == {"no-identity": 1, "bad-name": 1}
    assert source.describe()["left_out"] == {"hidden files and folders": 1, "no images: .txt": 1}


def test_folders_with_numbers_sort_as_numbers(tmp_path: Path, jpeg: Jpeg) -> None:
    files = {f"{k}/a.jpg": jpeg(k) for k in (10, 9, 2)}
    source = open_source(tree(tmp_path / "s", files))
    assert source.classes.to_pylist() == [b"2", b"9", b"10"]
    source = open_source(tree(tmp_path / "s", {**files, "x/a.jpg": jpeg(1)}))
    assert source.classes.to_pylist() == [b"10", b"2", b"9", b"x"]


def test_a_name_that_is_not_utf8(tmp_path: Path, jpeg: Jpeg) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    odd = bytes(folder) + b"/M\xfcller"
    os.mkdir(odd)  # noqa: PTH102
    with open(odd + b"/a.jpg", "wb") as file:
        file.write(jpeg(0))
    source = open_source(folder)
    assert source.name(0) == "M\\xfcller/a.jpg" and source.read(0) == jpeg(0)


def test_a_file_that_went_away_is_quarantined(tmp_path: Path, jpeg: Jpeg) -> None:
    source = open_source(tree(tmp_path / "s", {"a/1.jpg": jpeg(1), "a/2.jpg": jpeg(2)}))
    (tmp_path / "s/a/1.jpg").unlink()
    assert reasons(source) == {"unreadable": 1}


def test_links_are_read_within_the_source_only(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tree(tmp_path / "s", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    tree(tmp_path / "s2", {"x.jpg": jpeg(3)})  # its path begins as the source's does
    for name, target in {
        "a/in.jpg": "../b/2.jpg",
        "a/out.jpg": str(tmp_path / "s2" / "x.jpg"),
        "b/up.jpg": "../../s2/x.jpg",
        "b/void.jpg": "/no/such/file.jpg",
        "b/lost.jpg": "gone.jpg",
        "b/loop.jpg": "loop.jpg",
        "folder": "../s2",
    }.items():
        (root / name).symlink_to(target)
    source = open_source(root)
    assert [source.name(i) for i in range(source.n)] == [
        "a/1.jpg",
        "a/in.jpg",
        "a/out.jpg",
        "b/2.jpg",
        "b/up.jpg",
        "b/void.jpg",
    ]
    assert source.read(1) == jpeg(2) and reasons(source) == {"unsafe-member": 3}
    assert source.describe()["left_out"] == {
        "links that lead nowhere": 2,
        "links to folders (--follow-links reads them)": 1,
    }
    assert "3 links lead out of SRC" in source.describe()["warnings"][0]
    (root / "a/in.jpg").unlink()
    (root / "a/in.jpg").symlink_to(tmp_path / "s2" / "x.jpg")  # since it was listed
    assert reasons(source) == {"unsafe-member": 4}


def test_empty_folders_are_counted(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tree(tmp_path / "s", {"a/1.jpg": jpeg(1), "c/d/2.jpg": jpeg(2)})
    (root / "b").mkdir()
    assert open_source(root).describe()["left_out"] == {"empty folders": 1}
    (root / "c" / "e").mkdir()
    assert open_source(root).describe()["left_out"] == {"empty folders": 2}


def test_one_folder_of_images_is_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tree(tmp_path / "s" / "person", {"1.jpg": jpeg(1), "2.jpg": jpeg(2), ".x": b""})
    with pytest.raises(InputError, match=r"GL0201 .*person: 2 images in the folder its") as caught:
        open_source(root)
    assert f"give the folder above: {tmp_path / 's'}" in caught.value.hint
    assert open_source(tmp_path / "s").label.tolist() == [0, 0]


def test_names_apart_by_their_unicode_form(tmp_path: Path, jpeg: Jpeg) -> None:
    names = ["Ren\u00e9e", "Rene\u0301e", "Zo\u00eb", "Bo"]
    root = tree(tmp_path / "s", {f"{name}/1.jpg": jpeg(1) for name in names})
    source = open_source(root)
    assert len(source.classes) == 4  # they stay apart
    (note,) = source.describe()["notes"]
    assert note.startswith("2 identities are apart only by case, blanks or") and names[0] in note
    assert "Zo" not in note
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(root, "s")
    assert open_source(tmp_path / "s.tar").describe()["notes"] == [note]


def test_an_idx_is_no_source(tmp_path: Path, jpeg: Jpeg) -> None:
    folder = write(tmp_path / "s", plain(jpeg))
    with pytest.raises(InputError, match=r"GL0201 .*a file of kind \.idx") as caught:
        open_source(folder / "train.idx")
    assert caught.value.hint.startswith("give train.rec")


def test_lists_of_labels(tmp_path: Path, jpeg: Jpeg) -> None:
    """Blanks in names, part of a path, no suffix; one name for two images is refused."""
    names = ["a b/1 x.jpg", "a b/2 x.jpg", "c d/1 y.jpg"]
    root = tree(tmp_path / "s", {name: jpeg(i) for i, name in enumerate(names)})
    path = tmp_path / "list.txt"
    for lines in (
        [f"{name} {i % 2}" for i, name in enumerate(names)],
        [f"/data/s/{name}\t{i % 2}" for i, name in enumerate(names)],
        [f"{name[4:-4]},{i % 2}.0" for i, name in enumerate(names)],
        ["image_id,who,identity", *(f"{name},x,{i % 2}" for i, name in enumerate(names))],
        [f"{i}\t{i % 2}.000000\t{name}" for i, name in enumerate(names)],
        ["3", *(f"{name} {i % 2}" for i, name in enumerate(names))],
    ):
        path.write_text("\n".join(lines) + "\n")
        assert labels(open_source(root, Rule(labels=str(path)))) == ["0", "1", "0"], lines
    path.write_text("a b/1 x.jpg ann\nno/such.jpg bob\n")
    source = open_source(root, Rule(labels=str(path)))
    assert (labels(source), source.n) == (["ann"], 1)
    assert source.describe()["left_out"] == {"not in list.txt": 2}
    assert "1 lines of list.txt name no image here" in source.describe()["notes"][0]
    for text, said in (
        ("a b/1 x.jpg ann\na b/1 x.jpg bob\n", "is under two labels, ann and bob"),
        ("nothing.jpg ann\n", "it names no image here"),
        ("a b/1 x.jpg,q,r\nc d/1 y.jpg,s,t\n", "which column holds the labels?"),
        ("", "an empty list"),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            open_source(root, Rule(labels=str(path)))
        assert said in str(caught.value), text
    tree(root, {"e/1 x.jpg": jpeg(9)})
    path.write_text("1 x.jpg ann\n1 y.jpg bob\n")
    with pytest.raises(InputError, match="one name of it means several images"):
        open_source(root, Rule(labels=str(path)))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"label_depth": 1, "unlabelled": True}, "each say what a label is"),
        ({"label_from": "("}, "--label-from: not a regular expression"),
        ({"labels": "/no/such"}, "GL0001 .*no such file of labels"),
        ({"label_member": "txt"}, "--label-member: means nothing for a source of kind folder"),
        ({"image_column": "x"}, "--image-column: means nothing for a source of kind folder"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, jpeg: Jpeg, rule: dict[str, Any], said: str
) -> None:
    root = tree(tmp_path / "s", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    with pytest.raises(UsageError, match=said):
        open_source(root, Rule(**rule))


def test_images_beside_containers_are_refused(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tree(tmp_path / "s", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2), "old.zip": b"PK"})
    with pytest.raises(InputError, match=r"1 containers \(old.zip\) and images") as caught:
        open_source(root)
    assert "--exclude '*.zip'" in caught.value.hint
    assert open_source(root, Rule(exclude=("*.zip",))).n == 2
    with pytest.raises(UsageError, match="the source is named twice"):
        open_source([root, root / "."], Rule(exclude=("*.zip",)))
