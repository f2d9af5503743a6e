"""Lists of pairs of the field, each in its own form, against one folder of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from glint.errors import InputError
from glint.evals.lists import FolderImages, read_list
from glint.evals.packs import Pairs, nonsense

NAMES = {"Al_Bo": 3, "Cy": 2, "Di": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in NAMES.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for n in range(1, count + 1):
            (tmp_path / "faces" / name / f"{name}_{n:04d}.jpg").write_bytes(f"{name} {n}".encode())
    return tmp_path / "faces"


# what every list says: two pairs of one person, two of others
WANT = [("Al_Bo 1", "Al_Bo 3", True), ("Cy 1", "Cy 2", True)]
WANT += [("Al_Bo 2", "Cy 1", False), ("Di 2", "Cy 2", False)]
LFW = "Al_Bo\t1\t3\nCy\t1\t2\nAl_Bo\t2\tCy\t1\nDi\t2\tCy\t2\n"
PATHS = [(f"{a.split()[0]}_000{a[-1]}.jpg", f"{b.split()[0]}_000{b[-1]}.jpg", s)
         for a, b, s in WANT]  # fmt: skip
FORMS = {
    "lfw": "1\t2\n" + LFW,
    "lfw without folds": "4\n" + LFW,
    "kaggle": "name,imagenum1,imagenum2\n" + LFW.replace("\t", ","),
    "calfw": "".join(f"{a} {3 * s}\n{b} {3 * s}\n" for a, b, s in PATHS),
    "a b 1": "".join(f"{a} {b} {int(s)}\n" for a, b, s in PATHS),
    "1 a b": "".join(f"{int(s)} {a} {b}\n" for a, b, s in PATHS),
    "csv": "a,b,same\n" + "".join(f"faces/{a[:-9]}/{a},{b},{s}\n" for a, b, s in PATHS),
    "glint": "fold\ta\tb\tsame\n"
    + "".join(f"1\t{a[:-9]}/{a}\t{b[:-9]}/{b}\t{int(s)}\n" for a, b, s in PATHS),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_list_of_each_form(tmp_path: Path, folder: Path, form: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(FORMS[form])
    found = read_list(path, FolderImages(folder))
    made = [
        (found.images[a].decode(), found.images[b].decode(), bool(s))
        for a, b, s in zip(found.first.tolist(), found.second.tolist(), found.same)
    ]
    assert made == WANT
    assert (found.folds is not None) == (form in ("lfw", "glint"))


def test_the_folder_of_cfp(tmp_path: Path) -> None:
    for person in ("001", "002"):
        for pose in ("frontal", "profile"):
            for n in (1, 2):
                path = tmp_path / "Data" / "Images" / person / pose / f"{n:02d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"{person} {pose} {n}".encode())
    for kind, pose in (("F", "frontal"), ("P", "profile")):
        rows = [f"../Data/Images/{p}/{pose}/{n:02d}.jpg" for p in ("001", "002") for n in (1, 2)]
        text = "".join(f"{i} {row}\n" for i, row in enumerate(rows, 1))
        (tmp_path / "Protocol").mkdir(exist_ok=True)
        (tmp_path / "Protocol" / f"Pair_list_{kind}.txt").write_text(text)
    for fold in ("01", "02"):
        inner = tmp_path / "Protocol" / "Split" / "FP" / fold
        inner.mkdir(parents=True)
        (inner / "same.txt").write_text("1,2\n")
        (inner / "diff.txt").write_text("2,3\n")
    found = read_list(tmp_path / "Protocol" / "Split" / "FP", FolderImages(tmp_path))
    assert found.folds is not None and found.folds.tolist() == [0, 0, 1, 1]
    assert found.same.tolist() == [True, False] * 2
    assert found.images[int(found.first[1])] == b"001 frontal 2"
    assert found.images[int(found.second[1])] == b"002 profile 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\t2\nAl_Bo\t1\t9\n", "images are not there: Al_Bo/Al_Bo_0009"),
        ("a b c d 5\n", "no pair: a b c d 5"),
        ("0 3 1\n1 4 0\n", "its lines can be read as `a b 1` and as `1 a b`"),
        ("1\n2 3 1\n4 5 0\n", "its lines can be read as `name i j` and as `a b 1`"),
        ("a,b,dist\nx.jpg,y.jpg,0\n", "the column dist does not say whether 1 is one person"),
        ("a,b,same\nx.jpg,y.jpg,1\nx.jpg,1\n", "no pair: x.jpg 1"),
        ("a,b,label\n", "no pairs"),
        ("Al_Bo_0001.jpg 3\nCy_0001.jpg 0\n", "two lines of a pair have unlike marks"),
    ],
)
def test_what_is_no_list_is_told(tmp_path: Path, folder: Path, text: str, said: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match="GL0802") as caught:
        read_list(tmp_path / "pairs.txt", FolderImages(folder))
    assert said in str(caught.value)


# the same pairs of images whose names are numbers, blanks in paths, in every form
ROWS = [("1", "2", True), ("3", "4", True), ("1", "0", False), ("0", "5", False)]
NUMBERS = {
    "1 a b": "".join(f"{int(s)} {a} {b}\n" for a, b, s in ROWS),
    "a b 1": "".join(f"{a} {b} {int(s)}\n" for a, b, s in ROWS),
    "same,a,b": "same,a,b\n" + "".join(f"{int(s)},{a},{b}\n" for a, b, s in ROWS),
    "a b same": "a b same\n" + "".join(f"{a} {b} {int(s)}\n" for a, b, s in ROWS),
    "id,a,b,label": "id,a,b,label\n"
    + "".join(f"{i},{a}.jpg,{b}.jpg,{s}\n" for i, (a, b, s) in enumerate(ROWS)),
    "a,b,issame,fold": "a,b,issame,fold\n"
    + "".join(f"{a},{b},{int(s)},{i % 2}\n" for i, (a, b, s) in enumerate(ROWS)),
    "tabs": "".join(f"x y/{a}.jpg\tx y/{b}.jpg\t{int(s)}\n" for a, b, s in ROWS),
    "csv": "a,b,same\n" + "".join(f'"x y/{a}.jpg","x y/{b}.jpg",{s}\n' for a, b, s in ROWS),
    "commas": "".join(f"x y/{a}.jpg, x y/{b}.jpg, {int(s)}\n" for a, b, s in ROWS),
}


@pytest.mark.parametrize("form", NUMBERS)
def test_numbers_and_blanks_in_names(tmp_path: Path, form: str) -> None:
    (tmp_path / "x y").mkdir()
    for name in "012345":
        (tmp_path / "x y" / f"{name}.jpg").write_bytes(name.encode())
    (tmp_path / "list").write_text(NUMBERS[form])
    found = read_list(tmp_path / "list", FolderImages(tmp_path / "x y" / ".."))
    ends = zip(found.first.tolist(), found.second.tolist(), found.same.tolist())
    assert [(found.images[a].decode(), found.images[b].decode(), s) for a, b, s in ends] == ROWS
    assert (found.folds is not None) == ("fold" in form)


def test_lfw_of_people_called_by_numbers(tmp_path: Path) -> None:
    for name in ("1/1_0001", "1/1_0002", "2/2_0002"):
        (tmp_path / name[0]).mkdir(exist_ok=True)
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    (tmp_path / "pairs.txt").write_text("1\t1\n1\t1\t2\n1\t1\t2\t2\n")
    found = read_list(tmp_path / "pairs.txt", FolderImages(tmp_path))
    ends = zip(found.first.tolist(), found.second.tolist(), found.same.tolist())
    assert [(found.images[a], found.images[b], s) for a, b, s in ends] == [
        (b"1/1_0001", b"1/1_0002", True), (b"1/1_0001", b"2/2_0002", False),
    ]  # fmt: skip


def test_pairs_that_say_nothing() -> None:
    import numpy as np

    images = [b"a", b"b", b"c", b"d"]
    assert nonsense(Pairs(images, np.array([True, False]))) == ""
    assert "all 2 pairs are of one person" in nonsense(Pairs(images, np.array([True, True])))
    assert "none of 2 pairs" in nonsense(Pairs(images, np.array([False, False])))
    twice = Pairs([b"a", b"b", b"c", b"c"], np.array([True, False]))
    assert "flags and images do not match" in nonsense(twice)
