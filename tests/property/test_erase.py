"""`drop --erase --copies` on random small worlds, searched from outside: nothing of her is left.

The search is tarfile's, hashlib's and pyarrow's, and a search of raw bytes, not glint's.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glint.files import seal
from glint.pipelines.dataset import drop, shard
from glint.shards import labels, tombstones
from glint.shards.dataset import Dataset
from glint.shards.verify import verify

PEOPLE = ("Zo\u00eb_Quill", "Bo Lund", "Mae (2)", "n004", "Ann.Lee")
PLACES = st.sampled_from([*PEOPLE, "Zo\u00eb_Quill/2019", "Bo Lund/a/b"])
FILES = st.tuples(
    PLACES,
    st.integers(0, 5),  # which picture
    st.sampled_from(
        ["", "with_Zo\u00eb_Quill_", "Bo Lund and ", "xZo\u00eb_Quillx"]
    ),  # what it is called
    st.booleans(),  # damaged
)
WORLDS = st.fixed_dictionaries({
    "files": st.lists(FILES, min_size=6, max_size=14),
    "who": st.integers(0, 99),
    "merge": st.lists(st.integers(0, 3), min_size=9, max_size=9),
    "merged": st.booleans(),
    "json": st.booleans(),
    "members": st.sampled_from(["jpg,cls", "jpg"]),
    "twice": st.booleans(),  # taken out of the labels first, erased later
})  # fmt: skip


def write_world(root: Path, files: list[Any], jpeg: Callable[[int], bytes]) -> None:
    for i, (place, picture, called, damaged) in enumerate([*files, ("Eve", 7, "", False)]):
        path = root / place / f"{called}{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(picture)[: 300 if damaged else None])


def cells(root: Path) -> list[tuple[str, Any]]:
    """Give every cell of every table, and every file and JSON member, by where it is."""
    found: list[tuple[str, Any]] = []
    for path in sorted(root.rglob("*")):
        where = str(path.relative_to(root))
        if path.suffix == ".parquet":
            for name, column in pq.read_table(path).to_pydict().items():
                found += [(f"{where} {name}", cell) for cell in column]
        elif path.is_file():
            found.append((where, path.read_bytes().decode("latin-1")))
            if path.suffix in (".json", ".jsonl"):
                found += [
                    (where, json.loads(line))
                    for line in path.read_text().splitlines()
                    if path.suffix == ".jsonl"
                ] or [(where, json.loads(path.read_text()))]
    return found


def members(root: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted((root / "data").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                held = archive.extractfile(member)
                assert held is not None
                found[f"{path.name} {member.name}"] = held.read()
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.timeout(300)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=WORLDS)
def test_nothing_of_her_is_left(
    world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]
) -> None:
    top = tmp_path_factory.mktemp("world")
    write_world(top / "src", world["files"], jpeg)
    with_json = world["json"] and world["members"] != "jpg"
    options = shard.Options(5, with_json=with_json, members=world["members"])
    shard.shard(top / "src", top / "set", options, max_bad=1.0)
    data = Dataset(top / "set")
    people = data.identities().column("source_label").to_pylist()
    who = people[world["who"] % len(people)]
    same = {who}
    if world["merged"]:
        target = np.unique(np.array(world["merge"][: len(people)]), return_inverse=True)[1]
        labels.apply(top / "set", target, np.empty((0, 2), np.int64), {"by": "test"})
        same = {p for p, t in zip(people, target) if t == target[people.index(who)]}
    while True:  # folders inside theirs, and whom those are merged with
        more = {p for p in people if p.startswith(tuple(f"{one}/" for one in same))} | same
        if world["merged"]:
            held = {target[people.index(one)] for one in more}
            more |= {p for p, t in zip(people, target) if t in held}
        if more == same:
            break
        same = more
    hers = {sha256(data.read(int(row))) for one in same for row in data.rows_of(people.index(one))}
    kept = [sha256(data.read(row)) for row in range(data.n)]
    kept = [one for one in kept if one not in hers]
    word = f"source-label:{who}"
    if world["twice"]:
        drop.drop(top / "set", [word], "asked to")
        result = drop.drop(top / "set", [], "asked to", erase=top / "out", copies=True)
    else:
        result = drop.drop(top / "set", [word], "asked to", erase=top / "out", copies=True)
    found = members(top / "out")
    assert not hers & {sha256(raw) for raw in found.values()}
    images = [raw for name, raw in found.items() if name.endswith(".jpg")]
    assert sorted(map(sha256, images)) == sorted(kept)
    said = {name for one in same for name in [one] if not name.isdecimal()}
    for where, cell in [*cells(top / "out"), *((k, v.decode("latin-1")) for k, v in found.items())]:
        text = cell.decode("latin-1") if isinstance(cell, bytes) else str(cell)
        text = text.replace("xZo\u00eb_Quillx", "")  # a longer word
        for name in said:
            for spelled in (name, name.encode().decode("latin-1"), json.dumps(name)[1:-1]):
                assert spelled not in text.replace("xZo\\u00eb_Quillx", "").replace(
                    "xZo\u00eb_Quillx".encode().decode("latin-1"), ""
                ), (name, where, text[:200])
    for row in pq.read_table(top / "out/quarantine.parquet").to_pylist():
        assert row["source_label"] not in same and row["sha256"] not in hers
    assert result.left == [] and result.left_count == 0 and result.copies_erased
    assert verify(top / "out", deep=True).ok


def test_what_stays_is_named(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    """Without --copies the same picture under another name stays, and the search finds it."""
    files = [("Bo Lund", 0, "", False), ("Mae (2)", 0, "", False), ("Mae (2)", 1, "", False)]
    write_world(tmp_path / "src", files, jpeg)
    shard.shard(tmp_path / "src", tmp_path / "set", shard.Options(2, with_json=True))
    plan = drop.drop(tmp_path / "set", ["Bo Lund"], "x", erase=tmp_path / "out", dry_run=True)
    assert (plan.copies, plan.copies_erased, plan.written) == (1, False, 3)
    result = drop.drop(
        tmp_path / "set", ["Bo Lund"], "Bo Lund asked by letter", erase=tmp_path / "out"
    )
    assert result.copies == 1 and not result.copies_erased
    twin = next(k for k, v in members(tmp_path / "out").items() if v == jpeg(0)).split()
    assert f"data/{twin[0]} {twin[1]}: an image" in result.left
    assert "_glint/tombstones.jsonl line 1: a name" in result.left  # in the reason that was given
    assert any("samples.parquet digest" in place for place in result.left)
    again = drop.drop(tmp_path / "set", ["Bo Lund"], "asked", erase=tmp_path / "less", copies=True)
    assert (again.left, again.written, again.images) == ([], 2, 2)
    masked = drop.drop(tmp_path / "set", ["Bo Lund"], "asked", copies=True)
    assert (masked.images, masked.copies, masked.copies_erased) == (2, 1, True)
    dataset = Dataset(tmp_path / "set")
    now = labels.current(tmp_path / "set", dataset.classes)
    target = now.sample_target(dataset.label)
    left = {dataset.read(i) for i in np.flatnonzero(target >= 0)}
    assert left == {jpeg(1), jpeg(7)}  # Mae's other one, and Eve's


def test_a_second_erasure_finds_nothing_of_the_first(
    tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    people = ("Ann.Lee", "Bo Lund", "Mae (2)")
    write_world(tmp_path / "src", [(p, i, "", False) for i, p in enumerate(people)], jpeg)
    shard.shard(tmp_path / "src", tmp_path / "set")
    for name, source, out in (("Ann.Lee", "set", "one"), ("Bo Lund", "one", "two")):
        found = drop.drop(tmp_path / source, [name], "asked", erase=tmp_path / out)
        assert (found.left, found.left_count) == ([], 0)


def test_two_people_of_one_name(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    """The name of one who stays is not written over; the search says where it stands."""
    from glint.pipelines.dataset import merge

    for number, name in enumerate(("a", "b")):
        write_world(tmp_path / name / "src", [("Bo Lund", number, "", False)] * 2, jpeg)
        shard.shard(tmp_path / name / "src", tmp_path / name / "set")
    merge.merge(tmp_path / "both", [tmp_path / "a/set", tmp_path / "b/set"])
    gone = Dataset(tmp_path / "both").identities().column("source_label").to_pylist()
    result = drop.drop(
        tmp_path / "both", [f"label:{gone.index('Bo Lund')}"], "x", erase=tmp_path / "out"
    )
    text = str(pq.read_table(tmp_path / "out/samples.parquet").to_pylist())
    assert text.count("Bo Lund") == 4  # source and source label of two pictures
    assert any(place.startswith("identities.parquet source_label") for place in result.left)


def test_a_long_member_is_searched_too(tmp_path: Path) -> None:
    """A tar that is none is an error, not a clean result."""
    from glint.errors import InputError
    from glint.pipelines.dataset import erase

    class Nobody:
        digests, sha256 = set[bytes](), set[str]()

        def within(self, texts: Any) -> bool:
            return False

        def places(self, texts: Any) -> list[str]:
            return []

        def first(self, column: Any) -> int:
            return -1

    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(InputError, match="GL0302"):
        erase.search(tmp_path, Nobody(), Nobody())  # type: ignore[arg-type]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    assert erase.search(tmp_path, Nobody(), Nobody()) == ([], 0)  # type: ignore[arg-type]


def test_folders_inside_those_of_whom_she_is_merged_with(
    tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    """And inside those who were taken out of the labels before."""
    places = ("Ann.Lee", "Bo Lund", "Bo Lund/a", "Mae (2)", "Mae (2)/b", "Zo\u00eb_Quill")
    write_world(tmp_path / "src", [(p, i, "", False) for i, p in enumerate(places)], jpeg)
    shard.shard(tmp_path / "src", tmp_path / "set")
    people = Dataset(tmp_path / "set").identities().column("source_label").to_pylist()
    merged = {"Ann.Lee": "Bo Lund", "Bo Lund/a": "Mae (2)"}
    target = np.unique([merged.get(p, p) for p in people], return_inverse=True)[1]
    labels.apply(tmp_path / "set", target, np.empty((0, 2), np.int64), {"by": "test"})
    result = drop.drop(tmp_path / "set", ["Ann.Lee"], "asked", dry_run=True)
    assert {people[i] for i in result.identities} == {*places} - {"Zo\u00eb_Quill"}
    assert {people[i] for i in result.below} == {"Bo Lund/a", "Mae (2)/b"}
    gone = [people.index("Mae (2)")]  # as a glint that knew no folders did
    seal.append(tmp_path / "set" / tombstones.FILE, {"op": "drop", "labels": gone}, "GL0304")
    result = drop.drop(tmp_path / "set", [], "asked", erase=tmp_path / "out")
    assert result.left == [] and people.index("Mae (2)/b") in result.identities


def test_who_has_the_same_name_in_another_spelling_is_told(
    tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    people = ("Zo\u00eb_Quill", "Zoe\u0308_Quill", "ZO\u00cb_QUILL", "Zoe_Quill", "Eve Lund")
    write_world(tmp_path / "src", [(p, i, "", False) for i, p in enumerate(people)], jpeg)
    shard.shard(tmp_path / "src", tmp_path / "set")
    names = Dataset(tmp_path / "set").identities().column("source_label").to_pylist()
    found = drop.drop(tmp_path / "set", [f"source-label:{people[0]}"], "asked")
    assert {names[i] for i in found.alike} == {*people[1:3]}
    again = drop.drop(tmp_path / "set", [f"source-label:{people[1]}"], "asked")
    assert {names[i] for i in again.alike} == {people[2]}  # the first is out already
    assert (
        drop.drop(tmp_path / "set", ["source-label:Zoe_Quill"], "asked", dry_run=True).alike == []
    )


def test_longer_names_of_others_are_theirs(tmp_path: Path, jpeg: Callable[[int], bytes]) -> None:
    """Nor is the ending of a file a name, nor a letter with its accent written apart."""
    stays = {
        "Ann_Smith": ["Ann_Smith_0001", "party/1", "with Ann and Ann_Smith"],
        "Anna": ["Anna_0001"],
        "Bo Ann": ["Bo Ann (Ann)"],
        "An": ["An Ann Ann", "Ann_Smithers"],
        "Ann\u0303a": ["1"],
    }
    files = [(who, f"{name}.jpg") for who, names in stays.items() for name in names]
    files += [("Ann", "0001.jpg"), ("jpg", "0001.jpg"), ("Ann_Smith", "jpg of jpg.jpg")]
    for i, (who, name) in enumerate(files):
        path = tmp_path / "src" / who / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    shard.shard(tmp_path / "src", tmp_path / "set")
    result = drop.drop(tmp_path / "set", ["Ann", "jpg"], "asked", erase=tmp_path / "out")
    assert sorted(pq.read_table(tmp_path / "out/samples.parquet")["source"].to_pylist()) == sorted([
        "Ann_Smith/Ann_Smith_0001.jpg", "Ann_Smith/party/1.jpg",
        "Ann_Smith/with erased and Ann_Smith.jpg", "Anna/Anna_0001.jpg",
        "Bo Ann/Bo Ann (erased).jpg", "An/An erased erased.jpg", "An/erased_Smithers.jpg",
        "Ann\u0303a/1.jpg", "Ann_Smith/erased of erased.jpg",
    ])  # fmt: skip
    assert {place.split()[0] for place in result.left} == {"data/train-000000.idx"}  # its word jpg


@pytest.mark.parametrize(
    "spelled", ["ZO\u00cb_QUILL", "zo\u00eb_quill", "Zoe\u0308_Quill", "Zo\u00eb_Qu\uff49ll"]
)
def test_other_spellings_are_found_though_not_written_over(
    spelled: str, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    files = [("Zo\u00eb_Quill", 0, "", False), ("Bo Lund", 1, f"{spelled} and ", False)]
    write_world(tmp_path / "src", files, jpeg)
    shard.shard(tmp_path / "src", tmp_path / "set", shard.Options(5, with_json=True))
    word = "source-label:Zo\u00eb_Quill"
    result = drop.drop(tmp_path / "set", [word], "asked", erase=tmp_path / "out")
    there = json.dumps(spelled)[1:-1]
    assert any(there in v.decode("latin-1") for v in members(tmp_path / "out").values())
    assert any(place.startswith("samples.parquet source, row") for place in result.left)
    assert any(place.endswith(".json: a name") for place in result.left)
